"""The cross-validation problem as a Model: saddle points, gradients, certificate, and the tuning itself."""

import math

import cvxpy as cp
import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.model_selection import StratifiedKFold

import blocc
from blocc.applications.svm import box_svm
from blocc.applications.svm.cross_validation import (
    GRID,
    CrossValidationModel,
    Fold,
    KernelMap,
    absolute_losses,
    hinge_losses,
    tube_losses,
    tune,
)
from blocc.applications.svm.data import load
from blocc.certificate import certify

from .test_box_svm import primal_value

LOG_C = (math.log(1e-5), math.log(1e5))


def folds_of(X, y, count=3):
    weights = np.ones(len(y))
    parts = StratifiedKFold(count, shuffle=True, random_state=0).split(X, y)
    return [
        Fold(
            hinge_losses(X[train], y[train], weights[train]),
            hinge_losses(X[test], y[test], weights[test]),
        )
        for train, test in parts
    ]


@pytest.fixture(scope="module")
def data():
    X, y = make_classification(
        120, 6, n_informative=3, n_redundant=0, random_state=1, flip_y=0.1, class_sep=0.7
    )
    return X, 2.0 * y - 1.0


@pytest.fixture(scope="module")
def model(data):
    return CrossValidationModel(folds_of(*data), LOG_C, np.full(6, 2.0))


@pytest.fixture(scope="module")
def x():
    return np.array([0.3, 0.2, 0.05, 1.0, 0.4, 0.0, 0.3])


def cvxpy_value(model, x, gamma=None):
    """f + gamma g (or g) minimised over all followers by Clarabel."""
    strength, bound = model.parameters(x)
    total, constraints = 0, []
    for fold in model.folds:
        w, b = cp.Variable(model.features), cp.Variable()
        lower = (
            0.5 * strength * cp.sum_squares(w)
            + cp.sum(cp.pos(1 - fold.train.rows @ w - fold.train.signs * b))
        ) / len(fold.train.signs)
        upper = cp.sum(cp.pos(1 - fold.validation.rows @ w - fold.validation.signs * b))
        upper = upper / len(fold.validation.signs)
        total += lower if gamma is None else upper + gamma * lower
        constraints.append(cp.abs(w) <= bound)
    problem = cp.Problem(cp.Minimize(total / len(model.folds)), constraints)
    return problem.solve(solver="CLARABEL")


def test_lower_level_agrees_with_an_independent_solver(model, x):
    saddle = model.lower(x, tol=1e-10)
    assert saddle.value == pytest.approx(cvxpy_value(model, x), rel=1e-7)
    assert saddle.gap <= 1e-10


@pytest.mark.parametrize("gamma", [1.0, 300.0])
def test_penalised_problem_agrees_with_an_independent_solver(model, x, gamma):
    saddle = model.penalized(x, gamma, tol=1e-10)
    assert saddle.value == pytest.approx(cvxpy_value(model, x, gamma), rel=1e-7)


def test_gradients_are_those_of_the_values(model, x):
    rng = np.random.default_rng(0)
    inner = x.copy()
    inner[5] = 0.1  # away from the kink of v at zero
    for solve in (
        lambda z: model.lower(z, tol=1e-12),
        lambda z: model.penalized(z, 10.0, tol=1e-12),
    ):
        gradient = solve(inner).grad_x
        for _ in range(3):
            direction, step = rng.normal(size=7), 1e-5
            rise = solve(inner + step * direction).value - solve(inner - step * direction).value
            assert gradient @ direction == pytest.approx(rise / (2 * step), rel=1e-4, abs=1e-7)


def test_residuals_certify_the_lower_level_and_expose_wrong_answers(model, x):
    saddle = model.lower(x, tol=1e-11)
    found = model.residuals(x, saddle.y, saddle.duals)
    largest = (found.gap, found.violation, found.dual_infeasibility, found.complementarity)
    assert max(largest) <= 1e-9
    assert found.objective == pytest.approx(saddle.value, rel=1e-9)
    outside = saddle.y.copy()
    outside[0] += 1.0
    assert model.residuals(x, outside, saddle.duals).violation > 0.1
    shifted = saddle.y.copy()
    shifted[6] += 0.5  # an intercept
    assert model.residuals(x, shifted, saddle.duals).gap > 1e-3
    wrong = dict(saddle.duals, loss=saddle.duals["loss"] + 0.5)
    assert model.residuals(x, saddle.y, wrong).dual_infeasibility > 1e-3


def test_upper_is_the_mean_validation_hinge(model, x, data):
    saddle = model.lower(x, tol=1e-10)
    losses = []
    for fold, (w, b) in zip(
        model.folds, ((row[:-1], row[-1]) for row in saddle.y.reshape(3, 7)), strict=True
    ):
        margins = fold.validation.rows @ w + fold.validation.signs * b
        losses.append(np.mean(np.maximum(0.0, 1.0 - margins)))
    assert model.upper(x, saddle.y) == pytest.approx(np.mean(losses))


def test_threads_give_the_same_answer(data, x):
    one = CrossValidationModel(folds_of(*data), LOG_C, np.full(6, 2.0))
    two = CrossValidationModel(folds_of(*data), LOG_C, np.full(6, 2.0), n_jobs=2)
    assert one.lower(x, tol=1e-9).value == pytest.approx(two.lower(x, tol=1e-9).value, rel=1e-9)


