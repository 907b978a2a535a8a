"""The joint method: trust-region steps in (x, y) on ``f + gamma (g - v(x))``, gamma raised in stages.

Of the lower level it needs v(x) with its gradient, from one saddle point, and first derivatives of
f, g and the constraints. Upper constraints that involve y sit in the step like all others.

One run follows gamma upwards by elastic l1 trust-region SQP. Curvature comes from differences of
first derivatives at the current point, so that it never goes stale where the lower level's active
set changes. Where v is locally concave (a lower objective that tilts with x), several of its
linearisations stand in for it, so that a step sees the kinks of ``-v``.

Runs start from the relaxation, from x0, and from local minima of the *response*
``f(x, y(x))`` along the axes through the best point so far: one lower-level solve a sample, so
that looking over the whole range of x is cheap, and no local descent can do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sparse
from scipy.linalg.lapack import dgesdd, dgesv, dsyevd

from blocc.conic_dense import INFINITE, Vector, solve_dense_qp
from blocc.errors import (
    RUNAWAY,
    InvalidInputError,
    LowerLevelError,
    UnsupportedModelError,
    UpperUnboundedError,
)
from blocc.methods.kinks import LARGEST, differences, edge_directions, kink_direction
from blocc.model import HasRelaxation, Saddle, Sensitivity
from blocc.progress import Progress
from blocc.scaling import Scaled

RISING = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # from the relaxation
SHORT = (10.0, 1e3, 1e5)  # from x0
LONGER = (1.0, 10.0, 100.0, 1e3, 1e5)  # from x0 as well, in more dimensions than scans cover
PATIENT = (
    2.0,
    4.0,
    8.0,
    16.0,
    64.0,
    1e3,
    1e5,
)  # from further starts, beside LOCAL: reaches other basins
LOCAL = (1e3, 1e5)  # from a point whose neighbourhood is to be explored
FINAL = (1e6, 1e7)  # from the answer, and for y alone at a given x

#: Largest number of variables for which the dense steps are worth it.
MAX_VARIABLES = 200

_ITERATIONS = 40  # of a stage
_ACCEPT = 1e-3  # least ratio of actual to predicted decrease
_PASSING = 1e-10  # relative decrease that ends a stage on the way
_MANY = 20  # variables from which on a subproblem begins with the last one's active bounds
_EXACT = 1e-4  # deviation of the ratio from 1 that ends a stage on the way
_GOOD = 0.5  # ratio below which y is moved on at the new x
_LINEAR = 1e-10  # Hessian, relative to the gradient, that makes no difference
_DIFFERENCE = 1e-5  # relative step of the curvature differences
_MEMORY = 30  # linearisations of v kept
_CUTS = 8  # at most so many used in a step
_FRACTIONS = tuple(1.35**-k for k in range(20, -1, -1))  # of the range of x_i, in the scan
_SETTLED = 1e3  # gamma from which on a run does not leave the basin that it is in
_SAME = 1e-3  # relative distance, and 1e-3 of that in value, within which two runs go the same way
_COARSE = _FRACTIONS[2::3]  # beside the last answer of a program like this one
_WIDE = 3  # upper variables from which on axes through one point are a small part of the range
_TILT = 1e-3  # of a start, relative
_SCANNED = 4  # local minima of a scan from which to run, beside better points
_ROUNDS = 10  # of scans
_MOVE = 1e-3  # relative, of a probe
_RADII = (1e-3, 1e-4)  # relative, around a point, in which to look for kinks
_TURNS = 12  # directions to which to turn from the steepest, at most
_DOUBLINGS = 10  # of a move that falls
_COUNTABLE = 1e15  # size of x at which the lower level still has an answer
_PROBES = 20  # at most so many random directions, and as many along axes
_SOLVED = 1e-7  # gap and violation above which an answer is ranked by these alone
_ROUNDING = 1e-12  # gap and violation that cost an answer nothing
_TIGHT = 1e-9  # what a response may violate, and an answer that attains the bound
_LOWER_TOL = 1e-10


# ------------------------------------------------------------------------------------- the contract
class Derivatives(NamedTuple):
    """Values and first derivatives at one (x, y); a column for every entry of x, then of y.

    Attributes
    ----------
    upper, lower : float
        f and g.
    upper_gradient, lower_gradient : ndarray of shape (n,)
    inequality, equality : ndarray
        All constraints of both levels, c <= 0 and h = 0, bounds excepted.
    inequality_jacobian, equality_jacobian : ndarray or sparse array of shape (rows, n)
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
    """What the joint method needs of a model; x and y are flat vectors."""

    #: Lower and upper bounds on the flat (x, y).
    bounds: tuple[Vector, Vector]

    def values(self, x: Vector, y: Vector) -> tuple[float, float, Vector, Vector]:
        """f, g, and all inequalities and equalities at (x, y), as in :class:`Derivatives`."""
        ...

    def derivatives(self, x: Vector, y: Vector) -> Derivatives:
        """First derivatives of f, g and all constraints at (x, y)."""
        ...

    def hessian(self, x: Vector, y: Vector, gamma: float, dual: Vector, equal: Vector) -> Vector:
        """Hessian of ``f + gamma g`` plus the constraints weighted by multipliers."""
        ...

    def lower(self, x: Vector, *, tol: float, warm: Any = None) -> Saddle:
        """Saddle point of the lower level."""
        ...


@runtime_checkable
class HasSensitivity(Protocol):
    """Optional capability: derivatives of y(x) and of v where the lower level's active set does not change."""

    def sensitivity(self, x: Vector) -> Sensitivity | None:
        """Derivatives at x; None where they are not known."""
        ...


