"""Descent along kinks: gradient sampling (Burke, Lewis and Overton 2005), by differences where need be.

Where the lower level's active set changes, f(x, y(x)) has a kink. Descent may be left along the kink alone: on a curve
that no random direction hits, and along which a penalised objective at a large gamma takes tiny steps. The smallest
convex combination of gradients from around a point looks along it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from blocc.methods.gradient_sampling import smallest_combination
from blocc.sets import Box

Vector = npt.NDArray[np.float64]

LARGEST = 20  # variables, beyond which differences cost too much
_DIFFERENCE = 1e-3  # relative to the radius
_FEW = 8  # gradients that agree where there is no kink
_AGREE = 10.0  # relative change, over the radius, of gradients without a kink
_SPARE = 4  # gradients beyond what a linear change takes, to tell it from a kink
_CURVED = 0.02  # relative to the change of a gradient: what is not linear of it without a kink
_MANY = 60
_NOTHING = 1e-8  # relative decrease, over the radius, that is not worth a turn
_JUMP = 10.0  # times what the slope explains
_BISECTIONS = 12


def differences(value: Callable[[Vector], float], x: Vector, step: float, upper: Vector) -> Vector:
    """Gradient by forward differences, backward ones where a bound is near; not finite where a value is none."""
    moved = np.where(x + step > upper, -step, step)
    here = value(x)
    return np.array([value(x + part) - here for part in np.diag(moved)]) / moved


def kink_direction(
    gradient: Callable[[Vector, float], Vector],
    x: Vector,
    radius: float,
    bounds: tuple[Vector, Vector],
    normals: Sequence[Vector] = (),
) -> Vector | None:
    """Direction of descent, of largest entry 1, on which the gradients around a point agree.

    Parameters
    ----------
    gradient : callable
        Of x, and of a step for differences; not finite where there is none.
    x : ndarray of shape (n,)
    radius : float
        Of the neighbourhood, in the largest-entry norm.
    bounds : tuple of ndarray
        On x.
    normals : sequence of ndarray
        Outward normals of further constraints that are active.

    Returns
    -------
    ndarray or None
        None where there is no kink around, or no direction is left.
    """
    n, step = len(x), _DIFFERENCE * radius
    generator = np.random.default_rng(0)
    points: list[Vector] = []
    gradients: list[Vector] = []
    for count in range(min(4 * n + 2, _MANY)):
        if count == _FEW and _agree(points, gradients, radius / (1.0 + float(np.abs(x).max()))):
            return None
        near = np.clip(x + radius * generator.uniform(-1.0, 1.0, n), *bounds)
        slope = gradient(near, step)
        if np.all(np.isfinite(slope)):
            gradients.append(slope)
            points.append(near)
    if len(gradients) < 2:
        return None
    slope = smallest_combination(gradients, list(normals), x, Box(*bounds))
    size = float(np.abs(slope).max())
    return -slope / size if size > 0 else None


def _agree(points: Sequence[Vector], gradients: Sequence[Vector], radius: float) -> bool:
    """Whether gradients change as little as those without a kink do, or in proportion to the way between them."""
    if not gradients:
        return True
    stacked, n = np.array(gradients), len(points[0])
    spread = float(np.max(stacked.max(axis=0) - stacked.min(axis=0)))
    if spread <= _AGREE * radius * (1.0 + float(np.abs(stacked).max())):
        return True
    if len(gradients) < n + _SPARE:
        return False
    ways = np.column_stack([np.array(points) - points[0], np.full(len(points), radius)])
    left = stacked - ways @ np.linalg.lstsq(ways, stacked, rcond=None)[0]
    return bool(np.abs(left).max() <= _CURVED * spread)


def edge_directions(
    value: Callable[[Vector], float],
    x: Vector,
    radius: float,
    bounds: tuple[Vector, Vector],
    ways: Sequence[Vector],
    slope: Vector | None = None,
) -> list[Vector]:
    """Steepest descent, or, where a jump or the domain's edge cuts it off, the directions nearest to it on this side.

    Parameters
    ----------
    value : callable
        Of x; infinite where it has none.
    x : ndarray of shape (n,)
    radius : float
        At which to look, in the largest-entry norm.
    bounds : tuple of ndarray
        On x.
    ways : sequence of ndarray
        Directions of largest entry 1, to turn to from the steepest: from each that is not cut off, one answer.
    slope : ndarray of shape (n,), optional
        Gradient at x where it is known; else by differences on the flatter side.

    Returns
    -------
    list of ndarray
        Of largest entry 1.
    """
    here, step = value(x), _DIFFERENCE * radius
    if slope is None:
        slope = np.zeros(len(x))
        for k, unit in enumerate(np.eye(len(x))):
            ahead, behind = (
                (value(np.clip(x + sign * step * unit, *bounds)) - here) / (sign * step)
                for sign in (1.0, -1.0)
            )
            slope[k] = min(ahead, behind, key=abs)  # a jump has the larger one
    steepest, promised = float(np.abs(slope).max()), radius * float(np.abs(slope).sum())
    if not (np.isfinite(promised) and promised > _NOTHING * (1.0 + abs(here))):
        return []
    limit = here + _JUMP * promised

    def cut_off(way: Vector) -> bool:
        return not value(np.clip(x + radius * way, *bounds)) <= limit

    down = -slope / steepest
    if not cut_off(down):
        return [down]
    found = []
    for way in ways:
        if cut_off(way):
            continue
        beyond, inside = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = 0.5 * (beyond + inside)
            if cut_off(_turned(down, way, middle)):
                beyond = middle
            else:
                inside = middle
        found.append(_turned(down, way, inside))
    return found


def _turned(start: Vector, end: Vector, share: float) -> Vector:
    way = (1.0 - share) * start + share * end
    return np.asarray(way / max(float(np.abs(way).max()), 1e-300))
