"""Rung 2: the core on array-api-strict's device1, in double and single precision, against NumPy."""

from __future__ import annotations

import array_api_strict as strict
import numpy as np
import pytest

import blocc
from blocc import maxmin
from blocc.arrays import to_numpy
from blocc.methods.published import blocc as published
from tests.conformance import problems

SETS = {
    "free": blocc.Free(),
    "box": blocc.Box(-5.0, 5.0),
    "box_array": blocc.Box([-5.0, -4.0], [5.0, 4.0]),
    "half_open": blocc.Box(-1.0),
    "nonnegative": blocc.NonNegative(),
    "ball": blocc.Ball(2.0, 0.1),
    "ball_array": blocc.Ball(2.0, [0.1, 0.0]),
    "simplex": blocc.Simplex(1.0),
}


def assert_on(device, dtype, value):
    arrays = problems.arrays_of(value)
    assert arrays
    for array in arrays:
        assert array.device == device
        assert array.dtype == getattr(strict, dtype)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sets_stay_on_the_device_and_agree_with_numpy(name, dtype, device):
    values = np.random.default_rng(0).normal(size=(2, 2)) * 3
    for value in values:
        there = strict.asarray(value, dtype=getattr(strict, dtype), device=device)
        slope = there * -0.7 + 0.3
        here, here_slope = to_numpy(there), to_numpy(slope)
        found = (SETS[name].project(there), *SETS[name].linear_gap(there, slope))
        expected = (SETS[name].project(here), *SETS[name].linear_gap(here, here_slope))
        assert_on(device, dtype, found)
        for one, other in zip(found, expected, strict=True):
            assert np.asarray(other).dtype == dtype
            np.testing.assert_allclose(
                to_numpy(one), other, rtol=1e-12 if dtype == "float64" else 1e-5
            )


@pytest.mark.parametrize("name", ["free", "box", "half_open", "ball"])
def test_solve_stays_on_the_device_and_agrees_with_numpy(name, device):
    problem, y0 = problems.saddle_problem(strict, device, y_set=SETS[name])
    there = maxmin.solve(problem, y0, tol=1e-10)
    assert_on(device, "float64", there)
    problem, y0 = problems.saddle_problem(np, y_set=SETS[name])
    here = maxmin.solve(problem, y0, tol=1e-10)
    assert there.iterations == here.iterations
    np.testing.assert_allclose(to_numpy(there.y), here.y, atol=1e-8)
    for key in here.duals:
        np.testing.assert_allclose(to_numpy(there.duals[key]), here.duals[key], atol=1e-8)


def test_solve_in_single_precision_is_single_precision_throughout(device):
    problem, y0 = problems.saddle_problem(strict, device, "float32")
    there = maxmin.solve(problem, y0, tol=1e-5)
    assert_on(device, "float32", there)
    problem, y0 = problems.saddle_problem(np)
    here = maxmin.solve(problem, y0, tol=1e-10)
    np.testing.assert_allclose(to_numpy(there.y), here.y, atol=1e-4)
    np.testing.assert_allclose(to_numpy(there.duals["c"]), here.duals["c"], atol=1e-3)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_published_maxmin_stays_on_the_device(accelerated, dtype, device):
    """Algorithm 2 as published takes the same path on the device as on NumPy."""
    answers = []
    for xp, place in ((strict, device), (np, None)):
        problem, y0 = problems.saddle_problem(xp, place, dtype)
        zero = {k: v * 0.0 for k, v in problem.values(y0).items()}
        answers.append(
            maxmin.maxmin(
                problem, y0, zero, eta_1=0.3, eta_2=0.2, T=30, T_y=2, accelerated=accelerated
            )
        )
    assert_on(device, dtype, answers[0])
    tolerance = 1e-8 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(to_numpy(answers[0].y), answers[1].y, atol=tolerance)


def test_published_outer_method_stays_on_the_device(device):
    """Algorithm 1 as published."""
    answers = []
    for xp, place in ((strict, device), (np, None)):
        x0, y0 = problems.start(xp, place)
        model = blocc.FunctionalModel(
            problems.f, problems.g, problems.c, x0, y0, h=problems.h, data=problems.data(xp, place)
        )
        answers.append(
            published(
                model, x0, gamma=5.0, eta=0.02, T=3, eta_1g=0.3, eta_1F=0.05, eta_2=0.2, T_inner=20
            )
        )
    assert_on(device, "float64", [answers[0].x, answers[0].direction])
    np.testing.assert_allclose(to_numpy(answers[0].x), answers[1].x, atol=1e-8)


METHODS = [("lbfgsb", blocc.Box(-2.0, 2.0)), ("spectral", blocc.Ball(2.0))]


@pytest.mark.parametrize(("method", "x_set"), METHODS)
def test_minimize_stays_on_the_device_and_agrees_with_numpy(method, x_set, device):
    options = {"method": method, "x_set": x_set, "tol": 1e-4}
    there = problems.minimize(strict, device, **options)
    assert_on(device, "float64", [there.x, there.y, dict(there.duals)])
    here = problems.minimize(np, **options)
    assert there.status is here.status is blocc.Status.STATIONARY
    np.testing.assert_allclose(to_numpy(there.x), here.x, atol=1e-8)
    np.testing.assert_allclose(to_numpy(there.y), here.y, atol=1e-8)
    assert there.objective == pytest.approx(here.objective, abs=1e-8)
    for key in here.duals:
        np.testing.assert_allclose(to_numpy(there.duals[key]), here.duals[key], atol=1e-8)


@pytest.mark.parametrize(("method", "x_set"), METHODS)
def test_minimize_in_single_precision(method, x_set, device):
    """Certified to 1e-3, in float32 throughout, close to the answer in double precision."""
    options = {"method": method, "x_set": x_set}
    there = problems.minimize(strict, device, "float32", **options)
    assert_on(device, "float32", [there.x, there.y, dict(there.duals)])
    assert there.certificate.ok(1e-3)
    exact = problems.minimize(np, **options)
    assert there.objective == pytest.approx(exact.objective, abs=1e-3)
    np.testing.assert_allclose(to_numpy(there.y), exact.y, atol=1e-2)


def test_restoration_stays_on_the_device(device):
    """x0 where the lower level is infeasible: c at x = 1.9 asks for y <= -0.15 in sum, y >= 0 refuses."""
    x0, y0 = problems.start(strict, device)
    model = blocc.FunctionalModel(
        problems.f,
        problems.g,
        problems.c,
        x0,
        y0,
        x_set=blocc.Box(-2.0, 2.0),
        y_set=blocc.NonNegative(),
        data=problems.data(strict, device),
    )
    restored = model.restore(x0 * 0.0 + 1.9)
    assert_on(device, "float64", [restored])
    assert float(restored[0]) <= 1.6 + 1e-8
    assert model.lower(restored, tol=1e-6).violation <= 1e-6


def test_mixing_devices_is_an_error_here(device):
    """The premise of this file: strict arrays of two devices do not mix silently."""
    with pytest.raises(ValueError, match="device"):
        strict.asarray([1.0], device=device) + strict.asarray([1.0])
