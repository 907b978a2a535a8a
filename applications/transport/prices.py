"""Design by link prices: without limits on the capacities, no passengers' problem need be solved on the way.

Let D(p; u) be the passengers' dual function (:mod:`blocc.applications.transport.model`) without its last term
``- p a``. As ``v(a; u) = max_p [D(p; u) - p a]``, the smallest ``F_gamma`` over all capacities is, up to a constant,

    min over p >= 0 of  Psi(p) = gamma [D(p + k / gamma; u + r / gamma) - D(p; u)],

and the capacities that belong to p are the flows in the first D (Toland's dual of a difference of convex functions).
For gamma to infinity -Psi tends to the profit ``sum_i w_i s_i (r_i - k(P_i))``, every pair on its shortest path P_i
under d + p: any prices, with capacities equal to the flows that they make, are a design and the passengers' exact
answer to it.

Each D has kinks, where two paths of a pair are equally long. ``-gauge log`` of every path flow and of every price
smooths both in the same way, so that their difference stays right. Newton steps find a minimum at a large gauge and
follow it as the gauge falls. At a small one :mod:`blocc.applications.transport.critical` takes over, and leads to where
both passengers' problems, with and without the operator's money, are solved and agree in their capacities: a critical
point of F_gamma. Three things make the way there short:

* the curvature takes path flows from a primal-dual estimate (Conn, Gould and Toint 2000), not from the barrier, whose
  own quadratic model holds only as far as the gauge is wide;
* the barrier's weights do not change within a climb, and no path that was generated is dropped: the function that the
  steps minimise stays the same one;
* of the concave D's curvature, what shifts trips between a pair's paths is left out; where the rest still makes the
  difference indefinite, part of that too, as little as will do.

A step costs two evaluations of the barrier function and a factorisation, where a convex-concave step needs the
passengers' problem solved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.special import expit

from blocc.applications.transport.critical import (
    Critical,
    Settling,
    followed,
    warm_start,
    within_reach,
)
from blocc.applications.transport.generated import GeneratedPaths, link_flows
from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.paths import (
    _assemble,
    _assemble_means,
    _barrier,
    _path_sums,
    _subset,
    _to_boundary,
)

Array = np.ndarray[Any, Any]


class Stage(NamedTuple):
    """Newton steps at one gamma and gauge."""

    gamma: float
    gauge: float
    steps: int
    settled: float  # part of the barrier's own size at which the decrease that a step promises ends the stage
    new: float = np.inf  # part of the paths that may be new in the step that ends it


FIRST_PRICE = 0.3  # of every link, in units of the passengers' logits
# Capacity that every link has in addition, in typical trips: bounds the prices of empty links. Less below the gauge.
SPARE, SPARE_GAUGE = 1e-4, 1e-5
TIE = 1e-7  # of the capacity cost, added to prices: among equally long paths the operator chooses
LEAST = 1e-6  # price at which a step starts at least
DAMPING = 1e-3  # least part of the concave curvature that is left out, where any is
HALVINGS, DOUBLINGS = 12, 4  # of a step
FARTHEST = 0.95  # part of a price that a step takes at most
ROUNDING = 1e-12  # of the curvature's diagonal, added to it: weights of many orders meet there
THREADED = 100_000  # paths from which both curvatures are assembled on two threads
TIGHT = 1e-8  # capacity left above the flow, relative: what there is of it, the passengers gain
NOBODY = 1e-11  # share of a pair's trips that counts as none: prices of closed links let by what rounds to nothing
LAST_GAMMA, LAST_GAUGE = (
    64.0,
    1e-8,
)  # of the last critical point, and the gauge from which it is sought
PART, SIZE = 0.15, 0.3  # of the prices that a perturbation changes, and by how much
CLOSED, CLOSING = (
    0.05,
    2.0,
)  # of the links that a closing perturbation closes, and what it adds to their price


def first_prices(model: TransitModel) -> Array:
    """Prices from which a climb can begin."""
    return np.full(model.paths.links, FIRST_PRICE)


def loading(model: TransitModel, price: Array) -> tuple[float, Array]:
    """Profit, and the link flows that earn it, of the design that some prices make."""
    network = model.network
    pair, start, links, trips = _routes(model, _own(model, price))
    cost = _path_sums(start, links, network.capacity_cost)
    return float(trips @ (network.revenue[pair] - cost)), _load(model, start, links, trips)


def answer(model: TransitModel, price: Array) -> dict[str, Array]:
    """The passengers' answer to the design that some prices make, as a warm start: paths, their flows, prices."""
    own = _own(model, price)
    pair, start, links, trips = _routes(model, own)
    somebody = trips > NOBODY * model.network.trips[pair]
    return warm_start(_subset(pair, start, links, somebody), trips[somebody], own)


