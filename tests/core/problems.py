"""Small problems with known answers, shared by the core tests."""

from __future__ import annotations

import numpy as np

import blocc


def toy(frequency: float, ridge: float) -> tuple[blocc.Function, blocc.Function, blocc.Function]:
    """The paper's toy problems: (4, 1) is (i), (6, 0) is (ii); the lower level's answer is y = x for x >= 0."""

    def value(x, y, data):
        return (
            np.exp(2 - y) / (2 + np.cos(frequency * x))
            + 0.5 * np.log((4 * x - 2) ** 2 + 1)
            + ridge * x**2
        ).sum()

    def gradient(x, y, data):
        scale = 2 + np.cos(frequency * x)
        decay = np.exp(2 - y)
        in_x = decay * frequency * np.sin(frequency * x) / scale**2
        return in_x + 4 * (4 * x - 2) / ((4 * x - 2) ** 2 + 1) + 2 * ridge * x, -decay / scale

    lower = blocc.Function(
        lambda x, y, data: ((y - 2 * x) ** 2).sum(),
        lambda x, y, data: (-4 * (y - 2 * x), 2 * (y - 2 * x)),
    )
    constraint = blocc.Function(
        lambda x, y, data: y - x, lambda x, y, weights, data: (-weights, weights)
    )
    return blocc.Function(value, gradient), lower, constraint


def toy_minima(frequency: float, ridge: float) -> list[float]:
    """Local minima of f(x, x) on [0, 3], end points included, by a grid and golden section."""
    from scipy.optimize import minimize_scalar

    f, _, _ = toy(frequency, ridge)
    grid = np.linspace(0, 3, 3001)
    values = np.array([f.value(np.array([x]), np.array([x]), None) for x in grid])
    minima = [end for end, inner in ((0, 1), (-1, -2)) if values[end] < values[inner]]
    found = [float(grid[i]) for i in minima]
    for i in range(1, len(grid) - 1):
        if values[i] < values[i - 1] and values[i] < values[i + 1]:
            answer = minimize_scalar(
                lambda x: f.value(np.array([x]), np.array([x]), None),
                bounds=(grid[i - 1], grid[i + 1]),
                method="bounded",
                options={"xatol": 1e-10},
            )
            found.append(float(answer.x))
    return sorted(found)


class CoupledQP:
    """``min_x 1/2|x - a|^2 + 1/2|y - b|^2, y = argmin 1/2 y'Qy + (q + Px)'y  s.t.  Cy <= d + Dx, Ey = e``, in a box."""

    def __init__(self, n_x: int, n_y: int, m: int, p: int, seed: int, conditioning: float = 1.0):
        random = np.random.default_rng(seed)
        root = random.standard_normal((n_y, n_y))
        self.Q = root @ root.T / n_y + conditioning * np.eye(n_y)
        self.q, self.P = random.standard_normal(n_y), random.standard_normal((n_y, n_x))
        self.C, self.D = random.standard_normal((m, n_y)), random.standard_normal((m, n_x))
        feasible = 0.3 * random.standard_normal(n_y)
        self.d = self.C @ feasible + np.abs(self.D) @ np.ones(n_x) + random.uniform(0.05, 0.5, m)
        self.E = random.standard_normal((p, n_y))
        self.e = self.E @ feasible
        self.a, self.b = random.standard_normal(n_x), random.standard_normal(n_y)
        self.n_x, self.n_y, self.m, self.p = n_x, n_y, m, p
        self.x_set = blocc.Box(-1.0, 1.0)

    @property
    def f(self) -> blocc.Function:
        return blocc.Function(
            lambda x, y, d: 0.5 * ((x - self.a) ** 2).sum() + 0.5 * ((y - self.b) ** 2).sum(),
            lambda x, y, d: (x - self.a, y - self.b),
        )

    @property
    def g(self) -> blocc.Function:
        return blocc.Function(
            lambda x, y, d: 0.5 * y @ self.Q @ y + (self.q + self.P @ x) @ y,
            lambda x, y, d: (self.P.T @ y, self.Q @ y + self.q + self.P @ x),
        )

    @property
    def c(self) -> blocc.Function:
        return blocc.Function(
            lambda x, y, d: self.C @ y - self.d - self.D @ x,
            lambda x, y, w, d: (-self.D.T @ w, self.C.T @ w),
        )

    @property
    def h(self) -> blocc.Function | None:
        if self.p == 0:
            return None
        return blocc.Function(
            lambda x, y, d: self.E @ y - self.e, lambda x, y, w, d: (0 * x, self.E.T @ w)
        )

    def response(self, x, gamma: float | None = None):
        """(y, value, dual of C) of the lower or the penalised problem by CVXPY and Clarabel."""
        import cvxpy as cp

        y = cp.Variable(self.n_y)
        g = 0.5 * cp.quad_form(y, cp.psd_wrap(self.Q)) + (self.q + self.P @ x) @ y
        objective = g
        if gamma is not None:
            objective = (
                gamma * g + 0.5 * cp.sum_squares(y - self.b) + 0.5 * np.sum((x - self.a) ** 2)
            )
        constraints = [self.C @ y <= self.d + self.D @ x]
        if self.p:
            constraints.append(self.E @ y == self.e)
        problem = cp.Problem(cp.Minimize(objective), constraints)
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
        return self._exact(x, gamma, constraints[0].dual_value)

    def _exact(self, x, gamma: float | None, dual):
        """Clarabel's active set, its KKT equations solved by a dense factorisation: exact to rounding."""
        active = dual > 1e-5
        weight, hessian, slope = 1.0, self.Q, self.q + self.P @ x
        if gamma is not None:
            weight, hessian = gamma, gamma * self.Q + np.eye(self.n_y)
            slope = gamma * slope - self.b
        for _ in range(20):
            rows = np.vstack([self.C[active], self.E])
            right = np.concatenate([(self.d + self.D @ x)[active], self.e])
            system = np.block([[hessian, rows.T], [rows, np.zeros((len(rows), len(rows)))]])
            solution = np.linalg.solve(system, np.concatenate([-slope, right]))
            y, exact = solution[: self.n_y], np.zeros(self.m)
            exact[active] = solution[self.n_y : self.n_y + active.sum()]
            violated = self.C @ y > self.d + self.D @ x + 1e-10
            if not violated.any() and np.all(exact >= 0):
                break
            active = (active & (exact >= 0)) | violated
        else:
            raise AssertionError("active set not found")
        value = weight * (0.5 * y @ self.Q @ y + (self.q + self.P @ x) @ y)
        if gamma is not None:
            value += 0.5 * np.sum((y - self.b) ** 2) + 0.5 * np.sum((x - self.a) ** 2)
        return y, value, exact

    def model(self, x0=None, y0=None) -> blocc.FunctionalModel:
        x0 = np.zeros(self.n_x) if x0 is None else x0
        y0 = np.zeros(self.n_y) if y0 is None else y0
        return blocc.FunctionalModel(self.f, self.g, self.c, x0, y0, h=self.h, x_set=self.x_set)
