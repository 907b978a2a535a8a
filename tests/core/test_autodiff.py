"""Functions written in torch or jax: answers as on NumPy, on the same memory, and errors that name the remedy."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import blocc
from blocc import arrays, autodiff
from blocc.arrays import exchanged, to_numpy
from blocc.errors import BackendUnavailableError, InvalidInputError, SolveError
from blocc.gradients import Differentiable
from tests.core import test_gradients
from tests.core.test_gradients import MATRIX, X, Y

ROWS, RESPONSE = np.array([[1.0, 0.5]]), np.array([[1.0], [-0.5]])


@pytest.fixture(params=["torch", "jax"])
def library(request):
    """Array maker and mathematics of a library; jax in double precision for the test."""
    module = pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    if request.param == "torch":
        yield SimpleNamespace(
            name="torch",
            asarray=module.asarray,
            kind=module.Tensor,
            xp=module,
            engine=autodiff.Torch(),
        )
        return
    before = module.config.jax_enable_x64
    module.config.update("jax_enable_x64", True)
    xp = importlib.import_module("jax.numpy")
    yield SimpleNamespace(
        name="jax", asarray=xp.asarray, kind=module.Array, xp=xp, engine=autodiff.Jax()
    )
    module.config.update("jax_enable_x64", before)


@pytest.fixture
def torch():
    """The module."""
    return pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def jax():
    """The module, in single precision, which is its default."""
    module = pytest.importorskip("jax", reason="jax is not installed")
    before = module.config.jax_enable_x64
    module.config.update("jax_enable_x64", False)
    yield module
    module.config.update("jax_enable_x64", before)


def functions(xp):
    """Upper, lower and coupled constraints, written for a library."""
    return (
        lambda x, y, d: xp.sum((y - 1.0) ** 2) + xp.sum(x**2),
        lambda x, y, d: xp.sum((y - d["response"] @ x) ** 2),
        lambda x, y, d: d["rows"] @ y - x[0] - 0.5,
    )


def minimize(xp, asarray, **options):
    """The program of :func:`functions` from zeros."""
    data = {"rows": asarray(ROWS), "response": asarray(RESPONSE)}
    start = asarray(np.zeros(1)), asarray(np.zeros(2))
    settings = {"data": data, "x_set": blocc.Box(-2.0, 2.0), **options}
    return blocc.minimize(*functions(xp), *start, **settings)


def test_answers_are_those_of_numpy_and_autograd(library, tmp_path):
    expected = minimize(np, np.asarray)
    found = minimize(library.xp, library.asarray)
    assert found.success
    assert found.certificate.ok(1e-6)
    assert all(isinstance(part, library.kind) for part in (found.x, found.y, found.duals["c"]))
    for one, two in ((found.x, expected.x), (found.y, expected.y)):
        np.testing.assert_allclose(to_numpy(one), two, atol=1e-6)
    assert found.objective == pytest.approx(expected.objective, abs=1e-7)
    found.save(tmp_path / "answer")
    again = blocc.Result.load(tmp_path / "answer")
    np.testing.assert_array_equal(again.x, to_numpy(found.x))


def objective(library):
    """As in the tests of autograd, in a library's own words."""
    xp = library.xp
    return lambda x, y, d: (
        xp.sum(xp.exp(x)) * xp.sum(y**2) + xp.sum(xp.sin(library.asarray(d) @ y) * x)
    )


def constraint(library):
    """As in the tests of autograd, in a library's own words."""
    return lambda x, y, d: library.xp.exp(library.asarray(d) @ y) - x**3


