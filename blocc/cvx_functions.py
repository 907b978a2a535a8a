"""CVXPY expressions as fast functions of one flat vector, with their Jacobians.

``expr.value`` and ``expr.grad`` walk the tree through sparse matrices at some 50 microseconds a node. Here affine
parts are collapsed into one matrix each, the common atoms have their derivatives written out, and functions that are
quadratic are stored as such. Whatever is left falls back on the atom's own ``_grad``. Matrices are kept as affine maps
of the CVXPY parameters, so that new values of these cost no second compilation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.elementwise.power import Power
from cvxpy.atoms.pnorm import Pnorm
from cvxpy.cvxcore.python import canonInterface
from cvxpy.lin_ops.lin_op import CONSTANT_ID

from blocc.errors import UnsupportedModelError

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
#: Up to this many entries a Jacobian is kept dense.
_DENSE_ENTRIES = 250_000
#: Up to this many entries of Hessians a function is tried as a quadratic.
_HESSIAN_ENTRIES = 1_000_000
#: Up to this many entries of its third derivative a cubic function is stored as one.
_THIRD_ENTRIES = 64_000
#: Up to this many entries of Hessians a quadratic node inside others is stored as one.
_INNER_ENTRIES = 20_000

#: Relative step of the differences that curvature comes from.
_STEP = 1e-5

_Scalar = Callable[[Any], Any]

#: Function, first and second derivative.
_ELEMENTWISE: dict[type, tuple[_Scalar, _Scalar, _Scalar]] = {
    cp.exp: (np.exp, np.exp, np.exp),
    cp.log: (np.log, np.reciprocal, lambda v: -1.0 / (v * v)),
    cp.entr: (lambda v: -v * np.log(v), lambda v: -1.0 - np.log(v), lambda v: -1.0 / v),
    cp.logistic: (
        lambda v: np.logaddexp(0.0, v),
        lambda v: 0.5 * (1.0 + np.tanh(0.5 * v)),
        lambda v: 0.25 * (1.0 - np.tanh(0.5 * v) ** 2),
    ),
    cp.abs: (np.abs, np.sign, np.zeros_like),
}


class Layout:
    """Where each variable sits in the flat vector (Fortran order inside a variable)."""

    def __init__(self, variables: Sequence[cp.Variable]) -> None:
        self.variables = list(variables)
        self.slices: dict[int, slice] = {}
        start = 0
        for variable in self.variables:
            self.slices[variable.id] = slice(start, start + variable.size)
            start += variable.size
        self.size = start

    def unpack(self, vector: Vector) -> list[Any]:
        """Values by variable, each in its variable's shape."""
        return [
            vector[self.slices[v.id]].reshape(v.shape, order="F")
            if v.shape
            else float(vector[self.slices[v.id]][0])
            for v in self.variables
        ]

    def pack(self, values: Sequence[Any]) -> Vector:
        """Stack values by variable into the flat vector."""
        flat = [np.ravel(np.asarray(value, dtype=float), order="F") for value in values]
        return np.concatenate([*flat, np.zeros(0)])


class _Node:
    """A vector function of the flat vector: ``value_jacobian(v) -> (values, matrix)``."""

    #: Degree as a polynomial of the flat vector, infinite where it is none, None where that is not known.
    degree: float | None

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        raise NotImplementedError

    def value(self, v: Vector) -> Vector:
        return self.value_jacobian(v)[0]

    def hessian(self, v: Vector, weights: Vector) -> Any:
        """Hessian of the weighted sum of the entries: dense, or 0."""
        raise NotImplementedError


class _Affine(_Node):
    def __init__(self, matrix: Any, offset: Vector, *, constant: bool = False) -> None:
        self.matrix, self.offset, self.degree = matrix, offset, 0 if constant else 1

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        return self.matrix @ v + self.offset, self.matrix

    def value(self, v: Vector) -> Vector:
        return np.asarray(self.matrix @ v + self.offset)

    def hessian(self, v: Vector, weights: Vector) -> Any:
        return 0

    def assign(self, block: Any, offset: Vector, width: int) -> None:
        """Take new rows, a column for every entry of the flat vector, and offset."""
        self.matrix, self.offset = _shrink(block[:, :width]), offset


