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
        ({"expansion_cost": [1, "", "", ""]}, ("links table, row 1", "'expansion_limit'", "both")),
        (
            {"expansion_cost": [1, "", "", ""], "expansion_limit": [1, 2, "", ""]},
            ("links table, row 2", "'expansion_cost'", "both"),
        ),
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
    with pytest.raises(InvalidInputError, match=r"column 'b' is missing \(found: link_id"):
        transport.roads_from_tables(links, demand, nodes)


def test_columns_may_have_the_names_of_tntp_but_not_both():
    links, demand, nodes = tables()
    same = transport.roads_from_tables(links, demand, nodes)
    links["init_node"] = links.pop("from_node")
    renamed = transport.roads_from_tables(links, demand, nodes)
    assert renamed.tail.tolist() == same.tail.tolist()
    links["from_node"] = links["init_node"][::-1]
    with pytest.raises(InvalidInputError, match="two columns mean 'from_node'"):
        transport.roads_from_tables(links, demand, nodes)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"longitude": [1, 2, 3, 4]}, "only longitude is filled"),
        ({"longitude": [1, 2, 3, 4], "latitude": ["", None, "", ""]}, "only longitude is filled"),
        ({"x": [1, 2, 3, 4], "y": [1, 2, "", 4]}, "row 3, column 'y': the cell is empty"),
        (
            {"longitude": [1, 2, 3, 999], "latitude": [0] * 4},
            "row 4, column 'longitude': 999 is above 180; write a number from -180 to 180",
        ),
        ({"through": [1, 0, 2, 1]}, "row 3, column 'through': 2 is above 1; write a number from"),
    ],
)
def test_wrong_nodes_are_refused(nodes, message):
    links, demand, _ = tables()
    with pytest.raises(InvalidInputError, match=message):
        transport.roads_from_tables(links, demand, {"node": [1, 2, 3, 4], **nodes})


def test_coordinates_may_be_empty_or_only_x_and_y_be_filled():
    links, demand, _ = tables()
    empty = {"longitude": [""] * 4, "latitude": [None] * 4}
    roads = transport.roads_from_tables(links, demand, {"node": [1, 2, 3, 4], **empty})
    assert roads.positions is None
    plane = {**empty, "x": [0, 1, 2, 3], "y": [3, 2, 1, 0]}
    roads = transport.roads_from_tables(links, demand, {"node": [1, 2, 3, 4], **plane})
    assert roads.positions[:, 0].tolist() == [0, 1, 2, 3]
    assert not roads.geographic


def test_a_first_through_node_needs_numbered_nodes():
    links, _, _ = tables()
    named = {
        **links,
        "from_node": [f"n{i}" for i in links["from_node"]],
        "to_node": [f"n{i}" for i in links["to_node"]],
    }
    trips = {"origin": ["n1"], "destination": ["n4"], "trips": [1.0]}
    assert len(transport.roads_from_tables(named, trips).nodes) == 4
    with pytest.raises(InvalidInputError, match="the nodes are not numbered"):
        transport.roads_from_tables(named, trips, first_through_node=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "neither a shipped instance nor a directory"),
        ("x" * 5000, "neither a shipped instance nor a directory"),
        ("a\0b", "neither a shipped instance nor a directory"),
        ("sioux_fals", "Did you mean 'sioux_falls'"),
        ("seville", "It is a transit network"),
        (None, "expected the name of a network or a directory, got None"),
    ],
)
def test_a_network_that_is_not_there_is_named_in_one_line(name, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        transport.load_roads(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"toll_factor": "x"}, "toll_factor must be a number"),
        ({"distance_factor": -1.0}, "distance_factor must be >= 0"),
        ({"first_through_node": 2.5}, "first_through_node must be a whole number"),
    ],
)
def test_wrong_factors_are_named(options, message):
    with pytest.raises(InvalidInputError, match=message):
        transport.load_roads("harker_friesz_1", **options)


def test_a_file_instead_of_a_directory_is_refused(tmp_path):
    (tmp_path / "links.csv").write_text("link_id\n")
    with pytest.raises(InvalidInputError, match="is a file; give the directory"):
        transport.load_roads(tmp_path / "links.csv")


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
