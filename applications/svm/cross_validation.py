"""Cross-validated selection of C and of bounds on the weights, as one bilevel problem.

Upper level, over x = (log C, bounds on the features' weights):

    mean over folds of the mean hinge loss on the fold's validation part

Lower level, one follower a fold t, over (w_t, b_t), coupled to x by its constraint:

    1/(2C) ||w_t||^2 + sum over the fold's training part of hinge losses   subject to   -bound <= w_t <= bound

(each divided by its total weight, so that both levels have the same scale). The followers are independent: each is
solved exactly (:mod:`box_svm`), and so are the penalised ones, which are the same problem with the validation part
added at weight 1/gamma. The hinge loss of the upper level is not smooth, but F_gamma is: both saddle points are values
of convex quadratic programs. The true response has kinks, and an answer may sit on one; the certificate says so.

Sources: Bennett, Hu, Ji, Kunapuli, Pang, IJCNN 2006; Kunapuli, Bennett, Hu, Pang, Optimization Methods and Software
2008 (feature bounds); the penalty: Jiang et al., NeurIPS 2024, arXiv:2406.10148.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize

from blocc.applications.svm import box_svm
from blocc.applications.svm.box_svm import Answer, BoxSVM
from blocc.certificate import Certified, certify
from blocc.errors import LowerNotSolvedError
from blocc.methods.descent import stationarity
from blocc.model import LowerResiduals, Saddle
from blocc.penalty import Evaluation, Penalty, Warm
from blocc.progress import Progress, Record
from blocc.result import Result, Status
from blocc.sets import Box, ConvexSet

Array = Any
GRID = tuple(10.0**exponent for exponent in np.arange(-3.0, 3.1, 0.5).tolist())
GRID_TOL = 1e-4
ACCURACIES = (1e-10, 1e-8, 1e-6)
ENTRIES = 250_000  # of the data, beyond which budgets shrink
WIDTH_GRID = (-2.0, 0.0, 2.0)  # shifts of log width
WIDTH_RANGE, WIDTH_STEP = math.log(1e3), 1e-4  # of log width, around its first value
STAGES = ((10.0, 25), (100.0, 10), (1000.0, 5))  # gamma, evaluations


@dataclass(frozen=True)
class Losses:
    """Weighted losses ``weight max(0, target - row.w - sign b)``: arrays (n, d), (n,), (n,), (n,).

    Several rows can belong to one sample; ``samples`` counts the samples, the first rows, where that is so.
    """

    rows: Array
    signs: Array
    targets: Array
    weights: Array
    samples: int | None = None

    @property
    def total(self) -> float:
        """Total weight of the samples."""
        return float(self.weights[: self.samples].sum())

    def mean(self, w: Array, b: float) -> float:
        """Mean over the samples, weighted."""
        residual = self.targets - self.rows @ w - self.signs * b
        return float(self.weights @ np.maximum(residual, 0.0)) / self.total


class Fold:
    """One follower: its training and validation losses."""

    def __init__(self, train: Losses, validation: Losses):
        self.train, self.validation = train, validation
        self.both = Losses(
            np.vstack([train.rows, validation.rows]),
            np.concatenate([train.signs, validation.signs]),
            np.concatenate([train.targets, validation.targets]),
            np.concatenate([train.weights, validation.weights]),
        )
        self.total = train.total
        self.importance = validation.weights / validation.total

    def lower(self, strength: float, bound: Array) -> BoxSVM:
        """The follower's problem, times its total weight."""
        train = self.train
        return BoxSVM(train.rows, train.signs, train.targets, train.weights, strength, bound)

    def penalized(self, strength: float, bound: Array, gamma: float) -> BoxSVM:
        """The follower's part of ``f + gamma g``, times its total weight over gamma."""
        both = self.both
        weights = np.concatenate([self.train.weights, self.total / gamma * self.importance])
        return BoxSVM(both.rows, both.signs, both.targets, weights, strength, bound)


