"""Solving again after a parameter has changed: blocc, blvpy, and the lower level alone through CVXPY.

    python benchmarks/resolve.py [--repeat 15]

The *tolls* model of ``tests/cvx/models.py`` with its trips as a ``cvxpy.Parameter``, which takes another value before
every solve. *overhead* is the wall time of ``solve`` outside the method and the certificate: reading parameters,
updating data, the relaxation, building the result. The lower level alone, at another x every time, is compared with
``cvxpy.Problem.solve`` on the same program, canonicalised once (DPP). Medians, CPU milliseconds but for the overhead.
"""

from __future__ import annotations

import argparse
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

from blocc.cvx import BilevelProblem, LowerProblem  # noqa: E402

SLOPE, BASE = np.array([1.0, 0.5, 2.0, 0.2]), np.array([1.0, 3.0, 0.5, 6.0])


def parts() -> tuple[Any, ...]:
    """Toll, flow, trips, both objectives and the lower constraint."""
    toll, flow = (
        cp.Variable(2, name="toll", bounds=[0, 8]),
        cp.Variable(4, name="flow", nonneg=True),
    )
    trips = cp.Parameter(value=10.0)
    toll.value = np.full(2, 5.0)
    upper = BASE @ flow + SLOPE @ cp.square(flow) + 0.1 * cp.sum(toll)
    lower = BASE @ flow + (SLOPE / 2) @ cp.square(flow) + toll[0] * flow[0] + toll[1] * flow[2]
    return toll, flow, trips, cp.Minimize(upper), cp.Minimize(lower), cp.sum(flow) == trips


def problem() -> tuple[BilevelProblem, cp.Parameter]:
    toll, _, trips, upper, lower, row = parts()
    return BilevelProblem(upper, LowerProblem(lower, {"trips": row}, given=[toll])), trips


def timed(action: Callable[[], Any]) -> float:
    started = time.process_time()
    action()
    return 1e3 * (time.process_time() - started)


def again(solve: Callable[[], Any], trips: cp.Parameter, repeat: int) -> list[float]:
    """Milliseconds of solves, the parameter changed before each."""
    spent = []
    for turn in range(repeat):
        trips.value = 9.0 + 0.25 * (7 * turn % 9)
        spent.append(timed(solve))
    return spent


def rows(repeat: int) -> list[tuple[str, float]]:
    first = [timed(lambda: problem()[0].solve()) for _ in range(repeat)]
    model, trips = problem()
    model.solve()
    found: list[tuple[str, float]] = [("blocc, built and solved", statistics.median(first))]
    for name, warm in (("blocc, again", False), ("blocc, again, warm_start=True", True)):
        outside = []

        def solve(warm: bool = warm, outside: list[float] = outside) -> None:
            started = time.perf_counter()
            spent = model.solve(warm_start=warm).timings
            own = time.perf_counter() - started
            own -= spent["joint"] + spent["probe"] + spent["certificate"]
            outside.append(1e3 * own)

        found.append((name, statistics.median(again(solve, trips, repeat))))
        found.append((f"{name}: overhead", statistics.median(outside)))
    random = np.random.default_rng(0)
    points = iter(random.uniform(0, 8, (repeat, 2)))
    found.append(
        (
            "lower level alone, blocc",
            statistics.median(timed(lambda: model.lower(next(points))) for _ in range(repeat)),
        )
    )
    flow, given = cp.Variable(4, nonneg=True), cp.Parameter(2, nonneg=True)
    lower = BASE @ flow + (SLOPE / 2) @ cp.square(flow) + given[0] * flow[0] + given[1] * flow[2]
    plain = cp.Problem(cp.Minimize(lower), [cp.sum(flow) == 10])
    given.value = np.ones(2)
    plain.solve(solver="CLARABEL")

    def through_cvxpy() -> None:
        given.value = random.uniform(0, 8, 2)
        plain.solve(solver="CLARABEL")

    through = statistics.median(timed(through_cvxpy) for _ in range(repeat))
    found.append(("lower level alone, cvxpy", through))
    try:
        import blvpy  # type: ignore[import-not-found]
    except ImportError:
        print("blvpy is not installed: no rows for it", file=sys.stderr)
        return found
    toll, _, trips, upper, lower, row = parts()
    peer = blvpy.BilevelProblem(upper, blvpy.LowerProblem(lower, [row], parameters=[toll]))
    found.append(("blvpy, first", timed(lambda: peer.solve(verbose=False))))
    spent = again(lambda: peer.solve(verbose=False), trips, min(repeat, 5))
    found.append(("blvpy, again", statistics.median(spent)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| what | ms |\n|---|---|")
    for name, milliseconds in rows(options.repeat):
        print(f"| {name} | {milliseconds:.2g} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
