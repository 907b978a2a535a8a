"""Designs in whole modules of capacity: roundings of a continuous design, and a local search among whole plans.

Where modules are large or a budget binds, the best plan can lie far from every rounding, and no move of one or two
links leads there: a route earns nothing before its last link is built. So modules are also added route by route, and
again and again some are taken from the best plan and the money is spent anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.search import ACCURACY, Array
from blocc.errors import InvalidInputError, LowerLevelError

THRESHOLDS = (1e-3, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # parts rounded up from here
SOLVES = 3_000  # plans that are valued at most
WORK = 2_000_000  # the same times the number of pairs; the roundings are always valued
TOGETHER = 10_000  # pairs of moves up to which modules of two links are moved at once
TRIED = 6  # additions of which the best is taken
MISSES = 2  # draws of additions, none of which earns anything, after which a plan is filled
REMOVED = 8  # modules that are taken from the best plan at most
QUIET = 200  # plans in a row that are filled again for nothing, after which the search ends
SPREAD = 0.3  # of the random factors on the lengths of the links
TINY = 1e-30  # money


class _Plans:
    """Plans in whole modules, (links,) each, and what they earn; each is valued once."""

    def __init__(self, model: TransitModel, module: Array) -> None:
        self.model, self.module, self.cost = model, module, model.network.capacity_cost
        self.fixed = model.minimum == model.maximum
        # adding zero turns -0.0 into 0.0
        self.least = np.where(self.fixed, 0.0, np.ceil(model.minimum / module - 1e-9)) + 0.0
        self.most = np.where(self.fixed, 0.0, np.floor(model.maximum / module + 1e-9))
        for link in np.flatnonzero(self.least > self.most):
            raise InvalidInputError(
                f"link {model.network.link_id[link]}: no whole number of modules of {module[link]:g} is between its "
                f"minimum {model.minimum[link]:g} and maximum {model.maximum[link]:g}"
            )
        if self.left(self.least) < 0:
            raise InvalidInputError(
                f"budget {model.budget:g} does not pay for the minimum capacities in whole modules, "
                f"{self.cost @ self.capacity(self.least):g}"
            )
        self.solves = max(1 + len(THRESHOLDS), min(SOLVES, WORK // len(model.network.trips)))
        self.best, self.value = self.least, -np.inf
        self._known: dict[bytes, tuple[float, Array]] = {}
        self._warm: dict[str, Array] | None = None

    def capacity(self, plan: Array) -> Array:
        """Capacities of a plan."""
        return np.where(self.fixed, self.model.minimum, plan * self.module)

    def left(self, plan: Array) -> float:
        """What a plan leaves of the budget."""
        return float(self.model.budget * (1.0 + 1e-12) - self.cost @ self.capacity(plan))

    def answer(self, plan: Array) -> tuple[float, Array]:
        """Profit, and flow on each link; ``-inf`` and no flow for plans that cannot be or are too many."""
        nothing = -np.inf, np.zeros(len(plan))
        if np.any((plan < self.least) | (plan > self.most)) or self.left(plan) < 0:
            return nothing
        key = plan.tobytes()
        if key not in self._known:
            if self.solves == 0:
                return nothing
            self.solves -= 1
            capacity = self.capacity(plan)
            try:
                lower = self.model.lower(capacity, tol=0.01 * ACCURACY, warm=self._warm)
            except LowerLevelError:
                self._known[key] = nothing
            else:
                self._warm = dict(lower.warm)
                flow = self.model.split(lower.y)[0].sum(axis=0)
                self._known[key] = -self.model.upper(capacity, lower.y), flow
        return self._known[key]

    def improves(self, plan: Array) -> bool:
        """Whether a plan earns more than the best so far; it is the best then."""
        value = self.answer(plan)[0]
        if not value > self.value + 1e-9 * (1.0 + abs(value)):
            return False
        self.best, self.value = plan, value
        return True

    def needed(self, plan: Array) -> Array:
        """The plan without the modules that its passengers do not use: they stay as they are."""
        used = np.ceil(self.answer(plan)[1] / self.module - 1e-6) + 0.0
        return np.clip(used, self.least, plan)

    def roundings(self, capacity: Array) -> Iterator[Array]:
        """Links rounded up from some part of a module on, as far as the budget goes, the largest parts first."""
        whole = np.floor(capacity / self.module + 1e-9)
        part = capacity / self.module - whole
        down = np.clip(whole, self.least, self.most)
        if self.left(down) < 0:
            down = self.least
        for threshold in THRESHOLDS:
            plan, left = down.copy(), self.left(down)
            for link in np.argsort(-part, kind="stable"):
                price = self.cost[link] * self.module[link]
                if part[link] >= threshold and plan[link] < self.most[link] and price <= left:
                    plan[link] += 1.0
                    left -= price
            yield plan

    def additions(self, plan: Array, random: np.random.Generator) -> list[Array]:
        """Links that may get a module more: each alone, and the full ones of each pair's route, drawn at random."""
        network, price = self.model.network, self.cost * self.module
        left = self.left(plan)
        may = (plan < self.most) & (price <= left)
        full = self.capacity(plan) - self.answer(plan)[1] < 0.5 * self.module
        # the route over what is there already, or the shortest, or what is between
        length = network.travel_time + random.choice([0.1, 1.0, 10.0]) * np.where(
            full, self.cost, 0.0
        )
        length = length * np.exp(SPREAD * random.standard_normal(len(plan)))
        _, pair, start, links = self.model.paths.shortest_paths(
            np.where(full & ~may, np.inf, length)
        )
        found = {(link,): np.array([link]) for link in np.flatnonzero(may)}
        for one in np.flatnonzero(network.trips[pair] > 0):
            route = links[start[one] : start[one + 1]]
            route = np.sort(route[full[route]])
            if len(route) and price[route].sum() <= left:
                found[tuple(route)] = route
        return list(found.values())

    def filled(self, plan: Array, random: np.random.Generator) -> Array:
        """Add modules while that earns more, of a few drawn at random those that earn the most for their money."""
        misses = 0
        while misses < MISSES and self.solves:
            value, misses = self.answer(plan)[0], misses + 1
            most, choice = 0.0, plan
            additions = self.additions(plan, random)
            for number in random.permutation(len(additions))[:TRIED]:
                links = additions[number]
                trial = plan.copy()
                trial[links] += 1.0
                gain = self.answer(trial)[0] - value
                rate = gain / max(float((self.cost * self.module)[links].sum()), TINY)
                if gain > 1e-9 * (1.0 + abs(value)) and rate > most:
                    most, choice, misses = rate, trial, 0
            plan = choice
        return plan

    def settle(self) -> None:
        """Move one link of the best plan at a time, and where nothing more is found, on small networks two."""
        steps = [(link, sign) for link in np.flatnonzero(~self.fixed) for sign in (-1.0, 1.0)]
        alone, together = [(step,) for step in steps], []
        if (
            len(steps) ** 2 <= TOGETHER
        ):  # what one link gains may need another's module, or its money
            together = [
                pair for pair in itertools.combinations(steps, 2) if pair[0][0] != pair[1][0]
            ]

        def improved(moves: Iterable[tuple[tuple[int, float], ...]]) -> bool:
            """One pass over some moves; whether it found anything."""
            found = False
            for move in moves:
                trial = self.best.copy()
                for link, change in move:
                    trial[link] += change
                found = self.improves(trial) or found
            return found

        while self.solves and (improved(alone) or improved(together)):
            pass


