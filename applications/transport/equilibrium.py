"""User equilibrium: every traveller on a cheapest route, link costs growing with flow.

By Beckmann, McGuire and Winsten (1956) the link flows x of an equilibrium minimise the convex function

    B(x) = sum_l integral from 0 to x_l of t_l        over flows x of routes that carry all trips,

for increasing link costs ``t_l``; here ``t(x) = fixed + factor (x / capacity)^power``. For any link costs c the
dual function

    D(c) = sum_i trips_i pi_i(c) - sum_l max over x >= 0 of (c_l x - integral of t_l)

with ``pi_i(c)`` the shortest path is a lower bound on B. At ``c = t(x)`` the difference ``B(x) - D(c)`` is total cost
minus the cost that all trips would have on shortest paths: one all-pairs shortest path certifies an answer.

The method works on path flows (as Jayakrishnan et al. 1994, Xie, Nie and Liu 2018): shortest paths are generated,
and sweeps over the pairs shift flow from each path to the pair's cheapest one by a Newton step on the links in
which the two differ, link costs being kept up to date after every shift. Paths and their flows are a warm
start for nearby link costs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from scipy.sparse import csc_array, eye_array
from scipy.sparse.linalg import splu

from blocc.applications.transport import output
from blocc.applications.transport.compiled import compiled
from blocc.applications.transport.paths import (
    PathNetwork,
    _grouped,
    _known_paths,
    _path_sums,
    _subset,
)
from blocc.applications.transport.roads import RoadNetwork
from blocc.applications.transport.tables import numbers_of
from blocc.errors import InvalidInputError, LowerNotSolvedError, require, require_number
from blocc.methods.homotopy import OnFailure

Array = np.ndarray[Any, Any]

SWEEPS = 30  # over the paths at hand, at most, between two generations of paths
INNER = 0.1  # part of the gap to which sweeps bring the paths at hand
NEWTON_SIZE = 1500  # unknowns up to which Newton steps on all used paths at once pay
NEWTON_STEPS = 6
ROUNDING = 1e-15  # relative differences of path costs below this are noise


@dataclass(frozen=True, eq=False)
class LinkCosts:
    """Link costs ``fixed + factor (x / capacity)^power``.

    Attributes
    ----------
    fixed, factor : array, (links,), >= 0
    capacity : array, (links,), > 0
    power : array, (links,), 0 or >= 1
        Where it is 0, ``factor`` must be 0 too.
    """

    fixed: Array
    factor: Array
    capacity: Array
    power: Array

    @staticmethod
    def of(roads: RoadNetwork, capacity: Array | None = None) -> LinkCosts:
        """Link costs of a road network, at its own capacities or others."""
        return LinkCosts(
            roads.fixed_cost,
            roads.congestion_cost,
            roads.capacity if capacity is None else capacity,
            roads.power,
        )

    def cost(self, flow: Array) -> Array:
        """Cost of each link at its flow."""
        congested: Array = self.factor * (flow / self.capacity) ** self.power
        return self.fixed + congested

    def integral(self, flow: Array) -> Array:
        """Integral of each link's cost from 0 to its flow."""
        congested: Array = self.factor * (flow / self.capacity) ** self.power / (self.power + 1.0)
        return flow * (self.fixed + congested)

    def conjugate(self, cost: Array) -> Array:
        """``max over x >= 0 of (cost x - integral)`` for each link; inf where it is unbounded."""
        extra = np.maximum(cost - self.fixed, 0.0)
        growing = (self.factor > 0) & (self.power > 0)
        safe = np.where(growing, self.factor, 1.0)
        power = np.where(growing, self.power, 1.0)
        flow = self.capacity * (extra / safe) ** (1.0 / power)
        limit = np.where(extra > 0, np.inf, 0.0)
        value: Array = np.where(growing, flow * extra * power / (power + 1.0), limit)
        return value


