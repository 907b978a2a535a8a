"""Critical points by prices: proven by weak duality, confirmed by the solvers that know nothing of them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from blocc.applications import transport
from blocc.applications.transport import critical as module
from blocc.applications.transport import prices, reference, search
from blocc.applications.transport.critical import Critical, Settling
from blocc.applications.transport.model import TransitModel
from blocc.certificate import predicted_decrease
from blocc.penalty import Penalty
from tests.transport.test_random_designs import random_network

design_module = sys.modules[
    "blocc.applications.transport.design"
]  # the package's name is the function


@pytest.fixture(scope="module", params=["nine_node", "seville"])
def model(request):
    return TransitModel(transport.load(request.param))


def _settling(model, gauge=1e-6, gamma=32.0):
    """From where a climb's stages end, at some gauge."""
    smooth = prices.Smooth(model, prices.first_prices(model))
    for stage in search.FIRST:
        for _ in smooth.steps(stage):
            pass
    settling = Settling(model, gamma, smooth.price, smooth.generated.paths, smooth.passengers)
    settling.gauge = gauge
    settling._generate()
    return settling


@pytest.fixture(scope="module")
def critical(model):
    return search.search(model, trials=0).point


def test_where_a_climb_ends_is_proven_critical(model, critical):
    assert critical.proof(model).residual <= 1e-6
    assert critical.gamma == search.LAST_GAMMA


def test_gradient_and_curvatures_of_a_step_are_those_of_differences(model):
    settling = _settling(model)
    random = np.random.default_rng(3)
    price = settling.price + 0.01 * random.uniform(size=len(settling.price))
    toward, step = random.standard_normal(len(price)), 1e-7
    here, after, before = (settling._evaluate(price + by * toward) for by in (0.0, step, -step))
    change = (after.value - before.value) / (2 * step)
    assert change == pytest.approx(-settling._down(here) @ toward, rel=1e-5, abs=1e-8)
    rich = (before.load[1] - after.load[1]) / (2 * step)
    lists = (settling.generated.pair_start, *settling.generated.paths[1:])
    alone = np.zeros(len(settling.generated))
    alone[here.chosen] = module.ALONE
    share = expit(here.rich_margin)
    elasticity = settling.generated.trips * share * (1 - share)
    everywhere = np.arange(len(price))
    curvature = module._symmetric(
        module._assemble_means(*lists, everywhere, alone, elasticity, len(price))
    )
    np.testing.assert_allclose(rich, curvature @ toward, atol=1e-4 * np.max(np.abs(rich)))


def test_steps_at_one_gauge_do_not_raise_psi_on_the_same_paths(model):
    settling = _settling(model)
    settling._generate = lambda: 0
    settling._close = lambda here: None
    values = [settling._evaluate(settling.price).value]
    for _ in range(8):
        promised, there = settling._step()
        assert promised >= 0
        values.append(there.value)
        assert settling._evaluate(settling.price).value == pytest.approx(there.value, rel=1e-12)
        assert np.all(settling.price >= 0)
    assert values[-1] < values[0]
    assert np.all(np.diff(values) <= 1e-12 * np.abs(values[0]))


def test_prices_at_bound_and_closed_links_are_exact(model, critical):
    """Most prices are zero itself, not nearly; closed links carry nobody, open ones more than next to nobody."""
    assert np.sum(critical.price == 0.0) > 0.2 * len(critical.price)
    typical = np.sum(model.network.trips**2) / np.sum(model.network.trips)
    carrying = critical.capacity > 0
    assert np.all(critical.capacity[carrying] > 0.5 * module.LEAST * typical)


def test_closed_links_cost_no_more_than_keeps_passengers_off(model):
    settling = _settling(model)
    closed = np.arange(model.paths.links) % 3 == 0
    settling.closed, settling.price = closed, np.where(closed, 0.0, settling.price)
    price = settling.closing_price()
    assert np.all(price[~closed] == settling.price[~closed])
    cost, own = (model.network.travel_time + p for p in (price, settling.price))
    without = model.paths.distances(np.where(closed, np.inf, cost))
    reached = np.isfinite(without)
    np.testing.assert_allclose(model.paths.distances(cost)[reached], without[reached], atol=1e-9)
    assert np.any(model.paths.distances(own)[reached] < without[reached] - 1e-3)
    # the dearest closed link is as cheap as that allows: a little less, and somebody is on it
    link = np.argmax(np.where(closed, price, 0.0))
    cheaper = cost.copy()
    cheaper[link] -= 1e-3 * price[link]
    limit = np.where(reached, without, model.network.alternative_time + module.CUTOFF)
    assert np.any(model.paths.distances(cheaper) < limit - 1e-6)


