"""Eight application models, solved by blocc and, where it is installed, by blvpy in the same run.

    python benchmarks/side_by_side.py [--repeat 3] [--out DIR] [--only tolls,ridge]

The models are those of ``tests/cvx/models.py``: plain CVXPY, the same expressions and the same start for both tools,
each tool with its defaults (blvpy also with its epsilon at 1e-9, the setting that makes its answers sharp).

*error* is the objective's distance to an optimum found without either tool, relative, positive where worse; *gap* and
*violation* are measured here, by solving the lower level again through CVXPY at the returned x. CPU seconds are of
this process, from the model in CVXPY to the answer, the median of the repeats. *ratio* is blvpy's (defaults) over
blocc's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402
from tests.cvx.models import MODELS, Model  # noqa: E402

Variables = list[cp.Variable]


def lower_variables(model: Model) -> Variables:
    given = {variable.id for variable in model.given}
    everything = cp.Problem(cp.Minimize(0), list(model.constraints.values())).variables()
    found = {v.id: v for v in [*model.lower.args[0].variables(), *everything]}
    return [v for identity, v in found.items() if identity not in given]


def at(expression: Any, values: dict[int, Any]) -> Any:
    """Copy an expression with the given variables replaced by constants."""
    if isinstance(expression, cp.Variable) and expression.id in values:
        return cp.Constant(values[expression.id])
    if not expression.args:
        return expression
    return expression.copy([at(argument, values) for argument in expression.args])


def measure(model: Model) -> dict[str, float]:
    """Objective, relative lower gap and violation of the values that the variables hold."""
    own = lower_variables(model)
    x = {v.id: np.asarray(v.value) for v in model.given}
    y = {v.id: np.asarray(v.value) for v in own}
    size = 1.0 + max(float(np.abs(value).max()) for value in (*x.values(), *y.values()))
    constraints = [*model.constraints.values(), *model.upper_constraints]
    worst = max([0.0, *(float(np.max(c.violation())) for c in constraints)])
    for variable in (*model.given, *own):
        value = np.asarray(variable.value)
        if variable.is_nonneg():
            worst = max(worst, float(-value.min()))
        low, high = variable.attributes.get("bounds") or (None, None)
        worst = max(worst, 0.0 if low is None else float(np.max(low - value)))
        worst = max(worst, 0.0 if high is None else float(np.max(value - high)))
    upper, lower = float(model.upper.value), float(model.lower.args[0].value)
    again = cp.Problem(
        type(model.lower)(at(model.lower.args[0], x)),
        [c.copy([at(a, x) for a in c.args]) for c in model.constraints.values()],
    )
    linear = again.is_lp()
    quadratic = again.is_qp() and "PIQP" in cp.installed_solvers()
    exact = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
    if linear:
        again.solve(solver="HIGHS")
    elif quadratic:
        again.solve(solver="PIQP", eps_abs=1e-11, eps_rel=1e-11)
    else:
        again.solve(solver="CLARABEL", **exact)
    sign = 1.0 if isinstance(model.lower, cp.Minimize) else -1.0
    gap = sign * (lower - float(again.value)) / (1.0 + abs(float(again.value)))
    for variable in own:
        variable.save_value(y[variable.id])
    return {"objective": upper, "gap": gap, "violation": worst / size}


def run_blocc(model: Model) -> str:
    return model.problem().solve(on_failure="return").status.name


def run_blvpy(model: Model, epsilon: float | None) -> str:
    import blvpy  # type: ignore[import-not-found]

    for variable in model.given:
        variable.value = model.start[variable.name()]
    lower = blvpy.LowerProblem(
        model.lower, list(model.constraints.values()), parameters=model.given
    )
    problem = blvpy.BilevelProblem(model.upper, lower, list(model.upper_constraints))
    options = {} if epsilon is None else {"epsilon_target": epsilon}
    result = problem.solve(verbose=False, **options)
    return str(result.status).upper()


def compare(name: str, tool: str, run: Callable[[Model], str], repeat: int) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, "tool": tool}
    seconds = []
    for _ in range(repeat):
        model = MODELS[name]()  # afresh: nothing compiled is kept between repeats
        started = time.process_time()
        try:
            row["status"] = run(model)
        except Exception as error:  # a peer may fail in any way: the table shows it
            return row | {"status": f"{type(error).__name__}: {error}"[:120]}
        seconds.append(time.process_time() - started)
    best = model.reference()
    row |= measure(model)
    sign = 1.0 if isinstance(model.upper, cp.Minimize) else -1.0
    row["error"] = sign * (row["objective"] - best) / (1.0 + abs(best))
    row["optimum"], row["seconds"] = best, statistics.median(seconds)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | tool | status | objective | error | lower gap | violation | CPU s | ratio |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        if "seconds" not in row:
            lines.append(f"| {row['model']} | {row['tool']} | {row['status']} |" + " |" * 6)
            continue
        ratio = f"{row['ratio']:.2g}" if "ratio" in row else ""
        lines.append(
            f"| {row['model']} | {row['tool']} | {row['status']} | {row['objective']:.8g} | {row['error']:.1e} "
            f"| {row['gap']:.1e} | {row['violation']:.1e} | {row['seconds']:.3f} | {ratio} |"
        )
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """Who wins what, blocc's defaults against blvpy's; losses by name."""
    by_tool = {(row["model"], row["tool"]): row for row in rows if "seconds" in row}
    pairs = [
        (by_tool[name, "blocc"], by_tool[name, "blvpy"])
        for name, tool in by_tool
        if tool == "blocc" and (name, "blvpy") in by_tool
    ]
    if not pairs:
        return "blvpy is not installed: nothing to compare with."
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    worse = [o["model"] for o, t in pairs if o["error"] > max(t["error"], 0.0) + 1e-6]
    floor = 1e-9  # gaps below are at the measuring solver's own accuracy
    tenfold = [o["model"] for o, t in pairs if max(o["gap"], floor) <= 0.1 * abs(t["gap"])]
    slower = [o["model"] for o, t in pairs if o["seconds"] > t["seconds"]]
    return "\n".join(
        [
            f"- models that both solve: {len(pairs)}; median time ratio {statistics.median(ratios):.2g} "
            f"(blvpy over blocc; above 1 is in our favour)",
            f"- worse objective with defaults: {', '.join(worse) or 'none'}",
            f"- lower gap at least tenfold smaller (gaps below {floor:.0e} count as that): {len(tenfold)} of "
            f"{len(pairs)}; not so: {', '.join(o['model'] for o, _ in pairs if o['model'] not in tenfold) or 'none'}",
            f"- slower: {', '.join(slower) or 'none'}",
        ]
    )


def versions() -> str:
    found = environment("blvpy", "daqp", "cyipopt")
    names = ("blocc", "blvpy", "cvxpy", "clarabel", "daqp", "cyipopt", "numpy", "scipy")
    told = (f"{name} {found[name] or '(not installed as a package)'}" for name in names)
    return f"{found['cpu']}, {found['cores']} cores; Python {found['python']}; " + ", ".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    unknown = set(filter(None, options.only.split(","))) - set(MODELS)
    if unknown:
        parser.error(f"no model {sorted(unknown)[0]!r}; there are {', '.join(MODELS)}")
    warnings.simplefilter("ignore")
    try:
        import blvpy  # noqa: F401
    except ImportError:
        peer = False
        print("blvpy is not installed: no rows for it", file=sys.stderr)
    else:
        peer = True
    run_blocc(MODELS["analytic_quadratic"]())  # imports and first calls are nobody's time
    if peer:
        run_blvpy(MODELS["analytic_quadratic"](), None)
    rows = []
    for name in filter(None, options.only.split(",")) if options.only else MODELS:
        ours = compare(name, "blocc", run_blocc, options.repeat)
        rows.append(ours)
        if peer:
            theirs = compare(name, "blvpy", lambda model: run_blvpy(model, None), options.repeat)
            if "seconds" in theirs and "seconds" in ours:
                theirs["ratio"] = theirs["seconds"] / ours["seconds"]
            rows.append(theirs)
            rows.append(
                compare(name, "blvpy, epsilon 1e-9", lambda m: run_blvpy(m, 1e-9), options.repeat)
            )
        print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
    text = "\n\n".join([f"Run on {versions()}.", table(rows), summary(rows)])
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "side_by_side.md").write_text(text + "\n")
        (options.out / "side_by_side.json").write_text(json.dumps(rows, indent=1, default=float))
    return 0


if __name__ == "__main__":
    sys.exit(main())
