"""What a user meets who made a mistake, or pressed Ctrl-C: the message names culprit and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from blocc import BilevelProblem, LowerProblem
from blocc.errors import (
    InvalidInputError,
    LowerInfeasibleError,
    LowerUnboundedError,
    SolveError,
    SolveInterrupted,
    UnsupportedModelError,
    UpperUnboundedError,
)
from blocc.methods.joint import Joint
from blocc.result import Status
from tests.cvx.models import MODELS


def variables() -> tuple[cp.Variable, cp.Variable]:
    return cp.Variable(name="x", bounds=[0, 1]), cp.Variable(name="y")


def problem(rows: dict[str, Any], upper: dict[str, Any] | None = None) -> BilevelProblem:
    found = {
        v.name(): v for row in [*rows.values(), *(upper or {}).values()] for v in row.variables()
    }
    x, y = found["x"], found.get("y", cp.Variable(name="y"))
    lower = LowerProblem(cp.Minimize(cp.square(y - x)), rows, given=[x])
    return BilevelProblem(cp.Minimize(x + cp.square(y)), lower, upper)


def test_unbounded_lower_level_is_called_unbounded() -> None:
    x, y = variables()
    lower = LowerProblem(cp.Minimize((x - 2) * y), {"floor": y >= -1}, given=[x])
    with pytest.raises(LowerUnboundedError, match="unbounded below"):
        BilevelProblem(cp.Minimize(x), lower).solve()


def test_empty_upper_level_is_named() -> None:
    x, y = variables()
    with pytest.raises(InvalidInputError, match=r"no x satisfies.*'budget' and 'x.upper'"):
        problem({"floor": y >= x}, {"budget": x >= 2}).solve()


def test_contradicting_levels_are_named_and_the_others_are_not() -> None:
    x, y = variables()
    rows = {"low": y >= 5, "idle": y <= 100, "lean": y >= x - 50}
    with pytest.raises(LowerInfeasibleError) as caught:
        problem(rows, {"cap": x + y <= 3}).solve()
    assert "'cap' and 'low' and 'x.lower'" in str(caught.value)
    assert "idle" not in str(caught.value)


@pytest.mark.parametrize("cone", [False, True])
def test_infeasible_lower_level_names_the_rows_that_contradict(cone: bool) -> None:
    x, y = variables()
    high = cp.norm(cp.hstack([y, 0.5 * y])) <= 4 if cone else y <= 4
    model = problem({"low": y >= 5 * x, "high": high, "idle": y >= -100})
    assert model.lower(np.array([0.5])).y == pytest.approx([2.5], abs=1e-6)
    with pytest.raises(LowerInfeasibleError, match="'low' and 'high'") as caught:
        model.lower(np.array([1.0]))
    assert "idle" not in str(caught.value) or cone  # an interior point leaves small multipliers


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, y: LowerProblem(cp.Minimize(y), y >= x, given=[x]),
        lambda x, y: LowerProblem(cp.Minimize(y), x),
        lambda x, y: LowerProblem(cp.Minimize(y), [y >= x], 3),  # type: ignore[arg-type]
        lambda x, y: LowerProblem(cp.Problem(cp.Minimize(y), [y >= x]), given=[x]),
        lambda x, y: LowerProblem(cp.Minimize(y), cp.Problem(cp.Minimize(y)), given=[x]),
        lambda x, y: BilevelProblem(cp.Minimize(y), cp.Problem(cp.Minimize(y), [y >= x])),
    ],
)
def test_forgotten_list_is_one_clear_error(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"list|objective"):
        wrong(*variables())


def test_boolean_variable_is_called_boolean() -> None:
    x, y = variables()
    z = cp.Variable(name="z", boolean=True)
    with pytest.raises(UnsupportedModelError, match=r"'z' is boolean.*drop boolean=True"):
        LowerProblem(cp.Minimize(y + z), [y >= x], given=[x])


def test_interrupted_solve_keeps_its_best_point_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the second run: the exception has a certified pair, and a resumed solve the optimum."""
    model = MODELS["tolls"]()
    climbs = []
    climb = Joint.climb

    def interrupted(self: Joint, v: Any, stages: Any) -> None:
        if len(climbs) == 1:
            raise KeyboardInterrupt
        climbs.append(stages)
        climb(self, v, stages)

    monkeypatch.setattr(Joint, "climb", interrupted)
    path = tmp_path / "run.npz"
    with pytest.raises(SolveInterrupted) as caught:
        model.problem().solve(checkpoint=path)
    partial = caught.value.result
    assert partial is not None
    assert partial.status is Status.INTERRUPTED
    assert partial.certificate.lower_ok(1e-6)
    monkeypatch.setattr(Joint, "climb", climb)
    resumed = model.problem().solve(resume=path)
    assert resumed.objective == pytest.approx(model.reference(), rel=1e-6)
    assert len(resumed.history) > len(partial.history) > 0
    with pytest.raises(InvalidInputError, match="seed"):
        model.problem().solve(resume=path, seed=1)


