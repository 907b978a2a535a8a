"""Limits, budget and modules of a design, the step under them against CVXPY, and scenario tables."""

from __future__ import annotations

import importlib
import itertools

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest

import blocc
from blocc.applications import transport
from blocc.applications.transport import reference
from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.modules import round_to_modules
from blocc.sets import Budget


@pytest.fixture(scope="module")
def network():
    return transport.load("nine_node")


@pytest.fixture(scope="module")
def ring():
    """Five stations in a ring, trips between all: small enough for many designs."""
    times, costs = (1.0, 1.5, 1.0, 2.0, 1.2), (0.5, 0.6, 0.5, 0.7, 0.6)
    links = pd.DataFrame(
        [
            (f"{one}{other}", one, other, times[at], costs[at])
            for at in range(5)
            for one, other in ((at, (at + 1) % 5), ((at + 1) % 5, at))
        ],
        columns=["link_id", "from_node", "to_node", "travel_time", "capacity_cost"],
    )
    pairs = [(one, other) for one in range(5) for other in range(5) if one != other]
    demand = pd.DataFrame(pairs, columns=["origin", "destination"])
    demand = demand.assign(
        trips=[(5.0, 6.0, 7.0, 8.0)[number % 4] for number in range(20)],
        alternative_time=4.0,
        revenue=[(3.0, 4.0, 5.0)[number % 3] for number in range(20)],
    )
    return transport.from_tables(links, demand)


def _step_value(model, lower, gamma, capacity=None):
    """Value of the convex-concave subproblem by CVXPY, at given capacities or minimised over the set."""
    network = model.network
    links, origins = len(network.tail), np.unique(network.origin)
    a = cp.Variable(links)
    flow = cp.Variable((len(origins), links), nonneg=True)
    share = cp.Variable(len(network.trips))
    utility = network.alternative_time + network.revenue / gamma
    trips = network.trips
    constraints = [cp.sum(flow, axis=0) <= a, a >= model.minimum]
    limited = np.isfinite(model.maximum)
    if limited.any():
        constraints.append(a[limited] <= model.maximum[limited])
    if np.isfinite(model.budget):
        constraints.append(network.capacity_cost @ a <= model.budget)
    if capacity is not None:
        constraints = [cp.sum(flow, axis=0) <= capacity + 1e-9, a == capacity]
    incidence = np.zeros((len(network.nodes), links))
    incidence[network.head, np.arange(links)] += 1
    incidence[network.tail, np.arange(links)] -= 1
    for row, origin in enumerate(origins):
        pairs = np.flatnonzero(network.origin == origin)
        arrive = np.zeros((len(network.nodes), len(pairs)))
        arrive[network.destination[pairs], np.arange(len(pairs))] += 1
        arrive[origin, np.arange(len(pairs))] -= 1
        constraints.append(
            incidence @ flow[row] == arrive @ cp.multiply(trips[pairs], share[pairs])
        )
    entropy = -cp.entr(share) - cp.entr(1 - share) - 1 + cp.multiply(utility, 1 - share)
    passengers = network.travel_time @ cp.sum(flow, axis=0) + trips @ entropy
    price = lower.duals["capacity"]
    objective = network.capacity_cost @ a / gamma + price @ a + passengers
    problem = cp.Problem(cp.Minimize(objective), constraints)
    problem.solve(solver=cp.CLARABEL)
    return problem.value


@pytest.mark.parametrize(
    "limits",
    [
        {"budget": 30.0},
        {"budget": 60.0, "maximum": 3.0},
        {"budget": 60.0, "minimum": 0.2, "maximum": 5.0},
    ],
    ids=["budget", "budget and maximum", "all"],
)
def test_step_under_limits_is_the_minimiser_by_cvxpy(network, limits):
    model = TransitModel(network, **limits)
    x = model.x_set.project(np.random.default_rng(0).exponential(3, len(network.tail)))
    gamma = 2.0
    lower = model.lower(x, tol=1e-10)
    after = model.convex_concave_step(x, gamma, lower, tol=1e-10)
    assert np.all(after >= model.minimum - 1e-12)
    assert np.all(after <= model.maximum + 1e-12)
    assert network.capacity_cost @ after <= limits["budget"] * (1 + 1e-9)
    least = _step_value(model, lower, gamma)
    here = _step_value(model, lower, gamma, after)
    assert here == pytest.approx(least, rel=2e-5)


