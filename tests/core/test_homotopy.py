"""The outer solve: values and gradients of F_gamma, statuses, methods, checkpoints, interruption."""

from __future__ import annotations

import io

import autograd.numpy as anp
import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize
from scipy.optimize import minimize_scalar

import blocc
from blocc.certificate import certify
from blocc.methods import homotopy
from blocc.penalty import Penalty, Response
from blocc.progress import Progress
from tests.core.problems import CoupledQP


@pytest.fixture
def problem():
    return CoupledQP(3, 8, 5, 2, seed=3)


@pytest.mark.parametrize("gamma", [0.3, 5.0, 200.0])
def test_penalty_value_equals_cvxpy_and_gradient_equals_its_differences(problem, gamma):
    model = problem.model()
    x = np.array([0.3, -0.2, 0.5])
    here = Penalty(model, gamma, tol=1e-12)(x)

    def value(x):
        return problem.response(x, gamma)[1] - gamma * problem.response(x)[1]

    assert here.value == pytest.approx(value(x), rel=1e-7, abs=1e-7)
    for i in range(3):
        step = np.eye(3)[i] * 1e-4
        difference = (value(x + step) - value(x - step)) / 2e-4
        assert here.gradient[i] == pytest.approx(difference, rel=2e-4, abs=2e-4)


def test_penalty_is_below_the_response_and_grows_with_gamma(problem):
    model = problem.model()
    x = np.array([0.3, -0.2, 0.5])
    values = [Penalty(model, gamma, tol=1e-12)(x).value for gamma in (0.1, 1.0, 10.0, 100.0)]
    response = model.upper(x, problem.response(x)[0])
    assert np.all(np.diff(values) >= -1e-9)
    assert values[-1] <= response + 1e-9


def test_extrapolated_gradient_is_the_hypergradient(problem):
    model = problem.model()
    x = np.array([0.3, -0.2, 0.5])
    here = Response(model, 1e3, tol=1e-13)(x)
    for i in range(3):
        step = np.eye(3)[i] * 1e-5
        ahead = model.upper(x + step, problem.response(x + step)[0])
        behind = model.upper(x - step, problem.response(x - step)[0])
        assert here.gradient[i] == pytest.approx((ahead - behind) / 2e-5, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("method", ["auto", "lbfgsb", "spectral"])
@pytest.mark.parametrize("seed", range(5))
def test_answer_is_a_local_minimum_of_the_true_response(method, seed):
    problem = CoupledQP(3, 8, 5, 1, seed=seed)
    result = blocc.solve(problem.model(), np.zeros(3), method=method)
    assert result.certificate.ok(1e-6)

    def response(x):
        x = np.clip(x, -1, 1)
        return problem.model().upper(x, problem.response(x)[0])

    assert result.objective == pytest.approx(response(result.x), abs=1e-6)
    polished = scipy_minimize(
        response, result.x, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}
    )
    assert result.objective <= polished.fun + 1e-5


def test_certificate_is_recomputed_and_catches_a_wrong_answer(problem):
    """A certificate of a point that is not stationary says so, and a model that lies about y is caught."""
    model = problem.model()
    away = certify(
        model,
        np.array([0.9, 0.9, -0.9]),
        100.0,
        extrapolate=False,
        bound=None,
        tol=1e-6,
        saddle_tol=1e-10,
    )
    assert away.certificate.lower_ok(1e-6)
    assert not away.certificate.ok(1e-6)

    class Liar(type(model)):
        def lower(self, x, *, tol, warm=None):
            from dataclasses import replace

            saddle = super().lower(x, tol=tol, warm=warm)
            return replace(saddle, y=saddle.y + 1e-3, gap=0.0, violation=0.0)

    liar = Liar(
        problem.f, problem.g, problem.c, np.zeros(3), np.zeros(8), h=problem.h, x_set=problem.x_set
    )
    result = blocc.solve(liar, np.zeros(3), on_failure="return", max_iterations=30)
    assert result.status is blocc.Status.LOWER_NOT_SOLVED
    assert not result.success


