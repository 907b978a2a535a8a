"""Designs by link prices: what prices make is an exact answer, and their dual is that of the smoothed profit."""

from __future__ import annotations

import numpy as np
import pytest

from blocc.applications import transport
from blocc.applications.transport import prices, reference
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


@pytest.mark.parametrize("seed", [0, 1])
def test_any_prices_make_a_design_whose_profit_cvxpy_confirms(model, seed):
    price = np.random.default_rng(seed).exponential(0.2, model.paths.links)
    profit, flow = prices.loading(model, price)
    assert reference.profit(model.network, (1 + SLACK) * flow) == pytest.approx(profit, rel=1e-4)


@pytest.mark.parametrize("gamma", [2.0, 16.0])
def test_dual_bounds_the_smoothed_profit_and_meets_it_at_the_passengers_prices(model, gamma):
    price = np.random.default_rng(2).exponential(0.1, model.paths.links)
    capacity = model.unlimited_step(gamma, price)
    here = Penalty(model, gamma, tol=1e-10)(capacity)
    size = 1.0 + abs(here.value)
    assert here.value <= _psi(model, price, gamma) + 1e-6 * size
    # at the passengers' own prices a step of capacities falls no farther than the dual says
    own = here.lower.duals["capacity"]
    after = Penalty(model, gamma, tol=1e-10)(model.unlimited_step(gamma, own))
    assert after.value <= _psi(model, own, gamma) + 1e-6 * size
    assert _psi(model, own, gamma) <= here.value + 1e-6 * size


def test_smoothed_dual_has_the_gradient_and_curvature_that_steps_use(model):
    smooth = prices._Smooth(model)
    random = np.random.default_rng(3)
    price = random.uniform(0.1, 0.4, model.paths.links)
    smooth._generate(price, 8.0)
    smooth._weigh(np.ones(model.paths.links), prices.Stage(8.0, 1e-2, 1, 1e-4))
    toward = random.standard_normal(model.paths.links)
    step = 1e-6

    def slope(at):
        spare = prices.SPARE * smooth.typical
        gradient = at.costly_load + spare - at.load - smooth.row_weight / place
        return float(gradient @ toward)

    here, place = smooth._evaluate(price), price
    now = slope(here)
    place = price + step * toward
    ahead = smooth._evaluate(place)
    after = slope(ahead)
    place = price - step * toward
    behind = smooth._evaluate(place)
    before = slope(behind)
    assert (ahead.value - behind.value) / (2 * step) == pytest.approx(now, rel=1e-5)
    rows = np.arange(model.paths.links)
    matrix = smooth._curvature(rows, here.flow, here.margin)
    matrix -= smooth._curvature(rows, here.costly_flow, here.costly_margin)
    curved = toward @ matrix @ toward + toward @ (smooth.row_weight / price**2 * toward)
    assert (after - before) / (2 * step) == pytest.approx(curved, rel=1e-4)


def test_climb_reports_its_way_and_returns_the_best_of_it(model):
    seen = []
    stages = (prices.Stage(8.0, 1e-3, 12, 1e-4), prices.Stage(32.0, 1e-4, 4, 1e-4))
    start = prices.first_prices(model)
    profit, price = prices.climb(model, start, stages, lambda *now: seen.append(now[0]))
    assert 4 < len(seen) <= 16
    assert profit == max(seen) > prices.loading(model, start)[0]
    assert prices.loading(model, price)[0] == profit
