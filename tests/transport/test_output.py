"""Tables, summary and map: what they hold, and what happens where they cannot be written."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pandas
import pytest
from hypothesis import given, settings, strategies
from matplotlib import image

from blocc.applications.transport import network as networks
from blocc.applications.transport import output, reference
from blocc.errors import InvalidInputError

GEOJSON_REASON = (
    "GeoJSON holds longitudes and latitudes, and this network has only x and y; "
    "give nodes.csv the columns longitude and latitude"
)


@pytest.fixture
def network():
    return networks.load("three_node")


@pytest.fixture
def answer(network):
    capacity = np.array([0.5, 0.0, 0.4, 0.3, 0.0, 0.0])
    response = reference.solve_lower(network, capacity)
    return {
        "capacity": capacity,
        "flow": response.flow,
        "price": response.price,
        "share": response.share,
        "path_cost": response.path_cost,
    }


def test_files_hold_the_answer(tmp_path, network, answer):
    summary = {
        "profit": np.float64(1.5),
        "bound": np.inf,
        "seconds": float("nan"),
        "seed": np.int64(3),
        "versions": {"blocc": "0"},
        "stages": np.array([1.0, 2.0]),
        "success": np.bool_(True),
        "remark": None,
    }
    written = output.write_outputs(tmp_path / "a" / "b", network, summary=summary, **answer)
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == set(written)

    design = pandas.read_csv(written["design.csv"])
    assert list(design) == ["link_id", "from_node", "to_node", "capacity", "flow", "price"]
    links = network.to_tables().links
    for column in ("link_id", "from_node", "to_node"):
        assert design[column].tolist() == links[column].tolist()
    np.testing.assert_array_equal(design["capacity"], answer["capacity"])
    np.testing.assert_array_equal(
        design["price"], answer["price"]
    )  # closed links: NaN on both sides
    shares = pandas.read_csv(written["shares.csv"])
    assert list(shares) == ["origin", "destination", "share", "trips", "path_cost"]
    np.testing.assert_array_equal(shares["share"], answer["share"])
    np.testing.assert_array_equal(shares["path_cost"], answer["path_cost"])

    assert json.loads(written["summary.json"].read_text()) == {
        "profit": 1.5,
        "bound": None,
        "seconds": None,
        "seed": 3,
        "versions": {"blocc": "0"},
        "stages": [1.0, 2.0],
        "success": True,
        "remark": None,
        "not_written": {"design.geojson": GEOJSON_REASON},
    }
    again = reference.evaluate_design(network, written["design.csv"])
    assert again.profit == reference.profit(network, answer["capacity"])


def test_tables_agree_with_the_files(tmp_path, network, answer):
    written = output.write_outputs(tmp_path, network, summary={}, **answer)
    design = output.design_table(network, answer["capacity"], answer["flow"], answer["price"])
    shares = output.shares_table(network, answer["share"], answer["path_cost"])
    pandas.testing.assert_frame_equal(design, pandas.read_csv(written["design.csv"]))
    pandas.testing.assert_frame_equal(shares, pandas.read_csv(written["shares.csv"]))


def test_an_interrupted_design_is_written_without_asking_the_passengers_again(
    tmp_path, network, answer, monkeypatch
):
    pytest.importorskip("plotly")

    def asked(*arguments):
        raise AssertionError("the passengers were asked again")

    monkeypatch.setattr("blocc.applications.transport.sensitivity.sensitivity", asked)
    summary = {"status": "interrupted"}
    written = output.write_outputs(tmp_path, network, summary=summary, **answer)
    assert "the search was interrupted" in written["report.html"].read_text()
    with pytest.raises(AssertionError, match="asked again"):
        output.write_outputs(tmp_path, network, summary={"status": "improved"}, **answer)


@pytest.mark.parametrize("name", ["capacity", "flow", "price", "share", "path_cost"])
def test_wrong_shape(tmp_path, network, answer, name):
    answer[name] = np.zeros(5)
    with pytest.raises(InvalidInputError, match=f"{name}: expected shape"):
        output.write_outputs(tmp_path, network, summary={}, **answer)


def _drawn(path):
    """Share of pixels that are neither white nor a grey."""
    pixels = image.imread(path)[:, :, :3]
    return float((np.ptp(pixels, axis=2) > 0.1).mean())


@pytest.mark.parametrize("name", networks.INSTANCES)
def test_map_shows_what_is_built(tmp_path, name):
    network = networks.load(name)
    m = len(network.link_id)
    capacity = np.zeros(m)
    empty = output.plot_map(network, capacity, capacity, tmp_path / "empty.png")
    capacity[0] = 1
    one = output.plot_map(network, capacity, 0.5 * capacity, tmp_path / "one.png")
    capacity[:] = 1
    full = output.plot_map(network, capacity, 0.5 * capacity, tmp_path / "full.png", profit=1.0)
    assert _drawn(empty) == 0
    assert 0 < _drawn(one) < _drawn(full)


def test_both_directions_are_drawn_beside_each_other():
    ends = np.array([[0.0, 0.0], [1.0, 0.0]])
    there = output.arrow(ends, 0.1, gap=0.01, stop=0.05)
    back = output.arrow(ends[::-1], 0.1, gap=0.01, stop=0.05)
    assert there[:, 1].max() < 0 < back[:, 1].min()
    assert there[:, 0].min() > 0
    assert there[:, 0].max() < 1


def test_longitudes_shrink_with_latitude():
    """At 60 degrees north a degree of longitude is half as long as one of latitude."""
    links = {
        "link_id": [1],
        "from_node": ["a"],
        "to_node": ["b"],
        "travel_time": [1],
        "capacity_cost": [1],
    }
    demand = {
        "origin": ["a"],
        "destination": ["b"],
        "trips": [1],
        "alternative_time": [1],
        "revenue": [1],
    }
    nodes = {"node": ["a", "b"], "longitude": [10, 12], "latitude": [60, 60]}
    points = output.projected(networks.from_tables(links, demand, nodes))
    assert np.ptp(points[:, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize("positions", [[0, 0, 0], [5, 5, 6]])
@pytest.mark.parametrize("labels", [["$x", "b$", "$\\frac$"], ["a" * 80, "é", "駅"]])
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_odd_stations_can_be_drawn(tmp_path, network, positions, labels):
    """Stations on one spot, and labels that a text engine might want to interpret."""
    links, demand, _ = network.to_tables()
    names = dict(zip(network.nodes, labels, strict=True))
    for table, columns in (
        (links, ["from_node", "to_node"]),
        (demand, ["origin", "destination"]),
    ):
        for column in columns:
            table[column] = table[column].map(names)
    nodes = {"node": labels, "x": positions, "y": positions}
    odd = networks.from_tables(links, demand, nodes, "$odd$ $")
    path = output.plot_map(odd, np.ones(6), np.ones(6), tmp_path / "map.png", profit=-1e-9)
    assert image.imread(path).size


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("matplotlib", "map.png", "plot"), ("plotly", "report.html", "transport")],
)
def test_a_missing_package_leaves_out_its_file_and_the_summary_has_the_pip_line(
    tmp_path, network, answer, monkeypatch, package, name, extra
):
    whole = output.write_outputs(tmp_path, network, summary={}, **answer)
    original = importlib.import_module

    def missing(wanted, *arguments):
        if wanted.startswith(package):
            raise ImportError(wanted)
        return original(wanted, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    written = output.write_outputs(tmp_path, network, summary={}, **answer)
    assert set(written) == set(whole) - {name}
    assert not (tmp_path / name).exists()  # that of an earlier design would be taken for this one's
    reason = json.loads(written["summary.json"].read_text())["not_written"][name]
    assert f"pip install 'blocc[{extra}]'" in reason


def test_unwritable_places(tmp_path, network, answer):
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(InvalidInputError, match="file"):
        output.write_outputs(occupied, network, summary={}, **answer)
    (tmp_path / "taken" / "design.csv").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match=r"taken.*design\.csv.*cannot be written"):
        output.write_outputs(tmp_path / "taken", network, summary={}, **answer)


# ---- GeoJSON --------------------------------------------------------------------------------------------------------


def position(value):
    longitude, latitude = value
    return -180 <= longitude <= 180 and -90 <= latitude <= 90


def check_geojson(text):
    """The rules of RFC 7946 that such a file can break, by hand; returns links and stations."""
    collection = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(collection) == {"type", "features"}  # no crs: section 4
    assert collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert set(feature) == {"type", "geometry", "properties"}
        assert feature["type"] == "Feature"
        geometry = feature["geometry"]
        if geometry["type"] == "LineString":
            assert len(geometry["coordinates"]) >= 2
            assert all(map(position, geometry["coordinates"]))
        else:
            assert geometry["type"] == "Point"
            assert position(geometry["coordinates"])
    kinds = ("LineString", "Point")
    return tuple(
        [f for f in collection["features"] if f["geometry"]["type"] == kind] for kind in kinds
    )


def test_geojson_holds_every_link_with_its_figures_longitude_first(tmp_path):
    seville = networks.load("seville")
    m = len(seville.link_id)
    capacity = np.where(np.arange(m) % 3 == 0, 0.0, 1.0 + np.arange(m))
    flow, price = 0.25 * capacity, np.full(m, np.nan)
    shares = np.zeros(len(seville.trips))
    written = output.write_outputs(
        tmp_path,
        seville,
        capacity=capacity,
        flow=flow,
        price=price,
        share=shares,
        path_cost=shares,
        summary={},
    )
    links, stations = check_geojson(written["design.geojson"].read_bytes())
    nodes = seville.to_tables().nodes.set_index("node")
    assert len(links) == m
    assert len(stations) == len(nodes)
    for i, feature in enumerate(links):
        properties = feature["properties"]
        ends = [properties["from_node"], properties["to_node"]]
        assert (
            feature["geometry"]["coordinates"]
            == nodes.loc[ends, ["longitude", "latitude"]].to_numpy().tolist()
        )
        assert properties["link_id"] == seville.link_id[i]
        assert properties["capacity"] == capacity[i]
        assert properties["flow"] == flow[i]
        assert properties["price"] is None
        assert properties["load"] == (0.25 if capacity[i] else None)


label = strategies.text(min_size=1, max_size=20).filter(
    lambda text: text == text.strip() and text.isprintable()
)


@given(labels=strategies.lists(label, min_size=3, max_size=3, unique=True))
@settings(max_examples=40, deadline=None)
def test_geojson_carries_any_label(labels):
    links, demand, _ = networks.load("three_node").to_tables()
    names = dict(zip([1, 2, 3], labels, strict=True))
    for table, columns in ((links, ["from_node", "to_node"]), (demand, ["origin", "destination"])):
        for column in columns:
            table[column] = table[column].map(names)
    nodes = {"node": labels, "longitude": [0.0, 10.0, 20.0], "latitude": [50.0, 51.0, -52.0]}
    named = networks.from_tables(links, demand, nodes)
    ones = np.ones(6)
    _, stations = check_geojson(output.geojson(named, output._design(named, ones, ones, ones)))
    assert [feature["properties"]["node"] for feature in stations] == list(named.nodes)
