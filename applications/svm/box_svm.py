"""Support vector machines with bounds on the weights, solved exactly: the lower level of cross-validation.

    minimise over (w, b)   strength/2 ||w||^2 + sum_i weight_i max(0, target_i - a_i.w - l_i b)
    subject to             -bound <= w <= bound

Rows ``(a_i, l_i)`` are ``l_i (z_i, 1)`` with target 1 for classification; two rows a sample make epsilon-insensitive
regression. Fewer features than samples are assumed: the linear systems have the size of (w, b).

Method: augmented Lagrangian on the losses' kinks and the bounds, its smooth inner problems by semismooth Newton steps
with an exact line search (as Li, Sun, Toh, SIAM J. Optim. 2018, do for the Lasso). A Newton system is assembled from
the rows near their kink alone, so a step costs little more than two products with the data; a warm start near the
answer needs a few. It stops on a duality gap computed from the data, with multipliers made exactly feasible. Compiled
by numba: most machines are so small that NumPy's overhead for every call would be most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from blocc.errors import LowerNotSolvedError

Array = Any
OUTER_STEPS, NEWTON_STEPS, SEARCH_STEPS = 40, 100, 40
STIFFNESS, GROWTH = (
    1.0,
    10.0,
)  # penalty on the kinks, relative to the losses' scale; its growth a multiplier step
BOUNDS = 3.0  # penalty on the bounds, relative to that on all rows together
INNER_TOL = 1e-8


@dataclass(frozen=True)
class BoxSVM:
    """One problem: ``rows`` (n, d); ``signs``, ``targets``, ``weights`` (n,); ``bound`` (d,); ``strength`` positive."""

    rows: Array
    signs: Array
    targets: Array
    weights: Array
    strength: float
    bound: Array


@dataclass(frozen=True)
class Answer:
    """Optimal weights, intercept and multipliers.

    Attributes
    ----------
    w : array of shape (d,)
        Within the bounds.
    b : float
    alpha : array of shape (n,)
        Multipliers of the losses: between 0 and their weights, ``signs @ alpha == 0`` to rounding.
    bound_dual : array of shape (d,)
        Multipliers of the bounds, positive at the upper and negative at the lower one.
    value, lower_value : float
        Primal and dual value.
    iterations : int
        Linear systems solved.
    """

    w: Array
    b: float
    alpha: Array
    bound_dual: Array
    value: float
    lower_value: float
    iterations: int

    @property
    def gap(self) -> float:
        """Relative duality gap."""
        return (self.value - self.lower_value) / (1.0 + abs(self.value))


def solve(
    problems: Sequence[BoxSVM],
    *,
    tol: float = 1e-9,
    warm: Sequence[Answer | None] | None = None,
) -> list[Answer]:
    """Solve every problem to a relative duality gap.

    Parameters
    ----------
    problems : sequence of BoxSVM
    tol : float
    warm : sequence of (Answer or None), optional
        Of nearby problems with the same rows.

    Raises
    ------
    LowerNotSolvedError
        If a gap stays above tol.
    """
    starts = [None] * len(problems) if warm is None else warm
    return [
        _solve_one(problem, start, tol) for problem, start in zip(problems, starts, strict=True)
    ]


def _solve_one(problem: BoxSVM, start: Answer | None, tol: float) -> Answer:
    rows, weights = np.ascontiguousarray(problem.rows), problem.weights
    if start is None:
        w, b, alpha = np.zeros(rows.shape[1]), 0.0, 0.5 * weights
        bound_dual = np.zeros(rows.shape[1])
    else:
        w, b, alpha, bound_dual = start.w, start.b, start.alpha, start.bound_dual
    scale = float(np.mean(weights)) / (1.0 + float(np.mean(np.abs(problem.targets))))
    found = _augmented_lagrangian(
        rows,
        problem.signs,
        problem.targets,
        weights,
        problem.strength,
        problem.bound,
        w,
        b,
        np.clip(alpha, 0.0, weights),
        bound_dual,
        STIFFNESS * scale,
        tol,
    )
    w, b, alpha, force, value, lower_value, steps = found
    limit = problem.strength * problem.bound
    answer = Answer(w, b, alpha, force - np.clip(force, -limit, limit), value, lower_value, steps)
    if not answer.gap <= tol:
        raise LowerNotSolvedError(
            f"SVM lower level: relative gap {answer.gap:.1e}, asked for {tol:.1e}; scale the features"
        )
    return answer


# sums may be reordered, so that loops use vector instructions; NaN and infinity keep their meaning
_compiled = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


@_compiled
def _augmented_lagrangian(
    rows: Array,
    signs: Array,
    targets: Array,
    weights: Array,
    strength: float,
    bound: Array,
    w: Array,
    b: float,
    alpha: Array,
    bound_dual: Array,
    stiffness: float,
    tol: float,
) -> tuple[Array, float, Array, Array, float, float, int]:
    """Multiplier steps; (w, b, alpha, alpha @ rows, primal value, dual value, Newton steps) of the best answer."""
    samples, features = rows.shape
    squares = np.zeros(features)
    for i in range(samples):
        for j in range(features):
            squares[j] += rows[i, j] * rows[i, j]
    squares += 1e-12 * squares.sum() / features + 1e-300
    residual = targets - np.dot(rows, w) - signs * b
    gradient, step = np.empty(features + 1), np.empty(features + 1)
    hessian = np.empty((features + 1, features + 1))
    pressed, pressed_bounds = np.empty(samples), np.empty(features)
    moved = np.empty(samples)
    total = weights.sum()
    steps = 0
    best_gap = math.inf
    best_w, best_b, best_alpha, best_force = w, b, alpha, squares
    best_value, best_lower = math.inf, -math.inf
    for _ in range(OUTER_STEPS):
        bound_stiffness = BOUNDS * stiffness * squares
        for _ in range(NEWTON_STEPS):
            force = _newton_system(
                rows,
                signs,
                weights,
                strength,
                bound,
                w,
                alpha,
                bound_dual,
                stiffness,
                bound_stiffness,
                residual,
                pressed,
                pressed_bounds,
                gradient,
                hessian,
            )
            largest = np.max(np.abs(force)) + 1e-12 * total
            error = np.max(np.abs(gradient[:features])) / largest
            if max(error, abs(gradient[features]) / total) < INNER_TOL:
                break
            _newton_step(hessian, gradient, step)
            descent = np.dot(gradient, step)
            if not descent < 0.0:
                break
            moved[:] = -np.dot(rows, step[:features]) - signs * step[features]
            length = _line_search(
                descent,
                strength,
                w,
                step,
                residual,
                moved,
                alpha,
                weights,
                stiffness,
                bound_dual,
                bound,
                bound_stiffness,
            )
            w = w + length * step[:features]
            b += length * step[features]
            residual += length * moved
            steps += 1
        alpha, bound_dual = pressed.copy(), pressed_bounds.copy()
        residual = targets - np.dot(rows, w) - signs * b
        feasible = np.minimum(np.maximum(w, -bound), bound)
        balanced = _balanced(alpha, signs)
        force = np.dot(balanced, rows)
        value = _primal(rows, signs, targets, weights, strength, feasible, b)
        lower = _dual(balanced, force, targets, strength, bound)
        gap = (value - lower) / (1.0 + abs(value))
        if gap < best_gap:
            best_gap, best_w, best_b, best_alpha = gap, feasible, b, balanced
            best_force, best_value, best_lower = force, value, lower
        if gap <= tol:
            break
        stiffness *= GROWTH
    return best_w, best_b, best_alpha, best_force, best_value, best_lower, steps


@_compiled
def _newton_system(
    rows: Array,
    signs: Array,
    weights: Array,
    strength: float,
    bound: Array,
    w: Array,
    alpha: Array,
    bound_dual: Array,
    stiffness: float,
    bound_stiffness: Array,
    residual: Array,
    pressed: Array,
    pressed_bounds: Array,
    gradient: Array,
    hessian: Array,
) -> Array:
    """Next multipliers, gradient and (lower triangle of the) generalised Hessian of the augmented Lagrangian.

    Returns the force of the losses on w.
    """
    samples, features = rows.shape
    hessian[:, :] = 0.0
    pull = 0.0
    for i in range(samples):
        raw = alpha[i] + stiffness * residual[i]
        if raw <= 0.0:
            pressed[i] = 0.0
        elif raw >= weights[i]:
            pressed[i] = weights[i]
        else:  # at the kink
            pressed[i] = raw
            for j in range(features):
                scaled = stiffness * rows[i, j]
                for k in range(j + 1):
                    hessian[j, k] += scaled * rows[i, k]
                hessian[features, j] += signs[i] * scaled
            hessian[features, features] += stiffness
        pull += signs[i] * pressed[i]
    force = np.dot(pressed, rows)
    for j in range(features):
        raw = bound_dual[j] + bound_stiffness[j] * w[j]
        limit = bound_stiffness[j] * bound[j]
        hessian[j, j] += strength
        pressed_bounds[j] = raw - min(max(raw, -limit), limit)
        if pressed_bounds[j] != 0.0:
            hessian[j, j] += bound_stiffness[j]
        gradient[j] = strength * w[j] + pressed_bounds[j] - force[j]
    gradient[features] = -pull
    hessian[features, features] += 1e-9 * stiffness  # no row at its kink holds b
    return force


@_compiled
def _newton_step(matrix: Array, gradient: Array, step: Array) -> None:
    """Solve ``matrix step = -gradient`` by Cholesky's factorisation, in place in the lower triangle."""
    size = len(gradient)
    for j in range(size):
        for k in range(j):
            entry = matrix[j, k]
            for m in range(k):
                entry -= matrix[j, m] * matrix[k, m]
            matrix[j, k] = entry / matrix[k, k]
        entry = matrix[j, j]
        for m in range(j):
            entry -= matrix[j, m] * matrix[j, m]
        matrix[j, j] = math.sqrt(max(entry, 1e-14 * matrix[j, j] + 1e-300))
    for j in range(size):
        entry = -gradient[j]
        for m in range(j):
            entry -= matrix[j, m] * step[m]
        step[j] = entry / matrix[j, j]
    for j in range(size - 1, -1, -1):
        step[j] /= matrix[j, j]
        for m in range(j):
            step[m] -= matrix[j, m] * step[j]


