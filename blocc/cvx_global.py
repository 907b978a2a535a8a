"""Branch and bound: proven global bounds for bilevel problems with few upper variables.

Two relaxations, each exact in the limit of its branching:

* **Complementarity.** Where the lower level's KKT conditions are affine but for ``dual_i slack_i = 0``
  (the gradient of g in y affine in (x, y), constraints affine), a node fixes some duals and some slacks to zero
  and solves a convex quadratic program. KKT conditions are exact there (affine constraints need no
  qualification), so that the tree is finite and x needs no bounds. Bard and Moore 1990. Where f is a quadratic
  that is not convex, a node takes its chord along every concave direction and is split there as well.
* **Value-function cuts.** Where g and c are jointly convex, v is convex, so that over a box of x it lies below the
  interpolation of its values at the corners: ``g(x, y) <= sum_i t_i v(x_i)``, ``x = sum_i t_i x_i``. A node is a
  box of x. Terms of g in x alone cancel on both sides and need not be convex.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cvxpy as cp
import numpy as np

from blocc.conic import ConicAnswer, ConicProgram
from blocc.conic_dense import INFINITE, Matrix, Vector, solve_dense_qp
from blocc.errors import (
    LowerInfeasibleError,
    LowerLevelError,
    LowerUnboundedError,
    UnsupportedModelError,
)
from blocc.methods.joint import JointPoint
from blocc.progress import Progress

if TYPE_CHECKING:
    from blocc.cvx import BilevelProblem

MAX_UPPER = 3
_SECONDS = 120.0
_SHOW = 2.0  # seconds between records
_NODES = 100_000


def branch_and_bound(
    problem: BilevelProblem,
    point: JointPoint,
    bound: float | None,
    tol: float,
    progress: Progress | None = None,
) -> tuple[JointPoint, float | None]:
    """Improve a point and prove a bound.

    Parameters
    ----------
    problem : BilevelProblem
        With at most 3 upper variables.
    point : JointPoint
        Incumbent.
    bound : float or None
        Known bound.
    tol : float
        Relative gap at which to stop.
    progress : Progress, optional
        Gets a record every two seconds: bound, best value and their difference.

    Returns
    -------
    point, bound
        The bound is proven; None where neither relaxation applies, so that none is available.

    Raises
    ------
    UnsupportedModelError
        With more than 3 upper variables, or where neither relaxation applies: the message says why.
    """
    if problem.n_upper > MAX_UPPER:
        raise UnsupportedModelError(
            f"global_=True is for at most {MAX_UPPER} upper variables, not {problem.n_upper}; "
            'use starts="range" or starts=N for a wider local search'
        )
    tree: _Tree
    try:
        tree = _Complementarity(problem)
    except UnsupportedModelError as first:
        try:
            tree = _ValueFunction(problem, point.objective)
        except UnsupportedModelError as second:
            if bound is not None:
                return point, bound
            raise UnsupportedModelError(
                f"no global bound is available for this problem: {first}; and {second}. "
                "Solve without global_=True"
            ) from second
    point, proven = tree.search(point, tol, progress or Progress())
    known = [proven] if bound is None else [proven, bound]
    proven = max(known)
    return point, proven if np.isfinite(proven) else None


@dataclass(order=True)
class _Node:
    bound: float
    order: int
    data: Any = field(compare=False)


class _Tree:
    """Best-first branch and bound."""

    def __init__(self, problem: BilevelProblem) -> None:
        self.problem = problem

    def root(self) -> Any:
        raise NotImplementedError

    def relax(self, node: Any) -> tuple[float, Vector | None, list[Any]]:
        """Bound of a node, its (x, y) where there is one, and its children ([] where the bound is exact).

        A bound of inf says that the node is empty.
        """
        raise NotImplementedError

    def search(self, point: JointPoint, tol: float, progress: Progress) -> tuple[JointPoint, float]:
        """Return the best point found and the proven bound."""
        best = point
        count = itertools.count()
        queue = [_Node(-np.inf, next(count), self.root())]
        closed = np.inf  # least bound among the nodes not branched any further
        deadline = time.perf_counter() + _SECONDS
        shown = time.perf_counter()
        while queue and next(count) < _NODES and time.perf_counter() < deadline:
            node = heapq.heappop(queue)
            # the target is a little tighter than asked: the certificate measures on its own scale
            if time.perf_counter() > shown + _SHOW:
                shown = time.perf_counter()
                progress.row(
                    method="bound",
                    gamma=np.inf,
                    penalized=node.bound,
                    response=best.objective,
                    penalty=best.objective - node.bound,
                    stationarity=np.nan,
                )
            level = best.objective - 0.5 * tol * (1.0 + abs(best.objective))
            if node.bound >= level:
                heapq.heappush(queue, node)
                break
            bound, candidate, children = self.relax(node.data)
            bound = max(bound, node.bound)
            if candidate is not None:
                best = self._offer(candidate, best)
            if bound == np.inf:
                continue
            if not children or bound >= level:
                closed = min(closed, bound)
                continue
            for child in children:
                heapq.heappush(queue, _Node(bound, next(count), child))
        return best, min([closed, best.objective, *(node.bound for node in queue)])

    def _offer(self, v: Vector, best: JointPoint) -> JointPoint:
        """Compare a node's x, with the better of its y and the lower level's own, with the incumbent."""
        n = self.problem.n_upper
        x, y = v[:n], v[n:]
        lower, upper = self.problem.bounds
        try:
            saddle = self.problem.lower(np.clip(x, lower[:n], upper[:n]))
        except LowerLevelError:
            return best
        own = np.asarray(saddle.y)
        favourite = self.problem.upper(x, y) < self.problem.upper(x, own) - 1e-2 * (
            1.0 + abs(self.problem.upper(x, own))
        )
        # the node's y may only be loosely optimal: it counts where the lower level leaves a real choice
        for answer in (
            (own, y) if favourite or self.problem.upper_violation(x, own) > 1e-9 else (own,)
        ):
            data = self.problem.derivatives(x, answer)
            w = np.concatenate([x, answer])
            worst = max(
                float(np.max(part, initial=0.0))
                for part in (data.inequality, np.abs(data.equality), lower - w, w - upper)
            )
            gap = (data.lower - saddle.value) / (1.0 + abs(saddle.value))
            violation = worst / (1.0 + float(np.abs(w).max()))
            found = JointPoint(x, answer, float(data.upper), gap, violation)
            if found.error <= 1e-9 and found.better(best):
                best = found
        return best


# ----------------------------------------------------------------------------------- complementarity
class _Complementarity(_Tree):
    """Branching on ``dual_i = 0`` or ``slack_i = 0``; unknowns w = (x, y, duals, equality duals)."""

    def __init__(self, problem: BilevelProblem) -> None:
        super().__init__(problem)
        n, k = problem.layout.size, problem.n_upper
        hessian, slope, constant = _quadratic(problem)
        gradient, offset = _affine(
            lambda v: problem.derivatives(v[:k], v[k:]).lower_gradient[k:], n, "the lower gradient"
        )
        ineq, ineq_0 = _affine(
            lambda v: problem.derivatives(v[:k], v[k:]).inequality, n, "a constraint"
        )
        eq, eq_0 = _affine(lambda v: problem.derivatives(v[:k], v[k:]).equality, n, "a constraint")
        if any(name.endswith(".psd") for item in problem.lowers for name in item.bounds):
            raise UnsupportedModelError("a lower variable is a matrix in a cone")
        upper_ineq, upper_eq = problem._upper_rows
        rows, right = [ineq[upper_ineq:]], [-ineq_0[upper_ineq:]]
        low, high = problem.bounds
        eye = np.eye(n)
        for sign, bound in ((1.0, high), (-1.0, low)):
            finite = np.isfinite(bound)
            finite[:k] = False
            rows.append(sign * eye[finite])
            right.append(sign * bound[finite])
        self.C, self.c = np.vstack(rows), np.concatenate(right)  # lower level: C z <= c
        m, p = len(self.C), len(eq) - upper_eq
        self.n, self.m = n, m
        self.size = n + m + p
        self.Q = np.zeros((self.size, self.size))
        self.Q[:n, :n] = hessian
        self.q = np.concatenate([slope, np.zeros(m + p)])
        self.d = constant
        equal = np.zeros((len(eq) + len(gradient), self.size))
        equal[: len(eq), :n] = eq
        equal[len(eq) :, :n] = gradient
        equal[len(eq) :, n : n + m] = self.C[:, k:].T
        equal[len(eq) :, n + m :] = eq[upper_eq:, k:].T
        self.E, self.e = equal, np.concatenate([-eq_0, -offset])
        # inequalities on w: upper ones, lower ones, bounds of x, duals >= 0
        width = self.size - n
        blocks = [(ineq[:upper_ineq], -ineq_0[:upper_ineq]), (self.C, self.c)]
        for sign, bound in ((1.0, high), (-1.0, low)):
            finite = np.isfinite(bound)
            finite[k:] = False
            blocks.append((sign * eye[finite], sign * bound[finite]))
        self.A = np.vstack([np.hstack([a, np.zeros((len(a), width))]) for a, _ in blocks])
        self.b = np.concatenate([b for _, b in blocks])
        dual_rows = np.zeros((m, self.size))
        dual_rows[:, n : n + m] = -np.eye(m)
        self.A = np.vstack([self.A, dual_rows])
        self.b = np.concatenate([self.b, np.zeros(m)])

    def root(self) -> _Pieces:
        return _Pieces()

    def relax(self, node: Any) -> tuple[float, Vector | None, list[Any]]:
        open_pairs = [i for i in range(self.m) if i not in node.no_dual and i not in node.no_slack]
        rows, right = [self.E], [self.e]
        for i in node.no_dual:
            row = np.zeros(self.size)
            row[self.n + i] = 1.0
            rows.append(row[None])
            right.append(np.zeros(1))
        for i in node.no_slack:
            row = np.zeros(self.size)
            row[: self.n] = self.C[i]
            rows.append(row[None])
            right.append(self.c[[i]])
        value, w, split = self._minimise(np.vstack(rows), np.concatenate(right), node.cuts)
        if value == np.inf:
            return np.inf, None, []
        if w is None:  # unbounded
            if not open_pairs:
                return value, None, []
            return value, None, node.children(open_pairs[0])
        z, duals = w[: self.n], w[self.n : self.n + self.m]
        slack = np.maximum(self.c - self.C @ z, 0.0)
        product = np.minimum(np.maximum(duals, 0.0), slack)
        worst = max(open_pairs, key=lambda i: product[i], default=None)
        if worst is not None and product[worst] > 1e-9:
            return value, z, node.children(worst)
        return value, z, [] if split is None else node.halves(*split)

    def _minimise(
        self, E: Matrix, e: Vector, cuts: tuple[tuple[Vector, float], ...]
    ) -> tuple[float, Vector | None, tuple[Vector, float] | None]:
        """Bound on f over the node, its minimiser, and where f is below the bound's model a plane to split at.

        (inf, None, None) where the node is empty, (-inf, None, None) where f may be unbounded.
        """
        # coordinates of the equalities' null space: f may be convex there without being so everywhere
        u, s, vt = np.linalg.svd(E)
        rank = int(np.sum(s > 1e-10 * max(1.0, s[0] if len(s) else 1.0)))
        base = vt[:rank].T @ ((u.T @ e)[:rank] / s[:rank])
        if np.abs(E @ base - e).max(initial=0.0) > 1e-8 * (1.0 + np.abs(e).max(initial=0.0)):
            return np.inf, None, None
        null = vt[rank:].T
        A = np.vstack([self.A, *(row for row, _ in cuts)])
        rows = A @ null
        right = np.append(self.b, [level for _, level in cuts]) - A @ base
        if not null.shape[1]:
            if np.any(right < -1e-8 * (1.0 + np.abs(right))):
                return np.inf, None, None
            return self._value(base) - 1e-9, base, None
        P, q = null.T @ self.Q @ null, null.T @ (self.q + self.Q @ base)
        values, vectors = np.linalg.eigh(P)
        size = 1.0 + np.abs(self.Q).max()
        values[np.abs(values) < 1e-12 * size] = 0.0  # rounding, which would make it look definite
        constant = self._value(base)
        split: tuple[Vector, float] | None = None
        concave = np.flatnonzero(values < 0)
        ranges: dict[int, tuple[float, float]] = {}
        try:
            for j in map(int, concave):  # below every concave direction its chord over the node
                found = _range(vectors[:, j], rows, right)
                if found is None:
                    return np.inf, None, None
                low, high = ranges[j] = found
                q = q + 0.5 * values[j] * (low + high) * vectors[:, j]
                constant -= 0.5 * values[j] * low * high
            convex = (vectors * np.maximum(values, 0.0)) @ vectors.T
            t = _least(convex, q, rows, right)
        except LowerUnboundedError:
            return -np.inf, None, None
        if t is None:
            return np.inf, None, None
        worst = 1e-9 * size
        for j, (low, high) in ranges.items():
            along = float(vectors[:, j] @ t)
            missed = -0.5 * values[j] * (along - low) * (high - along)
            if missed > worst:
                worst, plane = missed, null @ vectors[:, j]
                at = min(max(along, 0.8 * low + 0.2 * high), 0.2 * low + 0.8 * high)
                split = plane, at + float(plane @ base)
        bound = constant + float(q @ t) + 0.5 * float(t @ convex @ t)
        return bound - 1e-9, base + null @ t, split

    def _value(self, w: Vector) -> float:
        return float(0.5 * w @ self.Q @ w + self.q @ w + self.d)


@dataclass(frozen=True)
class _Pieces:
    """A node: duals and slacks that are zero, and cuts ``row w <= level``."""

    no_dual: frozenset[int] = frozenset()
    no_slack: frozenset[int] = frozenset()
    cuts: tuple[tuple[Vector, float], ...] = ()

    def children(self, i: int) -> list[_Pieces]:
        return [
            _Pieces(self.no_dual | {i}, self.no_slack, self.cuts),
            _Pieces(self.no_dual, self.no_slack | {i}, self.cuts),
        ]

    def halves(self, row: Vector, level: float) -> list[_Pieces]:
        return [
            _Pieces(self.no_dual, self.no_slack, (*self.cuts, half))
            for half in ((row, level), (-row, -level))
        ]


def _range(direction: Vector, rows: Matrix, right: Vector) -> tuple[float, float] | None:
    """Least and greatest value of a linear function over a polyhedron, None where it is empty.

    Raises
    ------
    LowerUnboundedError
    """
    ends = []
    for sign in (1.0, -1.0):
        t = _least(np.zeros((len(direction),) * 2), sign * direction, rows, right)
        if t is None:
            return None
        value = float(direction @ t)
        ends.append(value - sign * 1e-8 * (1.0 + abs(value)))
    return ends[0], ends[1]


def _least(P: Matrix, q: Vector, rows: Matrix, right: Vector) -> Vector | None:
    """Minimiser of a convex quadratic program, None where it is infeasible.

    Raises
    ------
    LowerUnboundedError
    """
    lengths = np.linalg.norm(rows, axis=1)
    if np.any(right[lengths <= 1e-12] < -1e-8):
        return None
    kept = lengths > 1e-12
    A, b = rows[kept] / lengths[kept, None], right[kept] / lengths[kept]
    answer = solve_dense_qp(P, q, A, b, np.full(len(b), -INFINITE))
    if answer is not None:
        return answer.z
    z = cp.Variable(len(q))
    program = ConicProgram(
        cp.Problem(cp.Minimize(0.5 * cp.quad_form(z, cp.psd_wrap(P)) + q @ z), [A @ z <= b]),
        [z],
        [],
    )
    try:
        return program.primal(program.solve(1e-9))
    except LowerInfeasibleError:
        return None
    except LowerUnboundedError:
        raise
    except LowerLevelError as error:  # no proof either way: leave the node open
        raise LowerUnboundedError(str(error)) from error


def _affine(function: Any, n: int, what: str) -> tuple[Matrix, Vector]:
    """Matrix and constant of an affine function, checked at random points."""
    offset = np.asarray(function(np.zeros(n)))
    eye = np.eye(n)
    matrix = np.array([function(row) - offset for row in eye]).T.reshape(len(offset), n)
    generator = np.random.default_rng(0)
    for scale in (1.0, 10.0):
        point = generator.uniform(0.1, 1.0, n) * scale
        value, model = function(point), matrix @ point + offset
        size = 1.0 + np.abs(matrix).sum(axis=1) * scale + np.abs(offset)
        if not (np.all(np.isfinite(value)) and np.all(np.abs(value - model) <= 1e-9 * size)):
            raise UnsupportedModelError(f"{what} is not affine in (x, y)")
    return matrix, offset


def _quadratic(problem: BilevelProblem) -> tuple[Matrix, Vector, float]:
    """Hessian, slope and constant of a quadratic upper objective."""
    if problem.callable is not None:
        raise UnsupportedModelError("the upper objective is a callable")
    k, n = problem.n_upper, problem.layout.size
    try:
        matrix, slope = _affine(
            lambda v: problem.derivatives(v[:k], v[k:]).upper_gradient, n, "its gradient"
        )
    except UnsupportedModelError as error:
        raise UnsupportedModelError("the upper objective is not quadratic") from error
    constant = problem.upper(np.zeros(k), np.zeros(n - k))
    return 0.5 * (matrix + matrix.T), slope, constant


# ------------------------------------------------------------------------------- value-function cuts
class _ValueFunction(_Tree):
    """Branching on boxes of x, with v above replaced by the interpolation of its corner values."""

    def __init__(self, problem: BilevelProblem, incumbent: float) -> None:
        super().__init__(problem)
        from blocc.cvx import copy_on_plain_variables

        if problem.expression is None or not problem.expression.is_dcp():
            raise UnsupportedModelError("the upper objective is not convex by CVXPY's rules")
        constraints = [*problem._alone.values(), *problem._coupling.values()]
        for item in problem.lowers:
            constraints += item.constraints.values()
        if not all(constraint.is_dcp() for constraint in constraints):
            raise UnsupportedModelError("a constraint is not jointly convex by CVXPY's rules")
        shared, self._alone = self._convex_part()
        # nothing worse than the incumbent is of interest: that bounds x where the constraints do not
        limit = problem.expression <= incumbent + 1e-6 * (1.0 + abs(incumbent))
        k = problem.n_upper
        self.corners = 2**k
        x = cp.hstack([cp.vec(v, order="F") for v in problem.upper_layout.variables])
        slope = cp.Parameter(k)
        variables = problem.layout.variables
        plain, copied = copy_on_plain_variables(
            variables, cp.Problem(cp.Minimize(slope @ x), [*constraints, limit])
        )
        self.low, self.high = self._range(ConicProgram(copied, plain, []), slope)
        weights = cp.Variable(self.corners)
        self.vertices = cp.Parameter((k, self.corners))
        self.values = cp.Parameter(self.corners)
        self.slack = cp.Parameter(nonneg=True)
        inside = [
            *constraints,
            weights >= 0,
            cp.sum(weights) == 1,
            x == self.vertices @ weights,
        ]
        cut = shared <= self.values @ weights + self.slack

        def compiled(rows: list[Any]) -> ConicProgram:
            plain, copied = copy_on_plain_variables(
                [*variables, weights], cp.Problem(cp.Minimize(problem.expression), rows)
            )
            return ConicProgram(copied, plain[: len(variables)], [])

        self.with_cut, self.without_cut = compiled([*inside, cut]), compiled(inside)
        self._cache: dict[tuple[float, ...], float] = {}

    def _convex_part(self) -> tuple[Any, Any]:
        """Split g into a jointly convex part and a function of x alone."""
        problem = self.problem
        lower_ids = set(problem.lower_layout.slices)
        alone: list[Any] = [cp.Constant(0.0)]
        shared: list[Any] = []
        for item in problem.lowers:
            for term in _terms(item.expression):
                inside = any(variable.id in lower_ids for variable in term.variables())
                (shared if inside else alone).append(term)
        part = sum(shared)
        if part.is_dcp():
            return part, sum(alone)
        # a quadratic g, strongly convex in y: enough of |x|^2 makes it jointly convex
        k, n = problem.n_upper, problem.layout.size
        try:
            hessian, slope = _affine(
                lambda v: problem.derivatives(v[:k], v[k:]).lower_gradient, n, "the lower gradient"
            )
        except UnsupportedModelError as error:
            raise UnsupportedModelError("the lower objective is not jointly convex") from error
        hessian = 0.5 * (hessian + hessian.T)
        shift, kappa = np.diag([1.0] * k + [0.0] * (n - k)), 1.0
        while np.linalg.eigvalsh(hessian + kappa * shift)[0] < 0 and kappa < 1e6:
            kappa *= 2.0
        if kappa >= 1e6:
            raise UnsupportedModelError("the lower objective is not strongly convex in y")
        x = cp.hstack([cp.vec(v, order="F") for v in problem.upper_layout.variables])
        z = cp.hstack([x, *(cp.vec(v, order="F") for v in problem.lower_layout.variables)])
        zero = float(problem.derivatives(np.zeros(k), np.zeros(n - k)).lower)
        convex = 0.5 * cp.quad_form(z, cp.psd_wrap(hessian + kappa * shift)) + slope @ z + zero
        return convex, -0.5 * kappa * cp.sum_squares(x)

    def _range(self, program: ConicProgram, slope: Any) -> tuple[Vector, Vector]:
        """Least and greatest value of every x_i among points no worse than the incumbent."""
        k = self.problem.n_upper
        ends = np.zeros((2, k))
        for i in range(k):
            for row, sign in enumerate((1.0, -1.0)):
                program.set_parameters({slope.id: sign * np.eye(k)[i]})
                try:
                    answer = program.solve(1e-8)
                except LowerLevelError as error:
                    raise UnsupportedModelError(
                        "an upper variable is unbounded over the joint constraints: give it bounds"
                    ) from error
                ends[row, i] = sign * answer.value
        lower, upper = (bound[:k] for bound in self.problem.bounds)
        return np.maximum(ends[0], lower), np.minimum(ends[1], upper)

    def root(self) -> tuple[Vector, Vector]:
        return self.low, self.high

    def _corner(self, x: Vector) -> float:
        key = tuple(x)
        if key not in self._cache:
            try:
                value = self.problem.lower(x).value
                for variable, part in zip(
                    self.problem.upper_layout.variables,
                    self.problem.upper_layout.unpack(x),
                    strict=True,
                ):
                    variable.save_value(np.asarray(part))
                self._cache[key] = value - float(self._alone.value)
            except LowerLevelError:
                self._cache[key] = np.inf
        return self._cache[key]

    def relax(self, node: Any) -> tuple[float, Vector | None, list[Any]]:
        low, high = node
        vertices = np.array(list(itertools.product(*zip(low, high, strict=True)))).T
        values = np.array([self._corner(x) for x in vertices.T])
        middle = int(np.argmax((high - low) / (1.0 + np.abs(self.high - self.low))))
        cut = 0.5 * (low[middle] + high[middle])
        left, right = high.copy(), low.copy()
        left[middle] = right[middle] = cut
        children = [(low, left), (right, high)] if high[middle] - low[middle] > 1e-9 else []
        try:
            program, answer = self._solve(vertices, values)
        except LowerInfeasibleError:
            return np.inf, None, []
        except LowerLevelError:
            return -np.inf, None, children
        # where v has unbounded slope at the edge of the box, the corner values are worth that much
        bound = answer.value - max(answer.gap, 1e-5) * (1.0 + abs(answer.value))
        return bound, program.primal(answer), children

    def _solve(self, vertices: Matrix, values: Vector) -> tuple[ConicProgram, ConicAnswer]:
        """Relaxation over the box, with the cut where v is known at all corners."""
        data: dict[int, Any] = {self.vertices.id: vertices}
        if not np.all(np.isfinite(values)):
            self.without_cut.set_parameters(data)
            return self.without_cut, self.without_cut.solve(1e-8)
        size = 1.0 + float(np.abs(values).max())
        # a flat lower objective needs the cut tight, which the solver may not manage: then looser
        for slack, tol in ((1e-10, 1e-9), (1e-8, 1e-8)):
            self.with_cut.set_parameters(
                {**data, self.values.id: values, self.slack.id: slack * size}
            )
            try:
                return self.with_cut, self.with_cut.solve(tol)
            except LowerLevelError as error:
                failure = error
        raise failure


def _terms(expression: Any) -> list[Any]:
    """Summands of an expression."""
    from cvxpy.atoms.affine.add_expr import AddExpression

    if isinstance(expression, AddExpression):
        return [term for argument in expression.args for term in _terms(argument)]
    return [expression]
