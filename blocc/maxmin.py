"""MaxMin (BLOCC, arXiv:2406.10148, Algorithm 2): saddle points of the lower level's Lagrangian by first-order steps.

:func:`maxmin` is the algorithm as published, plain and accelerated. :func:`solve` is the production form: the same
alternation of a projected primal step and a projected dual step, with diagonal preconditioning, steps that adapt to
the local curvature and coupling, and restarts from the averaged iterate. It stops on a certified KKT residual.

Everything runs in the namespace and on the device of y. Scalars that steer the steps stay on the device too; the
host looks only once every ``check_every`` iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from blocc.arrays import generator, namespace, precision, random_probe
from blocc.errors import (
    InvalidInputError,
    LowerInfeasibleError,
    LowerNotSolvedError,
    LowerUnboundedError,
)
from blocc.model import LowerResiduals
from blocc.sets import Box, ConvexSet, Free, PlacedBox

Array = Any

MAX_ITERATIONS = 200_000
PROBES, SWEEPS, POWERS = 16, 2, 8  # random directions, balancing passes, power iterations
MARGIN = 1.05  # over norms that power iterations found
STRETCH, GROW, CUT = (
    2.0,
    1.25,
    0.8,
)  # dual steps beyond the guaranteed length: at most, from epoch to epoch, if wild


@dataclass(frozen=True)
class Constraint:
    """A block of constraints ``value(y) <= 0`` (or ``== 0``), with ``pullback(y, dual) = J(y)^T dual``."""

    value: Callable[[Array], Array]
    pullback: Callable[[Array, Array], Array]
    equality: bool = False

    def project(self, dual: Array) -> Array:
        """Onto the dual's cone."""
        if self.equality:
            return dual
        return namespace(dual).maximum(dual, 0.0)


@dataclass(frozen=True)
class SaddleProblem:
    """``min over y in y_set of objective(y)`` subject to blocks of convex constraints.

    Attributes
    ----------
    objective, gradient : callable
        Smooth convex function of y (0-d array) and its gradient.
    constraints : mapping of str to Constraint
        Blocks by name.
    y_set : ConvexSet
        Simple constraints on y, by projection.
    """

    objective: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    y_set: ConvexSet = field(default_factory=Free)

    def lagrangian_gradient(self, y: Array, duals: Mapping[str, Array]) -> Array:
        """Gradient in y of ``objective + sum <dual, constraint>``."""
        total = self.gradient(y)
        for name, block in self.constraints.items():
            total = total + block.pullback(y, duals[name])
        return total

    def values(self, y: Array) -> dict[str, Array]:
        """Values of all constraint blocks."""
        return {name: block.value(y) for name, block in self.constraints.items()}


@dataclass(frozen=True)
class Steps:
    """What :func:`solve` learned about a problem's scale; reused for a nearby problem it saves the probing.

    Attributes
    ----------
    primal_weights, dual_weights : array, dict of str to array
        Squares of the scales that balance the constraint Jacobian.
    curvature : array
        Diagonal bound on the Lagrangian's Hessian.
    coupling : 0-d array
        Norm of the balanced Jacobian. With a batch, one entry an instance, here and below.
    omega : 0-d array
        Primal weight: large values make long dual and short primal steps.
    """

    primal_weights: Array
    dual_weights: dict[str, Array]
    curvature: Array
    coupling: Array
    omega: Array


@dataclass(frozen=True)
class SaddlePoint:
    """Answer of :func:`solve` or :func:`maxmin`: primal y, duals by name, and the residual reached.

    ``history`` holds residuals on the way, ``looks`` the iterations at which :func:`solve` took them.
    """

    y: Array
    duals: dict[str, Array]
    residual: float
    iterations: int
    history: tuple[float, ...] = ()
    looks: tuple[int, ...] = ()
    steps: Steps | None = None


@dataclass(frozen=True)
class SaddleBatch:
    """Answer of :func:`solve_batch`: the best point of every instance, and whether it meets the tolerance.

    Attributes
    ----------
    y, duals : array, dict of str to array
        Shape ``(instances, ...)``.
    residual : array, shape (instances,)
        Relative KKT residuals.
    solved : array of bool, shape (instances,)
        Whether the residual is within the tolerance.
    iterations : int
        Of the whole batch.
    """

    y: Array
    duals: dict[str, Array]
    residual: Array
    solved: Array
    iterations: int


def maxmin(
    problem: SaddleProblem,
    y: Array,
    duals: Mapping[str, Array],
    *,
    eta_1: float,
    eta_2: float,
    T: int,
    T_y: int = 1,
    accelerated: bool = False,
    record: bool = False,
) -> SaddlePoint:
    """Run MaxMin exactly as published (BLOCC, Algorithm 2).

    Parameters
    ----------
    problem : SaddleProblem
    y, duals : array, mapping of str to array
        Starting points ``y_0`` and ``mu_0``.
    eta_1, eta_2 : float
        Fixed primal and dual steps.
    T : int
        Outer (dual) iterations.
    T_y : int
        Primal steps in each; 1 gives the single-loop form for constraints affine in y.
    accelerated : bool
        Extrapolate the duals by ``(t - 1) / (t + 2)`` before each primal step. Give it ``T_y > 1``: a single primal
        step does not keep up with the momentum, and the iterates go on oscillating.
    record : bool
        Compute the KKT residual at every iteration, for plots.

    Returns
    -------
    SaddlePoint
        After exactly T iterations. Nothing is certified: look at ``residual``.
    """
    current, previous = dict(duals), dict(duals)
    history = []
    for t in range(T):
        weight = (t - 1) / (t + 2) if accelerated else 0.0
        half = {name: current[name] + weight * (current[name] - previous[name]) for name in current}
        for _ in range(T_y):
            y = problem.y_set.project(y - eta_1 * problem.lagrangian_gradient(y, half))
        previous = current
        current = {
            name: block.project(half[name] + eta_2 * block.value(y))
            for name, block in problem.constraints.items()
        }
        if record:
            history.append(kkt_residual(problem, y, current))
    return SaddlePoint(y, current, kkt_residual(problem, y, current), T, tuple(history))