@_compiled
def _line_search(
    descent: float,
    strength: float,
    w: Array,
    step: Array,
    residual: Array,
    moved: Array,
    alpha: Array,
    weights: Array,
    stiffness: float,
    bound_dual: Array,
    bound: Array,
    bound_stiffness: Array,
) -> float:
    """Length along the step where the slope is at most a tenth of the first: false position on a monotone function."""

    def slope(length: float) -> float:
        total = 0.0
        for j in range(len(w)):
            there = w[j] + length * step[j]
            raw = bound_dual[j] + bound_stiffness[j] * there
            limit = bound_stiffness[j] * bound[j]
            total += (strength * there + raw - min(max(raw, -limit), limit)) * step[j]
        for i in range(len(residual)):
            raw = alpha[i] + stiffness * (residual[i] + length * moved[i])
            total += min(max(raw, 0.0), weights[i]) * moved[i]
        return total

    enough = -0.1 * descent
    short, long, slope_short, slope_long = 0.0, 1.0, descent, slope(1.0)
    for _ in range(SEARCH_STEPS):
        if slope_long >= -enough:
            break
        short, slope_short = long, slope_long
        long *= 3.0
        slope_long = slope(long)
    length = long
    if slope_long <= enough:
        return length
    for _ in range(SEARCH_STEPS):
        length = (short * slope_long - long * slope_short) / (slope_long - slope_short)
        here = slope(length)
        if abs(here) <= enough:
            break
        # the end that stays is halved (the Illinois rule), so that both ends close in
        if here > 0.0:
            long, slope_long = length, here
            slope_short *= 0.5
        else:
            short, slope_short = length, here
            slope_long *= 0.5
    return length


