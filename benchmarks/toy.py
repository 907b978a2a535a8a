"""The paper's toy problems (BLOCC, arXiv:2406.10148, section 4.1) from many starts: ours, and Algorithm 1 as published.

    python -m benchmarks.toy --out DIR [--starts 200]

Writes toy.csv (a row a run), toy.md (a summary), toy.svg (the upper objective along the answer y = x,
and where the runs ended) and environment.json. *excess* is the true upper value above that of the nearest minimum,
which a grid and golden section find without blocc. CPU seconds are of one run, with one BLAS thread. Algorithm 1 has
one setting for all starts: gamma 5, eta .01, 120 outer steps of 50 plain inner ones, steps .1, .01 and .5.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: CPU time must mean one core

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import blocc
from benchmarks.environment import environment
from blocc.methods.published import blocc as algorithm_1
from tests.core.problems import toy, toy_minima

PROBLEMS = {"i": (4, 1.0), "ii": (6, 0.0)}
PUBLISHED = {"gamma": 5.0, "eta": 0.01, "T": 120, "T_inner": 50, "eta_1g": 0.1, "eta_1F": 0.01}


def _ours(functions, x0, y0):
    box = blocc.Box(0, 3)
    answer = blocc.minimize(*functions, x0, y0, x_set=box, y_set=box, on_failure="return")
    return answer.x[0], answer.y[0], answer.status.name


def _published(functions, x0, y0):
    box = blocc.Box(0, 3)
    model = blocc.FunctionalModel(*functions, x0, y0, x_set=box, y_set=box)
    answer = algorithm_1(model, x0, eta_2=0.5, **PUBLISHED)
    return answer.x[0], answer.lower.y[0], "no certificate"


def study(starts: int) -> pd.DataFrame:
    """Every method from every start on both problems."""
    rows = []
    for name, shape in PROBLEMS.items():
        functions, minima = toy(*shape), np.array(toy_minima(*shape))
        random = np.random.default_rng(0)
        for start in range(starts):
            x0, y0 = random.uniform(0, 3, 1), random.uniform(0, 3, 1)
            for method, run in (("blocc", _ours), ("Algorithm 1", _published)):
                began = time.process_time()
                x, y, status = run(functions, x0, y0)
                seconds = time.process_time() - began
                # the lower level's own answer is y = x, in closed form
                true = functions[0].value(np.array([x]), np.array([x]), None)
                nearest = minima[np.argmin(np.abs(minima - x))]
                least = functions[0].value(np.array([nearest]), np.array([nearest]), None)
                rows.append(
                    {
                        "problem": name,
                        "start": start,
                        "method": method,
                        "x0": x0[0],
                        "x": x,
                        "lower_error": abs(y - x),
                        "minimum": nearest,
                        "distance": abs(x - nearest),
                        "excess": float(true - least),
                        "status": status,
                        "cpu_seconds": seconds,
                    }
                )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row a problem and method."""
    groups = table.groupby(["problem", "method"], sort=False)
    return groups.agg(
        runs=("x", "size"),
        certified=("status", lambda s: int(s.isin(["OPTIMAL", "STATIONARY"]).sum())),
        within_1e_6=("distance", lambda d: int((d < 1e-6).sum())),
        within_1e_3=("distance", lambda d: int((d < 1e-3).sum())),
        largest_excess=("excess", "max"),
        largest_lower_error=("lower_error", "max"),
        cpu_seconds=("cpu_seconds", "median"),
    ).reset_index()


def plot(table: pd.DataFrame, path: Path) -> None:
    """The upper objective along y = x, and where the runs ended."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    grid = np.linspace(0, 3, 600)
    for axes, (name, shape) in zip(figure.subplots(1, 2), PROBLEMS.items(), strict=True):
        value = toy(*shape)[0].value
        axes.plot(grid, [value(np.array([x]), np.array([x]), None) for x in grid], color="#7a828c")
        for method, marker, color in (("blocc", "o", "#1f5fa8"), ("Algorithm 1", "x", "#d1661b")):
            ends = table[(table.problem == name) & (table.method == method)].x
            at = [value(np.array([x]), np.array([x]), None) for x in ends]
            axes.plot(ends, at, marker, color=color, label=method, alpha=0.6)
        axes.set(xlabel="x", title=f"toy problem ({name})")
    figure.axes[0].set_ylabel("f(x, y(x))")
    figure.axes[0].legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--starts", type=int, default=200)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = study(arguments.starts)
    table.to_csv(arguments.out / "toy.csv", index=False)
    rows = summary(table)
    lines = ["| " + " | ".join(rows.columns) + " |", "|" + "---|" * len(rows.columns)]
    for row in rows.itertuples(index=False):
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row)
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    (arguments.out / "toy.md").write_text(text)
    plot(table, arguments.out / "toy.svg")
    (arguments.out / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
