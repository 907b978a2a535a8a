"""The path-based passengers' problem against CVXPY, brute force, finite differences and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocc.applications.transport.network import Network, load
from blocc.applications.transport.paths import CUTOFF, PathNetwork
from blocc.applications.transport.reference import solve_lower
from blocc.errors import InvalidInputError, LowerNotSolvedError


def random_network(seed: int) -> tuple[Network, np.ndarray]:
    """A small network with what is awkward: parallel links, free links, no routes, no trips; and capacities."""
    rng = np.random.default_rng(seed)
    nodes, links = int(rng.integers(2, 7)), int(rng.integers(1, 16))
    tail = rng.integers(0, nodes, links)
    head = (tail + rng.integers(1, nodes, links)) % nodes
    pairs = np.array([(i, j) for i in range(nodes) for j in range(nodes) if i != j])
    pairs = pairs[rng.random(len(pairs)) < 0.7]
    if len(pairs) == 0:
        pairs = np.array([[0, 1]])
    time = rng.uniform(0, 3, links) * (rng.random(links) < 0.9)
    network = Network(
        name="random",
        nodes=tuple(range(nodes)),
        positions=rng.random((nodes, 2)),
        geographic=False,
        link_id=tuple(range(links)),
        tail=tail,
        head=head,
        travel_time=time,
        capacity_cost=rng.uniform(0.1, 3, links),
        origin=pairs[:, 0],
        destination=pairs[:, 1],
        trips=rng.exponential(1, len(pairs)) * (rng.random(len(pairs)) < 0.9),
        alternative_time=rng.uniform(0, 5, len(pairs)),
        revenue=rng.uniform(-1, 6, len(pairs)),
    )
    capacity = rng.exponential(0.7, links) * (rng.random(links) < 0.8)
    return network, capacity


def prepare(network: Network) -> PathNetwork:
    return PathNetwork(
        len(network.nodes),
        network.tail,
        network.head,
        network.travel_time,
        network.origin,
        network.destination,
        network.trips,
    )


def all_distances(network: Network, cost: np.ndarray) -> np.ndarray:
    """Shortest paths by Floyd and Warshall, sharing nothing with scipy's."""
    count = len(network.nodes)
    table = np.full((count, count), np.inf)
    np.fill_diagonal(table, 0.0)
    for tail, head, length in zip(network.tail, network.head, cost, strict=True):
        table[tail, head] = min(table[tail, head], length)
    for via in range(count):
        table = np.minimum(table, table[:, [via]] + table[[via], :])
    return table[network.origin, network.destination]


def check_certificate(network, capacity, utility, response, tol):
    """Primal feasibility from the path flows alone; the gap from definitions."""
    flow = np.zeros(len(network.tail))
    carried = np.zeros(len(network.trips))
    for index, pair in enumerate(response.path_pair):
        route = response.path_links[response.path_start[index] : response.path_start[index + 1]]
        node = network.origin[pair]
        for link in route:
            assert network.tail[link] == node
            node = network.head[link]
        assert node == network.destination[pair]
        flow[route] += response.path_flow[index]
        carried[pair] += response.path_flow[index]
    assert np.all(response.path_flow >= 0)
    np.testing.assert_allclose(flow, response.link_flow, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        carried, network.trips * response.share * (network.trips > 0), atol=1e-12
    )
    assert np.all(flow <= capacity * (1 + 1e-12))
    s = np.clip(response.share, 1e-300, 1 - 1e-16)
    inner = s * (np.log(s) - 1) + (1 - s) * (np.log1p(-s) - 1) + utility * (1 - s)
    primal = network.travel_time @ flow + network.trips @ inner
    assert np.all(response.price >= 0)
    distance = all_distances(network, network.travel_time + response.price)
    dual = network.trips @ (utility - 1 - np.logaddexp(0, utility - distance))
    priced = response.price > 0
    dual -= response.price[priced] @ capacity[priced]
    assert -1e-11 <= (primal - dual) / (1 + abs(primal)) <= tol + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_certificate_by_brute_force(seed):
    network, capacity = random_network(seed)
    paths = prepare(network)
    for utility in (network.alternative_time, network.alternative_time + network.revenue / 0.2):
        for tol in (1e-6, 1e-10):
            response = paths.respond(capacity, utility, tol=tol)
            check_certificate(network, capacity, utility, response, tol)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_agrees_with_cvxpy(seed):
    # The shipped networks at random capacities: the reference is not made for free and parallel links.
    rng = np.random.default_rng(seed)
    network = load(("three_node", "nine_node")[seed % 2])
    capacity = rng.exponential(3, len(network.tail)) * (rng.random(len(network.tail)) < 0.8)
    response = prepare(network).respond(capacity, network.alternative_time, tol=1e-10)
    reference = solve_lower(network, capacity)
    assert response.primal == pytest.approx(reference.objective, rel=2e-6, abs=1e-6)
    np.testing.assert_allclose(response.share, reference.share, atol=1e-3)


