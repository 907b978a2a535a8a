"""Small dense quadratic programs: exact answers by active sets, and a proof where there is no feasible point."""

from __future__ import annotations

from typing import Any, NamedTuple

import clarabel
import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from blocc.errors import LowerInfeasibleError

try:
    import daqp
except ImportError:  # optional: an exact active-set solver for small dense QPs
    daqp = None

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

INFINITE = 1e30  # bounds beyond are none
_PROXIMAL = 1e-5  # weight of proximal points, data of order one
_INFEASIBLE, _UNBOUNDED = -1, -3  # DAQP's exit flags; a positive one claims an answer


class QuadraticAnswer(NamedTuple):
    """Answer of a dense quadratic program.

    Attributes
    ----------
    z : ndarray
        Primal answer.
    dual : ndarray
        Multipliers by bound: positive at an active upper bound, negative at an active lower one.
    iterations : int
        Iterations of the solver.
    """

    z: Vector
    dual: Vector
    iterations: int


def solve_dense_qp(
    P: Matrix,
    q: Vector,
    A: Matrix,
    upper: Vector,
    lower: Vector,
    *,
    tol: float = 1e-11,
    guess: Vector | None = None,
) -> QuadraticAnswer | None:
    """Solve ``min 1/2 z'Pz + q'z`` over ``lower <= Az <= upper``, to rounding where DAQP is there.

    Parameters
    ----------
    P : ndarray of shape (n, n)
        Positive semidefinite.
    q : ndarray of shape (n,)
    A : ndarray of shape (m, n)
    upper, lower : ndarray of shape (k + m,)
        The first k entries bound ``z[:k]`` itself, the others ``Az``; beyond 1e30 there is no bound.
    tol : float
        Primal and dual tolerance.
    guess : ndarray of shape (k + m,), optional
        Multipliers of a similar program: which bounds to begin with.

    Returns
    -------
    QuadraticAnswer or None
        None where there is no answer, or the solver did not reach it.
    """
    top, bottom = np.minimum(upper, INFINITE), np.maximum(lower, -INFINITE)
    P, A = np.ascontiguousarray(P), np.ascontiguousarray(A)  # DAQP reads the memory as it lies
    if daqp is None:
        return _interior_point(P, q, A, top, bottom, tol)
    sense = (top == bottom) * np.int32(5)
    if guess is not None:
        begun = np.where(guess > 0, np.int32(1), np.where(guess < 0, np.int32(3), np.int32(0)))
        sense = np.where(sense > 0, sense, begun)
    options = {"primal_tol": tol, "dual_tol": tol, "iter_limit": 2000}
    for proximal in (-1.0, _PROXIMAL):  # where it goes in circles, proximal points may get there
        z, _, flag, info = daqp.solve(P, q, A, top, bottom, sense, eps_prox=proximal, **options)
        if flag in (_INFEASIBLE, _UNBOUNDED):
            return None
        dual = np.asarray(info["lam"])
        if flag > 0 and _solves(P, q, A, top, bottom, z, dual):
            return QuadraticAnswer(z, dual, int(info["iterations"]))
    return _interior_point(P, q, A, top, bottom, tol)


def _solves(
    P: Matrix, q: Vector, A: Matrix, top: Vector, bottom: Vector, z: Vector, dual: Vector
) -> bool:
    """Whether the KKT residual is small: DAQP can call a wrong answer solved (a Hessian of rounding size is enough)."""
    k = len(top) - len(A)
    slope: Any = P @ z + q
    product: Any = z[:k]
    slope[:k] += dual[:k]
    if len(A):
        slope += dual[k:] @ A
        product = np.concatenate([product, A @ z])
    outside = max(
        float((product - top).max(initial=0.0)), float((bottom - product).max(initial=0.0))
    )
    size = 1.0 + float(np.abs(z).max(initial=0.0))
    scale = 1.0 + float(np.abs(q).max(initial=0.0)) + float(np.abs(dual).max(initial=0.0))
    left = float(np.abs(slope).max(initial=0.0))
    return outside <= 1e-7 * size and left <= 1e-6 * scale * size


def solve_or_explain(
    P: Matrix, q: Vector, A: Matrix, upper: Vector, lower: Vector
) -> QuadraticAnswer | None:
    """Solve as :func:`solve_dense_qp` does; where that fails, find out whether there is a feasible point.

    Returns
    -------
    QuadraticAnswer or None
        None where the program has feasible points and was not solved all the same (it may be unbounded).

    Raises
    ------
    LowerInfeasibleError
        With the multipliers of the bounds, a proof, as its ``ray``.
    """
    answer = solve_dense_qp(P, q, A, upper, lower)
    if answer is not None:
        return answer
    shortfall, ray = _shortfall(A, upper, lower)
    if shortfall > 1e-8:
        error = LowerInfeasibleError(
            f"no point satisfies the constraints (relative to their size, they miss by {shortfall:.1e} at least)"
        )
        error.ray = ray
        raise error
    if shortfall > 0:  # a feasible set of a single point, which rounding made empty
        room = 1.1 * shortfall + 1e-12
        return solve_dense_qp(P, q, A, upper + room, np.where(upper == lower, lower - room, lower))
    return None


