"""The CVXPY front end against CVXPY itself and finite differences."""

from __future__ import annotations

import time

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocc.cvx import BilevelProblem, LowerProblem
from blocc.cvx_functions import Functions, Layout
from blocc.errors import (
    InvalidInputError,
    LowerInfeasibleError,
    LowerUnboundedError,
    UnsupportedModelError,
)
from tests.cvx.problems import CASES, Case

TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def resolve(problem: BilevelProblem, x: np.ndarray) -> list[cp.Problem]:
    """Every lower level solved by plain CVXPY, x fixed by equalities: shares no code with the front end."""
    fixed = [
        variable == value
        for variable, value in zip(
            problem.upper_layout.variables, problem.upper_layout.unpack(x), strict=True
        )
    ]
    solved = []
    for item in problem.lowers:
        # replacing x by constants keeps products x * y convex
        for variable, value in zip(
            problem.upper_layout.variables, problem.upper_layout.unpack(x), strict=True
        ):
            variable.save_value(np.asarray(value))
        swap = {
            v.id: cp.Constant(v.value) if v.value is not None else v
            for v in problem.upper_layout.variables
        }
        objective = _substitute(item.expression, swap)
        constraints = {k: _substitute(c, swap) for k, c in item.constraints.items()}
        answer = cp.Problem(cp.Minimize(objective), list(constraints.values()))
        answer.solve(solver="CLARABEL", **TIGHT)
        answer.names = list(constraints)
        solved.append(answer)
    assert fixed
    return solved


def _substitute(node: object, swap: dict[int, object]) -> object:
    if isinstance(node, cp.Variable):
        return swap.get(node.id, node)
    if not getattr(node, "args", None):
        return node
    return node.copy([_substitute(argument, swap) for argument in node.args])


def test_value_and_duals_equal_those_of_cvxpy(case: Case) -> None:
    saddle = case.problem.lower(case.x0)
    solved = resolve(case.problem, case.x0)
    assert saddle.value == pytest.approx(sum(p.value for p in solved), rel=1e-8, abs=1e-8)
    for problem in solved:
        for name, constraint in zip(problem.names, problem.constraints, strict=True):
            assert saddle.duals[name] == pytest.approx(np.asarray(constraint.dual_value), abs=2e-5)


def test_gradient_of_the_value_equals_finite_differences(case: Case) -> None:
    saddle = case.problem.lower(case.x0)
    for k in range(len(case.x0)):
        step = np.zeros(len(case.x0))
        step[k] = 1e-4
        ahead, behind = case.problem.lower(case.x0 + step), case.problem.lower(case.x0 - step)
        slope = (ahead.value - behind.value) / 2e-4
        assert saddle.grad_x[k] == pytest.approx(slope, rel=2e-5, abs=2e-5)


def test_penalised_value_and_gradient(case: Case) -> None:
    """gamma enters by a line through two compilations: compare with CVXPY at a third gamma."""
    gamma = 7.3
    problem = case.problem
    saddle = problem.penalized(case.x0, gamma)
    swap = {
        v.id: cp.Constant(value)
        for v, value in zip(
            problem.upper_layout.variables, problem.upper_layout.unpack(case.x0), strict=True
        )
    }
    lower = sum(item.expression for item in problem.lowers)
    objective = _substitute(problem.expression + gamma * lower, swap)
    constraints = [
        _substitute(c, swap) for item in problem.lowers for c in item.constraints.values()
    ]
    answer = cp.Problem(cp.Minimize(objective), constraints)
    answer.solve(solver="CLARABEL", **TIGHT)
    assert saddle.value == pytest.approx(answer.value, rel=1e-7)
    for k in range(len(case.x0)):
        step = np.zeros(len(case.x0))
        step[k] = 1e-4
        ahead = problem.penalized(case.x0 + step, gamma).value
        behind = problem.penalized(case.x0 - step, gamma).value
        assert saddle.grad_x[k] == pytest.approx((ahead - behind) / 2e-4, rel=1e-4, abs=1e-4)


def test_derivatives_equal_finite_differences(case: Case) -> None:
    problem = case.problem
    n = problem.n_upper
    generator = np.random.default_rng(0)
    v = np.concatenate([case.x0, generator.uniform(0.2, 0.9, problem.n_lower)])
    here = problem.derivatives(v[:n], v[n:])
    for k in range(len(v)):
        step = np.zeros(len(v))
        step[k] = 1e-6
        ahead = problem.derivatives((v + step)[:n], (v + step)[n:])
        behind = problem.derivatives((v - step)[:n], (v - step)[n:])
        for value, jacobian in (
            ("upper", "upper_gradient"),
            ("lower", "lower_gradient"),
            ("inequality", "inequality_jacobian"),
            ("equality", "equality_jacobian"),
        ):
            slope = (getattr(ahead, value) - getattr(behind, value)) / 2e-6
            assert getattr(here, jacobian)[..., k] == pytest.approx(slope, rel=1e-5, abs=1e-5)