@pytest.mark.parametrize("name", ["three_node", "nine_node", "seville"])
@pytest.mark.parametrize("kind", ["ample", "tight", "mixed", "tiny", "own flow"])
def test_shipped_networks(name, kind):
    network = load(name)
    paths = prepare(network)
    rng = np.random.default_rng(1)
    count = len(network.tail)
    free = paths.respond(np.full(count, np.inf), network.alternative_time, tol=1e-9).link_flow
    capacity = {
        "ample": np.full(count, 20.0),
        "tight": free * rng.random(count),
        "mixed": rng.exponential(5, count) * (rng.random(count) < 0.5),
        "tiny": 10 ** rng.uniform(-8, 2, count),
        "own flow": free,
    }[kind]
    for gamma in (np.inf, 10.0, 0.1):
        utility = network.alternative_time + network.revenue / gamma
        response = paths.respond(capacity, utility, tol=1e-10)
        check_certificate(network, capacity, utility, response, 1e-10)


def test_seville_reference_value():
    network = load("seville")
    response = prepare(network).respond(np.full(88, 20.0), network.alternative_time, tol=1e-9)
    assert response.primal == pytest.approx(1289.815633, abs=2e-6)
    assert np.count_nonzero(response.price > 1e-4) == 21


def test_nothing_open():
    network = load("nine_node")
    utility = network.alternative_time
    response = prepare(network).respond(np.zeros(30), utility, tol=1e-10)
    assert np.all(response.share == 0)
    assert np.all(response.link_flow == 0)
    assert response.primal == pytest.approx(network.trips @ (utility - 1), rel=1e-14)
    with pytest.raises(LowerNotSolvedError, match="no pair with trips has an open route"):
        prepare(network).respond(np.zeros(30), utility, tol=1e-14)
    # No pair may find a way that is cheaper than the cut-off.
    distance = all_distances(network, network.travel_time + response.price)
    assert np.all(distance >= utility + CUTOFF - 1e-9)


def single_pair(trips: float = 1.5) -> PathNetwork:
    """Two nodes, a slow link and a fast one, one pair."""
    return PathNetwork(
        2,
        np.array([0, 0]),
        np.array([1, 1]),
        np.array([2.0, 1.0]),
        np.array([0]),
        np.array([1]),
        np.array([trips]),
    )


def test_one_link_closed_form():
    # With one link of capacity a the share is a / w and the price fills logit(s) = u - d - p.
    answer = single_pair().respond(np.array([0.3, 0.0]), np.array([4.0]), tol=1e-10)
    assert answer.share[0] == pytest.approx(0.2, abs=1e-9)
    assert answer.price[0] == pytest.approx(4.0 - 2.0 - np.log(0.2 / 0.8), abs=1e-7)
    # The closed link is one unit faster: opening it is worth one more.
    assert answer.price[1] == pytest.approx(answer.price[0] + 1.0, abs=1e-7)


def test_closed_price_is_the_slope_at_zero():
    network = load("nine_node")
    paths, utility = prepare(network), network.alternative_time
    rng = np.random.default_rng(3)
    capacity = rng.exponential(4, 30)
    step = 1e-5
    tried = 0
    for link in range(30):
        closed = capacity.copy()
        closed[link] = 0.0
        before = paths.respond(closed, utility, tol=1e-12)
        if before.price[link] < 0.05:
            continue
        closed[link] = step
        after = paths.respond(closed, utility, tol=1e-12)
        assert (before.primal - after.primal) / step == pytest.approx(before.price[link], rel=2e-3)
        tried += 1
    assert tried >= 5


def test_price_is_the_derivative():
    network = load("nine_node")
    paths, utility = prepare(network), network.alternative_time
    capacity = np.random.default_rng(0).exponential(3, 30)
    here = paths.respond(capacity, utility, tol=1e-12)
    for link in range(0, 30, 3):
        step = np.zeros(30)
        step[link] = 1e-4
        up = paths.respond(capacity + step, utility, tol=1e-12).primal
        down = paths.respond(capacity - step, utility, tol=1e-12).primal
        assert (down - up) / 2e-4 == pytest.approx(here.price[link], abs=2e-4)


