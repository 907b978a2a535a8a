"""Smooth lower levels that are not quadratic: interior-point answers sharpened to rounding by Newton's method.

An interior-point answer is good to some 1e-10, and a penalty of 1e5 makes 1e-5 of that: too much for a first-order
certificate. Newton's method on the optimality conditions takes quadratic programs in turn, each with the Lagrangian's
Hessian and the constraints linearised at the last answer (Nocedal and Wright, Numerical Optimization, 2006, section
18.1): one or two from an interior-point answer, some more from the answer at the last x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from blocc.conic_dense import QuadraticAnswer, Vector
from blocc.cvx_quadratic import Found, QuadraticLower, VaryingProgram
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
        if start is None and self._last is not None:
            start = self._last[1].z, self._last[1].dual
        if start is None or self._failures >= _FAILURES:
            return None
        y, dual = start
        best: Found | None = None
        for _ in range(_STEPS):
            answer = self._step(x, y, dual)
            if answer is None:
                break
            y, dual = answer.z, answer.dual
            found = self._assess(answer, x)
            if found is not None and (best is None or max(found[3:]) < 0.5 * max(best[3:])):
                best = found
            elif best is not None:
                break
            if best is not None and max(best[3:]) <= _EXACT:
                break
        self._failures = self._failures + 1 if best is None else 0
        if best is not None:
            self._last = x.copy(), best[0]
        return best

    def _step(self, x: Vector, y: Vector, dual: Vector) -> QuadraticAnswer | None:
        """Answer of the quadratic program at (y, dual), on the active set of dual where that is the right one."""
        k, v = self._nx, np.concatenate([x, y])
        value, jacobian = self._functions.value_jacobian(v, self._objective)
        weights = self._weights.copy()
        weights[self._index] = dual[self.size :]
        hessian = self._functions.hessian(v, weights)[k:, k:]
        slope, rows = jacobian[self._objective, k:], jacobian[self._index, k:]
        data = hessian, slope - hessian @ y, rows, rows @ y - value[self._index]
        known = None
        if dual.any():
            self._pattern = self._active(dual)
            known = self._as_before(self._pattern, *data)
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