def test_residuals_certify_the_saddle_point_and_reject_another(case: Case) -> None:
    saddle = case.problem.lower(case.x0)
    good = case.problem.residuals(case.x0, saddle.y, saddle.duals)
    assert max(good.gap, good.violation, good.dual_infeasibility, good.complementarity) <= 2e-6
    assert good.objective == pytest.approx(saddle.value, abs=1e-7)
    bad = case.problem.residuals(case.x0, saddle.y + 0.1, saddle.duals)
    assert max(bad.gap, bad.violation) > 1e-3


def test_bounds_of_lower_variables_have_multipliers() -> None:
    """min (y - 3)^2 over 0 <= y <= x: at x = 1 the bound's multiplier is 4; y >= 0 as attribute, at x = -2."""
    x = cp.Variable(name="x")
    y = cp.Variable(name="y", bounds=[0, 1])
    problem = BilevelProblem(
        cp.Minimize(cp.square(x)), LowerProblem(cp.Minimize(cp.square(y - 3 * x)), given=[x])
    )
    assert problem.lower(np.array([1.0])).duals["y.upper"] == pytest.approx(4.0)
    assert problem.lower(np.array([-2.0])).duals["y.lower"] == pytest.approx(12.0)


def test_user_parameters_are_data() -> None:
    target = cp.Parameter(value=1.0)
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    lower = LowerProblem(cp.Minimize(cp.square(y - x)), {"cap": y <= 2}, given=[x])
    problem = BilevelProblem(cp.Minimize(cp.square(y - target)), lower)
    assert problem.solve().y["y"] == pytest.approx(1.0, abs=1e-6)
    target.value = 3.0
    result = problem.solve(warm_start=True)
    assert result.y["y"] == pytest.approx(2.0, abs=1e-6)
    assert result.objective == pytest.approx(1.0, abs=1e-6)


def test_infeasible_and_unbounded_lower_levels_are_told_apart() -> None:
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    problem = BilevelProblem(
        cp.Minimize(cp.square(x)),
        LowerProblem(cp.Minimize(x * y), {"low": y >= 0, "high": y <= x + 5}, given=[x]),
    )
    with pytest.raises(LowerInfeasibleError):
        problem.lower(np.array([-6.0]))
    free = BilevelProblem(
        cp.Minimize(cp.square(x)), LowerProblem(cp.Minimize(x * y), {"low": y >= 0}, given=[x])
    )
    assert free.lower(np.array([1.0])).value == pytest.approx(0.0)
    with pytest.raises(LowerUnboundedError):
        free.lower(np.array([-1.0]))


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda x, y: LowerProblem(cp.Minimize(-cp.square(y)), [y <= 1], given=[x]), "not convex"),
        (
            lambda x, y: LowerProblem(cp.Minimize(cp.square(y)), [cp.sqrt(y) <= x], given=[x]),
            r"constraint_0.*\(y, 0.5\).*not convex",
        ),
    ],
)
def test_unsupported_models_name_the_atom(build: object, word: str) -> None:
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    with pytest.raises(UnsupportedModelError, match=word):
        BilevelProblem(cp.Minimize(cp.square(x)), build(x, y))


def test_integer_variables_are_refused_in_words() -> None:
    x, y = cp.Variable(name="x"), cp.Variable(integer=True, name="number")
    with pytest.raises(UnsupportedModelError, match=r"number.*integer"):
        LowerProblem(cp.Minimize(cp.square(y - x)), given=[x])


def test_wrong_input_is_refused_with_the_reason() -> None:
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    with pytest.raises(InvalidInputError, match="objective"):
        LowerProblem(cp.square(y), given=[x])
    with pytest.raises(InvalidInputError, match="no variables of its own"):
        LowerProblem(cp.Minimize(cp.square(x)), given=[x])
    good = LowerProblem(cp.Minimize(cp.square(y - x)), given=[x])
    with pytest.raises(InvalidInputError, match="starts"):
        BilevelProblem(cp.Minimize(cp.square(x - 1) + y**2), good).solve(starts="many")


def test_a_lower_solve_is_within_2_ms() -> None:
    case = CASES["toll"]()
    case.problem.lower(case.x0)
    started = time.process_time()
    for _ in range(50):
        case.problem.lower(case.x0)
    assert (time.process_time() - started) / 50 <= 2e-3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 3.0), min_size=5, max_size=5))
