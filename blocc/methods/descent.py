"""Descent in x alone: spectral projected gradient, and L-BFGS-B. (Algorithm 1 as published: published.py.)

Each takes an oracle ``x -> Evaluation`` (:mod:`blocc.penalty`) that may raise LowerLevelError, and yields what it
accepts; the best point is the last one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from blocc.arrays import asarray_like, namespace, to_numpy
from blocc.errors import LowerLevelError
from blocc.penalty import Evaluation
from blocc.sets import Box, ConvexSet

Array = Any
Oracle = Callable[[Array], Evaluation]


def stationarity(x: Array, gradient: Array, x_set: ConvexSet) -> float:
    """Relative projected gradient: ``max|x - Proj(x - s g)| / l`` with the step ``s = l / (1 + max|g|)``.

    Zero exactly at stationary points; the size of the feasible part of the gradient, relative to the whole where
    that exceeds 1. The length l is 1, and longer where x is so large that a step of 1 would be lost in rounding.
    """
    xp = namespace(x)
    size = 1.0 + float(xp.max(xp.abs(gradient)))
    length = 1.0 + 1e-8 * float(xp.max(xp.abs(x)))
    moved = x - x_set.project(x - length / size * gradient)
    return float(xp.max(xp.abs(moved))) / length


NOISE = 1e-10  # relative difference of values below which saddle-point errors decide, not descent


def _better(here: Evaluation, best: Evaluation, x_set: ConvexSet) -> bool:
    """Whether a point is better: by value, or, where values are level, by stationarity."""
    noise = NOISE * (1.0 + abs(best.value))
    if abs(here.value - best.value) > noise:
        return here.value < best.value
    return stationarity(here.x, here.gradient, x_set) < stationarity(best.x, best.gradient, x_set)


def spectral(
    oracle: Oracle,
    start: Evaluation,
    x_set: ConvexSet,
    *,
    tol: float,
    max_iterations: int,
    memory: int = 5,
    first_move: float = 0.1,
) -> Iterator[Evaluation]:
    """Spectral projected gradient with a non-monotone line search (Birgin, Martinez, Raydan 2000).

    Needs only a projection. Trial points where the lower level has no answer are stepped back from. ``first_move`` is
    the length of the first step, relative to ``1 + max|x|``; later ones follow the curvature seen.

    Yields
    ------
    Evaluation
        Every accepted point. Stops where :func:`stationarity` is at most tol, or no step descends.
    """
    here, best = start, start
    xp = namespace(here.x)
    recent: deque[float] = deque([here.value], maxlen=memory)
    size, idle = float(xp.max(xp.abs(here.gradient))), 0
    step = first_move * (1.0 + float(xp.max(xp.abs(here.x)))) / size if size > 0 else 1.0
    for _ in range(max_iterations):
        if stationarity(here.x, here.gradient, x_set) <= tol:
            break
        direction = x_set.project(here.x - step * here.gradient) - here.x
        slope = float(xp.sum(direction * here.gradient))
        if not slope < 0:
            break
        length, accepted = 1.0, None
        for _ in range(40):
            try:
                trial = oracle(here.x + length * direction)
            except LowerLevelError:
                length *= 0.25
                continue
            if trial.value <= max(recent) + 1e-4 * length * slope + NOISE * 1e-2 * (
                1.0 + abs(here.value)
            ):
                accepted = trial
                break
            curvature = trial.value - here.value - length * slope
            shorter = -0.5 * slope * length**2 / curvature if curvature > 0 else 0.5 * length
            length = min(max(shorter, 0.1 * length), 0.5 * length)
        if accepted is None:
            break
        moved, bent = accepted.x - here.x, accepted.gradient - here.gradient
        product, square = float(xp.sum(moved * bent)), float(xp.sum(moved * moved))
        step = min(max(square / product, 1e-10), 1e10) if product > 0 else min(4.0 * step, 1e10)
        small = square <= (1e-9 * (1.0 + float(xp.max(xp.abs(here.x))))) ** 2
        idle = idle + 1 if small else 0
        here = accepted
        recent.append(here.value)
        if _better(here, best, x_set):
            best = here
        yield here
        if idle >= 3:  # pressed against the edge of the lower level's domain
            break
    if best is not here:
        yield best


def lbfgsb(
    oracle: Oracle, start: Evaluation, x_set: Box, *, tol: float, max_iterations: int
) -> Iterator[Evaluation]:
    """SciPy's L-BFGS-B on the host, for box sets.

    A trial point without a lower-level answer is given a value above every other, rising with the distance, so that
    the line search interpolates back.

    Yields
    ------
    Evaluation
        The best point found, once.
    """
    import scipy.optimize

    like, best, worst = start.x, start, start.value

    def function(flat: Any) -> tuple[float, Any]:
        nonlocal best, worst
        x = x_set.project(asarray_like(flat.reshape(like.shape), like))
        try:
            here = oracle(x)
        except LowerLevelError:
            away = flat - to_numpy(best.x).reshape(-1)
            rise = 1.0 + abs(worst)
            return worst + rise + rise * float(away @ away), 2.0 * rise * away
        worst = max(worst, here.value)
        if _better(here, best, x_set):
            best = here
        return here.value, to_numpy(here.gradient).reshape(-1).astype(float)

    ones = namespace(like).ones_like(like)
    lower = to_numpy(x_set.project(ones * -math.inf)).reshape(-1)
    upper = to_numpy(x_set.project(ones * math.inf)).reshape(-1)
    for _ in range(3):  # a fresh start drops curvature from the far side of a kink
        before = best.value
        scipy.optimize.minimize(
            function,
            to_numpy(best.x).reshape(-1).astype(float),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(lower, upper, strict=True)),
            options={
                "maxiter": max_iterations,
                "maxfun": 2 * max_iterations,
                "ftol": 0.0,
                "gtol": 0.1 * tol,
                "maxls": 20,
            },
        )
        if stationarity(best.x, best.gradient, x_set) <= tol:
            break
        if not best.value < before - NOISE * (1 + abs(before)):
            break
    yield best
