"""Designs of random small networks: certified, or honest about what is missing, and worth what CVXPY says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from blocc.applications import transport
from blocc.applications.transport import reference
from blocc.result import Status


def random_network(seed):
    """Up to six nodes, with idle pairs, free links, dead ends and trips of any size now and then."""
    random = np.random.default_rng(seed)
    nodes = random.integers(2, 7)
    pairs = [(one, other) for one in range(nodes) for other in range(nodes) if one != other]
    ends = [pair for pair in pairs if random.random() < 0.6] or pairs[:1]
    size = 10.0 ** random.integers(-4, 5) if random.random() < 0.4 else 1.0
    cost = random.uniform(0.0, 1.0, len(ends))
    if random.random() < 0.3:
        cost[random.random(len(cost)) < 0.3] = 0.0
    links = {
        "link_id": range(len(ends)),
        "from_node": [tail for tail, _ in ends],
        "to_node": [head for _, head in ends],
        "travel_time": random.uniform(0.0, 3.0, len(ends)),
        "capacity_cost": cost,
    }
    wanted = [pair for pair in pairs if random.random() < 0.7] or pairs[:1]
    trips = size * random.exponential(1.0, len(wanted))
    if random.random() < 0.3:
        trips[1:][random.random(len(trips) - 1) < 0.3] = 0.0
    demand = {
        "origin": [origin for origin, _ in wanted],
        "destination": [destination for _, destination in wanted],
        "trips": trips,
        "alternative_time": random.uniform(0.0, 5.0, len(wanted)),
        "revenue": random.uniform(0.0, 4.0, len(wanted)),
    }
    return transport.from_tables(pd.DataFrame(links), pd.DataFrame(demand))


@pytest.mark.parametrize("seed", range(24))
def test_design_of_a_random_network_is_certified_and_worth_what_it_says(seed):
    network = random_network(seed)
    if not np.any((network.trips > 0) & network.has_route):
        pytest.skip("no pair has trips and a route")
    plan = transport.design(network, starts=1, on_failure="return")
    certificate = plan.result.certificate
    assert certificate.lower_ok(1e-6)
    assert plan.status.name in ("OPTIMAL", "IMPROVED", "STATIONARY", "FEASIBLE")
    assert certificate.ok(1e-6) == (plan.status is not Status.FEASIBLE)
    assert plan.profit <= plan.bound + 1e-6 * (1.0 + abs(plan.bound))
    again = reference.profit(network, plan.capacity)
    assert again == pytest.approx(plan.profit, abs=1e-3 * (0.01 + abs(plan.profit)))
