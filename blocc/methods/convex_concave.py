"""The convex-concave procedure on F_gamma: linearise the concave part ``-gamma v``, minimise the rest, repeat.

Monotone in F_gamma where g and c are jointly convex (Yuille and Rangarajan 2003; design section 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blocc.errors import LowerLevelError
from blocc.model import HasConvexConcaveStep
from blocc.penalty import Evaluation, Penalty

Array = Any


def convex_concave(
    penalty: Penalty, start: Evaluation, *, tol: float, max_iterations: int
) -> Iterator[Evaluation]:
    """Repeat convex-concave steps until F_gamma falls by less than tol, relative.

    Parameters
    ----------
    penalty : Penalty
        Of a model with the capability :class:`blocc.model.HasConvexConcaveStep`.
    start : Evaluation
    tol : float
        Relative decrease of F_gamma below which to stop.
    max_iterations : int

    Yields
    ------
    Evaluation
        Every accepted point.
    """
    model = penalty.model
    assert isinstance(model, HasConvexConcaveStep)
    here = start
    for _ in range(max_iterations):
        x = model.convex_concave_step(here.x, penalty.gamma, here.lower, tol=penalty.tol)
        there = None
        for _ in range(
            20
        ):  # the step may leave the domain of v; a shorter one descends too, by convexity
            try:
                there = penalty(x)
                break
            except LowerLevelError:
                x = 0.5 * (x + here.x)
        if there is None or not there.value < here.value:
            return
        small = here.value - there.value <= tol * (1.0 + abs(here.value))
        here = there
        yield here
        if small:
            return