def test_derivatives_agree_with_finite_differences(library):
    f = Differentiable("f", objective(library), MATRIX, scalar=True, engine=library.engine)
    c = Differentiable("c", constraint(library), MATRIX, scalar=False, engine=library.engine)
    weights = np.array([0.4, -1.3])
    in_f = test_gradients.jacobian(test_gradients.objective, X, Y, MATRIX)
    in_c = test_gradients.jacobian(test_gradients.constraint, X, Y, MATRIX)
    for index in range(2):
        np.testing.assert_allclose(f.pullback(X, Y)[index], in_f[index], rtol=1e-7, atol=1e-8)
        products = c.pullback(X, Y, weights)[index]
        np.testing.assert_allclose(products, weights @ in_c[index], rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(f.pullback_y(X, Y), f.pullback(X, Y)[1])
    np.testing.assert_array_equal(c.pullback_y(X, Y, weights), c.pullback(X, Y, weights)[1])
    assert all(isinstance(part, np.ndarray) for part in f.pullback(X, Y))


def test_functions_without_an_argument_or_constant_have_gradient_zero_there(library):
    xp = library.xp
    one = Differentiable(
        "f", lambda x, y, d: xp.sum(y**2), None, scalar=True, engine=library.engine
    )
    assert one.pullback(X, Y)[0].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(one.pullback(X, Y)[1], 2 * Y)
    constant = Differentiable("f", lambda x, y, d: 3.0, None, scalar=True, engine=library.engine)
    assert float(constant.value(X, Y)) == 3.0
    assert [part.tolist() for part in constant.pullback(X, Y)] == [[0.0] * 2, [0.0] * 3]


def test_a_single_constraint_without_axes_is_differentiated(library):
    c = Differentiable("c", lambda x, y, d: x[0] * y[1], None, scalar=False, engine=library.engine)
    assert c.value(X, Y).shape == (1,)
    np.testing.assert_allclose(c.pullback(X, Y, np.array([2.0]))[1], [0.0, 2 * X[0], 0.0])


def test_given_gradients_get_and_return_arrays_of_the_library(library):
    def value(x, y, d):
        assert isinstance(x, library.kind)
        assert isinstance(y, library.kind)
        return library.xp.sum((y - x[0]) ** 2)

    def gradient(x, y, d):
        assert isinstance(y, library.kind)
        away = y - x[0]
        return library.xp.stack([-2 * library.xp.sum(away), x[1] * 0]), 2 * away

    given = blocc.Function(value, gradient)
    checks = blocc.check_gradients(given, library.asarray(X), library.asarray(Y))
    assert [check.variable for check in checks] == ["x", "y"]
    assert all(check.ok for check in checks)
    wrong = blocc.Function(value, lambda x, y, d: [-part for part in gradient(x, y, d)])
    assert not any(
        c.ok for c in blocc.check_gradients(wrong, library.asarray(X), library.asarray(Y))
    )


def test_what_is_read_only_is_copied_not_refused(library):
    fixed = np.broadcast_to(np.array(2.0), (3,))
    f = Differentiable(
        "f", lambda x, y, d: library.xp.sum(y * y), None, scalar=True, engine=library.engine
    )
    assert float(f.value(X, fixed)) == 12.0
    np.testing.assert_array_equal(f.pullback_y(X, fixed), [4.0] * 3)


def test_a_failure_returns_the_librarys_arrays_too(library):
    with pytest.raises(SolveError) as caught:
        minimize(library.xp, library.asarray, max_iterations=1, gamma=0.1, tol=1e-15)
    assert isinstance(caught.value.result.x, library.kind)


def test_mixed_libraries_are_refused(library):
    with pytest.raises(
        InvalidInputError, match=f"{library.name} and numpy|numpy and {library.name}"
    ):
        blocc.minimize(*functions(library.xp), library.asarray(np.zeros(1)), np.zeros(2))


def test_torch_and_numpy_share_memory_both_ways(torch):
    host = np.arange(4.0)
    lent = autodiff.Torch().lend(host)
    assert lent.data_ptr() == host.ctypes.data
    taken = autodiff.Torch().take(lent)
    assert taken.ctypes.data == host.ctypes.data


def test_jax_arrays_are_taken_without_a_copy(jax):
    array = jax.numpy.arange(4, dtype="float32")
    assert exchanged(array).ctypes.data == array.unsafe_buffer_pointer()


def test_single_precision_starting_points_are_solved_in_single_precision(torch):
    found = minimize(torch, lambda a: torch.asarray(a, dtype=torch.float32))
    assert found.x.dtype == torch.float32
    np.testing.assert_allclose(to_numpy(found.x), minimize(np, np.asarray).x, atol=5e-3)


def test_torch_starting_points_that_require_gradients_are_fine(torch):
    x0 = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    found = blocc.minimize(
        lambda x, y, d: torch.sum((y - 1) ** 2),
        lambda x, y, d: torch.sum((y - x) ** 2),
        lambda x, y, d: y - x,
        x0,
        [0.0],
        x_set=blocc.Box(-2, 2),
    )
    assert float(found.x[0]) == pytest.approx(1.0, abs=1e-6)


def test_a_torch_function_that_leaves_torch_says_how_to_write_it(torch):
    x0, y0 = torch.asarray(X), torch.asarray(Y)
    f = lambda x, y, d: torch.sum(y**2) + torch.sum(x.detach() ** 2)  # noqa: E731
    g = lambda x, y, d: torch.sum(y**2)  # noqa: E731
    with pytest.raises(InvalidInputError, match=r"gradient of f in x .* torch lost it .*\.detach"):
        blocc.minimize(f, g, None, x0, y0)
    numpy_only = lambda x, y, d: float(np.sum(y.numpy() ** 2)) + torch.sum(x)  # noqa: E731
    with pytest.raises(InvalidInputError, match="f could not be differentiated by torch"):
        blocc.minimize(numpy_only, g, None, x0, y0)


def test_torch_on_a_device_that_is_neither_host_nor_cuda_is_refused(torch):
    with pytest.raises(InvalidInputError, match="device of kind 'meta'"):
        exchanged(torch.zeros(3, device="meta"))


def test_arrays_on_a_cuda_device_are_exchanged_with_cupy(monkeypatch):
    """Routing alone, told from stand-ins: tests/gpu does it with a device."""
    taken = []
    cupy = SimpleNamespace(from_dlpack=lambda array: taken.append(array) or "cupy array")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(arrays, "_cupy", lambda: None)
    device = SimpleNamespace(type="cuda", platform="gpu")
    plain = SimpleNamespace(device=device, devices=lambda: [device])
    for library in ("torch", "jax"):
        monkeypatch.setattr(arrays, "library_of", lambda value, library=library: library)
        plain.detach = lambda: plain
        assert exchanged(plain) == "cupy array"
    assert taken == [plain, plain]


def test_arrays_on_a_cuda_device_without_cupy_give_the_pip_line(monkeypatch):
    device = SimpleNamespace(platform="gpu")
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(arrays, "library_of", lambda value: "jax")
    with pytest.raises(BackendUnavailableError, match=r"pip install 'blocc\[gpu-cuda12\]'"):
        exchanged(SimpleNamespace(devices=lambda: [device]))


def test_jax_in_single_precision_with_a_double_problem_says_what_to_call(jax):
    f, g, c = functions(jax.numpy)
    integers = jax.numpy.zeros(1, dtype="int32")  # integers become double precision
    with pytest.raises(InvalidInputError, match=r"jax\.config\.update\('jax_enable_x64', True\)"):
        blocc.minimize(f, g, c, integers, jax.numpy.zeros(2, dtype="int32"))


def test_a_jax_function_that_branches_on_values_runs_uncompiled(jax):
    x, y = X.astype(np.float32), Y.astype(np.float32)

    def branches(x, y, d):
        return jax.numpy.sum(y**2) if y[0] > 0 else jax.numpy.sum(x)

    f = Differentiable("f", branches, None, scalar=True, engine=autodiff.Jax())
    assert float(f.value(x, y)) == pytest.approx(float(np.sum(y**2)), rel=1e-6)
    assert float(f.value(x, -y)) == pytest.approx(float(np.sum(x)), rel=1e-6)


def test_a_function_that_jax_cannot_trace_says_how_to_write_it(jax):
    f = Differentiable(
        "f",
        lambda x, y, d: np.float32(np.sum(np.asarray(y))),
        None,
        scalar=True,
        engine=autodiff.Jax(),
    )
    with pytest.raises(
        InvalidInputError, match=r"(?s)f could not be differentiated by jax .*jax\.numpy"
    ):
        f.pullback(X.astype(np.float32), Y.astype(np.float32))
