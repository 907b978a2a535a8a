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
follow it as the gauge falls, to where both passengers' problems, with and without the operator's money, are solved and
agree in their capacities: a critical point of F_gamma. Three things make that work:

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

from blocc.applications.transport.compiled import compiled
from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.paths import (
    CUTOFF,
    _assemble,
    _barrier,
    _grouped,
    _known_paths,
    _pair_solve,
    _path_sums,
    _row_sums,
    _shrunk,
    _subset,
    _to_boundary,
)

Array = np.ndarray[Any, Any]
PathList = tuple[Array, Array, Array]  # pairs, starts, links, as in paths.Response


class Stage(NamedTuple):
    """Newton steps at one gamma and gauge."""

    gamma: float
    gauge: float
    steps: int
    settled: float  # part of the barrier's own size at which the decrease that a step promises ends the stage
    new: float = np.inf  # part of the paths that may be new in the step that ends it


SHARP = 1e-9  # in units of the prices: gauge from which on a stage's end may tell a critical point
FIRST_PRICE = 0.3  # of every link, in units of the passengers' logits
# Capacity that every link has in addition, in typical trips: bounds the prices of empty links. Less below the gauge.
SPARE, SPARE_GAUGE = 1e-4, 1e-5
TIE = 1e-7  # of the capacity cost, added to prices: among equally long paths the operator chooses
LEAST = 1e-6  # price at which a step starts at least
DAMPING = 1e-3  # least part of the concave curvature that is left out, where any is
RATIO = 1e6  # how far a primal-dual estimate may be from the barrier's own value
HALVINGS, DOUBLINGS = 12, 4  # of a step
FARTHEST = 0.95  # part of a price that a step takes at most
# Where a few prices near zero would allow no more than this of a step, they alone are held back, if that leads down
# and the gauge is below that: earlier such steps lead to worse designs.
BENT, BENT_GAUGE = 0.5, 1e-4
ROUNDING = 1e-12  # of the curvature's diagonal, added to it: weights of many orders meet there
THREADED = 100_000  # paths from which both curvatures are assembled on two threads
NEGLIGIBLE = 1e-9  # part of a pair's weight that a path's must reach to count in their mean
UNUSED = 1e-200  # weight of a path without flow
FITS = 3  # Newton steps of the flows alone at a critical point
TIGHT = 1e-8  # capacity left above the flow, relative: what there is of it, the passengers gain
TRACE = 1e-6  # part of a pair's trips below which a path has only the barrier's trace of a flow
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
    *routes, trips = _routes(model, own)
    return _warm(routes, trips, own)


def trimmed(model: TransitModel, start: Mapping[str, Array]) -> Array:
    """Capacities of the design that gives an answer's flows what they need, and hardly more."""
    load = _load(model, start["path_start"], start["path_links"], start["path_flow"])
    return (1.0 + TIGHT) * load


def _load(model: TransitModel, start: Array, links: Array, flow: Array) -> Array:
    """Link flows of path flows."""
    return np.bincount(links, np.repeat(flow, np.diff(start)), minlength=model.paths.links)


def _warm(paths: Sequence[Array], flow: Array, price: Array) -> dict[str, Array]:
    """Warm start of the passengers' problem, as ``paths.Response.warm``."""
    return {
        **dict(zip(("path_pair", "path_start", "path_links"), paths, strict=True)),
        "path_flow": flow,
        "price": price,
    }


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


class Proof(NamedTuple):
    """Of a critical point: the passengers' relative gap, what a step promises of F_gamma / gamma, the first-order
    residual, F_gamma, and the true upper value of the capacities."""

    gap: float
    promised: float
    stationarity: float
    value: float
    response: float


