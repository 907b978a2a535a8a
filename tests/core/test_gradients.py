"""Gradients: autograd agrees with finite differences, and wrong or missing ones are named."""

from __future__ import annotations

import sys

import autograd.numpy
import numpy as np
import pytest

import blocc
from blocc.errors import InvalidInputError, MissingDependencyError
from blocc.gradients import Differentiable, check

X, Y = np.array([0.3, -0.7]), np.array([0.5, 1.2, -0.4])
MATRIX = np.arange(6.0).reshape(2, 3) / 10


def objective(x, y, data):
    xp = blocc.namespace(x, y)
    return xp.sum(xp.exp(x)) * xp.sum(y**2) + xp.sum(xp.sin(data @ y) * x)


def constraint(x, y, data):
    xp = blocc.namespace(x, y)
    return xp.exp(data @ y) - x**3


def jacobian(function, x, y, data, step=1e-6):
    """Central differences, every entry."""
    columns = []
    for point in (x, y):
        for i in range(point.size):
            move = step * np.eye(point.size)[i]
            ends = [
                np.asarray(
                    function(x + s * move, y, data)
                    if point is x
                    else function(x, y + s * move, data)
                )
                for s in (1, -1)
            ]
            columns.append((ends[0] - ends[1]) / (2 * step))
    full = np.stack(columns, axis=-1)
    return full[..., : x.size], full[..., x.size :]


