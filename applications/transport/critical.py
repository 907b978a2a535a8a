"""Critical points of F_gamma from link prices, and what proves them.

Psi (:mod:`blocc.applications.transport.prices`) is a convex function of the prices, the passengers' minus D, minus
another such, the operator's. Near a minimum the two are unlike each other. The passengers' kinks, where paths of a pair
are equally long, hold the minimum: they stay smoothed by a barrier whose gauge falls. The operator's kinks are peaks of
Psi, where a minimum cannot be, and smoothed peaks are saddles that hold Newton's steps up. So here the operator's part
is exact, every pair on its shortest path; what its steps see, one smooth piece of it, lies above it. And

* prices are bounded by zero itself, most at a minimum are there: a step solves the bounded quadratic problem;
* links on which the operator has next to nobody are closed, and their paths forgotten; those that a convex-concave
  step would open again, at the lowest prices that keep passengers off, are opened in further rounds;
* where the difference is indefinite, curvature counts by its size (Dauphin et al. 2014, saddle-free Newton), relative
  to that of the convex part: directions that lead off a saddle are long ones.

With a = the operator's flows, what a convex-concave step promises is zero: what is left is the passengers' gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, eigh
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.special import expit

from blocc.applications.transport.compiled import compiled
from blocc.applications.transport.generated import GeneratedPaths, PathList, link_flows
from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.paths import (
    CUTOFF,
    _assemble,
    _assemble_means,
    _barrier,
    _pair_solve,
    _shrunk,
    _subset,
)

Array = np.ndarray[Any, Any]

FALL = 0.2  # of the gauge from one stage to the next
SHARP, LAST = 3e-9, 1e-12  # gauge from which on a proof is tried, and the last
STEPS = 60  # at one gauge
# Part of the barrier's own gap at which what a step promises ends a stage; from SHARP on also what flows are apart.
SETTLED = 0.1
NEW = 1e-3  # part of the paths that may be new in the step that ends it
LEAST = 1e-4  # flow, in typical trips of pairs that can earn something, at which the operator closes a link
SPARE = 1e-9  # capacity that every link has in addition, in typical trips: bounds the prices of links without flow
SMALL = 3e-3  # price below which a link without need of one begins at zero
FLOOR, LEAST_FLOOR, MOST_FLOOR = 1e-2, 1e-6, 0.5  # of the relative curvature: first, and its limits
REGULAR = 1e-8  # of the convex part's diagonal, added to it: links in a row have the same curvature
RATIO = 1e6  # how far a primal-dual estimate may be from the barrier's own value
HALVINGS, DOUBLINGS = 12, 6  # of a step
PIVOTS = 100  # of a bounded quadratic problem
ALONE = 1e30  # weight of a pair's only path
TRACE = 1e-6  # part of a pair's trips below which a path has only the barrier's trace of a flow
UNUSED = 1e-200  # weight of a path without flow
FITS = 3  # Newton steps of the flows alone at a critical point
REOPENINGS = 6  # rounds of opening closed links that the operator would use
REOPENED = 1e-6  # gauge to which they go back
AJAR = 1e-3  # part of the links' prices that is taken off


class Proof(NamedTuple):
    """Of a critical point: the passengers' relative gap, what a step promises of F_gamma / gamma, the first-order
    residual, F_gamma, and the true upper value of the capacities."""

    gap: float
    promised: float
    stationarity: float
    value: float
    response: float

    @property
    def residual(self) -> float:
        """What a tolerance bounds."""
        return max(self.stationarity, self.gap)


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
        """The passengers' answer as a warm start."""
        used = self.flow > 0
        return warm_start(_subset(*self.paths, used), self.flow[used], self.price)

    def proof(self, model: TransitModel) -> Proof:
        """What holds at the capacities, by weak duality alone.

        Both answers are shrunk into the capacities, and the prices bound both optimal values from below. The second
        answer's gap bounds the decrease that F_gamma's convex majorant at these prices promises; the first's, how far
        the prices are from those of the majorant. Both count in the stationarity: relative, times gamma, as in
        :func:`blocc.certificate.predicted_decrease`.
        """
        network, paths, gamma = model.network, model.paths, self.gamma
        if not np.all((self.price >= 0) & np.isfinite(self.price)):
            return Proof(np.inf, np.inf, np.inf, np.nan, np.nan)

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


