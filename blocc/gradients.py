"""Where derivatives come from: given by the user, or derived by autograd, torch or jax; and a check of either."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blocc.arrays import all_finite, asarray_like, device_of, namespace, random_normal
from blocc.autodiff import Engine, choose
from blocc.errors import BloccError, InvalidInputError

Array = Any


@dataclass(frozen=True)
class Function:
    """A function of (x, y, data) with its gradient.

    Parameters
    ----------
    value : callable
        ``value(x, y, data)``: a scalar for an objective, an array for a constraint function.
    gradient : callable
        For an objective ``gradient(x, y, data) -> (d/dx, d/dy)``. For a constraint function
        ``gradient(x, y, weights, data) -> (J_x^T weights, J_y^T weights)``, its vector-Jacobian products, with
        ``weights`` in the shape of ``value``.

    Examples
    --------
    >>> import blocc
    >>> squared_distance = blocc.Function(
    ...     lambda x, y, data: ((y - 2 * x) ** 2).sum(),
    ...     lambda x, y, data: (-4 * (y - 2 * x), 2 * (y - 2 * x)),
    ... )
    """

    value: Callable[..., Any]
    gradient: Callable[..., tuple[Array, Array]]

    def __post_init__(self) -> None:
        for name in ("value", "gradient"):
            if not callable(getattr(self, name)):
                raise InvalidInputError(
                    f"Function: {name} must be callable, got {type(getattr(self, name)).__name__}"
                )


def _require_arguments(name: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    """Refuse a function that cannot be called with these positional arguments, before it fails inside a solve."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in without a signature: its own error will have to do
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise InvalidInputError(
            f"{name} is called as {name}({', '.join(arguments)}), and {name}{signature} cannot be ({error}). "
            "data is whatever is passed as data=..., None by default"
        ) from error


class Differentiable:
    """A function of (x, y) at fixed data, with pullbacks: what the core calls.

    Parameters
    ----------
    name : str
        For error messages.
    function : callable or Function
        A plain callable is differentiated by the engine.
    data : object
        Passed on as the last argument.
    scalar : bool
        Whether it is an objective (scalar) or a constraint function (array).
    engine : Engine, optional
        Calls and differentiates it; autograd by default.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any] | Function,
        data: Any,
        *,
        scalar: bool,
        engine: Engine | None = None,
    ):
        self.name, self.data, self.scalar = name, data, scalar
        self.engine = engine or Engine()
        self.given = isinstance(function, Function)
        self._plain = function.value if isinstance(function, Function) else function
        if not callable(self._plain):
            raise InvalidInputError(
                f"{name} must be callable or a blocc.Function, got {type(function).__name__}"
            )
        _require_arguments(name, self._plain, ("x", "y", "data"))
        self._value = self.engine.bind(self._plain, data)
        self._products: dict[tuple[int, ...], Callable[..., Any]] = {}
        if isinstance(function, Function):
            weights = () if scalar else ("weights",)
            _require_arguments(
                f"{name}'s gradient", function.gradient, ("x", "y", *weights, "data")
            )
            self._gradient = self.engine.bind(function.gradient, data)

    def value(self, x: Array, y: Array) -> Array:
        """Value at (x, y): a 0-d array for an objective, an array for constraints."""
        value = self._value(x, y)
        if isinstance(value, (int, float)):
            xp = namespace(y)
            value = xp.asarray(value, dtype=y.dtype, device=device_of(y))
        if not hasattr(value, "shape"):
            raise InvalidInputError(
                f"{self.name} must return {'a scalar' if self.scalar else 'a non-empty array'}, "
                f"got {type(value).__name__}"
            )
        shape = () if self.scalar else (1,)
        if (
            math.prod(value.shape) == 1
            and (self.scalar or value.shape == ())
            and value.shape != shape
        ):
            value = namespace(y).reshape(value, shape)
        return value

    def pullback(self, x: Array, y: Array, weights: Array | None = None) -> tuple[Array, Array]:
        """(d/dx, d/dy) of an objective, or the weighted sum of the constraint gradients."""
        if self.given:
            both = self._gradient(x, y) if self.scalar else self._gradient(x, y, weights)
        else:
            both = self._derived(x, y, weights, (0, 1))
        return both  # type: ignore[no-any-return]

    def pullback_y(self, x: Array, y: Array, weights: Array | None = None) -> Array:
        """The y part of :meth:`pullback`, without the work for x where the engine allows."""
        if self.given:
            return self.pullback(x, y, weights)[1]
        return self._derived(x, y, weights, (1,))[0]

    def _derived(self, x: Array, y: Array, weights: Array | None, wanted: tuple[int, ...]) -> Any:
        try:
            if wanted not in self._products:
                self._products[wanted] = self.engine.vjp(self.name, self._plain, self.data, wanted)
            return self._products[wanted](x, y, weights)
        except BloccError:
            raise
        except self.engine.failures as error:
            raise InvalidInputError(
                f"{self.name} could not be differentiated by {self.engine.name} ({error}). {self.engine.advice}, or "
                "give its gradient with blocc.Function(value, gradient)"
            ) from error


@dataclass(frozen=True)
class GradientCheck:
    """One directional comparison of a gradient with a central difference."""

    function: str
    variable: str
    derivative: float
    difference: float
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the two agree within the tolerance."""
        return self.error <= self.tolerance

    def explain(self) -> str:
        """One sentence for an error message."""
        cause = (
            "it has the wrong sign"
            if abs(self.derivative + self.difference) <= self.tolerance * (1 + abs(self.difference))
            else "it does not match"
        )
        return (
            f"the gradient of {self.function} in {self.variable} is wrong: {cause} "
            f"(directional derivative {self.derivative:.6g}, central difference {self.difference:.6g})"
        )


