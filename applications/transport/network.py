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
import difflib
import importlib.resources
import io
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from blocc.errors import InvalidInputError, require
from blocc.files import write_atomically

Label: TypeAlias = int | str
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

INSTANCES = ("three_node", "nine_node", "seville")
LINK_COLUMNS = ("link_id", "from_node", "to_node", "travel_time", "capacity_cost")
LIMIT_COLUMNS = ("existing", "minimum", "maximum")
DEMAND_COLUMNS = ("origin", "destination", "trips", "alternative_time", "revenue")

# Beyond this, sums of products lose all meaning in double precision: a wrong unit or a broken file.
_LARGEST = 1e15
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_SHOWN = 5  # examples listed in a note


class Tables(NamedTuple):
    """The three tables of a network, as pandas DataFrames."""

    links: Any
    demand: Any
    nodes: Any


@dataclass(frozen=True, eq=False, repr=False)
class Network:
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
        n, m, p = len(self.nodes), len(self.link_id), np.size(self.origin)
        if not (n and m and p):
            raise InvalidInputError(
                f"Network {self.name!r} is empty: it has {n} nodes, {m} links and {p} "
                "OD pairs; each needs at least one"
            )
        for name, size in (("tail", m), ("head", m), ("origin", p), ("destination", p)):
            index = self._freeze(name, (size,), np.int64)
            if index.min() < 0 or index.max() >= n:
                raise InvalidInputError(
                    f"Network.{name}: every entry must be a node index from 0 to {n - 1}"
                )
        lengths = {
            "travel_time": m,
            "capacity_cost": m,
            "trips": p,
            "alternative_time": p,
            "revenue": p,
        }
        for name, size in lengths.items():
            values = self._freeze(name, (size,), np.float64)
            if not (np.abs(values) <= _LARGEST).all() or (name != "revenue" and values.min() < 0):
                raise InvalidInputError(
                    f"Network.{name}: every entry must be a finite number"
                    + ("" if name == "revenue" else " >= 0")
                    + f", at most {_LARGEST:g} in size"
                )
        shapes: list[tuple[str, tuple[int, ...]]] = [("positions", (n, 2))]
        if self.population is not None:
            shapes.append(("population", (n,)))
        for name, shape in shapes:
            if not np.isfinite(self._freeze(name, shape, np.float64)).all():
                raise InvalidInputError(f"Network.{name}: every entry must be finite")
        for name in ("minimum", "maximum"):
            if getattr(self, name) is not None and (self._freeze(name, (m,), np.float64) < 0).any():
                raise InvalidInputError(
                    f"Network.{name}: every entry must be >= 0, or NaN for none"
                )

    def _freeze(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        array = np.array(getattr(self, name), dtype=dtype)
        if array.shape != shape:
            raise InvalidInputError(f"Network.{name}: expected shape {shape}, got {array.shape}")
        array.setflags(write=False)
        object.__setattr__(self, name, array)
        return array

    def __repr__(self) -> str:
        return (
            f"Network({self.name!r}: {len(self.nodes)} nodes, {len(self.link_id)} links, "
            f"{len(self.trips)} OD pairs, {self.trips.sum():g} trips)"
        )

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
            notes.append(f"{isolated.size} nodes have no link: " + _examples(labels, isolated.size))
        zero = int(np.count_nonzero(self.trips == 0))
        if zero == len(self.trips):
            notes.append("no OD pair has any trips: the best design is to build nothing")
        elif zero:
            notes.append(f"{zero} of {len(self.trips)} OD pairs have zero trips")
        return tuple(notes)

    def _columns(self) -> dict[str, dict[str, list[Any]]]:
        label = self.nodes.__getitem__
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
                "link_id": list(self.link_id),
                "from_node": [label(i) for i in self.tail],
                "to_node": [label(i) for i in self.head],
                "travel_time": self.travel_time.tolist(),
                "capacity_cost": self.capacity_cost.tolist(),
                **limits,
            },
            "demand": {
                "origin": [label(i) for i in self.origin],
                "destination": [label(i) for i in self.destination],
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
    if isinstance(name_or_directory, str) and name_or_directory in INSTANCES:
        name = name_or_directory
        directory: Any = importlib.resources.files("blocc.data") / "transit" / name
    else:
        directory = Path(name_or_directory)
        try:
            is_directory, exists = directory.is_dir(), directory.exists()
        except (OSError, ValueError):  # a name no file system takes: too long, or with a NUL
            is_directory = exists = False
        if not is_directory:
            raise InvalidInputError(_no_instance(str(name_or_directory), exists))
        name = directory.resolve().name
    nodes = _read(directory, "nodes.csv", ("node",), optional=True)
    links = _read(directory, "links.csv", LINK_COLUMNS)
    demand = _read(directory, "demand.csv", DEMAND_COLUMNS)
    assert links is not None
    assert demand is not None
    return _build(links, demand, nodes, name)


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
        _table_of(links, "links", LINK_COLUMNS),
        _table_of(demand, "demand", DEMAND_COLUMNS),
        None if nodes is None else _table_of(nodes, "nodes", ("node",)),
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
        if items and all(column in data for _, data in items):
            nodes[column] = [data[column] for _, data in items]
    links |= {column: cells for column, cells in limits.items() if set(cells) != {""}}
    return from_tables(links, demand, nodes, name or str(graph.graph.get("name", "")) or "network")


# Tables of raw cells: what files and DataFrames have in common, so that one set of checks is enough


@dataclass(frozen=True)
class _Table:
    source: str  # a file's path, or "links table"
    unit: str  # "line" in a file, "row" in a DataFrame
    lines: Sequence[int]
    columns: Mapping[str, Sequence[Any]]

    def error(self, row: int, column: str, message: str) -> InvalidInputError:
        return InvalidInputError(
            f"{self.source}, {self.unit} {self.lines[row]}, column {column!r}: {message}"
        )

    def numbers(self, column: str, minimum: float = -_LARGEST, maximum: float = _LARGEST) -> Floats:
        values = np.empty(len(self.lines))
        for row, cell in enumerate(self.columns[column]):
            number = _number(cell)
            if number is None:
                what = (
                    "is empty" if str(cell).strip() == "" else f"holds {_shown(cell)}, not a number"
                )
                raise self.error(
                    row, column, f"the cell {what}; write a finite decimal number such as 1.5"
                )
            if number < minimum:
                raise self.error(
                    row, column, f"{number:g} is below {minimum:g}; write a number >= {minimum:g}"
                )
            if number > maximum:
                raise self.error(
                    row,
                    column,
                    f"{number:g} is above {maximum:g}; check the unit or the column order",
                )
            values[row] = number + 0.0  # no negative zeros
        return values

    def optional(self, column: str) -> Floats | None:
        """Nonnegative numbers, NaN where a cell is empty; None where the column is missing or empty."""
        if column not in self.columns:
            return None
        cells = self.columns[column]
        given = [
            row
            for row, cell in enumerate(cells)
            if str(cell).strip() != "" and cell is not None and cell == cell  # not NaN
        ]
        if not given:
            return None
        part = _Table(
            self.source,
            self.unit,
            [self.lines[row] for row in given],
            {column: [cells[row] for row in given]},
        )
        values = np.full(len(self.lines), np.nan)
        values[given] = part.numbers(column, 0)
        return values

    def labels(self, column: str) -> list[str]:
        texts = []
        for row, cell in enumerate(self.columns[column]):
            text = _label(cell)
            if text is None:
                raise self.error(
                    row,
                    column,
                    f"{_shown(cell)} is not a label; use an integer or a printable text",
                )
            texts.append(text)
        return texts


def _read(
    directory: Any, name: str, required: Sequence[str], optional: bool = False
) -> _Table | None:
    path = directory / name
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        if optional:
            return None
        raise InvalidInputError(
            f"{path}: the file is missing; a network directory needs links.csv and demand.csv"
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"{path}: cannot be read ({error.strerror or error}); check that it is a readable file"
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InvalidInputError(
            f"{path}, line {line}: not UTF-8 text; save the table as UTF-8 CSV"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue  # blank lines and the empty rows that spreadsheets leave behind
            if not header:
                header = [cell.strip() for cell in cells]
                for column in header:
                    if header.count(column) > 1:
                        raise InvalidInputError(
                            f"{path}: the header has column {column!r} twice; keep one of them"
                        )
                continue
            if len(cells) != len(header):
                raise InvalidInputError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells where the header has "
                    f"{len(header)}; separate cells by commas and quote text that contains one"
                )
            rows.append(cells)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise InvalidInputError(
            f"{path}, line {reader.line_num}: not valid CSV ({error}); check the quotes, "
            "or save the table anew"
        ) from error
    columns = {column: [row[index] for row in rows] for index, column in enumerate(header)}
    return _checked(_Table(str(path), "line", lines, columns), required)


def _table_of(table: Any, name: str, required: Sequence[str]) -> _Table:
    source = f"{name} table"
    if not (hasattr(table, "keys") and hasattr(table, "__getitem__")):
        raise InvalidInputError(
            f"{source}: expected a DataFrame or a mapping of columns, got {type(table).__name__}"
        )
    columns: dict[str, Sequence[Any]] = {}
    for column in table.keys():  # noqa: SIM118 - iterating a mapping and a DataFrame alike
        if column in columns:
            raise InvalidInputError(f"{source}: column {column!r} occurs twice; keep one of them")
        columns[column] = list(table[column])
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        raise InvalidInputError(
            f"{source}: its columns have different lengths {sorted(lengths)}; make them equal"
        )
    count = lengths.pop() if lengths else 0
    return _checked(_Table(source, "row", range(1, count + 1), columns), required)


def _checked(table: _Table, required: Sequence[str]) -> _Table:
    for column in required:
        if column not in table.columns:
            found = ", ".join(map(str, table.columns)) or "nothing"
            raise InvalidInputError(
                f"{table.source}: column {column!r} is missing (found: {found[:200]}); "
                f"the table needs the comma-separated columns {', '.join(required)}"
            )
    if not table.lines:
        raise InvalidInputError(
            f"{table.source}: the table is empty; it needs at least one row below its header"
        )
    return table


def _number(cell: Any) -> float | None:
    if isinstance(cell, str):
        if "_" in cell:  # float() takes 1_000
            return None
    elif not isinstance(cell, numbers.Real | np.generic) or isinstance(cell, bool | np.bool_):
        return None
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _label(cell: Any) -> str | None:
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # pandas turns integer columns to float
    if isinstance(cell, bool) or not isinstance(cell, int | str):
        return None
    if isinstance(cell, int):
        return str(cell) if abs(cell) < 10**18 else None
    text = cell.strip()
    return text if text and text.isprintable() else None


def _typed(texts: Iterable[str]) -> tuple[Label, ...]:
    """Integers where all labels are, so that 1 in a file and "1" in a graph name the same node."""
    texts = list(texts)
    if all(_INTEGER.fullmatch(text) for text in texts):
        return tuple(int(text) for text in texts)
    return tuple(texts)


def _build(links: _Table, demand: _Table, nodes: _Table | None, name: str) -> Network:
    link_ids = links.labels("link_id")
    tails, heads = links.labels("from_node"), links.labels("to_node")
    origins, destinations = demand.labels("origin"), demand.labels("destination")
    if nodes is None:
        node_texts = list(dict.fromkeys([*tails, *heads, *origins, *destinations]))
        remedy = ""
    else:
        node_texts = nodes.labels("node")
        _refuse_repeats(nodes, "node", node_texts, lambda text: f"node {text!r}")
        remedy = f"is not in {nodes.source}; add it there or correct the label"
    index = {text: i for i, text in enumerate(node_texts)}

    def indices(table: _Table, column: str, texts: Sequence[str]) -> Integers:
        for row, text in enumerate(texts):
            if text not in index:
                raise table.error(row, column, f"node {text!r} {remedy}")
        return np.array([index[text] for text in texts], dtype=np.int64)

    tail, head = indices(links, "from_node", tails), indices(links, "to_node", heads)
    origin = indices(demand, "origin", origins)
    destination = indices(demand, "destination", destinations)
    for row in np.flatnonzero(tail == head).tolist():
        raise links.error(
            row,
            "to_node",
            f"the link leads from {tails[row]!r} to itself; remove it or correct a node",
        )
    for row in np.flatnonzero(origin == destination).tolist():
        raise demand.error(
            row,
            "destination",
            f"origin and destination are both {origins[row]!r}; remove the row or correct it",
        )
    _refuse_repeats(links, "link_id", link_ids, lambda text: f"link_id {text!r}")
    _refuse_repeats(
        links,
        "to_node",
        list(zip(tails, heads, strict=True)),
        lambda pair: f"a link {pair[0]!r} -> {pair[1]!r}",
    )
    _refuse_repeats(
        demand,
        "destination",
        list(zip(origins, destinations, strict=True)),
        lambda pair: f"the OD pair {pair[0]!r} -> {pair[1]!r}",
    )
    travel_time = links.numbers("travel_time", 0)
    capacity_cost = links.numbers("capacity_cost", 0)
    minimum, maximum = _limits(links)
    trips = demand.numbers("trips", 0)
    alternative_time = demand.numbers("alternative_time", 0)
    revenue = demand.numbers("revenue")

    geographic, positions, population = False, None, None
    if nodes is not None:
        geographic = {"longitude", "latitude"} <= nodes.columns.keys()
        if geographic:
            longitude, latitude = (
                nodes.numbers("longitude", -180, 180),
                nodes.numbers("latitude", -90, 90),
            )
            positions = np.column_stack([longitude, latitude])
        elif {"x", "y"} <= nodes.columns.keys():
            positions = np.column_stack([nodes.numbers("x"), nodes.numbers("y")])
        elif {"longitude", "latitude", "x", "y"} & nodes.columns.keys():
            raise InvalidInputError(
                f"{nodes.source}: a coordinate column is missing; give longitude and latitude, "
                "or x and y"
            )
        elif nodes.unit == "line":
            raise InvalidInputError(
                f"{nodes.source}: no coordinate columns; give longitude and latitude, or x and y, "
                "or delete the file to have a layout drawn"
            )
        if "population" in nodes.columns:
            population = nodes.numbers("population", 0)
    if positions is None:
        positions = _layout(len(node_texts), tail, head)
    return Network(
        name=name,
        nodes=_typed(node_texts),
        positions=positions,
        geographic=geographic,
        link_id=_typed(link_ids),
        tail=tail,
        head=head,
        travel_time=travel_time,
        capacity_cost=capacity_cost,
        origin=origin,
        destination=destination,
        trips=trips,
        alternative_time=alternative_time,
        revenue=revenue,
        population=population,
        minimum=minimum,
        maximum=maximum,
    )


def _limits(links: _Table) -> tuple[Floats | None, Floats | None]:
    """Columns ``minimum`` and ``maximum``, with ``existing`` as both."""
    existing, minimum, maximum = (links.optional(column) for column in LIMIT_COLUMNS)
    if existing is not None:
        fixed = ~np.isnan(existing)
        for column, limit in (("minimum", minimum), ("maximum", maximum)):
            if limit is None:
                continue
            for row in np.flatnonzero(fixed & ~np.isnan(limit)).tolist():
                raise links.error(
                    row, column, "the link has existing capacity, which is fixed; empty one of them"
                )
        minimum = existing.copy() if minimum is None else np.where(fixed, existing, minimum)
        maximum = existing.copy() if maximum is None else np.where(fixed, existing, maximum)
    if minimum is not None and maximum is not None:
        for row in np.flatnonzero(minimum > maximum).tolist():
            raise links.error(row, "maximum", f"{maximum[row]:g} is below the minimum")
    return minimum, maximum


def _refuse_repeats(
    table: _Table, column: str, keys: Sequence[Any], describe: Callable[[Any], str]
) -> None:
    first: dict[Any, int] = {}
    for row, key in enumerate(keys):
        if key in first:
            earlier = table.lines[first[key]]
            raise table.error(
                row,
                column,
                f"{describe(key)} is already given in {table.unit} {earlier}; keep one of the two",
            )
        first[key] = row


def _layout(count: int, tail: Integers, head: Integers) -> Floats:
    networkx = require("networkx", "transport", "Drawing a network without coordinates")
    graph = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(zip(tail.tolist(), head.tolist(), strict=True))
    layout = networkx.spring_layout(graph, seed=0)
    return np.array([layout[i] for i in range(count)], dtype=np.float64)


def _no_instance(given: str, exists: bool) -> str:
    if exists:
        return f"{given}: is a file; give the directory that holds links.csv and demand.csv"
    close = difflib.get_close_matches(given.lower(), INSTANCES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"{given!r} is neither a shipped instance nor a directory.{hint} "
        f"Shipped instances: {', '.join(INSTANCES)}; "
        "or give a directory with links.csv and demand.csv"
    )


def _examples(texts: Iterable[str], count: int) -> str:
    shown = [text for text, _ in zip(texts, range(_SHOWN), strict=False)]
    return ", ".join(shown) + (", ..." if count > _SHOWN else "")


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else text[:37] + "..."
