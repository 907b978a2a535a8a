"""Designs whose only limit is a budget: worth their money, and those without limits where it does not bind."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

import blocc
from blocc.applications import transport
from blocc.applications.transport import budget, reference, search
from blocc.applications.transport.model import TransitModel


@pytest.fixture(scope="module")
def seville():
    return transport.load("seville")


def test_seville_under_a_budget_earns_what_convex_concave_steps_alone_do_not(seville):
    plan = transport.design(seville, starts=0, budget=200.0)
    assert seville.capacity_cost @ plan.capacity <= 200.0 * (1 + 1e-9)
    assert plan.profit > 177.0  # convex-concave steps from the relaxation: 125.0
    assert plan.result.certificate.ok(1e-6)
    assert reference.profit(seville, plan.capacity) == pytest.approx(plan.profit, rel=1e-6)


def test_budget_that_does_not_bind_gives_the_design_without_one():
    network = transport.load("nine_node")
    free = transport.design(network, starts=4)
    cost = network.capacity_cost @ free.capacity
    plan = transport.design(network, starts=4, budget=1.01 * cost)
    assert plan.capacity.tobytes() == free.capacity.tobytes()
    assert plan.status is free.status


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_no_design_on_a_grid_within_the_budget_earns_two_percent_more(share):
    links = pd.DataFrame(
        [("ab", "a", "b", 1.0, 0.5), ("bc", "b", "c", 1.0, 0.6), ("ac", "a", "c", 1.5, 1.2)],
        columns=["link_id", "from_node", "to_node", "travel_time", "capacity_cost"],
    )
    demand = pd.DataFrame(
        [("a", "b", 4.0, 3.0, 2.0), ("b", "c", 3.0, 3.0, 2.5), ("a", "c", 5.0, 4.0, 3.0)],
        columns=["origin", "destination", "trips", "alternative_time", "revenue"],
    )
    network = transport.from_tables(links, demand)
    model = TransitModel(network)
    free = transport.design(network, starts=0)
    limit = share * free.summary()["cost"]
    plan = transport.design(network, budget=limit)
    axes = [np.linspace(0.0, limit / cost, 16) for cost in network.capacity_cost]
    most, warm = 0.0, None
    for capacity in map(np.array, itertools.product(*axes)):
        if network.capacity_cost @ capacity <= limit * (1 + 1e-12):
            lower = model.lower(capacity, tol=1e-6, warm=warm)
            warm = lower.warm
            most = max(most, -model.upper(capacity, lower.y))
    assert most > 0.5 * plan.profit
    assert plan.profit >= 0.98 * most


def test_capacities_that_spend_the_budget_are_critical_at_one_multiplier(seville):
    model = TransitModel(seville, budget=200.0)
    found = search.search(model, trials=0)
    near = budget.critical_capacity(model, found.state, found.multiplier, 1e-6)
    assert seville.capacity_cost @ near == pytest.approx(200.0, rel=2e-6)
    # the gradient of F_gamma is the multiplier times the costs, up to its sign, on every link that is built
    gamma = search.LAST_GAMMA
    whole = model.penalized(near, gamma, tol=1e-11).grad_x
    slope = whole - gamma * model.lower(near, tol=1e-11).grad_x
    built = near > 1e-3 * near.max()
    multiplier = -slope[built] / seville.capacity_cost[built]
    assert 0.4 < np.median(multiplier) < 0.6
    assert np.mean(np.abs(multiplier - np.median(multiplier)) < 1e-2) > 0.9


def test_search_under_a_budget_resumes_to_the_same_design_for_any_number_of_jobs(tmp_path):
    for limit in (22.0, 200.0):  # the latter does not bind
        model = TransitModel(transport.load("nine_node"), budget=limit)
        whole = search.search(model, trials=5, n_jobs=2)
        search.search(model, trials=4, checkpoint=tmp_path / "search.npz")
        again = search.search(model, trials=5, resume=tmp_path / "search.npz")
        assert again.state.tobytes() == whole.state.tobytes()
        assert (again.free, again.multiplier) == (whole.free, whole.multiplier)
        assert again.free == (limit == 200.0)


def test_profits_on_the_way_are_those_of_designs_within_the_budget():
    model = TransitModel(transport.load("nine_node"), budget=45.0)
    seen = []
    found = search.search(model, trials=4, callback=seen.append)
    assert sum(now.trials == 0 for now in seen) > 2  # something is shown while the climbs last
    profits = [now.profit for now in seen]
    assert profits == sorted(profits)
    network = model.network
    for now in (*seen[1::20], found):
        capacity = now.capacity(model)
        assert network.capacity_cost @ capacity <= 45.0 * (1 + 1e-9)
        assert reference.profit(network, capacity) == pytest.approx(now.profit, rel=1e-4, abs=1e-6)


def test_ctrl_c_during_the_climbs_keeps_a_design_within_the_budget():
    def stop(record):
        if record["iteration"] == 20:
            raise KeyboardInterrupt

    network = transport.load("nine_node")
    plan = transport.design(network, budget=45.0, callback=stop)
    assert plan.status is blocc.Status.INTERRUPTED
    assert network.capacity_cost @ plan.capacity <= 45.0 * (1 + 1e-9)
    assert plan.profit > 5
    assert reference.profit(network, plan.capacity) == pytest.approx(plan.profit, rel=1e-6)


@pytest.mark.parametrize("limit", [22.452, 74.84])
def test_designs_that_a_large_gamma_leaves_uncertified_are_certified_at_a_smaller_one(limit):
    plan = transport.design(transport.load("nine_node"), starts=0, budget=limit)
    assert plan.result.success
    assert plan.result.certificate.ok(1e-6)
