"""The capacity design model against CVXPY, finite differences and closed forms."""

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocc.applications.transport import bound
from blocc.applications.transport.model import SLACK, TransitModel
from blocc.applications.transport.network import load
from blocc.applications.transport.reference import solve_penalized, solve_relaxation
from blocc.errors import InvalidInputError
from blocc.model import HasConvexConcaveStep, HasImprovement, HasRelaxation


def a_model(name="nine_node", seed=0, **bounds):
    model = TransitModel(load(name), **bounds)
    return model, np.random.default_rng(seed).exponential(3, len(model.network.tail))


def test_declares_its_capabilities():
    model, _ = a_model()
    assert isinstance(model, HasRelaxation)
    assert isinstance(model, HasConvexConcaveStep)
    assert isinstance(model, HasImprovement)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 30))
def test_penalized_value_is_that_of_cvxpy(seed, gamma):
    model, x = a_model(seed=seed)
    saddle = model.penalized(x, gamma, tol=1e-9)
    reference = solve_penalized(model.network, x, gamma)
    assert saddle.value == pytest.approx(reference.objective, rel=1e-5, abs=1e-5)
    assert saddle.gap <= 1e-9


@pytest.mark.parametrize("gamma", [None, 0.2, 1.0, 20.0])
def test_value_is_the_objective_at_y(gamma):
    model, x = a_model()
    network = model.network
    saddle = model.lower(x, tol=1e-9) if gamma is None else model.penalized(x, gamma, tol=1e-9)
    flows, share = model.split(saddle.y)
    inner = share * (np.log(share) - 1) + (1 - share) * (np.log(1 - share) - 1)
    lower = network.travel_time @ flows.sum(axis=0)
    lower += network.trips @ (inner + network.alternative_time * (1 - share))
    upper = network.capacity_cost @ x - network.trips @ (network.revenue * share)
    assert model.upper(x, saddle.y) == pytest.approx(upper, rel=1e-13)
    expected = lower if gamma is None else upper + gamma * lower
    assert saddle.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gamma", [None, 0.5, 5.0])
def test_gradient_by_differences(gamma):
    model, x = a_model(seed=1)

    def solve(point):
        if gamma is None:
            return model.lower(point, tol=1e-12)
        return model.penalized(point, gamma, tol=1e-12)

    gradient = solve(x).grad_x
    for link in range(0, 30, 4):
        step = np.zeros(30)
        step[link] = 1e-4
        difference = (solve(x + step).value - solve(x - step).value) / 2e-4
        assert gradient[link] == pytest.approx(difference, abs=5e-4 * (1 + abs(difference)))


def test_residuals_find_what_is_wrong():
    model, x = a_model()
    saddle = model.lower(x, tol=1e-10)
    good = model.residuals(x, saddle.y, saddle.duals)
    assert good.objective == pytest.approx(saddle.value, rel=1e-12)
    assert -1e-12 <= good.gap <= 1e-10
    assert good.violation <= 1e-12
    assert good.complementarity <= 1e-9
    assert good.dual_infeasibility == 0.0

    full = int(np.argmax(saddle.duals["capacity"]))
    tight = x.copy()
    tight[full] *= 0.9
    expected = 0.1 * x[full] / (1 + tight[full])
    assert model.residuals(tight, saddle.y, saddle.duals).violation == pytest.approx(
        expected, rel=1e-6
    )

    flows, _ = model.split(saddle.y)
    lost = saddle.y.copy()
    lost[np.argmax(flows)] -= 0.3  # passengers who vanish on a link
    assert model.residuals(x, lost, saddle.duals).violation > 0.01

    idle = {"capacity": np.zeros_like(x)}
    assert model.residuals(x, saddle.y, idle).gap > 0.01
    negative = {"capacity": saddle.duals["capacity"] - 0.5}
    assert model.residuals(x, saddle.y, negative).dual_infeasibility > 0.01


@pytest.mark.parametrize("name", ["three_node", "nine_node", "seville"])
@pytest.mark.parametrize("gamma", [0.5, 8.0])
def test_convex_concave_step_is_the_minimiser(name, gamma):
    model, x = a_model(name)
    lower = model.lower(x, tol=1e-9)
    after = model.convex_concave_step(x, gamma, lower, tol=1e-9)
    # Convex, so first-order conditions on a >= 0 suffice, at saddle points of the penalised problem.
    gradient = model.penalized(after, gamma, tol=1e-12).grad_x - gamma * lower.grad_x
    total = model.network.capacity_cost @ after
    assert abs(gradient @ after) <= 1e-4 * total
    assert np.min(gradient) >= -1e-3
    value = model.penalized(x, gamma, tol=1e-9).value - gamma * lower.value
    there = (
        model.penalized(after, gamma, tol=1e-9).value - gamma * model.lower(after, tol=1e-9).value
    )
    assert there <= value + 1e-7 * (1 + abs(value))