def warm_start(paths: PathList, flow: Array, price: Array) -> dict[str, Array]:
    """Warm start of the passengers' problem, as ``paths.Response.warm``."""
    pair, start, links = paths
    return {
        "path_pair": pair,
        "path_start": start,
        "path_links": links,
        "path_flow": flow,
        "price": price,
    }


class _Here(NamedTuple):
    """Psi / gamma with the operator's part exact: its value; the passengers' flow and margin; both loads; of each
    pair the operator's path and margin."""

    value: float
    flow: Array
    margin: Array
    load: tuple[Array, Array]
    chosen: Array
    rich_margin: Array


class Settling:
    """Newton steps to a critical point of F_gamma.

    Parameters
    ----------
    model : TransitModel
        Without limits on the capacities.
    gamma : float
    price : array, (links,)
        Nonnegative, from where the smoothed Psi is nearly smallest at some gauge.
    paths : PathList
        Generated on the way there.
    flow : array, (paths,), optional
        The passengers' estimated flows; NaN where unknown.
    """

    def __init__(
        self,
        model: TransitModel,
        gamma: float,
        price: Array,
        paths: PathList,
        flow: Array | None = None,
    ) -> None:
        self.model, self.network, self.gamma = model, model.network, gamma
        self.generated = GeneratedPaths(model, paths)
        self.price = price.copy()
        self.estimate = np.full(len(self.generated), np.nan) if flow is None else flow.copy()
        self.closed = np.zeros(len(price), dtype=bool)
        self.below = np.ones(len(self.network.trips))
        self.floor = FLOOR
        # pairs with which nothing can be earned would close links that others pay for
        worth = model.network.revenue > model.paths.distances(model.network.capacity_cost)
        trips = np.where(worth, model.network.trips, 0.0)
        typical = np.sum(trips**2) / np.sum(trips) if np.any(trips) else self.generated.typical
        self.least = LEAST * float(typical)
        utility = self.network.alternative_time
        self.utilities = utility, utility + self.network.revenue / gamma

    def run(
        self, gauge: float, tol: float, report: Callable[[Array], object] | None = None
    ) -> tuple[Critical, Proof]:
        """Follow the minimum as the gauge falls, until it is proven critical to a tolerance.

        Parameters
        ----------
        gauge : float
            From which the prices come.
        tol : float
            First-order residual and relative gap that end it.
        report : callable, optional
            Called with the prices after every step.

        Returns
        -------
        critical : Critical
            The best on the way, and what proves it.
        """
        best: tuple[Critical, Proof] | None = None
        rounds = 0
        while True:
            gauge *= FALL
            self._settle(gauge, report)
            if gauge > SHARP:
                continue
            found = self.critical()
            # rounding has a say: not always the last
            if best is None or found[1].stationarity < best[1].stationarity:
                best = found
            if best[1].residual <= tol:
                return best
            if rounds < REOPENINGS and self._reopen(found[0].price):
                gauge, rounds = REOPENED, rounds + 1
            elif gauge <= LAST:
                return best

    def _settle(self, gauge: float, report: Callable[[Array], object] | None) -> None:
        """Steps at one gauge."""
        self.gauge = gauge
        self._generate()
        here = self._evaluate(self.price)
        needless = (self.price < SMALL) & (self._down(here) <= 0)
        self.price[needless] = 0.0
        self._close(here)
        for _ in range(STEPS):
            new = self._generate()
            if not len(self.generated):
                return
            promised, here = self._step()
            self._close(here)
            if report is not None:
                report(self.full_price())
            size = gauge * float(np.sum(self.generated.room))
            settled = promised <= SETTLED * size and new <= NEW * len(self.generated)
            # what flows and capacities differ in counts in a proof to first order, in what is promised to second
            if settled and (gauge > SHARP or self._apart(here) <= SETTLED * size):
                return

    def full_price(self) -> Array:
        """Prices that keep everybody off closed links, quickly found ones."""
        keeping = CUTOFF + float(np.max(self.utilities[1], initial=0.0))
        return np.where(self.closed, keeping, self.price)

    def _costs(self, price: Array) -> tuple[Array, Array]:
        cost = np.where(self.closed, np.inf, self.network.travel_time + price)
        return cost, cost + self.network.capacity_cost / self.gamma

    def _generate(self) -> int:
        """Add every pair's shortest path at both kinds of costs; how many are new."""
        number, order = self.generated.add(self._costs(self.price))
        if number:
            self.estimate = np.concatenate([self.estimate, np.full(number, np.nan)])[order]
        return number

    def _evaluate(self, price: Array) -> _Here:
        generated, costs = self.generated, self._costs(price)
        utility, richer = (one[generated.pair] for one in self.utilities)
        lists = (generated.pair_start, *generated.paths[1:])
        below = self.below[generated.pair]
        weight = self.gauge * generated.room
        flow, margin, load, plain = _barrier(
            *lists, costs[0], utility, generated.trips, weight, below
        )
        self.below[generated.pair] = below
        chosen, rich_margin, rich_load, costly = _shortest(
            *lists, costs[1], richer, generated.trips
        )
        value = (costly - generated.trips @ richer) - (plain - generated.trips @ utility)
        value += SPARE * generated.typical * np.sum(price)
        return _Here(float(value), flow, margin, (load, rich_load), chosen, rich_margin)

    def _down(self, here: _Here) -> Array:
        """Minus the gradient."""
        down: Array = here.load[0] - here.load[1] - SPARE * self.generated.typical
        return down

    def _apart(self, here: _Here) -> float:
        """What the passengers' flows and the capacities differ in, at the prices."""
        return float(self.price @ np.abs(self._down(here)))

    def _close(self, here: _Here) -> None:
        """Close links where the operator has next to nobody, and further ones where those have been in a row."""
        generated, least = self.generated, self.least
        if not len(generated):
            return
        costly = np.zeros(len(generated))
        costly[here.chosen] = generated.trips * expit(here.rich_margin)
        closed = self.closed.copy()
        while True:
            small = ~closed & (generated.load(costly) <= least)
            if not np.any(small):
                break
            closed |= small
            costly[generated.crossing(closed)] = 0.0
        if np.array_equal(closed, self.closed):
            return
        kept = ~generated.crossing(closed)
        generated.keep(kept)
        self.estimate = self.estimate[kept]
        self.closed, self.price = closed, np.where(closed, 0.0, self.price)

    def _weights(self, here: _Here) -> Array:
        """Of the passengers' paths, from primal-dual estimates within reach of the barrier's own flows."""
        guess = within_reach(self.estimate, here.flow)
        return guess * here.flow / (self.gauge * self.generated.room)

    def _lists(self, free: Array) -> tuple[Array, ...]:
        """The paths by pair, and which row each free link is."""
        index = np.full(len(free), -1)
        index[free] = np.arange(np.sum(free))
        return (self.generated.pair_start, *self.generated.paths[1:], index)

    def _step(self) -> tuple[float, _Here]:
        """One step; the decrease that it promises, and where it leads (0 and here: nowhere)."""
        generated, price = self.generated, self.price
        here = self._evaluate(price)
        down = self._down(here)
        free = ((price > 0) | (down > 0)) & (here.load[0] > 0)
        if not np.any(free):
            return 0.0, here
        lists, weight = self._lists(free), self._weights(here)
        alone = np.zeros(len(generated))
        alone[here.chosen] = ALONE
        convex, concave = (
            _symmetric(
                assemble(*lists, part, generated.trips * expit(m) * expit(-m), len(down[free]))
            )
            for assemble, part, m in (
                (_assemble, weight, here.margin),
                (_assemble_means, alone, here.rich_margin),
            )
        )
        np.einsum("ii->i", convex)[:] *= 1.0 + REGULAR
        found = _saddle_free(convex, concave, down[free], price[free], self.floor)
        if found is None:
            return 0.0, here
        move, promised, indefinite = found
        change = np.zeros(len(price))
        change[free] = move
        length, there = self._searched(here, change, promised, indefinite)
        if there is None:
            self.floor = min(4.0 * self.floor, MOST_FLOOR)
            return (promised if self.floor < MOST_FLOOR else 0.0), here
        if length >= 1.0:
            self.floor = max(FALL * self.floor, LEAST_FLOOR)
        elif length < 0.5:
            self.floor = min(4.0 * self.floor, MOST_FLOOR)
        taken = min(length, 1.0) * move
        self.estimate = followed(lists, generated.trips, here.flow, here.margin, weight, taken)
        self.price = np.maximum(price + length * change, 0.0)
        return promised, there

    def _searched(
        self, here: _Here, change: Array, promised: float, indefinite: bool
    ) -> tuple[float, _Here | None]:
        """How much of a step to take, more than it where curvature was left out, and where that leads."""
        noise = 1e-13 * abs(here.value)
        length = 1.0
        for _ in range(HALVINGS + 1):
            there = self._evaluate(np.maximum(self.price + length * change, 0.0))
            if there.value <= here.value - 1e-4 * length * promised + noise:
                break
            length *= 0.5
        else:
            return 0.0, None
        for _ in range(DOUBLINGS if indefinite and length == 1.0 else 0):
            farther = self._evaluate(np.maximum(self.price + 2.0 * length * change, 0.0))
            if not farther.value < there.value:
                break
            length, there = 2.0 * length, farther
        return length, there

    def critical(self) -> tuple[Critical, Proof]:
        """The critical point that the prices tell, without the barrier's traces, and its proof.

        Closed links get the lowest prices that keep everybody off.
        """
        generated = self.generated
        here = self._evaluate(self.price)
        price = self.closing_price()
        flow = np.where(here.flow > TRACE * generated.by_pair(here.flow), here.flow, 0.0)
        costly = np.zeros(len(flow))
        costly[here.chosen] = 1.0
        cost = self.network.travel_time + price
        costs = cost, cost + self.network.capacity_cost / self.gamma
        flow, costly = (
            generated.scaled(
                part,
                (self.network.trips * expit(u - self.model.paths.distances(c)))[generated.pair],
            )
            for part, u, c in zip((flow, costly), self.utilities, costs, strict=True)
        )
        point = Critical(self.gamma, generated.load(costly), price, generated.paths, flow, costly)
        best, proof = point, point.proof(self.model)
        for _ in range(FITS if len(generated) else 0):
            point = self._fitted(point, here)
            after = point.proof(self.model)
            if not after.stationarity < 0.5 * proof.stationarity:
                if after.stationarity < proof.stationarity:
                    best, proof = point, after
                break
            best, proof = point, after
        return best, proof

    def _fitted(self, point: Critical, here: _Here) -> Critical:
        """The passengers' flows after a Newton step toward what the capacities allow, at the same prices."""
        generated, flow = self.generated, point.flow
        used, free = flow > 0, (self.price > 0) & (here.load[0] > 0)
        weight = np.where(used, flow * here.flow / (self.gauge * generated.room), UNUSED)
        lists, elasticity = self._lists(free), expit(here.margin) * expit(-here.margin)
        matrix = _assemble(*lists, weight, generated.trips * elasticity, np.sum(free))
        np.einsum("ii->i", matrix)[:] *= 1.0 + REGULAR
        factor, failed = dpotrf(matrix.T, lower=0) if np.any(free) else (matrix, 1)
        if failed:
            return point
        over = (generated.load(flow) - point.capacity)[free]
        change = dpotrs(factor, over, lower=0)[0]
        after = followed(lists, generated.trips, flow, here.margin, weight, change)
        after = np.where(used, after, 0.0)
        carried = np.add.reduceat(flow, generated.pair_start[:-1])
        return point._replace(flow=generated.scaled(after, carried))

    def closing_price(self) -> Array:
        """Prices, those of closed links as low as keeps everybody off without the operator's money.

        The lowest: with more, a convex-concave step that opens a link would promise less than it gains.
        """
        cost = self.network.travel_time + self.price
        reached = self.model.paths.distances(np.where(self.closed, np.inf, cost))
        reached = np.where(np.isfinite(reached), reached, self.utilities[0] + CUTOFF)
        closing = self.model.paths.closed_prices(cost, self.closed, reached)
        return self.price + closing

    def _reopen(self, price: Array) -> bool:
        """Open the closed links that the operator would use at some prices; whether there are any."""
        network = self.network
        cost = network.travel_time + price + network.capacity_cost / self.gamma
        length, pair, start, links = self.model.paths.shortest_paths(cost)
        flow = network.trips[pair] * expit(self.utilities[1][pair] - length[pair])
        load = link_flows(start, links, flow, len(price))
        opened = self.closed & (load > self.least)
        self.closed = self.closed & ~opened
        self.price = np.where(opened, (1.0 - AJAR) * price, self.price)
        return bool(np.any(opened))


