"""Tables, summary and map: what they hold, and what happens where they cannot be written."""

from __future__ import annotations

import builtins
import json
import os

import numpy as np
import pandas
import pytest
from matplotlib import image

from blocc.applications.transport import network as networks
from blocc.applications.transport import output, reference
from blocc.errors import InvalidInputError


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
    }
    again = reference.evaluate_design(network, written["design.csv"])
    assert again.profit == reference.profit(network, answer["capacity"])


def test_tables_agree_with_the_files(tmp_path, network, answer):
    written = output.write_outputs(tmp_path, network, summary={}, **answer)
    design = output.design_table(network, answer["capacity"], answer["flow"], answer["price"])
    shares = output.shares_table(network, answer["share"], answer["path_cost"])
    pandas.testing.assert_frame_equal(design, pandas.read_csv(written["design.csv"]))
    pandas.testing.assert_frame_equal(shares, pandas.read_csv(written["shares.csv"]))


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
    there = output._arrow(ends, 0.1, gap=0.01, stop=0.05)
    back = output._arrow(ends[::-1], 0.1, gap=0.01, stop=0.05)
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
    points = output._projected(networks.from_tables(links, demand, nodes))
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


def test_no_matplotlib_leaves_out_the_map(tmp_path, network, answer, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    def missing(name, *arguments):
        return without(name)

    monkeypatch.setattr("importlib.import_module", missing)
    written = output.write_outputs(tmp_path, network, summary={}, **answer)
    assert set(written) == {"design.csv", "shares.csv", "summary.json"}


def test_unwritable_places(tmp_path, network, answer):
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(InvalidInputError, match="file"):
        output.write_outputs(occupied, network, summary={}, **answer)
    (tmp_path / "taken" / "design.csv").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match=r"taken.*design\.csv.*cannot be written"):
        output.write_outputs(tmp_path / "taken", network, summary={}, **answer)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory(tmp_path, network, answer):
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidInputError, match="Permission denied"):
        output.write_outputs(tmp_path, network, summary={}, **answer)
