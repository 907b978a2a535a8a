"""Designs by link prices: what prices make is an exact answer, and their dual is that of the smoothed profit."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from blocc.applications import transport
from blocc.applications.transport import prices, reference, search
from blocc.applications.transport.model import SLACK, TransitModel
from blocc.penalty import Penalty


@pytest.fixture(scope="module", params=["nine_node", "seville"])
def model(request):
    return TransitModel(transport.load(request.param))


def _psi(model, price, gamma):
    """Psi and the revenue at full shares: what F_gamma is compared with."""
    network, paths = model.network, model.paths
    none = np.zeros(paths.links)
    richer = network.alternative_time + network.revenue / gamma
    costly = paths.dual_value(price + network.capacity_cost / gamma, none, richer)
    plain = paths.dual_value(price, none, network.alternative_time)
    return gamma * (costly - plain) - network.trips @ network.revenue


def _step(model, gamma, price):
    """Where a convex-concave step from some prices leads, from anywhere."""
    lower = SimpleNamespace(duals={"capacity": price})
    return model.convex_concave_step(np.zeros_like(price), gamma, lower, tol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_any_prices_make_a_design_whose_profit_cvxpy_confirms(model, seed):
    price = np.random.default_rng(seed).exponential(0.2, model.paths.links)
    profit, flow = prices.loading(model, price)
    assert reference.profit(model.network, (1 + SLACK) * flow) == pytest.approx(profit, rel=1e-4)


@pytest.mark.parametrize("gamma", [2.0, 16.0])
def test_dual_bounds_the_smoothed_profit_and_meets_it_at_the_passengers_prices(model, gamma):
    price = np.random.default_rng(2).exponential(0.1, model.paths.links)
    capacity = _step(model, gamma, price)
    here = Penalty(model, gamma, tol=1e-10)(capacity)
    size = 1.0 + abs(here.value)
    assert here.value <= _psi(model, price, gamma) + 1e-6 * size
    # at the passengers' own prices a step of capacities falls no farther than the dual says
    own = here.lower.duals["capacity"]
    after = Penalty(model, gamma, tol=1e-10)(_step(model, gamma, own))
    assert after.value <= _psi(model, own, gamma) + 1e-6 * size
    assert _psi(model, own, gamma) <= here.value + 1e-6 * size


@pytest.mark.parametrize("exact", [False, True])
def test_smoothed_dual_has_the_gradient_and_curvature_that_steps_use(model, exact):
    random = np.random.default_rng(3)
    price = random.uniform(0.1, 0.4, model.paths.links)
    smooth = prices.Smooth(model, price)
    smooth._enter(prices.Stage(8.0, 1e-2, 1, 1e-2, exact))
    toward = random.standard_normal(model.paths.links)
    step = 1e-6

    def slope(place):
        at = smooth._evaluate(place)
        gradient = at.load[1] + smooth.spare - at.load[0] - smooth.row_weight / place
        return at.value, float(gradient @ toward)

    (ahead, after), (behind, before) = slope(price + step * toward), slope(price - step * toward)
    assert (ahead - behind) / (2 * step) == pytest.approx(slope(price)[1], rel=1e-5)
    here = smooth._evaluate(price)
    weights = [flow**2 / smooth.weight for flow in here.flow]
    convex = smooth._curvature(weights[0], here.margin[0])
    concave = smooth._concave(here, weights[1])
    lower = convex - concave
    curved = toward @ (np.tril(lower) + np.tril(lower, -1).T) @ toward
    curved += toward @ (smooth.row_weight / price**2 * toward)
    assert (after - before) / (2 * step) == pytest.approx(curved, rel=1e-4)


def test_climb_reports_its_way_and_returns_the_best_of_it(model):
    seen = []
    stages = (prices.Stage(8.0, 1e-3, 12, 1e-2), prices.Stage(32.0, 1e-4, 4, 1e-2))
    start = prices.first_prices(model)
    profit, price = prices.climb(model, start, stages, lambda *now: seen.append(now[0]))
    assert 4 < len(seen) <= 16
    assert profit == max(seen) > prices.loading(model, start)[0]
    assert prices.loading(model, price)[0] == profit


def test_steps_at_one_gauge_never_raise_the_smoothed_dual(model):
    """But for the paths that are generated on the way: on all of them, from where the first stage ended."""
    smooth = prices.Smooth(model, prices.first_prices(model))
    for _ in smooth.steps(prices.Stage(8.0, 1e-3, 60, 1e-2)):
        pass
    smooth._enter(prices.Stage(32.0, 1e-4, 20, 1e-2))
    smooth._generate = lambda: 0
    values = [smooth._evaluate(smooth.price).value]
    for _ in smooth.steps(prices.Stage(32.0, 1e-4, 20, 1e-2)):
        values.append(smooth._evaluate(smooth.price).value)
    assert len(values) > 2
    assert np.all(np.diff(values) <= 1e-12 * np.abs(values[0]))


@pytest.fixture(scope="module")
def critical(model):
    _, price = prices.climb(model, prices.first_prices(model), search.FIRST)
    return search.critical(model, price)


def test_where_a_climb_ends_is_proven_critical(model, critical):
    proof = critical.proof(model)
    assert proof.gap <= 10 * model.accuracy
    assert proof.stationarity <= 1e-5


def test_with_the_operators_dual_exact_nothing_is_promised_at_all(model):
    """Its flows then minimise the majorant that the prices make, whatever the prices."""
    smooth = prices.Smooth(model, prices.first_prices(model))
    for _ in smooth.steps(prices.Stage(8.0, 1e-3, 10, 1e-2, True)):
        pass
    smooth._generate()
    proof = smooth._critical(None).proof(model)
    assert proof.promised <= 1e-9
    assert proof.gap > 1e-6  # ten steps are no solution
    assert proof.stationarity > 1e-6


def test_both_answers_at_a_critical_point_are_those_that_the_solver_finds(model, critical):
    here = Penalty(model, critical.gamma, tol=1e-11)(critical.capacity)
    _, start, links = critical.paths
    for own, other in ((critical.flow, here.lower), (critical.costly_flow, here.penalized)):
        load = np.bincount(links, np.repeat(own, np.diff(start)), minlength=model.paths.links)
        solved = model.split(other.y)[0].sum(axis=0)
        assert np.max(np.abs(load - solved)) <= 1e-4 * np.max(solved)


def test_what_proves_a_critical_point_bounds_the_gain_of_a_convex_concave_step(model, critical):
    """Away from it, where there is one: with a tenth more capacity."""
    moved = critical._replace(capacity=1.1 * critical.capacity)
    proof = moved.proof(model)

    def majorant(capacity):
        penalized = model.penalized(capacity, critical.gamma, tol=1e-10)
        return penalized.value + critical.gamma * (critical.price @ capacity)

    step = _step(model, critical.gamma, critical.price)
    promised = majorant(moved.capacity) - majorant(step)
    assert promised > 0
    assert critical.gamma * proof.promised >= promised * (1 - 1e-6)
    assert proof.stationarity >= critical.gamma * promised * (1 - 1e-6) / (1.0 + abs(proof.value))


def test_design_of_a_large_network_is_certified_without_cold_solves(monkeypatch):
    """Run on a small one, where the core's own closing solve and certificate bear it out."""
    network = transport.load("nine_node")
    closed = transport.design(network)
    # the package's name ``design`` is the function
    module = sys.modules["blocc.applications.transport.design"]
    monkeypatch.setattr(module, "LARGE", 1)
    proven = transport.design(network, on_failure="return")
    certificate = proven.result.certificate
    assert certificate.lower_ok(1e-6)
    assert certificate.stationarity <= 1e-4
    assert certificate.ok(1e-6) == (proven.status.name == "IMPROVED")
    assert certificate.gamma == closed.result.certificate.gamma
    assert certificate.penalized_objective == pytest.approx(
        closed.result.certificate.penalized_objective, rel=1e-2
    )
    assert proven.profit >= closed.profit - 1e-6
    again = reference.profit(network, proven.capacity)
    assert again == pytest.approx(proven.profit, rel=1e-4)
