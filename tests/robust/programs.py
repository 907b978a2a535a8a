"""Random bilevel quadratic programs, one from every seed, in the families that break solvers.

    minimise over x in a box    1/2 z'Hz + r'z                       z = (x, y)
    subject to  S x + T y <= s                                        upper constraints
                y in argmin { 1/2 y'Qy + (q + Px)'y : Ax + By <= b, Ex + Fy = e, low <= y <= high }

Unless its family says otherwise, a program is feasible by construction: right-hand sides are set from a planted
point, at which y is the lower level's own answer where there are upper constraints. The same data give a CVXPY model
and a functional one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import blocc

Vector = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Program:
    """Data of one program; shapes follow from ``n`` (upper) and ``m`` (lower variables)."""

    seed: int
    family: str
    H: Vector
    r: Vector
    Q: Vector
    q: Vector
    P: Vector
    A: Vector
    B: Vector
    b: Vector
    E: Vector
    F: Vector
    e: Vector
    S: Vector
    T: Vector
    s: Vector
    x_low: Vector
    x_high: Vector
    y_low: Vector
    y_high: Vector
    x0: Vector
    followers: tuple[slice, ...] = field(default=())

    @property
    def n(self) -> int:
        return len(self.x0)

    @property
    def m(self) -> int:
        return len(self.q)

    def upper(self, x: Vector, y: Vector) -> float:
        z = np.concatenate([x, y])
        return float(0.5 * z @ self.H @ z + self.r @ z)

    def lower(self, x: Vector, y: Vector) -> float:
        return float(0.5 * y @ self.Q @ y + (self.q + self.P @ x) @ y)

    def lower_violation(self, x: Vector, y: Vector) -> float:
        """Largest violation of a lower-level constraint, in the units of its row."""
        parts = (
            self.A @ x + self.B @ y - self.b,
            np.abs(self.E @ x + self.F @ y - self.e),
            self.y_low - y,
            y - self.y_high,
        )
        return max(float(np.max(part, initial=0.0)) for part in parts)

    def upper_violation(self, x: Vector, y: Vector) -> float:
        parts = (self.S @ x + self.T @ y - self.s, self.x_low - x, x - self.x_high)
        return max(float(np.max(part, initial=0.0)) for part in parts)

    # ------------------------------------------------------------------------------------------ models
    def bilevel_problem(self) -> blocc.BilevelProblem:
        """The CVXPY form: one lower problem for every follower."""
        import cvxpy as cp

        x = cp.Variable(self.n, name="x", bounds=[self.x_low, self.x_high])
        x.value = self.x0
        parts = self.followers or (slice(0, self.m),)
        ys, lowers = [], []
        for k, part in enumerate(parts):
            y = cp.Variable(
                part.stop - part.start,
                name=f"y{k}",
                bounds=[self.y_low[part], self.y_high[part]],
            )
            ys.append(y)
            rows = _rows_of(self.B, part)
            constraints = {}
            if rows.any():
                constraints[f"rows{k}"] = (
                    self.A[rows] @ x + self.B[rows][:, part] @ y <= (self.b[rows])
                )
            rows = _rows_of(self.F, part)
            if rows.any():
                constraints[f"equal{k}"] = (
                    self.E[rows] @ x + self.F[rows][:, part] @ y == (self.e[rows])
                )
            linear = self.q[part] + self.P[part] @ x
            objective = linear @ y + 0.5 * cp.quad_form(y, cp.psd_wrap(self.Q[part, part]))
            lowers.append(blocc.LowerProblem(cp.Minimize(objective), constraints, given=[x]))
        z = cp.hstack([x, *ys])
        objective = 0.5 * cp.quad_form(z, cp.psd_wrap(self.H)) + self.r @ z
        upper = [self.S @ x + self.T @ cp.hstack(ys) <= self.s] if len(self.s) else []
        return blocc.BilevelProblem(cp.Minimize(objective), lowers, upper)

    def functions(self) -> dict[str, Any]:
        """Arguments of :func:`blocc.minimize`."""
        n = self.n

        def linear(X: Vector, Y: Vector, right: Vector) -> blocc.Function | None:
            if not len(right):
                return None
            return blocc.Function(
                lambda x, y, d: X @ x + Y @ y - right, lambda x, y, w, d: (X.T @ w, Y.T @ w)
            )

        def slope(x: Vector, y: Vector, d: Any) -> tuple[Vector, Vector]:
            whole = self.H @ np.concatenate([x, y]) + self.r
            return whole[:n], whole[n:]

        return {
            "f": blocc.Function(lambda x, y, d: self.upper(x, y), slope),
            "g": blocc.Function(
                lambda x, y, d: self.lower(x, y),
                lambda x, y, d: (self.P.T @ y, self.Q @ y + self.q + self.P @ x),
            ),
            "c": linear(self.A, self.B, self.b),
            "h": linear(self.E, self.F, self.e),
            "G": linear(self.S, self.T, self.s),
            "x0": self.x0,
            "y0": np.clip(np.zeros(self.m), self.y_low, self.y_high),
            "x_set": blocc.Box(self.x_low, self.x_high),
            "y_set": blocc.Box(self.y_low, self.y_high),
        }


def _rows_of(matrix: Vector, part: slice) -> Any:
    """Rows of a follower: those that touch its variables; rows of zeros go to the first one."""
    touched = np.abs(matrix[:, part]).sum(axis=1) > 0
    if part.start == 0:
        touched |= np.abs(matrix).sum(axis=1) == 0
    return touched


# ----------------------------------------------------------------------------------------- the families
def base(random: np.random.Generator, n: int, m: int, rank: int | None = None) -> Program:
    """A program with one planted feasible point; ``rank`` of Q, full and well conditioned by default."""
    rows, equal = int(random.integers(1, m + 3)), int(random.integers(0, max(1, m // 2)))
    root = random.standard_normal((m, m))
    Q = root @ root.T / m + 0.1 * np.eye(m)
    if rank is not None:
        thin = random.standard_normal((m, rank))
        Q = thin @ thin.T
    whole = random.standard_normal((n + m, n + m))
    H = whole @ whole.T / (n + m)
    A, B = random.standard_normal((rows, n)), random.standard_normal((rows, m))
    E, F = random.standard_normal((equal, n)), random.standard_normal((equal, m))
    x, y = random.uniform(-1, 1, n), random.uniform(-1, 1, m)
    slack = random.uniform(0.0, 1.0, rows) * (random.random(rows) < 0.7)
    return Program(
        seed=-1,
        family="",
        H=H,
        r=random.standard_normal(n + m),
        Q=Q,
        q=random.standard_normal(m),
        P=random.standard_normal((m, n)),
        A=A,
        B=B,
        b=A @ x + B @ y + slack,
        E=E,
        F=F,
        e=E @ x + F @ y,
        S=np.zeros((0, n)),
        T=np.zeros((0, m)),
        s=np.zeros(0),
        x_low=np.full(n, -2.0),
        x_high=np.full(n, 2.0),
        y_low=np.full(m, -5.0),
        y_high=np.full(m, 5.0),
        x0=random.uniform(-2, 2, n),
    )


def _planted(program: Program) -> tuple[Vector, Vector]:
    """An x with a lower-level answer, and that answer."""
    from tests.robust.oracle import feasible_x, respond

    x = feasible_x(program)
    assert x is not None
    answer = respond(program, x)
    assert answer is not None
    return x, answer.y


def strong(random: np.random.Generator, n: int, m: int) -> Program:
    return base(random, n, m)


def convex(random: np.random.Generator, n: int, m: int) -> Program:
    """A lower Hessian without full rank: several answers are possible."""
    return base(random, n, m, rank=int(random.integers(0, m)))


def linear(random: np.random.Generator, n: int, m: int) -> Program:
    """A linear lower level: its answer jumps."""
    return base(random, n, m, rank=0)


def linear_upper(random: np.random.Generator, n: int, m: int) -> Program:
    program = base(random, n, m, rank=None if random.random() < 0.5 else 0)
    return replace(program, H=0 * program.H)


def coupled(random: np.random.Generator, n: int, m: int) -> Program:
    """Upper constraints on x and y, met at a planted pair."""
    program = base(random, n, m)
    x, y = _planted(program)
    rows = int(random.integers(1, 3))
    S, T = random.standard_normal((rows, n)), random.standard_normal((rows, m))
    return replace(program, S=S, T=T, s=S @ x + T @ y + random.uniform(0.0, 0.5, rows))


def redundant(random: np.random.Generator, n: int, m: int) -> Program:
    """Duplicate, scaled, weaker and empty rows."""
    program = base(random, n, m, rank=None if random.random() < 0.7 else int(random.integers(0, m)))
    pick = random.integers(0, len(program.b), 3)
    factor = random.choice([1.0, 2.0, 0.5], 3)
    weaker = random.choice([0.0, 0.3], 3)
    A = np.vstack([program.A, factor[:, None] * program.A[pick], np.zeros((1, n))])
    B = np.vstack([program.B, factor[:, None] * program.B[pick], np.zeros((1, m))])
    b = np.concatenate([program.b, factor * (program.b[pick] + weaker), [0.0]])
    E = np.vstack([program.E, program.E[:1]])
    F = np.vstack([program.F, program.F[:1]])
    return replace(program, A=A, B=B, b=b, E=E, F=F, e=np.concatenate([program.e, program.e[:1]]))


def flat(random: np.random.Generator, n: int, m: int) -> Program:
    """An empty interior at every x: a row and its opposite, which can contradict other rows (the oracle proves it)."""
    program = base(random, n, m)
    A = np.vstack([program.A, -program.A[:1]])
    B = np.vstack([program.B, -program.B[:1]])
    return replace(program, A=A, B=B, b=np.concatenate([program.b, -program.b[:1]]))


def nearly_infeasible(random: np.random.Generator, n: int, m: int) -> Program:
    """A slab about a millionth wide."""
    program = flat(random, n, m)
    width = 10.0 ** random.uniform(-8, -4)
    return replace(program, b=program.b + np.append(np.zeros(len(program.b) - 1), width))


def scaled_objectives(random: np.random.Generator, n: int, m: int) -> Program:
    program = base(random, n, m)
    f, g = 10.0 ** random.uniform(-6, 6, 2)
    return replace(
        program,
        H=f * program.H,
        r=f * program.r,
        Q=g * program.Q,
        q=g * program.q,
        P=g * program.P,
    )


def scaled_rows(random: np.random.Generator, n: int, m: int) -> Program:
    program = base(random, n, m)
    k = 10.0 ** random.uniform(-6, 6, len(program.b))
    j = 10.0 ** random.uniform(-6, 6, len(program.e))
    return replace(
        program,
        A=k[:, None] * program.A,
        B=k[:, None] * program.B,
        b=k * program.b,
        E=j[:, None] * program.E,
        F=j[:, None] * program.F,
        e=j * program.e,
    )


def scaled_variables(random: np.random.Generator, n: int, m: int) -> Program:
    """Every variable in a unit of its own: y = k y', so columns are divided by k."""
    program = base(random, n, m)
    i, k = 10.0 ** random.uniform(-3, 3, n), 10.0 ** random.uniform(-3, 3, m)
    both = np.concatenate([i, k])
    return replace(
        program,
        H=program.H / np.outer(both, both),
        r=program.r / both,
        Q=program.Q / np.outer(k, k),
        q=program.q / k,
        P=program.P / np.outer(k, i),
        A=program.A / i,
        B=program.B / k,
        E=program.E / i,
        F=program.F / k,
        x_low=i * program.x_low,
        x_high=i * program.x_high,
        y_low=k * program.y_low,
        y_high=k * program.y_high,
        x0=i * program.x0,
    )


