"""Time and memory of the passengers' problem against the size of the network.

    python benchmarks/transport_scale.py [--only NAME,...] [--tol 1e-6] [--limit 300] [--clarabel 2000] [--out DIR]

Cases, each in a process of its own that is stopped at the limit:

* the shipped networks at capacity 20 on every link (three_node: 0.5) and their own alternatives;
* ``grid N``: N x N nodes, links both ways between neighbours, travel times uniform in [1, 2], 4
  N^2 random pairs with exponential trips of mean 1, all drawn with seed N: anyone can repeat
  them;
* SiouxFalls, Anaheim, Barcelona and ChicagoSketch where ``../shared/data/tntp`` has them. No
  traffic passes through nodes below the first through node.

On grids and roads a pair's alternative takes 2 longer than its shortest path. *Heavy*: every link
has 0.8 of the flow that it has without any limits. *Light*: only every tenth of the used links
has, the busiest ones; the others have 1.2 of it. No link has less than 0.001 of the largest flow.
Heavy cases are degenerate: almost every link is full.

Seconds are CPU seconds of the second of two solves where the first took less than 5 s (the first
also compiles), else of the first after a small network was solved. *Clarabel* is the same problem
as CVXPY writes it, flows by origin, where that has at most ``--clarabel`` flows. Memory is the
peak resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TNTP = ROOT.parent / "shared" / "data" / "tntp"

SHIPPED = {"three_node": 0.5, "nine_node": 20.0, "seville": 20.0}
GRIDS = ("grid 5", "grid 10", "grid 20", "grid 30")
ROADS = ("SiouxFalls", "Anaheim", "Barcelona", "ChicagoSketch")
CASES = (
    *SHIPPED,
    *(f"{name} {load}" for name in (*GRIDS, *ROADS) for load in ("light", "heavy")),
)
DELAY = 2.0  # of the alternative, over the shortest path


def grid(size: int) -> Any:
    """Seeded grid network, as :class:`PathNetwork`."""
    from blocc.applications.transport.paths import PathNetwork

    random = np.random.default_rng(size)
    node = np.arange(size * size).reshape(size, size)
    across = np.stack([node[:, :-1].ravel(), node[:, 1:].ravel()])
    down = np.stack([node[:-1].ravel(), node[1:].ravel()])
    ends = np.concatenate([across, across[::-1], down, down[::-1]], axis=1)
    cells = random.choice(size**4, min(4 * size**2, size**4), replace=False)
    origin, destination = cells // size**2, cells % size**2
    apart = origin != destination
    return PathNetwork(
        size * size,
        *ends,
        random.uniform(1, 2, ends.shape[1]),
        origin[apart],
        destination[apart],
        random.exponential(1, apart.sum()),
    )


def roads(name: str) -> Any:
    from blocc.applications import transport

    facts = json.loads((TNTP / "MANIFEST.json").read_text())["files"][name]
    network = transport.load_roads(TNTP / name, first_through_node=facts["first_thru_node"])
    return transport.model.TransitModel(network.to_transit(mean_time=10.0)).paths


def problem(case: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """Path network, utilities and capacities of a case."""
    from blocc.applications import transport
    from blocc.applications.transport.model import TransitModel

    if case in SHIPPED:
        network = transport.load(case)
        paths = TransitModel(network).paths
        return paths, network.alternative_time, np.full(paths.links, SHIPPED[case])
    name, _, load = case.rpartition(" ")
    paths = grid(int(name.split()[1])) if name.startswith("grid") else roads(name)
    utility = paths.distances(paths.travel_time) + DELAY
    flow = paths.respond(np.full(paths.links, np.inf), utility).link_flow
    factor = np.full(paths.links, 0.8)
    if load == "light":
        used = np.sort(flow[flow > 0])
        factor[flow < used[-max(len(used) // 10, 1)]] = 1.2
    return paths, utility, np.maximum(factor * flow, 1e-3 * flow.max())


def clarabel(paths: Any, utility: np.ndarray, capacity: np.ndarray) -> tuple[float, float]:
    """CPU seconds and optimal value by CVXPY and Clarabel on flows by origin."""
    import cvxpy as cp
    import scipy.sparse as sparse

    began = time.process_time()
    links, origins, pairs = paths.links, len(paths.origins), paths.pairs
    incidence = sparse.csr_array(
        (
            np.repeat([1.0, -1.0], links),
            (np.concatenate([paths.head, paths.tail]), np.tile(np.arange(links), 2)),
        ),
        shape=(paths.nodes, links),
    )
    flow = cp.Variable((links, origins), nonneg=True)
    share = cp.Variable(pairs)
    cell = np.arange(pairs)
    arrive = sparse.csr_array(
        (paths.trips, (paths.destination * origins + paths.origin_row, cell)),
        shape=(paths.nodes * origins, pairs),
    )
    leave = sparse.csr_array(
        (paths.trips, (paths.origin * origins + paths.origin_row, cell)),
        shape=(paths.nodes * origins, pairs),
    )
    total = cp.sum(flow, axis=1)
    entropy = -cp.entr(share) - cp.entr(1 - share) - 1 + cp.multiply(utility, 1 - share)
    program = cp.Problem(
        cp.Minimize(paths.travel_time @ total + paths.trips @ entropy),
        [
            cp.vec(incidence @ flow, order="C") == (arrive - leave) @ share,
            total <= capacity,
        ],
    )
    program.solve(solver="CLARABEL")
    return time.process_time() - began, float(program.value)


def child(case: str, tol: float, flows: int) -> int:
    # Compile on a network of its own.
    small = grid(4)
    far = small.distances(small.travel_time) + DELAY
    small.respond(np.full(small.links, 0.5), far)
    paths, utility, capacity = problem(case)
    for _ in range(2):
        wall, began = time.perf_counter(), time.process_time()
        answer = paths.respond(capacity, utility, tol=tol)
        seconds = time.process_time() - began
        wall = time.perf_counter() - wall
        if seconds > 5.0:
            break
    row = {
        "case": case,
        "links": paths.links,
        "pairs": paths.pairs,
        "full": int(np.sum(answer.price > 1e-4)),
        "paths": len(answer.path_flow),
        "iterations": answer.iterations,
        "gap": answer.gap,
        "seconds": seconds,
        "wall": wall,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if len(paths.origins) * paths.links <= flows:
        row["clarabel"], value = clarabel(paths, utility, capacity)
        row["clarabel_difference"] = abs(value - answer.primal) / (1.0 + abs(value))
    print(json.dumps(row))
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | links | OD pairs | full links | paths | iterations | gap | CPU s | GB | Clarabel CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "seconds" not in row:
            lines.append(f"| {row['case']} | | | | | | | {row['failed']} | | |")
            continue
        other = f"{row['clarabel']:.2f}" if "clarabel" in row else ""
        lines.append(
            f"| {row['case']} | {row['links']} | {row['pairs']} | {row['full']} | {row['paths']} "
            f"| {row['iterations']} | {row['gap']:.0e} | {row['seconds']:.3g} | {row['memory']:.2f} | {other} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for load, mark in (("light", "o"), ("heavy", "s"), ("", "^")):
        part = [
            row
            for row in rows
            if "seconds" in row
            and (row["case"].rpartition(" ")[2] == load or (not load and row["case"] in SHIPPED))
        ]
        size = [row["links"] * row["pairs"] for row in part]
        label = load or "shipped, as they are"
        left.loglog(size, [row["seconds"] for row in part], mark, label=label)
        right.loglog(size, [row["memory"] for row in part], mark)
    other = [row for row in rows if "clarabel" in row]
    left.loglog(
        [row["links"] * row["pairs"] for row in other],
        [row["clarabel"] for row in other],
        "x",
        label="CVXPY + Clarabel, arc flows",
    )
    left.set(xlabel="links x OD pairs", ylabel="CPU seconds")
    right.set(xlabel="links x OD pairs", ylabel="peak memory, GB")
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--limit", type=float, default=300.0)
    parser.add_argument("--clarabel", type=int, default=2000, help="flows by origin at most")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.tol, options.clarabel)
    rows: list[dict[str, Any]] = []
    for case in options.only.split(","):
        if case.rpartition(" ")[0] in ROADS and not TNTP.is_dir():
            rows.append({"case": case, "failed": f"skipped: {TNTP} is absent"})
            continue
        command = [sys.executable, __file__, "--child", case]
        command += ["--tol", str(options.tol), "--clarabel", str(options.clarabel)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            rows.append({"case": case, "failed": f"over {options.limit:.0f} s"})
        else:
            if done.returncode:
                rows.append({"case": case, "failed": done.stderr.strip().splitlines()[-1]})
            else:
                rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "transport_scale.md").write_text(table(rows) + "\n")
        (options.out / "transport_scale.json").write_text(json.dumps(rows, indent=1))
        plot(rows, options.out / "transport_scale.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
