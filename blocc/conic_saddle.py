"""Saddle points of small smooth convex problems on the host, by sequential quadratic programs.

A first-order method needs hundreds of steps where a handful of variables is left; a quadratic program in exact
arithmetic but for rounding (:mod:`blocc.conic_dense`) needs one, and for functions that are not quadratic a few. Each
is made of derivatives at the point: a gradient for every variable, a pullback for every constraint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from blocc.errors import LowerInfeasibleError
from blocc.maxmin import SaddlePoint, SaddleProblem, kkt_residual
from blocc.sets import Box

Vector = npt.NDArray[np.float64]

#: Largest number of variables, and of constraints, for which this is worth it.
SMALL = 60
_ROUNDS = 10
_STEP = 1e-4  # relative, of the differences that curvature comes from
_ROUNDING = 1e-10  # residual to be content with once it no longer falls
_FALL = 0.3  # of the residual in a round that is worth another


def solve(
    problem: SaddleProblem,
    y: Any,
    duals: Mapping[str, Any] | None = None,
    *,
    tol: float,
    name: str = "lower level",
) -> SaddlePoint | None:
    """Saddle point to a relative KKT residual; None where the problem is not for this, or the rounds do not lead there.

    It is for NumPy arrays in double precision, few of them, and a box.

    Parameters
    ----------
    problem : SaddleProblem
        Convex, smooth, small.
    y, duals : ndarray, mapping of str to ndarray
        Where to start.
    tol : float
        Of :func:`blocc.maxmin.kkt_residual`, which judges the answer.
    name : str
        For the error message.

    Raises
    ------
    LowerInfeasibleError
        If the constraints' linearisations have no common point: by convexity the constraints have none either.
    """
    if not (isinstance(y, np.ndarray) and y.dtype == np.float64 and isinstance(problem.y_set, Box)):
        return None
    y = problem.y_set.project(y)
    values = problem.values(y)
    if max(y.size, sum(int(np.size(value)) for value in values.values())) > SMALL:
        return None
    duals = dict(duals) if duals else {k: np.zeros_like(v) for k, v in values.items()}
    residual = kkt_residual(problem, y, duals)
    history = [residual]
    for _ in range(_ROUNDS):
        if not math.isfinite(residual):
            return None
        if residual <= tol:
            break
        found = _round(problem, y, duals, values, name)
        if found is None:
            return None
        there = kkt_residual(problem, *found)
        if not there <= (_FALL * residual if len(history) > 2 else math.inf):
            if min(there, residual) > max(tol, _ROUNDING):
                return None
            if there < residual:
                (y, duals), residual = found, there
            break
        (y, duals), residual = found, there
        values = problem.values(y)
        history.append(residual)
    if residual > max(tol, _ROUNDING):
        return None
    return SaddlePoint(y, duals, residual, len(history) - 1, tuple(history))


def _round(
    problem: SaddleProblem,
    y: Vector,
    duals: Mapping[str, Vector],
    values: Mapping[str, Vector],
    name: str,
) -> tuple[Vector, dict[str, Vector]] | None:
    """Answer and multipliers of the quadratic program made of the derivatives at a point."""
    from blocc.cvx_quadratic import QuadraticProgram  # its solvers are imported only where used

    n, shape, box = y.size, y.shape, problem.y_set
    assert isinstance(box, Box)
    curvature = _hessian(problem, y, duals)
    gradient = np.ravel(problem.gradient(y))
    if curvature is None or not np.all(np.isfinite(gradient)):
        return None
    rows: dict[bool, list[tuple[str, Vector, Vector]]] = {False: [], True: []}
    for key, block in problem.constraints.items():
        units = np.eye(values[key].size).reshape((-1, *values[key].shape))
        jacobian = np.array([np.ravel(block.pullback(y, unit)) for unit in units])
        rows[block.equality].append((key, np.ravel(values[key]), jacobian.reshape(-1, n)))
    parts = []
    for equality in (False, True):
        kind = rows[equality]
        value = np.concatenate([v for _, v, _ in kind]) if kind else np.zeros(0)
        parts.append((value, np.vstack([j for _, _, j in kind]) if kind else np.zeros((0, n))))
    if not all(np.all(np.isfinite(part)) for pair in parts for part in pair):
        return None
    edge = [np.ravel(box.project(np.full(shape, side)) - y) for side in (-np.inf, np.inf)]
    program = QuadraticProgram((0.0, gradient, curvature), parts[0], parts[1], (edge[0], edge[1]))
    try:
        found = program.solve(np.zeros(0))
    except LowerInfeasibleError as error:
        ray = program.user_multipliers(error.ray)[n:]
        proof = _split(ray, [*rows[False], *rows[True]], values)
        length = max(float(np.abs(ray).max(initial=0.0)), 1e-300)
        worst = max(proof, key=lambda key: float(np.abs(proof[key]).max(initial=0.0)))
        infeasible = LowerInfeasibleError(
            f"{name}: no y satisfies its constraints at this x: constraint {worst!r} conflicts with the rest. "
            f"Change x0, or relax {worst!r}"
        )
        infeasible.ray = (y, {key: part / length for key, part in proof.items()})
        raise infeasible from None
    if found is None:
        return None
    answer = program.user_units(found[0])
    there = _split(answer.dual[n:], [*rows[False], *rows[True]], values)
    for key, block in problem.constraints.items():
        there[key] = block.project(there[key])
    return box.project(y + answer.z.reshape(shape)), there


def _split(
    flat: Vector, rows: list[tuple[str, Vector, Vector]], values: Mapping[str, Vector]
) -> dict[str, Vector]:
    """Multipliers by block."""
    ends = np.cumsum([len(value) for _, value, _ in rows])
    parts = np.split(flat, ends[:-1]) if rows else []
    return {k: part.reshape(values[k].shape) for (k, _, _), part in zip(rows, parts, strict=True)}


def _hessian(problem: SaddleProblem, y: Vector, duals: Mapping[str, Vector]) -> Vector | None:
    """Hessian of the Lagrangian in y, by differences inside the set; None where it is not convex or not finite."""
    n, base = y.size, np.ravel(problem.lagrangian_gradient(y, duals))
    hessian = np.zeros((n, n))
    for k in range(n):
        step = _STEP * (1.0 + abs(float(np.ravel(y)[k])))
        for signed in (step, -step):
            shifted = np.ravel(y).copy()
            shifted[k] += signed
            there = problem.y_set.project(shifted.reshape(y.shape))
            moved = float(np.ravel(there)[k] - np.ravel(y)[k])
            if abs(moved) > 0.5 * step:
                slope = np.ravel(problem.lagrangian_gradient(there, duals))
                hessian[k] = (slope - base) / moved
                break
    if not np.all(np.isfinite(hessian)):
        return None
    noise = 1e2 * np.finfo(float).eps / _STEP * float(np.abs(base).max(initial=0.0))
    hessian = np.where(np.abs(hessian) > noise, hessian, 0.0)
    sizes, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    if sizes[0] < -(noise + 1e-3 * float(np.abs(sizes).max())):
        return None
    return np.asarray((vectors * np.maximum(sizes, 0.0)) @ vectors.T)
