"""Designs under a budget: climbs over link prices, with the budget's multiplier on the costs.

A budget ``k a <= B`` alone has one multiplier m >= 0: a critical point of F_gamma with costs ``(1 + m) k`` and without
budget that spends B is one under the budget. So the climbs of :mod:`blocc.applications.transport.prices` serve here
too. Spending falls as m rises, but for the chance of where a climb ends, and it jumps: there both sides are designs,
one cheaper than the budget and one dearer. On their way climbs come through many more, each with the passengers' exact
answer to it, and the best within the budget is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from blocc.applications.transport import prices
from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.prices import LAST_GAMMA, Stage
from blocc.errors import LowerLevelError

Array = np.ndarray[Any, Any]

CLIMBS = 9  # at different multipliers, of the first search for one
SPREAD = 0.3  # of the random factor on the multiplier of a trial
STEP = 0.5  # first change of ``1 + multiplier``, relative, while all designs are on one side of the budget
FARTHEST = 0.1  # change of ``1 + multiplier`` from one critical point to the next, relative
LEAST = 0.1  # of a bracket that a new multiplier leaves on either side
LARGE = 1_000  # pairs above which more than one passengers' problem after the other takes too long
LAST = (
    Stage(LAST_GAMMA, 1e-6, 60, 1e-2),
    Stage(LAST_GAMMA, 2e-7, 60, 1e-2),
)  # to critical points near by
CRITICAL = 10  # critical points on the way to the one that spends the budget
SPENT = 1e-6  # part of the budget to which it does
NEAR = 1e-3  # part of the budget within which spending no longer jumps
ACCURACY = 1e-7  # relative gap of passengers' answers


def alone(model: TransitModel) -> bool:
    """Whether a budget, and nothing else, limits the capacities."""
    free = np.all(model.minimum == 0) and np.all(np.isinf(model.maximum))
    return bool(0.0 < model.budget < np.inf and free)


def unlimited(model: TransitModel, multiplier: float = 0.0) -> TransitModel:
    """The model without its budget, at costs that the budget's multiplier raises."""
    network = model.network
    return TransitModel(replace(network, capacity_cost=(1.0 + multiplier) * network.capacity_cost))


class _Bracket:
    """Multipliers at which the designs cost more, and less, than the budget."""

    def __init__(self, budget: float, multiplier: float, step: float) -> None:
        self.budget, self.multiplier, self.step = budget, multiplier, step
        self.over: tuple[float, float] | None = None  # multiplier and cost
        self.under: tuple[float, float] | None = None

    def add(self, cost: float) -> None:
        """What the design at the multiplier costs; sets the next one."""
        here = self.multiplier, cost
        if cost > self.budget:
            self.over = here
        else:
            self.under = here
        if self.over is not None and self.under is not None:
            (left, most), (right, least) = self.over, self.under
            part = (most - self.budget) / (most - least)
            if max(most - self.budget, self.budget - least) > NEAR * self.budget:
                part = min(max(part, LEAST), 1.0 - LEAST)
            self.multiplier = left + part * (right - left)
            return
        factor = 1.0 + self.step
        raised = (1.0 + self.multiplier) * (factor if self.under is None else 1.0 / factor)
        self.multiplier, self.step = max(raised - 1.0, 0.0), 2.0 * self.step