class JointPoint(NamedTuple):
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
    """

    x: Vector
    y: Vector
    objective: float
    gap: float
    violation: float

    @property
    def error(self) -> float:
        """Larger of gap and violation."""
        return max(self.gap, self.violation)

    def better(self, other: JointPoint | None) -> bool:
        """Whether this point ranks before another.

        f alone would prefer the loosest answer: a lower-level gap buys an error in f that goes
        with the gap's square root, or fourth root where the lower objective is flat. So f is
        charged that much, for all but rounding.
        """
        if other is None:
            return True
        if max(self.error, other.error) > _SOLVED:
            return self.error < other.error
        return self._charged < other._charged

    @property
    def _charged(self) -> float:
        error = max(self.error - _ROUNDING, 0.0)
        return float(self.objective + error**0.25 * (1.0 + abs(self.objective)))


# ------------------------------------------------------------------------------------ merit function
class _Iterate(NamedTuple):
    """A point with all that a step needs."""

    v: Vector
    data: Derivatives
    value: float  # v(x); 0 where the stage does not need it
    slope: Vector  # its gradient, padded with zeros for y
    phi: float
    gradient: Vector
    violation: float  # sum over the constraints
    noise: float  # in phi, from the accuracy of v


class _Merit:
    """``f + gamma (g - v)`` under the joint constraints; gamma = 0 is the relaxation.

    Subclasses replace the objective by one that needs no lower level.
    """

    def __init__(self, model: Scaled, nx: int, bounds: tuple[Vector, Vector]) -> None:
        self.model, self.nx, self.bounds = model, nx, bounds
        self.gamma = 0.0
        # linearisations of v, the latest first: value, gradient and x of each
        self.memory = np.zeros((_MEMORY, 1 + 2 * nx))
        self._remembered = 0
        self._known: tuple[Vector, Saddle] | None = None  # the last lower level solved
        self.bend = np.zeros((nx, nx))  # Hessian of v, taken last at
        self._bent: Vector | None = None

    def at(self, v: Vector) -> _Iterate | None:
        """Evaluate at v, or return None where something is undefined there."""
        x = v[: self.nx]
        data = self.model.derivatives(x, v[self.nx :])
        slope, value, noise = np.zeros(len(v)), 0.0, 0.0
        if self.gamma > 0:
            if self._known is None or not np.array_equal(x, self._known[0]):
                try:
                    self._known = x, self.model.lower(x, tol=_LOWER_TOL)
                except LowerLevelError:
                    return None
                self._remember(self._known[1], x)
            saddle = self._known[1]
            value = saddle.value
            noise = self.gamma * saddle.gap * (1.0 + abs(value))
            slope[: self.nx] = saddle.grad_x
        phi, gradient = self._objective(v, data, value, slope)
        violation = 0.0
        if len(data.inequality):
            violation += float(np.maximum(data.inequality, 0.0).sum())
        if len(data.equality):
            violation += float(np.abs(data.equality).sum())
        if not (math.isfinite(phi + violation) and math.isfinite(gradient.sum())):
            return None
        return _Iterate(v, data, value, slope, phi, gradient, violation, noise)

    def _objective(
        self, v: Vector, data: Derivatives, value: float, slope: Vector
    ) -> tuple[float, Vector]:
        phi = data.upper + self.gamma * (data.lower - value)
        return float(phi), data.upper_gradient + self.gamma * (data.lower_gradient - slope)

    def curvature(self, here: _Iterate, dual: Vector, equal: Vector) -> Vector:
        """Hessian of the Lagrangian."""
        n = self.nx
        hessian = self.model.hessian(here.v[:n], here.v[n:], self.gamma, dual, equal)
        if self.gamma > 0:
            x = here.v[:n]
            if self._bent is None or not np.array_equal(x, self._bent):
                self._bent, self.bend = x, self._value_hessian(here)
            hessian[:n, :n] -= self.gamma * self.bend
        if not math.isfinite(hessian.sum()):
            hessian = np.where(np.isfinite(hessian), hessian, 0.0)
        return hessian

    def _value_hessian(self, here: _Iterate) -> Vector:
        """Hessian of v, by differences where the model does not know it."""
        known = self.model.sensitivity(here.v[: self.nx])
        if known is not None:
            bend = known.hessian
        else:
            bend = np.array([self._value_curvature(here, k) for k in range(self.nx)])
        return np.asarray(0.5 * (bend + bend.T))

    def _value_curvature(self, here: _Iterate, k: int) -> Vector:
        """Column k of the Hessian of v on the smooth piece around here."""
        base = here.slope[: self.nx]
        step = _DIFFERENCE * max(1.0, abs(here.v[k]))
        if here.v[k] + step > self.bounds[1][k]:
            step = -step
        for signed in (step, -step):  # behind, where no answer or a kink lies ahead
            x = here.v[: self.nx].copy()
            x[k] += signed
            try:
                saddle = self.model.lower(x, tol=_LOWER_TOL)
            except LowerLevelError:
                continue
            jump = saddle.grad_x - base
            if np.abs(jump).max() <= 0.01 * (1.0 + np.abs(base).max()):
                return np.asarray(jump / signed)
            self._remember(saddle, x)
        return np.zeros(self.nx)

    def _remember(self, saddle: Saddle, x: Vector) -> None:
        self.memory[1:] = self.memory[:-1].copy()
        self.memory[0, 0] = saddle.value
        self.memory[0, 1 : 1 + self.nx], self.memory[0, 1 + self.nx :] = saddle.grad_x, x
        self._remembered = min(self._remembered + 1, _MEMORY)

    def cuts(self, here: _Iterate, distance: float) -> list[tuple[float, Vector]]:
        """Remembered linearisations from nearby that lie above v here: v is locally concave there.

        Returns
        -------
        list of (level, slope)
            ``level <= 0`` is v here minus the linearisation here; ``slope`` is padded for y.
        """
        if self.gamma <= 0 or not self._remembered:
            return []
        value, turn, away = self._recalled(here)
        # linearisations above v, of another smooth piece: the step's curvature counts this one
        near = np.abs(away).max(axis=1) <= distance
        above = value <= 1e-11 * (1.0 + abs(here.value))
        near &= above
        if not near.any():
            return []
        steep = np.abs(turn).max(axis=1)
        near &= np.abs(turn - away @ self.bend).max(axis=1) > 0.1 * steep
        slopes = here.slope[: self.nx] + turn
        size = 1e-7 * (1.0 + np.abs(slopes).max(axis=1))
        near &= steep > size  # of another slope than the one here
        rows = np.flatnonzero(near)
        apart = np.abs(turn[rows, None] - turn[rows]).max(axis=2) > size[rows, None]
        chosen: list[int] = []
        for k in range(len(rows)):
            if len(chosen) < _CUTS and apart[k, chosen].all():
                chosen.append(k)
        padded = np.zeros((len(chosen), len(here.slope)))
        padded[:, : self.nx] = slopes[rows[chosen]]
        levels = np.minimum(value[rows[chosen]], 0.0)
        return list(zip(levels.tolist(), padded, strict=True))

    def _recalled(self, here: _Iterate) -> tuple[Vector, Vector, Vector]:
        """For every remembered linearisation, the latest first: v here minus it, change of slope, offset in x."""
        known = self.memory[: self._remembered]
        values, slopes = known[:, 0], known[:, 1 : 1 + self.nx]
        away = known[:, 1 + self.nx :] - here.v[: self.nx]
        level = here.value - values + (slopes * away).sum(axis=1)
        return level, slopes - here.slope[: self.nx], away


class _Distance(_Merit):
    """Half the squared distance to a point."""

    def __init__(self, merit: _Merit, target: Vector) -> None:
        super().__init__(merit.model, merit.nx, merit.bounds)
        self._target = target

    def _objective(
        self, v: Vector, data: Derivatives, value: float, slope: Vector
    ) -> tuple[float, Vector]:
        offset = v - self._target
        return 0.5 * float(offset @ offset), offset

    def curvature(self, here: _Iterate, dual: Vector, equal: Vector) -> Vector:
        return np.eye(len(here.v))


class _Direction(_Merit):
    """A linear function."""

    def __init__(self, merit: _Merit, direction: Vector) -> None:
        super().__init__(merit.model, merit.nx, merit.bounds)
        self._direction = direction

    def _objective(
        self, v: Vector, data: Derivatives, value: float, slope: Vector
    ) -> tuple[float, Vector]:
        return float(self._direction @ v), self._direction

    def curvature(self, here: _Iterate, dual: Vector, equal: Vector) -> Vector:
        return np.zeros((len(here.v), len(here.v)))


# -------------------------------------------------------------------------------------- trust region
class _Step(NamedTuple):
    """A step with the multipliers of inequalities, equalities and bounds."""

    d: Vector
    dual: Vector
    equal: Vector
    bound: Vector
    predicted: float


class _TrustRegion:
    """Elastic l1 trust-region SQP on a merit function.

    Parameters
    ----------
    merit : _Merit
    radius : float
        First radius, in the largest-entry norm.
    weight : float
        Of the violation; raised to twice the largest multiplier met.
    tolerance : float
        Relative decrease of the merit function that is not worth a step.
    """

    def __init__(
        self, merit: _Merit, radius: float, weight: float, tolerance: float = 1e-12
    ) -> None:
        self.merit, self.radius, self.weight = merit, radius, weight
        self.converged, self.tolerance = False, tolerance
        self.last: _Step | None = None

    def run(
        self, v: Vector, iterations: int = _ITERATIONS, guess: _Step | None = None
    ) -> _Iterate | None:
        """Iterate from v, with a guess of the multipliers; None where v cannot be evaluated."""
        merit = self.merit
        here = merit.at(v)
        if here is None:
            return None
        last = guess or _Step(
            np.zeros(len(v)),
            np.zeros(len(here.data.inequality)),
            np.zeros(len(here.data.equality)),
            np.zeros(len(v)),
            0.0,
        )
        hessian: Vector | None = None
        trust = 1.0  # in the convexified curvature
        for _ in range(iterations):
            if self.radius < 1e-12:
                break
            if hessian is None:
                hessian = self._model(here, last)
            cuts = merit.cuts(here, 2.0 * self.radius)
            self.last = last
            step = self._step(here, trust * hessian, cuts)
            if step is None:
                self.radius *= 0.25
                continue
            length = float(np.abs(step.d).max(initial=0.0))
            still = length <= 1e-13 * (1.0 + np.abs(here.v).max())
            if still or step.predicted <= self.tolerance * (1.0 + abs(here.phi)) + here.noise:
                same = np.array_equal(step.dual > 1e-9, last.dual > 1e-9)
                last = step
                if not same:
                    hessian = None  # the curvature of the Lagrangian needs the new multipliers
                elif cuts and self.radius > 1e-7:
                    self.radius *= 0.1  # stationary for far linearisations: use nearer ones
                else:
                    self.converged = True
                    break
                continue
            trial, accepted, ratio = self._try(here, step, trust * hessian, cuts)
            if trial is None:
                trust = 1.0
                self.radius = 0.25 * length
                last, hessian = step, None
                continue
            here, last, hessian = trial, accepted, None
            exact = self.tolerance >= _PASSING and abs(ratio - 1.0) < _EXACT
            if exact and length < 0.9 * self.radius and here.violation <= 1e-9:
                self.converged = True  # the model was right, and this was its minimiser
                break
            # about twice the predicted decrease: there is no such curvature along this way
            trust = max(0.1 * trust, 1e-6) if ratio > 1.5 else min(3.0 * trust, 1.0)
            if ratio > 0.7 and length > 0.8 * self.radius:
                self.radius = min(2.5 * self.radius, 1e6)
            elif ratio < 0.1:
                self.radius = 0.5 * length
        self.last = last
        return here

    def _try(
        self, here: _Iterate, step: _Step, hessian: Vector, cuts: list[tuple[float, Vector]]
    ) -> tuple[_Iterate | None, _Step, float]:
        """Point after the step, or after its second-order correction, if it is good enough."""
        merit = self.merit
        trial = merit.at(np.clip(here.v + step.d, *merit.bounds))
        ratio = self._ratio(here, trial, step)
        if trial is None or ratio >= _GOOD:
            return trial, step, ratio
        if ratio < _ACCEPT and trial.violation > 1e-14:
            # curved constraints can reject good steps (Maratos): use their values at the trial
            jacobians = here.data.inequality_jacobian, here.data.equality_jacobian
            data = here.data._replace(
                inequality=trial.data.inequality - jacobians[0] @ step.d,
                equality=trial.data.equality - jacobians[1] @ step.d,
            )
            corrected = self._step(here._replace(data=data), hessian, cuts)
            if corrected is not None:
                second = merit.at(np.clip(here.v + corrected.d, *merit.bounds))
                ratio = self._ratio(here, second, step)
                if ratio >= _ACCEPT:
                    return second, corrected, ratio
        # the valley around y(x) is curved: back to its floor, x held
        centred = self._centred(trial, step)
        found = self._ratio(here, centred, step)
        if centred is not None and found > max(ratio, _ACCEPT):
            return centred, step, found
        return (trial if ratio >= _ACCEPT else None), step, ratio

    def _centred(self, here: _Iterate, step: _Step) -> _Iterate | None:
        """Point after one Newton step in y alone; no lower level is solved for it."""
        merit, nx, data = self.merit, self.merit.nx, here.data
        if merit.gamma <= 0:
            return None
        hessian = merit.model.hessian(here.v[:nx], here.v[nx:], merit.gamma, step.dual, step.equal)[
            nx:, nx:
        ]
        values, vectors = np.linalg.eigh(np.where(np.isfinite(hessian), hessian, 0.0))
        floor = 1e-9 * max(float(np.abs(values).max(initial=0.0)), 1e-3)
        hessian = (vectors * np.maximum(values, floor)) @ vectors.T
        jacobian = _dense(data.inequality_jacobian)[:, nx:]
        equality = _dense(data.equality_jacobian)[:, nx:]
        low, high = (bound[nx:] - here.v[nx:] for bound in merit.bounds)
        scale = 1.0 / max(float(np.abs(here.gradient[nx:]).max(initial=0.0)), 1e-300)
        answer = solve_dense_qp(
            scale * hessian,
            scale * here.gradient[nx:],
            np.vstack([jacobian, equality]),
            np.concatenate([high, -data.inequality, -data.equality]),
            np.concatenate([low, np.full(len(jacobian), -INFINITE), -data.equality]),
        )
        if answer is None:
            return None
        v = here.v.copy()
        v[nx:] += answer.z
        return merit.at(np.clip(v, *merit.bounds))

    def _ratio(self, here: _Iterate, trial: _Iterate | None, step: _Step) -> float:
        if trial is None:
            return -np.inf
        actual = here.phi - trial.phi + self.weight * (here.violation - trial.violation)
        return float(actual / step.predicted)

    def _model(self, here: _Iterate, last: _Step) -> Vector:
        """Convex model of the curvature.

        A step does not leave strongly active rows, so only the curvature along them counts:
        ``g - v`` may be convex there and nowhere else.
        """
        strong = 1e-6 * (1.0 + float(np.abs(here.gradient).max()))
        hessian = self.merit.curvature(here, *self._multipliers(here, last, strong))
        scale = float(np.abs(hessian).max(initial=0.0))
        floor = 1e-8 * max(scale, 1e-3)
        # away from the bounds first, which takes no linear algebra, then along the rows
        free = np.flatnonzero(np.abs(last.bound) <= strong)
        rows = _dense(here.data.equality_jacobian)
        active = last.dual > strong
        if active.any():
            rows = np.concatenate([_dense(here.data.inequality_jacobian)[active], rows])
        full = len(free) == len(here.v)
        if not full:
            rows = rows[:, free]
        lengths = np.sqrt((rows * rows).sum(axis=1))
        if not lengths.all():
            rows, lengths = rows[lengths > 0], lengths[lengths > 0]
        inner = hessian if full else hessian[np.ix_(free, free)]
        if len(rows):
            _, sizes, basis, _ = dgesdd(rows / lengths[:, None])
            rank = int(np.count_nonzero(sizes > 1e-8))
            across, along = basis[:rank], basis[rank:]
            values, vectors, _ = dsyevd(along @ inner @ along.T)
            vectors = along.T @ vectors
            convex = (vectors * np.maximum(values, floor)) @ vectors.T
            convex += max(scale, floor) * across.T @ across
        else:
            values, vectors, _ = dsyevd(inner)
            convex = (vectors * np.maximum(values, floor)) @ vectors.T
        if full:
            return np.asarray(convex)
        total = np.zeros_like(hessian)
        total[np.ix_(free, free)] = convex
        bound = np.flatnonzero(np.abs(last.bound) > strong)
        total[bound, bound] = max(scale, floor)
        return total

    def _multipliers(self, here: _Iterate, last: _Step, strong: float) -> tuple[Vector, Vector]:
        """Multipliers of inequalities and equalities at a point: by least squares on the last step's active ones.

        Those of the last step belong to where it began, and what they miss in curvature counts gamma times.
        """
        active, free = np.flatnonzero(last.dual > strong), np.abs(last.bound) <= strong
        rows = _dense(here.data.equality_jacobian)
        if len(active):
            rows = np.concatenate([_dense(here.data.inequality_jacobian)[active], rows])
        if not len(rows):
            return last.dual, last.equal
        rows = rows[:, free]
        _, _, found, flaw = dgesv(rows @ rows.T, -(rows @ here.gradient[free]))
        if flaw or not (found[: len(active)] > 0).all() or not np.isfinite(found).all():
            return last.dual, last.equal
        dual = last.dual.copy()
        dual[active] = found[: len(active)]
        return dual, found[len(active) :]

    def _step(
        self, here: _Iterate, hessian: Vector, cuts: Sequence[tuple[float, Vector]]
    ) -> _Step | None:
        jacobian = _dense(here.data.inequality_jacobian)
        equality = _dense(here.data.equality_jacobian)
        step = self._subproblem(here, hessian, cuts, jacobian, equality, elastic=False)
        if step is None and self.radius < 1e-9 and here.violation < 1e-12:
            return None  # they have: here; what is left is rounding
        if step is None:  # the linearised constraints have no point inside the radius
            step = self._subproblem(here, hessian, cuts, jacobian, equality, elastic=True)
        if step is None:
            return None
        d = step.d
        left = 0.0
        if len(jacobian):
            self._weigh(float(np.max(step.dual)))
            left += float(np.maximum(here.data.inequality + jacobian @ d, 0.0).sum())
        if len(equality):
            self._weigh(float(np.abs(step.equal).max()))
            left += float(np.abs(here.data.equality + equality @ d).sum())
        kink = max([0.0, *(level + float((here.slope - s) @ d) for level, s in cuts)])
        predicted = -float(here.gradient @ d + 0.5 * d @ hessian @ d) - self.merit.gamma * kink
        return step._replace(predicted=predicted + self.weight * (here.violation - left))

    def _weigh(self, multiplier: float) -> None:
        """Raise the weight of the violation above a multiplier."""
        if multiplier > self.weight:
            self.weight = 2.0 * multiplier

    def _subproblem(
        self,
        here: _Iterate,
        hessian: Vector,
        cuts: Sequence[tuple[float, Vector]],
        jacobian: Vector,
        equality: Vector,
        *,
        elastic: bool,
    ) -> _Step | None:
        """Minimise the model inside the radius.

        Unknowns: the step d; tau, the rise of -v above its linearisation, where there are cuts;
        slacks of the constraints, where elastic. Bounds: on all unknowns, then constraints, then
        cuts.
        """
        n, m, p = len(here.v), len(jacobian), len(equality)
        extra, slack = (1 if cuts else 0), (m + 2 * p if elastic else 0)
        size = n + extra + slack
        low, high = self.merit.bounds
        top = [np.minimum(high - here.v, self.radius), -here.data.inequality, -here.data.equality]
        bottom = [
            np.maximum(low - here.v, -self.radius),
            np.full(m, -INFINITE),
            -here.data.equality,
        ]
        if size == n:
            P, q = hessian, here.gradient
            A = np.concatenate([jacobian, equality])
        else:
            P = np.zeros((size, size))
            P[:n, :n] = hessian
            tail = np.arange(n, size)
            P[tail, tail] = 1e-8 * self.weight  # keeps the program strictly convex
            q = np.concatenate(
                [here.gradient, np.full(extra, self.merit.gamma), np.full(slack, self.weight)]
            )
            A = np.zeros((m + p + len(cuts), size))
            A[:m, :n], A[m : m + p, :n] = jacobian, equality
            if elastic:
                first = n + extra
                A[:m, first : first + m] = -np.eye(m)
                A[m : m + p, first + m : first + m + p] = -np.eye(p)
                A[m : m + p, first + m + p :] = np.eye(p)
            for row, (_, slope) in enumerate(cuts, start=m + p):
                A[row, :n] = here.slope - slope
                A[row, n] = -1.0
            top.insert(1, np.full(size - n, 1e12))
            bottom.insert(1, np.zeros(size - n))
            top.append(np.array([-level for level, _ in cuts]))
            bottom.append(np.full(len(cuts), -INFINITE))
        scale = 1.0 / max(float(np.abs(q).max()), 1e-300)
        P = scale * P
        if np.abs(P).max() <= _LINEAR:
            P[:] = (
                0.0  # the active-set solver takes a linear program, not a Hessian of rounding size
            )
        guess = None
        if self.last is not None and size == n >= _MANY:
            guess = np.concatenate([self.last.bound, self.last.dual, self.last.equal])
        answer = solve_dense_qp(
            P, scale * q, A, np.concatenate(top), np.concatenate(bottom), guess=guess
        )
        if answer is None:
            return None
        dual = answer.dual / scale
        rows, d = dual[size:], answer.z[:n]
        # the radius is no bound: the next step will pass it
        bound = np.where(np.abs(d) < 0.999999 * self.radius, dual[:n], 0.0)
        return _Step(d, np.maximum(rows[:m], 0.0), rows[m : m + p], bound, 0.0)


def _dense(matrix: Any) -> Vector:
    return matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix.toarray())


# ----------------------------------------------------------------------------------------- the method
class Joint:
    """Runs of the joint method on one model; :meth:`solve` orders them.

    Parameters
    ----------
    model : HasDerivatives
    x0 : ndarray of shape (nx,)
        Start of the upper variables.
    y0 : ndarray, optional
        Start of the lower ones; the lower level's answer at x0 by default.
    bound : float, optional
        Proven lower bound on the optimum: runs end where it is attained.
    tol : float
        Relative distance to the bound that counts as attained.
    progress : Progress, optional
        Gets a record for every stage.

    Attributes
    ----------
    best : JointPoint or None
        Best point so far.
    done : int
        Runs from the starts that are finished, and those to leave out where set before
        :meth:`solve`, as a resumed solve does.
    after_run : callable or None
        Called after every run.
    """

    def __init__(
        self,
        model: HasDerivatives,
        x0: Vector,
        y0: Vector | None = None,
        *,
        bound: float | None = None,
        tol: float = 1e-6,
        progress: Progress | None = None,
    ) -> None:
        self.nx, self.tol = len(x0), tol
        self.progress = progress if progress is not None else Progress()
        lower, upper = model.bounds
        x0 = np.clip(x0, lower[: self.nx], upper[: self.nx])
        if y0 is None:
            try:
                y0 = np.asarray(model.lower(x0, tol=_LOWER_TOL).y)
            except LowerLevelError:
                y0 = np.zeros(len(lower) - self.nx)
        y0 = np.clip(y0, lower[self.nx :], upper[self.nx :])
        self.model = Scaled(model, x0, y0)
        self.start = np.concatenate([x0 / self.model.x_unit, y0 / self.model.y_unit])
        self.bound = None if bound is None else bound / self.model.upper_unit
        self.merit = _Merit(self.model, self.nx, self.model.bounds)
        self.best: JointPoint | None = None
        self._ends: list[tuple[float, float, Vector, float]] = []
        self.done = 0
        self.after_run: Callable[[], None] | None = None
        self.range = (self.start[: self.nx], self.start[: self.nx])

    def solve(self, starts: int | str = 1, seed: int = 0) -> JointPoint | None:
        """Run from the relaxation, from x0, and from what the scans of the response find.

        Parameters
        ----------
        starts : int or "range"
            An integer above 1 adds that many random points of the range of x; ``"range"`` adds
            the points that minimise and maximise each x_i over the jointly feasible set, pulled
            inwards by 5 percent, and their mean.
        seed : int
            Of the random points.

        Returns
        -------
        JointPoint or None
            None where no x with a solvable lower level was found.
        """
        origin = self.feasible(self.start)
        ends = self.extremes(origin)
        runs: list[tuple[Vector | None, Sequence[float]]] = [(self.relaxed(origin), RISING)]
        runs.append((origin, SHORT))
        if self.nx >= _WIDE:
            runs.append((self._tilted(origin), LONGER))
        further = list(self._further(starts, seed, origin, ends))
        runs += [(start, stages) for stages in (LOCAL, PATIENT) for start in further]
        for start, stages in runs[self.done :]:
            if start is not None and not self.attained:
                far = stages in (LOCAL, PATIENT)  # a further start need not satisfy the constraints
                self.climb(self.feasible(start) if far else start, stages)
            self._finished_run()
        tried: set[tuple[float, ...]] = set()
        for _ in range(_ROUNDS):
            before = self.best
            if before is None or self.attained:
                break
            for point in self.scan(before, tried):
                self._explore(point)
            if self.best is before:
                break
            self._finished_run()
        return self._finish()

    def follow(self, x: Vector, y: Vector, reach: tuple[Vector, Vector]) -> JointPoint | None:
        """Run from the answer of a program like this one, from the relaxation, and from better points on the axes.

        Parameters
        ----------
        x, y : ndarray
            That answer, in the model's units.
        reach : tuple of ndarray
            Range of x there, see ``range``.

        Returns
        -------
        JointPoint or None
            None where the lower level has no answer there.
        """
        v = np.concatenate([x / self.model.x_unit, y / self.model.y_unit])
        low, high = reach
        self.range = low / self.model.x_unit, high / self.model.x_unit
        own = self.response(v[: self.nx])
        if (
            own is not None
        ):  # the last y may be the upper level's choice among several: keep it where it still is one
            held = self.measure(v[: self.nx], v[self.nx :], self._saddle(v[: self.nx]))
            v = v if held.better(own) else np.concatenate([own.x, own.y])
        self.climb(np.clip(v, *self.model.bounds), LOCAL)
        if self.bound is not None and not self.attained:
            start = self.relaxed(v)
            point = None if start is None else self.response(start[: self.nx])
            if point is not None and point.better(self.best):
                self._explore(point)
        if self.best is None:
            return None
        for _ in range(_ROUNDS):
            before = self.best
            if self.attained:
                break
            for point in self.scan(before, set(), _COARSE):
                if point.better(self.best):
                    self._explore(point)
            if self.best is before:
                break
        return self._finish()

    def _saddle(self, x: Vector) -> Saddle:
        return self.model.lower(x, tol=_LOWER_TOL)

    def _explore(self, point: JointPoint) -> None:
        self.climb(np.concatenate([point.x, point.y]), LOCAL)
        if point.better(self.best):
            self.best = point

    def _finish(self) -> JointPoint | None:
        """The last digits, and the point in the model's units."""
        if self.best is not None:
            self.climb(np.concatenate([self.best.x, self.best.y]), FINAL)
        self.refine()
        return None if self.best is None else self.in_user_units(self.best)

    def go_on(self, point: JointPoint) -> JointPoint | None:
        """Run on from a point, in the model's units, that was found without this method.

        Returns
        -------
        JointPoint or None
            The best point now, in the model's units; None where that has not become better.
        """
        before, point = self.best, self.in_user_units(point, back=True)
        if self.attained or not point.better(before):
            return None
        self.best = point
        self.climb(np.concatenate([point.x, point.y]), (*LOCAL, *FINAL))
        self.refine()
        return self.in_user_units(self.best)

    def in_user_units(self, point: JointPoint, back: bool = False) -> JointPoint:
        """A point of this method in the model's own units, or ``back`` from there."""
        x, y, f = self.model.x_unit, self.model.y_unit, self.model.upper_unit
        if back:
            x, y, f = 1.0 / x, 1.0 / y, 1.0 / f
        return point._replace(x=point.x * x, y=point.y * y, objective=point.objective * f)

    def _finished_run(self) -> None:
        self.done += 1
        if self.after_run is not None:
            self.after_run()

    @property
    def attained(self) -> bool:
        """Whether the best point attains the bound."""
        if self.bound is None or self.best is None or self.best.error > _TIGHT:
            return False
        return bool(self.best.objective - self.bound <= 0.1 * self.tol * (1.0 + abs(self.bound)))

    # ---------------------------------------------------------------------------------------- starts
    def _tilted(self, v: Vector) -> Vector:
        """A start moved a little in x: descent from a symmetric start of a symmetric problem stays symmetric."""
        size = 1.0 + np.abs(v[: self.nx])
        moved, lower, upper = v.copy(), *self.model.bounds
        moved[: self.nx] += _TILT * size * np.random.default_rng(0).normal(size=self.nx)
        return np.clip(moved, lower, upper)

    def feasible(self, v: Vector) -> Vector:
        """Nearest jointly feasible point, as far as a few linearisations reach it."""
        size = 1.0 + float(np.abs(v).max())
        reached = _TrustRegion(_Distance(self.merit, v), 10.0 * size, 100.0 * size).run(v)
        return v if reached is None else reached.v

    def relaxed(self, v: Vector) -> Vector | None:
        """Minimiser of f with lower-level optimality dropped, None where unbounded."""
        if isinstance(self.model, HasRelaxation):
            try:
                answer = self.model.relaxation(tol=1e-9)
                return np.concatenate([answer.x, answer.y])
            except (UnsupportedModelError, LowerLevelError):
                pass  # not convex or without a minimiser: the local method below finds out which
        self.merit.gamma = 0.0
        region = _TrustRegion(self.merit, 1.0, 10.0)
        reached = region.run(v)
        return reached.v if reached is not None and _stayed(region, v, reached.v) else None

    def extremes(self, origin: Vector) -> list[Vector]:
        """Points that minimise and maximise each x_i over the joint constraints; sets ``range``."""
        x = origin[: self.nx]
        low, high, ends = x.copy(), x.copy(), []
        for k in range(self.nx):
            far = 10.0 * (1.0 + abs(x[k]))
            for sign in (1.0, -1.0):
                direction = np.zeros(len(origin))
                direction[k] = sign
                region = _TrustRegion(
                    _Direction(self.merit, direction),
                    10.0 * (1.0 + float(np.abs(origin).max())),
                    10.0,
                    _PASSING,
                )
                reached = region.run(origin, 25)
                if reached is not None:
                    end = np.clip(reached.v, origin - far, origin + far)
                    ends.append(end)
                    low, high = np.minimum(low, end[: self.nx]), np.maximum(high, end[: self.nx])
        self.range = (low, high)
        return ends or [origin]

    def _further(
        self, starts: int | str, seed: int, origin: Vector, ends: Sequence[Vector]
    ) -> Iterator[Vector]:
        if starts == "range":
            middle = np.mean(ends, axis=0)
            for end in ends:
                yield end + 0.05 * (middle - end)
            yield middle
        elif isinstance(starts, int) and starts >= 1:
            generator = np.random.default_rng(seed)
            for _ in range(starts - 1):
                v = origin.copy()
                v[: self.nx] = generator.uniform(*self.range)
                yield v
        else:
            raise InvalidInputError(
                f'starts must be an integer of at least 1 or "range", got {starts!r}'
            )

    # ----------------------------------------------------------------------------------------- a run
    def climb(self, v: Vector, stages: Sequence[float]) -> None:
        """Follow ``f + gamma (g - v)`` through the stages of gamma and judge the end.

        A run is not finished where it meets an earlier one, as it would end where that one did, or cannot get better.
        """
        met: list[tuple[float, float, Vector, float]] = []
        radius = 1.0 + 0.1 * float(np.abs(v).max())
        guess: _Step | None = None
        before = 0.0
        for gamma in stages:
            self.merit.gamma = gamma
            tolerance = 1e-12 if gamma == stages[-1] else _PASSING
            region = _TrustRegion(self.merit, radius, 10.0 * (1.0 + gamma), tolerance)
            if guess is not None:  # the lower level's multipliers grow with gamma
                rise = gamma / before
                guess = guess._replace(dual=rise * guess.dual, equal=rise * guess.equal)
            reached = region.run(v, guess=guess)
            guess, before = region.last, gamma
            if reached is None:
                if gamma == stages[0]:
                    return
                break
            # while gamma is small the stage may be unbounded below: leave it out
            if gamma >= 1e3 or _stayed(region, v, reached.v):
                v = reached.v
            penalty = gamma * (reached.data.lower - reached.value)
            unit = self.model.upper_unit
            self.progress.row(
                method="joint",
                gamma=gamma * unit / self.model.lower_unit,
                penalized=unit * reached.phi,
                response=unit * (reached.phi - penalty),
                penalty=unit * penalty,
                stationarity=0.0 if region.converged else np.nan,
            )
            if gamma < stages[-1] and region.converged:
                if self._has_been_at(gamma, stages[-1], reached):
                    return
                if gamma >= _SETTLED and self._hopeless(reached):
                    return
                met.append((gamma, stages[-1], v, reached.phi))
        self._judge(v)
        self._ends += met

    def _hopeless(self, here: _Iterate) -> bool:
        """Whether a run is above the best response already: its minima can only rise with gamma."""
        if self.best is None or self.best.error > _SOLVED:
            return False
        return here.phi > self.best.objective + _SAME * (1.0 + abs(self.best.objective))

    def _has_been_at(self, gamma: float, last: float, here: _Iterate) -> bool:
        """Whether an earlier run, to at least the same last gamma, was here at this one."""
        near = _SAME * (1.0 + float(np.abs(here.v).max()))
        level = here.phi + 1e-3 * _SAME * (1.0 + abs(here.phi))
        return any(
            there == gamma and end >= last and phi <= level and np.abs(v - here.v).max() <= near
            for there, end, v, phi in self._ends
        )

    def _judge(self, v: Vector) -> None:
        """Compare x with the best: with the lower level's own answer, and with y as reached.

        The lower level's own answer may not be the upper level's favourite, or break an upper
        constraint. Only then is y kept, solved to the end with x held.
        """
        x = v[: self.nx]
        try:
            saddle = self.model.lower(x, tol=_LOWER_TOL)
        except LowerLevelError:
            return
        own = self.measure(x, np.asarray(saddle.y), saddle)
        candidates = [own]
        joint = self.measure(x, v[self.nx :], saddle)
        if own.error > _TIGHT or joint.objective < own.objective - 1e-4 * (
            1.0 + abs(own.objective)
        ):
            held = self._hold(joint, FINAL)
            if held is not None:
                joint = self.measure(x, held[self.nx :], saddle)
            candidates.append(joint)
        for candidate in candidates:
            if candidate.better(self.best):
                self.best = candidate
                self._refuse_runaway(x)

    def _refuse_runaway(self, x: Vector) -> None:
        """Raise where x has gone to astronomical sizes, may go on, and the response still falls in proportion."""
        size, bounds = float(np.abs(x).max()), [bound[: self.nx] for bound in self.model.bounds]
        if size <= RUNAWAY * (1.0 + float(np.abs(self.start[: self.nx]).max())):
            return
        x = x * min(1.0, _COUNTABLE / size)
        here, there = self.response(x), self.response(np.clip(10.0 * x, *bounds))
        if here is None or there is None or np.abs(there.x).max() < 5.0 * np.abs(x).max():
            return
        if there.objective < here.objective - 1e-3 * (1.0 + abs(here.objective)):
            raise UpperUnboundedError(float(np.abs(x * self.model.x_unit).max()))

    def measure(self, x: Vector, y: Vector, saddle: Saddle) -> JointPoint:
        """Objective, gap and violation of a pair, given the saddle point at x."""
        objective, level, inequality, equality = self.model.values(x, y)
        v = np.concatenate([x, y])
        lower, upper = self.model.bounds
        worst = max(0.0, _largest(lower - v), _largest(v - upper))
        outside = np.concatenate([inequality, np.abs(equality)])
        if len(outside) and _largest(outside) <= _ROUNDING:
            worst = max(worst, _largest(outside))
        elif len(outside) and not _largest(outside) <= worst:  # NaN is outside as well
            data = self.model.derivatives(x, y)
            jacobians = data.inequality_jacobian, data.equality_jacobian
            steep = np.concatenate([_steepness(jacobian) for jacobian in jacobians])
            worst = max(worst, _largest(np.nan_to_num(outside / steep, nan=np.inf)))
        gap = (level - saddle.value) / (1.0 + abs(saddle.value))
        return JointPoint(x, y, objective, gap, worst / (1.0 + float(np.abs(v).max())))

    # ----------------------------------------------------------------------------------- the response
    def response(self, x: Vector) -> JointPoint | None:
        """x with the lower level's own answer; None where there is none, or it is infeasible."""
        try:
            saddle = self.model.lower(x, tol=_LOWER_TOL)
        except LowerLevelError:
            return None
        point = self.measure(x, np.asarray(saddle.y), saddle)
        return point if point.violation <= _TIGHT and np.isfinite(point.objective) else None

    def responses(self, points: Sequence[Vector]) -> list[JointPoint | None]:
        """:meth:`response` at many points, those together whose answers are known without a solve."""
        known = self._known_responses(points)
        return [known[k] if k in known else self.response(x) for k, x in enumerate(points)]

    def _known_responses(self, points: Sequence[Vector]) -> dict[int, JointPoint]:
        """By position, those of the points that keep all constraints to rounding and whose answers are known."""
        together = np.array(points)
        there = self.model.responses(together) if points else None
        if there is None:
            return {}
        both = np.hstack([together, there.y])
        low, high = self.model.bounds
        parts = low - both, both - high, there.inequality, np.abs(there.equality)
        worst = np.max(np.hstack(parts), axis=1, initial=0.0)
        gap = (there.lower - there.value) / (1.0 + np.abs(there.value))
        violation = worst / (1.0 + np.abs(both).max(axis=1))
        kept = there.known & (worst <= _ROUNDING) & np.isfinite(there.upper)
        return {
            k: JointPoint(
                points[k], there.y[k], float(there.upper[k]), float(gap[k]), float(violation[k])
            )
            for k in np.flatnonzero(kept).tolist()
        }

    def scan(
        self,
        base: JointPoint,
        tried: set[tuple[float, ...]],
        fractions: Sequence[float] = _FRACTIONS,
    ) -> list[JointPoint]:
        """Local minima of the response along the axes through a point, best first.

        Parameters
        ----------
        base : JointPoint
        tried : set of tuple
            Points handed out before (rounded); extended here.
        fractions : sequence of float
            Of the way to the ends of the range: where to look.
        """
        found: list[JointPoint] = []
        ways = [
            sign * abs(end[k] - base.x[k]) * unit
            for k, unit in enumerate(np.eye(self.nx))
            for sign, end in ((1.0, self.range[1]), (-1.0, self.range[0]))
        ]
        points = self.responses([base.x + fraction * way for way in ways for fraction in fractions])
        for part in range(len(ways)):
            line = [base, *points[part * len(fractions) :][: len(fractions)], None]
            for left, point, right in zip(line, line[1:], line[2:], strict=False):
                if point is not None and all(
                    other is None or point.objective < other.objective for other in (left, right)
                ):
                    found.append(point)
        found.sort(key=lambda point: point.objective)
        level = base.objective - 1e-7 * (1.0 + abs(base.objective))
        fresh: list[JointPoint] = []
        for point in found:
            key = tuple(float(f"{value:.1e}") for value in point.x)
            if key not in tried and (point.objective < level or len(fresh) < _SCANNED):
                tried.add(key)
                fresh.append(point)
        return fresh[: 2 * _SCANNED]

    # ------------------------------------------------------------------------------------ last digits
    def _hold(self, point: JointPoint, stages: Sequence[float]) -> Vector | None:
        """Minimise ``f + gamma g`` over y at the point's x."""
        lower, upper = (bound.copy() for bound in self.model.bounds)
        lower[: self.nx] = upper[: self.nx] = point.x
        merit = _Merit(self.model, self.nx, (lower, upper))
        v = np.concatenate([point.x, point.y])
        for merit.gamma in stages:
            reached = _TrustRegion(merit, 1.0, 10.0 * merit.gamma).run(v)
            if reached is None:
                return None
            v = reached.v
        return v

    def refine(self, evaluations: int = 300) -> None:
        """Compass search on the response from the best point.

        It needs no derivative, so it also reaches optima at the edge of dom v, where the slope of
        v is unbounded.
        """
        step, least = 1e-5, 1e-7
        while self.best is not None and evaluations > 0 and step > least:
            moved = False
            moves = [(k, sign) for k in self._worth_a_move(self.best, step) for sign in (1.0, -1.0)]
            evaluations -= len(moves)
            first = self.responses([self._moved(self.best.x, *move, step) for move in moves])
            for move, point in zip(moves, first, strict=True):
                if point is None or not point.better(self.best):
                    continue
                if moved:  # the best point is another by now
                    point = self.response(self._moved(self.best.x, *move, step))
                if point is not None and point.better(self.best):
                    self.best, moved = point, True
            least = 1e-10 if moved else least  # the runs had not reached the end
            step *= 2.0 if moved else 0.1
        if (
            self.best is not None
        ):  # where the slope is unbounded, the last digits count: they may be round
            point = self.response(np.array([float(f"{value:.10e}") for value in self.best.x]))
            if point is not None and point.better(self.best):
                self.best = point

    def _moved(self, x: Vector, k: int, sign: float, step: float) -> Vector:
        """x after a relative move along one axis."""
        x = x.copy()
        x[k] += sign * step * (1.0 + abs(x[k]))
        return np.clip(x, *(bound[: self.nx] for bound in self.model.bounds))

    def _worth_a_move(self, point: JointPoint, step: float) -> Sequence[int]:
        """Entries of x along which a move of a relative length may lower the response by more than rounding."""
        slope = self._slope(point)
        if slope is None:
            return range(self.nx)
        falls = np.abs(slope) * step * (1.0 + np.abs(point.x))
        return [int(k) for k in np.flatnonzero(falls > _ROUNDING * (1.0 + abs(point.objective)))]

    def probe(self, point: JointPoint) -> tuple[JointPoint | None, float]:
        """Look for descent of the response from a point: along the axes, in random directions, and along kinks.

        It asks the lower level alone, so that it also shows descent where the trust region stalls.

        Returns
        -------
        JointPoint or None
            The best point found, None where none lies below.
        float
            The largest relative decrease along a way whose first tenth bears the slope out; what does not shrink with
            the move is a jump, and no slope.
        """
        n, found, left = self.nx, None, 0.0
        random = np.random.default_rng(0).standard_normal((min(2 * n + 2, _PROBES), n))
        axes = np.eye(n)[: _PROBES // 2]
        moves = [*axes, *-axes, *(random / np.abs(random).max(axis=1, keepdims=True))]
        bounds = (self.model.bounds[0][:n], self.model.bounds[1][:n])
        scale, size = 1.0 + abs(point.objective), 1.0 + float(np.abs(point.x).max())
        if 1 < n <= LARGEST:
            ways, slope = moves[:_TURNS], self._slope(point)
            moves += edge_directions(self._value, point.x, _MOVE * size, bounds, ways, slope)
            normals = self._normals(point)
            for radius in _RADII:
                move = kink_direction(self._gradient, point.x, radius * size, bounds, normals)
                if move is None:  # no kink around, and none closer
                    break
                moves.append(move)
        ends = self.responses([np.clip(point.x + _MOVE * size * move, *bounds) for move in moves])
        for move, far in zip(moves, ends, strict=True):
            if far is None or not far.objective < point.objective - _PASSING * scale:
                continue
            near = self.response(np.clip(point.x + 0.1 * _MOVE * size * move, *bounds))
            fall = (point.objective - far.objective) / scale
            sloped = near is not None and (
                0.03 * fall < (point.objective - near.objective) / scale < 0.3 * fall
            )
            length = _MOVE * size
            for _ in range(_DOUBLINGS):
                length *= 2.0
                further = self.response(np.clip(point.x + length * move, *bounds))
                if further is None or not further.objective < far.objective:
                    break
                far = further
            if sloped:
                left = max(left, (point.objective - far.objective) / scale)
            if far.better(found or point):
                found = far
        return found, left

    def _value(self, x: Vector) -> float:
        point = self.response(x)
        return np.inf if point is None else point.objective

    def _gradient(self, x: Vector, step: float) -> Vector:
        """Gradient of the response, by differences where the lower level's answer has no derivative; or infinite."""
        point = self.response(x)
        if point is None:
            return np.full(self.nx, np.inf)
        slope = self._slope(point)
        if slope is None:
            return differences(self._value, x, step, self.model.bounds[1][: self.nx])
        return slope

    def _slope(self, point: JointPoint) -> Vector | None:
        """Gradient of the response at a point of it, None where the lower level's answer has no derivative."""
        turn = self.model.sensitivity(point.x)
        if turn is None:
            return None
        slope = self.model.derivatives(point.x, point.y).upper_gradient
        return np.asarray(slope[: self.nx] + slope[self.nx :] @ turn.answer)

    def _normals(self, point: JointPoint) -> list[Vector]:
        """Outward normals of the constraints in x alone that are active at a point."""
        data = self.model.derivatives(point.x, point.y)
        inequality, equality = (
            _dense(part) for part in (data.inequality_jacobian, data.equality_jacobian)
        )
        alone = ~inequality[:, self.nx :].any(axis=1) & (data.inequality >= -_MOVE)
        held = equality[~equality[:, self.nx :].any(axis=1)]
        rows = np.concatenate([inequality[alone], held, -held])[:, : self.nx]
        return [row / np.abs(row).max() for row in rows if row.any()]

    def stationarity(self, point: JointPoint, gamma: float = LOCAL[-1]) -> float:
        """Relative decrease of ``f + gamma (g - v)`` that a run from the point still finds.

        Parameters
        ----------
        point : JointPoint
        gamma : float
            y is first solved for at this gamma, x held.

        Returns
        -------
        float
            Zero, up to rounding, exactly where no descent direction shows; ``nan`` where the merit
            function has no value.
        """
        held = self._hold(point, (gamma,))
        if held is None:
            return float("nan")
        self.merit.gamma = gamma
        before = self.merit.at(held)
        region = _TrustRegion(self.merit, 0.1 * (1.0 + float(np.abs(held).max())), 10.0 * gamma)
        after = region.run(held, 15)
        if before is None or after is None:
            return float("nan")
        gained = before.phi - after.phi + region.weight * min(before.violation - after.violation, 0)
        return max(0.0, gained) / (1.0 + abs(before.phi))


def _largest(values: Any) -> float:
    return float(values.max())


def _steepness(jacobian: Any) -> Vector:
    """Largest slope of each row, 1 at least: a row in large units is not violated by what rounding leaves of it."""
    if jacobian.shape[0] == 0:
        return np.ones(0)
    slopes = abs(jacobian).max(axis=1)
    if sparse.issparse(slopes):
        slopes = slopes.toarray()
    steep: Vector = np.maximum(1.0, np.asarray(slopes).ravel())
    return steep


def _stayed(region: _TrustRegion, before: Vector, after: Vector) -> bool:
    """False where a stage looks unbounded below: still moving, and far from where it began."""
    far = np.abs(after - before).max() > 10.0 * (1.0 + np.abs(before).max())
    return bool(region.converged or not far)