def within_reach(guess: Array, own: Array) -> Array:
    """Primal-dual estimates no farther than RATIO from the barrier's own values, which stand for unknown ones."""
    guess = np.where(np.isnan(guess), own, guess)
    reached: Array = np.clip(guess, own / RATIO, RATIO * own)
    return reached


def followed(
    lists: Sequence[Array], trips: Array, flow: Array, margin: Array, weight: Array, change: Array
) -> Array:
    """Path flows of one D after a change of prices, to first order: the next primal-dual estimate."""
    nothing = np.zeros(len(trips)), np.zeros(len(flow))
    system = weight, expit(-margin), trips * expit(margin)
    after: Array = np.maximum(flow + _pair_solve(*lists, *system, *nothing, change)[0], 0.0)
    return after


def _symmetric(lower: Array) -> Array:
    """A matrix from its lower triangle."""
    return np.tril(lower) + np.tril(lower, -1).T


def _saddle_free(
    convex: Array, concave: Array, down: Array, room: Array, floor: float
) -> tuple[Array, float, bool] | None:
    """A step for a difference of two curvatures, no farther down than there is room.

    The convex part alone tells which variables go to their bounds. On the others the difference's curvature counts by
    its size relative to the convex part's, at least ``floor`` of it.

    Returns
    -------
    step : array
    promised : float
        How far it leads down, to first order.
    indefinite : bool
        Whether the difference is, on these others.
    None
        Where rounding leaves no step that leads down.
    """
    first = _bounded(convex, down, room)
    if first is None:
        return None
    step, bound = first
    rest, fixed = np.flatnonzero(~bound), np.flatnonzero(bound)
    indefinite = False
    if len(rest):
        inner = convex[np.ix_(rest, rest)]
        try:
            relative, vectors = eigh(concave[np.ix_(rest, rest)], inner)
        except LinAlgError:
            return None
        indefinite = bool(relative[-1] > 1.0)
        sides = inner @ vectors
        size = (sides * np.maximum(np.abs(1.0 - relative), floor)) @ sides.T
        force = down[rest] + convex[np.ix_(rest, fixed)] @ room[fixed]
        second = _bounded(size, force, room[rest])
        if second is not None:
            longer = step.copy()
            longer[rest] = second[0]
            if down @ longer > 0:
                step = longer
    promised = float(down @ step)
    return (step, promised, indefinite) if promised > 0 else None