def _placed(y_set: ConvexSet, like: Array) -> ConvexSet | PlacedBox:
    """The set, its bounds where the points are if it is a box."""
    return y_set.placed(like) if isinstance(y_set, Box) else y_set


def _relative_residual(
    problem: SaddleProblem,
    y_set: ConvexSet | PlacedBox,
    y: Array,
    duals: Mapping[str, Array],
    values: Mapping[str, Array],
    gradient: Array,
    over: _Over,
) -> Array:
    """The largest of the relative natural residuals of the KKT system and the relative gap, on the device.

    The natural residual ``z - Proj(z - map(z))`` vanishes exactly at saddle points, and bounds the distance to them,
    which a duality gap alone does only through its square root.
    """
    xp = over.xp
    if isinstance(y_set, PlacedBox):
        gap = over.sum(y_set.linear_gaps(y, gradient))
    else:
        gap, _ = y_set.linear_gap(y, gradient)
    dual_residual = over.max(xp.abs(y - y_set.project(y - gradient)))
    size = dual_residual * 0.0
    primal_residual = size
    for name, block in problem.constraints.items():
        dual, value = duals[name], values[name]
        # dual - project(dual + value), with the cone written out
        natural = value if block.equality else xp.minimum(dual, -value)
        primal_residual = xp.maximum(primal_residual, over.max(xp.abs(natural)))
        size = xp.maximum(size, over.max(xp.abs(dual)))
        gap = gap - over.dot(dual, value)
    primal_residual = primal_residual / (1.0 + over.max(xp.abs(y)))
    dual_residual = dual_residual / (1.0 + size)
    gap = xp.abs(gap) / (1.0 + xp.abs(problem.objective(y)))
    return xp.maximum(xp.maximum(primal_residual, dual_residual), gap)


def kkt_residual(problem: SaddleProblem, y: Array, duals: Mapping[str, Array]) -> float:
    """Relative KKT residual of (y, duals): zero exactly at a saddle point.

    Primal feasibility and complementarity relative to ``1 + max|y|``; the Lagrangian's projected gradient relative to
    ``1 + max|dual|``; the duality gap relative to ``1 + |objective|``.
    """
    gradient = problem.lagrangian_gradient(y, duals)
    over = _Over(namespace(y), 0)
    y_set = _placed(problem.y_set, y)
    return float(_relative_residual(problem, y_set, y, duals, problem.values(y), gradient, over))


def residuals(problem: SaddleProblem, y: Array, duals: Mapping[str, Array]) -> LowerResiduals:
    """Certificate quantities of (y, duals) for a convex problem.

    The bound is ``L(y, duals) + min over z in the set of <grad L, z - y>``: by convexity of L in y a lower bound on
    the optimal value, exact along bounded directions. What lies along unbounded ones is ``dual_infeasibility``.
    """
    xp = namespace(y)
    values = problem.values(y)
    gradient = problem.lagrangian_gradient(y, duals)
    objective = float(problem.objective(y))
    set_gap, unsupported = problem.y_set.linear_gap(y, gradient)
    coupling, complementarity, negative, violation, size = 0.0, 0.0, 0.0, 0.0, 0.0
    for name, block in problem.constraints.items():
        dual, value = duals[name], values[name]
        coupling += float(xp.sum(dual * value))
        size = max(size, float(xp.max(xp.abs(dual))))
        if block.equality:
            violation = max(violation, float(xp.max(xp.abs(value))))
        else:
            violation = max(violation, float(xp.max(value)))
            negative = max(negative, -float(xp.min(dual)))
            complementarity = max(complementarity, float(xp.max(xp.abs(dual * value))))
    outside = float(xp.max(xp.abs(y - problem.y_set.project(y))))
    bound = objective + coupling - float(set_gap)
    return LowerResiduals(
        objective=objective,
        bound=bound,
        gap=(objective - bound) / (1.0 + abs(objective)),
        violation=max(violation, outside) / (1.0 + float(xp.max(xp.abs(y)))),
        dual_infeasibility=max(negative, float(xp.max(xp.abs(unsupported)))) / (1.0 + size),
        complementarity=complementarity / (1.0 + abs(objective)),
    )