def test_fitted_flows_are_those_that_the_capacities_allow():
    """Two equally long routes: trips that part otherwise than the capacities want: a step mends it."""
    links = pd.DataFrame(
        [(1, 1, 2, 1.0, 0.3), (2, 2, 4, 1.0, 0.3), (3, 1, 3, 1.0, 0.3), (4, 3, 4, 1.0, 0.3)],
        columns=["link_id", "from_node", "to_node", "travel_time", "capacity_cost"],
    )
    demand = pd.DataFrame(
        [(1, 4, 5.0, 3.0, 4.0)],
        columns=["origin", "destination", "trips", "alternative_time", "revenue"],
    )
    model = TransitModel(transport.from_tables(links, demand))
    capacity = np.array([2.0, 2.0, 1.0, 1.0])
    price = model.lower(capacity, tol=1e-12).duals["capacity"]
    generated = prices.GeneratedPaths(model)
    generated.add([model.network.travel_time + np.array(p) for p in ([0, 0, 1, 1], [1, 1, 0, 0])])
    settling = Settling(model, 4.0, price, generated.paths)
    settling.gauge = 1e-8
    answer = np.where(generated.paths[2][::2] == 0, 2.0, 1.0)
    point = Critical(4.0, capacity, price, generated.paths, answer, answer)
    assert point.proof(model).gap <= 1e-9
    away = point._replace(flow=np.array([1.5, 1.5]))
    assert away.proof(model).gap > 1e-2
    fitted = settling._fitted(away, settling._evaluate(price))
    assert fitted.proof(model).gap <= 1e-7
    np.testing.assert_allclose(fitted.flow, answer, atol=1e-5)


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

    lower = SimpleNamespace(duals={"capacity": critical.price})
    step = model.convex_concave_step(
        np.zeros_like(critical.price), critical.gamma, lower, tol=1e-10
    )
    promised = majorant(moved.capacity) - majorant(step)
    assert promised > 0
    assert critical.gamma * proof.promised >= promised * (1 - 1e-6)
    assert proof.stationarity >= critical.gamma * promised * (1 - 1e-6) / (1.0 + abs(proof.value))


# on the last four the operator's money would open links that passengers' prices of its own choice kept closed
@pytest.mark.parametrize("case", ["nine_node", "seville", 63, 89, 99, 156])
def test_core_finds_nothing_to_gain_at_a_critical_point(case):
    """By its own convex-concave step, from cold solves of the lower level at the capacities alone."""
    network = random_network(case) if isinstance(case, int) else transport.load(case)
    model = TransitModel(network)
    point = search.search(model, trials=0).point
    assert point.proof(model).residual <= 1e-6
    here = Penalty(model, point.gamma, tol=1e-11)(point.capacity)
    assert here.value == pytest.approx(point.proof(model).value, rel=1e-6)
    assert predicted_decrease(model, here, tol=1e-11) <= 1e-6


def test_prices_that_are_no_numbers_or_negative_prove_nothing(model, critical):
    for wrong in (np.nan, np.inf, -1.0):
        price = critical.price.copy()
        price[0] = wrong
        assert critical._replace(price=price).proof(model).residual == np.inf


def test_pairs_that_earn_nothing_do_not_close_links_for_others():
    """A pair of a million trips that no operator would serve, beside two small ones that pay."""
    links = pd.DataFrame(
        [(1, 1, 2, 1.0, 1.0), (2, 2, 3, 1.0, 1.0), (3, 3, 4, 1.0, 1.0)],
        columns=["link_id", "from_node", "to_node", "travel_time", "capacity_cost"],
    )
    demand = pd.DataFrame(
        [(1, 2, 10.0, 3.0, 5.0), (2, 3, 10.0, 3.0, 5.0), (3, 4, 1e6, 3.0, 0.5)],
        columns=["origin", "destination", "trips", "alternative_time", "revenue"],
    )
    network = transport.from_tables(links, demand)
    plan = transport.design(network, starts=0)
    assert plan.status.name in ("OPTIMAL", "IMPROVED")
    assert plan.profit == pytest.approx(2 * 10.0 * expit(2.0) * 4.0, rel=1e-4)
    assert reference.profit(network, plan.capacity) == pytest.approx(plan.profit, rel=1e-4)


def test_design_far_from_its_critical_point_is_not_called_improved(monkeypatch):
    network = transport.load("nine_node")
    for name, value in (("MOVED", 1e-9), ("LARGE", 1)):
        monkeypatch.setattr(design_module, name, value)
    plan = transport.design(network, starts=0, on_failure="return")
    assert plan.status.name == "FEASIBLE"
    assert "too far away: moved" in plan.result.message