def test_warm_start_gives_the_same_answer():
    network = load("seville")
    paths, utility = prepare(network), network.alternative_time
    rng = np.random.default_rng(0)
    capacity = rng.exponential(10, 88)
    warm = paths.respond(capacity, utility, tol=1e-8).warm
    assert all(isinstance(value, np.ndarray) for value in warm.values())
    nearby = capacity * rng.uniform(0.9, 1.1, 88) * (rng.random(88) < 0.9)
    cold = paths.respond(nearby, utility, tol=1e-10)
    again = paths.respond(nearby, utility, tol=1e-10, warm=warm)
    check_certificate(network, nearby, utility, again, 1e-10)
    assert again.primal == pytest.approx(cold.primal, rel=2e-10)
    assert again.iterations < cold.iterations


def test_pairs_without_route_without_trips_and_at_home():
    paths = PathNetwork(
        3,
        np.array([0]),
        np.array([1]),
        np.array([1.0]),
        np.array([0, 0, 0, 2]),
        np.array([1, 2, 1, 2]),
        np.array([1.0, 1.0, 0.0, 1.0]),
    )
    answer = paths.respond(np.array([10.0]), np.full(4, 2.0), tol=1e-12)
    sigmoid = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(
        answer.share, [sigmoid, 0.0, sigmoid, 1 / (1 + np.exp(-2.0))], atol=1e-9
    )


def test_links_that_fill_up_on_the_way_do_not_break_the_next_barrier_phase():
    """A seeded 10 x 10 grid, most links at 1.2 of their unlimited flow: rows join between two barrier phases."""
    random = np.random.default_rng(10)
    node = np.arange(100).reshape(10, 10)
    across = np.stack([node[:, :-1].ravel(), node[:, 1:].ravel()])
    down = np.stack([node[:-1].ravel(), node[1:].ravel()])
    tail, head = np.concatenate([across, across[::-1], down, down[::-1]], axis=1)
    cells = random.choice(10_000, 400, replace=False)
    cells = cells[cells // 100 != cells % 100]
    paths = PathNetwork(
        100,
        tail,
        head,
        random.uniform(1, 2, len(tail)),
        cells // 100,
        cells % 100,
        random.exponential(1, len(cells)),
    )
    utility = paths.distances(paths.travel_time) + 2.0
    flow = paths.respond(np.full(paths.links, np.inf), utility).link_flow
    used = np.sort(flow[flow > 0])
    factor = np.where(flow < used[-max(len(used) // 10, 1)], 1.2, 0.8)
    capacity = np.maximum(factor * flow, 1e-3 * flow.max())
    response = paths.respond(capacity, utility, tol=1e-6)
    dual = paths.dual_value(response.price, capacity, utility)
    primal = paths.objective(response.link_flow, response.share, utility)
    assert np.all(response.link_flow <= capacity * (1 + 1e-9))
    assert 0 <= primal - dual <= 1e-6 * (1 + abs(primal))


def test_bad_input_and_iteration_limit():
    paths = single_pair()
    with pytest.raises(InvalidInputError, match="capacity"):
        paths.respond(np.array([1.0, -1.0]), np.array([1.0]))
    with pytest.raises(InvalidInputError, match="utility"):
        paths.respond(np.array([1.0, 1.0]), np.array([np.nan]))
    with pytest.raises(LowerNotSolvedError, match="gap"):
        paths.respond(np.array([0.1, 0.1]), np.array([5.0]), tol=1e-12, max_iterations=2)


def test_warm_start_where_nobody_can_travel_any_more_gives_the_answer():
    """A start that prices an open link which now leads nowhere: nobody travels, and that is proven."""
    network = PathNetwork(
        3,
        np.array([0, 1]),
        np.array([1, 2]),
        np.ones(2),
        np.array([0]),
        np.array([2]),
        np.array([4.0]),
    )
    utility = np.array([3.0])
    warm = network.respond(np.array([1.0, 2.0]), utility, tol=1e-9).warm
    assert warm["price"][0] > 0
    answer = network.respond(np.array([1.0, 0.0]), utility, tol=1e-9, warm=warm)
    assert answer.share[0] == 0.0
    assert answer.gap <= 1e-9
    assert answer.price[0] == 0.0
    # what alone can be done costs w (log 1 - 1 + u)
    assert answer.primal == pytest.approx(4.0 * (3.0 - 1.0))
