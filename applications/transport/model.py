"""Capacity design of a transit network as a :class:`blocc.model.Model`.

The operator chooses link capacities a at cost k, to minimise ``f = sum_l k_l a_l - sum_i r_i w_i s_i`` (minus the
profit); the passengers answer with shares s and link flows x as in :mod:`blocc.applications.transport.paths`.

What makes this model fast, with g(a, u) the passengers' objective, v(a, u) its optimal value, p(a, u) its prices:

* In f + gamma g the revenue joins the utility: ``gamma u (1 - s) - r s = gamma u' (1 - s) - r`` with
  ``u' = u + r / gamma``. So ``p_gamma(a) = k a - sum_i w_i r_i + gamma v(a, u')``, the same problem again, and its
  multipliers are ``gamma p(a, u')``. Hence ``grad F_gamma = k - gamma (p(a, u') - p(a, u))``.
* A convex-concave step minimises ``k a + gamma g(a, x, s; u') + gamma p_k a`` over a and the passengers' variables.
  Capacity that costs ``k + gamma p_k > 0`` equals flow, so each pair takes its shortest path under
  ``d + p_k + k / gamma``, with share ``sigmoid(u' - length)``: one all-pairs shortest path. Bounds on the
  capacities make it a capacitated passengers' problem, solved as any other. A budget ``k a <= B`` has one
  multiplier, which raises the costs k: the spending falls with it, so a scalar search finds it.
* Lowering capacities to the flows of the passengers' answer keeps that answer optimal and saves cost.
* Prices are nonnegative, so no pair earns more than its best single path would alone
  (:mod:`blocc.applications.transport.bound`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit

from blocc.applications.transport.bound import path_bound
from blocc.applications.transport.network import Network
from blocc.applications.transport.paths import PathNetwork, Response
from blocc.errors import InvalidInputError, LowerNotSolvedError
from blocc.model import LowerResiduals, Relaxation, Saddle, Schedule
from blocc.sets import Box, Budget, ConvexSet

Array = np.ndarray[Any, Any]

# Capacity left above the flow by a trim, relative. With none, price and slack are both zero: an
# edge at which solvers tell the flows only to the square root of their gap.
SLACK = 3e-6
TRIM = (1e-6, 1e-3)  # capacities below these fractions of the largest are tried at zero by improve


def _by_link(network: Network, name: str, given: Any) -> Array:
    """One number for each link, NaN where there is none."""
    links = len(network.tail)
    try:
        values = np.array(
            np.broadcast_to(np.asarray(np.nan if given is None else given, np.float64), links)
        )
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{name}: expected one number or one for each of {links} links"
        ) from error
    if np.any(values < 0):
        raise InvalidInputError(f"{name} capacities must be nonnegative")
    return values


class TransitModel:
    """Bilevel model of transit capacity design.

    The upper variable x is the capacity of every link, (links,). The lower variable y is flat: the link flows by
    origin, (origins, links) in row order, then the shares, (pairs,). Flows by origin rather than in total, so that
    conservation can be checked from y alone. :meth:`split` takes y apart.

    Parameters
    ----------
    network : Network
    minimum, maximum : float or array_like, (links,), optional
        Bounds on the capacities of links for which the network has none of its own; 0 and inf by default.
    existing : array_like, (links,), optional
        Capacity that is there already and cannot change; NaN elsewhere. Its cost counts like any other's.
    budget : float, default inf
        Largest total capacity cost ``sum_l k_l a_l``.
    """

    schedule = Schedule(start=8.0, factor=2.0, limit=32.0)
    accuracy = (
        1e-9  # relative gap that capacities without slack still allow, trimmed ones in particular
    )

    def __init__(
        self,
        network: Network,
        *,
        minimum: Any = None,
        maximum: Any = None,
        existing: Any = None,
        budget: float = np.inf,
    ) -> None:
        self.network, self.budget = network, float(budget)
        fixed = _by_link(network, "existing", existing)

        def limit(name: str, own: Any, given: Any, default: float) -> Array:
            values = default * np.ones(len(network.tail))
            for part in (_by_link(network, name, given), _by_link(network, name, own), fixed):
                values = np.where(np.isnan(part), values, part)
            return values

        self.minimum = limit("minimum", network.minimum, minimum, 0.0)
        self.maximum = limit("maximum", network.maximum, maximum, np.inf)
        if not np.all(np.isfinite(self.minimum)):
            raise InvalidInputError("minimum and existing capacities must be finite")
        wrong = np.flatnonzero(self.minimum > self.maximum)
        if len(wrong):
            link = network.link_id[wrong[0]]
            raise InvalidInputError(
                f"link {link}: its minimum capacity {self.minimum[wrong[0]]:g} is above its maximum "
                f"{self.maximum[wrong[0]]:g}"
            )
        if np.isnan(self.budget):
            raise InvalidInputError("budget must be a number")
        least = float(network.capacity_cost @ self.minimum)
        if least > self.budget:
            raise InvalidInputError(
                f"budget {self.budget:g} does not pay for the minimum capacities, which cost {least:g}"
            )
        budgeted = np.isfinite(self.budget)
        self.x_set: ConvexSet = (
            Budget(network.capacity_cost, self.budget, self.minimum, self.maximum)
            if budgeted
            else Box(self.minimum, self.maximum)
        )
        # whether anything but nonnegativity limits the capacities
        self.limited = bool(
            budgeted or np.any(self.minimum > 0) or np.any(np.isfinite(self.maximum))
        )
        self.paths = PathNetwork(
            len(network.nodes),
            network.tail,
            network.head,
            network.travel_time,
            network.origin,
            network.destination,
            network.trips,
        )
        self._bound: float | None = None
        self._revenue = network.trips * network.revenue  # at share one

    # -- the variables -------------------------------------------------------------------------------------------

    def split(self, y: Array) -> tuple[Array, Array]:
        """Link flows by origin, (origins, links), and shares, (pairs,), of a lower variable."""
        paths = self.paths
        cells = len(paths.origins) * paths.links
        return y[:cells].reshape(len(paths.origins), paths.links), y[cells:]

    def _y(self, response: Response) -> Array:
        flows = self.paths.origin_flows(
            response.path_pair, response.path_start, response.path_links, response.path_flow
        )
        return np.concatenate([flows.ravel(), response.share])

    # -- the protocol --------------------------------------------------------------------------------------------

    def upper(self, x: Array, y: Array) -> float:
        """Capacity cost minus revenue: minus the profit."""
        return float(self.network.capacity_cost @ x - self._revenue @ self.split(y)[1])

    def upper_violation(self, x: Array, y: Array) -> float:
        """Zero: no upper constraint involves y."""
        return 0.0

    def lower(self, x: Array, *, tol: float, warm: Mapping[str, Array] | None = None) -> Saddle:
        """Saddle point of the passengers' problem at capacities x."""
        response = self.paths.respond(x, self.network.alternative_time, tol=tol, warm=warm)
        return Saddle(
            y=self._y(response),
            duals={"capacity": response.price},
            value=response.primal,
            grad_x=-response.price,
            gap=response.gap,
            violation=0.0,  # path flows are scaled into the capacities
            iterations=response.iterations,
            warm=response.warm,
        )

    def penalized(
        self, x: Array, gamma: float, *, tol: float, warm: Mapping[str, Array] | None = None
    ) -> Saddle:
        """Saddle point of ``f + gamma g``: the passengers' problem with utility ``u + r / gamma``."""
        cost = self.network.capacity_cost
        utility = self.network.alternative_time + self.network.revenue / gamma
        accuracy = tol
        while True:
            response = self.paths.respond(x, utility, tol=accuracy, warm=warm)
            value = float(cost @ x - self._revenue.sum() + gamma * response.primal)
            gap = gamma * (response.primal - response.dual) / (1.0 + abs(value))
            if gap <= tol or accuracy <= 1e-13:
                break
            accuracy, warm = max(0.5 * accuracy * tol / gap, 1e-13), response.warm
        return Saddle(
            y=self._y(response),
            duals={"capacity": gamma * response.price},
            value=value,
            grad_x=cost - gamma * response.price,
            gap=gap,
            violation=0.0,
            iterations=response.iterations,
            warm=response.warm,
        )

    def residuals(self, x: Array, y: Array, duals: Mapping[str, Array]) -> LowerResiduals:
        """Residuals of the passengers' problem, from y and link prices alone.

        The bound is the dual function, evaluated by shortest paths on all links, open or not. It accounts for
        everything that multipliers of conservation could: the dual infeasibility left is that of negative prices.
        """
        network, paths = self.network, self.paths
        flows, share = self.split(np.asarray(y))
        price, utility = np.asarray(duals["capacity"]), network.alternative_time
        total = flows.sum(axis=0)
        objective = paths.objective(total, np.clip(share, 0.0, 1.0), utility)
        bound = paths.dual_value(np.maximum(price, 0.0), x, utility)
        limited = np.isfinite(x)
        capacity = x[limited]
        over = (total[limited] - capacity) / (1.0 + capacity)
        imbalance = paths.imbalance(flows, paths.trips * share)
        violation = max(
            float(np.max(part, initial=0.0))
            for part in (over, imbalance, -flows, -share, share - 1.0)
        )
        slack = float(np.maximum(price[limited], 0.0) @ np.abs(capacity - total[limited]))
        return LowerResiduals(
            objective=objective,
            bound=bound,
            gap=(objective - bound) / (1.0 + abs(objective)),
            violation=violation,
            dual_infeasibility=float(np.max(-price, initial=0.0))
            / (1.0 + float(np.max(np.abs(price)))),
            complementarity=slack / (1.0 + abs(objective)),
        )

    # -- optional capabilities -----------------------------------------------------------------------------------

    def relaxation(self, *, tol: float) -> Relaxation:
        """Serve each pair as if it were alone: the best share it can have, on its cheapest path.

        The bound is proven (:func:`blocc.applications.transport.bound.path_bound`), and tighter than dropping the
        passengers' optimality altogether; x and y are a start, and do not attain it.
        """
        network, paths = self.network, self.paths
        time = paths.distances(network.travel_time)
        cost, pair, start, links = paths.shortest_paths(network.capacity_cost)
        margin = network.revenue - cost  # -inf without a route
        share = np.where(margin > 0, expit(network.alternative_time - time), 0.0)
        flows = paths.origin_flows(pair, start, links, (network.trips * share)[pair])
        if self._bound is None:
            self._bound = -path_bound(network, time, cost)
        x = self.x_set.project(flows.sum(axis=0))
        return Relaxation(x, np.concatenate([flows.ravel(), share]), self._bound)

    def convex_concave_step(self, x: Array, gamma: float, lower: Saddle, *, tol: float) -> Array:
        """Capacities that minimise ``p_gamma`` minus gamma times the linearisation of v at x."""
        cost = self.network.capacity_cost
        price = np.maximum(lower.duals["capacity"], 0.0)

        def built(multiplier: float) -> Array:
            extra = price + (1.0 + multiplier) * cost / gamma
            return self._bounded_step(gamma, extra, tol)

        step = built(0.0)
        if cost @ step <= self.budget:
            return step
        # Spending falls as the budget's multiplier rises. Where it jumps over the budget, both sides are minimisers
        # at that multiplier, and so is what lies between.
        over, under = 0.0, 1.0
        above, below = step, built(under)
        while cost @ below > self.budget and under < 1e12:
            over, above = under, below
            under *= 4.0
            below = built(under)
        for _ in range(200):
            middle = 0.5 * (over + under)
            if under - over <= 1e-14 * (1.0 + under) or not over < middle < under:
                break
            if cost @ (above - below) <= tol * self.budget:  # what lies between is as good
                break
            step = built(middle)
            if cost @ step > self.budget:
                over, above = middle, step
            else:
                under, below = middle, step
        left, right = float(cost @ above), float(cost @ below)
        part = 0.0 if left <= right else (self.budget - right) / (left - right)
        projected: Array = self.x_set.project(below + np.clip(part, 0.0, 1.0) * (above - below))
        return projected

    def _restrained(self, gamma: float, extra: Array) -> Array:
        network, paths = self.network, self.paths
        utility = network.alternative_time + network.revenue / gamma
        length, pair, start, links = paths.shortest_paths(network.travel_time + extra)
        share = np.where(np.isfinite(length), expit(utility - length), 0.0)
        carried = (network.trips * share)[pair]
        return np.bincount(links, np.repeat(carried, np.diff(start)), minlength=paths.links)

    def _bounded_step(self, gamma: float, extra: Array, tol: float) -> Array:
        """The step with bounds but no budget, where capacity costs ``gamma * extra``."""
        network, paths = self.network, self.paths
        flow = self._restrained(gamma, extra)
        if np.all(self.minimum == 0) and np.all(flow <= self.maximum):
            return flow
        # Up to the minimum a link's capacity is there anyway; above it, the extra cost, up to the maximum.
        bounded = PathNetwork(
            paths.nodes,
            np.tile(paths.tail, 2),
            np.tile(paths.head, 2),
            np.concatenate([network.travel_time, network.travel_time + extra]),
            paths.origin,
            paths.destination,
            paths.trips,
        )
        capacity = np.concatenate([self.minimum, self.maximum - self.minimum])
        utility = network.alternative_time + network.revenue / gamma
        both = bounded.respond(capacity, utility, tol=tol).link_flow
        return np.minimum(self.minimum + both[paths.links :], self.maximum)

    def improve(self, x: Array, lower: Saddle) -> Array:
        """Lower capacities to the passengers' flows, and to zero where that does not cost profit."""
        answer = self._sharpest(x, lower)
        best = self._trimmed(x, answer)
        value = self.upper(best, answer.y)
        for fraction in TRIM:
            small = (best > 0) & (best < fraction * np.max(best, initial=0.0)) & (self.minimum == 0)
            if not np.any(small):
                continue
            trial = np.where(small, 0.0, best)
            answer = self._sharpest(trial, lower)
            trial = self._trimmed(trial, answer)
            if self.upper(trial, answer.y) <= value:
                best, value = trial, self.upper(trial, answer.y)
        return best

    def _trimmed(self, x: Array, answer: Saddle) -> Array:
        """Capacities at the answer's flows, with a little slack."""
        flow = self.split(answer.y)[0].sum(axis=0)
        trimmed: Array = np.maximum(self.minimum, np.minimum(x, (1.0 + SLACK) * flow))
        return trimmed

    def _sharpest(self, x: Array, warm: Saddle) -> Saddle:
        """Answer at x with the smallest gap that can be had: flows are only as good as its square root."""
        for tol in (1e-13, 1e-12, 1e-11, 1e-10):
            try:
                return self.lower(x, tol=tol, warm=warm.warm)
            except LowerNotSolvedError:
                continue
        return self.lower(x, tol=self.accuracy, warm=warm.warm)
