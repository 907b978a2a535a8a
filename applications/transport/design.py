"""``transport.design`` and ``transport.respond``: a network in, a certified design or answer out."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import blocc
from blocc.certificate import Certified, certify
from blocc.errors import InvalidInputError
from blocc.methods.homotopy import OnFailure, solve
from blocc.progress import Progress, Record
from blocc.result import Result, Status

from . import arc_flow, output
from .model import TransitModel
from .network import Network

Floats = np.ndarray[Any, np.dtype[np.float64]]
LowerSolver = Literal["paths", "maxmin"]


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
            "links_built": int(np.count_nonzero(self.capacity)),
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
    lower : {"paths", "maxmin"}
        How the passengers' problem is solved: "paths" by its structure (fast, exact), "maxmin" by the paper's
        first-order method on arc flows (any array library; for study, its answer is certified by "paths").
    backend : {"auto", "numpy", "cupy"}
        Where "maxmin" computes.
    tol : float
        Relative tolerance of the certificate.
    seed : int
        Recorded; the default method uses no random numbers.
    max_iterations : int
        Accepted outer iterations at most.
    verbose, callback, on_failure, checkpoint, resume
        As in :func:`blocc.minimize`.

    Returns
    -------
    Design

    Raises
    ------
    SolveError
        If no certified design was found (its ``result`` has the best one), unless ``on_failure="return"``.
    InvalidInputError
        On a wrong option.
    """
    if lower not in ("paths", "maxmin"):
        raise InvalidInputError(f"lower must be 'paths' or 'maxmin', got {lower!r}")
    if not np.any((network.trips > 0) & network.has_route):
        raise InvalidInputError(
            f"network {network.name!r}: no OD pair has both trips and a route; nothing to design"
        )
    model = TransitModel(network)
    progress = Progress(verbose, callback)
    if lower == "paths":
        result = solve(
            model,
            tol=tol,
            max_iterations=max_iterations,
            progress=progress,
            on_failure=on_failure,
            checkpoint=checkpoint,
            resume=resume,
        )
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
        result = _recertified(model, first_order, tol)
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
    options = {"lower": lower, "tol": tol, "seed": seed, "max_iterations": max_iterations}
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


def _recertified(model: TransitModel, result: Result, tol: float) -> Result:
    """The first-order result on the exact model: its capacities stay, everything said of them is computed anew."""
    from dataclasses import replace

    capacity = blocc.arrays.to_numpy(result.x).astype(np.float64)
    bound = model.relaxation(tol=tol).bound
    gamma = result.certificate.gamma if np.isfinite(result.certificate.gamma) else 1e3
    exact: Certified = certify(
        model, capacity, gamma, extrapolate=False, bound=bound, tol=tol, saddle_tol=1e-10
    )
    certificate = exact.certificate
    if certificate.ok(tol):
        status = Status.OPTIMAL if certificate.optimal(tol) else Status.STATIONARY
    else:
        status = Status.FEASIBLE if certificate.lower_ok(tol) else Status.LOWER_NOT_SOLVED
    return replace(
        result,
        x=capacity,
        y=exact.y,
        objective=exact.objective,
        lower_objective=exact.lower_objective,
        bound=bound,
        status=status,
        duals=exact.duals,
        certificate=certificate,
        message=f"{status.value} (first-order run: {result.status.name.lower()})",
    )
