"""The first-order benchmarks run at their tiniest size, and their common measure is right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import first_order, gpu
from blocc.maxmin import kkt_residual


@pytest.mark.parametrize("family", first_order.FAMILIES)
def test_the_common_measure_agrees_with_the_library_and_vanishes_at_clarabels_answer(family):
    """Written out twice; zero only at answers, wherever they come from."""
    pytest.importorskip("clarabel")
    problem = first_order.FAMILIES[family](60, 0)
    y, dual, _ = first_order.with_clarabel(problem, 1e-10)
    # with exponential cones Clarabel ends less exact, and log s magnifies that near s = 0
    assert first_order.residual(problem, y, dual) <= (1e-5 if family == "entropy" else 1e-7)
    random = np.random.default_rng(0)
    y = np.clip(y + 0.1 * random.normal(size=y.shape), problem.lower, problem.upper)
    dual = dual + 0.1 * np.abs(random.normal(size=dual.shape))
    dual[: len(problem.b)] = np.maximum(dual[: len(problem.b)], 0.0)
    split = {"c": dual[: len(problem.b)], "h": dual[len(problem.b) :]}
    saddle = first_order.saddle(problem)
    expected = kkt_residual(saddle, y, {k: split[k] for k in saddle.constraints})
    assert expected > 1e-3
    assert first_order.residual(problem, y, dual) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", first_order.FAMILIES)
def test_maxmin_solves_the_families_to_the_objective_of_clarabel(family):
    problem = first_order.FAMILIES[family](60, 1)
    values = []
    for solver in ("blocc", "clarabel"):
        y, _, _ = first_order.SOLVERS[solver](problem, 1e-9)
        values.append(problem.value(y))
    assert values[0] == pytest.approx(values[1], rel=1e-6, abs=1e-6)


def test_the_slope_of_entropies_is_that_of_their_value():
    problem = first_order.FAMILIES["entropy"](60, 2)
    random = np.random.default_rng(0)
    y = np.clip(random.uniform(0.1, 0.9, len(problem.q)), problem.lower, problem.upper)
    direction = random.normal(size=y.shape)
    ends = [problem.value(y + step * direction) for step in (1e-6, -1e-6)]
    difference = (ends[0] - ends[1]) / 2e-6
    assert problem.slope(y) @ direction == pytest.approx(difference, rel=1e-7)


def test_qp_solvers_are_not_given_entropies(tmp_path):
    options = ["--families", "entropy", "--sizes", "60", "--solvers", "blocc,osqp"]
    first_order.main([*options, "--targets", "1e-3", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "first_order.json").read_text())
    assert [row["solver"] for row in rows] == ["blocc"]


def test_the_command_writes_its_table_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = ["--families", "chain", "--sizes", "20", "--solvers", "blocc,clarabel"]
    assert first_order.main([*options, "--targets", "1e-3", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "first_order.json").read_text())
    assert [row["solver"] for row in rows] == ["blocc", "clarabel"]
    assert all(row["solved"] and row["residual"] <= 1e-3 for row in rows)
    assert (tmp_path / "first_order.svg").exists()
    assert "chain" in capsys.readouterr().out


def test_the_gpu_benchmark_runs_on_numpy(tmp_path):
    pytest.importorskip("osqp")
    pytest.importorskip("daqp")
    options = ["--sizes", "100", "--batches", "2", "--iterations", "5", "--out", str(tmp_path)]
    assert gpu.main(options) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["batches"][0]["solved"] == 2
    assert record["bandwidth"] > 1e6
    assert {"autograd"} <= {row["library"] for row in record["calls"]}
    assert all(row["gradient"] > 0 for row in record["calls"])
