"""Designs by link prices: what prices make is an exact answer, and their dual is that of the smoothed profit."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit

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


def test_smoothed_dual_has_the_gradient_and_the_curvatures_that_steps_use(model):
    """The concave part's but for what shifts trips between a pair's paths, by which it is no more concave."""
    random = np.random.default_rng(3)
    links = model.paths.links
    price = random.uniform(0.1, 0.4, links)
    smooth = prices.Smooth(model, price)
    smooth._enter(prices.Stage(8.0, 1e-2, 1, 1e-2))
    toward = random.standard_normal(links)
    step = 1e-6
    here, after, before = (smooth._evaluate(price + shift * toward) for shift in (0.0, step, -step))
    gradient = here.load[1] + smooth.spare - here.load[0] - smooth.row_weight / price
    assert (after.value - before.value) / (2 * step) == pytest.approx(gradient @ toward, rel=1e-5)
    weights = [flow**2 / smooth.weight for flow in here.flow]
    convex, means = (
        np.tril(half) + np.tril(half, -1).T for half in smooth._curvatures(here, weights)
    )
    changes = [(before.load[at] - after.load[at]) / (2 * step) for at in (0, 1)]
    assert toward @ changes[0] == pytest.approx(toward @ convex @ toward, rel=1e-4)
    assert toward @ changes[1] >= toward @ means @ toward * (1 - 1e-4)
    # every pair a diagonal plus rank one: written down again, dense
    again = np.zeros((links, links))
    share = expit(here.margin[1])
    paths = smooth.generated
    incidence = np.zeros((len(paths), links))
    rows = np.repeat(np.arange(len(paths)), np.diff(paths.paths[1]))
    incidence[rows, paths.paths[2]] = 1.0
    for at, (first, last) in enumerate(itertools.pairwise(paths.pair_start)):
        weight = weights[1][first:last]
        elasticity = smooth.trips[at] * share[at] * (1 - share[at])
        mean = weight @ incidence[first:last] / np.sum(weight)
        again += np.outer(mean, mean) / (1 / elasticity + 1 / np.sum(weight))
    np.testing.assert_allclose(means, again, atol=1e-8 * np.max(again))


def test_two_threads_assemble_what_one_does(model, monkeypatch):
    smooth = prices.Smooth(model, prices.first_prices(model))
    for _ in smooth.steps(prices.Stage(8.0, 1e-3, 5, 1e-2)):
        pass
    here = smooth._evaluate(smooth.price)
    weights = [flow**2 / smooth.weight for flow in here.flow]
    alone = smooth._curvatures(here, weights)
    monkeypatch.setattr(prices, "THREADED", 0)
    for one, two in zip(alone, smooth._curvatures(here, weights), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-12, atol=1e-12 * np.max(one))


def test_climb_reports_its_way_and_returns_the_best_of_it(model):
    seen = []
    stages = (prices.Stage(8.0, 1e-3, 12, 1e-2), prices.Stage(32.0, 1e-4, 4, 1e-2))
    start = prices.first_prices(model)
    profit, price, point = prices.climb(model, start, stages, lambda *now: seen.append(now[0]))
    assert 4 < len(seen) <= 16
    assert profit == max(seen) > prices.loading(model, start)[0]
    assert prices.loading(model, price)[0] == profit
    assert point is None  # none was asked for


def test_climb_ends_where_its_critical_point_is_good_enough(model):
    steps = {1e-9: [], 1e-4: []}
    tight, loose = (
        prices.climb(
            model, prices.first_prices(model), search.FIRST, lambda *now, to=to: to.append(now), tol
        ).point
        for tol, to in steps.items()
    )
    assert len(steps[1e-4]) < len(steps[1e-9])
    assert loose.proof(model).stationarity <= 1e-4
    assert tight.proof(model).stationarity <= 1e-6
    assert tight.gamma == loose.gamma == search.GAMMA


def test_stage_goes_on_while_new_paths_come(model):
    steps = {np.inf: 0, 0.0: 0}
    for new in steps:
        for settled in (1.0, 0.3):
            smooth = prices.Smooth(model, prices.first_prices(model))
            known = [
                len(smooth.generated)
                for _ in smooth.steps(prices.Stage(8.0, 1e-3, 60, settled, new))
            ]
            steps[new] += len(known)
            assert new > 0 or known[-1] == known[-2]
    assert steps[0.0] > steps[np.inf]


def test_stages_of_huge_networks_lead_to_a_proven_point(model, monkeypatch):
    monkeypatch.setattr(search, "HUGE", 1)
    found = search.search(model, trials=0)
    ordinary = prices.climb(model, prices.first_prices(model), search.FIRST).profit
    assert found.point.proof(model).residual <= 1e-6
    assert found.point.gamma == search.LAST_GAMMA
    assert found.profit >= 0.97 * ordinary


def test_steps_at_one_gauge_do_not_raise_the_smoothed_dual(model):
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
