"""Reader of the TNTP text format (Transportation Networks for Research, github.com/bstabler/TransportationNetworks).

A network is a ``_net`` and a ``_trips`` file; ``_node`` (coordinates) and ``_flow`` (best known flows) are optional.
Metadata come first, one ``<TAG> value`` a line up to ``<END OF METADATA>``; ``~`` starts a comment; rows of a table
and entries of the trip table end with ``;``. Nodes are numbered from 1, and nodes below FIRST THRU NODE carry no
through traffic.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from blocc.applications.transport.network import Network
from blocc.applications.transport.roads import RoadNetwork, build
from blocc.applications.transport.tables import Floats, Table, number_of
from blocc.errors import InvalidInputError

NET_COLUMNS = (
    "from_node",
    "to_node",
    "capacity",
    "length",
    "free_flow_time",
    "b",
    "power",
    "speed",
    "toll",
    "link_type",
)
NEEDED = 7  # columns up to and with the power; some files leave the rest out
TOTAL = 1e-4  # relative difference of the trips' sum from the total that the file states
MOST_NODES = 10_000_000
_TAG = re.compile(r"\s*<([^<>]*)>(.*)")
_WHOLE = re.compile(r"[0-9]{1,9}")


def read_tntp(
    net: str | PathLike[str],
    trips: str | PathLike[str],
    node: str | PathLike[str] | None = None,
    flow: str | PathLike[str] | None = None,
    *,
    toll_factor: float | None = None,
    distance_factor: float | None = None,
    name: str | None = None,
) -> RoadNetwork:
    """Read a road network from TNTP files.

    Parameters
    ----------
    net, trips : path
        Links and demand.
    node : path, optional
        Coordinates.
    flow : path, optional
        Best known flows; they become the network's ``volume``.
    toll_factor, distance_factor : float, optional
        Time that a unit of toll and of length is worth. Default what the net file's metadata say, or 0. The best
        known flows of ChicagoSketch go with a distance factor of 0.04 (and tolls of zero).
    name : str, optional
        Default the net file's name without ``_net.tntp``.

    Returns
    -------
    RoadNetwork
        Pairs without trips and trips within a zone are left out.

    Raises
    ------
    InvalidInputError
        If a file is missing or malformed: the message names file, line and remedy.
    """
    links = _File(net)
    count = links.whole("NUMBER OF NODES", 1, MOST_NODES)
    zones = links.whole("NUMBER OF ZONES", 1, count)
    first = links.whole("FIRST THRU NODE", 1, count + 1)
    expected = links.whole("NUMBER OF LINKS", 1, MOST_NODES)
    rows = links.rows(NEEDED)
    if len(rows) != expected:
        raise links.error(
            rows[-1][0] if rows else links.last,
            f"{len(rows)} links where <NUMBER OF LINKS> says {expected}; the file may be truncated",
        )
    toll = NET_COLUMNS.index("toll")
    short = [line for line, row in rows if len(row) <= toll]
    if 0 < len(short) < len(rows):
        raise links.error(
            short[0],
            "no toll, which other rows have; the row may be truncated, or a cell is missing",
        )
    cells: dict[str, Any] = {
        column: [row[index] for _, row in rows]
        for index, column in enumerate(NET_COLUMNS)
        if all(len(row) > index for _, row in rows)
    }
    for column in ("from_node", "to_node"):
        for (line, _), cell in zip(rows, cells[column], strict=True):
            links.number_of_node(line, cell, count)
        cells[column] = [str(int(cell)) for cell in cells[column]]
    cells["link_id"] = [str(i + 1) for i in range(expected)]
    labels = [str(i + 1) for i in range(count)]
    nodes: dict[str, Any] = {"node": labels}
    if node is not None:
        nodes.update(_coordinates(_File(node, metadata=False), count))
    demand = _demand(_File(trips), zones)
    factors = {
        "toll_factor": links.factor("TOLL FACTOR") if toll_factor is None else toll_factor,
        "distance_factor": links.factor("DISTANCE FACTOR")
        if distance_factor is None
        else distance_factor,
    }
    table = Table(str(net), "line", [line for line, _ in rows], cells)
    volume = None
    if flow is not None:
        volume = _volumes(_File(flow, metadata=False), table)
    return build(
        table,
        demand,
        Table(str(node or net), "node", range(1, count + 1), nodes),
        name or Path(net).name.removesuffix(".tntp").removesuffix("_net"),
        first_through_node=first,
        volume=volume,
        **factors,
    )


def from_tntp(
    net: str | PathLike[str],
    trips: str | PathLike[str],
    node: str | PathLike[str] | None = None,
    **options: Any,
) -> Network:
    """Read TNTP files as a transit network with synthetic costs and revenues.

    Parameters
    ----------
    net, trips, node : path
        As in :func:`read_tntp`.
    **options
        Of :meth:`blocc.applications.transport.roads.RoadNetwork.to_transit`.

    Returns
    -------
    Network

    Raises
    ------
    InvalidInputError
        As :func:`read_tntp`.
    """
    return read_tntp(net, trips, node).to_transit(**options)


class _File:
    """A TNTP file: its metadata, and the numbered lines that follow, without comments."""

    def __init__(self, path: str | PathLike[str], metadata: bool = True) -> None:
        self.path = path
        try:
            raw = Path(path).read_bytes()
        except (OSError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidInputError(
                f"{path}: cannot be read ({reason}); give the path of a TNTP file"
            ) from error
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            raise self.error(line, "not UTF-8 text; is this a TNTP file?") from error
        lines = text.replace("\r\n", "\n").split("\n")
        self.last = max(1, len(text.rstrip().split("\n")))
        self.tags: dict[str, tuple[int, str]] = {}
        start = self._metadata(lines) if metadata else 0
        self.lines = [
            (number, content)
            for number, line in enumerate(lines[start:], start + 1)
            if (content := line.split("~")[0].strip())
        ]

    def error(self, line: int, message: str) -> InvalidInputError:
        return InvalidInputError(f"{self.path}, line {line}: {message}")

    def _metadata(self, lines: list[str]) -> int:
        for number, line in enumerate(lines, 1):
            content = line.strip()
            if not content or content.startswith("~"):
                continue
            found = _TAG.fullmatch(line)
            if found is None:
                raise self.error(number, "metadata '<TAG> value' expected before <END OF METADATA>")
            tag, value = found[1].strip().upper(), found[2].split("~")[0].strip()
            if tag == "END OF METADATA":
                return number
            if tag in self.tags:
                raise self.error(
                    number,
                    f"<{tag}> is already given in line {self.tags[tag][0]}; keep one of the two",
                )
            self.tags[tag] = (number, value)
        raise self.error(self.last, "<END OF METADATA> is missing; the file may be truncated")

    def whole(self, tag: str, least: int, most: int) -> int:
        """Value of a tag that must be there, a whole number."""
        if tag not in self.tags:
            raise self.error(1, f"<{tag}> is missing from the metadata; add it")
        line, value = self.tags[tag]
        if not _WHOLE.fullmatch(value) or not least <= int(value) <= most:
            raise self.error(
                line, f"<{tag}> is {value[:40]!r}, not a whole number from {least} to {most}"
            )
        return int(value)

    def factor(self, tag: str) -> float:
        """Value of a tag that may be missing, then 0."""
        if tag not in self.tags:
            return 0.0
        line, value = self.tags[tag]
        number = number_of(value)
        if number is None or number < 0:
            raise self.error(line, f"<{tag}> is {value[:40]!r}, not a number >= 0")
        return number

    def rows(self, needed: int) -> list[tuple[int, list[str]]]:
        """Cells of the table's rows, each ended by ``;``."""
        rows = []
        for number, content in self.lines:
            row, end, rest = content.partition(";")
            if not end or rest.strip():
                raise self.error(
                    number,
                    "a row must end with one ';', last on its line; the file may be truncated",
                )
            cells = row.split()
            if len(cells) < needed:
                raise self.error(
                    number, f"{len(cells)} columns where at least {needed} are expected"
                )
            rows.append((number, cells))
        return rows

    def number_of_node(self, line: int, cell: str, most: int) -> int:
        if not _WHOLE.fullmatch(cell) or not 1 <= int(cell) <= most:
            raise self.error(line, f"{cell[:40]!r} is not a node number from 1 to {most}")
        return int(cell)


