"""The paper's toy problems (BLOCC, arXiv:2406.10148, section 4.1), from 200 random starts with defaults."""

from __future__ import annotations

import numpy as np
import pytest

import blocc
from tests.core.problems import CoupledQP, toy, toy_minima


@pytest.mark.parametrize(
    "starts", [40, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize(("frequency", "ridge"), [(4, 1.0), (6, 0.0)], ids=["i", "ii"])
def test_every_start_ends_at_a_certified_local_minimum(frequency, ridge, starts):
    f, g, c = toy(frequency, ridge)
    minima = np.array(toy_minima(frequency, ridge))
    if frequency == 6:
        np.testing.assert_allclose(minima, [0.1488, 0.9862, 2.0198, 2.9907], atol=2e-4)
    random = np.random.default_rng(0)
    for _ in range(starts):
        result = blocc.minimize(
            f,
            g,
            c,
            random.uniform(0, 3, 1),
            random.uniform(0, 3, 1),
            x_set=blocc.Box(0, 3),
            y_set=blocc.Box(0, 3),
        )
        assert np.min(np.abs(minima - result.x[0])) < 1e-5
        assert abs(result.y[0] - result.x[0]) < 1e-6
        assert result.status is blocc.Status.STATIONARY
        assert result.certificate.ok(1e-6)


def test_plain_callables_are_differentiated_by_autograd():
    pytest.importorskip("autograd")

    def f(x, y, data):
        xp = blocc.namespace(x, y)
        return xp.sum(xp.exp(2 - y) / (2 + xp.cos(6 * x)) + 0.5 * xp.log((4 * x - 2) ** 2 + 1))

    result = blocc.minimize(
        f,
        lambda x, y, data: ((y - 2 * x) ** 2).sum(),
        lambda x, y, data: y - x,
        [1.2],
        [0.3],
        x_set=blocc.Box(0, 3),
        y_set=blocc.Box(0, 3),
    )
    minima = np.array(toy_minima(6, 0.0))
    assert np.min(np.abs(minima - result.x[0])) < 1e-5
    assert result.success


def test_gap_falls_as_one_over_gamma():
    """The paper's gamma study: |y_F - y_g| = O(1/gamma), on a coupled QP whose penalty is active."""
    problem = CoupledQP(3, 6, 4, 1, seed=1)
    model = problem.model()
    x = np.array([0.2, -0.4, 0.1])
    gammas = np.array([10.0, 100.0, 1e3, 1e4])
    y_g = model.lower(x, tol=1e-12).y
    gaps = [np.linalg.norm(model.penalized(x, gamma, tol=1e-12).y - y_g) for gamma in gammas]
    slope = np.polyfit(np.log(gammas), np.log(gaps), 1)[0]
    assert -1.1 < slope < -0.9
