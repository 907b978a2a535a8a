"""Path-based solver of the passengers' problem: shares and routes under link capacities.

For link capacities ``a`` and utilities ``u`` (the time of the alternative mode) the passengers solve

    minimise    sum_l d_l x_l + sum_i w_i [s_i (log s_i - 1) + (1 - s_i)(log(1 - s_i) - 1) + u_i (1 - s_i)]
    subject to  x_l <= a_l,  x the link flows of path flows q >= 0 that carry w_i s_i trips of each pair i.

With link prices ``p >= 0`` on the capacities and ``pi_i(p)`` the shortest path length under ``d + p``, the dual is

    maximise    D(p) = sum_i w_i [u_i - 1 - log(1 + exp(u_i - pi_i(p)))] - sum_l p_l a_l.

The method is interior-point with generated paths (columns) and nearly full links (rows), in two phases.

1. Barrier method on the dual. ``-gauge log`` of every path flow and of every link's slack makes the dual a smooth
   concave function of the prices alone: each pair's path flows follow in closed form from one scalar root. Newton
   with a line search maximises it from any start, at one large gauge. All-pairs shortest paths at its central prices
   evaluate D, the certificate, and generate paths, which enter without any disturbance.
2. Primal-dual predictor-corrector steps (Mehrotra 1992) with centrality correctors (Gondzio 1996) from there to the
   end. Each time the residuals have fallen, the certificate is evaluated again; paths that are shorter than the known
   ones join with little flow, and the steps go on. Where they get stuck, phase 1 follows at a smaller gauge.

Both phases eliminate each pair's paths (a diagonal plus rank one), which leaves one symmetric positive definite
system in the prices of the nearly full links. The path set and prices of a nearby problem are a good start.
Everything is flat arrays.

Links of zero capacity carry nothing. Their price is the one the certificate needs: the largest gain that a pair
would have from the first unit of capacity there (see :func:`PathNetwork.closed_prices`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.special import expit, xlogy

from blocc.applications.transport.compiled import compiled
from blocc.errors import InvalidInputError, LowerNotSolvedError

Array = np.ndarray[Any, Any]

# A pair without an open route has share zero and, as the entropy is infinitely steep there, an infinite price. It is
# cut off at utility + CUTOFF, where the share would be 1e-13: no tolerance can be smaller where nothing is open.
CUTOFF = 30.0
NEGLIGIBLE = 1e-9  # part of a pair's weight that a path's must reach to count in their mean
CLOSED = 1e-13  # capacity below this fraction of the largest trips counts as zero
TRACE = 1e-7  # part of a pair's trips below which a path flow may be an interior point's trace
# Load from which a link's capacity enters the Newton system, of few links and of more than MANY: every row helps
# the steps, but a factorisation costs the cube of their number.
NEARLY_FULL, NEARLY_FULL_OF_MANY, MANY = 0.3, 0.9, 300
COLD, WARM = 0.1, 1e-3  # first gauge, in units of the prices to expect
# Times that one barrier phase generates paths at most: far from the solution its prices want ever more, on large
# networks hundreds of thousands.
ROUNDS = 2
CENTRED = 0.3  # Newton decrement, in units of the barrier's own size, at which a stage ends
BALANCED = 2.0  # part of its capacity by which a link may then still miss its equation
LOOK = 0.1  # factor by which the primal-dual residuals fall between two certificates
# Primal-dual steps without such a reduction after which the next barrier phase comes.
PATIENCE, PROGRESS = 6, 0.7
SHRINK = 0.2  # its gauge, in units of the last barrier phase's
FRUITLESS = (
    4  # barrier phases in a row that do not halve the gap, after which rounding allows no more
)
SHORT = 0.1  # length below which a step centres instead of reducing the gauge
SATURATED = 1e-9  # part of a pair's trips up to which those who stay away are too few to be counted
ENTRY = 0.01  # part of a pair's trips that a path generated on the way may start with
CORRECTORS, SPREAD = (
    3,
    10.0,
)  # centrality corrections of a step; how far products may be from its target
FLOOR = 0.01  # how far the gauge may run ahead of the residuals in primal-dual steps
BOUNDARY = 0.995  # part of the way to the boundary that a step may go


@dataclass(frozen=True, eq=False)
class Response:
    """The passengers' certified answer.

    Attributes
    ----------
    path_pair : array of int, (paths,)
        The pair each path serves, ascending.
    path_start : array of int, (paths + 1,)
        Where each path's links start in ``path_links``.
    path_links : array of int
        Links of all paths, one path after the other.
    path_flow : array, (paths,)
        Trips on each path; the link flows they make respect the capacities.
    link_flow : array, (links,)
        Trips on each link.
    share : array, (pairs,)
        Share of each pair's trips; where a pair has no trips, the share it would have at these prices.
    price : array, (links,)
        Multipliers of the capacities, nonnegative.
    potential : array, (pairs,)
        Cost of the cheapest route at these prices; utility + 30 for a pair without an open route.
    primal, dual : float
        Objective of the flows and shares; dual function at the prices.
    gap : float
        ``(primal - dual) / (1 + |primal|)``.
    iterations : int
        Newton iterations.
    """

    path_pair: Array
    path_start: Array
    path_links: Array
    path_flow: Array
    link_flow: Array
    share: Array
    price: Array
    potential: Array
    primal: float
    dual: float
    gap: float
    iterations: int

    @property
    def warm(self) -> dict[str, Array]:
        """Start for the same network at nearby capacities or utilities: used paths, their flows, prices."""
        used = self.path_flow > 1e-9 * np.max(self.path_flow, initial=0.0)
        pair, start, links = _subset(self.path_pair, self.path_start, self.path_links, used)
        return {
            "path_pair": pair,
            "path_start": start,
            "path_links": links,
            "path_flow": self.path_flow[used],
            "price": self.price,
        }


class PathNetwork:
    """A network with trips between pairs of its nodes, prepared for fast shortest paths.

    Parameters
    ----------
    nodes : int
        Number of nodes; nodes are 0 .. nodes - 1.
    tail, head : array of int, (links,)
        Ends of each link. Parallel links are fine.
    travel_time : array, (links,)
        Nonnegative travel times d.
    origin, destination : array of int, (pairs,)
        Ends of each pair. A pair may start where it ends (it then uses no link).
    trips : array, (pairs,)
        Nonnegative trips w.
    """

    def __init__(
        self,
        nodes: int,
        tail: Array,
        head: Array,
        travel_time: Array,
        origin: Array,
        destination: Array,
        trips: Array,
    ) -> None:
        self.nodes = int(nodes)
        self.tail, self.head, self.origin, self.destination = (
            np.ascontiguousarray(part, dtype=np.int64) for part in (tail, head, origin, destination)
        )
        self.travel_time, self.trips = (
            np.ascontiguousarray(part, dtype=np.float64) for part in (travel_time, trips)
        )
        for name, part in (("travel_time", self.travel_time), ("trips", self.trips)):
            if not np.all((part >= 0) & np.isfinite(part)):
                raise InvalidInputError(f"{name} must be finite and nonnegative")
        self.links, self.pairs = len(self.tail), len(self.origin)
        self.origins, self.origin_row = np.unique(self.origin, return_inverse=True)
        # One slot per connected (tail, head): csgraph cannot hold parallel links, so a slot is their cheapest.
        self._order = np.lexsort((self.head, self.tail))
        tails, heads = self.tail[self._order], self.head[self._order]
        first = np.ones(self.links, dtype=bool)
        first[1:] = (tails[1:] != tails[:-1]) | (heads[1:] != heads[:-1])
        self._slot = np.flatnonzero(first)
        self._slot_of_link = np.cumsum(first) - 1
        self._slot_head = heads[self._slot].astype(np.int32)
        self._slot_start = np.searchsorted(tails[self._slot], np.arange(self.nodes + 1)).astype(
            np.int32
        )
        # Two paths of one pair are the same if their links' keys have the same sum (modulo 2^64).
        self._key = np.random.default_rng(0).integers(0, 2**63 - 1, self.links, dtype=np.int64)

    def _trees(self, cost: Array, sources: Array) -> tuple[Array, Array, Array]:
        """Shortest path trees from ``sources``: distances, predecessors, and the cheapest link of each slot."""
        if self.links == 0:
            distance = np.where(sources[:, None] == np.arange(self.nodes), 0.0, np.inf)
            return distance, np.full(distance.shape, -9999, dtype=np.int32), self._slot
        ordered = cost[self._order]
        if len(self._slot) == self.links:
            weight, link = ordered, self._order
        else:
            weight = np.minimum.reduceat(ordered, self._slot)
            by_cost = np.lexsort((ordered, self._slot_of_link))
            link = self._order[by_cost[self._slot]]
        # Explicit zeros are edges for csgraph, infinite weights are none: both as they should be.
        graph = csr_array(
            (weight, self._slot_head, self._slot_start), shape=(self.nodes, self.nodes), copy=False
        )
        distance, predecessor = dijkstra(graph, indices=sources, return_predecessors=True)
        return distance, predecessor, link

    def distances(self, cost: Array) -> Array:
        """Length of each pair's shortest path under link costs (``inf``: closed), ``inf`` where there is none."""
        distance = self._trees(np.asarray(cost, dtype=np.float64), self.origins)[0]
        return distance[self.origin_row, self.destination]

    def shortest_paths(self, cost: Array) -> tuple[Array, Array, Array, Array]:
        """Shortest path of each pair under link costs.

        Returns
        -------
        distance : array, (pairs,)
        path_pair, path_start, path_links : arrays of int
            One path for each pair that has a route, as in :class:`Response`.
        """
        trees = self._trees(np.asarray(cost, dtype=np.float64), self.origins)
        distance = trees[0][self.origin_row, self.destination]
        pair = np.flatnonzero(np.isfinite(distance))
        start, links = self._walk(trees, pair)
        return distance, pair, start, links

    def _walk(self, trees: tuple[Array, Array, Array], pair: Array) -> tuple[Array, Array]:
        """Paths of some pairs, from shortest path trees."""
        start, links = _walk_paths(
            pair,
            self.origin,
            self.destination,
            self.origin_row,
            trees[1],
            self._slot_start,
            self._slot_head,
            trees[2],
        )
        return start, links

    def origin_flows(
        self, path_pair: Array, path_start: Array, path_links: Array, flow: Array
    ) -> Array:
        """Link flows by origin, (origins, links), of path flows."""
        lengths = np.diff(path_start)
        cell = np.repeat(self.origin_row[path_pair] * self.links, lengths) + path_links
        total = np.bincount(
            cell, np.repeat(flow, lengths), minlength=len(self.origins) * self.links
        )
        return total.reshape(len(self.origins), self.links)

    def imbalance(self, flows: Array, carried: Array) -> float:
        """Largest relative violation of flow conservation, by origin and node.

        Parameters
        ----------
        flows : array, (origins, links)
            Link flows by origin.
        carried : array, (pairs,)
            Trips that each pair makes.
        """
        incidence = csr_array(
            (
                np.repeat([1.0, -1.0], self.links),
                (np.concatenate([self.head, self.tail]), np.tile(np.arange(self.links), 2)),
            ),
            shape=(self.nodes, self.links),
        )
        arriving = incidence @ flows.T
        wanted = np.zeros_like(arriving)
        np.add.at(wanted, (self.destination, self.origin_row), carried)
        np.add.at(wanted, (self.origin, self.origin_row), -carried)
        return float(np.max(np.abs(arriving - wanted) / (1.0 + np.abs(wanted)), initial=0.0))

    def objective(self, link_flow: Array, share: Array, utility: Array) -> float:
        """Objective of link flows and shares."""
        entropy = xlogy(share, share) + xlogy(1 - share, 1 - share) - 1
        return float(self.travel_time @ link_flow + self.trips @ (entropy + utility * (1 - share)))

    def dual_value(self, price: Array, capacity: Array, utility: Array) -> float:
        """Dual function at nonnegative link prices: a lower bound on the optimal value, for any prices."""
        distance = self.distances(self.travel_time + price)
        priced = price > 0  # an unlimited link has price zero, and 0 * inf is no number
        value = self.trips @ (utility - 1 - np.logaddexp(0.0, utility - distance))
        return float(value - price[priced] @ capacity[priced])

    def closed_prices(self, cost: Array, closed: Array, potential: Array) -> Array:
        """Prices of closed links, as small as the certificate allows.

        A closed link alone is worth ``max_i [pi_i - distance(origin, tail) - d - distance(head, destination)]_+``
        over the open links: the slope of the optimal value when it opens. Where several closed links in a row
        make a shortcut, each gets an equal part of what the shortcut would gain.

        Parameters
        ----------
        cost : array, (links,)
            Travel time plus price, of closed links the travel time alone.
        closed : array of bool, (links,)
        potential : array, (pairs,)
            Cost at which each pair travels now.

        Returns
        -------
        price : array, (links,)
            Zero on open links.
        """
        price = np.zeros(self.links)
        where = np.flatnonzero(closed)
        wanting = np.flatnonzero((self.trips > 0) & (self.origin != self.destination))
        if len(where) == 0 or len(wanting) == 0:
            return price
        tolerance = 1e-13 * (1.0 + np.abs(potential))

        def alone(open_cost: Array) -> Array:
            heads, head_row = np.unique(self.head[where], return_inverse=True)
            forward = self._trees(open_cost, self.origins)[0]
            backward = self._trees(open_cost, heads)[0]
            gain: Array = _largest_gain(
                forward,
                backward,
                self.tail[where],
                head_row,
                cost[where],
                self.origin_row[wanting],
                self.destination[wanting],
                potential[wanting],
            )
            return gain

        price[where] = alone(np.where(closed, np.inf, cost))
        enough: Array | None = None
        for attempt in range(40):
            trees = self._trees(cost + price, self.origins)
            distance = trees[0][self.origin_row, self.destination]
            short = wanting[(distance < potential - tolerance)[wanting]]
            if len(short) == 0:
                break
            start, links = self._walk(trees, short)
            lacking = (potential - distance)[short]
            passes = closed[links].astype(np.float64)
            number = np.add.reduceat(passes, start[:-1])
            part = np.repeat(lacking / np.maximum(number, 1.0), np.diff(start))
            raised = np.zeros(self.links)
            np.maximum.at(raised, links, np.where(passes > 0, part, 0.0))
            if attempt < 20:
                price += raised
            else:  # shares that do not settle: what suffices on its own, links in front taken as free
                if enough is None:
                    enough = np.zeros(self.links)
                    enough[where] = alone(cost) + 1e-12
                price = np.where(raised > 0, np.maximum(price + raised, enough), price)
        return price

    def respond(
        self,
        capacity: Array,
        utility: Array,
        *,
        tol: float = 1e-6,
        warm: Mapping[str, Array] | None = None,
        max_iterations: int = 400,
    ) -> Response:
        """Solve the passengers' problem to a certified relative duality gap.

        Parameters
        ----------
        capacity : array, (links,)
            Nonnegative, possibly exactly zero (the link is closed) or infinite.
        utility : array, (pairs,)
            Utility of travelling (cost of the alternative) u.
        tol : float, default 1e-6
            Relative duality gap to reach.
        warm : mapping, optional
            ``Response.warm`` of a nearby problem on the same network.
        max_iterations : int, default 400
            Newton iterations after which to give up.

        Raises
        ------
        LowerNotSolvedError
            If the gap was not reached.
        """
        capacity = np.asarray(capacity, dtype=np.float64)
        utility = np.asarray(utility, dtype=np.float64)
        if capacity.shape != (self.links,) or not np.all(capacity >= 0):
            raise InvalidInputError(f"capacity must be {self.links} nonnegative numbers")
        if utility.shape != (self.pairs,) or not np.all(np.isfinite(utility)):
            raise InvalidInputError(f"utility must be {self.pairs} finite numbers")
        if warm is not None:
            try:
                return _Solve(self, capacity, utility, tol, warm, max_iterations // 4).run()
            except LowerNotSolvedError:
                pass  # a start can be too near a boundary that has moved
        return _Solve(self, capacity, utility, tol, None, max_iterations).run()


class _Solve:
    """One solve: the loop over gauges, certificates and path generation."""

    def __init__(
        self,
        network: PathNetwork,
        capacity: Array,
        utility: Array,
        tol: float,
        warm: Mapping[str, Array] | None,
        max_iterations: int,
    ) -> None:
        self.network, self.utility, self.tol = network, utility, tol
        self.max_iterations, self.iterations = max_iterations, 0
        self.closed = capacity <= CLOSED * np.max(network.trips, initial=0.0)
        self.capacity = np.where(self.closed, 0.0, capacity)
        self.limited = ~self.closed & np.isfinite(capacity)
        many = np.count_nonzero(self.limited) > MANY
        self.nearly_full = NEARLY_FULL_OF_MANY if many else NEARLY_FULL
        self.typical = float(np.sum(network.trips**2) / max(np.sum(network.trips), 1e-300))
        self.row_room = np.ones(network.links)
        self.row_room[self.limited] = self._weight(capacity[self.limited])
        self.cost = np.where(self.closed, np.inf, network.travel_time)
        self.price = np.zeros(network.links)
        if warm is not None:
            self.price[self.limited] = np.maximum(warm["price"], 0.0)[self.limited]
        self.warm = warm
        self.rows = np.zeros(0, dtype=np.int64)
        self.row_of_link = np.full(network.links, -1, dtype=np.int64)
        self._shortest()
        self.live = (network.trips > 0) & np.isfinite(self.distance)
        if not np.any(self.live):  # nobody travels: no price of an open link is worth keeping
            self.price[:] = 0.0
        self._start(warm)

    def _shortest(self) -> None:
        self.trees = self.network._trees(self.cost + self.price, self.network.origins)
        self.distance = self.trees[0][self.network.origin_row, self.network.destination]

    def _start(self, warm: Mapping[str, Array] | None) -> None:
        """Paths to start from: the warm ones that are open, and for every other pair its shortest."""
        network = self.network
        pair = np.flatnonzero(self.live)
        start, links = network._walk(self.trees, pair)
        part = expit(self.utility - self.distance)[pair]
        if warm is not None:
            old = (warm["path_pair"], warm["path_start"], warm["path_links"])
            blocked = np.bincount(
                np.repeat(np.arange(len(old[0])), np.diff(old[1])),
                self.closed[old[2]],
                len(old[0]),
            )
            keep = (blocked == 0) & self.live[old[0]]
            kept = _subset(*old, keep)
            lacking = np.ones(network.pairs, dtype=bool)
            lacking[kept[0]] = False
            chosen = lacking[pair]
            added = _subset(pair, start, links, chosen)
            flow = warm["path_flow"][keep]
            part = np.concatenate([flow / network.trips[kept[0]], part[chosen]])
            pair = np.concatenate([kept[0], added[0]])
            start = np.concatenate([kept[1], kept[1][-1] + added[1][1:]])
            links = np.concatenate([kept[2], added[2]])
        self.path_pair, self.path_start, self.path_links, order = _grouped(pair, start, links)
        self.part = part[order]  # of the pair's trips, on each path
        self._index()

    def run(self) -> Response:
        self.flow = self.part * self.network.trips[self.path_pair]
        answer = self._certify()
        if answer is not None:
            return answer
        if not np.any(self.live):
            raise LowerNotSolvedError(
                f"no pair with trips has an open route, and the relative gap of that answer, {self.gap:.1e}, cannot "
                f"be brought to {self.tol:.1e}"
            )
        # Prices are of the size of what travelling is worth to the passengers, logits at least.
        worth = np.maximum(self.utility - self.distance, 0.0)[self.live]
        scale = 1.0 + float(np.average(worth, weights=self.network.trips[self.live]))
        self.gauge = (COLD if self.warm is None else WARM) * scale
        if self.warm is None:
            # A central point's gap is about its gauge times the weights: no farther away than the start already is.
            weights = float(np.sum(self.room) + np.sum(self.row_room[self.limited]))
            self.gauge = min(self.gauge, self.gap_size / weights)
        self._first_prices()
        rounds, least, fruitless = 0, np.inf, 0
        while self.iterations < self.max_iterations and fruitless < FRUITLESS:
            self._centre()
            answer = self._certify()
            rounds += 1
            if answer is None and (rounds > ROUNDS or self._extend() is None):
                answer, rounds = self._follow(), 0
                fruitless = 0 if self.gap < 0.5 * least else fruitless + 1
                least = min(least, self.gap)
            if answer is not None:
                return answer
        raise LowerNotSolvedError(
            f"the passengers' problem stopped at relative gap {self.gap:.1e} > {self.tol:.1e} after "
            f"{self.iterations} Newton iterations"
        )

    # -- certificate ---------------------------------------------------------------------------------------------

    def _certify(self) -> Response | None:
        """Gap of the current prices against the current flows shrunk into the capacities; the answer if small."""
        network, trips, utility = self.network, self.network.trips, self.utility
        self._shortest()
        reached = np.where(np.isfinite(self.distance), self.distance, utility + CUTOFF)
        dual = trips @ (utility - 1 - np.logaddexp(0.0, utility - reached))
        dual = float(dual - self.price[self.limited] @ self.capacity[self.limited])
        # A pair without trips shows the share that it would have.
        idle_share = np.where(np.isfinite(self.distance), expit(utility - reached), 0.0)

        def feasible(flow: Array) -> tuple[Array, Array, Array, float]:
            flow, link_flow, carried = _shrunk(
                self.path_pair, self.path_start, self.path_links, flow, self.capacity, trips
            )
            share = np.divide(carried, trips, out=idle_share.copy(), where=trips > 0)
            return flow, link_flow, share, network.objective(link_flow, share, utility)

        flow, link_flow, share, primal = feasible(self.flow)
        self.gap_size = primal - dual
        self.gap = self.gap_size / (1.0 + abs(primal))
        if not self.gap <= self.tol:
            return None
        # An interior point leaves traces on every path: drop them where the accuracy allows.
        clean = feasible(np.where(flow > TRACE * trips[self.path_pair], flow, 0.0))
        if clean[3] - dual <= self.tol * (1.0 + abs(clean[3])):
            flow, link_flow, share, primal = clean
            self.gap = (primal - dual) / (1.0 + abs(primal))
        price = self.price + network.closed_prices(
            network.travel_time + self.price, self.closed, reached
        )
        return Response(
            self.path_pair,
            self.path_start,
            self.path_links,
            flow,
            link_flow,
            share,
            price,
            reached,
            primal,
            dual,
            max(self.gap, 0.0),
            self.iterations,
        )

    # -- the problem on the generated paths ----------------------------------------------------------------------

    def _extend(self) -> Array | None:
        """Add the shortest paths that are shorter than the known ones, if that matters at this accuracy.

        Returns
        -------
        order : array of int, (paths,), or None
            Where each path of the new list was in the old one, with the added ones behind it.
        """
        network = self.network
        cost = _path_sums(self.path_start, self.path_links, network.travel_time + self.price)
        best = np.full(network.pairs, -np.inf)
        best[self.pair] = np.minimum.reduceat(cost, self.pair_start[:-1]) if len(cost) else best[:0]
        pair = np.flatnonzero(self.distance < best - 1e-13 * (1.0 + np.abs(best)))
        if not len(pair):
            return None
        start, links = network._walk(self.trees, pair)
        # Rounding can make a known path look shorter than itself.
        known = _known_paths(
            pair, start, links, self.path_pair, self.path_start, self.path_links, network._key
        )
        pair, start, links = _subset(pair, start, links, ~known)
        if network.trips[pair] @ (best - self.distance)[pair] <= 0.01 * self.gap_size:
            return None
        self.path_pair, self.path_start, self.path_links, order = _grouped(
            np.concatenate([self.path_pair, pair]),
            np.concatenate([self.path_start, self.path_start[-1] + start[1:]]),
            np.concatenate([self.path_links, links]),
        )
        self.flow = np.concatenate([self.flow, np.zeros(len(pair))])[order]
        self._index()
        return order

    def _index(self) -> None:
        """What follows from the list of paths."""
        network = self.network
        self.pair, first = np.unique(self.path_pair, return_index=True)
        self.pair_start = np.append(first, len(self.path_pair)).astype(np.int64)
        self.trips, self.worth = network.trips[self.pair], self.utility[self.pair]
        narrowest = _path_minima(self.path_start, self.path_links, self.capacity)
        self.room = self._weight(np.minimum(narrowest, network.trips[self.path_pair]))
        self.below = np.full(len(self.pair), 1.0)

    def _weight(self, size: Array) -> Array:
        """Barrier weight of a flow or slack of some size.

        Weights in proportion would suit each by itself, but among weights that differ by orders of magnitude the
        central path turns sharply, and steps along it are short: between equal ones and those, the middle.
        """
        weight: Array = np.sqrt(self.typical * size)
        return weight

    def _weight_sum(self) -> float:
        return float(np.sum(self.room) + np.sum(self.row_room[self.rows]))

    def _first_prices(self) -> None:
        load = np.bincount(
            self.path_links,
            np.repeat(self.flow, np.diff(self.path_start)),
            minlength=self.network.links,
        )
        self._add_rows(load)
        rows = self.rows
        ratio = np.log(np.maximum(load[rows] / self.capacity[rows], 1.0))
        if self.warm is None:
            self.price[rows] = 0.5 * ratio
        self.price[rows] += self.gauge / np.maximum(1.0 - load[rows] / self.capacity[rows], 0.1)

    def _add_rows(self, load: Array) -> bool:
        """Price the links that have become nearly full; whether there are new ones."""
        full = self.limited & ((load > self.nearly_full * self.capacity) | (self.price > 0))
        full[self.rows] = False
        new = np.flatnonzero(full)
        self.rows = np.concatenate([self.rows, new])
        self.row_of_link[new] = len(self.rows) - len(new) + np.arange(len(new))
        self.price[new] = np.maximum(
            self.price[new], self.gauge * self.row_room[new] / self.capacity[new]
        )
        return len(new) > 0

    def _evaluate(self, price: Array) -> _Point:
        """Barrier function of the dual at some prices."""
        flow, margin, load, value = _barrier(
            self.pair_start,
            self.path_start,
            self.path_links,
            self.network.travel_time + price,
            self.worth,
            self.trips,
            self.gauge * self.room,
            self.below,
        )
        capacity, priced = self.capacity[self.rows], price[self.rows]
        value += float(self.gauge * (self.row_room[self.rows] @ np.log(priced)) - capacity @ priced)
        return _Point(price, flow, margin, load, value)

    def _matrix(self, point: _Point, weight: Array, diagonal: Array) -> Array:
        matrix = _assemble(
            self.pair_start,
            self.path_start,
            self.path_links,
            self.row_of_link,
            weight,
            self.trips * expit(point.margin) * expit(-point.margin),
            len(self.rows),
        )
        return _factor(matrix, diagonal)

    def _centre(self) -> None:
        """Maximise the barrier function of the dual over the prices by damped Newton steps."""
        now = self._evaluate(self.price)
        if self._add_rows(now.load):
            now = self._evaluate(self.price)
        enough = CENTRED * self.gauge * self._weight_sum()
        while self.iterations < self.max_iterations:
            self.iterations += 1
            rows = self.rows
            capacity, price = self.capacity[rows], now.price[rows]
            barrier = self.gauge * self.row_room[rows] / price
            gradient = now.load[rows] - capacity + barrier
            factor = self._matrix(now, now.flow**2 / (self.gauge * self.room), barrier / price)
            change = dpotrs(factor, gradient, lower=0)[0] if len(rows) else gradient
            decrement = float(gradient @ change)
            length = min(1.0, 0.95 * _to_boundary(price, change))
            there = now
            while length > 1e-6:
                trial = now.price.copy()
                trial[rows] += length * change
                there = self._evaluate(trial)
                if there.value >= now.value + 0.1 * length * decrement - 1e-13 * (
                    1 + abs(now.value)
                ):
                    break
                length *= 0.4
            now = there
            self.price = now.price
            # Small links hardly show in the decrement, but a later step would run against them.
            settled = decrement <= 1e-8 * enough or np.all(np.abs(gradient) <= BALANCED * capacity)
            if decrement <= enough and settled:
                if not self._add_rows(now.load):
                    break
                now = self._evaluate(self.price)
        self.now, self.price, self.flow = now, now.price, now.flow

    def _follow(self) -> Response | None:
        """Primal-dual steps from a central point, generating paths on the way; None where they got stuck."""
        rows, now = self.rows, self.now
        state = _State(
            (self.pair_start, self.path_start, self.path_links, self.row_of_link),
            _path_sums(self.path_start, self.path_links, self.network.travel_time),
            self.trips,
            self.worth,
            self.capacity[rows],
            self.row_room[rows],
            self.room,
            now.flow,
            self.gauge * self.room / now.flow,
            self.worth - now.margin,
            now.price[rows],
            self.gauge * self.row_room[rows] / now.price[rows],
        )
        checked = best = state.residual()
        stuck = 0
        while stuck < PATIENCE and self.iterations < self.max_iterations:
            self.iterations += 1
            state.step()
            size = state.residual()
            stuck = 0 if size < PROGRESS * best else stuck + 1
            best = min(best, size)
            if size > LOOK * checked and stuck < PATIENCE:
                continue
            checked = size
            self.flow = state.flow
            self.price = self.price.copy()
            self.price[self.rows] = state.price
            answer = self._certify()
            if answer is not None:
                return answer
            if self._grow(state):
                checked = best = state.residual()
                stuck = 0
        # The next barrier phase starts from the last central prices: what it gains is sure.
        self.gauge *= SHRINK
        since = self.rows[len(rows) :]  # priced since then: zero would be outside the barrier
        self.price = now.price.copy()
        self.price[since] = self.gauge * self.row_room[since] / self.capacity[since]
        return None

    def _grow(self, state: _State) -> bool:
        """Add paths and nearly full links to a primal-dual iterate; whether there were any."""
        load = np.bincount(
            self.path_links,
            np.repeat(self.flow, np.diff(self.path_start)),
            minlength=self.network.links,
        )
        before = len(self.rows)
        more = self._add_rows(load)
        if more:
            new = self.rows[before:]
            slack = np.maximum(self.capacity[new] - load[new], 0.1 * self.capacity[new])
            self.price[new] = state.gauge * self.row_room[new] / slack
            state.add_rows(
                self.capacity[new],
                self.row_room[new],
                self.price[new],
                slack,
                _path_sums(
                    self.path_start, self.path_links, np.where(self._is(new), self.price, 0.0)
                ),
            )
        order = self._extend()
        if order is not None:
            base = _path_sums(self.path_start, self.path_links, self.network.travel_time)
            state.add_paths(
                (self.pair_start, self.path_start, self.path_links, self.row_of_link),
                base,
                _path_sums(self.path_start, self.path_links, self.price) + base,
                self.room,
                order,
            )
        return more or order is not None

    def _is(self, links: Array) -> Array:
        mark = np.zeros(self.network.links, dtype=bool)
        mark[links] = True
        return mark


class _Point(NamedTuple):
    """The barrier function at some prices: path flows, logits of the shares, link loads, value."""

    price: Array
    flow: Array
    margin: Array
    load: Array
    value: float


@dataclass(eq=False)
class _State:
    """Primal-dual iterate on the generated paths.

    Unknowns: path flows q with reduced costs z, link slacks t with prices p, potentials pi of the pairs. Equations:
    ``d + p(path) - pi - z = 0``, ``Q = w sigmoid(u - pi)`` with Q a pair's total flow (as logarithms, see
    :func:`_residuals`), ``x(q) + t = a``, ``q z = gauge * room``, ``p t = gauge * row_room``.
    """

    structure: tuple[Array, Array, Array, Array]  # paths of pairs, links of paths, row of each link
    base: Array  # travel time of each path
    trips: Array
    utility: Array
    capacity: Array  # of the rows
    row_room: Array
    room: Array  # of the paths: the scale of their flows
    flow: Array
    reduced_cost: Array
    potential: Array
    price: Array
    slack: Array

    def __post_init__(self) -> None:
        self.weights = float(np.sum(self.room) + np.sum(self.row_room))

    def residual(self) -> float:
        """Evaluate the equations; return the size of what is left, in units of the objective."""
        (
            self.dual_residual,
            self.share_residual,
            self.primal_residual,
            self.scale,
            self.elastic,
            size,
        ) = _residuals(
            *self.structure,
            self.base,
            self.trips,
            self.utility,
            self.capacity,
            self.flow,
            self.reduced_cost,
            self.potential,
            self.price,
            self.slack,
        )
        product = float(self.flow @ self.reduced_cost + self.price @ self.slack)
        self.gauge, self.size = product / self.weights, size
        return max(product, float(size))

    def _direction(self, path_right: Array, row_right: Array) -> _Direction:
        """Newton direction for given right-hand sides of the two complementarity equations."""
        right = path_right / self.flow - self.dual_residual
        row = -self.primal_residual - row_right / self.price
        number = len(self.price)
        system = (*self.structure, self.weight, self.elastic, self.scale)
        price = np.zeros(number)
        flow, potential = _pair_solve(*system, self.share_residual, right, price)
        nothing = (np.zeros(len(self.trips)), np.zeros(len(right)))
        first = 0.0
        for _ in range(2 if number else 0):  # the second time refines what rounding left
            load = _row_sums(*self.structure[1:], flow, number)
            lacking = load - self.slack / self.price * price - row
            error = float(np.max(np.abs(lacking)))
            if error <= 1e-10 * first:
                break
            first = first or error
            more = dpotrs(self.factor, lacking, lower=0)[0]
            more_flow, more_potential = _pair_solve(*system, *nothing, more)
            price, flow, potential = price + more, flow + more_flow, potential + more_potential
        reduced_cost = (path_right - self.reduced_cost * flow) / self.flow
        slack = (row_right - self.slack * price) / self.price
        return _Direction(flow, reduced_cost, potential, price, slack)

    def _length(self, direction: _Direction) -> float:
        """How far to go: all the way, or almost to the boundary."""
        limits = (
            _to_boundary(self.flow, direction.flow),
            _to_boundary(self.reduced_cost, direction.reduced_cost),
            _to_boundary(self.price, direction.price),
            _to_boundary(self.slack, direction.slack),
        )
        return min(1.0, BOUNDARY * float(min(limits)))

    def add_rows(
        self, capacity: Array, row_room: Array, price: Array, slack: Array, toll: Array
    ) -> None:
        """Append rows; ``toll`` is what their prices add to the cost of each path."""
        self.capacity = np.concatenate([self.capacity, capacity])
        self.row_room = np.concatenate([self.row_room, row_room])
        self.price = np.concatenate([self.price, price])
        self.slack = np.concatenate([self.slack, slack])
        self.reduced_cost = self.reduced_cost + toll
        self.weights = float(np.sum(self.room) + np.sum(self.row_room))

    def add_paths(
        self,
        structure: tuple[Array, Array, Array, Array],
        base: Array,
        cost: Array,
        room: Array,
        order: Array,
    ) -> None:
        """Insert paths with little flow; they may be shorter than the potentials, the steps then mend that."""
        old = len(self.flow)
        new = order >= old
        total = np.add.reduceat(self.flow, self.structure[0][:-1])
        count = np.diff(structure[0])
        total, potential = np.repeat(total, count), np.repeat(self.potential, count)
        flow = np.zeros(len(order))
        reduced_cost = np.ones(len(order))
        flow[~new] = self.flow[order[~new]]
        reduced_cost[~new] = self.reduced_cost[order[~new]]
        least = self.gauge * room / (ENTRY * total)
        reduced_cost[new] = np.maximum(np.abs(cost - potential), least)[new]
        flow[new] = (self.gauge * room / reduced_cost)[new]
        self.structure, self.base, self.room = structure, base, room
        self.flow, self.reduced_cost = flow, reduced_cost
        self.weights = float(np.sum(self.room) + np.sum(self.row_room))

    def step(self) -> None:
        """One predictor-corrector step, its length raised by centrality correctors (Gondzio 1996)."""
        self.weight = self.flow / self.reduced_cost
        matrix = _assemble(*self.structure, self.weight, self.scale * self.elastic, len(self.price))
        self.factor = _factor(matrix, self.slack / self.price)
        path_now, row_now = self.flow * self.reduced_cost, self.price * self.slack
        guess = self._direction(-path_now, -row_now)
        first = self._length(guess)
        path_then, row_then = self._products(guess, first)
        after = max(float(np.sum(path_then) + np.sum(row_then)), 0.0) / self.weights
        target = self.gauge * min(1.0, after / self.gauge) ** 3
        # No faster than the equations come to hold, or the boundary blocks every step.
        target = max(target, min(FLOOR * self.size / self.weights, self.gauge))
        path_target, row_target = target * self.room, target * self.row_room
        second = (guess.flow * guess.reduced_cost, guess.price * guess.slack)
        path_right = path_target - path_now - second[0]
        row_right = row_target - row_now - second[1]
        direction = self._direction(path_right, row_right)
        length = self._length(direction)
        if length < SHORT:
            # The second-order term is that of a full step, which the guess was far from: centre instead.
            part = first**2
            path_target, row_target = self.gauge * self.room, self.gauge * self.row_room
            path_safe = path_target - path_now - part * second[0]
            row_safe = row_target - row_now - part * second[1]
            safe = self._direction(path_safe, row_safe)
            if self._length(safe) > length:
                path_right, row_right = path_safe, row_safe
                direction, length = safe, self._length(safe)
        # A correction costs two solves: on small networks no less than the factorisation.
        for _ in range(min(CORRECTORS, len(self.price) // 100)):
            if length > 0.9:
                break
            # Where twice the step would take a product far from its target, aim it at the nearest tolerable value.
            path_then, row_then = self._products(direction, min(1.0, 2.0 * length))
            path_right = path_right + _back(path_then, path_target)
            row_right = row_right + _back(row_then, row_target)
            corrected = self._direction(path_right, row_right)
            longer = self._length(corrected)
            if longer < length + 0.01:
                break
            direction, length = corrected, longer
        self.flow = self.flow + length * direction.flow
        self.reduced_cost = self.reduced_cost + length * direction.reduced_cost
        self.potential = self.potential + length * direction.potential
        self.price = self.price + length * direction.price
        self.slack = self.slack + length * direction.slack

    def _products(self, direction: _Direction, length: float) -> tuple[Array, Array]:
        """Complementarity products after a step."""
        return (
            (self.flow + length * direction.flow)
            * (self.reduced_cost + length * direction.reduced_cost),
            (self.price + length * direction.price) * (self.slack + length * direction.slack),
        )


def _back(product: Array, target: Array) -> Array:
    """Change that takes a complementarity product to within a factor of its target."""
    change = np.clip(product, target / SPREAD, target * SPREAD) - product
    return np.maximum(change, -target * SPREAD)


class _Direction(NamedTuple):
    """A step in every unknown of :class:`_State`."""

    flow: Array
    reduced_cost: Array
    potential: Array
    price: Array
    slack: Array


def _factor(matrix: Array, diagonal: Array) -> Array:
    """Cholesky factor of a positive definite matrix, of which the lower triangle is given, plus a positive diagonal.

    The factor is upper triangular: LAPACK reads the transpose of the matrix where it lies.
    """
    own = np.einsum("ii->i", matrix)
    own += diagonal
    if not len(matrix):
        return matrix
    for _ in range(3):
        factor, failed = dpotrf(matrix.T, lower=0)
        if not failed:
            return np.asarray(factor)
        own *= 1.0 + 1e-10  # rounding took its last positive eigenvalue
    raise LowerNotSolvedError("the passengers' problem: the Newton system is singular")


# -- flat lists of paths ---------------------------------------------------------------------------------------------


def _subset(pair: Array, start: Array, links: Array, keep: Array) -> tuple[Array, Array, Array]:
    """Those paths of a list that ``keep`` marks."""
    lengths = np.diff(start)
    return (
        pair[keep],
        np.concatenate([[0], np.cumsum(lengths[keep])]).astype(np.int64),
        links[np.repeat(keep, lengths)],
    )


def _grouped(pair: Array, start: Array, links: Array) -> tuple[Array, Array, Array, Array]:
    """Order a list of paths by pair; also return the permutation."""
    order = np.argsort(pair, kind="stable")
    lengths = np.diff(start)[order]
    new_start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    position = np.arange(new_start[-1]) + np.repeat(start[:-1][order] - new_start[:-1], lengths)
    return pair[order], new_start, links[position], order


def _known_paths(
    pair: Array,
    start: Array,
    links: Array,
    old_pair: Array,
    old_start: Array,
    old_links: Array,
    key: Array,
) -> Array:
    """Mark the paths (one for each of ``pair``) that are in an old list."""
    code = _path_codes(start, links, key)
    old_code = _path_codes(old_start, old_links, key)
    position = np.full(max(pair.max(), old_pair.max()) + 1, -1, dtype=np.int64)
    position[pair] = np.arange(len(pair))
    candidate = position[old_pair]
    same = (candidate >= 0) & (code[np.maximum(candidate, 0)] == old_code)
    known = np.zeros(len(pair), dtype=bool)
    known[candidate[same]] = True
    return known


@compiled
def _path_codes(start, links, key):  # type: ignore[no-untyped-def]
    codes = np.zeros(len(start) - 1, np.int64)
    for path in range(len(codes)):
        for position in range(start[path], start[path + 1]):
            codes[path] += key[links[position]]
    return codes


@compiled
def _path_sums(start, links, cost):  # type: ignore[no-untyped-def]
    sums = np.zeros(len(start) - 1)
    for path in range(len(sums)):
        for position in range(start[path], start[path + 1]):
            sums[path] += cost[links[position]]
    return sums


@compiled
def _walk_paths(  # type: ignore[no-untyped-def]
    pair, origin, destination, origin_row, predecessor, slot_start, slot_head, slot_link
):
    start = np.zeros(len(pair) + 1, np.int64)
    for index in range(len(pair)):
        node, row, steps = destination[pair[index]], origin_row[pair[index]], 0
        while node != origin[pair[index]]:
            node = predecessor[row, node]
            steps += 1
        start[index + 1] = start[index] + steps
    links = np.empty(start[-1], np.int64)
    for index in range(len(pair)):
        node, row, position = destination[pair[index]], origin_row[pair[index]], start[index + 1]
        while node != origin[pair[index]]:
            before = predecessor[row, node]
            slot = slot_start[before]
            while slot_head[slot] != node:
                slot += 1
            position -= 1
            links[position] = slot_link[slot]
            node = before
    return start, links


@compiled
def _shrunk(pair, start, links, flow, capacity, trips):  # type: ignore[no-untyped-def]
    """Path flows scaled down into capacities and trips; their link flows; the trips carried by pair."""
    carried = np.zeros(len(trips))
    for path in range(len(flow)):
        carried[pair[path]] += flow[path]
    flow = flow.copy()
    for path in range(len(flow)):
        if carried[pair[path]] > trips[pair[path]]:
            flow[path] *= trips[pair[path]] / carried[pair[path]]
    load = np.zeros(len(capacity))
    for path in range(len(flow)):
        for position in range(start[path], start[path + 1]):
            load[links[position]] += flow[path]
    for path in range(len(flow)):
        factor = 1.0
        for position in range(start[path], start[path + 1]):
            link = links[position]
            if load[link] > capacity[link]:
                factor = min(factor, capacity[link] / load[link])
        flow[path] *= factor
    load[:] = 0.0
    carried[:] = 0.0
    for path in range(len(flow)):
        carried[pair[path]] += flow[path]
        for position in range(start[path], start[path + 1]):
            load[links[position]] += flow[path]
    for index in range(len(trips)):
        carried[index] = min(carried[index], trips[index])
    return flow, load, carried


@compiled
def _largest_gain(forward, backward, tail, head_row, cost, row, destination, potential):  # type: ignore[no-untyped-def]
    gain = np.zeros(len(tail))
    for link in range(len(tail)):
        for pair in range(len(row)):
            through = (
                forward[row[pair], tail[link]]
                + cost[link]
                + backward[head_row[link], destination[pair]]
            )
            gain[link] = max(gain[link], potential[pair] - through)
    return gain


# -- kernels of the interior-point method ----------------------------------------------------------------------------


@compiled
def _barrier(pair_start, path_start, path_links, cost, utility, trips, weight, below):  # type: ignore[no-untyped-def]
    """Minimise each pair's Lagrangian minus ``sum weight log flow`` over its path flows.

    At the minimiser ``flow = weight / (cost - pi)``, with pi the root of ``sum flow = w sigmoid(u - pi)``. The
    unknown is v = min cost - pi > 0 (``below``, updated in place); the equation, taken as logarithms of reciprocals,
    is concave and increasing in v.
    """
    flow = np.empty(len(weight))
    margin = np.empty(len(trips))
    load = np.zeros(len(cost))
    value = 0.0
    for pair in range(len(trips)):
        first, last = pair_start[pair], pair_start[pair + 1]
        shortest = np.inf
        for path in range(first, last):
            length = 0.0
            for position in range(path_start[path], path_start[path + 1]):
                length += cost[path_links[position]]
            flow[path] = length
            shortest = min(shortest, length)
        m = utility[pair] - shortest
        v = below[pair]
        for _ in range(100):
            total, slope = 0.0, 0.0
            for path in range(first, last):
                part = weight[path] / (flow[path] - shortest + v)
                total += part
                slope += part / (flow[path] - shortest + v)
            # L(v) = log(w sigmoid(m + v)) - log(total)
            small = np.exp(-abs(m + v))
            logarithm = min(m + v, 0.0) - np.log1p(small)
            rest = 1.0 / (1.0 + small) if m + v < 0 else small / (1.0 + small)
            equation = logarithm + np.log(trips[pair] / total)
            change = -equation / (rest + slope / total)
            if v + change <= 0.0:
                change = -0.7 * v
            v += change
            if abs(change) <= 1e-14 * v:
                break
        below[pair] = v
        margin[pair] = m + v
        travel = 0.0
        for path in range(first, last):
            length = flow[path]
            flow[path] = weight[path] / (length - shortest + v)
            travel += length * flow[path] - weight[path] * np.log(flow[path])
            for position in range(path_start[path], path_start[path + 1]):
                load[path_links[position]] += flow[path]
        m += v
        small = np.exp(-abs(m))
        share = 1.0 / (1.0 + small) if m > 0 else small / (1.0 + small)
        softplus = max(m, 0.0) + np.log1p(small)
        value += travel + trips[pair] * (share * m - softplus - 1.0 + utility[pair] * (1.0 - share))
    return flow, margin, load, value


@compiled
def _residuals(  # type: ignore[no-untyped-def]
    pair_start,
    path_start,
    path_links,
    index,
    base,
    trips,
    utility,
    capacity,
    flow,
    reduced_cost,
    potential,
    price,
    slack,
):
    """Residuals of the equations, and the linearisation ``dQ = scale (share - elastic dpi)`` of the shares'.

    The shares' equation is ``log Q = log(w sigmoid(u - pi))``, or for the larger half of the shares the same of those
    who stay away, ``log(w - Q) = log(w sigmoid(pi - u))``: near its end each is the one that is almost linear.
    """
    dual = np.empty(len(flow))
    share, scale, elastic = np.empty(len(trips)), np.empty(len(trips)), np.empty(len(trips))
    primal = slack - capacity
    size = 0.0
    for pair in range(len(trips)):
        total = 0.0
        for path in range(pair_start[pair], pair_start[pair + 1]):
            total += flow[path]
            cost = base[path] - potential[pair] - reduced_cost[path]
            for position in range(path_start[path], path_start[path + 1]):
                row = index[path_links[position]]
                if row >= 0:
                    cost += price[row]
                    primal[row] += flow[path]
            dual[path] = cost
            size += abs(cost) * flow[path]
        difference = utility[pair] - potential[pair]
        staying = trips[pair] - total
        if difference > 0.0 and staying > SATURATED * trips[pair]:
            small = np.exp(-difference)
            share[pair] = np.log(staying / trips[pair]) + difference + np.log1p(small)
            scale[pair], elastic[pair] = staying, 1.0 / (1.0 + small)
        else:
            small = np.exp(-abs(difference))
            share[pair] = min(difference, 0.0) - np.log1p(small) + np.log(trips[pair] / total)
            scale[pair] = total
            elastic[pair] = (small if difference > 0.0 else 1.0) / (1.0 + small)
        size += abs(share[pair]) * scale[pair]
    for row in range(len(price)):
        size += price[row] * abs(primal[row])
    return dual, share, primal, scale, elastic, size


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


@compiled
def _pair_solve(  # type: ignore[no-untyped-def]
    pair_start,
    path_start,
    path_links,
    index,
    weight,
    elastic,
    scale,
    share_residual,
    right,
    price,
):
    """Eliminate path flows and potentials, given right-hand sides of the paths and a change of prices."""
    flow = np.empty(len(right))
    potential = np.empty(len(scale))
    for pair in range(len(scale)):
        whole, mean = 0.0, 0.0
        for path in range(pair_start[pair], pair_start[pair + 1]):
            value = right[path]
            for position in range(path_start[path], path_start[path + 1]):
                row = index[path_links[position]]
                if row >= 0:
                    value -= price[row]
            flow[path] = value
            whole += weight[path]
            mean += weight[path] * value
        mean /= whole
        divisor = elastic[pair] + whole / scale[pair]
        potential[pair] = (share_residual[pair] - whole * mean / scale[pair]) / divisor
        # mean + change of potential, the pair's common term, without their cancellation
        common = (elastic[pair] * mean + share_residual[pair]) / divisor
        for path in range(pair_start[pair], pair_start[pair + 1]):
            flow[path] = weight[path] * ((flow[path] - mean) + common)
    return flow, potential


@compiled
def _to_boundary(value, change):  # type: ignore[no-untyped-def]
    length = np.inf
    for index in range(len(value)):
        if change[index] < 0:
            length = min(length, -value[index] / change[index])
    return length


@compiled
def _row_sums(start, links, index, value, number):  # type: ignore[no-untyped-def]
    sums = np.zeros(number)
    for path in range(len(start) - 1):
        for position in range(start[path], start[path + 1]):
            row = index[links[position]]
            if row >= 0:
                sums[row] += value[path]
    return sums


@compiled
def _path_minima(start, links, value):  # type: ignore[no-untyped-def]
    minima = np.full(len(start) - 1, np.inf)
    for path in range(len(minima)):
        for position in range(start[path], start[path + 1]):
            minima[path] = min(minima[path], value[links[position]])
    return minima


@compiled
def _assemble(pair_start, path_start, path_links, index, weight, elasticity, number):  # type: ignore[no-untyped-def]
    """Negative Hessian of the dual in the prices of the rows, path flows eliminated: its lower triangle.

    A pair adds ``k b b' + sum_path W (b_path - b)(b_path - b)'``, b the W-weighted mean of its paths' incidence and
    ``1 / k = 1 / elasticity + 1 / sum W``, elasticity w s (1 - s) on the central path: sums of squares only, so that
    nothing cancels however large W becomes.
    """
    matrix = np.zeros((number, number))
    local = np.full(number, -1)
    union = np.empty(number, np.int64)
    for pair in range(len(elasticity)):
        first, last = pair_start[pair], pair_start[pair + 1]
        whole = 0.0
        for path in range(first, last):
            whole += weight[path]
        factor = elasticity[pair] * whole / (elasticity[pair] + whole)
        if last - first == 1:
            for position in range(path_start[first], path_start[last]):
                one = index[path_links[position]]
                for before in range(path_start[first], position + 1):
                    other = index[path_links[before]]
                    if one >= 0 and other >= 0:
                        matrix[max(one, other), min(one, other)] += factor
            continue
        size = 0
        for position in range(path_start[first], path_start[last]):
            row = index[path_links[position]]
            if row >= 0 and local[row] < 0:
                local[row] = size
                union[size] = row
                size += 1
        mean = np.zeros(size)
        for path in range(first, last):
            for position in range(path_start[path], path_start[path + 1]):
                row = index[path_links[position]]
                if row >= 0:
                    mean[local[row]] += weight[path] / whole
        block = np.empty((size, size))
        for one in range(size):
            for other in range(one + 1):
                block[one, other] = factor * mean[one] * mean[other]
        offset = np.empty(size)
        for path in range(first, last):
            for one in range(size):
                offset[one] = -mean[one]
            for position in range(path_start[path], path_start[path + 1]):
                row = index[path_links[position]]
                if row >= 0:
                    offset[local[row]] += 1.0
            for one in range(size):
                scaled = weight[path] * offset[one]
                for other in range(one + 1):
                    block[one, other] += scaled * offset[other]
        for one in range(size):
            row = union[one]
            local[row] = -1
            for other in range(one + 1):
                matrix[max(row, union[other]), min(row, union[other])] += block[one, other]
    return matrix
