"""The CVXPY reference against closed forms, other formulations and published figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
from scipy.special import expit

from blocc.applications.transport import network as networks
from blocc.applications.transport import reference
from blocc.errors import InvalidInputError

FIGURES = Path("/work/shared/reference/transit.json")


@pytest.fixture(scope="module", params=networks.INSTANCES)
def network(request):
    return networks.load(request.param)


def random_capacity(network, seed):
    """Half the links closed, the others between nothing and plenty."""
    generator = np.random.default_rng(seed)
    size = len(network.link_id)
    return generator.uniform(0, 40, size) * (generator.random(size) < 0.5)


def by_pair(network, capacity, gamma=None):
    """The definition of design section 5 word for word: flows for every OD pair, no shortcut."""
    m, p, n = len(network.link_id), len(network.trips), len(network.nodes)
    flow, share = cp.Variable((p, m), nonneg=True), cp.Variable(p)
    incidence = np.zeros((m, n))
    incidence[np.arange(m), network.head] += 1
    incidence[np.arange(m), network.tail] -= 1
    sink = np.zeros((p, n))
    sink[np.arange(p), network.destination] += network.trips
    sink[np.arange(p), network.origin] -= network.trips
    total = cp.sum(flow, axis=0)
    limit = total <= capacity
    terms = -cp.entr(share) - share - cp.entr(1 - share) - (1 - share)
    terms += cp.multiply(network.alternative_time, 1 - share)
    objective = network.travel_time @ total + network.trips @ terms
    if gamma is not None:
        revenue = (network.revenue * network.trips) @ share
        objective = network.capacity_cost @ capacity - revenue + gamma * objective
    balance = flow @ incidence == cp.multiply(sink, cp.reshape(share, (p, 1), order="C"))
    problem = cp.Problem(cp.Minimize(objective), [limit, balance])
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return problem.value, share.value, limit.dual_value


def test_three_node_optimum_in_closed_form():
    network = networks.load("three_node")
    design = [expit(2), 0, expit(2), 0, 0, 0]
    assert reference.profit(network, design) == pytest.approx(2 * expit(2), abs=1e-12)


@pytest.mark.parametrize("gamma", [None, 0.7, 5.0])
@pytest.mark.parametrize("name", ["three_node", "nine_node"])
def test_agrees_with_the_definition_by_pair(name, gamma):
    network = networks.load(name)
    capacity = np.random.default_rng(3).uniform(0.2, 4, len(network.link_id))
    value, share, price = by_pair(network, capacity, gamma)
    if gamma is None:
        answer = reference.solve_lower(network, capacity)
    else:
        answer = reference.solve_penalized(network, capacity, gamma)
    assert answer.objective == pytest.approx(value, rel=1e-7, abs=1e-7)
    np.testing.assert_allclose(answer.share, share, atol=2e-4)
    np.testing.assert_allclose(answer.price, price, atol=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_answer_satisfies_the_optimality_conditions(network, seed):
    capacity = random_capacity(network, seed)
    answer = reference.solve_lower(network, capacity)
    opened = capacity > 0
    assert abs(answer.gap) < 1e-10
    assert answer.violation < 1e-12
    assert (answer.flow >= 0).all()
    assert np.isnan(answer.price[~opened]).all()
    assert (answer.price[opened] >= 0).all()
    slack = (capacity - answer.flow)[opened]
    assert np.abs(slack * answer.price[opened]).max() < 1e-9
    # shares follow the logit of the cheapest path; unreachable pairs are not served
    np.testing.assert_allclose(
        answer.share, expit(network.alternative_time - answer.path_cost), atol=1e-10
    )
    assert answer.objective == pytest.approx(
        reference.lower_objective(network, answer.flow, answer.share), rel=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_trimming_capacity_to_flow_changes_nothing(network, seed):
    """Design section 5, and the degenerate case in which bare interior points lose six digits."""
    answer = reference.solve_lower(network, random_capacity(network, seed))
    trimmed = reference.solve_lower(network, answer.flow)
    np.testing.assert_allclose(trimmed.share, answer.share, atol=1e-9)


def test_price_is_the_derivative_of_the_value():
    network = networks.load("nine_node")
    capacity = np.random.default_rng(1).uniform(1, 3, len(network.link_id))
    answer = reference.solve_lower(network, capacity)
    link, step = int(np.argmax(answer.price)), 1e-4
    up, down = capacity.copy(), capacity.copy()
    up[link] += step
    down[link] -= step
    slope = reference.solve_lower(network, up).objective
    slope -= reference.solve_lower(network, down).objective
    assert -slope / (2 * step) == pytest.approx(answer.price[link], rel=1e-6)


def test_penalized_tends_to_the_lower_level():
    network = networks.load("nine_node")
    capacity = np.random.default_rng(2).uniform(1, 3, len(network.link_id))
    exact = reference.solve_lower(network, capacity).share
    distances = [
        np.abs(reference.solve_penalized(network, capacity, gamma).share - exact).max()
        for gamma in (10.0, 100.0, 1000.0)
    ]
    # ||y_F - y_g|| = O(1 / gamma): ten times the gamma, about a tenth of the distance
    for near, far in zip(distances[1:], distances[:-1], strict=True):
        assert 5 < far / near < 20


def test_nothing_built_serves_nobody(network):
    evaluation = reference.evaluate(network, 0.0)
    assert evaluation.profit == 0
    assert not evaluation.response.share.any()
    everyone_stays = network.trips @ (network.alternative_time - 1)
    assert evaluation.response.objective == pytest.approx(everyone_stays, rel=1e-12)


@pytest.mark.parametrize("capacity", [1e-4, 1e-2, 1e6])
def test_extreme_capacities(network, capacity):
    answer = reference.solve_lower(network, capacity)
    assert abs(answer.gap) < 1e-8
    assert answer.violation < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_capacities_over_five_orders_of_magnitude(seed):
    """What an unfinished design looks like: main lines, dust, and everything between."""
    network = networks.load("seville" if seed % 2 else "nine_node")
    generator = np.random.default_rng(seed)
    size = len(network.link_id)
    capacity = 10 ** generator.uniform(-4, 2, size) * (generator.random(size) < 0.7)
    answer = reference.solve_lower(network, capacity)
    assert abs(answer.gap) < 1e-7
    shares = expit(network.alternative_time - answer.path_cost)
    np.testing.assert_allclose(answer.share, shares, atol=1e-6)


def test_relaxation_bounds():
    """LP values against one shortest path a pair, which solves the relaxation by hand."""
    for name in networks.INSTANCES:
        network = networks.load(name)
        build = _shortest(network, network.capacity_cost)
        travel = _shortest(network, network.travel_time)
        margin = network.trips * np.maximum(0, network.revenue - build)
        loose = reference.solve_relaxation(network)
        tight = reference.solve_relaxation(network, cap_shares=True)
        assert -loose.objective == pytest.approx(margin.sum(), rel=1e-8)
        capped = margin * expit(network.alternative_time - travel)
        assert -tight.objective == pytest.approx(capped.sum(), rel=1e-8)
        assert loose.objective <= tight.objective
        # the relaxation's capacities are a design like any other, so they cannot beat the bound
        assert reference.profit(network, tight.capacity) <= -tight.objective


def _shortest(network, cost):
    """Floyd and Warshall, for the pairs."""
    n = len(network.nodes)
    distance = np.full((n, n), np.inf)
    np.fill_diagonal(distance, 0)
    distance[network.tail, network.head] = cost
    for via in range(n):
        distance = np.minimum(distance, distance[:, [via]] + distance[[via], :])
    return distance[network.origin, network.destination]


@pytest.mark.skipif(not FIGURES.exists(), reason="the project's reference figures are not here")
def test_published_figures():
    figures = json.loads(FIGURES.read_text())
    for name in networks.INSTANCES:
        network = networks.load(name)
        loose = -reference.solve_relaxation(network).objective
        tight = -reference.solve_relaxation(network, cap_shares=True).objective
        assert loose == pytest.approx(figures[name]["relaxation_bound"], rel=1e-3)
        assert tight == pytest.approx(figures[name]["tighter_bound"], rel=1e-3)
    seville = networks.load("seville")
    answer = reference.solve_lower(seville, 20)
    expected = figures["lower_level_seville_a20"]
    assert answer.objective == pytest.approx(expected["optimum"], abs=1e-6)
    assert np.count_nonzero(answer.price > 1e-9) == expected["binding_links"]
    free = reference.solve_lower(seville, 1e4).flow
    assert reference.profit(seville, free) == pytest.approx(
        figures["seville"]["uncapacitated"], abs=0.1
    )


def test_pairs_without_route_or_trips():
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
    network = networks.from_tables(
        links, demand, {"node": ["a", "b", "c"], "x": range(3), "y": [0] * 3}
    )
    answer = reference.solve_lower(network, 5)
    np.testing.assert_allclose(answer.share, [expit(2), 0, expit(2)], atol=1e-10)
    np.testing.assert_allclose(answer.flow, [2 * expit(2), 0], atol=1e-9)
    assert answer.path_cost[1] == np.inf


def write_design(path, rows, header=("link_id", "capacity")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_evaluate_design_reads_links_by_id(tmp_path):
    network = networks.load("three_node")
    capacity = dict(zip(network.link_id, [expit(2), 0, expit(2), 0, 0, 0], strict=True))
    rows = sorted(capacity.items(), reverse=True)
    evaluation = reference.evaluate_design(network, write_design(tmp_path / "design.csv", rows))
    assert evaluation.profit == pytest.approx(2 * expit(2), abs=1e-12)
    assert evaluation.revenue - evaluation.cost == pytest.approx(evaluation.profit)
    assert evaluation.served == pytest.approx(2 * expit(2))


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([(1, 1)], ("link_id", "capacity"), "is missing"),
        ([(i, 1) for i in range(1, 8)], ("link_id", "capacity"), "not a link of"),
        ([(i, 1) for i in (1, 2, 3, 4, 5, 6, 6)], ("link_id", "capacity"), "twice"),
        ([(i, "x") for i in range(1, 7)], ("link_id", "capacity"), "not a design"),
        ([(i, -1) for i in range(1, 7)], ("link_id", "capacity"), "must be finite and >= 0"),
        ([(i, 1) for i in range(1, 7)], ("link", "capacity"), "needs the columns"),
    ],
)
def test_bad_designs(tmp_path, rows, header, message):
    path = write_design(tmp_path / "design.csv", rows, header)
    with pytest.raises(InvalidInputError, match=message):
        reference.evaluate_design(networks.load("three_node"), path)


def test_missing_design(tmp_path):
    with pytest.raises(InvalidInputError, match=r"absent\.csv"):
        reference.evaluate_design(networks.load("three_node"), tmp_path / "absent.csv")


@pytest.mark.parametrize("capacity", [-1.0, np.nan, np.inf, [1.0, 2.0], "many"])
def test_bad_capacity(capacity):
    with pytest.raises(InvalidInputError, match="capacity"):
        reference.solve_lower(networks.load("three_node"), capacity)


@pytest.mark.parametrize("gamma", [0.0, -1.0, np.inf, np.nan])
def test_bad_gamma(gamma):
    with pytest.raises(InvalidInputError, match="gamma"):
        reference.solve_penalized(networks.load("three_node"), 1.0, gamma)
