"""Tables of raw cells, and the checks that transit and road networks share.

Files and DataFrames become the same thing here, so that one set of checks serves both; every error names the file's
line (or the table's row), the column and a remedy.
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
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from blocc.errors import InvalidInputError

Label: TypeAlias = int | str
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

# Beyond this, sums of products lose all meaning in double precision: a wrong unit or a broken file.
LARGEST = 1e15
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")

# folders of blocc.data, and what the networks there are
_KINDS = {
    "transit": "transit network, for design and scenarios (transport.load)",
    "cndp": "road network, for equilibrium and expand (transport.load_roads)",
}


@dataclass(frozen=True)
class Table:
    """Columns of raw cells, and where they came from.

    Attributes
    ----------
    source : str
        A file's path, or "links table".
    unit : str
        "line" in a file, "row" in a DataFrame.
    lines : sequence of int
        Number of each row's line.
    columns : mapping of str to sequence
    """

    source: str
    unit: str
    lines: Sequence[int]
    columns: Mapping[str, Sequence[Any]]

    def error(self, row: int, column: str, message: str) -> InvalidInputError:
        """An error that names the cell."""
        return InvalidInputError(
            f"{self.source}, {self.unit} {self.lines[row]}, column {column!r}: {message}"
        )

    def refuse(self, bad: Any, column: str, message: Callable[[int], str]) -> None:
        """Raise InvalidInputError at the first row where ``bad`` holds."""
        for row in np.flatnonzero(bad).tolist():
            raise self.error(row, column, message(row))

    def rows(self, chosen: Sequence[int]) -> Table:
        """Some of the rows."""
        return Table(
            self.source,
            self.unit,
            [self.lines[row] for row in chosen],
            {column: [cells[row] for row in chosen] for column, cells in self.columns.items()},
        )

    def numbers(self, column: str, minimum: float = -LARGEST, maximum: float = LARGEST) -> Floats:
        """A column of finite numbers in a range."""
        values = np.empty(len(self.lines))
        for row, cell in enumerate(self.columns[column]):
            value = number_of(cell)
            if value is None:
                what = "is empty" if _empty(cell) else f"holds {_shown(cell)}, not a number"
                raise self.error(
                    row, column, f"the cell {what}; write a finite decimal number such as 1.5"
                )
            if value < minimum:
                raise self.error(
                    row, column, f"{value:g} is below {minimum:g}; write a number >= {minimum:g}"
                )
            if value > maximum:
                remedy = (
                    "check the unit or the column order"
                    if maximum == LARGEST
                    else f"write a number from {minimum:g} to {maximum:g}"
                )
                raise self.error(row, column, f"{value:g} is above {maximum:g}; {remedy}")
            values[row] = value + 0.0  # no negative zeros
        return values

    def optional(self, column: str) -> Floats | None:
        """Nonnegative numbers, NaN where a cell is empty; None where the column is missing or empty."""
        if self.blank(column):
            return None
        given = [row for row, cell in enumerate(self.columns[column]) if not _empty(cell)]
        values = np.full(len(self.lines), np.nan)
        values[given] = self.rows(given).numbers(column, 0)
        return values

    def blank(self, column: str) -> bool:
        """Whether the column is missing, or all its cells are empty."""
        return all(_empty(cell) for cell in self.columns.get(column, ()))

    def labels(self, column: str) -> list[str]:
        """A column of labels as texts."""
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

    def refuse_repeats(
        self, column: str, keys: Sequence[Any], describe: Callable[[Any], str]
    ) -> None:
        """Raise InvalidInputError where a key occurs twice."""
        first: dict[Any, int] = {}
        for row, key in enumerate(keys):
            if key in first:
                earlier = self.lines[first[key]]
                raise self.error(
                    row,
                    column,
                    f"{describe(key)} is already given in {self.unit} {earlier}; keep one of the two",
                )
            first[key] = row


def directory_of(
    name_or_directory: str | PathLike[str], folder: str, shipped: Sequence[str]
) -> tuple[Any, str]:
    """Where a network's tables are, and its name.

    Parameters
    ----------
    name_or_directory : str or path
        Of a shipped network, or a directory.
    folder : {"transit", "cndp"}
        Folder of blocc.data with the shipped networks of the kind that is wanted.
    shipped : sequence of str
        Their names.

    Raises
    ------
    InvalidInputError
        If it is neither; the message names what there is.
    """
    if not isinstance(name_or_directory, str | PathLike):
        raise InvalidInputError(
            f"expected the name of a network or a directory, got {_shown(name_or_directory)}"
        )
    given = str(name_or_directory)
    data = importlib.resources.files("blocc.data")
    if isinstance(name_or_directory, str) and given in shipped:
        return data / folder / given, given
    directory = Path(name_or_directory)
    try:
        is_directory, exists = directory.is_dir(), directory.exists()
    except (OSError, ValueError):  # a name no file system takes: too long, or with a NUL
        is_directory = exists = False
    if is_directory and given:
        return directory, directory.resolve().name
    if exists and given:
        raise InvalidInputError(
            f"{given}: is a file; give the directory that holds links.csv and demand.csv"
        )
    hint = ""
    close = difflib.get_close_matches(given[:80].lower(), shipped, n=1)
    other = next(name for name in _KINDS if name != folder)
    if given.isidentifier() and len(given) < 80 and (data / other / given).is_dir():
        hint = f" It is a {_KINDS[other]}."
    elif close:
        hint = f" Did you mean {close[0]!r}?"
    raise InvalidInputError(
        f"{_shown(given)} is neither a shipped instance nor a directory.{hint} "
        f"Shipped instances: {', '.join(shipped)}; "
        "or give a directory with links.csv and demand.csv"
    )


def read(
    directory: Any,
    name: str,
    required: Sequence[str],
    *,
    names: Mapping[str, str] | None = None,
) -> Table:
    """Read a CSV file of a directory.

    Parameters
    ----------
    directory : path or importlib Traversable
    name : str
        Of the file.
    required : sequence of str
        Columns that must be there.
    names : mapping, optional
        Columns that other formats name otherwise, to the name they have here.

    Raises
    ------
    InvalidInputError
        If the file is missing or is no such table: the message names file, line and remedy.
    """
    path = directory / name
    raw = _content(path)
    if raw is None:
        raise InvalidInputError(
            f"{path}: the file is missing; a network directory needs links.csv and demand.csv"
        )
    return _checked(_parsed(path, raw), required, names)


def read_nodes(directory: Any) -> Table | None:
    """Read nodes.csv; None where there is none."""
    path = directory / "nodes.csv"
    raw = _content(path)
    return None if raw is None else _checked(_parsed(path, raw), ("node",))


def _content(path: Any) -> bytes | None:
    """Bytes of a file; None where there is none."""
    try:
        content: bytes = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInputError(
            f"{path}: cannot be read ({error.strerror or error}); check that it is a readable file"
        ) from error
    return content


def _parsed(path: Any, raw: bytes) -> Table:
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
    return Table(str(path), "line", lines, columns)


def table_of(
    table: Any,
    name: str,
    required: Sequence[str],
    *,
    names: Mapping[str, str] | None = None,
) -> Table:
    """Take a DataFrame or a mapping of columns; parameters and errors as those of :func:`read`."""
    source = f"{name} table"
    if not (hasattr(table, "keys") and hasattr(table, "__getitem__")):
        raise InvalidInputError(
            f"{source}: expected a DataFrame or a mapping of columns, got {type(table).__name__}"
        )
    columns: dict[str, Sequence[Any]] = {}
    for column in table.keys():  # noqa: SIM118 - iterating a mapping and a DataFrame alike
        if column in columns:
            raise InvalidInputError(f"{source}: column {column!r} occurs twice; keep one of them")
        try:
            columns[column] = list(table[column])
        except TypeError as error:
            raise InvalidInputError(
                f"{source}: column {column!r} is {_shown(table[column])}, not a sequence of cells"
            ) from error
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        raise InvalidInputError(
            f"{source}: its columns have different lengths {sorted(lengths)}; make them equal"
        )
    count = lengths.pop() if lengths else 0
    return _checked(Table(source, "row", range(1, count + 1), columns), required, names)


def _checked(
    table: Table, required: Sequence[str], names: Mapping[str, str] | None = None
) -> Table:
    columns: dict[str, Sequence[Any]] = {}
    for given, cells in table.columns.items():
        column = (names or {}).get(given, given)
        if column in columns:
            raise InvalidInputError(
                f"{table.source}: two columns mean {column!r}, one of them {given!r}; keep one"
            )
        columns[column] = cells
    for column in required:
        if column not in columns:
            found = ", ".join(map(str, table.columns)) or "nothing"
            raise InvalidInputError(
                f"{table.source}: column {column!r} is missing (found: {found[:200]}); "
                f"the table needs the comma-separated columns {', '.join(required)}"
            )
    if not table.lines:
        raise InvalidInputError(
            f"{table.source}: the table is empty; it needs at least one row below its header"
        )
    return Table(table.source, table.unit, table.lines, columns)


def number_of(cell: Any) -> float | None:
    """A cell as a finite number; None where it is none."""
    if isinstance(cell, str):
        if "_" in cell:  # float() takes 1_000
            return None
    elif not isinstance(cell, numbers.Real | np.generic) or isinstance(cell, bool | np.bool_):
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def numbers_of(name: str, value: Any) -> Floats:
    """An argument as an array of floats."""
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{name}: expected numbers, got {_shown(value)}") from error


def _empty(cell: Any) -> bool:
    """Whether a cell is empty; None, NaN and pandas' NA are what DataFrames have there."""
    if isinstance(cell, float | np.floating):
        return math.isnan(cell)
    return cell is None or str(cell).strip() in ("", "<NA>")


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