class CrossValidationModel:
    """The problem as a :class:`blocc.model.Model`: x = (log C, [log width], bounds), y = (w_t, b_t) row by row.

    Parameters
    ----------
    folds : sequence of Fold, or callable
        With a kernel map: from a feature matrix to the folds.
    log_C : tuple of float
        Range of log C.
    largest_bound : array of shape (features,) or None
        Range of the bounds; None leaves the weights unbounded, and x without bounds.
    n_jobs : int
        Threads for the followers.
    kernel_map : KernelMap, optional
        Features that depend on an upper variable, the kernel's width.
    """

    def __init__(
        self,
        folds: Sequence[Fold] | Callable[[Array], list[Fold]],
        log_C: tuple[float, float],
        largest_bound: Array | None,
        n_jobs: int = 1,
        kernel_map: KernelMap | None = None,
    ):
        self.n_jobs, self.kernel_map = n_jobs, kernel_map
        self.bounded = largest_bound is not None
        lower, upper = np.array([log_C[0]]), np.array([log_C[1]])
        self._made: tuple[float, list[Fold]] | None = None
        if kernel_map is not None:
            assert callable(folds)
            self.make_folds = folds
            center = math.log(kernel_map.first_width)
            lower = np.append(lower, center - WIDTH_RANGE)
            upper = np.append(upper, center + WIDTH_RANGE)
            self.folds = self._folds(kernel_map.first_width)
        else:
            assert not callable(folds)
            self.folds = list(folds)
        self.features = self.folds[0].train.rows.shape[1]
        if largest_bound is not None:
            lower = np.append(lower, np.zeros(self.features))
            upper = np.append(upper, largest_bound)
        self.box = Box(lower, upper)
        self.x_set: ConvexSet = self.box
        self.bounds = slice(len(lower) - self.features if self.bounded else len(lower), None)

    def _folds(self, width: float) -> list[Fold]:
        """Folds at a width; the last ones are kept, since both saddle points need them."""
        assert self.kernel_map is not None
        if self._made is None or self._made[0] != width:
            self._made = (width, self.make_folds(self.kernel_map.features(width)))
        return self._made[1]

    def at(self, x: Array) -> list[Fold]:
        """Folds at x; they depend on x through the kernel's width only."""
        return self.folds if self.kernel_map is None else self._folds(math.exp(float(x[1])))

    def parameters(self, x: Array) -> tuple[float, Array]:
        """1/C and the bounds."""
        bound = x[self.bounds] if self.bounded else np.full(self.features, math.inf)
        return math.exp(-float(x[0])), bound

    def _points(self, x: Array, y: Array) -> Iterator[tuple[Fold, Array, float]]:
        rows = y.reshape(len(self.folds), self.features + 1)
        for fold, row in zip(self.at(x), rows, strict=True):
            yield fold, row[:-1], float(row[-1])

    def upper(self, x: Array, y: Array) -> float:
        """Mean over folds of the mean validation loss."""
        losses = [fold.validation.mean(w, b) for fold, w, b in self._points(x, y)]
        return float(np.mean(losses))

    def upper_violation(self, x: Array, y: Array) -> float:
        """No upper constraint involves y."""
        return 0.0

    def answers(
        self, problems: list[BoxSVM], tol: float, warm: Sequence[Answer | None]
    ) -> list[Answer]:
        """Solve the followers' problems, in threads."""

        def solve(problem: BoxSVM, start: Answer | None) -> Answer:
            return box_svm.solve([problem], tol=tol, warm=[start])[0]

        if self.n_jobs == 1:
            return list(map(solve, problems, warm))
        with ThreadPoolExecutor(min(self.n_jobs, len(problems))) as pool:
            return list(pool.map(solve, problems, warm))

    def _saddle(
        self,
        x: Array,
        problems_of: Callable[[list[Fold]], list[BoxSVM]],
        factor: float,
        tol: float,
        warm: Mapping[str, Array] | None,
    ) -> Saddle:
        """Saddle point of the sum of the followers' problems, each times ``factor`` over its total weight."""
        folds = self.at(x)
        problems = problems_of(folds)
        scales = [factor / (len(folds) * fold.total) for fold in folds]
        found = self.answers(problems, tol, _unpack(warm, problems))
        slope = np.zeros_like(x)
        value = gap = 0.0
        for problem, answer, scale in zip(problems, found, scales, strict=True):
            value += scale * answer.value
            gap += scale * (answer.value - answer.lower_value)
            slope[0] -= scale * 0.5 * problem.strength * float(answer.w @ answer.w)
            if self.bounded:
                slope[self.bounds] -= scale * np.abs(answer.bound_dual)
        if self.kernel_map is not None:
            slope[1] = self._width_slope(x, problems_of, found, scales)
        stacked = np.array([answer.bound_dual for answer in found])
        duals = {
            "loss": np.concatenate([a.alpha for a in found]),
            "upper_bound": np.maximum(stacked, 0.0),
            "lower_bound": np.maximum(-stacked, 0.0),
        }
        return Saddle(
            y=np.concatenate([np.append(answer.w, answer.b) for answer in found]),
            duals=duals,
            value=value,
            grad_x=slope,
            gap=gap / (1.0 + abs(value)),
            violation=0.0,  # the losses are eliminated, and the weights are clipped to their bounds
            iterations=sum(answer.iterations for answer in found),
            warm=_pack(found),
        )

    def _width_slope(
        self,
        x: Array,
        problems_of: Callable[[list[Fold]], list[BoxSVM]],
        found: list[Answer],
        scales: list[float],
    ) -> float:
        """Derivative of the Lagrangian in log width, (w, b, alpha) fixed: central differences of the features."""
        assert self.kernel_map is not None
        sides = []
        for side in (-WIDTH_STEP, WIDTH_STEP):
            features = self.kernel_map.features(math.exp(float(x[1]) + side))
            problems = problems_of(self.make_folds(features))
            sides.append(
                sum(
                    scale * float(answer.alpha @ (problem.rows @ answer.w))
                    for problem, answer, scale in zip(problems, found, scales, strict=True)
                )
            )
        return -(sides[1] - sides[0]) / (2.0 * WIDTH_STEP)

    def lower(self, x: Array, *, tol: float, warm: Mapping[str, Array] | None = None) -> Saddle:
        """Exact answers of all followers."""
        strength, bound = self.parameters(x)

        def problems_of(folds: list[Fold]) -> list[BoxSVM]:
            return [fold.lower(strength, bound) for fold in folds]

        return self._saddle(x, problems_of, 1.0, tol, warm)

    def penalized(
        self, x: Array, gamma: float, *, tol: float, warm: Mapping[str, Array] | None = None
    ) -> Saddle:
        """``min f + gamma g``: each follower with its validation losses added."""
        strength, bound = self.parameters(x)

        def problems_of(folds: list[Fold]) -> list[BoxSVM]:
            return [fold.penalized(strength, bound, gamma) for fold in folds]

        return self._saddle(x, problems_of, gamma, tol, warm)

    def residuals(self, x: Array, y: Array, duals: Mapping[str, Array]) -> LowerResiduals:
        """Lower-level residuals from the data; the bound is the Lagrangian dual's value, in closed form."""
        strength, limit = self.parameters(x)
        objective = bound = violation = infeasibility = complementarity = 0.0
        sizes = np.cumsum([0] + [len(fold.train.signs) for fold in self.folds])
        for index, (fold, w, b) in enumerate(self._points(x, y)):
            train, scale = fold.train, 1.0 / (len(self.folds) * fold.total)
            alpha = duals["loss"][sizes[index] : sizes[index + 1]]
            high, low = duals["upper_bound"][index], duals["lower_bound"][index]
            residual = train.targets - train.rows @ w - train.signs * b
            objective += scale * (
                0.5 * strength * float(w @ w) + float(train.weights @ np.maximum(residual, 0.0))
            )
            force = alpha @ train.rows - high + low
            pressed = (high + low) > 0
            held = np.where(pressed, limit, 0.0) @ (high + low)
            bound += scale * (
                float(alpha @ train.targets) - 0.5 * float(force @ force) / strength - float(held)
            )
            violation = max(violation, float(np.max(np.abs(w) - limit)) / (1.0 + np.max(np.abs(w))))
            outside = max(float(np.max(-alpha)), float(np.max(alpha - train.weights)))
            outside = max(outside, float(-np.min(high)), float(-np.min(low)))
            unbalanced = abs(float(train.signs @ alpha)) / fold.total
            infeasibility = max(infeasibility, outside, unbalanced)
            slack = alpha @ np.maximum(-residual, 0.0)
            slack += (train.weights - alpha) @ np.maximum(residual, 0.0)
            gaps = np.where(pressed, limit - w * np.sign(high - low), 0.0)
            complementarity += scale * float(slack + (high + low) @ gaps)
        return LowerResiduals(
            objective=objective,
            bound=bound,
            gap=(objective - bound) / (1.0 + abs(objective)),
            violation=max(0.0, violation),
            dual_infeasibility=max(0.0, infeasibility),
            complementarity=abs(complementarity) / (1.0 + abs(objective)),
        )


