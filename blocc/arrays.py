"""Array namespaces and devices. The only module of blocc that imports cupy, and that on request, never at import."""

from __future__ import annotations

from typing import Any, Literal

import array_api_compat
import array_api_compat.numpy
import numpy as np

from blocc.errors import BackendUnavailableError, InvalidInputError

Array = Any
Backend = Literal["auto", "numpy", "cupy"]


def namespace(*arrays: Array) -> Any:
    """Array API namespace of the arguments (Python scalars and None are passed over).

    Arrays being traced by autograd get ``autograd.numpy``, so a function written with
    ``xp = blocc.namespace(x, y)`` runs on NumPy, on CuPy and under differentiation.
    """
    if all(type(array) is np.ndarray for array in arrays) and arrays:  # often, and looked up slowly
        return array_api_compat.numpy
    candidates = [a for a in arrays if a is not None and not isinstance(a, (int, float, complex))]
    for array in candidates:
        if type(array).__module__.startswith("autograd."):
            import autograd.numpy

            return autograd.numpy
    try:
        return array_api_compat.array_namespace(*candidates)
    except TypeError as error:
        kinds = ", ".join(sorted({type(a).__name__ for a in candidates})) or "none"
        raise InvalidInputError(
            f"expected arrays of one array library, got {kinds}; convert with numpy.asarray or cupy.asarray first"
        ) from error


def is_array(value: Any) -> bool:
    """Whether a value is an array of some library (NumPy's scalars are not)."""
    return array_api_compat.is_array_api_obj(value) and not isinstance(value, np.generic)


def library_of(value: Any) -> str:
    """Name of an array's library: "torch", "jax", "numpy", "cupy", ..., empty for what is no array."""
    if not is_array(value):
        return ""
    for name in ("torch", "jax"):
        if getattr(array_api_compat, f"is_{name}_array")(value):
            return name
    return type(value).__module__.split(".")[0]


def exchanged(value: Any) -> Any:
    """Array of torch or jax as one of NumPy (on a host) or CuPy (on a CUDA device), on the same memory by DLPack.

    Anything else is returned as it is.

    Raises
    ------
    InvalidInputError
        If it lies on another kind of device.
    BackendUnavailableError
        If it lies on a CUDA device and there is no CuPy.
    """
    library = library_of(value)
    if library == "torch":
        value, kind = value.detach(), value.device.type
    elif library == "jax":
        kind = next(iter(value.devices())).platform
    else:
        return value
    if kind == "cpu":
        return np.from_dlpack(value)
    if kind in ("cuda", "gpu"):
        _cupy()
        import cupy

        return cupy.from_dlpack(value)
    raise InvalidInputError(
        f"arrays of {library} on a device of kind {kind!r}: blocc computes on a host or a CUDA device; move x0, y0 and "
        "data there"
    )


def device_of(array: Array) -> Any:
    """Device of an array."""
    return array_api_compat.device(array)


def asarray_like(value: Any, like: Array | None) -> Array:
    """Convert ``value`` to the library, device and floating dtype of ``like`` (NumPy float64 if ``like`` is None).

    Raises
    ------
    InvalidInputError
        If ``value`` has no numeric array form.
    """
    if type(value) is np.ndarray and type(like) is np.ndarray and value.dtype == like.dtype:
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        raise InvalidInputError("expected numbers, got None")
    if like is None:
        if array_api_compat.is_array_api_obj(value):
            xp = namespace(value)
            return (
                value if xp.isdtype(value.dtype, "real floating") else xp.astype(value, xp.float64)
            )
        try:
            return np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"expected numbers, got {value!r:.80}") from error
    xp = namespace(like)
    if array_api_compat.is_array_api_obj(value) and namespace(value) is not xp:
        value = to_numpy(value)
    try:
        return xp.asarray(value, dtype=like.dtype, device=device_of(like))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"expected numbers, got {value!r:.80}") from error


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """Copy an array of any library and device to a NumPy array on the host."""
    array = exchanged(array)
    if isinstance(array, (np.ndarray, np.generic)):
        return np.asarray(array)
    if array_api_compat.is_cupy_array(array):
        return np.asarray(array.get())
    if array_api_compat.is_array_api_obj(array):
        try:
            return np.from_dlpack(array)
        except (RuntimeError, BufferError, TypeError, ValueError):
            # A device that does not export: go through its own transfer to the host.
            xp = namespace(array)
            host = array_api_compat.to_device(
                array, getattr(xp, "Device", lambda name: name)("CPU_DEVICE")
            )
            return np.from_dlpack(host)
    return np.asarray(array)


