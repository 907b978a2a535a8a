"""What a design leaves behind: tidy tables, a summary and a map, each written in one step."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blocc.applications.transport.network import Network
from blocc.errors import InvalidInputError, MissingDependencyError, require
from blocc.files import write_atomically

Floats = NDArray[np.float64]

# Capacity below this part of the largest one is not drawn: it would be invisible.
_DRAWN = 1e-3
_LABELLED = 60  # stations; more labels than this cover the map


def design_table(network: Network, capacity: ArrayLike, flow: ArrayLike, price: ArrayLike) -> Any:
    """Tabulate the design by link.

    Parameters
    ----------
    network : Network
    capacity, flow : (m,) array_like
        Trips.
    price : (m,) array_like
        Dual of ``flow <= capacity`` in the lower level, in the unit of travel time; NaN where
        undefined.

    Returns
    -------
    pandas.DataFrame
        Columns link_id, from_node, to_node, capacity, flow, price.
    """
    pandas = require("pandas", "transport", "design_table")
    return pandas.DataFrame(_design(network, capacity, flow, price))


def shares_table(network: Network, share: ArrayLike, path_cost: ArrayLike) -> Any:
    """Tabulate who travels, by OD pair.

    Parameters
    ----------
    network : Network
    share : (p,) array_like
        Served share of each pair.
    path_cost : (p,) array_like
        Cheapest path at travel time plus price; inf where no route is open.

    Returns
    -------
    pandas.DataFrame
        Columns origin, destination, share, trips, path_cost.
    """
    pandas = require("pandas", "transport", "shares_table")
    return pandas.DataFrame(_shares(network, share, path_cost))


def _design(
    network: Network, capacity: ArrayLike, flow: ArrayLike, price: ArrayLike
) -> dict[str, list[Any]]:
    m = len(network.link_id)
    return {
        **network.link_columns(),
        "capacity": _column("capacity", capacity, m),
        "flow": _column("flow", flow, m),
        "price": _column("price", price, m),
    }


def _shares(network: Network, share: ArrayLike, path_cost: ArrayLike) -> dict[str, list[Any]]:
    p = len(network.trips)
    return {
        **network.pair_columns(),
        "share": _column("share", share, p),
        "trips": network.trips.tolist(),
        "path_cost": _column("path_cost", path_cost, p),
    }


def _column(name: str, values: ArrayLike, size: int) -> list[float]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (size,):
        raise InvalidInputError(f"{name}: expected shape ({size},), got {array.shape}")
    return list(array.tolist())


def write_outputs(
    directory: str | PathLike[str],
    network: Network,
    *,
    capacity: ArrayLike,
    flow: ArrayLike,
    price: ArrayLike,
    share: ArrayLike,
    path_cost: ArrayLike,
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Path]:
    """Write design.csv, shares.csv, summary.json and, where they can be made, design.geojson, map.png, report.html.

    Each file is written beside its place and moved there whole, so that no reader sees half of one.

    Parameters
    ----------
    directory : path
        Created if missing; files of the same names are replaced.
    network : Network
    capacity, flow, price, share, path_cost : array_like
        As in :func:`design_table` and :func:`shares_table`. Empty cells stand for NaN.
    summary : mapping
        Plain values, written as JSON; NumPy numbers and arrays are converted, NaN and infinity
        become null. Its figures are those that the report shows.
    records : sequence of mapping
        The outer iterations, for the report.

    Returns
    -------
    dict of str to Path
        Where each file went, by its name. What could not be made (map.png without matplotlib, report.html without
        plotly, design.geojson of a network without longitudes) is missing here, and ``"not_written"`` in
        summary.json says why. A file of that name from an earlier run is removed.

    Raises
    ------
    InvalidInputError
        If a shape is wrong, or the directory cannot be written (read-only, full disk): the
        message names the path.
    """
    directory = Path(directory)
    design = _design(network, capacity, flow, price)
    contents = {"design.csv": _csv(design), "shares.csv": _csv(_shares(network, share, path_cost))}
    written = {name: write_atomically(directory / name, data) for name, data in contents.items()}
    profit = summary.get("profit")
    profit = None if profit is None else float(profit)

    def report() -> bytes:
        require("plotly", "transport", "The report")
        from .report import render
        from .sensitivity import sensitivity

        arrays = {
            name: np.asarray(values, dtype=np.float64)
            for name, values in {
                "capacity": capacity,
                "flow": flow,
                "price": price,
                "share": share,
                "path_cost": path_cost,
            }.items()
        }
        worth = None  # who has pressed Ctrl-C waits for no further answers
        if summary.get("status") != "interrupted":
            worth = sensitivity(network, arrays["capacity"], arrays["price"])
        page = render(network, **arrays, summary=summary, records=records, worth=worth)
        return page.encode()

    makers: dict[str, Callable[[], bytes]] = {
        "design.geojson": lambda: geojson(network, design),
        "map.png": lambda: _map(network, capacity, flow, profit),
        "report.html": report,
    }
    not_written = {}
    for name, make in makers.items():
        try:
            written[name] = write_atomically(directory / name, make())
        except (MissingDependencyError, _NotGeographicError) as error:
            not_written[name] = str(error)
            (directory / name).unlink(missing_ok=True)  # of an earlier design
    text = json.dumps(plain({**summary, "not_written": not_written}), indent=2, allow_nan=False)
    written["summary.json"] = write_atomically(directory / "summary.json", text.encode() + b"\n")
    return written


class _NotGeographicError(Exception):
    """GeoJSON knows only longitudes and latitudes."""


def write_tables(
    directory: str | PathLike[str],
    tables: Mapping[str, Mapping[str, list[Any]]],
    summary: Mapping[str, Any],
) -> dict[str, Path]:
    """Write tables as CSV files and a summary as summary.json.

    Parameters
    ----------
    directory : path
        Created if missing; files of the same names are replaced.
    tables : mapping of file name to columns
    summary : mapping
        Plain values, as in :func:`write_outputs`.

    Returns
    -------
    dict of str to Path
        Where each file went, by its name.

    Raises
    ------
    InvalidInputError
        If the directory cannot be written.
    """
    contents = {name: _csv(columns) for name, columns in tables.items()}
    text = json.dumps(plain(summary), indent=2, allow_nan=False)
    contents["summary.json"] = text.encode() + b"\n"
    return {name: write_atomically(Path(directory) / name, data) for name, data in contents.items()}


def geojson(network: Network, design: Mapping[str, Sequence[Any]]) -> bytes:
    """A design as GeoJSON (RFC 7946): a LineString for each link, a Point for each station, in WGS 84.

    Parameters
    ----------
    network : Network
        With longitudes and latitudes.
    design : mapping
        Columns as in :func:`design_table`.

    Returns
    -------
    bytes
        A FeatureCollection in UTF-8. Links have the properties link_id, from_node, to_node, capacity, flow, price
        and load (flow / capacity; null where nothing is built); stations have node.
    """
    if not network.geographic:
        raise _NotGeographicError(
            "GeoJSON holds longitudes and latitudes, and this network has only x and y; "
            "give nodes.csv the columns longitude and latitude"
        )
    places = network.positions.tolist()
    features = []
    for i, row in enumerate(zip(*design.values(), strict=True)):
        properties = dict(zip(design, row, strict=True))
        built = properties["capacity"] > 0
        properties["load"] = properties["flow"] / properties["capacity"] if built else None
        line = [places[network.tail[i]], places[network.head[i]]]
        features.append(_feature("LineString", line, properties))
    for node, place in zip(network.nodes, places, strict=True):
        features.append(_feature("Point", place, {"node": node}))
    collection = {"type": "FeatureCollection", "features": features}
    return json.dumps(plain(collection), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _feature(kind: str, coordinates: list[Any], properties: dict[str, Any]) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _csv(columns: Mapping[str, list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow("" if isinstance(c, float) and math.isnan(c) else c for c in row)
    return text.getvalue().encode()


def plain(value: Any, digits: int | None = None) -> Any:
    """As JSON knows it, numbers rounded to so many significant digits; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    if value is None or isinstance(value, str | bool | int):
        return value
    return str(value)  # a path, an enum


