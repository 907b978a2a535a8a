"""Time and memory against the size of a sparse lower level: blocc, blvpy, and re-solving through CVXPY.

    python benchmarks/scale.py [--sizes 100,1000,10000,100000] [--limit 180] [--methods blocc,cvxpy,blvpy] [--out DIR]

A quadratic lower level on a chain of n variables with coupled constraints; five upper variables shift its target and
its limits, block by block:

    min_x  |x - a|^2 / 2 + |y - b|^2 / n           -1 <= x <= 1
    y in argmin  sum (y_i - q_i - (Px)_i)^2 / 2 + sum (y_i - y_(i+1))^2 / 2
         subject to  y_i + y_(i+1) <= d_i + (Rx)_i

Every run is a process of its own, stopped at the limit. *cvxpy* is SciPy's L-BFGS-B on the lower level's true
response, each response and its gradient by one call of ``cvxpy.Problem.solve`` (DPP, Clarabel) and one linear system
on the active set: what a user without a bilevel tool writes. Seconds are CPU seconds of the process after imports,
memory is its peak resident set (imports included).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sparse
from scipy.optimize import minimize
from scipy.sparse.linalg import spsolve

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

METHODS = ("blocc", "cvxpy", "blvpy")
UPPER = 5


class Chain:
    """Data of the problem of size n."""

    def __init__(self, n: int) -> None:
        random = np.random.default_rng(n)
        block = np.minimum(np.arange(n) * UPPER // n, UPPER - 1)
        self.n = n
        self.P = sparse.csr_array((np.ones(n), (np.arange(n), block)), shape=(n, UPPER))
        self.R = sparse.csr_array(
            (np.full(n - 1, 0.3), (np.arange(n - 1), block[1:])), shape=(n - 1, UPPER)
        )
        self.D = sparse.diags_array(
            [np.ones(n - 1), -np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n)
        )
        self.S = sparse.diags_array(
            [np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n)
        )
        self.q = random.normal(size=n)
        self.d = random.uniform(0.2, 1.5, n - 1)
        self.a, self.b = random.uniform(-0.5, 0.5, UPPER), random.normal(size=n) + 0.5

    def upper(self, x: Any, y: Any) -> Any:
        return 0.5 * cp.sum_squares(x - self.a) + cp.sum_squares(y - self.b) / self.n

    def lower(self, y: Any, shift: Any) -> Any:
        return 0.5 * cp.sum_squares(y - self.q - shift) + 0.5 * cp.sum_squares(self.D @ y)

    def problem(self) -> Any:
        from blocc.cvx import BilevelProblem, LowerProblem

        x = cp.Variable(UPPER, name="x", bounds=[-1, 1], value=np.zeros(UPPER))
        y = cp.Variable(self.n, name="y")
        rows = {"limit": self.S @ y <= self.d + self.R @ x}
        lower = LowerProblem(cp.Minimize(self.lower(y, self.P @ x)), rows, given=[x])
        return BilevelProblem(cp.Minimize(self.upper(x, y)), lower)

    def value(self, x: np.ndarray, y: np.ndarray) -> float:
        return float(0.5 * ((x - self.a) ** 2).sum() + ((y - self.b) ** 2).sum() / self.n)


def run_blocc(chain: Chain) -> dict[str, Any]:
    result = chain.problem().solve(on_failure="return")
    certificate = result.certificate
    return {
        "objective": result.objective,
        "status": result.status.name,
        "gap": certificate.lower_gap,
        "stationarity": certificate.stationarity,
    }


def run_cvxpy(chain: Chain) -> dict[str, Any]:
    """L-BFGS-B on f(x, y(x)); every y(x) by CVXPY, the hypergradient by one adjoint system."""
    n = chain.n
    shift, room = cp.Parameter(n), cp.Parameter(n - 1)
    y = cp.Variable(n)
    row = chain.S @ y <= room
    problem = cp.Problem(cp.Minimize(chain.lower(y, shift)), [row])
    Q = sparse.eye_array(n) + chain.D.T @ chain.D

    def value_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        shift.value, room.value = chain.P @ x, chain.d + chain.R @ x
        problem.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9)
        answer = np.asarray(y.value)
        active = np.flatnonzero(np.asarray(row.dual_value) > 1e-7)
        rows = sparse.csr_array(chain.S.tocsr()[active])
        system = sparse.block_array([[Q, rows.T], [rows, None]], format="csc")
        slope = np.concatenate([2 * (answer - chain.b) / n, np.zeros(len(active))])
        adjoint = spsolve(system, slope)
        gradient = x - chain.a + chain.P.T @ adjoint[:n] + chain.R.tocsr()[active].T @ adjoint[n:]
        return chain.value(x, answer), np.asarray(gradient)

    found = minimize(
        value_gradient, np.zeros(UPPER), jac=True, method="L-BFGS-B", bounds=[(-1, 1)] * UPPER
    )
    return {"objective": float(found.fun), "status": "CONVERGED" if found.success else "STOPPED"}


def run_blvpy(chain: Chain) -> dict[str, Any]:
    import blvpy  # type: ignore[import-not-found]

    x, y = cp.Variable(UPPER, name="x", bounds=[-1, 1]), cp.Variable(chain.n, name="y")
    rows = [chain.S @ y <= chain.d + chain.R @ x]
    lower = blvpy.LowerProblem(cp.Minimize(chain.lower(y, chain.P @ x)), rows, parameters=[x])
    problem = blvpy.BilevelProblem(cp.Minimize(chain.upper(x, y)), lower)
    x.value = np.zeros(UPPER)
    result = problem.solve(verbose=False)
    objective = chain.value(np.asarray(x.value), np.asarray(y.value))
    return {"objective": objective, "status": str(result.status).upper()}


def child(method: str, n: int) -> int:
    warnings.simplefilter("ignore")
    run = {"blocc": run_blocc, "cvxpy": run_cvxpy, "blvpy": run_blvpy}[method]
    chain = Chain(n)
    importlib.import_module("blvpy" if method == "blvpy" else "blocc.cvx")
    started = time.process_time()
    row = run(chain)
    row["seconds"] = time.process_time() - started
    row["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(row, default=float))
    return 0


def measure(method: str, n: int, limit: float) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "n": n}
    single = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }  # spinning threads would count as CPU time
    command = [sys.executable, __file__, "--child", method, "--sizes", str(n)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=os.environ | single
        )
    except subprocess.TimeoutExpired:
        return row | {"status": f"not finished after {limit:.0f} s"}
    if done.returncode != 0:
        return row | {"status": (done.stderr.strip().splitlines() or ["killed"])[-1][:120]}
    return row | json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| n | method | status | objective | lower gap | CPU s | peak MB |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        cells = [f"{row['n']}", row["method"], row["status"]]
        if "seconds" in row:
            gap = f"{row['gap']:.1e}" if "gap" in row else ""
            cells += [f"{row['objective']:.8f}", gap, f"{row['seconds']:.2f}"]
            cells.append(f"{row['megabytes']:.0f}")
        else:
            cells += [""] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path | str | None = None) -> Any:
    """Seconds and memory over n, one line a method; runs that did not finish are absent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method and "seconds" in row]
        sizes = [row["n"] for row in mine]
        left.loglog(sizes, [row["seconds"] for row in mine], "o-", label=method)
        right.loglog(sizes, [row["megabytes"] for row in mine], "o-", label=method)
    for axes, title in ((left, "CPU seconds"), (right, "peak memory, MB")):
        axes.set_xlabel("lower variables")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    if path is not None:
        figure.savefig(path)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", default="100,1000,10000,100000")
    parser.add_argument("--limit", type=float, default=180.0)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.child:
        return child(options.child, sizes[0])
    rows = []
    for method in options.methods.split(","):
        for n in sizes:
            rows.append(measure(method, n, options.limit))
            print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
            if "seconds" not in rows[-1]:
                break  # larger ones will not finish either
    print(table(rows))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scale.md").write_text(table(rows) + "\n")
        (options.out / "scale.json").write_text(json.dumps(rows, indent=1))
        try:
            plot(rows, options.out / "scale.svg")
        except ImportError:
            print("matplotlib is not installed: no plot", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
