"""Convex programs, canonicalised once and solved many times through the solver's own interface.

CVXPY turns a problem into ``min 1/2 z'Pz + q'z + d  s.t.  Az + s = b, s in K`` with P, q, d, A and b affine in the
problem's parameters. :class:`ConicProgram` keeps these affine maps, so that a solve at new parameter values costs
two sparse products and one call of the solver, and the derivative of the optimal value with respect to every
parameter is a contraction of the same maps with one primal-dual answer (envelope theorem).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import clarabel
import cvxpy as cp
import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from scipy.sparse.linalg import splu

from blocc.conic_dense import (
    INFINITE,
    Matrix,
    Vector,
    clarabel_settings,
    solve_or_explain,
)
from blocc.errors import (
    LowerInfeasibleError,
    LowerNotSolvedError,
    LowerUnboundedError,
    UnsupportedModelError,
)

#: Largest number of rows times columns for which dense linear algebra is used.
DENSE_LIMIT = 40_000
_LOOSE = 1e-6  # tolerance of an interior-point answer from which to go on by active sets
_NEWTON_STEPS = (
    10  # active sets tried from the last one before the interior-point method takes over
)
_MISSES = 4  # times in a row that this may fail before it is given up
_FACTORS = 2  # of KKT matrices kept
_BLENDS = 2  # objectives kept: a response asks for two in turn
_SHIFT = 1e-9  # of the KKT matrix, relative: dependent rows do no harm, and refinement takes it out again


@dataclass(frozen=True)
class ConicAnswer:
    """Primal-dual answer of a :class:`ConicProgram` at given parameter values.

    Attributes
    ----------
    z, dual : ndarray
        Primal vector and multipliers of ``Az + s = b`` (in the dual cone).
    value : float
        Primal objective, with its constant.
    gap, violation : float
        Relative duality gap and relative residual of the constraints.
    iterations : int
        Iterations of the solver.
    """

    z: Vector
    dual: Vector
    value: float
    gap: float
    violation: float
    iterations: int


class ConicProgram:
    """A CVXPY problem as a parametrised conic program.

    Parameters
    ----------
    problem : cvxpy.Problem
        A DPP problem that minimises.
    variables : sequence of cvxpy.Variable
        Variables whose values :meth:`primal` returns, stacked in Fortran order.
    constraints : sequence of cvxpy constraints
        Constraints whose multipliers :meth:`multipliers` returns.

    Raises
    ------
    UnsupportedModelError
        If CVXPY cannot canonicalise the problem for Clarabel.
    """

    def __init__(
        self,
        problem: cp.Problem,
        variables: Sequence[cp.Variable],
        constraints: Sequence[Any],
    ) -> None:
        for parameter in problem.parameters():
            if parameter.value is None:  # CVXPY wants a value to build the data; it is never used
                parameter.value = _any_value(parameter)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data, chain, inverse = problem.get_problem_data(
                    cp.CLARABEL, solver_opts={"use_quad_obj": True}
                )
        except (cp.error.DCPError, cp.error.DPPError, cp.error.SolverError) as error:
            raise UnsupportedModelError(
                f"CVXPY cannot canonicalise the problem: {error}"
            ) from error
        program = data["param_prob"]
        self.columns: dict[int, int] = dict(program.param_id_to_col)
        self.size = int(program.x.size)
        self.rows = len(data["b"])
        self._parameters = {parameter.id: parameter for parameter in program.parameters}
        self._width = program.q.shape[1]
        dims = data["dims"]
        self._equalities = int(dims.zero)
        self._linear = int(dims.zero + dims.nonneg)
        self._cones = _clarabel_cones(dims)
        self.is_quadratic = self._linear == self.rows
        n, m = self.size, self.rows
        self._raw_q = _compact(program.q)
        self._q_map = self._raw_q
        # coordinates, not rows: a CSR array of n times m rows has that many row pointers
        tensor = sparse.coo_array(program.A)
        matrix = tensor.row < m * n
        width = self._width
        self._A_map, self._A_row, self._A_col = _entries(
            (tensor.row[matrix], tensor.col[matrix], -tensor.data[matrix]), m, width
        )
        self._b_map = _compact(
            sparse.coo_array(
                (tensor.data[~matrix], (tensor.row[~matrix] - m * n, tensor.col[~matrix])),
                shape=(m, width),
            )
        )
        quadratic = sparse.coo_array(program.P) if program.P is not None else None
        none = np.zeros(0, dtype=np.int64)
        self._raw_P: _Coordinates = (
            (none, none, np.zeros(0))
            if quadratic is None
            else (quadratic.row, quadratic.col, quadratic.data)
        )
        self._P_map, self._P_row, self._P_col = _entries(self._raw_P, n, width)
        self._A_columns = _Columns(self._A_row, self._A_col, (m, n))
        self._set_pattern()
        self._solver: Any = None
        self._active: Any = None
        self._misses = 0
        self._factors: list[tuple[tuple[Vector, Vector, Any], tuple[Any, Any]]] = []
        self._blends: dict[float, tuple[Any, ...]] = {}
        self._dense = n * max(m, n) <= DENSE_LIMIT
        self._primal_map, blocks = _recovery_maps(
            chain, inverse, n, m, list(variables), list(constraints)
        )
        self._dual_map = sparse.vstack([*blocks, sparse.csr_array((0, m))], format="csr")
        self._dual_ends = [0, *np.cumsum([block.shape[0] for block in blocks])]
        self._primal_map, self._dual_map = _compact(self._primal_map), _compact(self._dual_map)
        self.variables = list(variables)
        self.constraints = list(constraints)
        self.set_parameters(
            {identity: parameter.value for identity, parameter in self._parameters.items()}
        )

    # ------------------------------------------------------------------------------------------- data
    def _set_pattern(self) -> None:
        shape, upper = (self.size, self.size), self._P_row <= self._P_col
        self._P_columns = _Columns(self._P_row, self._P_col, shape)
        self._P_upper = _Columns(self._P_row[upper], self._P_col[upper], shape)
        self._upper = upper

    def parameter_vector(self, values: Mapping[int, Any]) -> Vector:
        """Stack parameter values by identity, with the constant 1 in its column."""
        vector = np.zeros(self._width)
        vector[-1] = 1.0
        for identity, value in values.items():
            column = self.columns.get(identity)
            if column is not None:
                flat = np.asarray(value, dtype=float).ravel(order="F")
                vector[column : column + flat.size] = flat
        return vector

    def set_parameters(self, values: Mapping[int, Any]) -> None:
        """Set all parameters from a mapping of identity to value."""
        self.set_vector(self.parameter_vector(values))

    def set_vector(self, vector: Vector) -> None:
        """Set all parameters from a stacked vector (see :meth:`parameter_vector`)."""
        cost = self._q_map @ vector
        self.q, self.d = cost[:-1], float(cost[-1])
        self.A_data = self._A_map @ vector
        self.b = self._b_map @ vector
        self.P_data = self._P_map @ vector

    def blend(self, other: ConicProgram, weight: float) -> None:
        """Set the objective to the line through this one (weight 1) and another one's (weight 2).

        Parameters
        ----------
        other : ConicProgram
            Canonicalised from the same problem with an objective that differs in one constant factor.
        weight : float
            Point on the line.
        """
        if other._raw_q.shape != self._raw_q.shape or (
            other.columns.keys() and self.rows != other.rows
        ):
            raise UnsupportedModelError("the two programs differ in more than their objective")
        if weight in self._blends:
            self._q_map, self._P_map, *pattern = self._blends[weight]
            self._P_row, self._P_col, self._P_columns, self._P_upper, self._upper = pattern
            return
        self._q_map = (2.0 - weight) * self._raw_q + (weight - 1.0) * other._raw_q
        mine, others = self._raw_P, other._raw_P
        blended = (
            np.concatenate([mine[0], others[0]]),
            np.concatenate([mine[1], others[1]]),
            np.concatenate([(2.0 - weight) * mine[2], (weight - 1.0) * others[2]]),
        )
        self._P_map, self._P_row, self._P_col = _entries(blended, self.size, self._width)
        self._set_pattern()
        pattern = [self._P_row, self._P_col, self._P_columns, self._P_upper, self._upper]
        latest = list(self._blends.items())[1 - _BLENDS :]
        self._blends = {**dict(latest), weight: (self._q_map, self._P_map, *pattern)}

    def dense(self) -> tuple[Matrix, Matrix]:
        """P and A as dense arrays."""
        P = np.zeros((self.size, self.size))
        np.add.at(P, (self._P_row, self._P_col), self.P_data)
        A = np.zeros((self.rows, self.size))
        A[self._A_row, self._A_col] = self.A_data
        return P, A

    # ------------------------------------------------------------------------------------------ solve
    def solve(self, tol: float = 1e-10) -> ConicAnswer:
        """Solve at the parameters last set.

        Raises
        ------
        LowerInfeasibleError, LowerUnboundedError, LowerNotSolvedError
        """
        if self.is_quadratic and self._dense:
            P, A = self.dense()
            bottom = np.full(self.rows, -INFINITE)
            bottom[: self._equalities] = self.b[: self._equalities]
            answer = solve_or_explain(P, self.q, A, self.b, bottom)
            if answer is not None:
                result = self._assess(answer.z, answer.dual, answer.iterations)
                if result.gap <= max(tol, 1e-9) and result.violation <= max(tol, 2e-8):
                    return result
        if self.is_quadratic and not self._dense and self._misses < _MISSES:
            if self._active is None:
                self._active = np.arange(self.rows) < self._equalities
            exact = self._from_active_set(tol)
            if exact is None and tol < _LOOSE:  # a loose answer knows most of the active rows
                self._interior_point(_LOOSE)
                exact = self._from_active_set(tol)
            self._misses = self._misses + 1 if exact is None else 0
            if exact is not None:
                return exact
        return self._interior_point(tol)

    def _matrices(self) -> tuple[Any, Any]:
        return self._P_columns(self.P_data), self._A_columns(self.A_data)

    def _from_active_set(self, tol: float) -> ConicAnswer | None:
        """Primal-dual active set steps on a sparse QP, from the last answer's rows; None where they do not settle.

        A step costs one factorisation of a KKT system, where an interior-point solve costs some twenty.
        """
        P, A = self._matrices()
        active, n = self._active, self.size
        for step in range(_NEWTON_STEPS):
            try:
                kkt, solve = self._factor(P, A, active)
            except (RuntimeError, MemoryError):
                return None
            right = np.concatenate([-self.q, self.b[active]])
            both = solve(right)
            for _ in range(3):
                both = both + solve(right - kkt @ both)
            if not np.all(np.isfinite(both)):
                return None
            z, dual = both[:n], np.zeros(self.rows)
            dual[active] = both[n:]
            slack = self.b - A @ z
            rounding = 1e-12 * (1.0 + np.abs(self.b) + np.abs(dual))
            following = dual - slack > rounding
            following[: self._equalities] = True
            changed = int(np.count_nonzero(following != active))
            if changed == 0 or (step and not np.any(dual[self._equalities :] < -1e-11)):
                dual[self._equalities :] = np.maximum(dual[self._equalities :], 0.0)
                result = self._assess(z, dual, step + 1)
                if max(result.gap, result.violation) <= min(max(tol, 1e-12), 1e-8):
                    self._active = following
                    return result
            if changed == 0:
                return None
            active = following
        return None

    def forget_factors(self) -> None:
        """Free the memory of factors kept for the next solve."""
        self._factors.clear()

    def _factor(self, P: Any, A: Any, active: Any) -> tuple[Any, Callable[[Vector], Vector]]:
        """KKT matrix of the active rows, and what solves with it nearly; factors of the last few are kept."""
        data = (self.P_data, self.A_data, active)
        for position, (known, factor) in enumerate(self._factors):
            if all(np.array_equal(a, b) for a, b in zip(known, data, strict=True)):
                self._factors.insert(0, self._factors.pop(position))
                return factor
        rows = A.tocsr()[active]
        kkt = sparse.block_array([[P, rows.T], [rows, None]], format="csc")
        sign = np.concatenate([np.ones(self.size), -np.ones(rows.shape[0])])
        scale = max(1.0, float(np.abs(self.P_data).max(initial=0.0)))
        del self._factors[_FACTORS - 1 :]  # before the new one is there: they are large
        solve = splu(
            kkt + sparse.diags_array(_SHIFT * scale * sign, format="csc"),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=1e-3,
            options={"SymmetricMode": True},
        ).solve
        self._factors.insert(0, (data, (kkt, solve)))
        return kkt, solve

    def _interior_point(self, tol: float) -> ConicAnswer:
        P_data, A_data = self.P_data[self._upper], self.A_data
        settings = clarabel_settings(0.1 * tol)  # tighter than asked: Clarabel has its own scaling
        if self._solver is not None:
            try:
                self._solver.update(
                    P=self._P_upper.ordered(P_data),
                    q=self.q,
                    A=self._A_columns.ordered(A_data),
                    b=self.b,
                    settings=settings,
                )
            except Exception:  # the sparsity pattern changed (an entry became exactly zero)
                self._solver = None
        if self._solver is None:
            self._solver = clarabel.DefaultSolver(
                self._P_upper(P_data),
                self.q,
                self._A_columns(A_data),
                self.b,
                self._cones,
                settings,
            )
        solution = self._solver.solve()
        status = str(solution.status)
        if status == "PrimalInfeasible":  # and not AlmostPrimalInfeasible, which proves nothing
            error = LowerInfeasibleError(
                "no point satisfies the constraints (Clarabel's certificate)"
            )
            error.ray = np.asarray(solution.z)
            raise error
        if status == "DualInfeasible":
            raise LowerUnboundedError("the objective is unbounded below (Clarabel's certificate)")
        z, dual = np.asarray(solution.x), np.asarray(solution.z)
        if not (np.abs(z).max(initial=0.0) < INFINITE and np.abs(dual).max(initial=0.0) < INFINITE):
            raise LowerNotSolvedError(f"Clarabel stopped with status {status}")
        result = self._assess(z, dual, int(solution.iterations), np.asarray(solution.s))
        if self.is_quadratic and not self._dense:
            self._active = dual > np.asarray(solution.s)
            self._active[: self._equalities] = True
        if self.is_quadratic and self._dense and max(result.gap, result.violation) > 1e-13:
            polished = self._polish(result)
            if max(polished.gap, polished.violation) <= max(result.gap, result.violation):
                result = polished
        # 1e-6 is the loosest answer worth having: the caller sees gap and violation and can refuse it
        if not max(result.gap, result.violation) <= max(1e3 * tol, 1e-6):
            raise LowerNotSolvedError(
                f"Clarabel stopped with status {status}, gap {result.gap:.1e}, "
                f"violation {result.violation:.1e}"
            )
        return result

    def _assess(
        self, z: Vector, dual: Vector, iterations: int, slack: Vector | None = None
    ) -> ConicAnswer:
        Pz = np.bincount(self._P_row, self.P_data * z[self._P_col], self.size)
        Az = np.bincount(self._A_row, self.A_data * z[self._A_col], self.rows)
        quadratic = float(z @ Pz)
        value = 0.5 * quadratic + float(self.q @ z) + self.d
        stationarity = (
            Pz + self.q + np.bincount(self._A_col, self.A_data * dual[self._A_row], self.size)
        )
        residual = Az - self.b
        if slack is None:
            residual[self._equalities :] = np.maximum(residual[self._equalities :], 0.0)
        else:
            residual = residual + slack
        # a lower bound needs stationarity: count what is left of it over the size of the answer
        bound = -0.5 * quadratic - float(self.b @ dual) + self.d
        scale = 1.0 + abs(value)
        gap = (abs(value - bound) + float(np.abs(stationarity) @ np.abs(z))) / scale
        violation = float(np.max(np.abs(residual) / (1.0 + np.abs(self.b)), initial=0.0))
        return ConicAnswer(z, dual, value, gap, violation, iterations)

    def _polish(self, answer: ConicAnswer) -> ConicAnswer:
        """Solve the KKT system on the rows that look active: exact where the guess is right."""
        P, A = self.dense()
        slack = self.b - A @ answer.z
        active = answer.dual > slack
        active[: self._equalities] = True
        rows = A[active]
        n, k = self.size, len(rows)
        kkt = np.block([[P, rows.T], [rows, np.zeros((k, k))]])
        step = np.linalg.lstsq(
            kkt, np.concatenate([-self.q - P @ answer.z, slack[active]]), rcond=1e-12
        )[0]
        z = answer.z + step[:n]
        dual = np.zeros(self.rows)
        dual[active] = step[n:]
        if np.any(dual[self._equalities :] < 0):
            return answer
        return self._assess(z, dual, answer.iterations)

    # --------------------------------------------------------------------------------------- recovery
    def gradient(self, answer: ConicAnswer) -> Vector:
        """Derivative of the optimal value with respect to the stacked parameter vector (constant included)."""
        z, dual = answer.z, answer.dual
        cost = np.append(z, 1.0) @ self._q_map
        cost = cost + (dual[self._A_row] * z[self._A_col]) @ self._A_map
        cost = cost - dual @ self._b_map
        if len(self._P_row):
            cost = cost + (0.5 * z[self._P_row] * z[self._P_col]) @ self._P_map
        return np.asarray(cost)

    def primal(self, answer: ConicAnswer) -> Vector:
        """Values of ``variables``, stacked in Fortran order."""
        return np.asarray(self._primal_map @ answer.z)

    def multipliers(self, dual: Vector) -> list[Vector]:
        """Multipliers of ``constraints``, flat in Fortran order, in CVXPY's sign."""
        flat = np.asarray(self._dual_map @ dual)
        return [flat[start:end] for start, end in itertools.pairwise(self._dual_ends)]