class _Elementwise(_Node):
    """A function of one argument, entry by entry, with its first and second derivative."""

    def __init__(
        self, argument: _Node, function: Any, derivative: Any, second: Any, power: float = math.inf
    ) -> None:
        self.argument, self.function = argument, function
        self.derivative, self.second = derivative, second
        self.degree = _times(argument.degree, power)

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        inner, jacobian = self.argument.value_jacobian(v)
        slope = self.derivative(inner)
        if not isinstance(jacobian, np.ndarray):
            return self.function(inner), sparse.dia_array(
                (slope[None], [0]), shape=(len(slope),) * 2
            ) @ jacobian
        return self.function(inner), slope[:, None] * jacobian

    def value(self, v: Vector) -> Vector:
        return np.asarray(self.function(self.argument.value(v)))

    def hessian(self, v: Vector, weights: Vector) -> Any:
        inner, jacobian = self.argument.value_jacobian(v)
        jacobian, second = _dense(jacobian), self.second(inner)
        if not np.all(np.isfinite(second)):  # unbounded at the edge of the domain: take it inside
            second = np.where(np.isfinite(second), second, self.second(inner + _STEP))
        bend = (jacobian.T * (weights * second)) @ jacobian
        if self.argument.degree == 1:
            return bend
        return bend + self.argument.hessian(v, weights * self.derivative(inner))


class _Linear(_Node):
    """A linear map of the flat vector and of nonlinear nodes: sums, products with constants, indexing, stacking."""

    def __init__(self, arguments: list[_Node], width: int, sizes: list[int]) -> None:
        self.arguments = arguments
        degrees = [1, *(node.degree for node in arguments)]
        self.degree = None if None in degrees else max(degrees)  # type: ignore[type-var]
        ends = list(itertools.accumulate([width, *sizes]))
        self._columns = [slice(start, end) for start, end in itertools.pairwise(ends)]

    def assign(self, block: Any, offset: Vector, width: int) -> None:
        """Take new rows, columns as in the flat vector and then for every argument, and offset."""
        self.offset = offset
        self.matrix = _shrink(block[:, :width])
        self.matrices = [_shrink(block[:, columns]) for columns in self._columns]

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        value, total = self.matrix @ v + self.offset, self.matrix
        for node, matrix in zip(self.arguments, self.matrices, strict=True):
            inner, jacobian = node.value_jacobian(v)
            value = value + matrix @ inner
            total = total + matrix @ jacobian
        return value, total

    def value(self, v: Vector) -> Vector:
        value = self.matrix @ v + self.offset
        for node, matrix in zip(self.arguments, self.matrices, strict=True):
            value = value + matrix @ node.value(v)
        return np.asarray(value)

    def hessian(self, v: Vector, weights: Vector) -> Any:
        return sum(
            node.hessian(v, matrix.T @ weights)
            for node, matrix in zip(self.arguments, self.matrices, strict=True)
        )


class _General(_Node):
    """Any other atom, through its own ``numeric`` and ``_grad``."""

    degree = None

    def __init__(self, atom: Any, arguments: list[_Node], bent: npt.NDArray[np.bool_]) -> None:
        self.atom, self.arguments = atom, arguments
        self._columns = np.flatnonzero(bent)  # the entries that it may not be affine in

    def _inner(self, values: list[Vector]) -> list[Any]:
        return [
            value.reshape(argument.shape, order="F")
            for value, argument in zip(values, self.atom.args, strict=True)
        ]

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        pairs = [node.value_jacobian(v) for node in self.arguments]
        inner = self._inner([pair[0] for pair in pairs])
        value = np.ravel(np.asarray(self.atom.numeric(inner), dtype=float), order="F")
        total = None
        # quad_form has no gradient in its constant matrix
        slopes = zip(pairs, self.atom._grad(inner), self.atom.args, strict=False)
        for (_, jacobian), local, argument in slopes:
            if local is None:  # outside the domain: the caller rejects the point on seeing NaN
                return np.full(len(value), np.nan), np.full((len(value), len(v)), np.nan)
            term = _local(local, argument.size, len(value)) @ jacobian
            total = term if total is None else total + term
        return value, total

    def value(self, v: Vector) -> Vector:
        inner = self._inner([node.value(v) for node in self.arguments])
        return np.ravel(np.asarray(self.atom.numeric(inner), dtype=float), order="F")

    def hessian(self, v: Vector, weights: Vector) -> Any:
        """By differences of gradients."""
        total = np.zeros((len(v), len(v)))
        base = self.value_jacobian(v)[1].T @ weights
        for k in self._columns:
            shifted = v.copy()
            step = _STEP * max(1.0, abs(v[k]))
            shifted[k] += step
            slope = self.value_jacobian(shifted)[1].T @ weights
            if not np.all(np.isfinite(slope)):
                step = -step
                shifted[k] = v[k] + step
                slope = self.value_jacobian(shifted)[1].T @ weights
            total[:, k] += (slope - base) / step
        return 0.5 * (total + total.T)