@dataclass(frozen=True, eq=False)
class Flows:
    """Path and link flows that solve an assignment problem, certified.

    Attributes
    ----------
    path_pair, path_start, path_links, path_flow : arrays
        Paths in the flat form of :class:`blocc.applications.transport.paths.Response`.
    flow, cost : array, (links,)
        Trips and cost of each link.
    path_cost : array, (pairs,)
        Cost of each pair's cheapest path; inf for a pair without a route.
    objective, bound : float
        Beckmann's objective B(x), and the dual function at the link costs: a proven lower bound on its minimum.
    total_cost : float
        Link costs times flows.
    gap : float
        ``(objective - bound) / (1 + |objective|)``.
    iterations : int
        Sweeps over all pairs.
    """

    path_pair: Array
    path_start: Array
    path_links: Array
    path_flow: Array
    flow: Array
    cost: Array
    path_cost: Array
    objective: float
    bound: float
    total_cost: float
    gap: float
    iterations: int

    @property
    def relative_gap(self) -> float:
        """``1 - shortest-path cost of all trips / total cost``, the field's measure."""
        return (self.objective - self.bound) / self.total_cost if self.total_cost > 0 else 0.0

    @property
    def warm(self) -> dict[str, Array]:
        """Start for the same trips at nearby link costs."""
        return {
            "path_pair": self.path_pair,
            "path_start": self.path_start,
            "path_links": self.path_links,
            "path_flow": self.path_flow,
        }


@dataclass(frozen=True, eq=False)
class Equilibrium(Flows):
    """A certified user equilibrium: flows (the attributes of ``Flows``), on their network.

    Attributes
    ----------
    roads : RoadNetwork
    seconds : float
        Wall time of the solve.
    flow, cost : array, (links,)
        Trips and cost of each link.
    path_cost : array, (pairs,)
        Cost of each pair's cheapest route.
    objective, bound : float
        Beckmann's objective, and a proven lower bound on its minimum.
    gap : float
        ``(objective - bound) / (1 + |objective|)``.
    relative_gap : float
        1 minus the cost of all trips on cheapest routes over the total cost.
    total_cost : float
        Link costs times flows.
    """

    roads: RoadNetwork
    seconds: float

    def links_table(self) -> Any:
        """DataFrame: link_id, from_node, to_node, flow, cost."""
        return require("pandas", "transport", "links_table").DataFrame(self._links())

    def paths_table(self) -> Any:
        """DataFrame: origin, destination, path (node labels), flow, cost; one row a used path."""
        pandas = require("pandas", "transport", "paths_table")
        roads = self.roads
        rows: dict[str, list[Any]] = {
            name: [] for name in ("origin", "destination", "path", "flow", "cost")
        }
        costs = _path_sums(self.path_start, self.path_links, self.cost)
        for path in np.flatnonzero(self.path_flow > 0):
            links = self.path_links[self.path_start[path] : self.path_start[path + 1]]
            pair = self.path_pair[path]
            nodes = [roads.origin[pair], *roads.head[links]]
            rows["origin"].append(roads.nodes[nodes[0]])
            rows["destination"].append(roads.nodes[nodes[-1]])
            rows["path"].append(tuple(roads.nodes[node] for node in nodes))
            rows["flow"].append(self.path_flow[path])
            rows["cost"].append(costs[path])
        return pandas.DataFrame(rows)

    def _links(self) -> dict[str, list[Any]]:
        return {
            **self.roads.link_columns(),
            "flow": self.flow.tolist(),
            "cost": self.cost.tolist(),
        }

    def _pairs(self) -> dict[str, list[Any]]:
        return {
            **self.roads.pair_columns(),
            "trips": self.roads.trips.tolist(),
            "cost": self.path_cost.tolist(),
        }

    def summary(self) -> dict[str, Any]:
        """Plain figures."""
        return {
            "instance": self.roads.name,
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "relative_gap": self.relative_gap,
            "total_cost": self.total_cost,
            "trips": float(self.roads.trips.sum()),
            "links": len(self.roads.link_id),
            "pairs": len(self.roads.trips),
            "used_paths": int(np.count_nonzero(self.path_flow)),
            "sweeps": self.iterations,
            "seconds": self.seconds,
        }

    def write(self, directory: str | os.PathLike[str]) -> dict[str, Path]:
        """Write links.csv (flow, cost), pairs.csv (cost of the cheapest route) and summary.json.

        Raises
        ------
        InvalidInputError
            If the directory cannot be written.
        """
        tables = {"links.csv": self._links(), "pairs.csv": self._pairs()}
        return output.write_tables(directory, tables, self.summary())


