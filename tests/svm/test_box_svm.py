"""The followers' solver against an independent one, and its warm starts."""

import cvxpy as cp
import numpy as np
import pytest
from sklearn.svm import SVC

from blocc.applications.svm import box_svm
from blocc.applications.svm.box_svm import BoxSVM
from blocc.applications.svm.data import load
from blocc.errors import LowerNotSolvedError


def classification(X, y, C, bound=np.inf, weights=None):
    bound = np.broadcast_to(np.asarray(bound, dtype=float), (X.shape[1],))
    weights = np.ones(len(y)) if weights is None else weights
    return BoxSVM(y[:, None] * X, y, np.ones(len(y)), weights, 1.0 / C, bound)


def primal_value(problem, w, b):
    losses = np.maximum(problem.targets - problem.rows @ w - problem.signs * b, 0.0)
    return 0.5 * problem.strength * w @ w + problem.weights @ losses


def random_problem(seed):
    rng = np.random.default_rng(seed)
    samples, features = int(rng.integers(8, 90)), int(rng.integers(1, 9))
    X, y = rng.normal(size=(samples, features)), rng.choice([-1.0, 1.0], samples)
    y[:2] = (1.0, -1.0)
    weights = rng.uniform(0.0, 3.0, samples) * (rng.random(samples) > 0.2)
    bound = np.where(rng.random(features) < 0.3, 0.0, rng.uniform(0.0, 0.5, features))
    bound = np.where(rng.random(features) < 0.2, np.inf, bound)
    return classification(X, y, 10 ** rng.uniform(-2, 2), bound, weights)


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_an_independent_solver(seed):
    problem = random_problem(seed)
    w, b = cp.Variable(problem.rows.shape[1]), cp.Variable()
    losses = problem.weights @ cp.pos(problem.targets - problem.rows @ w - problem.signs * b)
    limited = np.isfinite(problem.bound)
    constraints = [cp.abs(w[limited]) <= problem.bound[limited]] if limited.any() else []
    objective = 0.5 * problem.strength * cp.sum_squares(w) + losses
    cp.Problem(cp.Minimize(objective), constraints).solve(solver="CLARABEL")
    (answer,) = box_svm.solve([problem], tol=1e-10)
    assert answer.gap <= 1e-10
    assert answer.value == pytest.approx(objective.value, rel=1e-6)
    assert answer.w == pytest.approx(w.value, abs=1e-5)
    assert np.all(np.abs(answer.w) <= problem.bound)


@pytest.mark.parametrize("seed", range(8))
def test_multipliers_prove_the_value(seed):
    problem = random_problem(seed)
    (answer,) = box_svm.solve([problem], tol=1e-10)
    assert np.all((answer.alpha >= 0) & (answer.alpha <= problem.weights))
    assert abs(problem.signs @ answer.alpha) <= 1e-12 * (1 + problem.weights.sum())
    # stationarity: strength w = rows' alpha - bound_dual, the latter only where the bound holds
    force = answer.alpha @ problem.rows - answer.bound_dual
    assert problem.strength * answer.w == pytest.approx(force, abs=1e-4 * (1 + np.abs(force).max()))
    assert answer.lower_value <= answer.value + 1e-12
    # the dual value bounds every primal value
    rng = np.random.default_rng(0)
    for _ in range(50):
        w = np.clip(answer.w + rng.normal(size=len(answer.w)), -problem.bound, problem.bound)
        assert primal_value(problem, w, answer.b + rng.normal()) >= answer.lower_value


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_agrees_with_libsvm(C):
    X, y = load("diabetes")
    (answer,) = box_svm.solve([classification(X, y, C)], tol=1e-10)
    libsvm = SVC(kernel="linear", C=C, tol=1e-8).fit(X, y)
    assert answer.w == pytest.approx(libsvm.coef_[0], abs=1e-5)
    assert answer.b == pytest.approx(libsvm.intercept_[0], abs=1e-5)


def test_problems_of_different_length_are_solved_together():
    X, y = load("fourclass")
    problems = [classification(X[:n], y[:n], 1.0, 0.9) for n in (100, 400, 250)]
    together = box_svm.solve(problems, tol=1e-10)
    for problem, answer in zip(problems, together, strict=True):
        (alone,) = box_svm.solve([problem], tol=1e-10)
        assert answer.value == pytest.approx(alone.value, rel=1e-9)
        assert answer.alpha.shape == problem.signs.shape


def test_warm_start_near_an_answer_is_exact_and_cheap():
    X, y = load("diabetes")
    start = box_svm.solve([classification(X, y, 1.0, 0.8)], tol=1e-10)
    near = classification(X, y, 1.0001, 0.8001)
    (warm,) = box_svm.solve([near], tol=1e-10, warm=start)
    (cold,) = box_svm.solve([near], tol=1e-10)
    assert warm.value == pytest.approx(cold.value, rel=1e-9)
    assert warm.iterations <= 5 < cold.iterations


def test_warm_start_far_from_the_answer_is_right():
    X, y = load("diabetes")
    start = box_svm.solve([classification(X, y, 1e-3)], tol=1e-10)
    far = classification(X, y, 50.0, 0.3)
    (warm,) = box_svm.solve([far], tol=1e-10, warm=start)
    (cold,) = box_svm.solve([far], tol=1e-10)
    assert warm.value == pytest.approx(cold.value, rel=1e-9)


def test_degenerate_data():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(20, 2))
    labels = np.where(np.arange(20) % 2, 1.0, -1.0)
    cases = {
        "one class": (Z, np.ones(20), 0.0),
        "opposite labels on the same rows": (np.repeat(Z[:10], 2, axis=0), labels, 20.0),
        "constant": (np.ones((20, 2)), np.where(np.arange(20) < 6, -1.0, 1.0), 12.0),
    }
    for X, y, value in cases.values():
        for C in (1e-3, 1.0, 1e3):
            (answer,) = box_svm.solve([classification(X, y, C)], tol=1e-9)
            assert answer.value == pytest.approx(value, abs=1e-7)


def test_hopeless_scaling_raises_what_line_searches_catch():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3)) * [1e9, 1.0, 1e-9] + 1e9
    with pytest.raises(LowerNotSolvedError, match="scale the features"):
        box_svm.solve([classification(X, np.sign(rng.normal(size=30)), 1e3)], tol=1e-12)
