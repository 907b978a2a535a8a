"""Lower levels that are smooth and not quadratic: exact answers, and no claim where a kink hides descent."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import blocc
from blocc.cvx import BilevelProblem
from blocc.methods.kinks import differences, edge_directions, kink_direction
from tests.robust.oracle import claim, refute
from tests.robust.programs import program as random_program


def shop(taste, cost, start=None) -> tuple[BilevelProblem, float]:
    """A shop sets prices and stocks, a customer with logarithmic utility buys; and the best profit in closed form.

    The customer buys ``min(s, 2 taste / p - 1)``, so the best price sells out, ``p = 2 taste / (1 + s)``: an optimum on
    the kink, and one product at a time.
    """
    taste, cost = np.asarray(taste, float), np.asarray(cost, float)
    p = cp.Variable(len(taste), bounds=[0.5, 20], name="price")
    s = cp.Variable(len(taste), bounds=[0, 8], name="stock")
    q = cp.Variable(len(taste), nonneg=True, name="bought")
    if start is not None:
        p.value, s.value = (np.full(len(taste), value) for value in start)
    sales = cp.sum(cp.multiply(p, q))
    problem = BilevelProblem(
        cp.Maximize(sales - cost @ s - 0.1 * cp.sum_squares(s)),
        blocc.LowerProblem(
            cp.Maximize(taste @ cp.log(1 + q) - 0.5 * sales), {"stock": q <= s}, given=[p, s]
        ),
    )
    best = sum(
        -minimize_scalar(
            lambda z, a=a, c=c: -(2 * a * z / (1 + z) - c * z - 0.1 * z**2),
            bounds=(0, 8),
            method="bounded",
            options={"xatol": 1e-12},
        ).fun
        for a, c in zip(taste, cost, strict=True)
    )
    return problem, best


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 20), st.floats(0, 8)), min_size=2, max_size=12))
def test_answers_and_duals_are_exact_wherever_x_goes_from_an_earlier_answer(points):
    taste = np.array([4.0, 7.0])
    problem, _ = shop(taste, [0.5, 0.5])
    for price, stock in points:
        saddle = problem.lower(np.array([price, 1.3 * price, stock, 0.5 * stock]))
        prices, stocks = price * np.array([1.0, 1.3]), stock * np.array([1.0, 0.5])
        exact = np.clip(2 * taste / prices - 1, 0, stocks)
        np.testing.assert_allclose(saddle.y, exact, rtol=1e-8, atol=1e-8)
        binding = np.maximum(taste / (1 + stocks) - 0.5 * prices, 0) * (exact >= stocks)
        clear = stocks > 1e-6  # else the bound below may carry the multiplier as well
        np.testing.assert_allclose(
            saddle.duals["stock"][clear], binding[clear], rtol=1e-6, atol=1e-6
        )


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 20), st.floats(0, 8), st.floats(1, 9))
def test_a_logarithmic_lower_level_is_solved_to_rounding(price, stock, taste):
    problem, _ = shop([taste], [0.5])
    saddle = problem.lower(np.array([price, stock]))
    exact = float(np.clip(2 * taste / price - 1, 0, stock))
    assert saddle.y[0] == pytest.approx(exact, rel=1e-9, abs=1e-9)
    value = -(taste * np.log1p(exact) - 0.5 * price * exact)
    assert saddle.value == pytest.approx(value, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("x", [[3.0, 0.5], [3.0, 6.0]], ids=["stock binds", "stock is left"])
def test_the_sensitivity_of_a_smooth_lower_level_agrees_with_differences(x):
    problem, _ = shop([4.0], [0.6])
    x, step = np.array(x), 1e-5
    problem.lower(x)
    found = problem.sensitivity(x)
    pairs = [(problem.lower(x + step * e), problem.lower(x - step * e)) for e in np.eye(2)]
    answers, slopes = (
        np.array([getattr(a, name) - getattr(b, name) for a, b in pairs]) / (2 * step)
        for name in ("y", "grad_x")
    )
    np.testing.assert_allclose(found.hessian, slopes, atol=1e-7)
    np.testing.assert_allclose(found.answer, answers.T, atol=1e-7)


@pytest.mark.parametrize("starts", [1, "range"])
def test_an_optimum_on_a_kink_is_reached(starts):
    problem, best = shop([4.0], [0.6])
    result = problem.solve(starts=starts)
    assert result.success
    assert result.objective == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(("taste", "cost"), [([4, 3], [0.6, 0.4]), ([2.5, 3.5], [0.2, 0.7])])
def test_no_claim_of_stationarity_on_the_way_along_a_kink(taste, cost):
    problem, best = shop(taste, cost, start=(3.0, 1.0))
    result = problem.solve(on_failure="return")
    assert result.objective <= best * (1 + 1e-9)
    if result.status.name == "STATIONARY":
        # the only stationary points sell all of a product or none of it
        single = [shop([t], [c])[1] for t, c in zip(taste, cost, strict=True)]
        values = [0.0, single[0], single[1], sum(single)]
        assert min(abs(result.objective - value) for value in values) <= 2e-5 * best


def by_differences(value):
    return lambda x, step: differences(value, x, step, np.full(len(x), 9.0))


def test_the_direction_of_a_kink_is_found_from_values_alone():
    def value(x):
        return abs(x[1] - x[0] ** 2) + 0.1 * x[0]

    point = np.array([0.5, 0.25])
    box = (np.full(2, -9.0), np.full(2, 9.0))
    along = kink_direction(by_differences(value), point, 1e-4, box)
    tangent = -np.array([1.0, 1.0])  # of the parabola there, downhill
    np.testing.assert_allclose(along, tangent, atol=1e-2)


def test_without_a_kink_there_is_no_direction():
    box = (np.full(2, -9.0), np.full(2, 9.0))
    slope = by_differences(lambda x: float(x @ x + x[0]))
    assert kink_direction(slope, np.array([0.3, 0.2]), 1e-4, box) is None


def test_steep_curvature_is_no_kink():
    box = (np.full(2, -9.0), np.full(2, 9.0))
    calls = []

    def slope(x, step):
        calls.append(x)
        return np.array([[300.0, 40.0], [40.0, 90.0]]) @ x + np.sin(x)

    assert kink_direction(slope, np.array([0.3, 0.2]), 1e-3, box) is None
    assert len(calls) == 8


def test_a_constraint_that_is_active_blocks_the_direction():
    def value(x):
        return abs(x[1]) - x[0]

    box = (np.full(2, -9.0), np.full(2, 9.0))
    point, wall = np.array([1.0, 0.0]), np.array([1.0, 0.0])
    free = kink_direction(by_differences(value), point, 1e-4, box)
    np.testing.assert_allclose(free, [1.0, 0.0], atol=1e-6)
    blocked = kink_direction(by_differences(value), point, 1e-4, box, [wall])
    assert blocked is None or blocked[0] <= 1e-6


def test_the_steepest_way_that_stays_on_this_side_of_a_jump_is_found():
    def value(
        x,
    ):  # falls fastest along (1, -1/2), where it jumps; along the jump's edge it still falls
        return -x[0] + 0.5 * x[1] + (100.0 if x[0] - 0.1 * x[1] > 0 else 0.0)

    box, point = (np.full(2, -9.0), np.full(2, 9.0)), np.zeros(2)
    ways = [*np.eye(2), *-np.eye(2)]
    found = edge_directions(value, point, 1e-3, box, ways)
    edge = -np.array([0.1, 1.0])
    assert min(np.abs(way - edge).max() for way in found) <= 1e-3
    assert all(value(1e-3 * way) <= 1.0 for way in found)


def test_at_a_minimum_no_way_beside_a_jump_is_looked_for():
    def value(
        x,
    ):  # curved along the first axis, with its minimum there but for rounding; free along the second
        return (x[0] - 1e-8) ** 2 - 1e-9 * x[1]

    box, asked = (np.full(2, -9.0), np.full(2, 9.0)), []
    ways = [*np.eye(2), *-np.eye(2)]
    counted = lambda x: asked.append(x) or value(x)  # noqa: E731
    slope = np.array([-2e-8, -1e-9])
    assert edge_directions(counted, np.zeros(2), 1e-3, box, ways, slope) == []
    assert len(asked) == 1


def test_without_a_jump_the_steepest_way_itself_is_returned():
    box = (np.full(2, -9.0), np.full(2, 9.0))
    (way,) = edge_directions(lambda x: float(x @ [2.0, -1.0]), np.zeros(2), 1e-3, box, [])
    np.testing.assert_allclose(way, [-1.0, 0.5], atol=1e-9)


def test_descent_along_the_edge_of_a_jump_is_not_called_stationary():
    """Seed 2973 of the random programs: a linear lower level whose answer jumps across a line through the point."""
    program = random_program(2973)
    result = program.bilevel_problem().solve(on_failure="return")
    assert refute(program, claim(result)) is None