def equilibrium(
    roads: RoadNetwork,
    *,
    capacity: Any = None,
    tol: float = 1e-8,
    max_iterations: int = 2000,
    on_failure: OnFailure = "raise",
) -> Equilibrium:
    """User equilibrium of a road network.

    Parameters
    ----------
    roads : RoadNetwork
    capacity : array_like, (links,), optional
        Other capacities than the network's, positive.
    tol : float
        Relative duality gap to reach.
    max_iterations : int
        Sweeps over all pairs at most.
    on_failure : {"raise", "return"}
        What to do with an answer whose gap is above ``tol``.

    Returns
    -------
    Equilibrium

    Raises
    ------
    InvalidInputError
        If trips have no route, or the capacities or the tolerance are wrong.
    LowerNotSolvedError
        If the gap is not reached.

    Notes
    -----
    M. Beckmann, C. B. McGuire, C. B. Winsten: Studies in the Economics of Transportation (1956), section 3.1.
    """
    refuse_unserved(roads)
    require_number("tol", tol, Real)
    if not 0 < tol < 1:
        raise InvalidInputError(f"tol must be between 0 and 1, got {tol}")
    require_number("max_iterations", max_iterations, Integral)
    if max_iterations < 1:
        raise InvalidInputError(f"max_iterations must be at least 1, got {max_iterations}")
    if on_failure not in ("raise", "return"):
        raise InvalidInputError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    if capacity is not None:
        capacity = numbers_of("capacity", capacity)
        if capacity.shape != roads.tail.shape or not np.all((capacity > 0) & np.isfinite(capacity)):
            raise InvalidInputError(
                f"capacity: expected one positive number for each of {len(roads.tail)} links"
            )
    began = time.perf_counter()
    flows = assign(
        roads.paths,
        LinkCosts.of(roads, capacity),
        tol=tol,
        max_iterations=max_iterations,
        on_failure=on_failure,
    )
    return Equilibrium(**vars(flows), roads=roads, seconds=time.perf_counter() - began)


def refuse_unserved(roads: RoadNetwork) -> None:
    """Raise InvalidInputError where trips have no route, or it is no road network."""
    if not isinstance(roads, RoadNetwork):
        raise InvalidInputError(
            f"roads: expected a RoadNetwork, got {type(roads).__name__}; transport.load_roads reads one"
        )
    lost = np.flatnonzero((roads.trips > 0) & ~np.isfinite(roads.paths.distances(roads.fixed_cost)))
    if len(lost):
        ends = (roads.nodes[roads.origin[lost[0]]], roads.nodes[roads.destination[lost[0]]])
        raise InvalidInputError(
            f"{roads.name}: {len(lost)} OD pairs with trips have no route, {ends[0]!r} -> {ends[1]!r} first; "
            "add links or remove the trips (nodes below the first through node carry no through traffic)"
        )
    if not np.any(roads.trips > 0):
        raise InvalidInputError(f"{roads.name}: no OD pair has any trips; nothing to assign")


def assign(
    paths: PathNetwork,
    costs: LinkCosts,
    *,
    tol: float = 1e-8,
    warm: Mapping[str, Array] | None = None,
    max_iterations: int = 2000,
    on_failure: OnFailure = "raise",
) -> Flows:
    """Minimise the sum of the links' cost integrals over flows that carry all trips.

    Parameters
    ----------
    paths : PathNetwork
        Pairs without trips are passed over.
    costs : LinkCosts
    tol : float
        Relative duality gap to reach.
    warm : mapping, optional
        ``Flows.warm`` of a nearby problem on the same network and trips.
    max_iterations : int
        Sweeps at most.
    on_failure : {"raise", "return"}
        What to do with flows whose gap is above ``tol``.

    Returns
    -------
    Flows

    Raises
    ------
    LowerNotSolvedError
        If the gap is not reached.
    """
    active = np.flatnonzero((paths.trips > 0) & (paths.origin != paths.destination))
    if warm is not None and len(warm["path_pair"]) > 0:
        pair, start, links = warm["path_pair"], warm["path_start"], warm["path_links"]
        flow = np.array(warm["path_flow"])
    else:
        _, pair, start, links = paths.shortest_paths(costs.fixed)
        pair, start, links = _subset(pair, start, links, np.isin(pair, active))
        flow = paths.trips[pair].copy()
    sweeps, rounds, best = 0, 0, np.inf
    while True:
        link_flow = _load(start, links, flow, paths.links)
        link_cost = costs.cost(link_flow)
        distance, *new = paths.shortest_paths(link_cost)
        objective = float(np.sum(costs.integral(link_flow)))
        total = float(link_cost @ link_flow)
        length = _path_sums(start, links, link_cost)
        # the sum of differences, not the difference of sums, which would drown in rounding
        missing = float(np.maximum(length - distance[pair], 0.0) @ flow)
        gap = missing / (1.0 + abs(objective))
        if gap <= tol:
            break
        rounds = rounds + 1 if gap > 0.9 * best else 0
        best = min(best, gap)
        if sweeps >= max_iterations or rounds > 20:
            if on_failure == "return":
                break
            raise LowerNotSolvedError(
                f"user equilibrium: relative gap {best:.1e} after {sweeps} sweeps, asked for {tol:.1e}; "
                "loosen tol or raise max_iterations"
            )
        pair, start, links, flow = _renewed(
            paths, active, (pair, start, links, flow), length, distance, new
        )
        pair_start = np.searchsorted(pair, np.arange(paths.pairs + 1))
        state = _State(costs, link_flow)
        target = INNER * missing
        for count in range(1, SWEEPS + 1):
            left = state.sweep(pair_start, start, links, flow)
            sweeps += 1
            if left <= target:
                break
            if count % 3 == 0:
                flow, state = _newton(pair, pair_start, start, links, flow, state)
    return Flows(
        path_pair=pair,
        path_start=start,
        path_links=links,
        path_flow=flow,
        flow=link_flow,
        cost=link_cost,
        path_cost=distance,
        objective=objective,
        bound=objective - missing,
        total_cost=total,
        gap=gap,
        iterations=sweeps,
    )


