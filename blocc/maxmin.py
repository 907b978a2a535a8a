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
from dataclasses import dataclass, field
from typing import Any

from blocc.arrays import namespace, precision, random_signs
from blocc.errors import (
    InvalidInputError,
    LowerInfeasibleError,
    LowerNotSolvedError,
    LowerUnboundedError,
)
from blocc.model import LowerResiduals
from blocc.sets import Box, ConvexSet, Free

Array = Any

MAX_ITERATIONS = 200_000


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
        return namespace(dual).maximum(dual, dual * 0.0)


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
    """Step sizes that :func:`solve` settled on; reused for a nearby problem they save the probing and adapting."""

    primal_weights: Array
    dual_weights: dict[str, Array]
    eta: Array
    omega: Array


@dataclass(frozen=True)
class SaddlePoint:
    """Answer of :func:`solve` or :func:`maxmin`: primal y, duals by name, and the residual reached."""

    y: Array
    duals: dict[str, Array]
    residual: float
    iterations: int
    history: tuple[float, ...] = ()
    steps: Steps | None = None


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


def _relative_residual(
    problem: SaddleProblem,
    y: Array,
    duals: Mapping[str, Array],
    values: Mapping[str, Array],
    gradient: Array,
) -> Array:
    """0-d device array: the largest of the relative natural residuals of the KKT system and the relative gap.

    The natural residual ``z - Proj(z - map(z))`` vanishes exactly at saddle points, and bounds the distance to them,
    which a duality gap alone does only through its square root.
    """
    xp = namespace(y)
    gap, _ = problem.y_set.linear_gap(y, gradient)
    dual_residual = xp.max(xp.abs(y - problem.y_set.project(y - gradient)))
    size = dual_residual * 0.0
    primal_residual = size
    for name, block in problem.constraints.items():
        natural = duals[name] - block.project(duals[name] + values[name])
        primal_residual = xp.maximum(primal_residual, xp.max(xp.abs(natural)))
        size = xp.maximum(size, xp.max(xp.abs(duals[name])))
        gap = gap - xp.sum(duals[name] * values[name])
    primal_residual = primal_residual / (1.0 + xp.max(xp.abs(y)))
    dual_residual = dual_residual / (1.0 + size)
    gap = xp.abs(gap) / (1.0 + xp.abs(problem.objective(y)))
    return xp.maximum(xp.maximum(primal_residual, dual_residual), gap)


def kkt_residual(problem: SaddleProblem, y: Array, duals: Mapping[str, Array]) -> float:
    """Relative KKT residual of (y, duals): zero exactly at a saddle point.

    Primal feasibility and complementarity relative to ``1 + max|y|``; the Lagrangian's projected gradient relative to
    ``1 + max|dual|``; the duality gap relative to ``1 + |objective|``.
    """
    gradient = problem.lagrangian_gradient(y, duals)
    return float(_relative_residual(problem, y, duals, problem.values(y), gradient))


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


def _diagonals(problem: SaddleProblem, y: Array) -> tuple[Array, dict[str, Array]]:
    """Diagonal step weights for y and every dual, from random probes of the functions (no matrix is formed).

    Rows and columns of the constraint Jacobian are balanced towards unit 2-norm, estimated as the mean square of
    ``J v`` and ``J^T u`` over random signs (after Diamond and Boyd 2017, matrix-free equilibration); the columns are
    weighted by the objective's curvature too, probed in the same way.
    """
    xp = namespace(y)
    probes, sweeps = 6, 3
    values, gradient = problem.values(y), problem.gradient(y)
    primal = xp.ones_like(y)
    duals = {name: xp.ones_like(value) for name, value in values.items()}

    def positive(total: Array) -> Array:
        """Square roots of mean squares; 1 where nothing was seen."""
        return xp.where(total > 0, xp.sqrt(total), xp.ones_like(total))

    def shift(seed: int) -> Array:
        """A small random move that stays in the set where it can."""
        step = 1e-4 * (1.0 + xp.max(xp.abs(y))) * random_signs(y, seed)
        one, other = problem.y_set.project(y + step) - y, problem.y_set.project(y - step) - y
        return xp.where(xp.abs(one) >= xp.abs(other), one, other)

    length = 1e-4 * (1.0 + xp.max(xp.abs(y)))
    for sweep in range(sweeps if values else 0):
        columns = xp.zeros_like(y)
        rows = {name: xp.zeros_like(value) for name, value in values.items()}
        for probe in range(probes):
            seed = probes * sweep + probe
            moved = y + primal * shift(seed)
            for name, block in problem.constraints.items():
                change = duals[name] * (block.value(moved) - values[name]) / length
                rows[name] = rows[name] + change**2 / probes
                signs = random_signs(values[name], seed)
                columns = columns + (primal * block.pullback(y, duals[name] * signs)) ** 2 / probes
        if isinstance(problem.y_set, Box):  # a scaled projection is the plain one only there
            primal = primal / xp.sqrt(positive(columns))
        for name in duals:
            duals[name] = duals[name] / xp.sqrt(positive(rows[name]))
    weights = primal**2
    if isinstance(problem.y_set, Box):
        square = xp.zeros_like(y)
        for probe in range(probes):
            square = (
                square + ((problem.gradient(y + shift(probe)) - gradient) / length) ** 2 / probes
            )
        curvature = xp.where(xp.isfinite(square), xp.sqrt(square), xp.zeros_like(square))
        mean = xp.mean(curvature)
        relative = xp.where(
            mean > 0, curvature / xp.where(mean > 0, mean, mean + 1.0), xp.ones_like(y)
        )
        inverse = xp.mean(weights) / weights if values else xp.zeros_like(y)
        weights = 1.0 / xp.maximum(inverse + relative, xp.full_like(y, 1e-4))
    return weights, {name: scale**2 for name, scale in duals.items()}


