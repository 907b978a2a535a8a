"""Sets: projections are nearest points, linear_gap is the support function, bad bounds are refused."""

from __future__ import annotations

import math

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

import blocc
from blocc.errors import InvalidInputError

SIZE = 4
numbers = st.floats(-1e3, 1e3, allow_nan=False, allow_subnormal=False)
points = numpy_arrays(np.float64, SIZE, elements=numbers)


@st.composite
def boxes(draw):
    """Boxes with finite, one-sided and missing bounds, scalar or by entry."""
    if draw(st.booleans()):
        one, other = sorted((draw(numbers), draw(numbers)))
        return blocc.Box(
            -math.inf if draw(st.booleans()) else one, math.inf if draw(st.booleans()) else other
        )
    one, other = draw(points), draw(points)
    open_below, open_above = (draw(numpy_arrays(bool, SIZE)) for _ in range(2))
    return blocc.Box(
        np.where(open_below, -np.inf, np.minimum(one, other)),
        np.where(open_above, np.inf, np.maximum(one, other)),
    )


balls = st.builds(blocc.Ball, st.floats(1e-3, 1e3), st.one_of(numbers, points))
simplices = st.builds(blocc.Simplex, st.floats(1e-2, 1e3))
sets = st.one_of(boxes(), balls, simplices, st.just(blocc.NonNegative()), st.just(blocc.Free()))


def excess(given_set, point) -> float:
    """How far a point is outside a set, from its definition."""
    if isinstance(given_set, blocc.Box):
        return max(0.0, np.max(given_set.lower - point), np.max(point - given_set.upper))
    if isinstance(given_set, blocc.Ball):
        return max(0.0, np.linalg.norm(point - given_set.center) - given_set.radius)
    return max(0.0, -point.min(), abs(point.sum() - given_set.total))


def sample(given_set, seed: int) -> np.ndarray:
    """Points of a set, not made by its projection."""
    random = np.random.default_rng(seed)
    if isinstance(given_set, blocc.Ball):
        direction = random.normal(size=(20, SIZE))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        return given_set.center + given_set.radius * direction * random.uniform(0, 1, (20, 1))
    if isinstance(given_set, blocc.Simplex):
        vertices = given_set.total * np.eye(SIZE)
        return np.vstack([vertices, given_set.total * random.dirichlet(np.ones(SIZE), 20)])
    lower = np.maximum(np.broadcast_to(given_set.lower, SIZE), -1e4)
    upper = np.minimum(np.broadcast_to(given_set.upper, SIZE), 1e4)
    mix = random.integers(0, 2, (20, SIZE)) * random.uniform(0, 1, (20, 1))
    return lower + mix * (upper - lower)


@given(sets, points)
def test_projection_is_feasible_and_idempotent(given_set, point):
    projected = given_set.project(point)
    scale = 1.0 + np.abs(point).max() + np.abs(projected).max()
    assert projected.shape == point.shape
    assert excess(given_set, projected) <= 1e-12 * scale
    np.testing.assert_allclose(given_set.project(projected), projected, atol=1e-12 * scale)


@given(sets, points, st.integers(0, 2**31))
def test_projection_is_the_nearest_point(given_set, point, seed):
    """The variational inequality ``<point - p, z - p> <= 0`` for every z in the set characterises it."""
    projected = given_set.project(point)
    for other in sample(given_set, seed):
        scale = (1.0 + np.linalg.norm(point - projected)) * (
            1.0 + np.linalg.norm(other) + np.linalg.norm(projected)
        )
        assert (point - projected) @ (other - projected) <= 1e-12 * scale


@given(sets, points)
def test_a_point_of_the_set_is_its_own_projection(given_set, point):
    inside = sample(given_set, 0)[0]
    np.testing.assert_allclose(
        given_set.project(inside), inside, atol=1e-12 * (1 + np.abs(inside).max())
    )