class _Quadratic(_Node):
    """A quadratic node inside others, written as constant, slope and Hessians."""

    degree = 2

    def __init__(self, node: _Node, rows: int, width: int) -> None:
        self._node, self._rows, self._width = node, rows, width
        self.refresh()

    def refresh(self) -> None:
        """Take new values of parameters."""
        self._constant, self._slope, self._hessians = _expanded(self._node, self._rows, self._width)
        self._flat = self._hessians.reshape(self._rows, -1)
        self._known: tuple[bytes, Vector, Matrix] = b"", _NONE, self._slope

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        point = v.tobytes()
        if self._known[0] != point:  # Hessians ask again
            bent = self._hessians @ v
            value = self._constant + (self._slope + 0.5 * bent) @ v
            self._known = point, value, self._slope + bent
        return self._known[1:]

    def value(self, v: Vector) -> Vector:
        return np.asarray(self._constant + (self._slope + 0.5 * (self._hessians @ v)) @ v)

    def hessian(self, v: Vector, weights: Vector) -> Any:
        return (weights @ self._flat).reshape(self._width, self._width)


class _Product(_Node):
    """Product of two scalars or of two arrays of one shape, elementwise."""

    def __init__(self, left: _Node, right: _Node) -> None:
        self.left, self.right = left, right
        self.degree = _sum(left.degree, right.degree)

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        a, Ja = self.left.value_jacobian(v)
        b, Jb = self.right.value_jacobian(v)
        return a * b, b[:, None] * _dense(Ja) + a[:, None] * _dense(Jb)

    def value(self, v: Vector) -> Vector:
        return self.left.value(v) * self.right.value(v)

    def hessian(self, v: Vector, weights: Vector) -> Any:
        a, Ja = self.left.value_jacobian(v)
        b, Jb = self.right.value_jacobian(v)
        cross = (_dense(Ja).T * weights) @ _dense(Jb)
        return (
            cross + cross.T + self.left.hessian(v, weights * b) + self.right.hessian(v, weights * a)
        )


class _Norm(_Node):
    """Euclidean norm of a vector; slope zero at zero, as CVXPY has it."""

    def __init__(self, argument: _Node) -> None:
        self.argument = argument
        self.degree = _times(argument.degree, math.inf)

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        inner, jacobian = self.argument.value_jacobian(v)
        value = float(np.sqrt(inner @ inner))
        direction = inner / value if value > 0 else inner
        return np.array([value]), np.reshape(jacobian.T @ direction, (1, -1))

    def value(self, v: Vector) -> Vector:
        inner = self.argument.value(v)
        return np.array([math.sqrt(inner @ inner)])

    def hessian(self, v: Vector, weights: Vector) -> Any:
        inner, jacobian = self.argument.value_jacobian(v)
        size = math.sqrt(inner @ inner)
        if size <= _STEP:  # a kink, not a curvature
            return 0
        jacobian, direction = _dense(jacobian), inner / size
        slope = direction @ jacobian
        bend = (weights[0] / size) * (jacobian.T @ jacobian - slope[:, None] * slope)
        return bend + self.argument.hessian(v, weights[0] * direction)


class _SquareOverLine(_Node):
    """``sum(v^2) / w`` for a vector v and a scalar w."""

    def __init__(self, numerator: _Node, denominator: _Node) -> None:
        self.numerator, self.denominator = numerator, denominator
        fixed = denominator.degree == 0
        self.degree = _times(numerator.degree, 2 if fixed else math.inf)

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        a, Ja = self.numerator.value_jacobian(v)
        b, Jb = self.denominator.value_jacobian(v)
        value = float(a @ a) / float(b[0])
        row = (2.0 / b[0]) * (Ja.T @ a)
        if self.denominator.degree != 0:
            row = row - (value / b[0]) * _dense(Jb)[0]
        return np.array([value]), np.reshape(row, (1, -1))

    def value(self, v: Vector) -> Vector:
        a = self.numerator.value(v)
        return np.array([float(a @ a) / float(self.denominator.value(v)[0])])

    def hessian(self, v: Vector, weights: Vector) -> Any:
        a, Ja = self.numerator.value_jacobian(v)
        b, Jb = self.denominator.value_jacobian(v)
        Ja, over = _dense(Ja), weights[0] / b[0]
        if self.denominator.degree == 0:
            bend = (2.0 * over) * (Ja.T @ Ja)
        else:
            tilted = Ja - (a / b[0])[:, None] * _dense(Jb)
            square = float(a @ a) / b[0] ** 2
            bend = (2.0 * over) * (tilted.T @ tilted)
            bend = bend + self.denominator.hessian(v, -weights * square)
        if self.numerator.degree == 1:
            return bend
        return bend + self.numerator.hessian(v, (2.0 * over) * a)


class _Inner(_Node):
    """Inner product of two vectors."""

    def __init__(self, left: _Node, right: _Node) -> None:
        self.left, self.right = left, right
        self.degree = _sum(left.degree, right.degree)

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        a, Ja = self.left.value_jacobian(v)
        b, Jb = self.right.value_jacobian(v)
        return np.array([a @ b]), np.reshape(Ja.T @ b + Jb.T @ a, (1, -1))

    def value(self, v: Vector) -> Vector:
        return np.array([self.left.value(v) @ self.right.value(v)])

    def hessian(self, v: Vector, weights: Vector) -> Any:
        a, Ja = self.left.value_jacobian(v)
        b, Jb = self.right.value_jacobian(v)
        cross = weights[0] * (_dense(Ja).T @ _dense(Jb))
        return (
            cross
            + cross.T
            + self.left.hessian(v, weights[0] * b)
            + self.right.hessian(v, weights[0] * a)
        )


