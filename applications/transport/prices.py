"""Design by link prices: without limits on the capacities, no passengers' problem need be solved on the way.

Let D(p; u) be the passengers' dual function (:mod:`blocc.applications.transport.model`) without its last term
``- p a``. As ``v(a; u) = max_p [D(p; u) - p a]``, the smallest ``F_gamma`` over all capacities is, up to a constant,

    min over p >= 0 of  Psi(p) = gamma [D(p + k / gamma; u + r / gamma) - D(p; u)],

and the capacities that belong to p are the flows in the first D (Toland's dual of a difference of convex functions).
For gamma to infinity -Psi tends to the profit ``sum_i w_i s_i (r_i - k(P_i))``, every pair on its shortest path P_i
under d + p: any prices, with capacities equal to the flows that they make, are a design and the passengers' exact
answer to it.

Each D has kinks, where two paths of a pair are equally long. ``-gauge log`` of every path flow and of every price
smooths both in the same way, so that their difference stays right; damped Newton steps then follow a falling gauge.
Paths are generated on the way. A step costs two evaluations of the barrier function and one factorisation, where a
convex-concave step needs the passengers' problem solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.special import expit

from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.paths import (
    _assemble,
    _barrier,
    _grouped,
    _known_paths,
    _path_minima,
    _path_sums,
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
    settled: (
        float  # gamma times the decrease that a step promises, relative, at which the stage ends
    )


FIRST_PRICE = 0.3  # of every link, in units of the passengers' logits
SPARE = 1e-4  # capacity that every link has in addition, in typical trips: bounds the prices of empty links
TIE = 1e-7  # of the capacity cost, added to prices: among equally long paths the operator chooses
LEAST = 1e-6  # price at which a step starts at least
DAMPING = 0.1, 1.0  # part of the second D's curvature that a step leaves out, least and most
KEPT, PRUNED = (
    1e-3,
    2.0,
)  # part of a pair's trips that keeps a path; paths per pair at which others go
HALVINGS = 8
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
    flow = np.bincount(links, np.repeat(trips, np.diff(start)), minlength=model.paths.links)
    cost = _path_sums(start, links, network.capacity_cost)
    return float(trips @ (network.revenue[pair] - cost)), flow


def answer(model: TransitModel, price: Array) -> dict[str, Array]:
    """The passengers' answer to the design that some prices make, as a warm start: paths, their flows, prices."""
    own = _own(model, price)
    pair, start, links, trips = _routes(model, own)
    return {
        "path_pair": pair,
        "path_start": start,
        "path_links": links,
        "path_flow": trips,
        "price": own,
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


def climb(
    model: TransitModel,
    price: Array,
    stages: tuple[Stage, ...],
    report: Callable[[float, Array], None] | None = None,
) -> tuple[float, Array]:
    """Climb from some prices through stages; the best profit on the way and its prices.

    Parameters
    ----------
    model : TransitModel
        Without limits on the capacities.
    price : array, (links,)
        Nonnegative.
    stages : tuple of Stage
    report : callable, optional
        Called with profit and prices after every step.
    """
    best = (loading(model, price)[0], price)
    for here in way(model, price, stages):
        profit = loading(model, here)[0]
        if report is not None:
            report(profit, here)
        if profit > best[0]:
            best = (profit, here)
    return best


def way(model: TransitModel, price: Array, stages: tuple[Stage, ...]) -> Iterator[Array]:
    """Prices after every step of a climb."""
    smooth = _Smooth(model)
    for stage in stages:
        here = price
        for here in smooth.steps(price, stage):
            yield here
        price = here


class _Point(NamedTuple):
    """Psi / gamma, smoothed, at some prices: value, then flow, logit and load of the two D."""

    value: float
    flow: Array
    margin: Array
    load: Array
    costly_flow: Array
    costly_margin: Array
    costly_load: Array


class _Smooth:
    """Smoothed Psi on the paths generated so far."""

    def __init__(self, model: TransitModel) -> None:
        self.model, self.network, self.paths = model, model.network, model.paths
        trips = self.network.trips
        self.typical = float(np.sum(trips**2) / np.sum(trips))
        self.known: PathList | None = None
        self.damping = DAMPING[0]

    def steps(self, price: Array, stage: Stage) -> Iterator[Array]:
        """Yield the prices after each Newton step."""
        links = self.paths.links
        capacity = None
        for _ in range(stage.steps):
            self._generate(price, stage.gamma)
            if capacity is None:
                capacity = loading(self.model, price)[1] + SPARE * self.typical
            self._weigh(capacity, stage)
            price = np.maximum(price, LEAST)
            here = self._evaluate(price)
            barrier = self.row_weight / price
            gradient = here.load - here.costly_load - SPARE * self.typical + barrier
            rows = np.arange(links)
            convex = self._curvature(rows, here.flow, here.margin)
            np.einsum("ii->i", convex)[:] += barrier / price
            concave = self._curvature(rows, here.costly_flow, here.costly_margin)
            least, most = DAMPING
            while True:
                factor, failed = dpotrf(convex - (1.0 - self.damping) * concave, lower=1)
                if not failed or self.damping >= most:
                    break
                self.damping = min(2.0 * self.damping, most)
            if failed:
                return
            change = dpotrs(factor, gradient, lower=1)[0]
            decrement = float(gradient @ change)
            length, halved = min(1.0, 0.95 * _to_boundary(price, change)), 0
            there = self._evaluate(price + length * change)
            while not there.value <= here.value - 1e-4 * length * decrement and halved < HALVINGS:
                length, halved = 0.4 * length, halved + 1
                there = self._evaluate(price + length * change)
            if not np.isfinite(there.value):
                return
            if halved:
                self.damping = min(2.0 * self.damping, most)
            elif length > 0.5:
                self.damping = max(0.5 * self.damping, least)
            price = price + length * change
            capacity = there.costly_load + SPARE * self.typical
            self._prune(there)
            yield price
            size = 1.0 + stage.gamma * abs(there.value)
            if stage.gamma * decrement <= stage.settled * size:
                return

    def _generate(self, price: Array, gamma: float) -> None:
        """Add every pair's shortest path at both kinds of costs."""
        network = self.network
        cost = network.travel_time + price
        for extra in (0.0, network.capacity_cost / gamma):
            _, pair, start, links = self.paths.shortest_paths(cost + extra)
            new = _subset(pair, start, links, network.trips[pair] > 0)
            if self.known is None:
                self.known = new
                continue
            old = self.known
            added = _subset(*new, ~_known_paths(*new, *old, self.paths._key))
            if len(added[0]):
                together = np.concatenate([old[0], added[0]])
                starts = np.concatenate([old[1], old[1][-1] + added[1][1:]])
                *known, _ = _grouped(together, starts, np.concatenate([old[2], added[2]]))
                self.known = (known[0], known[1], known[2])

    def _weigh(self, capacity: Array, stage: Stage) -> None:
        """Barrier weights, as in the passengers' problem: between equal ones and ones in proportion."""
        assert self.known is not None
        network = self.network
        path_pair, path_start, path_links = self.known
        self.pair, first = np.unique(path_pair, return_index=True)
        self.pair_start = np.append(first, len(path_pair)).astype(np.int64)
        self.trips = network.trips[self.pair]
        narrowest = _path_minima(path_start, path_links, capacity)
        size = np.minimum(narrowest, network.trips[path_pair])
        self.weight = stage.gauge * np.sqrt(self.typical * size)
        self.row_weight = stage.gauge * np.sqrt(self.typical * capacity)
        self.utility = network.alternative_time[self.pair]
        self.richer = self.utility + network.revenue[self.pair] / stage.gamma
        self.extra = network.capacity_cost / stage.gamma
        self.below = np.ones(len(self.pair)), np.ones(len(self.pair))

    def _evaluate(self, price: Array) -> _Point:
        assert self.known is not None
        _, path_start, path_links = self.known
        cost = self.network.travel_time + price

        def dual(cost: Array, utility: Array, below: Array) -> Any:
            return _barrier(
                self.pair_start,
                path_start,
                path_links,
                cost,
                utility,
                self.trips,
                self.weight,
                below,
            )

        flow, margin, load, value = dual(cost, self.utility, self.below[0])
        costly = dual(cost + self.extra, self.richer, self.below[1])
        value = (costly[3] - self.trips @ self.richer) - (value - self.trips @ self.utility)
        value += SPARE * self.typical * np.sum(price) - self.row_weight @ np.log(price)
        return _Point(float(value), flow, margin, load, *costly[:3])

    def _curvature(self, rows: Array, flow: Array, margin: Array) -> Array:
        assert self.known is not None
        elasticity = self.trips * expit(margin) * expit(-margin)
        matrix: Array = _assemble(
            self.pair_start,
            self.known[1],
            self.known[2],
            rows,
            flow**2 / self.weight,
            elasticity,
            len(rows),
        )
        return matrix

    def _prune(self, point: _Point) -> None:
        """Drop paths that hardly anyone takes, where there are many."""
        assert self.known is not None
        if len(self.known[0]) <= PRUNED * len(self.trips):
            return
        flow = point.flow + point.costly_flow
        carried = np.repeat(np.add.reduceat(flow, self.pair_start[:-1]), np.diff(self.pair_start))
        self.known = _subset(*self.known, flow > KEPT * carried)


def perturbed(price: Array, random: np.random.Generator, closes: bool) -> Array:
    """Change a part of the prices; close some links by a high price, where asked."""
    links = len(price)
    chosen = random.random(links) < PART
    moved = np.where(chosen, np.maximum(price + SIZE * random.standard_normal(links), LEAST), price)
    if closes:
        moved = moved + np.where(random.random(links) < CLOSED, CLOSING, 0.0)
    return moved
