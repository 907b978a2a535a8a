"""New values of parameters: the data that are updated in place are those of a problem built afresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocc.cvx import BilevelProblem, LowerProblem
from blocc.cvx_functions import Functions, Layout

Build = Callable[[Any], BilevelProblem]
"""Takes the parameter, a scalar of value 0.5 to 2, and builds a problem that contains it."""


def _levels(
    p: Any,
    *,
    upper: Any = None,
    lower: Any = None,
    rows: Callable[..., dict[str, Any]] | None = None,
    upper_rows: Callable[..., list[Any]] | None = None,
    low: Any = 0,
) -> BilevelProblem:
    """A problem in two upper and two lower variables; what is not given has no parameter."""
    x = cp.Variable(2, bounds=[low, 3], name="x", value=np.ones(2))
    y = cp.Variable(2, bounds=[-4, 4], name="y")
    given = cp.sum_squares(x - 1.2) + cp.sum_squares(y - np.array([0.8, 0.3]))
    own = cp.square(y[0] - x[0]) + 0.5 * cp.square(y[1] - 0.4 * x[1]) + 0.2 * y[0]
    lower_rows = rows(x, y) if rows else {"row": cp.sum(y) <= 1.4 + 0.1 * x[0]}
    level = LowerProblem(cp.Minimize(lower(x, y) if lower else own), lower_rows, given=[x])
    return BilevelProblem(
        cp.Minimize(upper(x, y) if upper else given),
        level,
        upper_rows(x, y) if upper_rows else [],
    )


DATA = np.array([[1.0, 0.3], [0.3, 2.0]])
WAYS: dict[str, Build] = {
    "upper objective, linear": lambda p: _levels(
        p, upper=lambda x, y: cp.sum_squares(x - p) + p * y[0] + cp.square(y[1])
    ),
    "upper objective, exponent of data": lambda p: _levels(
        p, upper=lambda x, y: cp.exp(-p) * cp.sum_squares(x) + cp.sum_squares(y - cp.exp(-p))
    ),
    "upper objective, not convex": lambda p: _levels(
        p, upper=lambda x, y: cp.sum_squares(x - 1) - p * cp.square(y[0]) + x[0] * y[1]
    ),
    "upper constraint in x": lambda p: _levels(p, upper_rows=lambda x, y: [cp.sum(x) <= p]),
    "upper constraint in x and y": lambda p: _levels(
        p, upper_rows=lambda x, y: [x[0] + p * y[1] <= 1.5]
    ),
    "lower objective, slope": lambda p: _levels(
        p, lower=lambda x, y: cp.sum_squares(y - x) - p * y[0]
    ),
    "lower objective, curvature": lambda p: _levels(
        p, lower=lambda x, y: p * cp.sum_squares(y - x) + cp.square(y[0]) / p + y[1]
    ),
    "lower objective, product with x": lambda p: _levels(
        p, lower=lambda x, y: cp.sum_squares(y) - p * (x[0] * y[0]) - x[1] * y[1]
    ),
    "lower objective, product of parameters": lambda p: _levels(
        p, lower=lambda x, y: cp.sum_squares(y - x) + p * (p * y[0] + y[1])
    ),
    "lower objective, weight times norm": lambda p: _levels(
        p, lower=lambda x, y: (0.5 + x[0]) * cp.sum_squares(y) + cp.sum_squares(y - p)
    ),
    "lower objective, quadratic form": lambda p: _levels(
        p, lower=lambda x, y: cp.quad_form(y, DATA) * p - x @ y
    ),
    "lower row, right-hand side": lambda p: _levels(
        p, rows=lambda x, y: {"row": cp.sum(y) <= p + 0.1 * x[0]}
    ),
    "lower row, coefficient": lambda p: _levels(
        p, rows=lambda x, y: {"row": p * y[0] + y[1] <= 1 + 0.2 * x[1]}
    ),
    "lower equality": lambda p: _levels(p, rows=lambda x, y: {"sum": cp.sum(y) == p}),
    "lower cone": lambda p: _levels(p, rows=lambda x, y: {"ball": cp.norm(y) <= p + 0.2 * x[0]}),
    "lower smooth row": lambda p: _levels(
        p, rows=lambda x, y: {"bowl": cp.exp(y[0]) + p * cp.square(y[1]) <= 2 + x[0]}
    ),
    "bounds": lambda p: _levels(p, low=cp.hstack([p, p]) / 2),
}


def _agree(here: BilevelProblem, fresh: BilevelProblem) -> None:
    """All that the methods ask of a problem, compared."""
    random = np.random.default_rng(0)
    n, m = here.n_upper, here.n_lower
    np.testing.assert_array_equal(here.bounds, fresh.bounds)
    for _ in range(3):
        x, y = random.uniform(0.6, 2.0, n), random.uniform(-1, 1, m)
        ours, theirs = here.derivatives(x, y), fresh.derivatives(x, y)
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)
        dual, equal = np.ones(len(ours.inequality)), np.ones(len(ours.equality))
        np.testing.assert_allclose(
            here.hessian(x, y, 2.0, dual, equal),
            fresh.hessian(x, y, 2.0, dual, equal),
            rtol=1e-9,
            atol=1e-9,
        )
        point = here.x_set.project(x)
        np.testing.assert_allclose(point, fresh.x_set.project(x), atol=1e-6)
        mine, other = here.lower(x), fresh.lower(x)
        assert mine.value == pytest.approx(other.value, abs=1e-8)
        np.testing.assert_allclose(mine.y, other.y, atol=1e-5)
        np.testing.assert_allclose(mine.grad_x, other.grad_x, atol=1e-5)
        for name, dual in mine.duals.items():
            np.testing.assert_allclose(dual, other.duals[name], atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_functions_and_saddle_points_follow_a_parameter(way: str) -> None:
    p = cp.Parameter(nonneg=True, value=1.0)
    problem = WAYS[way](p)
    for value in (1.7, 0.5):
        p.value = value
        problem._parameters_changed()
        problem.refresh()
        _agree(problem, WAYS[way](cp.Parameter(nonneg=True, value=value)))


@pytest.mark.parametrize(
    "way", ["lower row, right-hand side", "lower cone", "upper constraint in x"]
)
def test_penalised_problem_and_relaxation_follow_a_parameter(way: str) -> None:
    p = cp.Parameter(nonneg=True, value=1.0)
    problem = WAYS[way](p)
    x = np.array([1.1, 0.7])
    for value in (1.6, 0.8):
        p.value = value
        problem._parameters_changed()
        problem.refresh()
        fresh = WAYS[way](cp.Parameter(nonneg=True, value=value))
        mine, other = problem.penalized(x, 3.0), fresh.penalized(x, 3.0)
        assert mine.value == pytest.approx(other.value, abs=1e-8)
        np.testing.assert_allclose(mine.y, other.y, atol=1e-5)
        assert problem.relaxation().bound == pytest.approx(fresh.relaxation().bound, abs=1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_a_warm_solve_after_a_change_gives_the_answer_of_a_problem_built_afresh(way: str) -> None:
    p = cp.Parameter(nonneg=True, value=1.0)
    problem = WAYS[way](p)
    problem.solve()
    for value in (1.3,):
        p.value = value
        warm = problem.solve(warm_start=True)
        fresh = WAYS[way](cp.Parameter(nonneg=True, value=value)).solve()
        assert warm.objective == pytest.approx(fresh.objective, abs=1e-6)
        assert warm.success
        assert fresh.success


VALUES = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("name", "warm"),
    [
        ("lower row, right-hand side", False),  # two basins: a warm solve stays in its own
        ("lower equality", True),
        ("lower objective, weight times norm", True),
    ],
)
@settings(max_examples=4, deadline=None)
@given(values=VALUES)
def test_solves_in_a_row_end_where_a_fresh_one_does(
    name: str, warm: bool, values: list[float]
) -> None:
    p = cp.Parameter(nonneg=True, value=1.0)
    problem = WAYS[name](p)
    problem.solve()
    for value in values:
        p.value = value
        if not warm:
            problem.upper_layout.variables[0].value = np.ones(2)
        last = problem.solve(warm_start=warm)
    fresh = WAYS[name](cp.Parameter(nonneg=True, value=values[-1])).solve()
    assert last.objective == pytest.approx(fresh.objective, abs=1e-6)
    np.testing.assert_allclose(last.x["x"], fresh.x["x"], atol=1e-4)


def test_a_bound_that_a_parameter_takes_away_or_sets_is_followed() -> None:
    limit = cp.Parameter(value=1.0)
    x, y = cp.Variable(bounds=[0, 3], name="x"), cp.Variable(bounds=[None, limit], name="y")
    lower = LowerProblem(cp.Minimize(cp.square(y - 2 * x)), [], given=[x])
    problem = BilevelProblem(cp.Minimize(cp.square(x - 1) + cp.square(y - 3)), lower)
    assert problem.solve().y["y"] == pytest.approx(1.0, abs=1e-6)
    limit.value = 1e9
    free = problem.solve(warm_start=True)
    assert free.y["y"] == pytest.approx(2 * float(free.x["x"]), abs=1e-6)
    assert float(free.x["x"]) == pytest.approx(1.4, abs=1e-5)


def test_a_start_that_the_user_sets_is_kept_on_a_warm_solve() -> None:
    """Two local solutions, x = -1 and x = 2: the start decides, not the last answer."""
    x, y = cp.Variable(bounds=[-1, 2], name="x"), cp.Variable(name="y")
    shift = cp.Parameter(value=0.0)
    lower = LowerProblem(cp.Minimize(cp.square(y - x)), [], given=[x])
    problem = BilevelProblem(cp.Minimize(-cp.square(y - 0.5) + shift * x), lower)
    first = problem.solve()
    assert problem._last is not None
    np.testing.assert_array_equal(problem._last[0], problem._start())
    x.value = np.array(-first.x["x"] + 1.0)
    assert not np.array_equal(problem._last[0], problem._start())
    again = problem.solve(warm_start=True)
    assert again.objective == pytest.approx(first.objective, abs=1e-9)


# ------------------------------------------------------------------------------------ derivatives
x, y = cp.Variable(2, name="x", nonneg=True), cp.Variable(3, name="y")
ATOMS = {
    "affine": 2 * x[0] - cp.sum(y),
    "square": cp.sum_squares(y - 1) + cp.square(x[0]),
    "power": cp.power(x[1], 1.5) + cp.power(y[0], 4),
    "product": x[0] * y[1] + x @ y[:2],
    "elementwise product": cp.sum(cp.multiply(x, cp.square(y[:2]))),
    "weight times squares": (1 + x[0]) * cp.sum_squares(y),
    "cubic": x[0] * y[1] * y[2] + x[1] * cp.square(x[1]),
    "exponential": cp.exp(x[0] - y[1]) + cp.logistic(y[2]),
    "logarithm": -cp.log(1 + x[0]) + cp.entr(x[1] + 2),
    "norm": cp.norm(cp.hstack([y[0], x[1] * y[1], 2 * y[2]])),
    "quadratic over linear": cp.quad_over_lin(y, 1 + x[0]),
    "quotient": y[0] / (1 + x[0]) + cp.square(y[1]) / (2 + x[1]),
    "positive part of a square": cp.sum_squares(cp.pos(1 - cp.multiply(np.array([1, 2, 3]), y))),
    "quadratic form": cp.quad_form(y, np.array([[2, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 3]])),
    "log-sum-exp": cp.log_sum_exp(y) + cp.sum(x),
    "sum of products with data": np.array([1.0, -2.0, 3.0]) @ cp.square(y) + x[0] * x[1],
}


@pytest.mark.parametrize("name", ATOMS)
def test_compiled_functions_have_cvxpys_values_and_the_derivatives_of_their_differences(
    name: str,
) -> None:
    layout = Layout([x, y])
    functions = Functions([cp.Constant(0.0), ATOMS[name]], layout)
    random = np.random.default_rng(3)
    for _ in range(4):
        v = np.concatenate([random.uniform(0.3, 2, 2), random.uniform(-1, 1, 3)])
        x.value, y.value = v[:2], v[2:]
        alone = functions.value(v)[1]
        value, jacobian = functions.value_jacobian(v)
        assert value[1] == pytest.approx(float(ATOMS[name].value), rel=1e-12, abs=1e-12)
        assert alone == pytest.approx(value[1], rel=1e-12, abs=1e-12)
        hessian = functions.hessian(v, np.array([0.0, 1.0]))
        for k, step in enumerate(1e-6 * np.eye(5)):
            ahead, behind = (functions.value_jacobian(v + s) for s in (step, -step))
            assert jacobian[1, k] == pytest.approx((ahead[0][1] - behind[0][1]) / 2e-6, abs=1e-7)
            np.testing.assert_allclose(
                hessian[k], (ahead[1][1] - behind[1][1]) / 2e-6, rtol=1e-4, atol=1e-4
            )


def test_a_quadratic_inside_another_function_follows_its_parameters() -> None:
    p = cp.Parameter(value=1.0)
    expression = cp.norm(cp.hstack([p * y[0], x[1] * y[1], 1.0])) + cp.exp(p * x[0] * y[2])
    functions = Functions([expression], Layout([x, y]))
    v = np.array([0.4, 0.7, 1.1, 0.3, -0.9])
    x.value, y.value = v[:2], v[2:]
    for p.value in (1.0, -2.5, 0.0):
        functions.refresh()
        assert functions.value(v)[0] == pytest.approx(float(expression.value), rel=1e-13)
        slope = functions.value_jacobian(v)[1][0]
        steps = 1e-6 * np.eye(5)
        expected = [(functions.value(v + s) - functions.value(v - s))[0] / 2e-6 for s in steps]
        assert slope == pytest.approx(np.array(expected), abs=1e-8)


# -------------------------------------------------------------------------------- critical regions
@pytest.mark.parametrize("seed", range(4))
def test_answers_from_critical_regions_are_those_of_a_cold_solve(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 6
    root, B = random.normal(size=(n, n)), random.normal(size=(n, 2))
    A, G = random.normal(size=(4, n)), random.normal(size=(4, 2))

    def build() -> BilevelProblem:
        x = cp.Variable(2, bounds=[-2, 2], name="x")
        y = cp.Variable(n, bounds=[-0.8, 0.9], name="y")
        lower = LowerProblem(
            cp.Minimize(0.5 * cp.sum_squares(root @ y) + (B @ x) @ y + 100 * cp.sum(x)),
            {"rows": A @ y <= 1 + G @ x * 0.1, "sum": cp.sum(y) == 0.1 * x[0]},
            given=[x],
        )
        return BilevelProblem(cp.Minimize(cp.sum_squares(x) + cp.sum_squares(y - 1)), lower)

    kept, cold = build(), build()
    assert kept._sharp is not None
    assert cold._sharp is not None
    reused = 0
    for _ in range(60):
        point = random.uniform(-2, 2, 2)
        for near in (point, point + 1e-3 * random.normal(size=2)):
            cold._sharp.program.forget()
            mine, other = kept.lower(near), cold.lower(near)
            reused += mine.iterations == 0
            np.testing.assert_allclose(mine.y, other.y, atol=1e-9)
            np.testing.assert_allclose(mine.grad_x, other.grad_x, atol=1e-8)
            assert mine.value == pytest.approx(other.value, abs=1e-10)
            for name, dual in mine.duals.items():
                np.testing.assert_allclose(dual, other.duals[name], atol=1e-8)
            residuals = kept.residuals(near, mine.y, mine.duals)
            assert residuals.gap <= 1e-10
            assert residuals.violation <= 1e-10
    assert reused >= 40
