"""The BLOCC study's SVM problem: a bound on the slack of every training sample, chosen on validation data.

Upper level, over slack bounds c (one a training sample):

    sum over validation of exp(1 - l (w.z + b))  +  1/2 ||c||^2   (the paper)   or   + ||c||_2   (the authors' code)

Lower level, over (w, b, xi):

    1/2 ||w||^2 (+ intercept_penalty/2 b^2)   subject to   l_i (w.z_i + b) >= 1 - xi_i,   xi_i <= c_i

xi enters nothing else, so it is eliminated: ``l_i (w.z_i + b) >= 1 - c_i``, and the lower variable is y = (w, b).

The problem is jointly convex in disguise. Its relaxation (drop lower-level optimality) has the closed form
``c = max(0, 1 - l (w.z + b))`` and is smooth and convex in (w, b): milliseconds of Newton. On the study's data the
lower level's own answer attains it, which certifies the global optimum; where it does not, :func:`blocc.solve` goes
on with the homotopy. At such an optimum many samples of both classes sit on their bound and the lower level's feasible
set is a single point: Slater's condition fails, multipliers exist but are not unique and can be large.

Source: Jiang et al., NeurIPS 2024, arXiv:2406.10148, section 4 (the problem goes back to Xu and Zhu, AAAI 2023).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import scipy.linalg

from blocc.errors import (
    InvalidInputError,
    LowerInfeasibleError,
    LowerNotSolvedError,
    SolveError,
    require,
)
from blocc.methods import homotopy
from blocc.methods.homotopy import Method, OnFailure
from blocc.model import LowerResiduals, Relaxation, Saddle
from blocc.progress import Progress, Record
from blocc.result import Result
from blocc.sets import ConvexSet, Free

Array = Any
Upper = Literal["squared", "norm"]
NEWTON_STEPS = 100
# (room added to c, tolerance of the active-set solver), tried in turn where the one before finds nothing: at a feasible
# set that is a single point, rounding errors alone can empty it. A line search would exploit the loose ones everywhere.
FEASIBILITY = ((0.0, 1e-9), (0.0, 1e-6), (1e-9, 1e-9), (1e-8, 1e-9), (1e-7, 1e-6))
SMOOTHINGS = (1.0, 1e-4, 1e-9)  # of the norm; its value is lower by at most the last of these


class SlackBoundModel:
    """The problem as a :class:`blocc.model.Model`: x = c, y = (w, b) stacked.

    Parameters
    ----------
    train : array of shape (samples, features + 1)
        Rows ``l_i (z_i, 1)``.
    validation : array of shape (validation samples, features + 1)
        The same for the validation set.
    upper : {"squared", "norm"}
    intercept_penalty : float
    """

    def __init__(self, train: Array, validation: Array, upper: Upper, intercept_penalty: float):
        self.train, self.validation, self.regulariser = train, validation, upper
        self.x_set: ConvexSet = Free()
        self.curvature = np.ones(train.shape[1])  # diagonal of g's Hessian
        self.curvature[-1] = intercept_penalty

    def _regularisation(self, c: Array) -> float:
        return 0.5 * float(c @ c) if self.regulariser == "squared" else float(np.linalg.norm(c))

    def _regularisation_gradient(self, c: Array) -> Array:
        if self.regulariser == "squared":
            return c
        length = float(np.linalg.norm(c))
        return c / length if length > 0 else np.zeros_like(c)

    def _losses(self, y: Array) -> Array:
        """Validation losses ``exp(1 - margin)``; inf rather than a warning far outside."""
        with np.errstate(over="ignore"):
            return np.exp(1.0 - self.validation @ y)

    def upper(self, x: Array, y: Array) -> float:
        """Validation loss plus the regulariser of the slack bounds."""
        return float(np.sum(self._losses(y))) + self._regularisation(x)

    def upper_violation(self, x: Array, y: Array) -> float:
        """No upper constraint involves y."""
        return 0.0

    def _quadratic(
        self, hessian: Array, gradient: Array, x: Array, name: str
    ) -> tuple[Array, Array, int]:
        """Minimise a quadratic over the margin constraints at x, by a dual active-set method; (y, duals, steps)."""
        daqp = require("daqp", "svm", "the SVM lower level")
        for room, tolerance in FEASIBILITY:
            y, _, flag, info = daqp.solve(
                hessian,
                gradient,
                self.train,
                np.full(len(x), 1e30),
                1.0 - room - x,
                np.zeros(len(x), dtype=np.int32),
                iter_limit=20_000,
                primal_tol=tolerance,
            )
            if flag in (1, 2):
                break
        if flag == -1:
            raise LowerInfeasibleError(
                f"{name}: no separator meets the margins 1 - c: raise the slack bounds c"
            )
        if flag not in (1, 2) or not np.all(np.isfinite(y)):
            raise LowerNotSolvedError(f"{name}: the active-set solver stopped with status {flag}")
        return np.asarray(y), np.maximum(-np.asarray(info["lam"]), 0.0), int(info["iterations"])

    def lower(self, x: Array, *, tol: float, warm: Mapping[str, Array] | None = None) -> Saddle:
        """Exact answer of the lower level: a quadratic program, by a dual active-set method (DAQP)."""
        y, duals, steps = self._quadratic(
            np.diag(self.curvature), np.zeros(len(self.curvature)), x, "SVM lower level"
        )
        found = self.residuals(x, y, {"margin": duals})
        return Saddle(
            y=y,
            duals={"margin": duals},
            value=found.objective,
            grad_x=-duals,
            gap=abs(found.gap),
            violation=found.violation,
            iterations=steps,
            warm={"y": y},
        )

    def penalized(
        self, x: Array, gamma: float, *, tol: float, warm: Mapping[str, Array] | None = None
    ) -> Saddle:
        """``min f + gamma g``: Newton steps under the constraints, each a quadratic program, with a line search."""
        name = f"penalised SVM problem at gamma {gamma:.3g}"
        warm_y = None if warm is None else warm.get("y")
        slack = math.inf if warm_y is None else float(np.max(1.0 - x - self.train @ warm_y))
        y: Array = warm_y if slack <= 0 else self.lower(x, tol=tol).y

        def objective(point: Array) -> float:
            return float(np.sum(self._losses(point))) + 0.5 * gamma * float(
                self.curvature @ point**2
            )

        value, steps = objective(y), 0
        for _ in range(NEWTON_STEPS):
            losses = self._losses(y)
            if not np.all(np.isfinite(losses)):
                raise LowerNotSolvedError(
                    f"{name}: its losses overflow at the lower level's answer"
                )
            gradient = gamma * self.curvature * y - self.validation.T @ losses
            hessian = (self.validation.T * losses) @ self.validation
            hessian[np.diag_indices_from(hessian)] += gamma * self.curvature
            target, duals, count = self._quadratic(hessian, gradient - hessian @ y, x, name)
            steps += count
            step = target - y
            promised = -float(gradient @ step)
            if promised <= 0.01 * tol * (1.0 + abs(value)):
                y = target  # a full Newton step this small squares its error
                break
            length = 1.0
            while not (trial := objective(y + length * step)) <= value - 1e-4 * length * promised:
                length *= 0.5
                if length < 1e-10:
                    break
            y, value = y + length * step, trial
            if length < 1e-10:
                break
        else:
            raise LowerNotSolvedError(f"{name}: not solved in {NEWTON_STEPS} Newton steps")
        return Saddle(
            y=y,
            duals={"margin": duals},
            value=objective(y) + self._regularisation(x),
            grad_x=self._regularisation_gradient(x) - duals,
            gap=max(promised, 0.0) / (1.0 + abs(value)),
            violation=self._violation(x, y),
            iterations=steps,
            warm={"y": y},
        )

    def _violation(self, x: Array, y: Array) -> float:
        worst = float(np.max(1.0 - x - self.train @ y))
        return max(0.0, worst) / (1.0 + float(np.max(np.abs(y))))

    def residuals(self, x: Array, y: Array, duals: Mapping[str, Array]) -> LowerResiduals:
        """Lower-level residuals; the bound is the Lagrangian dual's value, in closed form."""
        dual = duals["margin"]
        force = self.train.T @ dual
        objective = 0.5 * float(self.curvature @ y**2)
        curved = self.curvature > 0
        bound = float(dual @ (1.0 - x)) - 0.5 * float(
            np.sum(force[curved] ** 2 / self.curvature[curved])
        )
        unsupported = np.where(curved, 0.0, force)
        size = 1.0 + float(np.max(np.abs(dual)))
        infeasibility = max(float(np.max(np.abs(unsupported))), float(np.max(-dual)), 0.0)
        slack = dual * (1.0 - x - self.train @ y)
        return LowerResiduals(
            objective=objective,
            bound=bound,
            gap=(objective - bound) / (1.0 + abs(objective)),
            violation=self._violation(x, y),
            dual_infeasibility=infeasibility / size,
            complementarity=float(np.max(np.abs(slack))) / (1.0 + abs(objective)),
        )

    def relaxation(self, *, tol: float) -> Relaxation:
        """Global minimum over both levels' variables, lower-level optimality dropped, by Newton's method.

        With c eliminated it is unconstrained and convex. The bound is the value less twice the decrease that the last
        Newton step promised. Where the data are separable the infimum 0 may not be attained: the bound is then 0.
        """
        y = np.zeros(self.train.shape[1])
        smoothings = SMOOTHINGS if self.regulariser == "norm" else (0.0,)
        value, promised = math.inf, math.inf
        for smoothing in smoothings:
            y, value, promised = _newton(
                functools.partial(self._relaxed, smoothing=smoothing), y, 1e-3 * tol
            )
        c = np.maximum(0.0, 1.0 - self.train @ y)
        solved = promised <= 1e-3 * tol * (1.0 + abs(value))
        bound = value - 2.0 * promised if solved else 0.0
        return Relaxation(x=c, y=y, bound=max(bound, 0.0))

    def _relaxed(
        self,
        y: Array,
        smoothing: float,
        shift: Array | float = 0.0,
        gamma: float = 0.0,
        size: float | None = None,
    ) -> tuple[float, Array, Array]:
        """Value, gradient and (generalised) Hessian of ``f + gamma g`` with c eliminated, its norm smoothed from below.

        ``shift`` is added to every slack, and with a ``size`` the regulariser is the squared norm over twice it (the
        convex-concave step's).
        """
        losses = self._losses(y)
        if not np.all(np.isfinite(losses)):
            return math.inf, y, y
        slack = np.maximum(0.0, 1.0 + shift - self.train @ y)
        gradient = gamma * self.curvature * y - self.validation.T @ losses
        hessian = (self.validation.T * losses) @ self.validation
        hessian[np.diag_indices_from(hessian)] += gamma * self.curvature
        base = float(np.sum(losses)) + 0.5 * gamma * float(self.curvature @ y**2)
        violated = self.train[slack > 0]
        pull = self.train.T @ slack
        if size is not None or self.regulariser == "squared":
            share = 1.0 if size is None else 1.0 / size
            value = base + 0.5 * share * float(slack @ slack)
            return value, gradient - share * pull, hessian + share * violated.T @ violated
        length = math.hypot(float(np.linalg.norm(slack)), smoothing)
        value = base + length - smoothing
        curvature = violated.T @ violated / length - np.outer(pull, pull) / length**3
        return value, gradient - pull / length, hessian + curvature

    def convex_concave_step(self, x: Array, gamma: float, lower: Saddle, *, tol: float) -> Array:
        """Minimiser of ``p_gamma(c) + gamma <dual, c>``, Newton in (w, b): ``c = max(1 - margin, -gamma dual)``.

        The norm is replaced by its majorant at x, ``||c||^2 / (2 s) + s / 2`` with s = ||x||, which has the same form.
        """
        size = 1.0 if self.regulariser == "squared" else max(float(np.linalg.norm(x)), 1e-9)
        shift = size * gamma * lower.duals["margin"]
        y, _, _ = _newton(
            lambda point: self._relaxed(point, 0.0, shift, gamma, size), lower.y, 1e-3 * tol
        )
        return np.maximum(1.0 - self.train @ y, -shift)


