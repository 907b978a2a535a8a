"""Units in which a program's derivatives are of order one: what the joint method and the dense solver work in.

A trust region, a curvature floor and a stopping tolerance compare numbers that carry units. In the user's units they
would mean something else for every choice of these: a variable counted in millions looks flat, a row in thousandths is
broken for nothing. So ``x = D x'``, rows are divided by their size, and f and g by theirs; the same program written in
other units then gives the same numbers here, and the same answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from blocc.errors import UnsupportedModelError
from blocc.model import HasRelaxation, Relaxation, Responses, Saddle, Sensitivity

if TYPE_CHECKING:
    from blocc.methods.joint import Derivatives, HasDerivatives

Vector = npt.NDArray[np.float64]

_ROUNDS = 30  # of equilibration, at most
_SETTLED = 1e-3  # change of a unit's logarithm in the last one: units are rounded to powers of two
_HALVED = 1e-2  # relative, of a change that is half the last one
_NOTHING = -1e6  # logarithm of zero
_NONE = 0.5 * _NOTHING  # what is below is zero, times what it may be
_CHANGE = 1e-6  # relative, of a derivative: more than rounding and differences make
_BALANCE = 1e9  # gamma that leaves the Hessian of g alone
_FIRST = np.ones(1)  # unit of a slope, beside those of the Hessian's rows
_EXTREME = 40.0  # largest power of two of a unit


class Scaled:
    """A model seen in units of its own, chosen at one point; with the model's capabilities for the joint method.

    How far the derivatives of a function hold does not show in them, so a program with functions that are not quadratic
    keeps the user's units, but for its affine rows.

    Parameters
    ----------
    model : HasDerivatives
    x, y : ndarray
        Where derivatives are taken.

    Attributes
    ----------
    x_unit, y_unit : ndarray
        Units of the variables, powers of two: ``x = x_unit * x'``.
    upper_unit, lower_unit : float
        Of f and g.
    """

    def __init__(self, model: HasDerivatives, x: Vector, y: Vector) -> None:
        self.model = model
        v, width = np.concatenate([x, y]), model.bounds[1] - model.bounds[0]
        here = _Sizes(model, v, len(x))
        column, row = equilibrate(here.jacobian, here.objectives)
        offsets = row * (here.values - here.jacobian @ v)
        size = _size(v / column, offsets, width / column)
        column, row = powers_of_two(column * size), powers_of_two(row / size)
        units = powers_of_two(np.array([steepest(*part, column) for part in here.objectives]))
        there = v + column * np.random.default_rng(0).uniform(-1.0, 1.0, len(v))
        curved, quadratic = here.compare(_Sizes(model, np.clip(there, *model.bounds), len(x)))
        if not quadratic:
            column, units = np.ones(len(v)), np.ones(2)
            row = powers_of_two(1.0 / _one(np.abs(here.jacobian).max(axis=1, initial=0.0)))
            row = np.where(curved, 1.0, row)
        self.upper_unit, self.lower_unit = units.tolist()
        self.x_unit, self.y_unit = column[: len(x)], column[len(x) :]
        self._column, self._rows = column, (row[: here.inequalities], row[here.inequalities :])
        self.bounds = (model.bounds[0] / column, model.bounds[1] / column)
        self._slopes = column / self.upper_unit, column / self.lower_unit
        self._bends = column * column[:, None] / self.upper_unit
        self._same = bool((column == 1.0).all() and (row == 1.0).all() and (units == 1.0).all())

    def values(self, x: Vector, y: Vector) -> tuple[float, float, Vector, Vector]:
        """See :class:`blocc.methods.joint.HasDerivatives`, in these units, like all that follows."""
        if self._same:
            return self.model.values(x, y)
        upper, lower, *rows = self.model.values(x * self.x_unit, y * self.y_unit)
        inequality, equality = (part * row for part, row in zip(rows, self._rows, strict=True))
        return upper / self.upper_unit, lower / self.lower_unit, inequality, equality

    def derivatives(self, x: Vector, y: Vector) -> Derivatives:
        """First derivatives of f, g and all constraints."""
        if self._same:
            return self.model.derivatives(x, y)
        data = self.model.derivatives(x * self.x_unit, y * self.y_unit)
        inequality, equality = self._rows
        return data._replace(
            upper=data.upper / self.upper_unit,
            upper_gradient=data.upper_gradient * self._slopes[0],
            lower=data.lower / self.lower_unit,
            lower_gradient=data.lower_gradient * self._slopes[1],
            inequality=data.inequality * inequality,
            inequality_jacobian=self._scaled(data.inequality_jacobian, inequality),
            equality=data.equality * equality,
            equality_jacobian=self._scaled(data.equality_jacobian, equality),
        )

    def _scaled(self, jacobian: Any, rows: Vector) -> Any:
        if not len(rows):
            return jacobian
        if not isinstance(jacobian, np.ndarray):
            return (
                sparse.dia_array((rows[None], [0]), shape=(len(rows),) * 2)
                @ jacobian
                @ (sparse.dia_array((self._column[None], [0]), shape=(len(self._column),) * 2))
            )
        return rows[:, None] * jacobian * self._column

    def hessian(self, x: Vector, y: Vector, gamma: float, dual: Vector, equal: Vector) -> Vector:
        """Hessian of the Lagrangian."""
        if self._same:
            return self.model.hessian(x, y, gamma, dual, equal)
        unit, (inequality, equality) = self.upper_unit, self._rows
        hessian = self.model.hessian(
            x * self.x_unit,
            y * self.y_unit,
            gamma * unit / self.lower_unit,
            unit * dual * inequality,
            unit * equal * equality,
        )
        return np.asarray(hessian * self._bends)

    def lower(self, x: Vector, *, tol: float, warm: Any = None) -> Saddle:
        """Saddle point of the lower level; its duals stay in the user's units."""
        if self._same:
            return self.model.lower(x, tol=tol, warm=warm)
        saddle = self.model.lower(x * self.x_unit, tol=tol, warm=warm)
        value = saddle.value / self.lower_unit
        gap = saddle.gap * (1.0 + abs(saddle.value)) / self.lower_unit
        return Saddle(
            y=np.asarray(saddle.y) / self.y_unit,
            duals=saddle.duals,
            value=value,
            grad_x=np.asarray(saddle.grad_x) * self.x_unit / self.lower_unit,
            gap=gap / (1.0 + abs(value)),
            violation=saddle.violation,
            iterations=saddle.iterations,
            warm=saddle.warm,
        )

    def responses(self, points: Vector) -> Responses | None:
        """Answers at those of many x where that takes no solve."""
        known = getattr(self.model, "responses", None)
        found: Responses | None = None if known is None else known(points * self.x_unit)
        if found is None or self._same:
            return found
        inequality, equality = self._rows
        return Responses(
            found.known,
            found.y / self.y_unit,
            found.value / self.lower_unit,
            found.upper / self.upper_unit,
            found.lower / self.lower_unit,
            found.inequality * inequality,
            found.equality * equality,
        )

    def sensitivity(self, x: Vector) -> Sensitivity | None:
        """Derivatives of y(x) and of v at x; None where they are not known."""
        known = getattr(self.model, "sensitivity", None)
        found = None if known is None else known(x * self.x_unit)
        if found is None or self._same:
            return found
        bend = found.hessian * self.x_unit * self.x_unit[:, None] / self.lower_unit
        return Sensitivity(found.answer * self.x_unit / self.y_unit[:, None], bend)

    def relaxation(self, *, tol: float) -> Relaxation:
        """Minimise f over both variables, lower-level optimality dropped."""
        if not isinstance(self.model, HasRelaxation):
            raise UnsupportedModelError("the model has no relaxation")
        answer = self.model.relaxation(tol=tol)
        bound = None if answer.bound is None else answer.bound / self.upper_unit
        return Relaxation(answer.x / self.x_unit, answer.y / self.y_unit, bound)


