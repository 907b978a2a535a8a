"""Front end for callables on arrays: ``blocc.minimize(f, g, c, x0, y0, data=...)``.

Lower levels are solved by :mod:`blocc.maxmin`, so everything runs in the namespace and on the device of the arrays.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from blocc import conic_saddle, maxmin
from blocc.arrays import (
    Backend,
    all_finite,
    is_array,
    namespace,
    precision,
    random_normal,
    resolve_backend,
)
from blocc.autodiff import Engine, choose
from blocc.errors import (
    InvalidInputError,
    LowerInfeasibleError,
    LowerNotSolvedError,
    SolveError,
    SolveInterrupted,
    UnsupportedModelError,
)
from blocc.gradients import Differentiable, Function, check, starting_point
from blocc.maxmin import Constraint, SaddlePoint, SaddleProblem
from blocc.methods import descent, homotopy
from blocc.methods.homotopy import Method, OnFailure
from blocc.model import LowerResiduals, Saddle
from blocc.penalty import Evaluation
from blocc.progress import Progress, Record
from blocc.result import Result
from blocc.sets import ConvexSet, Free, reach

Array = Any
UserFunction = Callable[..., Any] | Function
CONVEXITY_PROBES = 4
USUAL = 1e4  # an f or g flatter by less is left in the user's units


class _Divided:
    """An objective in a unit of its own."""

    def __init__(self, function: Differentiable, unit: float):
        self.function, self.unit = function, unit

    def value(self, x: Array, y: Array) -> Array:
        return self.function.value(x, y) / self.unit

    def pullback(self, x: Array, y: Array) -> tuple[Array, ...]:
        return tuple(part / self.unit for part in self.function.pullback(x, y))

    def pullback_y(self, x: Array, y: Array) -> Array:
        return self.function.pullback_y(x, y) / self.unit


class FunctionalModel:
    """A bilevel program given by callables: implements :class:`blocc.model.Model`.

    Parameters
    ----------
    f, g : callable or Function
        Upper and lower objectives, ``f(x, y, data)`` a scalar. Smooth; g and f + gamma g convex in y.
    c : callable or Function, optional
        Lower-level constraints ``c(x, y, data) <= 0``, any array shape; convex in y.
    x0, y0 : array
        Starting points; they fix shapes, dtype, library and device. A number is an array with one entry.
    h : callable or Function, optional
        Lower-level constraints ``h(x, y, data) == 0``, affine in y.
    G : callable or Function, optional
        Upper-level constraints ``G(x, y, data) <= 0``, convex in y.
    x_set, y_set : ConvexSet, optional
        Simple constraints by projection; the whole space by default.
    data : object, optional
        Passed on to every function as its last argument.
    engine : blocc.autodiff.Engine, optional
        Calls and differentiates the functions; chosen by the library of x0 and y0.

    Raises
    ------
    InvalidInputError
        On wrong shapes, values that are not finite at the start, or a wrong gradient.
    """

    def __init__(
        self,
        f: UserFunction,
        g: UserFunction,
        c: UserFunction | None,
        x0: Array,
        y0: Array,
        *,
        h: UserFunction | None = None,
        G: UserFunction | None = None,
        x_set: ConvexSet | None = None,
        y_set: ConvexSet | None = None,
        data: Any = None,
        engine: Engine | None = None,
    ):
        if engine is None:
            engine, (x0, y0) = choose(x0, y0)
        self.x_set: ConvexSet = x_set if x_set is not None else Free()
        self.y_set: ConvexSet = y_set if y_set is not None else Free()
        for name, value in (("x_set", self.x_set), ("y_set", self.y_set)):
            if not isinstance(value, ConvexSet) or isinstance(value, type):
                raise InvalidInputError(
                    f"{name} must be a set such as blocc.Box(0, 1), got {type(value).__name__}"
                )
        x0 = starting_point("x0", x0, None)
        y0 = starting_point("y0", y0, x0)
        self.x_shape = tuple(x0.shape)
        self.f: Any = Differentiable("f", f, data, scalar=True, engine=engine)
        self.g: Any = Differentiable("g", g, data, scalar=True, engine=engine)
        self.units = 1.0, 1.0  # of f and g
        self.lower_constraints = {
            name: Differentiable(name, function, data, scalar=False, engine=engine)
            for name, function in (("c", c), ("h", h))
            if function is not None
        }
        self.G = None if G is None else Differentiable("G", G, data, scalar=False, engine=engine)
        self.y0 = self._project("y0", self.y_set, y0)
        self._validate(self._project("x0", self.x_set, x0))

    @staticmethod
    def _project(name: str, given: ConvexSet, point: Array) -> Array:
        label = "x_set" if name == "x0" else "y_set"
        try:
            projected = given.project(point)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise InvalidInputError(
                f"{label} does not fit {name} of shape {point.shape}: {error}"
            ) from error
        if projected.shape != point.shape:
            raise InvalidInputError(
                f"{label} has shape {projected.shape}, but {name} has shape {point.shape}"
            )
        return projected

    def _functions(self) -> list[Differentiable]:
        return [self.f, self.g, *self.lower_constraints.values(), *([self.G] if self.G else [])]

    def _validate(self, x0: Array) -> None:
        for function in self._functions():
            try:
                value = function.value(x0, self.y0)
            except (ValueError, IndexError, TypeError) as error:
                raise InvalidInputError(
                    f"{function.name}(x, y, data) failed at the start, with x of shape {x0.shape} and y of shape "
                    f"{self.y0.shape}: {error}"
                ) from error
            shape = getattr(value, "shape", None)
            if function.scalar and shape != ():
                raise InvalidInputError(f"{function.name} must return a scalar, got shape {shape}")
            if not function.scalar and (shape is None or math.prod(shape) == 0):
                raise InvalidInputError(
                    f"{function.name} must return a non-empty array, got {type(value).__name__} of shape {shape}; "
                    "leave it out where there are no constraints"
                )
            if not namespace(value).isdtype(value.dtype, "real floating"):
                raise InvalidInputError(
                    f"{function.name} must return real numbers, got {value.dtype}; a constraint is a difference, "
                    "such as y - x for y <= x"
                )
            if not all_finite(value):
                culprit = _not_finite(function.data)
                raise InvalidInputError(
                    f"{function.name} is not finite at the starting point; "
                    + (
                        f"{culprit} has NaN or infinite entries: correct them"
                        if culprit
                        else "choose x0, y0 inside its domain"
                    )
                )
            for comparison in check(function, x0, self.y0):
                if not comparison.ok:
                    remedy = (
                        "see blocc.check_gradients"
                        if function.given
                        else f"{function.engine.name} lost it on the way. {function.engine.advice}"
                    )
                    raise InvalidInputError(f"{comparison.explain()}; {remedy}")
        self._refuse_concave(x0)
        self._refuse_bent(x0)

    def _pairs(self) -> Iterator[list[Array]]:
        """Random pairs of points in the lower set, around y0."""
        xp = namespace(self.y0)
        for seed in range(CONVEXITY_PROBES):
            yield [
                self.y_set.project(
                    self.y0 + (1.0 + xp.abs(self.y0)) * random_normal(self.y0, seed + shift)
                )
                for shift in (1000, 2000)
            ]

    def _refuse_concave(self, x: Array) -> None:
        """Raise where g is seen to be nonconvex in y: its saddle points would then certify nothing.

        Convexity makes gradients monotone; a few random pairs of points in the set are tried. Passing proves nothing.
        """
        xp = namespace(self.y0)
        slack = 1e4 * precision(self.y0)
        for points in self._pairs():
            slopes = [self.g.pullback_y(x, point) for point in points]
            apart, change = points[0] - points[1], slopes[0] - slopes[1]
            product, size = xp.sum(apart * change), xp.sqrt(xp.sum(apart**2) * xp.sum(change**2))
            if bool(product < -slack * (1.0 + size)):
                raise UnsupportedModelError(
                    "g is not convex in y: between two points near y0 its gradient turns back. blocc solves lower "
                    "levels that are convex in y; check the sign of g, or bound y to where it is convex"
                )

    def _refuse_bent(self, x: Array) -> None:
        """Raise where h is seen not to be affine in y, or c or G not convex: multipliers would then prove nothing."""
        named = {**self.lower_constraints, **({"G": self.G} if self.G else {})}
        xp = namespace(self.y0)
        for ends in self._pairs():
            for name, function in named.items():
                first, last, middle = (
                    function.value(x, y) for y in (*ends, 0.5 * (ends[0] + ends[1]))
                )
                above = middle - 0.5 * (first + last)
                if name == "h":
                    above = xp.abs(above)
                slack = 1e4 * precision(self.y0) * (1.0 + xp.abs(first) + xp.abs(last))
                if bool(xp.any(above > slack)):
                    raise UnsupportedModelError(
                        "h is not affine in y: write a lower level whose equalities are, or a convex inequality as c"
                        if name == "h"
                        else f"{name} is not convex in y: between two points near y0 it rises above its chord. "
                        "Check its sign (a constraint is c(x, y) <= 0), or bound y to where it is convex"
                    )

    def choose_units(self, x: Array) -> None:
        """Make a flat f or g as steep as the other, and as one, around x and y0, where it is far from that.

        gamma weighs one against the other, and tolerances are relative to one and the objective: both would mean
        something else in every unit. Units of less than one make tolerances tighter than the user's, never looser.
        """
        steepest = []
        for function in (self.f, self.g):
            size = 0.0
            for y in (self.y0, *next(self._pairs())):
                places = ((x, self.x_set), (y, self.y_set))
                slopes = list(zip(function.pullback(x, y), places, strict=True))
                for slope, (point, given) in slopes[function is self.g :]:
                    xp = namespace(point)
                    steep = float(xp.max(xp.abs(slope) * reach(given, point)))
                    size = max(size, steep if math.isfinite(steep) else 0.0)
            steepest.append(size)
        f, g = (
            2.0 ** round(math.log2(size / max(*steepest, 1.0)))
            if 0.0 < size < max(*steepest, 1.0) / USUAL
            else 1.0
            for size in steepest
        )
        self.units = f, g
        if self.units != (1.0, 1.0):
            self.f, self.g = _Divided(self.f, f), _Divided(self.g, g)

    def upper(self, x: Array, y: Array) -> float:
        """f(x, y)."""
        value = float(self.f.value(x, y))
        if not math.isfinite(value):
            raise LowerNotSolvedError(f"f is not finite ({value}) at an answer of the lower level")
        return value

    def upper_violation(self, x: Array, y: Array) -> float:
        """Largest relative violation of G(x, y) <= 0."""
        if self.G is None:
            return 0.0
        xp = namespace(y)
        return max(0.0, float(xp.max(self.G.value(x, y)))) / (1.0 + float(xp.max(xp.abs(y))))

    def saddle_problem(self, x: Array, gamma: float | None, scale: float = 1.0) -> SaddleProblem:
        """Lower problem at x (gamma None), or the penalised one, its objective divided by ``scale``."""
        functions = dict(self.lower_constraints)
        a, b = (0.0, 1.0) if gamma is None else (1.0 / scale, gamma / scale)
        if gamma is not None and self.G is not None:
            functions["G"] = self.G

        def objective(y: Array) -> Array:
            value = b * self.g.value(x, y)
            return value if gamma is None else value + a * self.f.value(x, y)

        def gradient(y: Array) -> Array:
            slope = b * self.g.pullback_y(x, y)
            return slope if gamma is None else slope + a * self.f.pullback_y(x, y)

        blocks = {name: _block(function, x, name == "h") for name, function in functions.items()}
        return SaddleProblem(objective, gradient, blocks, self.y_set)

    def _saddle(
        self,
        x: Array,
        gamma: float | None,
        tol: float,
        warm: Mapping[str, Array] | None,
    ) -> Saddle:
        # divided by gamma, the penalised problem's conditioning does not change with gamma
        scale = 1.0 if gamma is None else max(1.0, gamma)
        problem = self.saddle_problem(x, gamma, scale)
        label = "lower level"
        if gamma is not None:
            label = f"penalised problem at gamma {gamma:.3g}"
            if self.G is not None:
                label = f"lower level together with the upper constraints G (gamma {gamma:.3g})"
        y, duals, steps = self.y0, None, None
        if warm:
            y, duals, steps = _unpack(warm, problem, scale)
        try:
            tol = max(tol, 20.0 * precision(y))
            point = conic_saddle.solve(problem, y, duals, tol=tol, name=label)
            if point is None:
                patience = maxmin.MAX_ITERATIONS
                if conic_saddle.fits(problem, y):
                    patience = conic_saddle.PATIENCE
                point = maxmin.solve(
                    problem,
                    y,
                    duals,
                    tol=tol,
                    name=label,
                    steps=steps,
                    max_iterations=patience,
                )
        except LowerInfeasibleError as error:
            if error.ray is not None:
                error.normal = self._normal(x, *error.ray)
            raise
        found = maxmin.residuals(problem, point.y, point.duals)
        grad_x = self.g.pullback(x, point.y)[0]
        if gamma is not None:
            grad_x = gamma * grad_x + self.f.pullback(x, point.y)[0]
        xp = namespace(y)
        lagrangian = found.objective
        for name, block in problem.constraints.items():
            function = self.G if name == "G" else self.lower_constraints[name]
            assert function is not None
            grad_x = grad_x + function.pullback(x, point.y, scale * point.duals[name])[0]
            lagrangian += float(xp.sum(point.duals[name] * block.value(point.y)))
        return Saddle(
            y=point.y,
            duals={name: scale * dual for name, dual in point.duals.items()},
            value=scale * lagrangian,  # its error is of second order in those of y and the duals
            grad_x=grad_x,
            gap=found.gap,
            violation=found.violation,
            iterations=point.iterations,
            warm=_pack(point, scale),
        )

    def _normal(self, x: Array, y: Array, ray: Mapping[str, Array]) -> Array:
        """Gradient in x of the combined constraints that prove infeasibility at x."""
        normal = x * 0.0
        for name, weights in ray.items():
            function = self.G if name == "G" else self.lower_constraints[name]
            assert function is not None
            normal = normal + function.pullback(x, y, weights)[0]
        return normal

    def lower(self, x: Array, *, tol: float, warm: Mapping[str, Array] | None = None) -> Saddle:
        """Saddle point of the lower level."""
        return self._saddle(x, None, tol, warm)

    def penalized(
        self, x: Array, gamma: float, *, tol: float, warm: Mapping[str, Array] | None = None
    ) -> Saddle:
        """Saddle point of the penalised problem."""
        return self._saddle(x, gamma, tol, warm)

    def residuals(self, x: Array, y: Array, duals: Mapping[str, Array]) -> LowerResiduals:
        """Lower-level residuals, recomputed from g, c, h."""
        return maxmin.residuals(self.saddle_problem(x, None), y, duals)

    def restore(self, x: Array, *, inside: float = 1e-2) -> Array:
        """Nearby x where some y meets the constraints, G among them; least squares where that is no small program."""
        xp = namespace(x)
        named = {**self.lower_constraints, **({"G": self.G} if self.G else {})}
        for share in (1.0, 1e-2, 1e-4, 1e-7, 0.0):
            found = conic_saddle.nearest(
                named, x, self.y0, (self.x_set, self.y_set), inside=share * inside
            )
            if found is not None:
                return found
        for margin in (1e-2, 1e-4, 0.0):

            def violation(x: Array, margin: float = margin) -> Evaluation:
                def excess(y: Array) -> dict[str, Array]:
                    values = {name: k.value(x, y) for name, k in named.items()}
                    return {
                        k: v if k == "h" else xp.maximum(v + margin, v * 0.0)
                        for k, v in values.items()
                    }

                def objective(y: Array) -> Array:
                    total = xp.sum(y * 0.0)
                    for value in excess(y).values():
                        total = total + 0.5 * xp.sum(value * value)
                    return total

                def gradient(y: Array) -> Array:
                    total = y * 0.0
                    for name, value in excess(y).items():
                        total = total + named[name].pullback_y(x, y, value)
                    return total

                problem = SaddleProblem(objective, gradient, {}, self.y_set)
                y = maxmin.solve(
                    problem, self.y0, tol=max(1e-8, 100 * precision(x)), name="restoration"
                ).y
                slope = x * 0.0
                for name, value in excess(y).items():
                    slope = slope + named[name].pullback(x, y, value)[0]
                value = float(objective(y))
                saddle = Saddle(y, {}, value, slope, 0.0, 0.0, 0)
                return Evaluation(x, 0.0, value, slope, saddle, saddle, value, 0.0)

            here = violation(x)
            for step in descent.spectral(
                violation, here, self.x_set, tol=1e-12, max_iterations=500
            ):
                here = step
                if here.value <= 1e-20:
                    break
            if here.value <= max(1e-14, (0.5 * margin) ** 2):
                return here.x
        worst = {
            name: float(xp.max(xp.abs(value) if name == "h" else value))
            for name, value in ((n, k.value(here.x, here.lower.y)) for n, k in named.items())
        }
        name = max(worst, key=lambda key: worst[key])
        raise LowerInfeasibleError(
            f"no x near x0 makes the lower level feasible: constraint {name!r} is violated by at least "
            f"{worst[name]:.3g}. Check its sign, or start from another x0"
        )


def _block(function: Differentiable, x: Array, equality: bool) -> Constraint:
    """A constraint function at fixed x."""
    return Constraint(partial(function.value, x), partial(function.pullback_y, x), equality)


def _pack(point: SaddlePoint, scale: float) -> dict[str, Array]:
    """Warm start as plain arrays."""
    warm = {"y": point.y, **{f"dual/{name}": dual for name, dual in point.duals.items()}}
    if point.steps is not None:
        steps = point.steps
        warm |= {
            "weight": steps.primal_weights,
            "curvature": steps.curvature,
            "coupling": steps.coupling,
            "omega": steps.omega,
        }
        warm |= {f"weight/{name}": weight for name, weight in steps.dual_weights.items()}
        warm["scale"] = steps.omega * 0.0 + scale
    return warm


def _unpack(
    warm: Mapping[str, Array], problem: SaddleProblem, scale: float
) -> tuple[Array, dict[str, Array], maxmin.Steps | None]:
    """Starting point and, where the problem has not been rescaled since, step sizes."""
    duals = {name: warm[f"dual/{name}"] for name in problem.constraints}
    if "scale" not in warm or float(warm["scale"]) != scale:
        return warm["y"], duals, None
    weights = {name: warm[f"weight/{name}"] for name in problem.constraints}
    steps = maxmin.Steps(
        warm["weight"], weights, warm["curvature"], warm["coupling"], warm["omega"]
    )
    return warm["y"], duals, steps


def minimize(
    f: UserFunction,
    g: UserFunction,
    c: UserFunction | None,
    x0: Any,
    y0: Any,
    *,
    data: Any = None,
    h: UserFunction | None = None,
    G: UserFunction | None = None,
    x_set: ConvexSet | None = None,
    y_set: ConvexSet | None = None,
    backend: Backend = "auto",
    gamma: float | None = None,
    method: Method = "auto",
    tol: float | None = None,
    max_iterations: int = 2000,
    verbose: bool = False,
    callback: Callable[[Record], None] | None = None,
    on_failure: OnFailure = "raise",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Result:
    """Minimise f(x, y) over x, where y solves ``min_y g(x, y)`` subject to ``c(x, y) <= 0`` and ``h(x, y) = 0``.

    Parameters
    ----------
    f, g : callable or Function
        Upper and lower objectives ``f(x, y, data)``, smooth scalars, called with arrays of the library of x0 and y0.
        A plain callable is differentiated by autograd (write it with ``xp = blocc.namespace(x, y)``), or by torch or
        jax where x0 and y0 are theirs; pass :class:`blocc.Function` to give the gradient. g must be convex in y, and
        f + gamma g for the gammas used.
    c : callable, Function or None
        Lower-level constraints ``c(x, y, data) <= 0``, an array of any shape, convex in y; they may couple x and y.
    x0, y0 : array_like
        Starting points of any shape; x0 is projected on ``x_set``. A number is an array with one entry. With torch
        tensors or jax arrays the solver computes on NumPy (CuPy on a CUDA device) on the same memory, by DLPack, and
        the result has tensors or jax arrays again. Their precision is the solve's: both libraries make single-precision
        arrays unless told otherwise.
    data : object
        Passed on to every function as its last argument.
    h : callable or Function, optional
        Lower-level constraints ``h(x, y, data) == 0``, affine in y.
    G : callable or Function, optional
        Upper-level constraints ``G(x, y, data) <= 0``.
    x_set, y_set : ConvexSet, optional
        Sets with a cheap projection, such as ``blocc.Box(0, 1)``.
    backend : {"auto", "numpy", "cupy"}
        Where to compute; "auto" keeps the device of x0 and y0, and their library unless it is torch or jax.
    gamma : float, optional
        Fix the penalty, as the paper does, instead of raising it in stages.
    method : {"auto", "lbfgsb", "spectral"}
        Outer method; "auto" is L-BFGS-B for a box, spectral projected gradient otherwise.
    tol : float, optional
        Relative tolerance of the certificate: 1e-6, or 1e-3 in single precision.
    max_iterations : int
        Accepted outer iterations at most.
    verbose : bool
        Print one header, one table, one status line.
    callback : callable, optional
        Called with a dict after every outer iteration.
    on_failure : {"raise", "return"}
        Raise SolveError (with the partial result) where no certified answer is found, or return it.
    checkpoint, resume : path, optional
        Write the state there after every stage; continue from such a file.

    Returns
    -------
    Result
        With ``x``, ``y``, ``objective``, ``duals`` (by the names ``"c"`` and ``"h"``) and ``certificate``.

    Raises
    ------
    InvalidInputError, LowerInfeasibleError, LowerUnboundedError, SolveError, SolveInterrupted, BackendUnavailableError

    References
    ----------
    Jiang, Xiao, Tenorio, Real-Rojas, Marques, Chen: A Primal-Dual-Assisted Penalty Approach to Bilevel Optimization
    with Coupled Constraints. NeurIPS 2024, arXiv:2406.10148.

    Examples
    --------
    >>> import blocc
    >>> result = blocc.minimize(
    ...     lambda x, y, data: ((x - 1) ** 2 + (y - 2) ** 2).sum(),
    ...     lambda x, y, data: ((y - 2 * x) ** 2).sum(),
    ...     lambda x, y, data: y - x,
    ...     x0=[0.5], y0=[0.0], x_set=blocc.Box(0, 3), y_set=blocc.Box(0, 3),
    ... )
    >>> print(f"{result.x[0]:.4f} {result.y[0]:.4f} {result.status.name}")
    1.5000 1.5000 STATIONARY
    """
    engine, (x0, y0) = choose(x0, y0)
    space = resolve_backend(backend, x0, y0)
    anchor = next((a for a in (x0, y0) if is_array(a) and namespace(a) is space), None)
    if anchor is not None and not space.isdtype(anchor.dtype, "real floating"):
        anchor = space.astype(anchor, space.float64)
    if anchor is None:
        anchor = space.zeros((1,), dtype=space.float64)
    x0, y0 = starting_point("x0", x0, anchor), starting_point("y0", y0, anchor)
    if tol is None:
        tol = 1e-6 if precision(x0) < 1e-10 else 1e-3
    model = FunctionalModel(
        f, g, c, x0, y0, h=h, G=G, x_set=x_set, y_set=y_set, data=data, engine=engine
    )
    progress = Progress(verbose, callback)
    if gamma is None:
        model.choose_units(model.x_set.project(x0))
        progress.sense, progress.weight = model.units[0], model.units[0] / model.units[1]
    try:
        result = homotopy.solve(
            model,
            x0,
            gamma=gamma,
            method=method,
            tol=tol,
            max_iterations=max_iterations,
            progress=progress,
            on_failure=on_failure,
            checkpoint=checkpoint,
            resume=resume,
        )
    except (SolveError, SolveInterrupted) as error:
        if error.result is not None:
            error.result = _returned(error.result, model.units, engine)
        raise
    return _returned(result, model.units, engine)


def _returned(result: Result, units: tuple[float, float], engine: Engine) -> Result:
    """The result in the user's units, with arrays of the functions' library."""
    f, g = units
    certificate = replace(
        result.certificate,
        gamma=result.certificate.gamma * f / g,
        response_objective=result.certificate.response_objective * f,
        penalized_objective=result.certificate.penalized_objective * f,
    )
    return replace(
        result,
        x=engine.lend(result.x),
        y=engine.lend(result.y),
        objective=result.objective * f,
        lower_objective=result.lower_objective * g,
        duals={name: engine.lend(dual * g) for name, dual in result.duals.items()},
        certificate=certificate,
    )


def _not_finite(data: Any, name: str = "data") -> str | None:
    """Name of a part of data that is NaN or infinite, None where none is found."""
    if isinstance(data, Mapping):
        parts = [(f"{name}[{key!r}]", part) for key, part in data.items()]
    elif isinstance(data, list | tuple):
        parts = [(f"{name}[{index}]", part) for index, part in enumerate(data)]
    elif isinstance(data, float):
        return None if math.isfinite(data) else name
    elif is_array(data) and namespace(data).isdtype(data.dtype, "real floating"):
        return None if all_finite(data) else name
    else:
        return None
    return next((found for label, part in parts if (found := _not_finite(part, label))), None)
