"""``transport.design`` and ``transport.respond``: a network in, a certified design or answer out."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

import blocc
from blocc.certificate import Certificate, certify
from blocc.errors import (
    InvalidInputError,
    LowerLevelError,
    SolveError,
    SolveInterrupted,
    require_number,
)
from blocc.methods.homotopy import OnFailure, solve
from blocc.model import Saddle, Schedule
from blocc.progress import Progress, Record
from blocc.result import Result, Status

from . import arc_flow, output
from .budget import LARGE, alone, critical_capacity, unlimited
from .critical import Critical
from .model import TransitModel
from .modules import round_to_modules
from .network import Network
from .prices import LAST_GAMMA, answer, trimmed
from .search import Found, search

Floats = np.ndarray[Any, np.dtype[np.float64]]
LowerSolver = Literal["paths", "maxmin"]
# Trials of the search by default, and no more than this over the number of pairs: more hardly gain.
TRIALS, PAIRS = 12, 6_000
MOVED = 0.05  # of the largest capacity, from a critical point to a design that is called near it
NOTHING = 1e-9  # part of the largest capacity that a link has which is built
LOST = 1e-3  # part of the search's profit that the closing solve under a budget may lose


@dataclass(frozen=True, eq=False)
class Answer:
    """The passengers' answer to a network's capacities.

    Attributes
    ----------
    flow : array, (links,)
        Trips on each link.
    share : array, (pairs,)
        Served share of each pair's trips.
    price : array, (links,)
        What one more unit of capacity would be worth to the passengers.
    path_cost : array, (pairs,)
        Cost of the cheapest route at these prices; inf where there is no open route.
    objective : float
        The passengers' objective.
    gap : float
        Certified relative duality gap.
    seconds : float
    """

    flow: Floats
    share: Floats
    price: Floats
    path_cost: Floats
    objective: float
    gap: float
    seconds: float


def respond(network: Network, capacity: Any, *, tol: float = 1e-6) -> Answer:
    """How passengers answer to given link capacities: the lower level alone.

    Parameters
    ----------
    network : Network
    capacity : array_like, (links,)
        In trips; zero closes a link.
    tol : float
        Relative duality gap to reach.

    Returns
    -------
    Answer

    Raises
    ------
    InvalidInputError
        If the capacities have the wrong shape, or are negative or not finite.
    """
    capacity = np.asarray(capacity, dtype=np.float64)
    if capacity.shape != network.tail.shape:
        raise InvalidInputError(
            f"capacity has shape {capacity.shape}, expected one number for each of {len(network.tail)} links"
        )
    if not np.all((capacity >= 0) & np.isfinite(capacity)):
        raise InvalidInputError("capacities must be finite and nonnegative")
    began = time.perf_counter()
    model = TransitModel(network)
    response = model.paths.respond(capacity, network.alternative_time, tol=tol)
    return _answer(
        model,
        capacity,
        flow=response.link_flow,
        share=response.share,
        price=response.price,
        objective=response.primal,
        gap=response.gap,
        seconds=time.perf_counter() - began,
    )


def _answer(model: TransitModel, capacity: Floats, **parts: Any) -> Answer:
    cost = np.where(capacity > 0, model.network.travel_time + parts["price"], np.inf)
    return Answer(path_cost=model.paths.distances(cost), **parts)


@dataclass(frozen=True, eq=False)
class Design:
    """A designed network: the core's result, and what it means in the network's terms.

    Attributes
    ----------
    network : Network
    result : Result
        Of the core, with its certificate. Its objective is minus the profit.
    capacity : array, (links,)
        In trips.
    answer : Answer
        How passengers respond to it.
    profit : float
        Revenue minus capacity cost at the passengers' exact response.
    bound : float
        Proven upper bound on the profit of any design.
    options : mapping
        What the design was asked for.
    """

    network: Network
    result: Result
    capacity: Floats
    answer: Answer
    profit: float
    bound: float
    options: Mapping[str, Any]

    @property
    def status(self) -> Status:
        """Why the solve ended; its value is a sentence."""
        return self.result.status

    def design_table(self) -> Any:
        """DataFrame: link_id, from_node, to_node, capacity, flow, price."""
        return output.design_table(self.network, self.capacity, self.answer.flow, self.answer.price)

    def shares_table(self) -> Any:
        """DataFrame: origin, destination, share, trips, path_cost."""
        return output.shares_table(self.network, self.answer.share, self.answer.path_cost)

    def summary(self) -> dict[str, Any]:
        """Plain figures: profit, its parts, bound, certificate, seconds, versions, options."""
        network, result = self.network, self.result
        trips = float(network.trips.sum())
        served = float(network.trips @ self.answer.share)
        return {
            "instance": network.name,
            "status": result.status.name.lower(),
            "message": result.message,
            "objective": self.profit,
            "profit": self.profit,
            "revenue": float((network.trips * network.revenue) @ self.answer.share),
            "cost": float(network.capacity_cost @ self.capacity),
            "bound": self.bound,
            "penalized_objective": -result.certificate.penalized_objective,
            "trips": trips,
            "trips_served": served,
            "share_served": served / trips if trips > 0 else 0.0,
            "links": len(network.link_id),
            "links_built": int(np.sum(self.capacity > NOTHING * np.max(self.capacity))),
            "links_at_capacity": int(
                np.sum((self.capacity > 0) & (self.answer.flow >= (1 - 1e-5) * self.capacity))
            ),
            "certificate": result.certificate.to_dict(),
            "iterations": len(result.records),
            "seconds": result.timings.get("total"),
            "seed": self.options.get("seed"),
            "options": dict(self.options),
            "notes": list(network.notes),
            "versions": {
                "blocc": blocc.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def write(self, directory: str | os.PathLike[str]) -> dict[str, Path]:
        """Write design.csv, shares.csv, summary.json, design.geojson, map.png and report.html.

        What cannot be made (no plotly, say) is left out; ``not_written`` in summary.json says why.

        Raises
        ------
        InvalidInputError
            If the directory cannot be written; the message names it.
        """
        return output.write_outputs(
            directory,
            self.network,
            capacity=self.capacity,
            flow=self.answer.flow,
            price=self.answer.price,
            share=self.answer.share,
            path_cost=self.answer.path_cost,
            summary=self.summary(),
            records=self.result.records,
        )


def design(
    network: Network,
    *,
    starts: int | None = None,
    n_jobs: int | None = None,
    minimum: Any = None,
    maximum: Any = None,
    existing: Any = None,
    budget: float | None = None,
    module: Any = None,
    start: Any = None,
    lower: LowerSolver = "paths",
    backend: blocc.arrays.Backend = "auto",
    tol: float = 1e-6,
    seed: int = 0,
    max_iterations: int = 2000,
    verbose: bool = False,
    callback: Callable[[Record], None] | None = None,
    on_failure: OnFailure = "raise",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Design:
    """Choose link capacities that maximise profit, passengers answering in their own interest.

    Parameters
    ----------
    network : Network
        From :func:`blocc.applications.transport.load` or :func:`from_tables`.
    starts : int, optional
        Perturbed restarts of the search after its first climb (see :mod:`blocc.applications.transport.search`).
        Default: 12 on networks of up to 500 pairs, fewer on larger ones.
    n_jobs : int, optional
        Restarts at a time, as in joblib; a ``joblib.parallel_config`` sets another backend, Dask for example. The
        design does not depend on it.
    minimum, maximum : float or array_like, (links,), optional
        Limits of the capacities, for links that have none in the network's tables.
    existing : array_like, (links,), optional
        Capacity that is there and cannot change, NaN for links to be designed; also a column of the links table.
        It is not sunk: it costs ``capacity_cost`` a unit in profit and budget, like any other. Set that to zero
        where it is paid for.
    budget : float, optional
        Largest total capacity cost.
    module : float or array_like, (links,), optional
        Capacities come in whole modules of this size. A plan is sought from the design's roundings, and the answer
        certified there; it is not proven to be the best plan, and nothing is said of stationarity.
    start : array_like, (links,), optional
        Capacities at which the search begins, of a similar network's design for example. Default: low prices on every
        link, or with limits the relaxation's capacities.
    lower : {"paths", "maxmin"}
        How the passengers' problem is solved: "paths" by its structure (fast, exact), "maxmin" by the paper's
        first-order method on arc flows (any array library; for study, its answer is certified by "paths").
        "maxmin" takes none of the options above.
    backend : {"auto", "numpy", "cupy"}
        Where "maxmin" computes.
    tol : float
        Relative tolerance of the certificate.
    seed : int
        Of the search's random numbers.
    max_iterations : int
        Accepted outer iterations, at most, of the solve that follows the search where there are limits.
    verbose, callback, on_failure
        As in :func:`blocc.minimize`.
    checkpoint : path, optional
        Written after every round of the search ("maxmin": after every stage of gamma).
    resume : path, optional
        Continue from a checkpoint of the same network and options.

    Returns
    -------
    Design
        On Ctrl-C the best so far, with the status ``INTERRUPTED``.

    Raises
    ------
    SolveError
        If no certified design was found (its ``result`` has the best one), unless ``on_failure="return"``.
    InvalidInputError
        On a wrong option.
    """
    if not isinstance(network, Network):
        raise InvalidInputError(
            f"network must be a Network, from load() for example, got {network!r:.80}"
        )
    if lower not in ("paths", "maxmin"):
        raise InvalidInputError(f"lower must be 'paths' or 'maxmin', got {lower!r}")
    if not np.any((network.trips > 0) & network.has_route):
        raise InvalidInputError(
            f"network {network.name!r}: no OD pair has both trips and a route; nothing to design"
        )
    asked = (starts, n_jobs, minimum, maximum, existing, budget, module, start)
    if lower == "maxmin" and any(option is not None for option in asked):
        raise InvalidInputError(
            "lower='maxmin' takes no start, starts, n_jobs, limits, budget or module; use 'paths'"
        )
    _check(starts, n_jobs, budget, tol, seed, max_iterations, on_failure)
    trials = min(TRIALS, PAIRS // len(network.trips)) if starts is None else starts
    model = TransitModel(
        network,
        minimum=minimum,
        maximum=maximum,
        existing=existing,
        budget=np.inf if budget is None else budget,
    )
    modules = None if module is None else _modules(network, module)
    start = None if start is None else _start(network, start)
    progress = Progress(verbose, callback)
    if lower == "paths":

        def searched(now: Found) -> None:
            _show(progress, "search", now.profit)

        with progress.timed("search"):
            found = search(
                model,
                trials=trials,
                seed=seed,
                n_jobs=n_jobs,
                start=start,
                tol=tol,
                callback=searched,
                checkpoint=checkpoint,
                resume=resume,
            )
        closing = unlimited(model) if found.free else model
        if found.interrupted:
            result = _interrupted(closing, found, tol, progress)
        else:
            result = _closed(closing, found, tol, max_iterations, progress)
            if not _affordable(model, result):  # the closing solve has led just beyond the budget
                found = replace(found, state=found.capacity(model), free=False, point=None)
                result = _closed(model, found, tol, max_iterations, progress)
            interrupted = result.status is Status.INTERRUPTED
            if on_failure == "raise" and not result.success and not interrupted:
                raise SolveError(
                    f"{result.message}. The answer is in this exception's result", result
                )
        if modules is not None:
            status = Status.ROUNDED if result.success else result.status
            near = np.asarray(result.x)
            improve = status is not Status.INTERRUPTED
            with progress.timed("rounding"):
                try:
                    whole = round_to_modules(model, near, modules, improve=improve)
                except KeyboardInterrupt:
                    status = Status.INTERRUPTED
                    whole = round_to_modules(model, near, modules, improve=False)
            result = _exactly(model, whole, tol, status, progress)
    else:
        first_order = blocc.minimize(
            **arc_flow.functions(network).arguments(),
            backend=backend,
            tol=tol,
            max_iterations=max_iterations,
            verbose=verbose,
            callback=callback,
            on_failure=on_failure,
            checkpoint=checkpoint,
            resume=resume,
        )
        capacity = blocc.arrays.to_numpy(first_order.x).astype(np.float64)
        exact = _exactly(model, capacity, tol, None, progress)
        result = replace(
            exact,
            records=first_order.records,
            timings=first_order.timings,
            message=f"{exact.message} (first-order run: {first_order.status.name.lower()})",
        )
    capacity = np.asarray(result.x, dtype=np.float64)
    flows, share = model.split(np.asarray(result.y))
    answer = _answer(
        model,
        capacity,
        flow=flows.sum(axis=0),
        share=share,
        price=np.asarray(result.duals["capacity"]),
        objective=result.lower_objective,
        gap=result.certificate.lower_gap,
        seconds=result.timings.get("certificate", 0.0),
    )
    options = {
        "lower": lower,
        "starts": trials if lower == "paths" else 0,
        "budget": budget,
        "minimum": _told(minimum),
        "maximum": _told(maximum),
        "existing": _told(existing),
        "module": None if module is None else np.asarray(module).tolist(),
        "tol": tol,
        "seed": seed,
        "max_iterations": max_iterations,
    }
    bound = result.bound if result.bound is not None else np.inf
    return Design(
        network,
        result,
        capacity,
        answer,
        profit=float(
            (network.trips * network.revenue) @ answer.share - network.capacity_cost @ capacity
        ),
        bound=-bound,
        options=options,
    )


def _check(
    starts: Any,
    n_jobs: Any,
    budget: Any,
    tol: Any,
    seed: Any,
    max_iterations: Any,
    on_failure: Any,
) -> None:
    """Refuse wrong options before any work: a search may take hours until the solve that uses them."""
    for name, value, kind in (
        ("starts", starts, Integral),
        ("n_jobs", n_jobs, Integral),
        ("budget", budget, Real),
        ("tol", tol, Real),
        ("seed", seed, Integral),
        ("max_iterations", max_iterations, Integral),
    ):
        if value is not None or name in ("tol", "seed", "max_iterations"):
            require_number(name, value, kind)
    for name, value, least in (
        ("starts", starts, 0),
        ("seed", seed, 0),
        ("max_iterations", max_iterations, 1),
    ):
        if value is not None and value < least:
            raise InvalidInputError(f"{name} must be at least {least}, got {value}")
    if n_jobs == 0:
        raise InvalidInputError(
            "n_jobs must not be 0: a number of processes, or -1 for all processors"
        )
    if not 0 < tol < 1:
        raise InvalidInputError(f"tol must be between 0 and 1, got {tol}")
    if on_failure not in ("raise", "return"):
        raise InvalidInputError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")


def _told(limit: Any) -> Any:
    """A limit for the record: the number that holds for every link, or how many links have one of their own."""
    if limit is None:
        return None
    values = np.asarray(limit, dtype=np.float64)
    return float(values) if values.ndim == 0 else f"{np.sum(~np.isnan(values))} links"


def _start(network: Network, start: Any) -> Floats:
    try:
        capacity = np.asarray(start, dtype=np.float64)
    except (TypeError, ValueError):
        capacity = np.empty(0)
    if capacity.shape != network.tail.shape or not np.all(np.isfinite(capacity)):
        raise InvalidInputError(
            f"start: expected one finite number for each of {len(network.tail)} links"
        )
    return capacity


def _modules(network: Network, module: Any) -> Floats:
    try:
        modules = np.array(np.broadcast_to(np.asarray(module, np.float64), len(network.tail)))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"module: expected one number or one for each of {len(network.tail)} links"
        ) from error
    if not np.all((modules > 0) & np.isfinite(modules)):
        raise InvalidInputError("module sizes must be positive and finite")
    return modules


def _closed(
    model: TransitModel, found: Found, tol: float, max_iterations: int, progress: Progress
) -> Result:
    """The search's design led to a certificate: with limits by the core's solve, without by prices where they do."""
    options = {"tol": tol, "max_iterations": max_iterations, "on_failure": "return"}
    if not model.limited:
        try:
            return _led_on(model, found, progress, options)
        except KeyboardInterrupt:
            return _interrupted(model, found, tol, progress)
    # The climbs have been through the small gammas: only the last is left, and its certificate.
    gamma = _last_gamma(model)
    model.schedule = Schedule(start=gamma, limit=gamma)
    results: list[Result] = []
    try:
        for start in _starts(model, found, tol, progress):
            after = solve(model, start, progress=progress, **options)
            results.append(after)
            if after.success and -after.objective >= (1.0 - LOST) * found.profit:
                break
        if alone(model) and not any(one.success for one in results):
            gamma = TransitModel.schedule.limit  # a smaller one is easier
            model.schedule = Schedule(start=gamma, limit=gamma)
            results.append(solve(model, found.state, progress=progress, **options))
        return min(results, key=lambda one: (not one.success, one.objective))
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, SolveInterrupted) and interrupt.result is not None:
            return interrupt.result
        return _interrupted(model, found, tol, progress)
    except LowerLevelError as error:  # the search's design is an answer all the same
        result = _exactly(model, found.state, tol, Status.FEASIBLE, progress)
        return replace(result, message=f"{result.message} ({error})")


def _led_on(
    model: TransitModel, found: Found, progress: Progress, options: Mapping[str, Any]
) -> Result:
    """What prices prove; where that is not enough, what the core's solve leads the design to, if that is."""
    proven = _by_prices(model, found, options["tol"], progress)
    if proven.success or len(model.network.trips) > LARGE:
        return proven
    # the best prices were on the way, far from where the climb ended
    model.schedule = Schedule(start=LAST_GAMMA, limit=LAST_GAMMA)
    try:
        after = solve(model, found.capacity(model), progress=progress, **options)
    except LowerLevelError:
        return proven
    return after if after.success else proven


