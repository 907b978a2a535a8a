"""The units that a program is written in change neither its answer nor what is claimed of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from blocc import BilevelProblem, LowerProblem
from blocc.conic_dense import solve_or_explain
from blocc.errors import LowerInfeasibleError
from blocc.methods.joint import Joint, _TrustRegion
from blocc.result import Status
from blocc.scaling import equilibrate
from tests.robust import oracle, programs, trial


@pytest.mark.parametrize("seed", [1570, 1825, 2560, 1854, 2529])
def test_programs_in_odd_units_are_solved_and_no_small_move_descends(seed: int) -> None:
    program = programs.program(seed)
    claim = oracle.claim(trial.solve(program, "cvxpy"))
    assert claim.status in oracle.SUCCESS
    assert oracle.refute(program, claim) is None


def in_other_units(
    program: programs.Program, i: Any, k: Any, row: float, f: float, g: float
) -> programs.Program:
    """The same program with x' = i x, y' = k y, rows, f and g multiplied."""
    both = np.concatenate([i, k])
    return replace(
        program,
        H=f * program.H / np.outer(both, both),
        r=f * program.r / both,
        Q=g * program.Q / np.outer(k, k),
        q=g * program.q / k,
        P=g * program.P / np.outer(k, i),
        A=row * program.A / i,
        B=row * program.B / k,
        b=row * program.b,
        E=program.E / row / i,
        F=program.F / row / k,
        e=program.e / row,
        x_low=i * program.x_low,
        x_high=i * program.x_high,
        y_low=k * program.y_low,
        y_high=k * program.y_high,
        x0=i * program.x0,
    )


@pytest.mark.parametrize("seed", [0, 15, 30, 45, 60])
def test_answer_does_not_depend_on_the_units(seed: int) -> None:
    program, random = programs.program(seed), np.random.default_rng(seed)
    i, k = 10.0 ** random.uniform(-3, 3, program.n), 10.0 ** random.uniform(-3, 3, program.m)
    f, g = 1e4, 1e-3
    other = in_other_units(program, i, k, 1e5, f, g)
    first = oracle.claim(trial.solve(program, "cvxpy"))
    second = oracle.claim(trial.solve(other, "cvxpy"))
    assert first.status == second.status
    assert second.status in oracle.SUCCESS
    assert second.objective / f == pytest.approx(first.objective, rel=1e-5, abs=1e-6)
    assert second.x / i == pytest.approx(first.x, abs=1e-4)


def test_equilibration_leaves_entries_of_order_one_and_follows_the_units() -> None:
    random = np.random.default_rng(1)
    jacobian, hessian = random.standard_normal((4, 5)), np.cov(random.standard_normal((5, 20)))
    slope, k = random.standard_normal(5), 10.0 ** random.uniform(-4, 4, 5)
    column, row = equilibrate(jacobian, [(slope, hessian)])
    sizes = np.abs(row[:, None] * jacobian * column).max(axis=1)
    assert sizes == pytest.approx(np.ones(4))
    other, rows = equilibrate(1e5 * jacobian / k, [(slope / k, hessian / np.outer(k, k))])
    # near the same numbers, though k spans eight orders; a common factor is left open
    factor = other / k / column
    assert np.all(factor / np.median(factor) < 4.0)
    assert np.all(factor / np.median(factor) > 0.25)
    sizes = np.abs(rows[:, None] * 1e5 * jacobian / k * other).max(axis=1)
    assert sizes == pytest.approx(np.ones(4))


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e7])
def test_feasible_rows_of_any_size_are_not_called_infeasible(size: float) -> None:
    x, y = cp.Variable(name="x", bounds=[0, 1]), cp.Variable(2, name="y", bounds=[-5, 5])
    rows = [size * (y[0] + y[1] - x) <= 0, size * (y[0] - y[1]) == size * 0.5]
    lower = LowerProblem(cp.Minimize(cp.sum_squares(y - 1)), rows, given=[x])
    result = BilevelProblem(cp.Minimize(cp.square(x - 0.3) + y[0]), lower).solve()
    # y = (x/2 + 1/4, x/2 - 1/4): minimise (x - 0.3)^2 + x/2
    assert result.x["x"] == pytest.approx(0.05, abs=1e-6)


def test_infeasibility_is_claimed_with_multipliers_that_prove_it() -> None:
    A = np.array([[1.0, 1.0], [-1.0, -1.0]])
    with pytest.raises(LowerInfeasibleError) as caught:
        solve_or_explain(
            np.eye(2), np.zeros(2), A, np.array([9.0, 9.0, 1.0, -2.0]), np.full(4, -1e30)
        )
    ray = np.asarray(caught.value.ray)
    assert np.all(ray[2:] > 0)
    assert ray[:2] + ray[2:] @ A == pytest.approx([0.0, 0.0], abs=1e-12)
    assert ray[2] * 1.0 + ray[3] * -2.0 < 0


@pytest.mark.parametrize("product", [False, True], ids=["affine rows", "rows times x"])
def test_infeasible_rows_are_named_with_multipliers_in_their_own_units(product: bool) -> None:
    x, y = cp.Variable(name="x", bounds=[1, 2]), cp.Variable(2, name="y", bounds=[-5, 5])
    factor = x if product else 1.0
    rows = {
        "large": 1e4 * factor * (y[0] + y[1]) <= 1e4,
        "small": -1e-4 * (y[0] + y[1]) <= -3e-4,
        "idle": y[0] <= 4,
    }
    lower = LowerProblem(cp.Minimize(cp.sum_squares(y)), rows, given=[x])
    problem = BilevelProblem(cp.Minimize(cp.square(x)), lower)
    with pytest.raises(LowerInfeasibleError, match="'large' and 'small'") as caught:
        problem.lower(np.ones(1))
    ray = caught.value.ray
    # u (1e4 s - 1e4) + w (3e-4 - 1e-4 s) with u 1e4 = w 1e-4: positive for every s
    large, small = float(np.ravel(ray["large"])[0]), float(np.ravel(ray["small"])[0])
    assert 1e4 * large == pytest.approx(1e-4 * small, rel=1e-6)
    assert large > 0


def test_multipliers_that_prove_nothing_are_no_infeasibility(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A solver that wrongly reports a shortfall is not believed."""
    import blocc.conic_dense as dense

    real = dense.solve_dense_qp

    def wrong(P: Any, q: Any, A: Any, upper: Any, lower: Any, **options: Any) -> Any:
        if len(q) == 1:
            return None  # the program itself: not solved
        answer = real(P, q, A, upper, lower, **options)
        z = answer.z.copy()
        z[-1] = 1.0  # of the least shortfall, truly zero
        return answer._replace(z=z)

    monkeypatch.setattr(dense, "solve_dense_qp", wrong)
    one = np.ones((1, 1))
    assert solve_or_explain(one, np.zeros(1), one, np.full(2, 2.0), np.full(2, 1.0)) is None


