"""Small CVXPY bilevel problems of every kind, each with a point at which its lower level is solvable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np

from blocc.cvx import BilevelProblem, LowerProblem


@dataclass
class Case:
    problem: BilevelProblem
    x0: np.ndarray


def toll() -> Case:
    """Vector variables, coupled constraint, a lower term in x alone, bounds as attributes."""
    x = cp.Variable(2, bounds=[0, 5], name="toll")
    y = cp.Variable(2, nonneg=True, name="flow")
    a, b = np.array([1.0, 2.0]), np.array([1.0, 1.5])
    lower = LowerProblem(
        cp.Minimize(b @ y + a / 2 @ cp.square(y) + x @ y + cp.sum_squares(x)),
        {"demand": cp.sum(y) == 10, "cap": y[0] + 0.2 * cp.sum(x) <= 7},
        given=[x],
    )
    return Case(
        BilevelProblem(cp.Minimize(b @ y + a @ cp.square(y)), lower, [cp.sum(x) <= 6]),
        np.array([1.0, 2.0]),
    )


def maximise() -> Case:
    """Maximisation at both levels; the lower one with a linear objective."""
    x = cp.Variable(name="x", bounds=[0, 4])
    y = cp.Variable(2, name="y", bounds=[0, 3])
    lower = LowerProblem(
        cp.Maximize((1 + x) * y[0] + y[1]), {"budget": y[0] + 2 * y[1] + x <= 5}, given=[x]
    )
    return Case(BilevelProblem(cp.Maximize(-cp.square(x - 2) + y[1]), lower), np.array([1.3]))


def cones() -> Case:
    """Second-order and exponential cones, quad_over_lin with x below, division by x."""
    x = cp.Variable(nonneg=True, name="x")
    y = cp.Variable(3, name="y")
    lower = LowerProblem(
        cp.Maximize(y[0] + x * y[1] - cp.quad_over_lin(y, 1 + x) - cp.exp(y[2])),
        {"ball": cp.norm(y) <= 1 + x, "scaled": cp.square(y[0]) / (1 + x) <= 0.5},
        given=[x],
    )
    return Case(
        BilevelProblem(cp.Maximize(-cp.square(x - 2) - cp.sum_squares(y)), lower), np.array([0.7])
    )


def semidefinite() -> Case:
    """A PSD matrix variable; x enters a matrix inequality."""
    x = cp.Variable(2, name="x", bounds=[-1, 1])
    Y = cp.Variable((2, 2), PSD=True, name="Y")
    lower = LowerProblem(
        cp.Minimize(cp.trace(np.array([[2.0, 0.3], [0.3, 1.0]]) @ Y)),
        {"above": Y >> cp.diag(x), "corner": Y[0, 1] == 0.2},
        given=[x],
    )
    return Case(
        BilevelProblem(cp.Minimize(cp.sum_squares(x - 0.5) + cp.trace(Y)), lower),
        np.array([0.3, 0.4]),
    )


def nonlinear_data() -> Case:
    """x enters through functions that are not affine, and as a matrix."""
    x = cp.Variable((2, 2), name="X", bounds=[0.1, 2])
    y = cp.Variable(2, name="y")
    lower = LowerProblem(
        cp.Minimize(
            cp.sum_squares(x @ y - np.array([1.0, 2.0])) + cp.exp(x[0, 0]) * cp.square(y[1])
        ),
        {"sum": cp.sum(y) <= cp.sqrt(x[1, 1])},
        given=[x],
    )
    return Case(
        BilevelProblem(cp.Minimize(cp.sum_squares(y) + cp.sum_squares(x)), lower),
        np.array([0.5, 0.7, 0.2, 1.1]),
    )


def followers() -> Case:
    """Two independent followers."""
    x = cp.Variable(name="price", nonneg=True)
    first, second = cp.Variable(name="a", nonneg=True), cp.Variable(name="b", nonneg=True)
    lowers = [
        LowerProblem(
            cp.Minimize(cp.square(first - 3) + x * first), {"room": first <= 2}, given=[x]
        ),
        LowerProblem(cp.Minimize(2 * cp.square(second - 2) + x * second), given=[x]),
    ]
    return Case(BilevelProblem(cp.Maximize(x * first + x * second), lowers), np.array([1.5]))


CASES: dict[str, Callable[[], Case]] = {
    f.__name__: f for f in (toll, maximise, cones, semidefinite, nonlinear_data, followers)
}
