"""The passengers' problem as arc flows by origin, on NumPy and on a GPU: how fast first-order steps go.

    python -m benchmarks.gpu_transport --out DIR [--only seville] [--seconds 60]

Writes gpu_transport.json and gpu_transport.md. The problem is the lower level at capacities of 0.8 times the flows
that everybody's shortest path would make (``applications/transport/arc_flow.py``), solved by the production form of
MaxMin from these flows. For every backend there is: iterations a second after a warm-up, the device synchronised;
seconds and iterations to relative KKT residuals of 1e-3 and 1e-4, or the residual reached when the time was up.
Where both finish, the largest difference of their link flows.

Without a CUDA device it says so, and measures NumPy alone. ChicagoSketch needs ../shared/data/tntp. Wall seconds:
on a device nothing else would mean anything. For Seville the path-based solver of ``transport.respond`` is timed at
the same capacities, to 1e-6: what the arc-flow route has to be compared with.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import blocc
from benchmarks.environment import environment
from blocc import maxmin
from blocc.applications import transport
from blocc.applications.transport import arc_flow
from blocc.arrays import devices, resolve_backend
from blocc.errors import BackendUnavailableError, LowerNotSolvedError

TNTP = Path(__file__).parents[2] / "shared" / "data" / "tntp"
INSTANCES = ("seville", "ChicagoSketch")
LEVELS = (1e-3, 1e-4)
FACTOR = 0.8


def load(name: str) -> transport.Network | None:
    if name in transport.network.INSTANCES:
        return transport.load(name)
    if not (TNTP / name).is_dir():
        return None
    facts = json.loads((TNTP / "MANIFEST.json").read_text())["files"][name]
    roads = transport.load_roads(TNTP / name, first_through_node=facts["first_thru_node"])
    return roads.to_transit()


def solve(
    problem: Any, y: Any, tol: float, iterations: int, synchronize: Callable[[], None]
) -> dict[str, Any]:
    """One run of MaxMin, by wall time; its answer under "y" if the tolerance was reached."""
    began = time.perf_counter()
    try:
        answer = maxmin.solve(problem, y, tol=tol, max_iterations=iterations)
        found = {
            "reached": True,
            "residual": answer.residual,
            "iterations": answer.iterations,
            "y": answer.y,
        }
    except LowerNotSolvedError as error:
        found = {"reached": False, "message": str(error), "iterations": iterations}
    synchronize()
    return {**found, "seconds": time.perf_counter() - began}


def measure(
    network: transport.Network, backend: blocc.arrays.Backend, seconds: float
) -> tuple[dict[str, Any], Any]:
    """Figures of one backend, and its link flows at the last level (None if that was not reached)."""
    xp = resolve_backend(backend)
    synchronize: Callable[[], None] = lambda: None  # noqa: E731
    if backend == "cupy":
        import cupy

        synchronize = cupy.cuda.Device().synchronize
    setup = arc_flow.functions(network, like=xp.zeros(1))
    model = blocc.FunctionalModel(**setup.arguments())
    problem = model.saddle_problem(FACTOR * setup.x0, None)
    solve(problem, setup.y0, 0.0, 2, synchronize)
    probe, rate = 4, 0.0
    while True:  # until a run is long enough to be timed
        took = solve(problem, setup.y0, 0.0, probe, synchronize)["seconds"]
        rate = probe / took
        if took > min(2.0, 0.1 * seconds) or probe >= 2000:
            break
        probe *= 4
    row: dict[str, Any] = {
        "variables": int(np.prod(setup.y0.shape)),
        "iterations_a_second": rate,
        "timed_iterations": probe,
        "levels": {},
    }
    flows = None
    for level in LEVELS:
        found = solve(problem, setup.y0, level, max(20, int(seconds * rate)), synchronize)
        y = found.pop("y", None)
        flows = None if y is None else setup.split(y)[0]
        row["levels"][f"{level:g}"] = found
        if y is None:
            break  # the next level takes longer still
    return row, flows


def study(name: str, backends: list[blocc.arrays.Backend], seconds: float) -> dict[str, Any] | None:
    network = load(name)
    if network is None:
        print(f"{name}: {TNTP / name} is absent, left out")
        return None
    row: dict[str, Any] = {
        "instance": name,
        "pairs": len(network.trips),
        "links": len(network.link_id),
    }
    flows = {}
    for backend in backends:
        row[backend], flows[backend] = measure(network, backend, seconds)
    if len(flows) == 2 and all(f is not None for f in flows.values()):
        a, b = flows.values()
        row["largest_flow_difference"] = float(np.max(np.abs(a - b)) / (1.0 + np.max(np.abs(a))))
    if name == "seville":
        capacity = FACTOR * arc_flow.functions(network).x0
        transport.respond(network, capacity)  # numba compiles
        answer = transport.respond(network, capacity)
        row["paths"] = {"seconds": answer.seconds, "gap": answer.gap}
    return row


def table(rows: list[dict[str, Any]], backends: list[blocc.arrays.Backend]) -> str:
    lines = [
        "| instance | variables | backend | iterations a second | "
        + " | ".join(f"to {level:g}" for level in LEVELS)
        + " |",
        "|" + "---|" * (4 + len(LEVELS)),
    ]
    for row in rows:
        for backend in backends:
            found = row[backend]
            cells = []
            for level in LEVELS:
                run = found["levels"].get(f"{level:g}")
                if run is None:
                    cells.append("not tried")
                elif run["reached"]:
                    cells.append(f"{run['seconds']:.3g} s, {run['iterations']} iterations")
                else:
                    cells.append(f"not in {run['seconds']:.3g} s, {run['iterations']} iterations")
            lines.append(
                f"| {row['instance']} | {found['variables']} | {backend} | {found['iterations_a_second']:.4g} | "
                + " | ".join(cells)
                + " |"
            )
        if "paths" in row:
            gap, took = row["paths"]["gap"], row["paths"]["seconds"]
            lines.append(
                f"| {row['instance']} | | paths, to a gap of {gap:.0e} | | {took:.3g} s | |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=INSTANCES, action="append")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each level, at most")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    backends: list[blocc.arrays.Backend] = ["numpy"]
    record: dict[str, Any] = {
        "devices": devices(),
        "environment": environment("cupy-cuda12x", "cupy-cuda13x"),
    }
    try:
        resolve_backend("cupy")
        backends.append("cupy")
    except BackendUnavailableError as error:
        record["no_device"] = str(error)
        print(f"no device, NumPy only: {error}")
    rows = [study(name, backends, arguments.seconds) for name in arguments.only or INSTANCES]
    record["rows"] = [row for row in rows if row is not None]
    (arguments.out / "gpu_transport.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(record["rows"], backends)
    (arguments.out / "gpu_transport.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