class Critical(NamedTuple):
    """A critical point of F_gamma, with what proves it.

    Attributes
    ----------
    gamma : float
    capacity : array, (links,)
    price : array, (links,)
    paths : PathList
    flow, costly_flow : array, (paths,)
        The passengers' answer without and with the operator's money: to the prices, the latter with k / gamma added.
    """

    gamma: float
    capacity: Array
    price: Array
    paths: PathList
    flow: Array
    costly_flow: Array

    def answer(self) -> dict[str, Array]:
        """The passengers' answer as a warm start, as that of :func:`answer`."""
        used = self.flow > 0
        return _warm(_subset(*self.paths, used), self.flow[used], self.price)

    def proof(self, model: TransitModel) -> Proof:
        """What holds at the capacities, by weak duality alone.

        Both answers are shrunk into the capacities, and the prices bound both optimal values from below. The second
        answer's gap bounds the decrease that F_gamma's convex majorant at these prices promises; the first's, how far
        the prices are from those of the majorant. Both count in the stationarity: relative, times gamma, as in
        :func:`blocc.certificate.predicted_decrease`.
        """
        network, paths, gamma = model.network, model.paths, self.gamma

        def gap(flow: Array, utility: Array, price: Array) -> tuple[float, float, Array]:
            _, load, carried = _shrunk(*self.paths, flow, self.capacity, network.trips)
            idle = expit(utility)  # a pair without trips counts nothing
            share = np.divide(carried, network.trips, out=idle, where=network.trips > 0)
            share = np.clip(share, 0.0, 1.0)
            value = paths.objective(load, share, utility)
            return value, value - paths.dual_value(price, self.capacity, utility), share

        extra = 1.0 / gamma
        lower, below, share = gap(self.flow, network.alternative_time, self.price)
        utility = network.alternative_time + extra * network.revenue
        price = self.price + extra * network.capacity_cost
        penalized, promised, _ = gap(self.costly_flow, utility, price)
        cost, revenue = (
            float(network.capacity_cost @ self.capacity),
            network.trips * network.revenue,
        )
        value = cost - float(np.sum(revenue)) + gamma * (penalized - lower)
        below, promised = max(0.0, below), max(0.0, promised)
        stationarity = max(1.0, gamma) * gamma * (promised + below) / (1.0 + abs(value))
        return Proof(
            gap=below / (1.0 + abs(lower)),
            promised=promised,
            stationarity=stationarity if np.isfinite(stationarity) else np.inf,
            value=value,
            response=cost - float(revenue @ share),
        )


class Climb(NamedTuple):
    """Where a climb got.

    Attributes
    ----------
    profit : float
        The best on the way.
    price : array, (links,)
        Prices that earn it.
    point : Critical or None
        The critical point at the end, where the gauge got sharp enough for one.
    """

    profit: float
    price: Array
    point: Critical | None