def trimmed(model: TransitModel, start: Mapping[str, Array]) -> Array:
    """Capacities of the design that gives an answer's flows what they need, and hardly more."""
    load = _load(model, start["path_start"], start["path_links"], start["path_flow"])
    return (1.0 + TIGHT) * load


def _load(model: TransitModel, start: Array, links: Array, flow: Array) -> Array:
    """Link flows of path flows."""
    return link_flows(start, links, flow, model.paths.links)


def _own(model: TransitModel, price: Array) -> Array:
    """Prices at which no two paths that the operator tells apart are equally long."""
    own: Array = price + TIE * model.network.capacity_cost
    return own


def _routes(model: TransitModel, price: Array) -> tuple[Array, Array, Array, Array]:
    """Each pair's shortest path at some prices, as in paths.Response, and the trips on it."""
    network = model.network
    length, pair, start, links = model.paths.shortest_paths(network.travel_time + price)
    trips = network.trips[pair] * expit(network.alternative_time[pair] - length[pair])
    return pair, start, links, trips


class _Point(NamedTuple):
    """Psi / gamma, smoothed, at some prices: value, then flow, logit and load of the two D."""

    value: float
    flow: tuple[Array, Array]
    margin: tuple[Array, Array]
    load: tuple[Array, Array]


class Climb(NamedTuple):
    """Where a climb got.

    Attributes
    ----------
    profit : float
        The best on the way.
    price : array, (links,)
        Prices that earn it.
    point : Critical or None
        The critical point at the end, where one was asked for.
    """

    profit: float
    price: Array
    point: Critical | None


def climb(
    model: TransitModel,
    price: Array,
    stages: Sequence[Stage],
    report: Callable[[float, Array], None] | None = None,
    tol: float | None = None,
    gamma: float | None = None,
) -> Climb:
    """Climb from some prices through stages, and on to a critical point where asked.

    Parameters
    ----------
    model : TransitModel
        Without limits on the capacities.
    price : array, (links,)
        Nonnegative.
    stages : sequence of Stage
    report : callable, optional
        Called with profit and prices after every step.
    tol : float, optional
        First-order residual and gap of the critical point. None: end with the stages.
    gamma : float, optional
        Of the critical point. Default: the last stage's.
    """
    profit, best = loading(model, price)[0], price

    def reached(here: Array) -> float:
        nonlocal profit, best
        now = loading(model, here)[0]
        if report is not None:
            report(now, here)
        if now > profit:
            profit, best = now, here
        return now

    def settled(here: Array) -> None:
        nonlocal best
        if reached(here) >= profit - 1e-9 * (1.0 + abs(profit)):
            best = here  # closed links at the lowest prices, which trials open more easily

    smooth = Smooth(model, price)
    for stage in stages:
        for here in smooth.steps(stage):
            reached(here)
    if tol is None:
        return Climb(profit, best, None)
    last = stages[-1]
    settling = Settling(model, last.gamma, smooth.price, smooth.generated.paths, smooth.passengers)
    point, proof = settling.run(last.gauge, tol, reached)
    settled(point.price)
    if gamma is not None and gamma != last.gamma:
        settling = Settling(model, gamma, point.price, point.paths, point.flow)
        later, proven = settling.run(LAST_GAUGE, tol, reached)
        settled(later.price)
        if proven.residual <= max(tol, proof.residual):
            point = later
    return Climb(profit, best, point)


