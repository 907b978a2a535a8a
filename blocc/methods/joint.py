"""The joint method: trust-region steps in (x, y) on ``f + gamma (g - v(x))``, gamma raised in stages.

Of the lower level it needs v(x) and its gradient, from one saddle point, and first derivatives of f, g and the
constraints. Upper constraints that involve y sit in the step like all others. Curvature comes from differences of
first derivatives at the current point, so it never goes stale where the lower level's active set changes. Where v is
locally concave (a lower objective that tilts with x), several of its linearisations are kept, so that a step sees the
kinks of ``-v``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from blocc.conic import solve_dense_qp
from blocc.errors import LowerLevelError, UnsupportedModelError
from blocc.model import Saddle

Vector = npt.NDArray[np.float64]

#: Stages of gamma, from the relaxation and from a point that need not be near a solution.
RISING = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
SHORT = (10.0, 1e3, 1e5)
#: From a point whose neighbourhood is to be explored.
LOCAL = (1e3, 1e5)
_FRACTIONS = tuple(1.35**-k for k in range(20, -1, -1))  # of the range of x_i, in the scan
_SCANNED = 4  # local minima along the axes from which to run
_MEMORY = 30  # linearisations of v kept
_CUTS = 8  # at most so many used in a step
_EXACT = 1e-10  # gap and violation below which answers are ranked by f
_ITERATIONS = 40  # per stage
_ACCEPT = 1e-3  # least ratio of actual to predicted decrease
_DIFFERENCE = 1e-5  # relative step of the curvature differences


@dataclass(frozen=True)
class Derivatives:
    """Values and first derivatives at one (x, y); Jacobians have a column for every entry of x, then of y.

    Attributes
    ----------
    upper, lower : float
        f and g.
    upper_gradient, lower_gradient : ndarray of shape (n,)
    inequality, equality : ndarray
        All constraints of both levels, c <= 0 and h = 0, bounds excepted.
    inequality_jacobian, equality_jacobian : ndarray of shape (rows, n)
    """

    upper: float
    upper_gradient: Vector
    lower: float
    lower_gradient: Vector
    inequality: Vector
    inequality_jacobian: Any
    equality: Vector
    equality_jacobian: Any


@runtime_checkable
class HasDerivatives(Protocol):
    """What the joint method needs of a model, apart from ``upper``."""

    #: Lower and upper bounds on the flat (x, y).
    bounds: tuple[Vector, Vector]

    def derivatives(self, x: Vector, y: Vector) -> Derivatives:
        """First derivatives of f, g and all constraints at (x, y)."""
        ...

    def lower(self, x: Vector, *, tol: float, warm: Any = None) -> Saddle:
        """Saddle point of the lower level."""
        ...


@dataclass(frozen=True)
class JointPoint:
    """A point that the method reached.

    Attributes
    ----------
    x, y : ndarray
    objective : float
        f(x, y).
    gap : float
        Relative lower-level gap ``(g(x, y) - v(x)) / (1 + |v(x)|)``.
    violation : float
        Largest constraint violation, relative to 1 + the largest entry of (x, y).
    iterations : int
        Steps tried so far.
    """

    x: Vector
    y: Vector
    objective: float
    gap: float
    violation: float
    iterations: int

    def better(self, other: JointPoint | None) -> bool:
        """Whether this point ranks before another: solved lower level first, then f."""
        if other is None:
            return True
        mine, theirs = self.error, other.error
        if (mine <= _EXACT) != (theirs <= _EXACT):
            return mine <= _EXACT
        if mine > _EXACT:
            return mine < theirs
        return self.objective < other.objective

    @property
    def error(self) -> float:
        """Larger of gap and violation."""
        return max(self.gap, self.violation)


@dataclass(frozen=True)
class _Iterate:
    """A point with all that a step needs: gamma = None is the distance objective, 0 the relaxation."""

    v: Vector
    data: Derivatives
    value: float  # v(x), 0 where gamma is 0 or None
    slope: Vector  # its gradient, padded with zeros for y
    phi: float
    gradient: Vector
    violation: float  # sum over the constraints


class _Problem:
    """Merit function of one stage: ``f + gamma (g - v)``, f alone, or the distance to a point."""

    def __init__(self, model: HasDerivatives, nx: int, bounds: tuple[Vector, Vector]) -> None:
        self.model, self.nx = model, nx
        self.bounds = bounds
        self.gamma = 0.0
        self.target: Vector | None = None
        self.steps = 0
        self.memory: list[tuple[float, Vector, Vector]] = []  # of v: value, gradient, x

    def at(self, v: Vector) -> _Iterate | None:
        """Evaluate at v, or return None where something is undefined there."""
        x, y = v[: self.nx], v[self.nx :]
        data = self.model.derivatives(x, y)
        slope = np.zeros(len(v))
        value = 0.0
        if self.target is not None:
            offset = v - self.target
            phi, gradient = 0.5 * float(offset @ offset), offset
        else:
            phi, gradient = data.upper, data.upper_gradient
            if self.gamma > 0:
                try:
                    saddle = self.model.lower(x, tol=1e-10)
                except LowerLevelError:
                    return None
                value = saddle.value
                slope[: self.nx] = saddle.grad_x
                self.remember(value, saddle.grad_x, x)
                phi = phi + self.gamma * (data.lower - value)
                gradient = gradient + self.gamma * (data.lower_gradient - slope)
        violation = float(np.maximum(data.inequality, 0.0).sum() + np.abs(data.equality).sum())
        finite = np.isfinite(phi) and np.isfinite(violation) and np.all(np.isfinite(gradient))
        if not finite:
            return None
        return _Iterate(v, data, value, slope, float(phi), gradient, violation)

    def curvature(self, here: _Iterate, dual: Vector, equal: Vector) -> Vector:
        """Hessian of the Lagrangian by differences of its gradient."""
        n = len(here.v)
        hessian = np.zeros((n, n))
        if self.target is not None:
            hessian[:] = np.eye(n)

        def lagrangian(data: Derivatives) -> Vector:
            total = np.zeros(n)
            if self.target is None:
                total = data.upper_gradient + self.gamma * data.lower_gradient
            if len(dual):
                total = total + data.inequality_jacobian.T @ dual
            if len(equal):
                total = total + data.equality_jacobian.T @ equal
            return total

        base = lagrangian(here.data)
        lower, upper = self.bounds
        for k in range(n):
            step = _DIFFERENCE * max(1.0, abs(here.v[k]))
            if here.v[k] + step > upper[k]:
                step = -step
            shifted = here.v.copy()
            shifted[k] += step
            data = self.model.derivatives(shifted[: self.nx], shifted[self.nx :])
            column = (lagrangian(data) - base) / step
            if k < self.nx and self.gamma > 0 and self.target is None:
                column[: self.nx] -= self.gamma * self._value_curvature(here, shifted, step)
            if np.all(np.isfinite(column)):
                hessian[:, k] += column
        return 0.5 * (hessian + hessian.T)

    def _value_curvature(self, here: _Iterate, shifted: Vector, step: float) -> Vector:
        base = here.slope[: self.nx]
        for sign in (1.0, -1.0):  # behind where the lower level has no answer ahead, or a kink lies ahead
            x = here.v[: self.nx] + sign * (shifted - here.v)[: self.nx]
            try:
                saddle = self.model.lower(x, tol=1e-10)
            except LowerLevelError:
                continue
            jump = saddle.grad_x - base
            if np.abs(jump).max() > 0.01 * (1.0 + np.abs(base).max()):
                self.remember(saddle.value, saddle.grad_x, x)
                continue
            return np.asarray(jump / (sign * step))
        return np.zeros(self.nx)

    def remember(self, value: float, slope: Vector, x: Vector) -> None:
        """Keep a linearisation of v."""
        self.memory = [*self.memory[-_MEMORY:], (value, slope, x)]

    def cuts(self, here: _Iterate, distance: float) -> list[tuple[float, Vector]]:
        """Remembered linearisations from nearby that lie above v here, as they do where v is locally concave.

        Returns
        -------
        list of (level, slope)
            ``level <= 0`` is v here minus the linearisation here; ``slope`` is padded with zeros for y.
        """
        if self.gamma <= 0 or self.target is not None:
            return []
        found: list[tuple[float, Vector]] = []
        x = here.v[: self.nx]
        for value, gradient, at in reversed(self.memory):
            if np.abs(x - at).max() > distance:
                continue
            level = here.value - value - float(gradient @ (x - at))
            slope = np.zeros(len(here.v))
            slope[: self.nx] = gradient
            size = 1e-7 * (1.0 + np.abs(slope).max())
            known = [here.slope, *(other for _, other in found)]
            new = all(np.abs(slope - other).max() > size for other in known)
            if level <= 1e-11 * (1.0 + abs(here.value)) and new:
                found.append((min(level, 0.0), slope))
            if len(found) == _CUTS:
                break
        return found


def _convexify(hessian: Vector, normals: Vector) -> Vector:
    """Positive definite, and equal to ``hessian`` on the directions along which strongly active rows stay active."""
    scale = float(np.abs(hessian).max(initial=0.0))
    if len(normals):
        unit = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        hessian = hessian + 10.0 * scale * unit.T @ unit
    values, vectors = np.linalg.eigh(hessian)
    floor = 1e-9 * max(scale, 1e-3)
    return np.asarray((vectors * np.maximum(values, floor)) @ vectors.T)


class _TrustRegion:
    """Elastic l1 trust-region SQP on a :class:`_Problem`."""

    def __init__(self, problem: _Problem) -> None:
        self.problem = problem
        self.weight = 10.0  # of the violation
        self.radius = 1.0
        self.converged = False

    def run(self, v: Vector, iterations: int = _ITERATIONS) -> _Iterate | None:
        problem = self.problem
        here = problem.at(v)
        if here is None:
            return None
        dual = np.zeros(len(here.data.inequality))
        equal = np.zeros(len(here.data.equality))
        bound_dual = np.zeros(len(v))
        hessian: Vector | None = None
        trust = 1.0  # in the convexified curvature
        for _ in range(iterations):
            problem.steps += 1
            if hessian is None:
                hessian = self._model(here, dual, equal, bound_dual)
            cuts = problem.cuts(here, 2.0 * self.radius)
            step = self._step(here, trust * hessian, cuts)
            if step is None:
                self.radius *= 0.25
                if self.radius < 1e-10:
                    break
                continue
            d, dual_new, equal_new, bound_new, predicted = step
            size = 1.0 + abs(here.phi)
            if predicted <= 1e-12 * size or np.abs(d).max(initial=0.0) <= 1e-13 * (
                1.0 + np.abs(here.v).max()
            ):
                changed = not np.array_equal(dual_new > 1e-9, dual > 1e-9) or not np.array_equal(
                    equal_new != 0, equal != 0
                )
                dual, equal, bound_dual = dual_new, equal_new, bound_new
                if changed:
                    hessian = None
                elif cuts and self.radius > 1e-7:
                    self.radius *= 0.1  # stationary for the linearisations: ask nearer ones
                else:
                    self.converged = True
                    break
                continue
            lower, upper = problem.bounds
            trial = problem.at(np.clip(here.v + d, lower, upper))
            length = float(np.abs(d).max())
            ratio = self._ratio(here, trial, predicted)
            if ratio < _ACCEPT and trial is not None and trial.violation > 1e-14:
                # curved constraints can reject good steps (Maratos): correct for their value at the trial
                corrected = self._step(self._corrected(here, trial, d), trust * hessian, cuts)
                if corrected is not None:
                    second = problem.at(np.clip(here.v + corrected[0], lower, upper))
                    improved = self._ratio(here, second, predicted)
                    if second is not None and improved >= _ACCEPT:
                        trial, ratio = second, improved
                        dual_new, equal_new, bound_new = corrected[1:4]
            if trial is None:
                self.radius = 0.25 * length
                if self.radius < 1e-12:
                    break
                continue
            if ratio >= _ACCEPT:
                here, hessian = trial, None
                # twice the predicted decrease or so: there is no such curvature along this way
                trust = max(0.1 * trust, 1e-6) if ratio > 1.5 else min(3.0 * trust, 1.0)
                dual, equal, bound_dual = dual_new, equal_new, bound_new
                if ratio > 0.7 and length > 0.8 * self.radius:
                    self.radius = min(2.5 * self.radius, 1e6)
                elif ratio < 0.1:
                    self.radius = 0.5 * length
            else:
                trust = 1.0
                self.radius = 0.25 * length
                if self.radius < 1e-12:
                    break
        return here

    def _ratio(self, here: _Iterate, trial: _Iterate | None, predicted: float) -> float:
        if trial is None:
            return -np.inf
        actual = here.phi - trial.phi + self.weight * (here.violation - trial.violation)
        return float(actual / predicted)

    @staticmethod
    def _corrected(here: _Iterate, trial: _Iterate, d: Vector) -> _Iterate:
        data = replace(
            here.data,
            inequality=trial.data.inequality - here.data.inequality_jacobian @ d,
            equality=trial.data.equality - here.data.equality_jacobian @ d,
        )
        return replace(here, data=data)

    def _model(self, here: _Iterate, dual: Vector, equal: Vector, bound_dual: Vector) -> Vector:
        hessian = self.problem.curvature(here, dual, equal)
        scale = 1e-6 * (1.0 + np.abs(here.gradient).max())
        rows = [here.data.inequality_jacobian[dual > scale]]
        if len(equal):
            rows.append(here.data.equality_jacobian)
        rows.append(np.eye(len(here.v))[np.abs(bound_dual) > scale])
        normals = np.vstack([row.toarray() if sparse.issparse(row) else row for row in rows])
        normals = normals[np.linalg.norm(normals, axis=1) > 0]
        return _convexify(hessian, normals)

    def _step(
        self, here: _Iterate, hessian: Vector, cuts: Sequence[tuple[float, Vector]]
    ) -> tuple[Vector, Vector, Vector, Vector, float] | None:
        """Step, multipliers (inequalities, equalities, bounds), and predicted decrease."""
        data, n = here.data, len(here.v)
        m, p = len(data.inequality), len(data.equality)
        jacobian = np.asarray(_dense(data.inequality_jacobian))
        equality = np.asarray(_dense(data.equality_jacobian))
        lower, upper = self.problem.bounds
        low = np.maximum(lower - here.v, -self.radius)
        high = np.minimum(upper - here.v, self.radius)
        extra = 1 if cuts else 0
        gamma = self.problem.gamma

        def solve(elastic: bool) -> tuple[Vector, Vector, Vector, Vector] | None:
            slack = m + 2 * p if elastic else 0
            size = n + extra + slack
            P = np.zeros((size, size))
            P[:n, :n] = hessian
            # slacks enter linearly; a trace of curvature keeps the program strictly convex
            P[range(n, size), range(n, size)] = 1e-9 * self.weight
            q = np.concatenate([here.gradient, np.full(extra, gamma), np.full(slack, self.weight)])
            A = np.zeros((size + m + p + len(cuts), size))
            A[:size, :size] = np.eye(size)
            A[size : size + m, :n] = jacobian
            A[size + m : size + m + p, :n] = equality
            if elastic:
                first = n + extra
                A[size : size + m, first : first + m] = -np.eye(m)
                A[size + m : size + m + p, first + m : first + m + p] = -np.eye(p)
                A[size + m : size + m + p, first + m + p :] = np.eye(p)
            ahead = np.full(size - n, 1e12)
            behind = np.concatenate([np.zeros(extra), np.zeros(slack)])
            for k, (level, slope) in enumerate(cuts):
                # tau >= (v_k's model - v's own): -(trial value + slope (x + d - trial)) + (value + slope_0 d)
                row = size + m + p + k
                A[row, :n] = here.slope - slope
                A[row, n] = -1.0
                _ = level
            top = np.concatenate(
                [high, ahead, -data.inequality, -data.equality, [-level for level, _ in cuts]]
            )
            bottom = np.concatenate(
                [low, behind, np.full(m, -1e30), -data.equality, np.full(len(cuts), -1e30)]
            )
            answer = _solve(P, q, A, top, bottom)
            if answer is None:
                return None
            z, y = answer
            return z[:n], y[size : size + m], y[size + m : size + m + p], y[:n]

        answer = solve(False)
        if answer is None:
            answer = solve(True)
            if answer is None:
                return None
        d, dual, equal, bound = answer
        largest = max(np.abs(dual).max(initial=0.0), np.abs(equal).max(initial=0.0))
        if largest > self.weight:
            self.weight = 2.0 * largest
        bend = 0.0
        if cuts:
            bend = max(0.0, *(lv + float((here.slope - sl) @ d) for lv, sl in cuts))
        residual = float(
            np.maximum(data.inequality + jacobian @ d, 0.0).sum()
            + np.abs(data.equality + equality @ d).sum()
        )
        predicted = -(float(here.gradient @ d) + 0.5 * float(d @ hessian @ d) + gamma * bend)
        predicted += self.weight * (here.violation - residual)
        return d, np.maximum(dual, 0.0), equal, bound, predicted


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if sparse.issparse(matrix) else matrix


def _solve(
    P: Vector, q: Vector, A: Vector, top: Vector, bottom: Vector
) -> tuple[Vector, Vector] | None:
    # equality rows have top == bottom
    import daqp

    sense = np.zeros(len(top), dtype=np.int32)
    sense[top == bottom] = 5
    scale = max(np.abs(q).max(initial=0.0), 1e-300)
    z, _, flag, info = daqp.solve(
        P / scale, q / scale, A, top, bottom, sense, primal_tol=1e-11, dual_tol=1e-11, eps_prox=-1.0
    )
    if flag != 1 or not np.all(np.isfinite(z)):
        return None
    return z, np.asarray(info["lam"]) * scale


# ------------------------------------------------------------------------------------------- the method
class Joint:
    """Runs of the joint method on one model.

    Parameters
    ----------
    model : HasDerivatives
    x0 : ndarray
        Start of the upper variables.
    y0 : ndarray, optional
        Start of the lower ones; the lower level's answer by default.
    """

    def __init__(self, model: HasDerivatives, x0: Vector, y0: Vector | None = None) -> None:
        self.model = model
        self.nx = len(x0)
        lower, upper = model.bounds
        x0 = np.clip(x0, lower[: self.nx], upper[: self.nx])
        if y0 is None:
            try:
                y0 = np.asarray(model.lower(x0, tol=1e-10).y)
            except LowerLevelError:
                y0 = np.zeros(len(lower) - self.nx)
        self.start = np.clip(np.concatenate([x0, y0]), lower, upper)
        self.problem = _Problem(model, self.nx, model.bounds)
        self.best: JointPoint | None = None
        self.range = (self.start[: self.nx], self.start[: self.nx])

    # -------------------------------------------------------------------------------------- components
    def feasible(self, v: Vector) -> Vector:
        """Nearest jointly feasible point."""
        problem = self.problem
        problem.target, problem.gamma = v, 0.0
        region = _TrustRegion(problem)
        region.weight = 100.0 * (1.0 + float(np.abs(v).max()))
        region.radius = 10.0 * (1.0 + float(np.abs(v).max()))
        reached = region.run(v)
        problem.target = None
        return v if reached is None else reached.v

    def relaxed(self, v: Vector) -> Vector | None:
        """Minimiser of f with lower-level optimality dropped, None where unbounded."""
        relaxation = getattr(self.model, "relaxation", None)
        if relaxation is not None:
            try:
                answer = relaxation(tol=1e-9)
                return np.concatenate([answer.x, answer.y])
            except (UnsupportedModelError, LowerLevelError):
                pass
        self.problem.gamma = 0.0
        region = _TrustRegion(self.problem)
        reached = region.run(v)
        return reached.v if reached is not None and self._stayed(region, v, reached.v) else None

    @staticmethod
    def _stayed(region: _TrustRegion, before: Vector, after: Vector) -> bool:
        """False where a stage looks unbounded below: still moving, and far from where it began."""
        far = np.abs(after - before).max() > 10.0 * (1.0 + np.abs(before).max())
        return region.converged or not far

    def climb(self, v: Vector, stages: Sequence[float]) -> Vector | None:
        """Follow f + gamma (g - v) through the stages of gamma."""
        radius = 1.0 + 0.1 * float(np.abs(v).max())
        for gamma in stages:
            self.problem.gamma = gamma
            region = _TrustRegion(self.problem)
            region.radius = radius
            region.weight = 10.0 * (1.0 + gamma)
            reached = region.run(v)
            if reached is None:
                return None if gamma == stages[0] else v
            if gamma >= 1e3 or self._stayed(region, v, reached.v):
                v = reached.v
        self.record(v)
        return v

    def record(self, v: Vector) -> None:
        """Judge x: the better of y as reached, and the lower level's own answer."""
        x = v[: self.nx]
        try:
            saddle = self.model.lower(x, tol=1e-10)
        except LowerLevelError:
            return
        for y in (saddle.y, v[self.nx :]):
            candidate = self.measure(x, np.asarray(y), saddle)
            if candidate.better(self.best):
                self.best = candidate

    def measure(self, x: Vector, y: Vector, saddle: Saddle) -> JointPoint:
        """Objective, gap and violation of a pair."""
        data = self.model.derivatives(x, y)
        v = np.concatenate([x, y])
        lower, upper = self.model.bounds
        violation = max(
            float(np.max(data.inequality, initial=0.0)),
            float(np.max(np.abs(data.equality), initial=0.0)),
            float(np.max(lower - v, initial=0.0)),
            float(np.max(v - upper, initial=0.0)),
        ) / (1.0 + float(np.abs(v).max()))
        gap = (data.lower - saddle.value) / (1.0 + abs(saddle.value))
        return JointPoint(x, y, float(data.upper), gap, violation, self.problem.steps)

    def polish(self) -> None:
        """Tighten y at the best x: f + gamma g at a very large gamma, x held."""
        if self.best is None:
            return
        lower, upper = (bound.copy() for bound in self.model.bounds)
        lower[: self.nx] = upper[: self.nx] = self.best.x
        held = self.problem
        self.problem = _Problem(self.model, self.nx, (lower, upper))
        self.problem.steps = held.steps
        v = np.concatenate([self.best.x, self.best.y])
        for gamma in (1e6, 1e7):
            self.problem.gamma = gamma
            region = _TrustRegion(self.problem)
            region.weight = 10.0 * gamma
            reached = region.run(v)
            if reached is not None:
                v = reached.v
        self.record(v)
        held.steps = self.problem.steps
        self.problem = held

    def response(self, x: Vector) -> JointPoint | None:
        """The pair of x and the lower level's own answer, None where it has none or breaks an upper constraint."""
        try:
            saddle = self.model.lower(x, tol=1e-10)
        except LowerLevelError:
            return None
        point = self.measure(x, np.asarray(saddle.y), saddle)
        return point if point.violation <= _EXACT and np.isfinite(point.objective) else None

    def scan(self, tried: set[tuple[float, ...]]) -> list[JointPoint]:
        """Local minima of the response along the axes through the best x: better ones first, at most a few.

        Parameters
        ----------
        tried : set of tuple
            Points handed out before (rounded); extended here.
        """
        assert self.best is not None
        base = self.best
        found: list[JointPoint] = []
        for k in range(self.nx):
            for sign, end in ((1.0, self.range[1][k]), (-1.0, self.range[0][k])):
                reach = abs(end - base.x[k])
                line: list[JointPoint | None] = [base]
                for fraction in _FRACTIONS:
                    x = base.x.copy()
                    x[k] += sign * fraction * reach
                    line.append(self.response(x))
                line.append(None)
                for before, here, after in zip(line, line[1:], line[2:], strict=False):
                    if here is not None and all(
                        other is None or here.objective < other.objective for other in (before, after)
                    ):
                        found.append(here)
        found.sort(key=lambda point: point.objective)
        fresh = []
        for point in found:
            key = tuple(float(f"{value:.1e}") for value in point.x)
            better = point.objective < base.objective - 1e-7 * (1.0 + abs(base.objective))
            if key not in tried and (better or len(fresh) < _SCANNED):
                tried.add(key)
                fresh.append(point)
        return fresh[: 2 * _SCANNED]

    def refine(self, evaluations: int = 300) -> None:
        """Compass search on the response: the last digits, and optima at the edge where v has unbounded slope."""
        if self.best is None:
            return
        step = 1e-3
        while evaluations > 0 and step > 1e-10:
            moved = False
            for k in range(self.nx):
                for sign in (1.0, -1.0):
                    x = self.best.x.copy()
                    x[k] += sign * step * (1.0 + abs(x[k]))
                    x = np.clip(x, *(bound[: self.nx] for bound in self.model.bounds))
                    evaluations -= 1
                    point = self.response(x)
                    if point is not None and point.better(self.best):
                        self.best, moved = point, True
            step *= 2.0 if moved else 0.2

    # ------------------------------------------------------------------------------------------ starts
    def solve(self, starts: str | int = 1, seed: int = 0) -> JointPoint | None:
        """Run from the relaxation and from x0, and from further starts where asked.

        Parameters
        ----------
        starts : int or "range"
            ``"range"``: also from the points that minimise and maximise each x_i over the jointly feasible set, pulled
            inwards by 5 percent, and from their mean. An integer above 1: also from random points of the box of x.
        seed : int

        Returns
        -------
        JointPoint or None
            None where no x with a solvable lower level was found.
        """
        origin = self.feasible(self.start)
        ends = self.extremes(origin)
        relaxed = self.relaxed(origin)
        if relaxed is not None:
            self.climb(relaxed, RISING)
        self.climb(origin, SHORT)
        for start in self.further(starts, seed, origin, ends):
            self.climb(self.feasible(start), LOCAL)
        tried: set[tuple[float, ...]] = set()
        for _ in range(10):
            before = self.best
            if before is None:
                break
            for point in self.scan(tried):
                self.climb(np.concatenate([point.x, point.y]), LOCAL)
                if point.better(self.best):
                    self.best = point
            if self.best is before:
                break
        self.polish()
        self.refine()
        return self.best

    def further(
        self, starts: str | int, seed: int, origin: Vector, ends: Sequence[Vector]
    ) -> Iterator[Vector]:
        """Further starts."""
        if starts == "range":
            middle = np.mean(ends, axis=0)
            for end in ends:
                yield end + 0.05 * (middle - end)
            yield middle
        elif isinstance(starts, int) and starts > 1:
            generator = np.random.default_rng(seed)
            for _ in range(starts - 1):
                v = origin.copy()
                v[: self.nx] = generator.uniform(*self.range)
                yield v

    def extremes(self, origin: Vector) -> list[Vector]:
        """Points that minimise and maximise each x_i over the jointly feasible set; sets ``range``."""
        lower, upper = origin[: self.nx].copy(), origin[: self.nx].copy()
        far = 10.0 * (1.0 + np.abs(origin[: self.nx]))
        ends = []
        for k in range(self.nx):
            for sign in (1.0, -1.0):
                end = self._extreme(origin, k, sign)
                if end is not None:
                    end = np.clip(end, origin - far[k], origin + far[k])
                    ends.append(end)
                    lower = np.minimum(lower, end[: self.nx])
                    upper = np.maximum(upper, end[: self.nx])
        self.range = (lower, upper)
        return ends or [origin]

    def _extreme(self, origin: Vector, k: int, sign: float) -> Vector | None:
        problem = self.problem
        slope = np.zeros(len(origin))
        slope[k] = sign
        linear = _Linear(self.model, self.nx, problem.bounds, slope)
        region = _TrustRegion(linear)
        region.radius = 1.0 + float(np.abs(origin).max())
        reached = region.run(origin, 25)
        problem.steps += linear.steps
        if reached is None:
            return None
        return reached.v


class _Linear(_Problem):
    """Minimise a linear function over the joint constraints."""

    def __init__(
        self, model: HasDerivatives, nx: int, bounds: tuple[Vector, Vector], slope: Vector
    ) -> None:
        super().__init__(model, nx, bounds)
        self._slope = slope

    def at(self, v: Vector) -> _Iterate | None:
        here = super().at(v)
        if here is None:
            return None
        return replace(here, phi=float(self._slope @ v), gradient=self._slope)

    def curvature(self, here: _Iterate, dual: Vector, equal: Vector) -> Vector:
        # the constraints' own curvature is enough here
        return np.zeros((len(here.v), len(here.v)))


_ = solve_dense_qp
