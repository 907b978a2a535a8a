"""The boosted convex-concave procedure on F_gamma: linearise the concave part ``-gamma v``, minimise the rest, go on.

The step is monotone in F_gamma where g and c are jointly convex (Yuille and Rangarajan 2003; design section 2), and
its direction descends further beyond it (Aragon Artacho and Vuong 2020): a doubling search along it takes a tenth of
the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blocc.errors import LowerLevelError
from blocc.model import HasConvexConcaveStep
from blocc.penalty import Evaluation, Penalty

Array = Any

LONGEST = 64.0


def convex_concave(
    penalty: Penalty, start: Evaluation, *, tol: float, max_iterations: int
) -> Iterator[Evaluation]:
    """Repeat convex-concave steps until gamma times the decrease of F_gamma is below tol, relative.

    A step's decrease is about ``|gradient|^2 / gamma``, so the product does not shrink as gamma grows.

    Parameters
    ----------
    penalty : Penalty
        Of a model with the capability :class:`blocc.model.HasConvexConcaveStep`.
    start : Evaluation
    tol : float
    max_iterations : int

    Yields
    ------
    Evaluation
        Every accepted point.
    """
    model = penalty.model
    assert isinstance(model, HasConvexConcaveStep)
    here, boost = start, 1.0
    for _ in range(max_iterations):
        x = model.convex_concave_step(here.x, penalty.gamma, here.lower, tol=penalty.tol)
        there = None
        for _ in range(
            20
        ):  # the step may leave the domain of v; a shorter one descends too, by convexity
            there = _tried(penalty, x)
            if there is not None:
                break
            x = 0.5 * (x + here.x)
        if there is None or not there.value < here.value:
            return
        decrease = here.value - there.value
        direction = there.x - here.x
        here, boost = _boosted(penalty, there, direction, boost)
        yield here
        if max(1.0, penalty.gamma) * decrease <= tol * (1.0 + abs(here.value)):
            return


def _boosted(
    penalty: Penalty, stepped: Evaluation, direction: Array, boost: float
) -> tuple[Evaluation, float]:
    """Go on along the step while F_gamma falls, the length doubling; the length to try next time."""
    best, failed = stepped, False
    while not failed and boost <= LONGEST:
        further = _tried(penalty, penalty.model.x_set.project(stepped.x + boost * direction))
        failed = further is None or not further.value < best.value
        if not failed and further is not None:
            best, boost = further, 2.0 * boost
    if failed:
        boost = max(0.5 * boost, 0.5)
    return best, min(boost, LONGEST)


def _tried(penalty: Penalty, x: Array) -> Evaluation | None:
    try:
        return penalty(x)
    except LowerLevelError:
        return None