def typed(texts: Iterable[str]) -> tuple[Label, ...]:
    """Integers where all labels are, so that 1 in a file and "1" in a graph name the same node."""
    texts = list(texts)
    if all(_INTEGER.fullmatch(text) for text in texts):
        return tuple(int(text) for text in texts)
    return tuple(texts)


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else text[:37] + "..."


class Ends(NamedTuple):
    """Nodes, and where links and OD pairs begin and end, as indices into them."""

    nodes: tuple[Label, ...]
    link_id: tuple[Label, ...]
    tail: Integers
    head: Integers
    origin: Integers
    destination: Integers


def ends_of(links: Table, demand: Table, nodes: Table | None, *, simple: bool) -> Ends:
    """Look up the nodes of links and OD pairs.

    Parameters
    ----------
    links, demand, nodes : Table
        Without ``nodes``, they are those of the links and the demand.
    simple : bool
        Refuse parallel links, and pairs whose ends are the same.

    Raises
    ------
    InvalidInputError
        If a label is none, unknown or given twice, or a link leads to itself.
    """
    tails, heads = links.labels("from_node"), links.labels("to_node")
    origins, destinations = demand.labels("origin"), demand.labels("destination")
    link_ids = links.labels("link_id")
    if nodes is None:
        texts = list(dict.fromkeys([*tails, *heads, *origins, *destinations]))
        remedy = ""
    else:
        texts = nodes.labels("node")
        nodes.refuse_repeats("node", texts, lambda text: f"node {text!r}")
        remedy = f"is not in {nodes.source}; add it there or correct the label"
    index = {text: i for i, text in enumerate(texts)}

    def indices(table: Table, column: str, labels: Sequence[str]) -> Integers:
        for row, label in enumerate(labels):
            if label not in index:
                raise table.error(row, column, f"node {label!r} {remedy}")
        return np.array([index[label] for label in labels], dtype=np.int64)

    tail, head = indices(links, "from_node", tails), indices(links, "to_node", heads)
    origin = indices(demand, "origin", origins)
    destination = indices(demand, "destination", destinations)
    links.refuse(
        tail == head,
        "to_node",
        lambda row: f"the link leads from {tails[row]!r} to itself; remove it or correct a node",
    )
    links.refuse_repeats("link_id", link_ids, lambda text: f"link_id {text!r}")
    if simple:
        demand.refuse(
            origin == destination,
            "destination",
            lambda row: (
                f"origin and destination are both {origins[row]!r}; remove the row or correct it"
            ),
        )
        links.refuse_repeats(
            "to_node",
            list(zip(tails, heads, strict=True)),
            lambda pair: f"a link {pair[0]!r} -> {pair[1]!r}",
        )
    demand.refuse_repeats(
        "destination",
        list(zip(origins, destinations, strict=True)),
        lambda pair: f"the OD pair {pair[0]!r} -> {pair[1]!r}",
    )
    return Ends(typed(texts), typed(link_ids), tail, head, origin, destination)


def positions_of(nodes: Table) -> tuple[Floats | None, bool]:
    """Coordinates of the nodes, (n, 2), and whether they are degrees; None where no column has any."""
    ranges = {"longitude": 180.0, "latitude": 90.0, "x": LARGEST, "y": LARGEST}
    for axes in (("longitude", "latitude"), ("x", "y")):
        given = [axis for axis in axes if not nodes.blank(axis)]
        if len(given) == 1:
            raise InvalidInputError(
                f"{nodes.source}: of the columns {axes[0]} and {axes[1]} only {given[0]} is filled; "
                "give longitude and latitude, or x and y"
            )
        if given:
            columns = [nodes.numbers(axis, -ranges[axis], ranges[axis]) for axis in axes]
            return np.column_stack(columns), axes[0] == "longitude"
    return None, False
