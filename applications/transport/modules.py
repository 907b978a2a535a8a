"""Designs in whole modules of capacity: roundings of a continuous design, improved by moves of one and two links."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.search import ACCURACY
from blocc.errors import InvalidInputError, LowerLevelError

Array = np.ndarray[Any, Any]
SMALL, PASSES = (
    300,
    20,
)  # links up to which modules are improved link by link, and how often at most
TOGETHER = 10_000  # pairs of moves up to which modules of two links are moved at once


def round_to_modules(model: TransitModel, capacity: Array, module: Array) -> Array:
    """Whole numbers of modules near some capacities: the most profitable of several roundings, improved.

    One link is moved at a time, and where nothing more is found, on small networks two. Links whose capacity is
    fixed keep it.

    Parameters
    ----------
    model : TransitModel
    capacity : array, (links,)
    module : array, (links,)
        Size of a module, positive.

    Raises
    ------
    InvalidInputError
        If no whole number of modules is within a link's limits, or the smallest ones exceed the budget.
    """
    fixed = model.minimum == model.maximum
    # adding zero turns -0.0 into 0.0
    least = np.where(fixed, model.minimum, np.ceil(model.minimum / module - 1e-9) * module) + 0.0
    most = np.where(fixed, model.maximum, np.floor(model.maximum / module + 1e-9) * module)
    cost = model.network.capacity_cost
    for link in np.flatnonzero(least > most):
        raise InvalidInputError(
            f"link {model.network.link_id[link]}: no whole number of modules of {module[link]:g} is between its "
            f"minimum {model.minimum[link]:g} and maximum {model.maximum[link]:g}"
        )
    if cost @ least > model.budget:
        raise InvalidInputError(
            f"budget {model.budget:g} does not pay for the minimum capacities in whole modules, {cost @ least:g}"
        )
    warm = None

    def profit(candidate: Array) -> float:
        nonlocal warm
        if cost @ candidate > model.budget * (1.0 + 1e-12):
            return -np.inf
        try:
            lower = model.lower(candidate, tol=0.01 * ACCURACY, warm=warm)
        except LowerLevelError:
            return -np.inf
        warm = lower.warm
        return -model.upper(candidate, lower.y)

    whole = np.floor(capacity / module + 1e-9)
    part = capacity / module - whole
    best, value = least, profit(least)
    for threshold in (1e-3, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        trial = np.clip((whole + (part >= threshold)) * module, least, most)
        earned = profit(trial)
        if earned > value:
            best, value = trial, earned
    steps = [(link, sign * module[link]) for link in np.flatnonzero(~fixed) for sign in (-1.0, 1.0)]
    alone, together = [(step,) for step in steps], []
    if len(steps) ** 2 <= TOGETHER:  # what one link gains may need another's module, or its money
        together = [pair for pair in itertools.combinations(steps, 2) if pair[0][0] != pair[1][0]]

    def improved(moves: Sequence[tuple[tuple[Any, Any], ...]]) -> bool:
        """One pass over some moves; whether it found anything."""
        nonlocal best, value
        before = value
        for move in moves:
            trial = best.copy()
            for link, change in move:
                trial[link] += change
            if np.any(trial < least) or np.any(trial > most):
                continue
            earned = profit(trial)
            if earned > value + 1e-9 * (1.0 + abs(value)):
                best, value = trial, earned
        return value > before

    for _ in range(PASSES if len(capacity) <= SMALL else 0):
        if not improved(alone) and not improved(together):
            break
    return best
