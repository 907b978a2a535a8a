"""Both levels of the transit problem in CVXPY and Clarabel: slow, and independent of the rest.

The tests and every published figure are checked against this module. It states the problem as arc
flows by origin with conic entropies, finishes Clarabel's answer by Newton's method on its active
set, and shares no code with the fast solvers. Every answer carries a duality gap that is recomputed
from its link prices by shortest paths, not taken from a solver.
"""

from __future__ import annotations

import csv
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import cvxpy
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import block_array, coo_array, csr_array, diags_array, eye_array
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import splu
from scipy.special import expit, logit, xlogy

from blocc.applications.transport.network import Network
from blocc.errors import InvalidInputError, LowerNotSolvedError

cp: Any = cvxpy  # its lazy exports are invisible to type checkers
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Capacity below this part of all trips counts as no link: interior-point solvers need room inside,
# and what such a link could carry changes neither objective by more than about this part.
CLOSED = 1e-9

# Clarabel often stops a little short of this; what counts is the error after the polish.
_TOLERANCE = 1e-12
_GOOD = 1e-9
# Where capacities span many orders of magnitude its defaults may fail; each of these rescues some.
_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"static_regularization_constant": 1e-11, "static_regularization_proportional": 0.0},
    {"max_step_fraction": 0.6},
    {"equilibrate_enable": False},
)
_POLISHES = 6
_ACCEPTED = 1e-6


@dataclass(frozen=True)
class Response:
    """Saddle point of the lower level (or the penalised problem) at fixed capacities.

    Attributes
    ----------
    flow : (m,) array
        Trips on each link.
    share : (p,) array
        Served share of each OD pair, in [0, 1].
    price : (m,) array
        Dual of ``flow <= capacity``, >= 0, in the unit of the objective per trip; NaN where the
        link is closed (the price that keeps everyone off it may be infinite).
    path_cost : (p,) array
        Cheapest path at travel time (times gamma in the penalised problem) plus price; inf where no
        open route leads.
    objective : float
        Value of the problem solved.
    gap : float
        ``(objective - dual bound) / (1 + |objective|)``, the bound recomputed from ``price``.
    violation : float
        Largest excess of flow over capacity, relative to 1 + the largest capacity.
    seconds : float
        Wall time, building the model included.
    """

    flow: Floats
    share: Floats
    price: Floats
    path_cost: Floats
    objective: float
    gap: float
    violation: float
    seconds: float


@dataclass(frozen=True)
class Relaxation:
    """Answer of the relaxation: the planner also chooses what passengers do.

    Attributes
    ----------
    capacity : (m,) array
    share : (p,) array
    objective : float
        A lower bound on minus the profit of every design.
    seconds : float
    """

    capacity: Floats
    share: Floats
    objective: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """A design re-evaluated from its capacities alone.

    Attributes
    ----------
    profit : float
        Revenue minus cost at the passengers' exact response.
    revenue, cost : float
    served : float
        Trips served.
    capacity : (m,) array
        As read, in the order of the network's links.
    response : Response
    """

    profit: float
    revenue: float
    cost: float
    served: float
    capacity: Floats
    response: Response


def lower_objective(network: Network, flow: ArrayLike, share: ArrayLike) -> float:
    """Lower-level objective g at given link flows (m,) and shares (p,), by its definition."""
    s = np.asarray(share, dtype=np.float64)
    entropy = xlogy(s, s) - s + xlogy(1 - s, 1 - s) - (1 - s)
    terms = network.trips * (entropy + network.alternative_time * (1 - s))
    return float(network.travel_time @ np.asarray(flow) + terms.sum())


def solve_lower(network: Network, capacity: ArrayLike) -> Response:
    """Passengers' exact response to given capacities.

    Parameters
    ----------
    network : Network
    capacity : (m,) array_like or float
        Link capacities in trips, >= 0.

    Returns
    -------
    Response

    Raises
    ------
    InvalidInputError
        If a capacity is negative or not finite, or the shape is wrong.
    LowerNotSolvedError
        If the recomputed gap or violation is above 1e-6.
    """
    return _solve(network, capacity, None)