def _first_steps(problem: SaddleProblem, y: Array, gradient: Array) -> Steps:
    """Weights by probing, and a first step that is either rejected or moves by a tenth of y's scale."""
    xp = namespace(y)
    primal_weights, dual_weights = _diagonals(problem, y)
    speed = xp.sqrt(xp.sum(primal_weights * gradient * gradient)) + 1e-30
    scale = xp.sqrt(xp.sum((1.0 + y * y) / primal_weights))
    eta = 0.1 * scale / speed
    one = eta * 0.0 + 1.0
    return Steps(
        primal_weights, dual_weights, xp.minimum(eta, one) if problem.constraints else eta, one
    )


def solve(
    problem: SaddleProblem,
    y: Array,
    duals: Mapping[str, Array] | None = None,
    *,
    tol: float,
    steps: Steps | None = None,
    max_iterations: int = MAX_ITERATIONS,
    check_every: int = 20,
    record: bool = False,
    name: str = "lower level",
) -> SaddlePoint:
    """Saddle point to a certified relative KKT residual: the production form of MaxMin.

    Adaptive steps after PDLP (Applegate et al. 2021) extended by the local curvature of the Lagrangian (Condat 2013,
    Vu 2013), restarts from the average, primal weight from the distances travelled.

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
    record : bool
        Keep the residual at every look.
    name : str
        For error messages.

    Returns
    -------
    SaddlePoint

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
    xp = namespace(y)
    y = problem.y_set.project(y)
    blocks = problem.constraints
    values = problem.values(y)
    mu = {k: block.project(duals[k]) if duals else values[k] * 0.0 for k, block in blocks.items()}
    gradient = problem.lagrangian_gradient(y, mu)
    zero = xp.sum(gradient * 0.0)
    if not math.isfinite(float(zero)):
        raise LowerNotSolvedError(f"{name}: its gradient is not finite at the starting point")

    if steps is None:
        steps = _first_steps(problem, y, gradient)
    primal_weights, dual_weights, eta, omega = (
        steps.primal_weights,
        steps.dual_weights,
        steps.eta,
        steps.omega,
    )

    def norms(dy: Array, dmu: Mapping[str, Array]) -> tuple[Array, Array]:
        primal = xp.sum(dy * dy / primal_weights)
        dual = zero
        for k in dmu:
            dual = dual + xp.sum(dmu[k] * dmu[k] / dual_weights[k])
        return primal, dual

    def where(condition: Array, value: Array, otherwise: float) -> Array:
        return xp.where(condition, value, zero + otherwise)

    noise = (10.0 * precision(y)) ** 2
    met, bend = (
        zero,
        zero,
    )  # largest coupling and curvature met since the last restart, by unit move
    restart = _Restart(problem, y, mu)
    history: list[float] = []
    seen_mu = dict(mu)
    best = _Best(1e6 * precision(y), 10 * check_every)

    for iteration in range(max_iterations + 1):
        if iteration % check_every == 0:
            looked = restart.look(y, mu, values, gradient)
            history.append(looked.residual)
            if not math.isfinite(looked.residual):
                raise LowerNotSolvedError(
                    f"{name}: its functions are not finite at a point that the solver reached"
                )
            best.see(looked.residual, iteration)
            if looked.residual <= max(tol, best.floor(iteration)):
                steps = Steps(primal_weights, dual_weights, eta, omega)
                return SaddlePoint(
                    looked.y, looked.duals, looked.residual, iteration, tuple(history), steps
                )
            _raise_if_hopeless(problem, looked, {k: mu[k] - seen_mu[k] for k in mu}, y, name)
            seen_mu = dict(mu)
            if iteration == max_iterations or best.stalled(iteration):
                break
            if looked.restarts:
                y, mu, values, gradient = looked.y, looked.duals, looked.values, looked.gradient
                moved_y, moved_mu = norms(y - restart.y, {k: mu[k] - restart.duals[k] for k in mu})
                size_y, size_mu = norms(y, mu)
                both = (moved_y > noise * (1.0 + size_y)) & (moved_mu > noise * (1.0 + size_mu))
                ratio = xp.sqrt(where(both, moved_mu, 1.0) / where(both, moved_y, 1.0))
                balanced = xp.where(both, xp.sqrt(omega * ratio), omega)
                # below bend / met curvature limits the primal step: a smaller weight would only shrink the dual one
                seen = met > 0
                floor = xp.where(seen, bend / where(seen, met, 1.0), omega)
                omega = xp.maximum(balanced, xp.minimum(omega, floor))
                met, bend = zero, zero
                restart.begin(y, mu)
        y_new = problem.y_set.project(y - (eta / omega) * primal_weights * gradient)
        values_new = problem.values(y_new)
        mu_new = {
            k: block.project(
                mu[k] + (eta * omega) * dual_weights[k] * (2.0 * values_new[k] - values[k])
            )
            for k, block in blocks.items()
        }
        gradient_new = problem.lagrangian_gradient(y_new, mu_new)
        dy, dmu = y_new - y, {k: mu_new[k] - mu[k] for k in mu}
        moved_y, moved_mu = norms(dy, dmu)
        coupling = zero
        for k in mu:
            coupling = coupling + xp.sum(dmu[k] * (values_new[k] - values[k]))
        curvature = xp.sum((gradient_new - gradient) * dy) - coupling
        limit = xp.abs(coupling) + xp.maximum(curvature, zero)
        length = omega * moved_y + moved_mu / omega
        told = limit > 1e-14 * length  # otherwise the step met neither coupling nor curvature
        allowed = 0.5 * length / xp.where(told, limit, length + 1.0)
        finite = xp.isfinite(limit) & xp.isfinite(length)
        allowed = xp.where(finite, xp.where(told, allowed, eta * 2.0), eta * 0.25)
        accept = finite & (eta <= allowed)
        moves = told & (moved_y > 0)
        bend = xp.maximum(bend, where(moves, curvature / where(moves, moved_y, 1.0), 0.0))
        moves = moves & (moved_mu > 0)
        cosine = xp.abs(coupling) / xp.sqrt(
            where(moves, moved_y, 1.0) * where(moves, moved_mu, 1.0)
        )
        met = xp.maximum(met, where(moves, cosine, 0.0))
        used = eta
        count = float(iteration + 2)
        eta = xp.minimum((1.0 - count**-0.3) * allowed, (1.0 + count**-0.6) * eta)
        if not blocks:
            eta = xp.minimum(0.9 * allowed, 2.0 * used)
        y = xp.where(accept, y_new, y)
        gradient = xp.where(accept, gradient_new, gradient)
        for b in mu:
            mu[b] = xp.where(accept, mu_new[b], mu[b])
            values[b] = xp.where(accept, values_new[b], values[b])
        restart.add(xp.where(accept, used, zero), y, mu)
    raise LowerNotSolvedError(
        f"{name}: relative KKT residual {looked.residual:.2e} after {iteration} iterations, asked for {tol:.1e}. "
        "Scale the problem, bound y, or loosen tol"
    )


@dataclass
class _Look:
    """A candidate (current or average) at a look: the better of the two."""

    y: Array
    duals: dict[str, Array]
    values: dict[str, Array]
    gradient: Array
    residual: float
    restarts: bool = False


@dataclass
class _Best:
    """The best residual so far and when it last fell: tells rounding level and stalls from progress."""

    rounding: float
    patience: int
    residual: float = math.inf
    halved: float = math.inf
    fell: int = 0
    halved_at: int = 0

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
        return iteration > 20_000 and iteration - self.halved_at > iteration // 2


class _Restart:
    """Averages since the last restart, and when to restart (PDLP's residual criteria)."""

    def __init__(self, problem: SaddleProblem, y: Array, duals: Mapping[str, Array]):
        self.problem = problem
        self.reference = math.inf
        self.previous = math.inf
        self.total_looks = 0
        self.begin(y, duals)

    def begin(self, y: Array, duals: Mapping[str, Array]) -> None:
        """Start a new epoch at (y, duals)."""
        self.y, self.duals = y, dict(duals)
        self.sum_y = y * 0.0
        self.sum_duals = {k: v * 0.0 for k, v in duals.items()}
        xp = namespace(y)
        self.weight = xp.sum(y * 0.0)
        self.looks = 0

    def add(self, weight: Array, y: Array, duals: Mapping[str, Array]) -> None:
        """Count an iterate into the average."""
        self.sum_y = self.sum_y + weight * y
        for k in duals:
            self.sum_duals[k] = self.sum_duals[k] + weight * duals[k]
        self.weight = self.weight + weight

    def look(
        self, y: Array, duals: Mapping[str, Array], values: dict[str, Array], gradient: Array
    ) -> _Look:
        """Residuals of the current and the average iterate; the better one, and whether to restart from it."""
        xp = namespace(y)
        problem = self.problem
        self.looks += 1
        self.total_looks += 1
        current = _relative_residual(problem, y, duals, values, gradient)
        if self.looks == 1:  # nothing averaged yet
            residual = float(current)
            if self.reference == math.inf:
                self.reference = residual
            return _Look(y, dict(duals), dict(values), gradient, residual)
        weight = xp.where(self.weight > 0, self.weight, xp.ones_like(self.weight))
        mean_y = problem.y_set.project(self.sum_y / weight)
        mean_duals = {k: v / weight for k, v in self.sum_duals.items()}
        mean_values = problem.values(mean_y)
        mean_gradient = problem.lagrangian_gradient(mean_y, mean_duals)
        mean = _relative_residual(problem, mean_y, mean_duals, mean_values, mean_gradient)
        mean = xp.where((self.weight > 0) & xp.isfinite(mean), mean, current * 2.0 + 1.0)
        better = xp.minimum(current, mean)
        pair = xp.stack([current, better])
        residual_current, residual = (float(pair[i]) for i in range(2))
        if residual < residual_current:
            found = _Look(mean_y, mean_duals, mean_values, mean_gradient, residual)
        else:
            found = _Look(y, dict(duals), dict(values), gradient, residual)
        sufficient = residual <= 0.2 * self.reference
        necessary = residual <= 0.8 * self.reference and residual > self.previous
        long = self.looks >= max(5.0, 0.36 * self.total_looks)
        self.previous = residual
        if sufficient or necessary or long:
            found.restarts = True
            self.reference = residual
            self.previous = math.inf
        return found


def _raise_if_hopeless(
    problem: SaddleProblem, looked: _Look, moved: Mapping[str, Array], y: Array, name: str
) -> None:
    """Raise where a ray proves infeasibility, or y runs away with an objective that falls without bound.

    The ray is where the duals went since the last look. ``<ray, c(z)> > 0`` for every z in the set means that no z is
    feasible (Farkas); convexity bounds it over the set from its value and gradient at one point.
    """
    xp = namespace(y)
    size = xp.max(xp.abs(y))
    slack = unsupported = size * 0.0 - 1.0
    ray = {k: block.project(moved[k]) for k, block in problem.constraints.items()}
    if ray:
        length = xp.max(xp.stack([xp.max(xp.abs(r)) for r in ray.values()]))
        length = xp.where(length > 0, length, length + 1.0)
        gradient, slack = y * 0.0, size * 0.0
        for k, block in problem.constraints.items():
            gradient = gradient + block.pullback(looked.y, ray[k] / length)
            slack = slack + xp.sum(ray[k] / length * looked.values[k])
        gap, residual = problem.y_set.linear_gap(looked.y, gradient)
        slack, unsupported = slack - gap, xp.max(xp.abs(residual))
    told = xp.stack([size, slack, unsupported])
    largest, proof, left = (float(told[i]) for i in range(3))
    scale = 1.0 + largest
    # a point could still be feasible proof / left away: call it infeasible only beyond a million sizes of y
    if (
        proof > 1e5 * precision(y) * scale
        and left * scale <= max(1e-6, 100.0 * precision(y)) * proof
    ):
        worst = {
            k: float(xp.max(xp.abs(v) if problem.constraints[k].equality else v))
            for k, v in looked.values.items()
        }
        culprit = max(worst, key=lambda k: worst[k])
        error = LowerInfeasibleError(
            f"{name}: no y satisfies its constraints at this x: constraint {culprit!r} conflicts with the rest "
            f"(smallest violation found {worst[culprit]:.3g}). Change x0, or relax {culprit!r}"
        )
        error.ray = (looked.y, {k: r / length for k, r in ray.items()})
        raise error
    if largest > 1e9:
        slope = float(xp.sum(problem.gradient(y) * y)) / float(xp.sum(y * y)) ** 0.5
        feasible = all(
            float(xp.max(xp.abs(v) if problem.constraints[k].equality else v)) < 1e-3 * largest
            for k, v in problem.values(y).items()
        )
        if slope < 0 and feasible:
            raise LowerUnboundedError(
                f"{name}: its objective falls without bound (|y| reached {largest:.1e}). "
                "Bound y with y_set, or add a strongly convex term"
            )
