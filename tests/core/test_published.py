"""Algorithms 1 and 2 as published reach the published answer with a good setting."""

from __future__ import annotations

import numpy as np
import pytest

import blocc
from blocc.methods.published import blocc as published
from tests.core.problems import CoupledQP, toy


@pytest.mark.parametrize("accelerated", [False, True])
def test_published_blocc_finds_a_toy_minimum(accelerated):
    f, g, c = toy(6, 0.0)
    model = blocc.FunctionalModel(
        f, g, c, np.array([1.2]), np.array([0.0]), x_set=blocc.Box(0, 3), y_set=blocc.Box(0, 3)
    )
    steps = []
    last = published(
        model,
        np.array([1.2]),
        gamma=5.0,
        eta=0.01,
        T=120,
        eta_1g=0.1,
        eta_1F=0.01,
        eta_2=0.5,
        T_inner=50,
        T_y=20 if accelerated else 1,
        accelerated=accelerated,
        callback=steps.append,
    )
    assert len(steps) == 120
    assert last.x[0] == pytest.approx(0.98622, abs=1e-4)
    assert last.lower.y[0] == pytest.approx(last.x[0], abs=1e-5)


def test_published_direction_is_the_penalty_gradient():
    """With saddle points solved to the end, d_t equals the gradient of F_gamma from CVXPY's differences."""
    problem = CoupledQP(2, 5, 3, 0, seed=4)
    x0, gamma = np.array([0.1, -0.3]), 3.0
    last = published(
        problem.model(),
        x0,
        gamma=gamma,
        eta=1e-9,
        T=1,
        eta_1g=0.05,
        eta_1F=0.02,
        eta_2=0.1,
        T_inner=20000,
    )
    for i in range(2):
        step = 1e-4 * np.eye(2)[i]
        ahead = problem.response(x0 + step, gamma)[1] - gamma * problem.response(x0 + step)[1]
        behind = problem.response(x0 - step, gamma)[1] - gamma * problem.response(x0 - step)[1]
        assert last.direction[i] == pytest.approx((ahead - behind) / 2e-4, rel=1e-4, abs=1e-4)
