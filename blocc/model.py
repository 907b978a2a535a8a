"""The protocol in the middle: what the outer loop sees of a bilevel program.

Front ends (callables on arrays, CVXPY, the applications) build a :class:`Model`; everything after it (penalty,
outer methods, certificate, result) knows nothing else of the problem. Mathematics: design section 2; BLOCC,
arXiv:2406.10148, sections 2 and 3.

Sign and scale conventions, for every front end:

* both levels minimise; a front end that maximises negates before it builds the model;
* duals of inequalities ``c(x, y) <= 0`` are nonnegative; the Lagrangian adds ``<dual, c>`` and ``<dual, h>``;
* ``gap`` and ``violation`` are relative: divided by ``1 + |value|`` and by ``1 +`` the size of the constrained
  quantity, so that one tolerance means the same on every problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from blocc.sets import ConvexSet

Array = (
    Any  # an array of any library that follows the array API (numpy, cupy, array-api-strict, ...)
)


@dataclass(frozen=True)
class Saddle:
    """A saddle point of a lower-level Lagrangian at a fixed upper point x.

    Attributes
    ----------
    y : array
        Primal answer, in the shape of the lower variable.
    duals : mapping of str to array
        Multipliers by constraint name.
    value : float
        Optimal value of the problem solved (``v(x)``, or ``p_gamma(x)`` for the penalised one).
    grad_x : array
        Partial gradient of the Lagrangian in x at the saddle point, in the shape of x: by the envelope theorem the
        gradient of ``value`` with respect to x.
    gap : float
        Certified relative duality gap, ``(primal - dual) / (1 + |primal|)``.
    violation : float
        Largest relative primal constraint violation.
    iterations : int
        Iterations that the lower-level solver took.
    warm : mapping of str to array
        Whatever the same solver wants back as ``warm`` at a nearby x or gamma. Plain numeric arrays only, so that a
        checkpoint can hold it.
    """

    y: Array
    duals: Mapping[str, Array]
    value: float
    grad_x: Array
    gap: float
    violation: float
    iterations: int
    warm: Mapping[str, Array] = field(default_factory=dict)


class Sensitivity(NamedTuple):
    """Derivatives in x of a lower level's answer where its active set does not change.

    Attributes
    ----------
    answer : array of shape (ny, nx)
        Derivative of y(x).
    hessian : array of shape (nx, nx)
        Of the value v(x).
    """

    answer: Array
    hessian: Array


class Responses(NamedTuple):
    """Lower-level answers at many x, a row for each.

    Attributes
    ----------
    known : array of bool of shape (k,)
        Where the rest holds.
    y : array of shape (k, ny)
    value : array of shape (k,)
        v(x).
    upper, lower : array of shape (k,)
        f and g at the answers.
    inequality, equality : array of shape (k, rows)
        All constraints of both levels there, c <= 0 and h = 0, bounds excepted.
    """

    known: Array
    y: Array
    value: Array
    upper: Array
    lower: Array
    inequality: Array
    equality: Array


@dataclass(frozen=True)
class LowerResiduals:
    """How well a pair (y, duals) solves the lower level at x, recomputed from the problem's own functions.

    Attributes
    ----------
    objective : float
        g(x, y).
    bound : float
        A lower bound on v(x) from the duals, as far as ``dual_infeasibility`` is zero: along directions in which y is
        unbounded a gradient that is not zero proves nothing.
    gap : float
        Relative lower-level gap ``(g(x, y) - bound) / (1 + |g(x, y)|)``; can be slightly negative where y violates
        constraints within tolerance.
    violation : float
        Largest relative violation of the lower level's constraints (bounds included).
    dual_infeasibility : float
        Relative part of the Lagrangian's gradient in y that no multiplier or bound accounts for, and negative duals.
    complementarity : float
        Relative ``|<dual, c(x, y)>|``.
    """

    objective: float
    bound: float
    gap: float
    violation: float
    dual_infeasibility: float
    complementarity: float


class Model(Protocol):
    """A bilevel program as the outer loop sees it.

    ``lower`` and ``penalized`` raise :class:`blocc.errors.LowerLevelError` (a subclass) where the lower level has no
    answer; outer methods step back from such x. ``tol`` is the relative gap and violation to reach.
    """

    x_set: ConvexSet

    def upper(self, x: Array, y: Array) -> float:
        """Upper objective f(x, y)."""
        ...

    def upper_violation(self, x: Array, y: Array) -> float:
        """Largest relative violation of the upper constraints that involve y, 0.0 where there are none."""
        ...

    def lower(self, x: Array, *, tol: float, warm: Mapping[str, Array] | None = None) -> Saddle:
        """Saddle point of the lower level, ``min_y g(x, y)``."""
        ...

    def penalized(
        self, x: Array, gamma: float, *, tol: float, warm: Mapping[str, Array] | None = None
    ) -> Saddle:
        """Saddle point of ``min_y f(x, y) + gamma g(x, y)`` under the same constraints (and the upper ones)."""
        ...

    def residuals(self, x: Array, y: Array, duals: Mapping[str, Array]) -> LowerResiduals:
        """Lower-level residuals of (y, duals) at x, from the problem's own functions, for the certificate."""
        ...


@dataclass(frozen=True)
class Relaxation:
    """Answer of the relaxation (gamma = 0: lower-level optimality dropped).

    Attributes
    ----------
    x, y : array
        Its minimiser.
    bound : float or None
        A proven lower bound on the bilevel optimum; None if the relaxation is not convex, so that its value proves
        nothing.
    """

    x: Array
    y: Array
    bound: float | None


@runtime_checkable
class HasRelaxation(Protocol):
    """Optional capability: solve the relaxation."""

    def relaxation(self, *, tol: float) -> Relaxation:
        """Minimise f over both variables, lower-level optimality dropped."""
        ...


@runtime_checkable
class HasConvexConcaveStep(Protocol):
    """Optional capability: one convex-concave step on F_gamma."""

    def convex_concave_step(self, x: Array, gamma: float, lower: Saddle, *, tol: float) -> Array:
        """Minimiser over x in X of ``p_gamma(x)`` minus gamma times the linearisation of v at ``x``."""
        ...


@runtime_checkable
class HasImprovement(Protocol):
    """Optional capability: a move in x that provably does not raise the true upper value."""

    def improve(self, x: Array, lower: Saddle) -> Array:
        """Return an x whose true upper value ``f(x, y(x))`` is not above the given one's."""
        ...


@runtime_checkable
class CanRestore(Protocol):
    """Optional capability: find an upper point near x where the lower level has an answer."""

    def restore(self, x: Array, *, inside: float = 1e-2) -> Array:
        """Return such a point, or raise LowerInfeasibleError naming the constraint that cannot be met.

        ``inside`` is how far from the domain's edge it lies at most, relative to the size of x.
        """
        ...


@dataclass(frozen=True)
class Schedule:
    """How gamma rises, a hint that a model may carry as ``schedule``.

    Attributes
    ----------
    start : float
        First gamma.
    factor : float
        Between stages.
    limit : float
        Last gamma at most.
    """

    start: float = 1.0
    factor: float = 10.0
    limit: float = 1e8
