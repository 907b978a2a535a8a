"""Support vector machines with bounds on the weights, solved exactly: the lower level of cross-validation.

    minimise over (w, b)   strength/2 ||w||^2 + sum_i weight_i max(0, target_i - a_i.w - l_i b)
    subject to             -bound <= w <= bound

Rows ``(a_i, l_i)`` are ``l_i (z_i, 1)`` with target 1 for classification; two rows a sample make epsilon-insensitive
regression. Fewer features than samples are assumed: the linear systems have the size of (w, b).

Method: from a warm start, the active sets (losses at their kink, losses paid in full, weights at a bound) are guessed
and corrected by primal-dual active-set steps (Hintermueller, Ito, Kunisch 2003), each one small linear system; near a
solved problem a few of them are exact. From a cold start, or where these do not settle, Mehrotra's predictor-corrector
interior-point method, whose linear systems have the size of (w, b), then the active-set steps as its polish. Both stop
on a duality gap computed from the data, with multipliers made exactly feasible.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blocc.errors import LowerNotSolvedError

Array = Any
INTERIOR_STEPS, ACTIVE_SET_STEPS = 100, 12
HOLD = 1e-4
LARGE, NEGLIGIBLE = 50_000, 1e-10


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


def primal_value(problem: BoxSVM, w: Array, b: float) -> float:
    """Objective at (w, b)."""
    residual = problem.targets - problem.rows @ w - problem.signs * b
    losses = float(problem.weights @ np.maximum(residual, 0.0))
    return 0.5 * problem.strength * float(w @ w) + losses


def dual_value(problem: BoxSVM, alpha: Array) -> float:
    """Dual value of feasible multipliers: a lower bound on the optimal value.

    The bounds' multipliers are eliminated: given alpha, the best ones are those of the clipped weights.
    """
    force = alpha @ problem.rows
    w = np.clip(force / problem.strength, -problem.bound, problem.bound)
    curvature = 0.5 * problem.strength * float(w @ w)
    return float(alpha @ problem.targets) - float(force @ w) + curvature


def balanced(alpha: Array, signs: Array) -> Array:
    """Shrink the heavier class's multipliers until ``signs @ alpha == 0``."""
    positive = float(alpha[signs > 0].sum())
    negative = float(alpha[signs < 0].sum())
    if positive == negative:
        return alpha
    heavier = signs > 0 if positive > negative else signs < 0
    ratio = min(positive, negative) / max(positive, negative)
    return np.where(heavier, ratio * alpha, alpha)


def solve(
    problems: Sequence[BoxSVM],
    *,
    tol: float = 1e-9,
    warm: Sequence[Answer | None] | None = None,
) -> list[Answer]:
    """Solve problems that share strength and bound, each to a relative duality gap.

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
    found: dict[int, Answer] = {}
    for index, start in enumerate(warm or []):
        if start is not None and (answer := _active_set(problems[index], start, tol)) is not None:
            found[index] = answer
    left = [index for index in range(len(problems)) if index not in found]
    if left:
        fresh = _interior([problems[index] for index in left], tol)
        found |= dict(zip(left, fresh, strict=True))
    for index in left:
        if found[index].gap > tol:
            polished = _active_set(problems[index], found[index], tol)
            if polished is None:
                raise LowerNotSolvedError(
                    f"SVM lower level: relative gap {found[index].gap:.1e}, asked for {tol:.1e}; "
                    "scale the features"
                )
            found[index] = polished
    return [found[index] for index in range(len(problems))]


def _answer(problem: BoxSVM, w: Array, b: float, alpha: Array, iterations: int) -> Answer:
    """Make (w, b, alpha) feasible, the bounds' multipliers the best ones for alpha, and compute both values."""
    w = np.clip(w, -problem.bound, problem.bound)
    alpha = balanced(np.clip(alpha, 0.0, problem.weights), problem.signs)
    force = alpha @ problem.rows
    bound_dual = force - np.clip(
        force, -problem.strength * problem.bound, problem.strength * problem.bound
    )
    value = primal_value(problem, w, b)
    return Answer(w, b, alpha, bound_dual, value, dual_value(problem, alpha), iterations)


