"""Path-based solver of the passengers' problem: shares and routes under link capacities.

For link capacities ``a`` and utilities ``u`` (the time of the alternative mode) the passengers solve

    minimise    sum_l d_l x_l + sum_i w_i [s_i (log s_i - 1) + (1 - s_i)(log(1 - s_i) - 1) + u_i (1 - s_i)]
    subject to  x_l <= a_l,  x the link flows of path flows q >= 0 that carry w_i s_i trips of each pair i.

With link prices ``p >= 0`` on the capacities and ``pi_i(p)`` the shortest path length under ``d + p``, the dual is

    maximise    D(p) = sum_i w_i [u_i - 1 - log(1 + exp(u_i - pi_i(p)))] - sum_l p_l a_l.

The solver is one primal-dual interior-point method on generated paths (columns) and nearly full links (rows).
Its Newton system decomposes by pair: a pair's paths are eliminated in closed form (a diagonal plus rank one), which
leaves one symmetric positive definite system in the prices of the nearly full links. Between a few Newton
iterations, one all-pairs shortest path under the current prices both certifies the answer (it evaluates ``D``
exactly) and generates paths. Central prices make good generating prices, and the path set of a nearby problem is a
good start. Everything is flat arrays, so that 10^5 pairs are no problem.

Links of zero capacity carry nothing. Their price is the one the certificate needs: the largest gain that a pair
would have from the first unit of capacity there (see :func:`PathNetwork.closed_prices`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.special import expit, xlogy

from blocc.errors import InvalidInputError, LowerNotSolvedError

Array = np.ndarray[Any, Any]

# A pair without an open route has share zero and, as the entropy is infinitely steep there, an infinite price. It is
# cut off at utility + CUTOFF, where the share would be 1e-13: far below what any tolerance here can see.
CUTOFF = 30.0
CLOSED = 1e-14  # capacity below this fraction of the largest trips counts as zero
NEARLY_FULL = 0.3  # load at which a link's capacity enters the Newton system
LIFT = 0.1
BOUNDARY = 0.995  # fraction of the way to the boundary that an interior-point step may go


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
        return _walk_paths(
            pair,
            self.origin,
            self.destination,
            self.origin_row,
            trees[1],
            self._slot_start,
            self._slot_head,
            trees[2],
        )

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
            return _largest_gain(
                forward,
                backward,
                self.tail[where],
                head_row,
                cost[where],
                self.origin_row[wanting],
                self.destination[wanting],
                potential[wanting],
            )

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
        return _Solve(self, capacity, utility, tol, warm, max_iterations).run()


class _Solve:
    """One solve: the restricted problem on generated paths, and the loop that extends it."""

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
        self.cost = np.where(self.closed, np.inf, network.travel_time)
        self.price = np.zeros(network.links)
        if warm is not None:
            usable = ~self.closed & np.isfinite(capacity)
            self.price[usable] = np.maximum(warm["price"], 0.0)[usable]
        self.trees = network._trees(self.cost + self.price, network.origins)
        self.distance = self.trees[0][network.origin_row, network.destination]
        self.live = (network.trips > 0) & np.isfinite(self.distance)
        self._start(warm)

    def _start(self, warm: Mapping[str, Array] | None) -> None:
        """Paths to start from: the warm ones that are open, and for every other pair its shortest."""
        network = self.network
        share = expit(self.utility - self.distance)
        pair = np.flatnonzero(self.live)
        start, links = network._walk(self.trees, pair)
        flow = (network.trips * share)[pair]
        if warm is not None:
            old = (
                np.asarray(warm["path_pair"]),
                np.asarray(warm["path_start"]),
                np.asarray(warm["path_links"]),
            )
            blocked = np.bincount(
                np.repeat(np.arange(len(old[0])), np.diff(old[1])), self.closed[old[2]], len(old[0])
            )
            keep = (blocked == 0) & self.live[old[0]]
            kept = _subset(*old, keep)
            lacking = np.ones(network.pairs, dtype=bool)
            lacking[kept[0]] = False
            chosen = lacking[pair]
            added = _subset(pair, start, links, chosen)
            flow = np.concatenate([np.asarray(warm["path_flow"])[keep], flow[chosen]])
            pair = np.concatenate([kept[0], added[0]])
            start = np.concatenate([kept[1], kept[1][-1] + added[1][1:]])
            links = np.concatenate([kept[2], added[2]])
            carried = np.bincount(pair, flow, network.pairs)  # utilities may have fallen since
            flow = flow * np.minimum(1.0, network.trips / np.maximum(carried, 1e-300))[pair]
        self.path_pair, self.path_start, self.path_links, permutation = _grouped(pair, start, links)
        self.flow = np.maximum(flow[permutation], 1e-12 * network.trips[self.path_pair])
        self.reduced_cost = np.zeros(len(self.flow))
        self.potential = np.where(self.live, self.distance, 0.0)
        self.row_of_link = np.full(network.links, -1, dtype=np.int64)
        self.rows = np.zeros(0, dtype=np.int64)
        self.slack = np.zeros(0)

    def run(self) -> Response:
        answer = self._certify()
        if answer is not None:
            return answer
        self._enter_interior()
        while self.iterations < self.max_iterations:
            self._newton(0.1 * self.gap_size)
            answer = self._certify()
            if answer is not None:
                return answer
            self._extend()
        raise LowerNotSolvedError(
            f"the passengers' problem stopped at relative gap {self.gap:.1e} > {self.tol:.1e} after "
            f"{self.iterations} Newton iterations"
        )

    # -- certificate ---------------------------------------------------------------------------------------------

    def _certify(self) -> Response | None:
        """Gap of the current prices against the current flows shrunk into the capacities; the answer if small."""
        network, trips, utility = self.network, self.network.trips, self.utility
        self.trees = network._trees(self.cost + self.price, network.origins)
        self.distance = self.trees[0][network.origin_row, network.destination]
        reached = np.where(np.isfinite(self.distance), self.distance, utility + CUTOFF)
        finite = self.price > 0
        dual = trips @ (utility - 1 - np.logaddexp(0.0, utility - reached))
        dual = float(dual - self.price[finite] @ self.capacity[finite])
        flow, link_flow, carried = _shrunk(
            self.path_pair, self.path_start, self.path_links, self.flow, self.capacity, trips
        )
        # A pair without trips shows the share that it would have.
        share = np.where(
            trips > 0,
            carried / np.where(trips > 0, trips, 1.0),
            np.where(np.isfinite(self.distance), expit(utility - reached), 0.0),
        )
        primal = network.objective(link_flow, share, utility)
        self.gap_size = primal - dual
        self.gap = self.gap_size / (1.0 + abs(primal))
        if self.gap > self.tol:
            return None
        return self._answer(flow, link_flow, share, reached, primal, dual)

    def _answer(
        self,
        flow: Array,
        link_flow: Array,
        share: Array,
        potential: Array,
        primal: float,
        dual: float,
    ) -> Response:
        """Response with prices on the closed links, and without the interior's traces on unused paths."""
        network, utility = self.network, self.utility
        carried = np.bincount(self.path_pair, flow, network.pairs)
        used = flow > 1e-7 * carried[self.path_pair]
        if not np.all(used):
            clean, clean_links, clean_carried = _shrunk(
                self.path_pair,
                self.path_start,
                self.path_links,
                flow * used,
                self.capacity,
                network.trips,
            )
            clean_share = np.where(
                network.trips > 0,
                clean_carried / np.where(network.trips > 0, network.trips, 1.0),
                share,
            )
            value = network.objective(clean_links, clean_share, utility)
            if value - dual <= self.tol * (1.0 + abs(value)):
                flow, link_flow, share, primal = clean, clean_links, clean_share, value
        cost = network.travel_time + self.price
        price = self.price + network.closed_prices(cost, self.closed, potential)
        return Response(
            self.path_pair,
            self.path_start,
            self.path_links,
            flow,
            link_flow,
            share,
            price,
            potential,
            primal,
            dual,
            max((primal - dual) / (1.0 + abs(primal)), 0.0),
            self.iterations,
        )

    # -- the restricted problem ----------------------------------------------------------------------------------

    def _enter_interior(self) -> None:
        """Move the start off the boundary, to the accuracy that it has."""
        self.flow = _shrunk(
            self.path_pair,
            self.path_start,
            self.path_links,
            self.flow,
            0.9 * self.capacity,
            0.999 * self.network.trips,
        )[0]
        self.flow = np.maximum(self.flow, 1e-14 * self.network.trips[self.path_pair])
        self._add_rows()
        self.centre = LIFT * self.gap_size / max(len(self.flow) + len(self.rows), 1)
        cost = self._path_cost()
        best = np.full(self.network.pairs, np.inf)
        np.minimum.at(best, self.path_pair, cost)
        self.potential = np.where(np.isfinite(best), best, self.potential)
        above = cost - self.potential[self.path_pair]
        self.flow = np.maximum(self.flow, self.centre / np.maximum(above, 1.0))
        self.reduced_cost = np.maximum(above, self.centre / self.flow)
        self.price[self.rows] = np.maximum(self.price[self.rows], self.centre / self.slack)
        self._reduce()

    def _path_cost(self) -> Array:
        return _path_sums(self.path_start, self.path_links, self.network.travel_time + self.price)

    def _lift(self) -> None:
        """Bring complementary pairs whose product is far below the present accuracy back towards the centre."""
        self.centre = LIFT * self.gap_size / max(len(self.flow) + len(self.rows), 1)
        trips = self.network.trips[self.path_pair]
        few = self.flow < self.reduced_cost * trips
        self.flow = np.where(
            few, np.maximum(self.flow, self.centre / np.maximum(self.reduced_cost, 1e-3)), self.flow
        )
        self.reduced_cost = np.maximum(self.reduced_cost, self.centre / self.flow)
        price, capacity = self.price[self.rows], self.capacity[self.rows]
        full = self.slack < price * capacity
        self.slack = np.where(
            full, np.maximum(self.slack, self.centre / np.maximum(price, 1e-3)), self.slack
        )
        self.price[self.rows] = np.maximum(price, self.centre / self.slack)

    def _add_rows(self) -> None:
        """Let the capacity of every nearly full link into the Newton system."""
        load = np.bincount(
            self.path_links,
            np.repeat(self.flow, np.diff(self.path_start)),
            minlength=self.network.links,
        )
        entering = (self.row_of_link < 0) & (
            (load > NEARLY_FULL * self.capacity) & (self.capacity > 0) | (self.price > 0)
        )
        new = np.flatnonzero(entering & np.isfinite(self.capacity))
        self.row_of_link[new] = len(self.rows) + np.arange(len(new))
        self.rows = np.concatenate([self.rows, new])
        self.slack = np.concatenate(
            [self.slack, np.maximum(self.capacity[new] - load[new], 0.1 * self.capacity[new])]
        )

    def _reduce(self) -> None:
        """Restrict the path lists to the rows of the Newton system and to the pairs that travel."""
        row = self.row_of_link[self.path_links]
        count = np.bincount(
            np.repeat(np.arange(len(self.flow)), np.diff(self.path_start)), row >= 0, len(self.flow)
        )
        self.row_start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        self.path_row = row[row >= 0]
        self.pair, first = np.unique(self.path_pair, return_index=True)
        self.pair_start = np.append(first, len(self.path_pair)).astype(np.int64)
        self.base = _path_sums(self.path_start, self.path_links, self.network.travel_time)

    def _newton(self, target: float) -> None:
        """Interior-point iterations on the restricted problem until its gap is about ``target``."""
        state = _State(
            self.pair_start,
            self.row_start,
            self.path_row,
            self.base,
            self.network.trips[self.pair],
            self.utility[self.pair],
            self.capacity[self.rows],
            self.flow,
            self.reduced_cost,
            self.potential[self.pair],
            self.price[self.rows],
            self.slack,
        )
        for iteration in range(50):
            size = state.residual()
            if (iteration > 0 and size <= target) or self.iterations >= self.max_iterations:
                break
            state.step()
            self.iterations += 1
        self.flow, self.reduced_cost, self.slack = state.flow, state.reduced_cost, state.slack
        self.potential[self.pair] = state.potential
        self.price[self.rows] = state.price
        self.centre = state.centre

    def _extend(self) -> None:
        """Add the shortest paths that the restricted problem lacks, and links that have become nearly full."""
        network = self.network
        cost = self._path_cost()
        best = np.full(network.pairs, np.inf)
        np.minimum.at(best, self.path_pair, cost)
        shorter = self.live & (self.distance < best - 1e-12 * (1.0 + np.abs(best)))
        pair = np.flatnonzero(shorter)
        if len(pair):
            start, links = network._walk(self.trees, pair)
            # Rounding can make a known path look new.
            known = _known_paths(
                pair, start, links, self.path_pair, self.path_start, self.path_links, network._key
            )
            pair, start, links = _subset(pair, start, links, ~known)
        if len(pair):
            gain = (best - self.distance)[pair]
            above = np.maximum(gain, 1e-3 * self.centre / network.trips[pair])
            flow = np.minimum(self.centre / above, 0.1 * network.trips[pair])
            all_pairs = np.concatenate([self.path_pair, pair])
            all_start = np.concatenate([self.path_start, self.path_start[-1] + start[1:]])
            all_links = np.concatenate([self.path_links, links])
            self.path_pair, self.path_start, self.path_links, order = _grouped(
                all_pairs, all_start, all_links
            )
            self.flow = np.concatenate([self.flow, flow])[order]
            self.reduced_cost = np.concatenate([self.reduced_cost, self.centre / flow])[order]
        rows = len(self.rows)
        self._add_rows()
        if len(self.rows) > rows:
            new = self.rows[rows:]
            self.price[new] = np.maximum(self.price[new], self.centre / self.slack[rows:])
        if len(pair) or len(self.rows) > rows:
            self._lift()
            self._reduce()