def _renewed(
    paths: PathNetwork,
    active: Array,
    current: tuple[Array, Array, Array, Array],
    length: Array,
    distance: Array,
    new: Sequence[Array],
) -> tuple[Array, Array, Array, Array]:
    """Pairs, starts, links and flows of the paths at hand: idle detours leave, cheaper paths join without flow."""
    pair, start, links, flow = current
    shortest = np.full(paths.pairs, np.inf)
    np.minimum.at(shortest, pair, length)
    keep = (flow > 0) | (length <= shortest[pair])
    if not np.all(keep):
        pair, start, links = _subset(pair, start, links, keep)
        flow = flow[keep]
    fresh = np.zeros(paths.pairs, dtype=bool)
    fresh[active] = distance[active] < shortest[active] * (1.0 - ROUNDING)
    wanted = fresh[new[0]]
    if np.any(wanted):
        new = _subset(*new, wanted)
        known = _known_paths(*new, pair, start, links, paths._key)
        new_pair, new_start, new_links = _subset(*new, ~known)
        start = np.concatenate([start, start[-1] + new_start[1:]])
        pair, start, links, order = _grouped(
            np.concatenate([pair, new_pair]), start, np.concatenate([links, new_links])
        )
        flow = np.concatenate([flow, np.zeros(len(new_pair))])[order]
    return pair, start, links, flow


class _State:
    """Link flows, costs and slopes that sweeps keep up to date."""

    def __init__(self, costs: LinkCosts, flow: Array) -> None:
        self.costs = costs
        self.flow = flow.copy()
        self.cost = costs.cost(flow)
        self.slope = np.zeros(len(flow))
        growing = costs.power > 0
        ratio = (flow / costs.capacity)[growing] ** (costs.power[growing] - 1.0)
        self.slope[growing] = (costs.factor * costs.power / costs.capacity)[growing] * ratio

    def sweep(self, pair_start: Array, start: Array, links: Array, flow: Array) -> float:
        """One sweep over the pairs, in place; the cost in excess of cheapest paths, as met."""
        costs = self.costs
        return float(
            _sweep(
                pair_start,
                start,
                links,
                flow,
                self.flow,
                self.cost,
                self.slope,
                costs.fixed,
                costs.factor,
                costs.capacity,
                costs.power,
            )
        )


