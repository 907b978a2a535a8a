"""BLOCC as published: Algorithm 1 and 2 of arXiv:2406.10148 through blocc.methods.published, the authors' settings."""

from __future__ import annotations

import numpy as np

import blocc
from benchmarks.baselines.common import Outcome, Problem
from blocc.functional import FunctionalModel
from blocc.methods import published

GAMMA, ETA, OUTER, INNER, STEPS_Y = 12.0, 0.01, 80, 20, 20
ETA_1G, ETA_1F, ETA_2 = 1e-3, 1e-5, 1e-4


def run(problem: Problem, seed: int) -> Outcome:
    """80 outer steps from c uniform in [1, 5], w = 0, b = 1; the separator is that of L_g."""
    samples, size = problem.train.shape
    rng = np.random.default_rng(seed)
    c0, y0 = rng.uniform(1.0, 5.0, samples), np.zeros(size)
    y0[-1] = 1.0
    curvature, train = problem.curvature, problem.train

    f = blocc.Function(
        lambda c, y, _: np.asarray(problem.upper_value(c, y)),
        lambda c, y, _: (problem.gradient_c(c), problem.gradient_y(y)),
    )
    g = blocc.Function(
        lambda c, y, _: 0.5 * np.asarray(curvature @ y**2),
        lambda c, y, _: (np.zeros_like(c), curvature * y),
    )
    constraint = blocc.Function(
        lambda c, y, _: 1.0 - c - train @ y,
        lambda c, y, dual, _: (-dual, -train.T @ dual),
    )
    model = FunctionalModel(f, g, constraint, c0, y0)
    last = published.blocc(
        model,
        c0,
        gamma=GAMMA,
        eta=ETA,
        T=OUTER,
        eta_1g=ETA_1G,
        eta_1F=ETA_1F,
        eta_2=ETA_2,
        T_inner=INNER,
        T_y=STEPS_Y,
    )
    return Outcome(last.x, last.lower.y)