def _pack(found: list[Answer]) -> dict[str, Array]:
    return {
        "point": np.array([np.append(answer.w, answer.b) for answer in found]),
        "alpha": np.concatenate([answer.alpha for answer in found]),
        "bound_dual": np.array([answer.bound_dual for answer in found]),
    }


def _unpack(warm: Mapping[str, Array] | None, problems: list[BoxSVM]) -> list[Answer | None]:
    if not warm:
        return [None] * len(problems)
    ends = np.cumsum([len(problem.signs) for problem in problems])
    if len(warm["alpha"]) != ends[-1]:
        return [None] * len(problems)
    parts = np.split(warm["alpha"], ends[:-1])
    return [
        Answer(point[:-1], float(point[-1]), alpha, bound_dual, 0.0, 0.0, 0)
        for point, alpha, bound_dual in zip(warm["point"], parts, warm["bound_dual"], strict=True)
    ]


def hinge_losses(X: Array, signs: Array, weights: Array) -> Losses:
    """Hinge losses ``weight max(0, 1 - sign (w.z + b))`` of labels -1 and 1."""
    return Losses(signs[:, None] * X, signs, np.ones(len(signs)), weights)


def tube_losses(X: Array, y: Array, weights: Array, epsilon: float) -> Losses:
    """Epsilon-insensitive losses ``weight max(0, |y - w.z - b| - epsilon)``: two rows a sample."""
    ones = np.ones(len(y))
    return Losses(
        np.vstack([X, -X]),
        np.concatenate([ones, -ones]),
        np.concatenate([y - epsilon, -y - epsilon]),
        np.concatenate([weights, weights]),
        samples=len(y),
    )