def _demand(file: _File, zones: int) -> Table:
    stated = file.whole("NUMBER OF ZONES", 1, MOST_NODES)
    if stated != zones:
        raise file.error(
            file.tags["NUMBER OF ZONES"][0],
            f"<NUMBER OF ZONES> is {stated}, in the net file {zones}; do the two belong together?",
        )
    origin: str | None = None
    lines: list[int] = []
    columns: dict[str, list[str]] = {"origin": [], "destination": [], "trips": []}
    for number, content in file.lines:
        if content.lower().startswith("origin"):
            origin = str(file.number_of_node(number, content[len("origin") :].strip(), zones))
            continue
        *entries, rest = content.split(";")
        if rest.strip():
            raise file.error(number, "an entry must end with ';'; the file may be truncated")
        for entry in entries:
            if not entry.strip():
                continue
            if origin is None:
                raise file.error(number, "trips before the first 'Origin'; name their origin")
            destination, colon, trips = entry.partition(":")
            if not colon:
                raise file.error(number, f"{entry.strip()[:40]!r} is not 'destination : trips'")
            lines.append(number)
            columns["origin"].append(origin)
            columns["destination"].append(
                str(file.number_of_node(number, destination.strip(), zones))
            )
            columns["trips"].append(trips.strip())
    table = Table(str(file.path), "line", lines, columns)
    trips = table.numbers("trips", 0)
    if "TOTAL OD FLOW" in file.tags:
        total = file.factor("TOTAL OD FLOW")
        if abs(trips.sum() - total) > TOTAL * total:
            raise file.error(
                file.last,
                f"the trips sum to {trips.sum():.10g} where <TOTAL OD FLOW> says {total:.10g}; "
                "the file may be truncated",
            )
    return table.rows(np.flatnonzero(trips > 0).tolist())