@dataclass(frozen=True)
class _Over:
    """Reductions over one instance's entries, and how its scalars meet its arrays.

    ``batch`` is the number of leading axes that count instances: 0 for one problem, 1 for a batch.
    """

    xp: Any
    batch: int

    def sum(self, array: Array) -> Array:
        """Sum over an instance's entries."""
        return self.xp.sum(array, axis=self._axes(array))

    def dot(self, one: Array, other: Array) -> Array:
        """Sum over an instance's products of two arrays."""
        shape = (*one.shape[: self.batch], -1)
        if one.ndim != self.batch + 1:
            one, other = self.xp.reshape(one, shape), self.xp.reshape(other, shape)
        return self.xp.vecdot(one, other)

    def max(self, array: Array) -> Array:
        """Largest of an instance's entries."""
        return self.xp.max(array, axis=self._axes(array))

    def _axes(self, array: Array) -> tuple[int, ...] | None:
        return tuple(range(self.batch, array.ndim)) if self.batch else None

    def fit(self, scalar: Array, like: Array) -> Array:
        """One number an instance, shaped to meet an array of all instances."""
        if not self.batch:
            return scalar
        return self.xp.reshape(scalar, scalar.shape + (1,) * (like.ndim - self.batch))

    def ratio(self, top: Array, bottom: Array, otherwise: float = 1.0) -> Array:
        """``top / bottom`` where ``bottom`` is positive."""
        known = bottom > 0
        return self.xp.where(known, top / self.xp.where(known, bottom, 1.0), otherwise)

    def any(self, flags: Array) -> bool:
        """Whether a flag is up for any instance: the host waits for it."""
        return bool(self.xp.any(flags) if self.batch else flags)

    def where(self, condition: Array, one: Array, other: Array) -> Array:
        """``one`` for the instances where the condition holds."""
        return self.xp.where(self.fit(condition, one), one, other)


class _Prober:
    """Random probes of a problem's functions around (y, mu): no matrix is formed.

    Moves are short, and start at a point from which they stay in the set in both directions.
    """

    def __init__(self, problem: SaddleProblem, y: Array, mu: Mapping[str, Array], over: _Over):
        self.problem, self.mu, self.over, self.xp = problem, mu, over, over.xp
        self.box = isinstance(problem.y_set, Box)  # a scaled projection is the plain one only there
        self.length = precision(y) ** 0.25 * (1.0 + over.max(self.xp.abs(y)))
        reach = 2.0 * over.fit(self.length, y)
        self.probes = max(6, min(PROBES, math.prod(y.shape[over.batch :])))
        self.project = _placed(problem.y_set, y).project
        self.base = 0.5 * (self.project(y + reach) + self.project(y - reach))
        self.values = problem.values(self.base)
        self.gradient = problem.lagrangian_gradient(self.base, mu)

    def _ahead(self, direction: Array) -> tuple[Array, Array]:
        """A point a short way along, and what turns a difference to it into a derivative along the direction."""
        peak = self.over.max(self.xp.abs(direction))
        peak = self.xp.where(peak > 0, peak, 1.0)
        step = self.over.fit(self.length / peak, direction) * direction
        return self.project(self.base + step), peak / self.length

    def _slope(self, change: Array, factor: Array) -> Array:
        change = change * self.over.fit(factor, change)
        return self.xp.where(self.xp.isfinite(change), change, 0.0)

    def hessian(self, direction: Array) -> Array:
        """The Lagrangian's Hessian times a direction."""
        moved, factor = self._ahead(direction)
        change = self.problem.lagrangian_gradient(moved, self.mu) - self.gradient
        return self._slope(change, factor)

    def jacobian(self, direction: Array) -> dict[str, Array]:
        """The constraints' Jacobian times a direction."""
        moved, factor = self._ahead(direction)
        return {
            k: self._slope(block.value(moved) - self.values[k], factor)
            for k, block in self.problem.constraints.items()
        }

    def adjoint(self, duals: Mapping[str, Array]) -> Array:
        """The transposed Jacobian times multipliers."""
        total = self.xp.zeros_like(self.base)
        for k, block in self.problem.constraints.items():
            total = total + block.pullback(self.base, duals[k])
        return total

    def root(self, square: Array) -> Array:
        """Square root of what was seen, 1 where nothing was."""
        return self.xp.where(square > 0, self.xp.sqrt(square), 1.0)

    def unit(self, direction: Array) -> Array:
        """The direction at length 1."""
        return direction / self.over.fit(self.root(self.over.dot(direction, direction)), direction)

    def balance(self) -> tuple[Array, dict[str, Array], Array]:
        """Squared scales that balance the Jacobian's rows and columns towards unit 2-norm, and its norm then.

        Row norms are estimated as the mean square of ``J v`` over random v, column norms likewise (after Diamond
        and Boyd 2017, matrix-free equilibration); the norm by power iterations.
        """
        xp, over = self.xp, self.over
        primal = xp.ones_like(self.base)
        duals = {k: xp.ones_like(value) for k, value in self.values.items()}
        if not duals:
            return primal, duals, self.length * 0.0
        random = generator(0)
        for _ in range(SWEEPS):
            columns, rows = primal * 0.0, {k: v * 0.0 for k, v in duals.items()}
            for _ in range(self.probes):
                for k, change in self.jacobian(primal * random_probe(primal, random)).items():
                    rows[k] = rows[k] + (duals[k] * change) ** 2
                sent = {k: v * random_probe(v, random) for k, v in duals.items()}
                columns = columns + (primal * self.adjoint(sent)) ** 2
            if self.box:
                primal = primal / xp.sqrt(self.root(columns / self.probes))
            duals = {k: v / xp.sqrt(self.root(rows[k] / self.probes)) for k, v in duals.items()}
        direction, coupling = self.unit(random_probe(primal, random)), self.length * 0.0
        for _ in range(POWERS):
            image = self.jacobian(primal * direction)
            back = primal * self.adjoint({k: duals[k] ** 2 * v for k, v in image.items()})
            coupling = xp.sqrt(xp.sqrt(over.dot(back, back)))
            direction = self.unit(back)
        return primal**2, {k: v**2 for k, v in duals.items()}, MARGIN * coupling

    def curvature(self) -> Array:
        """Diagonal bound on the Hessian: its row norms, seen in probes, scaled up to a bound by power iterations."""
        xp, over = self.xp, self.over
        square, sent = xp.zeros_like(self.base), xp.zeros_like(self.base)
        random = generator(1)
        for _ in range(self.probes):
            direction = random_probe(self.base, random)
            square, sent = square + self.hessian(direction) ** 2, sent + direction**2
        found = xp.sqrt(square / sent)
        rounding = over.fit(self.rounding(self.gradient), found)
        found = xp.where(found > rounding, found, 0.0)
        largest = over.fit(over.max(found), found)
        # nearly flat directions are floored: the power iteration divides by their curvature
        found = xp.maximum(found, 1e-6 * largest) if self.box else found * 0.0 + largest
        scale = xp.where(found > 0, 1.0 / self.root(found), 0.0)
        direction, bound = self.unit(random_probe(found, random)), self.length * 0.0
        for _ in range(POWERS):
            change = scale * self.hessian(scale * direction)
            bound = xp.sqrt(over.dot(change, change))
            direction = self.unit(change)
        return found * over.fit(MARGIN * xp.where(bound > 0, bound, 1.0), found)

    def rounding(self, value: Array) -> Array:
        """Size of the rounding errors in a derivative of what has this value."""
        return 100.0 * precision(value) * self.over.max(self.xp.abs(value)) / self.length

    def responses(self) -> tuple[tuple[Array, ...], ...]:
        """Hessian and Jacobian along one direction: to tell whether they are the same elsewhere."""
        direction = random_probe(self.base, generator(2))
        return (self.hessian(direction),), tuple(self.jacobian(direction).values())

    def omega(self, primal: Array, duals: Mapping[str, Array]) -> Array:
        """First primal weight: the balanced gradient's length over that of the constraints' values."""
        size = self.length * 0.0
        for k, value in self.values.items():
            size = size + self.over.dot(duals[k] * value, value)
        steep = self.xp.sqrt(self.over.dot(primal * self.gradient, self.gradient))
        guess = self.over.ratio(steep, self.xp.where(steep > 0, self.xp.sqrt(size), 0.0))
        return self.xp.minimum(self.xp.maximum(guess, 1e-3), 1e3)


