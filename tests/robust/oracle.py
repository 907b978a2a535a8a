"""What is true of a random program's answer, found without blocc: Clarabel through its own interface, rows normalised.

Every claim is put to the test that could refute it: another lower-level solve at the answer's x, other points of the
whole range of x against ``optimal``, small moves from x against ``stationary``. A refutation is a point, so it is
sound; that none is found proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import clarabel
import numpy as np
import scipy.sparse as sparse
from scipy.optimize import linprog

from tests.robust.programs import Program

Vector = np.ndarray[Any, Any]

#: What a claim made at tolerance 1e-6 may miss by before it counts as false.
SLACK = 1e-5
#: Descent per unit of relative move that refutes stationarity.
RATE = 2e-3


@dataclass(frozen=True)
class Response:
    """The lower level's value at x, and the answer that the upper level likes best."""

    value: float
    y: Vector
    objective: float


def quadratic(
    P: Vector, q: Vector, A: Vector, b: Vector, E: Vector, e: Vector, low: Vector, high: Vector
) -> tuple[str, Vector, float]:
    """Solve ``min 1/2 z'Pz + q'z, Az <= b, Ez = e, low <= z <= high``; ("solved", z, value) or another word."""
    # every variable in units of its range: Clarabel's tolerances are absolute, and its own scaling goes only so far
    n, width = len(q), high - low
    unit = np.where(np.isfinite(width) & (width > 0), width, 1.0)
    whole, slope = P, q
    P, q, A, E = P * np.outer(unit, unit), q * unit, A * unit, E * unit
    low, high = low / unit, high / unit
    eye = np.eye(n)
    below, above = np.isfinite(low), np.isfinite(high)
    rows = np.vstack([E, A, eye[above], -eye[below]])
    right = np.concatenate([e, b, high[above], -low[below]])
    length = np.abs(rows).max(axis=1, initial=0.0)
    length = np.where(length > 0, length, 1.0)
    size = max(float(np.abs(P).max(initial=0.0)), float(np.abs(q).max(initial=0.0)), 1e-300)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    cones = [clarabel.ZeroConeT(len(e)), clarabel.NonnegativeConeT(len(right) - len(e))]
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix(np.triu(P / size)),
        q / size,
        sparse.csc_matrix(rows / length[:, None]),
        right / length,
        cones,
        settings,
    )
    answer = solver.solve()
    z = np.asarray(answer.x)
    word = str(answer.status)
    solved = word == "Solved" or (
        word in ("AlmostSolved", "InsufficientProgress")
        and max(answer.r_prim, answer.r_dual) <= 1e-8
        and abs(answer.obj_val - answer.obj_val_dual) <= 1e-8 * (1 + abs(answer.obj_val))
    )
    z = unit * z
    return "solved" if solved else word, z, float(0.5 * z @ whole @ z + slope @ z)


def respond(program: Program, x: Vector, *, coupling: bool = True) -> Response | None:
    """The lower level's value at x and its optimistic answer; None where there is none (that meets the upper rows)."""
    right, equal = program.b - program.A @ x, program.e - program.E @ x
    slope = program.q + program.P @ x
    word, y, value = quadratic(
        program.Q, slope, program.B, right, program.F, equal, program.y_low, program.y_high
    )
    if word != "solved":
        return None
    least = float(np.linalg.eigvalsh(program.Q)[0])
    unique = least > 1e-9 * float(np.abs(program.Q).max(initial=0.0)) and least > 0
    coupled = coupling and len(program.s) > 0
    broken = coupled and float(np.max(program.T @ y + program.S @ x - program.s)) > 1e-9
    if unique:
        return None if broken else Response(value, y, program.upper(x, y))
    # all lower-level answers: those feasible y with the same Qy and the same slope'y
    n = program.n
    size = float(np.abs(program.Q).max(initial=0.0))
    flat = [slope[None], *([program.Q] if size > 0 else [])]
    level = [[slope @ y], *([program.Q @ y] if size > 0 else [])]
    rows, bounds = program.B, right
    if coupled:
        rows, bounds = np.vstack([rows, program.T]), np.append(bounds, program.s - program.S @ x)
    word, favourite, _ = quadratic(
        program.H[n:, n:],
        program.r[n:] + program.H[n:, :n] @ x,
        rows,
        bounds,
        np.vstack([program.F, *flat]),
        np.concatenate([equal, *level]),
        program.y_low,
        program.y_high,
    )
    exact = (
        word == "solved"
        and program.lower_violation(x, favourite) <= 1e-7 * (1 + np.abs(favourite).max())
        and program.lower(x, favourite) <= value + 1e-7 * (1 + abs(value))
    )
    if (exact and program.upper(x, favourite) < program.upper(x, y)) or (exact and broken):
        y = favourite
    elif broken:
        return None
    return Response(value, y, program.upper(x, y))


def feasible_x(program: Program) -> Vector | None:
    """Some x with a feasible lower level, None where there is none."""
    n, m = program.n, program.m
    word, z, _ = quadratic(
        np.eye(n + m),
        np.zeros(n + m),
        np.hstack([program.A, program.B]),
        program.b,
        np.hstack([program.E, program.F]),
        program.e,
        np.concatenate([program.x_low, program.y_low]),
        np.concatenate([program.x_high, program.y_high]),
    )
    return np.clip(z[:n], program.x_low, program.x_high) if word == "solved" else None


