"""Quadratic programs read off the compiled functions, without a round trip through CVXPY's canonicalisation.

Where g is quadratic and every constraint of the lower level affine in (x, y) together, the lower level at a given x is

    min_y  1/2 y'H_yy y + (l_y + H_yx x)'y     subject to   A y <= b - B x,  E y = e - F x,  bounds on y

and the gradient of its value in x is ``l_x + H_xx x + H_xy y + B'mu + F'nu`` (envelope theorem). The relaxation is a
quadratic program in (x, y) where f is quadratic as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dgesv

from blocc.conic_dense import INFINITE, Matrix, QuadraticAnswer, Vector, solve_or_explain
from blocc.errors import LowerInfeasibleError
from blocc.model import Saddle, Sensitivity
from blocc.scaling import equilibrate, powers_of_two, steepest

if TYPE_CHECKING:
    from blocc.cvx_functions import Functions

#: Largest number of rows times columns for which dense linear algebra is used.
DENSE_LIMIT = 40_000
_SHARP = 1e-9  # gap and violation above which an answer is left to the interior-point method
_NEAR = 1e-7  # slack or multiplier, relative, that is not told from zero
_MISSES = 10  # degenerate answers in a row after which regions are built on request only
_EDGE = 1e-10  # of a region, relative: there other answers may be optimal too
_ROUNDING = 1e-13  # gap and violation of an answer that is taken from a region
_REGIONS = 6  # critical regions kept
_UNBALANCED = (
    8.0  # largest entry of a row or column, or its inverse, for which new units are worth it
)
_CURVED = 1e-12  # least eigenvalue of a convex quadratic, relative: rounding may make it negative


@dataclass(frozen=True)
class DualBlock:
    """Where the multipliers of one ordinary constraint of the lower level belong.

    Attributes
    ----------
    name : str
        Key in ``duals``.
    kind : {"inequality", "equality", "lower", "upper"}
        A constraint ``c <= 0`` or ``h = 0`` in the order of ``derivatives``, or a bound of y.
    entries : ndarray of int
        Rows among the lower level's constraints of the kind, or positions in y.
    shape : tuple of int
        Of the multiplier.
    """

    name: str
    kind: str
    entries: npt.NDArray[np.int64]
    shape: tuple[int, ...]


def named_infeasibility(
    error: LowerInfeasibleError, multipliers: Mapping[str, Any]
) -> LowerInfeasibleError:
    """The same error, with the constraints that contradict each other in its message: those with a multiplier."""
    sizes = {name: float(np.max(np.abs(dual), initial=0.0)) for name, dual in multipliers.items()}
    most = max(sizes.values(), default=0.0)
    culprits = [repr(name) for name, size in sizes.items() if size > 1e-6 * most]
    text = str(error)
    if culprits:
        text = text.replace("the constraints", " and ".join(culprits), 1)
    named = LowerInfeasibleError(text)
    named.ray, named.normal = multipliers, error.normal
    return named


def is_convex(hessian: Matrix) -> bool:
    """Whether a symmetric matrix is positive semidefinite but for rounding."""
    if not hessian.size:
        return True
    return bool(np.linalg.eigvalsh(hessian)[0] >= -_CURVED * (1.0 + np.abs(hessian).max()))


Found = tuple[QuadraticAnswer, float, Vector, float, float]


class _Region:
    """Where the answer's active set stays what it is at one x.

    Answer, multipliers, slacks and KKT residuals are affine in x there, and the value is quadratic.

    Parameters
    ----------
    x : ndarray
        A point of it.
    parts : sequence of (ndarray, ndarray)
        Value at x and derivative of: the answer; its multipliers; the KKT residual of every variable; the residuals of
        the active rows; and the margins, which are positive in the region: slacks of the inactive bounds and rows,
        sizes of the active multipliers.
    optimum : tuple of (float, ndarray, ndarray)
        The optimal value at x, its gradient and Hessian.
    held : ndarray of int
        Positions of the active rows' multipliers.
    size : ndarray
        Of the active rows: what their residuals are relative to.
    unit : float
        Of the objective, for the gap.
    """

    def __init__(
        self,
        x: Vector,
        parts: Sequence[tuple[Vector, Matrix]],
        optimum: tuple[float, Vector, Matrix],
        held: npt.NDArray[np.int64],
        size: Vector,
        unit: float,
    ) -> None:
        self._x, self._unit = x, unit
        self._value, self._gradient, self.hessian = optimum
        self._base = np.concatenate([part for part, _ in parts])
        self._slope = np.concatenate([slope for _, slope in parts])
        ends = np.cumsum([len(part) for part, _ in parts])
        self._answer, self._dual, self._left, self._residual = (int(end) for end in ends[:4])
        self._margin = parts[4][0]
        self._edge, self._clear = (t * (1.0 + np.abs(self._margin)) for t in (_EDGE, _NEAR))
        self._held, self._size = held, size

    def answer(self, x: Vector) -> Found | None:
        """Answer, value, gradient of the value in x, relative gap and violation; None outside the region."""
        moved = x - self._x
        at = self._base + self._slope @ moved
        if (at[self._residual :] < self._edge).any():
            return None
        y, dual = at[: self._answer], at[self._answer : self._dual]
        bend = self.hessian @ moved
        value = self._value + float((self._gradient + 0.5 * bend) @ moved)
        residual = np.abs(at[self._left : self._residual])
        gap = float(np.abs(at[self._dual : self._left]) @ np.abs(y))
        outside = 0.0
        if len(residual):
            gap += float(np.abs(dual[self._held]) @ residual)
            outside = float(np.max(residual / self._size))
        gap *= self._unit / (1.0 + abs(value))
        return QuadraticAnswer(y, dual, 0), value, self._gradient + bend, gap, outside

    def answers(self, points: Matrix) -> tuple[npt.NDArray[np.bool_], Matrix, Vector]:
        """Which of many x, a row for each, are in the region, sharply solved, and the answers and values of all."""
        moved = points - self._x
        at = self._base + moved @ self._slope.T
        values = (
            self._value
            + moved @ self._gradient
            + 0.5 * ((moved @ self.hessian) * moved).sum(axis=1)
        )
        y, residual = at[:, : self._answer], np.abs(at[:, self._left : self._residual])
        gap = (np.abs(at[:, self._dual : self._left]) * np.abs(y)).sum(axis=1)
        gap += (np.abs(at[:, self._answer + self._held]) * residual).sum(axis=1)
        outside = np.max(residual / self._size, axis=1, initial=0.0)
        sharp = np.maximum(gap * self._unit / (1.0 + np.abs(values)), outside) <= _ROUNDING
        return (at[:, self._residual :] >= self._edge).all(axis=1) & sharp, y, values

    @property
    def answer_slope(self) -> Matrix:
        """Derivative of the answer in x."""
        return self._slope[: self._answer]

    def inside(self, x: Vector) -> bool:
        """Whether x is clearly in the region."""
        margin = self._margin + self._slope[self._residual :] @ (x - self._x)
        return bool((margin > self._clear).all())


class QuadraticProgram:
    """A quadratic objective under affine constraints and bounds in v = (x, y); x can be held.

    Answers are affine in x as long as the active set stays: the last few such regions are kept, so that most answers
    cost a product, not a solve. Every answer's residuals are computed all the same.

    Parameters
    ----------
    objective : tuple of (float, ndarray of shape (n,), ndarray of shape (n, n))
        Constant, slope and Hessian.
    inequality, equality : tuple of (ndarray of shape (m,), ndarray of shape (m, n))
        Constant and Jacobian.
    bounds : tuple of ndarray of shape (n,)
    held : int
        The first entries of v that are given.
    """

    def __init__(
        self,
        objective: tuple[float, Vector, Matrix],
        inequality: tuple[Vector, Matrix],
        equality: tuple[Vector, Matrix],
        bounds: tuple[Vector, Vector],
        held: int = 0,
    ) -> None:
        self.constant, slope, hessian = objective
        k, self.inequalities = held, len(inequality[0])
        offset, rows = (np.concatenate(pair) for pair in zip(inequality, equality, strict=True))
        # the solver's tolerances are absolute: columns, rows and the objective in units in which all are of order one
        curved = hessian[k:, k:]
        column, row = equilibrate(rows[:, k:], ((slope[k:], curved),))
        self._column, row = powers_of_two(column), powers_of_two(row)
        unit = self._unit = float(
            powers_of_two(np.asarray(steepest(slope[k:], curved, self._column)))
        )
        self._factors = np.concatenate([unit / self._column, unit * row])  # of the multipliers
        column = np.concatenate([np.ones(k), self._column])
        rows, hessian = row[:, None] * rows * column, hessian * column * column[:, None] / unit
        slope = slope * column / unit
        self._offset, self._given, self._rows = row * offset, rows[:, :k].copy(), rows[:, k:].copy()
        self._slope_x, self._slope = slope[:k].copy(), slope[k:].copy()
        self._hessian_x, self._cross = hessian[:k, :k].copy(), hessian[:k, k:].copy()
        self._hessian = hessian[k:, k:].copy()
        self._low = np.maximum(bounds[0][k:] / self._column, -INFINITE)
        self._high = np.minimum(bounds[1][k:] / self._column, INFINITE)
        self._none = np.full(self.inequalities, -INFINITE)
        self.size = len(self._slope)
        self.forget()

    def forget(self) -> None:
        """Drop what is known from earlier answers."""
        self._regions: list[_Region] = []
        self._degenerate = 0  # answers in a row without a region
        self._latest: tuple[bytes, Found | None] = b"", None  # x and answer without a region

    def user_units(self, answer: QuadraticAnswer) -> QuadraticAnswer:
        """An answer of :meth:`solve` in the units that the program came in."""
        return QuadraticAnswer(
            answer.z * self._column, answer.dual * self._factors, answer.iterations
        )

    def user_multipliers(self, ray: Vector) -> Vector:
        """Multipliers that prove infeasibility, in the units that the program came in."""
        return np.asarray(ray * self._factors / self._unit)

    def solve(self, x: Vector, *, wanted: bool = False) -> Found | None:
        """Answer, value, gradient of the value in x, relative gap and violation; None where it is not sharp.

        The answer is in the program's own units, see :meth:`user_units`. Its region is looked for as long as there was
        one lately, or where it is ``wanted``.

        Raises
        ------
        LowerInfeasibleError
        """
        if self._latest[0] == x.tobytes() and len(x):
            return self._latest[1]
        for position, region in enumerate(self._regions):
            found = region.answer(x)
            if found is not None and max(found[3:]) <= _ROUNDING:
                if position:
                    self._regions.insert(0, self._regions.pop(position))
                return found
        right, q = -(self._offset + self._given @ x), self._slope + x @ self._cross
        answer = solve_or_explain(
            self._hessian,
            q,
            self._rows,
            np.concatenate([self._high, right]),
            np.concatenate([self._low, self._none, right[self.inequalities :]]),
        )
        if answer is None:
            return None
        found = self._assess(answer, x, q, right)
        if found is not None and len(x) and (wanted or self._degenerate < _MISSES):
            known = self._region(x, found, q, right)
            if known is not None:
                self._regions = [known, *self._regions[: _REGIONS - 1]]
                self._degenerate = 0
            elif not wanted:
                self._degenerate += 1
            if known is None:
                self._latest = x.tobytes(), found
        return found

    def answers(self, points: Matrix) -> tuple[npt.NDArray[np.bool_], Matrix, Vector]:
        """Which of many x, a row for each, are solved to rounding; and answers, in user units, and values of these.

        Those in no region known before are solved one by one, as long as these open no new one.
        """
        known, tried = np.zeros(len(points), dtype=bool), np.zeros(len(points), dtype=bool)
        y, values = np.zeros((len(points), self.size)), np.zeros(len(points))

        def look_in(region: _Region) -> None:
            left = np.flatnonzero(~tried)
            inside, answers, optima = region.answers(points[left])
            there = left[inside]
            known[there] = tried[there] = True
            y[there], values[there] = answers[inside], optima[inside]

        for region in list(self._regions):
            look_in(region)
        while not tried.all():
            k = int(np.argmin(tried))
            tried[k], before = True, self._regions[:1]
            try:
                found = self.solve(points[k])
            except LowerInfeasibleError:
                continue
            if found is not None and max(found[3:]) <= _ROUNDING:
                known[k], y[k], values[k] = True, found[0].z, found[1]
            if self._regions[:1] != before:
                look_in(self._regions[0])
        return known, y * self._column, values

    def _assess(self, answer: QuadraticAnswer, x: Vector, q: Vector, right: Vector) -> Found | None:
        y, n, m = answer.z, self.size, self.inequalities
        own, rows = answer.dual[:n], answer.dual[n:]
        bent, bent_x = self._hessian @ y, self._hessian_x @ x
        unit = self._unit
        value = float(
            self.constant
            + unit * (self._slope_x @ x + 0.5 * (x @ bent_x) + q @ y + 0.5 * (y @ bent))
        )
        gradient = unit * (self._slope_x + bent_x + self._cross @ y + rows @ self._given)
        left = bent + q + rows @ self._rows + own
        residual = self._rows @ y - right
        to_high, to_low = y - self._high, self._low - y
        slackness = abs(rows @ residual) + np.abs(own) @ np.minimum(
            np.abs(np.where(own > 0, to_high, to_low)), 1e20
        )
        gap = float(unit * (slackness + np.abs(left) @ np.abs(y))) / (1.0 + abs(value))
        residual = residual / (1.0 + np.abs(right))
        outside = max(
            float(np.max(to_high, initial=0.0)),
            float(np.max(to_low, initial=0.0)),
            float(np.max(residual, initial=0.0)),
            float(np.max(-residual[m:], initial=0.0)),
        )
        if not (gap <= _SHARP and outside <= 2e-8):
            return None
        return answer, value, gradient, gap, outside

    def _region(self, x: Vector, found: Found, q: Vector, right: Vector) -> _Region | None:
        """The answer's critical region, None where the active set is degenerate."""
        answer, value, gradient, *_ = found
        y, dual, n, m = answer.z, answer.dual, self.size, self.inequalities
        at = np.concatenate([y, self._rows @ y])
        above = np.concatenate([self._high, right]) - at
        below = at - np.concatenate([self._low, self._none, right[m:]])
        near = np.minimum(above, below) <= _NEAR * (1.0 + np.abs(at))
        active = np.abs(dual) > _NEAR * (1.0 + np.abs(dual).max(initial=0.0))
        active[n + m :] = True
        if (near != active).any():
            return None
        free, fixed = np.flatnonzero(~active[:n]), np.flatnonzero(active[:n])
        held = np.flatnonzero(active[n:])
        cross = np.concatenate([self._cross[:, free].T, self._given[held]])
        moved = kkt_solve(self._hessian[np.ix_(free, free)], self._rows[np.ix_(held, free)], -cross)
        if moved is None:
            return None
        k, rows = len(free), self._rows[held]
        slope, rows_slope = np.zeros((n, len(x))), np.zeros((len(right), len(x)))
        slope[free], rows_slope[held] = moved[:k], moved[k:]
        left = self._hessian @ y + q + dual[n:] @ self._rows + dual[:n]
        left_slope = self._hessian @ slope + self._cross.T + rows.T @ moved[k:]
        own_slope = np.zeros_like(slope)
        own_slope[fixed], left_slope[fixed] = -left_slope[fixed], 0.0
        loose = np.flatnonzero(~active[n : n + m])
        tight = held[held < m]
        high, low = free[self._high[free] < INFINITE], free[self._low[free] > -INFINITE]
        sign, tight_sign = np.sign(dual[fixed])[:, None], np.sign(dual[n + tight])[:, None]
        margins = (
            (self._high[high] - y[high], -slope[high]),
            (y[low] - self._low[low], slope[low]),
            (
                right[loose] - self._rows[loose] @ y,
                -self._given[loose] - self._rows[loose] @ slope,
            ),
            (np.abs(dual[fixed]), sign * own_slope[fixed]),
            (np.abs(dual[n + tight]), tight_sign * rows_slope[tight]),
        )
        parts = (
            (y, slope),
            (dual, np.concatenate([own_slope, rows_slope])),
            (left, left_slope),
            (rows @ y - right[held], rows @ slope + self._given[held]),
            tuple(np.concatenate(part) for part in zip(*margins, strict=True)),
        )
        hessian, unit = self._unit * (self._hessian_x + cross.T @ moved), self._unit
        size = 1.0 + np.abs(right[held])
        return _Region(x.copy(), parts, (value, gradient, hessian), n + held, size, unit)  # type: ignore[arg-type]

    def sensitivity(self, x: Vector) -> Sensitivity | None:
        """Derivatives at x, from the KKT system of the active rows; None where these are not clear."""
        if not any(region.inside(x) for region in self._regions[:1]):
            self.solve(x, wanted=True)
        if self._regions and self._regions[0].inside(x):
            region = self._regions[0]
            return Sensitivity(self._column[:, None] * region.answer_slope, region.hessian)
        return None


