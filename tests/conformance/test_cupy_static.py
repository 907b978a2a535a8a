"""Rung 4: every array-library call of the core exists in the real CuPy and binds to its signature.

The CuPy wheel imports without a driver. What the core calls is recorded while it runs on array-api-strict, and read
from its source for the lines that do not run.
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from types import FunctionType

import array_api_strict as strict
import numpy as np
import pytest
from array_api_strict._array_object import Array

import blocc
from blocc import arrays, maxmin
from blocc.methods.published import blocc as published
from tests.conformance import problems
from tests.conformance.test_imports import CORE, PACKAGE

Calls = set[tuple[str, int, tuple[str, ...]]]

# What the core may take from an array besides operators: all of it is on cupy.ndarray.
ATTRIBUTES = {"shape", "dtype", "ndim", "size", "T", "device"}


def _from_core(depth: int = 2) -> bool:
    name = sys._getframe(depth).f_globals.get("__name__", "")
    return name.startswith("blocc.")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Calls, set[str]]:
    """Namespace calls and array attributes that the core uses while it is exercised."""
    calls: Calls = set()
    attributes: set[str] = set()

    def recorder(name: str, function):
        def call(*positional, **keywords):
            if _from_core():
                calls.add((name, len(positional), tuple(sorted(keywords))))
            return function(*positional, **keywords)

        return call

    original = object.__getattribute__

    def attribute(self, name):
        if not name.startswith("__") and _from_core():
            attributes.add(name)
        return original(self, name)

    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in dir(strict):
            function = getattr(strict, name)
            if isinstance(function, FunctionType) and not name.startswith("_"):
                monkeypatch.setattr(strict, name, recorder(name, function))
        monkeypatch.setattr(Array, "__getattribute__", attribute, raising=False)
        exercise(strict.Device("device1"), tmp_path_factory.mktemp("recorded"))
    return calls, attributes


def exercise(device: object, tmp_path: Path) -> None:
    """Run the core: sets, MaxMin, both outer methods, restoration, checkpoint, gradient check, published methods."""
    point = strict.asarray([0.3, -2.0, 4.0], device=device)
    for given in (
        blocc.Free(),
        blocc.Box(-1.0, [1.0, 2.0, 3.0]),
        blocc.NonNegative(),
        blocc.Ball(1.0, [0.1, 0.2, 0.3]),
        blocc.Simplex(2.0),
    ):
        given.linear_gap(given.project(point), point)
    options = {"gamma": 2.0, "tol": 0.1, "max_iterations": 1}
    checkpoint = tmp_path / "checkpoint.npz"
    for method, x_set in (("lbfgsb", blocc.Box(-2.0, 2.0)), ("spectral", blocc.Ball(2.0))):
        problems.minimize(
            strict, device, method=method, x_set=x_set, on_failure="return", **options
        ).save(tmp_path / "result.npz")

    def stop(record):
        if checkpoint.exists():
            raise KeyboardInterrupt

    with pytest.raises(blocc.SolveInterrupted):
        problems.minimize(strict, device, tol=1e-2, checkpoint=checkpoint, callback=stop)
    with pytest.raises(blocc.SolveInterrupted):
        problems.minimize(strict, device, tol=1e-2, resume=checkpoint, callback=stop)
    x0, y0 = problems.start(strict, device)
    model = blocc.FunctionalModel(
        problems.f,
        problems.g,
        problems.c,
        x0,
        y0,
        y_set=blocc.NonNegative(),
        x_set=blocc.Box(-2.0, 2.0),
        G=problems.c,
        data=problems.data(strict, device),
    )
    model.restore(x0 * 0.0 + 1.9)
    model.upper_violation(x0, y0)
    model.penalized(x0, 1.0, tol=1e-3)
    with pytest.raises(blocc.LowerInfeasibleError):
        model.lower(x0 * 0.0 + 1.9, tol=1e-6)
    falls = maxmin.SaddleProblem(strict.sum, strict.ones_like)
    with pytest.raises(blocc.LowerUnboundedError):
        maxmin.solve(falls, y0, tol=1e-6)
    blocc.check_gradients(problems.c, x0, y0, problems.data(strict, device))
    plain = blocc.FunctionalModel(
        problems.f, problems.g, problems.c, x0, y0, data=problems.data(strict, device)
    )
    published(plain, x0, gamma=1.0, eta=0.01, T=1, eta_1g=0.1, eta_1F=0.1, eta_2=0.1, T_inner=2)
    arrays.all_finite(x0)
    arrays.asarray_like([1.0], x0)


def cupy_namespace():
    pytest.importorskip("cupy", reason="CuPy is not installed: pip install cupy-cuda12x")
    import array_api_compat.cupy as xp

    return xp


def binds(function: object, positional: int, keywords: tuple[str, ...]) -> str | None:
    """None if a call of this shape is accepted, else why not."""
    if hasattr(function, "nin"):  # a ufunc: no signature, but known numbers of arguments
        fits = function.nin <= positional <= function.nargs
        return None if fits and set(keywords) <= {"out", "dtype", "casting"} else "ufunc arguments"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError as error:
        return str(error)
    return None


def test_recorded_calls_exist_and_bind_in_cupy(recorded):
    xp = cupy_namespace()
    calls, attributes = recorded
    assert {"sum", "where", "maximum", "stack", "sqrt"} <= {name for name, _, _ in calls}
    wrong = []
    for name, positional, keywords in sorted(calls):
        function = getattr(xp, name, None)
        why = "missing" if function is None else binds(function, positional, keywords)
        if why:
            wrong.append(f"{name}({positional} positional, {keywords}): {why}")
    assert not wrong, wrong
    import cupy

    assert attributes
    assert all(hasattr(cupy.ndarray, name) for name in attributes if not name.startswith("_"))


def test_array_attributes_of_the_core_are_on_every_library(recorded):
    """Arrays are touched through operators and a few attributes alone: no methods, which libraries name differently."""
    _, attributes = recorded
    assert attributes
    assert attributes <= ATTRIBUTES, attributes - ATTRIBUTES


def namespace_names(source: str) -> set[str]:
    """NAME of every ``xp.NAME`` and ``namespace(...).NAME`` in a source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            base = node.value
            called = isinstance(base, ast.Call) and getattr(base.func, "id", "") == "namespace"
            if called or (isinstance(base, ast.Name) and base.id in ("xp", "space")):
                found.add(node.attr)
    return found


def test_every_namespace_name_in_the_source_exists_in_cupy():
    xp = cupy_namespace()
    names = set()
    for module in [*CORE, "methods/gradient_sampling", "methods/barrier"]:
        file = PACKAGE / f"{module}.py"
        if file.exists():
            names |= namespace_names(file.read_text())
    assert len(names) > 20
    assert [name for name in sorted(names) if not hasattr(xp, name)] == []


def test_the_static_check_sees_a_wrong_call():
    """``numpy.sum`` without ``keepdim``, a missing name, a ufunc with too many arguments."""
    assert binds(np.sum, 1, ("keepdim",)) is not None
    assert binds(np.sum, 1, ("axis",)) is None
    assert binds(np.sqrt, 3, ()) is not None
    assert namespace_names("xp.no_such_name(y)\nnamespace(x).other(x)") == {"no_such_name", "other"}