def _active_set(problem: BoxSVM, start: Answer, tol: float) -> Answer | None:
    """Primal-dual active-set steps; None if they do not reach the gap."""
    rows, signs, weights = problem.rows, problem.signs, problem.weights
    w, b = np.clip(start.w, -problem.bound, problem.bound), start.b
    alpha = np.clip(start.alpha, 0.0, weights)
    bound_dual = start.bound_dual
    residual = problem.targets - rows @ w - signs * b
    # multipliers and residuals are compared on the scale of the one times this
    scale = float(np.mean(weights)) / (1.0 + float(np.mean(np.abs(problem.targets))))
    for step in range(ACTIVE_SET_STEPS):
        raw = alpha + scale * residual
        paid = raw >= weights
        kink = (raw > 0) & ~paid
        shifted = problem.strength * w + bound_dual
        at_bound = np.abs(shifted) >= problem.strength * problem.bound
        free = ~at_bound
        count, features = int(kink.sum()), int(free.sum())
        if count > 2 * features + 30:
            return None  # far from any vertex
        w = np.where(at_bound, np.copysign(problem.bound, shifted), 0.0)
        previous, alpha = alpha, np.where(paid, weights, 0.0)
        active = rows[kink]
        size = features + 1 + count
        system, right = np.zeros((size, size)), np.empty(size)
        system[np.diag_indices(features)] = problem.strength
        system[:features, features + 1 :] = -active[:, free].T
        system[features, features + 1 :] = -signs[kink]
        system[features + 1 :, :features] = active[:, free]
        system[features + 1 :, features] = signs[kink]
        # held lightly to the old multipliers, so that more kinks than unknowns sort themselves out
        corner = np.arange(features + 1, size)
        system[corner, corner] = HOLD / scale
        force = alpha @ rows
        right[:features] = force[free]
        right[features] = signs @ alpha
        held = HOLD / scale * previous[kink]
        right[features + 1 :] = problem.targets[kink] - active @ w + held
        try:
            found = np.linalg.solve(system, right)
        except np.linalg.LinAlgError:
            return None
        w[free], b = found[:features], float(found[features])
        alpha[kink] = found[features + 1 :]
        residual = problem.targets - rows @ w - signs * b
        bound_dual = np.where(at_bound, force + alpha[kink] @ active - problem.strength * w, 0.0)
        answer = _answer(problem, w, b, alpha, step + 1)
        if answer.gap <= tol:
            return answer
    return None


def _interior(problems: Sequence[BoxSVM], tol: float) -> list[Answer]:
    """Mehrotra's predictor-corrector method on all problems at once, to tol where rounding allows.

    The losses' epigraph ``loss_i >= max(0, target_i - A_i v)`` and the bounds give four groups of inequalities, kept
    stacked: slack of the loss, the loss, distance to the upper bound, distance to the lower one. Their multipliers
    are alpha, weight - alpha, and the bounds' two. The first axis of every array is the problem; rows that pad a
    shorter problem have no effect (all zero).
    """
    strength, limit = problems[0].strength, problems[0].bound
    moving = limit > 0
    A, targets, weights = _stack(problems, moving)
    limited = np.flatnonzero(np.isfinite(limit[moving]))
    bound = limit[moving][limited]
    count, samples, size = A.shape
    sides = len(bound)
    curvature = np.append(np.full(size - 1, strength), 0.0)
    diagonal = np.arange(size)
    ends = np.cumsum([0, samples, samples, sides, sides])
    one, two, three, four = (slice(*pair) for pair in itertools.pairwise(ends))

    v = np.zeros((count, size))
    loss = np.maximum(targets, 0.0) + 1.0
    room = np.tile(bound, (count, 2))
    primal = np.hstack([np.maximum(loss - targets, 0.1), loss, room])
    press = np.full((count, 2 * sides), 0.1 * float(np.mean(weights)))
    dual = np.hstack([0.5 * weights, 0.5 * weights, press])
    best: list[Answer | None] = [None] * count
    active = np.arange(count)  # positions of the problems that still move
    for step in range(INTERIOR_STEPS):
        average = np.mean(primal * dual, axis=1)
        level = average * primal.shape[1] / (1.0 + np.sum(weights[active] * primal[:, two], axis=1))
        keep = []
        for row, position in enumerate(active):
            if level[row] > 10.0 * tol and step < INTERIOR_STEPS - 1:
                keep.append(row)
                continue
            problem = problems[position]
            w, alpha = np.zeros(len(moving)), np.zeros(len(problem.signs))
            w[moving] = v[row, :-1]
            paying = problem.weights > 0
            alpha[paying] = dual[row, one][: int(paying.sum())]
            answer = _answer(problem, w, float(v[row, -1]), alpha, step)
            previous = best[position]
            if previous is None or answer.gap < previous.gap:
                best[position] = answer
            if answer.gap > tol and level[row] > 1e-16:
                keep.append(row)
        if not keep:
            break
        if len(keep) < len(active):
            active, v, primal, dual = active[keep], v[keep], primal[keep], dual[keep]
            average = average[keep]
        rows = A if len(active) == count else A[active]
        force = _times(dual[:, one], rows) - curvature * v
        force[:, limited] += dual[:, four] - dual[:, three]
        infeasibility = primal[:, two] + _apply(rows, v) - targets[active] - primal[:, one]
        here = v[:, limited]
        short = np.hstack([bound - here - primal[:, three], bound + here - primal[:, four]])
        ratio = primal / dual
        weight = 1.0 / (ratio[:, one] + ratio[:, two])
        hessian = _curvature(rows, weight)
        mean = np.trace(hessian, axis1=1, axis2=2) / size
        hessian[:, diagonal, diagonal] += curvature + 1e-14 * mean[:, None]
        hessian[:, limited, limited] += 1.0 / ratio[:, three] + 1.0 / ratio[:, four]
        inverse = np.linalg.inv(np.linalg.cholesky(hessian))
        newton = _Newton(
            rows, ratio, dual, force, weight, infeasibility, short, inverse, limited, samples
        )
        _, d_primal, d_dual = newton.direction(primal * dual)
        length = _reach(primal, d_primal, dual, d_dual)[:, None]
        after = np.mean((primal + length * d_primal) * (dual + length * d_dual), axis=1)
        center = (after / average) ** 3 * average
        dv, d_primal, d_dual = newton.direction(primal * dual + d_primal * d_dual - center[:, None])
        length = np.minimum(1.0, 0.995 * _reach(primal, d_primal, dual, d_dual))[:, None]
        v, primal, dual = v + length * dv, primal + length * d_primal, dual + length * d_dual
    return [answer for answer in best if answer is not None]