def test_budget_projection_is_the_nearest_point_by_cvxpy():
    random = np.random.default_rng(0)
    for _ in range(40):
        size = random.integers(1, 12)
        cost = random.exponential(1, size) * (random.random(size) < 0.8)
        lower = random.uniform(0, 0.5, size)
        upper = np.where(random.random(size) < 0.3, np.inf, lower + random.exponential(1, size))
        total = cost @ lower + random.exponential(0.7)
        budget, point = Budget(cost, total, lower, upper), random.normal(0, 2, size)
        z, gradient = cp.Variable(size), random.normal(0, 1, size)
        bounded = np.isfinite(upper)
        limits = [z >= lower, cost @ z <= total]
        if bounded.any():
            limits.append(z[bounded] <= upper[bounded])
        cp.Problem(cp.Minimize(cp.sum_squares(z - point)), limits).solve(solver=cp.CLARABEL)
        nearest = budget.project(point)
        assert cost @ nearest <= total * (1 + 1e-12) + 1e-12
        assert np.all((nearest >= lower) & (nearest <= upper))
        assert np.sum((nearest - point) ** 2) <= np.sum((z.value - point) ** 2) + 1e-6
        gradient[(cost == 0) & ~bounded] = 1.0
        least = cp.Problem(cp.Minimize(gradient @ z), limits).solve(solver=cp.CLARABEL)
        gap, residual = budget.linear_gap(nearest, gradient)
        assert float(gap) == pytest.approx(gradient @ nearest - least, abs=1e-5)
        assert not residual.any()
    free = Budget(np.array([0.0, 1.0]), 1.0)
    _, residual = free.linear_gap(np.zeros(2), np.array([-1.0, -1.0]))
    np.testing.assert_array_equal(residual, [-1.0, 0.0])


def test_budget_that_cannot_be_met_is_named():
    with pytest.raises(blocc.InvalidInputError, match="more than the total"):
        Budget(np.ones(2), 1.0, lower=1.0)
    with pytest.raises(blocc.InvalidInputError, match="nonnegative"):
        Budget(-np.ones(2), 1.0)


def test_design_keeps_its_budget_and_a_smaller_one_earns_less(ring, tmp_path):
    free = transport.design(ring, starts=0)
    cost = free.summary()["cost"]
    plan = transport.design(ring, starts=0, budget=0.5 * cost, on_failure="return")
    plan.write(tmp_path)
    independent = reference.evaluate_design(ring, tmp_path / "design.csv")
    assert plan.summary()["cost"] <= 0.5 * cost * (1 + 1e-9)
    assert plan.result.certificate.ok(1e-6)
    assert plan.profit == pytest.approx(independent.profit, rel=1e-6)
    assert 0 < plan.profit < free.profit


def test_design_keeps_limits_and_existing_capacity(ring):
    existing = np.full(10, np.nan)
    existing[[3, 7]] = (2.0, 0.0)
    plan = transport.design(
        ring, starts=0, minimum=0.1, maximum=14.0, existing=existing, on_failure="return"
    )
    options = plan.summary()["options"]
    assert (options["minimum"], options["maximum"]) == (0.1, 14.0)
    assert options["existing"] == f"{np.sum(~np.isnan(existing))} links"
    assert plan.capacity[3] == 2.0
    assert plan.capacity[7] == 0.0
    others = np.delete(plan.capacity, [3, 7])
    assert others.min() >= 0.1
    assert others.max() <= 14.0
    assert plan.result.certificate.ok(1e-6)
    assert plan.profit == pytest.approx(reference.profit(ring, plan.capacity), rel=1e-6)