def climb(
    model: TransitModel,
    price: Array,
    stages: Sequence[Stage],
    report: Callable[[float, Array], None] | None = None,
    tol: float = 0.0,
) -> Climb:
    """Climb from some prices through stages.

    Parameters
    ----------
    model : TransitModel
        Without limits on the capacities.
    price : array, (links,)
        Nonnegative.
    stages : sequence of Stage
    report : callable, optional
        Called with profit and prices after every step.
    tol : float
        First-order residual and gap at which a critical point is good enough to end the climb.
    """
    profit, best, point, least = loading(model, price)[0], price, None, np.inf
    smooth = Smooth(model, price)
    for stage in stages:
        for here in smooth.steps(stage):
            now = loading(model, here)[0]
            if report is not None:
                report(now, here)
            if now > profit:
                profit, best = now, here
        if stage.gauge <= SHARP:
            critical, proof = smooth.critical()
            # rounding has a say: not always the last
            if point is None or proof.stationarity < least:
                point, least = critical, proof.stationarity
            if max(proof.stationarity, proof.gap) <= tol:
                break
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
        self.model, self.network, self.paths = model, model.network, model.paths
        trips = self.network.trips
        self.typical = float(np.sum(trips**2) / np.sum(trips))
        self.price = np.maximum(price, LEAST)
        self.rows = np.arange(self.paths.links)
        # of every link about what it may carry: a design's own flows would weigh its empty links too little
        size = loading(model, first_prices(model))[1] + SPARE * self.typical
        self.row_room = np.sqrt(self.typical * size)
        self.known: PathList | None = None
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
            size = 2.0 * stage.gauge * float(np.sum(self.room))
            if decrement <= stage.settled * size and new <= stage.new * len(self.room):
                return

    def critical(self) -> tuple[Critical, Proof]:
        """The critical point of F_gamma that the prices reached tell, without the barrier's traces, and its proof.

        Where that makes the better proof, capacities of hardly anything (a ten-thousandth of a typical pair's trips)
        are closed, and closed links get the lowest prices that keep everybody off.
        """
        self._generate()
        found = []
        for least in (None, SPARE * self.typical):
            point = self._critical(least)
            if found and np.array_equal(point.capacity, found[0][0].capacity):
                break  # nothing was closed
            proof = point.proof(self.model)
            found.append((point, proof))
            for _ in range(FITS):
                point, before = self._fitted(point), proof
                proof = point.proof(self.model)
                found.append((point, proof))
                if not proof.stationarity < 0.5 * before.stationarity:
                    break
        return min(found, key=lambda one: one[1].stationarity)

    def _fitted(self, point: Critical) -> Critical:
        """The passengers' flows after a Newton step toward what the capacities allow, at the same prices.

        Where paths of a pair are equally long with and without the operator's money, Psi hardly changes with how
        trips part among them, and the loads of the two answers may differ: either's trips may part otherwise.
        """
        flow, here = point.flow, self._evaluate(self.price)
        rest = self._estimates(here, self.row_weight / self.price)[2]
        used = flow > 0
        weight = np.where(used, flow * here.flow[0] / self.weight, UNUSED)
        share = expit(here.margin[0])
        matrix = _assemble(
            *self.structure, weight, self.trips * share * (1.0 - share), len(self.rows)
        )
        diagonal = np.einsum("ii->i", matrix)
        diagonal += rest / self.price
        diagonal *= 1.0 + ROUNDING
        factor, failed = dpotrf(matrix.T, lower=0, overwrite_a=1)
        if failed:
            return point
        _, start, links = point.paths
        over = _row_sums(start, links, self.rows, flow, len(self.rows)) - point.capacity
        change = dpotrs(factor, np.where(point.capacity > 0, over, 0.0), lower=0)[0]
        nothing = np.zeros(len(self.trips)), np.zeros(len(flow))
        system = weight, 1.0 - share, self.trips * share
        after = flow + _pair_solve(*self.structure, *system, *nothing, change)[0]
        after = np.where(used, np.maximum(after, 0.0), 0.0)
        return point._replace(flow=self._carrying(self._by_pair(flow), after))

    def _critical(self, least: float | None) -> Critical:
        """With links of no more than the least capacity closed; None: none, and the prices as they are."""
        here = self._evaluate(self.price)
        assert self.known is not None
        _, start, links = self.known
        count = np.diff(self.pair_start)
        flow, costly = (
            np.where(part > TRACE * self._by_pair(part), part, 0.0) for part in here.flow
        )
        closed = np.zeros(len(self.rows), dtype=bool)
        while True:
            load = _row_sums(start, links, self.rows, costly, len(self.rows))
            small = ~closed & (load <= least) if least is not None else closed
            if not np.any(small):
                break
            closed |= small
            blocked = np.add.reduceat(closed[links], start[:-1]) > 0
            flow, costly = np.where(blocked, 0.0, flow), np.where(blocked, 0.0, costly)
        price = self.price if least is None else self._closing(closed)
        flows = []
        for part, utility, cost in zip(
            (flow, costly), self.utility, self._costs(price), strict=True
        ):
            wanted = self.trips * expit(utility - self.paths.distances(cost)[self.pair])
            flows.append(self._carrying(np.repeat(wanted, count), part))
        load = _row_sums(start, links, self.rows, flows[1], len(self.rows))
        return Critical(self.stage.gamma, load, price, self.known, flows[0], flows[1])

    def _carrying(self, wanted: Array, flow: Array) -> Array:
        """Flows in the same proportions that carry so many trips of each path's pair."""
        whole = self._by_pair(flow)
        scaled: Array = np.divide(wanted * flow, whole, out=np.zeros(len(flow)), where=whole > 0)
        return scaled

    def _by_pair(self, flow: Array) -> Array:
        """Sum over the pair's paths, for each path."""
        return np.repeat(np.add.reduceat(flow, self.pair_start[:-1]), np.diff(self.pair_start))

    def _closing(self, closed: Array) -> Array:
        """Prices where some links are closed: theirs as low as keeps everybody off, with and without the money."""
        open_price = np.where(closed, 0.0, self.price)
        network, price = self.network, open_price
        utilities = (
            network.alternative_time,
            network.alternative_time + network.revenue / self.stage.gamma,
        )
        for cost, utility in zip(self._costs(open_price), utilities, strict=True):
            reached = self.paths.distances(np.where(closed, np.inf, cost))
            reached = np.where(np.isfinite(reached), reached, utility + CUTOFF)
            price = np.maximum(price, open_price + self.paths.closed_prices(cost, closed, reached))
        return price

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self.spare = SPARE * self.typical * min(1.0, (stage.gauge / SPARE_GAUGE) ** 0.75)
        if self.known is None:
            self._generate()
        else:
            self._index()

    def _costs(self, price: Array) -> tuple[Array, Array]:
        cost = self.network.travel_time + price
        return cost, cost + self.network.capacity_cost / self.stage.gamma

    def _generate(self) -> int:
        """Add every pair's shortest path at both kinds of costs; how many are new."""
        network, number = self.network, 0
        for cost in self._costs(self.price):
            _, pair, start, links = self.paths.shortest_paths(cost)
            new = _subset(pair, start, links, network.trips[pair] > 0)
            if self.known is None:
                self.known, number = new, number + len(new[0])
                continue
            old = self.known
            new = _subset(*new, ~_known_paths(*new, *old, self.paths._key))
            if not len(new[0]):
                continue
            number += len(new[0])
            pairs = np.concatenate([old[0], new[0]])
            starts = np.concatenate([old[1], old[1][-1] + new[1][1:]])
            *known, order = _grouped(pairs, starts, np.concatenate([old[2], new[2]]))
            self.known = (known[0], known[1], known[2])
            if self.estimate is not None:
                unknown = np.full(len(new[0]), np.nan)
                flow, costly, slack = self.estimate
                self.estimate = (
                    np.concatenate([flow, unknown])[order],
                    np.concatenate([costly, unknown])[order],
                    slack,
                )
        if number:
            self._index()
        return number

    def _index(self) -> None:
        """What follows from the list of paths and the stage."""
        assert self.known is not None
        network, stage, path_pair = self.network, self.stage, self.known[0]
        self.pair, first = np.unique(path_pair, return_index=True)
        self.pair_start = np.append(first, len(path_pair)).astype(np.int64)
        self.trips = network.trips[self.pair]
        self.room = np.sqrt(self.typical * network.trips[path_pair])
        self.weight, self.row_weight = stage.gauge * self.room, stage.gauge * self.row_room
        utility = network.alternative_time[self.pair]
        self.utility = (utility, utility + network.revenue[self.pair] / stage.gamma)
        self.structure = (self.pair_start, self.known[1], self.known[2], self.rows)
        if self.estimate is None:
            self.below = np.ones(len(self.pair)), np.ones(len(self.pair))

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
            np.clip(np.where(np.isnan(guess), value, guess), value / RATIO, RATIO * value)
            for guess, value in zip(self.estimate, own, strict=True)
        )
        return flow, costly, rest

    def _follow(self, here: _Point, weight: Array, layer: int, change: Array) -> Array:
        """Path flows of one D after a change of prices, to first order: the next primal-dual estimate."""
        flow, margin = here.flow[layer], here.margin[layer]
        nothing = np.zeros(len(self.trips)), np.zeros(len(flow))
        system = weight, expit(-margin), self.trips * expit(margin)
        after: Array = flow + _pair_solve(*self.structure, *system, *nothing, change)[0]
        return np.maximum(after, 0.0)

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
        there = None
        if room < BENT and self.stage.gauge < BENT_GAUGE:
            bent = np.maximum(change, -FARTHEST * price)
            promised = float(gradient @ bent)
            if promised > 0:
                there = self._evaluate(price + bent)
                if there.value <= here.value - 0.1 * promised:
                    change, room, decrement = bent, 1.0, promised
                else:
                    there = None
        length, halved = min(1.0, room), 0
        if there is None:
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


