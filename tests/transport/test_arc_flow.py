"""The arc-flow model: gradients by differences, values by definition, answers by the reference."""

from __future__ import annotations

import dataclasses

import array_api_strict as strict
import numpy as np
import pytest
from scipy.special import expit

import blocc
from blocc.applications.transport import arc_flow, reference
from blocc.applications.transport import network as networks
from blocc.errors import InvalidInputError


@pytest.fixture(params=networks.INSTANCES)
def network(request):
    return networks.load(request.param)


def some_point(problem, seed=0):
    """Inside the box, off its edges, where the entropies are smooth."""
    generator = np.random.default_rng(seed)
    x = problem.x0 + generator.uniform(0.1, 1, problem.x0.shape)
    y = problem.y_set.project(generator.uniform(0.05, 0.95, problem.y0.shape))
    return x, y


@pytest.mark.parametrize("name", ["f", "g"])
def test_objective_gradients(network, name):
    problem = arc_flow.functions(network)
    x, y = some_point(problem)
    function = getattr(problem, name)
    gradients = function.gradient(x, y, problem.data)
    generator = np.random.default_rng(1)
    for which, point in enumerate((x, y)):
        direction = generator.standard_normal(point.shape)
        step = 1e-5
        ends = []
        for sign in (1, -1):
            moved = point + sign * step * direction
            arguments = (moved, y) if which == 0 else (x, moved)
            ends.append(float(function.value(*arguments, problem.data)))
        difference = (ends[0] - ends[1]) / (2 * step)
        slope = float((gradients[which] * direction).sum())
        assert slope == pytest.approx(difference, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("name", ["c", "h"])
def test_constraint_pullbacks_are_adjoint(network, name):
    """Both constraints are affine: <weights, change> is exactly <pullback, direction>."""
    problem = arc_flow.functions(network)
    x, y = some_point(problem)
    function = getattr(problem, name)
    value = function.value(x, y, problem.data)
    generator = np.random.default_rng(2)
    weights = generator.standard_normal(value.shape)
    dx, dy = generator.standard_normal(x.shape), generator.standard_normal(y.shape)
    change = function.value(x + dx, y + dy, problem.data) - value
    pull_x, pull_y = function.gradient(x, y, weights, problem.data)
    assert (weights * change).sum() == pytest.approx((pull_x * dx).sum() + (pull_y * dy).sum())


def test_shapes(network):
    problem = arc_flow.functions(network)
    m, n = len(network.link_id), len(network.nodes)
    origins = len(np.unique(network.origin))
    assert problem.x0.shape == (m,)
    assert problem.y0.shape == (origins, m + n)
    assert problem.c.value(problem.x0, problem.y0, problem.data).shape == (m,)
    assert problem.h.value(problem.x0, problem.y0, problem.data).shape == (origins, n)


def test_start_is_feasible_and_answers_unlimited_capacity(network):
    problem = arc_flow.functions(network)
    flow, share = problem.split(problem.y0)
    free = reference.solve_lower(network, 1e6)
    np.testing.assert_allclose(share, free.share, atol=1e-9)
    assert np.abs(problem.c.value(problem.x0, problem.y0, problem.data)).max() < 1e-10
    assert np.abs(problem.h.value(problem.x0, problem.y0, problem.data)).max() < 1e-10
    np.testing.assert_array_equal(problem.y_set.project(problem.y0), problem.y0)
    np.testing.assert_allclose(flow, problem.x0)
    # and the values are those of the definitions, by the reference's own code
    g = float(problem.g.value(problem.x0, problem.y0, problem.data))
    assert g == pytest.approx(free.objective, abs=arc_flow.FLOOR / 2 * network.trips.sum())
    assert g == pytest.approx(reference.lower_objective(network, flow, share), rel=1e-6)
    f = float(problem.f.value(problem.x0, problem.y0, problem.data))
    assert f == pytest.approx(-reference.profit(network, problem.x0), rel=1e-9)


def test_conservation_by_hand():
    """three_node, origin 1: links 1-2, 1-3, 2-1, 2-3, 3-1, 3-2 (one trip a pair)."""
    problem = arc_flow.functions(networks.load("three_node"))
    y = np.zeros_like(problem.y0)
    y[0] = [0.7, 0.2, 0, 0.3, 0, 0.1, 0, 0.4, 0.5]
    h = problem.h.value(problem.x0, y, problem.data)
    # node 2: in .7 + .1, out .3, served .4; node 3: in .2 + .3, out .1, served .5
    np.testing.assert_allclose(h, [[0, 0.1, -0.1], [0, 0, 0], [0, 0, 0]], atol=1e-15)


@pytest.mark.parametrize("floor", [1e-6, 1e-3, 1e-2])
def test_cost_of_the_floor(floor):
    """Between 0 and floor / 2 a trip, nothing above the floor, and finite slopes at both ends."""
    network = networks.load("three_node")
    problem = arc_flow.functions(network, floor=floor)
    for level in (0.0, floor / 3, 0.9 * floor, floor, 0.3, 1 - floor, 1 - floor / 2, 1.0):
        y = np.zeros_like(problem.y0)
        y[:, 6:] = level * (problem.data["trips"] > 0)
        flow, share = problem.split(y)
        exact = reference.lower_objective(network, flow, share)
        value = float(problem.g.value(problem.x0, y, problem.data))
        cost = (exact - value) / network.trips.sum()
        assert -1e-12 <= cost <= floor / 2 + 1e-12
        if floor <= level <= 1 - floor:
            assert cost == pytest.approx(0, abs=1e-12)
        assert np.isfinite(problem.g.gradient(problem.x0, y, problem.data)[1]).all()


def test_lower_level_agrees_with_the_reference_by_maxmin():
    for name in ("three_node", "nine_node"):
        network = networks.load(name)
        problem = arc_flow.functions(network)
        capacity = 0.7 * problem.x0 + 0.1  # open, so that every price is defined
        answer = blocc.FunctionalModel(**problem.arguments()).lower(capacity, tol=1e-7)
        exact = reference.solve_lower(network, capacity)
        flow, share = problem.split(answer.y)
        assert answer.value == pytest.approx(exact.objective, abs=1e-8)
        np.testing.assert_allclose(share, exact.share, atol=1e-5)
        assert (flow <= capacity + 1e-5).all()
        np.testing.assert_allclose(answer.duals["c"], exact.price, atol=1e-4)


def test_penalized_agrees_with_the_reference_by_maxmin():
    network = networks.load("three_node")
    problem = arc_flow.functions(network)
    capacity = 0.7 * problem.x0 + 0.1  # open, so that every price is defined
    answer = blocc.FunctionalModel(**problem.arguments()).penalized(capacity, 3.0, tol=1e-7)
    exact = reference.solve_penalized(network, capacity, 3.0)
    assert answer.value == pytest.approx(exact.objective, abs=1e-8)
    np.testing.assert_allclose(problem.split(answer.y)[1], exact.share, atol=1e-5)
    np.testing.assert_allclose(answer.duals["c"], exact.price, atol=1e-3)


def test_pairs_without_trips_or_route_are_fixed_to_zero():
    links = {
        "link_id": [1, 2],
        "from_node": ["a", "b"],
        "to_node": ["b", "a"],
        "travel_time": [1, 1],
        "capacity_cost": [1, 1],
    }
    demand = {
        "origin": ["a", "a", "b"],
        "destination": ["b", "c", "a"],
        "trips": [2, 3, 0],
        "alternative_time": [3, 3, 3],
        "revenue": [2, 2, 2],
    }
    nodes = {"node": ["a", "b", "c"], "x": [0, 1, 2], "y": [0, 0, 0]}
    network = networks.from_tables(links, demand, nodes)
    problem = arc_flow.functions(network)
    flow, share = problem.split(problem.y_set.project(problem.y0 + 5))
    np.testing.assert_allclose(share, [1, 0, 0])
    assert flow[1] == 0  # only back to the origin, or from one without trips
    np.testing.assert_allclose(problem.split(problem.y0)[1], [expit(2), 0, 0])
    # the pair that cannot be served keeps its constant: g is the lower level's own value
    g = float(problem.g.value(problem.x0, problem.y0, problem.data))
    assert g == pytest.approx(reference.solve_lower(network, 1e3).objective, rel=1e-9)


def test_no_demand_to_serve():
    network = networks.load("three_node")
    empty = dataclasses.replace(network, trips=np.zeros(6))
    with pytest.raises(InvalidInputError, match="nothing to design"):
        arc_flow.functions(empty)


@pytest.mark.parametrize("floor", [0.0, -1.0, 0.5, np.nan])
def test_bad_floor(floor):
    with pytest.raises(InvalidInputError, match="floor"):
        arc_flow.functions(networks.load("three_node"), floor=floor)


def test_runs_on_another_array_library_and_device():
    """array-api-strict on device1, where a silent conversion to NumPy fails."""
    network = networks.load("nine_node")
    on_host = arc_flow.functions(network)
    device = strict.Device("device1")
    like = strict.zeros((1,), dtype=strict.float64, device=device)
    problem = arc_flow.functions(network, like=like)
    assert all(array.device == device for array in problem.data.values())
    host_x, host_y = some_point(on_host)
    x, y = (strict.asarray(a, device=device) for a in (host_x, host_y))

    def same(actual, expected):
        assert actual.device == device
        host = strict.from_dlpack(actual.to_device(strict.Device("CPU_DEVICE")))
        np.testing.assert_allclose(np.from_dlpack(host), expected, rtol=1e-12, atol=1e-12)

    for name in ("f", "g"):
        there, here = getattr(problem, name), getattr(on_host, name)
        same(there.value(x, y, problem.data), here.value(host_x, host_y, on_host.data))
        pairs = zip(
            there.gradient(x, y, problem.data),
            here.gradient(host_x, host_y, on_host.data),
            strict=True,
        )
        for actual, expected in pairs:
            same(actual, expected)
    for name in ("c", "h"):
        there, here = getattr(problem, name), getattr(on_host, name)
        value, host_value = (
            there.value(x, y, problem.data),
            here.value(host_x, host_y, on_host.data),
        )
        same(value, host_value)
        pairs = zip(
            there.gradient(x, y, value, problem.data),
            here.gradient(host_x, host_y, host_value, on_host.data),
            strict=True,
        )
        for actual, expected in pairs:
            same(actual, expected)
    same(problem.y_set.project(y * 2), on_host.y_set.project(host_y * 2))