@_compiled
def _balanced(alpha: Array, signs: Array) -> Array:
    """Shrink the heavier class's multipliers until ``signs @ alpha == 0``."""
    positive, negative = 0.0, 0.0
    for i in range(len(alpha)):
        if signs[i] > 0.0:
            positive += alpha[i]
        else:
            negative += alpha[i]
    shrunk = alpha.copy()
    for i in range(len(alpha)):
        if signs[i] > 0.0 and positive > negative:
            shrunk[i] *= negative / positive
        elif signs[i] < 0.0 and negative > positive:
            shrunk[i] *= positive / negative
    return shrunk


@_compiled
def _primal(
    rows: Array, signs: Array, targets: Array, weights: Array, strength: float, w: Array, b: float
) -> float:
    residual = targets - np.dot(rows, w) - signs * b
    value: float = 0.5 * strength * np.dot(w, w)
    for i in range(len(residual)):
        value += weights[i] * max(residual[i], 0.0)
    return value


@_compiled
def _dual(alpha: Array, force: Array, targets: Array, strength: float, bound: Array) -> float:
    """Dual value; the bounds' multipliers are eliminated: given alpha, the best are those of the clipped weights."""
    value: float = np.dot(alpha, targets)
    for j in range(len(force)):
        weight = min(max(force[j] / strength, -bound[j]), bound[j])
        value += 0.5 * strength * weight * weight - force[j] * weight
    return value
