"""The asv suite: every benchmark in it still runs against the current interface."""

from __future__ import annotations

import inspect
import json
from itertools import product
from pathlib import Path

import pytest

from benchmarks.asv import regressions

pytest.importorskip("numba")
CLASSES = [item for _, item in inspect.getmembers(regressions, inspect.isclass)]
TIMED = [
    (cls, name)
    for cls in CLASSES
    if cls.__module__ == regressions.__name__
    for name in vars(cls)
    if name.startswith("time_")
]


def test_the_configuration_points_at_the_suite():
    root = Path(__file__).parents[1]
    configuration = json.loads((root / "asv.conf.json").read_text())
    assert (root / configuration["benchmark_dir"] / "regressions.py").exists()


@pytest.mark.parametrize(("cls", "name"), TIMED, ids=lambda item: getattr(item, "__name__", item))
def test_benchmark_runs(cls, name):
    values = getattr(cls, "params", ())
    values = (values,) if values and not isinstance(values[0], tuple) else values
    for arguments in product(*values):
        benchmark = cls()
        benchmark.setup(*arguments)
        getattr(benchmark, name)(*arguments)
