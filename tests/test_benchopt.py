"""The benchopt benchmark: its parts keep their contract, and blocc's bounds beat the best single bound."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("benchopt")
pytest.importorskip("daqp")
FOLDER = Path(__file__).parents[1] / "benchmarks" / "benchopt"


def _load(path, name):
    spec = importlib.util.spec_from_file_location(f"benchopt_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_blocc_beats_the_best_single_bound_at_the_exact_response():
    objective = _load(FOLDER / "objective.py", "Objective")
    objective.upper = "squared"
    scored = objective()
    dataset = _load(FOLDER / "datasets" / "study.py", "Dataset")
    dataset.dataset, dataset.split = "diabetes", 0
    scored.set_data(**dataset().get_data())
    values = {}
    for name in ("blocc", "equal_bounds"):
        solver = _load(FOLDER / "solvers" / f"{name}.py", "Solver")()
        solver.set_objective(**scored.get_objective())
        solver.run(30)
        values[name] = scored.evaluate_result(**solver.get_result())["value"]
    assert values["blocc"] < values["equal_bounds"] < float("inf")