def test_infeasible_lower_level_is_stepped_back_from():
    """x <= y <= 1 has no y for x > 1: the minimum of (x - 3)^2 lies at the edge of the domain, x = 1."""
    f = blocc.Function(
        lambda x, y, d: ((x - 3) ** 2).sum() + (y**2).sum(), lambda x, y, d: (2 * (x - 3), 2 * y)
    )
    g = blocc.Function(lambda x, y, d: (y**2).sum(), lambda x, y, d: (0 * x, 2 * y))
    c = blocc.Function(lambda x, y, d: x - y, lambda x, y, w, d: (w, -w))
    for method in ("lbfgsb", "spectral"):
        result = blocc.minimize(
            f,
            g,
            c,
            [0.0],
            [0.0],
            x_set=blocc.Box(-5, 5),
            y_set=blocc.Box(-1, 1),
            method=method,
            on_failure="return",
        )
        assert result.x[0] == pytest.approx(1.0, abs=1e-4)
        assert result.x[0] <= 1.0 + 1e-6
        assert result.certificate.violation <= 1e-6


def test_infeasible_start_is_restored_or_named():
    f = blocc.Function(lambda x, y, d: (x**2).sum() + (y**2).sum(), lambda x, y, d: (2 * x, 2 * y))
    g = blocc.Function(lambda x, y, d: (y**2).sum(), lambda x, y, d: (0 * x, 2 * y))
    c = blocc.Function(lambda x, y, d: x - y, lambda x, y, w, d: (w, -w))
    result = blocc.minimize(f, g, c, [4.0], [0.0], x_set=blocc.Box(-5, 5), y_set=blocc.Box(-1, 1))
    assert result.x[0] == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(blocc.LowerInfeasibleError, match="'c'"):
        blocc.minimize(f, g, c, [4.0], [0.0], x_set=blocc.Box(3, 5), y_set=blocc.Box(-1, 1))


def test_upper_constraints_hold_at_the_answer():
    """min (x-2)^2 + y^2 with y = argmin (y-x)^2 and the upper constraint y <= 1: x = y = 1."""
    f = blocc.Function(
        lambda x, y, d: ((x - 2) ** 2).sum() + 0 * y.sum(), lambda x, y, d: (2 * (x - 2), 0 * y)
    )
    g = blocc.Function(
        lambda x, y, d: ((y - x) ** 2).sum(), lambda x, y, d: (-2 * (y - x), 2 * (y - x))
    )
    G = blocc.Function(lambda x, y, d: y - 1, lambda x, y, w, d: (0 * x, w))
    result = blocc.minimize(
        f, g, None, [0.0], [0.0], G=G, x_set=blocc.Box(-5, 5), on_failure="return"
    )
    assert result.x[0] == pytest.approx(1.0, abs=1e-4)
    assert result.certificate.violation <= 1e-6


def run_with_failure_after(stage: int, path, problem):
    """Solve with a checkpoint, and crash when a given gamma stage begins."""
    seen = set()

    def crash(record):
        seen.add(record["gamma"])
        if len(seen) > stage:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        blocc.solve(
            problem.model(),
            np.zeros(problem.n_x),
            checkpoint=path,
            progress=Progress(callback=crash),
        )


@pytest.mark.parametrize("stage", [1, 3])
def test_resume_gives_the_same_final_answer(tmp_path, stage):
    problem = CoupledQP(3, 8, 5, 1, seed=2)
    path = tmp_path / "run.npz"
    whole = blocc.solve(problem.model(), np.zeros(3))
    run_with_failure_after(stage, path, problem)
    resumed = blocc.solve(problem.model(), np.zeros(3), resume=path)
    np.testing.assert_array_equal(resumed.x, whole.x)
    np.testing.assert_array_equal(resumed.y, whole.y)
    assert resumed.objective == whole.objective
    assert [r["gamma"] for r in resumed.records] == [r["gamma"] for r in whole.records]


