"""Score blocc and its peers on the catalogue of bilevel test problems; print and write a table by class.

    python benchmarks/testset.py [--starts 1|N|range] [--global] [--peers] [--tol 1e-4] [--out DIR] [--only A,B]

Every problem is solved from its single listed start with defaults and no setting of its own. Verdicts are measured
without the library: values by NumPy, the lower-level gap by HiGHS or SLSQP. CPU seconds are of this process, compile
time of the CVXPY model included.

Columns: *optimum* (F within tol of the known optimum, gap and violation at most 1e-6), *local* (a listed local
solution), *other* (bilevel feasible, another value), *infeasible*, *failed* (an exception, or no answer); *false*
counts answers claimed optimal or stationary that are not bilevel feasible, lie below the known optimum, or are
claimed globally optimal and are not. Peers: relaxed KKT system by SLSQP (Scholtes), the paper's Algorithm 1 with one
fixed setting, and blvpy where it is installed.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blocc.errors import BloccError  # noqa: E402
from tests.testset import catalogue  # noqa: E402

Answer = tuple[np.ndarray, np.ndarray, str]  # x, y, status


def run_blocc(entry: dict[str, Any], starts: int | str, global_: bool) -> Answer:
    problem = catalogue.to_bilevel_problem(entry)
    (x,) = problem.upper_layout.variables
    x.save_value(np.array(entry["x0"], dtype=float))
    result = problem.solve(starts=starts, global_=global_, on_failure="return")
    return result.x["x"], result.y["y"], result.status.name


def run_algorithm_1(
    entry: dict[str, Any], gamma: float = 10.0, eta: float = 0.01, seconds: float = 3.0
) -> Answer:
    """Algorithm 1 with one fixed setting and exact saddle points: x <- Proj(x - eta grad F_gamma)."""
    problem = catalogue.to_bilevel_problem(entry)
    x = problem.x_set.project(np.array(entry["x0"], dtype=float))
    deadline = time.process_time() + seconds
    while True:
        lower = problem.lower(x)
        penalised = problem.penalized(x, gamma)
        following = problem.x_set.project(x - eta * (penalised.grad_x - gamma * lower.grad_x))
        done = np.abs(following - x).max() <= 1e-9 or time.process_time() > deadline
        x = following
        if done:
            return x, np.asarray(problem.lower(x).y), "STOPPED"


def run_relaxed_kkt(entry: dict[str, Any]) -> Answer:
    """Lower level replaced by its KKT system, complementarity relaxed to eps: SLSQP for eps from 1 to 1e-8."""
    functions = catalogue.callables(entry)
    nx, ny = entry["nx"], entry["ny"]
    low, high = catalogue.bounds(entry, "y")
    sides = [(k, -1.0, low[k]) for k in range(ny) if np.isfinite(low[k])]
    sides += [(k, 1.0, high[k]) for k in range(ny) if np.isfinite(high[k])]
    m, p = len(entry["g"]) + len(sides), len(entry["h"])

    def split(w: np.ndarray) -> tuple[np.ndarray, ...]:
        return w[:nx], w[nx : nx + ny], w[nx + ny : nx + ny + m], w[nx + ny + m :]

    def c(x: Any, y: Any) -> np.ndarray:
        return np.concatenate([functions.g(x, y), [s * (y[k] - b) for k, s, b in sides]])

    def gradient_y(function: Callable[[Any, Any], Any], x: Any, y: Any) -> np.ndarray:
        step = 1e-20
        columns = []
        for k in range(ny):
            shifted = y.astype(complex)
            shifted[k] += 1j * step
            columns.append(np.imag(function(x.astype(complex), shifted)) / step)
        return np.array(columns)

    def stationarity(w: np.ndarray) -> np.ndarray:
        x, y, mu, nu = split(w)
        total = gradient_y(functions.f, x, y)
        if m:
            total = total + gradient_y(c, x, y) @ mu
        if p:
            total = total + gradient_y(functions.h, x, y) @ nu
        return total

    def equal(w: np.ndarray) -> np.ndarray:
        x, y, *_ = split(w)
        return np.concatenate([stationarity(w), functions.h(x, y), functions.H(x, y)])

    w = np.concatenate([entry["x0"], entry["y0"], np.ones(m), np.zeros(p)])
    x_low, x_high = catalogue.bounds(entry, "x")
    box = list(
        zip(
            [*x_low, *low, *np.zeros(m), *np.full(p, -np.inf)],
            [*x_high, *high, *np.full(m + p, np.inf)],
            strict=True,
        )
    )
    for eps in 10.0 ** -np.arange(0, 9, 2):

        def slack(w: np.ndarray, eps: float = float(eps)) -> np.ndarray:
            x, y, mu, _ = split(w)
            value = c(x, y)
            return np.concatenate([-value, -functions.G(x, y), eps + mu * value])

        answer = minimize(
            lambda w: functions.F(*split(w)[:2]),
            w,
            method="SLSQP",
            bounds=box,
            constraints=[{"type": "eq", "fun": equal}, {"type": "ineq", "fun": slack}],
            options={"ftol": 1e-12, "maxiter": 300},
        )
        if np.all(np.isfinite(answer.x)):
            w = answer.x
    x, y, *_ = split(w)
    return x, y, "SUCCESS" if answer.success else "STOPPED"


def run_blvpy(entry: dict[str, Any]) -> Answer:
    import blvpy  # type: ignore[import-not-found]
    import cvxpy as cp

    x, y, parts = catalogue.cvxpy_parts(entry)
    lower = blvpy.LowerProblem(
        cp.Minimize(parts["f"]), list(parts["lower"].values()), parameters=[x]
    )
    problem = blvpy.BilevelProblem(cp.Minimize(parts["F"]), lower, list(parts["upper"].values()))
    x.value = np.clip(entry["x0"], *catalogue.bounds(entry, "x"))
    problem.solve()
    return np.asarray(x.value), np.asarray(y.value), str(problem.status).upper()


def score_all(
    name: str, run: Callable[[dict[str, Any]], Answer], entries: list[dict[str, Any]], tol: float
) -> list[dict[str, Any]]:
    rows = []
    for entry in entries:
        row = {"problem": entry["name"], "class": entry["class"], "method": name}
        started = time.process_time()
        try:
            x, y, status = run(entry)
            row["seconds"] = time.process_time() - started
            verdict = catalogue.score(entry, x, y, tol)
        except (
            BloccError,
            ArithmeticError,
            ValueError,
            TypeError,
            AttributeError,
            RuntimeError,
        ) as error:
            row.setdefault("seconds", time.process_time() - started)
            row |= {
                "kind": "failed",
                "status": f"{type(error).__name__}: {error}"[:200],
                "false": False,
            }
            rows.append(row)
            continue
        claimed = status in ("OPTIMAL", "STATIONARY")
        false = claimed and (verdict.kind == "infeasible" or verdict.below)
        false = false or (status == "OPTIMAL" and verdict.kind != "optimum")
        row |= {
            "kind": verdict.kind,
            "status": status,
            "F": verdict.F,
            "F_star": entry["F_star"],
            "gap": verdict.gap,
            "violation": verdict.violation,
            "false": bool(false),
        }
        rows.append(row)
    return rows


KINDS = ("optimum", "local", "other", "infeasible", "failed")


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | class | n | " + " | ".join(KINDS) + " | false | CPU s median | mean | max |",
        "|---" * (len(KINDS) + 7) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        for group in ["all", *dict.fromkeys(row["class"] for row in mine)]:
            some = [row for row in mine if group in ("all", row["class"])]
            count = collections.Counter(row["kind"] for row in some)
            seconds = [row["seconds"] for row in some]
            lines.append(
                f"| {method} | {group} | {len(some)} | "
                + " | ".join(str(count[kind]) for kind in KINDS)
                + f" | {sum(row['false'] for row in some)} | {np.median(seconds):.3f}"
                + f" | {np.mean(seconds):.3f} | {np.max(seconds):.2f} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--starts", default="1")
    parser.add_argument("--global", dest="global_", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    if not catalogue.available():
        print(f"no catalogue at {catalogue.path()} (set BLOCC_SHARED)", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    entries = catalogue.problems()
    if options.only:
        entries = [entry for entry in entries if entry["name"] in options.only.split(",")]
    if options.global_:
        entries = [entry for entry in entries if entry["nx"] <= 2]
    starts = options.starts if options.starts == "range" else int(options.starts)
    rows = score_all(
        f"blocc, starts={starts}" + (", global" if options.global_ else ""),
        lambda entry: run_blocc(entry, starts, options.global_),
        entries,
        options.tol,
    )
    if options.peers:
        rows += score_all("relaxed KKT + SLSQP", run_relaxed_kkt, entries, options.tol)
        rows += score_all("Algorithm 1, gamma 10, step .01", run_algorithm_1, entries, options.tol)
        try:
            import blvpy  # noqa: F401
        except ImportError:
            print("blvpy is not installed: no column for it")
        else:
            rows += score_all("blvpy", run_blvpy, entries, options.tol)
    text = table(rows)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "testset.md").write_text(text + "\n")
        (options.out / "testset.json").write_text(json.dumps(rows, indent=1, default=float))
    return 0


if __name__ == "__main__":
    sys.exit(main())
