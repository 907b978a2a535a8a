"""User equilibria of the TNTP networks, and the continuous network design problem from its usual starts.

    python -m benchmarks.cndp [--parts equilibria,designs] [--only PROBLEM] [--out DIR]

*equilibria*: the public networks in ../shared/data/tntp (left out, with a note, where they are absent), Beckmann's
objective against its value at the best known flows, to three gaps.
*designs*: Sioux Falls from the starts 0, 2, 6.25 and 12.5 and from the system optimum, Harker and Friesz's two cases
from the system optimum and from equal expansions of 0, 1/4, 1/2 and all of the limit. Every design is evaluated again
by CVXPY with Clarabel at the exact equilibrium (``independent``), as is the best design known to this project.

Seconds are CPU seconds of one process, compilation and reading of tables left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402
from blocc.applications import transport  # noqa: E402
from blocc.files import write_atomically  # noqa: E402

SHARED = ROOT.parent / "shared" / "data" / "tntp"
GAPS = (1e-4, 1e-6, 1e-8)
# Expansions of links 16, 17, 19, 20, 25, 26, 29, 39, 48, 74, as this project knew them before it had a solver.
BEST_KNOWN = (5.25, 2.07, 5.29, 2.02, 2.48, 2.52, 3.05, 4.95, 3.17, 4.91)


def equilibria() -> list[dict[str, Any]]:
    """One row a network and gap."""
    rows = []
    if not SHARED.is_dir():
        print(f"equilibria left out: {SHARED} is absent (the data is not ours to ship)")
        return rows
    facts = json.loads((SHARED / "MANIFEST.json").read_text())["files"]
    for name, fact in facts.items():
        roads = transport.load_roads(
            SHARED / name,
            first_through_node=fact["first_thru_node"],
            distance_factor=0.04 if name == "ChicagoSketch" else 0.0,
        )
        transport.equilibrium(roads, tol=1e-4)  # compiles
        best = fact["beckmann_at_best_known_flow"]
        for tol in GAPS:
            began = time.process_time()
            answer = transport.equilibrium(roads, tol=tol)
            rows.append(
                {
                    "network": name,
                    "links": len(roads.link_id),
                    "pairs": len(roads.trips),
                    "tol": tol,
                    "relative_gap": answer.relative_gap,
                    "beckmann": answer.objective,
                    "above_best_known": (answer.objective - best) / best,
                    "sweeps": answer.iterations,
                    "cpu_seconds": time.process_time() - began,
                }
            )
            print(rows[-1], flush=True)
    return rows


def independent(roads: transport.RoadNetwork, added: np.ndarray, exponent: float) -> float:
    """Total cost of a design, the equilibrium by CVXPY and Clarabel on arc flows by origin; all powers are 4."""
    paths = roads.paths
    capacity = roads.capacity + added
    flows = cp.Variable((len(paths.origins), paths.links), nonneg=True)
    flow = cp.sum(flows, axis=0)
    incidence = np.zeros((paths.nodes, paths.links))
    incidence[paths.head, np.arange(paths.links)] += 1
    incidence[paths.tail, np.arange(paths.links)] -= 1
    wanted = np.zeros((paths.nodes, len(paths.origins)))
    np.add.at(wanted, (paths.destination, paths.origin_row), paths.trips)
    np.add.at(wanted, (paths.origin, paths.origin_row), -paths.trips)
    ratio = cp.multiply(1.0 / capacity, flow)
    congested = cp.multiply(roads.congestion_cost * capacity / 5.0, cp.power(ratio, 5))
    problem = cp.Problem(
        cp.Minimize(roads.fixed_cost @ flow + cp.sum(congested)), [incidence @ flows.T == wanted]
    )
    problem.solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11, max_iter=500
    )
    x = flow.value
    cost = roads.fixed_cost + roads.congestion_cost * (x / capacity) ** roads.power
    return float(cost @ x + np.nansum(roads.expansion_cost * added**exponent))


def designs(only: str = "") -> list[dict[str, Any]]:
    """One row a problem and start."""
    cases = [("sioux_falls", 2.0, (None, 0.0, 2.0, 6.25, 12.5))]
    for name, limit in (("harker_friesz_1", 10.0), ("harker_friesz_2", 20.0)):
        cases.append((name, 1.0, (None, 0.0, limit / 4, limit / 2, limit)))
    rows: list[dict[str, Any]] = []
    for name, exponent, starts in cases:
        if only not in ("", name):
            continue
        roads = transport.load_roads(name)
        transport.equilibrium(roads)  # compiles
        for start in starts:
            began = time.process_time()
            plan = transport.expand(roads, exponent=exponent, start=start, on_failure="return")
            seconds = time.process_time() - began
            certificate = plan.result.certificate
            rows.append(
                {
                    "problem": name,
                    "start": "system optimum" if start is None else start,
                    "objective": plan.objective,
                    "independent": independent(roads, plan.added, exponent),
                    "bound": plan.bound,
                    "status": plan.status.name.lower(),
                    "lower_gap": certificate.lower_gap,
                    "stationarity": certificate.stationarity,
                    "gamma": certificate.gamma,
                    "radius": certificate.radius,
                    "cpu_seconds": seconds,
                }
            )
            print(rows[-1], flush=True)
    if only not in ("", "sioux_falls"):
        return rows
    roads = transport.load_roads("sioux_falls")
    added = np.zeros(len(roads.tail))
    added[~np.isnan(roads.expansion_cost)] = BEST_KNOWN
    after = transport.equilibrium(roads, capacity=roads.capacity + added, tol=1e-12)
    rows.append(
        {
            "problem": "sioux_falls",
            "start": "best known before, two decimals",
            "objective": after.total_cost + float(np.nansum(roads.expansion_cost * added**2)),
            "independent": independent(roads, added, 2.0),
        }
    )
    print(rows[-1], flush=True)
    return rows


PARTS = ("equilibria", "designs")


def main() -> None:
    """Run the parts and write one CSV table each, with what they ran on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("cndp"))
    parser.add_argument("--only", default="", help="one problem of the designs")
    options = parser.parse_args()
    import pandas as pd

    for part in options.parts.split(","):
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is not one of {', '.join(PARTS)}")
        table = pd.DataFrame(equilibria() if part == "equilibria" else designs(options.only))
        write_atomically(options.out / f"{part}.csv", table.to_csv(index=False).encode())
    facts = json.dumps(environment("numba", "pandas"), indent=2)
    write_atomically(options.out / "environment.json", facts.encode())


if __name__ == "__main__":
    main()