@compiled
def _assemble_means(  # type: ignore[no-untyped-def]
    pair_start, path_start, path_links, index, weight, elasticity, number
):
    """What ``_assemble`` gives without the spread of a pair's paths around their mean."""
    matrix = np.zeros((number, number))
    mean = np.zeros(number)
    seen = np.zeros(number, np.bool_)
    union = np.empty(number, np.int64)
    for pair in range(len(elasticity)):
        whole = 0.0
        for path in range(pair_start[pair], pair_start[pair + 1]):
            whole += weight[path]
        factor = elasticity[pair] * whole / (elasticity[pair] + whole)
        size = 0
        for path in range(pair_start[pair], pair_start[pair + 1]):
            part = weight[path] / whole
            if part < NEGLIGIBLE:
                continue
            for position in range(path_start[path], path_start[path + 1]):
                row = index[path_links[position]]
                if row < 0:
                    continue
                if not seen[row]:
                    seen[row] = True
                    union[size] = row
                    size += 1
                mean[row] += part
        for one in range(size):
            row = union[one]
            scaled = factor * mean[row]
            for before in range(one + 1):
                other = union[before]
                matrix[max(row, other), min(row, other)] += scaled * mean[other]
        for one in range(size):
            mean[union[one]], seen[union[one]] = 0.0, False
    return matrix