def test_limits_are_columns_of_the_links_table(network, tmp_path):
    tables = network.to_tables()
    links = tables.links.assign(minimum=np.nan, maximum=5.0, existing=np.nan)
    links.loc[0, ["existing", "maximum"]] = (1.5, np.nan)
    links.loc[1, "minimum"] = 0.25
    limited = transport.from_tables(links, tables.demand, tables.nodes)
    limited.save(tmp_path)
    for read in (limited, transport.load(tmp_path), transport.from_networkx(limited.to_networkx())):
        model = TransitModel(read)
        order = [read.link_id.index(label) for label in network.link_id]
        np.testing.assert_array_equal(model.minimum[order][:3], [1.5, 0.25, 0.0])
        np.testing.assert_array_equal(model.maximum[order][:3], [1.5, 5.0, 5.0])
    links.loc[0, "maximum"] = 9.0
    with pytest.raises(blocc.InvalidInputError, match="row 1, column 'maximum'"):
        transport.from_tables(links, tables.demand, tables.nodes)
    links.loc[0, ["existing", "maximum"]] = (-1.0, np.nan)
    with pytest.raises(blocc.InvalidInputError, match="column 'existing'"):
        transport.from_tables(links, tables.demand, tables.nodes)


def test_modules_are_whole_and_their_answer_is_certified(ring):
    plan = transport.design(ring, starts=0, module=2.0)
    pieces = plan.capacity / 2.0
    np.testing.assert_allclose(pieces, np.round(pieces), atol=1e-12)
    assert plan.status is blocc.Status.ROUNDED
    assert plan.result.certificate.lower_ok(1e-6)
    profit = reference.profit(ring, plan.capacity)
    assert plan.profit == pytest.approx(profit, rel=1e-6)
    for link in range(10):  # no single module more or less earns more
        for change in (-2.0, 2.0):
            moved = plan.capacity.copy()
            moved[link] = max(0.0, moved[link] + change)
            answer = transport.respond(ring, moved)
            earned = (ring.trips * ring.revenue) @ answer.share - ring.capacity_cost @ moved
            assert earned <= plan.profit * (1 + 1e-4)


def test_modules_keep_budget_and_limits(ring):
    plan = transport.design(
        ring, starts=0, module=2.0, budget=20.0, maximum=5.0, on_failure="return"
    )
    assert ring.capacity_cost @ plan.capacity <= 20.0 * (1 + 1e-9)
    assert set(np.unique(plan.capacity)) <= {0.0, 2.0, 4.0}


def test_no_whole_plan_within_a_binding_budget_earns_more_than_the_rounded_one(ring):
    # the best plan is three modules away from the best rounding
    model = TransitModel(ring, budget=5.0)
    continuous = np.zeros(10)
    continuous[[2, 5]] = 2.77, 6.67

    warm = None

    def profit(capacity, tol=1e-10):
        nonlocal warm
        lower = model.lower(capacity, tol=tol, warm=warm)
        warm = lower.warm
        return -model.upper(capacity, lower.y)

    price = 2.0 * model.network.capacity_cost
    plans = [
        2.0 * np.bincount(chosen, minlength=10)
        for number in range(6)
        for chosen in itertools.combinations_with_replacement(range(10), number)
        if price[list(chosen)].sum() <= 5.0 + 1e-9
    ]
    assert len(plans) == 990
    best = sorted(plans, key=lambda plan: profit(plan, tol=1e-6))[-20:]
    most = max(map(profit, best))
    plan = round_to_modules(model, continuous, np.full(10, 2.0))
    assert model.network.capacity_cost @ plan <= 5.0 + 1e-9
    assert profit(plan) == pytest.approx(most, rel=1e-7)
    assert most == pytest.approx(41.0, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": -1.0}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"minimum": 2.0, "maximum": 1.0}, "above its maximum"),
        ({"minimum": 5.0, "budget": 1.0}, "does not pay"),
        ({"maximum": -1.0}, "maximum"),
        ({"existing": [1.0, 2.0]}, "existing"),
        ({"module": 0.0}, "module"),
        ({"starts": -1}, "starts"),
        ({"start": [1.0]}, "start"),
        ({"lower": "maxmin", "budget": 3.0}, "maxmin"),
    ],
)
def test_wrong_options_are_named(network, options, said):
    with pytest.raises(blocc.InvalidInputError, match=said):
        transport.design(network, **options)