def _show(progress: Progress, method: str, profit: float) -> None:
    """A row of what is known on the way: the best profit."""
    unknown = dict.fromkeys(("gamma", "penalized", "penalty", "stationarity"), np.nan)
    progress.row(method=method, response=-profit, **unknown)


def _starts(model: TransitModel, found: Found, tol: float, progress: Progress) -> Iterator[Floats]:
    """Capacities at which the closing solve begins, a further one where it ends with less than the search's design."""
    if alone(model) and len(model.network.trips) <= LARGE:

        def report() -> None:
            _show(progress, "critical", found.profit)

        with progress.timed("critical point"):
            near = critical_capacity(model, found.state, found.multiplier, tol, report)
        if near is not None:
            yield near
    yield found.state


def _interrupted(model: TransitModel, found: Found, tol: float, progress: Progress) -> Result:
    """The search's design as it is."""
    if model.limited:
        return _exactly(model, found.state, tol, Status.INTERRUPTED, progress)
    return _by_prices(model, found, tol, progress, interrupted=True)


def _by_prices(
    model: TransitModel, found: Found, tol: float, progress: Progress, interrupted: bool = False
) -> Result:
    """The search's design, with what link prices prove of it and of the critical point that it comes from."""
    point = found.point
    proof = None if point is None else point.proof(model)
    starts = [answer(model, found.state)]
    if point is not None:
        starts.append(point.answer())
    with progress.timed("certificate"):
        objective, capacity, lower = _best_answer(model, starts, tol)
        proven = model.residuals(capacity, lower.y, lower.duals)
        bound = model.relaxation(tol=tol).bound
    moved = away = 0.0
    if point is not None:
        away = float(np.max(np.abs(capacity - point.capacity)))
        moved = float(away / (1.0 + np.max(point.capacity)))
    certificate = Certificate(
        lower_gap=proven.gap,
        violation=proven.violation,
        dual_infeasibility=proven.dual_infeasibility,
        complementarity=proven.complementarity,
        stationarity=np.inf if proof is None else proof.stationarity,
        gamma=np.inf if point is None else point.gamma,
        moved=moved,
        response_objective=objective,
        response_violation=0.0,
        penalized_objective=_penalized(model, capacity, lower, proven.objective, point),
        bound=bound,
        bound_gap=None if bound is None else (objective - bound) / (1.0 + abs(objective)),
    )
    # the returned design was reached from the critical point: without loss, or nothing is said
    lost = proof is None or not objective <= proof.response + tol * (1.0 + abs(proof.response))
    if interrupted:
        status = Status.INTERRUPTED
    elif not certificate.lower_ok(tol):
        status = Status.LOWER_NOT_SOLVED
    elif certificate.optimal(tol):
        status = Status.OPTIMAL
    else:
        near = not lost and point is not None and away <= MOVED * np.max(point.capacity)
        status = Status.IMPROVED if certificate.ok(tol) and near else Status.FEASIBLE
    message = status.value
    if status is Status.FEASIBLE and certificate.ok(tol):
        message += f" (the critical point is too far away: moved {moved:.1e})"
    elif status is Status.FEASIBLE:
        message += f" (residual {certificate.stationarity:.1e})"
    progress.timings["total"] = progress.seconds
    return Result(
        x=capacity,
        y=lower.y,
        objective=objective,
        lower_objective=proven.objective,
        bound=bound,
        status=status,
        duals=dict(lower.duals),
        certificate=certificate,
        records=tuple(progress.records),
        timings=dict(progress.timings),
        message=message,
    )


