"""The study's per-sample problem: certified optima, exact saddle points, honest failures."""

import hashlib
import re

import cvxpy as cp
import numpy as np
import pytest

import blocc
from blocc.applications.svm import SlackBoundProblem
from blocc.applications.svm.data import load, study_features, study_splits
from blocc.errors import InvalidInputError, LowerInfeasibleError, SolveError

from .conftest import ROOT

UPPERS = ("squared", "norm")


def problem_of(split, upper="squared", **options):
    return SlackBoundProblem(
        split.X_train, split.y_train, split.X_val, split.y_val, upper=upper, **options
    )


@pytest.fixture(scope="module")
def splits():
    return {name: list(study_splits(name)) for name in ("diabetes", "fourclass")}


@pytest.fixture(scope="module")
def few(splits):
    """A split with so few training samples that the relaxation is not attained."""
    split = splits["diabetes"][0]
    return (split.X_train[:30], split.y_train[:30], split.X_val, split.y_val)


def margins(model, y):
    return model.train @ y


def test_data_files_are_the_documented_ones():
    text = (ROOT / "data" / "svm" / "README.md").read_text()
    listed = dict(re.findall(r"\| (\w+\.csv) .*`([0-9a-f]{64})`", text))
    assert set(listed) == {"diabetes.csv", "fourclass.csv"}
    for name, digest in listed.items():
        assert hashlib.sha256((ROOT / "data" / "svm" / name).read_bytes()).hexdigest() == digest


def test_study_features_and_split_sizes(splits):
    X, y = load("diabetes")
    assert X.shape == (768, 8)
    assert set(y) == {-1.0, 1.0}
    features = study_features("diabetes", X)
    assert features.shape == (768, 1 + 8 + 8 + 28)
    assert features[3, -1] == X[3, 6] * X[3, 7]
    for split in splits["diabetes"]:
        assert split.X_train.shape == (500, 45)
        assert split.X_val.shape == (150, 45)
        assert split.X_test.shape == (118, 45)
    with pytest.raises(InvalidInputError, match="data set must be one of"):
        load("iris")


@pytest.mark.parametrize("intercept_penalty", [0.0, 1.0])
@pytest.mark.parametrize("upper", UPPERS)
@pytest.mark.parametrize("name", ["diabetes", "fourclass"])
def test_every_split_is_certified_optimal(splits, name, upper, intercept_penalty):
    for split in splits[name]:
        result = problem_of(split, upper, intercept_penalty=intercept_penalty).solve()
        assert result.status is blocc.Status.OPTIMAL
        assert result.certificate.optimal(1e-6)


@pytest.mark.parametrize("upper", UPPERS)
@pytest.mark.parametrize("name", ["diabetes", "fourclass"])
def test_reference_values(splits, reference_values, name, upper):
    for split in splits[name]:
        if (name, split.seed, upper) in reference_values:
            expected = reference_values[name, split.seed, upper]
            found = problem_of(split, upper).solve().objective
            assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("upper", UPPERS)
def test_relaxation_agrees_with_an_independent_solver(splits, upper):
    split = splits["fourclass"][5]
    model = problem_of(split, upper).model
    y, c = cp.Variable(3), cp.Variable(500)
    regulariser = 0.5 * cp.sum_squares(c) if upper == "squared" else cp.norm(c)
    objective = cp.sum(cp.exp(1 - model.validation @ y)) + regulariser
    cp.Problem(cp.Minimize(objective), [model.train @ y >= 1 - c]).solve(solver="CLARABEL")
    relaxation = model.relaxation(tol=1e-6)
    assert model.upper(relaxation.x, relaxation.y) == pytest.approx(objective.value, rel=1e-7)
    assert relaxation.bound <= objective.value * (1 + 1e-7)


@pytest.mark.parametrize("intercept_penalty", [0.0, 0.5])
def test_lower_level_agrees_with_an_independent_solver(few, intercept_penalty):
    model = SlackBoundProblem(*few, intercept_penalty=intercept_penalty).model
    c = np.random.default_rng(0).uniform(0.2, 1.5, 30)
    y = cp.Variable(model.train.shape[1])
    objective = 0.5 * cp.sum_squares(y[:-1]) + 0.5 * intercept_penalty * y[-1] ** 2
    constraint = model.train @ y >= 1 - c
    cp.Problem(cp.Minimize(objective), [constraint]).solve(solver="CLARABEL")
    saddle = model.lower(c, tol=1e-9)
    assert saddle.value == pytest.approx(objective.value, rel=1e-6)
    assert saddle.y[:-1] == pytest.approx(y.value[:-1], abs=1e-4)
    assert saddle.duals["margin"] == pytest.approx(constraint.dual_value, abs=1e-3)
    found = model.residuals(c, saddle.y, saddle.duals)
    assert max(abs(found.gap), found.violation, found.dual_infeasibility) <= 1e-9


def test_penalised_saddle_point_agrees_with_an_independent_solver(few):
    model = SlackBoundProblem(*few).model
    c, gamma = np.full(30, 0.8), 3.0
    y = cp.Variable(model.train.shape[1])
    objective = cp.sum(cp.exp(1 - model.validation @ y)) + 0.5 * gamma * cp.sum_squares(y[:-1])
    cp.Problem(cp.Minimize(objective), [model.train @ y >= 1 - c]).solve(solver="CLARABEL")
    saddle = model.penalized(c, gamma, tol=1e-9)
    assert saddle.value == pytest.approx(objective.value + 0.5 * c @ c, rel=1e-7)