@dataclass(frozen=True)
class _Newton:
    """The linear system of one interior-point step, eliminated down to v; its Cholesky factor's inverse is kept."""

    rows: Array
    ratio: Array
    dual: Array
    force: Array
    weight: Array
    infeasibility: Array
    short: Array
    inverse: Array
    limited: Array
    samples: int

    def direction(self, product: Array) -> tuple[Array, Array, Array]:
        """Newton step towards ``primal * dual`` lower by ``product``."""
        samples, sides = self.samples, len(self.limited)
        push = product / self.dual
        offset = self.infeasibility + push[:, :samples] - push[:, samples : 2 * samples]
        bend = (push[:, 2 * samples :] + self.short) / self.ratio[:, 2 * samples :]
        right = self.force - _times(self.weight * offset, self.rows)
        right[:, self.limited] += bend[:, :sides] - bend[:, sides:]
        dv = _times(_apply(self.inverse, right), self.inverse)
        d_alpha = -self.weight * (_apply(self.rows, dv) + offset)
        moved = dv[:, self.limited]
        away = self.short + np.hstack([-moved, moved])
        d_bounds = -(push[:, 2 * samples :] + away) / self.ratio[:, 2 * samples :]
        d_dual = np.hstack([d_alpha, -d_alpha, d_bounds])
        return dv, -push - self.ratio * d_dual, d_dual


def _stack(problems: Sequence[BoxSVM], moving: Array) -> tuple[Array, Array, Array]:
    """Rows (with the sign as last column), targets and weights of all problems, without losses that weigh nothing."""
    kept = [problem.weights > 0 for problem in problems]
    samples = max(int(keep.sum()) for keep in kept)
    A = np.zeros((len(problems), samples, int(moving.sum()) + 1))
    targets = np.zeros((len(problems), samples))
    weights = np.ones((len(problems), samples))
    for index, (problem, keep) in enumerate(zip(problems, kept, strict=True)):
        number = int(keep.sum())
        A[index, :number, :-1] = problem.rows[np.ix_(keep, moving)]
        A[index, :number, -1] = problem.signs[keep]
        targets[index, :number] = problem.targets[keep]
        weights[index, :number] = problem.weights[keep]
    return A, targets, weights


def _curvature(rows: Array, weight: Array) -> Array:
    """``rows^T diag(weight) rows``, problem by problem."""
    if rows[0].size < LARGE:
        scaled = rows * np.sqrt(weight)[:, :, None]
        return np.swapaxes(scaled, 1, 2) @ scaled
    hessian = np.empty((len(rows), rows.shape[2], rows.shape[2]))
    for index, (matrix, heavy) in enumerate(zip(rows, weight, strict=True)):
        # towards the end all the weight is on the rows at the kink
        kept = np.flatnonzero(heavy > NEGLIGIBLE * np.max(heavy))
        scaled = matrix[kept] * np.sqrt(heavy[kept])[:, None]
        hessian[index] = scaled.T @ scaled
    return hessian


def _apply(matrices: Array, vectors: Array) -> Array:
    """``matrix @ vector``, problem by problem."""
    return (matrices @ vectors[:, :, None])[:, :, 0]


def _times(vectors: Array, matrices: Array) -> Array:
    """``vector @ matrix``, problem by problem."""
    return (vectors[:, None, :] @ matrices)[:, 0, :]


def _reach(primal: Array, d_primal: Array, dual: Array, d_dual: Array) -> Array:
    """Largest steps, at most 1, that keep all entries positive."""
    fastest = np.maximum(np.max(-d_primal / primal, axis=1), np.max(-d_dual / dual, axis=1))
    return 1.0 / np.maximum(fastest, 1.0)