def _penalized(
    model: TransitModel, capacity: Floats, lower: Saddle, value: float, point: Critical | None
) -> float:
    """Proven lower bound on F_gamma at some capacities, by the passengers' prices and value there; f without gamma."""
    network = model.network
    cost, revenue = network.capacity_cost, network.revenue
    if point is None:
        return model.upper(capacity, lower.y)
    utility = network.alternative_time + revenue / point.gamma
    price = lower.duals["capacity"] + cost / point.gamma
    gain = model.paths.dual_value(price, capacity, utility) - value
    return float(cost @ capacity - network.trips @ revenue + point.gamma * gain)


def _best_answer(
    model: TransitModel, starts: list[dict[str, Any]], tol: float
) -> tuple[float, Floats, Saddle]:
    """Of the designs that some answers make, the one that is worth most when the answer is proven."""
    answers: list[tuple[float, Floats, Saddle]] = []
    for start in starts:
        capacity = trimmed(model, start)
        try:
            lower = model.lower(capacity, tol=tol, warm=start)
        except LowerLevelError:
            if start is starts[-1] and not answers:
                raise
            continue
        answers.append((model.upper(capacity, lower.y), capacity, lower))
    return min(answers, key=lambda one: one[0])


def _affordable(model: TransitModel, result: Result) -> bool:
    """Whether a result is within the budget, to rounding."""
    return bool(model.network.capacity_cost @ result.x <= (1.0 + 1e-9) * model.budget)


