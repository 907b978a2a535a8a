"""Rung 3: how often the host waits for the device."""

from __future__ import annotations

import array_api_strict as strict
import pytest

import blocc
from blocc import maxmin
from blocc.errors import LowerNotSolvedError
from blocc.methods import descent
from blocc.model import Saddle
from blocc.penalty import Evaluation
from tests.conformance import problems


def slow_problem(device):
    """A coupled quadratic program with a Hilbert matrix, on which MaxMin needs thousands of iterations."""
    index = strict.arange(1, 7, dtype=strict.float64, device=device)
    hilbert = 1.0 / (strict.reshape(index, (6, 1)) + strict.reshape(index, (1, 6)) - 1.0)
    row = strict.reshape(strict.sin(index), (1, 6))
    block = maxmin.Constraint(lambda y: row @ y + 1.0, lambda y, dual: row.T @ dual)
    problem = maxmin.SaddleProblem(
        lambda y: 0.5 * (y @ (hilbert @ y)) - strict.sum(y),
        lambda y: hilbert @ y - 1.0,
        {"c": block},
        blocc.Box(-50.0, 50.0),
    )
    return problem, index * 0.0


@pytest.mark.parametrize("check_every", [20, 50])
def test_solve_looks_from_the_host_at_most_every_other_iteration(check_every, device, syncs):
    problem, y0 = slow_problem(device)
    counts = {}
    for limit in (200, 600):
        syncs.clear()
        with pytest.raises(LowerNotSolvedError, match=f"after {limit} iterations"):
            maxmin.solve(problem, y0, tol=1e-12, max_iterations=limit, check_every=check_every)
        counts[limit] = sum(syncs.values())
        numbers = {"__float__", "__bool__"}
        assert set(syncs) <= numbers, "data left the device, or was iterated over"
    assert counts[200] > 0
    assert (counts[600] - counts[200]) / 400 <= 10 / check_every
    setup = counts[200] - 200 * 10 / check_every
    assert setup <= 30  # the start, two early looks, and whether the scales are the same elsewhere


def test_published_maxmin_syncs_once_at_the_end(device, syncs):
    problem, y0 = problems.saddle_problem(strict, device)
    zero = {k: v * 0.0 for k, v in problem.values(y0).items()}
    syncs.clear()
    maxmin.maxmin(problem, y0, zero, eta_1=0.1, eta_2=0.1, T=100, T_y=3)
    assert sum(syncs.values()) == 1


@pytest.mark.parametrize("size", [3, 60])
def test_spectral_syncs_a_constant_number_of_times_an_outer_iteration(size, device, syncs):
    """Independent of the number of variables; the oracle's own value is one of them."""
    weights = strict.linspace(1.0, 30.0, size, device=device)
    evaluations = 0

    def oracle(x):
        nonlocal evaluations
        evaluations += 1
        value = float(strict.sum(weights * (x - 1.0) ** 2))
        saddle = Saddle(x, {}, value, x, 0.0, 0.0, 0)
        slope = 2.0 * weights * (x - 1.0)
        return Evaluation(x, 1.0, value, slope, saddle, saddle, value, 0.0)

    start = oracle(strict.zeros(size, device=device))
    syncs.clear()
    evaluations = 0
    iterates = list(
        descent.spectral(oracle, start, blocc.Ball(100.0), tol=1e-6, max_iterations=200)
    )
    assert len(iterates) >= 5
    assert float(strict.max(strict.abs(iterates[-1].x - 1.0))) < 1e-6
    assert set(syncs) == {"__float__"}
    assert sum(syncs.values()) - evaluations <= 9 * len(iterates) + 10


def test_the_counter_counts(device, syncs):
    array = strict.asarray([1.0, 2.0], device=device)
    float(strict.sum(array))
    bool(strict.all(array > 0))
    list(array)
    assert syncs["__float__"] == 1
    assert syncs["__bool__"] == 1
    assert syncs["__iter__"] == 1
