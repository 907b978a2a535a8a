"""CVXPY expressions as fast functions of one flat vector, with their Jacobians.

``expr.value`` and ``expr.grad`` walk the tree through sparse matrices at some 50 microseconds a node. Here affine
parts are collapsed into one matrix each, the common elementwise atoms have their derivative written out, and
functions that turn out to be quadratic are stored as such. Whatever is left falls back on the atom's own ``_grad``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
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

#: Relative step of the differences that curvature comes from.
_STEP = 1e-5

_ELEMENTWISE: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    cp.exp: (np.exp, np.exp),
    cp.log: (np.log, np.reciprocal),
    cp.entr: (lambda v: -v * np.log(v), lambda v: -1.0 - np.log(v)),
    cp.logistic: (lambda v: np.logaddexp(0.0, v), lambda v: 0.5 * (1.0 + np.tanh(0.5 * v))),
    cp.abs: (np.abs, np.sign),
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

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        raise NotImplementedError

    def value(self, v: Vector) -> Vector:
        return self.value_jacobian(v)[0]


class _Affine(_Node):
    def __init__(self, matrix: Any, offset: Vector) -> None:
        self.matrix, self.offset = matrix, offset

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        return self.matrix @ v + self.offset, self.matrix


class _Elementwise(_Node):
    def __init__(self, argument: _Node, function: Any, derivative: Any) -> None:
        self.argument, self.function, self.derivative = argument, function, derivative

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        inner, jacobian = self.argument.value_jacobian(v)
        slope = self.derivative(inner)
        if sparse.issparse(jacobian):
            return self.function(inner), sparse.dia_array(
                (slope[None], [0]), shape=(len(slope),) * 2
            ) @ jacobian
        return self.function(inner), slope[:, None] * jacobian

    def value(self, v: Vector) -> Vector:
        return np.asarray(self.function(self.argument.value(v)))


class _Linear(_Node):
    """A linear atom of nonlinear arguments: sums, products with constants, indexing, stacking."""

    def __init__(self, arguments: list[_Node], matrices: list[Any], offset: Vector) -> None:
        self.arguments, self.matrices, self.offset = arguments, matrices, offset

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        value, total = self.offset, None
        for node, matrix in zip(self.arguments, self.matrices, strict=True):
            inner, jacobian = node.value_jacobian(v)
            value = value + matrix @ inner
            term = matrix @ jacobian
            total = term if total is None else total + term
        return value, total

    def value(self, v: Vector) -> Vector:
        value = self.offset
        for node, matrix in zip(self.arguments, self.matrices, strict=True):
            value = value + matrix @ node.value(v)
        return value


class _General(_Node):
    """Any other atom, through its own ``numeric`` and ``_grad``."""

    def __init__(self, atom: Any, arguments: list[_Node]) -> None:
        self.atom, self.arguments = atom, arguments

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


class _Product(_Node):
    """Product of two scalars or of two arrays of one shape, elementwise."""

    def __init__(self, left: _Node, right: _Node) -> None:
        self.left, self.right = left, right

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        a, Ja = self.left.value_jacobian(v)
        b, Jb = self.right.value_jacobian(v)
        return a * b, b[:, None] * _dense(Ja) + a[:, None] * _dense(Jb)


class _Norm(_Node):
    """Euclidean norm of a vector; slope zero at zero, as CVXPY has it."""

    def __init__(self, argument: _Node) -> None:
        self.argument = argument

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        inner, jacobian = self.argument.value_jacobian(v)
        value = float(np.sqrt(inner @ inner))
        direction = inner / value if value > 0 else inner
        return np.array([value]), np.reshape(jacobian.T @ direction, (1, -1))


class _SquareOverLine(_Node):
    """``sum(v^2) / w`` for a vector v and a scalar w."""

    def __init__(self, numerator: _Node, denominator: _Node) -> None:
        self.numerator, self.denominator = numerator, denominator

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        a, Ja = self.numerator.value_jacobian(v)
        b, Jb = self.denominator.value_jacobian(v)
        value = float(a @ a) / float(b[0])
        row = (2.0 / b[0]) * (Ja.T @ a) - (value / b[0]) * _dense(Jb)[0]
        return np.array([value]), np.reshape(row, (1, -1))


class _Inner(_Node):
    """Inner product of two vectors."""

    def __init__(self, left: _Node, right: _Node) -> None:
        self.left, self.right = left, right

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        a, Ja = self.left.value_jacobian(v)
        b, Jb = self.right.value_jacobian(v)
        return np.array([a @ b]), np.reshape(Ja.T @ b + Jb.T @ a, (1, -1))


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if sparse.issparse(matrix) else matrix


_Known = dict[int, _Node]


def _constant(expression: Any, layout: Layout) -> bool:
    return not any(v.id in layout.slices for v in expression.variables())


def _affine_parts(expression: Any, layout: Layout, found: dict[int, Any]) -> None:
    """Collect the largest affine parts of an expression, by identity."""
    if _constant(expression, layout) or isinstance(expression, cp.Variable):
        return
    if expression.is_affine():
        found[id(expression)] = expression
        return
    for argument in expression.args:
        _affine_parts(argument, layout, found)


def _compile(expression: Any, layout: Layout, known: _Known) -> _Node:
    size, width = expression.size, layout.size
    if _constant(expression, layout):
        if expression.value is None:
            raise UnsupportedModelError(f"{expression} has no value: set its parameters first")
        return _Affine(_shrink(sparse.csr_array((size, width))), _flat(expression.value))
    if isinstance(expression, cp.Variable):
        columns = np.arange(layout.slices[expression.id].start, layout.slices[expression.id].stop)
        matrix = sparse.csr_array((np.ones(size), (np.arange(size), columns)), shape=(size, width))
        return _Affine(_shrink(matrix), np.zeros(size))
    if id(expression) in known:
        return known[id(expression)]
    arguments = [_compile(argument, layout, known) for argument in expression.args]
    kind = type(expression)
    constant = [
        isinstance(node, _Affine)
        and not np.any(
            _dense(node.matrix)
            if node.matrix.shape[0] < 4
            else node.matrix.max() or node.matrix.min()
        )
        for node in arguments
    ]
    if kind is DivExpression and not constant[1]:
        inverse = _Elementwise(arguments[1], lambda v: 1.0 / v, lambda v: -1.0 / (v * v))
        if expression.args[0].size == expression.args[1].size:
            return _Product(arguments[0], inverse)
    bilinear = kind in (MulExpression, multiply) and not any(constant)
    if bilinear and expression.args[0].size == expression.args[1].size:
        if kind is multiply or expression.args[0].size == 1:
            return _Product(*arguments)
        if expression.size == 1:
            return _Inner(*arguments)
    if (isinstance(expression, AffAtom) and not bilinear and kind is not DivExpression) or (
        kind is DivExpression and constant[1]
    ):
        return _linear(expression, arguments)
    elementwise = _ELEMENTWISE.get(kind)
    if elementwise is not None:
        return _Elementwise(arguments[0], *elementwise)
    if kind is cp.quad_over_lin and expression.size == 1 and expression.args[1].size == 1:
        return _SquareOverLine(*arguments)
    if isinstance(expression, Pnorm) and expression.p == 2 and expression.axis is None:
        return _Norm(arguments[0])
    floored = kind is cp.maximum and len(arguments) == 2 and constant[1]
    if floored and expression.args[0].size == expression.size:
        return _Elementwise(arguments[0], *_floor(arguments[1].value(np.zeros(width))))
    if isinstance(expression, Power):
        exponent = float(expression.p.value)
        return _Elementwise(arguments[0], *_power(exponent))
    return _General(expression, arguments)


def _affine(expressions: Sequence[Any], layout: Layout) -> list[_Node]:
    """Matrix and offset of affine expressions, by one call of CVXPY's own canonicalisation."""
    if not expressions:
        return []
    starts = {identity: part.start for identity, part in layout.slices.items()}
    operators, rows = [], [0]
    for expression in expressions:
        operator, constraints = _fix_parameters(expression).canonical_form
        assert not constraints
        operators.append(operator)
        rows.append(rows[-1] + expression.size)
    tensor = canonInterface.get_problem_matrix(
        operators, layout.size, starts, {CONSTANT_ID: 1}, {CONSTANT_ID: 0}, rows[-1]
    )
    stacked = sparse.csr_array(sparse.csr_array(tensor.reshape((layout.size + 1, rows[-1]))).T)
    if rows[-1] * (layout.size + 1) <= _DENSE_ENTRIES:
        stacked = stacked.toarray()
    offset = _dense(stacked[:, [-1]]).ravel()
    return [
        _Affine(_shrink(stacked[start:end, :-1]), offset[start:end])
        for start, end in itertools.pairwise(rows)
    ]


