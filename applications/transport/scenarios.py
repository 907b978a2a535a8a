"""What a plan looks like if demand, costs or the budget turn out otherwise: one design a scenario, as a table."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blocc.applications.transport.design import design
from blocc.applications.transport.network import Network
from blocc.applications.transport.tables import number_of
from blocc.errors import BloccError, InvalidInputError, require
from blocc.files import write_atomically

Floats = np.ndarray[Any, np.dtype[np.float64]]
ASSUMPTIONS = ("demand_growth", "cost", "budget", "subsidy")
_TOLD = 40  # scenarios whose assumptions fit beside the plot
_TOGETHER = 0.02  # part of the plot below which points are labelled together
COLUMNS = (
    *ASSUMPTIONS,
    "profit",
    "capacity_cost",
    "revenue",
    "trips_served",
    "share_served",
    "links_built",
    "bound",
    "status",
    "lower_gap",
    "violation",
    "stationarity",
    "seconds",
    "error",
)


def scenarios(
    network: Network,
    *,
    demand_growth: Sequence[float] = (0.0,),
    cost: Sequence[float] = (1.0,),
    budget: Sequence[float | None] = (None,),
    subsidy: Sequence[float] = (0.0,),
    n_jobs: int | None = None,
    starts: int | None = None,
    seed: int = 0,
    tol: float = 1e-6,
    callback: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Any:
    """Design the network for every combination of some assumptions.

    Parameters
    ----------
    network : Network
    demand_growth : sequence of float
        Relative changes of all trips; 0.1 is ten percent more.
    cost : sequence of float
        Factors on all capacity costs.
    budget : sequence of float or None
        Largest total capacity costs.
    subsidy : sequence of float
        Money a trip served, added to its revenue while designing. A design with a subsidy maximises profit plus
        subsidy times trips served, so that a sweep of it traces profit against passengers served.
    n_jobs : int, optional
        Scenarios at a time, as in joblib.
    starts, seed, tol
        As in :func:`design`, of each scenario.
    callback : callable, optional
        Called with the number of scenarios done and of all, after each.
    **options
        Further ones of :func:`design`: minimum, maximum, existing, module.

    Returns
    -------
    pandas.DataFrame
        One row a scenario: demand_growth, cost, budget, subsidy; then profit (without the subsidy), capacity_cost,
        revenue (without the subsidy), trips_served, share_served, links_built, bound (on profit plus subsidies),
        status, lower_gap, violation, stationarity, seconds, and error: why there is no design where one failed.
        The first scenario's design is where the search of the others begins. After Ctrl-C the status of the
        scenarios that were not finished is "interrupted".

    Raises
    ------
    InvalidInputError
        If a list is empty, or holds no finite number of the right sign; or if all scenarios fail for a wrong option
        or network.
    """
    pandas = require("pandas", "transport", "scenarios")
    joblib = require("joblib", "transport", "scenarios")
    lists = dict(zip(ASSUMPTIONS, (demand_growth, cost, budget, subsidy), strict=True))
    least = {"demand_growth": -1.0, "cost": 0.0, "budget": 0.0, "subsidy": -math.inf}
    for name, values in lists.items():
        if np.ndim(values) != 1 or len(values) == 0:
            raise InvalidInputError(f"{name}: give a list of at least one value")
        for value in values:
            if name == "budget" and value is None:
                continue
            number = number_of(value)
            if number is None or number < least[name]:
                limit = f" of at least {least[name]:g}" if math.isfinite(least[name]) else ""
                raise InvalidInputError(f"{name}: {value} is not a finite number{limit}")
    if n_jobs == 0:
        raise InvalidInputError("n_jobs must not be 0; give 1, or -1 for all processors")
    cases = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    shared = {"starts": starts, "seed": seed, "tol": tol, **options}
    rows: list[dict[str, Any]] = []
    errors: list[BloccError | None] = []

    def done(row: dict[str, Any], error: BloccError | None) -> None:
        rows.append(row)
        errors.append(error)
        if callback is not None:
            callback(len(rows), len(cases))
        if (
            row["status"] == "interrupted"
        ):  # the design has caught the Ctrl-C, and the sweep has still to
            raise KeyboardInterrupt

    try:
        row, capacity, error = _design(network, cases[0], None, shared)
        done(row, error)
        tasks = (joblib.delayed(_design)(network, case, capacity, shared) for case in cases[1:])
        # a generator: what is done is at hand when Ctrl-C comes
        for row, _, error in joblib.Parallel(n_jobs=n_jobs, return_as="generator")(tasks):
            done(row, error)
    except KeyboardInterrupt:
        rest = {"status": "interrupted", "error": "interrupted"}
        rows += [{**case, **rest} for case in cases[len(rows) :]]
    refused = [error for error in errors if isinstance(error, InvalidInputError)]
    if refused and len(refused) == len(errors):
        raise refused[0]
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _design(
    network: Network, case: dict[str, Any], start: Floats | None, options: dict[str, Any]
) -> tuple[dict[str, Any], Floats | None, BloccError | None]:
    """Row of a scenario, its capacities, and why there are none."""
    trips = network.trips * (1.0 + case["demand_growth"])
    changed = replace(
        network,
        trips=trips,
        capacity_cost=network.capacity_cost * case["cost"],
        revenue=network.revenue + case["subsidy"],
    )
    try:
        plan = design(changed, budget=case["budget"], start=start, on_failure="return", **options)
    except BloccError as error:
        return {**case, "status": "failed", "error": str(error)}, None, error
    summary, certificate = plan.summary(), plan.result.certificate
    subsidies = case["subsidy"] * summary["trips_served"]
    row = {
        **case,
        "profit": summary["profit"] - subsidies,
        "capacity_cost": summary["cost"],
        "revenue": summary["revenue"] - subsidies,
        "trips_served": summary["trips_served"],
        "share_served": summary["share_served"],
        "links_built": summary["links_built"],
        "bound": summary["bound"],
        "status": summary["status"],
        "lower_gap": certificate.lower_gap,
        "violation": certificate.violation,
        "stationarity": certificate.stationarity,
        "seconds": summary["seconds"],
        "error": "" if plan.result.success else plan.result.message,
    }
    return row, plan.capacity, None


def plot_pareto(table: Any, path: str | os.PathLike[str]) -> Path:
    """Plot profit against trips served, a point a scenario; those no other beats in both are joined by a line.

    Points are numbered as the rows of the table, from 1, and what each stands for is told beside the plot (on the
    first 40).

    Parameters
    ----------
    table : pandas.DataFrame
        Of :func:`scenarios`.
    path : path
        PNG file to write.

    Returns
    -------
    Path
    """
    figure_module = require("matplotlib.figure", "plot", "the plot of scenarios")
    done = table["profit"].notna().to_numpy()
    numbers = np.flatnonzero(done) + 1
    shown = table[done]
    varied = [name for name in ASSUMPTIONS if shown[name].nunique(dropna=False) > 1]
    told = [
        f"{number}  {', '.join(_assumption(name, row[name]) for name in varied)}"
        for number, (_, row) in zip(numbers[:_TOLD], shown.iterrows(), strict=False)
    ]
    figure = figure_module.Figure(
        figsize=(10 if varied else 7, max(5.0, 0.19 * len(told))), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.plot(shown["trips_served"], shown["profit"], "o", color="C0")
    best = pareto(table)
    axes.plot(best["trips_served"], best["profit"], "-", color="C0", alpha=0.5)
    if varied:
        places = shown[["trips_served", "profit"]].to_numpy(dtype=np.float64)
        for place, label in _labels(places, numbers.tolist()):
            axes.annotate(label, place, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.text(1.03, 1.0, "\n".join(told), transform=axes.transAxes, fontsize=8, va="top")
    axes.margins(0.08)
    axes.set_xlabel("trips served")
    axes.set_ylabel("profit")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, bbox_inches="tight")
    return write_atomically(path, image.getvalue())


def _labels(places: Floats, numbers: Sequence[int]) -> list[tuple[Floats, str]]:
    """Numbers of points, those of points that lie on each other together."""
    extent = np.maximum(np.ptp(places, axis=0), 1e-12 * (1.0 + np.abs(places).max(axis=0)))
    groups: list[tuple[Floats, list[int]]] = []
    for place, number in zip(places, numbers, strict=True):
        for other, members in groups:
            if np.max(np.abs(place - other) / extent) < _TOGETHER:
                members.append(number)
                break
        else:
            groups.append((place, [number]))
    return [(place, ", ".join(map(str, members))) for place, members in groups]


def _assumption(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return f"no {name}"
    return f"{name.replace('_', ' ')} {value:g}"


def pareto(table: Any) -> Any:
    """Rows that no other row beats in both profit and trips served, by trips served."""
    ordered = table[table["profit"].notna()].sort_values(
        ["trips_served", "profit"], ascending=False
    )
    best = ordered["profit"].cummax()
    keep = ordered["profit"] > best.shift(fill_value=-math.inf)
    return ordered[keep].sort_values("trips_served")