def plot_map(
    network: Network,
    capacity: ArrayLike,
    flow: ArrayLike,
    path: str | PathLike[str],
    *,
    profit: float | None = None,
) -> Path:
    """Draw the designed network: link width by capacity, colour by load, candidates in grey.

    Parameters
    ----------
    network : Network
    capacity, flow : (m,) array_like
        Trips.
    path : path
        PNG file to write.
    profit : float, optional
        For the title.

    Returns
    -------
    Path

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    InvalidInputError
        If the file cannot be written.
    """
    return write_atomically(path, _map(network, capacity, flow, profit))


def _map(network: Network, capacity: ArrayLike, flow: ArrayLike, profit: float | None) -> bytes:
    """PNG of the map."""
    require("matplotlib", "plot", "The map")
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon
    from matplotlib.patheffects import withStroke

    m = len(network.link_id)
    capacities = np.array(_column("capacity", capacity, m))
    flows = np.array(_column("flow", flow, m))
    points = projected(network)
    extent = np.maximum(np.ptp(points, axis=0), 1e-9 * (1 + np.abs(points).max()))
    extent = np.maximum(extent, 0.25 * extent.max())  # a straight line of stations is still a map
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    width = 10.0
    margin = 0.06 * extent.max()
    padded = extent + 2 * margin
    drawing = 0.85 * width  # what colour bar and margins leave
    height = float(np.clip(drawing * padded[1] / padded[0], 3.0, 8.0))
    figure = Figure(figsize=(width, height + 1.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_aspect("equal")
    for set_limits, axis in ((axes.set_xlim, 0), (axes.set_ylim, 1)):
        half = padded[axis] / 2
        set_limits(middle[axis] - half, middle[axis] + half)
    axes.axis("off")

    largest = float(capacities.max(initial=0.0))
    built = np.flatnonzero(capacities > _DRAWN * largest)  # none where all are zero
    ends = np.stack([points[network.tail], points[network.head]], axis=1)
    candidates = np.setdiff1d(np.arange(m), built)
    grey = "#b9c0ca"
    lines = LineCollection(list(ends[candidates]), colors=grey, linewidths=0.8, zorder=1)
    axes.add_collection(lines)
    # a typographic point, in units of the map
    point = float(max(padded[0] / drawing, padded[1] / height)) / 72
    labelled = len(network.nodes) <= _LABELLED
    size = 6.5 if labelled else 2.2
    load = flows / np.where(capacities > 0, capacities, 1.0)
    shapes = []
    for i in built:
        thick = thickness(capacities[i] / largest) * point
        shapes.append(Polygon(arrow(ends[i], thick, gap=0.5 * point, stop=size * point)))
    if shapes:
        colours = colormaps["plasma_r"](np.linspace(0.08, 0.85, 256))  # neither white nor black
        collection = PatchCollection(shapes, cmap=ListedColormap(colours), zorder=2, linewidths=0)
        collection.set_array(np.clip(load[built], 0, 1))
        collection.set_clim(0, 1)
        axes.add_collection(collection)
        bar = figure.colorbar(collection, ax=axes, shrink=0.55, pad=0.02, aspect=28)
        bar.set_label("load (flow / capacity)")
        bar.outline.set_visible(False)
        examples = sorted({_round(largest * part) for part in (0.05, 0.3, 1.0)})
        handles: list[Any] = [
            Line2D([], [], color="#5b6470", lw=thickness(a / largest), label=f"{a:g} trips")
            for a in examples
        ]
        handles.append(Line2D([], [], color=grey, lw=0.8, label="candidate, not built"))
        axes.legend(
            handles=handles,
            title="capacity",
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=len(handles),
            frameon=False,
        )

    axes.plot(*points.T, "o", ms=2 * size, color="white", mec="#20262e", mew=1.0, zorder=3)
    if labelled:
        inside = max(len(str(label)) for label in network.nodes) <= 3
        for label, place in zip(network.nodes, points, strict=True):
            axes.annotate(
                str(label),
                place,
                xytext=(0, 0 if inside else 1.2 * size),
                textcoords="offset points",
                ha="center",
                va="center_baseline" if inside else "bottom",
                fontsize=7.5,
                color="#20262e",
                zorder=4,
                parse_math=False,  # a label may hold dollar signs
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
    title = f"{network.name}: {len(built)} of {m} links built"
    if profit is not None:
        title = f"{title}, profit {profit:.4g}"
    axes.set_title(title, fontsize=13, parse_math=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", bbox_inches="tight", pad_inches=0.2)
    return image.getvalue()


def projected(network: Network) -> Floats:
    """Positions in the plane; degrees of longitude shrink with the cosine of the latitude."""
    points: Floats = network.positions.copy()
    if network.geographic:
        points[:, 0] *= math.cos(math.radians(float(points[:, 1].mean())))
    return points


def arrow(ends: Floats, thick: float, gap: float, stop: float) -> Floats:
    """Corners of an arrow from one end towards the other, on the right-hand side of the line.

    Both directions of a link then lie side by side, as traffic does.
    """
    along = ends[1] - ends[0]
    length = float(np.hypot(*along))
    if length == 0:
        return np.repeat(ends[:1], 3, axis=0)
    along = along / length
    right = np.array([along[1], -along[0]])
    stop = min(stop, 0.2 * length)
    start, tip = ends[0] + stop * along, ends[1] - stop * along
    tip_length = min(max(1.6 * thick, 4 * gap), 0.4 * (length - 2 * stop))
    neck = tip - tip_length * along
    near, far = gap * right, (gap + thick) * right
    barb = (gap + thick + max(0.6 * thick, 1.5 * gap)) * right
    return np.array([start + near, tip + near, neck + barb, neck + far, start + far])


def thickness(part: float) -> float:
    """Line width in points for a part of the largest capacity; the root keeps small ones visible."""
    return 0.8 + 7.2 * math.sqrt(part)


def _round(value: float) -> float:
    """To one significant digit, for legends."""
    digits = -math.floor(math.log10(value))
    return round(value, digits)