def followers(random: np.random.Generator, n: int, m: int) -> Program:
    """Two followers that share x and nothing else."""
    first, second = base(random, n, max(1, m // 2)), base(random, n, max(1, m - m // 2))
    a, c = first.m, second.m
    x, _ = _planted(first)
    # the second one's rows get room at the first one's planted x
    y = random.uniform(-1, 1, c)
    second = replace(
        second,
        b=second.A @ x + second.B @ y + random.uniform(0.0, 1.0, len(second.b)),
        e=second.E @ x + second.F @ y,
    )

    def diagonal(left: Vector, right: Vector) -> Vector:
        whole = np.zeros((len(left) + len(right), a + c))
        whole[: len(left), :a], whole[len(left) :, a:] = left, right
        return whole

    whole = random.standard_normal((n + a + c, n + a + c))
    return replace(
        first,
        H=whole @ whole.T / (n + a + c),
        r=random.standard_normal(n + a + c),
        Q=diagonal(first.Q, second.Q),
        q=np.concatenate([first.q, second.q]),
        P=np.vstack([first.P, second.P]),
        A=np.vstack([first.A, second.A]),
        B=diagonal(first.B, second.B),
        b=np.concatenate([first.b, second.b]),
        E=np.vstack([first.E, second.E]),
        F=diagonal(first.F, second.F),
        e=np.concatenate([first.e, second.e]),
        T=np.zeros((0, a + c)),
        y_low=np.full(a + c, -5.0),
        y_high=np.full(a + c, 5.0),
        followers=(slice(0, a), slice(a, a + c)),
    )


def unbounded_relaxation(random: np.random.Generator, n: int, m: int) -> Program:
    """f falls along y without bound, and only the lower level's answer holds it."""
    program = base(random, n, m)
    free = np.full(m, np.inf)
    keep = len(program.b) // 2
    H = 0 * program.H
    H[:n, :n] = np.eye(n)
    return replace(
        program,
        H=H,
        A=program.A[:keep],
        B=program.B[:keep],
        b=program.b[:keep],
        y_low=-free,
        y_high=free,
    )


def infeasible(random: np.random.Generator, n: int, m: int) -> Program:
    """No x has a lower-level answer."""
    program = base(random, n, m)
    A, B = np.vstack([program.A, 0 * program.A[:1]]), np.vstack([program.B, -program.B[:1]])
    A[-1] = -program.A[0]
    return replace(program, A=A, B=B, b=np.concatenate([program.b, [-program.b[0] - 0.5]]))


def unbounded_lower(random: np.random.Generator, n: int, m: int) -> Program:
    """The lower objective falls along y_0 without bound, for every x."""
    program = base(random, n, m)
    Q, q, P = program.Q.copy(), program.q.copy(), program.P.copy()
    Q[0], Q[:, 0], q[0], P[0] = 0.0, 0.0, -1.0, 0.0
    high = program.y_high.copy()
    high[0] = np.inf
    B, F = program.B.copy(), program.F.copy()
    B[:, 0], F[:, 0] = -np.abs(B[:, 0]), 0.0
    return replace(program, Q=Q, q=q, P=P, B=B, F=F, e=program.e * 0, E=program.E * 0, y_high=high)


FAMILIES: dict[str, Callable[[np.random.Generator, int, int], Program]] = {
    family.__name__: family
    for family in (
        strong,
        convex,
        linear,
        linear_upper,
        coupled,
        redundant,
        flat,
        nearly_infeasible,
        scaled_objectives,
        scaled_rows,
        scaled_variables,
        followers,
        unbounded_relaxation,
        infeasible,
        unbounded_lower,
    )
}
#: Families without an answer: a result that claims one is false.
HOPELESS = ("infeasible", "unbounded_lower")
#: Every so many programs one of up to 50 variables.
LARGE_EVERY = 50


def program(seed: int) -> Program:
    """The program of a seed: its family goes round, its sizes are drawn."""
    random = np.random.default_rng(seed)
    family = list(FAMILIES)[seed % len(FAMILIES)]
    n, m = int(random.integers(1, 4)), int(random.integers(1, 7))
    if seed % LARGE_EVERY == LARGE_EVERY - 1:
        n, m = int(random.integers(1, 11)), int(random.integers(9, 41))
    elif seed % 2:
        n = min(n, 2)  # small enough for brute force
    return replace(FAMILIES[family](random, n, m), seed=seed, family=family)
