"""LV-HBA: single loop on the proximal Lagrangian value function (Yao, Yu, Zeng, Zhang, ICLR 2024, arXiv:2401.16164).

State (x, y) = (c, (w, b, xi)), the auxiliary theta of y's shape, multipliers lambda and z. One iteration:

    theta  <- theta - eta (d_y g(theta) + d_y C(x, theta)^T lambda + (theta - y) gamma_1)
    lambda <- Proj_Z(lambda + eta (C(x, theta) - gamma_2 (lambda - z)))
    (x, y) <- Proj_{C <= 0}( (x, y) - alpha (c_k grad f + grad g - (d_x of L at theta, (y - theta) gamma_1)) )
    z      <- Proj_Z(z - beta gamma_2 (z - lambda))

with the constraints C: 1 - xi - l (w.z + b) <= 0 and xi - c <= 0, and the upper objective weighted by
c_k = 1 / sqrt(k + 1). As in the study's code, the validation loss inside the method takes the score divided by
||w||; without that it overflows from its start at w = 1 on the diabetes features. Steps as in the study: alpha .01,
eta .001, gamma_1 = gamma_2 = .1, 80 iterations.
"""

from __future__ import annotations

import numpy as np

from benchmarks.baselines.common import Array, Outcome, Problem

ALPHA, ETA, GAMMA_1, GAMMA_2, STEPS, CAP = 0.01, 0.001, 0.1, 0.1, 80, 1e3


def project(train: Array, c: Array, y: Array, slack: Array) -> tuple[Array, Array, Array]:
    """Nearest (c, y, xi) with ``1 - train y <= xi <= c``: Newton in y, the rest in closed form a sample."""

    def closest(required: Array) -> tuple[Array, Array]:
        # nearest (xi, c) with required <= xi <= c
        middle = np.where(slack <= c, slack, 0.5 * (slack + c))
        xi = np.maximum(middle, required)
        # where the first bound pushes xi above c, both go to it
        other = np.maximum(np.where(slack <= c, c, 0.5 * (slack + c)), xi)
        return xi, other

    point = y.copy()
    for _ in range(50):
        xi, bound = closest(1.0 - train @ point)
        # gradient of the squared distance in `required` by the envelope theorem
        force = (xi - slack) + (bound - c)
        pushed = xi >= 1.0 - train @ point
        pushed &= xi <= 1.0 - train @ point + 1e-12
        force = np.where(pushed, force, 0.0)
        stiffness = np.where(pushed, np.where(bound <= xi + 1e-12, 2.0, 1.0), 0.0)
        gradient = point - y - train.T @ force
        if np.max(np.abs(gradient)) < 1e-10:
            break
        hessian = np.eye(len(y)) + (train.T * stiffness) @ train
        point = point - np.linalg.solve(hessian, gradient)
    xi, bound = closest(1.0 - train @ point)
    return bound, point, xi


def _normalised_gradient(validation: Array, y: Array) -> Array:
    """Gradient in (w, b) of ``sum exp(1 - l (w.z + b) / ||w||)``."""
    length = float(np.linalg.norm(y[:-1]))
    scores = validation @ y / length
    losses = np.exp(1.0 - scores)
    gradient = -validation.T @ losses / length
    gradient[:-1] += float(losses @ scores) * y[:-1] / length**2
    return gradient


def run(problem: Problem, seed: int) -> Outcome:
    """80 iterations from c uniform in [1, 5], w = 1, b = 0, xi = 1."""
    samples, size = problem.train.shape
    train, curvature = problem.train, problem.curvature
    c = np.random.default_rng(seed).uniform(1.0, 5.0, samples)
    y = np.ones(size)
    y[-1] = 0.0
    slack, theta, theta_slack = np.ones(samples), y.copy(), np.ones(samples)
    margin_dual, bound_dual = np.ones(samples), np.ones(samples)
    margin_z, bound_z = np.ones(samples), np.ones(samples)
    for k in range(STEPS):
        weight = 1.0 / np.sqrt(k + 1.0)
        step = curvature * theta - train.T @ margin_dual + GAMMA_1 * (theta - y)
        slack_step = bound_dual - margin_dual + GAMMA_1 * (theta_slack - slack)
        theta, theta_slack = theta - ETA * step, theta_slack - ETA * slack_step
        margin = 1.0 - theta_slack - train @ theta
        over = theta_slack - c
        margin_dual = np.clip(
            margin_dual + ETA * (margin - GAMMA_2 * (margin_dual - margin_z)), 0.0, CAP
        )
        bound_dual = np.clip(bound_dual + ETA * (over - GAMMA_2 * (bound_dual - bound_z)), 0.0, CAP)
        direction_c = weight * problem.gradient_c(c) + bound_dual  # d_c of xi - c is -1
        direction_y = (
            weight * _normalised_gradient(problem.validation, y)
            + curvature * y
            - GAMMA_1 * (y - theta)
        )
        direction_slack = -GAMMA_1 * (slack - theta_slack)
        c, y, slack = project(
            train,
            c - ALPHA * direction_c,
            y - ALPHA * direction_y,
            slack - ALPHA * direction_slack,
        )
        margin_z = np.clip(margin_z - ALPHA * GAMMA_2 * (margin_z - margin_dual), 0.0, CAP)
        bound_z = np.clip(bound_z - ALPHA * GAMMA_2 * (bound_z - bound_dual), 0.0, CAP)
    return Outcome(c, y)
