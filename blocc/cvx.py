"""The CVXPY front end: both levels written in CVXPY, turned into a :class:`blocc.model.Model`.

The lower problem is copied with the upper variables replaced by parameters: every maximal part of an expression that
depends on upper variables alone becomes one parameter ``p_k = phi_k(x)``. The copy is canonicalised once
(:class:`blocc.conic.ConicProgram`), so ``d v / d p`` comes from one saddle point and ``d v / d x`` from the chain rule;
terms of the lower objective in x alone are parameters too, so their gradient is never lost.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.binary_operators import DivExpression
from cvxpy.atoms.affine.wraps import nonneg_wrap, psd_wrap, symmetric_wrap

from blocc.certificate import Certificate
from blocc.conic import ConicAnswer, ConicProgram
from blocc.cvx_check import Check, check_problem, contradiction
from blocc.cvx_functions import Functions, Layout
from blocc.cvx_global import branch_and_bound
from blocc.cvx_quadratic import (
    DENSE_LIMIT,
    DualBlock,
    QuadraticLower,
    QuadraticProgram,
    VaryingProgram,
    named_infeasibility,
    quadratic_program,
)
from blocc.cvx_smooth import SmoothLower, SmoothProgram
from blocc.errors import (
    InvalidInputError,
    LowerInfeasibleError,
    LowerLevelError,
    LowerUnboundedError,
    SolveError,
    SolveInterrupted,
    UnsupportedModelError,
    require_number,
)
from blocc.methods import homotopy
from blocc.methods.homotopy import METHODS, OnFailure
from blocc.methods.joint import FINAL, LOCAL, MAX_VARIABLES, Derivatives, Joint, JointPoint
from blocc.model import LowerResiduals, Relaxation, Responses, Saddle, Sensitivity
from blocc.progress import Progress, Record
from blocc.result import Result, Status, read_archive, write_archive
from blocc.sets import Box, ConvexSet

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
Constraints = Sequence[Any] | Mapping[str, Any] | None
UpperCallable = Callable[[Any, Any], float]
#: The last answer: x, y, and the range of x that was searched.
_Last = tuple[Vector, Vector, tuple[Vector, Vector]]
#: A joint method in the units of a point, and the descent that its probe there has found.
_Probed = tuple[Joint, float]

_TOL = 1e-10
_PROBES = 10  # at most, with runs from what they find
_VIOLATED = 1e-6  # by an upper constraint, from which on it is named


def _refuse_not_finite(named: Mapping[str, Any]) -> None:
    """Name the part whose constants or parameter values are NaN or infinite: solvers would only say infeasible."""
    for name, part in named.items():
        for leaf in [*part.constants(), *part.parameters()]:
            value = leaf.value.data if sparse.issparse(leaf.value) else leaf.value
            if value is not None and not np.all(np.isfinite(np.asarray(value, dtype=float))):
                raise InvalidInputError(
                    f"{name} has data that are NaN or infinite: {part}. Correct them; a bound that is infinite is "
                    "no bound, leave it out"
                )


def _named(constraints: Constraints, prefix: str) -> dict[str, Any]:
    if constraints is None:
        return {}
    if isinstance(constraints, cp.constraints.constraint.Constraint):
        raise InvalidInputError(
            f"constraints must be a list or a dict, got a single constraint: write [{constraints}]"
        )
    if isinstance(constraints, cp.Variable):
        raise InvalidInputError(
            f"constraints must be a list or a dict, got the variable {constraints.name()!r}: "
            "pass the upper variables as given=[...], and [] where there are no constraints"
        )
    if isinstance(constraints, Mapping):
        named = dict(constraints)
    elif not isinstance(constraints, Sequence) or isinstance(constraints, str):
        raise InvalidInputError(
            f"constraints must be a list or a dict of cvxpy constraints, got {_shown(constraints)}"
        )
    else:
        named = {f"{prefix}_{k}": constraint for k, constraint in enumerate(constraints)}
    for name, constraint in named.items():
        if isinstance(constraint, bool | np.bool_):
            raise InvalidInputError(
                f"constraint {name!r} is the constant {constraint}, not a CVXPY constraint"
            )
        if not isinstance(constraint, cp.constraints.constraint.Constraint):
            raise InvalidInputError(
                f"constraint {name!r} is not a CVXPY constraint: {constraint!r}"
            )
    return named


def _shown(thing: Any) -> str:
    """How a wrong argument is named in an error."""
    if isinstance(thing, cp.Problem):
        return "a cvxpy.Problem: pass its .objective and its .constraints one by one"
    return f"{type(thing).__name__}: {thing!r}"[:200]


def _minimised(objective: Any, level: str) -> tuple[Any, float]:
    """Return the expression to minimise and the sign that turns it back into the user's."""
    if isinstance(objective, cp.Minimize):
        return objective.args[0], 1.0
    if isinstance(objective, cp.Maximize):
        return -objective.args[0], -1.0
    raise InvalidInputError(
        f"the {level} objective must be cvxpy.Minimize or cvxpy.Maximize, got {_shown(objective)}"
    )


def _refuse_integer(variables: Sequence[cp.Variable]) -> None:
    for variable in variables:
        kind = next((k for k in ("integer", "boolean") if variable.attributes.get(k)), None)
        if kind is not None:
            raise UnsupportedModelError(
                f"variable {variable.name()!r} is {kind}: blocc solves continuous bilevel problems only. "
                f"Relax it (drop {kind}=True{', set bounds=[0, 1]' if kind == 'boolean' else ''}), "
                "or use a mixed-integer bilevel solver."
            )


def _attribute_constraints(variable: cp.Variable, leaf: Any) -> dict[str, Any]:
    """Attributes and bounds of a variable as explicit constraints on ``leaf``, named after the variable."""
    name, attributes = variable.name(), variable.attributes
    named: dict[str, Any] = {}
    if attributes.get("nonneg") or attributes.get("pos"):
        named[f"{name}.lower"] = leaf >= 0
    if attributes.get("nonpos") or attributes.get("neg"):
        named[f"{name}.upper"] = leaf <= 0
    lower, upper = _bounds_of(variable)
    for side, bound in (("lower", lower), ("upper", upper)):
        finite = np.isfinite(bound)
        if f"{name}.{side}" in named or not finite.any():
            continue
        if finite.all():
            named[f"{name}.{side}"] = leaf >= bound if side == "lower" else leaf <= bound
        else:
            index = np.nonzero(np.ravel(finite, order="F"))[0]
            part, limit = cp.vec(leaf, order="F")[index], np.ravel(bound, order="F")[index]
            named[f"{name}.{side}"] = part >= limit if side == "lower" else part <= limit
    if attributes.get("PSD") or attributes.get("NSD"):
        named[f"{name}.psd"] = leaf >> 0 if attributes.get("PSD") else leaf << 0
    if any(attributes.get(kind) for kind in ("symmetric", "PSD", "NSD")) and variable.size > 1:
        named[f"{name}.symmetric"] = leaf == leaf.T
    unsupported = [
        k for k in ("diag", "hermitian", "complex", "imag", "sparsity") if attributes.get(k)
    ]
    if unsupported:
        raise UnsupportedModelError(
            f"variable {name!r} has the attribute {unsupported[0]!r}, which blocc does not support; "
            "write it as a constraint on a plain real variable"
        )
    return named


def _bounds_of(variable: cp.Variable) -> tuple[Any, Any]:
    """Lower and upper bound arrays of a variable, with its sign attributes."""
    shape = variable.shape
    lower, upper = np.full(shape, -np.inf), np.full(shape, np.inf)
    bounds = variable.attributes.get("bounds")
    if bounds is not None:
        given = [bound.value if hasattr(bound, "value") else bound for bound in bounds]
        lower = (
            lower
            if given[0] is None
            else np.broadcast_to(np.asarray(given[0], float), shape).copy()
        )
        upper = (
            upper
            if given[1] is None
            else np.broadcast_to(np.asarray(given[1], float), shape).copy()
        )
    if variable.attributes.get("nonneg") or variable.attributes.get("pos"):
        lower = np.maximum(lower, 0.0)
    if variable.attributes.get("nonpos") or variable.attributes.get("neg"):
        upper = np.minimum(upper, 0.0)
    return lower, upper


def _sign(expression: Any) -> dict[str, bool]:
    """Sign of an expression, by CVXPY's analysis or by interval arithmetic on the bounds of its variables."""
    low = high = np.nan
    if not (expression.is_nonneg() or expression.is_nonpos()) and hasattr(expression, "get_bounds"):
        low, high = _interval(expression)
    if expression.is_nonneg() or low >= 0:
        return {"nonneg": True}
    return {"nonpos": True} if expression.is_nonpos() or high <= 0 else {}


def _interval(expression: Any) -> tuple[float, float]:
    """Least and largest value by CVXPY's interval arithmetic; NaN where it does not know."""
    unknown = np.nan, np.nan
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # 0 * inf where a variable has no bound
            bounds = [np.asarray(bound, dtype=float) for bound in expression.get_bounds()]
            parts = [expression]
            while parts:
                part = parts.pop()
                # CVXPY 1.9 gives the product of two vectors bounds of a wrong shape, which mean nothing further on
                if np.shape(part.get_bounds()[0]) not in ((), part.shape):
                    return unknown
                parts += part.args
    except ValueError:
        return unknown
    return float(np.min(bounds[0])), float(np.max(bounds[1]))