def absolute_losses(X: Array, y: Array, weights: Array) -> Losses:
    """Absolute errors ``weight |y - w.z - b|``: two rows a sample, of which one is positive."""
    return tube_losses(X, y, weights, 0.0)


class KernelMap:
    """Nystroem features of an RBF kernel ``exp(-width ||x - z||^2)``, as a function of its width.

    Parameters
    ----------
    X : array of shape (n, d)
    landmarks : array of shape (m, d)

    References
    ----------
    Williams and Seeger: Using the Nystroem method to speed up kernel machines. NIPS 2000.
    """

    def __init__(self, X: Array, landmarks: Array):
        self.to_landmarks = _square_distances(X, landmarks)
        self.between = _square_distances(landmarks, landmarks)
        spread = float(np.mean(self.between[self.between > 0])) if np.any(self.between > 0) else 1.0
        self.first_width = 1.0 / spread

    def features(self, width: float) -> Array:
        """Features of shape (n, m) at a width."""
        values, vectors = np.linalg.eigh(np.exp(-width * self.between))
        scale = 1.0 / np.sqrt(
            np.maximum(values, 1e-8)
        )  # smooth in width, unlike dropping directions
        root = (vectors * scale) @ vectors.T
        return np.exp(-width * self.to_landmarks) @ root


