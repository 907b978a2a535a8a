"""What a little more or less capacity would be worth, by asking the passengers again.

A designed network sits at kinks: its links are just full, so one more unit of capacity and one less are worth
different amounts, and neither is a derivative. So both are found by solving the passengers' problem at the changed
capacities, one link at a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from blocc.errors import LowerNotSolvedError

from .model import TransitModel
from .network import Network

Array = np.ndarray[Any, Any]
CHANGE = 0.1
_LINKS = 10
_LARGEST = 1_000_000  # links times pairs: beyond, a single answer can take minutes (Anaheim, 1.3 million: 77 CPU s)
_TOL = 1e-11  # relative gap of the passengers' problem; profits are good to about its square root


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Profit after a change of one link's capacity, all others as they are.

    Attributes
    ----------
    link : array of int
        Indices of the links looked at, those with the largest price first.
    step : array of float
        By how much each one's capacity was raised and lowered, in trips: a tenth of it.
    more, less : array of float
        Change of the profit with ``step`` more and ``step`` less; NaN where the passengers' problem was not solved.
    """

    link: Array
    step: Array
    more: Array
    less: Array


def sensitivity(
    network: Network, capacity: Array, price: Array, *, seconds: float = 10.0
) -> Sensitivity:
    """Change of profit when a bottleneck gets a tenth more or less capacity.

    Parameters
    ----------
    network : Network
    capacity : array, (links,)
        Trips.
    price : array, (links,)
        What passengers would pay for capacity: decides which ten links are looked at.
    seconds : float, default 10
        No further link is begun after this time; on large networks there may be fewer than ten.

    Returns
    -------
    Sensitivity
        Empty where nothing is built, and for cities (links times pairs above a million).
    """
    model = TransitModel(network)
    revenue = network.trips * network.revenue
    began = time.perf_counter()
    warm = None

    def profit(at: Array) -> float:
        nonlocal warm
        try:
            answer = model.paths.respond(at, network.alternative_time, tol=_TOL, warm=warm)
        except LowerNotSolvedError:
            return np.nan
        warm = answer.warm
        return float(revenue @ answer.share - network.capacity_cost @ at)

    built = np.flatnonzero(capacity > 0)
    if len(network.tail) * len(network.trips) > _LARGEST:
        built = built[:0]
    order = built[np.argsort(-np.nan_to_num(price[built]), kind="stable")][:_LINKS]
    rows = []
    base = profit(capacity) if len(order) else 0.0
    for link in order.tolist():
        if time.perf_counter() - began > seconds:
            break
        step = CHANGE * float(capacity[link])
        changed = [capacity.copy(), capacity.copy()]
        changed[0][link] += step
        changed[1][link] -= step
        rows.append((link, step, *(profit(at) - base for at in changed)))
    link, step, more, less = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Sensitivity(link.astype(np.int64), step, more, less)