def _shortfall(A: Matrix, upper: Vector, lower: Vector) -> tuple[float, Vector]:
    """Least amount by which all bounds must give way to leave a point, 0 if none or unknown; and their multipliers."""
    k, (m, n) = len(upper) - len(A), A.shape
    rows = np.vstack([np.eye(k, n), A])
    give = np.ones((k + m, 1))
    stacked = np.vstack([np.hstack([rows, -give]), np.hstack([rows, give])])
    free = np.append(np.zeros(n), 1.0)
    top = np.concatenate([np.full(n + 1, INFINITE), upper, np.full(k + m, INFINITE)])
    bottom = np.concatenate([np.full(n, -INFINITE), [0.0], np.full(k + m, -INFINITE), lower])
    answer = solve_dense_qp(np.zeros((n + 1, n + 1)), free, stacked, top, bottom)
    if answer is None:
        return 0.0, np.zeros(k + m)
    dual = answer.dual[n + 1 :]
    ray = dual[: k + m] + dual[k + m :]
    return min(float(answer.z[-1]), _proven(rows, upper, lower, ray, answer.z[:-1])), ray


def _proven(rows: Matrix, upper: Vector, lower: Vector, ray: Vector, z: Vector) -> float:
    """By how much multipliers prove that no point meets the bounds (Farkas): at most 0 where they prove nothing.

    ``<ray, rows z>`` is at most ``bound`` for every z inside the bounds. What rounding leaves of ``ray' rows``, which
    should vanish, is counted over a thousand times the size of the nearest point.
    """
    sides = np.where(ray > 0, upper, lower)
    bound = float(ray @ np.where(ray != 0, sides, 0.0))
    reach = 1e3 * (1.0 + np.abs(z).max(initial=0.0))
    return -bound - float(reach * np.abs(ray @ rows).sum())


def _interior_point(
    P: Matrix, q: Vector, A: Matrix, upper: Vector, lower: Vector, tol: float
) -> QuadraticAnswer | None:
    """Stand-in for the active-set solver: Clarabel, then the KKT system of its active rows."""
    A = np.vstack([np.eye(len(upper) - len(A), len(q)), A])
    equal = np.flatnonzero(upper == lower)
    above = np.flatnonzero((upper != lower) & (upper < INFINITE))
    below = np.flatnonzero((upper != lower) & (lower > -INFINITE))
    rows = np.vstack([A[equal], A[above], -A[below]])
    right = np.concatenate([upper[equal], upper[above], -lower[below]])
    cones = [clarabel.ZeroConeT(len(equal)), clarabel.NonnegativeConeT(len(above) + len(below))]
    solver = clarabel.DefaultSolver(
        sparse.triu(sparse.csc_matrix(P), format="csc"),
        q,
        sparse.csc_matrix(rows),
        right,
        cones,
        clarabel_settings(tol),
    )
    solution = solver.solve()
    if str(solution.status) not in ("Solved", "AlmostSolved"):
        return None
    z, multipliers = np.asarray(solution.x), np.asarray(solution.z)
    slack = np.asarray(solution.s)
    active = (np.arange(len(right)) < len(equal)) | (multipliers > slack)
    kkt_rows = rows[active]
    k = len(kkt_rows)
    kkt = np.block([[P, kkt_rows.T], [kkt_rows, np.zeros((k, k))]])
    residual = np.concatenate([-q - P @ z, right[active] - kkt_rows @ z])
    step = np.linalg.lstsq(kkt, residual, rcond=1e-13)[0]
    polished, sharp = z + step[: len(z)], np.zeros(len(right))
    sharp[active] = step[len(z) :]
    if np.max(rows @ polished - right, initial=0.0) <= 1e-9 and np.all(sharp[len(equal) :] >= 0):
        z, multipliers = polished, sharp
    dual = np.zeros(len(upper))
    np.add.at(dual, equal, multipliers[: len(equal)])
    np.add.at(dual, above, multipliers[len(equal) : len(equal) + len(above)])
    np.add.at(dual, below, -multipliers[len(equal) + len(above) :])
    return QuadraticAnswer(z, dual, int(solution.iterations))


def clarabel_settings(tol: float) -> Any:
    """Clarabel's settings: silent, one thread, all rows kept, so that data can be updated in place."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.presolve_enable = False  # in-place updates need all rows
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = max(tol, 1e-12)
    settings.tol_ktratio = min(1e-6, max(tol, 1e-12) * 1e3)
    return settings