def _square_distances(first: Array, second: Array) -> Array:
    squares = np.sum(first**2, axis=1)[:, None] + np.sum(second**2, axis=1) - 2.0 * first @ second.T
    return np.maximum(squares, 0.0)


@dataclass(frozen=True)
class Tuning:
    """Answer of :func:`tune`: the certified result, and what the grid found on the way.

    Attributes
    ----------
    result : Result
        ``x`` is (log C, bounds).
    grid : list of tuple of float
        C and its cross-validation loss, without bounds; for a kernel, for each of three widths in turn.
    evaluations : int
        Of F_gamma: two saddle points for every fold.
    """

    result: Result
    grid: list[tuple[float, float]]
    evaluations: int


def tune(
    make_model: Callable[[Array | None], CrossValidationModel],
    *,
    grid: Sequence[float] = GRID,
    stages: Sequence[tuple[float, int]] | None = None,
    tol: float = 1e-6,
    callback: Callable[[Record], None] | None = None,
) -> Tuning:
    """Minimise the cross-validation loss: a coarse grid over C, then a short homotopy in gamma from its best point.

    A hyperparameter need not be stationary to many digits, so every stage has a budget instead of a tolerance, and
    the best true response met on the way is the answer: never worse than the grid's. With bounds, the homotopy begins
    at ten times the grid's C and bounds at the mean size of the folds' weights, which many of the folds exceed: from
    there the bounds do the regularising, feature by feature.

    Parameters
    ----------
    make_model : callable
        From the range of the bounds (None: no bounds) to a model.
    grid : sequence of float
        Values of C.
    stages : sequence of (float, int)
        gamma and the evaluations to spend at it. Default: 10, 100, 1000 with 25, 10, 5 evaluations, fewer (with the
        inverse square root of the size) beyond 250,000 entries of data.
    tol : float
        Of the certificate.
    callback : callable, optional
        Called with a record after every evaluation that improves the answer.

    Returns
    -------
    Tuning
        Its result's status is ``STATIONARY`` where the certificate shows it, ``FEASIBLE`` (lower level solved at x)
        otherwise.
    """
    progress = Progress(callback=callback)
    plain = make_model(None)
    points = [np.array([math.log(C)]) for C in grid]
    if plain.kernel_map is not None:
        center = math.log(plain.kernel_map.first_width)
        points = [np.append(x, center + shift) for shift in WIDTH_GRID for x in points]
    with progress.timed("grid"):
        tried, warm = [], None
        for x in points:
            saddle = plain.lower(x, tol=GRID_TOL, warm=warm)
            y, warm = saddle.y, saddle.warm
            tried.append((math.exp(float(x[0])), plain.upper(x, y), x, y))
    C, _, at_grid, y = min(tried, key=lambda trial: trial[1])
    start = at_grid
    sizes = np.abs(y.reshape(len(plain.folds), -1)[:, :-1])
    largest = 10.0 * np.maximum(np.max(sizes, axis=0), 1e-3 * np.max(sizes) + 1e-12)
    model = make_model(largest)
    if model.bounded:
        start = np.concatenate([[math.log(10.0 * C)], start[1:], np.mean(sizes, axis=0)])
        at_grid = np.concatenate([at_grid, largest])
    if stages is None:
        entries = sum(fold.validation.rows.size for fold in plain.folds)
        share = min(1.0, math.sqrt(ENTRIES / entries))
        stages = [(gamma, max(2, round(share * budget))) for gamma, budget in STAGES]
    search = _Search(model, progress)
    with progress.timed("homotopy"):
        gamma = stages[0][0]
        search.look(at_grid, gamma)
        x = start
        for gamma, budget in stages:
            x = search.stage(x, gamma, budget)
    with progress.timed("certificate"):
        certified = _certified(model, search.best_x, gamma, tol)
    certificate = certified.certificate
    status = Status.LOWER_NOT_SOLVED
    if certificate.lower_ok(tol):
        status = Status.STATIONARY if certificate.ok(tol) else Status.FEASIBLE
    message = status.value
    if status is Status.FEASIBLE:
        message = f"{message}: the search ended with its budget of {search.evaluations} evaluations"
    progress.timings["total"] = progress.seconds
    result = Result(
        x=certified.x,
        y=certified.y,
        objective=certified.objective,
        lower_objective=certified.lower_objective,
        bound=None,
        status=status,
        duals=dict(certified.duals),
        certificate=certificate,
        records=tuple(progress.records),
        timings=dict(progress.timings),
        message=message,
    )
    return Tuning(result, [(C, value) for C, value, _, _ in tried], search.evaluations)


