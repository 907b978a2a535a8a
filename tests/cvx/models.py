"""Eight application models in CVXPY, each with an optimum that is found without the library.

Kinds of model that bilevel tools show in their documentation; models and data are our own. The parts are plain CVXPY,
so that ``benchmarks/side_by_side.py`` can hand the same ones to another tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from scipy.optimize import brentq, minimize

from blocc.cvx import BilevelProblem, LowerProblem


@dataclass
class Model:
    """Both levels in CVXPY, a start, and the optimum found independently (in the user's sense of optimisation)."""

    upper: cp.Minimize | cp.Maximize
    lower: cp.Minimize | cp.Maximize
    constraints: dict[str, Any]
    given: list[cp.Variable]
    upper_constraints: list[Any]
    start: dict[str, np.ndarray]
    reference: Callable[[], float]

    def problem(self) -> BilevelProblem:
        for variable in self.given:
            variable.value = self.start[variable.name()]
        lower = LowerProblem(self.lower, self.constraints, given=self.given)
        return BilevelProblem(self.upper, lower, self.upper_constraints)


def best_of_grid(
    value: Callable[[np.ndarray], float], axes: Sequence[np.ndarray], polished: int = 3
) -> float:
    """Least value on a grid, each of the best few points polished by Nelder-Mead inside the box."""
    points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    values = np.array([value(point) for point in points])
    low, high = points.min(axis=0), points.max(axis=0)
    best = float(values.min())
    for start in points[np.argsort(values)[:polished]]:
        answer = minimize(
            lambda x: value(np.clip(x, low, high)),
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 2000},
        )
        best = min(best, float(answer.fun))
    return best


def analytic_quadratic() -> Model:
    """For x >= 3/4 the row binds and y = (3/2 - x, 3/2); the optimum is x = 7/4, F = 3/8."""
    x, y = cp.Variable(name="x", bounds=[-5, 5]), cp.Variable(2, name="y")
    return Model(
        upper=cp.Minimize(cp.square(x - 2) + cp.square(y[0]) + cp.square(y[1] - 2)),
        lower=cp.Minimize(cp.square(y[0] - x) + cp.square(y[1] - 2 * x)),
        constraints={"row": cp.sum(y) + x <= 3},
        given=[x],
        upper_constraints=[],
        start={"x": np.array(0.0)},
        reference=lambda: 0.375,
    )


def optimistic_lp() -> Model:
    """Any split of y1 + y2 = x is optimal below; above, y1 is liked. Optimum x = 4/3, F = 22/3 (relaxation: 9)."""
    x = cp.Variable(name="x", bounds=[0, 3])
    y = cp.Variable(2, name="y", nonneg=True)
    return Model(
        upper=cp.Maximize(3 * y[0] - 2 * y[1] + 2.5 * x),
        lower=cp.Maximize(y[0] + y[1]),
        constraints={"budget": y[0] + y[1] <= x, "room": y[0] + 0.5 * x <= 2},
        given=[x],
        upper_constraints=[],
        start={"x": np.array(1.0)},
        reference=lambda: 22 / 3,
    )


def parametric_socp() -> Model:
    """Lower level over an ellipse whose size and shape are chosen above: y = -r D^-2 c / |D^-1 c|."""
    radius = cp.Variable(name="radius", bounds=[0.2, 3])
    stretch = cp.Variable(name="stretch", bounds=[0.5, 2])
    y = cp.Variable(2, name="y")
    slope, target = np.array([-1.0, -2.0]), np.array([1.2, 0.7])

    def value(point: np.ndarray) -> float:
        size, shape = point
        scale = np.array([1.0, shape])
        answer = -size * slope / scale**2 / np.linalg.norm(slope / scale)
        return float(((answer - target) ** 2).sum() + 0.1 * size**2 + 0.3 * (shape - 1) ** 2)

    return Model(
        upper=cp.Minimize(
            cp.sum_squares(y - target) + 0.1 * cp.square(radius) + 0.3 * cp.square(stretch - 1)
        ),
        lower=cp.Minimize(slope @ y),
        constraints={"ellipse": cp.norm(cp.hstack([y[0], stretch * y[1]])) <= radius},
        given=[radius, stretch],
        upper_constraints=[],
        start={"radius": np.array(1.0), "stretch": np.array(1.0)},
        reference=lambda: best_of_grid(
            value, [np.linspace(0.2, 3.0, 57), np.linspace(0.5, 2.0, 31)]
        ),
    )


