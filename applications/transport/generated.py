"""Paths generated so far, grouped by pair: what the dual functions of link prices are evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from blocc.applications.transport.model import TransitModel
from blocc.applications.transport.paths import _grouped, _known_paths, _subset

Array = np.ndarray[Any, Any]
PathList = tuple[Array, Array, Array]  # pairs, starts, links, as in paths.Response


class GeneratedPaths:
    """A growing set of paths.

    Parameters
    ----------
    model : TransitModel
    paths : PathList, optional
        Those to begin with.

    Attributes
    ----------
    paths : PathList
        In the order of their pairs.
    pair, trips : array, (pairs,)
        The pairs that have a path, and their trips.
    pair_start : array of int, (pairs + 1,)
        Where each pair's paths begin.
    room : array, (paths,)
        What a barrier weighs each path with, in trips.
    """

    def __init__(self, model: TransitModel, paths: PathList | None = None) -> None:
        network = model.network
        self.network, self.search = network, model.paths
        self.typical = float(np.sum(network.trips**2) / np.sum(network.trips))
        nothing = np.zeros(0, np.int64)
        self._set(paths or (nothing, np.zeros(1, np.int64), nothing))

    def __len__(self) -> int:
        return len(self.paths[0])

    def _set(self, paths: PathList) -> None:
        path_pair = paths[0]
        self.paths = paths
        self.pair, first = np.unique(path_pair, return_index=True)
        self.pair_start = np.append(first, len(path_pair)).astype(np.int64)
        self.trips = self.network.trips[self.pair]
        self.room = np.sqrt(self.typical * self.network.trips[path_pair])

    def add(self, costs: Sequence[Array]) -> tuple[int, Array]:
        """Add every pair's shortest path at each of some link costs (``inf``: closed).

        Returns
        -------
        number : int
            How many are new.
        order : array of int, (paths,)
            For each path now its place in the list of the old ones followed by the new ones.
        """
        number = 0
        everything, order = self.paths, np.arange(len(self))
        for cost in costs:
            _, pair, start, links = self.search.shortest_paths(cost)
            new = _subset(pair, start, links, self.network.trips[pair] > 0)
            if len(everything[0]) and len(new[0]):
                new = _subset(*new, ~_known_paths(*new, *everything, self.search._key))
            if not len(new[0]):
                continue
            number += len(new[0])
            everything = (
                np.concatenate([everything[0], new[0]]),
                np.concatenate([everything[1], everything[1][-1] + new[1][1:]]),
                np.concatenate([everything[2], new[2]]),
            )
        if number:
            *grouped, order = _grouped(*everything)
            self._set((grouped[0], grouped[1], grouped[2]))
        return number, order

    def keep(self, kept: Array) -> None:
        """Only some of the paths."""
        self._set(_subset(*self.paths, kept))

    def crossing(self, links: Array) -> Array:
        """Which paths use one of some links, given as booleans, (links,)."""
        _, start, crossed = self.paths
        return (
            np.logical_or.reduceat(links[crossed], start[:-1]) if len(self) else np.zeros(0, bool)
        )

    def by_pair(self, flow: Array) -> Array:
        """Sum over the pair's paths, for each path."""
        return self.each(np.add.reduceat(flow, self.pair_start[:-1]) if len(self) else flow)

    def each(self, values: Array) -> Array:
        """What is given by pair, for each path."""
        return np.repeat(values, np.diff(self.pair_start))

    def scaled(self, flow: Array, wanted: Array) -> Array:
        """Flows in the same proportions that carry so many trips of each pair."""
        whole, wanted = self.by_pair(flow), self.each(wanted)
        scaled: Array = np.divide(wanted * flow, whole, out=np.zeros(len(flow)), where=whole > 0)
        return scaled

    def load(self, flow: Array) -> Array:
        """Link flows of path flows, (links,)."""
        _, start, links = self.paths
        return link_flows(start, links, flow, self.search.links)


def link_flows(start: Array, links: Array, flow: Array, number: int) -> Array:
    """Flows of so many links from path flows, (number,)."""
    weights = np.repeat(flow, np.diff(start))
    # without paths the count is of integers
    return np.bincount(links, weights, minlength=number).astype(np.float64)
