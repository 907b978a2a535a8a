"""The study's peers do what their papers say: projections and gradients against independent computations."""

import cvxpy as cp
import numpy as np
import pytest

from benchmarks.baselines import bic_gaffa, blocc_published, gam, lv_hba, sflcb
from benchmarks.baselines.common import Problem
from benchmarks.svm_study import markdown


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    labels = rng.choice([-1.0, 1.0], 40)
    Z = np.column_stack([rng.normal(size=(40, 3)) + 0.5 * labels[:, None], np.ones(40)])
    rows = labels[:, None] * Z
    return Problem(rows[:25], rows[25:], "squared", 0.01)


def test_lv_hba_projects_on_the_coupled_set(problem):
    rng = np.random.default_rng(1)
    c, y, slack = rng.normal(size=25), rng.normal(size=4), rng.normal(size=25)
    bound, point, xi = lv_hba.project(problem.train, c, y, slack)
    C, Y, X = cp.Variable(25), cp.Variable(4), cp.Variable(25)
    distance = cp.sum_squares(C - c) + cp.sum_squares(Y - y) + cp.sum_squares(X - slack)
    feasible = [problem.train @ Y >= 1 - X, X <= C]
    cp.Problem(cp.Minimize(distance), feasible).solve(solver="CLARABEL")
    assert point == pytest.approx(Y.value, abs=1e-5)
    assert bound == pytest.approx(C.value, abs=1e-5)
    assert xi == pytest.approx(X.value, abs=1e-5)


def test_lv_hba_gradient_of_the_normalised_loss(problem):
    y, step = np.array([0.5, -0.3, 0.8, 0.2]), 1e-6

    def loss(point):
        return np.sum(np.exp(1 - problem.validation @ point / np.linalg.norm(point[:-1])))

    gradient = lv_hba._normalised_gradient(problem.validation, y)
    for j, unit in enumerate(np.eye(4)):
        slope = (loss(y + step * unit) - loss(y - step * unit)) / (2 * step)
        assert gradient[j] == pytest.approx(slope, rel=1e-5)


def test_gam_solves_its_lower_level_and_descends(problem):
    weights = np.random.default_rng(2).uniform(0.1, 1.0, 25)
    y, slack, _ = gam.lower(problem.train, weights, problem.curvature, np.zeros(4))
    Y, X = cp.Variable(4), cp.Variable(25)
    objective = 0.5 * cp.sum(cp.multiply(problem.curvature, Y**2)) + 0.5 * cp.sum(
        cp.multiply(weights, X**2)
    )
    cp.Problem(cp.Minimize(objective), [problem.train @ Y >= 1 - X]).solve(solver="CLARABEL")
    assert y == pytest.approx(Y.value, abs=1e-4)
    assert slack == pytest.approx(np.maximum(0, 1 - problem.train @ y), abs=1e-12)
    start = gam.lower(problem.train, np.full(25, np.exp(-6.5)), problem.curvature, np.zeros(4))[0]
    end = gam.run(problem, 0).y

    def loss(point):
        return np.sum(np.exp(1 - problem.validation @ point))

    assert loss(end) < loss(start)


def test_sflcb_lowers_the_upper_objective_and_stays_near_the_lower_level(problem, monkeypatch):
    monkeypatch.setattr(sflcb, "STEPS", 3000)
    outcome = sflcb.run(problem, 0)
    monkeypatch.setattr(sflcb, "STEPS", 0)
    start = sflcb.run(problem, 0)
    assert problem.upper_value(outcome.c, outcome.y) < problem.upper_value(start.c, start.y)
    assert np.max(1 - outcome.c - problem.train @ outcome.y) < 0.5


def test_bic_gaffa_descends_along_the_gradient_of_its_gap(problem):
    rng = np.random.default_rng(3)
    c, y, z = rng.uniform(0.0, 1.0, 25), rng.normal(size=4), rng.uniform(0.0, 1.0, 25)
    train, curvature, gamma = problem.train, problem.curvature, bic_gaffa.GAMMA

    def closest(y, z):  # theta, by its optimality condition
        return (train.T @ z + y / gamma) / (curvature + 1.0 / gamma)

    def gap(c, y, z):
        theta = closest(y, z)
        margin, other = 1.0 - c - train @ y, 1.0 - c - train @ theta
        multiplier = np.maximum(z + gamma * margin, 0.0)
        value = 0.5 * curvature @ y**2 + multiplier @ margin - 0.5 * curvature @ theta**2
        value -= np.sum((multiplier - z) ** 2) / (2 * gamma) + z @ other
        return value - np.sum((theta - y) ** 2) / (2 * gamma)

    gradients = bic_gaffa.gap_gradient(problem, c, y, z, closest(y, z))
    for index, gradient in enumerate(gradients):
        direction, step = rng.normal(size=len(gradient)), 1e-6
        ends = []
        for sign in (1.0, -1.0):
            point = [c, y, z]
            point[index] = point[index] + sign * step * direction
            ends.append(gap(*point))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert gradient @ direction == pytest.approx(slope, rel=1e-5)
    # no gap at a saddle point of the lower level, and a positive one elsewhere
    Y = cp.Variable(4)
    margins = problem.train @ Y >= 1 - (c + 5.0)
    cp.Problem(cp.Minimize(0.5 * cp.sum(cp.multiply(curvature, Y**2))), [margins]).solve(
        solver="CLARABEL"
    )
    assert gap(c + 5.0, Y.value, margins.dual_value) == pytest.approx(0.0, abs=1e-6)
    assert gap(c, y, z) > 1e-3


def test_published_blocc_runs_with_the_authors_settings(problem):
    assert (blocc_published.GAMMA, blocc_published.ETA, blocc_published.OUTER) == (12.0, 0.01, 80)
    outcome = blocc_published.run(problem, 0)
    assert outcome.c.shape == (25,)
    assert np.all(np.isfinite(outcome.y))


def test_markdown():
    import pandas as pd

    table = pd.DataFrame({"a": ["x"], "b": [0.123456]})
    assert markdown(table).splitlines() == ["| a | b |", "|---|---|", "| x | 0.1235 |"]
