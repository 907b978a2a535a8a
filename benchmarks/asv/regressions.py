"""Regressions in time, one benchmark for each part that users wait for. Run with Airspeed Velocity:

    pip install asv && asv run main^! && asv publish        (asv continuous HEAD~1 HEAD compares two commits)

Each class prepares its data in ``setup``, so that only the named part is timed. Nothing here is a claim.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import blocc
from blocc.applications import transport
from blocc.applications.svm import SlackBoundProblem


def _quadratic(n: int):
    """A quadratic lower level with coupled constraints, as functions with derivatives."""
    random = np.random.default_rng(0)
    root = random.standard_normal((n, n))
    Q, P = root @ root.T / n + 0.1 * np.eye(n), random.standard_normal((n, 3))
    C, D = random.standard_normal((n // 2, n)), random.standard_normal((n // 2, 3))
    d = np.abs(D).sum(axis=1) + 0.1  # y = 0 is feasible for every x in [-1, 1]
    target = random.standard_normal(n)
    f = blocc.Function(
        lambda x, y, data: 0.5 * (x**2).sum() + 0.5 * ((y - target) ** 2).sum(),
        lambda x, y, data: (x, y - target),
    )
    g = blocc.Function(
        lambda x, y, data: 0.5 * y @ Q @ y + (P @ x) @ y,
        lambda x, y, data: (P.T @ y, Q @ y + P @ x),
    )
    c = blocc.Function(
        lambda x, y, data: C @ y - D @ x - d, lambda x, y, w, data: (-D.T @ w, C.T @ w)
    )
    return f, g, c


class Functions:
    """``blocc.minimize`` on callables."""

    params = (4, 40)
    param_names = ("lower variables",)

    def setup(self, n):
        self.functions = _quadratic(n)
        self.y0 = np.zeros(n)

    def time_minimize(self, n):
        blocc.minimize(*self.functions, np.zeros(3), self.y0, x_set=blocc.Box(-1, 1))


class Cvxpy:
    """A small model in CVXPY: from the model to the answer, and again after a parameter has changed."""

    def setup(self):
        self.problem, self.demand = self._problem()
        self.problem.solve()

    def _problem(self):
        x = cp.Variable(2, bounds=[0, 5], name="toll")
        y = cp.Variable(2, nonneg=True, name="flow")
        demand = cp.Parameter(value=10.0)
        slope, base = np.array([1.0, 0.2]), np.array([2.0, 6.0])
        lower = blocc.LowerProblem(
            cp.Minimize(base @ y + slope / 2 @ cp.square(y) + x @ y),
            {"demand": cp.sum(y) == demand, "room": y[0] + 0.2 * cp.sum(x) <= 7},
            given=[x],
        )
        objective = cp.Minimize(base @ y + slope @ cp.square(y))
        return blocc.BilevelProblem(objective, lower, [cp.sum(x) <= 6]), demand

    def time_first_solve(self):
        self._problem()[0].solve()

    def time_solve_again(self):
        self.demand.value = 21.0 - self.demand.value
        self.problem.solve(warm_start=True)


class Transit:
    """The passengers' answer, and a whole design."""

    timeout = 120

    def setup(self):
        self.seville = transport.load("seville")
        self.nine_node = transport.load("nine_node")
        self.capacity = np.full(len(self.seville.tail), 20.0)
        transport.respond(self.seville, self.capacity)  # compiles

    def time_respond_seville(self):
        transport.respond(self.seville, self.capacity)

    def time_design_nine_node(self):
        transport.design(self.nine_node, on_failure="return")


class Svm:
    """The paper's per-sample problem."""

    def setup(self):
        random = np.random.default_rng(0)
        points = random.standard_normal((120, 6))
        labels = np.where(points[:, 0] + 0.5 * random.standard_normal(120) > 0, 1.0, -1.0)
        self.problem = SlackBoundProblem(points[:80], labels[:80], points[80:], labels[80:])

    def time_slack_bounds(self):
        self.problem.solve()


def timeraw_import():
    """Start-up: what every command line call pays."""
    return "import blocc"