def _plain(variable: cp.Variable) -> tuple[cp.Variable, Any]:
    """Return a variable without attributes, and an expression of it that CVXPY's sign analysis sees as the old one."""
    plain = cp.Variable(variable.shape, name=variable.name())
    leaf: Any = plain
    if variable.is_nonneg():
        leaf = nonneg_wrap(plain)
    elif variable.is_nonpos():
        leaf = -nonneg_wrap(-plain)
    elif variable.attributes.get("PSD"):
        leaf = psd_wrap(plain)
    elif variable.attributes.get("symmetric"):
        leaf = symmetric_wrap(plain)
    return plain, leaf


class _Parametriser:
    """Copies expressions with upper variables replaced by parameters and lower variables by plain ones."""

    def __init__(self, given: Sequence[cp.Variable], lower: Mapping[int, Any]) -> None:
        self.given = {variable.id for variable in given}
        self.lower = lower
        self.expressions: list[Any] = []
        self.parameters: list[cp.Parameter] = []
        self.pinned: list[Any] = []
        self._known: dict[int, Any] = {}

    def parameter(self, expression: Any) -> Any:
        """Return the parameter that stands for an expression of upper variables and data alone."""
        known = self._known.get(id(expression))
        if known is not None:
            return known
        parameter = cp.Parameter(expression.shape, **_sign(expression))
        # a symmetric parameter would be canonicalised as its upper triangle: a plain one, and a wrap
        leaf: Any = parameter
        if expression.ndim == 2 and expression.shape[0] == expression.shape[1] > 1:
            if expression.is_psd():
                leaf = psd_wrap(parameter)
            elif expression.is_symmetric():
                leaf = symmetric_wrap(parameter)
        self._known[id(expression)] = leaf
        self.expressions.append(expression)  # kept alive, so that id() stays unique
        self.parameters.append(parameter)
        return leaf

    def visit(self, expression: Any) -> Any:
        """Copy an expression."""
        identities = {variable.id for variable in expression.variables()}
        if not identities & self.given:
            return self._rename(expression)
        if identities <= self.given:
            return self.parameter(expression)
        if isinstance(expression, DivExpression) and not (
            {v.id for v in expression.args[1].variables()} - self.given
        ):
            return cp.multiply(
                self.parameter(1 / expression.args[1]), self.visit(expression.args[0])
            )
        copy = expression.copy([self.visit(argument) for argument in expression.args])
        if copy.is_dcp() and not copy.is_dpp() and not isinstance(copy, AffAtom):
            # jointly convex atoms such as quad_over_lin(y, x): let a variable pinned to the parameter stand for x
            copy = copy.copy([self._pin(argument) for argument in copy.args])
        return copy

    def _pin(self, argument: Any) -> Any:
        if not (argument.parameters() and not argument.variables()):
            return argument
        variable = cp.Variable(argument.shape)
        self.pinned.append(variable == argument)
        return nonneg_wrap(variable) if argument.is_nonneg() else variable

    def _rename(self, expression: Any) -> Any:
        if isinstance(expression, cp.Variable):
            return self.lower[expression.id]
        if isinstance(expression, cp.Parameter) and any(
            expression.attributes.get(kind) for kind in ("symmetric", "PSD", "NSD", "diag")
        ):
            return self.parameter(expression)
        if not expression.args:
            return expression
        return expression.copy([self._rename(argument) for argument in expression.args])

    def constraint(self, constraint: Any) -> Any:
        """Copy a constraint (its identity, which names the dual, is kept by CVXPY)."""
        return constraint.copy([self.visit(argument) for argument in constraint.args])


def copy_on_plain_variables(
    variables: Sequence[cp.Variable], problem: cp.Problem
) -> tuple[list[cp.Variable], cp.Problem]:
    """Copy a problem, its variables replaced by plain ones and their attributes by constraints."""
    plain = {variable.id: _plain(variable) for variable in variables}
    visitor = _Parametriser([], {identity: pair[1] for identity, pair in plain.items()})
    bounds = [c for v in variables for c in _attribute_constraints(v, plain[v.id][0]).values()]
    copied = cp.Problem(
        cp.Minimize(visitor.visit(problem.objective.args[0])),
        [*(visitor.constraint(c) for c in problem.constraints), *bounds],
    )
    return [pair[0] for pair in plain.values()], copied


def on_plain_variables(constraints: Sequence[Any]) -> list[Any]:
    """Copy constraints, their variables replaced by plain ones without attributes or bounds."""
    plain = {v.id: _plain(v)[0] for constraint in constraints for v in constraint.variables()}
    visitor = _Parametriser([], plain)
    return [visitor.constraint(constraint) for constraint in constraints]


_WRAP = re.compile(r"(?:nonneg|nonpos|psd|symmetric)_wrap\(([^()]*)\)")
_SQUARES = re.compile(r"quad_over_lin\((.*?), 1\.0(?:, None, False)?\)")


def _written(expression: Any, visitor: _Parametriser) -> str:
    """An expression of the copy as its user may know it."""
    text = str(expression)
    for parameter, original in zip(visitor.parameters, visitor.expressions, strict=True):
        known = str(original).replace("\\", r"\\")
        text = re.sub(rf"\b{re.escape(parameter.name())}\b", known, text)
    text = _SQUARES.sub(r"sum_squares(\1)", _WRAP.sub(r"\1", text))
    return text.replace("PowerApprox(", "power(").replace("PnormApprox(", "pnorm(")


def _hint(wrong: Any, piece: Any) -> str:
    """What may be wrong with a part, beyond that it is not convex."""
    if isinstance(piece, cp.Expression) and piece.is_concave():
        return ". It is concave: is Minimize meant to be Maximize, or the other way round?"
    if any(leaf.sign == "UNKNOWN" for leaf in wrong.parameters()):
        return ". Where that hangs on a sign, say it by nonneg=True or bounds= of the variable"
    return ""


def _explain(pieces: Mapping[str, Any], visitor: _Parametriser) -> str:
    """Name the smallest part that CVXPY cannot take as convex, and affine in its parameters."""
    remedy = (
        " once the upper variables are fixed. Upper variables may enter through products "
        "phi(x) * y and through convex atoms of both"
    )
    for name, piece in pieces.items():
        if isinstance(piece, cp.Expression):
            wrong = None if piece.is_convex() else _culprit(piece, convex=True)
        elif isinstance(piece, cp.constraints.Inequality):
            wrong = None if piece.expr.is_convex() else _culprit(piece.expr, convex=True)
        else:
            wrong = None if piece.is_dcp() else piece
        if wrong is not None:
            part = _written(wrong, visitor)
            return f"{name}: the part  {part}  is not convex{remedy}{_hint(wrong, piece)}"
        if not piece.is_dcp(dpp=True):
            return f"{name}:  {_written(piece, visitor)}  is not affine in its parameters (DPP){remedy}"
    return "CVXPY refuses the problem"


def _culprit(expression: Any, *, convex: bool) -> Any:
    """Smallest part of an expression whose curvature is wrong."""
    for index, argument in enumerate(getattr(expression, "args", [])):
        rising, falling = expression.is_incr(index), expression.is_decr(index)
        if not (rising or falling) or argument.is_affine():
            continue
        wanted = convex if rising else not convex
        if not (argument.is_convex() if wanted else argument.is_concave()):
            return _culprit(argument, convex=wanted)
    return expression


class LowerProblem:
    """A lower-level problem: convex in its own variables for every value of the given ones.

    Parameters
    ----------
    objective : cvxpy.Minimize or cvxpy.Maximize
        Lower objective g(x, y).
    constraints : list or dict of cvxpy constraints, optional
        May involve the upper variables. Dict keys name the duals; list entries are named ``constraint_0``, ...
        Bounds and attributes of lower variables are constraints as well, named ``"<variable>.lower"``,
        ``".upper"``, ``".psd"``.
    given : sequence of cvxpy.Variable
        The upper variables, which this level takes as given. All other variables belong to this level.

    Raises
    ------
    InvalidInputError
        If the objective or a constraint is not a CVXPY object, or a given variable does not appear.
    UnsupportedModelError
        If the problem is not convex in the lower variables, or an upper variable enters it in a way that CVXPY's
        parametrised programming cannot express; the message names the atom. Integer variables are refused.
    """

    def __init__(
        self, objective: Any, constraints: Constraints = None, given: Sequence[cp.Variable] = ()
    ) -> None:
        variables = [given] if isinstance(given, cp.Variable) else given
        if not isinstance(variables, Sequence) or not all(
            isinstance(variable, cp.Variable) for variable in variables
        ):
            raise InvalidInputError(
                f"given must be a list of cvxpy variables, the upper level's, got {_shown(given)}"
            )
        self.given = list(variables)
        self.expression, self.sign = _minimised(objective, "lower")
        if self.expression.size != 1:
            raise InvalidInputError("the lower objective must be a scalar")
        self.constraints = _named(constraints, "constraint")
        found = cp.Problem(
            cp.Minimize(0 * cp.sum(self.expression)), list(self.constraints.values())
        )
        everything = {v.id: v for v in [*self.expression.variables(), *found.variables()]}
        given_ids = {variable.id for variable in self.given}
        self.variables = [v for identity, v in everything.items() if identity not in given_ids]
        if not self.variables:
            raise InvalidInputError(
                "the lower level has no variables of its own: check given=[...]"
            )
        _refuse_integer(self.variables)
        self.set_bounds()
        clash = set(self.bounds) & set(self.constraints)
        if clash:
            raise InvalidInputError(
                f"constraint name {sorted(clash)[0]!r} is taken by a variable's bound"
            )

    def set_bounds(self) -> None:
        """Read the lower variables' bounds and attributes."""
        self.bounds: dict[str, Any] = {}
        for variable in self.variables:
            self.bounds.update(_attribute_constraints(variable, variable))

    @property
    def all_constraints(self) -> dict[str, Any]:
        """Constraints by name, bounds and attributes of the lower variables included."""
        return {**self.constraints, **self.bounds}