def proven_infeasible(program: Program) -> bool:
    """Whether no (x, y) meets all constraints of both levels, proven in rational arithmetic (Farkas).

    HiGHS finds multipliers of the least violation; whether they prove anything is then computed without rounding.
    """
    A = np.vstack(
        [
            np.hstack([program.A, program.B]),
            np.hstack([program.S, program.T]),
            np.hstack([program.E, program.F]),
            -np.hstack([program.E, program.F]),
        ]
    )
    right = np.concatenate([program.b, program.s, program.e, -program.e])
    low = np.concatenate([program.x_low, program.y_low])
    high = np.concatenate([program.x_high, program.y_high])
    length = np.abs(A).max(axis=1, initial=0.0)
    length = np.where(length > 0, length, 1.0)
    found = linprog(
        np.append(np.zeros(len(low)), 1.0),
        A_ub=np.hstack([A / length[:, None], -np.ones((len(A), 1))]),
        b_ub=right / length,
        bounds=[*zip(low, high, strict=True), (0, None)],
    )
    if found.status != 0:
        return False
    weights = [Fraction(w) for w in np.maximum(-found.ineqlin.marginals, 0.0) / length]
    least = -sum((w * Fraction(b) for w, b in zip(weights, right, strict=True)), Fraction(0))
    for j in range(len(low)):
        slope = sum((w * Fraction(a) for w, a in zip(weights, A[:, j], strict=True)), Fraction(0))
        side = low[j] if slope > 0 else high[j]
        if slope and not np.isfinite(side):
            return False
        least += slope * Fraction(side) if slope else Fraction(0)
    return least > 0


@dataclass(frozen=True)
class Claim:
    """An answer in the form that is checked."""

    status: str
    x: Vector
    y: Vector
    objective: float
    bound: float | None


def claim(result: Any) -> Claim:
    """Flatten a result of either front end."""

    def vector(value: Any) -> Vector:
        if isinstance(value, dict):
            return np.concatenate([np.ravel(part) for part in value.values()])
        return np.ravel(np.asarray(value, dtype=float))

    return Claim(
        result.status.name, vector(result.x), vector(result.y), result.objective, result.bound
    )


SUCCESS = ("OPTIMAL", "STATIONARY", "IMPROVED")


def refute(program: Program, found: Claim, *, samples: int = 60) -> str | None:
    """The word for what is false in a claim, None where nothing is found against it."""
    x, y = found.x, found.y
    numbers = np.concatenate([x, y, [found.objective]])
    if found.status in SUCCESS and not np.all(np.isfinite(numbers)):
        return "not finite"
    if found.status in ("LOWER_NOT_SOLVED", "INTERRUPTED"):
        return None
    # every other status says that the lower level is solved
    size = 1.0 + float(np.abs(y).max())
    if program.lower_violation(x, y) > SLACK * size:
        return "lower constraints violated"
    span = 1.0 + float(np.abs(np.concatenate([x, y])).max())
    if program.upper_violation(x, y) > SLACK * span:
        return "upper constraints violated"
    response = respond(program, x, coupling=False)
    value = program.lower(x, y)
    if response is not None:
        if value - response.value > SLACK * (1.0 + abs(value)):
            return "lower level not solved"
        if response.value - value > 100 * SLACK * (1.0 + abs(value)):
            return "below the lower level's value"
    if abs(program.upper(x, y) - found.objective) > 1e-9 * (1.0 + abs(found.objective)):
        return "objective is not f(x, y)"
    if found.status not in SUCCESS:
        return None
    here = respond(program, x)
    scale = 1.0 + abs(found.objective)
    if found.status == "OPTIMAL" or found.bound is not None:
        for point in _elsewhere(program, found, samples):
            other = respond(program, point)
            if other is None:
                continue
            if found.bound is not None and other.objective < found.bound - 1e-4 * (
                1.0 + abs(found.bound)
            ):
                return "bound above a feasible value"
            if found.status == "OPTIMAL" and other.objective < found.objective - 1e-4 * scale:
                return "not optimal"
    if found.status != "OPTIMAL" and here is not None:
        start = min(
            here.objective, found.objective
        )  # where answers jump, x is exact only to rounding
        for direction in _directions(program, x):
            rates = []
            for step in (1e-3, 1e-4):
                moved = np.clip(x + step * direction, program.x_low, program.x_high)
                other = respond(program, moved)
                rates.append(
                    -np.inf if other is None else (start - other.objective) / (step * scale)
                )
            if rates[1] > RATE and rates[0] > 0.3 * rates[1]:
                return "descent"
    return None


def _elsewhere(program: Program, found: Claim, samples: int) -> Iterator[Vector]:
    """Points of the whole range of x: a grid for one or two variables, random ones beyond; then closer in."""
    low, high = program.x_low, program.x_high
    random = np.random.default_rng(program.seed)
    if program.n == 1:
        for t in np.linspace(0, 1, samples):
            yield low + t * (high - low)
    elif program.n == 2:
        side = int(np.sqrt(samples))
        for a in np.linspace(0, 1, side):
            for b in np.linspace(0, 1, side):
                yield low + np.array([a, b]) * (high - low)
    else:
        yield from random.uniform(low, high, (samples // 2, program.n))
    for _ in range(samples // 2):
        radius = 10.0 ** random.uniform(-4, 0)
        step = radius * (high - low) * random.standard_normal(program.n)
        yield np.clip(found.x + step, low, high)


def _directions(program: Program, x: Vector) -> Iterator[Vector]:
    """Moves to try, in the scale of each variable's range: axes, and some random ones."""
    width = np.where(
        np.isfinite(program.x_high - program.x_low), program.x_high - program.x_low, 1.0
    )
    random = np.random.default_rng(program.seed + 1)
    for k in range(min(program.n, 6)):
        step = np.zeros(program.n)
        step[k] = width[k]
        yield step
        yield -step
    for _ in range(4):
        step = random.standard_normal(program.n)
        yield width * step / np.linalg.norm(step)
