"""Transit designs by default and with a search, each checked by CVXPY at the passengers' exact response.

    python -m benchmarks.transit_design --out DIR [--only three_node,nine_node,seville,seville_search] [--jobs 2]

*profit* is ours, *checked* that of the same capacities when CVXPY and Clarabel solve the passengers' problem. Wall and
CPU seconds are of the second run of a default design in the process (the first compiles or loads compiled code, and is
shown as *first*), and of the only run of the search; *peak_gb* is the memory of the process up to there. Writes
designs.md, designs.json and environment.json.

``--only SiouxFalls,Anaheim,ChicagoSketch`` designs road networks with synthetic costs and revenues, once each, from
../shared/data/tntp, ``--only first_prices`` Seville without trials from seven first prices of every link, and
``--only budgets`` Seville under budgets, without trials and with those of a default design. CVXPY checks networks of up
to 1,000 pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import numpy as np

from benchmarks.environment import environment
from blocc.applications import transport
from blocc.applications.transport import prices, reference, search
from blocc.applications.transport.model import TransitModel

CASES: dict[str, tuple[str, int]] = {
    "three_node": ("three_node", 1),
    "nine_node": ("nine_node", 1),
    "seville": ("seville", 1),
    "seville_search": ("seville", 80),
}
ROADS = ("SiouxFalls", "Anaheim", "ChicagoSketch")
TNTP = Path(__file__).resolve().parents[2] / "shared" / "data" / "tntp"
BUDGETS = (50.0, 100.0, 200.0, 300.0, 500.0)
FIRST_PRICES = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


def _timed(network: Any, **options: Any) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), _cpu()
    plan = transport.design(network, on_failure="return", **options)
    return plan, time.perf_counter() - wall, _cpu() - cpu


def _cpu() -> float:
    """CPU seconds of this process and of workers that have ended."""
    return sum(os.times()[:4])


def run(case: str, jobs: int) -> dict[str, Any]:
    """One case; the default ones twice."""
    name, starts = CASES.get(case, (case, 0))
    network = (
        transport.load_roads(TNTP / name).to_transit() if name in ROADS else transport.load(name)
    )
    first = float("nan")
    if name in ROADS:
        plan, wall, cpu = _timed(network)
    elif starts == 1:
        _, first, _ = _timed(network)
        plan, wall, cpu = _timed(network)
    else:
        plan, wall, cpu = _timed(network, starts=starts, n_jobs=jobs, seed=0)
    return {
        "case": case,
        "starts": starts,
        "profit": plan.profit,
        "checked": (
            reference.profit(network, plan.capacity)
            if len(network.trips) <= 1_000
            else float("nan")
        ),
        "bound": plan.bound,
        "status": plan.status.name,
        "lower_gap": plan.result.certificate.lower_gap,
        "stationarity": plan.result.certificate.stationarity,
        "first": first,
        "wall": wall,
        "cpu": cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def climbs() -> list[dict[str, Any]]:
    """Where first climbs on Seville end, by the price that every link begins with."""
    model = TransitModel(transport.load("seville"))
    rows = []
    for price in FIRST_PRICES:
        began = _cpu()
        first = np.full(model.paths.links, price)
        climb = prices.climb(model, first, search.FIRST, tol=1e-6, gamma=search.LAST_GAMMA)
        rows.append({"first price": price, "profit": climb.profit, "cpu": _cpu() - began})
    return rows


def budgets() -> list[dict[str, Any]]:
    """Seville under budgets; a first design, not shown, compiles or loads compiled code."""
    network, rows = transport.load("seville"), []
    _timed(network, starts=1, budget=BUDGETS[-1])
    for budget in BUDGETS:
        for starts in (0, None):
            plan, wall, cpu = _timed(network, starts=starts, budget=budget)
            rows.append(
                {
                    "budget": budget,
                    "starts": plan.options["starts"],
                    "profit": plan.profit,
                    "checked": reference.profit(network, plan.capacity),
                    "cost": plan.summary()["cost"],
                    "status": plan.status.name,
                    "stationarity": plan.result.certificate.stationarity,
                    "wall": wall,
                    "cpu": cpu,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only == "first_prices":
        rows = climbs()
    elif arguments.only == "budgets":
        rows = budgets()
    else:
        rows = [run(case, arguments.jobs) for case in arguments.only.split(",")]
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = (f"{v:.7g}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    (arguments.out / "designs.md").write_text(text)
    (arguments.out / "designs.json").write_text(json.dumps(rows, indent=2) + "\n")
    (arguments.out / "environment.json").write_text(
        json.dumps(environment("numba", "joblib"), indent=2) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
