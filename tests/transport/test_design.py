"""Designs: profit, certificate and bound, checked against the independent CVXPY reference."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import blocc
from blocc.applications import transport
from blocc.applications.transport import reference
from blocc.applications.transport.model import SLACK, TransitModel

LEAST = {"three_node": 1.76158, "nine_node": 17.2, "seville": 211.0}


@pytest.fixture(scope="module")
def designs():
    return {name: transport.design(transport.load(name)) for name in LEAST}


@pytest.mark.parametrize("name", LEAST)
def test_profit_is_what_cvxpy_says_at_the_exact_response(designs, name, tmp_path):
    plan = designs[name]
    plan.write(tmp_path)
    independent = reference.evaluate_design(plan.network, tmp_path / "design.csv")
    assert plan.profit == pytest.approx(independent.profit, rel=1e-6, abs=1e-6)
    assert plan.summary()["profit"] == plan.profit
    assert plan.profit >= LEAST[name]


@pytest.mark.parametrize("name", LEAST)
def test_certificate_holds_and_bound_is_above_the_profit(designs, name):
    plan = designs[name]
    certificate = plan.result.certificate
    assert plan.result.success
    assert certificate.lower_gap <= 1e-6
    assert certificate.violation <= 1e-6
    assert plan.bound >= plan.profit
    lower = reference.solve_lower(plan.network, plan.capacity)
    assert plan.result.lower_objective == pytest.approx(lower.objective, rel=1e-6)


def test_three_node_optimum_has_capacities_exactly_zero_elsewhere(designs):
    """The closed form: sigmoid(2) on 1-2 and 2-1, nothing else, profit 2 sigmoid(2)."""
    plan = designs["three_node"]
    sigmoid = 1 / (1 + np.exp(-2.0))
    table = plan.design_table().set_index(["from_node", "to_node"])["capacity"]
    assert plan.profit == pytest.approx(
        2 * sigmoid, rel=2 * SLACK
    )  # a trim leaves that much capacity
    assert plan.profit <= 2 * sigmoid
    for link, capacity in table.items():
        if set(link) == {1, 2}:
            assert capacity == pytest.approx(sigmoid, rel=1e-4)
        else:
            assert capacity == 0.0


@pytest.mark.parametrize("name", LEAST)
def test_no_single_capacity_change_earns_more(designs, name):
    """Local optimality by trial: no capacity alone, changed by a tenth or a hundredth of the mean, raises profit."""
    plan = designs[name]
    model = TransitModel(plan.network)
    size = plan.capacity[plan.capacity > 0].mean()
    for link in range(len(plan.capacity)):
        for change in (0.01 * size, -0.01 * size, 0.1 * size, -0.1 * size):
            moved = plan.capacity.copy()
            moved[link] = max(0.0, moved[link] + change)
            y = model.lower(moved, tol=1e-9).y
            assert -model.upper(moved, y) <= plan.profit + 1e-5 * (1 + abs(plan.profit))


def test_relaxation_bound_is_above_what_random_designs_earn():
    network = transport.load("nine_node")
    bound = -TransitModel(network).relaxation(tol=1e-8).bound
    random = np.random.default_rng(0)
    for _ in range(20):
        capacity = random.uniform(0, 10, len(network.link_id)) * (
            random.random(len(network.link_id)) < 0.7
        )
        assert reference.profit(network, capacity) <= bound


def test_respond_matches_cvxpy():
    network = transport.load("nine_node")
    capacity = np.random.default_rng(1).uniform(0.5, 5, len(network.link_id))
    answer = transport.respond(network, capacity, tol=1e-9)
    expected = reference.solve_lower(network, capacity)
    np.testing.assert_allclose(answer.share, expected.share, atol=1e-6)
    assert answer.objective == pytest.approx(expected.objective, rel=1e-8)
    assert answer.gap <= 1e-9


def test_maxmin_route_designs_the_small_network():
    """The paper's route (arc flows, MaxMin) on three_node: certified by the exact model."""
    network = transport.load("three_node")
    plan = transport.design(network, lower="maxmin", on_failure="return", max_iterations=3)
    assert plan.result.certificate.lower_ok(1e-6)
    assert plan.profit >= 0.0
    assert plan.profit <= plan.bound


def test_bad_capacities_and_options_are_named():
    network = transport.load("three_node")
    with pytest.raises(blocc.InvalidInputError, match="shape"):
        transport.respond(network, [1.0, 2.0])
    with pytest.raises(blocc.InvalidInputError, match="nonnegative"):
        transport.respond(network, -np.ones(6))
    with pytest.raises(blocc.InvalidInputError, match="nonnegative"):
        transport.respond(network, np.full(6, np.nan))
    with pytest.raises(blocc.InvalidInputError, match="lower must be"):
        transport.design(network, lower="simplex")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("starts", value) for value in (1.5, "x", -1)),
        *(("n_jobs", value) for value in (0, 2.5, "two")),
        *(("budget", value) for value in ("much", np.nan, [1.0])),
        *(("tol", value) for value in (0.0, 1.0, -1e-6, np.nan, None, "tight")),
        *(("seed", value) for value in (-1, 1.5, None)),
        *(("max_iterations", value) for value in (0, 2.5, None)),
        *(("start", value) for value in ("x", [1.0], np.nan, np.full(6, np.inf))),
        *(("module", value) for value in ("x", 0.0, -1.0, [1.0, 2.0])),
        ("on_failure", "maybe"),
    ],
)
def test_wrong_option_is_refused_by_name_before_any_work(option, value, monkeypatch):
    module = sys.modules["blocc.applications.transport.design"]
    monkeypatch.setattr(module, "search", None)
    with pytest.raises(blocc.InvalidInputError, match=f"^{option}"):
        transport.design(transport.load("three_node"), **{option: value})


def test_name_in_place_of_a_network_is_refused():
    with pytest.raises(blocc.InvalidInputError, match="network must be a Network"):
        transport.design("seville")


def test_zero_demand_is_refused_in_words():
    tables = transport.load("three_node").to_tables()
    demand = tables.demand.assign(trips=0.0)
    network = transport.from_tables(tables.links, demand, tables.nodes, name="still")
    with pytest.raises(blocc.InvalidInputError, match="nothing to design"):
        transport.design(network)


def test_pair_without_a_route_is_served_nothing_and_said_so():
    tables = transport.load("three_node").to_tables()
    links = tables.links[(tables.links.from_node != 3) & (tables.links.to_node != 3)]
    network = transport.from_tables(links, tables.demand, tables.nodes, name="cut")
    assert any("no route" in note for note in network.notes)
    plan = transport.design(network)
    shares = plan.shares_table()
    cut = (shares.origin == 3) | (shares.destination == 3)
    assert (shares.share[cut] == 0).all()
    assert plan.summary()["notes"]


def test_interrupted_design_resumes_to_the_same_design(tmp_path):
    network = transport.load("nine_node")

    def power_cut(record):
        if checkpoint.exists():
            raise RuntimeError("power cut")

    checkpoint = tmp_path / "design.npz"
    with pytest.raises(RuntimeError, match="power cut"):
        transport.design(network, checkpoint=checkpoint, callback=power_cut)
    resumed = transport.design(network, resume=checkpoint)
    whole = transport.design(network)
    np.testing.assert_array_equal(resumed.capacity, whole.capacity)
    assert resumed.profit == whole.profit
