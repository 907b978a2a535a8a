"""Solving CVXPY bilevel problems: closed forms, certificates, options."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from blocc.cvx import BilevelProblem, LowerProblem
from blocc.errors import LowerInfeasibleError, SolveError, UnsupportedModelError
from blocc.methods.joint import Joint
from blocc.result import Status
from tests.cvx.problems import CASES


def stackelberg(slope: float) -> tuple[BilevelProblem, cp.Variable, cp.Variable]:
    """Leader and follower in quantities: y = (a - x)/2, x = a/2, for the price a - x - y and no cost."""
    x, y = cp.Variable(nonneg=True, name="x"), cp.Variable(nonneg=True, name="y")
    lower = LowerProblem(cp.Minimize(cp.square(y) - (slope - x) * y), given=[x])
    return BilevelProblem(cp.Maximize(slope * x - cp.square(x) - x * y), lower), x, y


@pytest.mark.parametrize("slope", [1.0, 12.0, 300.0])
def test_stackelberg_equals_its_closed_form(slope: float) -> None:
    problem, x, y = stackelberg(slope)
    result = problem.solve()
    assert result.success
    assert result.x["x"] == pytest.approx(slope / 2, rel=1e-5)
    assert result.y["y"] == pytest.approx(slope / 4, rel=1e-5)
    assert result.objective == pytest.approx(slope**2 / 8, rel=1e-7)  # maximised: the user's sign
    assert x.value == pytest.approx(slope / 2, rel=1e-5)
    assert y.value == pytest.approx(slope / 4, rel=1e-5)


def coupled() -> BilevelProblem:
    """F = (x - 1)^2 + (y - 2)^2, y = min(2x, 3 - x) by a coupled constraint: optimum where 2x = 3 - x, or inside."""
    x, y = cp.Variable(name="x", bounds=[0, 3]), cp.Variable(name="y")
    lower = LowerProblem(cp.Minimize(cp.square(y - 2 * x)), {"cap": y + x <= 3}, given=[x])
    return BilevelProblem(cp.Minimize(cp.square(x - 1) + cp.square(y - 2)), lower)


def test_relaxation_that_is_lower_optimal_is_certified_global() -> None:
    result = coupled().solve()
    assert result.status is Status.OPTIMAL
    assert result.bound == pytest.approx(result.objective, abs=1e-7)
    assert result.objective == pytest.approx(0.0, abs=1e-8)


def test_independent_check_agrees_with_the_certificate() -> None:
    for build in CASES.values():
        problem = build().problem
        result = problem.solve(on_failure="return")
        found = problem.certify(result)
        assert found["violation"] <= 1e-6
        assert found["lower_gap"] <= 1e-6
        assert result.certificate.lower_gap >= found["lower_gap"] - 1e-6


def test_duals_are_returned_by_name_with_cvxpys_sign() -> None:
    case = CASES["toll"]()
    result = case.problem.solve()
    x = result.x["toll"]
    y = cp.Variable(2, nonneg=True)
    a, b = np.array([1.0, 2.0]), np.array([1.0, 1.5])
    rows = [cp.sum(y) == 10, y[0] + 0.2 * x.sum() <= 7]
    cp.Problem(cp.Minimize(b @ y + a / 2 @ cp.square(y) + x @ y), rows).solve(solver="CLARABEL")
    assert result.duals["demand"] == pytest.approx(rows[0].dual_value, abs=1e-5)
    assert result.duals["cap"] == pytest.approx(rows[1].dual_value, abs=1e-5)


def test_history_has_a_row_for_every_stage() -> None:
    history = CASES["toll"]().problem.solve().history
    assert list(history["gamma"][:3] / history["gamma"][0]) == [1.0, 10.0, 100.0]
    assert {"iteration", "penalized", "response", "penalty", "seconds"} <= set(history.columns)


def test_callable_upper_objective() -> None:
    x, y = cp.Variable(2, name="x", bounds=[-2, 2]), cp.Variable(2, name="y")
    lower = LowerProblem(cp.Minimize(cp.sum_squares(y - x)), given=[x])
    result = BilevelProblem(lambda x, y: np.cos(x[0]) + (y[1] - 0.3) ** 2, lower).solve()
    assert result.objective == pytest.approx(np.cos(2.0), abs=1e-6)
    assert result.y["y"][1] == pytest.approx(0.3, abs=1e-4)


def test_lower_level_that_is_never_feasible_is_reported() -> None:
    x, y = cp.Variable(name="x", bounds=[0, 1]), cp.Variable(name="y", bounds=[0, 1])
    lower = LowerProblem(cp.Minimize(cp.square(y)), {"impossible": y >= 3 + x}, given=[x])
    with pytest.raises(LowerInfeasibleError, match=r"'impossible' and 'y.upper'"):
        BilevelProblem(cp.Minimize(x + y), lower).solve()


def test_joint_and_x_only_methods_agree() -> None:
    joint = CASES["toll"]().problem.solve(method="joint")
    alone = CASES["toll"]().problem.solve(method="spectral", on_failure="return")
    assert alone.objective == pytest.approx(joint.objective, rel=1e-5)


def test_response_that_jumps_ends_with_a_certificate() -> None:
    """Follower min -x y over [0, 1]: y jumps from 0 to 1 at x = 0; at x = 0 the leader may choose y."""
    x, y = cp.Variable(name="x", bounds=[-1, 1]), cp.Variable(name="y", bounds=[0, 1])
    lower = LowerProblem(cp.Minimize(-x * y), given=[x])
    result = BilevelProblem(cp.Minimize(cp.square(x + 0.5) - 2 * y), lower).solve()
    assert result.success
    assert result.objective == pytest.approx(0.25 - 2.0, abs=1e-5)  # x = 0, y = 1
    assert result.certificate.lower_gap <= 1e-6


def two_basins() -> BilevelProblem:
    """F has a local minimum in each branch of y = clip(x, 1/2, 3/2); the global one is at x = 0."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y", bounds=[0.5, 1.5])
    lower = LowerProblem(cp.Minimize(cp.sum_squares(x - y)), given=[x])
    return BilevelProblem(cp.Minimize(cp.sum_squares(x) + cp.sum_squares(y) - 3 * cp.sum(y)), lower)