def ridge() -> Model:
    """Validation error over the ridge parameter; the lower level is one linear system."""
    random = np.random.default_rng(3)
    truth = random.normal(size=8) * (random.uniform(size=8) < 0.5)
    A, A_val = random.normal(size=(20, 8)), random.normal(size=(20, 8))
    b = A @ truth + random.normal(size=20)
    b_val = A_val @ truth + random.normal(size=20)
    ridge, w = cp.Variable(name="ridge", nonneg=True, bounds=[1e-3, 50]), cp.Variable(8, name="w")

    def value(point: np.ndarray) -> float:
        answer = np.linalg.solve(A.T @ A + point[0] * np.eye(8), A.T @ b)
        return float(((A_val @ answer - b_val) ** 2).mean())

    return Model(
        upper=cp.Minimize(cp.sum_squares(A_val @ w - b_val) / 20),
        lower=cp.Minimize(cp.sum_squares(A @ w - b) + ridge * cp.sum_squares(w)),
        constraints={},
        given=[ridge],
        upper_constraints=[],
        start={"ridge": np.array(1.0)},
        reference=lambda: best_of_grid(value, [np.geomspace(1e-3, 50, 300)]),
    )


def tolls() -> Model:
    """Ten trips on four parallel roads with linear delays; two roads can be tolled, and tolls cost a little."""
    a, b = np.array([1.0, 0.5, 2.0, 0.2]), np.array([1.0, 3.0, 0.5, 6.0])
    toll = cp.Variable(2, name="toll", bounds=[0, 8])
    flow = cp.Variable(4, name="flow", nonneg=True)

    def spread(costs: np.ndarray) -> np.ndarray:
        def left(time: float) -> float:
            return float(np.maximum(time - costs, 0) @ (1 / a) - 10)

        return np.maximum(brentq(left, 0, 100, xtol=1e-13) - costs, 0) / a

    def value(point: np.ndarray) -> float:
        answer = spread(b + np.array([point[0], 0, point[1], 0]))
        return float(b @ answer + a @ answer**2 + 0.1 * point.sum())

    return Model(
        upper=cp.Minimize(b @ flow + a @ cp.square(flow) + 0.1 * cp.sum(toll)),
        lower=cp.Minimize(
            b @ flow + (a / 2) @ cp.square(flow) + toll[0] * flow[0] + toll[1] * flow[2]
        ),
        constraints={"trips": cp.sum(flow) == 10},
        given=[toll],
        upper_constraints=[],
        start={"toll": np.full(2, 5.0)},
        reference=lambda: best_of_grid(value, [np.linspace(0, 8, 41)] * 2),
    )


def demand_response() -> Model:
    """Hourly prices against demand y = (u - p - mu) / beta under a feeder limit.

    The retailer never leaves the limit's price mu to the follower, so that with p = u - beta y the optimum is that of
    ``max (u - beta y - c)'y, sum y <= limit``: y = (u - c - nu) / (2 beta), nu by one equation.
    """
    hours, limit = 6, 7.0
    worth = np.array([5.0, 4.0, 6.0, 8.0, 9.0, 7.0])
    cost = np.array([1.0, 1.0, 2.0, 3.0, 4.0, 2.0])
    slope = np.array([1.0, 1.2, 0.8, 1.0, 1.5, 1.0])
    price = cp.Variable(hours, name="price", bounds=[0, 10])
    demand = cp.Variable(hours, name="demand", nonneg=True)

    def reference() -> float:
        def planned(nu: float) -> np.ndarray:
            return np.maximum(worth - cost - nu, 0) / (2 * slope)

        nu = 0.0
        if planned(0.0).sum() > limit:
            nu = brentq(lambda nu: planned(nu).sum() - limit, 0, 10, xtol=1e-14)
        y = planned(nu)
        return float((worth - slope * y - cost) @ y)

    return Model(
        upper=cp.Maximize((price - cost) @ demand),
        lower=cp.Maximize(worth @ demand - (slope / 2) @ cp.square(demand) - price @ demand),
        constraints={"feeder": cp.sum(demand) <= limit},
        given=[price],
        upper_constraints=[],
        start={"price": np.full(hours, 4.0)},
        reference=reference,
    )


