"""SFLCB: single-loop first-order method for linearly constrained lower levels (Shen et al., arXiv:2510.24710, Alg. 1).

Descent in (x, y, alpha) and ascent in (z, beta, u, v) on the augmented Lagrangian

    K = delta f(x, y) + g(y) - g(z) + u.(h(x, y) - alpha) - v.(h(x, z) - beta)
        + rho_1/2 ||h(x, y) - alpha||^2 - rho_2/2 ||h(x, z) - beta||^2,      alpha, beta <= 0,

with h = 1 - c - l (w.z + b). The study's settings: all steps .001, delta = rho_1 = rho_2 = .01, 10,000 iterations,
from the exact lower-level answer at c uniform in [1, 5]. It needs a strongly convex lower level: the intercept is
penalised with weight .01.
"""

from __future__ import annotations

import numpy as np

from benchmarks.baselines.common import Outcome, Problem
from blocc.applications.svm.slack_bounds import SlackBoundModel

STEP, DELTA, RHO, STEPS = 1e-3, 0.01, 0.01, 10_000


def run(problem: Problem, seed: int) -> Outcome:
    """10,000 iterations; the separator is z, the lower level's."""
    train, curvature = problem.train, problem.curvature
    c = np.random.default_rng(seed).uniform(1.0, 5.0, len(train))
    model = SlackBoundModel(train, problem.validation, problem.upper, problem.intercept_penalty)
    start = model.lower(c, tol=1e-8)
    y = z = start.y
    u = v = start.duals["margin"]
    alpha = beta = 1.0 - c - train @ y
    for _ in range(STEPS):
        gap_y, gap_z = 1.0 - c - train @ y - alpha, 1.0 - c - train @ z - beta
        u, v = u + STEP * gap_y, v + STEP * gap_z
        force_y, force_z = u + RHO * gap_y, v + RHO * gap_z
        gradient_c = DELTA * problem.gradient_c(c) - force_y + force_z
        gradient_y = DELTA * problem.gradient_y(y) + curvature * y - train.T @ force_y
        gradient_z = -curvature * z + train.T @ force_z
        c, y, z = c - STEP * gradient_c, y - STEP * gradient_y, z + STEP * gradient_z
        alpha = np.minimum(alpha + STEP * force_y, 0.0)
        beta = np.minimum(beta + STEP * force_z, 0.0)
    return Outcome(c, z)
