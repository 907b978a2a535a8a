"""User equilibrium against CVXPY, against the best known flows, and by its own definition."""

from __future__ import annotations

import json

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocc.applications import transport
from blocc.applications.transport.equilibrium import LinkCosts, assign
from blocc.applications.transport.paths import _path_sums
from blocc.errors import InvalidInputError, LowerNotSolvedError

from .test_roads import SHARED, tables, tntp


def conserving(paths, trips, flows):
    """CVXPY constraints: flows by origin carry all trips."""
    incidence = np.zeros((paths.nodes, paths.links))
    incidence[paths.head, np.arange(paths.links)] += 1
    incidence[paths.tail, np.arange(paths.links)] -= 1
    wanted = np.zeros((paths.nodes, len(paths.origins)))
    np.add.at(wanted, (paths.destination, paths.origin_row), trips)
    np.add.at(wanted, (paths.origin, paths.origin_row), -trips)
    return [incidence @ flows.T == wanted]


@pytest.mark.parametrize("name", ["harker_friesz_1", "harker_friesz_2", "sioux_falls"])
def test_equilibrium_agrees_with_an_interior_point_solver_on_arc_flows(name):
    roads = transport.load_roads(name)
    paths = roads.paths
    flows = cp.Variable((len(paths.origins), paths.links), nonneg=True)
    flow = cp.sum(flows, axis=0)
    factor = roads.congestion_cost / (roads.power + 1.0)
    ratio = cp.multiply(1.0 / roads.capacity, flow)  # all powers are 4 here
    congested = cp.multiply(factor * roads.capacity, cp.power(ratio, 5))
    problem = cp.Problem(
        cp.Minimize(roads.fixed_cost @ flow + cp.sum(congested)),
        conserving(paths, paths.trips, flows),
    )
    problem.solve(solver=cp.CLARABEL)
    answer = transport.equilibrium(roads, tol=1e-10)
    assert answer.objective == pytest.approx(problem.value, rel=1e-7)
    np.testing.assert_allclose(answer.flow, flow.value, atol=2e-3 * answer.flow.max())


@pytest.mark.parametrize(
    "name",
    ["SiouxFalls", "Anaheim", "Barcelona", pytest.param("ChicagoSketch", marks=pytest.mark.slow)],
)
def test_the_best_known_equilibrium_is_reached_to_1e_8(name):
    roads = tntp(name)
    facts = json.loads((SHARED / "MANIFEST.json").read_text())["files"][name]
    answer = transport.equilibrium(roads, tol=1e-8)
    best = facts["beckmann_at_best_known_flow"]
    assert abs(answer.objective - best) <= 1e-8 * best
    assert answer.bound <= best * (1.0 + 1e-12)
    assert answer.gap <= 1e-8


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_traveller_has_a_cheaper_route_on_random_networks(seed):
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(3, 9))
    ends = [(i, (i + 1) % nodes) for i in range(nodes)]
    ends += [(a, b) for a, b in rng.integers(0, nodes, (20, 2)).tolist() if a != b]
    pairs = sorted({(a, b) for a, b in rng.integers(0, nodes, (8, 2)).tolist() if a != b})
    if not pairs:
        return
    m = len(ends)
    roads = transport.roads_from_tables(
        {
            "link_id": list(range(m)),
            "from_node": [a for a, _ in ends],
            "to_node": [b for _, b in ends],
            "capacity": rng.uniform(0.5, 5.0, m),
            "free_flow_time": rng.choice([0.0, 1.0, 2.5], m),
            "b": rng.choice([0.0, 0.15, 3.0], m),
            "power": rng.choice([0.0, 1.0, 4.0, 6.5], m),
            "length": rng.uniform(0.0, 1.0, m),
        },
        {
            "origin": [a for a, _ in pairs],
            "destination": [b for _, b in pairs],
            "trips": rng.uniform(0.0, 4.0, len(pairs)),
        },
        distance_factor=0.3,
    )
    answer = transport.equilibrium(roads, tol=1e-10)
    paths = roads.paths
    # Wardrop: every used path costs what the cheapest does; shortest paths by another algorithm
    costs = _path_sums(answer.path_start, answer.path_links, answer.cost)
    distance = np.full((nodes, nodes), np.inf)
    np.fill_diagonal(distance, 0.0)
    label = {node: i for i, node in enumerate(roads.nodes)}
    for (a, b), cost in zip(ends, answer.cost, strict=True):
        distance[label[a], label[b]] = min(distance[label[a], label[b]], cost)
    for k in range(nodes):
        distance = np.minimum(distance, distance[:, [k]] + distance[[k]])
    cheapest = distance[roads.origin, roads.destination][answer.path_pair]
    excess = answer.path_flow @ (costs - cheapest)
    assert excess <= 1e-9 * (1.0 + answer.objective)
    np.testing.assert_allclose(
        np.bincount(answer.path_pair, answer.path_flow, len(pairs)), roads.trips, rtol=1e-12
    )
    by_origin = paths.origin_flows(
        answer.path_pair, answer.path_start, answer.path_links, answer.path_flow
    )
    assert paths.imbalance(by_origin, paths.trips) <= 1e-12
    expected = (
        roads.fixed_cost
        + roads.congestion_cost * (by_origin.sum(axis=0) / roads.capacity) ** roads.power
    )
    np.testing.assert_allclose(answer.cost, expected, rtol=1e-10)