class Smooth:
    """Smoothed Psi on the paths generated so far, and the prices that its steps have reached.

    Every pair of arrays is that of D(p; u), then that of D(p + k / gamma; u + r / gamma).

    Parameters
    ----------
    model : TransitModel
        Without limits on the capacities.
    price : array, (links,)
        Nonnegative.
    """

    def __init__(self, model: TransitModel, price: Array) -> None:
        self.network = model.network
        self.generated = GeneratedPaths(model)
        self.typical = self.generated.typical
        self.price = np.maximum(price, LEAST)
        self.rows = np.arange(model.paths.links)
        # of every link about what it may carry: a design's own flows would weigh its empty links too little
        size = loading(model, first_prices(model))[1] + SPARE * self.typical
        self.row_room = np.sqrt(self.typical * size)
        self.estimate: tuple[Array, Array, Array] | None = None  # of both flows, and of the slack
        self.damping = 0.0

    def steps(self, stage: Stage) -> Iterator[Array]:
        """Yield the prices after each Newton step."""
        self._enter(stage)
        for _ in range(stage.steps):
            new = self._generate()
            decrement = self._step()
            if decrement is None:  # rounding leaves no curvature
                return
            yield self.price
            size = 2.0 * stage.gauge * float(np.sum(self.generated.room))
            if decrement <= stage.settled * size and new <= stage.new * len(self.generated):
                return

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self.spare = SPARE * self.typical * min(1.0, (stage.gauge / SPARE_GAUGE) ** 0.75)
        if not len(self.generated):
            self._generate()
        else:
            self._index()

    @property
    def passengers(self) -> Array | None:
        """Estimated flows of the passengers' paths."""
        return None if self.estimate is None else self.estimate[0]

    def _costs(self, price: Array) -> tuple[Array, Array]:
        cost = self.network.travel_time + price
        return cost, cost + self.network.capacity_cost / self.stage.gamma

    def _generate(self) -> int:
        """Add every pair's shortest path at both kinds of costs; how many are new."""
        number, order = self.generated.add(self._costs(self.price))
        if number:
            if self.estimate is not None:
                unknown = np.full(number, np.nan)
                flow, costly, slack = self.estimate
                self.estimate = (
                    np.concatenate([flow, unknown])[order],
                    np.concatenate([costly, unknown])[order],
                    slack,
                )
            self._index()
        return number

    def _index(self) -> None:
        """What follows from the list of paths and the stage."""
        network, stage, generated = self.network, self.stage, self.generated
        self.trips = generated.trips
        self.weight, self.row_weight = stage.gauge * generated.room, stage.gauge * self.row_room
        utility = network.alternative_time[generated.pair]
        self.utility = (utility, utility + network.revenue[generated.pair] / stage.gamma)
        self.structure = (generated.pair_start, *generated.paths[1:], self.rows)
        if self.estimate is None:
            self.below = np.ones(len(generated.pair)), np.ones(len(generated.pair))

    def _evaluate(self, price: Array) -> _Point:
        costs, (utility, richer) = self._costs(price), self.utility
        barrier = self.trips, self.weight
        plain = _barrier(*self.structure[:3], costs[0], utility, *barrier, self.below[0])
        costly = _barrier(*self.structure[:3], costs[1], richer, *barrier, self.below[1])
        value = (costly[3] - self.trips @ richer) - (plain[3] - self.trips @ utility)
        value += self.spare * np.sum(price) - self.row_weight @ np.log(price)
        return _Point(float(value), *((plain[at], costly[at]) for at in range(3)))

    def _curvatures(self, here: _Point, weights: Sequence[Array]) -> tuple[Array, Array]:
        """Lower triangles of minus the Hessians of both D; of the concave one, as if paths stayed in proportion.

        What a pair's trips shifting between paths adds is of use to the convex D alone. Subtracted, it makes the
        difference indefinite near ties, where a minimum cannot be: the concave D's kinks are peaks.
        """
        start, *rest = self.structure
        middle = int(np.searchsorted(start, start[-1] // 2))

        def part(job: tuple[int, slice]) -> Array:
            layer, pairs = job
            margin = here.margin[layer][pairs]
            elasticity = self.trips[pairs] * expit(margin) * expit(-margin)
            assemble = (_assemble, _assemble_means)[layer]
            own = start[pairs.start : pairs.stop + 1]
            matrix: Array = assemble(own, *rest, weights[layer], elasticity, len(self.rows))
            return matrix

        if start[-1] < THREADED:
            return part((0, slice(0, len(start) - 1))), part((1, slice(0, len(start) - 1)))
        halves = slice(0, middle), slice(middle, len(start) - 1)
        with ThreadPoolExecutor(2) as threads:
            parts = list(threads.map(part, itertools.product((0, 1), halves)))
        for first, second in (parts[:2], parts[2:]):
            first += second
        return parts[0], parts[2]

    def _estimates(self, here: _Point, slack: Array) -> tuple[Array, Array, Array]:
        """Primal-dual estimates within reach of the barrier's own values, which are those of new paths."""
        own = (*here.flow, slack)
        if self.estimate is None:
            return own
        flow, costly, rest = (
            within_reach(guess, value) for guess, value in zip(self.estimate, own, strict=True)
        )
        return flow, costly, rest

    def _follow(self, here: _Point, weight: Array, layer: int, change: Array) -> Array:
        """Path flows of one D after a change of prices, to first order: the next primal-dual estimate."""
        flow, margin = here.flow[layer], here.margin[layer]
        return followed(self.structure, self.trips, flow, margin, weight, change)

    def _step(self) -> float | None:
        """One Newton step; the decrease that it promises, None where the curvature is singular."""
        price, here = self.price, self._evaluate(self.price)
        slack = self.row_weight / price
        *flows, rest = self._estimates(here, slack)
        weights = [flow * own / self.weight for flow, own in zip(flows, here.flow, strict=True)]
        convex, concave = self._curvatures(here, weights)
        diagonal = np.einsum("ii->i", convex)
        diagonal += rest / price
        diagonal *= 1.0 + ROUNDING
        if self.damping < DAMPING:
            self.damping = 0.0
        tries = 0
        while True:
            matrix = (self.damping - 1.0) * concave
            matrix += convex
            # the lower triangle, which LAPACK reads as the upper one of the transpose where it lies
            factor, failed = dpotrf(matrix.T, lower=0, overwrite_a=1)
            if not failed or self.damping >= 1.0:
                break
            self.damping, tries = min(max(4.0 * self.damping, DAMPING), 1.0), tries + 1
        if failed:
            return None
        gradient = here.load[0] - here.load[1] - self.spare + slack
        change = dpotrs(factor, gradient, lower=0)[0]
        decrement = float(gradient @ change)
        room = FARTHEST * _to_boundary(price, change)
        length, halved = min(1.0, room), 0
        there = self._evaluate(price + length * change)
        noise = 1e-13 * abs(here.value)
        while (
            not there.value <= here.value - 1e-4 * length * decrement + noise and halved < HALVINGS
        ):
            length, halved = 0.5 * length, halved + 1
            there = self._evaluate(price + length * change)
        for _ in range(DOUBLINGS if self.damping > 0.0 and not halved else 0):
            if 2.0 * length > room:  # a step that leaves curvature out is too short
                break
            farther = self._evaluate(price + 2.0 * length * change)
            if not farther.value < there.value:
                break
            length, there = 2.0 * length, farther
        taken = min(length, 1.0) * change
        flow, costly = (
            self._follow(here, weight, layer, taken) for layer, weight in enumerate(weights)
        )
        self.estimate = flow, costly, np.maximum(slack - rest / price * taken, 0.0)
        self.price = price + length * change
        if halved > 1:
            self.damping = min(2.0 * max(self.damping, DAMPING), 1.0)
        elif not tries:
            self.damping *= 0.25
        return decrement


def perturbed(price: Array, random: np.random.Generator, closes: bool) -> Array:
    """Change a part of the prices; close some links by a high price, where asked."""
    links = len(price)
    chosen = random.random(links) < PART
    moved = np.where(chosen, np.maximum(price + SIZE * random.standard_normal(links), LEAST), price)
    if closes:
        moved = moved + np.where(random.random(links) < CLOSED, CLOSING, 0.0)
    return moved
