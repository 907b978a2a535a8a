"""Road networks: checked tables, the rule against through traffic, synthetic transit networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from blocc.applications import transport
from blocc.errors import InvalidInputError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tntp"
FACTORS = {"ChicagoSketch": 0.04}  # of distance, stated with the data set


def tables(**changes):
    """Two routes from 1 to 4: through zone 2 (short), through node 3 (long)."""
    links = {
        "link_id": [1, 2, 3, 4],
        "from_node": [1, 2, 1, 3],
        "to_node": [2, 4, 3, 4],
        "capacity": [10.0] * 4,
        "free_flow_time": [1.0, 1.0, 2.0, 2.0],
        "b": [0.15] * 4,
        "power": [4.0] * 4,
    }
    demand = {"origin": [1, 1, 2, 4], "destination": [4, 2, 4, 4], "trips": [5.0, 1.0, 2.0, 9.0]}
    nodes = {"node": [1, 2, 3, 4], "x": [0, 1, 1, 2], "y": [0, 1, -1, 0]}
    links.update({k: v for k, v in changes.items() if k in links or k.startswith("expansion")})
    demand.update({k: v for k, v in changes.items() if k in demand})
    return links, demand, nodes


def tntp(name: str) -> transport.RoadNetwork:
    """A network of the shared tables, or skip."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is absent: the TNTP data is not ours to ship")
    facts = json.loads((SHARED / "MANIFEST.json").read_text())["files"][name]
    return transport.load_roads(
        SHARED / name,
        first_through_node=facts["first_thru_node"],
        distance_factor=FACTORS.get(name, 0.0),
    )


def test_no_traffic_passes_through_nodes_below_the_first_through_node():
    free = transport.roads_from_tables(*tables())
    assert free.paths.distances(free.fixed_cost).tolist() == [2.0, 1.0, 1.0]
    ruled = transport.roads_from_tables(*tables(), first_through_node=3)
    assert ruled.paths.distances(ruled.fixed_cost).tolist() == [4.0, 1.0, 1.0]


def test_the_transit_network_keeps_the_rule_and_the_stated_costs():
    roads = transport.roads_from_tables(*tables(), first_through_node=3)
    transit = roads.to_transit(mean_time=2.0, detour=1.5, cost_of_time=3.0, fare=7.0)
    paths = transport.model.TransitModel(transit).paths
    shortest = paths.distances(transit.travel_time)
    assert np.average(shortest, weights=transit.trips) == pytest.approx(2.0, rel=1e-12)
    np.testing.assert_allclose(shortest / shortest[1], [4.0, 1.0, 1.0], rtol=1e-12)
    np.testing.assert_allclose(transit.alternative_time, 1.5 * shortest, rtol=1e-12)
    np.testing.assert_allclose(transit.capacity_cost, 3.0 * transit.travel_time, rtol=1e-12)
    assert np.all(transit.revenue == 7.0)
    assert transit.nodes[-2:] == ("1 arrivals", "2 arrivals")


def test_trips_within_a_zone_are_left_out():
    assert transport.roads_from_tables(*tables()).trips.tolist() == [5.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"capacity": [10, 0, 10, 10]}, ("links table, row 2", "capacity")),
        ({"power": [4, 4, 0.5, 4]}, ("links table, row 3", "power", "at least 1")),
        ({"b": [0.1, 0.1, 0.1, -1]}, ("links table, row 4", "'b'")),
        ({"free_flow_time": [1, float("nan"), 1, 1]}, ("links table, row 2", "free_flow_time")),
        ({"to_node": [2, 2, 3, 4]}, ("links table, row 2", "to itself")),
        ({"link_id": [1, 2, 2, 4]}, ("links table, row 3", "row 2")),
        ({"destination": [4, 7, 4, 4]}, ("demand table, row 2", "'7'")),
        ({"destination": [4, 4, 4, 4]}, ("demand table, row 2", "already given in row 1")),
        ({"trips": [1, 1, "x", 1]}, ("demand table, row 3", "'x'")),
        ({"origin": [1, 2, 3, 4], "destination": [1, 2, 3, 4]}, ("empty", "different ends")),
        ({"power": [300, 4, 4, 4], "capacity": [1e-3, 1, 1, 1]}, ("link 1", "units")),
        ({"expansion_cost": [1, "", "", ""]}, ("expansion_cost and expansion_limit",)),
        (
            {"expansion_cost": [1, "", "x", ""], "expansion_limit": [1, "", 2, ""]},
            ("links table, row 3", "expansion_cost"),
        ),
    ],
)
def test_wrong_tables_are_refused_by_row_and_column(changes, fragments):
    with pytest.raises(InvalidInputError) as caught:
        transport.roads_from_tables(*tables(**changes))
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_missing_column_is_named():
    links, demand, nodes = tables()
    del links["b"]
    with pytest.raises(InvalidInputError, match="column 'b' is missing"):
        transport.roads_from_tables(links, demand, nodes)


@pytest.mark.parametrize("name", ["SiouxFalls", "Anaheim", "Barcelona", "ChicagoSketch"])
def test_the_shared_tables_have_the_size_their_manifest_states(name):
    roads = tntp(name)
    facts = json.loads((SHARED / "MANIFEST.json").read_text())["files"][name]
    assert len(roads.link_id) == facts["links"]
    assert len(roads.nodes) == facts["nodes"]
    assert len(roads.trips) == facts["od_pairs_inter"]
    assert roads.trips.sum() == pytest.approx(facts["interzonal_trips"], rel=1e-12)
    assert np.count_nonzero(~roads.through) == facts["first_thru_node"] - 1


def test_anaheim_becomes_a_transit_network_that_can_be_answered():
    transit = tntp("Anaheim").to_transit()
    answer = transport.respond(transit, np.full(len(transit.tail), 1e9))
    assert answer.gap <= 1e-6
    assert 0.4 < np.average(answer.share, weights=transit.trips) < 0.7