def capacity_planning() -> Model:
    """Solar and wind capacity; the market then dispatches, renewables up to what the capacity yields each hour.

    The planner pays for capacity and for carbon, the market for fuel only. In every hour the dispatch equates
    marginal costs, so that one price gives it.
    """
    demand = np.array([4.0, 5.0, 7.0, 9.0, 8.0, 5.0])
    sun = np.array([0.0, 0.4, 0.9, 0.8, 0.2, 0.0])
    wind = np.array([0.8, 0.5, 0.3, 0.4, 0.6, 0.9])
    hours = len(demand)
    linear, square = np.array([2.0, 1.0, 0.1, 0.1]), np.array([0.4, 0.8, 0.05, 0.05])
    carbon, rent, budget = np.array([0.8, 3.0, 0.0, 0.0]), np.array([3.0, 4.0]), 40.0
    capacity = cp.Variable(2, name="capacity", bounds=[0, 10])
    power = cp.Variable((4, hours), name="power", nonneg=True)  # gas, coal, sun, wind

    def dispatch(most: np.ndarray) -> np.ndarray:
        """Bisection on the price, all hours at once."""
        low, high = np.full(hours, -1.0), np.full(hours, 50.0)
        for _ in range(55):
            price = (low + high) / 2
            answer = np.clip((price - linear[:, None]) / square[:, None], 0, most)
            short = answer.sum(axis=0) < demand
            low, high = np.where(short, price, low), np.where(short, high, price)
        return answer

    def value(point: np.ndarray) -> float:
        excess = max(float(rent @ point) - budget, 0.0)
        free = np.full(hours, np.inf)
        answer = dispatch(np.array([free, free, sun * point[0], wind * point[1]]))
        return float(rent @ point + 1e3 * excess + carbon @ answer.sum(axis=1))

    fuel = linear @ cp.sum(power, axis=1) + (square / 2) @ cp.sum(cp.square(power), axis=1)
    return Model(
        upper=cp.Minimize(rent @ capacity + carbon @ cp.sum(power, axis=1)),
        lower=cp.Minimize(fuel),
        constraints={
            "balance": cp.sum(power, axis=0) == demand,
            "sun": power[2] <= capacity[0] * sun,
            "wind": power[3] <= capacity[1] * wind,
        },
        given=[capacity],
        upper_constraints=[rent @ capacity <= budget],
        start={"capacity": np.ones(2)},
        reference=lambda: best_of_grid(value, [np.linspace(0, 10, 21)] * 2),
    )


def svm() -> Model:
    """Soft-margin SVM: squared validation hinge loss over the weight of the margin."""
    random = np.random.default_rng(5)

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        label = np.where(np.arange(count) % 2, 1.0, -1.0)
        return random.normal(size=(count, 3)) + label[:, None] * np.array([0.8, 0.4, 0.0]), label

    (Z, label), (Z_val, label_val) = sample(20), sample(30)
    weight = cp.Variable(name="weight", nonneg=True, bounds=[0.05, 20])
    w, b, slack = cp.Variable(3, name="w"), cp.Variable(name="b"), cp.Variable(20, name="slack")
    margin = cp.multiply(label, Z @ w + b)

    def reference() -> float:
        given = cp.Parameter(nonneg=True)
        again = [cp.Variable(3), cp.Variable()]
        loss = cp.sum(cp.pos(1 - cp.multiply(label, Z @ again[0] + again[1])))
        ridge = cp.sum_squares(again[0]) + 0.01 * cp.square(again[1])
        follower = cp.Problem(cp.Minimize(given / 2 * ridge + loss))

        def value(point: np.ndarray) -> float:
            given.value = float(point[0])
            follower.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11)
            rest = 1 - label_val * (Z_val @ again[0].value + again[1].value)
            return float((np.maximum(rest, 0) ** 2).mean())

        return best_of_grid(value, [np.geomspace(0.05, 20, 120)], polished=2)

    return Model(
        upper=cp.Minimize(
            cp.sum_squares(cp.pos(1 - cp.multiply(label_val, Z_val @ w + b))) / len(label_val)
        ),
        lower=cp.Minimize(weight / 2 * (cp.sum_squares(w) + 0.01 * cp.square(b)) + cp.sum(slack)),
        constraints={"margin": margin >= 1 - slack, "slack": slack >= 0},
        given=[weight],
        upper_constraints=[],
        start={"weight": np.array(1.0)},
        reference=reference,
    )


MODELS: dict[str, Callable[[], Model]] = {
    f.__name__: f
    for f in (
        analytic_quadratic,
        optimistic_lp,
        parametric_socp,
        ridge,
        tolls,
        demand_response,
        capacity_planning,
        svm,
    )
}
