"""BLOCC exactly as published: Algorithm 1 (fixed gamma and step) with Algorithm 2 for both saddle points.

For comparison and teaching. Nothing is certified: pass the answer's x to :func:`blocc.certificate.certify` to see what
it is worth. The production solve is :func:`blocc.minimize`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blocc.errors import InvalidInputError
from blocc.functional import FunctionalModel
from blocc.maxmin import SaddlePoint, maxmin

Array = Any


@dataclass(frozen=True)
class PublishedStep:
    """One outer iteration of Algorithm 1.

    Attributes
    ----------
    t : int
    x : array
        ``x_t``.
    lower, penalized : SaddlePoint
        MaxMin's answers for L_g and L_F, with their KKT residuals.
    direction : array
        ``d_t``.
    """

    t: int
    x: Array
    lower: SaddlePoint
    penalized: SaddlePoint
    direction: Array


def blocc(
    model: FunctionalModel,
    x0: Array,
    *,
    gamma: float,
    eta: float,
    T: int,
    eta_1g: float,
    eta_1F: float,
    eta_2: float,
    T_inner: int,
    T_y: int = 1,
    accelerated: bool = False,
    callback: Callable[[PublishedStep], None] | None = None,
) -> PublishedStep:
    """Algorithm 1, BLOCC(x_0, gamma, eta, T), with Algorithm 2 inside, warm-started (arXiv:2406.10148).

    Parameters
    ----------
    model : FunctionalModel
        Without upper constraints on y (outside the published method).
    x0 : array
    gamma, eta : float
        Penalty and outer step, both fixed.
    T : int
        Outer iterations.
    eta_1g, eta_1F : float
        Primal steps of MaxMin on L_g and on L_F.
    eta_2 : float
        Dual step of both.
    T_inner, T_y : int
        Iterations of MaxMin, and primal steps in each.
    accelerated : bool
        The accelerated MaxMin.
    callback : callable, optional
        Called with every :class:`PublishedStep`.

    Returns
    -------
    PublishedStep
        The last one; its ``x`` is ``x_T``, and its saddle points are those of ``x_{T-1}``.
    """
    if T < 1:
        raise InvalidInputError(f"T must be at least 1, got {T}")
    if model.G is not None:
        raise InvalidInputError(
            "the published method has no upper constraints on y; leave G out, or use blocc.minimize"
        )
    x = model.x_set.project(x0)
    y_g = y_F = model.y0
    problem = model.saddle_problem(x, None)
    zero = {name: value * 0.0 for name, value in problem.values(y_g).items()}
    mu_g, mu_F = zero, zero
    for t in range(T):
        on_g, on_F = model.saddle_problem(x, None), model.saddle_problem(x, gamma)
        lower = maxmin(
            on_g, y_g, mu_g, eta_1=eta_1g, eta_2=eta_2, T=T_inner, T_y=T_y, accelerated=accelerated
        )
        penalized = maxmin(
            on_F, y_F, mu_F, eta_1=eta_1F, eta_2=eta_2, T=T_inner, T_y=T_y, accelerated=accelerated
        )
        y_g, mu_g, y_F, mu_F = lower.y, lower.duals, penalized.y, penalized.duals
        direction = model.f.pullback(x, y_F)[0] + gamma * (
            model.g.pullback(x, y_F)[0] - model.g.pullback(x, y_g)[0]
        )
        for name, function in model.lower_constraints.items():
            direction = direction + function.pullback(x, y_F, mu_F[name])[0]
            direction = direction - gamma * function.pullback(x, y_g, mu_g[name])[0]
        x = model.x_set.project(x - eta * direction)
        step = PublishedStep(t + 1, x, lower, penalized, direction)
        if callback is not None:
            callback(step)
    return step