class _Compiled:
    """A problem in y, parametrised by x: values, saddle points and gradients in x."""

    def __init__(
        self,
        objective: Callable[[_Parametriser], Any],
        constraints: Mapping[str, Any],
        bounds: Mapping[str, Any],
        upper: Layout,
        variables: Sequence[cp.Variable],
        label: str = "lower objective",
    ) -> None:
        plain = {variable.id: _plain(variable) for variable in variables}
        leaves = {identity: pair[1] for identity, pair in plain.items()}
        self.upper = upper
        self._visitor = visitor = _Parametriser(upper.variables, leaves)
        expression = objective(visitor)
        copies = {name: visitor.constraint(constraint) for name, constraint in constraints.items()}
        raw = _Parametriser(
            upper.variables, {identity: pair[0] for identity, pair in plain.items()}
        )
        copies.update({name: raw.constraint(constraint) for name, constraint in bounds.items()})
        self._variables, self._copies = [pair[0] for pair in plain.values()], copies
        self._problem = cp.Problem(cp.Minimize(expression), [*copies.values(), *visitor.pinned])
        if not self._problem.is_dcp(dpp=True):
            raise UnsupportedModelError(_explain({label: expression, **copies}, visitor))
        self._program: ConicProgram | None = None

    @property
    def is_quadratic(self) -> bool:
        """Whether, for every x, this is a quadratic program in y."""
        return (
            not self._visitor.pinned
            and self._problem.objective.expr.is_quadratic()
            and all(
                isinstance(copy, cp.constraints.Inequality | cp.constraints.Equality)
                and copy.expr.is_affine()
                for copy in self._copies.values()
            )
        )

    @property
    def program(self) -> ConicProgram:
        """The cone program, canonicalised when it is first needed."""
        if self._program is None:
            program = ConicProgram(self._problem, self._variables, list(self._copies.values()))
            self.names = list(self._copies)
            self.shapes = [_dual_shape(constraint) for constraint in self._copies.values()]
            visitor = self._visitor
            internal = {parameter.id for parameter in visitor.parameters}
            self._user = [p for p in self._problem.parameters() if p.id not in internal]
            self._phi = Functions(visitor.expressions, self.upper)
            columns, rows, start = [], [], 0
            for parameter in visitor.parameters:
                column = program.columns.get(parameter.id)
                if column is not None:
                    columns.append(np.arange(column, column + parameter.size))
                    rows.append(np.arange(start, start + parameter.size))
                start += parameter.size
            self._columns = np.concatenate([*columns, np.zeros(0, np.int64)]).astype(np.int64)
            self._rows = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64)
            self._constant = program.parameter_vector({p.id: p.value for p in self._user})
            self._program = program
        return self._program

    def refresh(self) -> None:
        """Take new values of the user's own parameters."""
        if self._program is not None:
            self._phi.refresh()
            self._constant = self._program.parameter_vector({p.id: p.value for p in self._user})

    def solve(self, x: Vector, tol: float) -> tuple[ConicAnswer, Vector]:
        """Answer at x, and the gradient of the optimal value in x."""
        program = self.program
        phi, jacobian = self._phi.value_jacobian(x)
        if not np.all(np.isfinite(phi)):
            raise LowerLevelError("a coefficient of the lower level is not finite at this x")
        vector = self._constant.copy()
        vector[self._columns] = phi[self._rows]
        program.set_vector(vector)
        answer = program.solve(tol)
        weights = np.zeros(len(phi))
        weights[self._rows] = program.gradient(answer)[self._columns]
        return answer, np.asarray(jacobian.T @ weights)

    def _duals(self, flat: Vector) -> dict[str, Any]:
        return {
            name: value.reshape(shape, order="F")
            for name, value, shape in zip(
                self.names, self.program.multipliers(flat), self.shapes, strict=True
            )
        }

    def saddle(self, x: Vector, tol: float) -> Saddle:
        """Saddle point at x."""
        try:
            answer, gradient = self.solve(x, tol)
        except LowerInfeasibleError as error:
            if error.ray is not None:
                raise named_infeasibility(error, self._duals(error.ray)) from None
            raise
        return Saddle(
            y=self.program.primal(answer),
            duals=self._duals(answer.dual),
            value=answer.value,
            grad_x=gradient,
            gap=answer.gap,
            violation=answer.violation,
            iterations=answer.iterations,
        )


def _dual_shape(constraint: Any) -> tuple[int, ...]:
    return (
        tuple(constraint.shape)
        if len(constraint.args) <= 2 and not isinstance(constraint, cp.SOC)
        else (-1,)
    )


def _as_functions(constraint: Any, name: str) -> tuple[Any | None, Any | None]:
    """Return a constraint as (c <= 0, h == 0) expressions, one of them None."""
    if isinstance(constraint, cp.constraints.Inequality | cp.constraints.NonPos):
        return constraint.expr, None
    if isinstance(constraint, cp.constraints.Equality | cp.constraints.Zero):
        return None, constraint.expr
    if isinstance(constraint, cp.constraints.NonNeg):
        return -constraint.expr, None
    if isinstance(constraint, cp.constraints.PSD):
        # eigenvalue routines read one triangle only: make the derivative see both
        return -cp.lambda_min(0.5 * (constraint.expr + constraint.expr.T)), None
    if isinstance(constraint, cp.SOC):
        bound, vector = constraint.args
        return cp.norm(vector, 2, axis=constraint.axis) - bound if vector.ndim > 1 else cp.norm(
            vector
        ) - bound, None
    raise UnsupportedModelError(
        f"constraint {name!r} is of the kind {type(constraint).__name__}; write it as an inequality of atoms"
    )