def kkt_solve(hessian: Matrix, rows: Matrix, right: Matrix) -> Matrix | None:
    """Solve ``[[hessian, rows'], [rows, 0]] z = right``, None where it is singular."""
    n, m = len(hessian), len(rows)
    if m > n:
        return None
    if not (n and right.size):
        return np.zeros(right.shape)
    kkt = np.zeros((n + m, n + m), order="F")
    kkt[:n, :n], kkt[:n, n:], kkt[n:, :n] = hessian, rows.T, rows
    _, _, found, flaw = dgesv(kkt, right, overwrite_a=True)  # a third of numpy.linalg.solve's time
    return found if flaw == 0 and np.abs(found).max() < 1e8 else None


def sensitivity(
    hessian: Matrix, rows: Matrix, nx: int, free: npt.NDArray[np.int64]
) -> Sensitivity | None:
    """Derivatives in x of an answer and its value, from the KKT system of its active rows; None where singular.

    Parameters
    ----------
    hessian : ndarray of shape (nx + n, nx + n)
        Of the Lagrangian in (x, y).
    rows : ndarray of shape (m, nx + n)
        Jacobian of the active rows.
    nx : int
    free : ndarray of int
        Entries of y that are at no bound.
    """
    columns = nx + free
    cross = np.vstack([hessian[columns, :nx], rows[:, :nx]])
    moved = kkt_solve(hessian[np.ix_(columns, columns)], rows[:, columns], -cross)
    if moved is None:
        return None
    answer = np.zeros((len(hessian) - nx, nx))
    answer[free] = moved[: len(free)]
    return Sensitivity(answer, hessian[:nx, :nx] + cross.T @ moved)