def _certified(model: CrossValidationModel, x: Array, gamma: float, tol: float) -> Certified:
    """Certificate at the tightest saddle points that rounding allows."""
    for accuracy in ACCURACIES[:-1]:
        try:
            return certify(
                model, x, gamma, extrapolate=False, bound=None, tol=tol, saddle_tol=accuracy
            )
        except LowerNotSolvedError:
            pass
    return certify(
        model, x, gamma, extrapolate=False, bound=None, tol=tol, saddle_tol=ACCURACIES[-1]
    )


def solve_best(problems: Sequence[BoxSVM]) -> list[Answer]:
    """Answers at the tightest gap that rounding allows."""
    found: list[Answer]
    for accuracy in ACCURACIES:
        try:
            found = box_svm.solve(problems, tol=accuracy)
            break
        except LowerNotSolvedError:
            if accuracy == ACCURACIES[-1]:
                raise
    return found


class _Search:
    """L-BFGS-B on F_gamma with a budget, keeping the best true response."""

    def __init__(self, model: CrossValidationModel, progress: Progress):
        self.model, self.progress, self.warm = model, progress, Warm()
        self.best_x, self.best_response, self.evaluations = model.box.lower, math.inf, 0

    def look(self, x: Array, gamma: float, penalty: Penalty | None = None) -> Evaluation:
        """Evaluate F_gamma at x, and remember x if its true response is the best."""
        if penalty is None:
            penalty = Penalty(self.model, gamma, tol=1e-6 / gamma, warm=self.warm)
        here = penalty(self.model.x_set.project(x))
        self.evaluations += 1
        if here.response < self.best_response:
            self.best_x, self.best_response = here.x, here.response
            self.progress.row(
                method="lbfgsb",
                gamma=gamma,
                penalized=here.value,
                response=here.response,
                penalty=here.penalty,
                stationarity=stationarity(here.x, here.gradient, self.model.x_set),
            )
        return here

    def stage(self, x: Array, gamma: float, budget: int) -> Array:
        """Minimise F_gamma from x; its best point."""
        penalty = Penalty(self.model, gamma, tol=1e-6 / gamma, warm=self.warm)
        best: Evaluation | None = None

        worst = -math.inf

        def function(point: Array) -> tuple[float, Array]:
            nonlocal best, worst
            try:
                here = self.look(point, gamma, penalty)
            except LowerNotSolvedError:
                if best is None:
                    raise
                away = point - best.x  # rounding errors won here: let the line search turn back
                return worst + 1.0 + float(away @ away), 2.0 * away
            worst = max(worst, here.value)
            if best is None or here.value < best.value:
                best = here
            return here.value, here.gradient

        box = self.model.box
        scipy.optimize.minimize(
            function,
            box.project(x),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(box.lower, box.upper, strict=True)),
            options={"maxfun": budget, "maxls": 10, "ftol": 1e-9, "gtol": 1e-7},
        )
        assert best is not None
        return best.x