class BilevelProblem:
    """A bilevel program written in CVXPY.

    Parameters
    ----------
    objective : cvxpy.Minimize, cvxpy.Maximize, or callable
        Upper objective f(x, y). It need not be convex: CVXPY must only be able to evaluate and differentiate its
        atoms. A callable ``f(x, y)`` is minimised; x and y are arrays where their level has one variable, else dicts by
        variable name.
    lower : LowerProblem or sequence of LowerProblem
        One lower problem, or several independent followers.
    constraints : list or dict of cvxpy constraints, optional
        Upper constraints, in x alone or in x and y.

    Notes
    -----
    The problem is a :class:`blocc.model.Model` on flat vectors: x stacks the upper variables, y the lower ones, in the
    order of ``upper_layout.variables`` and ``lower_layout.variables``, Fortran order inside a variable.
    """

    def __init__(self, objective: Any, lower: Any, constraints: Constraints = None) -> None:
        self._arguments = objective, lower, constraints
        lowers = [lower] if isinstance(lower, LowerProblem) else lower
        if (
            not isinstance(lowers, Sequence)
            or not lowers
            or not all(isinstance(item, LowerProblem) for item in lowers)
        ):
            raise InvalidInputError(
                f"lower must be a LowerProblem or a non-empty list of them, got {_shown(lower)}"
            )
        self.lowers: list[LowerProblem] = list(lowers)
        self.upper_constraints = _named(constraints, "upper")
        self.callable: UpperCallable | None = None
        self.expression: Any = None
        self.sign = 1.0
        if callable(objective) and not isinstance(objective, cp.Minimize | cp.Maximize):
            self.callable = objective
        else:
            self.expression, self.sign = _minimised(objective, "upper")
            if self.expression.size != 1:
                raise InvalidInputError("the upper objective must be a scalar")
        self._collect_variables()
        self._refuse_not_finite()
        self._prepare_functions()
        self._compiled_lower: list[_Compiled] | None = None
        self._sharp = self._sharp_lower()
        self._penalized: tuple[_Compiled, _Compiled] | None = None
        self._last: _Last | None = None
        self._relaxed: Relaxation | None = None  # the answer, where it needs no tolerance
        self._relaxation: _Relaxed | None = None
        self._pieces: dict[str, _ConeTerm] | None = None
        found = {p.id: p for part in self._sources() for p in part.parameters()}
        self._parameters = list(found.values())
        self._parameter_values: list[Any] = []
        self._parameters_changed()

    def _sharp_lower(self) -> QuadraticLower | None:
        """The lower level by its derivatives, where it is small: a quadratic program in y, or nearly one at a time.

        Raises
        ------
        UnsupportedModelError
            If it is none, and not convex by CVXPY's rules either.
        """
        if self._cones:
            self._compile_lower()
            return None
        rows, equal = self._upper_rows
        parts = (
            slice(2 + rows, 2 + self._inequality_rows),
            slice(2 + self._inequality_rows + equal, self._functions.size),
        )
        program: Any = quadratic_program(self._functions, 1, parts, self.bounds, self.n_upper)
        if program is None:
            size = self.n_lower * max(self.n_lower, sum(p.stop - p.start for p in parts))
            quadratic = all(compiled.is_quadratic for compiled in self._compile_lower())
            if size > DENSE_LIMIT or self.layout.size > MAX_VARIABLES:
                return None
            data = self._functions, 1, parts, self.bounds, self.n_upper
            if not quadratic:
                return SmoothLower(SmoothProgram(*data), self._blocks)
            program = VaryingProgram(*data)
        return QuadraticLower(program, self._blocks)

    def _compile_lower(self) -> list[_Compiled]:
        """The lower levels as cone programs, found convex at the first call and canonicalised when solved."""
        if self._compiled_lower is None:
            self._compiled_lower = [
                _Compiled(
                    lambda visitor, item=item: visitor.visit(item.expression),  # type: ignore[misc]
                    item.constraints,
                    item.bounds,
                    self.upper_layout,
                    item.variables,
                )
                for item in self.lowers
            ]
        return self._compiled_lower

    # ---------------------------------------------------------------------------------------- structure
    def _sources(self) -> list[Any]:
        """Expressions that may have parameters: both levels', and the variables' bounds."""
        return [*self._expressions, *self._bound_expressions()]

    def _bound_expressions(self) -> list[Any]:
        return [
            bound
            for variable in self.layout.variables
            for bound in variable.attributes.get("bounds") or ()
            if isinstance(bound, cp.Expression)
        ]

    def _refuse_not_finite(self) -> None:
        parts = dict(self.upper_constraints)
        if self.expression is not None:
            parts["the upper objective"] = self.expression
        for item in self.lowers:
            _refuse_not_finite(
                {**parts, "the lower objective": item.expression, **item.constraints}
            )

    def _collect_variables(self) -> None:
        lower: dict[int, cp.Variable] = {}
        upper: dict[int, cp.Variable] = {}
        for item in self.lowers:
            for variable in item.variables:
                if variable.id in lower:
                    raise InvalidInputError(
                        f"variable {variable.name()!r} belongs to two lower problems; followers must be independent"
                    )
                lower[variable.id] = variable
            upper.update({variable.id: variable for variable in item.given})
        sources = list(self.upper_constraints.values())
        if self.expression is not None:
            sources.append(self.expression)
        for source in sources:
            upper.update({v.id: v for v in source.variables() if v.id not in lower})
        clash = set(upper) & set(lower)
        if clash:
            name = lower[clash.pop()].name()
            raise InvalidInputError(
                f"variable {name!r} is given to one lower problem and decided by another"
            )
        if not upper:
            raise InvalidInputError(
                "no upper variables: pass them as given=[...] of the lower problem"
            )
        _refuse_integer(list(upper.values()))
        self.upper_layout = Layout(list(upper.values()))
        self.lower_layout = Layout(list(lower.values()))
        self.layout = Layout([*upper.values(), *lower.values()])
        names = [variable.name() for variable in self.layout.variables]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidInputError(
                f"two variables are called {twice!r}: the result is indexed by name"
            )

    def _prepare_functions(self) -> None:
        """Compile f, g and all constraints into one vector function of (x, y)."""
        inequalities: list[Any] = []
        equalities: list[Any] = []

        def add(name: str, constraint: Any) -> tuple[str, int]:
            inequality, equality = _as_functions(constraint, name)
            if inequality is not None:
                inequalities.append(inequality)
                return "inequality", int(inequality.size)
            assert equality is not None
            equalities.append(equality)
            return "equality", int(equality.size)

        upper_bounds: dict[str, Any] = {}
        for variable in self.upper_layout.variables:
            named = _attribute_constraints(variable, variable)
            upper_bounds.update(
                {k: c for k, c in named.items() if k.endswith((".psd", ".symmetric"))}
            )
        lower_ids = set(self.lower_layout.slices)
        self._alone = {
            name: constraint
            for name, constraint in {**self.upper_constraints, **upper_bounds}.items()
            if not any(v.id in lower_ids for v in constraint.variables())
        }
        for name, constraint in self._alone.items():
            if not constraint.is_dcp():
                raise UnsupportedModelError(
                    f"upper constraint {name!r} is in x alone and not convex by CVXPY's rules: {constraint}"
                )
        self._coupling = {k: c for k, c in self.upper_constraints.items() if k not in self._alone}
        self._upper_parts: list[tuple[str, str, int]] = [
            (name, *add(name, constraint))
            for name, constraint in {**self._alone, **self._coupling}.items()
        ]
        self._upper_rows = (sum(e.size for e in inequalities), sum(e.size for e in equalities))
        #: Multipliers of the lower levels: of ordinary constraints and bounds, and of cones.
        self._blocks: list[DualBlock] = []
        self._cones: list[tuple[str, Any]] = []
        end = {"inequality": 0, "equality": 0}
        taken: set[str] = set()
        for index, item in enumerate(self.lowers):
            for name, constraint in item.all_constraints.items():
                key = name if name not in taken else f"{name}[{index}]"
                taken.add(name)
                if name in item.bounds and name.endswith((".lower", ".upper")):
                    self._blocks.append(self._bound_block(key, constraint))
                    continue
                kind, size = add(name, constraint)
                if isinstance(constraint, cp.SOC | cp.constraints.PSD):
                    self._cones.append((key, constraint))
                else:
                    rows = np.arange(end[kind], end[kind] + size)
                    self._blocks.append(DualBlock(key, kind, rows, _dual_shape(constraint)))
                end[kind] += size
        self._inequality_rows = sum(e.size for e in inequalities)
        self._equality_rows = sum(e.size for e in equalities)
        lower_objective = sum(item.expression for item in self.lowers)
        first = [self.expression] if self.expression is not None else [cp.Constant(0.0)]
        self._expressions = [*first, lower_objective, *inequalities, *equalities]
        self._functions = Functions(self._expressions, self.layout)
        lower, upper = zip(*(_bounds_of(v) for v in self.layout.variables), strict=True)
        self.bounds = (self.layout.pack(lower), self.layout.pack(upper))
        self._x_set: ConvexSet | None = None

    def _bound_block(self, key: str, constraint: Any) -> DualBlock:
        (variable,) = constraint.variables()
        kind = "lower" if key.split("[")[0].endswith(".lower") else "upper"
        bound = _bounds_of(variable)[0 if kind == "lower" else 1]
        entries = np.flatnonzero(np.isfinite(np.ravel(bound, order="F")))
        start = self.lower_layout.slices[variable.id].start
        return DualBlock(key, kind, start + entries, _dual_shape(constraint))

    @property
    def x_set(self) -> ConvexSet:
        """X, the upper variables' bounds and the upper constraints in x alone."""
        if self._x_set is None:
            n = self.upper_layout.size
            lower, upper = self.bounds[0][:n].copy(), self.bounds[1][:n].copy()
            if self._alone:
                self._x_set = ConvexRegion(self.upper_layout, {**self._alone}, lower, upper)
            else:
                self._x_set = Box(lower, upper)
        return self._x_set

    @property
    def n_upper(self) -> int:
        """Number of upper variables, entry by entry."""
        return self.upper_layout.size

    @property
    def n_lower(self) -> int:
        """Number of lower variables, entry by entry."""
        return self.lower_layout.size

    def refresh(self) -> None:
        """Take new values of CVXPY parameters in the model (called at the start of a solve)."""
        if any(bound.parameters() for bound in self._bound_expressions()):
            for item in (
                self.lowers
            ):  # which entries are bounded at all may have changed: from the beginning
                item.set_bounds()
            self.__init__(*self._arguments)  # type: ignore[misc]
            return
        self._functions.refresh()
        self._sharp = self._sharp_lower()
        for compiled in [*(self._compiled_lower or ()), *(self._penalized or ())]:
            compiled.refresh()
        if self._relaxation is not None and not self._relaxation.refresh():
            self._relaxation = None
        for term in (self._pieces or {}).values():
            term.refresh()
        self._x_set = self._relaxed = None

    # ---------------------------------------------------------------------------------------- the Model
    def _call(self, v: Vector) -> float:
        assert self.callable is not None
        n = self.n_upper
        return float(
            self.callable(
                _argument(self.upper_layout, v[:n]),
                _argument(self.lower_layout, v[n:]),
            )
        )

    def upper(self, x: Vector, y: Vector) -> float:
        """Upper objective f(x, y), minimised."""
        v = np.concatenate([x, y])
        if self.callable is not None:
            return self._call(v)
        return float(self._functions.value(v)[0])

    def upper_violation(self, x: Vector, y: Vector) -> float:
        """Largest relative violation of the upper constraints."""
        data = self.derivatives(x, y)
        rows, equal = self._upper_rows
        scale = 1.0 + float(np.max(np.abs(np.concatenate([x, y])), initial=0.0))
        inequality = np.max(data.inequality[:rows], initial=0.0)
        equality = np.max(np.abs(data.equality[:equal]), initial=0.0)
        return float(max(inequality, equality, 0.0)) / scale

    def _worst_upper(self, x: Vector, y: Vector) -> str | None:
        """The upper constraint that (x, y) violates most, None where none is violated."""
        data = self.derivatives(x, y)
        values = {"inequality": data.inequality, "equality": np.abs(data.equality)}
        start = {"inequality": 0, "equality": 0}
        worst: dict[str, float] = {}
        for name, kind, size in self._upper_parts:
            rows = slice(start[kind], start[kind] + size)
            worst[name], start[kind] = float(np.max(values[kind][rows], initial=0.0)), rows.stop
        culprit = max(worst, key=lambda name: worst[name], default=None)
        return None if culprit is None or worst[culprit] <= _VIOLATED else culprit

    def lower(self, x: Vector, *, tol: float = _TOL, warm: Any = None) -> Saddle:
        """Saddle point of the lower level at x (all followers together)."""
        x = np.asarray(x, dtype=float)
        if self._sharp is not None:
            sharp = self._sharp.saddle(x)
            if sharp is not None:
                return sharp
        saddle = self._conic_saddle(x, tol)
        sharp = None
        if isinstance(self._sharp, SmoothLower):
            sharp = self._sharp.polished(x, saddle)
        return saddle if sharp is None else sharp

    def _conic_saddle(self, x: Vector, tol: float) -> Saddle:
        """Saddle point of the lower level by the interior-point method."""
        lowers = self._compile_lower()
        if len(lowers) == 1:
            return lowers[0].saddle(x, tol)
        saddles = [compiled.saddle(x, tol) for compiled in lowers]
        duals: dict[str, Any] = {}
        for k, saddle in enumerate(saddles):
            for name, value in saddle.duals.items():
                duals[name if name not in duals else f"{name}[{k}]"] = value
        return Saddle(
            y=np.concatenate([saddle.y for saddle in saddles]),
            duals=duals,
            value=sum(saddle.value for saddle in saddles),
            grad_x=np.sum([saddle.grad_x for saddle in saddles], axis=0),
            gap=max(saddle.gap for saddle in saddles),
            violation=max(saddle.violation for saddle in saddles),
            iterations=sum(saddle.iterations for saddle in saddles),
        )

    def responses(self, points: Matrix) -> Responses | None:
        """Answers, and what :meth:`values` has of them, at those of many x where that is known without a solve."""
        program = None if self._sharp is None else self._sharp.program
        if not isinstance(program, QuadraticProgram) or self.callable is not None:
            return None
        known, y, values = program.answers(points)
        functions = self._functions.values(np.hstack([points, y])) if known.any() else None
        if functions is None:
            return None
        m = 2 + self._inequality_rows
        return Responses(
            known, y, values, functions[:, 0], functions[:, 1], functions[:, 2:m], functions[:, m:]
        )

    def sensitivity(self, x: Vector) -> Sensitivity | None:
        """Derivatives of y(x) and v at x where the lower level has them and its active set does not change."""
        return None if self._sharp is None else self._sharp.sensitivity(x)

    def penalized(self, x: Vector, gamma: float, *, tol: float = _TOL, warm: Any = None) -> Saddle:
        """Saddle point of ``min_y f + gamma g`` under the lower constraints and the upper ones that involve y."""
        if self._penalized is None:
            self._penalized = self._compile_penalized()
        unit, double = self._penalized
        unit.program.blend(double.program, gamma)
        return unit.saddle(np.asarray(x, dtype=float), tol)

    def _compile_penalized(self) -> tuple[_Compiled, _Compiled]:
        if self.expression is None:
            raise UnsupportedModelError(
                "the upper objective is a callable: its penalised problem is not a CVXPY one"
            )
        constraints = {**self._coupling}
        bounds: dict[str, Any] = {}
        for item in self.lowers:
            constraints.update(item.constraints)
            bounds.update(item.bounds)
        lower = sum(item.expression for item in self.lowers)

        def compiled(weight: float) -> _Compiled:
            def objective(visitor: _Parametriser) -> Any:
                return visitor.visit(self.expression) + weight * visitor.visit(lower)

            return _Compiled(
                objective,
                constraints,
                bounds,
                self.upper_layout,
                self.lower_layout.variables,
                "penalised objective",
            )

        # gamma as a parameter is not DPP, but the objective's data are affine in it: two compilations give the line
        return compiled(1.0), compiled(2.0)

    def residuals(self, x: Vector, y: Vector, duals: Mapping[str, Any]) -> LowerResiduals:
        """Lower-level residuals of (y, duals) at x, from the problem's own expressions."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        v, data = np.concatenate([x, y]), self.derivatives(x, y)
        objective, gradient = data.lower, data.lower_gradient.copy()
        lagrangian, complementarity, negative = 0.0, 0.0, 0.0
        worst = [0.0]
        magnitude = max(1.0, float(np.max(np.abs(gradient), initial=0.0)))
        low, high = (bound[len(x) :] for bound in self.bounds)
        for block in self._blocks:
            dual = np.ravel(np.asarray(duals[block.name], dtype=float), order="F")
            rows, equality = block.entries, block.kind == "equality"
            if block.kind in ("lower", "upper"):
                sign = -1.0 if block.kind == "lower" else 1.0
                value = low[rows] - y[rows] if block.kind == "lower" else y[rows] - high[rows]
                slope = np.zeros(len(v))
                slope[len(x) + rows] = sign * dual
            else:
                rows = rows + self._upper_rows[1 if equality else 0]
                value = (data.equality if equality else data.inequality)[rows]
                jacobian = data.equality_jacobian if equality else data.inequality_jacobian
                slope = np.asarray(jacobian[rows].T @ dual).ravel()
            product = float(value @ dual)
            worst.append(float(np.max(np.abs(value) if equality else value, initial=0.0)))
            if not equality:
                complementarity += abs(product)
                negative = max(negative, float(np.max(-dual, initial=0.0)))
            lagrangian, gradient = lagrangian + product, gradient + slope
            magnitude = max(magnitude, float(np.max(np.abs(slope), initial=0.0)))
        for key, term in self._cone_terms().items():
            product, slope, outside = term.evaluate(v, duals[key])
            worst.append(outside)
            complementarity += abs(product)
            lagrangian, gradient = lagrangian + product, gradient + slope
            magnitude = max(magnitude, float(np.max(np.abs(slope), initial=0.0)))
        violation = max(worst) / (1.0 + float(np.max(np.abs(y), initial=0.0)))
        gradient = gradient[len(x) :]
        # L(., duals) is convex: its linearisation over the box that holds y bounds it from below
        lower, upper = (bound[len(x) :] for bound in self.bounds)
        reach = np.where(gradient > 0, y - lower, upper - y)
        reach = np.where(np.isfinite(reach), np.maximum(reach, 0.0), 1.0 + np.abs(y))
        bound = objective + lagrangian - float(np.abs(gradient) @ reach)
        size = 1.0 + abs(objective)
        return LowerResiduals(
            objective=objective,
            bound=bound,
            gap=(objective - bound) / size,
            violation=violation,
            dual_infeasibility=max(float(np.max(np.abs(gradient), initial=0.0)), negative)
            / magnitude,
            complementarity=complementarity / size,
        )

    def _cone_terms(self) -> dict[str, _ConeTerm]:
        """Compiled pieces of the Lagrangian for constraints in cones."""
        if self._pieces is None:
            self._pieces = {key: _ConeTerm(cone, self.layout) for key, cone in self._cones}
        return self._pieces

    # ------------------------------------------------------------------------------------- capabilities
    def values(self, x: Vector, y: Vector) -> tuple[float, float, Vector, Vector]:
        """f, g, and all inequalities and equalities at (x, y), for the joint method."""
        v = np.concatenate([x, y])
        value, m = self._functions.value(v), 2 + self._inequality_rows
        upper = float(value[0]) if self.callable is None else self._call(v)
        return upper, float(value[1]), value[2:m], value[m:]

    def derivatives(self, x: Vector, y: Vector) -> Derivatives:
        """Values and first derivatives of f, g and all constraints at (x, y), for the joint method."""
        v = np.concatenate([x, y])
        value, jacobian = self._functions.value_jacobian(v)
        m = 2 + self._inequality_rows
        upper_value, upper_gradient = float(value[0]), _row(jacobian, 0)
        if self.callable is not None:
            upper_value, upper_gradient = self._call(v), self._difference(v)
        return Derivatives(
            upper=upper_value,
            upper_gradient=upper_gradient,
            lower=float(value[1]),
            lower_gradient=_row(jacobian, 1),
            inequality=value[2:m],
            inequality_jacobian=jacobian[2:m],
            equality=value[m:],
            equality_jacobian=jacobian[m:],
        )

    def hessian(self, x: Vector, y: Vector, gamma: float, dual: Vector, equal: Vector) -> Matrix:
        """Hessian of ``f + gamma g`` plus the weighted constraints at (x, y), for the joint method."""
        v = np.concatenate([x, y])
        total = self._functions.hessian(v, np.concatenate([[1.0, gamma], dual, equal]))
        if self.callable is not None:
            base, own = self._difference(v), np.zeros_like(total)
            for k in range(len(v)):
                shifted = v.copy()
                shifted[k] += 1e-4 * max(1.0, abs(v[k]))
                own[:, k] = (self._difference(shifted) - base) / (shifted[k] - v[k])
            total += 0.5 * (own + own.T)
        return total

    def _difference(self, v: Vector) -> Vector:
        """Gradient of a callable by central differences (error about 1e-10 of its scale)."""
        gradient = np.zeros(len(v))
        for k in range(len(v)):
            step = 6e-6 * max(1.0, abs(v[k]))
            ahead, behind = v.copy(), v.copy()
            ahead[k] += step
            behind[k] -= step
            gradient[k] = (self._call(ahead) - self._call(behind)) / (ahead[k] - behind[k])
        return gradient

    def relaxation(self, *, tol: float = _TOL) -> Relaxation:
        """Minimise f over both levels' constraints, lower-level optimality dropped.

        Raises
        ------
        UnsupportedModelError
            If f or a constraint is not jointly convex, so that the relaxation is not a convex program.
        """
        if self._relaxed is not None:
            return self._relaxed
        if self.callable is None:
            end = 2 + self._inequality_rows
            rows = slice(2, end), slice(end, self._functions.size)
            program = quadratic_program(self._functions, 0, rows, self.bounds)
            found = None if program is None else program.solve(np.zeros(0))
            if program is not None and found is not None:
                z, value, gap = program.user_units(found[0]).z, found[1], found[3]
                bound = value - gap * (1.0 + abs(value))
                n = self.n_upper
                self._relaxed = Relaxation(x=z[:n], y=z[n:], bound=bound)
                return self._relaxed
        if self._relaxation is None:
            constraints = {**self._alone, **self._coupling}
            for index, item in enumerate(self.lowers):
                for name, constraint in item.constraints.items():
                    key = name if name not in constraints else f"{name}[{index}]"
                    constraints[key] = constraint
            self._relaxation = _Relaxed(self.expression, constraints, self.layout)
        v, bound = self._relaxation.solve(tol)
        return Relaxation(x=v[: self.n_upper], y=v[self.n_upper :], bound=bound)

    # ---------------------------------------------------------------------------------------- solving
    def solve(
        self,
        gamma: float | None = None,
        starts: int | str = 1,
        global_: bool = False,
        tol: float = 1e-6,
        seed: int = 0,
        verbose: bool = False,
        on_failure: OnFailure = "raise",
        *,
        method: str = "auto",
        warm_start: bool = False,
        callback: Callable[[Record], None] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> Result:
        """Solve the bilevel program and certify the answer.

        Starts from the upper variables' ``.value`` where these are set. Afterwards all variables have
        their ``.value``.

        Parameters
        ----------
        gamma : float, optional
            Fix the penalty (as the published method does) instead of raising it in stages. Takes steps in x.
        starts : int or "range"
            More starts, for problems with many local solutions: random points of the range of x, or its
            extremes in every direction (deterministic).
        global_ : bool
            Prove global optimality by branch and bound on x (at most 3 upper variables), to a relative gap of 1e-3
            or ``tol``, whichever is larger.
        tol : float
            Relative tolerance of the certificate.
        seed : int
            Of the random starts.
        verbose : bool
            Print one header, one table, one status line.
        on_failure : {"raise", "return"}
            Raise SolveError, with the partial result, where no certified answer was found; or return it.
        method : {"auto", "joint", "lbfgsb", "spectral", "convex_concave"}
            "joint" steps in (x, y); the others in x alone, for large lower levels. "auto" chooses by size.
        warm_start : bool
            Start from the last answer and the relaxation only, and search the axes through where that ends; where it
            ends without a certificate, everything is searched as without it. For parameters that changed a little: an
            answer that has become better elsewhere can be missed. What is compiled is kept in any case. Has no effect
            with other methods than the joint one, with several starts, ``global_``, a checkpoint, or after
            the upper variables' ``.value`` was changed.
        callback : callable, optional
            Called with a dict after every stage.
        checkpoint : path, optional
            Written after every run of the joint method, or every stage of the others.
        resume : path, optional
            Continue from a checkpoint of the same problem and options.

        Returns
        -------
        Result
            ``x``, ``y`` and ``duals`` are dicts by name.

        Raises
        ------
        SolveError, LowerLevelError, UnsupportedModelError, InvalidInputError
        SolveInterrupted
            On Ctrl-C, once there is a point: its ``result`` has the best one so far, certified as far as it is solved.
        """
        if on_failure not in ("raise", "return"):
            raise InvalidInputError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
        if method not in ("auto", "joint", *METHODS):
            raise InvalidInputError(f"method must be 'joint' or one of {METHODS}, got {method!r}")
        require_number("tol", tol, Real)
        require_number("seed", seed, Integral)
        if not 0 < tol < 1:
            raise InvalidInputError(f"tol must be between 0 and 1, got {tol}")
        if seed < 0:
            raise InvalidInputError(f"seed must be at least 0, got {seed}")
        progress = Progress(verbose, callback)
        progress.sense = self.sign
        if self._parameters_changed():
            if not all(
                value is None or np.isfinite(value).all() for value in self._parameter_values
            ):
                self._refuse_not_finite()  # names the part
            self.refresh()
        small = self.layout.size <= MAX_VARIABLES
        if gamma is not None or method not in ("auto", "joint") or (method == "auto" and not small):
            in_x = method if method in METHODS else "auto"
            result = homotopy.solve(
                ModelInX(self),
                self._start(),
                gamma=gamma,
                method=in_x,  # type: ignore[arg-type]
                tol=tol,
                progress=progress,
                on_failure="return",
                checkpoint=checkpoint,
                resume=resume,
            )
            result = self._named_result(result)
        else:
            kept = _Kept(self, checkpoint, resume, {"starts": starts, "seed": seed, "tol": tol})
            last = (
                self._last if warm_start and starts == 1 and not global_ and not kept.used else None
            )
            if last is not None and not np.array_equal(last[0], self._start()):
                last = None  # the user has set another start
            result = self._solve_joint(starts, seed, tol, progress, global_, kept, last)
            if last is not None and not result.success:
                result = self._solve_joint(starts, seed, tol, progress, global_, kept, None)
        for variable in self.layout.variables:
            values = result.x if variable.name() in result.x else result.y
            variable.save_value(np.asarray(values[variable.name()]))
        if on_failure == "raise" and not result.success:
            raise SolveError(f"{result.message}. The answer is in this exception's result", result)
        return result

    def _parameters_changed(self) -> bool:
        now = [None if p.value is None else _flat_value(p.value).copy() for p in self._parameters]
        before, self._parameter_values = self._parameter_values, now
        return len(before) != len(now) or any(
            old is not new and (old is None or new is None or not np.array_equal(old, new))
            for old, new in zip(before, now, strict=True)
        )

    def _start(self) -> Vector:
        lower, upper = (bound[: self.n_upper] for bound in self.bounds)
        default = np.clip(np.zeros(self.n_upper), lower, upper)
        ranged = np.isfinite(lower) & np.isfinite(
            upper
        )  # at a corner there is often nothing to gain nearby
        default[ranged] = 0.5 * (lower[ranged] + upper[ranged])
        for variable in self.upper_layout.variables:
            if variable.value is not None:
                if not np.all(np.isfinite(_flat_value(variable.value))):
                    raise InvalidInputError(
                        f"{variable.name()}.value, the start, has entries that are NaN or infinite"
                    )
                default[self.upper_layout.slices[variable.id]] = _flat_value(variable.value)
        return np.clip(default, lower, upper)

    def _solve_joint(
        self,
        starts: int | str,
        seed: int,
        tol: float,
        progress: Progress,
        global_: bool,
        kept: _Kept,
        last: _Last | None,
    ) -> Result:
        progress.header(
            f"blocc: {self.n_upper} upper and {self.n_lower} lower variables, joint method, tol {tol:.0e}"
        )
        bound: float | None = None
        with progress.timed("relaxation"):
            try:
                bound = self.relaxation().bound
            except (UnsupportedModelError, LowerLevelError):
                bound = self._interval_bound()  # no convex relaxation, or none with a minimiser
        method = Joint(self, self._start(), bound=bound, tol=tol, progress=progress)
        kept.attach(method, progress)
        interrupt: KeyboardInterrupt | None = None
        point: JointPoint | None = None
        probed: _Probed | None = None
        try:
            with progress.timed("joint"):
                if last is not None:
                    point = method.follow(*last)
                if point is None:
                    point = method.solve(starts, seed)
            if point is None:
                raise self._no_answer()
            with progress.timed("probe"):
                point, probed = self._probed(method, point)
            if global_:
                with progress.timed("branch and bound"):
                    better, bound = branch_and_bound(self, point, bound, max(tol, 1e-3), progress)
                    point, probed = better, probed if better is point else None
        except KeyboardInterrupt as signal:
            if point is None and method.best is not None:
                point = method.in_user_units(method.best)
            if point is None:
                raise
            interrupt = signal
        with progress.timed("certificate"):
            certificate, saddle, objective = self._certificate(method, point, bound, probed, tol)
        if interrupt is not None:
            status = Status.INTERRUPTED
        elif certificate.optimal(max(tol, 1e-3) if global_ else tol):
            status = Status.OPTIMAL
        elif certificate.ok(tol):
            status = Status.STATIONARY
        elif certificate.lower_ok(tol):
            status = Status.FEASIBLE
        else:
            status = Status.LOWER_NOT_SOLVED
        message = status.value
        if status is Status.LOWER_NOT_SOLVED and certificate.violation > tol:
            contradictory = self._contradiction()
            if contradictory is not None:
                raise contradictory
            culprit = self._worst_upper(point.x, point.y)
            message += f" (constraints violated by {certificate.violation:.1e}, relative)"
            if culprit is not None:
                message += (
                    f": no x was found at which upper constraint {culprit!r} holds at the lower level's answer. Relax "
                    "it, or start elsewhere"
                )
        if status is Status.FEASIBLE:
            message += (
                f" (descent of {certificate.stationarity:.1e} left); more starts may help: "
                'solve(starts="range")'
            )
        if global_ and status is Status.STATIONARY:
            gap = "unknown" if bound is None else f"{certificate.bound_gap:.1e}"
            message += f"; global optimality is not proven (relative gap {gap})"
        low, high = (end * method.model.x_unit for end in method.range)
        self._last = (point.x, point.y, (low, high)) if certificate.ok(tol) else None
        progress.timings["total"] = progress.seconds
        progress.status(
            f"status: {status.name.lower()}: {message}; objective {self.sign * objective:.8g}"
        )
        result = self._named_result(
            Result(
                x=point.x,
                y=point.y,
                objective=objective,
                lower_objective=self.derivatives(point.x, point.y).lower,
                bound=bound,
                status=status,
                duals=saddle.duals,
                certificate=certificate,
                records=tuple(progress.records),
                timings=dict(progress.timings),
                message=message,
            )
        )
        if interrupt is not None:
            raise SolveInterrupted(
                "interrupted: the best point so far is in the exception's result", result
            ) from interrupt
        return result

    def _contradiction(self) -> InvalidInputError | LowerInfeasibleError | None:
        """The error to raise where the constraints have no point, by a solver's proof."""
        constraints = {**self._alone, **self._coupling}
        for item in self.lowers:
            constraints.update(item.all_constraints)
        for variable in self.upper_layout.variables:
            constraints.update(_attribute_constraints(variable, variable))
        lower = self.lower_layout.slices
        alone = {
            name: constraint
            for name, constraint in constraints.items()
            if not any(v.id in lower for v in constraint.variables())
        }
        for kind, what, chosen in (
            (InvalidInputError, "no x satisfies the upper level's constraints", alone),
            (
                LowerInfeasibleError,
                "no pair (x, y) satisfies both levels' constraints",
                constraints,
            ),
        ):
            culprits = contradiction(chosen)
            if culprits:
                return kind(
                    f"{what}: {' and '.join(map(repr, culprits))} cannot hold together; relax one of them"
                )
        return None

    def _no_answer(self) -> Exception:
        """Why no x with a lower-level answer was found: the error to raise."""
        contradictory = self._contradiction()
        if contradictory is not None:
            return contradictory
        try:
            self.lower(self._start())
        except LowerUnboundedError as error:
            return LowerUnboundedError(
                f"the lower level has no answer at the start: {error}. Bound its variables, or check whether its "
                "objective should be minimised or maximised"
            )
        except LowerLevelError as error:
            return type(error)(
                f"no x was found at which the lower level has an answer; at the start: {error}. "
                "Check the signs of these constraints, or set x.value to a point where there is an answer"
            )
        return LowerInfeasibleError(
            "no x was found at which both levels' constraints hold at the lower level's answer; "
            "set x.value to a point where they do"
        )

    def _interval_bound(self) -> float | None:
        """Bound on f by CVXPY's interval arithmetic from the variables' bounds; None where there is none."""
        if self.expression is None:
            return None
        if hasattr(self.expression, "get_bounds"):
            least = _interval(self.expression)[0]
            return least if np.isfinite(least) else None
        return 0.0 if self.expression.is_nonneg() else None

    def _probed(self, solver: Joint, point: JointPoint) -> tuple[JointPoint, _Probed]:
        """Go on from a point as long as a probe finds a better one; and what the last probe has left."""
        found, probed = self._probe(point)
        for _ in range(_PROBES):
            better = None if found is None else solver.go_on(found)
            if better is None:
                break
            point = better
            found, probed = self._probe(point)
        return point, probed

    def _probe(self, point: JointPoint) -> tuple[JointPoint | None, _Probed]:
        """Look for descent from a point, in the units of the answer, whatever the start was."""
        own = Joint(self, point.x, point.y)
        found, left = own.probe(own.in_user_units(point, back=True))
        return None if found is None else own.in_user_units(found), (own, left)

    def _certificate(
        self,
        solver: Joint,
        point: JointPoint,
        bound: float | None,
        probed: _Probed | None,
        tol: float,
    ) -> tuple[Certificate, Saddle, float]:
        """Every residual afresh; ``probed`` at the point, where that has just been done."""
        x, y = point.x, point.y
        saddle = self.lower(x)
        own = self.residuals(x, saddle.y, saddle.duals)
        chosen = self.residuals(x, y, saddle.duals)
        proven = max(own.bound, saddle.value - saddle.gap * (1.0 + abs(saddle.value)))
        objective = self.upper(x, y)
        method, left = self._probe(point)[1] if probed is None else probed
        own_units = method.in_user_units(point, back=True)
        unit = method.model.upper_unit / method.model.lower_unit
        # at a kink the penalised optimum lies O(1/gamma) from the true one: measured at the gammas where runs end
        ratio = solver.model.upper_unit / solver.model.lower_unit
        stationarity, gamma = math.inf, FINAL[-1] * ratio
        for last in (LOCAL[-1], *FINAL):
            found = method.stationarity(own_units, last * ratio / unit)
            if found < stationarity:
                stationarity, gamma = found, last * ratio
            if stationarity <= 0.1 * tol:
                break
        # a run that stalls finds no decrease: the response itself has the last word
        stationarity = max(stationarity, left)
        return (
            Certificate(
                lower_gap=(chosen.objective - proven) / (1.0 + abs(chosen.objective)),
                violation=max(chosen.violation, self.upper_violation(x, y)),
                dual_infeasibility=own.dual_infeasibility,
                complementarity=own.complementarity,
                stationarity=stationarity,
                gamma=gamma,
                response_objective=self.upper(x, saddle.y),
                response_violation=self.upper_violation(x, saddle.y),
                penalized_objective=objective,
                bound=bound,
                bound_gap=None if bound is None else (objective - bound) / (1.0 + abs(objective)),
            ),
            saddle,
            objective,
        )

    def _named_result(self, result: Result) -> Result:
        """The same result with arrays by variable name and in the user's sense of optimisation."""

        def named(layout: Layout, vector: Vector) -> dict[str, Any]:
            values = layout.unpack(np.asarray(vector))
            return {v.name(): np.asarray(u) for v, u in zip(layout.variables, values, strict=True)}

        certificate = result.certificate
        if self.sign < 0:
            certificate = replace(
                certificate,
                response_objective=-certificate.response_objective,
                penalized_objective=-certificate.penalized_objective,
                bound=None if certificate.bound is None else -certificate.bound,
            )
        lower_sign = self.lowers[0].sign if len({item.sign for item in self.lowers}) == 1 else 1.0
        return replace(
            result,
            x=named(self.upper_layout, result.x),
            y=named(self.lower_layout, result.y),
            objective=self.sign * result.objective,
            lower_objective=lower_sign * result.lower_objective,
            bound=None if result.bound is None else self.sign * result.bound,
            certificate=certificate,
        )

    def certify(self, result: Result, solver: str | None = None) -> dict[str, float]:
        """Check an answer independently: every lower level is solved again by CVXPY, x as constants.

        Parameters
        ----------
        result : Result
        solver : str, optional
            A CVXPY solver; default an interior-point solver other than the one that produced the answer where
            one fits (HiGHS for linear, PIQP for quadratic lower levels), else Clarabel.

        Returns
        -------
        dict
            ``lower_gap`` and ``violation`` (relative, as in the certificate), ``lower_value``.
        """
        values = {v.id: cp.Constant(result.x[v.name()]) for v in self.upper_layout.variables}
        total = 0.0
        for item in self.lowers:
            same = {v.id: v for v in item.variables}
            visitor = _Parametriser([], {**same, **values})
            problem = cp.Problem(
                cp.Minimize(visitor.visit(item.expression)),
                [visitor.constraint(c) for c in item.constraints.values()],
            )
            saved = {v.id: v.value for v in item.variables}
            chosen = solver or _independent_solver(problem)
            options = {"CLARABEL": {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}}
            try:
                total += float(problem.solve(solver=chosen, **options.get(chosen, {})))
            except cp.error.SolverError:  # not for this kind of program after all
                total += float(problem.solve(solver="CLARABEL", **options["CLARABEL"]))
            for variable in item.variables:
                variable.save_value(saved[variable.id])
        x = self.upper_layout.pack([result.x[v.name()] for v in self.upper_layout.variables])
        y = self.lower_layout.pack([result.y[v.name()] for v in self.lower_layout.variables])
        data = self.derivatives(x, y)
        v = np.concatenate([x, y])
        worst = max(
            float(np.max(part, initial=0.0))
            for part in (
                data.inequality,
                np.abs(data.equality),
                self.bounds[0] - v,
                v - self.bounds[1],
            )
        )
        return {
            "lower_gap": (data.lower - total) / (1.0 + abs(total)),
            "violation": worst / (1.0 + float(np.abs(v).max())),
            "lower_value": total,
        }

    # --------------------------------------------------------------------------------------- checking
    def check(self) -> Check:
        """Say which of the method's assumptions hold, fail or are unknown, each with a remedy."""
        return check_problem(self)


