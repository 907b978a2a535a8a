"""How user functions are called and differentiated: autograd on the solver's own arrays, torch or jax through DLPack.

Functions get arrays of the library of x0 and y0. Where that is torch or jax, the solver computes on NumPy (on a host)
or CuPy (on a CUDA device), and arrays are exchanged with the functions by DLPack: the same memory, not a copy of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from blocc.arrays import exchanged, library_of, namespace
from blocc.errors import InvalidInputError, require

Array = Any
Call = Callable[..., Any]


class Engine:
    """Autograd on NumPy arrays; given gradients on arrays of any library.

    Attributes
    ----------
    name : str
        What differentiates.
    advice : str
        How to write a function that it can differentiate.
    failures : tuple of exception types
        What it raises on a function that it cannot.
    """

    name = "autograd"
    advice = "Write it with xp = blocc.namespace(x, y) or autograd.numpy instead of numpy"
    failures: tuple[type[Exception], ...] = (TypeError, AttributeError, ValueError)

    def lend(self, array: Array) -> Array:
        """One of the solver's arrays, as functions get it."""
        return array

    def take(self, value: Any) -> Any:
        """What a function returned, as the solver gets it."""
        return value

    def bind(self, function: Call, data: Any) -> Call:
        """``function(*arrays, data)`` as a callable of the solver's arrays."""
        return lambda *arrays: function(*arrays, data)

    def vjp(self, name: str, function: Call, data: Any, wanted: Sequence[int]) -> Call:
        """``(x, y, weights)`` to the vector-Jacobian products of the function called ``name`` in the wanted arguments.

        No weights: 1, for a scalar.
        """
        core = require("autograd.core", "autograd", f"deriving the gradient of {name}")
        from autograd.differential_operators import make_vjp

        def products(x: Array, y: Array, weights: Array | None) -> Any:
            backward, value = make_vjp(function, tuple(wanted))(x, y, data)
            if weights is None:
                weights = core.vspace(value).ones()
            shape = getattr(value, "shape", ())
            same = shape == getattr(weights, "shape", ())
            return backward(weights if same else weights.reshape(shape))

        return products


class Torch(Engine):
    """Functions of torch tensors."""

    name = "torch"
    advice = "Write it with torch operations on x and y (no .item(), .numpy() or .detach())"
    failures = (*Engine.failures, RuntimeError)

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")

    def lend(self, array: Array) -> Array:
        """A tensor on the same memory; a copy of what is read-only, which DLPack does not hand out."""
        try:
            return self.torch.from_dlpack(array)
        except (BufferError, RuntimeError, ValueError):
            return self.torch.from_dlpack(namespace(array).asarray(array, copy=True))

    def take(self, value: Any) -> Any:
        """Tensors as arrays on the same memory, also within a tuple."""
        if isinstance(value, tuple | list):
            return tuple(self.take(part) for part in value)
        return exchanged(value)

    def bind(self, function: Call, data: Any) -> Call:
        """Calls ``function`` with tensors, without recording."""

        def call(*arrays: Array) -> Any:
            with self.torch.no_grad():
                return self.take(function(*map(self.lend, arrays), data))

        return call

    def vjp(self, name: str, function: Call, data: Any, wanted: Sequence[int]) -> Call:
        """By ``torch.autograd.grad``."""
        torch = self.torch

        def products(x: Array, y: Array, weights: Array | None) -> Any:
            tensors = [self.lend(x), self.lend(y)]
            inputs = [tensors[i].requires_grad_() for i in wanted]
            with torch.enable_grad():
                value = function(*tensors, data)
            if not getattr(value, "requires_grad", False):  # depends on none of them
                return tuple(self.take(torch.zeros_like(tensor)) for tensor in inputs)
            sent = (
                torch.ones_like(value)
                if weights is None
                else self.lend(weights).reshape(value.shape)
            )
            found = torch.autograd.grad(value, inputs, sent, allow_unused=True)
            return tuple(
                self.take(torch.zeros_like(tensor) if slope is None else slope)
                for tensor, slope in zip(inputs, found, strict=True)
            )

        return products


class Jax(Engine):
    """Functions of jax arrays, compiled where they can be."""

    name = "jax"
    advice = "Write it with jax.numpy operations on x and y"

    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")

    def _check(self, array: Array) -> None:
        if array.dtype.itemsize == 8 and not self.jax.config.jax_enable_x64:
            raise InvalidInputError(
                "the problem is in double precision and jax is set to single. Call "
                "jax.config.update('jax_enable_x64', True) before the first array is made, or make x0 and y0 "
                "single-precision jax arrays"
            )

    def lend(self, array: Array) -> Array:
        """A jax array, on the same memory where its alignment allows that."""
        self._check(array)
        try:
            return self.jax.dlpack.from_dlpack(array)
        except (BufferError, RuntimeError, ValueError, TypeError):  # read-only or not aligned
            return self.jax.dlpack.from_dlpack(namespace(array).asarray(array, copy=True))

    def take(self, value: Any) -> Any:
        """Jax arrays as arrays on the same memory, also within a tuple; waits for them."""
        if isinstance(value, tuple | list):
            return tuple(self.take(part) for part in value)
        return exchanged(self.jax.block_until_ready(value))

    def bind(self, function: Call, data: Any) -> Call:
        """Compiled, or as it is where tracing does not get through it (branches on values, strings in the data)."""
        compiled = self.jax.jit(function)
        traceable = True

        def call(*arrays: Array | None) -> Any:
            nonlocal traceable
            if traceable:
                try:
                    return self.take(compiled(*map(self._passed, arrays), data))
                except (TypeError, IndexError):
                    traceable = False
            lent = (None if array is None else self.lend(array) for array in arrays)
            return self.take(function(*lent, data))

        return call

    def _passed(self, array: Array | None) -> Array | None:
        """What compiled code gets: NumPy arrays as they are, since it takes these in faster than DLPack does."""
        if array is None:
            return None
        self._check(array)
        return array if library_of(array) == "numpy" else self.lend(array)

    def vjp(self, name: str, function: Call, data: Any, wanted: Sequence[int]) -> Call:
        """By ``jax.vjp``."""
        jax = self.jax

        def backward(x: Array, y: Array, weights: Array | None, data: Any) -> Any:
            def of(*chosen: Array) -> Array:
                arguments = [x, y]
                for i, array in zip(wanted, chosen, strict=True):
                    arguments[i] = array
                return jax.numpy.asarray(function(*arguments, data))

            value, pull = jax.vjp(of, *((x, y)[i] for i in wanted))
            sent = jax.numpy.ones_like(value) if weights is None else weights.reshape(value.shape)
            return pull(sent)

        return self.bind(backward, data)


ENGINES: dict[str, type[Engine]] = {"torch": Torch, "jax": Jax}


def choose(*points: Any) -> tuple[Engine, tuple[Any, ...]]:
    """Engine for the library of the starting points, and the points as the solver's arrays.

    Raises
    ------
    InvalidInputError
        If they mix torch or jax with another array library.
    """
    libraries = {library_of(point) for point in points} - {""}
    special = libraries & set(ENGINES)
    if not special:
        return Engine(), points
    if len(libraries) > 1:
        raise InvalidInputError(
            f"x0 and y0 are arrays of {' and '.join(sorted(libraries))}; give both in the library that the functions "
            "are written in"
        )
    return ENGINES[special.pop()](), tuple(exchanged(point) for point in points)
