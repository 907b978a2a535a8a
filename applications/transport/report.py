"""``report.html``: a design as one page that a planner can read, with nothing to load from elsewhere.

The page is put together from plain dictionaries in Plotly's figure format and drawn in the browser by the plotly.js
that the Python package brings. Labels of stations and links come from outside: they reach the page only through
:func:`_text` (as HTML, and in hover boxes, where Plotly reads a little HTML) and :func:`_json` (inside the script).
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from blocc.errors import require

from .network import Network
from .output import arrow, plain, projected, thickness
from .sensitivity import CHANGE, Sensitivity

Array = np.ndarray[Any, Any]
Figure = dict[str, Any]

_HEAT_MAP = 60  # stations; beyond, a matrix of shares is unreadable
_ROWS = 10
_LABELLED = 60
_SEVERAL_HOVER_POINTS = 500  # links; below, each one can be hit at three places
_POINTS = 1500  # of a curve
_BINS = 10
_ZERO = 1e-6  # prices below this part of the largest are rounding of the solver

# Gold to violet: dark enough on white, light enough on black, and told apart by the colour-blind.
_SCALE = ((0.87, 0.65, 0.12), (0.90, 0.42, 0.24), (0.75, 0.22, 0.43), (0.53, 0.26, 0.76))
_PROFIT, _COST, _REVENUE, _OTHER = "#2b6cb0", "#c2571a", "#2a8550", "#8a94a3"


def render(
    network: Network,
    *,
    capacity: Array,
    flow: Array,
    price: Array,
    share: Array,
    path_cost: Array,
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]] = (),
    worth: Sensitivity | None = None,
) -> str:
    """The report as HTML text.

    Parameters
    ----------
    network : Network
    capacity, flow, price : array, (links,)
        Trips, trips, and units of travel time.
    share, path_cost : array, (pairs,)
    summary : mapping
        As :meth:`Design.summary` gives it.
    records : sequence of mapping
        The outer iterations.
    worth : Sensitivity, optional
        What a little more or less capacity would be worth.

    Returns
    -------
    str

    Raises
    ------
    MissingDependencyError
        If plotly is not installed.
    """
    plotly = require("plotly.offline", "transport", "report.html")
    price = np.nan_to_num(price)  # links that nobody can use may have none
    price = np.where(price > _ZERO * np.max(price[capacity > 0], initial=0.0), price, 0.0)
    load = np.divide(flow, capacity, out=np.zeros_like(flow), where=capacity > 0)
    figures = {
        "map": design_map(network, capacity, flow, price, load),
        "shares": shares_figure(network, share),
        "money": money_figure(network, capacity, share),
        "origins": origins_figure(network, share),
        "costs": costs_figure(network, capacity),
        "convergence": convergence_figure(records, summary.get("bound")),
    }
    figures = {name: figure for name, figure in figures.items() if figure is not None}
    sections = [
        _section("Map", _map_text(capacity, load, summary), ["map"]),
        _section("Bottlenecks", _bottlenecks(network, capacity, flow, price, load)),
        _section("What one more unit would be worth", _worth(network, capacity, worth)),
        _section("Who travels", _shares_text(network, share, path_cost), ["shares"]),
        _section("Revenue and cost", _money_text(summary), ["money", "origins", "costs"]),
        _section("Certificate", _certificate(summary)),
        _section("How the design was found", _search_text(summary, records), ["convergence"]),
        _section("This run", _run(summary)),
    ]
    body = "".join([_header(network, summary), *(part(figures) for part in sections)])
    title = _text(f"Design of {network.name}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>{body}</main>\n"
        f'<script type="application/json" id="figures">{_json(figures)}</script>\n'
        f"<script>{plotly.get_plotlyjs()}</script>\n<script>{_SCRIPT}</script></body></html>\n"
    )


# -- text that came from outside ---------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """As HTML, and as Plotly's hover boxes read it."""
    return html.escape(str(value), quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in; of more than six digits nothing could be seen."""
    text = json.dumps(plain(value, digits=6), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _number(value: Any) -> str:
    """Four significant digits, thousands grouped."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _percent(value: Any) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _pair(network: Network, start: int, end: int) -> str:
    return f"{_text(network.nodes[start])} → {_text(network.nodes[end])}"


# -- the parts of the page ---------------------------------------------------------------------------------------------


def _section(title: str, text: str, names: Sequence[str] = ()) -> Any:
    """A section with its figures, left to be finished once it is known which figures there are."""

    def finished(figures: Mapping[str, Figure]) -> str:
        boxes = "".join(
            f'<div class="figure" id="{name}"></div>' for name in names if name in figures
        )
        return f"<section><h2>{title}</h2>{text}<div class='figures'>{boxes}</div></section>\n"

    return finished


def _header(network: Network, summary: Mapping[str, Any]) -> str:
    built, links = summary.get("links_built"), summary.get("links")
    tiles = {
        "profit": _number(summary.get("profit")),
        "proven upper bound": _number(summary.get("bound")),
        "trips served": f"{_number(summary.get('trips_served'))} of {_number(summary.get('trips'))}"
        f" ({_percent(summary.get('share_served'))})",
        "links built": f"{built} of {links}",
        "seconds of search": _number(summary.get("seconds")),
    }
    boxes = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    notes = "".join(f"<li>{_text(note)}</li>" for note in network.notes)
    versions = ", ".join(f"{k} {v}" for k, v in dict(summary.get("versions", {})).items())
    return (
        f"<header><h1>Design of {_text(network.name)}</h1>"
        f"<p class='status'>{_text(_sentence(str(summary.get('message', ''))))}</p>"
        f"<dl class='tiles'>{boxes}</dl>"
        + (f"<ul class='notes'>{notes}</ul>" if notes else "")
        + f"<p class='small'>{_text(versions)}</p></header>\n"
    )


def _sentence(text: str) -> str:
    return (
        text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
        if text
        else ""
    )


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the first column is text, the others are numbers."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        "<div class='scroll'><table><thead><tr>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _map_text(capacity: Array, load: Array, summary: Mapping[str, Any]) -> str:
    built = capacity > 0
    if not built.any():
        return "<p>This design builds nothing.</p>"
    full = int(summary.get("links_at_capacity", 0))
    count = int(built.sum())
    filled = f"{'All' if full == count else full} of the {count} built links are"
    return (
        "<p>Each arrow is one direction of a link, on the right-hand side of its line. Its width grows with the square "
        f"root of its capacity; the widest carries {_number(float(capacity.max()))} trips. Thin grey lines "
        f"are candidates that were not built. {filled} full: capacity that stays empty costs money and earns none. "
        "Point at a link for its figures.</p>"
        "<p class='choice'>Colour by <button type='button' value='load' aria-pressed='true'>load</button> "
        "<button type='button' value='price' aria-pressed='false'>price</button></p>"
    )


def _bottlenecks(network: Network, capacity: Array, flow: Array, price: Array, load: Array) -> str:
    built = np.flatnonzero((capacity > 0) & (price > 0))
    if not len(built):
        return "<p>No link that was built is scarce: no passenger would pay for more capacity.</p>"
    order = built[np.argsort(-price[built], kind="stable")][:_ROWS]
    rows = (
        (
            f"{_text(network.link_id[i])} <span class='dim'>{_pair(network, network.tail[i], network.head[i])}</span>",
            _number(capacity[i]),
            _number(flow[i]),
            _percent(load[i]),
            _bar(price[i] / price[order[0]], _number(price[i])),
        )
        for i in order.tolist()
    )
    return (
        "<p>Built links by price: what one more trip of capacity would save the passengers together, in units of "
        "travel time. A link with room to spare has none. It is the passengers' gain, not the operator's.</p>"
        + _table(("link", "capacity", "flow", "load", "price"), rows)
    )


def _bar(part: float, text: str) -> str:
    """A bar, and a number behind it that takes the same room in every row."""
    bar = f"<span class='bar'><span style='width:{100 * float(part):.0f}%'></span></span>"
    return f"{bar}<span class='value'>{text}</span>"


def _worth(network: Network, capacity: Array, worth: Sensitivity | None) -> str:
    if worth is None or not len(worth.link):
        return (
            "<p>Not computed: no link was built, the search was interrupted, or the network is so large that asking "
            "the passengers again for every link would take too long.</p>"
        )
    rows = (
        (
            f"{_text(network.link_id[i])} <span class='dim'>{_pair(network, network.tail[i], network.head[i])}</span>",
            _number(capacity[i]),
            *(_signed(change) for change in (more, less)),
            *(_signed(change / step) for change in (more, less)),
        )
        for i, step, more, less in zip(
            worth.link.tolist(), worth.step, worth.more, worth.less, strict=True
        )
    )
    percent = f"{100 * CHANGE:.0f} %"
    known = np.concatenate([worth.more, worth.less])
    verdict = ""
    if np.isfinite(known).all():
        verdict = (
            "None of these changes raises the profit. "
            if (known <= 0).all()
            else f"The best of these changes raises the profit by {_number(float(known.max()))}. "
        )
    return (
        f"<p>Change of profit when one link gets {percent} more or less capacity and all others stay: the "
        "passengers' problem was solved again each time, for the "
        f"{_count(len(worth.link), 'link')} with the largest price. {verdict}"
        "More and less differ in size because the link is just full: more of it stays empty or draws passengers from "
        "elsewhere, less of it turns passengers away. A budget, modules, limits and what exists are not heeded.</p>"
        + _table(
            (
                "link",
                "capacity",
                f"{percent} more",
                f"{percent} less",
                "more, per trip of capacity",
                "less, per trip",
            ),
            rows,
        )
    )


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{_number(value)}".replace("-", "−")


def _shares_text(network: Network, share: Array, path_cost: Array) -> str:
    order = np.argsort(-network.trips, kind="stable")[:_ROWS]
    rows = (
        (
            _pair(network, network.origin[i], network.destination[i]),
            _number(network.trips[i]),
            _bar(share[i], _percent(share[i])),
            _number(path_cost[i]),
            _number(network.alternative_time[i]),
        )
        for i in order.tolist()
    )
    return (
        "<p>The share of each pair's trips that uses the network; the rest goes by other means. It follows from what "
        "the cheapest open route costs, travel time plus prices of full links, against the alternative. "
        f"Below, the {_count(len(order), 'pair')} with most trips.</p>"
        + _table(("pair", "trips", "share served", "route costs", "alternative"), rows)
    )


def _money_text(summary: Mapping[str, Any]) -> str:
    return (
        f"<p>Fares bring {_number(summary.get('revenue'))}, capacity costs {_number(summary.get('cost'))}, "
        f"which leaves {_number(summary.get('profit'))}. All amounts are in the unit of the tables that were "
        "given, for the trips that they count.</p>"
    )


def _certificate(summary: Mapping[str, Any]) -> str:
    found = summary.get("certificate") or {}
    tol = float((summary.get("options") or {}).get("tol", 1e-6))
    lines = [
        (
            "lower_gap",
            "Passengers choose as well as they can: by no choice of routes and shares could their total disutility be "
            "smaller than shown by more than this fraction. Proven by the prices (duality).",
        ),
        ("violation", "No link carries more than its capacity, and no trip is lost on the way."),
        ("dual_infeasibility", "No price is negative."),
        ("complementarity", "Only full links have a price."),
        (
            "stationarity",
            "No small change of the capacities raises the profit, seen through the smoothing that the search "
            f"uses (gamma = {_number(_finite(found.get('gamma')))}): the rise that its best step promises.",
        ),
    ]
    rows = []
    for name, meaning in lines:
        value = _finite(found.get(name))
        holds = value is not None and value <= tol
        mark = "<span class='yes'>✓</span>" if holds else "<span class='no'>✗</span>"
        rows.append((f"{mark} {meaning}", "–" if value is None else f"{value:.1e}"))
    remarks = []
    moved, radius = _finite(found.get("moved")), _finite(found.get("radius"))
    if moved:
        remarks.append(
            f"The last line holds at a design that differs from this one by at most {moved:.1e} (relative). This one "
            "was reached from there by moves that lose no profit, such as lowering capacities to the flows."
        )
    if radius:
        remarks.append(
            f"The last line combines what is seen within a relative distance of {radius:.1e}: profit has a kink here."
        )
    return (
        f"<p>Computed from the network's tables after the search had ended, not taken from it. Each number must be at "
        f"most {tol:.0e}.</p>"
        + _table(("what was checked", "found"), rows)
        + "".join(f"<p>{remark}</p>" for remark in remarks)
        + f"<h3>What is not proven</h3><ul>{_unproven(summary)}</ul>"
    )


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _unproven(summary: Mapping[str, Any]) -> str:
    profit, bound = _finite(summary.get("profit")), _finite(summary.get("bound"))
    points = []
    if summary.get("status") != "optimal":
        if bound is None or profit is None:
            points.append("That no other design earns more: no upper bound on the profit is known.")
        else:
            points.append(
                f"That no other design earns more than {_number(profit)}. It is proven that none earns more than "
                f"{_number(bound)}; what lies between is open. Bounds of this kind are usually far too high."
            )
    points.append(
        "That people behave as the model says: they all know all routes and prices, and choose between the network and "
        "the alternative by a logit rule."
    )
    points.append("That the tables given are right: demand, times, costs and revenues.")
    return "".join(f"<li>{point}</li>" for point in points)


def _search_text(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "<p>No iterations were recorded.</p>"
    smoothed = ""
    if _measured(records, "gamma"):
        smoothed = (
            " Gamma is the weight of the passengers' interest in the smoothed problem that the search climbs; it rises "
            "in stages. The smoothed profit is never below the true one at the same capacities, and meets it as gamma "
            "rises."
        )
    return (
        f"<p>The profit as the search went, {_count(len(records), 'record')} of it.{smoothed}</p>"
    )


def _measured(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a figure was measured often enough for a curve."""
    return sum(_finite(record.get(name)) is not None for record in records) > 1


def _run(summary: Mapping[str, Any]) -> str:
    options = {"status": summary.get("status"), **dict(summary.get("options") or {})}
    rows = (
        (_text(key), "none" if value is None else _text(value)) for key, value in options.items()
    )
    return _table(("option", "value"), rows)


# -- figures -----------------------------------------------------------------------------------------------------------


def _layout(height: int, **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 28, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {"align": "left"},
        "showlegend": False,
        **more,
    }


def _colour(part: float) -> str:
    """Of the scale, at a part of its length."""
    place = min(max(part, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(place), len(_SCALE) - 2)
    mixed = (a + (place - low) * (b - a) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True))
    return "rgb(" + ",".join(str(round(255 * c)) for c in mixed) + ")"


def design_map(network: Network, capacity: Array, flow: Array, price: Array, load: Array) -> Figure:
    """The network over its coordinates: arrows with width by capacity, colour by load or by price."""
    points = projected(network)
    ends = np.stack([points[network.tail], points[network.head]], axis=1)
    along = ends[:, 1] - ends[:, 0]
    length = np.hypot(*along.T)
    extent = float(np.ptp(points, axis=0).max()) or 1.0
    usual = float(np.median(length[length > 0])) if (length > 0).any() else extent
    unit = min(0.2 * usual, 0.02 * extent) / thickness(1.0)  # arrows fit between stations
    largest = float(capacity.max(initial=0.0))
    wide = unit * np.array([thickness(a / largest) if a > 0 else 1.0 for a in capacity.tolist()])
    gap, stop = 0.4 * unit, 2.5 * unit
    built = np.flatnonzero(capacity > 0)
    shapes = {i: arrow(ends[i], float(wide[i]), gap=gap, stop=stop) for i in built.tolist()}

    candidates = ends[capacity <= 0]
    data: list[Figure] = [
        {
            **_outline(np.insert(candidates, 2, np.nan, axis=1).reshape(-1, 2)),
            "mode": "lines",
            "line": {"color": "#9aa3af", "width": 0.8},
            "hoverinfo": "skip",
            "name": "candidates",
        }
    ]
    highest = float(np.max(price[built], initial=0.0)) or 1.0
    layers = {"load": (load, 1.0, "load: flow / capacity"), "price": (price, highest, "price")}
    for layer, (values, top, title) in layers.items():
        bins = np.minimum((_BINS * values / top).astype(np.int64), _BINS - 1)
        for level in np.unique(bins[built]).tolist():
            corners = [
                np.vstack([shapes[i], shapes[i][:1], [[np.nan, np.nan]]])
                for i in built[bins[built] == level].tolist()
            ]
            colour = _colour((level + 0.5) / _BINS)
            data.append(
                {
                    **_outline(np.concatenate(corners)),
                    "mode": "lines",
                    "fill": "toself",
                    "fillcolor": colour,
                    "line": {"color": colour, "width": 0.8},
                    "hoverinfo": "skip",
                    "visible": layer == "load",
                    "meta": layer,
                    "name": f"{layer} {level + 1} of {_BINS}",
                }
            )
        scale = [[k / 10, _colour(k / 10)] for k in range(11)]
        data.append(  # carries nothing but the colour bar
            {
                "type": "scatter",
                "x": [None],
                "y": [None],
                "mode": "markers",
                "hoverinfo": "skip",
                "visible": layer == "load",
                "meta": layer,
                "name": f"{layer} scale",
                "marker": {
                    "color": [0.0],
                    "cmin": 0.0,
                    "cmax": top,
                    "colorscale": scale,
                    "showscale": True,
                    "colorbar": {
                        "title": {"text": title, "side": "top"},
                        "orientation": "h",
                        "thickness": 10,
                        "len": 0.6,
                        "y": -0.02,
                        "yanchor": "top",
                        "outlinewidth": 0,
                        "tickformat": ".0%" if layer == "load" else "",
                    },
                },
            }
        )
    labelled = len(network.nodes) <= _LABELLED
    data.append(
        {
            "type": "scatter",
            "x": points[:, 0],
            "y": points[:, 1],
            "mode": "markers+text" if labelled else "markers",
            "text": [_text(label) for label in network.nodes],
            "textposition": "top center",
            "hoverinfo": "skip" if labelled else "text",
            "marker": {"size": 7 if labelled else 3, "line": {"width": 1.2 if labelled else 0}},
            "meta": "stations",
            "name": "stations",
        }
    )
    places = (0.3, 0.5, 0.7) if len(network.tail) <= _SEVERAL_HOVER_POINTS else (0.5,)
    across = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.maximum(length, 1e-300)[:, None]
    aside = across * (gap + wide / 2)[:, None]
    targets = np.concatenate([ends[:, 0] + part * along + aside for part in places])
    told = [_link_text(network, i, capacity, flow, price, load) for i in range(len(network.tail))]
    data.append(
        {
            "type": "scatter",
            "x": targets[:, 0],
            "y": targets[:, 1],
            "mode": "markers",
            "text": told * len(places),
            "hoverinfo": "text",
            "marker": {"size": 14, "opacity": 0, "color": _PROFIT},
            "name": "links",
        }
    )
    axis = {"visible": False}
    layout = _layout(
        640,
        hovermode="closest",
        hoverdistance=24,
        dragmode="pan",
        margin={"l": 4, "r": 4, "t": 30, "b": 70},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8a94a3", "activecolor": _PROFIT},
        xaxis=axis,
        yaxis={**axis, "scaleanchor": "x"},
    )
    return {"data": data, "layout": layout}


def _outline(corners: Array) -> Figure:
    """Trace of corners; NaN separates shapes."""
    return {"type": "scatter", "x": corners[:, 0], "y": corners[:, 1]}


def _link_text(
    network: Network, i: int, capacity: Array, flow: Array, price: Array, load: Array
) -> str:
    name = f"<b>link {_text(network.link_id[i])}</b>  {_pair(network, network.tail[i], network.head[i])}"
    cost = f"costs {_number(network.capacity_cost[i])} a trip of capacity{_limits_text(network, i)}"
    if capacity[i] <= 0:
        return f"{name}<br>not built; {cost}"
    return (
        f"{name}<br>capacity {_number(capacity[i])}<br>flow {_number(flow[i])}<br>load {_percent(load[i])}"
        f"<br>price {_number(price[i])}<br>{cost}"
    )


def _limits_text(network: Network, i: int) -> str:
    """What the network's tables say of a link's capacity."""
    least, most = (
        math.nan if limit is None else float(limit[i])
        for limit in (network.minimum, network.maximum)
    )
    if least == most:
        return "<br>existing: cannot change"
    parts = [f"at least {_number(least)}"] if least > 0 else []
    parts += [f"at most {_number(most)}"] if math.isfinite(most) else []
    return f"<br>limits: {', '.join(parts)}" if parts else ""


def shares_figure(network: Network, share: Array) -> Figure:
    """Heat map of the shares by origin and destination, or their histogram where that would be unreadable."""
    starts, row = np.unique(network.origin, return_inverse=True)
    ends, column = np.unique(network.destination, return_inverse=True)
    if max(len(starts), len(ends)) > _HEAT_MAP:
        weight, edges = np.histogram(share, bins=20, range=(0.0, 1.0), weights=network.trips)
        data: Figure = {
            "type": "bar",
            "x": (edges[:-1] + edges[1:]) / 2,
            "y": weight,
            "width": 0.045,
            "marker": {"color": _PROFIT},
            "hovertemplate": "share %{x:.1%} ± 2.5 %<br>%{y:,.4~g} trips<extra></extra>",
        }
        layout = _layout(
            340,
            xaxis={"title": {"text": "share served"}, "tickformat": ".0%"},
            yaxis={"title": {"text": "trips of pairs with this share"}},
        )
        return {"data": [data], "layout": layout}
    values = np.full((len(starts), len(ends)), np.nan)
    values[row, column] = share
    told = [[""] * len(ends) for _ in starts]
    for i, (r, c) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
        told[r][c] = (
            f"{_pair(network, network.origin[i], network.destination[i])}<br>share {_percent(share[i])}<br>"
            f"{_number(share[i] * network.trips[i])} of {_number(network.trips[i])} trips"
        )

    def ticks(stations: Array) -> dict[str, Any]:
        return {
            "tickvals": list(range(len(stations))),
            "ticktext": [_text(network.nodes[k]) for k in stations.tolist()],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        }

    heat: Figure = {
        "type": "heatmap",
        "z": values,
        "text": told,
        "hoverinfo": "text",
        "hoverongaps": False,
        "zmin": 0,
        "zmax": 1,
        "xgap": 1,
        "ygap": 1,
        "colorscale": [[0, "#e7ecf2"], [0.5, "#6fa3d0"], [1, "#153e6b"]],
        "colorbar": {
            "tickformat": ".0%",
            "thickness": 10,
            "outlinewidth": 0,
            "title": {"text": "share"},
        },
    }
    layout = _layout(
        520,
        xaxis={"title": {"text": "to", "standoff": 12}, **ticks(ends)},
        yaxis={"title": {"text": "from", "standoff": 12}, "autorange": "reversed", **ticks(starts)},
    )
    return {"data": [heat], "layout": layout}


def _bars(
    names: Sequence[str], values: Sequence[float], colours: Any, title: str, height: int
) -> Figure:
    """Horizontal bars, the first on top."""
    place = list(range(len(names)))
    bar: Figure = {
        "type": "bar",
        "orientation": "h",
        "y": place,
        "x": list(values),
        "text": [_number(v) for v in values],
        "textposition": "auto",
        "hoverinfo": "skip",
        "marker": {"color": colours},
    }
    layout = _layout(
        height,
        xaxis={"title": {"text": title}},
        yaxis={
            "tickvals": place,
            "ticktext": list(names),
            "autorange": "reversed",
            "automargin": True,
            "showgrid": False,
        },
    )
    return {"data": [bar], "layout": layout}


def money_figure(network: Network, capacity: Array, share: Array) -> Figure:
    """Revenue, cost and what is left."""
    revenue = float((network.trips * network.revenue) @ share)
    cost = float(network.capacity_cost @ capacity)
    return _bars(
        ("revenue", "capacity cost", "profit"),
        (revenue, -cost, revenue - cost),
        [_REVENUE, _COST, _PROFIT],
        "money",
        210,
    )


def _largest(names: Sequence[str], values: Array, rest: str) -> tuple[list[str], list[float]]:
    """The largest values with their names, and the sum of the rest."""
    order = np.argsort(-values, kind="stable")
    chosen = [k for k in order[:_ROWS].tolist() if values[k] > 0]
    others = float(values.sum() - values[chosen].sum())
    labels, amounts = [names[k] for k in chosen], [float(values[k]) for k in chosen]
    if abs(others) > 1e-9 * (1.0 + abs(float(values.sum()))):
        labels.append(rest)
        amounts.append(others)
    return labels, amounts


def origins_figure(network: Network, share: Array) -> Figure | None:
    """Revenue by the station where trips start."""
    values = np.bincount(
        network.origin, network.trips * network.revenue * share, minlength=len(network.nodes)
    )
    names, amounts = _largest([_text(label) for label in network.nodes], values, "all others")
    if not names:
        return None
    return _bars(names, amounts, _REVENUE, "revenue by origin", 90 + 26 * len(names))


def costs_figure(network: Network, capacity: Array) -> Figure | None:
    """Cost by link."""
    labels = [
        f"{_text(network.link_id[i])}: {_pair(network, network.tail[i], network.head[i])}"
        for i in range(len(network.tail))
    ]
    names, amounts = _largest(labels, network.capacity_cost * capacity, "all others")
    if not names:
        return None
    return _bars(names, amounts, _COST, "cost by link", 90 + 26 * len(names))


def convergence_figure(records: Sequence[Mapping[str, Any]], bound: float | None) -> Figure | None:
    """True and smoothed profit over the iterations, penalty left and gamma where they were measured."""
    every = max(1, math.ceil(len(records) / _POINTS))
    kept = [*records[::every], *records[-1:]]
    if not kept:
        return None

    def column(name: str, sign: float = 1.0) -> list[float | None]:
        values = (record.get(name) for record in kept)
        return [None if v is None or not math.isfinite(v) else sign * v for v in values]

    def positive(name: str) -> list[float | None]:
        return [None if v is None or v == 0 else abs(v) for v in column(name)]

    iteration = column("iteration")
    curves = [("profit at the passengers' answer", column("response", -1.0), "y", _PROFIT, "solid")]
    stages = _measured(records, "gamma")  # climbs over prices report the profit alone
    if stages:
        curves += [
            ("smoothed profit", column("penalized", -1.0), "y", _COST, "dot"),
            ("penalty left", positive("penalty"), "y2", _PROFIT, "solid"),
            ("gamma", positive("gamma"), "y3", _REVENUE, "solid"),
        ]
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(kept) <= 60 else "lines",
            "x": iteration,
            "y": values,
            "yaxis": axis,
            "name": name,
            "showlegend": axis == "y",
            "marker": {"size": 4},
            "line": {"color": colour, "dash": dash, "width": 1.8},
            "hovertemplate": f"{name} %{{y:.5~g}}<extra>iteration %{{x}}</extra>",
        }
        for name, values, axis, colour, dash in curves
    ]
    axes: dict[str, Any] = {"yaxis": {"title": {"text": "profit"}}}
    if stages:
        axes["yaxis"]["domain"] = [0.52, 1.0]
        for name, key, domain in (
            ("yaxis2", "penalty", [0.26, 0.46]),
            ("yaxis3", "gamma", [0.0, 0.2]),
        ):
            title = "penalty left" if key == "penalty" else key
            axes[name] = {"title": {"text": title}, "domain": domain, **_log(positive(key))}
    layout = _layout(
        560 if stages else 320,
        showlegend=stages,
        legend={"orientation": "h", "y": 1.06, "x": 0},
        xaxis={"title": {"text": "iteration"}, "anchor": "y3" if stages else "y"},
        **axes,
    )
    return {"data": data, "layout": layout}


def _log(values: Sequence[float | None]) -> dict[str, Any]:
    """Logarithmic axis with about five ticks, at 1, 2 or 5 times powers of ten, or at such powers alone."""
    known = [math.log10(v) for v in values if v]
    axis: dict[str, Any] = {"type": "log"}
    if known:
        low, high = math.floor(min(known)), math.ceil(max(known))
        steps = (1, 2, 5) if high - low <= 2 else (1,)
        every = max(1, (high - low) // 5)
        ticks = [k * 10.0**e for e in range(low, high + 1, every) for k in steps]
        axis |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return axis


_STYLE = """
:root { --ink: #1c232d; --dim: #5d6876; --paper: #ffffff; --line: #e1e5ea; --card: #f5f7f9; --accent: #2b6cb0;
  --yes: #1f7a46; --no: #b3261e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --dim: #9aa6b4; --paper: #14181d; --line: #2c343d;
  --card: #1c2229; --accent: #6fa8dc; --yes: #5cc48a; --no: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 0.5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem; }
section { border-top: 1px solid var(--line); padding: 1.6rem 0 0.8rem; }
p, li { max-width: 46rem; }
p { margin: 0.4rem 0 0.8rem; }
.status { font-size: 1.05rem; color: var(--dim); }
.small { font-size: 0.8rem; color: var(--dim); }
.dim { color: var(--dim); }
.notes { color: var(--dim); padding-left: 1.2rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem; margin: 1.2rem 0; }
.tiles div { background: var(--card); border-radius: 0.5rem; padding: 0.7rem 0.9rem; }
.tiles dt { font-size: 0.8rem; color: var(--dim); }
.tiles dd { margin: 0.15rem 0 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.figure { min-width: 0; overflow: hidden; }
#map, #money, #convergence { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; margin: 0.4rem 0 0.8rem; }
th, td { text-align: right; padding: 0.3rem 0.8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--dim); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; min-width: 5.5rem;
  overflow-wrap: break-word; }
td:not(:first-child) { white-space: nowrap; }
.bar { display: inline-block; width: 4rem; height: 0.55rem; margin-right: 0.6rem; background: var(--line);
  border-radius: 0.2rem; overflow: hidden; text-align: left; }
.value { display: inline-block; min-width: 4rem; }
.bar span { display: block; height: 100%; background: var(--accent); }
button { font: inherit; font-size: 0.9rem; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: 0.4rem; padding: 0.2rem 0.8rem; cursor: pointer; }
button[aria-pressed="true"] { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
.yes { color: var(--yes); } .no { color: var(--no); }
@media (max-width: 40rem) { main { padding: 1rem 0.8rem 3rem; } .bar { display: none; }
  th, td { padding: 0.3rem 0.45rem; } table { font-size: 0.82rem; } }
"""

_SCRIPT = """
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function themed(name, layout) {
  const result = structuredClone(layout);
  result.font.color = colour("--ink");
  for (const key of Object.keys(result).filter((k) => /^[xy]axis/.test(k))) {
    for (const part of ["gridcolor", "zerolinecolor", "linecolor"]) result[key][part] = colour("--line");
  }
  if (name === "map" && innerWidth < 640) result.height = 1.15 * innerWidth;
  return result;
}
function stations(traces) {
  for (const trace of traces) {
    if (trace.meta !== "stations") continue;
    trace.marker.color = trace.text.length > 60 ? colour("--dim") : colour("--paper");
    trace.marker.line.color = colour("--ink");
    const paper = colour("--paper");
    trace.textfont = { shadow: ["1px 1px", "-1px 1px", "1px -1px", "-1px -1px"]
      .map((shift) => `${shift} 2px ${paper}`).join(", ") };
  }
  return traces;
}
function draw() {
  for (const [name, figure] of Object.entries(figures)) {
    const options = { responsive: true, displaylogo: false, scrollZoom: false,
      displayModeBar: name === "map" ? "hover" : false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] };
    Plotly.react(name, stations(figure.data), themed(name, figure.layout), options);
  }
}
draw();
const buttons = [...document.querySelectorAll(".choice button")];
for (const button of buttons) {
  button.addEventListener("click", () => {
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    for (const trace of figures.map.data) {
      if (trace.meta === "load" || trace.meta === "price") trace.visible = trace.meta === button.value;
    }
    draw();
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
"""