class _Kept:
    """Checkpoints of the joint method: the best point and the number of runs that led to it."""

    FORMAT = "blocc-checkpoint-joint-1"

    def __init__(
        self,
        problem: BilevelProblem,
        path: str | os.PathLike[str] | None,
        resume: str | os.PathLike[str] | None,
        options: Mapping[str, Any],
    ) -> None:
        self.path, self.used = path, path is not None or resume is not None
        shape = {"upper": problem.n_upper, "lower": problem.n_lower}
        self.problem = {**options, **shape, "names": [v.name() for v in problem.layout.variables]}
        self.state: dict[str, Any] = {}
        if resume is None:
            return
        arrays, meta = read_archive(resume, self.FORMAT)
        different = [k for k, value in self.problem.items() if meta["problem"].get(k) != value]
        if different:
            raise InvalidInputError(
                f"{resume}: checkpoint of another solve ({', '.join(different)} differ); start without resume"
            )
        self.state = {**meta, "best": {**meta["best"], **arrays} if meta["best"] else None}

    def attach(self, method: Joint, progress: Progress) -> None:
        """Take up the state of a checkpoint, and write one after every run."""
        if self.state:
            method.done = self.state["done"]
            best = self.state["best"]
            method.best = method.in_user_units(JointPoint(**best), back=True) if best else None
            progress.resume(self.state["records"])

        def save() -> None:
            best = {} if method.best is None else method.in_user_units(method.best)._asdict()
            arrays = {name: best.pop(name) for name in ("x", "y") if best}
            meta = {
                "format": self.FORMAT,
                "problem": self.problem,
                "done": method.done,
                "best": best,
                "records": progress.records,
            }
            assert self.path is not None
            write_archive(self.path, arrays, meta)

        if self.path is not None:
            method.after_run = save