def _dense(matrix: Any) -> Any:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def _times(degree: float | None, power: float) -> float | None:
    """Degree of a power."""
    return degree if degree is None or degree == 0 else degree * power


def _sum(left: float | None, right: float | None) -> float | None:
    """Degree of a product."""
    return None if left is None or right is None else left + right


def _constant(expression: Any, layout: Layout) -> bool:
    return not any(v.id in layout.slices for v in expression.variables())


class _Shell:
    """The linear outside of an expression: the expression with its nonlinear parts replaced by new variables."""

    def __init__(self, expression: Any, layout: Layout) -> None:
        self.parts: list[Any] = []
        self.variables: list[cp.Variable] = []
        self.expression = self._copy(expression, layout)

    def _copy(self, expression: Any, layout: Layout) -> Any:
        if _constant(expression, layout) or expression.is_affine():
            return expression
        if _is_linear(expression, layout):
            return expression.copy([self._copy(argument, layout) for argument in expression.args])
        self.parts.append(expression)
        self.variables.append(cp.Variable(expression.shape))
        return self.variables[-1]


def _is_linear(expression: Any, layout: Layout) -> bool:
    """Whether an expression is linear in its arguments as far as these are not constant."""
    if not isinstance(expression, AffAtom):
        return False
    if isinstance(expression, AddExpression):
        return True
    return bool(
        expression.copy(
            [a if _constant(a, layout) else cp.Variable(a.shape) for a in expression.args]
        ).is_affine()
    )


class _Compiler:
    """Turns expressions into nodes, and remembers how to bring these up to date with parameters."""

    def __init__(self, expressions: Sequence[Any], layout: Layout) -> None:
        self.layout = layout
        self.updates: list[Callable[[], None]] = []
        self._shells: dict[int, tuple[_Shell, _Affine | _Linear]] = {}
        self.nodes = [self._compile(expression) for expression in expressions]
        fixed: list[_Row] = []
        lifted: list[_Row] = []
        sources: list[tuple[cp.Parameter, Any]] = []
        for shell, node in self._shells.values():
            own: list[tuple[cp.Parameter, Any]] = []
            copy = _lift_parameters(shell.expression, own)
            if not own:
                fixed.append((copy, shell, node))
            elif copy.is_dpp():
                lifted.append((copy, shell, node))
                sources += own
            else:
                self._recompiled(shell, node)
        if fixed:
            _Matrices(fixed, layout, [])
        if lifted:
            self.updates.append(_Matrices(lifted, layout, sources).refresh)

    def _recompiled(self, shell: _Shell, node: _Affine | _Linear) -> None:
        """A linear outside whose matrix is not affine in the parameters: compiled again for new values."""

        def again() -> None:
            _Matrices([(_fix_parameters(shell.expression), shell, node)], self.layout, [])

        again()
        self.updates.append(again)

    def _linear(self, expression: Any) -> _Node:
        """Node of an expression that is linear outside; its matrices come later, all at once."""
        shell = _Shell(expression, self.layout)
        arguments = [self._compile(part) for part in shell.parts]
        sizes = [part.size for part in shell.parts]
        node = _Linear(arguments, self.layout.size, sizes) if arguments else _Affine(None, _NONE)
        self._shells[id(expression)] = shell, node
        return node

    def _following(self, expression: Any, build: Callable[[], _Node]) -> _Node:
        """A node that is built again, in place, when the expression has parameters and these change."""
        node = build()
        if expression.parameters():
            self.updates.append(lambda: vars(node).update(vars(build())))
        return node

    def _compile(self, expression: Any) -> _Node:
        layout, size, width = self.layout, expression.size, self.layout.size
        if _constant(expression, layout):
            zero = _shrink(sparse.csr_array((size, width)))
            return self._following(
                expression, lambda: _Affine(zero, _value(expression), constant=True)
            )
        if isinstance(expression, cp.Variable):
            part = layout.slices[expression.id]
            matrix = sparse.csr_array(
                (np.ones(size), (np.arange(size), np.arange(part.start, part.stop))),
                shape=(size, width),
            )
            return _Affine(_shrink(matrix), np.zeros(size))
        if id(expression) in self._shells:
            return self._shells[id(expression)][1]
        if expression.is_affine() or _is_linear(expression, layout):
            return self._linear(expression)
        arguments = [self._compile(argument) for argument in expression.args]
        kind = type(expression)
        constant = [node.degree == 0 for node in arguments]
        if kind is DivExpression and not constant[1]:
            inverse = _Elementwise(
                arguments[1],
                lambda v: 1.0 / v,
                lambda v: -1.0 / (v * v),
                lambda v: 2.0 / (v * v * v),
            )
            if expression.args[0].size == expression.args[1].size:
                return _Product(arguments[0], inverse)
        if kind in (MulExpression, multiply) and expression.args[0].size == expression.args[1].size:
            if kind is multiply or expression.args[0].size == 1:
                return _Product(*arguments)
            if expression.size == 1:
                return _Inner(*arguments)
        elementwise = _ELEMENTWISE.get(kind)
        if elementwise is not None:
            return _Elementwise(arguments[0], *elementwise)
        if kind is cp.quad_over_lin and expression.size == 1 and expression.args[1].size == 1:
            return _SquareOverLine(*arguments)
        if isinstance(expression, Pnorm) and expression.p == 2 and expression.axis is None:
            return _Norm(arguments[0])
        floored = kind is cp.maximum and len(arguments) == 2 and constant[1]
        if floored and expression.args[0].size == expression.size:
            return _Elementwise(arguments[0], *_floor(arguments[1]))
        if isinstance(expression, Power):
            return self._following(
                expression,
                lambda: _Elementwise(arguments[0], *_power(float(expression.p.value))),
            )
        return _General(expression, arguments, curved([expression], layout))


