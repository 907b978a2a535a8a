"""The accelerated convex-concave procedure on F_gamma: linearise the concave ``-gamma v``, minimise the rest, go on.

The step is monotone in F_gamma where g and c are jointly convex (Yuille and Rangarajan 2003; design section 2), and
its direction descends further beyond it (Aragon Artacho and Vuong 2020): a doubling search along it takes a tenth of
the steps. Once the steps follow a smooth map, Anderson's extrapolation (1965) from the last few finds its fixed point
much sooner; it is taken where F_gamma falls, so the procedure stays monotone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blocc.arrays import device_of, namespace
from blocc.errors import LowerLevelError
from blocc.model import HasConvexConcaveStep
from blocc.penalty import Evaluation, Penalty

Array = Any

LONGEST = 64.0
MEMORY = 5  # steps that an extrapolation combines
RIDGE = 1e-10  # keeps nearly parallel steps from cancelling


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
    points: list[Array] = []
    steps: list[Array] = []
    for _ in range(max_iterations):
        x = model.convex_concave_step(here.x, penalty.gamma, here.lower, tol=penalty.tol)
        points, steps = [*points[-MEMORY:], here.x], [*steps[-MEMORY:], x - here.x]
        enough = tol * (1.0 + abs(here.value)) / max(1.0, penalty.gamma)
        there = _extrapolated(penalty, points, steps, here.value)
        if there is not None:
            if here.value - there.value <= enough:
                points, steps = [], []  # only a plain step may say that nothing is left
            here = there
            yield here
            continue
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
        if decrease <= enough:
            return


def _extrapolated(
    penalty: Penalty, points: list[Array], steps: list[Array], value: float
) -> Evaluation | None:
    """Where the steps from some points suggest that the step would vanish, if F_gamma is below value there."""
    if len(points) < 2:
        return None
    xp = namespace(points[-1])

    def differences(arrays: list[Array]) -> Array:
        flat = xp.stack([xp.reshape(array, (-1,)) for array in arrays])
        return flat[1:, ...] - flat[:-1, ...]

    moved, turned = differences(points), differences(steps)
    gram = turned @ xp.matrix_transpose(turned)
    ridge = RIDGE * float(xp.linalg.trace(gram))
    if not ridge > 0:
        return None
    gram = gram + ridge * xp.eye(gram.shape[0], dtype=gram.dtype, device=device_of(gram))
    right = turned @ xp.reshape(steps[-1], (-1, 1))
    weights = xp.linalg.solve(gram, right)
    correction = xp.matrix_transpose(moved + turned) @ weights
    x = points[-1] + steps[-1] - xp.reshape(correction, points[-1].shape)
    there = _tried(penalty, penalty.model.x_set.project(x))
    return there if there is not None and there.value < value else None


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
