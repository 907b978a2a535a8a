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
from blocc.gradients import Differentiable
from blocc.maxmin import SaddlePoint, SaddleProblem, kkt_residual
from blocc.sets import Box, ConvexSet

Vector = npt.NDArray[np.float64]

#: Largest number of variables, and of constraints, for which this is worth it.
SMALL = 60
#: Iterations of a first-order method on a program that is for this, and that its rounds did not solve.
PATIENCE = 5_000
_ROUNDS = 10
_STEP = 1e-4  # relative, of the differences that curvature comes from
_ROUNDING = 1e-9  # residual to be content with once it no longer falls
_LIGHT = 1e-6  # weight of moves of y beside those of x, where x is to stay near
_FALL = 0.3  # of the residual in a round that is worth another


def fits(problem: SaddleProblem, y: Any) -> bool:
    """Whether a problem is for this: few NumPy numbers in double precision, and a box."""
    if not (isinstance(y, np.ndarray) and y.dtype == np.float64 and isinstance(problem.y_set, Box)):
        return False
    rows = sum(int(np.size(value)) for value in problem.values(problem.y_set.project(y)).values())
    return max(y.size, rows) <= SMALL


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
    if not fits(problem, y):
        return None
    y = problem.y_set.project(y)
    values = problem.values(y)
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
    parts = [_stacked([row[1:] for row in rows[equality]], n) for equality in (False, True)]
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


def _stacked(blocks: list[tuple[Vector, Vector]], width: int) -> tuple[Vector, Vector]:
    """Values and Jacobian of several blocks in one."""
    if not blocks:
        return np.zeros(0), np.zeros((0, width))
    return np.concatenate([value for value, _ in blocks]), np.vstack([part for _, part in blocks])


def _split(
    flat: Vector, rows: list[tuple[str, Vector, Vector]], values: Mapping[str, Vector]
) -> dict[str, Vector]:
    """Multipliers by block."""
    ends = np.cumsum([len(value) for _, value, _ in rows])
    parts = np.split(flat, ends[:-1]) if rows else []
    return {k: part.reshape(values[k].shape) for (k, _, _), part in zip(rows, parts, strict=True)}


def nearest(
    functions: Mapping[str, Differentiable],
    x: Any,
    y: Any,
    sets: tuple[ConvexSet, ConvexSet],
    *,
    inside: float,
) -> Vector | None:
    """The point next to x for which some y meets all constraints; None where the rounds do not lead to one.

    Quadratic programs in (x, y) on the linearised constraints: one is enough where these are affine in both.

    Parameters
    ----------
    functions : mapping of str to Differentiable
        Constraints ``c(x, y) <= 0``; those called "h" hold with equality.
    x, y : ndarray
        Where to start.
    sets : tuple of ConvexSet
        Of x and of y.
    inside : float
        Distance from the inequalities' edges, relative to the size of x and y.
    """
    from blocc.cvx_quadratic import QuadraticProgram  # its solvers are imported only where used

    small = all(
        isinstance(v, np.ndarray)
        and v.dtype == np.float64
        and v.size <= SMALL
        and isinstance(s, Box)
        for v, s in zip((x, y), sets, strict=True)
    )
    if not small:
        return None
    n, shapes, home = x.size, (x.shape, y.shape), np.ravel(x)
    ends = [
        np.concatenate(
            [np.ravel(s.project(np.full(v.shape, end))) for v, s in zip((x, y), sets, strict=True)]
        )
        for end in (-np.inf, np.inf)
    ]
    v = np.clip(np.concatenate([home, np.ravel(y)]), *ends)
    weights = np.concatenate([np.ones(n), np.full(y.size, _LIGHT)])
    for _ in range(_ROUNDS):
        x, y = v[:n].reshape(shapes[0]), v[n:].reshape(shapes[1])
        rows: dict[bool, list[tuple[Vector, Vector]]] = {False: [], True: []}
        scale, worst = 1.0 + float(np.abs(v).max()), 0.0
        for name, function in functions.items():
            value = function.value(x, y)
            if value.size > SMALL:
                return None
            units = np.eye(value.size).reshape((-1, *value.shape))
            slopes = [
                np.concatenate([np.ravel(part) for part in function.pullback(x, y, unit)])
                for unit in units
            ]
            jacobian, value = np.array(slopes), np.ravel(value)
            if not (np.all(np.isfinite(jacobian)) and np.all(np.isfinite(value))):
                return None
            steep = np.abs(jacobian).max(axis=1)
            steep = np.where(steep > 0, steep, 1.0)
            distance = value / steep  # of the row's edge
            if name != "h":
                distance = distance + inside * scale
            worst = max(worst, float(np.max(np.abs(distance) if name == "h" else distance)))
            rows[name == "h"].append((distance, jacobian / steep[:, None]))
        if worst <= _ROUNDING * scale:
            return np.asarray(x)
        parts = [_stacked(rows[equality], len(v)) for equality in (False, True)]
        gradient = np.concatenate([v[:n] - home, np.zeros(len(v) - n)])
        program = QuadraticProgram(
            (0.0, gradient, np.diag(weights)), parts[0], parts[1], (ends[0] - v, ends[1] - v)
        )
        try:
            found = program.solve(np.zeros(0))
        except LowerInfeasibleError:
            return None
        if found is None:
            return None
        v = np.clip(v + program.user_units(found[0]).z, *ends)
    return None


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