class _Relaxed:
    """The relaxation as a cone program, where it is convex.

    Parameters
    ----------
    objective : cvxpy expression, optional
        None where f is a callable.
    constraints : dict of cvxpy constraints
    layout : Layout
    """

    def __init__(self, objective: Any, constraints: Mapping[str, Any], layout: Layout) -> None:
        self._layout = layout
        self._program: ConicProgram | None = None
        problem = cp.Problem(
            cp.Minimize(objective if objective is not None else 0.0), list(constraints.values())
        )
        self._wrong: str | None = None
        if objective is None or not problem.is_dcp():
            culprits = {"upper objective": objective, **constraints}
            self._wrong = next((k for k, e in culprits.items() if e is None or not e.is_dcp()), "?")
        self._problem = problem

    def refresh(self) -> bool:
        """Take new values of parameters; False where that takes a new compilation."""
        if self._program is None:
            return True
        if not self._follows:
            return False
        self._program.set_parameters({p.id: p.value for p in self._problem.parameters()})
        return True

    def solve(self, tol: float) -> tuple[Vector, float]:
        """Answer and proven bound.

        Raises
        ------
        UnsupportedModelError, LowerLevelError
        """
        if self._wrong is not None:
            raise UnsupportedModelError(f"the relaxation is not convex: {self._wrong}")
        if self._program is None:
            plain, copied = copy_on_plain_variables(self._layout.variables, self._problem)
            theirs = {p.id for p in self._problem.parameters()}
            self._follows = copied.is_dcp(dpp=True) and all(
                p.id in theirs for p in copied.parameters()
            )
            self._program = ConicProgram(copied, plain, [])
        answer = self._program.solve(tol)
        self._program.forget_factors()  # the next solve has other data
        return self._program.primal(answer), answer.value - answer.gap * (1.0 + abs(answer.value))


