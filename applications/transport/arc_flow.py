"""The transit problem as arc flows by origin on arrays of any library, as the paper does it.

Upper variable x, shape (links,): capacities in trips. Lower variable y, shape (origins, links +
nodes): for every origin its flow on each link in trips, then the served share of its demand to each
node. Everything here is array code in the namespace of y with its gradients given, so it runs
wherever :func:`blocc.minimize` does. Mathematics: design section 5; BLOCC, arXiv:2406.10148.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.special import expit

from blocc.applications.transport.network import Network
from blocc.arrays import asarray_like, namespace, to_numpy
from blocc.errors import InvalidInputError
from blocc.gradients import Function
from blocc.sets import Box

Array = Any
Data = dict[str, Array]

# A compromise: first-order steps need about 1 / sqrt(floor) more iterations where shares reach it
# (at 1e-6 the penalised problem at gamma = 0.1 takes MaxMin over 200,000), see functions().
FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class ArcFlow:
    """The parts that :func:`blocc.minimize` takes.

    Attributes
    ----------
    f, g, c, h : blocc.Function
        Minus the profit; the passengers' objective; ``flow - capacity <= 0``, shape (links,); flow
        conservation ``== 0``, shape (origins, nodes), zero in each origin's own column.
    data : dict of str to array
        What the functions take as their last argument.
    x0, y0 : array
        Capacities that just carry the demand without congestion, and the passengers' answer to
        unlimited capacities: feasible for each other.
    x_set, y_set : Box
        ``0 <= capacity <= all trips``; flows between 0 and the origin's trips, shares in [0, 1],
        both fixed to 0 where there is nothing to serve or no route.
    network : Network
    """

    f: Function
    g: Function
    c: Function
    h: Function
    data: Data
    x0: Array
    y0: Array
    x_set: Box
    y_set: Box
    network: Network

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``blocc.minimize(**arguments)``."""
        names = ("f", "g", "c", "h", "data", "x0", "y0", "x_set", "y_set")
        return {name: getattr(self, name) for name in names}

    def split(self, y: Array) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Total link flows (links,) and shares (pairs,) of a lower variable, on the host."""
        host = to_numpy(y)
        links = len(self.network.link_id)
        _, row = np.unique(self.network.origin, return_inverse=True)
        return host[:, :links].sum(axis=0), host[row, links + self.network.destination]


def functions(network: Network, *, like: Array | None = None, floor: float = FLOOR) -> ArcFlow:
    """State the problem of a network for :func:`blocc.minimize`.

    Parameters
    ----------
    network : Network
    like : array, optional
        Library, device and dtype to work in; NumPy float64 by default.
    floor : float, default 1e-3
        ``s log s`` has an infinite slope at 0, so below ``floor`` it is continued by its
        second-order Taylor polynomial (and ``(1 - s) log (1 - s)`` likewise). Capacities of zero stay
        feasible and prices finite, at most about ``alternative time - log(floor)``. It lowers g by
        at most ``floor / 2`` times the trips, and only by pairs of which less than ``floor`` is
        served or turned away; where there is no such pair the answer is exact.

    Returns
    -------
    ArcFlow

    Raises
    ------
    InvalidInputError
        If ``floor`` is not in (0, 0.5), or no pair with trips has a route.
    """
    if not 0 < floor < 0.5:
        raise InvalidInputError(f"floor must lie between 0 and 0.5, got {floor}")
    m, n = len(network.link_id), len(network.nodes)
    served = network.has_route & (network.trips > 0)
    if not served.any():
        raise InvalidInputError(
            f"network {network.name!r}: no OD pair has both trips and a route; nothing to design"
        )
    origins, row = np.unique(network.origin, return_inverse=True)
    here, there = row[served], network.destination[served]

    def table(values: Any) -> np.ndarray[Any, Any]:
        result = np.zeros((len(origins), n))
        result[here, there] = values[served]
        return result

    trips = table(network.trips)
    incidence = np.zeros((m, n))
    incidence[np.arange(m), network.head] = 1.0
    incidence[np.arange(m), network.tail] = -1.0
    inner = np.ones((len(origins), n))
    inner[np.arange(len(origins)), origins] = 0.0
    unserved = float((network.trips * (network.alternative_time - 1.0))[~served].sum())
    host = {
        "travel_time": network.travel_time,
        "capacity_cost": network.capacity_cost,
        "trips": trips,
        "alternative_time": table(network.alternative_time),
        "revenue": table(network.revenue * network.trips),
        "incidence": incidence,
        "inner": inner,
        "unserved": unserved,
        "floor": floor,
    }

    limit = np.broadcast_to(trips.sum(axis=1, keepdims=True), (len(origins), m)).copy()
    limit[network.head[None, :] == origins[:, None]] = 0.0  # nobody returns to where they started
    upper = np.concatenate([limit, (trips > 0).astype(float)], axis=1)
    start = _uncongested(network, origins, trips, served, row)
    x0 = start[:, :m].sum(axis=0)
    return ArcFlow(
        f=Function(_upper, _upper_gradient),
        g=Function(_lower, _lower_gradient),
        c=Function(_capacity, _capacity_pullback),
        h=Function(_conservation, _conservation_pullback),
        data={name: asarray_like(value, like) for name, value in host.items()},
        x0=asarray_like(x0, like),
        y0=asarray_like(start, like),
        x_set=Box(0.0, float(trips.sum())),
        y_set=Box(0.0, asarray_like(upper, like)),
        network=network,
    )


def _uncongested(network: Network, origins: Any, trips: Any, served: Any, row: Any) -> Any:
    """Answer to unlimited capacities: everyone on one shortest path."""
    m, n = len(network.link_id), len(network.nodes)
    graph: Any = csr_array((network.travel_time, (network.tail, network.head)), shape=(n, n))
    distance, previous = dijkstra(graph, indices=origins, return_predecessors=True)
    link_of = {
        (int(a), int(b)): i for i, (a, b) in enumerate(zip(network.tail, network.head, strict=True))
    }
    y = np.zeros((len(origins), m + n))
    for pair in np.flatnonzero(served):
        r, node = row[pair], int(network.destination[pair])
        share = expit(network.alternative_time[pair] - distance[r, node])
        y[r, m + node] = share
        while node != origins[r]:
            before = int(previous[r, node])
            y[r, link_of[before, node]] += share * network.trips[pair]
            node = before
    return y


def _parts(y: Array, data: Data) -> tuple[Array, Array]:
    links = data["travel_time"].shape[0]
    return y[:, :links], y[:, links:]


def _join(flow: Array, share: Array) -> Array:
    return namespace(flow).concat([flow, share], axis=1)


def _entropy(s: Array, floor: Array) -> tuple[Array, Array]:
    """``s log s`` and its derivative, continued by a parabola below ``floor``."""
    xp = namespace(s)
    t = xp.maximum(s, floor + s * 0.0)
    short = s - t
    logarithm = xp.log(t)
    value = t * logarithm + (logarithm + 1.0) * short + short * short / (2.0 * t)
    return value, logarithm + 1.0 + short / t


def _upper(x: Array, y: Array, data: Data) -> Array:
    xp = namespace(y)
    _, share = _parts(y, data)
    return xp.sum(data["capacity_cost"] * x) - xp.sum(data["revenue"] * share)


def _upper_gradient(x: Array, y: Array, data: Data) -> tuple[Array, Array]:
    flow, _ = _parts(y, data)
    return data["capacity_cost"], _join(flow * 0.0, -data["revenue"])


def _lower(x: Array, y: Array, data: Data) -> Array:
    xp = namespace(y)
    flow, share = _parts(y, data)
    served, _ = _entropy(share, data["floor"])
    turned_away, _ = _entropy(1.0 - share, data["floor"])
    terms = served + turned_away - 1.0 + data["alternative_time"] * (1.0 - share)
    return xp.sum(flow * data["travel_time"]) + xp.sum(data["trips"] * terms) + data["unserved"]


def _lower_gradient(x: Array, y: Array, data: Data) -> tuple[Array, Array]:
    flow, share = _parts(y, data)
    _, served = _entropy(share, data["floor"])
    _, turned_away = _entropy(1.0 - share, data["floor"])
    slope = data["trips"] * (served - turned_away - data["alternative_time"])
    return x * 0.0, _join(flow * 0.0 + data["travel_time"], slope)


def _capacity(x: Array, y: Array, data: Data) -> Array:
    xp = namespace(y)
    flow, _ = _parts(y, data)
    return xp.sum(flow, axis=0) - x


def _capacity_pullback(x: Array, y: Array, weights: Array, data: Data) -> tuple[Array, Array]:
    flow, share = _parts(y, data)
    return -weights, _join(flow * 0.0 + weights, share * 0.0)


def _conservation(x: Array, y: Array, data: Data) -> Array:
    # an origin's own balance follows from the others; stating it too would make the duals ambiguous
    flow, share = _parts(y, data)
    return (flow @ data["incidence"]) * data["inner"] - data["trips"] * share


def _conservation_pullback(x: Array, y: Array, weights: Array, data: Data) -> tuple[Array, Array]:
    flow = (weights * data["inner"]) @ namespace(y).matrix_transpose(data["incidence"])
    return x * 0.0, _join(flow, -data["trips"] * weights)