def test_a_quadratic_program_on_which_the_solver_goes_in_circles_is_solved_by_proximal_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("daqp")
    import blocc.conic_dense as dense

    real = dense.daqp.solve

    def circling(*data: Any, eps_prox: float, **options: Any) -> Any:
        z, value, flag, info = real(*data, eps_prox=eps_prox, **options)
        return (z, value, -2, info) if eps_prox < 0 else (z, value, flag, info)

    monkeypatch.setattr(dense.daqp, "solve", circling)
    monkeypatch.setattr(dense, "_interior_point", lambda *data: None)
    P, q = np.diag([1.0, 0.0]), np.array([-2.0, -1.0])  # z = (1, 2) on z_0 + z_1 <= 3 and z_1 <= 2
    upper = np.array([dense.INFINITE, 2.0, 3.0])
    answer = dense.solve_dense_qp(P, q, np.ones((1, 2)), upper, np.full(3, -dense.INFINITE))
    assert answer is not None
    assert answer.z == pytest.approx([1.0, 2.0], abs=1e-12)
    assert answer.dual == pytest.approx([0.0, 0.0, 1.0], abs=1e-12)


def test_a_run_that_meets_an_earlier_one_is_not_finished() -> None:
    x, y = cp.Variable(name="x", bounds=[0, 4]), cp.Variable(name="y")
    lower = LowerProblem(cp.Minimize(cp.square(y - x) + cp.square(y)), given=[x])
    problem = BilevelProblem(cp.Minimize(cp.square(y - 1) + 0.1 * cp.square(x)), lower)
    result = problem.solve()
    assert result.x["x"] == pytest.approx(0.5 / 0.35, rel=1e-6)  # of (x / 2 - 1)^2 + x^2 / 10
    unit = result.history["gamma"].max() / 1e7
    seen = np.round(np.log10(result.history["gamma"] / unit)).astype(int).tolist()
    assert seen == [-1, 0, 1, 2, 3, 4, 5, 1, 6, 7]  # the second run ends where it met the first


def test_a_run_that_stalls_is_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """x = 0.9 with y = x is far from the optimum 0.2, whatever the trust region says."""
    x, y = cp.Variable(name="x", bounds=[0, 1]), cp.Variable(name="y", bounds=[0, 1])
    lower = LowerProblem(cp.Minimize(cp.square(y - x)), given=[x])
    problem = BilevelProblem(cp.Minimize(cp.square(y - 0.2) - 0.01 * cp.square(x)), lower)

    def stopped(self: Joint, starts: object, seed: object) -> object:
        there = self.response(np.array([0.9]) / self.model.x_unit)
        assert there is not None
        return self.in_user_units(there)

    monkeypatch.setattr(Joint, "solve", stopped)
    monkeypatch.setattr(Joint, "go_on", lambda self, point: None)
    monkeypatch.setattr(
        _TrustRegion, "run", lambda self, v, iterations=40, guess=None: self.merit.at(v)
    )
    result = problem.solve(on_failure="return")
    assert result.status is Status.FEASIBLE
    assert result.certificate.stationarity > 1e-4
