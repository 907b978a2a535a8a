"""The catalogue as a conformance suite (skipped where it is not there)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.testset import catalogue

pytestmark = pytest.mark.skipif(
    not catalogue.available(), reason=f"no catalogue at {catalogue.path()} (set BLOCC_SHARED)"
)
ENTRIES = catalogue.problems() if catalogue.available() else []
# one of every class and kind of difficulty; all 101 run in the slow test below
CHOSEN = {
    "AiyoshiShimizu1984Ex2",
    "Outrata1990Ex2e",
    "DempeLohse2011Ex31a",
    "HTP_quad06b",
    "TollSettingP4",
    "MitsosBarton2006Ex38",
    "Dempe1992b_x1",
    "ShimizuEtal1997b",
    "LanWenShihLee2007",
    "CVgen_mix_n2",
    "FloudasHTP935",
    "MacalHurter1997",
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_cvxpy_form_equals_the_expressions(entry: dict) -> None:
    problem = catalogue.to_bilevel_problem(entry)
    functions = catalogue.callables(entry)
    generator = np.random.default_rng(0)
    for _ in range(3):
        x = np.array(entry["x_star"]) + generator.uniform(0.01, 0.3, entry["nx"])
        y = np.array(entry["y_star"]) + generator.uniform(0.01, 0.3, entry["ny"])
        here = problem.derivatives(x, y)
        assert problem.upper(x, y) == pytest.approx(functions.F(x, y), rel=1e-9, abs=1e-9)
        assert here.lower == pytest.approx(functions.f(x, y), rel=1e-9, abs=1e-9)
        expected = np.concatenate([functions.G(x, y), functions.g(x, y)])
        assert here.inequality == pytest.approx(expected, rel=1e-9, abs=1e-9)
        expected = np.concatenate([functions.H(x, y), functions.h(x, y)])
        assert here.equality == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_scorer_accepts_the_listed_optimum_and_rejects_a_wrong_answer(entry: dict) -> None:
    x, y = np.array(entry["x_star"], float), np.array(entry["y_star"], float)
    assert catalogue.score(entry, x, y).kind == "optimum"
    assert catalogue.score(entry, x + 0.5, y - 0.7).kind != "optimum"


def solve(entry: dict, starts: int | str = 1) -> tuple[str, str, bool]:
    problem = catalogue.to_bilevel_problem(entry)
    (variable,) = problem.upper_layout.variables
    variable.save_value(np.array(entry["x0"], float))
    result = problem.solve(starts=starts, on_failure="return")
    verdict = catalogue.score(entry, result.x["x"], result.y["y"])
    false = result.success and (verdict.kind == "infeasible" or verdict.below)
    return verdict.kind, result.status.name, false


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e["name"] in CHOSEN], ids=lambda entry: entry["name"]
)
def test_known_optimum_from_the_listed_start(entry: dict) -> None:
    kind, _, false = solve(entry)
    assert kind == "optimum"
    assert not false


@pytest.mark.slow
def test_at_least_95_optima_and_no_false_claim() -> None:
    answers = [solve(entry) for entry in ENTRIES]
    assert not any(false for *_, false in answers)
    assert sum(kind == "optimum" for kind, *_ in answers) >= 95


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_at_least_98_optima_from_range_starts() -> None:
    answers = [solve(entry, "range") for entry in ENTRIES]
    assert not any(false for *_, false in answers)
    assert sum(kind == "optimum" for kind, *_ in answers) >= 98