@pytest.mark.parametrize("upper", UPPERS)
def test_gradients_are_those_of_the_values(few, upper):
    model = SlackBoundProblem(*few, upper=upper, intercept_penalty=1.0).model
    rng = np.random.default_rng(1)
    c, direction, step = rng.uniform(0.5, 1.5, 30), rng.normal(size=30), 1e-5
    for solve in (
        lambda x: model.lower(x, tol=1e-10),
        lambda x: model.penalized(x, 2.0, tol=1e-12),
    ):
        slope = (solve(c + step * direction).value - solve(c - step * direction).value) / (2 * step)
        assert solve(c).grad_x @ direction == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_slater_fails_at_the_optimum_and_the_error_says_so(splits):
    split = splits["fourclass"][0]
    problem = problem_of(split)
    result = problem.solve()
    with pytest.raises(LowerInfeasibleError, match="slack bounds"):
        problem.respond(result.x - 1e-3)
    # the multipliers found there still prove the lower level solved
    assert result.certificate.lower_ok(1e-9)


@pytest.mark.parametrize("upper", UPPERS)
def test_convex_concave_step_minimises_the_majorant(few, upper):
    model = SlackBoundProblem(*few, upper=upper).model
    x, gamma = model.relaxation(tol=1e-8).x + 0.05, 2.0
    lower = model.lower(x, tol=1e-10)
    found = model.convex_concave_step(x, gamma, lower, tol=1e-9)
    y, c = cp.Variable(model.train.shape[1]), cp.Variable(30)
    # of the norm: ||c||^2 / (2 s) + s / 2 at s = ||x||, which touches it there and is above it elsewhere
    size = 1.0 if upper == "squared" else np.linalg.norm(x)
    objective = (
        cp.sum(cp.exp(1 - model.validation @ y))
        + 0.5 / size * cp.sum_squares(c)
        + 0.5 * gamma * cp.sum_squares(y[:-1])
        + gamma * (lower.duals["margin"] @ c)
    )
    cp.Problem(cp.Minimize(objective), [model.train @ y >= 1 - c]).solve(solver="CLARABEL")
    regulariser = 0.5 * found @ found if upper == "squared" else np.linalg.norm(found)
    value = model.penalized(found, gamma, tol=1e-10).value - regulariser
    value += 0.5 / size * found @ found + gamma * (lower.duals["margin"] @ found)
    assert value == pytest.approx(objective.value, rel=1e-6)


def test_small_instances_are_certified_with_the_norm_too():
    certified = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(45, 5))
        y = np.sign(X[:, 0] + 0.5 * rng.normal(size=45))
        result = SlackBoundProblem(X[:30], y[:30], X[30:], y[30:], upper="norm").solve()
        assert result.success
        assert result.certificate.lower_ok(1e-6)
        certified += result.status is blocc.Status.STATIONARY
    assert certified >= 3  # the relaxation is not attained on most of them


def test_where_the_relaxation_is_not_attained_the_answer_is_stationary(few):
    result = SlackBoundProblem(*few, intercept_penalty=1.0).solve()
    assert result.status is blocc.Status.STATIONARY
    assert result.certificate.bound_gap > 0.1  # so nothing is claimed beyond stationarity
    assert result.certificate.lower_ok(1e-6)
    start = SlackBoundProblem(*few, intercept_penalty=1.0).model
    relaxed = start.relaxation(tol=1e-8).x
    assert result.objective < start.upper(relaxed, start.lower(relaxed, tol=1e-9).y)


def test_separable_data_have_no_attained_relaxation(splits):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    X[:, 0] += np.sign(X[:, 0])
    y = np.sign(X[:, 0])
    result = SlackBoundProblem(X[:30], y[:30], X[30:], y[30:]).solve()
    assert result.status is blocc.Status.STATIONARY
    assert 0 <= result.bound <= 1e-9
    assert np.any(result.x < 0)  # a larger margin than 1 is what the leader wants here


def test_solve_error_carries_the_answer(few):
    with pytest.raises(SolveError) as caught:
        SlackBoundProblem(*few, intercept_penalty=1.0).solve(max_iterations=1)
    assert caught.value.result.certificate.lower_ok(1e-6)


def test_labels_of_any_kind_and_start_of_ones_own(splits):
    split = splits["fourclass"][0]
    words = np.where(split.y_train > 0, "yes", "no")
    words_val = np.where(split.y_val > 0, "yes", "no")
    result = SlackBoundProblem(split.X_train, words, split.X_val, words_val).solve(np.ones(500))
    assert result.objective == pytest.approx(problem_of(split).solve().objective)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.ones(500)}, "two classes"),
        ({"y_train": np.arange(500)}, "two classes"),
        ({"y_val": np.full(150, 7.0)}, "label that y_train does not have"),
        ({"y_train": np.tile([-1.0, 1.0], 200)}, "500 rows"),
        ({"X_train": np.full((500, 2), np.nan)}, "X_train has entries that are NaN"),
        ({"X_val": np.full((150, 2), np.inf)}, "X_val has entries that are NaN or infinite"),
        ({"X_val": np.zeros((150, 3))}, "2 features and X_val has 3"),
        ({"X_train": np.zeros(500)}, "must have shape"),
        ({"X_train": [["a", "b"]]}, "numeric"),
        ({"upper": "cubed"}, "upper must be"),
        ({"intercept_penalty": -1.0}, "intercept_penalty"),
        ({"intercept_penalty": np.nan}, "intercept_penalty"),
    ],
)
def test_bad_input(splits, change, message):
    split = splits["fourclass"][0]
    arguments = {
        "X_train": split.X_train,
        "y_train": split.y_train,
        "X_val": split.X_val,
        "y_val": split.y_val,
    } | change
    with pytest.raises(InvalidInputError, match=message):
        SlackBoundProblem(**arguments)


def test_bad_start(splits):
    with pytest.raises(InvalidInputError, match="500 finite entries"):
        problem_of(splits["fourclass"][0]).solve(np.ones(3))