class _State:
    """Interior-point iterate of the restricted problem.

    Unknowns: path flows q with reduced costs z, link slacks t with prices p, potentials pi of the pairs. Equations:
    ``d + p(path) - pi - z = 0``, ``log Q = log(w sigmoid(u - pi))`` with Q a pair's total flow, ``x(q) + t = a``,
    ``q z = centre``, ``p t = centre``. The share equation is taken in logarithms because it is then nearly linear
    for small shares, and for shares near one it pins Q without any division by 1 - s.
    """

    def __init__(
        self,
        pair_start: Array,
        row_start: Array,
        path_row: Array,
        base: Array,
        trips: Array,
        utility: Array,
        capacity: Array,
        flow: Array,
        reduced_cost: Array,
        potential: Array,
        price: Array,
        slack: Array,
    ) -> None:
        self.structure = (pair_start, row_start, path_row)
        self.base, self.trips, self.utility, self.capacity = base, trips, utility, capacity
        self.flow, self.reduced_cost, self.potential = flow, reduced_cost, potential
        self.price, self.slack = price, slack
        self.centre = 0.0
        self.size_limit = 0.0

    def residual(self) -> float:
        """Evaluate the equations; return the size of what is left, in units of the objective."""
        self.dual_residual, self.share_residual, self.primal_residual, size = _residuals(
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
        self.centre = product / max(len(self.flow) + len(self.price), 1)
        self.size = size
        return max(product, size)

    def _direction(
        self, path_right: Array, row_right: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Newton direction for given right-hand sides of the two complementarity equations."""
        right = path_right / self.flow - self.dual_residual
        row = -self.primal_residual - row_right / self.price
        eliminated, _ = _pair_solve(
            *self.structure,
            self.weight,
            self.total,
            self.elastic,
            self.share_residual,
            right,
            self.no_price,
        )
        price = np.zeros(0)
        if len(self.price):
            load = _row_sums(self.structure[1], self.structure[2], eliminated, len(self.price))
            price = dpotrs(self.factor, load - row, lower=1)[0]
        flow, potential = _pair_solve(
            *self.structure,
            self.weight,
            self.total,
            self.elastic,
            self.share_residual,
            right,
            price,
        )
        reduced_cost = (path_right - self.reduced_cost * flow) / self.flow
        slack = (row_right - self.slack * price) / self.price
        return flow, reduced_cost, potential, price, slack

    def _length(self, direction: tuple[Array, Array, Array, Array, Array]) -> float:
        flow, reduced_cost, _, price, slack = direction
        return min(
            1.0,
            BOUNDARY
            * min(
                _to_boundary(self.flow, flow),
                _to_boundary(self.reduced_cost, reduced_cost),
                _to_boundary(self.price, price),
                _to_boundary(self.slack, slack),
            ),
        )

    def step(self) -> None:
        """One predictor-corrector step (Mehrotra 1992)."""
        self.weight = self.flow / self.reduced_cost
        self.no_price = np.zeros(len(self.price))
        self.total = np.add.reduceat(self.flow, self.structure[0][:-1])
        self.elastic = expit(self.potential - self.utility)
        if len(self.price):
            matrix = _assemble(
                *self.structure, self.weight, self.total, self.elastic, self.slack / self.price
            )
            self.factor, failed = dpotrf(matrix, lower=1, overwrite_a=1)
            if failed:
                diagonal = np.einsum("ii->i", matrix)
                matrix = _assemble(
                    *self.structure, self.weight, self.total, self.elastic, self.slack / self.price
                )
                diagonal = np.einsum("ii->i", matrix)
                diagonal *= 1 + 1e-10
                self.factor, failed = dpotrf(matrix, lower=1, overwrite_a=1)
                if failed:
                    raise LowerNotSolvedError(
                        "the passengers' problem: the Newton system is singular"
                    )
        path_now, row_now = self.flow * self.reduced_cost, self.price * self.slack
        predictor = self._direction(-path_now, -row_now)
        length = self._length(predictor)
        flow, reduced_cost, _, price, slack = predictor
        after = (self.flow + length * flow) @ (self.reduced_cost + length * reduced_cost)
        after += (self.price + length * price) @ (self.slack + length * slack)
        count = max(len(self.flow) + len(self.price), 1)
        # Centre no faster than the equations come to hold, or the boundary blocks every step.
        target = self.centre * min(1.0, (after / count / self.centre)) ** 3
        target = max(target, 0.1 * min(self.size, self.size_limit) / count)
        direction = self._direction(
            target - path_now - flow * reduced_cost, target - row_now - price * slack
        )
        length = self._length(direction)
        self.flow = self.flow + length * direction[0]
        self.reduced_cost = self.reduced_cost + length * direction[1]
        self.potential = self.potential + length * direction[2]
        self.price = self.price + length * direction[3]
        self.slack = self.slack + length * direction[4]


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


@njit(cache=True)
def _path_codes(start, links, key):  # type: ignore[no-untyped-def]
    codes = np.zeros(len(start) - 1, np.int64)
    for path in range(len(codes)):
        for position in range(start[path], start[path + 1]):
            codes[path] += key[links[position]]
    return codes


@njit(cache=True)
def _path_sums(start, links, cost):  # type: ignore[no-untyped-def]
    sums = np.zeros(len(start) - 1)
    for path in range(len(sums)):
        for position in range(start[path], start[path + 1]):
            sums[path] += cost[links[position]]
    return sums


@njit(cache=True)
def _row_sums(start, rows, value, number):  # type: ignore[no-untyped-def]
    sums = np.zeros(number)
    for path in range(len(start) - 1):
        for position in range(start[path], start[path + 1]):
            sums[rows[position]] += value[path]
    return sums


@njit(cache=True)
def _walk_paths(
    pair, origin, destination, origin_row, predecessor, slot_start, slot_head, slot_link
):  # type: ignore[no-untyped-def]
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
def _residuals(  # type: ignore[no-untyped-def]
    pair_start,
    row_start,
    path_row,
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
    dual = np.empty(len(flow))
    share = np.empty(len(trips))
    primal = slack - capacity
    size = 0.0
    for pair in range(len(trips)):
        total = 0.0
        for path in range(pair_start[pair], pair_start[pair + 1]):
            total += flow[path]
            cost = base[path] - potential[pair] - reduced_cost[path]
            for position in range(row_start[path], row_start[path + 1]):
                cost += price[path_row[position]]
                primal[path_row[position]] += flow[path]
            dual[path] = cost
            size += abs(cost) * flow[path]
        # log(w sigmoid(u - pi)) - log Q, without overflow
        difference = utility[pair] - potential[pair]
        logarithm = min(difference, 0.0) - np.log1p(np.exp(-abs(difference)))
        share[pair] = logarithm + np.log(trips[pair] / total)
        size += abs(share[pair]) * total
    for row in range(len(price)):
        size += price[row] * abs(primal[row])
    return dual, share, primal, size


@njit(cache=True)
def _assemble(pair_start, row_start, path_row, weight, total, elastic, diagonal):  # type: ignore[no-untyped-def]
    """Schur complement of the path flows, lower triangle, in the prices of the rows.

    A pair adds ``k b b' + sum_path W (b_path - b)(b_path - b)'``, b the W-weighted mean of its paths' incidence:
    sums of squares only, so nothing cancels however large W = q / z becomes.
    """
    number = len(diagonal)
    matrix = np.zeros((number, number)).T  # column order, for LAPACK
    for row in range(number):
        matrix[row, row] = diagonal[row]
    local = np.full(number, -1)
    union = np.empty(number, np.int64)
    for pair in range(len(total)):
        first, last = pair_start[pair], pair_start[pair + 1]
        if row_start[last] == row_start[first]:
            continue
        whole = 0.0
        for path in range(first, last):
            whole += weight[path]
        factor = whole * elastic[pair] / (elastic[pair] + whole / total[pair])
        if last - first == 1:
            for one in range(row_start[first], row_start[last]):
                for other in range(row_start[first], row_start[last]):
                    if path_row[one] >= path_row[other]:
                        matrix[path_row[one], path_row[other]] += factor
            continue
        size = 0
        for position in range(row_start[first], row_start[last]):
            row = path_row[position]
            if local[row] < 0:
                local[row] = size
                union[size] = row
                size += 1
        mean = np.zeros(size)
        for path in range(first, last):
            for position in range(row_start[path], row_start[path + 1]):
                mean[local[path_row[position]]] += weight[path] / whole
        block = np.empty((size, size))
        for one in range(size):
            for other in range(size):
                block[one, other] = factor * mean[one] * mean[other]
        offset = np.empty(size)
        for path in range(first, last):
            for one in range(size):
                offset[one] = -mean[one]
            for position in range(row_start[path], row_start[path + 1]):
                offset[local[path_row[position]]] += 1.0
            for one in range(size):
                scaled = weight[path] * offset[one]
                for other in range(size):
                    block[one, other] += scaled * offset[other]
        for one in range(size):
            for other in range(size):
                if union[one] >= union[other]:
                    matrix[union[one], union[other]] += block[one, other]
        for one in range(size):
            local[union[one]] = -1
    return matrix


@njit(cache=True)
def _pair_solve(  # type: ignore[no-untyped-def]
    pair_start, row_start, path_row, weight, total, elastic, share_residual, right, price
):
    """Eliminate path flows and potentials, given right-hand sides of the paths and a change of prices."""
    flow = np.empty(len(right))
    potential = np.empty(len(total))
    for pair in range(len(total)):
        whole, mean = 0.0, 0.0
        for path in range(pair_start[pair], pair_start[pair + 1]):
            value = right[path]
            for position in range(row_start[path], row_start[path + 1]):
                value -= price[path_row[position]]
            flow[path] = value
            whole += weight[path]
            mean += weight[path] * value
        mean /= whole
        change = (share_residual[pair] - whole * mean / total[pair]) / (
            elastic[pair] + whole / total[pair]
        )
        # mean + change, the pair's common term, without the cancellation that large weights bring
        common = (elastic[pair] * mean + share_residual[pair]) / (
            elastic[pair] + whole / total[pair]
        )
        potential[pair] = change
        for path in range(pair_start[pair], pair_start[pair + 1]):
            flow[path] = weight[path] * ((flow[path] - mean) + common)
    return flow, potential


@njit(cache=True)
def _to_boundary(value, change):  # type: ignore[no-untyped-def]
    length = np.inf
    for index in range(len(value)):
        if change[index] < 0:
            length = min(length, -value[index] / change[index])
    return length
