"""Random programs from the families that break solvers: no crash, no hang, no claim that an independent check refutes.

The few here keep the default run short; ``benchmarks/robust.py`` runs thousands and writes a table of what became of
them.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

from blocc.errors import LowerInfeasibleError
from tests.robust import oracle, programs, trial

ROUND = len(programs.FAMILIES)


def check(seeds: range, form: str, limit: float) -> None:
    for seed in seeds:
        program = programs.program(seed)
        outcome = trial.attempt(program, form, limit)
        assert not outcome.word.startswith(("crash", "out of time")), outcome
        assert outcome.false is None, outcome
        if program.family in programs.HOPELESS:
            assert outcome.word.endswith(("Error", "proven")), outcome


def test_no_crash_hang_or_false_claim_in_one_program_of_every_family():
    check(range(ROUND), "cvxpy", limit=120.0)


@pytest.mark.slow
@pytest.mark.timeout(20_000)
@pytest.mark.parametrize("start", range(0, 4500, 10 * ROUND))
def test_no_crash_hang_or_false_claim_in_thousands(start):
    check(range(start, start + 10 * ROUND), "cvxpy", limit=120.0)


@pytest.mark.slow
@pytest.mark.timeout(20_000)
@pytest.mark.parametrize("start", range(4500, 5000, 10 * ROUND))
def test_no_crash_hang_or_false_claim_in_functional_form(start):
    check(range(start, min(start + 10 * ROUND, 5000)), "functional", limit=300.0)


def test_a_ridge_is_not_called_stationary_in_functional_form():
    """At a concave kink gradients of both sides combine to zero, and yet moves descend."""
    assert trial.attempt(programs.program(152), "functional", 120.0).false is None


@pytest.mark.parametrize(
    ("seed", "what"),
    [
        (278, "f a trillion times steeper than g: the last gamma is far from the true response"),
        pytest.param(
            *(550, "x in units a thousand apart: descent along the short ones"),
            marks=pytest.mark.slow,
        ),
        (559, "G cannot be met at the start"),
        (530, "a row twice: steps left the domain by less than their tolerance"),
        (504, "rows in units a million apart: the restoration has to see all of them"),
    ],
    ids=lambda value: str(value).split(":")[0],
)
def test_no_false_claim_in_functional_form_where(seed, what):
    """Each made one: called stationary where there was descent, or infeasible where it is not."""
    outcome = trial.attempt(programs.program(seed), "functional", 120.0)
    assert outcome.false is None, (what, outcome)
    assert outcome.word in ("STATIONARY", "FEASIBLE"), (what, outcome)


@pytest.mark.parametrize(
    ("seed", "what"),
    [
        (135, "a kink where four pieces meet, one of them missed by random samples"),
        (12236, "one upper variable, both random samples on the same side"),
        (12051, "descent along the edge of the lower level's domain"),
        (12277, "the same, a slab a millionth wide"),
    ],
    ids=lambda value: str(value).split(":")[0].split(",")[0],
)
def test_kinks_and_edges_are_certified_in_functional_form(seed, what):
    """Each ended feasible, without a certificate of stationarity."""
    outcome = trial.attempt(programs.program(seed), "functional", 120.0)
    assert (outcome.word, outcome.false) == ("STATIONARY", None), (what, outcome)


# ---- the oracle itself: it must be able to say no ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: {"y": c.y + 1e-2}, "lower"),
        (lambda c: {"objective": c.objective - 1e-3}, "objective is not f"),
        (lambda c: {"bound": c.objective + 1.0}, "bound above"),
        (lambda c: {"x": np.full_like(c.x, np.nan)}, "not finite"),
    ],
    ids=["y moved", "objective lowered", "bound raised", "x not a number"],
)
def test_the_oracle_refutes_a_wrong_claim(change, word):
    from dataclasses import replace

    program = programs.program(30)
    claim = oracle.claim(trial.solve(program, "cvxpy"))
    assert oracle.refute(program, claim) is None
    assert word in str(oracle.refute(program, replace(claim, **change(claim))))


def test_the_oracle_refutes_stationarity_where_there_is_descent():
    """Of another x with its own right answer: everything holds but what is said of x."""
    program = programs.program(30)
    x = oracle.claim(trial.solve(program, "cvxpy")).x
    for other in np.linspace(program.x_low, program.x_high, 9):
        response = oracle.respond(program, other)
        if response is not None and np.abs(other - x).max() > 0.2:
            claim = oracle.Claim("STATIONARY", other, response.y, response.objective, None)
            assert oracle.refute(program, claim) == "descent"
            return
    pytest.fail("no other x has a response")


def test_the_oracle_proves_infeasibility_where_it_holds_and_nowhere_else():
    assert oracle.proven_infeasible(programs.program(13))  # infeasible by construction
    assert oracle.proven_infeasible(programs.program(1191))  # a row's opposite against the others
    for seed in (0, 4, 6, 7, 9, 10):
        assert not oracle.proven_infeasible(programs.program(seed))


def test_a_refusal_of_a_feasible_program_is_a_false_claim(monkeypatch):
    def refused(*_, **__):
        raise LowerInfeasibleError("no point")

    monkeypatch.setattr(trial, "solve", refused)
    outcome = trial.attempt(programs.program(0), "cvxpy")
    assert outcome.false == "called infeasible, and is not"


# ---- side by side -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", trial.FORMS)
def test_two_solves_at_once_give_the_answers_of_each_alone(form):
    seeds = (0, 30) if form == "cvxpy" else (47, 24)
    alone = [oracle.claim(trial.solve(programs.program(seed), form)) for seed in seeds]
    together: dict[int, oracle.Claim] = {}

    def work(k: int) -> None:
        together[k] = oracle.claim(trial.solve(programs.program(seeds[k]), form))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(seeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, expected in enumerate(alone):
        assert together[k].status == expected.status
        assert together[k].x.tobytes() == expected.x.tobytes()
        assert together[k].y.tobytes() == expected.y.tobytes()