def _fix_parameters(expression: Any) -> Any:
    """Copy an expression with the present values of its parameters as constants."""
    if isinstance(expression, cp.Parameter):
        if expression.value is None:
            raise UnsupportedModelError(f"parameter {expression} has no value: set it first")
        return cp.Constant(expression.value)
    if not expression.parameters():
        return expression
    return expression.copy([_fix_parameters(argument) for argument in expression.args])


def _floor(least: Vector) -> tuple[Any, Any]:
    """Maximum with a constant; CVXPY gives the first argument the slope where both are equal."""
    return (lambda v: np.maximum(v, least)), (lambda v: (v >= least).astype(float))


def _power(exponent: float) -> tuple[Any, Any]:
    whole = int(exponent) if exponent == int(exponent) else exponent
    if exponent == 2:
        return (lambda v: v * v), (lambda v: 2.0 * v)

    def function(v: Vector) -> Vector:
        with np.errstate(all="ignore"):
            return np.asarray(v**whole)

    def derivative(v: Vector) -> Vector:
        with np.errstate(all="ignore"):
            return np.asarray(exponent * v ** (whole - 1))

    return function, derivative


def _linear(atom: Any, arguments: list[_Node]) -> _Node:
    """Matrix of a linear atom by argument, from the atom's own canonicalisation at zero arguments."""
    values = [
        node.offset.reshape(arg.shape, order="F")
        if isinstance(node, _Affine)
        else np.zeros(arg.shape)
        for node, arg in zip(arguments, atom.args, strict=True)
    ]
    offset = _flat(atom.numeric(values))
    matrices = [
        _shrink(_local(local, arg.size, atom.size))
        for local, arg in zip(atom._grad(values), atom.args, strict=True)
    ]
    if all(isinstance(node, _Affine) for node in arguments):
        total = sum(
            matrix @ node.matrix  # type: ignore[attr-defined]
            for node, matrix in zip(arguments, matrices, strict=True)
        )
        return _Affine(_shrink(total), offset)
    # the offset above counts the affine arguments' own offsets: their nodes will count them again
    for node, matrix in zip(arguments, matrices, strict=True):
        if isinstance(node, _Affine):
            offset = offset - matrix @ node.offset
    return _Linear(arguments, matrices, offset)


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