def _newton(
    function: Callable[[Array], tuple[float, Array, Array]], y: Array, tol: float
) -> tuple[Array, float, float]:
    """Damped Newton on a convex function; (point, value, decrease promised by the last full step)."""
    value, gradient, hessian = function(y)
    promised = math.inf
    for _ in range(NEWTON_STEPS):
        # the ridge only tilts the step where features are collinear; the answer does not depend on it
        ridge = 1e-13 * np.trace(hessian) + 1e-300
        try:
            factor = scipy.linalg.cho_factor(hessian + ridge * np.eye(len(y)), check_finite=False)
        except scipy.linalg.LinAlgError:  # rounding errors won: what was found so far stands
            break
        step = -scipy.linalg.cho_solve(factor, gradient, check_finite=False)
        promised = -0.5 * float(gradient @ step)
        if promised <= min(tol, 1e-14) * (1.0 + abs(value)):
            y = (
                y + step
            )  # below the rounding errors of the values; a full step this small squares its error
            break
        length, accepted = 1.0, False
        while length > 1e-10 and not accepted:
            trial = function(y + length * step)
            accepted = trial[0] <= value - 1e-4 * length * 2.0 * promised
            length *= 1.0 if accepted else 0.5
        if not accepted:
            break
        y = y + length * step
        value, gradient, hessian = trial
    return y, value, promised