def _newton(
    pair: Array, pair_start: Array, start: Array, links: Array, flow: Array, state: _State
) -> tuple[Array, _State]:
    """Newton steps that equalise the costs of each pair's used paths; for few paths only.

    Unknowns are the flows of the used paths but each pair's largest, which takes what the others give.
    """
    for _ in range(NEWTON_STEPS):
        largest = np.lexsort((flow, pair))[pair_start[1:][np.diff(pair_start) > 0] - 1]
        main = np.empty(pair.max() + 1, dtype=np.int64)
        main[pair[largest]] = largest
        other = flow > 0
        other[largest] = False
        moving = np.flatnonzero(other)
        if not 0 < len(moving) <= NEWTON_SIZE:
            break
        base = main[pair[moving]]
        _, own_start, own_links = _subset(pair, start, links, other)
        base_lengths = np.diff(start)[base]
        position = np.arange(base_lengths.sum()) + np.repeat(
            start[base] - np.cumsum(base_lengths) + base_lengths, base_lengths
        )
        column = np.arange(len(moving))
        difference = csc_array(
            (
                np.repeat([1.0, -1.0], (len(own_links), len(position))),
                (
                    np.concatenate([own_links, links[position]]),
                    np.concatenate(
                        [np.repeat(column, np.diff(own_start)), np.repeat(column, base_lengths)]
                    ),
                ),
            ),
            shape=(len(state.flow), len(moving)),
        )
        right = difference.T @ state.cost
        left = float(np.abs(right) @ flow[moving])
        matrix = csc_array(difference.T @ csc_array(difference.multiply(state.slope[:, None])))
        ridge = 1e-9 * float(matrix.diagonal().max()) + 1e-300
        matrix = csc_array(matrix + ridge * eye_array(len(moving), format="csc"))
        # paths without flow in the model's minimum leave it, all that turn negative at once
        change, free = -flow[moving], np.ones(len(moving), dtype=bool)
        while np.any(free):
            rows = matrix[free]
            known = right[free] + rows[:, ~free] @ change[~free]
            # SuperLU and not BLAS: on a busy machine the threads of a dense factor wait longer than it takes
            change[free] = -splu(csc_array(rows[:, free])).solve(known)
            negative = free & ~(flow[moving] + change >= 0)
            if not np.any(negative):
                break
            change[negative] = -flow[moving][negative]
            free &= ~negative
        trial = flow.copy()
        trial[moving] += change
        np.add.at(trial, base, -change)
        if np.min(trial) < 0:
            break  # a pair's largest flow would turn negative: still far from the minimum
        after = _State(state.costs, _load(start, links, trial, len(state.flow)))
        if not float(np.abs(difference.T @ after.cost) @ trial[moving]) <= 0.5 * left:
            break  # no progress: rounding, or curvature that changes too fast
        flow, state = trial, after
    return flow, state


@compiled
def _load(start, links, flow, number):  # type: ignore[no-untyped-def]
    load = np.zeros(number)
    for path in range(len(flow)):
        for position in range(start[path], start[path + 1]):
            load[links[position]] += flow[path]
    return load


@njit(cache=True)
def _shift(link, change, flow, cost, slope, fixed, factor, capacity, power):  # type: ignore[no-untyped-def]
    flow[link] = max(flow[link] + change, 0.0)
    exponent = power[link]
    if exponent > 0.0:
        ratio = flow[link] / capacity[link]
        lower = ratio * ratio * ratio if exponent == 4.0 else ratio ** (exponent - 1.0)
        cost[link] = fixed[link] + factor[link] * lower * ratio
        slope[link] = factor[link] * exponent * lower / capacity[link]


@compiled
def _sweep(  # type: ignore[no-untyped-def]
    pair_start, path_start, path_links, path_flow, flow, cost, slope, fixed, factor, capacity, power
):
    """Shift flow towards each pair's cheapest path; return the cost in excess of cheapest paths, as met."""
    on_best = np.full(len(flow), -1)
    shared = np.full(len(flow), -1)
    excess = 0.0
    for pair in range(len(pair_start) - 1):
        first, last = pair_start[pair], pair_start[pair + 1]
        if last - first < 2:
            continue
        best, least = first, np.inf
        for path in range(first, last):
            length = 0.0
            for position in range(path_start[path], path_start[path + 1]):
                length += cost[path_links[position]]
            if length < least:
                best, least = path, length
        for position in range(path_start[best], path_start[best + 1]):
            on_best[path_links[position]] = pair
        for path in range(first, last):
            if path == best or path_flow[path] == 0.0:
                continue
            difference, curvature = 0.0, 0.0
            for position in range(path_start[path], path_start[path + 1]):
                link = path_links[position]
                if on_best[link] == pair:
                    shared[link] = path
                else:
                    difference += cost[link]
                    curvature += slope[link]
            for position in range(path_start[best], path_start[best + 1]):
                link = path_links[position]
                if shared[link] != path:
                    difference -= cost[link]
                    curvature += slope[link]
            if difference > 0.0:
                excess += difference * path_flow[path]
                change = path_flow[path]
                if difference < curvature * change:
                    change = difference / curvature
            else:
                change = -path_flow[best]
                if difference > curvature * change:
                    change = difference / curvature
            if change == 0.0:
                continue
            path_flow[path] -= change
            path_flow[best] += change
            for position in range(path_start[path], path_start[path + 1]):
                link = path_links[position]
                if shared[link] != path:
                    _shift(link, -change, flow, cost, slope, fixed, factor, capacity, power)
            for position in range(path_start[best], path_start[best + 1]):
                link = path_links[position]
                if shared[link] != path:
                    _shift(link, change, flow, cost, slope, fixed, factor, capacity, power)
    return excess