def round_to_modules(
    model: TransitModel, capacity: Array, module: Array, *, improve: bool = True
) -> Array:
    """Whole numbers of modules: the most profitable of several roundings of some capacities, improved.

    First modules of one and two links are moved, until none earns more. Then some modules are taken from the best
    plan at random and others added, again and again; what is better is improved in the same way. The number of
    lower-level solves is bounded. Links whose capacity is fixed keep it.

    Parameters
    ----------
    model : TransitModel
    capacity : array, (links,)
    module : array, (links,)
        Size of a module, positive.
    improve : bool
        False: the best of the roundings, as it is.

    Returns
    -------
    array, (links,)
        Capacities, the same for the same input: the random numbers are fixed.

    Raises
    ------
    InvalidInputError
        If no whole number of modules is within a link's limits, or the smallest ones exceed the budget.
    """
    plans = _Plans(model, module)
    random = np.random.default_rng(0)
    for plan in (plans.least, *plans.roundings(capacity)):
        plans.improves(plan)
    if not improve:
        return plans.capacity(plans.best)
    plans.settle()
    if plans.improves(plans.filled(plans.least, random)):
        plans.settle()
    quiet = 0
    while plans.solves and quiet < QUIET:
        built = np.repeat(np.arange(len(module)), (plans.best - plans.least).astype(np.int64))
        number = random.integers(min(len(built), REMOVED) + 1)
        plan = plans.best.copy()
        np.subtract.at(plan, random.choice(built, number, replace=False), 1.0)
        quiet += 1
        if plans.improves(plans.filled(plans.needed(plan), random)):
            plans.settle()
            quiet = 0
    return plans.capacity(plans.best)