class SlackBoundProblem:
    """Choose a slack bound for every training sample on validation data: the BLOCC study's SVM problem.

    Parameters
    ----------
    X_train : array_like of shape (samples, features)
    y_train : array_like of shape (samples,)
        Two classes; the larger label counts as 1, the other as -1.
    X_val : array_like of shape (validation samples, features)
    y_val : array_like of shape (validation samples,)
    upper : {"squared", "norm"}
        Regulariser of c: ``1/2 ||c||^2`` (the paper) or ``||c||_2`` (the authors' code).
    intercept_penalty : float
        Weight of ``1/2 b^2`` in the lower level; 0 leaves the intercept free.

    Raises
    ------
    InvalidInputError
        On wrong shapes, NaN or infinite entries, one class only, or an unknown regulariser.

    References
    ----------
    Jiang et al.: A Primal-Dual-Assisted Penalty Approach to Bilevel Optimization with Coupled Constraints. NeurIPS
    2024, arXiv:2406.10148, section 4.

    Examples
    --------
    >>> from blocc.applications.svm import SlackBoundProblem
    >>> from blocc.applications.svm.data import study_splits
    >>> split = next(study_splits("fourclass"))
    >>> result = SlackBoundProblem(split.X_train, split.y_train, split.X_val, split.y_val).solve()
    >>> print(f"{result.objective:.4f} {result.status.name}")
    459.3473 OPTIMAL
    """

    def __init__(
        self,
        X_train: Any,
        y_train: Any,
        X_val: Any,
        y_val: Any,
        upper: Upper = "squared",
        intercept_penalty: float = 0.0,
    ):
        if upper not in ("squared", "norm"):
            raise InvalidInputError(f"upper must be 'squared' or 'norm', got {upper!r}")
        if not 0 <= intercept_penalty < math.inf:
            raise InvalidInputError(
                f"intercept_penalty must be finite and >= 0, got {intercept_penalty}"
            )
        Z_train, Z_val = _features("X_train", X_train), _features("X_val", X_val)
        if Z_train.shape[1] != Z_val.shape[1]:
            raise InvalidInputError(
                f"X_train has {Z_train.shape[1]} features and X_val has {Z_val.shape[1]}"
            )
        self.classes, signs = np.unique(np.asarray(y_train), return_inverse=True)
        if len(self.classes) != 2:
            raise InvalidInputError(f"y_train must have two classes, got {len(self.classes)}")
        if not np.all(np.isin(np.asarray(y_val), self.classes)):
            raise InvalidInputError("y_val has a label that y_train does not have")
        signs_val = np.where(np.asarray(y_val) == self.classes[1], 1.0, -1.0)
        self.model = SlackBoundModel(
            _signed("train", Z_train, 2.0 * signs - 1.0),
            _signed("val", Z_val, signs_val),
            upper,
            float(intercept_penalty),
        )

    def solve(
        self,
        c0: Any = None,
        *,
        gamma: float | None = None,
        method: Method = "auto",
        tol: float = 1e-6,
        max_iterations: int = 2000,
        verbose: bool = False,
        callback: Callable[[Record], None] | None = None,
        on_failure: OnFailure = "raise",
    ) -> Result:
        """Solve by :func:`blocc.solve`; ``result.x`` is c, ``result.y`` is w with the intercept b at its end.

        Parameters
        ----------
        c0 : array_like of shape (samples,), optional
            Where the homotopy starts if the relaxation is not attained; default: the relaxation's c.
        gamma, method, tol, max_iterations, on_failure
            See :func:`blocc.solve`.
        verbose, callback
            See :class:`blocc.progress.Progress`.
        """
        x0 = None
        if c0 is not None:
            x0 = np.asarray(c0, dtype=float)
            if x0.shape != (len(self.model.train),) or not np.all(np.isfinite(x0)):
                raise InvalidInputError(
                    f"c0 must have {len(self.model.train)} finite entries, got shape {x0.shape}"
                )
        if on_failure not in ("raise", "return"):
            raise InvalidInputError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
        result = self._run(x0, method, gamma, tol, max_iterations, verbose, callback)
        if not result.success and method == "auto" and gamma is None:
            # convex-concave steps can creep along the lower level's kinks; descent in c sometimes ends there
            again = self._run(result.x, "lbfgsb", None, tol, max_iterations, verbose, callback)
            if again.success or again.objective < result.objective:
                result = again
        if on_failure == "raise" and not result.success:
            raise SolveError(f"{result.message}. The answer is in this exception's result", result)
        return result

    def _run(
        self,
        x0: Array | None,
        method: Method,
        gamma: float | None,
        tol: float,
        max_iterations: int,
        verbose: bool,
        callback: Callable[[Record], None] | None,
    ) -> Result:
        return homotopy.solve(
            self.model,
            x0,
            gamma=gamma,
            method=method,
            tol=tol,
            max_iterations=max_iterations,
            progress=Progress(verbose, callback),
            on_failure="return",
        )

    def respond(self, c: Any, tol: float = 1e-9) -> Saddle:
        """Exact lower-level answer at given slack bounds.

        Raises
        ------
        LowerInfeasibleError
            If no separator meets the margins ``1 - c``.
        """
        return self.model.lower(np.asarray(c, dtype=float), tol=tol)

    def decision_function(self, y: Array, X: Any) -> Array:
        """``w.z + b`` of the rows of X, for a lower-level answer y."""
        return _features("X", X) @ y[:-1] + y[-1]


def _features(name: str, X: Any) -> Array:
    try:
        features = np.asarray(X, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{name} must be a numeric array: {error}") from error
    if features.ndim != 2 or 0 in features.shape:
        raise InvalidInputError(f"{name} must have shape (samples, features), got {features.shape}")
    if not np.all(np.isfinite(features)):
        raise InvalidInputError(f"{name} has entries that are NaN or infinite")
    return features


def _signed(name: str, features: Array, labels: Array) -> Array:
    if labels.shape != (len(features),):
        raise InvalidInputError(
            f"X_{name} has {len(features)} rows, y_{name} has shape {labels.shape}"
        )
    return labels[:, None] * np.column_stack([features, np.ones(len(features))])
