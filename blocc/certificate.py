"""The certificate: what is true of an answer, recomputed from the problem's own functions after the solve.

Nothing here is copied from the iteration: the lower level is solved again, cold, at the answer's x, its duals bound
the lower-level value, and the stationarity comes from fresh saddle points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from blocc.arrays import device_of, namespace, random_normal
from blocc.errors import LowerLevelError
from blocc.methods.descent import stationarity
from blocc.methods.gradient_sampling import LARGEST, RADIUS, kink_stationarity
from blocc.model import HasConvexConcaveStep, LowerResiduals, Model, Saddle
from blocc.penalty import Evaluation, Penalty, Response
from blocc.sets import Box, reach

Array = Any

MOVE = 1e-3  # relative, of the probes for descent

LIMITS = {
    "lower_gap": "g(x, y) - v(x), relative: how far y is from solving the lower level",
    "violation": "largest relative violation of a constraint on y",
    "dual_infeasibility": "relative gradient of the Lagrangian that no multiplier accounts for",
    "complementarity": "relative product of duals and slacks",
    "stationarity": "relative first-order residual of the upper problem in x",
}


@dataclass(frozen=True)
class Certificate:
    """Residuals of an answer (x, y, duals), every one recomputed from the problem.

    Attributes
    ----------
    lower_gap : float
        Relative lower-level gap ``(g(x, y) - bound) / (1 + |g(x, y)|)``, with the bound on v(x) from the duals.
    violation : float
        Largest relative violation, of lower-level and of coupling upper constraints.
    dual_infeasibility, complementarity : float
        Relative residuals of the lower level's KKT system.
    stationarity : float
        Relative first-order residual in x, of F_gamma at ``gamma`` (of the true response where gamma is ``inf``):
        the projected gradient, or, for models with a convex-concave step, the decrease that the step promises.
    radius : float
        Zero, or at a kink the relative radius within which gradients were combined (Goldstein's stationarity).
    moved : float
        Zero, or the relative distance from the point where stationarity holds to the returned one, which was reached
        from there by a move that does not raise the true upper value.
    gamma : float
        See stationarity.
    response_objective : float
        True upper value f(x, y_g(x)) at the lower level's own answer.
    response_violation : float
        Violation of the coupling upper constraints at the lower level's own answer.
    penalized_objective : float
        F_gamma(x): a lower bound on the true upper value at this x (finite gamma only; equals it where inf).
    bound : float or None
        Proven lower bound on the optimum, None where there is none.
    bound_gap : float or None
        ``(objective - bound) / (1 + |objective|)``.
    """

    lower_gap: float
    violation: float
    dual_infeasibility: float
    complementarity: float
    stationarity: float
    gamma: float
    response_objective: float
    response_violation: float
    penalized_objective: float
    bound: float | None
    bound_gap: float | None
    radius: float = 0.0
    moved: float = 0.0

    def lower_ok(self, tol: float = 1e-6) -> bool:
        """Whether y solves the lower level at x, and every constraint holds, within tol."""
        values = (self.lower_gap, self.violation, self.dual_infeasibility, self.complementarity)
        return all(value <= tol for value in values) and not any(
            math.isnan(value) for value in values
        )

    def ok(self, tol: float = 1e-6) -> bool:
        """Whether the lower level is solved and x is stationary (or proven optimal), within tol."""
        return self.lower_ok(tol) and (self.stationarity <= tol or self.optimal(tol))

    def optimal(self, tol: float = 1e-6) -> bool:
        """Whether the bound proves global optimality within tol."""
        return self.lower_ok(tol) and self.bound_gap is not None and self.bound_gap <= tol

    def to_dict(self) -> dict[str, float | None]:
        """Plain dictionary of all fields."""
        return asdict(self)

    def __str__(self) -> str:
        # adding zero turns -0.0 into 0.0
        rows = [
            f"  {name:<22}{getattr(self, name) + 0.0:>12.2e}   {LIMITS[name]}" for name in LIMITS
        ]
        rows.append(
            f"  {'gamma':<22}{self.gamma:>12.4g}   at which stationarity was measured (inf: true response)"
        )
        rows.append(
            f"  {'response_objective':<22}{self.response_objective:>12.6g}   f at the lower level's own answer"
        )
        if self.radius:
            rows.append(
                f"  {'radius':<22}{self.radius:>12.1e}   a kink: gradients combined within this distance"
            )
        if self.moved:
            rows.append(
                f"  {'moved':<22}{self.moved:>12.1e}   from there to x, without loss of the true objective"
            )
        if self.bound is None:
            rows.append(f"  {'bound':<22}{'none':>12}   no convex relaxation, so no proven bound")
        else:
            rows.append(
                f"  {'bound':<22}{self.bound:>12.6g}   proven; relative gap {self.bound_gap:.2e}"
            )
        return "\n".join(["certificate", *rows])


@dataclass(frozen=True)
class Certified:
    """An answer with its certificate."""

    x: Array
    y: Array
    objective: float
    lower: Saddle
    duals: Mapping[str, Array]
    lower_objective: float
    certificate: Certificate


def _response(model: Model, x: Array, gamma: float, extrapolate: bool, tol: float) -> Evaluation:
    oracle = Response(model, gamma, tol=tol) if extrapolate else Penalty(model, gamma, tol=tol)
    return oracle(x)


def _gap(primal: LowerResiduals, dual: LowerResiduals) -> float:
    """Relative gap of one answer against the bound that another's duals prove."""
    return (primal.objective - dual.bound) / (1.0 + abs(primal.objective))


def certify(
    model: Model,
    x: Array,
    gamma: float,
    *,
    anchor: Array | None = None,
    extrapolate: bool,
    bound: float | None,
    tol: float,
    saddle_tol: float,
) -> Certified:
    """Certify x: solve both saddle points afresh, choose y, and compute every residual.

    y is the lower level's own answer, unless the penalised one is optimal for the lower level to a thousandth of the
    tolerance and better for the upper level (optimistic choice among several lower-level answers).

    Parameters
    ----------
    model : Model
    x : array
    gamma : float
        Penalty at which to measure stationarity.
    anchor : array, optional
        Where to measure stationarity, if not at x: the point that x was reached from without loss.
    extrapolate : bool
        Measure it for the true response, by extrapolation from gamma and 2 gamma.
    bound : float or None
        Proven bound on the optimum.
    tol : float
        Tolerance of the solve.
    saddle_tol : float
        Tolerance of the saddle points computed here.

    Raises
    ------
    LowerLevelError
        If the lower level has no answer at x.
    """
    here = _response(model, x, gamma, extrapolate, saddle_tol)
    lower, y = here.lower, here.lower.y
    dual = model.residuals(x, y, lower.duals)  # its bound on v(x) holds for whatever y is returned
    chosen = dual
    own, own_violation = here.response, model.upper_violation(x, y)
    optimistic = model.residuals(x, here.penalized.y, lower.duals)
    left = max(_gap(optimistic, dual), 0.0)
    # f moves by the square root of a gap: only a gain well above that is another answer, not the same one inexact
    gain = own - model.upper(x, here.penalized.y) - (tol + 100.0 * math.sqrt(left)) * (1 + abs(own))
    if left <= 1e-3 * tol and optimistic.violation <= tol and (gain > 0 or own_violation > tol):
        y, chosen = here.penalized.y, optimistic
    objective, radius, moved = model.upper(x, y), 0.0, 0.0
    value, box = here.value, model.x_set
    if anchor is not None:
        xp = namespace(x)
        moved = float(xp.max(xp.abs(x - anchor)) / (1.0 + xp.max(xp.abs(anchor))))
        here = _response(
            model, anchor, gamma, extrapolate, saddle_tol
        )  # from here on: stationarity
    if isinstance(model, HasConvexConcaveStep) and not extrapolate:
        first_order = predicted_decrease(model, here, tol=saddle_tol)
    else:
        first_order = max(stationarity(here.x, here.gradient, box), here.mismatch)
        few = math.prod(x.shape) <= LARGEST
        if first_order > tol and few and isinstance(box, Box) and not extrapolate:
            oracle = Penalty(model, gamma, tol=saddle_tol)
            first_order, radius = kink_stationarity(oracle, here, box, tol), RADIUS
            if (
                first_order <= tol
            ):  # gradients combine to zero at a ridge too, where a move descends
                first_order = max(first_order, response_descent(model, x, objective, saddle_tol))
    certificate = Certificate(
        lower_gap=_gap(chosen, dual),
        violation=max(chosen.violation, model.upper_violation(x, y)),
        dual_infeasibility=dual.dual_infeasibility,
        complementarity=dual.complementarity,
        stationarity=first_order,
        radius=radius,
        moved=moved,
        gamma=math.inf if extrapolate else gamma,
        response_objective=own,
        response_violation=own_violation,
        penalized_objective=value,
        bound=bound,
        bound_gap=None if bound is None else (objective - bound) / (1.0 + abs(objective)),
    )
    return Certified(x, y, objective, lower, lower.duals, chosen.objective, certificate)


def response_descent(model: Model, x: Array, objective: float, tol: float) -> float:
    """Largest relative fall of the true upper value near x, where a tenth of the move bears it out.

    Moves are a thousandth of the size of x, or of an entry's own range where that is smaller, along the axes and in
    random directions; each costs a lower-level solve.
    """
    xp = namespace(x)
    size, scale = math.prod(x.shape), 1.0 + abs(objective)
    length = MOVE * reach(model.x_set, x)
    axes = xp.eye(size, dtype=x.dtype, device=device_of(x))
    moves = [xp.reshape(sign * axes[k, :], x.shape) for k in range(size) for sign in (1.0, -1.0)]
    moves += [random_normal(x, seed) for seed in range(2 * size + 2)]

    def fall(move: Array) -> float:
        there = model.x_set.project(x + move)
        try:
            y = model.lower(there, tol=tol).y
            if model.upper_violation(there, y) > 0.0:
                return 0.0
            return (objective - model.upper(there, y)) / scale
        except LowerLevelError:
            return 0.0

    largest = 0.0
    for direction in moves:
        move = length * direction / xp.max(xp.abs(direction))
        far = fall(move)
        if far > largest and 0.03 * far < fall(0.1 * move) < 0.3 * far:  # a slope, and no jump
            largest = far
    return largest


def predicted_decrease(model: Model, here: Evaluation, *, tol: float) -> float:
    """Relative decrease that F_gamma's convex majorant promises, times gamma: zero exactly at critical points.

    The majorant ``p_gamma(z) - gamma (v(x) + <v'(x), z - x>)`` touches F_gamma at x (design section 2). Its curvature
    grows with gamma, so the decrease it promises is about ``|gradient|^2 / gamma``; the factor takes that out.
    """
    assert isinstance(model, HasConvexConcaveStep)
    try:
        step = model.convex_concave_step(here.x, here.gamma, here.lower, tol=tol)
        there = model.penalized(step, here.gamma, tol=tol)
    except LowerLevelError:
        return math.inf
    xp = namespace(here.x)
    linear = here.lower.value + float(xp.sum(here.lower.grad_x * (step - here.x)))
    decrease = here.value - (there.value - here.gamma * linear)
    # values at a large gamma leave rounding noise of gamma's size; the majorant's slope bounds the same decrease
    # (it is convex), and its noise goes with the step
    decrease = min(decrease, float(xp.sum(here.gradient * (here.x - step))))
    return max(1.0, here.gamma) * max(0.0, decrease) / (1.0 + abs(here.value))