class _Pattern(NamedTuple):
    """An active set: of the bounds and rows together, and its parts."""

    key: bytes
    active: npt.NDArray[np.bool_]
    free: npt.NDArray[np.int64]
    fixed: npt.NDArray[np.int64]
    held: npt.NDArray[np.int64]
    at: Vector  # the fixed entries' values, zero elsewhere
    sign: Vector  # of the multipliers of active bounds and inequalities, zero elsewhere


class VaryingProgram:
    """A program that is quadratic in y for every x, its data read off the functions at x.

    The active set of the last answer is tried first: one linear system, where a solve takes one an iteration.

    Parameters
    ----------
    functions : Functions
        Of v = (x, y).
    objective : int
        Row to minimise; quadratic in y, and convex.
    rows : tuple of slice
        Inequalities and equalities, affine in y.
    bounds : tuple of ndarray
        On v.
    held : int
        Number of entries of x.
    """

    def __init__(
        self,
        functions: Functions,
        objective: int,
        rows: tuple[slice, slice],
        bounds: tuple[Vector, Vector],
        held: int,
    ) -> None:
        self._functions, self._objective, self._nx = functions, objective, held
        inequality, equality = (np.arange(part.start, part.stop) for part in rows)
        self._index, self.inequalities = np.concatenate([inequality, equality]), len(inequality)
        self._low = np.maximum(bounds[0][held:], -INFINITE)
        self._high = np.minimum(bounds[1][held:], INFINITE)
        self.size = len(self._low)
        self._bounded = bool(np.any(self._low > -INFINITE) or np.any(self._high < INFINITE))
        self._weights = np.zeros(functions.size)
        self._weights[objective] = 1.0
        self.forget()

    def forget(self) -> None:
        """Drop what is known from earlier answers."""
        self._last: tuple[Vector, QuadraticAnswer] | None = None
        self._pattern: _Pattern | None = None
        self._slope: tuple[_Pattern, Matrix] | None = None  # in x, of free entries and held rows
        self._units: tuple[Vector, Vector] | None = None

    def user_units(self, answer: QuadraticAnswer) -> QuadraticAnswer:
        """An answer of :meth:`solve`, which has the functions' units already."""
        return answer

    def user_multipliers(self, ray: Vector) -> Vector:
        """Multipliers that prove infeasibility, as :meth:`solve` has just raised them, in the functions' units."""
        return np.asarray(ray * self._ray_factors)

    def solve(self, x: Vector) -> Found | None:
        """Answer, value, gradient of the value in x, relative gap and violation; None where it is not sharp.

        Raises
        ------
        LowerInfeasibleError
        """
        k = self._nx
        v = np.concatenate([x, np.zeros(self.size)])
        value, jacobian = self._functions.value_jacobian(v, self._objective)
        if not np.all(np.isfinite(value[self._objective :])):
            return None
        hessian = self._functions.hessian(v, self._weights)[k:, k:]
        q, rows = jacobian[self._objective, k:], jacobian[self._index, k:]
        right = -value[self._index]
        found = None
        if self._pattern is not None:
            guess = self._as_before(self._pattern, hessian, q, rows, right)
            found = None if guess is None else self._assess(guess, x)
        if found is None:
            answer = self._solve_afresh(hessian, q, rows, right)
            found = None if answer is None else self._assess(answer, x)
            if answer is not None:
                self._pattern = self._active(answer.dual)
        self._last = None if found is None else (x.copy(), found[0])
        return found

    def _solve_afresh(
        self, hessian: Matrix, q: Vector, rows: Matrix, right: Vector
    ) -> QuadraticAnswer | None:
        """By the solver, in units in which all are of order one, as its tolerances are absolute."""
        if self._units is None or not _balanced(rows, q, hessian, *self._units):
            column, row = equilibrate(rows, ((q, hessian),))
            self._units = powers_of_two(column), powers_of_two(row)
        column, row = self._units
        unit = float(powers_of_two(np.asarray(steepest(q, hessian, column))))
        right, m = row * right, self.inequalities
        low, high = (
            np.clip(bound / column, -INFINITE, INFINITE) for bound in (self._low, self._high)
        )
        self._ray_factors = np.concatenate([1.0 / column, row])
        answer = solve_or_explain(
            hessian * column * column[:, None] / unit,
            q * column / unit,
            row[:, None] * rows * column,
            np.concatenate([high, right]),
            np.concatenate([low, np.full(m, -INFINITE), right[m:]]),
        )
        if answer is None:
            return None
        factors = np.concatenate([unit / column, unit * row])
        return QuadraticAnswer(answer.z * column, answer.dual * factors, answer.iterations)

    def _active(self, dual: Vector) -> _Pattern:
        n, m = self.size, self.inequalities
        size = np.abs(dual)
        sign = np.sign(dual) * (size > _NEAR * (1.0 + size.max(initial=0.0)))
        sign[n + m :] = 0.0
        key = sign.tobytes()
        if self._pattern is not None and self._pattern.key == key:
            return self._pattern
        active = sign != 0.0
        active[n + m :] = True
        return _Pattern(
            key=key,
            active=active,
            free=np.flatnonzero(~active[:n]),
            fixed=np.flatnonzero(active[:n]),
            held=np.flatnonzero(active[n:]),
            at=np.where(active[:n], np.where(dual[:n] > 0, self._high, self._low), 0.0),
            sign=sign,
        )

    def _as_before(
        self,
        pattern: _Pattern,
        hessian: Matrix,
        q: Vector,
        rows: Matrix,
        right: Vector,
        cross: tuple[Matrix, Matrix] | None = None,
    ) -> QuadraticAnswer | None:
        """Answer on an earlier answer's active set, None where that is not the right one.

        ``cross``, the derivatives in x of ``hessian @ y + q + dual @ rows`` and of ``rows @ y - right``, lets the
        answer have its slope, at next to no cost.
        """
        n, m, free, held = self.size, self.inequalities, pattern.free, pattern.held
        if len(free) == n:
            base, inner, active = np.concatenate([q, -right[held]]), hessian, rows[held]
        else:
            base = np.concatenate(
                [q[free] + hessian[free] @ pattern.at, rows[held] @ pattern.at - right[held]]
            )
            inner, active = hessian[np.ix_(free, free)], rows[np.ix_(held, free)]
        both = slope = None
        if cross is not None:
            parts = base[:, None], np.concatenate([cross[0][free], cross[1][held]])
            both = kkt_solve(inner, active, -np.concatenate(parts, axis=1))
            if both is not None:
                both, slope = both[:, 0], both[:, 1:]
        if both is None:
            both = kkt_solve(inner, active, -base)
        if both is None:
            return None
        y, found = pattern.at.copy(), np.zeros(n + len(rows))
        y[free] = both[: len(free)]
        found[n + held] = both[len(free) :]
        if len(pattern.fixed):
            left = hessian @ y + q + found[n:] @ rows
            found[pattern.fixed] = -left[pattern.fixed]
        if m and ((rows @ y - right)[:m] > 1e-13 * (1.0 + np.abs(right[:m]))).any():
            return None
        if self._bounded and ((y > self._high) | (y < self._low)).any():
            return None
        if (found * pattern.sign < 0).any():
            return None
        self._slope = None if slope is None else (pattern, slope)
        return QuadraticAnswer(y, found, 1)

    def _assess(
        self, answer: QuadraticAnswer, x: Vector, begun: Vector | None = None
    ) -> Found | None:
        """What :meth:`solve` returns; a slope that is left counts as far as the answer, and the way to it, are long."""
        y, n, m, k = answer.z, self.size, self.inequalities, self._nx
        own, rows = answer.dual[:n], answer.dual[n:]
        values, jacobian = self._functions.value_jacobian(np.concatenate([x, y]), self._objective)
        value, gradient = float(values[self._objective]), jacobian[self._objective]
        gap = outside = 0.0
        if len(rows):
            own_rows, residual = jacobian[self._index], values[self._index]
            gradient = gradient + rows @ own_rows
            gap += abs(float(rows @ residual))
            residual = residual / (1.0 + np.abs(own_rows[:, k:]) @ np.abs(y))
            outside = max(0.0, float(np.max(residual)), float(np.max(-residual[m:], initial=0.0)))
        left = gradient[k:] + own
        if self._bounded:
            to_high, to_low = y - self._high, self._low - y
            outside = max(outside, float(np.max(to_high)), float(np.max(to_low)))
            distance = np.abs(np.where(own > 0, to_high, to_low))
            gap += float(np.abs(own) @ np.minimum(distance, 1e20))
        reach = np.abs(y) if begun is None else np.maximum(np.abs(y), np.abs(y - begun))
        gap = (gap + float(np.abs(left) @ reach)) / (1.0 + abs(value))
        if not (gap <= _SHARP and outside <= 2e-8):
            return None
        return answer, value, gradient[:k], gap, outside

    def sensitivity(self, x: Vector) -> Sensitivity | None:
        """Derivatives at x; None where the active rows are not clear."""
        if self._last is None or not np.array_equal(self._last[0], x):
            self.solve(x)
        if self._last is None:
            return None
        y, dual = self._last[1].z, self._last[1].dual
        pattern, v = self._active(dual), np.concatenate([x, y])
        values, jacobian = self._functions.value_jacobian(v, self._objective)
        slack = np.concatenate(
            [np.minimum(self._high - y, y - self._low), np.abs(values[self._index])]
        )
        if ((slack <= _NEAR * (1.0 + np.abs(v).max())) != pattern.active).any():
            return None
        weights = self._weights.copy()
        weights[self._index] = dual[self.size :]
        return sensitivity(
            self._functions.hessian(v, weights),
            jacobian[self._index[pattern.held]],
            self._nx,
            pattern.free,
        )