def test_compiled_functions_equal_cvxpy_values(point: list[float]) -> None:
    x, y = cp.Variable(2, name="x"), cp.Variable(3, name="y")
    matrix = np.arange(6.0).reshape(2, 3)
    expressions = [
        x[0] * y[1] + cp.exp(x[1]) * cp.square(y[0]),
        cp.log(cp.sum(y)) / x[0],
        cp.norm(matrix @ y - x),
        cp.multiply(cp.power(y, 3), 2.0),
        cp.quad_form(y, np.eye(3)) - cp.sum(x),
        cp.max(cp.hstack([x, y])),
        (matrix @ y) @ x,
    ]
    layout = Layout([x, y])
    v = np.array(point)
    x.value, y.value = v[:2], v[2:]
    functions = Functions(expressions, layout)
    expected = np.concatenate([np.ravel(e.value) for e in expressions])
    assert functions.value(v) == pytest.approx(expected, rel=1e-10, abs=1e-10)
    value, jacobian = functions.value_jacobian(v)
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-10)
    direction = np.array([0.3, -0.5, 0.2, 0.7, -0.4])
    slope = (functions.value(v + 1e-6 * direction) - functions.value(v - 1e-6 * direction)) / 2e-6
    smooth = np.arange(len(slope)) != 7  # the maximum has a kink where two entries tie
    assert (jacobian @ direction)[smooth] == pytest.approx(slope[smooth], rel=1e-4, abs=1e-5)


def test_rows_that_were_left_out_come_when_they_are_asked_for() -> None:
    x = cp.Variable(2, name="x")
    functions = Functions([cp.sum(cp.exp(x)), cp.log(x[0] + 2)], Layout([x]))
    for point in (np.array([0.3, -0.4]), np.array([1.0, 2.0])):
        slopes = np.array([np.exp(point), [1 / (point[0] + 2), 0.0]])
        values = np.array([np.exp(point).sum(), np.log(point[0] + 2)])
        for first in (1, 0, 1):
            value, jacobian = functions.value_jacobian(point, first)
            assert value[first:] == pytest.approx(values[first:], rel=1e-14)
            assert jacobian[first:] == pytest.approx(slopes[first:], rel=1e-14)


def test_hessian_equals_differences_of_the_gradient(case: Case) -> None:
    problem, n = case.problem, case.problem.n_upper
    generator = np.random.default_rng(1)
    v = np.concatenate([case.x0, generator.uniform(0.2, 0.9, problem.n_lower)])
    here = problem.derivatives(v[:n], v[n:])
    dual, equal = (generator.uniform(0.5, 1.5, len(p)) for p in (here.inequality, here.equality))
    hessian = problem.hessian(v[:n], v[n:], 3.0, dual, equal)

    def slope(w: np.ndarray) -> np.ndarray:
        data = problem.derivatives(w[:n], w[n:])
        total = data.upper_gradient + 3.0 * data.lower_gradient
        return np.asarray(
            total + data.inequality_jacobian.T @ dual + data.equality_jacobian.T @ equal
        )

    steps = 1e-5 * np.eye(len(v))
    expected = np.array([(slope(v + step) - slope(v - step)) / 2e-5 for step in steps])
    assert hessian == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_sensitivity_equals_differences_of_the_answer_and_of_the_slope_of_the_value() -> None:
    """Quadratic lower level with a binding row: y' and v'' from the KKT system; None where a row is weakly active."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y", bounds=[0, 5])
    g = cp.Minimize(cp.square(y[0] - x[0]) + 2 * cp.square(y[1] - x[1]) + x[0] * y[1])
    problem = BilevelProblem(
        cp.Minimize(cp.sum(y)), LowerProblem(g, {"cap": y[0] + 2 * y[1] <= 2 + x[1]}, given=[x])
    )
    for point in ([1.0, 3.0], [0.5, 1.0], [-1.0, 2.0]):
        at = np.array(point)
        steps = 1e-5 * np.eye(2)
        slopes = [
            (problem.lower(at + step).grad_x - problem.lower(at - step).grad_x) / 2e-5
            for step in steps
        ]
        found = problem.sensitivity(at)
        assert found is not None
        answers = [
            (problem.lower(at + step).y - problem.lower(at - step).y) / 2e-5 for step in steps
        ]
        assert found.answer == pytest.approx(np.array(answers).T, abs=1e-6)
        assert found.hessian == pytest.approx(np.array(slopes), abs=1e-6)
    assert problem.sensitivity(np.array([0.0, 1.0])) is None  # y_0 = 0 with a multiplier of zero
