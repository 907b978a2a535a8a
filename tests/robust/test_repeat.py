"""The same input gives the same output: again, in another process, beside another solve, after a thousand solves."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import blocc

TIMES = {"seconds", "timings", "versions"}


def _solve(shift: float) -> tuple[bytes, bytes]:
    result = blocc.minimize(
        blocc.Function(
            lambda x, y, data: ((x - data) ** 2).sum() + (y**2).sum(),
            lambda x, y, data: (2 * (x - data), 2 * y),
        ),
        blocc.Function(
            lambda x, y, data: ((y - x) ** 2).sum(),
            lambda x, y, data: (-2 * (y - x), 2 * (y - x)),
        ),
        blocc.Function(lambda x, y, data: y - 0.5 * x, lambda x, y, w, data: (-0.5 * w, w)),
        np.zeros(2),
        np.zeros(2),
        data=np.array([1.0, shift]),
        x_set=blocc.Box(-1.0, 2.0),
    )
    return result.x.tobytes(), result.y.tobytes()


def _strip(value):
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items() if key not in TIMES}
    return [_strip(item) for item in value] if isinstance(value, list) else value


def test_two_processes_at_once_give_the_answers_of_each_alone():
    shifts = [0.25, 0.5, 0.75, 1.5]
    alone = [_solve(shift) for shift in shifts]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        together = pool.map(_solve, shifts)
    assert together == alone
    assert len(set(alone)) == len(shifts)


def test_summary_json_is_the_same_again_apart_from_times(tmp_path):
    pytest.importorskip("numba")
    summaries = []
    for name in ("first", "second"):
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from blocc.cli import main; main()"),
                *("transport", "design", "three_node", "--out", tmp_path / name),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        summaries.append((tmp_path / name / "summary.json").read_text())
    first, second = (json.dumps(_strip(json.loads(text))) for text in summaries)
    assert first == second


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_a_thousand_solves():
    import cvxpy as cp

    x = cp.Variable(2, bounds=[0, 5], name="x")
    y = cp.Variable(2, nonneg=True, name="y")
    demand = cp.Parameter(value=10.0)
    lower = blocc.LowerProblem(
        cp.Minimize(cp.sum_squares(y) + x @ y), [cp.sum(y) == demand], given=[x]
    )
    problem = blocc.BilevelProblem(cp.Minimize(cp.sum_squares(y - 3) - cp.sum(x)), lower, [])

    def solve(times: int) -> None:
        for turn in range(times):
            demand.value = 8.0 + turn % 5
            problem.solve()
            _solve(0.5)

    solve(100)  # caches fill
    tracemalloc.start()
    solve(50)
    before = tracemalloc.get_traced_memory()[0]
    solve(350)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # a solve that leaked even a short history would leave 700 times several kilobytes
    assert after - before < 200_000
