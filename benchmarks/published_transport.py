"""The paper's own method beside ours on transit design: true profit over CPU time, in one run.

    python -m benchmarks.published_transport --out DIR [--only seville] [--seconds-scale 1.0]

Writes published_transport.json, published_transport.md and published_transport.svg (the figure of the README).

*Profit* is always the one at the passengers' exact answer, whatever the method believed. The exact answers along the
runs are found afterwards and not counted. The two final designs are evaluated once more with CVXPY.

*Ours* is ``transport.design`` with its defaults, numba's compilation not counted.

*Published* is Algorithm 1 with Algorithm 2 inside (``blocc.methods.published``), on arc flows by origin
(``applications/transport/arc_flow.py``), gamma as the authors chose it for the instance, shares kept from 0 and 1 by
0.01 as in their code. It starts at capacities that carry everybody on shortest paths. Its step sizes are not known to
us: each setting of a grid gets a tenth of the time, and the one with the best true profit runs to the end. The time of
that search is not counted, and the table gives the best design that the run passed through, although the method has
no way to know which one that is; the curve shows where it was. A NumPy implementation takes more time an iteration
than a compiled one. So where ../shared/reference/transit.json is there, its record of the authors' own code,
compiled, is drawn as well (measured on another day, on two shared cores).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: CPU time must mean one core

import numpy as np
from matplotlib.figure import Figure

import blocc
from benchmarks.environment import environment
from blocc.applications import transport
from blocc.applications.transport import arc_flow, reference
from blocc.methods.published import blocc as algorithm_1

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "transit.json"
GAMMA = {"three_node": 4.0, "nine_node": 4.0, "seville": 3.0}
SECONDS = {"three_node": 30.0, "nine_node": 45.0, "seville": 120.0}
GRID = [(eta, primal) for eta in (1e-5, 1e-4, 1e-3) for primal in (1e-3, 1e-2)]
DUAL_STEP, FLOOR, PILOT = 0.1, 0.01, 0.1
BLUE, ORANGE, GREY, GREEN = "#1f5fa8", "#d1661b", "#7a828c", "#2a8550"
OURS, THEIRS = "blocc, defaults", "as published, run here (NumPy)"
AUTHORS = "as published, authors' code compiled (earlier record)"
Curve = list[tuple[float, float]]


class _Enough(Exception):
    """The time is used up."""


def true_profit(network: transport.Network, capacity: Any) -> float:
    answer = transport.respond(network, capacity, tol=1e-6)
    return float(
        (network.trips * network.revenue) @ answer.share - network.capacity_cost @ capacity
    )


def ours(network: transport.Network) -> tuple[Curve, Any]:
    """Profit over CPU time, and the design."""
    track: Curve = []
    began = time.process_time()

    def note(record: dict[str, Any]) -> None:
        track.append((time.process_time() - began, -float(record["response"])))

    plan = transport.design(network, callback=note, on_failure="return")
    return [*track, (time.process_time() - began, plan.profit)], plan


def published(
    network: transport.Network, gamma: float, eta: float, primal: float, seconds: float
) -> dict[str, Any]:
    """Algorithm 1 for so many CPU seconds: profit over CPU time, its iterations and its best capacities."""
    setup = arc_flow.functions(network, floor=FLOOR)
    arguments = setup.arguments()
    model = blocc.FunctionalModel(**arguments)
    kept: list[tuple[float, int, Any]] = []
    began = time.process_time()
    due = 0.0

    def note(step: Any) -> None:
        nonlocal due
        now = time.process_time() - began
        if now >= due:
            kept.append((now, step.t, step.x.copy()))
            due = max(1.25 * now, 0.02)
        if now >= seconds:
            kept.append((now, step.t, step.x.copy()))
            raise _Enough

    try:
        with np.errstate(all="ignore"):  # steps too long diverge, and lose
            algorithm_1(
                model,
                setup.x0,
                gamma=gamma,
                eta=eta,
                T=10**9,
                eta_1g=primal,
                eta_1F=primal / gamma,
                eta_2=DUAL_STEP,
                T_inner=1,
                callback=note,
            )
    except _Enough:
        pass
    finite = [(s, t, x) for s, t, x in kept if np.isfinite(x).all()]
    values = [true_profit(network, x) for _, _, x in finite]
    best = int(np.argmax(values))
    return {
        "eta": eta,
        "primal_step": primal,
        "iterations": kept[-1][1],
        "seconds": kept[-1][0],
        "curve": [(s, v) for (s, _, _), v in zip(finite, values, strict=True)],
        "last": values[-1],
        "best": values[best],
        "capacity": finite[best][2].tolist(),
    }


def study(name: str, scale: float) -> dict[str, Any]:
    """Both methods on one instance."""
    network, gamma, seconds = transport.load(name), GAMMA[name], scale * SECONDS[name]
    curve, plan = ours(network)
    pilots = [published(network, gamma, *setting, PILOT * seconds) for setting in GRID]
    chosen = max(pilots, key=lambda pilot: pilot["best"])
    run = published(network, gamma, chosen["eta"], chosen["primal_step"], seconds)
    row: dict[str, Any] = {
        "instance": name,
        "ours": {
            "curve": curve,
            "seconds": curve[-1][0],
            "profit": plan.profit,
            "profit_by_cvxpy": reference.profit(network, plan.capacity),
            "status": plan.status.name,
        },
        "published": {
            **{key: value for key, value in run.items() if key != "capacity"},
            "gamma": gamma,
            "best_by_cvxpy": reference.profit(network, np.array(run["capacity"])),
            "pilots": [
                {key: pilot[key] for key in ("eta", "primal_step", "iterations", "best", "last")}
                for pilot in pilots
            ],
        },
    }
    if REFERENCE.is_file():
        facts = json.loads(REFERENCE.read_text())[name]
        row["authors_code"] = facts["paper_code"]
        known = facts.get("best_known", facts.get("optimum"))
        row["best_known"] = max(known, row["ours"]["profit_by_cvxpy"])
    return row


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """True profit over CPU seconds, a panel an instance."""
    figure = Figure(figsize=(4.2 * len(rows), 3.7), layout="constrained")
    for axes, row in zip(np.atleast_1d(figure.subplots(1, len(rows))), rows, strict=True):
        own, theirs, known = row["ours"], row["published"], row.get("authors_code", {})
        seconds, values = np.array(own["curve"]).T
        axes.semilogx(seconds, np.maximum.accumulate(values), color=BLUE, label=OURS)
        axes.plot(own["seconds"], own["profit"], "o", color=BLUE, ms=5)
        axes.plot(*np.array(theirs["curve"]).T, color=ORANGE, label=THEIRS)
        top = max(own["profit"], row.get("best_known", 0.0))
        if known:
            track = known.get("true_profit_by_cpu_s", {})
            marked = {known["cpu_s_compiled"]: known["profit"]}
            points = {**{float(s): profit for s, profit in track.items()}, **marked}
            axes.plot(list(points), list(points.values()), "s--", color=GREY, ms=3, label=AUTHORS)
            axes.axhline(row["best_known"], color=GREEN, lw=0.8, ls=":", label="best known to us")
        low = min(0.0, *(value for _, value in theirs["curve"]))
        axes.set_ylim(max(low - 0.1 * top, -0.6 * top), 1.1 * top)
        axes.set(xlabel="CPU seconds", title=row["instance"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e6ea", linewidth=0.6)
    figure.axes[0].set_ylabel("profit at the passengers' exact answer")
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path)


def table(rows: list[dict[str, Any]]) -> str:
    """Final figures, as markdown."""
    lines = [
        "| instance | ours: profit (CVXPY) | CPU s | status | as published, here: best profit (CVXPY) | CPU s | "
        "iterations | authors' code (reference) | CPU s |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        own, theirs, known = row["ours"], row["published"], row.get("authors_code", {})
        lines.append(
            f"| {row['instance']} | {own['profit']:.5g} ({own['profit_by_cvxpy']:.5g}) | {own['seconds']:.3g} | "
            f"{own['status'].lower()} | {theirs['best']:.5g} ({theirs['best_by_cvxpy']:.5g}) | "
            f"{theirs['seconds']:.3g} | {theirs['iterations']} | {known.get('profit', '')} | "
            f"{known.get('cpu_s_compiled', '')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=list(GAMMA), action="append")
    parser.add_argument(
        "--seconds-scale", type=float, default=1.0, help="of the published runs' time"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not REFERENCE.is_file():
        print(f"{REFERENCE} is absent: the authors' own record is left out")
    small = transport.load("three_node")
    ours(small)  # numba compiles
    rows = [study(name, arguments.seconds_scale) for name in arguments.only or GAMMA]
    record = {"environment": environment("numba"), "rows": rows}
    (arguments.out / "published_transport.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(rows)
    (arguments.out / "published_transport.md").write_text(text)
    plot(rows, arguments.out / "published_transport.svg")
    print(text)


if __name__ == "__main__":
    main()