def _bounded(matrix: Array, force: Array, room: Array) -> tuple[Array, Array] | None:
    """Minimise ``x M x / 2 - force x`` over ``x >= -room``; also which are at the bound. None: M is not definite.

    Block principal pivoting, one exchange at a time where blocks do not help (Judice and Pires 1994).
    """
    bound = np.zeros(len(force), dtype=bool)
    fewest, patience = len(force) + 1, 3
    noise = 1e-13 * float(np.max(np.abs(force), initial=0.0))
    for _ in range(PIVOTS):
        step = -room
        free = np.flatnonzero(~bound)
        if len(free):
            side = force[free] + matrix[np.ix_(free, np.flatnonzero(bound))] @ room[bound]
            factor, failed = dpotrf(matrix[np.ix_(free, free)], lower=1)
            if failed:
                return None
            step[free] = dpotrs(factor, side, lower=1)[0]
        wrong = np.where(bound, force - matrix @ step > noise, step < -room)
        number = int(np.sum(wrong))
        if not number:
            break
        if number < fewest:
            fewest, patience = number, 3
        elif patience:
            patience -= 1
        else:
            wrong = np.arange(len(wrong)) == np.flatnonzero(wrong)[-1]
        bound = bound ^ wrong
    return np.maximum(step, -room), bound


@compiled
def _shortest(pair_start, path_start, path_links, cost, utility, trips):  # type: ignore[no-untyped-def]
    """What ``paths._barrier`` gives without a barrier: each pair's shortest path in place of flows."""
    chosen = np.empty(len(trips), np.int64)
    margin = np.empty(len(trips))
    load = np.zeros(len(cost))
    value = 0.0
    for pair in range(len(trips)):
        shortest = np.inf
        for path in range(pair_start[pair], pair_start[pair + 1]):
            length = 0.0
            for position in range(path_start[path], path_start[path + 1]):
                length += cost[path_links[position]]
            if length < shortest:
                shortest = length
                chosen[pair] = path
        m = utility[pair] - shortest
        margin[pair] = m
        small = np.exp(-abs(m))
        share = 1.0 / (1.0 + small) if m > 0 else small / (1.0 + small)
        flow = trips[pair] * share
        for position in range(path_start[chosen[pair]], path_start[chosen[pair] + 1]):
            load[path_links[position]] += flow
        softplus = max(m, 0.0) + np.log1p(small)
        value += shortest * flow
        value += trips[pair] * (share * m - softplus - 1.0 + utility[pair] * (1.0 - share))
    return chosen, margin, load, value
