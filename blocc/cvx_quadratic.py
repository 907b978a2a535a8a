"""Quadratic programs read off the compiled functions, without a round trip through CVXPY's canonicalisation.

Where g is quadratic and every constraint of the lower level affine in (x, y) together, the lower level at a given x is

    min_y  1/2 y'H_yy y + (l_y + H_yx x)'y     subject to   A y <= b - B x,  E y = e - F x,  bounds on y

and the gradient of its value in x is ``l_x + H_xx x + H_xy y + B'mu + F'nu`` (envelope theorem). The relaxation is a
quadratic program in (x, y) where f is quadratic as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from blocc.conic_dense import INFINITE, Matrix, QuadraticAnswer, Vector, solve_or_explain
from blocc.cvx_functions import Functions
from blocc.errors import LowerInfeasibleError
from blocc.model import Saddle
from blocc.scaling import equilibrate, powers_of_two, steepest

#: Largest number of rows times columns for which dense linear algebra is used.
DENSE_LIMIT = 40_000
_SHARP = 1e-9  # gap and violation above which an answer is left to the interior-point method
_NEAR = 1e-7  # slack or multiplier, relative, that is not told from zero
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


class QuadraticProgram:
    """A quadratic objective under affine constraints and bounds in v = (x, y); x can be held.

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
        unit = self._unit = powers_of_two(np.asarray(steepest(slope[k:], curved, self._column)))
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

    def user_units(self, answer: QuadraticAnswer) -> QuadraticAnswer:
        """An answer of :meth:`solve` in the units that the program came in."""
        return replace(answer, z=answer.z * self._column, dual=answer.dual * self._factors)

    def solve(self, x: Vector) -> tuple[QuadraticAnswer, float, Vector, float, float] | None:
        """Answer, value, gradient of the value in x, relative gap and violation; None where it is not sharp.

        The answer is in the program's own units, see :meth:`user_units`.

        Raises
        ------
        LowerInfeasibleError
        """
        unit = self._unit
        right = -(self._offset + self._given @ x)
        q = self._slope + x @ self._cross
        m, n = self.inequalities, len(q)
        answer = solve_or_explain(
            self._hessian,
            q,
            self._rows,
            np.concatenate([self._high, right]),
            np.concatenate([self._low, self._none, right[m:]]),
        )
        if answer is None:
            return None
        y, dual = answer.z, answer.dual
        bent, rows = self._hessian @ y, dual[n:]
        bent_x = self._hessian_x @ x
        value = float(
            self.constant
            + unit * (self._slope_x @ x + 0.5 * (x @ bent_x) + q @ y + 0.5 * (y @ bent))
        )
        gradient = unit * (self._slope_x + bent_x + self._cross @ y + rows @ self._given)
        left = bent + q + rows @ self._rows + dual[:n]
        residual = self._rows @ y - right
        bound = np.where(dual[:n] > 0, y - self._high, y - self._low)
        slackness = np.abs(dual[:n] @ np.where(dual[:n] != 0, bound, 0.0)) + np.abs(rows @ residual)
        gap = float(unit * (slackness + np.abs(left) @ np.abs(y))) / (1.0 + abs(value))
        residual[:m] = np.maximum(residual[:m], 0.0)
        outside = max(
            float(np.max(np.abs(residual) / (1.0 + np.abs(right)), initial=0.0)),
            float(np.max(np.maximum(y - self._high, self._low - y), initial=0.0)),
        )
        if gap > _SHARP or outside > 2e-8:
            return None
        return answer, value, gradient, gap, outside

    def value_hessian(self, x: Vector, answer: QuadraticAnswer) -> Matrix | None:
        """Hessian of the value at x, None where the active rows are degenerate."""
        y, dual, n = answer.z, answer.dual, len(answer.z)
        right = -(self._offset + self._given @ x)
        high = np.concatenate([self._high, right])
        low = np.concatenate([self._low, self._none, right[self.inequalities :]])
        at = np.concatenate([y, self._rows @ y])
        near = np.minimum(high - at, at - low) <= _NEAR * (1.0 + np.abs(at))
        active = np.abs(dual) > _NEAR * (1.0 + np.abs(dual).max(initial=0.0))
        active[n + self.inequalities :] = True
        if np.any(near != active):
            return None
        free = np.flatnonzero(~active[:n])
        held = active[n:]
        rows = self._rows[held][:, free]
        k, m = len(free), len(rows)
        if m > k:
            return None
        kkt = np.zeros((k + m, k + m))
        kkt[:k, :k] = self._hessian[np.ix_(free, free)]
        kkt[:k, k:], kkt[k:, :k] = rows.T, rows
        cross = np.vstack([self._cross[:, free].T, self._given[held]])
        try:
            moved = np.linalg.solve(kkt, -cross)
        except np.linalg.LinAlgError:
            return None
        if not np.abs(moved).max(initial=0.0) < 1e8:
            return None
        return np.asarray(self._unit * (self._hessian_x + cross.T @ moved))


class QuadraticLower:
    """The lower level as a quadratic program; see :func:`quadratic_lower`."""

    def __init__(self, program: QuadraticProgram, blocks: Sequence[DualBlock]) -> None:
        self.program = program
        n, m = len(program._slope), program.inequalities
        first = {"inequality": n, "equality": n + m, "lower": 0, "upper": 0}
        self._last: tuple[Vector, QuadraticAnswer] | None = None
        self._blocks = [(block, first[block.kind] + block.entries) for block in blocks]

    def value_hessian(self, x: Vector) -> Matrix | None:
        """Hessian of the value at x, from the KKT system of the active rows; None where these are not clear."""
        if self._last is None or not np.array_equal(self._last[0], x):
            self.saddle(x)
        if self._last is None or not np.array_equal(self._last[0], x):
            return None
        return self.program.value_hessian(x, self._last[1])

    def saddle(self, x: Vector) -> Saddle | None:
        """Saddle point at x, None where it is not sharp.

        Raises
        ------
        LowerInfeasibleError
        """
        try:
            found = self.program.solve(x)
        except LowerInfeasibleError as error:
            raise named_infeasibility(error, self._duals(error.ray)) from None
        if found is None:
            return None
        answer, value, gradient, gap, violation = found
        self._last = x, answer
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
        for block, positions in self._blocks:
            part = flat[positions]
            if block.kind != "equality":
                part = np.maximum(-part if block.kind == "lower" else part, 0.0)
            duals[block.name] = part.reshape(block.shape, order="F")
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