def _last_gamma(model: TransitModel) -> float:
    """Gamma of the closing solve under limits and of what is certified at given capacities."""
    return model.schedule.limit if model.limited and not alone(model) else LAST_GAMMA


def _exactly(
    model: TransitModel, capacity: Floats, tol: float, status: Status | None, progress: Progress
) -> Result:
    """A result at given capacities, everything said of them computed anew; None: the status that holds there."""
    bound = model.relaxation(tol=tol).bound
    exact = certify(
        model,
        capacity,
        _last_gamma(model),
        extrapolate=False,
        bound=bound,
        tol=tol,
        saddle_tol=1e-10,
    )
    certificate = exact.certificate
    if not certificate.lower_ok(tol):
        status = Status.LOWER_NOT_SOLVED
    elif status is None and certificate.ok(tol):
        status = Status.OPTIMAL if certificate.optimal(tol) else Status.STATIONARY
    elif status is None:
        status = Status.FEASIBLE
    progress.timings["total"] = progress.seconds
    return Result(
        x=capacity,
        y=exact.y,
        objective=exact.objective,
        lower_objective=exact.lower_objective,
        bound=bound,
        status=status,
        duals=dict(exact.duals),
        certificate=certificate,
        records=tuple(progress.records),
        timings=dict(progress.timings),
        message=status.value,
    )