@given(sets, points, points)
def test_linear_gap_is_the_support_function(given_set, point, gradient):
    """gap = max over z of <gradient, point - z>, in closed form here; the residual is the unbounded rest."""
    gap, residual = given_set.linear_gap(point, gradient)
    rest = np.zeros(SIZE)
    if isinstance(given_set, blocc.Ball):
        expected = gradient @ (point - given_set.center) + given_set.radius * np.linalg.norm(
            gradient
        )
    elif isinstance(given_set, blocc.Simplex):
        expected = max(gradient @ (point - vertex) for vertex in given_set.total * np.eye(SIZE))
    else:
        lower = np.broadcast_to(given_set.lower, SIZE)
        upper = np.broadcast_to(given_set.upper, SIZE)
        expected = 0.0
        for i in range(SIZE):
            at = lower[i] if gradient[i] > 0 else upper[i]
            if gradient[i] == 0:
                continue
            if math.isinf(at):
                rest[i] = gradient[i]
            else:
                expected += gradient[i] * (point[i] - at)
    scale = 1.0 + np.linalg.norm(gradient) * (1.0 + np.linalg.norm(point)) * 1e3
    assert gap.shape == ()
    assert float(gap) == pytest.approx(expected, abs=1e-12 * scale)
    np.testing.assert_array_equal(residual, rest)


@given(sets, points, points, st.integers(0, 2**31))
def test_linear_gap_bounds_every_point_of_the_set(given_set, point, gradient, seed):
    gap, residual = given_set.linear_gap(point, gradient)
    supported = gradient - residual
    for other in sample(given_set, seed):
        scale = 1.0 + np.linalg.norm(gradient) * (np.linalg.norm(point) + np.linalg.norm(other))
        assert supported @ (point - other) <= float(gap) + 1e-9 * scale


@settings(max_examples=15)
@given(st.one_of(balls, simplices), points)
def test_projection_agrees_with_cvxpy(given_set, point):
    z = cp.Variable(SIZE)
    if isinstance(given_set, blocc.Ball):
        constraints = [cp.norm(z - given_set.center) <= given_set.radius]
    else:
        constraints = [z >= 0, cp.sum(z) == given_set.total]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - point)), constraints)
    try:
        problem.solve(solver="CLARABEL")
    except cp.SolverError:
        return
    distance = np.linalg.norm(given_set.project(point) - point)
    assert distance <= np.linalg.norm(z.value - point) + 1e-5 * (1 + distance)


@pytest.mark.parametrize("given_set", [blocc.Simplex(2.0), blocc.Ball(0.5), blocc.Box(-1, 1)])
def test_sets_take_arrays_of_any_shape(given_set):
    """A simplex is over all entries, a ball's norm over all entries."""
    point = np.random.default_rng(0).normal(size=(2, 3)) * 4
    flat = given_set.project(point.reshape(-1))
    np.testing.assert_array_equal(given_set.project(point).reshape(-1), flat)
    gap, residual = given_set.linear_gap(point, point)
    assert gap.shape == ()
    assert residual.shape == (2, 3)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (1.0, 0.0),
        (math.nan, 1.0),
        (0.0, math.nan),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        ([0.0, 2.0], [1.0, 1.0]),
        ([0.0, math.nan], 1.0),
        (0.0, [1.0, math.nan]),
        ([0.0, 0.0], [1.0, 1.0, 1.0]),
        ("a", 1.0),
        (None, 1.0),
        (0.0, "b"),
    ],
)
def test_bad_boxes_are_refused(lower, upper):
    with pytest.raises(InvalidInputError):
        blocc.Box(lower, upper)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_bad_balls_are_refused(radius):
    with pytest.raises(InvalidInputError, match="radius must be positive"):
        blocc.Ball(radius)


@pytest.mark.parametrize("center", [math.nan, [0.0, math.inf], [math.nan, 0.0], "a"])
def test_balls_with_a_bad_center_are_refused(center):
    with pytest.raises(InvalidInputError):
        blocc.Ball(1.0, center)


@pytest.mark.parametrize("total", [0.0, -1.0, math.nan, math.inf])
def test_bad_simplices_are_refused(total):
    with pytest.raises(InvalidInputError, match="total must be positive"):
        blocc.Simplex(total)


def test_numpy_scalars_are_fine_as_bounds():
    box = blocc.Box(np.float64(-1.0), np.float32(1.0))
    assert box.project(np.array([-3.0, 3.0])).tolist() == [-1.0, 1.0]
    assert blocc.Box(np.int64(0), 2).project(np.array([5.0])).tolist() == [2.0]


def test_a_fixed_variable_is_a_box():
    box = blocc.Box([1.0, 0.0], [1.0, 2.0])
    assert box.project(np.array([9.0, 9.0])).tolist() == [1.0, 2.0]