class _Sizes:
    """A model's derivatives at one point; what is not finite counts as zero."""

    def __init__(self, model: HasDerivatives, v: Vector, nx: int) -> None:
        x, y = v[:nx], v[nx:]
        data = model.derivatives(x, y)
        self.inequalities = len(data.inequality)
        zero = np.zeros(len(data.inequality)), np.zeros(len(data.equality))
        upper = _finite(model.hessian(x, y, 0.0, *zero))
        lower = _finite(model.hessian(x, y, _BALANCE, *zero) - upper) / _BALANCE
        slopes = _finite(data.upper_gradient), _finite(data.lower_gradient)
        self.objectives = [(slopes[0], upper), (slopes[1], lower)]
        jacobian = [_dense(data.inequality_jacobian), _dense(data.equality_jacobian)]
        self.jacobian = _finite(np.vstack(jacobian))
        self.values = _finite(np.concatenate([data.inequality, data.equality]))

    def compare(self, other: _Sizes) -> tuple[npt.NDArray[np.bool_], bool]:
        """Rows whose first derivatives differ at another point; whether none does, and no Hessian of an objective."""
        curved = np.asarray(_differ(self.jacobian, other.jacobian).any(axis=1))
        bends = zip(self.objectives, other.objectives, strict=True)
        return curved, not (curved.any() or any(_differ(a[1], b[1]).any() for a, b in bends))