def _coordinates(file: _File, count: int) -> dict[str, list[str]]:
    x, y = [""] * count, [""] * count
    header = True
    for number, content in file.lines:
        cells = content.replace(";", " ").split()
        if header and cells and not cells[0][0].isdigit():
            header = False
            continue
        header = False
        if len(cells) < 3:
            raise file.error(number, "a node's number, x and y are expected")
        index = file.number_of_node(number, cells[0], count) - 1
        if x[index]:
            raise file.error(number, f"node {cells[0]} is given twice; keep one of the two")
        for cell in cells[1:3]:
            if number_of(cell) is None:
                raise file.error(number, f"{cell[:40]!r} is not a finite number")
        x[index], y[index] = cells[1], cells[2]
    if not all(x):
        missing = x.index("") + 1
        raise file.error(file.last, f"node {missing} has no coordinates; the file may be truncated")
    return {"x": x, "y": y}


def _volumes(file: _File, links: Table) -> Floats:
    if not file.lines:
        raise file.error(file.last, "no header; 'From To Volume Cost' is expected")
    number, content = file.lines[0]
    header = content.replace(";", " ").lower().split()
    names = {"init_node": "from", "tail": "from", "term_node": "to", "head": "to", "flow": "volume"}
    header = [names.get(column, column) for column in header]
    for column in ("from", "to", "volume"):
        if header.count(column) != 1:
            raise file.error(number, f"the header must have one column {column!r}")
    where = [header.index(column) for column in ("from", "to", "volume")]
    index: dict[tuple[str, str], int] = {}
    for row, ends in enumerate(
        zip(links.columns["from_node"], links.columns["to_node"], strict=True)
    ):
        if ends in index:
            raise file.error(
                number, f"link {ends[0]} -> {ends[1]} is parallel; flows are ambiguous"
            )
        index[ends] = row
    volume = np.full(len(index), np.nan)
    for number, content in file.lines[1:]:
        cells = content.replace(";", " ").split()
        if len(cells) <= max(where):
            raise file.error(number, f"{len(cells)} columns where the header has {len(header)}")
        ends = (cells[where[0]], cells[where[1]])
        if ends not in index:
            raise file.error(number, f"{ends[0][:20]} -> {ends[1][:20]} is no link of the net file")
        if not np.isnan(volume[index[ends]]):
            raise file.error(number, f"link {ends[0]} -> {ends[1]} is given twice")
        value = number_of(cells[where[2]])
        if value is None or value < 0:
            raise file.error(number, f"{cells[where[2]][:40]!r} is not a flow >= 0")
        volume[index[ends]] = value
    if np.any(np.isnan(volume)):
        raise file.error(
            file.last,
            f"{int(np.sum(np.isnan(volume)))} links have no flow; the file may be truncated",
        )
    return volume
