"""Road networks with congestion: link performance, demand, and optionally what expanding a link costs.

The cost of a link at flow x is of the BPR form (Bureau of Public Roads, 1964)

    t(x) = free_flow_time (1 + b (x / capacity)^power) + toll_factor toll + distance_factor length,

which is increasing and convex in x. A network is three tables (units only need to be consistent):

* ``links``: link_id, from_node, to_node, capacity, free_flow_time, b, power; optionally length, toll,
  expansion_cost and expansion_limit (both empty where a link cannot be expanded);
* ``demand``: origin, destination, trips;
* ``nodes`` (optional): node; longitude, latitude or x, y; through (0: no traffic passes through, 1).

The column names of TNTP tables, init_node and term_node, are understood as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from blocc.applications.transport.network import Graph, Network, from_tables
from blocc.applications.transport.paths import PathNetwork
from blocc.applications.transport.tables import (
    LARGEST,
    Floats,
    Integers,
    Label,
    Table,
    directory_of,
    ends_of,
    positions_of,
    read,
    read_nodes,
    table_of,
)
from blocc.errors import InvalidInputError, require_number

ROADS = ("sioux_falls", "harker_friesz_1", "harker_friesz_2")
LINK_COLUMNS = ("link_id", "from_node", "to_node", "capacity", "free_flow_time", "b", "power")
DEMAND_COLUMNS = ("origin", "destination", "trips")
TNTP_NAMES = {"init_node": "from_node", "term_node": "to_node"}


@dataclass(frozen=True, eq=False, repr=False)
class RoadNetwork(Graph):
    """A road network with its demand.

    Build it with :func:`load_roads`, :func:`roads_from_tables` or
    :func:`blocc.applications.transport.tntp.read_tntp`. Arrays are read-only.

    Attributes
    ----------
    name : str
    nodes : tuple of int or str, length n
        Node labels.
    through : (n,) array of bool
        Whether traffic may pass through a node; where not, trips only start and end there.
    positions : (n, 2) array of float or None
        Longitude and latitude in degrees if ``geographic``, else x and y.
    geographic : bool
    link_id : tuple of int or str, length m
    tail, head : (m,) array of int
        Indices into ``nodes``.
    capacity : (m,) array of float, > 0
        Trips at which the congestion term is ``free_flow_time b``; not a limit.
    free_flow_time, b : (m,) array of float, >= 0
    power : (m,) array of float, 0 or >= 1
        With power 0 the link's time is constant, ``free_flow_time (1 + b)``.
    length, toll : (m,) array of float, >= 0
    origin, destination : (p,) array of int
        Indices into ``nodes``, of pairs with different ends.
    trips : (p,) array of float, >= 0
    toll_factor, distance_factor : float, >= 0
        Time that a unit of toll and of length is worth.
    expansion_cost, expansion_limit : (m,) array of float or None
        Of a unit of added capacity, and the most that can be added; NaN on links that stay as they are.
    volume : (m,) array of float or None
        Flows that came with the data (best known equilibrium), for comparison.

    Raises
    ------
    InvalidInputError
        If shapes disagree, an index is out of range, or a value is outside its range.
    """

    name: str
    nodes: tuple[Label, ...]
    through: Any
    positions: Floats | None
    geographic: bool
    link_id: tuple[Label, ...]
    tail: Integers
    head: Integers
    capacity: Floats
    free_flow_time: Floats
    b: Floats
    power: Floats
    length: Floats
    toll: Floats
    origin: Integers
    destination: Integers
    trips: Floats
    toll_factor: float = 0.0
    distance_factor: float = 0.0
    expansion_cost: Floats | None = field(default=None)
    expansion_limit: Floats | None = field(default=None)
    volume: Floats | None = field(default=None)

    def __post_init__(self) -> None:
        self._freeze_ends()
        n, m, p = len(self.nodes), len(self.link_id), len(self.origin)
        self._freeze("through", (n,), np.bool_)
        for name in ("capacity", "free_flow_time", "b", "power", "length", "toll", "trips"):
            values = self._freeze(name, (p if name == "trips" else m,), np.float64)
            if not np.all((values >= 0) & (values <= LARGEST)):
                raise self._wrong(name, f"every entry must be a number from 0 to {LARGEST:g}")
        for name in ("expansion_cost", "expansion_limit", "volume"):
            if getattr(self, name) is not None:
                values = self._freeze(name, (m,), np.float64)
                if np.any(values < 0) or np.any(np.isinf(values)):
                    raise self._wrong(name, "every entry must be >= 0 and finite, or NaN")
        for name in ("toll_factor", "distance_factor"):
            require_number(name, getattr(self, name), Real)
            if not 0 <= getattr(self, name) <= LARGEST:
                raise InvalidInputError(
                    f"{name} must be >= 0 and finite, got {getattr(self, name)}"
                )
        cost, limit = (
            np.full(m, np.nan) if part is None else part
            for part in (self.expansion_cost, self.expansion_limit)
        )
        with np.errstate(over="ignore", invalid="ignore"):
            most = self.trips.sum()
            worst = self.free_flow_time * self.b * (most / self.capacity) ** self.power * most
        for bad, remedy in (
            (self.capacity == 0, "capacity must be above 0"),
            ((self.power > 0) & (self.power < 1), "power must be 0 or at least 1"),
            (
                np.isnan(cost) != np.isnan(limit),
                "expansion_cost and expansion_limit belong together; give both or neither",
            ),
            (
                ~(worst <= 1e200),
                f"would take longer than can be computed with if all {most:g} trips used it; check the units of "
                "capacity and trips, and the power",
            ),
        ):
            if np.any(bad):
                link = self.link_id[int(np.flatnonzero(bad)[0])]
                raise InvalidInputError(f"RoadNetwork: link {link!r}: {remedy}")
        if n != len(set(self.nodes)):
            raise self._wrong("nodes", "every label must be given once")

    @property
    def fixed_cost(self) -> Floats:
        """Link costs without congestion, (m,): free-flow time, toll and distance, and constant delays."""
        return (
            self.free_flow_time * np.where(self.power == 0, 1.0 + self.b, 1.0)
            + self.toll_factor * self.toll
            + self.distance_factor * self.length
        )

    @property
    def congestion_cost(self) -> Floats:
        """Factor of ``(x / capacity)^power`` in the link costs, (m,); zero where power is zero."""
        return np.where(self.power == 0, 0.0, self.free_flow_time * self.b)

    @cached_property
    def paths(self) -> PathNetwork:
        """The network for shortest paths: links leave a node without through traffic from a copy of it.

        Nodes are those of the network, then the copies. Link numbers stay the same.
        """
        n = len(self.nodes)
        copied = np.flatnonzero(~self.through)
        start = np.arange(n)
        start[copied] = n + np.arange(len(copied))
        return PathNetwork(
            n + len(copied),
            start[self.tail],
            self.head,
            self.fixed_cost,
            start[self.origin],
            self.destination,
            self.trips,
        )

    def to_transit(
        self,
        *,
        mean_time: float = 2.5,
        detour: float = 1.1,
        cost_of_time: float = 1.1,
        fare: float = 3.0,
        name: str | None = None,
    ) -> Network:
        """Turn it into a transit network with synthetic costs and revenues, for studies of size.

        Times are the link costs without congestion, scaled so that the mean trip's shortest path takes
        ``mean_time``. A unit of capacity costs ``cost_of_time`` times the link's time. The alternative takes
        ``detour`` times the shortest path, and every trip pays the same ``fare``. The defaults are near Seville's
        (mean time 2.6, cost of time 1.095, mean alternative 0.92 of the shortest path, mean revenue 2.9). No random
        numbers are drawn. Link times below a hundredth of the median are raised to that, so that nothing is free.
        Nodes without through traffic are split: trips start at the node and arrive at "NODE arrivals".

        Parameters
        ----------
        mean_time, detour, cost_of_time, fare : float, > 0
        name : str, optional
            Default this network's.

        Returns
        -------
        Network
            Pairs without trips or without a route are left out.

        Raises
        ------
        InvalidInputError
            If a parameter is not positive, or no pair has both trips and a route.
        """
        parameters = {
            "mean_time": mean_time,
            "detour": detour,
            "cost_of_time": cost_of_time,
            "fare": fare,
        }
        for key, value in parameters.items():
            require_number(key, value, Real)
            if not 0 < value < np.inf:
                raise InvalidInputError(f"{key} must be positive and finite, got {value}")
        time = self.fixed_cost
        if not np.any(time > 0):
            raise InvalidInputError(f"{self.name}: every link takes no time; nothing to scale")
        time = np.maximum(time, 0.01 * np.median(time[time > 0]))
        shortest = self.paths.distances(time)
        served = np.flatnonzero((self.trips > 0) & np.isfinite(shortest))
        if len(served) == 0:
            raise InvalidInputError(f"{self.name}: no OD pair has both trips and a route")
        scale = mean_time / np.average(shortest[served], weights=self.trips[served])
        arrivals: list[Label] = [
            node if through else f"{node} arrivals"
            for node, through in zip(self.nodes, self.through, strict=True)
        ]
        places: dict[str, list[Any]] = {
            "node": [
                *self.nodes,
                *(a for a, t in zip(arrivals, self.through, strict=True) if not t),
            ]
        }
        if self.positions is not None:
            doubled = np.concatenate([self.positions, self.positions[~self.through]])
            columns = ("longitude", "latitude") if self.geographic else ("x", "y")
            places.update({column: list(doubled[:, i]) for i, column in enumerate(columns)})
        return from_tables(
            {
                "link_id": list(self.link_id),
                "from_node": [self.nodes[i] for i in self.tail],
                "to_node": [arrivals[i] for i in self.head],
                "travel_time": scale * time,
                "capacity_cost": cost_of_time * scale * time,
            },
            {
                "origin": [self.nodes[i] for i in self.origin[served]],
                "destination": [arrivals[i] for i in self.destination[served]],
                "trips": self.trips[served],
                "alternative_time": detour * scale * shortest[served],
                "revenue": np.full(len(served), fare),
            },
            places,
            name or self.name,
        )


def load_roads(
    name_or_directory: str | PathLike[str],
    *,
    first_through_node: int | None = None,
    toll_factor: float | None = None,
    distance_factor: float | None = None,
) -> RoadNetwork:
    """Load a shipped road network by name, or a directory with links.csv, demand.csv and, optionally, nodes.csv.

    Parameters
    ----------
    name_or_directory : str or path
        ``"sioux_falls"``, ``"harker_friesz_1"`` or ``"harker_friesz_2"``; or a directory of tables as in
        :mod:`blocc.applications.transport.roads`, or with one network's TNTP files, NAME_net.tntp and so on.
    first_through_node : int, optional
        Nodes with a smaller number carry no through traffic (TNTP's rule; TNTP files say it themselves).
    toll_factor, distance_factor : float, optional
        Time that a unit of toll and of length is worth. Default 0, or what TNTP files say.

    Returns
    -------
    RoadNetwork

    Raises
    ------
    InvalidInputError
        If a file is missing or wrong: the message names file, line, column and remedy.
    """
    directory, name = directory_of(name_or_directory, "cndp", ROADS)
    nets = sorted(part for part in directory.iterdir() if part.name.endswith("_net.tntp"))
    if nets and not (directory / "links.csv").is_file():
        if first_through_node is not None:
            raise InvalidInputError(
                f"{nets[0]} states its own first through node; leave first_through_node out"
            )
        return _load_tntp(nets, toll_factor, distance_factor)
    return build(
        read(directory, "links.csv", LINK_COLUMNS, names=TNTP_NAMES),
        read(directory, "demand.csv", DEMAND_COLUMNS),
        read_nodes(directory),
        name,
        first_through_node=first_through_node,
        toll_factor=toll_factor,
        distance_factor=distance_factor,
    )


def _load_tntp(
    nets: list[Path], toll_factor: float | None, distance_factor: float | None
) -> RoadNetwork:
    from blocc.applications.transport.tntp import read_tntp

    if len(nets) > 1:
        raise InvalidInputError(
            f"{nets[0].parent}: holds {len(nets)} networks ({', '.join(net.name for net in nets)}); "
            "give a directory with one"
        )
    stem = nets[0].name.removesuffix("_net.tntp")
    trips, node, flow = (
        nets[0].with_name(f"{stem}_{part}.tntp") for part in ("trips", "node", "flow")
    )
    return read_tntp(
        nets[0],
        trips,
        node if node.exists() else None,
        flow if flow.exists() else None,
        toll_factor=toll_factor,
        distance_factor=distance_factor,
    )


def roads_from_tables(
    links: Any,
    demand: Any,
    nodes: Any = None,
    name: str = "network",
    *,
    first_through_node: int | None = None,
    toll_factor: float | None = None,
    distance_factor: float | None = None,
) -> RoadNetwork:
    """Build a road network from tables.

    Parameters
    ----------
    links, demand, nodes : DataFrame or mapping of column name to sequence
        Columns as in :mod:`blocc.applications.transport.roads`; ``nodes`` may be left out.
    name : str
    first_through_node, toll_factor, distance_factor
        As in :func:`load_roads`.

    Returns
    -------
    RoadNetwork

    Raises
    ------
    InvalidInputError
        If a table is wrong: the message names table, row (from 1), column and remedy.
    """
    return build(
        table_of(links, "links", LINK_COLUMNS, names=TNTP_NAMES),
        table_of(demand, "demand", DEMAND_COLUMNS),
        None if nodes is None else table_of(nodes, "nodes", ("node",)),
        name,
        first_through_node=first_through_node,
        toll_factor=toll_factor,
        distance_factor=distance_factor,
    )


def build(
    links: Table,
    demand: Table,
    nodes: Table | None,
    name: str,
    *,
    first_through_node: int | None,
    toll_factor: float | None,
    distance_factor: float | None,
    volume: Floats | None = None,
) -> RoadNetwork:
    """Check raw tables and build the network; errors name the table's file and line."""
    ends = ends_of(links, demand, nodes, simple=False)
    power, capacity = links.numbers("power", 0), links.numbers("capacity", 0)
    cost, limit = links.optional("expansion_cost"), links.optional("expansion_limit")
    links.refuse(
        (power > 0) & (power < 1),
        "power",
        lambda row: f"{power[row]:g} is neither 0 nor at least 1; write 0 for a constant time",
    )
    links.refuse(capacity == 0, "capacity", lambda row: "the capacity is 0; write a number above 0")
    for column, given, other in (
        ("expansion_limit", cost, limit),
        ("expansion_cost", limit, cost),
    ):
        if given is not None:
            links.refuse(
                ~np.isnan(given) & (True if other is None else np.isnan(other)),
                column,
                lambda row: (
                    "the cell is empty; give both expansion_cost and expansion_limit where a link can be "
                    "expanded, and neither where not"
                ),
            )
    through = np.ones(len(ends.nodes), dtype=bool)
    if first_through_node is not None:
        require_number("first_through_node", first_through_node, Integral)
        if not all(isinstance(label, int) for label in ends.nodes):
            raise InvalidInputError(
                "first_through_node: the nodes are not numbered; give nodes.csv a column through (0 or 1) instead"
            )
        through = np.array([label >= first_through_node for label in ends.nodes])  # type: ignore[operator]
    positions, geographic = None, False
    if nodes is not None:
        if "through" in nodes.columns:
            through &= nodes.numbers("through", 0, 1) > 0
        positions, geographic = positions_of(nodes)
    between = ends.origin != ends.destination  # trips within a zone use no link
    zeros = np.zeros(len(ends.tail))
    return RoadNetwork(
        name=name,
        nodes=ends.nodes,
        through=through,
        positions=positions,
        geographic=geographic,
        link_id=ends.link_id,
        tail=ends.tail,
        head=ends.head,
        capacity=capacity,
        free_flow_time=links.numbers("free_flow_time", 0),
        b=links.numbers("b", 0),
        power=power,
        length=links.numbers("length", 0) if "length" in links.columns else zeros,
        toll=links.numbers("toll", 0) if "toll" in links.columns else zeros,
        origin=ends.origin[between],
        destination=ends.destination[between],
        trips=demand.numbers("trips", 0)[between],
        toll_factor=toll_factor or 0.0,
        distance_factor=distance_factor or 0.0,
        expansion_cost=cost,
        expansion_limit=limit,
        volume=volume,
    )
