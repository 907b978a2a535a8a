"""Iterated local search over whole designs: perturb the best one, climb again, keep what earns more.

The profit has many local optima, and where the homotopy in gamma ends depends on where it begins. Without limits on
the capacities a climb goes over link prices (:mod:`blocc.applications.transport.prices`), and so it does where a
budget is the only limit (:mod:`blocc.applications.transport.budget`). With others it is the cheap form of the homotopy:
plain convex-concave steps at moderate gamma, which need only the passengers' answer, at a loose tolerance. Under a
budget both are tried. With limits the core's solve then starts from the best design found and certifies what it ends
with; without, each climb ends in a critical point that prices and flows prove.

Trials come in rounds of a fixed size, all from the same incumbent, each with random numbers of its own. So the result
does not depend on how many run at a time, and a killed search resumes to the same design.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from blocc.applications.transport import budget, prices
from blocc.applications.transport.critical import Critical
from blocc.applications.transport.model import SLACK, TransitModel
from blocc.applications.transport.prices import LAST_GAMMA, Stage
from blocc.errors import InvalidInputError, LowerLevelError, require
from blocc.result import read_archive, write_archive

Array = np.ndarray[Any, Any]
CHECKPOINT = "blocc-transport-search-4"
KEPT = ("profit", "trials", "free", "multiplier")  # of what a search knows, beside arrays
SHOWN = 10  # steps of the first climb from one report to the next
ROUND = 4  # trials that start from the same incumbent


COMPLETE = 1e-4  # part of the paths that may still be new where none is missing to speak of
GAMMA = 32.0  # the last one of climbs over prices


def _falling(gamma: float, first: float, factor: float, number: int, *ends: Any) -> Any:
    """Stages at one gamma with a falling gauge."""
    return tuple(Stage(gamma, first * factor**k, *ends) for k in range(number))


# Where a stage ends before it is settled, later ones start off the path of minima and take far longer.
FIRST = (  # the first climb, over prices
    Stage(4.0, 3e-3, 60, 1e-2),
    Stage(8.0, 1e-3, 60, 1e-2),
    Stage(16.0, 3e-4, 60, 1e-2),
    *_falling(GAMMA, 1e-4, 0.2, 4, 60, 1e-2),
)
# On huge networks a wide gauge brings in more paths than pay, and late new ones disturb more.
FIRST_OF_MANY = (
    Stage(4.0, 3e-4, 50, 1e-1, COMPLETE),
    Stage(8.0, 3e-4, 30, 1e-1, COMPLETE),
    Stage(16.0, 3e-4, 25, 1e-1, COMPLETE),
    *_falling(GAMMA, 1e-4, 0.2, 4, 30, 1e-1, COMPLETE),
)
HUGE = 10_000  # pairs above which that is so
AGAIN = (  # those from perturbed designs
    Stage(8.0, 1e-3, 15, 1e-2),
    *_falling(GAMMA, 1e-3, 0.1, 3, 15, 1e-1),
)
LIMITED_FIRST = ((8.0, 80), (16.0, 60))  # gamma and steps, where capacities have limits
LIMITED_AGAIN = ((8.0, 12), (16.0, 24))
LONGER = 1.7  # times a convex-concave step; nearly halves their number, while twice loses its way
SETTLED = 2e-4  # relative change of the capacities at which a stage of a climb ends
ACCURACY = 1e-5  # relative gap of the passengers' answers on the way
NOTHING = 1e-7  # part of the largest flow below which a flow on the way counts as none
PART = 0.3  # of the capacities that a perturbation changes
CLOSED = 0.05  # of the links that every second perturbation closes
ATTEMPTS = 3  # at a round whose workers die


@dataclass(frozen=True, eq=False)
class Found:
    """What a search knows: its best design so far.

    Attributes
    ----------
    state : array, (links,)
        What a climb begins with: link prices, or capacities where these have limits.
    profit : float
        At the passengers' answer, to the search's accuracy.
    trials : int
        Climbs from perturbed designs so far.
    interrupted : bool
        Whether Ctrl-C ended it.
    point : Critical, optional
        The critical point that the climb to the design ended in, where that is known.
    free : bool
        Whether the budget, the only limit, does not bind: everything is as without limits.
    multiplier : float
        Of the budget, where it is the only limit and binds.
    """

    state: Array
    profit: float
    trials: int = 0
    interrupted: bool = False
    point: Critical | None = None
    free: bool = False
    multiplier: float = 0.0

    def capacity(self, model: TransitModel) -> Array:
        """Capacities of the design, (links,)."""
        if model.limited and not self.free:
            return self.state
        return (1.0 + SLACK) * prices.loading(model, self.state)[1]


def climb(
    model: TransitModel,
    capacity: Array,
    stages: tuple[tuple[float, int], ...],
    report: Callable[[], None] | None = None,
) -> tuple[float, Array]:
    """Convex-concave steps from some capacities; the profit and the capacities, trimmed, where they end."""
    warm = None
    for gamma, steps in stages:
        for _ in range(steps):
            if report is not None:
                report()
            lower = model.lower(capacity, tol=ACCURACY, warm=warm)
            warm = lower.warm
            after = model.convex_concave_step(capacity, gamma, lower, tol=ACCURACY)
            change = float(np.sum(np.abs(after - capacity)))
            capacity = model.x_set.project(capacity + LONGER * (after - capacity))
            if change <= SETTLED * float(np.sum(capacity)):
                break
    lower = model.lower(capacity, tol=0.01 * ACCURACY, warm=warm)
    flow = model.split(lower.y)[0].sum(axis=0)
    flow[flow < NOTHING * np.max(flow, initial=0.0)] = 0.0
    trimmed: Array = np.maximum(model.minimum, np.minimum(capacity, flow))
    return -model.upper(trimmed, lower.y), trimmed


def perturbed(capacity: Array, random: np.random.Generator, closes: bool) -> Array:
    """Change a part of the capacities by random factors, open some closed links; close some, where asked."""
    chosen = random.random(len(capacity)) < PART
    factor = np.exp(random.standard_normal(len(capacity)))
    opened = chosen & (capacity == 0) & (random.random(len(capacity)) < 0.5)
    mean = float(np.mean(capacity))
    moved = np.where(chosen, capacity * factor, capacity)
    moved[opened] = mean * factor[opened]
    if closes:
        moved[random.random(len(capacity)) < CLOSED] = 0.0
    return moved


def attempt(model: TransitModel, found: Found, seed: int, trial: int, tol: float) -> Found:
    """One trial; profit ``-inf`` where the passengers' problem could not be solved on the way."""
    threadpoolctl = require("threadpoolctl", "transport", "the search for designs")
    random = np.random.default_rng(np.random.SeedSequence([seed, trial]))
    closes, state = trial % 2 == 1, found.state
    # one BLAS thread: as many as there are trials run at a time, and the sums are the same however many those are
    with threadpoolctl.threadpool_limits(1):
        if found.free or not model.limited:
            free = budget.unlimited(model) if found.free else model
            after = _climbed(free, prices.perturbed(state, random, closes), AGAIN, tol)
            after = replace(after, free=found.free)
            within = _spent(model, after.state) <= model.budget
            return after if within else replace(after, profit=-np.inf)
        try:
            away = model.x_set.project(perturbed(state, random, closes))
            profit, capacity = climb(model, away, LIMITED_AGAIN)
            if not budget.alone(model):
                return Found(capacity, profit)
            designs = budget.trial(model, state, found.multiplier, AGAIN, random, closes)
            designs.add(profit, capacity, found.multiplier)
            return _bound(designs)
        except LowerLevelError:
            return Found(state, -np.inf)