def precision(array: Array) -> float:
    """Machine epsilon of the array's floating dtype."""
    return float(namespace(array).finfo(array.dtype).eps)


def random_normal(like: Array, seed: int) -> Array:
    """Standard normal numbers shaped, typed and placed like ``like``; a seed gives the same on every library."""
    return asarray_like(np.random.default_rng(seed).standard_normal(like.shape), like)


def random_signs(like: Array, seed: int) -> Array:
    """Random +1 and -1 in the shape, dtype and on the device of ``like``."""
    signs = np.random.default_rng(seed).integers(0, 2, like.shape) * 2.0 - 1.0
    return asarray_like(signs, like)


def generator(seed: int) -> np.random.Generator:
    """Source of random numbers, the same for a seed on every library."""
    return np.random.default_rng(seed)


def random_probe(like: Array, random: np.random.Generator) -> Array:
    """Random signs times magnitudes from 0.5 to 1.5, shaped, typed and placed like ``like``.

    Sums of a few such terms do not cancel, as sums of signs alone do.
    """
    drawn = random.uniform(-1.0, 1.0, like.shape)
    return asarray_like(drawn + np.copysign(0.5, drawn), like)


def all_finite(array: Array) -> bool:
    """Whether every entry is a finite number."""
    xp = namespace(array)
    return bool(xp.all(xp.isfinite(array)))


def resolve_backend(backend: Backend, *arrays: Any) -> Any:
    """Namespace to compute in.

    Parameters
    ----------
    backend : {"auto", "numpy", "cupy"}
        ``"auto"`` keeps the library of ``arrays`` (NumPy for lists and scalars). ``"cupy"`` moves to the GPU.
    *arrays : array_like
        The starting points.

    Raises
    ------
    BackendUnavailableError
        If ``"cupy"`` is asked for and cupy or a CUDA device is missing.
    """
    if backend == "cupy":
        return _cupy()
    if backend == "numpy":
        return array_api_compat.numpy
    if backend == "auto":
        known = [a for a in arrays if is_array(a)]
        return namespace(*known) if known else array_api_compat.numpy
    raise InvalidInputError(f"backend must be 'auto', 'numpy' or 'cupy', got {backend!r}")


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailableError(
            "backend='cupy' needs CuPy. Install it with:  pip install 'blocc[gpu-cuda12]'  (or gpu-cuda13), "
            "or use backend='numpy'"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except (
        Exception
    ) as error:  # cupy raises its own types, which vary with the driver that is missing
        raise BackendUnavailableError(
            f"backend='cupy': CuPy {cupy.__version__} is installed but no CUDA device can be used ({error}). "
            "Use backend='numpy', or backend='auto' to fall back by itself"
        ) from error
    if count < 1:
        raise BackendUnavailableError("backend='cupy': no CUDA device found. Use backend='numpy'")
    import array_api_compat.cupy as xp

    return xp


def devices() -> list[str]:
    """Names of the usable CUDA devices, empty where there are none."""
    try:
        _cupy()
    except BackendUnavailableError:
        return []
    import cupy

    return [
        cupy.cuda.runtime.getDeviceProperties(i)["name"].decode()
        for i in range(cupy.cuda.runtime.getDeviceCount())
    ]
