"""The transit network: tables in, checked arrays, tables and graphs out.

A network is three tables (units are the data's own; money and time only need to be consistent):

* ``links``: link_id, from_node, to_node, travel_time, capacity_cost (money per unit of capacity);
  optionally minimum and maximum of the capacity, or existing: capacity that cannot change (cells
  may be empty);
* ``demand``: origin, destination, trips, alternative_time (what the trip costs by other means, in
  the unit of travel_time), revenue (money per trip served);
* ``nodes``: node, and longitude, latitude (degrees) or x, y (any length unit); optionally
  population.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

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
from blocc.errors import InvalidInputError, require
from blocc.files import write_atomically

INSTANCES = ("three_node", "nine_node", "seville")
LINK_COLUMNS = ("link_id", "from_node", "to_node", "travel_time", "capacity_cost")
LIMIT_COLUMNS = ("existing", "minimum", "maximum")
DEMAND_COLUMNS = ("origin", "destination", "trips", "alternative_time", "revenue")
_SHOWN = 5  # examples listed in a note


class Tables(NamedTuple):
    """The three tables of a network, as pandas DataFrames."""

    links: Any
    demand: Any
    nodes: Any


class Graph:
    """What transit and road networks share: labelled nodes, directed links, OD pairs, read-only arrays."""

    name: str
    nodes: tuple[Label, ...]
    link_id: tuple[Label, ...]
    tail: Integers
    head: Integers
    origin: Integers
    destination: Integers
    trips: Floats

    def _freeze_ends(self) -> None:
        n, m, p = len(self.nodes), len(self.link_id), np.size(self.origin)
        if not (n and m and p):
            raise InvalidInputError(
                f"{type(self).__name__} {self.name!r} is empty: it has {n} nodes, {m} links and {p} "
                "OD pairs with different ends; each needs at least one"
            )
        for name, size in (("tail", m), ("head", m), ("origin", p), ("destination", p)):
            index = self._freeze(name, (size,), np.int64)
            if index.min() < 0 or index.max() >= n:
                raise self._wrong(name, f"every entry must be a node index from 0 to {n - 1}")

    def _freeze(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        array = np.array(getattr(self, name), dtype=dtype)
        if array.shape != shape:
            raise self._wrong(name, f"expected shape {shape}, got {array.shape}")
        array.setflags(write=False)
        object.__setattr__(self, name, array)
        return array

    def _wrong(self, name: str, message: str) -> InvalidInputError:
        return InvalidInputError(f"{type(self).__name__}.{name}: {message}")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}: {len(self.nodes)} nodes, {len(self.link_id)} links, "
            f"{len(self.trips)} OD pairs, {self.trips.sum():g} trips)"
        )

    def link_columns(self) -> dict[str, list[Any]]:
        """Columns link_id, from_node and to_node of a table with a row for each link."""
        return {
            "link_id": list(self.link_id),
            "from_node": [self.nodes[i] for i in self.tail],
            "to_node": [self.nodes[i] for i in self.head],
        }

    def pair_columns(self) -> dict[str, list[Any]]:
        """Columns origin and destination of a table with a row for each OD pair."""
        return {
            "origin": [self.nodes[i] for i in self.origin],
            "destination": [self.nodes[i] for i in self.destination],
        }


@dataclass(frozen=True, eq=False, repr=False)
class Network(Graph):
    """A transit network with its demand.

    Build it with :func:`load`, :func:`from_tables` or :func:`from_networkx`.
    All arrays are read-only. Pairs are origin-destination (OD) pairs.

    Attributes
    ----------
    name : str
        What reports call it.
    nodes : tuple of int or str, length n
        Node labels; all are of one type.
    positions : (n, 2) array of float
        Longitude and latitude in degrees if ``geographic``, else x and y.
    geographic : bool
        Whether ``positions`` are longitude and latitude.
    link_id : tuple of int or str, length m
        Link labels.
    tail, head : (m,) array of int
        Indices into ``nodes``: a link leads from its tail to its head.
    travel_time : (m,) array of float, >= 0
    capacity_cost : (m,) array of float, >= 0
        Money per unit of capacity (per trip of capacity).
    origin, destination : (p,) array of int
        Indices into ``nodes``, one entry an OD pair.
    trips : (p,) array of float, >= 0
    alternative_time : (p,) array of float, >= 0
        Disutility of the alternative, in the unit of ``travel_time``.
    revenue : (p,) array of float
        Money per trip served; may be negative (a subsidy to pay).
    population : (n,) array of float or None
        Residents by node, for reports only.
    minimum, maximum : (m,) array of float or None
        Limits of the links' capacities; NaN where a link has none. Where both are the same, the
        capacity is there already and cannot change (the tables' column ``existing``).

    Raises
    ------
    InvalidInputError
        If shapes disagree, an index is out of range, or a value is negative, not finite or
        larger than 1e15.
    """

    name: str
    nodes: tuple[Label, ...]
    positions: Floats
    geographic: bool
    link_id: tuple[Label, ...]
    tail: Integers
    head: Integers
    travel_time: Floats
    capacity_cost: Floats
    origin: Integers
    destination: Integers
    trips: Floats
    alternative_time: Floats
    revenue: Floats
    population: Floats | None = field(default=None)
    minimum: Floats | None = field(default=None)
    maximum: Floats | None = field(default=None)

    def __post_init__(self) -> None:
        self._freeze_ends()
        n, m, p = len(self.nodes), len(self.link_id), len(self.origin)
        lengths = {
            "travel_time": m,
            "capacity_cost": m,
            "trips": p,
            "alternative_time": p,
            "revenue": p,
        }
        for name, size in lengths.items():
            values = self._freeze(name, (size,), np.float64)
            if not (np.abs(values) <= LARGEST).all() or (name != "revenue" and values.min() < 0):
                least = "" if name == "revenue" else " >= 0"
                raise self._wrong(
                    name, f"every entry must be a finite number{least}, at most {LARGEST:g} in size"
                )
        shapes: list[tuple[str, tuple[int, ...]]] = [("positions", (n, 2))]
        if self.population is not None:
            shapes.append(("population", (n,)))
        for name, shape in shapes:
            if not np.isfinite(self._freeze(name, shape, np.float64)).all():
                raise self._wrong(name, "every entry must be finite")
        for name in ("minimum", "maximum"):
            if getattr(self, name) is not None and (self._freeze(name, (m,), np.float64) < 0).any():
                raise self._wrong(name, "every entry must be >= 0, or NaN for none")

    @cached_property
    def has_route(self) -> NDArray[np.bool_]:
        """Whether the links connect each OD pair, shape (p,)."""
        n = len(self.nodes)
        graph: Any = csr_array((np.ones(len(self.tail)), (self.tail, self.head)), shape=(n, n))
        origins, row = np.unique(self.origin, return_inverse=True)
        hops = dijkstra(graph, indices=origins, unweighted=True)
        reached: NDArray[np.bool_] = np.isfinite(hops[row, self.destination])
        reached.setflags(write=False)
        return reached

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What is legal but worth knowing: pairs without a route, isolated nodes, zero demand."""
        notes = []
        lost = np.flatnonzero(~self.has_route)
        if lost.size:
            pairs = (
                f"{self.nodes[self.origin[i]]} -> {self.nodes[self.destination[i]]}" for i in lost
            )
            notes.append(
                f"{lost.size} of {len(self.trips)} OD pairs have no route and are not served: "
                + _examples(pairs, lost.size)
            )
        isolated = np.setdiff1d(np.arange(len(self.nodes)), np.concatenate([self.tail, self.head]))
        if isolated.size:
            labels = (str(self.nodes[i]) for i in isolated)
            what = "node has" if isolated.size == 1 else "nodes have"
            notes.append(f"{isolated.size} {what} no link: " + _examples(labels, isolated.size))
        zero = int(np.count_nonzero(self.trips == 0))
        if zero == len(self.trips):
            notes.append("no OD pair has any trips: the best design is to build nothing")
        elif zero:
            notes.append(f"{zero} of {len(self.trips)} OD pairs have zero trips")
        return tuple(notes)

    def _columns(self) -> dict[str, dict[str, list[Any]]]:
        first, second = ("longitude", "latitude") if self.geographic else ("x", "y")
        limits = {
            name: ["" if math.isnan(value) else value for value in values.tolist()]
            for name, values in (("minimum", self.minimum), ("maximum", self.maximum))
            if values is not None
        }
        nodes = {
            "node": list(self.nodes),
            first: self.positions[:, 0].tolist(),
            second: self.positions[:, 1].tolist(),
        }
        if self.population is not None:
            nodes["population"] = self.population.tolist()
        return {
            "links": {
                **self.link_columns(),
                "travel_time": self.travel_time.tolist(),
                "capacity_cost": self.capacity_cost.tolist(),
                **limits,
            },
            "demand": {
                **self.pair_columns(),
                "trips": self.trips.tolist(),
                "alternative_time": self.alternative_time.tolist(),
                "revenue": self.revenue.tolist(),
            },
            "nodes": nodes,
        }

    def to_tables(self) -> Tables:
        """Return the three tables as DataFrames; :func:`from_tables` takes them back.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.
        """
        pandas = require("pandas", "transport", "Network.to_tables")
        return Tables(**{name: pandas.DataFrame(table) for name, table in self._columns().items()})

    def to_networkx(self) -> Any:
        """Return a ``networkx.DiGraph``; :func:`from_networkx` takes it back, links grouped by tail.

        Edges carry link_id, travel_time and capacity_cost, nodes their position, and the graph its
        name and the demand table (a dict of columns).

        Raises
        ------
        MissingDependencyError
            If networkx is not installed.
        """
        networkx = require("networkx", "transport", "Network.to_networkx")
        tables = self._columns()
        graph = networkx.DiGraph(name=self.name, demand=tables["demand"])
        nodes, links = tables["nodes"], tables["links"]
        for i, node in enumerate(self.nodes):
            graph.add_node(
                node, **{column: nodes[column][i] for column in nodes if column != "node"}
            )
        for i in range(len(self.link_id)):
            attributes = {
                key: column[i]
                for key, column in links.items()
                if key not in ("from_node", "to_node") and column[i] != ""
            }
            graph.add_edge(links["from_node"][i], links["to_node"][i], **attributes)
        return graph

    def save(self, directory: str | PathLike[str]) -> None:
        """Write links.csv, demand.csv and nodes.csv; :func:`load` reads back the same numbers.

        Parameters
        ----------
        directory : path
            Created if missing. Files of the same names are replaced, each in one step.

        Raises
        ------
        InvalidInputError
            If the directory cannot be written.
        """
        for name, table in self._columns().items():
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(table)
            writer.writerows(zip(*table.values(), strict=True))  # csv writes floats by repr: exact
            write_atomically(Path(directory) / f"{name}.csv", text.getvalue().encode())


def load(name_or_directory: str | PathLike[str]) -> Network:
    """Load a shipped instance by name, or a directory of CSV files.

    Parameters
    ----------
    name_or_directory : str or path
        ``"three_node"``, ``"nine_node"`` or ``"seville"``; or a directory with links.csv,
        demand.csv and nodes.csv. Without nodes.csv the stations get a seeded spring layout.
        Write ``./seville`` for a directory of your own that has the name of a shipped instance.

    Returns
    -------
    Network

    Raises
    ------
    InvalidInputError
        If a file is missing or wrong: the message names file, line, column and remedy.
    """
    directory, name = directory_of(name_or_directory, "transit", INSTANCES)
    links = read(directory, "links.csv", LINK_COLUMNS)
    demand = read(directory, "demand.csv", DEMAND_COLUMNS)
    return _build(links, demand, read_nodes(directory), name)


def from_tables(links: Any, demand: Any, nodes: Any = None, name: str = "network") -> Network:
    """Build a network from tables.

    Parameters
    ----------
    links, demand : DataFrame or mapping of column name to sequence
        Columns as in :mod:`blocc.applications.transport.network`; further columns are passed over.
    nodes : DataFrame or mapping, optional
        Without it the nodes are those of the links and the demand, drawn by a seeded spring layout.
    name : str, default "network"
        What reports call it.

    Returns
    -------
    Network

    Raises
    ------
    InvalidInputError
        If a table is wrong: the message names table, row (from 1), column and remedy.
    """
    return _build(
        table_of(links, "links", LINK_COLUMNS),
        table_of(demand, "demand", DEMAND_COLUMNS),
        None if nodes is None else table_of(nodes, "nodes", ("node",)),
        name,
    )


def from_networkx(graph: Any, demand: Any = None, name: str | None = None) -> Network:
    """Build a network from a networkx graph.

    Parameters
    ----------
    graph : networkx.DiGraph or networkx.Graph
        Edges carry travel_time and capacity_cost, and may carry link_id (numbered from 1
        otherwise). Nodes may carry longitude and latitude, or x and y. An undirected edge becomes a
        link each way.
    demand : DataFrame or mapping of column name to sequence, optional
        Default ``graph.graph["demand"]``.
    name : str, optional
        Default the graph's own name, or "network".

    Returns
    -------
    Network

    Raises
    ------
    InvalidInputError
        As :func:`from_tables`; also for an edge without a needed attribute.
    """
    if not all(hasattr(graph, part) for part in ("graph", "nodes", "edges", "is_directed")):
        raise InvalidInputError(
            f"from_networkx: expected a networkx graph, got {type(graph).__name__}"
        )
    if demand is None:
        demand = graph.graph.get("demand")
        if demand is None:
            raise InvalidInputError(
                "from_networkx: no demand given; pass demand=table with the columns "
                + ", ".join(DEMAND_COLUMNS)
            )
    if not graph.is_directed():
        both = [(a, b, data, i) for i, (a, b, data) in enumerate(graph.edges(data=True), 1)]
        # the reverse direction needs a link_id of its own
        edges = [(a, b, {**data, "link_id": data.get("link_id", i)}) for a, b, data, i in both]
        edges += [(b, a, {**d, "link_id": f"{d['link_id']}r"}) for a, b, d in edges]
    else:
        edges = list(graph.edges(data=True))
    links: dict[str, list[Any]] = {column: [] for column in LINK_COLUMNS}
    limits: dict[str, list[Any]] = {column: [] for column in LIMIT_COLUMNS}
    for number, (tail, head, data) in enumerate(edges, 1):
        for column in ("travel_time", "capacity_cost"):
            if column not in data:
                raise InvalidInputError(
                    f"from_networkx: edge {tail!r} -> {head!r} has no attribute {column!r}; "
                    "set it on every edge"
                )
            links[column].append(data[column])
        for column in LIMIT_COLUMNS:
            limits[column].append(data.get(column, ""))
        links["link_id"].append(data.get("link_id", number))
        links["from_node"].append(tail)
        links["to_node"].append(head)
    items = list(graph.nodes(data=True))
    nodes: dict[str, list[Any]] = {"node": [node for node, _ in items]}
    for column in ("longitude", "latitude", "x", "y", "population"):
        if any(column in data for _, data in items):
            nodes[column] = [data.get(column) for _, data in items]
    links |= {column: cells for column, cells in limits.items() if set(cells) != {""}}
    return from_tables(links, demand, nodes, name or str(graph.graph.get("name", "")) or "network")


def _build(links: Table, demand: Table, nodes: Table | None, name: str) -> Network:
    ends = ends_of(links, demand, nodes, simple=True)
    positions, geographic, population = None, False, None
    if nodes is not None:
        positions, geographic = positions_of(nodes)
        if positions is None and nodes.unit == "line":
            raise InvalidInputError(
                f"{nodes.source}: no coordinates; give longitude and latitude, or x and y, "
                "or delete the file to have a layout drawn"
            )
        if "population" in nodes.columns:
            population = nodes.numbers("population", 0)
    minimum, maximum = _limits(links)
    return Network(
        name=name,
        positions=_layout(ends.nodes, ends.tail, ends.head) if positions is None else positions,
        geographic=geographic,
        travel_time=links.numbers("travel_time", 0),
        capacity_cost=links.numbers("capacity_cost", 0),
        trips=demand.numbers("trips", 0),
        alternative_time=demand.numbers("alternative_time", 0),
        revenue=demand.numbers("revenue"),
        population=population,
        minimum=minimum,
        maximum=maximum,
        **ends._asdict(),
    )


def _limits(links: Table) -> tuple[Floats | None, Floats | None]:
    """Columns ``minimum`` and ``maximum``, with ``existing`` as both."""
    existing, minimum, maximum = (links.optional(column) for column in LIMIT_COLUMNS)
    if existing is not None:
        fixed = ~np.isnan(existing)
        for column, limit in (("minimum", minimum), ("maximum", maximum)):
            if limit is not None:
                links.refuse(
                    fixed & ~np.isnan(limit),
                    column,
                    lambda row: "the link has existing capacity, which is fixed; empty one of them",
                )
        minimum = existing.copy() if minimum is None else np.where(fixed, existing, minimum)
        maximum = existing.copy() if maximum is None else np.where(fixed, existing, maximum)
    if minimum is not None and maximum is not None:
        least, most = minimum, maximum
        links.refuse(
            least > most,
            "maximum",
            lambda row: f"{most[row]:g} is below the minimum {least[row]:g}; correct one of them",
        )
    return minimum, maximum


def _layout(nodes: tuple[Label, ...], tail: Integers, head: Integers) -> Floats:
    networkx = require("networkx", "transport", "Drawing a network without coordinates")
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_edges_from(zip(tail.tolist(), head.tolist(), strict=True))
    layout = networkx.spring_layout(graph, seed=0)
    return np.array([layout[i] for i in range(len(nodes))], dtype=np.float64)


def _examples(texts: Iterable[str], count: int) -> str:
    shown = [text for text, _ in zip(texts, range(_SHOWN), strict=False)]
    return ", ".join(shown) + (", ..." if count > _SHOWN else "")