@pytest.mark.parametrize("seed", [80, 86, 138])
def test_design_far_from_its_critical_point_is_led_on_to_one_of_its_own(seed):
    network = random_network(seed)
    model = TransitModel(network)
    searched = search.search(model, trials=12)
    plan = transport.design(network, starts=12)
    assert plan.result.certificate.ok(1e-6)
    assert plan.profit >= 0.999 * searched.profit
    away = np.max(np.abs(searched.capacity(model) - searched.point.capacity))
    assert away > 0.05 * np.max(searched.point.capacity)  # its own point is far
    assert reference.profit(network, plan.capacity) == pytest.approx(plan.profit, rel=1e-4)


def test_ctrl_c_in_the_certificate_keeps_the_design(monkeypatch):
    network, whole = transport.load("nine_node"), design_module._best_answer

    def stopped(*arguments):
        monkeypatch.setattr(design_module, "_best_answer", whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(design_module, "_best_answer", stopped)
    plan = transport.design(network, starts=0)
    assert plan.status.name == "INTERRUPTED"
    assert plan.result.certificate.lower_ok(1e-6)
    assert plan.profit > 17


def test_penalised_objective_is_a_lower_bound_at_the_design_itself(model):
    plan = transport.design(model.network, starts=0)
    certificate = plan.result.certificate
    here = Penalty(model, certificate.gamma, tol=1e-11)(plan.capacity)
    size = 1.0 + abs(here.value)
    assert certificate.penalized_objective <= here.value + 1e-6 * size
    assert certificate.penalized_objective >= here.value - 1e-2 * size
    assert certificate.penalized_objective <= -plan.profit + 1e-6 * size


def test_design_is_certified_without_cold_solves(monkeypatch):
    network, lower = transport.load("nine_node"), TransitModel.lower

    def warm_only(self, x, *, tol, warm=None):
        assert warm is not None
        return lower(self, x, tol=tol, warm=warm)

    monkeypatch.setattr(TransitModel, "lower", warm_only)
    monkeypatch.delattr(TransitModel, "penalized")
    plan = transport.design(network, starts=0)
    certificate = plan.result.certificate
    assert plan.status.name == "IMPROVED"
    assert certificate.ok(1e-6)
    assert certificate.gamma == search.LAST_GAMMA
    built = plan.capacity > 0
    assert np.any(~built)  # exactly zero where nobody travels
    assert np.min(plan.capacity[built]) > 1e-3 * np.max(plan.capacity)
    assert reference.profit(network, plan.capacity) == pytest.approx(plan.profit, rel=1e-4)
    searched = transport.design(network)  # a trial that earns more leads to a point of its own
    assert searched.profit >= plan.profit - 1e-6
    assert searched.result.certificate.ok(1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 12))
def test_bounded_quadratic_problem_is_solved_as_cvxpy_does(seed, size):
    random = np.random.default_rng(seed)
    factor = random.standard_normal((size, size + 2))
    matrix = factor @ factor.T
    force, room = random.standard_normal(size), random.exponential(size=size)
    room[random.random(size) < 0.3] = 0.0
    step, bound = module._bounded(matrix, force, room)
    assert np.all(step >= -room)
    assert np.all(step[bound] == -room[bound])
    x = cp.Variable(size)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(factor.T @ x) - force @ x), [x >= -room])
    problem.solve(solver=cp.CLARABEL)
    own = 0.5 * step @ matrix @ step - force @ step
    assert own <= problem.value + 1e-6 * (1 + abs(problem.value))


def test_bounded_problem_of_an_indefinite_matrix_is_refused():
    assert module._bounded(np.diag([1.0, -1.0]), np.ones(2), np.ones(2)) is None


def test_saddle_free_step_leads_off_a_saddle_and_is_newtons_where_there_is_none():
    convex, far = np.diag([2.0, 2.0]), np.full(2, 1e3)
    down = np.array([1.0, 0.1])
    step, promised, indefinite = module._saddle_free(convex, np.diag([1.0, 1.5]), down, far, 1e-3)
    assert not indefinite
    np.testing.assert_allclose(step, down / np.array([1.0, 0.5]))
    step, promised, indefinite = module._saddle_free(convex, np.diag([1.0, 2.2]), down, far, 1e-3)
    assert indefinite
    np.testing.assert_allclose(step, down / np.array([1.0, 0.2]))
    assert promised == pytest.approx(down @ step)
    step, *_ = module._saddle_free(convex, np.zeros((2, 2)), -down, np.array([0.1, 0.0]), 1e-3)
    np.testing.assert_allclose(step, [-0.1, 0.0], atol=1e-15)