class Functions:
    """Several CVXPY expressions stacked into one vector function of the flat vector.

    Functions that are quadratic (found by comparing gradients at random points) are stored as quadratics and
    evaluated together.

    Parameters
    ----------
    expressions : sequence of cvxpy expressions
    layout : Layout
    """

    def __init__(self, expressions: Sequence[Any], layout: Layout) -> None:
        self.size = sum(expression.size for expression in expressions)
        self.width = layout.size
        affine: dict[int, Any] = {}
        for expression in expressions:
            _affine_parts(expression, layout, affine)
        parts = _affine(list(affine.values()), layout)
        known = dict(zip(affine, parts, strict=True))
        nodes = [_compile(expression, layout, known) for expression in expressions]
        self._constant = np.zeros(self.size)
        small = self.size * self.width <= _DENSE_ENTRIES
        dense = np.zeros((self.size, self.width) if small else (0, 0))
        self._hessians: list[tuple[int, Any]] = []
        self._general: list[tuple[slice, _Node]] = []
        self._bent: dict[
            int, npt.NDArray[np.bool_]
        ] = {}  # which entries a general node is not affine in
        blocks: list[Any] = []
        start = 0
        for node, expression in zip(nodes, expressions, strict=True):
            rows = slice(start, start + expression.size)
            start = rows.stop
            if isinstance(node, _Affine):
                self._constant[rows] = node.offset
                if small:
                    dense[rows] = _dense(node.matrix)
                else:
                    blocks.append(sparse.csr_array(node.matrix))
                continue
            quadratic = (
                _as_quadratic(node, expression.size, self.width)
                if expression.size * self.width**2 <= _HESSIAN_ENTRIES
                else None
            )
            if quadratic is not None:
                constant, linear, hessians = quadratic
                self._constant[rows] = constant
                if small:
                    dense[rows] = linear
                else:
                    blocks.append(sparse.csr_array(linear))
                self._hessians += [(rows.start + k, h) for k, h in enumerate(hessians)]
            else:
                self._general.append((rows, node))
                self._bent[rows.start] = curved([expression], layout)
                if not small:
                    blocks.append(sparse.csr_array((expression.size, self.width)))
        self._matrix: Any = dense if small else sparse.csr_array(sparse.vstack(blocks))
        self._hessian_rows = np.array([row for row, _ in self._hessians], dtype=np.int64)
        self._hessian_stack = (
            np.array([h for _, h in self._hessians]) if self._hessians else np.zeros((0, 0, 0))
        )

    def value(self, v: Vector) -> Vector:
        """Values, stacked."""
        result = self._matrix @ v + self._constant
        if len(self._hessian_rows):
            result[self._hessian_rows] += 0.5 * (self._hessian_stack @ v) @ v
        for rows, node in self._general:
            with np.errstate(all="ignore"):
                result[rows] = node.value(v)
        return np.asarray(result)

    def value_jacobian(self, v: Vector) -> tuple[Vector, Any]:
        """Values and Jacobian (dense where small, else CSR); NaN outside a function's domain."""
        value = self._matrix @ v + self._constant
        jacobian = self._matrix.copy() if (self._hessians or self._general) else self._matrix
        if len(self._hessian_rows):
            slopes = self._hessian_stack @ v
            value[self._hessian_rows] += 0.5 * slopes @ v
            jacobian[self._hessian_rows] += slopes
        for rows, node in self._general:
            with np.errstate(all="ignore"):
                inner, local = node.value_jacobian(v)
            value[rows] = inner
            if sparse.issparse(jacobian):
                jacobian = jacobian.tolil() if jacobian.format != "lil" else jacobian
                jacobian[rows] = local
            else:
                jacobian[rows] = _dense(local)
        if sparse.issparse(jacobian) and jacobian.format == "lil":
            jacobian = jacobian.tocsr()
        return value, jacobian

    def affine_rows(self, rows: slice) -> tuple[Vector, Matrix] | None:
        """Constant and Jacobian of some rows, None where one is not affine."""
        bent = any(rows.start <= row < rows.stop for row in self._hessian_rows)
        if bent or any(r.start < rows.stop and rows.start < r.stop for r, _ in self._general):
            return None
        return self._constant[rows], _dense(self._matrix[rows])

    def quadratic_row(self, row: int) -> tuple[float, Vector, Matrix] | None:
        """Constant, slope and Hessian of one row, None where it is not quadratic."""
        if any(rows.start <= row < rows.stop for rows, _ in self._general):
            return None
        hessian = np.zeros((self.width, self.width))
        for index in np.flatnonzero(self._hessian_rows == row):
            hessian = self._hessian_stack[index]
        return float(self._constant[row]), _dense(self._matrix[[row]])[0], hessian

    def hessian(self, v: Vector, weights: Vector) -> Matrix:
        """Hessian of the weighted sum of all entries, by differences of gradients where it is not quadratic."""
        total = np.zeros((self.width, self.width))
        if len(self._hessian_rows):
            total += np.tensordot(weights[self._hessian_rows], self._hessian_stack, axes=1)
        for rows, node in self._general:
            if not np.any(weights[rows]):
                continue
            columns = np.flatnonzero(self._bent[rows.start])
            with np.errstate(all="ignore"):
                base = node.value_jacobian(v)[1].T @ weights[rows]
                for k in columns:
                    shifted = v.copy()
                    step = _STEP * max(1.0, abs(v[k]))
                    shifted[k] += step
                    slope = node.value_jacobian(shifted)[1].T @ weights[rows]
                    if not np.all(np.isfinite(slope)):
                        step = -step
                        shifted[k] = v[k] + step
                        slope = node.value_jacobian(shifted)[1].T @ weights[rows]
                    total[:, k] += (slope - base) / step
        return 0.5 * (total + total.T)


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