def _spent(model: TransitModel, price: Array) -> float:
    """What the design that some prices make costs."""
    return float(model.network.capacity_cost @ prices.loading(model, price)[1])


def _bound(designs: budget.Designs) -> Found:
    """The best design within a budget that binds."""
    return Found(designs.capacity, designs.profit, multiplier=designs.multiplier)


def _climbed(
    model: TransitModel,
    price: Array,
    stages: tuple[Stage, ...],
    tol: float,
    report: Callable[[float, Array], None] | None = None,
) -> Found:
    """A climb over prices, to a critical point."""
    profit, price, point = prices.climb(model, price, stages, report, tol, LAST_GAMMA)
    return Found(price, profit, point=point)


def _first(
    model: TransitModel,
    start: Array | None,
    tol: float,
    report: Callable[[float, Array], None],
) -> Found:
    """The first climb."""
    threadpoolctl = require("threadpoolctl", "transport", "the search for designs")
    with threadpoolctl.threadpool_limits(1):
        if model.limited and not budget.alone(model):
            first = model.relaxation(tol=ACCURACY).x if start is None else start
            profit, state = climb(model, model.x_set.project(first), LIMITED_FIRST)
            return Found(state, profit)
        price, designs = prices.first_prices(model), budget.Designs(model, report)
        if start is not None:
            start = model.x_set.project(start)
            lower = model.lower(start, tol=ACCURACY)
            price = lower.duals["capacity"]
            designs.add(-model.upper(start, lower.y), start, 0.0)
        if not model.limited:
            return _climbed(model, price, _stages(model), tol, report)
        free = budget.unlimited(model)
        found = replace(_climbed(free, price, _stages(model), tol, designs.look(0.0)), free=True)
        spent = _spent(model, found.state)
        if spent <= model.budget:
            return found
        budget.first(designs, price, spent, _stages(model))
        _, beyond, multiplier = designs.beyond
        designs.add(*climb(model, beyond, LIMITED_AGAIN, designs.show), multiplier)
        if len(model.network.trips) <= budget.LARGE:
            relaxed = model.relaxation(tol=ACCURACY).x if start is None else start
            climbed = climb(model, model.x_set.project(relaxed), LIMITED_FIRST, designs.show)
            designs.add(*climbed, designs.multiplier)
        return _bound(designs)