def test_tuning_is_never_worse_than_its_grid_and_is_certified(data):
    folds = folds_of(*data)
    tuning = tune(lambda bound: CrossValidationModel(folds, LOG_C, bound))
    assert [C for C, _ in tuning.grid] == pytest.approx(list(GRID))
    assert tuning.result.objective <= min(value for _, value in tuning.grid)
    certificate = tuning.result.certificate
    assert certificate.lower_ok(1e-6)
    assert tuning.result.status in (blocc.Status.STATIONARY, blocc.Status.FEASIBLE)
    assert (tuning.result.status is blocc.Status.STATIONARY) == (certificate.stationarity <= 1e-6)
    # the objective is the true one, at an independent solver's answer
    x = tuning.result.x
    assert cvxpy_value(CrossValidationModel(folds, LOG_C, np.full(6, 99.0)), x) == pytest.approx(
        tuning.result.lower_objective, rel=1e-6
    )


def test_feature_bounds_find_what_no_grid_over_C_can():
    X, y = make_classification(
        200, 30, n_informative=3, n_redundant=0, shuffle=False, random_state=0, class_sep=0.8
    )
    y = 2.0 * y - 1.0
    folds = folds_of(X, y)
    bounded = tune(lambda bound: CrossValidationModel(folds, LOG_C, bound))
    plain = tune(lambda bound: CrossValidationModel(folds, LOG_C, None))
    assert bounded.result.objective < 0.97 * plain.result.objective


def test_solve_reaches_a_certified_stationary_point_in_C_alone():
    X, y = load("diabetes")
    model = CrossValidationModel(folds_of(X, y, 5), LOG_C, None)
    result = blocc.solve(model, np.array([0.0]), max_iterations=60)
    assert result.status is blocc.Status.STATIONARY
    # the loss is piecewise smooth in log C; no step lowers it by more than the penalty still gives away

    def loss(z):
        return model.upper(z, model.lower(np.array([z]), tol=1e-11).y)

    here, left = loss(result.x[0]), abs(result.records[-1]["penalty"])
    assert left < 1e-6
    for step in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        assert min(loss(result.x[0] - step), loss(result.x[0] + step)) >= here - left
    assert abs(loss(0.1) - loss(0.0)) > 1e-4  # it is not flat everywhere
    assert result.objective < loss(0.0)


def test_regression_losses_are_what_they_say():
    rng = np.random.default_rng(0)
    X, y, weights = rng.normal(size=(15, 2)), rng.normal(size=15), rng.uniform(1, 2, 15)
    w, b = np.array([0.3, -0.7]), 0.2
    error = np.abs(y - X @ w - b)
    assert absolute_losses(X, y, weights).mean(w, b) == pytest.approx(
        np.average(error, weights=weights)
    )
    assert tube_losses(X, y, weights, 0.4).mean(w, b) == pytest.approx(
        np.average(np.maximum(0, error - 0.4), weights=weights)
    )


def test_kernel_map_approximates_the_kernel_and_its_width_has_the_right_slope():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    y = np.where(np.sum(X**2, axis=1) > 1.4, 1.0, -1.0)
    exact = KernelMap(X, X)
    features = exact.features(0.5)
    distances = np.sum((X[:, None] - X[None]) ** 2, axis=2)
    assert features @ features.T == pytest.approx(np.exp(-0.5 * distances), abs=1e-5)

    parts = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))

    def make_folds(Z):
        ones = np.ones(len(y))
        return [
            Fold(hinge_losses(Z[a], y[a], ones[a]), hinge_losses(Z[b], y[b], ones[b]))
            for a, b in parts
        ]

    model = CrossValidationModel(make_folds, LOG_C, None, kernel_map=KernelMap(X, X[:20]))
    x, step = np.array([0.5, math.log(0.3)]), 1e-4
    for solve in (
        lambda z: model.lower(z, tol=1e-12),
        lambda z: model.penalized(z, 5.0, tol=1e-12),
    ):
        move = np.array([0.0, step])
        rise = solve(x + move).value - solve(x - move).value
        assert solve(x).grad_x[1] == pytest.approx(rise / (2 * step), rel=1e-3, abs=1e-7)


def test_certificate_of_a_point_that_is_not_stationary_says_so(model, x):
    certified = certify(model, x, 100.0, extrapolate=False, bound=None, tol=1e-6, saddle_tol=1e-10)
    assert certified.certificate.lower_ok(1e-6)
    assert not certified.certificate.ok(1e-6)


def test_penalised_weights_keep_the_lower_problem_inside(model):
    fold = model.folds[0]
    both = fold.penalized(1.0, np.full(6, 0.5), 4.0)
    (answer,) = box_svm.solve([both], tol=1e-10)
    value = 4.0 / fold.total * primal_value(both, answer.w, answer.b)
    strength = 0.5 * 4.0 / fold.total * float(answer.w @ answer.w)
    expected = strength + 4.0 * fold.train.mean(answer.w, answer.b)
    assert value == pytest.approx(expected + fold.validation.mean(answer.w, answer.b))