def _flat_value(value: Any) -> Vector:
    if sparse.issparse(value):
        value = value.toarray()
    return np.ravel(np.asarray(value, dtype=float), order="F")


def _independent_solver(problem: Any) -> str:
    installed = cp.installed_solvers()
    if problem.is_lp() and "HIGHS" in installed:
        return "HIGHS"
    return "PIQP" if problem.is_qp() and "PIQP" in installed else "CLARABEL"


def _row(jacobian: Any, index: int = 0) -> Vector:
    if isinstance(jacobian, np.ndarray):
        row: Vector = jacobian[index]
        return row
    return np.asarray(jacobian[[index]].toarray()).ravel()


def _argument(layout: Layout, vector: Vector) -> Any:
    values = layout.unpack(vector)
    if len(values) == 1:
        return np.asarray(values[0])
    return {v.name(): value for v, value in zip(layout.variables, values, strict=True)}


class _ConeTerm:
    """The term ``<dual, c(x, y)>`` of a Lagrangian, for a constraint in a second-order or semidefinite cone."""

    def __init__(self, constraint: Any, layout: Layout) -> None:
        if isinstance(constraint, cp.constraints.PSD):
            parts = [-constraint.expr]
        else:
            parts = [-cp.vec(argument, order="F") for argument in constraint.args]
        self.functions = Functions(parts, layout)
        expression, _ = _as_functions(constraint, "constraint")
        self.measure = Functions([expression], layout)

    def refresh(self) -> None:
        """Take new values of the constraint's parameters."""
        self.functions.refresh()
        self.measure.refresh()

    def evaluate(self, v: Vector, multiplier: Any) -> tuple[float, Vector, float]:
        """Product with the dual, its gradient, and the largest violation."""
        dual = np.ravel(np.asarray(multiplier, dtype=float), order="F")
        value, jacobian = self.functions.value_jacobian(v)
        worst = float(np.max(self.measure.value(v), initial=0.0))
        return float(value @ dual), np.asarray(jacobian.T @ dual).ravel(), worst