def check(function: Differentiable, x: Array, y: Array, *, seed: int = 0) -> list[GradientCheck]:
    """Compare a function's gradient with central differences along one random direction in x and one in y.

    Entries that are not finite at a shifted point (the edge of a domain) are left out. How far the difference can be
    trusted is told by a second one with twice the step.
    """
    xp = namespace(x, y)
    precision = float(xp.finfo(y.dtype).eps)
    value = function.value(x, y)
    weights = None if function.scalar else random_normal(value, seed)
    gradient = function.pullback(x, y, weights)
    if not (isinstance(gradient, tuple | list) and len(gradient) == 2):
        raise InvalidInputError(
            f"the gradient of {function.name} must return a pair, the parts in x and in y, "
            f"got {type(gradient).__name__}"
        )
    checks = []
    for index, (label, point) in enumerate((("x", x), ("y", y))):
        if gradient[index].shape != point.shape:
            raise InvalidInputError(
                f"the gradient of {function.name} in {label} has shape {gradient[index].shape}, "
                f"but {label} has shape {point.shape}"
            )
        direction = random_normal(point, seed + 1 + index)
        scale = 1.0 + float(xp.max(xp.abs(point)))
        step = precision ** (1 / 3) * scale
        shifted = []
        for multiple in (1.0, -1.0, 2.0, -2.0):
            moved = point + multiple * step * direction
            at = function.value(moved, y) if index == 0 else function.value(x, moved)
            shifted.append(float(at if weights is None else xp.sum(weights * at)))
        difference = (shifted[0] - shifted[1]) / (2 * step)
        wider = (shifted[2] - shifted[3]) / (4 * step)
        derivative = float(xp.sum(gradient[index] * direction))
        if not (math.isfinite(difference + wider) and math.isfinite(derivative)):
            continue
        # truncation error (a third of what doubling the step changes, with room) and rounding error
        size = max(abs(s) for s in shifted)
        tolerance = (4 * abs(difference - wider) + 100 * precision * size / step) / (
            1 + abs(difference)
        )
        error = abs(derivative - difference) / (1 + abs(difference))
        checks.append(
            GradientCheck(function.name, label, derivative, difference, error, max(tolerance, 1e-5))
        )
    return checks


def check_gradients(
    function: Callable[..., Any] | Function,
    x: Array,
    y: Array,
    data: Any = None,
    *,
    name: str = "function",
    seed: int = 0,
) -> list[GradientCheck]:
    """Check the gradient of one function against central differences at (x, y).

    Parameters
    ----------
    function : callable or Function
        As passed to :func:`blocc.minimize`.
    x, y : array
        Where to check; a point inside the domain, away from kinks. Their library is what the function is called with.
    data : object, optional
        Passed on to the function.
    name : str
        Used in the report.
    seed : int
        Seed of the random directions.

    Returns
    -------
    list of GradientCheck
        One entry for x and one for y; ``all(c.ok for c in ...)`` if right.
    """
    engine, (x, y) = choose(x, y)
    x, y = starting_point("x", x, None), starting_point("y", y, None)
    evaluate = function.value if isinstance(function, Function) else function
    if not callable(evaluate):
        raise InvalidInputError(
            f"{name} must be callable or a blocc.Function, got {type(function).__name__}"
        )
    _require_arguments(name, evaluate, ("x", "y", "data"))
    scalar = getattr(engine.bind(evaluate, data)(x, y), "shape", ()) == ()
    return check(
        Differentiable(name, function, data, scalar=scalar, engine=engine), x, y, seed=seed
    )


def starting_point(name: str, value: Any, like: Array | None) -> Array:
    """Convert to a finite real array of at least one dimension: a number becomes an array with one entry.

    Parameters
    ----------
    name : str
        For error messages.
    value : array_like
    like : array or None
        Library, device and dtype to convert to; NumPy float64 by default.

    Raises
    ------
    InvalidInputError
        If the value is no array of real finite numbers, or empty.
    """
    if getattr(getattr(value, "dtype", None), "kind", "f") == "c":
        raise InvalidInputError(f"{name} must be real, got complex numbers")
    try:
        point = asarray_like(value, like)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from error
    if point.shape == ():
        point = namespace(point).reshape(point, (1,))
    if math.prod(point.shape) == 0:
        raise InvalidInputError(f"{name} is empty; give a starting point with at least one entry")
    if not all_finite(point):
        raise InvalidInputError(f"{name} has entries that are NaN or infinite")
    return point
