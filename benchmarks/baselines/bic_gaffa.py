"""BiC-GAFFA: single loop on a doubly regularised gap function (Yao, Yin, Zeng, Zhang, NeurIPS 2024, arXiv:2406.01992).

The lower level's saddle point enters through the gap

    G(x, y, z) = max over theta, lambda >= 0 of
        L(x, y, lambda) - |lambda - z|^2 / (2 gamma_2) - L(x, theta, z) - |theta - y|^2 / (2 gamma_1)

which is zero exactly at (y, z) that solve it; f / c_k + G is descended in (x, y, z), lambda in closed form and theta
by one gradient step an iteration, c_k = c (k + 1)^p growing. The authors did not run this problem: the settings here
were chosen by us (of steps .001 and .01, gammas 1 and 10, c 10 and 100, those that stay finite on the first split of
both data sets and end lowest), 10,000 iterations and the start as for SFLCB.
"""

from __future__ import annotations

import numpy as np

from benchmarks.baselines.common import Array, Outcome, Problem
from blocc.applications.svm.slack_bounds import SlackBoundModel

STEP, ETA, GAMMA, SCALE, POWER, CAP, STEPS = 1e-3, 1e-2, 10.0, 10.0, 0.3, 1e3, 10_000


def gap_gradient(
    problem: Problem, c: Array, y: Array, z: Array, theta: Array
) -> tuple[Array, Array, Array]:
    """Gradient of G in (c, y, z), theta given."""
    train, curvature = problem.train, problem.curvature
    multiplier = np.maximum(z + GAMMA * (1.0 - c - train @ y), 0.0)
    gradient_y = curvature * y - train.T @ multiplier + (theta - y) / GAMMA
    return z - multiplier, gradient_y, (multiplier - z) / GAMMA - (1.0 - c - train @ theta)


def run(problem: Problem, seed: int) -> Outcome:
    """10,000 iterations; the separator is y."""
    train, curvature = problem.train, problem.curvature
    c = np.random.default_rng(seed).uniform(1.0, 5.0, len(train))
    model = SlackBoundModel(train, problem.validation, problem.upper, problem.intercept_penalty)
    start = model.lower(c, tol=1e-8)
    y = theta = start.y
    z = np.minimum(start.duals["margin"], CAP)
    for k in range(STEPS):
        share = 1.0 / (SCALE * (k + 1.0) ** POWER)
        theta = theta - ETA * (curvature * theta - train.T @ z + (theta - y) / GAMMA)
        gap_c, gap_y, gap_z = gap_gradient(problem, c, y, z, theta)
        step_c = share * problem.gradient_c(c) + gap_c
        step_y = share * problem.gradient_y(y) + gap_y
        c, y = c - STEP * step_c, y - STEP * step_y
        z = np.clip(z - STEP * gap_z, 0.0, CAP)
    return Outcome(c, y)
