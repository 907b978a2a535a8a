"""Rung 5: backend="cupy" where CuPy or a device is missing says so; "auto" falls back on NumPy; nothing at import."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

import blocc
from blocc import arrays
from blocc.errors import BackendUnavailableError, InvalidInputError
from tests.conformance import problems


class DriverError(Exception):
    """Stands for CuPy's own error types."""


def fake_cupy(count: int | Exception) -> types.ModuleType:
    """A CuPy whose runtime reports a number of devices, or fails."""

    def get_device_count() -> int:
        if isinstance(count, Exception):
            raise count
        return count

    cupy = types.ModuleType("cupy")
    cupy.__version__ = "99.0"
    runtime = types.SimpleNamespace(getDeviceCount=get_device_count)
    cupy.cuda = types.SimpleNamespace(runtime=runtime)
    return cupy


MISSING = {
    "no CuPy": (None, r"pip install 'blocc\[gpu-cuda12\]'"),
    "no driver": (
        fake_cupy(DriverError("cudaErrorInsufficientDriver")),
        "99.0 is installed but no CUDA device can be used .cudaErrorInsufficientDriver.*backend='numpy'",
    ),
    "no device": (fake_cupy(0), "no CUDA device found. Use backend='numpy'"),
}


@pytest.mark.parametrize("case", MISSING)
def test_cupy_unavailable_names_the_remedy(case, monkeypatch):
    module, message = MISSING[case]
    monkeypatch.setitem(sys.modules, "cupy", module)
    with pytest.raises(BackendUnavailableError, match=message):
        arrays.resolve_backend("cupy")
    with pytest.raises(BackendUnavailableError, match=message):
        problems.minimize(np, backend="cupy")
    assert arrays.devices() == []


@pytest.mark.parametrize("case", MISSING)
def test_auto_falls_back_on_numpy(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", MISSING[case][0])
    x0, y0 = problems.start(np)
    sets = {"x_set": blocc.Box(-2.0, 2.0), "y_set": blocc.Box(-5.0, 5.0)}
    for start in ((x0, y0), (problems.X0, problems.Y0)):
        result = blocc.minimize(
            problems.f,
            problems.g,
            problems.c,
            *start,
            h=problems.h,
            data=problems.data(np),
            backend="auto",
            gamma=10.0,
            tol=1e-4,
            **sets,
        )
        assert type(result.x) is np.ndarray
        assert result.x.dtype == np.float64


def test_the_installed_cupy_without_a_device():
    """The real wheel, where it is installed: importing it needs no driver, using it does."""
    pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    if arrays.devices():
        pytest.skip("a CUDA device is present; tests/gpu runs on it")
    with pytest.raises(BackendUnavailableError, match="installed but no CUDA device can be used"):
        problems.minimize(np, backend="cupy")


def test_backend_numpy_takes_numpy_and_lists():
    assert arrays.resolve_backend("numpy").asarray([1.0]).dtype == np.float64


def test_unknown_backend():
    with pytest.raises(InvalidInputError, match="'auto', 'numpy' or 'cupy', got 'torch'"):
        problems.minimize(np, backend="torch")
