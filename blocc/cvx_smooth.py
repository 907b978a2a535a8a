"""Smooth lower levels that are not quadratic: interior-point answers sharpened to rounding by Newton's method.

An interior-point answer is good to some 1e-10, and a penalty of 1e5 makes 1e-5 of that: too much for a first-order
certificate. Newton's method on the optimality conditions takes quadratic programs in turn, each with the Lagrangian's
Hessian and the constraints linearised at the last answer (Nocedal and Wright, Numerical Optimization, 2006, section
18.1): one or two from an interior-point answer, some more from the answer at the last x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from blocc.conic_dense import Matrix, QuadraticAnswer, Vector
from blocc.cvx_quadratic import Found, QuadraticLower, VaryingProgram, _Pattern
from blocc.model import Saddle

_STEPS = 8
_EXACT = 1e-14  # gap and violation that further steps do not better
_FAILURES = 8  # in a row, after which the functions are taken to have kinks


class SmoothProgram(VaryingProgram):
    """A convex program at every x, its data read off the functions; see :class:`VaryingProgram`.

    Without a start, :meth:`solve` begins at the last answer, and knows none at first.
    """

    def forget(self) -> None:
        """Drop what is known from earlier answers."""
        super().forget()
        self._failures = 0
        #: Slope in x of the last answer, where it is known.
        self._tangent: tuple[_Pattern, Matrix] | None = None

    def solve(self, x: Vector, start: tuple[Vector, Vector] | None = None) -> Found | None:
        """Answer, value, gradient of the value in x, relative gap and violation; None where it is not sharp.

        Parameters
        ----------
        x : ndarray
        start : tuple of ndarray, optional
            Answer and multipliers, of bounds and rows, to begin from.

        Raises
        ------
        LowerInfeasibleError
            By convexity the linearised constraints hold at every feasible point.
        """
        if self._failures >= _FAILURES:
            return None
        best: Found | None = None
        if start is None and self._last is not None:
            start = self._last[1].z, self._last[1].dual
            ahead = self._ahead(x)
            if ahead is not None:
                best = self._newton(x, *ahead)
        if start is None:
            return None
        if best is None:
            best = self._newton(x, *start)
        self._failures = self._failures + 1 if best is None else 0
        if best is not None:
            self._last = x.copy(), best[0]
        return best

    def _ahead(self, x: Vector) -> tuple[Vector, Vector] | None:
        """Where the last answer goes along its slope; None where that is not known or leaves the active set."""
        if self._last is None or self._tangent is None:
            return None
        (before, answer), (pattern, slope) = self._last, self._tangent
        moved, free = slope @ (x - before), len(pattern.free)
        y, dual = answer.z.copy(), answer.dual.copy()
        y[pattern.free] += moved[:free]
        dual[self.size + pattern.held] += moved[free:]
        if (dual[self.size : self.size + self.inequalities] < 0).any():
            return None
        return y, dual

    def _newton(self, x: Vector, y: Vector, dual: Vector) -> Found | None:
        """The sharpest answer that steps from a point and its multipliers lead to."""
        best: Found | None = None
        for _ in range(_STEPS):
            answer = self._step(x, y, dual)
            if answer is None:
                break
            found = self._assess(answer, x, y)
            y, dual = answer.z, answer.dual
            if found is not None and (best is None or max(found[3:]) < 0.5 * max(best[3:])):
                best, self._tangent = found, self._slope
            elif best is not None:
                break
            if best is not None and max(best[3:]) <= _EXACT:
                break
        return best

    def _step(self, x: Vector, y: Vector, dual: Vector) -> QuadraticAnswer | None:
        """Answer of the quadratic program at (y, dual), on the active set of dual where that is the right one."""
        k, v = self._nx, np.concatenate([x, y])
        value, jacobian = self._functions.value_jacobian(v, self._objective)
        weights = self._weights.copy()
        weights[self._index] = dual[self.size :]
        bends, slopes = self._functions.hessian(v, weights)[k:], jacobian[self._index]
        hessian, rows = bends[:, k:], slopes[:, k:]
        q = jacobian[self._objective, k:] - hessian @ y
        data = hessian, q, rows, rows @ y - value[self._index]
        known = self._slope = None
        if dual.any():
            self._pattern = self._active(dual)
            known = self._as_before(self._pattern, *data, cross=(bends[:, :k], slopes[:, :k]))
        if known is None and all(np.isfinite(part).all() for part in data):
            known = self._solve_afresh(*data)
        return known


class SmoothLower(QuadraticLower):
    """The lower level as a smooth program, its answers as saddle points with multipliers by name."""

    def polished(self, x: Vector, saddle: Saddle) -> Saddle | None:
        """Another solver's saddle point, sharpened; None where that does not succeed."""
        assert isinstance(self.program, SmoothProgram)
        dual: Any = np.zeros(self.rows)
        for name, entries, sign, _ in self._blocks:
            dual[entries] += (sign or 1.0) * np.ravel(saddle.duals[name], order="F")
        found = self.program.solve(x, (np.asarray(saddle.y), dual))
        return None if found is None else self._saddle(found)