_Row = tuple[Any, _Shell, _Affine | _Linear]
_NONE = np.zeros(0)


class _Matrices:
    """Fills in the matrices of linear outsides, by one call of CVXPY's own canonicalisation.

    The stacked matrices and offsets are affine in the parameters; this keeps the map.

    Parameters
    ----------
    rows : sequence of (cvxpy expression, _Shell, node)
        Expressions that are affine in the variables, by DPP rules in the parameters, and their nodes.
    layout : Layout
    sources : sequence of (cvxpy.Parameter, cvxpy expression)
        The parameters in the expressions, and what has their value.
    """

    def __init__(
        self, rows: Sequence[_Row], layout: Layout, sources: Sequence[tuple[Any, Any]]
    ) -> None:
        self._nodes = [node for _, _, node in rows]
        starts = {identity: part.start for identity, part in layout.slices.items()}
        self._width, width = layout.size, layout.size
        for _, shell, _ in rows:
            start = layout.size
            for variable in shell.variables:  # every expression has its own, in the same columns
                starts[variable.id] = start
                start += variable.size
            width = max(width, start)
        self._ends = [0, *itertools.accumulate(expression.size for expression, _, _ in rows)]
        count = self._ends[-1]
        self._sources = [source for _, source in sources]
        sizes = {parameter.id: parameter.size for parameter, _ in sources}
        ends = [0, *itertools.accumulate(sizes.values())]
        tensor = canonInterface.get_problem_matrix(
            [expression.canonical_form[0] for expression, _, _ in rows],
            width,
            starts,
            {**sizes, CONSTANT_ID: 1},
            {**dict(zip(sizes, ends, strict=False)), CONSTANT_ID: ends[-1]},
            count,
        ).tocoo()
        # entry by entry: the stacked matrix has a column for every variable, and a last one for the offset
        kept, position = np.unique(tensor.row, return_inverse=True)
        kept = kept.astype(np.int64)
        self._row, self._column = kept % max(count, 1), kept // max(count, 1)
        self._shape = (count, width + 1)
        self._map = sparse.csr_array(
            (tensor.data, (position, tensor.col)), shape=(len(kept), ends[-1] + 1)
        )
        self.refresh()

    def refresh(self) -> None:
        """Take the parameters' present values."""
        data = self._map @ np.concatenate([*map(_value, self._sources), np.ones(1)])
        stacked: Any
        if self._shape[0] * self._shape[1] <= _DENSE_ENTRIES:
            stacked = np.zeros(self._shape)
            stacked[self._row, self._column] = data
        else:
            stacked = sparse.csr_array((data, (self._row, self._column)), shape=self._shape)
        offset = _dense(stacked[:, [-1]]).ravel()
        for node, (start, end) in zip(self._nodes, itertools.pairwise(self._ends), strict=True):
            node.assign(stacked[start:end], offset[start:end], self._width)


def _value(expression: Any) -> Vector:
    """Value of an expression of parameters and constants, flat."""
    if expression.value is None:
        missing = next(p for p in expression.parameters() if p.value is None)
        raise UnsupportedModelError(f"parameter {missing} has no value: set it first")
    return _flat(expression.value)


def _lift_parameters(expression: Any, sources: list[tuple[cp.Parameter, Any]]) -> Any:
    """Copy an expression with each of its largest parts in parameters alone as one new parameter."""
    if not expression.parameters():
        return expression
    if not expression.variables():
        parameter = cp.Parameter(expression.shape)
        sources.append((parameter, expression))
        return parameter
    if isinstance(expression, DivExpression) and not expression.args[1].variables():
        inverse = _lift_parameters(1 / expression.args[1], sources)
        return cp.multiply(inverse, _lift_parameters(expression.args[0], sources))
    return expression.copy([_lift_parameters(arg, sources) for arg in expression.args])


