"""GAM: gradient approximation method (Xu and Zhu, AAAI 2023, arXiv:2302.01970) on its own form of the SVM problem.

Its lower level has no slack bounds: ``1/2 ||w||^2 + 1/2 sum_i exp(c_i) xi_i^2`` under the margins, solved exactly, and
its upper objective is the validation loss alone; the hypergradient is implicit differentiation on the active margins.
To compare, its separator is read as an answer of the study's problem with the slack bounds its margins induce,
``max(0, 1 - margin)``. Step .05, 60 steps, c from uniform [-7, -6].
"""

from __future__ import annotations

import numpy as np

from benchmarks.baselines.common import Array, Outcome, Problem

STEP, STEPS = 0.05, 60


def lower(train: Array, weights: Array, curvature: Array, y: Array) -> tuple[Array, Array, Array]:
    """Weighted squared-hinge machine by Newton's method; (y, slack, Hessian)."""
    for _ in range(100):
        slack = np.maximum(0.0, 1.0 - train @ y)
        gradient = curvature * y - train.T @ (weights * slack)
        active = slack > 0
        hessian = np.diag(curvature) + (train[active].T * weights[active]) @ train[active]
        hessian[np.diag_indices(len(y))] += 1e-12
        step = np.linalg.solve(hessian, gradient)
        if float(gradient @ step) < 1e-18:
            break
        y = y - step
    return y, slack, hessian


def run(problem: Problem, seed: int) -> Outcome:
    """60 steps of gradient descent on log weights."""
    samples, size = problem.train.shape
    train, curvature = problem.train, problem.curvature
    log_weights = np.random.default_rng(seed).uniform(-7.0, -6.0, samples)
    y = np.zeros(size)
    for _ in range(STEPS):
        weights = np.exp(log_weights)
        y, slack, hessian = lower(train, weights, curvature, y)
        sensitivity = np.linalg.solve(hessian, problem.gradient_y(y))
        log_weights = log_weights - STEP * weights * slack * (train @ sensitivity)
    y, slack, _ = lower(train, np.exp(log_weights), curvature, y)
    return Outcome(slack, y)