def test_global_search_proves_the_optimum() -> None:
    result = two_basins().solve(global_=True)
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(-2.5, abs=1e-3)
    assert -2.5 - 1e-2 <= result.bound <= -2.5 + 1e-6


def test_global_bound_holds_against_a_grid() -> None:
    """Value-function cuts on a lower level that is not a QP: v by a fine grid of exact lower solves."""
    x, y = cp.Variable(name="x", bounds=[0, 2]), cp.Variable(name="y", bounds=[-3, 3])
    lower = LowerProblem(
        cp.Minimize(cp.exp(y) - 2 * y + cp.square(y - x)), {"low": y >= x - 1}, given=[x]
    )
    problem = BilevelProblem(cp.Minimize(cp.square(x - 1.7) + cp.square(y)), lower)
    result = problem.solve(global_=True)
    values = []
    for point in np.linspace(0, 2, 401):
        response = problem.lower(np.array([point])).y
        values.append(problem.upper(np.array([point]), response))
    assert result.bound <= min(values) + 1e-6
    assert result.objective <= min(values) + 1e-6
    assert result.objective - result.bound <= 1e-3 * (1 + abs(result.objective))


def test_global_search_says_where_it_cannot() -> None:
    x, y = cp.Variable(4, name="x"), cp.Variable(4, name="y")
    lower = LowerProblem(cp.Minimize(cp.sum_squares(y - x)), given=[x])
    with pytest.raises(UnsupportedModelError, match="at most 3"):
        BilevelProblem(cp.Minimize(cp.sum_squares(y - 1)), lower).solve(global_=True)


def test_check_names_what_fails() -> None:
    check = two_basins().check()
    assert check["lower level jointly convex"].status == "holds"
    assert check["relaxation convex"].status == "holds"
    assert check["upper variables bounded"].status == "fails"
    x, y = cp.Variable(name="x", bounds=[0, 1]), cp.Variable(name="y", bounds=[0, 1])
    lower = LowerProblem(cp.Minimize(x * y), {"row": y <= x}, given=[x])
    linear = BilevelProblem(cp.Minimize(x * y), lower, {"coupled": x + y >= 0.5}).check()
    assert linear["lower level jointly convex"].status == "fails"
    assert linear["lower level strongly convex"].status == "fails"
    assert linear["upper constraints free of y"].detail == "coupled"
    assert linear["relaxation convex"].status == "fails"
    assert "->" in str(linear)


def test_answer_that_is_not_stationary_is_not_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the search at a bilevel feasible point: the certificate must find the descent that is left."""

    def stop_early(self: Joint, starts: object, seed: object) -> object:
        return self.response(np.array([1.2, 1.1]))

    monkeypatch.setattr(Joint, "solve", stop_early)
    result = two_basins().solve(on_failure="return")
    assert result.status is Status.FEASIBLE
    assert result.certificate.stationarity > 1e-3
    with pytest.raises(SolveError) as caught:
        two_basins().solve()
    assert caught.value.result is not None


@pytest.mark.parametrize("seed", [0, 1])
def test_global_bound_of_a_bilinear_upper_objective_lies_below_a_grid(seed: int) -> None:
    """f = x'Ay + q'y is not convex: the proven bound is below every response on a grid, and attained to 1e-3."""
    random = np.random.default_rng(seed)
    B, A, C, D = (random.normal(size=shape) for shape in ((2, 2), (2, 2), (3, 2), (3, 2)))
    room, slope = random.uniform(0.5, 1.5, 3), random.normal(size=2)
    x, y = cp.Variable(2, name="x", bounds=[-1, 1]), cp.Variable(2, name="y", bounds=[-2, 2])
    lower = LowerProblem(
        cp.Minimize(0.5 * cp.sum_squares(y - B @ x)), [C @ y + 0.3 * D @ x <= room], given=[x]
    )
    upper = sum(A[i, j] * x[i] * y[j] for i in range(2) for j in range(2)) + slope @ y
    problem = BilevelProblem(cp.Minimize(upper), lower)
    result = problem.solve(global_=True)
    assert result.status is Status.OPTIMAL
    assert result.bound is not None
    grid = np.linspace(-1, 1, 21)
    values = []
    for point in np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2):
        try:
            values.append(problem.upper(point, problem.lower(point).y))
        except LowerInfeasibleError:
            continue
    assert result.bound <= min(values) + 1e-9
    assert result.objective <= min(values) + 1e-6
    assert result.objective - result.bound <= 1e-3 * (1 + abs(result.objective))