def _fix_parameters(expression: Any) -> Any:
    """Copy an expression with the present values of its parameters as constants."""
    if isinstance(expression, cp.Parameter):
        return cp.Constant(_value(expression).reshape(expression.shape, order="F"))
    if not expression.parameters():
        return expression
    return expression.copy([_fix_parameters(argument) for argument in expression.args])


def _floor(least: _Node) -> tuple[_Scalar, _Scalar, _Scalar]:
    """Maximum with a constant; CVXPY gives the first argument the slope where both are equal."""
    assert isinstance(least, _Affine)
    return (
        lambda v: np.maximum(v, least.offset),
        lambda v: (v >= least.offset).astype(float),
        np.zeros_like,
    )


def _power(exponent: float) -> tuple[_Scalar, _Scalar, _Scalar, float]:
    """Function, two derivatives, and the degree."""
    if exponent == 2:
        return (lambda v: v * v), (lambda v: 2.0 * v), (lambda v: np.full(v.shape, 2.0)), 2
    whole = int(exponent) if exponent == int(exponent) else exponent
    degree = whole if isinstance(whole, int) and whole >= 0 else math.inf
    return (
        lambda v: v**whole,
        lambda v: exponent * v ** (whole - 1),
        lambda v: exponent * (exponent - 1) * v ** (whole - 2),
        degree,
    )


def _local(local: Any, inner: int, outer: int) -> Any:
    """CVXPY's atom gradient (argument by value, of any array kind) as an outer by inner matrix."""
    if sparse.issparse(local):
        return local.T
    return np.reshape(np.asarray(local, dtype=float), (inner, outer)).T


def _flat(value: Any) -> Vector:
    if sparse.issparse(value):
        value = value.toarray()
    return np.ravel(np.asarray(value, dtype=float), order="F")


def _shrink(matrix: Any) -> Any:
    """Dense where small, CSR where large."""
    if matrix.shape[0] * matrix.shape[1] <= _DENSE_ENTRIES:
        return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
    return sparse.csr_array(matrix)


def curved(expressions: Sequence[Any], layout: Layout) -> npt.NDArray[np.bool_]:
    """Which entries of the flat vector may enter an expression other than affinely, variable by variable."""
    mask = np.zeros(layout.size, dtype=bool)

    def visit(expression: Any) -> None:
        if expression.is_affine():
            return
        products = isinstance(expression, MulExpression | multiply | DivExpression) and not any(
            argument.is_constant() for argument in expression.args
        )
        if isinstance(expression, AffAtom) and not products:
            for argument in expression.args:
                visit(argument)
            return
        for variable in expression.variables():
            if variable.id in layout.slices:
                mask[layout.slices[variable.id]] = True

    for expression in expressions:
        visit(expression)
    return mask


@dataclass
class _Part:
    """One of the stacked expressions."""

    rows: slice
    node: _Node
    follows: bool  # whether it has parameters
    affine: tuple[Vector, Any] | None = None  # constant and Jacobian at the origin of a polynomial
    hessians: Any = None  # there, one a row
    third: Any = None  # third derivative of a cubic


class _Known(NamedTuple):
    """Values and Jacobian, from row ``first`` on, at the point last asked for."""

    point: bytes
    first: int
    value: Vector
    jacobian: Any


