"""Gradient sampling (Burke, Lewis, Overton 2005): descent and stationarity where the upper objective has a kink.

Where the lower level's active set changes, f(x, y(x)) has a kink, and F_gamma at a large gamma is smooth only on the
scale 1/gamma: no single gradient vanishes at its minimum, but a convex combination of gradients taken nearby does
(Goldstein's stationarity). Random samples miss thin pieces of f; what they leave is therefore tried as a step, and
where F_gamma does not fall along it, the gradient found there joins (Mahdavi-Amiri, Yousefpour 2012). Costs 2 n
evaluations a step and more, so it is for few upper variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from blocc.arrays import (
    all_finite,
    asarray_like,
    device_of,
    namespace,
    precision,
    random_normal,
    to_numpy,
)
from blocc.errors import LowerInfeasibleError, LowerLevelError
from blocc.methods.descent import NOISE, stationarity
from blocc.penalty import Evaluation
from blocc.sets import Box

Array = Any
Oracle = Callable[[Array], Evaluation]

RADIUS = 1e-5  # relative to 1 + max|x|: the neighbourhood in which gradients are combined
SUFFICIENT = (
    0.1  # of the fall that a combined gradient promises: with less, it is no descent direction
)
LARGEST = 40  # upper variables, beyond which sampling costs too much


def combined_gradient(
    oracle: Oracle, here: Evaluation, x_set: Box, radius: float, tol: float, seed: int = 0
) -> Array:
    """Convex combination of gradients within ``radius`` of here that leaves the smallest feasible descent.

    Samples are drawn around here, evenly in every direction; then one at a time where the combination so far says
    that F_gamma falls, until it does fall there or what is left is within ``tol``. Where the lower level is infeasible,
    the proof's normal to its domain joins the cone of directions that cannot be taken.
    """
    xp = namespace(here.x)
    gradients, normals = [here.gradient], []
    size = math.prod(here.x.shape)
    length = radius * (1.0 + float(xp.max(xp.abs(here.x))))

    def sample(direction: Array) -> bool:
        """Whether the combination may become smaller by what is found there."""
        x = x_set.project(here.x + length * direction / xp.max(xp.abs(direction)))
        try:
            there = oracle(x)
        except LowerInfeasibleError as error:
            if error.normal is None or not float(xp.max(xp.abs(error.normal))) > 0:
                return False
            normals.append(error.normal / xp.max(xp.abs(error.normal)))
            return True
        except LowerLevelError:
            return False
        if not all_finite(there.gradient):
            return False
        gradients.append(there.gradient)
        promised = float(xp.sum(combination * (x - here.x)))
        return there.value > here.value + min(SUFFICIENT * promised, -_noise(here))

    combination = here.gradient
    for index in range(2 * size):
        sample(random_normal(here.x, seed + index))
    left = math.inf
    for _ in range(2 * size + 2):
        combination = smallest_combination(gradients, normals, here.x, x_set)
        before, left = left, stationarity(here.x, combination, x_set)
        if left <= tol or left > 0.99 * before or not sample(-combination):
            break
    else:
        combination = smallest_combination(gradients, normals, here.x, x_set)
    return combination


def smallest_combination(
    gradients: list[Array], normals: list[Array], x: Array, x_set: Box
) -> Array:
    """Convex combination of gradients, plus normals of the domain, with the smallest part that the box lets move.

    ``min |G w + N n|`` over weights w on the simplex and multipliers n >= 0 of the domain's normals and of the active
    bounds: one nonnegative least squares, the weights' sum a heavily weighted row (Wolfe 1976).
    """
    import scipy.optimize

    xp = namespace(x)
    stacked = xp.stack([xp.reshape(g, (-1,)) for g in gradients], axis=1)
    below = xp.reshape(xp.astype(x_set.project(x - 1.0) >= x, x.dtype), (-1,))
    above = xp.reshape(xp.astype(x_set.project(x + 1.0) <= x, x.dtype), (-1,))
    identity = xp.eye(below.shape[0], dtype=x.dtype, device=device_of(x))
    scale = 1.0 + float(xp.max(xp.abs(stacked)))
    cone = [xp.reshape(normal, (-1, 1)) for normal in normals]
    system = xp.concat([stacked / scale, *cone, identity * above - identity * below], axis=1)
    count, (size, columns) = len(gradients), system.shape
    heavy = 1e3
    rows = to_numpy(system).astype(float).tolist()
    rows.append([heavy] * count + [0.0] * (columns - count))
    weights = scipy.optimize.nnls(rows, [0.0] * size + [heavy], maxiter=100 * columns)[0]
    total = float(weights[:count].sum())
    if not total > 0:
        return gradients[0]
    weights = weights[: count + len(cone)] / total
    # the domain's normals stand in for the constraint's multipliers; bounds are left to the projection
    combination = stacked @ asarray_like(weights[:count], x)
    for weight, normal in zip(weights[count:].tolist(), cone, strict=True):
        combination = combination + weight * scale * normal[:, 0]
    return xp.reshape(combination, x.shape)


def kink_stationarity(oracle: Oracle, here: Evaluation, x_set: Box, tol: float) -> float:
    """Stationarity of the best combined gradient within RADIUS: small at a minimum with a kink."""
    return stationarity(here.x, combined_gradient(oracle, here, x_set, RADIUS, tol), x_set)


def gradient_sampling(
    oracle: Oracle,
    start: Evaluation,
    x_set: Box,
    *,
    tol: float,
    max_iterations: int,
    restore: Callable[[Array], Array] | None = None,
) -> Iterator[Evaluation]:
    """Descend along combined gradients, the radius shrinking from 1e-2 to RADIUS.

    Parameters
    ----------
    oracle : callable
        Evaluates at an x; raises LowerLevelError where the lower level has no answer.
    start : Evaluation
    x_set : Box
    tol : float
        Stationarity at which to stop.
    max_iterations : int
    restore : callable, optional
        Nearest x at which the lower level has an answer: along an edge of its domain, steps end outside by rounding.

    Yields
    ------
    Evaluation
        Every accepted point.
    """
    here, radius = start, 1e-2
    xp = namespace(start.x)
    for iteration in range(max_iterations):
        gradient = combined_gradient(oracle, here, x_set, radius, tol, seed=1000 * iteration)
        found = None
        if stationarity(here.x, gradient, x_set) > max(tol, 1e-2 * radius):
            size = float(xp.max(xp.abs(gradient)))
            length = 100.0 * radius * (1.0 + float(xp.max(xp.abs(here.x)))) / size
            for _ in range(12):
                there = _tried(oracle, x_set.project(here.x - length * gradient))
                if there is not None and there.value < here.value - _noise(here):
                    found = there
                    break
                length *= 0.3
            if found is None and restore is not None:
                found = _restored(oracle, here, gradient, radius, x_set, restore)
        if found is None and radius <= RADIUS:
            yield from _finish(oracle, here, x_set, tol)
            return
        if found is None:
            radius = max(0.1 * radius, RADIUS)
            continue
        here = found
        yield here


def _finish(oracle: Oracle, here: Evaluation, x_set: Box, tol: float) -> Iterator[Evaluation]:
    """Along the kink values are level within their noise: steps that shorten the combined gradient go on."""
    gradient = combined_gradient(oracle, here, x_set, RADIUS, 0.5 * tol)
    length = 1.0
    for _ in range(40):
        left = stationarity(here.x, gradient, x_set)
        if left <= 0.5 * tol:
            return
        there = _tried(oracle, x_set.project(here.x - length * gradient))
        if there is not None and there.value <= here.value + _noise(here):
            combined = combined_gradient(oracle, there, x_set, RADIUS, 0.5 * tol)
            if stationarity(there.x, combined, x_set) < 0.9 * left:
                here, gradient = there, combined
                yield here
                continue
        length *= 0.4


def _restored(
    oracle: Oracle,
    here: Evaluation,
    gradient: Array,
    radius: float,
    x_set: Box,
    restore: Callable[[Array], Array],
) -> Evaluation | None:
    """A better point among few, each moved back into the lower level's domain."""
    xp = namespace(here.x)
    unit = radius * (1.0 + float(xp.max(xp.abs(here.x)))) / float(xp.max(xp.abs(gradient)))
    for factor in (100.0, 10.0, 1.0, 0.1):
        try:
            there = oracle(restore(x_set.project(here.x - factor * unit * gradient)))
        except LowerLevelError:
            continue
        if there.value < here.value - _noise(here):
            return there
    return None


def _tried(oracle: Oracle, x: Array) -> Evaluation | None:
    try:
        return oracle(x)
    except LowerLevelError:
        return None


def _noise(here: Evaluation) -> float:
    # F_gamma is a difference of two values of size gamma |v|
    rounding = 20.0 * precision(here.x) * here.gamma * (1.0 + abs(here.lower.value))
    return NOISE * (1.0 + abs(here.value)) + rounding