def solve_penalized(network: Network, capacity: ArrayLike, gamma: float) -> Response:
    """Minimise ``f + gamma g`` over flows and shares at fixed capacities, f being minus the profit.

    The objective includes the capacity cost. Prices are those of this problem, so they grow with
    gamma.

    Parameters
    ----------
    network : Network
    capacity : (m,) array_like or float
        Link capacities in trips, >= 0.
    gamma : float
        Positive penalty.

    Returns
    -------
    Response

    Raises
    ------
    InvalidInputError, LowerNotSolvedError
        As :func:`solve_lower`.
    """
    if not 0 < gamma < math.inf:
        raise InvalidInputError(f"solve_penalized: gamma must be positive and finite, got {gamma}")
    return _solve(network, capacity, gamma)


def _solve(network: Network, capacity: ArrayLike, gamma: float | None) -> Response:
    """Minimise gamma g - revenue @ share (plus the capacity cost), or g alone if gamma is None."""
    start = time.perf_counter()
    capacity = as_capacity(network, capacity)
    total_trips = float(network.trips.sum())
    opened = np.flatnonzero(capacity > CLOSED * max(1.0, total_trips))
    # no link ever carries more than all trips: more capacity than that only spoils the scaling
    limit = np.minimum(capacity[opened], total_trips)
    served = _connected(network, opened) & (network.trips > 0)
    scale = 1.0 if gamma is None else gamma
    worth = np.zeros(len(network.trips)) if gamma is None else network.revenue
    # The penalised problem is the lower level with the alternative worth u + r / gamma
    # (checked in the tests against the definition).
    attraction = network.alternative_time + worth / scale
    flow = np.zeros(len(capacity))
    price = np.full(len(capacity), np.nan)
    price[opened] = 0.0
    share = np.zeros(len(network.trips))
    status = "nothing to serve"
    if served.any():
        program = _Program.build(network, opened, np.flatnonzero(served), limit, attraction)
        point, status = program.solve()
        flow[opened], share[served], price[opened] = (
            point.arcs.sum(axis=0),
            point.share,
            point.price,
        )

    path_cost = _path_cost(network, opened, network.travel_time[opened] + price[opened])
    idle = network.trips == 0
    share[idle] = expit(attraction - path_cost)[idle]
    constant = 0.0 if gamma is None else float(network.capacity_cost @ capacity)
    value = scale * lower_objective(network, flow, share) + constant
    value -= float((network.trips * worth) @ share)
    # dual bound: the minimum over a share is a log-sum-exp of the cheapest path, and the entropy
    # terms of a pair that cannot be served are -1
    bound = float(network.trips @ (network.alternative_time - 1.0)) - float(price[opened] @ limit)
    bound -= float(network.trips[served] @ np.logaddexp(0.0, (attraction - path_cost)[served]))
    bound = scale * bound + constant
    gap = (value - bound) / (1 + abs(value))
    violation = max(0.0, float(np.max(flow - capacity))) / (1 + float(np.max(capacity)))
    if not (abs(gap) <= _ACCEPTED and violation <= _ACCEPTED):
        raise LowerNotSolvedError(
            f"Clarabel ended with status {status!r}, relative gap {gap:.1e} and violation "
            f"{violation:.1e} on {network.name!r}"
        )
    return Response(
        flow,
        share,
        scale * price,
        scale * path_cost,
        value,
        gap,
        violation,
        time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _Point:
    arcs: Floats  # (origins, links)
    share: Floats
    price: Floats


@dataclass(frozen=True)
class _Program:
    """The lower level on open links and connected pairs."""

    network: Network
    links: Integers
    pairs: Integers
    limit: Floats
    attraction: Floats  # u, or u + r / gamma
    origins: Integers
    row: Integers  # of each pair, in origins

    @classmethod
    def build(
        cls, network: Network, links: Integers, pairs: Integers, limit: Floats, attraction: Floats
    ) -> _Program:
        origins, row = np.unique(network.origin[pairs], return_inverse=True)
        return cls(network, links, pairs, limit, attraction[pairs], origins, row)

    def solve(self) -> tuple[_Point, str]:
        """Best polished answer over Clarabel's settings, the first good one at once."""
        best, status, failure = None, "", LowerNotSolvedError("nothing was tried")
        for settings in _SETTINGS:
            try:
                point, status = self.conic(settings)
            except LowerNotSolvedError as error:
                failure = error
                continue
            for step in range(_POLISHES):
                if best is None or self.error(point) < self.error(best):
                    best = point
                if step and self.error(best) < _GOOD:
                    return best, status
                point = self.newton(point)
        if best is None:
            raise failure
        return best, status

    def conic(self, settings: Mapping[str, Any]) -> tuple[_Point, str]:
        """Arc flows by origin with conic entropies."""
        network, trips = self.network, self.network.trips[self.pairs]
        # Units: flows by the largest capacity, shares by a bound on them, so that tiny capacities
        # are as easy as large ones.
        unit = float(np.max(self.limit))
        n = len(network.nodes)
        outward = np.bincount(network.tail[self.links], self.limit, n)[network.origin[self.pairs]]
        inward = np.bincount(network.head[self.links], self.limit, n)[
            network.destination[self.pairs]
        ]
        most = np.minimum(1.0, np.minimum(outward, inward) / trips)
        weight = trips * most / unit
        arcs, part, conservation = _flows(network, self.links, self.pairs, weight)
        total = cp.sum(arcs, axis=0)
        # trips [s log s + (1 - s) log(1 - s) - u s] with s = most * part, divided by the unit
        linear = weight * (np.log(most) - self.attraction)
        entropy = weight @ cp.entr(part) + (trips / unit) @ cp.entr(1 - cp.multiply(most, part))
        objective = network.travel_time[self.links] @ total + linear @ part - entropy
        limit = total <= self.limit / unit
        problem = cp.Problem(cp.Minimize(objective), [limit, arcs >= 0, *conservation])
        status = _run(problem, settings)
        values = (arcs.value, part.value, limit.dual_value)
        if any(value is None or not np.isfinite(value).all() for value in values):
            raise LowerNotSolvedError(f"Clarabel ended with status {status!r} and no answer")
        point = _Point(
            np.maximum(arcs.value, 0.0) * unit,
            np.clip(most * part.value, 1e-300, 1 - 1e-16),
            np.maximum(limit.dual_value, 0.0),
        )
        return point, status

    def newton(self, start: _Point) -> _Point:
        """Newton's method on the optimality conditions of the active set that ``start`` shows.

        Interior-point answers are off by the square root of their gap where a link's price and
        slack are both zero. That is every free link of a design whose capacities were set to the
        flows, so it matters here. Repeated from its own answer it corrects the active set.
        """
        network, count, n = self.network, len(self.links), len(self.network.nodes)
        tail, head = network.tail[self.links], network.head[self.links]
        time_, trips = network.travel_time[self.links], network.trips[self.pairs]
        graph = _graph(network, self.links, time_ + start.price)
        distance = dijkstra(graph, indices=self.origins)
        with np.errstate(invalid="ignore"):  # inf - inf where an origin does not reach the link
            reduced = time_ + start.price + distance[:, tail] - distance[:, head]
        used = np.isfinite(reduced) & (start.arcs > reduced)
        active = start.price > self.limit - start.arcs.sum(axis=0)
        row, link = np.nonzero(used)
        flows, pairs, actives = len(row), len(self.pairs), int(active.sum())
        # constraints: conservation in the flattened (origins, nodes) table, origins' own rows left
        # out, then capacity of the active links; columns: used flows, then shares
        columns = np.arange(flows)
        position = np.cumsum(active) - 1
        tight = active[link]
        table = len(self.origins) * n
        entries = [
            (np.ones(flows), row * n + head[link], columns),
            (-np.ones(flows), row * n + tail[link], columns),
            (-trips, self.row * n + network.destination[self.pairs], flows + np.arange(pairs)),
            (np.ones(int(tight.sum())), table + position[link[tight]], columns[tight]),
        ]
        values, rows, cols = (np.concatenate(part) for part in zip(*entries, strict=True))
        full: Any = coo_array(
            (values, (rows, cols)), shape=(table + actives, flows + pairs)
        ).tocsr()
        keep = np.ones(table + actives, dtype=bool)
        keep[np.arange(len(self.origins)) * n + self.origins] = False
        matrix = full[keep]
        right = np.concatenate([np.zeros(table), self.limit[active]])[keep]
        dual = np.concatenate(
            [np.where(np.isfinite(distance), -distance, 0.0).ravel(), start.price[active]]
        )
        dual = dual[keep]
        primal = np.concatenate([start.arcs[used], start.share])
        shift = 1e-9  # makes the system regular where flows or prices are not unique
        for _ in range(30):
            s = primal[flows:]
            slope = np.concatenate([time_[link], trips * (logit(s) - self.attraction)])
            residual = np.concatenate([slope + matrix.T @ dual, matrix @ primal - right])
            if np.abs(residual).max() < 1e-12:
                break
            curvature = np.concatenate([np.zeros(flows), trips / (s * (1 - s))]) + shift
            system = block_array(
                [[diags_array(curvature), matrix.T], [matrix, -shift * eye_array(len(right))]],
                format="csc",
            )
            step = splu(system).solve(-residual)
            primal = primal + step[: flows + pairs]
            primal[flows:] = np.clip(primal[flows:], s / 10, 1 - (1 - s) / 10)
            dual = dual + step[flows + pairs :]
        arcs, price = np.zeros_like(start.arcs), np.zeros(count)
        arcs[used] = np.maximum(primal[:flows], 0.0)
        if actives:
            price[active] = np.maximum(dual[len(dual) - actives :], 0.0)
        return _Point(arcs, primal[flows:], price)

    def error(self, point: _Point) -> float:
        """Largest violation of the optimality conditions."""
        network, n = self.network, len(self.network.nodes)
        total = point.arcs.sum(axis=0)
        cost = network.travel_time[self.links] + point.price
        distance = dijkstra(_graph(network, self.links, cost), indices=self.origins)
        reach = distance[self.row, network.destination[self.pairs]]
        balance = np.zeros((len(self.origins), n))
        for ends, sign in ((network.head, 1.0), (network.tail, -1.0)):
            np.add.at(balance.T, ends[self.links], sign * point.arcs.T)
        np.add.at(
            balance,
            (self.row, network.destination[self.pairs]),
            -network.trips[self.pairs] * point.share,
        )
        balance[np.arange(len(self.origins)), self.origins] = 0.0
        with np.errstate(invalid="ignore"):
            reduced = (
                cost + distance[:, network.tail[self.links]] - distance[:, network.head[self.links]]
            )
        used = np.isfinite(reduced)
        parts = [
            np.abs(point.share - expit(self.attraction - reach)),
            np.abs(balance).ravel() / (1 + network.trips.max()),
            np.maximum(total - self.limit, 0.0) / (1 + self.limit),
            np.minimum(point.price, np.abs(self.limit - total)),
            np.minimum(point.arcs[used], reduced[used]),
        ]
        return float(np.max(np.concatenate(parts)))


def solve_relaxation(network: Network, *, cap_shares: bool = False) -> Relaxation:
    """Solve both levels as one linear program: the global bound that gamma = 0 gives.

    Parameters
    ----------
    network : Network
    cap_shares : bool, default False
        Add ``share <= sigmoid(u - shortest travel time)``, which every lower-level answer obeys
        because prices are nonnegative. The bound stays valid and becomes tighter.

    Returns
    -------
    Relaxation
    """
    start = time.perf_counter()
    links = np.arange(len(network.link_id))
    served = network.has_route & (network.trips > 0)
    share, capacity, value = np.zeros(len(network.trips)), np.zeros(len(links)), 0.0
    if served.any():
        pairs = np.flatnonzero(served)
        arcs, s, conservation = _flows(network, links, pairs, network.trips[pairs])
        most = np.ones(len(network.trips))
        if cap_shares:
            cost = _path_cost(network, links, network.travel_time)
            most = expit(network.alternative_time - cost)
        variable = cp.Variable(len(links), nonneg=True)
        worth = (network.trips * network.revenue)[served]
        problem = cp.Problem(
            cp.Minimize(network.capacity_cost @ variable - worth @ s),
            [cp.sum(arcs, axis=0) <= variable, arcs >= 0, s <= most[served], s >= 0, *conservation],
        )
        status = _run(problem, {})
        if s.value is None:
            raise LowerNotSolvedError(f"Clarabel ended with status {status!r} and no answer")
        share[served], capacity = np.clip(s.value, 0, 1), np.maximum(variable.value, 0)
        value = float(problem.value)
    return Relaxation(capacity, share, value, time.perf_counter() - start)


def profit(network: Network, capacity: ArrayLike) -> float:
    """Profit of a design, revenue minus capacity cost, at the passengers' exact response."""
    return evaluate(network, capacity).profit


def evaluate(network: Network, capacity: ArrayLike) -> Evaluation:
    """Profit, its parts, and the exact response for given capacities (m,)."""
    capacity = as_capacity(network, capacity)
    response = solve_lower(network, capacity)
    revenue = float((network.revenue * network.trips) @ response.share)
    cost = float(network.capacity_cost @ capacity)
    served = float(network.trips @ response.share)
    return Evaluation(revenue - cost, revenue, cost, served, capacity, response)


def evaluate_design(network: Network, design_csv: str | PathLike[str]) -> Evaluation:
    """Evaluate a ``design.csv`` from its link_id and capacity columns alone.

    Parameters
    ----------
    network : Network
    design_csv : path
        Rows in any order, one for every link of the network.

    Returns
    -------
    Evaluation

    Raises
    ------
    InvalidInputError
        If the file cannot be read, or its links are not those of the network.
    """
    path = Path(design_csv)
    capacities: dict[str, float] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                link = row["link_id"]
                if link in capacities:
                    raise InvalidInputError(f"{path}: link {link!r} occurs twice; keep one row")
                capacities[link] = float(row["capacity"])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"{path}: not a design ({error!r}); it needs the columns link_id and capacity"
        ) from error
    expected = [str(link) for link in network.link_id]
    for link in sorted({*expected} ^ {*capacities}):
        where = "is not a link of" if link in capacities else "is missing; it is a link of"
        raise InvalidInputError(f"{path}: link {link!r} {where} network {network.name!r}")
    return evaluate(network, [capacities[link] for link in expected])