@pytest.mark.parametrize("method", ["auto", "lbfgsb"])
@pytest.mark.parametrize("size", [1, 3])
def test_an_upper_objective_without_a_minimum_is_refused(method, size):
    x, y = cp.Variable(size, name="x"), cp.Variable(size, name="y")
    lower = LowerProblem(cp.Minimize(cp.sum_squares(y - x)), given=[x])
    with pytest.raises(UpperUnboundedError, match="no minimum"):
        BilevelProblem(cp.Minimize(cp.sum(y)), lower).solve(method=method)


def test_a_price_without_a_cap_is_refused():
    price, q = cp.Variable(nonneg=True, name="price"), cp.Variable(nonneg=True, name="q")
    lower = LowerProblem(cp.Minimize(cp.square(q - 3) + price * q), given=[price])
    with pytest.raises(UpperUnboundedError, match="Bound them"):
        BilevelProblem(cp.Maximize(price - q), lower).solve()


def test_bounds_of_a_wrong_shape_from_cvxpy_bound_nothing():
    # CVXPY 1.9 gives the product of two vectors interval bounds of their shape, not of a scalar
    price, q = cp.Variable(2, bounds=[0.5, 10], name="price"), cp.Variable(2, nonneg=True, name="q")
    lower = LowerProblem(cp.Minimize(cp.sum_squares(q - 3) + price @ q), given=[price])
    result = BilevelProblem(cp.Maximize(price @ q - cp.sum(price)), lower).solve()
    assert result.objective == pytest.approx(4.0, rel=1e-8)  # q = 3 - price / 2, at price 2
    assert result.bound is None


def test_an_upper_constraint_that_no_response_meets_is_named():
    x, y = cp.Variable(2, bounds=[0, 2.5], name="x"), cp.Variable(2, nonneg=True, name="y")
    lower = LowerProblem(cp.Minimize(cp.sum_squares(y - x)), given=[x])
    upper = {"fine": y[0] <= 9, "big": cp.sum(y) >= 8}
    with pytest.raises(SolveError, match="upper constraint 'big'"):
        BilevelProblem(cp.Minimize(cp.sum_squares(x)), lower, upper).solve()


@pytest.mark.parametrize("method", ["auto", "lbfgsb"])
def test_records_and_prints_of_a_maximisation_are_in_its_sense(method, capsys):
    x, y = cp.Variable(bounds=[0, 5], name="x"), cp.Variable(name="y")
    lower = LowerProblem(cp.Minimize(cp.square(y - x)), given=[x])
    problem = BilevelProblem(cp.Maximize(7 - cp.square(y - 2)), lower)
    result = problem.solve(method=method, verbose=True)
    assert result.objective == pytest.approx(7.0)
    assert result.history["response"].iloc[-1] == pytest.approx(7.0, abs=1e-3)
    assert "objective 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (lambda x, y: cp.Maximize(cp.sum_squares(y) + x * y[0]), ["sum_squares(y)", "Maximize"]),
        (lambda x, y: cp.Minimize(x * cp.sum_squares(y)), ["x * sum_squares(y)", "nonneg=True"]),
        (lambda x, y: cp.Minimize(cp.sqrt(y[0]) + x * y[1]), ["power(y[0], 0.5)"]),
        (lambda x, y: cp.Minimize(y[0] * y[1] + x * y[1]), ["y[0] * y[1]"]),
    ],
)
def test_a_part_that_is_not_convex_is_named_in_the_users_words(objective, words):
    x, y = cp.Variable(name="x"), cp.Variable(2, nonneg=True, name="y")
    lower = LowerProblem(objective(x, y), given=[x])
    with pytest.raises(UnsupportedModelError) as refusal:
        BilevelProblem(cp.Minimize(cp.sum(y) + cp.square(x)), lower)
    message = str(refusal.value)
    assert message.startswith("lower objective: ")
    assert all(word in message for word in words)
    assert not any(word in message for word in ("_wrap", "param", "quad_over_lin", "Approx"))
