"""Continuous network design: expand roads so that the equilibrium that follows is worth it.

The planner adds capacity z >= 0 to some links and travellers settle at user equilibrium (Abdulaal and LeBlanc 1979):

    minimise    sum_l t_l(v_l, z_l) v_l + sum_l k_l z_l^q        over 0 <= z <= limit
    subject to  v = argmin { sum_l integral of t_l(., z_l) from 0 to v_l : v flows that carry all trips },

with ``t_l(v, z) = fixed + factor (v / (capacity + z))^p``. As a :class:`blocc.model.Model` (x of the core is z, y
the link flows by origin) it needs one solver only, that of :mod:`blocc.applications.transport.equilibrium`:

* ``f + gamma g`` has, per link, the derivative ``(1 + gamma) fixed + (p + 1 + gamma) factor (v / (capacity + z))^p``
  in v: link costs of the same form, so a penalised answer is an equilibrium under other link costs.
* Where the answer is known, values have the derivative ``-factor p / (p + 1) (v / (capacity + z))^(p + 1)`` in z
  (envelope theorem), with the factor that was used.
* ``v^(p + 1) / (capacity + z)^p`` is the perspective of a convex function, so f (and g) are jointly convex in (z, v):
  the relaxation, a system optimum, is a convex program with one smooth convex function of z, and its value a bound.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from blocc.applications.transport import output
from blocc.applications.transport.equilibrium import Flows, LinkCosts, assign, refuse_unserved
from blocc.applications.transport.roads import RoadNetwork
from blocc.applications.transport.tables import numbers_of
from blocc.errors import InvalidInputError, SolveInterrupted, require, require_number
from blocc.methods.homotopy import OnFailure, solve
from blocc.model import LowerResiduals, Relaxation, Saddle, Schedule
from blocc.progress import Progress, Record
from blocc.result import Result, Status
from blocc.sets import Box, ConvexSet

Array = np.ndarray[Any, Any]


class ExpansionModel:
    """Bilevel model of the continuous network design problem.

    The upper variable x is the capacity added to each link that can be expanded, (design links,). The lower variable
    y is flat: link flows by origin, (origins, links) in row order.

    Parameters
    ----------
    roads : RoadNetwork
        With ``expansion_cost`` and ``expansion_limit``.
    exponent : float, >= 1
        q in the cost of expansion, ``expansion_cost z^q``.

    Attributes
    ----------
    design : array of int, (design links,)
        Links that can be expanded.
    """

    # Optima sit at kinks, which F_gamma rounds off within 1/gamma. From 2e3 on, rounding in its values leaves gradients
    # above 1e-6 now and then; here they go below, and F_gamma misses Sioux Falls' true value by less than 1e-4.
    schedule = Schedule(start=1.5, limit=1.5e3)
    accuracy = 1e-13

    def __init__(self, roads: RoadNetwork, *, exponent: float = 2.0) -> None:
        refuse_unserved(roads)
        cost, limit = roads.expansion_cost, roads.expansion_limit
        if cost is None or limit is None or np.all(np.isnan(cost)):
            raise InvalidInputError(
                f"{roads.name}: no link can be expanded; fill expansion_cost and expansion_limit in links.csv "
                "where one can"
            )
        require_number("exponent", exponent, Real)
        if not 1 <= exponent < math.inf:
            raise InvalidInputError(f"exponent must be at least 1 and finite, got {exponent}")
        self.design = np.flatnonzero(~np.isnan(cost))
        self.roads, self.exponent, self.paths = roads, float(exponent), roads.paths
        self.cost = cost[self.design]
        self.x_set: ConvexSet = Box(np.zeros(len(self.design)), limit[self.design])

    def link_costs(self, x: Array, upper: float = 0.0, lower: float = 1.0) -> LinkCosts:
        """Link costs whose equilibrium minimises ``upper f + lower g`` in the flows, at expansions x."""
        roads = self.roads
        capacity = np.array(roads.capacity)
        capacity[self.design] += x
        return LinkCosts(
            (upper + lower) * roads.fixed_cost,
            (upper * (roads.power + 1.0) + lower) * roads.congestion_cost,
            capacity,
            roads.power,
        )

    def link_flow(self, y: Array) -> Array:
        """Total flow of each link, of a lower variable."""
        total: Array = y.reshape(len(self.paths.origins), self.paths.links).sum(axis=0)
        return total

    def expansion_cost(self, x: Array) -> float:
        """What expansions x cost."""
        return float(self.cost @ x**self.exponent)

    def _saddle(self, costs: LinkCosts, flows: Flows, value: float, grad_x: Array) -> Saddle:
        design = self.design
        ratio = flows.flow[design] / costs.capacity[design]
        power = costs.power[design]
        slope = costs.factor[design] * power / (power + 1.0) * ratio ** (power + 1.0)
        y = self.paths.origin_flows(
            flows.path_pair, flows.path_start, flows.path_links, flows.path_flow
        )
        return Saddle(
            y=y.ravel(),
            duals={"cost": flows.cost},
            value=value,
            grad_x=grad_x - slope,
            gap=flows.gap,
            violation=0.0,  # path flows carry all trips
            iterations=flows.iterations,
            warm=flows.warm,
        )

    def _penalized(
        self, x: Array, gamma: float, tol: float, warm: Mapping[str, Array] | None
    ) -> Saddle:
        costs = self.link_costs(x, upper=1.0, lower=gamma)
        flows = assign(self.paths, costs, tol=max(tol, self.accuracy), warm=warm)
        marginal = self.exponent * self.cost * x ** (self.exponent - 1.0)
        return self._saddle(costs, flows, flows.objective + self.expansion_cost(x), marginal)

    # -- the protocol --------------------------------------------------------------------------------------------

    def upper(self, x: Array, y: Array) -> float:
        """Total travel cost and cost of expansion."""
        flow = self.link_flow(y)
        return float(self.link_costs(x).cost(flow) @ flow) + self.expansion_cost(x)

    def upper_violation(self, x: Array, y: Array) -> float:
        """Zero: no upper constraint involves y."""
        return 0.0

    def lower(self, x: Array, *, tol: float, warm: Mapping[str, Array] | None = None) -> Saddle:
        """User equilibrium at expansions x."""
        costs = self.link_costs(x)
        flows = assign(self.paths, costs, tol=max(tol, self.accuracy), warm=warm)
        return self._saddle(costs, flows, flows.objective, np.zeros(len(self.design)))

    def penalized(
        self, x: Array, gamma: float, *, tol: float, warm: Mapping[str, Array] | None = None
    ) -> Saddle:
        """Saddle point of ``f + gamma g``: an equilibrium under other link costs."""
        return self._penalized(x, gamma, tol, warm)

    def residuals(self, x: Array, y: Array, duals: Mapping[str, Array]) -> LowerResiduals:
        """Residuals of the equilibrium, from y and link costs alone.

        The multipliers are the link costs c of ``total flow = sum of the flows by origin``. The bound is the dual
        function, ``sum_i trips_i pi_i(c) - sum_l conjugate_l(c_l)``, by shortest paths.
        """
        paths, costs = self.paths, self.link_costs(x)
        flows = np.asarray(y).reshape(len(paths.origins), paths.links)
        flow, cost = np.maximum(flows, 0.0).sum(axis=0), np.maximum(np.asarray(duals["cost"]), 0.0)
        objective = float(np.sum(costs.integral(flow)))
        served = paths.trips > 0
        shortest = float(paths.trips[served] @ paths.distances(cost)[served])
        bound = shortest - float(np.sum(costs.conjugate(cost)))
        return LowerResiduals(
            objective=objective,
            bound=bound,
            gap=(objective - bound) / (1.0 + abs(objective)),
            violation=max(
                paths.imbalance(flows, paths.trips),
                float(np.max(-flows / (1.0 + flow), initial=0.0)),
            ),
            dual_infeasibility=float(np.max(-np.asarray(duals["cost"]), initial=0.0)),
            complementarity=abs(float(cost @ flow) - shortest) / (1.0 + abs(objective)),
        )

    # -- optional capabilities -------------------------------------------------------------------------------------

    def relaxation(self, *, tol: float) -> Relaxation:
        """System optimum over expansions and flows, with a proven bound.

        Its value is a convex function p of x alone, so ``p(x) + min over z of <p'(x), z - x>`` over the box is a
        lower bound at any x; the equilibrium problem's duality gap is taken off as well.
        """
        warm: Mapping[str, Array] | None = None

        def value(x: Array) -> tuple[float, Array]:
            nonlocal warm
            saddle = self._penalized(x, 0.0, 1e-12, warm)
            warm = saddle.warm
            return saddle.value, saddle.grad_x

        box = self.x_set
        assert isinstance(box, Box)
        answer = minimize(
            value,
            np.zeros(len(self.design)),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(box.lower, box.upper, strict=True)),
            options={"maxiter": 1000, "ftol": 0.0, "gtol": 1e-3 * tol},
        )
        x = box.project(answer.x)
        saddle = self._penalized(x, 0.0, self.accuracy, warm)
        best = np.where(saddle.grad_x > 0, box.lower, box.upper)
        bound = saddle.value + float(saddle.grad_x @ (best - x))
        return Relaxation(x, saddle.y, bound - saddle.gap * (1.0 + abs(saddle.value)))


@dataclass(frozen=True, eq=False)
class Expansion:
    """An expanded road network: the core's result, and what it means in the network's terms.

    Attributes
    ----------
    roads : RoadNetwork
    result : Result
        Of the core, with its certificate.
    added : array, (links,)
        Capacity added; zero on links that cannot be expanded.
    flow, cost : array, (links,)
        Trips and cost of each link at the equilibrium that follows.
    objective : float
        Total travel cost at that equilibrium, plus the cost of expansion.
    travel_cost, expansion_cost : float
        Its two parts.
    bound : float
        Proven lower bound on the objective of any expansion: the system optimum.
    """

    roads: RoadNetwork
    result: Result
    added: Array
    flow: Array
    cost: Array
    objective: float
    travel_cost: float
    expansion_cost: float
    bound: float

    @property
    def status(self) -> Status:
        """Why the solve ended; its value is a sentence."""
        return self.result.status

    def _links(self) -> dict[str, list[Any]]:
        return {
            **self.roads.link_columns(),
            "capacity": self.roads.capacity.tolist(),
            "added": self.added.tolist(),
            "flow": self.flow.tolist(),
            "cost": self.cost.tolist(),
        }

    def links_table(self) -> Any:
        """DataFrame: link_id, from_node, to_node, capacity, added, flow, cost."""
        return require("pandas", "transport", "links_table").DataFrame(self._links())

    def summary(self) -> dict[str, Any]:
        """Plain figures: objective, its parts, bound, certificate, seconds."""
        return {
            "instance": self.roads.name,
            "status": self.result.status.name.lower(),
            "message": self.result.message,
            "objective": self.objective,
            "travel_cost": self.travel_cost,
            "expansion_cost": self.expansion_cost,
            "bound": self.bound,
            "links": len(self.roads.link_id),
            "links_expanded": int(np.count_nonzero(self.added)),
            "certificate": self.result.certificate.to_dict(),
            "iterations": len(self.result.records),
            "seconds": self.result.timings.get("total"),
        }

    def write(self, directory: str | os.PathLike[str]) -> dict[str, Path]:
        """Write expansion.csv (the links table) and summary.json.

        Raises
        ------
        InvalidInputError
            If the directory cannot be written.
        """
        return output.write_tables(directory, {"expansion.csv": self._links()}, self.summary())


def expand(
    roads: RoadNetwork,
    *,
    exponent: float = 2.0,
    start: Any = None,
    tol: float = 1e-6,
    max_iterations: int = 2000,
    verbose: bool = False,
    callback: Callable[[Record], None] | None = None,
    on_failure: OnFailure = "raise",
) -> Expansion:
    """Choose capacity expansions of least total cost, travellers settling at user equilibrium.

    Parameters
    ----------
    roads : RoadNetwork
        With ``expansion_cost`` and ``expansion_limit``.
    exponent : float, >= 1
        q in the cost of expansion, ``expansion_cost z^q``.
    start : float or array_like, (design links,), optional
        Where to start, projected on the limits; default the system optimum.
    tol : float
        Relative tolerance of the certificate.
    max_iterations, verbose, callback, on_failure
        As in :func:`blocc.minimize`.

    Returns
    -------
    Expansion
        A certified stationary point; the problem can have several. ``bound`` says how far from the best it may be.
        On Ctrl-C the best so far, with the status ``INTERRUPTED``.

    Raises
    ------
    SolveError
        If no certified expansion was found (its ``result`` has the best one), unless ``on_failure="return"``.
    InvalidInputError
        On a wrong option, or where nothing can be expanded or trips have no route.
    """
    model = ExpansionModel(roads, exponent=exponent)
    if start is not None:
        start = numbers_of("start", start)
        if start.shape not in ((), model.design.shape) or not np.all(np.isfinite(start)):
            raise InvalidInputError(
                f"start: expected one finite number, or one for each of {len(model.design)} design links"
            )
        start = np.array(np.broadcast_to(start, model.design.shape))
    try:
        result = solve(
            model,
            start,
            tol=tol,
            max_iterations=max_iterations,
            progress=Progress(verbose, callback),
            on_failure=on_failure,
        )
    except SolveInterrupted as interrupt:
        if interrupt.result is None:
            raise
        result = interrupt.result
    x = np.asarray(result.x)
    added = np.zeros(len(roads.tail))
    added[model.design] = x
    flow = model.link_flow(np.asarray(result.y))
    cost = model.link_costs(x).cost(flow)
    return Expansion(
        roads=roads,
        result=result,
        added=added,
        flow=flow,
        cost=cost,
        objective=float(cost @ flow) + model.expansion_cost(x),
        travel_cost=float(cost @ flow),
        expansion_cost=model.expansion_cost(x),
        bound=-math.inf if result.bound is None else result.bound,
    )