def test_modules_that_do_not_fit_the_limits_are_named(ring):
    with pytest.raises(blocc.InvalidInputError, match="whole number of modules"):
        transport.design(ring, starts=0, minimum=1.2, maximum=1.8, module=1.0)


def test_scenarios_are_rows_and_a_failed_one_says_why(tmp_path):
    network = transport.load("three_node")
    table = transport.scenarios(network, demand_growth=[0.0, 0.5, -1.0], cost=[1.0, 1.2], starts=0)
    assert len(table) == 6
    by_case = table.set_index(["demand_growth", "cost"])
    assert by_case.loc[(0.0, 1.0), "profit"] == pytest.approx(1.7616, abs=1e-3)
    assert by_case.loc[(0.5, 1.0), "profit"] == pytest.approx(1.5 * 1.7616, abs=2e-3)
    assert by_case.loc[(0.0, 1.2), "profit"] < by_case.loc[(0.0, 1.0), "profit"]
    failed = by_case.loc[(-1.0, 1.0)]
    assert failed["status"] == "failed"
    assert "nothing to design" in failed["error"]
    good = table[table["status"] != "failed"]
    assert (good["lower_gap"] <= 1e-6).all()
    assert np.allclose(good["profit"], good["revenue"] - good["capacity_cost"])


def test_subsidy_trades_profit_for_passengers(tmp_path):
    network = transport.load("nine_node")
    table = transport.scenarios(network, subsidy=[0.0, 0.25, 1.0], starts=8)
    served = table.sort_values("subsidy")["trips_served"].to_numpy()
    assert np.all(np.diff(served) > 0)
    front = transport.pareto(table)
    assert len(front) >= 2
    assert np.all(np.diff(front["profit"]) < 0)
    assert np.all(np.diff(front["trips_served"]) > 0)
    written = transport.plot_pareto(table, tmp_path / "pareto.png")
    assert written.read_bytes().startswith(b"\x89PNG")


def test_scenarios_are_interrupted_with_what_was_designed(tmp_path, monkeypatch):
    module = importlib.import_module("blocc.applications.transport.scenarios")
    calls = []

    def interrupted(*arguments, **options):
        calls.append(options["budget"])

        def stop(record):
            if len(calls) == 2:
                raise KeyboardInterrupt

        return transport.design(*arguments, callback=stop, **options)

    monkeypatch.setattr(module, "design", interrupted)
    network = transport.load("nine_node")
    reached = []
    table = transport.scenarios(
        network,
        budget=[None, 20.0, 30.0],
        starts=0,
        callback=lambda done, number: reached.append((done, number)),
    )
    assert calls == [None, 20.0]
    assert reached == [(1, 3), (2, 3)]
    assert table["status"].tolist()[1:] == ["interrupted"] * 2
    assert np.isfinite(table["profit"][0])
    assert table["error"].tolist()[0] == ""
    assert "interrupted" in table["error"][2]
    assert np.isnan(table["profit"][2])
    assert len(transport.pareto(table)) >= 1
    assert transport.plot_pareto(table, tmp_path / "pareto.png").stat().st_size > 1000


def test_wrong_scenarios_are_named():
    network = transport.load("three_node")
    for wrong, message in (
        ({"demand_growth": []}, "demand_growth: give a list of at least one"),
        ({"budget": [-1.0]}, "budget: -1.0 is not a finite number of at least 0"),
        ({"subsidy": [float("inf")]}, "subsidy: inf is not a finite number$"),
        ({"cost": ["dear"]}, "cost: dear is not"),
        ({"cost": 2.0}, "cost: give a list"),
        ({"n_jobs": 0}, "n_jobs must not be 0"),
        ({"starts": -1}, "starts must be at least 0"),  # what is wrong with all is no row
    ):
        with pytest.raises(blocc.InvalidInputError, match=message):
            transport.scenarios(network, **wrong)
