"""On a CUDA device: the core on CuPy agrees with NumPy. Skipped, with the reason printed, where there is none.

``python tests/gpu/run.py`` runs these and records the device, versions and timings.
"""

from __future__ import annotations

import numpy as np
import pytest

import blocc
from blocc import maxmin
from blocc.arrays import devices, resolve_backend, to_numpy
from blocc.errors import BackendUnavailableError
from tests.conformance import problems


def reason() -> str:
    """Why there is no device, in the words of the error a user would see."""
    try:
        resolve_backend("cupy")
    except BackendUnavailableError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(not devices(), reason=reason() or "no CUDA device")


@pytest.fixture
def xp():
    return resolve_backend("cupy")


def assert_on_device(xp, dtype, value):
    import cupy

    arrays = problems.arrays_of(value)
    assert arrays
    for array in arrays:
        assert isinstance(array, cupy.ndarray)
        assert array.dtype == dtype


@pytest.mark.parametrize("y_set", [blocc.Free(), blocc.Box(-1.0), blocc.Ball(2.0, 0.1)])
def test_solve_agrees_with_numpy(xp, y_set):
    problem, y0 = problems.saddle_problem(xp, y_set=y_set)
    there = maxmin.solve(problem, y0, tol=1e-10)
    assert_on_device(xp, np.float64, there)
    problem, y0 = problems.saddle_problem(np, y_set=y_set)
    here = maxmin.solve(problem, y0, tol=1e-10)
    np.testing.assert_allclose(to_numpy(there.y), here.y, atol=1e-8)
    for key in here.duals:
        np.testing.assert_allclose(to_numpy(there.duals[key]), here.duals[key], atol=1e-8)


@pytest.mark.parametrize("accelerated", [False, True])
def test_published_maxmin_agrees_with_numpy(xp, accelerated):
    answers = []
    for library in (xp, np):
        problem, y0 = problems.saddle_problem(library)
        zero = {k: v * 0.0 for k, v in problem.values(y0).items()}
        answers.append(
            maxmin.maxmin(
                problem, y0, zero, eta_1=0.3, eta_2=0.2, T=50, T_y=2, accelerated=accelerated
            )
        )
    np.testing.assert_allclose(to_numpy(answers[0].y), answers[1].y, atol=1e-8)


@pytest.mark.parametrize(
    ("method", "x_set"), [("lbfgsb", blocc.Box(-2.0, 2.0)), ("spectral", blocc.Ball(2.0))]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_minimize_agrees_with_numpy(xp, method, x_set, dtype):
    options = {"method": method, "x_set": x_set, "gamma": 10.0}
    there = problems.minimize(xp, dtype=dtype, **options)
    assert_on_device(xp, dtype, [there.x, there.y, dict(there.duals)])
    here = problems.minimize(np, **options)
    tolerance = 1e-6 if dtype == "float64" else 1e-2
    np.testing.assert_allclose(to_numpy(there.x), here.x, atol=tolerance)
    np.testing.assert_allclose(to_numpy(there.y), here.y, atol=tolerance)
    assert there.objective == pytest.approx(here.objective, abs=tolerance)


def test_backend_cupy_moves_lists_and_numpy_arrays_to_the_device(xp):
    """Data stays the user's: here it is on the device already."""
    for start in ((problems.X0, problems.Y0), problems.start(np)):
        result = blocc.minimize(
            problems.f,
            problems.g,
            problems.c,
            *start,
            h=problems.h,
            data=problems.data(xp),
            x_set=blocc.Box(-2.0, 2.0),
            y_set=blocc.Box(-5.0, 5.0),
            backend="cupy",
            gamma=10.0,
        )
        assert_on_device(xp, np.float64, [result.x, result.y])


def test_result_saves_from_the_device(xp, tmp_path):
    result = problems.minimize(xp, gamma=10.0)
    loaded = blocc.Result.load(result.save(tmp_path / "result.npz"))
    np.testing.assert_array_equal(loaded.x, to_numpy(result.x))


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_functions_in_torch_or_jax_agree_with_numpy(xp, library):
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "torch":
        if not module.cuda.is_available():
            pytest.skip("this torch has no CUDA")
        make = lambda values: module.asarray(values, dtype=module.float64, device="cuda")  # noqa: E731
        total = module.sum
    else:
        if module.default_backend() != "gpu":
            pytest.skip("this jax has no CUDA")
        module.config.update("jax_enable_x64", True)
        make, total = module.numpy.asarray, module.numpy.sum

    def minimize(make, total):
        return blocc.minimize(
            lambda x, y, d: total((x - d["a"]) ** 2) + total((y - d["b"]) ** 2),
            lambda x, y, d: total(0.5 * d["q"] * y * y - (d["B"] @ x) * y),
            lambda x, y, d: d["A"] @ y + d["C"] @ x - d["d"],
            make(problems.X0),
            make(problems.Y0),
            data={key: make(value) for key, value in problems.INPUTS.items()},
            x_set=blocc.Box(-2.0, 2.0),
        )

    there, here = minimize(make, total), minimize(np.asarray, np.sum)
    assert type(there.x) is type(make([0.0]))
    np.testing.assert_allclose(to_numpy(there.x), here.x, atol=1e-6)
    np.testing.assert_allclose(to_numpy(there.y), here.y, atol=1e-6)
