"""A proven upper bound on the profit of any design: the best single path of every pair."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from scipy.special import expit

from blocc.applications.transport.network import Network

Array = np.ndarray[Any, Any]

LABELS = 20_000  # of one origin, after which its pairs keep the weaker bound


def path_bound(network: Network, fastest: Array, cheapest: Array) -> float:
    """Sum over pairs of the most that one path could earn, alone and without prices.

    No design earns more. Let a pair have trips w, revenue r, alternative u, share s at some capacities, and link prices
    p >= 0 there. All paths P that it uses cost the same ``pi`` under d + p, so ``d(P) <= pi`` and
    ``s = sigmoid(u - pi) <= sigmoid(u - d(P))`` for each of them. Capacity is at least flow, so with path flows q its
    part of the profit is at most ``sum_P q_P (r - k(P)) <= w s (r - k(Q))``, Q the cheapest path in use: mixing paths
    does not beat Q alone. If ``r > k(Q)`` that is at most ``w sigmoid(u - d(Q)) (r - k(Q))``, otherwise at most zero.
    The last expression falls with both d(Q) and k(Q), so its largest value is at a path that no other beats in both.

    Those paths are found by labels in the order of d. An origin with more than 20 000 of them keeps the bound of a
    path as fast as the fastest and as cheap as the cheapest.

    Parameters
    ----------
    network : Network
    fastest, cheapest : array, (pairs,)
        Least travel time and least capacity cost of a path of each pair; inf without one.

    Returns
    -------
    float
    """
    trips, revenue, alternative = network.trips, network.revenue, network.alternative_time
    margin = np.where(np.isfinite(cheapest), revenue - cheapest, 0.0)
    most = np.where(margin > 0, trips * expit(alternative - fastest) * margin, 0.0)
    links: list[list[tuple[int, float, float]]] = [[] for _ in network.nodes]
    for link in range(len(network.tail)):
        links[network.tail[link]].append(
            (
                int(network.head[link]),
                float(network.travel_time[link]),
                float(network.capacity_cost[link]),
            )
        )
    for origin in np.unique(network.origin[most > 0]).tolist():
        pairs = np.flatnonzero((network.origin == origin) & (most > 0))
        labels = _efficient_paths(links, origin, float(np.max(revenue[pairs])))
        if labels is None:
            continue
        for pair in pairs.tolist():
            time, cost = np.array(labels[network.destination[pair]]).T
            earned = expit(alternative[pair] - time) * np.maximum(revenue[pair] - cost, 0.0)
            most[pair] = trips[pair] * float(np.max(earned))
    return float(np.sum(most))


def _efficient_paths(
    links: list[list[tuple[int, float, float]]], origin: int, dearest: float
) -> list[list[tuple[float, float]]] | None:
    """Travel time and cost of the paths to each node that none beats in both, up to a cost; None if too many."""
    found: list[list[tuple[float, float]]] = [[] for _ in links]
    least = [np.inf] * len(links)  # cost of the last label of each node: later ones take longer
    queue = [(0.0, 0.0, origin)]
    settled = 0
    while queue:
        time, cost, node = heapq.heappop(queue)
        if cost >= least[node]:
            continue
        least[node] = cost
        found[node].append((time, cost))
        settled += 1
        if settled > LABELS:
            return None
        for head, more_time, more_cost in links[node]:
            if cost + more_cost < least[head] and cost + more_cost <= dearest:
                heapq.heappush(queue, (time + more_time, cost + more_cost, head))
    return found
