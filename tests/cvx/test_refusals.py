"""Models that cannot be meant: refused when they are built or solved, by an error that names the culprit."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest

from blocc import BilevelProblem, LowerProblem
from blocc.cvx_check import check_problem
from blocc.errors import (
    InvalidInputError,
    SolveError,
    UnsupportedModelError,
)


def two() -> tuple[cp.Variable, cp.Variable]:
    """An upper variable in [0, 4] and a lower one."""
    return cp.Variable(name="x", bounds=[0, 4]), cp.Variable(name="y")


def tracking(x: cp.Variable, y: cp.Variable, rows: object = None) -> LowerProblem:
    """A follower that stays close to x."""
    return LowerProblem(cp.Minimize(cp.square(y - x)), rows, given=[x])


def vector_lower_objective() -> None:
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    LowerProblem(cp.Minimize(y - x), given=[x])


def vector_upper_objective() -> None:
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    BilevelProblem(cp.Minimize(x + y), LowerProblem(cp.Minimize(cp.sum_squares(y - x)), given=[x]))


def constant_constraint() -> None:
    x, y = two()
    tracking(x, y, {"always": 1 <= 2})


def no_constraint() -> None:
    x, y = two()
    tracking(x, y, {"sum": x + y})


def name_of_a_bound() -> None:
    x, y = cp.Variable(name="x"), cp.Variable(name="y", nonneg=True)
    tracking(x, y, {"y.lower": y >= 1})


def not_finite() -> None:
    x, y = two()
    BilevelProblem(cp.Minimize(y), tracking(x, y, {"cap": y <= np.nan * x + 1}))


def shared_by_two_followers() -> None:
    x, y = two()
    BilevelProblem(cp.Minimize(x), [tracking(x, y), tracking(x, y)])


def given_and_decided() -> None:
    x, y = two()
    z = cp.Variable(name="z")
    second = LowerProblem(cp.Minimize(cp.square(z - y)), given=[y])
    BilevelProblem(cp.Minimize(x), [tracking(x, y), second])


def no_upper_variables() -> None:
    y = cp.Variable(name="y")
    BilevelProblem(cp.Minimize(y), LowerProblem(cp.Minimize(cp.square(y)), given=[]))


def same_name() -> None:
    x, y = cp.Variable(name="flow"), cp.Variable(name="flow")
    BilevelProblem(cp.Minimize(x), tracking(x, y))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (vector_lower_objective, "the lower objective must be a scalar|resolve to a scalar"),
        (vector_upper_objective, "the upper objective must be a scalar|resolve to a scalar"),
        (constant_constraint, "constraint 'always' is the constant True"),
        (no_constraint, "constraint 'sum' is not a CVXPY constraint"),
        (name_of_a_bound, r"constraint name 'y\.lower' is taken by a variable's bound"),
        (not_finite, "cap has data that are NaN or infinite"),
        (shared_by_two_followers, "variable 'y' belongs to two lower problems"),
        (given_and_decided, "variable 'y' is given to one lower problem and decided by another"),
        (no_upper_variables, "no upper variables: pass them as given"),
        (same_name, "two variables are called 'flow'"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(
    build: Callable[[], None], message: str
) -> None:
    with pytest.raises((InvalidInputError, ValueError), match=message):
        build()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"on_failure": "ignore"}, "on_failure must be 'raise' or 'return', got 'ignore'"),
        ({"method": "newton"}, "method must be 'joint' or one of .* got 'newton'"),
        ({"tol": 0.0}, "tol must be between 0 and 1"),
        ({"tol": 2.0}, "tol must be between 0 and 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"starts": 0}, "starts"),
        ({"starts": "all"}, "starts"),
    ],
)
def test_wrong_options_are_refused_before_the_solve(
    option: dict[str, object], message: str
) -> None:
    x, y = two()
    problem = BilevelProblem(cp.Minimize(cp.square(y - 1)), tracking(x, y))
    with pytest.raises(InvalidInputError, match=message):
        problem.solve(**option)


def test_a_start_that_is_not_finite_is_refused() -> None:
    x, y = two()
    problem = BilevelProblem(cp.Minimize(cp.square(y - 1)), tracking(x, y))
    x.save_value(np.array(np.nan))
    with pytest.raises(InvalidInputError, match="x"):
        problem.solve()


@pytest.mark.parametrize("attribute", ["diag", "hermitian"])
def test_attributes_that_are_not_supported_are_named(attribute: str) -> None:
    x = cp.Variable(name="x", bounds=[0, 1])
    matrix = cp.Variable((2, 2), name="matrix", **{attribute: True})
    with pytest.raises(UnsupportedModelError, match=f"'matrix' has the attribute '{attribute}'"):
        LowerProblem(cp.Minimize(cp.sum_squares(cp.real(matrix)) + 0 * x), given=[x])


def test_upper_constraints_in_x_alone_must_be_convex() -> None:
    x, y = two()
    with pytest.raises(UnsupportedModelError, match="upper constraint 'apart' is in x alone"):
        BilevelProblem(
            cp.Minimize(cp.square(y - 1)), tracking(x, y), {"apart": cp.square(x) >= 1}
        ).solve()


def test_variables_below_zero_have_the_answer_of_their_mirror_image() -> None:
    """nonpos variables at both levels; by hand: y = x - 1 where that is at most 0, f least at x = -1."""
    x, y = cp.Variable(name="x", nonpos=True), cp.Variable(name="y", nonpos=True)
    lower = LowerProblem(cp.Minimize(cp.square(y - x + 1)), {"tie": y >= x - 3}, given=[x])
    result = BilevelProblem(cp.Minimize(cp.square(y + 2) + 0.0 * x), lower).solve()
    assert result.success
    assert result.x["x"] == pytest.approx(-1.0, abs=1e-5)
    assert result.y["y"] == pytest.approx(-2.0, abs=1e-5)


def test_several_followers_solved_in_x_alone_agree_with_the_joint_method() -> None:
    """By hand: the first answers x, the second min(x, 1); f is least where x = 2 has (2, 1)."""

    def build() -> BilevelProblem:
        x = cp.Variable(name="x", bounds=[0, 4])
        y, z = cp.Variable(name="y"), cp.Variable(name="z")
        followers = [
            LowerProblem(cp.Minimize(cp.square(y - x)), {"cap": y <= 3}, given=[x]),
            LowerProblem(cp.Minimize(cp.square(z - x)), {"cap": z <= 1}, given=[x]),
        ]
        return BilevelProblem(cp.Minimize(cp.square(y - 2) + cp.square(z - 1)), followers)

    for method in ("auto", "lbfgsb"):
        result = build().solve(method=method)
        assert result.success
        assert result.x["x"] == pytest.approx(2.0, abs=1e-4)
        assert {len(np.atleast_1d(dual)) for dual in result.duals.values()} == {1}
        assert len(result.duals) == 2


def test_check_speaks_of_what_does_not_hold() -> None:
    x, y = two()
    lower = LowerProblem(cp.Minimize(y), {"floor": y >= x}, given=[x])
    found = check_problem(BilevelProblem(cp.Minimize(cp.square(y - 1)), lower))
    assert found["lower level strongly convex"].status == "fails"
    assert "affine" in found["lower level strongly convex"].detail
    assert {item.name for item in found} >= {"relaxation convex", "Slater point at start"}
    with pytest.raises(KeyError):
        found["no such assumption"]


def test_check_of_an_infeasible_program_says_so() -> None:
    x, y = two()
    problem = BilevelProblem(cp.Minimize(y), tracking(x, y, {"low": y >= 5, "high": y <= x}))
    found = check_problem(problem)
    assert found["relaxation convex"].status == "fails"
    assert "no (x, y)" in found["relaxation convex"].detail
    assert found["lower level solvable at start"].status == "fails"


def test_check_of_an_unbounded_relaxation_is_unknown() -> None:
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    found = check_problem(BilevelProblem(cp.Minimize(y), tracking(x, y)))
    assert found["relaxation convex"].status == "unknown"


def test_check_of_many_variables_does_not_look_at_the_hessian() -> None:
    x, y = cp.Variable(150, name="x"), cp.Variable(150, name="y")
    lower = LowerProblem(cp.Minimize(cp.sum_squares(y - x)), given=[x])
    found = check_problem(BilevelProblem(cp.Minimize(cp.sum_squares(y - 1)), lower))
    assert found["lower level strongly convex"].status == "unknown"


def test_check_of_constraints_with_products_leaves_slater_open() -> None:
    x, y = cp.Variable(name="x", bounds=[1, 2]), cp.Variable(name="y", bounds=[0, 5])
    found = check_problem(BilevelProblem(cp.Minimize(y), tracking(x, y, {"share": x * y <= 4})))
    assert found["Slater point at start"].status in ("unknown", "holds")


def test_global_search_with_a_product_of_the_levels_proves_the_optimum_of_a_grid() -> None:
    """g = (y - 1)^2 / 2 + x y is not jointly convex; the search makes it so with |x|^2 and stays below the grid."""
    x, y = cp.Variable(name="x", bounds=[-2, 2]), cp.Variable(name="y", bounds=[-3, 3])
    lower = LowerProblem(
        cp.Minimize(0.5 * cp.square(y - 1) + x * y + cp.exp(0.2 * x)),
        {"cap": y + x <= 2.5},
        given=[x],
    )
    problem = BilevelProblem(cp.Minimize(cp.square(x - 1) + cp.exp(y)), lower)
    result = problem.solve(global_=True)
    grid = np.linspace(-2, 2, 4001)
    answer = np.minimum(np.clip(1.0 - grid, -3, 3), 2.5 - grid)
    least = float(np.min((grid - 1) ** 2 + np.exp(answer)))
    assert result.objective == pytest.approx(least, abs=1e-4)
    assert result.bound is not None
    assert result.bound <= least + 1e-9


def test_global_search_says_that_a_nonconvex_upper_objective_leaves_a_gap() -> None:
    """y = x, so f = exp(x) - 2 exp(x): least at 1, -e; interval arithmetic alone bounds it from below."""
    x, y = cp.Variable(name="x", bounds=[0, 1]), cp.Variable(name="y", bounds=[0, 2])
    result = BilevelProblem(cp.Minimize(cp.exp(y) - 2 * cp.exp(x)), tracking(x, y)).solve(
        global_=True
    )
    assert result.objective == pytest.approx(-np.e, abs=1e-5)
    assert result.status.name == "STATIONARY"
    assert "global optimality is not proven (relative gap" in result.message
    assert result.bound is not None
    assert result.bound < -np.e


def test_global_search_refuses_a_callable_without_a_bound() -> None:
    x, y = cp.Variable(name="x", bounds=[0, 1]), cp.Variable(name="y")
    problem = BilevelProblem(lambda x, y: float(np.cos(3 * x) + y), tracking(x, y))
    with pytest.raises(UnsupportedModelError, match="no global bound is available"):
        problem.solve(global_=True)


def test_an_upper_constraint_that_no_response_satisfies_is_a_failure_that_says_by_how_much() -> (
    None
):
    x, y = two()
    problem = BilevelProblem(cp.Minimize(y), tracking(x, y), {"high": y >= 9})
    with pytest.raises(SolveError, match=r"constraints violated by \d"):
        problem.solve()
