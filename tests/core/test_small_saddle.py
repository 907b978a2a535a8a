"""Saddle points of small problems by sequential quadratic programs, against CVXPY and closed forms."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import blocc
from blocc import conic_saddle
from blocc.errors import LowerInfeasibleError
from blocc.gradients import Differentiable
from blocc.maxmin import Constraint, SaddleProblem, kkt_residual
from blocc.sets import Ball, Box, Free


def affine(A: Any, b: Any, equality: bool = False) -> Constraint:
    return Constraint(lambda y: A @ y - b, lambda y, w: A.T @ w, equality)


@pytest.mark.parametrize("seed", range(6))
def test_quadratic_programs_agree_with_clarabel(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, m, p = 6, 5, 2
    root = random.standard_normal((n, n if seed % 2 else 3))  # every other one without full rank
    Q, q = root @ root.T, random.standard_normal(n)
    A, E = random.standard_normal((m, n)), random.standard_normal((p, n))
    inside = random.uniform(-0.5, 0.5, n)
    b, e = A @ inside + random.uniform(0, 0.3, m), E @ inside
    problem = SaddleProblem(
        lambda y: 0.5 * y @ Q @ y + q @ y,
        lambda y: Q @ y + q,
        {"c": affine(A, b), "h": affine(E, e, True)},
        Box(-1.0, 1.0),
    )
    point = conic_saddle.solve(problem, np.zeros(n), tol=1e-11)
    assert point is not None
    assert point.residual == kkt_residual(problem, point.y, point.duals) <= 1e-11
    y = cp.Variable(n, bounds=[-1, 1])
    reference = cp.Problem(
        cp.Minimize(0.5 * cp.quad_form(y, cp.psd_wrap(Q)) + q @ y), [A @ y <= b, E @ y == e]
    )
    reference.solve(solver="CLARABEL")
    assert problem.objective(point.y) == pytest.approx(reference.value, rel=1e-7, abs=1e-7)
    if seed % 2:
        assert point.y == pytest.approx(y.value, abs=1e-5)


def test_functions_that_are_not_quadratic_take_a_few_rounds() -> None:
    """min sum exp(y) - <q, y> under |y|^2 <= r: a curved objective and a curved constraint."""
    q, r = np.array([1.0, 2.0, 3.0]), 1.0
    problem = SaddleProblem(
        lambda y: np.exp(y).sum() - q @ y,
        lambda y: np.exp(y) - q,
        {"ball": Constraint(lambda y: (y @ y - r).reshape(1), lambda y, w: 2 * y * w[0])},
        Free(),
    )
    point = conic_saddle.solve(problem, np.full(3, 0.1), tol=1e-11)
    assert point is not None
    y = cp.Variable(3)
    rows = [cp.sum_squares(y) <= r]
    cp.Problem(cp.Minimize(cp.sum(cp.exp(y)) - q @ y), rows).solve(
        solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11
    )
    assert point.y == pytest.approx(y.value, abs=1e-6)
    assert point.duals["ball"][0] == pytest.approx(rows[0].dual_value, rel=1e-5)


def test_infeasibility_comes_with_multipliers_that_prove_it() -> None:
    A = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]])
    b = np.array([1e-3, -2e-3, 5.0])
    problem = SaddleProblem(lambda y: 0.5 * y @ y, lambda y: y, {"c": affine(A, b)}, Free())
    with pytest.raises(LowerInfeasibleError, match="constraint 'c' conflicts") as caught:
        conic_saddle.solve(problem, np.zeros(2), tol=1e-9)
    _, ray = caught.value.ray
    assert np.all(ray["c"] >= 0)
    assert ray["c"] @ A == pytest.approx(np.zeros(2), abs=1e-12)
    assert ray["c"] @ (-b) > 0  # <ray, A y - b> > 0 for every y


def test_what_it_is_not_for_is_left_to_the_first_order_method() -> None:
    def square(y_set: Any) -> SaddleProblem:
        return SaddleProblem(lambda y: 0.5 * (y * y).sum(), lambda y: y, {}, y_set)

    small = np.zeros(3)
    assert conic_saddle.solve(square(Free()), small + 1.0, tol=1e-9) is not None
    assert conic_saddle.solve(square(Free()), small.astype(np.float32) + 1.0, tol=1e-3) is None
    assert conic_saddle.solve(square(Ball(1.0)), small + 1.0, tol=1e-9) is None
    assert conic_saddle.solve(square(Free()), np.ones(conic_saddle.SMALL + 1), tol=1e-9) is None


def test_a_function_that_is_not_convex_or_not_finite_gets_no_answer() -> None:
    saddle = SaddleProblem(
        lambda y: y[0] ** 2 - y[1] ** 2, lambda y: np.array([2 * y[0], -2 * y[1]]), {}, Box(-1, 1)
    )
    assert conic_saddle.solve(saddle, np.full(2, 0.3), tol=1e-9) is None
    ends = SaddleProblem(
        lambda y: np.where(y[0] > 0.5, np.nan, -y[0]), lambda y: np.array([-1.0]), {}, Box(0, 1)
    )
    assert conic_saddle.solve(ends, np.zeros(1), tol=1e-9) is None


def test_both_ways_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> blocc.Result:
        return blocc.minimize(
            lambda x, y, d: ((x - 1) ** 2).sum() + ((y - 2) ** 2).sum(),
            lambda x, y, d: ((y - 2 * x) ** 2).sum() + y[0] * y[1],
            lambda x, y, d: y - x,
            x0=[0.5, 0.2],
            y0=[0.0, 0.0],
            x_set=blocc.Box(0, 3),
            y_set=blocc.Box(0, 3),
        )

    small = run()
    monkeypatch.setattr(conic_saddle, "solve", lambda *_, **__: None)
    first_order = run()
    assert small.x == pytest.approx(first_order.x, abs=1e-5)
    assert small.objective == pytest.approx(first_order.objective, rel=1e-6)


def test_the_nearest_point_of_the_domain_agrees_with_clarabel() -> None:
    """The point next to x0 at which ``A x + B y <= b`` has a solution y in the box."""
    random = np.random.default_rng(3)
    A, B = random.standard_normal((6, 2)), random.standard_normal((6, 3))
    b = A @ np.array([2.0, -1.0]) + B @ random.uniform(-1, 1, 3)
    row = Differentiable(
        "c",
        blocc.Function(lambda x, y, d: A @ x + B @ y - b, lambda x, y, w, d: (A.T @ w, B.T @ w)),
        None,
        scalar=False,
    )
    x0, sets = np.array([-3.0, 4.0]), (Box(-5.0, 5.0), Box(-1.0, 1.0))
    found = conic_saddle.nearest({"c": row}, x0, np.zeros(3), sets, inside=0.0)
    x, y = cp.Variable(2, bounds=[-5, 5]), cp.Variable(3, bounds=[-1, 1])
    cp.Problem(cp.Minimize(cp.sum_squares(x - x0)), [A @ x + B @ y <= b]).solve(solver="CLARABEL")
    assert np.abs(x.value - x0).max() > 0.1  # it has to move
    np.testing.assert_allclose(found, x.value, atol=1e-4)  # y's weight of 1e-6 is beside x's


def test_the_nearest_point_of_an_empty_domain_is_none() -> None:
    row = Differentiable(
        "c",
        blocc.Function(
            lambda x, y, d: np.concatenate([y - x, x - y + 1.0]),
            lambda x, y, w, d: (w[1:] - w[:1], w[:1] - w[1:]),
        ),
        None,
        scalar=False,
    )
    sets = Box(-5.0, 5.0), Box(-5.0, 5.0)
    assert conic_saddle.nearest({"c": row}, np.ones(1), np.ones(1), sets, inside=0.0) is None
