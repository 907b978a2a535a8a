"""The penalty F_gamma: value and gradient as differences of two saddle points (BLOCC, section 2).

``F_gamma(x) = p_gamma(x) - gamma v(x)``, ``grad F_gamma(x) = d_x L_F - gamma d_x L_g`` by the envelope theorem. Also
the true response ``f(x, y_g(x))``, whose gradient is extrapolated from two penalties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blocc.model import Model, Saddle

Array = Any


@dataclass(frozen=True)
class Evaluation:
    """F_gamma (or the true response) at x.

    Attributes
    ----------
    x : array
    gamma : float
        ``inf`` for the true response.
    value : float
    gradient : array
    lower, penalized : Saddle
    response : float
        True upper value ``f(x, y_g(x))``.
    penalty : float
        ``gamma (g(x, y_F) - v(x)) = F_gamma(x) - f(x, y_F)``: what the penalised answer still gives away.
    mismatch : float
        Of the true response: relative difference between ``f(x, y_g)`` and its extrapolation from two penalties.
        Large where the penalised answers have another active set, so that the extrapolated gradient is not the
        response's.
    """

    x: Array
    gamma: float
    value: float
    gradient: Array
    lower: Saddle
    penalized: Saddle
    response: float
    penalty: float
    mismatch: float = 0.0


class Warm:
    """Warm starts that one penalty hands to the next, for the lower and the penalised problem."""

    def __init__(self) -> None:
        self.lower: Mapping[str, Array] | None = None
        self.penalized: Mapping[str, Array] | None = None


class Penalty:
    """F_gamma of a model at one gamma.

    Parameters
    ----------
    model : Model
    gamma : float
        Positive.
    tol : float
        Tolerance of the saddle points. Their errors reach the gradient multiplied by gamma.
    warm : Warm, optional
        Shared warm starts.
    """

    def __init__(self, model: Model, gamma: float, *, tol: float, warm: Warm | None = None):
        self.model, self.gamma, self.tol = model, gamma, tol
        self.warm = warm if warm is not None else Warm()
        self.evaluations = 0

    def __call__(self, x: Array) -> Evaluation:
        """Evaluate at x; raises LowerLevelError where the lower level has no answer."""
        lower = self.model.lower(x, tol=self.tol, warm=self.warm.lower)
        return self.at(x, lower)

    def value(self, x: Array) -> float:
        """F_gamma alone."""
        return self(x).value

    def at(self, x: Array, lower: Saddle) -> Evaluation:
        """Evaluate at x where the lower level's saddle point is known."""
        penalized = self.model.penalized(x, self.gamma, tol=self.tol, warm=self.warm.penalized)
        self.warm.lower, self.warm.penalized = lower.warm, penalized.warm
        self.evaluations += 1
        value = penalized.value - self.gamma * lower.value
        return Evaluation(
            x=x,
            gamma=self.gamma,
            value=value,
            gradient=penalized.grad_x - self.gamma * lower.grad_x,
            lower=lower,
            penalized=penalized,
            response=self.model.upper(x, lower.y),
            penalty=value - self.model.upper(x, penalized.y),
        )


class Response:
    """The true upper value ``f(x, y_g(x))`` with the gradient ``2 grad F_2gamma - grad F_gamma``.

    grad F_gamma differs from the true hypergradient by O(1/gamma) where the active set does not change;
    the extrapolation cancels that term and leaves O(1/gamma^2), so that a moderate gamma, at which
    saddle-point errors are not yet blown up, gives an accurate gradient.
    """

    def __init__(self, model: Model, gamma: float, *, tol: float, warm: Warm | None = None):
        self.near = Penalty(model, gamma, tol=tol, warm=warm)
        self.far = Penalty(model, 2.0 * gamma, tol=tol)
        self.far.warm.penalized = self.near.warm.penalized
        self.gamma = float("inf")

    @property
    def evaluations(self) -> int:
        """Evaluations so far."""
        return self.near.evaluations

    def value(self, x: Array) -> float:
        """The true upper value alone: one saddle point, where the gradient takes three."""
        near = self.near
        return near.model.upper(x, near.model.lower(x, tol=near.tol, warm=near.warm.lower).y)

    def __call__(self, x: Array) -> Evaluation:
        """Evaluate at x."""
        near = self.near(x)
        far = self.far.at(x, near.lower)
        return Evaluation(
            x=x,
            gamma=self.gamma,
            value=near.response,
            gradient=2.0 * far.gradient - near.gradient,
            lower=near.lower,
            penalized=far.penalized,
            response=near.response,
            penalty=far.penalty,
            mismatch=abs(2.0 * far.value - near.value - near.response) / (1.0 + abs(near.response)),
        )