def test_checkpoint_of_another_problem_is_refused(tmp_path):
    problem = CoupledQP(3, 8, 5, 1, seed=2)
    path = tmp_path / "run.npz"
    run_with_failure_after(1, path, problem)
    other = CoupledQP(2, 8, 5, 1, seed=2)
    with pytest.raises(blocc.InvalidInputError, match="another solve"):
        blocc.solve(other.model(), np.zeros(2), resume=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(blocc.CorruptFileError):
        blocc.solve(problem.model(), np.zeros(3), resume=path)
    with pytest.raises(blocc.InvalidInputError, match="no such file"):
        blocc.solve(problem.model(), np.zeros(3), resume=tmp_path / "missing.npz")


def test_interrupt_carries_the_best_point_with_its_certificate():
    problem = CoupledQP(3, 8, 5, 1, seed=2)

    def interrupt(record):
        if record["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(blocc.SolveInterrupted) as caught:
        blocc.solve(problem.model(), np.zeros(3), progress=Progress(callback=interrupt))
    result = caught.value.result
    assert result.status is blocc.Status.INTERRUPTED
    assert not result.success
    assert result.certificate.lower_ok(1e-6)


def test_failure_raises_with_the_partial_result_unless_asked_not_to(problem):
    options = {"method": "spectral", "gamma": 5.0, "tol": 1e-9, "max_iterations": 1}
    with pytest.raises(blocc.SolveError) as caught:
        blocc.solve(problem.model(), np.zeros(3), **options)
    assert caught.value.result.status is blocc.Status.ITERATION_LIMIT
    returned = blocc.solve(problem.model(), np.zeros(3), **options, on_failure="return")
    assert returned.status is blocc.Status.ITERATION_LIMIT
    assert not returned.success


def test_verbose_prints_one_header_one_table_one_status_line(problem):
    stream = io.StringIO()
    result = homotopy.solve(
        problem.model(), np.zeros(3), progress=Progress(verbose=True, stream=stream)
    )
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("blocc")
    assert lines[1].split() == [
        name for name, _, _ in __import__("blocc.progress").progress.COLUMNS
    ]
    assert len(lines) == 3 + len(result.records)
    assert lines[-1].startswith("status: stationary")


def test_same_run_twice_gives_the_same_bytes(problem):
    first = blocc.solve(problem.model(), np.zeros(3))
    second = blocc.solve(problem.model(), np.zeros(3))
    assert first.x.tobytes() == second.x.tobytes()
    assert first.y.tobytes() == second.y.tobytes()


def test_a_start_that_earns_more_than_where_the_stages_end_is_followed_as_well():
    """A shop and a customer with logarithmic utility: nothing sold is stationary too, and where the stages end."""
    taste, cost, holding = 4.0, 0.6, 0.1
    result = blocc.minimize(
        lambda x, y, d: -(x[0] * y[0] - cost * x[1] - holding * x[1] ** 2),
        lambda x, y, d: -(taste * anp.log(1 + y[0]) - 0.5 * x[0] * y[0]),
        lambda x, y, d: y - x[1],
        x0=[2.0, 2.0],
        y0=[1.0],
        x_set=blocc.Box([0.5, 0], [20, 8]),
        y_set=blocc.Box(0, 50),
    )
    # sold out at the price that clears the stock: 2 taste s / (1 + s) - cost s - holding s^2
    best = -minimize_scalar(
        lambda s: -(2 * taste * s / (1 + s) - cost * s - holding * s**2),
        bounds=(0, 8),
        method="bounded",
        options={"xatol": 1e-12},
    ).fun
    assert result.objective == pytest.approx(-best, rel=1e-6)


@pytest.mark.parametrize(("f", "g"), [(1e6, 1e-6), (1e-6, 1e6), (1e-7, 1e-7)])
def test_the_units_of_f_and_g_change_neither_x_nor_what_is_reported_in_them(f, g):
    """min |x - (1, 3)|^2 + |y|^2, y = argmin |y - x|^2 with y <= x / 2: y = x / 2, so x = (0.8, 2) on the box."""
    result = blocc.minimize(
        lambda x, y, d: f * (((x - np.array([1.0, 3.0])) ** 2).sum() + (y**2).sum()),
        lambda x, y, d: g * ((y - x) ** 2).sum(),
        lambda x, y, d: y - 0.5 * x,
        x0=np.zeros(2),
        y0=np.zeros(2),
        x_set=blocc.Box(-1.0, 2.0),
    )
    np.testing.assert_allclose(result.x, [0.8, 2.0], atol=1e-5)
    assert result.objective == pytest.approx(f * (0.04 + 1.0 + 0.16 + 1.0), rel=1e-5)
    assert result.lower_objective == pytest.approx(g * (0.16 + 1.0), rel=1e-5)
    np.testing.assert_allclose(result.duals["c"], g * result.x, rtol=1e-4)
    assert result.certificate.response_objective == pytest.approx(result.objective, rel=1e-5)
    assert result.records[-1]["response"] == pytest.approx(result.objective, rel=1e-4)