def _stages(model: TransitModel) -> tuple[Stage, ...]:
    """Stages of the first climb."""
    return FIRST_OF_MANY if len(model.network.trips) > HUGE else FIRST


def search(
    model: TransitModel,
    *,
    trials: int,
    seed: int = 0,
    n_jobs: int | None = None,
    start: Array | None = None,
    tol: float = 1e-6,
    callback: Callable[[Found], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Found:
    """Iterated local search.

    Parameters
    ----------
    model : TransitModel
    trials : int
        Climbs from perturbed designs.
    seed : int
    n_jobs : int, optional
        As in joblib: None is one, unless a ``joblib.parallel_config`` says otherwise; -1 is all processors.
    start : array, (links,), optional
        Where the first climb begins. Default: low prices everywhere, or the relaxation's capacities.
    tol : float
        Of the critical points' proofs, which end the climbs. Unused with limits.
    callback : callable, optional
        Called with the best so far: during the first climb, after it and after every round.
    checkpoint : path, optional
        Written after the first climb and after every round.
    resume : path, optional
        Continue from a checkpoint of the same network and options.

    Returns
    -------
    Found
        Ctrl-C ends it early, with the best so far.

    Raises
    ------
    InvalidInputError
        If ``resume`` is a checkpoint of another search.
    RuntimeError
        If the workers of a round died three times.
    """
    joblib = require("joblib", "transport", "the search for designs")
    identity = _identity(model, seed, start, tol)
    found = Found(model.minimum, -np.inf)  # none yet

    def reached(now: Found) -> None:
        if checkpoint is not None:
            meta = {name: getattr(now, name) for name in KEPT} | {"identity": identity}
            arrays = {"state": now.state} | _packed(now.point)
            write_archive(checkpoint, arrays, {"format": CHECKPOINT, **meta})
        if callback is not None:
            callback(now)

    steps = 0

    def climbing(profit: float, state: Array) -> None:
        nonlocal found, steps
        steps += 1
        if profit > found.profit:
            found = Found(state, profit)
        if callback is not None and steps % SHOWN == 0:
            callback(found)

    try:
        if resume is not None:
            found = _resumed(resume, identity)
        else:
            found = _first(model, start, tol, climbing)
            reached(found)
        while found.trials < trials:
            numbers = range(found.trials, min(found.trials + ROUND, trials))
            known = replace(found, point=None)  # which the trials do not need
            tasks = [joblib.delayed(attempt)(model, known, seed, trial, tol) for trial in numbers]
            best = max(_round(joblib, tasks, n_jobs), key=lambda one: one.profit)  # first of equals
            if best.profit > found.profit + 1e-9 * (1.0 + abs(found.profit)):
                found = best
            found = replace(found, trials=numbers.stop)
            reached(found)
    except KeyboardInterrupt:
        if found.profit == -np.inf:  # there is no design yet
            raise
        return replace(found, interrupted=True)
    return found


def _round(joblib: Any, tasks: list[Any], n_jobs: int | None) -> list[Found]:
    """Run the trials of a round, again where a worker died in it: a trial's answer depends on its number alone."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    for again in range(1, ATTEMPTS + 1):
        try:
            return list(joblib.Parallel(n_jobs=n_jobs)(tasks))
        except TerminatedWorkerError as error:
            if again == ATTEMPTS:
                raise RuntimeError(
                    f"the workers of the search died {ATTEMPTS} times in one round (out of memory?); "
                    "try a smaller n_jobs"
                ) from error
            warnings.warn("a worker of the search died; its trials are redone", stacklevel=3)
    raise AssertionError


def _identity(model: TransitModel, seed: int, start: Array | None, tol: float) -> str:
    """Digest of everything that the result of a search depends on, but for the number of trials."""
    network = model.network
    digest = hashlib.sha256(
        f"{seed} {tol} {ROUND} {_stages(model)} {AGAIN} {LAST_GAMMA} {LIMITED_FIRST} {LIMITED_AGAIN}"
        f" {budget.CLIMBS} {budget.SPREAD}".encode()
    )
    for part in (
        network.tail,
        network.head,
        network.travel_time,
        network.capacity_cost,
        network.origin,
        network.destination,
        network.trips,
        network.alternative_time,
        network.revenue,
        model.minimum,
        model.maximum,
        np.array(model.budget),
        np.zeros(0) if start is None else start,
    ):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _packed(point: Critical | None) -> dict[str, Array]:
    """A critical point as arrays."""
    if point is None:
        return {}
    pair, start, links = point.paths
    parts = point._asdict() | {"gamma": np.array(point.gamma)}
    del parts["paths"]
    return parts | {"path_pair": pair, "path_start": start, "path_links": links}


def _unpacked(arrays: Mapping[str, Array]) -> Critical | None:
    """What :func:`_packed` packed."""
    if "path_pair" not in arrays:
        return None
    paths = (arrays["path_pair"], arrays["path_start"], arrays["path_links"])
    own = {name: arrays[name] for name in Critical._fields if name not in ("gamma", "paths")}
    return Critical(gamma=float(arrays["gamma"]), paths=paths, **own)


def _resumed(path: str | os.PathLike[str], identity: str) -> Found:
    arrays, meta = read_archive(path, CHECKPOINT)
    if meta["identity"] != identity:
        raise InvalidInputError(
            f"{path}: checkpoint of another network, seed, tolerance, version or other limits; "
            "start without resume"
        )
    kept = {name: meta[name] for name in KEPT}
    return Found(arrays["state"], point=_unpacked(arrays), **kept)