def _balanced(rows: Matrix, q: Vector, hessian: Matrix, column: Vector, row: Vector) -> bool:
    """Whether a program's largest entries are of order one in given units: of every row, and of every column."""
    sizes: Any = np.abs(rows) * column * row[:, None]
    steep: Any = (np.abs(np.vstack([q, hessian * column[:, None]])) * column).max(axis=0)
    steep = steep / (float(steep.max()) or 1.0)
    columns = np.maximum(np.max(sizes, axis=0, initial=0.0), steep)
    largest = np.append(columns, sizes.max(axis=1))
    return bool(
        np.all((largest <= _UNBALANCED) & ((largest >= 1.0 / _UNBALANCED) | (largest == 0.0)))
    )


class QuadraticLower:
    """The lower level as a quadratic program, its answers as saddle points with multipliers by name.

    Parameters
    ----------
    program : QuadraticProgram or VaryingProgram
    blocks : sequence of DualBlock
    """

    def __init__(
        self, program: QuadraticProgram | VaryingProgram, blocks: Sequence[DualBlock]
    ) -> None:
        self.program = program
        n, m = program.size, program.inequalities
        self.rows = n + sum(
            len(block.entries) for block in blocks if block.kind not in ("lower", "upper")
        )
        first = {"inequality": n, "equality": n + m, "lower": 0, "upper": 0}
        self._blocks: list[tuple[str, Any, float, tuple[int, ...]]] = []
        for block in blocks:
            entries: Any = first[block.kind] + block.entries
            if np.all(np.diff(entries) == 1) and len(entries):
                entries = slice(int(entries[0]), int(entries[-1]) + 1)
            sign = {"equality": 0.0, "lower": -1.0}.get(block.kind, 1.0)
            self._blocks.append((block.name, entries, sign, block.shape))

    def sensitivity(self, x: Vector) -> Sensitivity | None:
        """Derivatives of answer and value at x; None where they are not clear."""
        return self.program.sensitivity(x)

    def saddle(self, x: Vector) -> Saddle | None:
        """Saddle point at x, None where it is not sharp.

        Raises
        ------
        LowerInfeasibleError
        """
        try:
            found = self.program.solve(x)
        except LowerInfeasibleError as error:
            named = named_infeasibility(error, self._duals(error.ray))
            named.ray = self._duals(self.program.user_multipliers(error.ray))
            raise named from None
        return None if found is None else self._saddle(found)

    def _saddle(self, found: Found) -> Saddle:
        answer, value, gradient, gap, violation = found
        answer = self.program.user_units(answer)
        return Saddle(
            y=answer.z,
            duals=self._duals(answer.dual),
            value=value,
            grad_x=gradient,
            gap=gap,
            violation=violation,
            iterations=answer.iterations,
        )

    def _duals(self, flat: Vector) -> dict[str, Any]:
        """Multipliers by name, in CVXPY's sign."""
        duals = {}
        for name, entries, sign, shape in self._blocks:
            part = flat[entries]
            if sign:
                part = np.maximum(sign * part, 0.0)
            duals[name] = part.reshape(shape, order="F")
        return duals


def quadratic_program(
    functions: Functions,
    objective: int,
    rows: tuple[slice, slice],
    bounds: tuple[Vector, Vector],
    held: int = 0,
) -> QuadraticProgram | None:
    """The program that minimises one row of the functions, or None where it is not a small convex quadratic one.

    Parameters
    ----------
    functions : Functions
        Of v = (x, y).
    objective : int
        Row to minimise.
    rows : tuple of slice
        Rows of the inequalities and of the equalities.
    bounds : tuple of ndarray
        On v.
    held : int
        The first entries of v that are given.
    """
    width = functions.width - held
    count = sum(part.stop - part.start for part in rows)
    if width * max(count, width) > DENSE_LIMIT:
        return None
    function = functions.quadratic_row(objective)
    inequality, equality = (functions.affine_rows(part) for part in rows)
    if function is None or inequality is None or equality is None:
        return None
    if not is_convex(function[2][held:, held:]):
        return None
    return QuadraticProgram(function, inequality, equality, bounds, held)
