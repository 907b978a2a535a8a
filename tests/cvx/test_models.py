"""The eight models of the side-by-side benchmark: certified answers that match optima found without the library."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from benchmarks.scale import Chain
from blocc.conic import _MISSES, _NEWTON_STEPS
from blocc.cvx import BilevelProblem, LowerProblem, ModelInX
from blocc.cvx_functions import Functions, Layout, curved
from blocc.errors import UnsupportedModelError
from blocc.penalty import Penalty, Response
from tests.cvx.models import MODELS, best_of_grid


@pytest.mark.parametrize("name", list(MODELS))
def test_model_is_solved_to_its_independent_optimum(name: str) -> None:
    model = MODELS[name]()
    problem = model.problem()
    result = problem.solve()
    assert result.success
    assert result.certificate.ok(1e-6)
    found = problem.certify(result)
    assert abs(found["lower_gap"]) <= 1e-6
    assert found["violation"] <= 1e-6
    assert result.objective == pytest.approx(model.reference(), rel=1e-6)


@pytest.mark.parametrize("name", ["tolls", "capacity_planning", "demand_response"])
def test_no_model_is_won_at_its_start(name: str) -> None:
    """The start is worse than the optimum by a percent at least: matching it takes a solve."""
    model = MODELS[name]()
    problem = model.problem()
    x = problem.upper_layout.pack([model.start[v.name()] for v in problem.upper_layout.variables])
    at_start = problem.sign * problem.upper(x, problem.lower(x).y)
    assert problem.sign * (at_start - model.reference()) > 0.01 * abs(model.reference())


@pytest.mark.parametrize(
    "name", ["analytic_quadratic", "optimistic_lp", "tolls", "demand_response", "capacity_planning"]
)
def test_answers_at_many_points_together_are_those_of_each_alone(name: str) -> None:
    problem, alone = MODELS[name]().problem(), MODELS[name]().problem()
    n = problem.n_upper
    random = np.random.default_rng(2)
    low, high = (bound[:n] for bound in problem.bounds)
    points = low + (high - low) * random.uniform(0.1, 0.9, (40, n))
    points[20:] = points[:1] + 1e-3 * random.normal(size=(20, n))  # in one critical region
    found = problem.responses(points)
    assert found is not None
    assert np.count_nonzero(found.known) >= 20
    for k in np.flatnonzero(found.known):
        saddle = alone.lower(points[k])
        upper, lower, inequality, equality = alone.values(points[k], found.y[k])
        assert found.value[k] == pytest.approx(saddle.value, rel=1e-11, abs=1e-11)
        assert found.lower[k] == pytest.approx(lower, rel=1e-11, abs=1e-11)
        assert found.upper[k] == pytest.approx(upper, rel=1e-11, abs=1e-11)
        assert lower == pytest.approx(saddle.value, rel=1e-10, abs=1e-10)
        rows = np.concatenate([inequality, equality])
        both = np.concatenate([found.inequality[k], found.equality[k]])
        assert both == pytest.approx(rows, rel=1e-11, abs=1e-10)
        own = inequality[problem._upper_rows[0] :]  # no upper constraint: x is any point
        assert own.max(initial=0.0) <= 1e-9
        assert np.abs(equality).max(initial=0.0) <= 1e-9


def test_reference_search_finds_a_known_minimum() -> None:
    axes = [np.linspace(0, 6, 13)] * 2
    least = best_of_grid(lambda x: float(np.cos(x[0]) + (x[1] - 0.3) ** 2), axes)
    assert least == pytest.approx(-1.0, abs=1e-9)


def test_bounds_give_the_sign_that_convexity_needs() -> None:
    """weight * |y|^2 is convex because the bounds keep weight positive, which CVXPY's sign analysis does not see."""
    weight, y = cp.Variable(name="weight", bounds=[0.5, 4]), cp.Variable(name="y")
    lower = LowerProblem(
        cp.Minimize(weight * cp.square(y) - 2 * y), given=[weight]
    )  # y = 1 / weight
    result = BilevelProblem(cp.Minimize(cp.square(y - 0.8)), lower).solve()
    assert result.x["weight"] == pytest.approx(1.25, abs=1e-4)
    free = cp.Variable(name="weight", bounds=[-0.5, 4])
    with pytest.raises(UnsupportedModelError, match="not convex"):
        BilevelProblem(
            cp.Minimize(cp.square(y)),
            LowerProblem(cp.Minimize(free * cp.square(y) - 2 * y), given=[free]),
        )