def as_capacity(network: Network, capacity: ArrayLike) -> Floats:
    """Check capacities and spread a single number over all links; shape (m,)."""
    try:
        values = np.asarray(capacity, dtype=np.float64)
        values = np.array(np.broadcast_to(values, (len(network.link_id),)))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"capacity: expected one number or one for each of {len(network.link_id)} links"
        ) from error
    for i in np.flatnonzero(~(np.isfinite(values) & (values >= 0))):
        raise InvalidInputError(
            f"capacity of link {network.link_id[i]!r} is {values[i]}; it must be finite and >= 0"
        )
    return values


def _flows(
    network: Network, links: Integers, pairs: Integers, weight: Floats
) -> tuple[Any, Any, Sequence[Any]]:
    """Flows (origins, links), parts (pairs,) that weight scales to trips, and conservation."""
    n, count = len(network.nodes), len(links)
    origins, row = np.unique(network.origin[pairs], return_inverse=True)
    arcs, share = cp.Variable((len(origins), count)), cp.Variable(len(pairs))
    columns = np.arange(count)
    incidence = coo_array(
        (
            np.repeat([1.0, -1.0], count),
            (np.tile(columns, 2), np.concatenate([network.head[links], network.tail[links]])),
        ),
        shape=(count, n),
    ).tocsr()
    # Sink of each pair in the flattened (origins, nodes) table. The origin's own row follows from
    # the others by summation, and stating it too would make the duals ambiguous.
    sinks = coo_array(
        (weight, (row * n + network.destination[pairs], np.arange(len(pairs)))),
        shape=(len(origins) * n, len(pairs)),
    ).tocsr()
    keep = np.setdiff1d(np.arange(len(origins) * n), np.arange(len(origins)) * n + origins)
    inflow = cp.reshape(arcs @ incidence, (len(origins) * n,), order="C")
    return arcs, share, [inflow[keep] == sinks[keep] @ share]


def _run(problem: Any, settings: Mapping[str, Any]) -> str:
    """Solve as tightly as Clarabel can; the caller judges the answer by its own gap."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Solution may be inaccurate")
            problem.solve(
                solver=cp.CLARABEL,
                tol_gap_abs=_TOLERANCE,
                tol_gap_rel=_TOLERANCE,
                tol_feas=_TOLERANCE,
                max_iter=500,
                **settings,
            )
    except cp.SolverError as error:
        raise LowerNotSolvedError(f"Clarabel failed: {error}") from error
    return str(problem.status)


def _graph(network: Network, links: Integers, weight: Floats) -> Any:
    n = len(network.nodes)
    return csr_array((weight, (network.tail[links], network.head[links])), shape=(n, n))


def _path_cost(network: Network, links: Integers, cost: Floats) -> Floats:
    origins, row = np.unique(network.origin, return_inverse=True)
    distance = dijkstra(_graph(network, links, cost), indices=origins)
    costs: Floats = distance[row, network.destination]
    return costs


def _connected(network: Network, links: Integers) -> NDArray[np.bool_]:
    connected: NDArray[np.bool_] = np.isfinite(_path_cost(network, links, np.ones(len(links))))
    return connected
