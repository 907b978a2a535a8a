"""Gradient sampling at kinks and along the edge of the lower level's domain."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import blocc
from blocc.methods.descent import stationarity
from blocc.methods.gradient_sampling import combined_gradient


def largest_of(pieces):
    """The oracle of ``max_i pieces[i] . x``."""

    def oracle(x):
        values = pieces @ x
        return SimpleNamespace(
            x=x,
            value=float(values.max()),
            gradient=pieces[values.argmax()],
            gamma=1.0,
            lower=SimpleNamespace(value=0.0),
        )

    return oracle


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_sharp_minimum_is_recognised_however_thin_a_piece(size):
    """Zero is a convex combination of the pieces' slopes by construction, and every piece holds somewhere."""
    box = blocc.Box(-np.ones(size), np.ones(size))
    for seed in range(60):
        random = np.random.default_rng(seed)
        pieces = random.standard_normal((size, size))
        pieces = np.vstack([pieces, -random.uniform(0.05, 1.0, size) @ pieces])
        oracle = largest_of(pieces)
        here = oracle(1e-9 * random.standard_normal(size))
        left = combined_gradient(oracle, here, box, 1e-5, 1e-8)
        assert stationarity(here.x, left, box) <= 1e-8, seed


def test_a_slope_that_no_combination_takes_away_stays():
    """x_1 falls on both sides of the kink |x_0|."""
    pieces = np.array([[1.0, 0.3], [-1.0, 0.3]])
    oracle, box = largest_of(pieces), blocc.Box(-np.ones(2), np.ones(2))
    left = combined_gradient(oracle, oracle(np.array([1e-9, 0.0])), box, 1e-5, 1e-8)
    np.testing.assert_allclose(left, [0.0, 0.3], atol=1e-8)


@pytest.mark.parametrize(
    ("target", "normal"),
    [([2.0, 1.0], [1.0, 2.0]), ([2.0, 3.0], [0.3, 1.7]), ([1.0, 3.0], [1 / 3, np.pi / 2])],
)
def test_descent_goes_on_along_the_edge_of_the_lower_levels_domain(target, normal):
    """y must lie between normal . x and 1, so x ends at the projection of the target on normal . x <= 1."""
    target, normal = np.array(target), np.array(normal)
    upper = blocc.Function(
        lambda x, y, d: 0.5 * float((x - target) @ (x - target) + (y - 1) @ (y - 1)),
        lambda x, y, d: (x - target, y - 1),
    )
    lower = blocc.Function(
        lambda x, y, d: 0.5 * float((y[0] - x[0]) ** 2),
        lambda x, y, d: (np.array([x[0] - y[0], 0.0]), y - x[0]),
    )
    between = blocc.Function(
        lambda x, y, d: np.array([normal @ x - y[0], y[0] - 1.0]),
        lambda x, y, w, d: (normal * w[0], np.array([w[1] - w[0]])),
    )
    result = blocc.minimize(
        upper,
        lower,
        between,
        np.array([-1.0, -0.5]),
        np.zeros(1),
        x_set=blocc.Box(-4 * np.ones(2), 4 * np.ones(2)),
    )
    expected = target - normal * (normal @ target - 1) / (normal @ normal)
    np.testing.assert_allclose(result.x, expected, atol=1e-5)