def test_the_dual_function_bounds_the_objective_at_any_link_costs():
    roads = transport.load_roads("sioux_falls")
    costs = LinkCosts.of(roads)
    answer = transport.equilibrium(roads, tol=1e-12)
    rng = np.random.default_rng(0)
    values = []
    for size in (0.0, 1e-3, 1e-1, 1.0):
        trial = answer.cost * np.exp(size * rng.standard_normal(76))
        shortest = roads.paths.distances(trial)
        values.append(float(roads.trips @ shortest - np.sum(costs.conjugate(trial))))
    assert values[0] == pytest.approx(answer.objective, rel=1e-12)
    assert all(value < answer.objective for value in values[1:])


def test_conjugates_are_maxima_over_flows():
    costs = LinkCosts(
        fixed=np.array([1.0, 0.5, 2.0]),
        factor=np.array([0.3, 2.0, 0.0]),
        capacity=np.array([2.0, 0.7, 1.0]),
        power=np.array([4.0, 1.0, 0.0]),
    )
    cost = np.array([3.0, 0.9, 2.0])
    flow = np.linspace(0.0, 10.0, 200_001)
    for link in range(3):
        one = LinkCosts(*(np.full(len(flow), part[link]) for part in vars(costs).values()))
        largest = np.max(cost[link] * flow - one.integral(flow))
        assert costs.conjugate(cost)[link] == pytest.approx(largest, abs=1e-7)
    assert np.isinf(costs.conjugate(cost + 0.1)[2])


def test_a_warm_start_reaches_the_same_equilibrium_with_fewer_sweeps():
    roads = transport.load_roads("sioux_falls")
    cold = transport.equilibrium(roads, tol=1e-12)
    near = LinkCosts.of(roads, roads.capacity * 1.01)
    warm = assign(roads.paths, near, tol=1e-12, warm=cold.warm)
    again = assign(roads.paths, near, tol=1e-12)
    assert warm.objective == pytest.approx(again.objective, rel=1e-12)
    assert warm.iterations < again.iterations


def test_trips_without_a_route_are_refused_by_name():
    roads = transport.roads_from_tables(*tables(from_node=[1, 2, 1, 1], to_node=[2, 4, 3, 2]))
    assert transport.equilibrium(roads).gap <= 1e-8
    cut = transport.roads_from_tables(
        *tables(from_node=[1, 4, 1, 3], to_node=[2, 2, 3, 4]), first_through_node=4
    )
    with pytest.raises(InvalidInputError, match="no route, 1 -> 4 first"):
        transport.equilibrium(cut)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"tol": 0.0}, "tol"),
        ({"tol": "small"}, "tol must be a number"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
        ({"max_iterations": 2.5}, "max_iterations must be a whole number"),
        ({"capacity": "wide"}, "capacity: expected numbers, got 'wide'"),
        ({"capacity": [1.0]}, "capacity"),
        ({"capacity": [0.0] * 4}, "capacity"),
    ],
)
def test_wrong_options_are_named(options, culprit):
    with pytest.raises(InvalidInputError, match=culprit):
        transport.equilibrium(transport.roads_from_tables(*tables()), **options)


@pytest.mark.parametrize("solve", [transport.equilibrium, transport.expand])
def test_only_road_networks_are_taken(solve):
    for wrong in ("sioux_falls", transport.load("three_node")):
        with pytest.raises(InvalidInputError, match="expected a RoadNetwork, got"):
            solve(wrong)


def test_a_gap_not_reached_is_an_error_and_not_an_answer():
    roads = transport.load_roads("sioux_falls")
    with pytest.raises(LowerNotSolvedError, match="relative gap"):
        assign(roads.paths, LinkCosts.of(roads), tol=1e-12, max_iterations=1)


def test_written_tables_hold_the_equilibrium(tmp_path):
    answer = transport.equilibrium(transport.load_roads("harker_friesz_1"))
    written = answer.write(tmp_path)
    table = np.genfromtxt(written["links.csv"], delimiter=",", names=True)
    np.testing.assert_array_equal(table["flow"], answer.flow)
    summary = json.loads(written["summary.json"].read_text())
    assert summary["objective"] == answer.objective
    paths = answer.paths_table()
    assert paths["flow"].sum() == pytest.approx(answer.roads.trips.sum())
    assert all(path[0] == 1 or path[0] == 6 for path in paths["path"])