def test_autograd_of_an_objective_agrees_with_finite_differences():
    found = Differentiable("f", objective, MATRIX, scalar=True)
    in_x, in_y = jacobian(objective, X, Y, MATRIX)
    np.testing.assert_allclose(found.pullback(X, Y)[0], in_x, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(found.pullback(X, Y)[1], in_y, rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(found.pullback_y(X, Y), found.pullback(X, Y)[1])


def test_autograd_of_constraints_is_their_vector_jacobian_product():
    found = Differentiable("c", constraint, MATRIX, scalar=False)
    weights = np.array([0.4, -1.3])
    in_x, in_y = jacobian(constraint, X, Y, MATRIX)
    np.testing.assert_allclose(found.pullback(X, Y, weights)[0], weights @ in_x, rtol=1e-7)
    np.testing.assert_allclose(found.pullback(X, Y, weights)[1], weights @ in_y, rtol=1e-7)
    np.testing.assert_allclose(found.pullback_y(X, Y, weights), weights @ in_y, rtol=1e-7)


def test_a_function_without_one_of_its_arguments_has_gradient_zero_there():
    found = Differentiable("f", lambda x, y, d: (y**2).sum(), None, scalar=True)
    in_x, in_y = found.pullback(X, Y)
    assert in_x.tolist() == [0.0, 0.0]
    np.testing.assert_allclose(in_y, 2 * Y)


def test_autograd_numpy_and_operators_are_fine():
    plain = Differentiable("f", lambda x, y, d: (x**2).sum() + y @ y, None, scalar=True)
    other = Differentiable(
        "f", lambda x, y, d: autograd.numpy.sum(x**2) + autograd.numpy.dot(y, y), None, scalar=True
    )
    for one, two in zip(plain.pullback(X, Y), other.pullback(X, Y), strict=True):
        np.testing.assert_allclose(one, two)


@pytest.mark.parametrize("function", [objective, constraint])
def test_check_passes_a_right_gradient(function):
    checks = blocc.check_gradients(function, X, Y, MATRIX)
    assert [c.variable for c in checks] == ["x", "y"]
    assert all(c.ok for c in checks)
    assert all(c.error < 1e-6 for c in checks)


def wrong(change):
    """``|x|^2 + |y|^2`` with its gradient changed."""
    return blocc.Function(
        lambda x, y, d: (x**2).sum() + (y**2).sum(), lambda x, y, d: change(2 * x, 2 * y)
    )


@pytest.mark.parametrize(
    ("change", "variable", "cause"),
    [
        (lambda a, b: (-a, b), "x", "it has the wrong sign"),
        (lambda a, b: (a, -b), "y", "it has the wrong sign"),
        (lambda a, b: (2 * a, b), "x", "it does not match"),
        (lambda a, b: (a, b + 0.01), "y", "it does not match"),
        (lambda a, b: (a * 0, b), "x", "it does not match"),
    ],
)
def test_check_names_what_is_wrong(change, variable, cause):
    bad = [c for c in blocc.check_gradients(wrong(change), X, Y, name="g") if not c.ok]
    assert [c.variable for c in bad] == [variable]
    assert bad[0].explain().startswith(f"the gradient of g in {variable} is wrong: {cause}")


def test_check_of_constraints_names_a_wrong_sign():
    function = blocc.Function(
        lambda x, y, d: d @ y - x, lambda x, y, weights, d: (weights, d.T @ weights)
    )
    bad = [c for c in blocc.check_gradients(function, X, Y, MATRIX, name="c") if not c.ok]
    assert [c.variable for c in bad] == ["x"]
    assert "wrong sign" in bad[0].explain()


@pytest.mark.parametrize(
    ("change", "variable"), [(lambda a, b: (a[:1], b), "x"), (lambda a, b: (a, b[:, None]), "y")]
)
def test_check_names_a_wrong_shape(change, variable):
    with pytest.raises(InvalidInputError, match=f"gradient of function in {variable} has shape"):
        blocc.check_gradients(wrong(change), X, Y)


def test_check_in_single_precision():
    """The tolerance follows the precision: a right gradient passes, a wrong one does not."""
    x, y = X.astype(np.float32), Y.astype(np.float32)
    right, bad = wrong(lambda a, b: (a, b)), wrong(lambda a, b: (a, 1.5 * b))
    assert all(c.ok for c in blocc.check_gradients(right, x, y))
    assert [c.ok for c in blocc.check_gradients(bad, x, y)] == [True, False]


def test_check_leaves_out_the_edge_of_a_domain():
    """log at 1e-9: the shifted point is outside, so nothing can be said of x; y is still checked."""

    def value(x, y, d):
        with np.errstate(invalid="ignore"):
            return np.log(x).sum() + (y**2).sum()

    function = blocc.Function(value, lambda x, y, d: (1 / x, 2 * y))
    checks = blocc.check_gradients(function, np.array([1e-9]), Y)
    assert [c.variable for c in checks] == ["y"]


def test_check_is_deterministic():
    first, second = (blocc.check_gradients(objective, X, Y, MATRIX, seed=3) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, d: np.linalg.norm(np.asarray(y, dtype=float)) + (x**2).sum(),
        lambda x, y, d: float(y[0]) ** 2 + (x**2).sum(),
        lambda x, y, d: np.float64(sum(float(v) for v in y)),
    ],
)
def test_a_function_that_autograd_cannot_trace_says_how_to_write_it(function):
    found = Differentiable("g", function, None, scalar=True)
    with pytest.raises(InvalidInputError, match="g could not be differentiated") as caught:
        found.pullback(X, Y)
    assert "blocc.namespace(x, y)" in str(caught.value)
    assert "blocc.Function(value, gradient)" in str(caught.value)


def test_missing_autograd_gives_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "autograd", None)
    monkeypatch.setitem(sys.modules, "autograd.core", None)
    found = Differentiable("g", objective, MATRIX, scalar=True)
    with pytest.raises(MissingDependencyError, match=r"pip install 'blocc\[autograd\]'") as caught:
        found.pullback(X, Y)
    assert "deriving the gradient of g" in str(caught.value)


def test_given_gradients_need_no_autograd(monkeypatch):
    monkeypatch.setitem(sys.modules, "autograd", None)
    found = Differentiable("f", wrong(lambda a, b: (a, b)), None, scalar=True)
    assert all(c.ok for c in check(found, X, Y))


@pytest.mark.parametrize("function", [None, 3.0, "f", np.zeros(2)])
def test_what_is_not_callable_is_refused(function):
    with pytest.raises(InvalidInputError, match=r"g must be callable or a blocc\.Function"):
        Differentiable("g", function, None, scalar=True)


def test_python_numbers_and_single_entries_are_scalars():
    for value in (2.0, np.array([2.0]), np.array([[2.0]])):
        found = Differentiable("f", lambda x, y, d, v=value: v, None, scalar=True)
        assert found.value(X, Y).shape == ()