class Designs:
    """The best design within the budget that some climbs have come through; at first the empty one.

    Parameters
    ----------
    model : TransitModel
        With a budget alone.
    report : callable, optional
        Called with the best profit and capacities after every step of a climb.
    """

    def __init__(
        self, model: TransitModel, report: Callable[[float, Array], None] | None = None
    ) -> None:
        self.model, self.report = model, report
        self.profit, self.capacity, self.multiplier = 0.0, model.minimum, 0.0
        # of the most promising end of a climb beyond the budget: what it promises; its capacities, scaled
        self.beyond = -np.inf, model.minimum, 0.0

    def add(self, profit: float, capacity: Array, multiplier: float) -> None:
        """Keep a design within the budget if it is the best."""
        if profit > self.profit:
            self.profit, self.capacity, self.multiplier = profit, capacity, multiplier

    def show(self) -> None:
        """Report the best so far."""
        if self.report is not None:
            self.report(self.profit, self.capacity)

    def look(self, multiplier: float) -> Callable[[float, Array], None]:
        """What looks at every step of a climb at a multiplier."""

        def reached(_: float, price: Array) -> None:
            profit, flow = prices.loading(self.model, price)
            if self.model.network.capacity_cost @ flow <= self.model.budget:
                self.add(profit, flow, multiplier)
            self.show()

        return reached

    def climb(self, price: Array, multiplier: float, stages: Sequence[Stage]) -> float:
        """Climb at a multiplier; what the design at the end costs."""
        dear = unlimited(self.model, multiplier)
        end = prices.climb(dear, price, stages, self.look(multiplier))
        profit, flow = prices.loading(self.model, end.price)
        spent = float(self.model.network.capacity_cost @ flow)
        if spent > self.model.budget:
            self._scale(profit, flow, spent, multiplier)
        return spent

    def _scale(self, profit: float, flow: Array, spent: float, multiplier: float) -> None:
        """Add a design beyond the budget, scaled into it."""
        model = self.model
        paid = model.network.capacity_cost > 0
        within = np.where(paid, model.budget / spent * flow, flow)
        try:
            lower = model.lower(within, tol=ACCURACY)
        except LowerLevelError:
            return
        self.add(-model.upper(within, lower.y), within, multiplier)
        promised = profit - multiplier * (spent - model.budget)
        if promised > self.beyond[0]:
            self.beyond = promised, within, multiplier


def first(designs: Designs, price: Array, spent: float, stages: Sequence[Stage]) -> None:
    """Climbs from some prices at several multipliers; without one the design costs ``spent``, more than the budget."""
    bracket = _Bracket(designs.model.budget, 0.0, STEP)
    bracket.add(spent)
    for _ in range(CLIMBS):
        bracket.add(designs.climb(price, bracket.multiplier, stages))


def trial(
    model: TransitModel,
    capacity: Array,
    multiplier: float,
    stages: Sequence[Stage],
    random: np.random.Generator,
    closes: bool,
) -> Designs:
    """A climb from perturbed prices of a design, near its multiplier."""
    price = model.lower(capacity, tol=ACCURACY).duals["capacity"]
    near = multiplier * float(np.exp(SPREAD * random.standard_normal()))
    designs = Designs(model)
    designs.climb(prices.perturbed(price, random, closes), near, stages)
    return designs


def critical_capacity(
    model: TransitModel,
    capacity: Array,
    multiplier: float,
    tol: float,
    report: Callable[[], None] | None = None,
) -> Array | None:
    """Capacities of a critical point that spends the budget, near a design; None where spending jumps over it.

    Parameters
    ----------
    model : TransitModel
        With a budget alone.
    capacity : array, (links,)
    multiplier : float
        Of the budget, at the design.
    tol : float
        Of the critical points on the way.
    report : callable, optional
        Called after each of them.
    """
    price = model.lower(capacity, tol=ACCURACY).duals["capacity"]
    budget = model.budget
    known: list[tuple[float, float, Array]] = []  # how far from the budget, multiplier, prices
    for _ in range(CRITICAL):
        point = prices.climb(unlimited(model, multiplier), price, LAST, tol=tol).point
        assert point is not None  # it is asked for
        if report is not None:
            report()
        over = float(model.network.capacity_cost @ point.capacity) - budget
        unbound = multiplier == 0.0 and over < 0
        if unbound or abs(over) <= SPENT * budget:
            within: Array = model.x_set.project(point.capacity)
            return within
        # where spending has jumped, the next one begins before that
        known = sorted([*known, (over, multiplier, point.price)], key=lambda one: abs(one[0]))
        nearest, multiplier, price = known[0]
        change = 0.5 * nearest / budget * (1.0 + multiplier)
        if len(known) > 1 and (nearest - known[1][0]) * (multiplier - known[1][1]) < 0:
            change = -nearest * (multiplier - known[1][1]) / (nearest - known[1][0])
        most = FARTHEST * (1.0 + multiplier)
        multiplier = max(multiplier + min(max(change, -most), most), 0.0)
    return None
