"""Wrong input to the functional front end and the solvers behind it: one clear error each, before any work."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import blocc
from blocc import arrays, maxmin
from blocc.errors import BackendUnavailableError, InvalidInputError, LowerNotSolvedError
from blocc.methods.published import blocc as algorithm_1
from blocc.progress import Progress
from blocc.sets import Budget
from tests.core.problems import toy

SQUARE = blocc.Function(lambda x, y, d: (y**2).sum(), lambda x, y, d: (0 * x, 2 * y))


def test_a_function_of_parts_that_cannot_be_called_names_the_part():
    with pytest.raises(
        InvalidInputError, match="Function: gradient must be callable, got NoneType"
    ):
        blocc.Function(lambda x, y, d: 0.0, None)


def test_check_gradients_of_what_is_not_callable():
    with pytest.raises(InvalidInputError, match=r"objective must be callable .* got float"):
        blocc.check_gradients(3.0, [1.0], [1.0], name="objective")


def test_a_gradient_that_is_no_pair():
    lonely = blocc.Function(lambda x, y, d: (y**2).sum(), lambda x, y, d: 2 * y)
    with pytest.raises(InvalidInputError, match="gradient of g must return a pair"):
        blocc.check_gradients(lonely, [1.0], [1.0, 2.0, 3.0], name="g")


def test_built_ins_without_a_signature_are_left_to_their_own_error():
    with pytest.raises((InvalidInputError, TypeError, ValueError)):
        blocc.check_gradients(max, [1.0], [1.0])


@pytest.mark.parametrize("point", [[1 + 2j], np.array([1j])])
def test_complex_starting_points(point):
    with pytest.raises(InvalidInputError, match="x0"):
        blocc.minimize(SQUARE, SQUARE, None, point, [1.0])


def test_a_constraint_that_is_a_comparison_says_to_write_a_difference():
    with pytest.raises(InvalidInputError, match="c must return real numbers, got bool"):
        blocc.minimize(SQUARE, SQUARE, lambda x, y, d: y <= x, [1.0], [1.0])


def test_a_set_of_another_shape_names_the_set():
    with pytest.raises(InvalidInputError, match=r"y_set has shape \(3,\), but y0 has shape \(1,\)"):
        blocc.minimize(SQUARE, SQUARE, None, [1.0], [1.0], y_set=blocc.Box(np.zeros(3), 1.0))


def test_a_budget_needs_finite_lower_bounds():
    with pytest.raises(InvalidInputError, match="every lower bound must be finite"):
        Budget(np.ones(2), 1.0, lower=-np.inf).project(np.zeros(2))


def test_a_callback_that_cannot_be_called():
    with pytest.raises(InvalidInputError, match="callback must be callable, got str"):
        Progress(callback="print")


def test_published_blocc_needs_a_step_and_no_upper_constraints():
    functions = toy(4, 1.0)
    steps = {"gamma": 5.0, "eta": 0.01, "T_inner": 1, "eta_1g": 0.1, "eta_1F": 0.01, "eta_2": 0.5}
    model = blocc.FunctionalModel(*functions, [1.0], [1.0])
    with pytest.raises(InvalidInputError, match="T must be at least 1, got 0"):
        algorithm_1(model, model.y0, T=0, **steps)
    model = blocc.FunctionalModel(*functions, [1.0], [1.0], G=functions[2])
    with pytest.raises(InvalidInputError, match="no upper constraints on y"):
        algorithm_1(model, model.y0, T=1, **steps)


def saddle(objective, gradient):
    return maxmin.SaddleProblem(objective, gradient, {}, blocc.Box(-1.0, 1.0))


def test_maxmin_refuses_a_negative_tolerance():
    problem = saddle(lambda y: (y * y).sum(), lambda y: 2 * y)
    with pytest.raises(InvalidInputError, match="tol must be at least 0, got -1"):
        maxmin.solve(problem, np.ones(2), tol=-1.0)
    with pytest.raises(InvalidInputError, match="tol must be at least 0, got nan"):
        maxmin.solve_batch(problem, np.ones((2, 2)), tol=float("nan"))


def test_a_batch_that_is_not_finite_at_its_start_is_an_error():
    problem = saddle(lambda y: np.log(y).sum(axis=1), lambda y: 1 / y)
    with np.errstate(all="ignore"), pytest.raises(LowerNotSolvedError, match="not finite"):
        maxmin.solve_batch(problem, np.array([[1.0, 0.5], [-0.5, 0.5]]), tol=1e-6)


class Bare:
    """A model with the protocol's names alone: no relaxation, no restoration."""

    x_set = blocc.Box(-1.0, 1.0)
    x_shape = (2,)

    def __init__(self):
        self._inner = blocc.FunctionalModel(SQUARE, SQUARE, None, np.zeros(2), np.zeros(1))
        for name in ("upper", "upper_violation", "lower", "penalized", "residuals"):
            setattr(self, name, getattr(self._inner, name))


def test_a_model_of_ones_own_needs_a_start_of_its_shape():
    with pytest.raises(InvalidInputError, match="x0 is needed: this model has no relaxation"):
        blocc.solve(Bare(), None)
    with pytest.raises(
        InvalidInputError, match=r"x0 has shape \(3,\), but the model's x has shape \(2,\)"
    ):
        blocc.solve(Bare(), np.zeros(3))


def test_what_is_no_model_is_refused_by_what_it_lacks():
    with pytest.raises(InvalidInputError, match=r"must be a blocc\.Model, got int without"):
        blocc.solve(3, [1.0])


# ---- CuPy, told from stand-ins: with a device, tests/gpu runs the real one -----------------------------------------


def stand_in(monkeypatch, count):
    """A cupy package that reports so many devices, and array_api_compat's namespace for it."""
    properties = [{"name": f"device {i}".encode()} for i in range(count)]
    runtime = SimpleNamespace(
        getDeviceCount=lambda: count, getDeviceProperties=properties.__getitem__
    )
    monkeypatch.setitem(
        sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), __version__="0")
    )
    namespace = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", namespace)
    monkeypatch.setattr(sys.modules["array_api_compat"], "cupy", namespace, raising=False)
    return namespace


def test_cupy_with_devices_is_the_namespace_and_they_are_listed(monkeypatch):
    namespace = stand_in(monkeypatch, 2)
    assert arrays.resolve_backend("cupy") is namespace
    assert arrays.devices() == ["device 0", "device 1"]


def test_cupy_that_counts_no_device_is_unavailable(monkeypatch):
    stand_in(monkeypatch, 0)
    with pytest.raises(
        BackendUnavailableError, match=r"no CUDA device found\. Use backend='numpy'"
    ):
        arrays.resolve_backend("cupy")
    assert arrays.devices() == []


def test_arrays_on_a_device_come_to_the_host_by_their_own_copy(monkeypatch):
    there = SimpleNamespace(get=lambda: np.arange(3.0))
    monkeypatch.setattr(arrays.array_api_compat, "is_cupy_array", lambda array: array is there)
    assert arrays.to_numpy(there).tolist() == [0.0, 1.0, 2.0]


def test_numbers_that_are_no_arrays_become_numpy_arrays():
    assert arrays.to_numpy([1, 2]).tolist() == [1, 2]