def test_convex_concave_step_with_bounds():
    model, x = a_model(minimum=0.5, maximum=2.5)
    x = model.x_set.project(x)
    gamma = 1.0
    lower = model.lower(x, tol=1e-10)
    after = model.convex_concave_step(x, gamma, lower, tol=1e-11)
    assert np.all((after >= 0.5) & (after <= 2.5))
    assert np.any(after <= 0.5 + 1e-9)
    assert np.any(after >= 2.5 - 1e-8)
    gradient = model.penalized(after, gamma, tol=1e-12).grad_x - gamma * lower.grad_x
    gap, residual = model.x_set.linear_gap(after, gradient)
    assert 0 <= gap <= 1e-3
    assert np.all(residual == 0)


def _best_single_paths(network):
    """The bound by listing every simple path."""
    graph = network.to_networkx()
    total = 0.0
    for pair in range(len(network.trips)):
        ends = (network.nodes[network.origin[pair]], network.nodes[network.destination[pair]])
        best = 0.0
        for path in networkx.all_simple_edge_paths(graph, *ends):
            time = sum(graph.edges[edge]["travel_time"] for edge in path)
            cost = sum(graph.edges[edge]["capacity_cost"] for edge in path)
            share = 1 / (1 + np.exp(time - network.alternative_time[pair]))
            best = max(best, share * (network.revenue[pair] - cost))
        total += network.trips[pair] * best
    return total


@pytest.mark.parametrize("name", ["three_node", "nine_node"])
def test_bound_is_the_best_single_path_of_every_pair(name):
    model, _ = a_model(name)
    bound = -model.relaxation(tol=1e-6).bound
    assert bound == pytest.approx(_best_single_paths(model.network), rel=1e-12)
    assert bound <= -solve_relaxation(model.network, cap_shares=True).objective + 1e-6


def test_bound_where_paths_are_too_many_is_the_weaker_one(monkeypatch):
    monkeypatch.setattr(bound, "LABELS", 1)
    weaker = -a_model("seville")[0].relaxation(tol=1e-6).bound
    assert weaker == pytest.approx(581.8, abs=0.05)
    for name in ("three_node", "nine_node"):
        model, _ = a_model(name)
        reference = solve_relaxation(model.network, cap_shares=True)
        assert model.relaxation(tol=1e-6).bound == pytest.approx(reference.objective, rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_no_design_beats_the_bound_and_improve_improves(seed):
    model, x = a_model(seed=seed)
    x = x * np.random.default_rng(seed).choice([0.0, 1e-7, 0.1, 1.0], 30)
    lower = model.lower(x, tol=1e-10)
    before = model.upper(x, lower.y)
    better = model.improve(x, lower)
    after = model.upper(better, model.lower(better, tol=1e-10).y)
    assert np.all((better >= 0) & (better <= x))
    assert after <= before + 1e-7 * (1 + abs(before))
    assert after >= model.relaxation(tol=1e-6).bound


def test_three_node_optimum_in_closed_form():
    model, _ = a_model("three_node")
    share = 1 / (1 + np.exp(-2.0))
    x = np.where(np.isin(np.arange(6), (0, 2)), share, 0.0)  # links 1-2 and 2-1
    saddle = model.lower(x, tol=1e-10)
    assert -model.upper(x, saddle.y) == pytest.approx(2 * share, abs=1e-8)
    spare = np.where(x > 0, 0.9, 0.0)
    improved = model.improve(spare, model.lower(spare, tol=1e-10))
    np.testing.assert_allclose(improved, (1 + SLACK) * x, atol=1e-8)
    assert np.all(improved[x == 0] == 0)


def test_bad_bounds():
    with pytest.raises(InvalidInputError, match="minimum"):
        TransitModel(load("three_node"), minimum=-1.0)
    with pytest.raises(InvalidInputError, match="links"):
        TransitModel(load("three_node"), maximum=[1.0, 2.0])