def test_entries_that_enter_affinely_have_no_curvature() -> None:
    x, y = cp.Variable(2, name="x"), cp.Variable(3, name="y")
    z = cp.Variable(name="z")
    layout = Layout([x, y, z])
    assert not curved([x[0] + y[1] - 2 * z, cp.sum(y)], layout).any()
    assert list(curved([cp.square(z) + cp.sum(y)], layout)) == [False] * 5 + [True]
    assert list(curved([x @ y[:2] + 3 * z], layout)) == [True] * 5 + [False]
    assert list(curved([cp.pos(z) / 2 + x[0]], layout)) == [False] * 5 + [True]


def test_norm_and_maximum_have_their_derivatives() -> None:
    x = cp.Variable(3, name="x")
    functions = Functions([cp.norm(2 * x - 1), cp.pos(x), cp.maximum(x, 0.5)], Layout([x]))
    point = np.array([0.3, -0.7, 1.2])
    value, jacobian = functions.value_jacobian(point)
    step = 1e-7
    for k in range(3):
        moved = functions.value(point + step * np.eye(3)[k])
        assert (moved - value) / step == pytest.approx(np.asarray(jacobian)[:, k], abs=1e-5)


def test_active_set_answers_equal_the_interior_points() -> None:
    """A sparse QP large enough for the warm active-set path, at moved parameters, against a cold program."""
    problem = Chain(250).problem()
    x = np.zeros(5)
    problem.lower(x)
    for scale in (1e-3, 1e-2, 0.3, -0.4):
        x = x + scale
        other = Chain(250).problem()
        other._compile_lower()[0].program._misses = _MISSES  # the interior-point method alone
        warm, cold = problem.lower(x), other.lower(x)
        assert warm.iterations <= _NEWTON_STEPS < cold.iterations
        near = 3 * np.sqrt(
            cold.gap * (1 + abs(cold.value))
        )  # g is strongly convex: as far as a gap lets y be off
        assert np.abs(warm.y - cold.y).max() <= near
        assert np.abs(warm.duals["limit"] - cold.duals["limit"]).max() <= 5 * near
        assert warm.value <= cold.value + 1e-12 * (1 + abs(cold.value))
        assert warm.grad_x == pytest.approx(cold.grad_x, rel=1e-5)
        assert warm.duals["limit"].min() >= 0
        assert warm.gap <= 1e-12


def test_penalised_answers_at_alternating_gammas_are_those_of_a_fresh_problem() -> None:
    """Objectives and factors are kept between solves: none is taken for another."""
    kept = Chain(250).problem()
    random = np.random.default_rng(0)
    for gamma in (1.0, 2.0, 1.0, 8.0, 2.0, 1.0):
        for x in (np.zeros(5), 1e-3 * random.normal(size=5), random.uniform(-1, 1, 5)):
            found, fresh = (p.penalized(x, gamma) for p in (kept, Chain(250).problem()))
            assert found.value == pytest.approx(fresh.value, rel=1e-10)
            assert found.y == pytest.approx(fresh.y, abs=1e-8)
            assert found.grad_x == pytest.approx(fresh.grad_x, abs=1e-7)


def test_the_value_alone_of_penalty_and_response_is_that_of_their_evaluation() -> None:
    model = ModelInX(MODELS["tolls"]().problem())
    x = np.array([3.0, 1.0])
    for oracle in (Penalty(model, 4.0, tol=1e-10), Response(model, 4.0, tol=1e-10)):
        assert oracle.value(x) == pytest.approx(oracle(x).value, rel=1e-12)