# ---------------------------------------------------------------------------------------------- helpers
def _any_value(parameter: cp.Parameter) -> Any:
    value = np.ones(parameter.shape)
    if parameter.attributes.get("PSD"):
        value = np.eye(parameter.shape[0])
    elif parameter.is_nonpos() and not parameter.is_nonneg():
        value = -value
    return value if parameter.shape else float(value)


_Coordinates = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Vector]


def _entries(
    tensor: _Coordinates, rows: int, width: int
) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Map from parameters to the entries of a matrix that carry anything, and the row and column of each."""
    kept, position = np.unique(tensor[0], return_inverse=True)
    matrix = sparse.coo_array((tensor[2], (position, tensor[1])), shape=(len(kept), width))
    kept = kept.astype(np.int64)
    return _compact(matrix), kept % max(rows, 1), kept // max(rows, 1)


class _Columns:
    """Fills a CSC matrix of a fixed pattern, every entry kept, also zeros."""

    def __init__(self, row: Any, column: Any, shape: tuple[int, int]) -> None:
        numbered = sparse.csc_matrix((np.arange(1.0, len(row) + 1), (row, column)), shape=shape)
        numbered.sort_indices()
        self._order = numbered.data.astype(np.int64) - 1
        self._matrix = numbered

    def __call__(self, data: Vector) -> Any:
        matrix = self._matrix.copy()
        matrix.data = self.ordered(data)
        return matrix

    def ordered(self, data: Vector) -> Vector:
        """The entries column by column, as the matrix has them."""
        return np.asarray(data[self._order])


def _compact(matrix: Any) -> Any:
    """Dense where small (a sparse product costs ten microseconds of overhead), CSR where large."""
    matrix = sparse.csr_array(matrix)
    return matrix.toarray() if matrix.shape[0] * matrix.shape[1] <= DENSE_LIMIT else matrix


def _clarabel_cones(dims: Any) -> list[Any]:
    cones: list[Any] = []
    if dims.zero:
        cones.append(clarabel.ZeroConeT(dims.zero))
    if dims.nonneg:
        cones.append(clarabel.NonnegativeConeT(dims.nonneg))
    cones.extend(clarabel.SecondOrderConeT(size) for size in dims.soc)
    cones.extend(clarabel.PSDTriangleConeT(size) for size in dims.psd)
    cones.extend(clarabel.ExponentialConeT() for _ in range(dims.exp))
    cones.extend(clarabel.PowerConeT(power) for power in dims.p3d)
    cones.extend(clarabel.GenPowerConeT(power, 1) for power in getattr(dims, "pnd", []))
    return cones


def _recovery_maps(
    chain: Any,
    inverse: Any,
    n: int,
    m: int,
    variables: list[cp.Variable],
    constraints: list[Any],
) -> tuple[Any, list[Any]]:
    """Sparse maps from the conic answer to variables and multipliers, found by probing CVXPY's inversion.

    Every entry that CVXPY returns is a multiple of one conic entry (or zero), so that two probes, of ones and of
    indices, give factor and position; a third, random, checks.
    """

    def probe(x: Vector, z: Vector) -> tuple[list[Vector], list[Vector]]:
        solution = SimpleNamespace(
            status="Solved",
            x=x,
            z=z,
            s=z,
            obj_val=0.0,
            obj_val_dual=0.0,
            solve_time=0.0,
            iterations=0,
        )
        answer = chain.invert(solution, inverse)
        # a variable that the program does not mention may have any value
        primal = [_flatten(answer.primal_vars.get(v.id, np.zeros(v.shape))) for v in variables]
        duals = []
        for constraint in constraints:
            value = answer.dual_vars[constraint.id]
            parts = value if isinstance(value, list | tuple) else [value]
            duals.append(np.concatenate([_flatten(part) for part in parts]))
        return primal, duals

    generator = np.random.default_rng(0)
    points = [
        (np.ones(n), np.ones(m)),
        (np.arange(1.0, n + 1), np.arange(1.0, m + 1)),
        (generator.normal(size=n), generator.normal(size=m)),
    ]
    probes = [probe(x, z) for x, z in points]
    stacked = [np.concatenate([*part[0], np.zeros(0)]) for part in probes]
    primal_map = _index_map(stacked[0], stacked[1], stacked[2], points[2][0])
    dual_map = [
        _index_map(probes[0][1][k], probes[1][1][k], probes[2][1][k], points[2][1])
        for k in range(len(constraints))
    ]
    return primal_map, dual_map


def _flatten(value: Any) -> Vector:
    if sparse.issparse(value):
        value = value.toarray()
    return np.ravel(np.asarray(value, dtype=float), order="F")


def _index_map(factor: Vector, indexed: Vector, check: Vector, point: Vector) -> Any:
    used = factor != 0
    position = np.zeros(len(factor), dtype=np.int64)
    position[used] = np.rint(indexed[used] / factor[used]).astype(np.int64) - 1
    matrix = sparse.csr_array(
        (factor[used], (np.flatnonzero(used), position[used])), shape=(len(factor), len(point))
    )
    if not np.allclose(matrix @ point, check, rtol=1e-9, atol=1e-9):
        raise UnsupportedModelError("CVXPY's recovery of variables or duals is not entry by entry")
    return matrix