class ConvexRegion:
    """X given by CVXPY constraints in x alone; projections and linear programs through the compiled cone program.

    Parameters
    ----------
    layout : Layout
        The upper variables.
    constraints : dict of cvxpy constraints
        Convex by CVXPY's rules.
    lower, upper : ndarray
        Bounds on the flat vector.
    """

    def __init__(
        self, layout: Layout, constraints: Mapping[str, Any], lower: Vector, upper: Vector
    ) -> None:
        self.size = layout.size
        point, slope = cp.Parameter(self.size), cp.Parameter(self.size)
        plain = {v.id: _plain(v) for v in layout.variables}
        visitor = _Parametriser([], {k: pair[1] for k, pair in plain.items()})
        z = cp.hstack([cp.vec(pair[0], order="F") for pair in plain.values()])
        rows = [visitor.constraint(c) for c in constraints.values()]
        low, high = np.isfinite(lower).nonzero()[0], np.isfinite(upper).nonzero()[0]
        if len(low):
            rows.append(z[low] >= lower[low])
        if len(high):
            rows.append(z[high] <= upper[high])
        variables = [pair[0] for pair in plain.values()]
        self._point, self._slope = point, slope
        self._project = ConicProgram(
            cp.Problem(cp.Minimize(0.5 * cp.sum_squares(z - point)), rows), variables, []
        )
        self._linear = ConicProgram(cp.Problem(cp.Minimize(slope @ z), rows), variables, [])

    def project(self, point: Vector) -> Vector:
        """Nearest point of the set."""
        self._project.set_parameters({self._point.id: point})
        return self._project.primal(self._project.solve())

    def linear_gap(self, point: Vector, gradient: Vector) -> tuple[Any, Any]:
        """See :meth:`blocc.sets.ConvexSet.linear_gap`; all is residual where X is unbounded along it."""
        self._linear.set_parameters({self._slope.id: gradient})
        try:
            answer = self._linear.solve()
        except LowerLevelError:
            moved = self.project(point - gradient)
            return np.asarray(0.0), point - moved
        return np.asarray(float(gradient @ point) - answer.value), np.zeros_like(gradient)


class ModelInX:
    """A :class:`BilevelProblem` as seen by methods that step in x alone.

    Optional capabilities (relaxation, convex-concave step) are there only where the problem has them.

    Parameters
    ----------
    problem : BilevelProblem
    """

    def __init__(self, problem: BilevelProblem) -> None:
        self.problem = problem
        self.x_set = problem.x_set
        self.upper = problem.upper
        self.upper_violation = problem.upper_violation
        self.lower = problem.lower
        self.penalized = problem.penalized
        self.residuals = problem.residuals
        try:
            problem.relaxation()
        except (UnsupportedModelError, LowerLevelError):
            pass
        else:
            self.relaxation = problem.relaxation