@dataclass
class _Point:
    """A primal-dual point and its residual, one an instance."""

    y: Array
    mu: dict[str, Array]
    residual: Array


class _Iteration:
    """The reflected, anchored primal-dual iteration behind :func:`solve`, on one problem or on a batch of them.

    A step maps ``z = (y, mu)`` to ``T(z)``: a projected primal step, then a dual step at the point reflected through
    it. The next ``z`` lies between the reflection ``2 T(z) - z`` and the anchor, where the epoch began. Reflections are
    projected, so that no function is called outside the set.
    """

    def __init__(
        self, problem: SaddleProblem, y: Array, duals: Mapping[str, Array] | None, batch: int = 0
    ):
        self.problem, self.xp = problem, namespace(y)
        self.over = _Over(self.xp, batch)
        self.y_set = _placed(problem.y_set, y)
        self.project = self.y_set.project
        self.y = self.project(y)
        values = problem.values(self.y)
        self.mu = {
            k: block.project(duals[k]) if duals else values[k] * 0.0
            for k, block in problem.constraints.items()
        }
        gradient = problem.lagrangian_gradient(self.y, self.mu)
        self.steep = self.over.max(self.xp.abs(gradient))
        self.zero = self.steep * 0.0
        residual = _relative_residual(
            problem, self.y_set, self.y, self.mu, values, gradient, self.over
        )
        self.here = self.best = _Point(self.y, dict(self.mu), residual)
        self.values = values

    def begin(self, steps: Steps | None) -> None:
        """Find step sizes and set the anchor."""
        self.seen: tuple[tuple[Array, ...], ...] | None = None
        if steps is None:
            prober = _Prober(self.problem, self.y, self.mu, self.over)
            weights, duals, coupling = prober.balance()
            omega = prober.omega(weights, duals)
            steps = Steps(weights, duals, prober.curvature(), coupling, omega)
            self.seen = prober.responses()
        self.steps = steps
        self.stretch, self.most = self.zero + 1.0, self.zero + (STRETCH if self.mu else 1.0)
        self.total = self.probed = 0
        self.constant = False  # whether the scales were seen to be the same elsewhere
        self.anchored = True
        self.anchor = self.here
        self.last = self.y
        self.count = self.zero
        self.reference = self.previous = self.zero + math.inf
        self._set_steps()

    def _set_steps(self) -> None:
        steps, over, xp = self.steps, self.over, self.xp
        inverse = steps.curvature
        if self.mu:
            inverse = (
                inverse + over.fit(steps.omega * steps.coupling, inverse) / steps.primal_weights
            )
        # where neither curvature nor coupling is met, a step goes ten times the size of y at most
        steep = 0.1 * self.steep / (1.0 + over.max(xp.abs(self.y))) + 1e-30
        self.inverse = xp.where(inverse > 0, inverse, over.fit(steep, inverse))
        self.tau = 1.0 / self.inverse
        ratio = self.stretch * over.ratio(steps.omega, steps.coupling)
        self.sigma = {k: over.fit(ratio, w) * w for k, w in steps.dual_weights.items()}

    def step(self, look: bool) -> bool:
        """One iteration; with ``look``, residuals and restarts too. Returns whether it looked and restarted."""
        xp, over, project = self.xp, self.over, self.project
        blocks = self.problem.constraints
        y, mu = self.y, self.mu
        gradient = self.problem.lagrangian_gradient(y, mu)
        y_new = project(y - self.tau * gradient)
        ahead = y_new + y_new  # what is computed here and not passed on yet is changed in place
        ahead -= y
        ahead = project(ahead)
        mu_new = {}
        for k, block in blocks.items():
            dual = self.sigma[k] * block.value(ahead)
            dual += mu[k]
            mu_new[k] = dual if block.equality else xp.maximum(dual, 0.0)
        self.total += 1
        if not blocks:  # nothing is coupled: Nesterov's momentum instead of the anchor
            weight = over.fit(self.count / (self.count + 3.0), y)
            self.y = project(y_new + weight * (y_new - self.last))
            self.last = y_new
        elif self.anchored:
            weight = (self.count + 1.0) / (self.count + 2.0)
            self.y = self._anchored(ahead, self.anchor.y, weight)
            self.mu = {}
            for k, block in blocks.items():
                dual = mu_new[k] + mu_new[k]
                dual -= mu[k]
                if not block.equality:
                    dual = xp.maximum(dual, 0.0)
                self.mu[k] = self._anchored(dual, self.anchor.mu[k], weight)
        else:
            self.y, self.mu = y_new, mu_new
        self.count = self.count + 1.0
        return look and self._look(y, mu, gradient, y_new, mu_new)

    def _anchored(self, there: Array, anchor: Array, weight: Array) -> Array:
        """The point between an anchor and where a step led."""
        away = there - anchor
        away *= self.over.fit(weight, away)
        away += anchor
        return away

    def _norms(self, dy: Array, dmu: Mapping[str, Array]) -> tuple[Array, Array]:
        """Squares of balanced lengths."""
        dual = self.zero
        for k in dmu:
            dual = dual + self.over.dot(dmu[k] / self.steps.dual_weights[k], dmu[k])
        return self.over.dot(dy / self.steps.primal_weights, dy), dual

    def _length(self, dy: Array, moved_mu: Array) -> Array:
        """Length in the metric of the guaranteed step sizes, its cross term left out."""
        ratio = self.over.ratio(self.steps.omega, self.steps.coupling)
        return self.xp.sqrt(self.over.dot(self.inverse * dy, dy) + moved_mu / ratio)

    def _look(
        self,
        y: Array,
        mu: Mapping[str, Array],
        gradient: Array,
        y_new: Array,
        mu_new: dict[str, Array],
    ) -> bool:
        """Judge the step from (y, mu) to (y_new, mu_new), and restart where that is due."""
        problem, over, xp, steps = self.problem, self.over, self.xp, self.steps
        values, values_new = problem.values(y), problem.values(y_new)
        gradient_new = problem.lagrangian_gradient(y_new, mu_new)
        residual = _relative_residual(
            problem, self.y_set, y_new, mu_new, values_new, gradient_new, over
        )
        dy, dmu = y_new - y, {k: mu_new[k] - mu[k] for k in mu_new}
        moved_y, moved_mu = self._norms(dy, dmu)
        length = self._length(dy, moved_mu)
        size = over.max(xp.abs(y))
        coupling, rounding = self.zero, over.sum(xp.abs(dy)) * over.max(xp.abs(gradient))
        for k in dmu:
            coupling = coupling + over.dot(dmu[k], values_new[k] - values[k])
            terms = xp.abs(values[k]) + over.fit(size, values[k])
            rounding = rounding + over.dot(xp.abs(dmu[k]), terms)
        rounding = 100.0 * precision(y) * rounding
        bend = over.dot(gradient_new - gradient, dy) - coupling
        # the step sizes are right if the step met no more curvature and coupling than they were set for
        held = over.dot(steps.curvature * dy, dy)
        limit = steps.coupling * xp.sqrt(moved_y * moved_mu)
        usable = xp.isfinite(residual) & xp.isfinite(length) & xp.isfinite(bend)
        wrong = (
            ~usable | (bend > 1.05 * held + rounding) | (xp.abs(coupling) > 1.05 * limit + rounding)
        )
        # steps of guaranteed length do not grow much in an epoch; stretched ones may, and are then cut
        wild = (self.stretch > 1.0) & ~wrong & (length > 2.0 * self.reference)
        bad = wrong | wild
        first = ~xp.isfinite(self.reference)
        sufficient = length <= 0.4 * self.reference
        necessary = (length <= 0.8 * self.reference) & (length > self.previous)
        long = self.count >= 0.1 * self.total
        restart = bad | (~first & (sufficient | necessary | long))
        # what is left of the length that the epoch began with; a step misjudged says nothing
        self.left = xp.where(bad | first, self.zero, over.ratio(length, self.reference, 0.0))
        self.reference = xp.where(first, length, self.reference)
        self.previous = length

        self.here = _Point(y_new, mu_new, residual)
        self.values, self.move, self.dual_move = values_new, dy, dmu
        if over.batch:  # one problem ends at the first point that will do
            self.best = self._where(residual < self.best.residual, self.here, self.best)
        self.size = size
        restarts = over.any(restart)
        self.misjudged = restarts and over.any(wrong)
        if not restarts:
            return False
        shorter = xp.maximum(CUT * self.stretch, self.zero + 1.0)
        self.most = xp.where(wild, shorter, self.most)
        longer = xp.where(restart & ~bad, GROW * self.stretch, self.stretch)
        self.stretch = xp.minimum(longer, self.most)
        start = self._where(bad & ~(residual < self.anchor.residual), self.anchor, self.here)
        self._balance(restart & ~bad)
        learnable = self.misjudged and over.any(wrong & usable)
        if not self.constant and (learnable or self.total - self.probed >= 100):
            self._probe_again(start, restart)
        if self.misjudged:
            self._raise_to(wrong, usable, bend, coupling)
        moving = _Point(self.y, self.mu, residual)
        self.anchor = self._where(restart, start, self.anchor)
        moving = self._where(restart, start, moving)
        self.y, self.mu = moving.y, moving.mu
        self.last = over.where(restart, start.y, self.last)
        self.count = xp.where(restart, self.zero, self.count)
        self._set_steps()
        # steps that were wrong say nothing of the length of the next
        length = xp.where(bad, self.zero + math.inf, self._length(dy, self._norms(dy, dmu)[1]))
        self.reference = xp.where(restart, length, self.reference)
        self.previous = xp.where(restart, self.zero + math.inf, self.previous)
        return True

    def _where(self, condition: Array, one: _Point, other: _Point) -> _Point:
        over = self.over
        return _Point(
            over.where(condition, one.y, other.y),
            {k: over.where(condition, v, other.mu[k]) for k, v in one.mu.items()},
            self.xp.where(condition, one.residual, other.residual),
        )

    def _balance(self, where: Array) -> None:
        """Set the primal weight from the distances travelled since the anchor, smoothed."""
        xp, omega = self.xp, self.steps.omega
        y, mu, anchor = self.here.y, self.here.mu, self.anchor
        noise = (10.0 * precision(y)) ** 2
        size_y, size_mu = self._norms(y, mu)
        far_y, far_mu = self._norms(y - anchor.y, {k: mu[k] - anchor.mu[k] for k in mu})
        went_y, went_mu = far_y > noise * (1.0 + size_y), far_mu > noise * (1.0 + size_mu)
        both = where & went_y & went_mu
        ratio = xp.sqrt(xp.where(both, far_mu, 1.0) / xp.where(both, far_y, 1.0))
        # duals at rest leave room for longer primal steps, until the curvature limits these
        held = self.over.max(self.steps.curvature * self.steps.primal_weights)
        limit = self.over.ratio(held, self.steps.coupling, 0.0)
        rested = where & went_y & ~went_mu & (limit < omega) & (limit > 0)
        smaller = xp.maximum(0.3 * omega, limit)
        omega = xp.where(both, xp.sqrt(omega * ratio), xp.where(rested, smaller, omega))
        self.steps = replace(self.steps, omega=omega)

    def _probe_again(self, start: _Point, restart: Array) -> None:
        """Learn the scales anew where an epoch starts, unless the functions respond there as they did elsewhere."""
        over, xp, old = self.over, self.xp, self.steps
        self.probed = self.total
        prober = _Prober(self.problem, start.y, start.mu, over)
        before, self.seen = self.seen, prober.responses()
        if before is None:
            return
        excess = [xp.max(self.zero)] * 2
        values = (prober.gradient,), tuple(prober.values.values())
        for i, (now, then) in enumerate(zip(self.seen, before, strict=True)):
            for one, other, value in zip(now, then, values[i], strict=True):
                allowed = 1e-3 * xp.max(xp.abs(other)) + xp.max(prober.rounding(value))
                excess[i] = xp.maximum(excess[i], xp.max(xp.abs(one - other)) - allowed)
        told = xp.stack(excess)
        bends, joins = (float(told[i]) > 0 for i in range(2))
        self.constant = not (bends or joins)
        weights, duals, coupling = old.primal_weights, old.dual_weights, old.coupling
        if joins:
            weights, duals, coupling = prober.balance()
        curvature = prober.curvature() if bends or joins else old.curvature
        self.steps = Steps(
            over.where(restart, weights, old.primal_weights),
            {k: over.where(restart, v, old.dual_weights[k]) for k, v in duals.items()},
            over.where(restart, curvature, old.curvature),
            xp.where(restart, coupling, old.coupling),
            old.omega,
        )

    def _raise_to(self, bad: Array, usable: Array, bend: Array, coupling: Array) -> None:
        """Set curvature and coupling to no less than what the misjudged step met.

        Functions that are not finite where it went tell only that it went too far.
        """
        over, xp, steps, dy = self.over, self.xp, self.steps, self.move
        one = self.zero + 1.0
        shorter = xp.where(bad & ~usable, 4.0 * one, one)
        met = over.ratio(1.1 * bend, over.dot(steps.curvature * dy, dy))
        curved = xp.where(bad & usable & (met > 1.0), met, shorter)
        moved_y, moved_mu = self._norms(dy, self.dual_move)
        met = over.ratio(1.1 * xp.abs(coupling), xp.sqrt(moved_y * moved_mu), 0.0)
        joined = xp.where(bad & usable, xp.maximum(met, steps.coupling), steps.coupling * shorter)
        curvature = steps.curvature * over.fit(curved, dy)
        self.steps = replace(steps, curvature=curvature, coupling=joined)