class Functions:
    """Several CVXPY expressions stacked into one vector function of the flat vector.

    Functions that are quadratic, and small cubic ones, are stored as such and evaluated together.

    Parameters
    ----------
    expressions : sequence of cvxpy expressions
    layout : Layout
    """

    def __init__(self, expressions: Sequence[Any], layout: Layout) -> None:
        self.size = sum(expression.size for expression in expressions)
        self.width = layout.size
        compiler = _Compiler(expressions, layout)
        self._updates = compiler.updates
        ends = [0, *itertools.accumulate(expression.size for expression in expressions)]
        self._parts = [
            _Part(slice(start, end), node, bool(expression.parameters()))
            for node, expression, (start, end) in zip(
                compiler.nodes, expressions, itertools.pairwise(ends), strict=True
            )
        ]
        for part in self._parts:
            self._expand(part)
        self._stack()

    def refresh(self) -> None:
        """Take new values of the expressions' parameters."""
        if not self._updates:
            return
        for update in self._updates:
            update()
        for part in self._parts:
            if part.follows:
                self._expand(part)
        self._stack()

    def _expand(self, part: _Part) -> None:
        """Write a quadratic or cubic part as constant, slope, Hessians and third derivative."""
        node, rows = part.node, part.rows.stop - part.rows.start
        part.affine = part.hessians = part.third = None
        if isinstance(node, _Affine):
            part.affine = node.offset, node.matrix
        elif rows * self.width**2 > _HESSIAN_ENTRIES:
            return
        elif node.degree is None:
            found = _as_quadratic(node, rows, self.width)
            if found is not None:
                part.affine, part.hessians = found[:2], found[2]
        elif node.degree <= 2 or (
            node.degree == 3 and rows == 1 and self.width**3 <= _THIRD_ENTRIES
        ):
            value, jacobian, part.hessians = _expanded(node, rows, self.width)
            part.affine = value, jacobian
            if node.degree == 3:
                there = [node.hessian(point, np.ones(1)) for point in np.eye(self.width)]
                part.third = np.array(there) - part.hessians

    def _stack(self) -> None:
        self._known: _Known | None = None
        self._constant = np.zeros(self.size)
        small = self.size * self.width <= _DENSE_ENTRIES
        dense = np.zeros((self.size, self.width) if small else (0, 0))
        blocks: list[Any] = []
        self._general: list[tuple[slice, _Node]] = []
        curved_rows: list[int] = []
        for part in self._parts:
            rows = part.rows
            if part.affine is None:
                with np.errstate(all="ignore"):
                    _collapse(part.node, self.width)
                self._general.append((rows, part.node))
                if not small:
                    blocks.append(sparse.csr_array((rows.stop - rows.start, self.width)))
                continue
            self._constant[rows], matrix = part.affine
            if small:
                dense[rows] = _dense(matrix)
            else:
                blocks.append(sparse.csr_array(matrix))
            if part.hessians is not None:
                curved_rows += range(rows.start, rows.stop)
        self._matrix: Any = dense if small else sparse.csr_array(sparse.vstack(blocks))
        self._hessian_rows = np.array(curved_rows, dtype=np.int64)
        #: The same rows as a slice, which is faster, where they are one.
        self._bent: Any = self._hessian_rows
        if curved_rows and curved_rows[-1] - curved_rows[0] == len(curved_rows) - 1:
            self._bent = slice(curved_rows[0], curved_rows[-1] + 1)
        #: Cubic functions: position among the curved rows, and third derivative.
        self._cubic = [
            (curved_rows.index(part.rows.start), part.third)
            for part in self._parts
            if part.third is not None
        ]
        stacks = [part.hessians for part in self._parts if part.hessians is not None]
        self._hessian_stack = np.concatenate(stacks) if stacks else np.zeros((0, 0, 0))
        self._flat_hessians = self._hessian_stack.reshape(len(curved_rows), self.width**2)

    def value(self, v: Vector) -> Vector:
        """Values, stacked; NaN outside a function's domain."""
        known = self._known
        if known is not None and known.first == 0 and known.point == v.tobytes():
            return known.value
        result = self._matrix @ v + self._constant
        if len(self._hessian_rows):
            result[self._bent] += 0.5 * (self._hessian_stack @ v) @ v
            for position, third in self._cubic:
                result[self._hessian_rows[position]] += (((third @ v) @ v) @ v) / 6.0
        if self._general:
            with np.errstate(all="ignore"):
                for rows, node in self._general:
                    result[rows] = node.value(v)
        return np.asarray(result)

    def values(self, points: Matrix) -> Matrix | None:
        """Values at many points, a row for each; None where a function is not stored as a quadratic."""
        if self._general or self._cubic:
            return None
        values = points @ self._matrix.T + self._constant
        for row, hessian in zip(self._hessian_rows, self._hessian_stack, strict=True):
            values[:, row] += 0.5 * ((points @ hessian) * points).sum(axis=1)
        return np.asarray(values)

    def value_jacobian(self, v: Vector, first: int = 0) -> tuple[Vector, Any]:
        """Values and Jacobian (dense where small, else CSR); NaN outside a function's domain.

        Rows before the first one asked for may be left out. The arrays are shared between calls: copy before writing.
        """
        point, known = v.tobytes(), self._known
        first = first if self._general and self._general[0][0].start < first else 0
        if known is None or known.point != point:
            known = _Known(point, self.size, *self._polynomials(v))
        if known.first > first:
            value, jacobian = known.value, known.jacobian
            dense = isinstance(jacobian, np.ndarray)
            jacobian = jacobian if dense or not self._general else jacobian.tolil()
            with np.errstate(all="ignore"):
                for rows, node in self._general:
                    if first <= rows.start < known.first:
                        value[rows], local = node.value_jacobian(v)
                        jacobian[rows] = _dense(local) if dense else local
            if not dense and self._general:
                jacobian = jacobian.tocsr()
            known = self._known = _Known(point, first, value, jacobian)
        return known.value, known.jacobian

    def _polynomials(self, v: Vector) -> tuple[Vector, Any]:
        """Values and Jacobian of the rows that are stored as polynomials."""
        value, jacobian = self._matrix @ v + self._constant, self._matrix
        if len(self._hessian_rows) or (self._general and isinstance(jacobian, np.ndarray)):
            jacobian = jacobian.copy()
        if len(self._hessian_rows):
            slopes = self._hessian_stack @ v
            value[self._bent] += 0.5 * slopes @ v
            for position, third in self._cubic:
                bent = (third @ v) @ v
                slopes[position] += 0.5 * bent
                value[self._hessian_rows[position]] += (bent @ v) / 6.0
            jacobian[self._bent] += slopes
        return value, jacobian

    def affine_rows(self, rows: slice) -> tuple[Vector, Matrix] | None:
        """Constant and Jacobian of some rows, None where one is not affine."""
        bent = np.any((self._hessian_rows >= rows.start) & (self._hessian_rows < rows.stop))
        if bent or any(r.start < rows.stop and rows.start < r.stop for r, _ in self._general):
            return None
        return self._constant[rows], _dense(self._matrix[rows])

    def quadratic_row(self, row: int) -> tuple[float, Vector, Matrix] | None:
        """Constant, slope and Hessian of one row, None where it is not quadratic."""
        if any(rows.start <= row < rows.stop for rows, _ in self._general):
            return None
        hessian = np.zeros((self.width, self.width))
        for index in np.flatnonzero(self._hessian_rows == row):
            if any(position == index for position, _ in self._cubic):
                return None
            hessian = self._hessian_stack[index]
        return float(self._constant[row]), _dense(self._matrix[[row]])[0], hessian

    def hessian(self, v: Vector, weights: Vector) -> Matrix:
        """Hessian of the weighted sum of all entries."""
        total = np.zeros((self.width, self.width))
        if len(self._hessian_rows):
            bent = weights[self._hessian_rows]
            total += (bent @ self._flat_hessians).reshape(total.shape)
            for position, third in self._cubic:
                if bent[position]:
                    total += bent[position] * (third @ v)
        with np.errstate(all="ignore"):
            for rows, node in self._general:
                if np.any(weights[rows]):
                    total += node.hessian(v, weights[rows])
        return total


