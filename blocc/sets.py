"""Closed convex sets that are easy to project on, for X and Y.

Every set works on arrays of any library that follows the array API, on the device of its argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from blocc.arrays import all_finite, asarray_like, namespace
from blocc.errors import InvalidInputError, require_number

Array = Any


@runtime_checkable
class ConvexSet(Protocol):
    """A closed convex set with a cheap projection."""

    def project(self, point: Array) -> Array:
        """Nearest point of the set in the Euclidean norm, same shape."""
        ...

    def linear_gap(self, point: Array, gradient: Array) -> tuple[Array, Array]:
        """Split a gradient at a point of the set into what the set accounts for and what it does not.

        Returns
        -------
        gap : 0-d array
            ``max over z in the set of <gradient, point - z>``, over the directions in which the set is bounded.
            Zero exactly where ``point`` minimises the linear function there.
        residual : array
            The part of ``gradient`` along unbounded directions (zero for a bounded set): must vanish at a minimiser.
        """
        ...


def _scalar(value: Any) -> Any:
    """Python float of any real number (NumPy's included), anything else as it is."""
    return float(value) if isinstance(value, Real) else value


def _bound(value: Any, like: Array) -> Array:
    return value if isinstance(value, (int, float)) else asarray_like(value, like)


def _absent(bound: Any, infinity: float) -> bool:
    return isinstance(bound, float) and bound == infinity


@dataclass(frozen=True, eq=False)
class Box:
    """``lower <= point <= upper`` elementwise.

    Parameters
    ----------
    lower, upper : float or array_like, default -inf and inf
        Bounds, broadcast against the point; ``-inf`` and ``inf`` where there is none.

    Raises
    ------
    InvalidInputError
        If a bound is NaN, or a lower bound exceeds its upper bound.
    """

    lower: Any = -math.inf
    upper: Any = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", _scalar(self.lower))
        object.__setattr__(self, "upper", _scalar(self.upper))
        scalar = isinstance(self.lower, float) and isinstance(self.upper, float)
        if scalar:
            ordered = self.lower <= self.upper and self.lower < math.inf and self.upper > -math.inf
        else:
            like = self.upper if isinstance(self.lower, float) else self.lower
            like = asarray_like(like, None)
            lower, upper = _bound(self.lower, like), _bound(self.upper, like)
            xp = namespace(like)
            try:
                ordered = bool(xp.all((lower <= upper) & (lower < math.inf) & (upper > -math.inf)))
            except ValueError as error:
                raise InvalidInputError("Box: lower and upper have incompatible shapes") from error
        if not ordered:
            raise InvalidInputError(
                "Box: every lower bound must be <= its upper bound, and neither may be NaN"
            )

    def project(self, point: Array) -> Array:
        """Nearest point of the box."""
        return self.placed(point).project(point)

    def placed(self, like: Array) -> PlacedBox:
        """The box for many points like this one: its bounds are brought to their library and device once."""
        lower, upper = asarray_like(self.lower, like), asarray_like(self.upper, like)
        bounded = not _absent(self.lower, -math.inf), not _absent(self.upper, math.inf)
        return PlacedBox(namespace(like), lower, upper, bounded)

    def linear_gap(self, point: Array, gradient: Array) -> tuple[Array, Array]:
        """See :meth:`ConvexSet.linear_gap`."""
        xp, placed = namespace(point), self.placed(point)
        supported = xp.isfinite(placed.lowest(gradient))
        residual = xp.where(supported, xp.zeros_like(gradient), gradient)
        return xp.sum(placed.linear_gaps(point, gradient)), residual


@dataclass(frozen=True, eq=False)
class PlacedBox:
    """A :class:`Box` whose bounds lie where the points do; ``bounded`` tells which sides have any."""

    xp: Any
    lower: Array
    upper: Array
    bounded: tuple[bool, bool]

    def project(self, point: Array) -> Array:
        """Nearest point of the box."""
        if self.bounded[0]:
            point = self.xp.maximum(point, self.lower)
        return self.xp.minimum(point, self.upper) if self.bounded[1] else point

    def lowest(self, gradient: Array) -> Array:
        """Bounds at which a linear function is smallest, infinite where it falls without end."""
        return self.xp.where(gradient > 0, self.lower, self.upper)

    def linear_gaps(self, point: Array, gradient: Array) -> Array:
        """The gap of :meth:`ConvexSet.linear_gap` entry by entry, whose sum it is."""
        bound = self.lowest(gradient)
        return gradient * self.xp.where(self.xp.isfinite(bound), point - bound, 0.0)


def reach(given: ConvexSet, point: Array) -> Array:
    """How far entries go: 1 + the size of the point, or an entry's own range where that is smaller."""
    xp = namespace(point)
    size = xp.zeros_like(point) + (1.0 + xp.max(xp.abs(point)))
    if not isinstance(given, Box):
        return size
    placed = given.placed(point)
    return xp.minimum(size, placed.upper - placed.lower)


class NonNegative(Box):
    """``point >= 0`` elementwise."""

    def __init__(self) -> None:
        super().__init__(0.0, math.inf)


class Free(Box):
    """The whole space."""

    def __init__(self) -> None:
        super().__init__()

    def project(self, point: Array) -> Array:
        """Return the point itself."""
        return point


@dataclass(frozen=True, eq=False)
class Ball:
    """Euclidean ball ``||point - center|| <= radius``.

    Parameters
    ----------
    radius : float
        Positive radius.
    center : float or array_like, default 0.0

    Raises
    ------
    InvalidInputError
        If the radius is not positive, or the center is not finite.
    """

    radius: float = 1.0
    center: Any = 0.0

    def __post_init__(self) -> None:
        require_number("Ball: radius", self.radius, Real)
        if not (0 < self.radius < math.inf):
            raise InvalidInputError(f"Ball: radius must be positive and finite, got {self.radius}")
        object.__setattr__(self, "center", _scalar(self.center))
        if not all_finite(asarray_like(self.center, None)):
            raise InvalidInputError("Ball: the center must be finite")

    def project(self, point: Array) -> Array:
        """Nearest point of the ball."""
        xp = namespace(point)
        offset = point - _bound(self.center, point)
        largest = xp.max(xp.abs(offset))  # divided out, so that no square overflows
        largest = xp.where(largest > 0, largest, xp.ones_like(largest))
        unit = offset / largest
        norm = largest * xp.sqrt(xp.sum(unit * unit))
        scale = self.radius / xp.maximum(norm, xp.full_like(norm, self.radius))
        return point - offset + offset * scale

    def linear_gap(self, point: Array, gradient: Array) -> tuple[Array, Array]:
        """See :meth:`ConvexSet.linear_gap`."""
        xp = namespace(point)
        offset = point - _bound(self.center, point)
        norm = xp.sqrt(xp.sum(gradient * gradient))
        return xp.sum(gradient * offset) + self.radius * norm, xp.zeros_like(point)


@dataclass(frozen=True)
class Simplex:
    """``point >= 0`` with entries that sum to ``total``, over all entries of the array.

    Parameters
    ----------
    total : float, default 1.0
        Positive sum.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        require_number("Simplex: total", self.total, Real)
        if not (0 < self.total < math.inf):
            raise InvalidInputError(f"Simplex: total must be positive and finite, got {self.total}")

    def project(self, point: Array) -> Array:
        """Nearest point of the simplex, by sorting (Held, Wolfe, Crowder 1974)."""
        xp = namespace(point)
        point = point - xp.max(point)  # the same projection, without cancellation
        flat = xp.reshape(point, (-1,))
        descending = xp.flip(xp.sort(flat))
        count = xp.cumulative_sum(xp.ones_like(flat))
        shift = (xp.cumulative_sum(descending) - self.total) / count
        # the threshold is the largest shift: shift rises while its entry is kept, then falls
        return xp.maximum(point - xp.max(shift), xp.zeros_like(point))

    def linear_gap(self, point: Array, gradient: Array) -> tuple[Array, Array]:
        """See :meth:`ConvexSet.linear_gap`."""
        xp = namespace(point)
        return xp.sum(gradient * point) - self.total * xp.min(gradient), xp.zeros_like(point)


@dataclass(frozen=True, eq=False)
class Budget:
    """A box with one linear limit: ``lower <= point <= upper`` and ``sum cost * point <= total``.

    Parameters
    ----------
    cost : array_like
        Nonnegative and finite, of the point's shape.
    total : float
    lower, upper : float or array_like, default 0.0 and inf
        As in :class:`Box`; ``lower`` must be finite.

    Raises
    ------
    InvalidInputError
        If an entry is out of range, or the lower bounds alone cost more than the total.
    """

    cost: Any
    total: float
    lower: Any = 0.0
    upper: Any = math.inf

    def __post_init__(self) -> None:
        cost = asarray_like(self.cost, None)
        object.__setattr__(self, "cost", cost)
        xp = namespace(cost)
        if not all_finite(cost) or bool(xp.any(cost < 0)):
            raise InvalidInputError("Budget: every cost must be finite and nonnegative")
        least = self.box.project(xp.zeros_like(cost) - math.inf)
        if not all_finite(least):
            raise InvalidInputError("Budget: every lower bound must be finite")
        spent = float(xp.sum(cost * least))
        if not spent <= self.total:
            raise InvalidInputError(
                f"Budget: the lower bounds alone cost {spent:g}, more than the total {self.total:g}"
            )

    @property
    def box(self) -> Box:
        """The set without its limit on the total cost."""
        return Box(self.lower, self.upper)

    def project(self, point: Array) -> Array:
        """Nearest point of the set: ``box.project(point - price * cost)`` at the smallest price that fits."""
        xp = namespace(point)
        cost, box = asarray_like(self.cost, point), self.box
        nearest = box.project(point)
        if float(xp.sum(cost * nearest)) <= self.total:
            return nearest
        # Spending is piecewise linear and decreasing in the price; entries change where they meet a bound.
        costly = cost > 0
        step = xp.where(costly, cost, xp.ones_like(cost))
        lower, upper = box.project(xp.zeros_like(point) - math.inf), box.project(point)
        knots = xp.concat(
            [
                xp.reshape(xp.where(costly, (point - bound) / step, 0.0), (-1,))
                for bound in (lower, upper)
            ]
        )
        knots = xp.sort(xp.where(knots > 0, knots, xp.zeros_like(knots)))
        first, last = 0, knots.shape[0] - 1

        def spent(price: Any) -> float:
            return float(xp.sum(cost * box.project(point - price * cost)))

        if spent(knots[last]) > self.total:  # by rounding alone
            return lower
        while last - first > 1:
            middle = (first + last) // 2
            if spent(knots[middle]) > self.total:
                first = middle
            else:
                last = middle
        above, below = spent(knots[first]), spent(knots[last])
        if above <= self.total:
            first, above = last, below
        part = 0.0 if above == below else (above - self.total) / (above - below)
        return box.project(point - (knots[first] + part * (knots[last] - knots[first])) * cost)

    def linear_gap(self, point: Array, gradient: Array) -> tuple[Array, Array]:
        """See :meth:`ConvexSet.linear_gap`."""
        xp = namespace(point)
        zero = xp.zeros_like(point)
        cost, box = asarray_like(self.cost, point), self.box
        lower, upper = box.project(zero - math.inf), box.project(zero + math.inf)
        free = (cost == 0) & (gradient < 0) & ~xp.isfinite(upper)
        best = xp.where((cost == 0) & (gradient < 0), upper, lower)
        # What is left goes to the entries with most descent for their cost, up to their bounds.
        worth = xp.where((cost > 0) & (gradient < 0), gradient, zero)
        rate = xp.reshape(worth / xp.where(cost > 0, cost, xp.ones_like(cost)), (-1,))
        order = xp.argsort(rate)
        price = xp.take(xp.reshape(cost, (-1,)), order)
        room = xp.take(xp.reshape(upper - lower, (-1,)), order)
        wanted = xp.where(xp.take(rate, order) < 0, price * xp.where(price > 0, room, 0.0), 0.0)
        before = xp.concat([xp.zeros_like(wanted[:1]), xp.cumulative_sum(wanted)[:-1]])
        left = xp.clip(self.total - xp.sum(cost * lower) - before, 0.0, None)
        spent = xp.take(xp.minimum(wanted, left), xp.argsort(order))
        best = best + xp.reshape(spent, point.shape) / xp.where(cost > 0, cost, xp.ones_like(cost))
        distance = xp.where(free, zero, point - best)
        return xp.sum(gradient * distance), xp.where(free, gradient, zero)