def solve(
    problem: SaddleProblem,
    y: Array,
    duals: Mapping[str, Array] | None = None,
    *,
    tol: float,
    steps: Steps | None = None,
    max_iterations: int = MAX_ITERATIONS,
    check_every: int = 20,
    name: str = "lower level",
) -> SaddlePoint:
    """Saddle point to a certified relative KKT residual: the production form of MaxMin.

    Condat-Vu primal-dual steps with diagonal preconditioning, anchored at the start of each epoch (Halpern) and
    reflected, with restarts and a primal weight from the distances travelled, as in PDLP's successors (Lu and Yang
    2024, arXiv:2407.16144). Step sizes come from probes of the functions, and every look checks that the step
    just made met no more curvature and coupling than they allow for; where it did, they are learned anew.

    Parameters
    ----------
    problem : SaddleProblem
        Convex, smooth.
    y : array
        Starting point; projected on the set first.
    duals : mapping of str to array, optional
        Starting multipliers, zero by default.
    tol : float
        Relative KKT residual to reach (:func:`kkt_residual`).
    steps : Steps, optional
        From the answer of a nearby problem.
    max_iterations : int
    check_every : int
        Iterations between looks from the host.
    name : str
        For error messages.

    Returns
    -------
    SaddlePoint
        With the residual at every look as its ``history``.

    Raises
    ------
    InvalidInputError
        If ``tol`` is negative or NaN.
    LowerInfeasibleError, LowerUnboundedError
        With a certificate found on the way.
    LowerNotSolvedError
        If the residual is not reached in ``max_iterations``.
    """
    if not tol >= 0:
        raise InvalidInputError(f"tol must be at least 0, got {tol}")
    run = _Iteration(problem, y, duals)
    residual = float(run.here.residual)
    history, looks = [residual], [0]
    if not (math.isfinite(residual) and math.isfinite(float(run.steep))):
        raise LowerNotSolvedError(f"{name}: its functions are not finite at the starting point")
    if residual <= tol:
        return SaddlePoint(run.y, run.mu, residual, 0, tuple(history), (0,), steps)
    if max_iterations > 0:
        run.begin(steps)
    best = _Best(1e6 * precision(y), 10 * check_every)
    iteration, wasted, due = 0, 0, 2
    wait = due
    for iteration in range(1, max_iterations + 1):
        look = iteration in (due, max_iterations)
        restarted = run.step(look)
        if not look:
            continue
        # steps that are new or were wrong are looked at soon, lest they lead far astray
        wait = 2 if run.misjudged else min(4 * wait, max(check_every, iteration // 10))
        due = iteration + wait
        residual = float(run.here.residual)
        history.append(residual)
        looks.append(iteration)
        wasted = 0 if math.isfinite(residual) else wasted + 1
        if wasted:  # an answer where functions end is seldom reached: not worth a long wait
            best.horizon = 1_000
        if wasted > 15:  # steps have shrunk a billionfold
            raise LowerNotSolvedError(
                f"{name}: its functions are not finite at points that the solver reached"
            )
        best.see(residual, iteration)
        if residual <= max(tol, best.floor(iteration)):
            told = tuple(history), tuple(looks)
            return SaddlePoint(run.here.y, run.here.mu, residual, iteration, *told, run.steps)
        if best.stalled(iteration):
            break
        if not math.isfinite(residual):
            continue
        if wait >= check_every:
            _raise_if_infeasible(problem, run, name)
        if restarted:
            idle = float(run.left) > 0.5
            if idle or float(run.size) > 1e9:
                _raise_if_unbounded(problem, run, name)
            # without an answer, steps settle to a ray that proves it: soonest without an anchor
            run.anchored = not (idle and run.anchored)
    raise LowerNotSolvedError(
        f"{name}: relative KKT residual {residual:.2e} after {iteration} iterations, asked for {tol:.1e}. "
        "Scale the problem, bound y, or loosen tol"
    )


def solve_batch(
    problem: SaddleProblem,
    y: Array,
    duals: Mapping[str, Array] | None = None,
    *,
    tol: float,
    max_iterations: int = 20_000,
    check_every: int = 20,
) -> SaddleBatch:
    """Many saddle points at once (scenarios, folds, starts): the iteration of :func:`solve` on arrays of all instances.

    Instances share nothing but the calls: each has step sizes, restarts and a residual of its own, chosen by masks.
    All go on until the last is solved; the best point of each is kept.

    Parameters
    ----------
    problem : SaddleProblem
        Its functions take and return arrays whose first axis counts instances: the objective, one number each, shape
        ``(instances,)``; gradients in the shape of y; constraint values ``(instances, ...)``. The set must be a
        :class:`blocc.Box`.
    y : array, shape (instances, ...)
        Starting points.
    duals : mapping of str to array, optional
        Starting multipliers, zero by default.
    tol : float
        Relative KKT residual to reach in every instance.
    max_iterations, check_every : int

    Returns
    -------
    SaddleBatch
        Nothing is raised for an instance without an answer: look at ``solved``.

    Raises
    ------
    InvalidInputError
        If ``tol`` is negative or NaN, the set is no box, or the objective does not return one number an instance.
    LowerNotSolvedError
        If the functions are not finite at a starting point.
    """
    if not tol >= 0:
        raise InvalidInputError(f"tol must be at least 0, got {tol}")
    if not isinstance(problem.y_set, Box):
        raise InvalidInputError(
            f"solve_batch needs a Box as y_set, got {type(problem.y_set).__name__}: other sets would project across "
            "instances. Solve them one by one"
        )
    instances = problem.objective(y).shape
    if len(y.shape) < 2 or instances != y.shape[:1]:
        raise InvalidInputError(
            f"solve_batch: for y of shape {tuple(y.shape)} the objective must return shape ({y.shape[0]},), "
            f"got {tuple(instances)}"
        )
    run = _Iteration(problem, y, duals, batch=1)
    xp = run.xp
    worst = float(xp.max(run.best.residual))
    if not math.isfinite(worst):
        raise LowerNotSolvedError("a batch's functions are not finite at a starting point")
    iteration, due, wait = 0, 2, 2
    if worst > tol and max_iterations > 0:
        run.begin(None)
        for iteration in range(1, max_iterations + 1):
            look = iteration in (due, max_iterations)
            run.step(look)
            if not look:
                continue
            wait = 2 if run.misjudged else min(4 * wait, check_every)
            due = iteration + wait
            if float(xp.max(run.best.residual)) <= tol:
                break
    best = run.best
    return SaddleBatch(best.y, best.mu, best.residual, best.residual <= tol, iteration)


@dataclass
class _Best:
    """The best residual so far and when it last fell: tells rounding level and stalls from progress."""

    rounding: float
    patience: int
    residual: float = math.inf
    halved: float = math.inf
    fell: int = 0
    halved_at: int = 0
    horizon: int = 20_000

    def see(self, residual: float, iteration: int) -> None:
        """Count a residual."""
        if residual < 0.9 * self.residual:
            self.residual, self.fell = residual, iteration
        if residual < 0.5 * self.halved:
            self.halved, self.halved_at = residual, iteration

    def floor(self, iteration: int) -> float:
        """Residual to be content with: at rounding level, once nothing more is gained there."""
        settled = self.residual <= self.rounding and iteration - self.fell >= self.patience
        return 1.1 * self.residual if settled else 0.0

    def stalled(self, iteration: int) -> bool:
        """Whether the residual has not halved in the second half of a long run."""
        return iteration > self.horizon and iteration - self.halved_at > iteration // 2


def _raise_if_infeasible(problem: SaddleProblem, run: _Iteration, name: str) -> None:
    """Raise where a ray proves infeasibility: the direction in which the last step moved the duals.

    ``<ray, c(z)> > 0`` for every z in the set means that no z is feasible (Farkas); convexity bounds it over the set
    from its value and gradient at one point.
    """
    if not run.mu:
        return
    xp, y = run.xp, run.here.y
    size = xp.max(xp.abs(y))
    ray = {k: block.project(run.dual_move[k]) for k, block in problem.constraints.items()}
    length = xp.max(xp.stack([xp.max(xp.abs(r)) for r in ray.values()]))
    length = xp.where(length > 0, length, length + 1.0)
    gradient, slack = y * 0.0, size * 0.0
    for k, block in problem.constraints.items():
        gradient = gradient + block.pullback(y, ray[k] / length)
        slack = slack + xp.sum(ray[k] / length * run.values[k])
    gap, residual = problem.y_set.linear_gap(y, gradient)
    scale, proof, left = 1.0 + size, slack - gap, xp.max(xp.abs(residual))
    # a point could still be feasible proof / left away: call it infeasible only beyond a million sizes of y
    near = max(1e-6, 100.0 * precision(y))
    if bool((proof > 1e5 * precision(y) * scale) & (left * scale <= near * proof)):
        worst = _violations(problem, run.values)
        culprit = max(worst, key=lambda k: worst[k])
        error = LowerInfeasibleError(
            f"{name}: no y satisfies its constraints at this x: constraint {culprit!r} conflicts with the rest "
            f"(smallest violation found {worst[culprit]:.3g}). Change x0, or relax {culprit!r}"
        )
        error.ray = (y, {k: r / length for k, r in ray.items()})
        raise error


def _violations(problem: SaddleProblem, values: Mapping[str, Array]) -> dict[str, float]:
    """Largest violation by block."""
    worst = {}
    for k, value in values.items():
        xp = namespace(value)
        worst[k] = float(xp.max(xp.abs(value) if problem.constraints[k].equality else value))
    return worst


def _raise_if_unbounded(problem: SaddleProblem, run: _Iteration, name: str) -> None:
    """Raise where the objective falls as steeply a billion sizes of y away along the last step, the constraints held.

    One that has a minimum bends on the way: were it quadratic, its minimum would be a million times further out still.
    """
    xp, y, step = run.xp, run.here.y, run.move
    longest = xp.max(xp.abs(step))
    reach = 1e9 * xp.maximum(xp.max(xp.abs(y)), run.zero + 1.0)
    far = problem.y_set.project(y + reach * (step / xp.where(longest > 0, longest, 1.0)))
    gone = far - y
    slopes = [xp.sum(problem.gradient(point) * gone) for point in (y, far)]
    told = xp.stack([xp.max(xp.abs(gone)), *slopes, reach])
    distance, near, slope, wanted = (float(told[i]) for i in range(4))
    if not (distance > 0.1 * wanted and slope < 0 and slope <= (1.0 - 1e-6) * near):
        return
    after = _violations(problem, problem.values(far))
    if all(violation <= 1e-6 * distance for violation in after.values()):
        raise LowerUnboundedError(
            f"{name}: its objective falls without bound (as steeply {distance:.1e} away as where the solver is). "
            "Bound y with y_set, or add a strongly convex term"
        )