def _differ(before: Vector, after: Vector) -> npt.NDArray[np.bool_]:
    size = np.maximum(np.abs(before), np.abs(after)).max(axis=-1, initial=0.0, keepdims=True)
    return np.asarray(np.abs(after - before) > _CHANGE * size)


def equilibrate(
    jacobian: Vector, objectives: Sequence[tuple[Vector, Vector]]
) -> tuple[Vector, Vector]:
    """Units of columns and factors of rows after which no entry is above one, and most are near it.

    Ruiz's iteration (2001) in the largest entry, on the rows and on the gradients and Hessians of the objectives
    together, each objective in units of its own.

    Parameters
    ----------
    jacobian : ndarray of shape (m, n)
    objectives : sequence of (ndarray of shape (n,), ndarray of shape (n, n))
        Gradient and Hessian of each.

    Returns
    -------
    tuple of ndarray
        Of shapes (n,) and (m,). A common factor of the columns is left open: their product is one.
    """
    data = tuple((slope.tobytes(), hessian.tobytes()) for slope, hessian in objectives)
    column, row = _equilibrated(jacobian.shape, jacobian.tobytes(), data)
    return column.copy(), row.copy()


@lru_cache(maxsize=8)  # a solve asks for the same programs again, and the next one often too
def _equilibrated(
    shape: tuple[int, int], jacobian: bytes, objectives: tuple[tuple[bytes, bytes], ...]
) -> tuple[Vector, Vector]:
    # in logarithms, where products are sums: the rows, then gradient and Hessian of each objective, one below the other
    (m, n), count = shape, len(objectives)
    sizes = np.frombuffer(b"".join([jacobian, *itertools.chain(*objectives)])).reshape(-1, n)
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log2(np.abs(sizes)), _NOTHING)
    rows, bends = logs[:m], logs[m:].reshape(count, n + 1, n)
    column, row, factor = np.zeros(n), np.zeros(m), np.zeros((n + 1, 1))
    before = column
    for _ in range(_ROUNDS):
        factor[1:, 0] = column
        steep = (bends + factor).max(axis=1)
        unit = (steep + column).max(axis=1, keepdims=True)
        largest = (steep - np.where(unit > _NONE, unit, 0.0)).max(axis=0)
        if m:
            largest = np.maximum(largest, (rows + row[:, None]).max(axis=0))
        change = -0.5 * (column + np.where(largest > _NONE, largest, -column))
        change -= change.mean()
        most = np.abs(change).max()
        # a step halves what is left to do in rows and slopes: where it halves all, the rest is known
        halves = np.abs(2.0 * change - before).max() <= _HALVED * most
        column, before = column + (2.0 if halves else 1.0) * change, change
        if m:
            row = -(rows + column).max(axis=1)
            row[row > -_NONE] = 0.0
        if most <= _SETTLED:
            break
    return np.exp2(column), np.exp2(row)


def steepest(gradient: Vector, hessian: Vector, column: Vector) -> float:
    """Largest first or second derivative in given units of the variables, 1 where all vanish."""
    first = np.abs(gradient) * column
    second = np.abs(hessian) * column * column[:, None]
    return float(_one(np.max(np.vstack([first, second]), initial=0.0)))


def _size(point: Vector, offsets: Vector, widths: Vector) -> float:
    """Common factor of the units: how far things lie apart, by ranges and rows; the point's size within that."""
    apart = np.concatenate([np.abs(offsets), widths])
    apart = apart[np.isfinite(apart) & (apart > 0)]
    if not len(apart):
        return 1.0
    typical = float(np.median(apart))
    return float(np.clip(np.abs(point).max(), 1e-2 * typical, typical))


def powers_of_two(values: Vector) -> Vector:
    """The nearest ones: factors that cost no digits."""
    return np.asarray(2.0 ** np.clip(np.round(np.log2(values)), -_EXTREME, _EXTREME))


def _one(values: Any) -> Any:
    return np.where(values > 0, values, 1.0)


def _dense(matrix: Any) -> Vector:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)


def _finite(values: Vector) -> Vector:
    return np.where(np.isfinite(values), values, 0.0)