def _expanded(node: _Node, rows: int, width: int) -> tuple[Vector, Matrix, Any]:
    """Value, slope and Hessians at the origin."""
    origin = np.zeros(width)
    value, jacobian = node.value_jacobian(origin)
    hessians = np.zeros((rows, width, width))
    for row, weights in enumerate(np.eye(rows)):
        hessians[row] = node.hessian(origin, weights)
    return np.asarray(value), _dense(jacobian), hessians


def _collapse(node: _Node, width: int) -> None:
    """Replace the small quadratic nodes below a node by what they are as polynomials."""

    def below(child: Any) -> Any:
        if not isinstance(child, _Node) or isinstance(child, _Affine):
            return child
        if isinstance(child, _Quadratic):
            child.refresh()
            return child
        if child.degree == 2:
            rows = len(child.value(np.zeros(width)))
            if rows * width**2 <= _INNER_ENTRIES:
                return _Quadratic(child, rows, width)
        _collapse(child, width)
        return child

    for name, child in list(vars(node).items()):
        if isinstance(child, list):
            setattr(node, name, [below(part) for part in child])
        else:
            setattr(node, name, below(child))


def _as_quadratic(node: _Node, rows: int, width: int) -> tuple[Vector, Any, Any] | None:
    """Constant, linear part and Hessians of a function that is quadratic, or None if it is not."""
    generator = np.random.default_rng(1)
    # from the origin, so that a column of the Hessian does not cancel against others of another scale
    base = np.zeros(width)
    try:
        with np.errstate(all="ignore"):
            value, jacobian = node.value_jacobian(base)
            jacobian = _dense(jacobian)
            hessians = np.zeros((rows, width, width))
            for k in range(width):
                shifted = base.copy()
                shifted[k] += 1.0
                hessians[:, k, :] = _dense(node.value_jacobian(shifted)[1]) - jacobian
            hessians = 0.5 * (hessians + hessians.transpose(0, 2, 1))
            linear, constant = jacobian, value
            for scale in (1.0, 30.0):
                point = generator.normal(size=width) * scale
                exact = node.value(point)
                model = constant + linear @ point + 0.5 * (hessians @ point) @ point
                size = (
                    1.0
                    + np.abs(exact)
                    + scale * np.abs(linear).sum(1)
                    + scale**2 * np.abs(hessians).sum((1, 2))
                )
                if not np.all(np.abs(exact - model) <= 1e-12 * size):
                    return None
    except (ValueError, ArithmeticError, IndexError):
        return None
    size = np.abs(linear)
    rounding = 1e-15 * (size[:, :, None] + size[:, None, :])
    hessians[np.abs(hessians) <= rounding] = 0.0
    return constant, linear, hessians
