"""Tables in and out: exact round trips, shipped data as documented, and every way to be wrong."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib
import importlib.resources
import re

import networkx
import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocc.applications.transport import network as networks
from blocc.applications.transport.network import Network
from blocc.errors import InvalidInputError, MissingDependencyError

DATA = importlib.resources.files("blocc.data")
FILES = ("links.csv", "demand.csv", "nodes.csv")


def same(one: Network, other: Network) -> None:
    """Equal to the last bit."""
    for field in dataclasses.fields(Network):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
            assert a.dtype == b.dtype
        else:
            assert a == b, field.name


@pytest.fixture
def tables():
    links, demand, nodes = networks.load("three_node").to_tables()
    return {"links": links, "demand": demand, "nodes": nodes}


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "city"
    networks.load("three_node").save(directory)
    return directory


# shipped data


@pytest.mark.parametrize("name", networks.INSTANCES)
def test_checksums_in_the_readme(name):
    text = (DATA / "README.md").read_text()
    for file in FILES:
        digest = hashlib.sha256((DATA / "transit" / name / file).read_bytes()).hexdigest()
        assert re.search(rf"`transit/{name}/{file}` *\| *`{digest}`", text)


@pytest.mark.parametrize(
    ("name", "nodes", "links", "pairs", "geographic"),
    [
        ("three_node", 3, 6, 6, False),
        ("nine_node", 9, 30, 72, False),
        ("seville", 24, 88, 552, True),
    ],
)
def test_shipped_instances(name, nodes, links, pairs, geographic):
    network = networks.load(name)
    assert (len(network.nodes), len(network.link_id), len(network.trips)) == (nodes, links, pairs)
    assert network.geographic is geographic
    assert network.name == name
    assert network.notes == ()
    assert (network.population is not None) == geographic
    # every row lands in its own place, compared with pandas' reading of the file
    with importlib.resources.as_file(DATA / "transit" / name) as directory:
        frame = pandas.read_csv(directory / "links.csv")
        assert [network.nodes[i] for i in network.tail] == frame["from_node"].tolist()
        assert [network.nodes[i] for i in network.head] == frame["to_node"].tolist()
        for column in ("travel_time", "capacity_cost"):
            assert getattr(network, column).tolist() == frame[column].tolist()
        frame = pandas.read_csv(directory / "demand.csv")
        assert [network.nodes[i] for i in network.origin] == frame["origin"].tolist()
        assert [network.nodes[i] for i in network.destination] == frame["destination"].tolist()
        for column in ("trips", "alternative_time", "revenue"):
            assert getattr(network, column).tolist() == frame[column].tolist()


def haversine(network, one, other):
    """Kilometres on a sphere of 6371 km."""
    longitude, latitude = np.radians(network.positions).T
    a = np.sin((latitude[one] - latitude[other]) / 2) ** 2
    b = np.cos(latitude[one]) * np.cos(latitude[other])
    b = b * np.sin((longitude[one] - longitude[other]) / 2) ** 2
    return 2 * 6371 * np.arcsin(np.sqrt(a + b))


def test_seville_is_derived_from_its_coordinates():
    """As data/README.md says; coordinates and columns are given to 10 digits."""
    network = networks.load("seville")
    km = haversine(network, network.tail, network.head)
    minutes = 60 * km / 30
    np.testing.assert_allclose(network.travel_time, 0.25 * minutes, rtol=1e-6)
    assert minutes.max() <= 7
    np.testing.assert_allclose(network.capacity_cost, 1e6 * km / (365.25 * 25) / 200, rtol=1e-6)
    ratio = network.capacity_cost / network.travel_time
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-8)
    # alternative: the direct distance, for some pairs 20 % longer
    direct = 0.25 * 60 * haversine(network, network.origin, network.destination) / 30
    longer = network.alternative_time / direct
    plain = np.isclose(longer, 1, rtol=1e-6)
    assert (plain | np.isclose(longer, 1.2, rtol=1e-6)).all()
    assert 0.3 < 1 - plain.mean() < 0.5
    assert network.revenue.min() >= 0.25
    links = {(int(a), int(b)) for a, b in zip(network.tail, network.head, strict=True)}
    assert links == {(b, a) for a, b in links}


# round trips


@pytest.mark.parametrize("name", networks.INSTANCES)
def test_round_trips_are_exact(tmp_path, name):
    network = networks.load(name)
    network.save(tmp_path / name)
    same(networks.load(tmp_path / name), network)
    same(networks.from_tables(*network.to_tables(), name=name), network)
    same(networks.from_networkx(network.to_networkx()), network)


finite = st.floats(0, 1e12)


@st.composite
def cities(draw):
    texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=6)
    labels = draw(
        st.one_of(
            st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True),
            st.lists(texts, min_size=2, max_size=6, unique=True),
        )
    )
    pairs = [(a, b) for a in labels for b in labels if a != b]
    chosen = st.lists(st.sampled_from(pairs), min_size=1, max_size=8, unique=True)
    links, demand = draw(chosen), draw(chosen)

    def numbers(count, values=finite):
        return draw(st.lists(values, min_size=count, max_size=count))

    return (
        {
            "link_id": list(range(len(links))),
            "from_node": [a for a, _ in links],
            "to_node": [b for _, b in links],
            "travel_time": numbers(len(links)),
            "capacity_cost": numbers(len(links)),
        },
        {
            "origin": [a for a, _ in demand],
            "destination": [b for _, b in demand],
            "trips": numbers(len(demand)),
            "alternative_time": numbers(len(demand)),
            "revenue": numbers(len(demand), st.floats(-1e12, 1e12)),
        },
        {
            "node": labels,
            "x": numbers(len(labels), st.floats(-1e12, 1e12)),
            "y": numbers(len(labels), st.floats(-1e12, 1e12)),
        },
    )


@settings(deadline=None, max_examples=60)
@given(city=cities())
def test_any_city_survives_save_and_load(tmp_path_factory, city):
    directory = tmp_path_factory.mktemp("city")
    network = networks.from_tables(*city, name=directory.name)
    network.save(directory)
    same(networks.load(directory), network)
    graph = network.to_networkx()
    links, demand, nodes = networks.from_networkx(graph).to_tables()
    before = network.to_tables()
    links = links.sort_values("link_id", ignore_index=True)  # networkx groups edges by tail
    for frame, expected in zip((links, demand, nodes), before, strict=True):
        pandas.testing.assert_frame_equal(frame, expected, check_exact=True)


def test_labels_of_one_type():
    links, demand, nodes = networks.load("three_node").to_tables()
    for table in (links, demand, nodes):
        for column in {"from_node", "to_node", "origin", "destination", "node"} & set(table):
            table[column] = table[column].map({1: "01", 2: "2", 3: "x,y"})
    assert networks.from_tables(links, demand, nodes).nodes == ("01", "2", "x,y")
    # as pandas reads integer columns with a gap in another row, and as text
    links, demand, nodes = networks.load("three_node").to_tables()
    links["from_node"] = links["from_node"].astype(float)
    demand["origin"] = demand["origin"].astype(str)
    assert networks.from_tables(links, demand, nodes).nodes == (1, 2, 3)


def test_without_nodes_a_layout_is_drawn(folder, tables):
    (folder / "nodes.csv").unlink()
    network, again = networks.load(folder), networks.load(folder)
    same(network, again)
    assert not network.geographic
    assert network.nodes == (1, 2, 3)
    assert len(np.unique(network.positions, axis=0)) == 3
    bare = networks.from_tables(tables["links"], tables["demand"], tables["nodes"][["node"]])
    assert len(np.unique(bare.positions, axis=0)) == 3


def test_undirected_graph_gives_both_directions(tables):
    graph = networkx.Graph()
    graph.add_edge("a", "b", travel_time=2, capacity_cost=3)
    demand = {
        "origin": ["a"],
        "destination": ["b"],
        "trips": [1],
        "alternative_time": [1],
        "revenue": [1],
    }
    network = networks.from_networkx(graph, demand)
    ends = {
        (network.nodes[a], network.nodes[b])
        for a, b in zip(network.tail, network.head, strict=True)
    }
    assert ends == {("a", "b"), ("b", "a")}
    assert network.travel_time.tolist() == [2, 2]


def test_spreadsheet_leftovers_are_read_over(folder):
    path = folder / "links.csv"
    lines = path.read_text().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ",,,,", ""]).encode())
    same(networks.load(folder), dataclasses.replace(networks.load("three_node"), name="city"))


def test_arrays_are_read_only():
    network = networks.load("three_node")
    with pytest.raises(ValueError, match="read-only"):
        network.trips[0] = 1


# notes: legal, and said


def test_notes(tables):
    nodes = pandas.concat(
        [tables["nodes"], pandas.DataFrame({"node": [4], "x": [0], "y": [9]})], ignore_index=True
    )
    demand = tables["demand"]
    demand.loc[len(demand)] = [1, 4, 1.0, 1.0, 1.0]
    demand.loc[0, "trips"] = 0
    network = networks.from_tables(tables["links"], demand, nodes)
    assert network.has_route.tolist() == [True] * 6 + [False]
    route, isolated, zero = network.notes
    assert "1 of 7 OD pairs have no route" in route
    assert "1 -> 4" in route
    assert isolated.endswith(": 4")
    assert "1 of 7 OD pairs have zero trips" in zero
    demand["trips"] = 0
    assert "build nothing" in networks.from_tables(tables["links"], demand, nodes).notes[-1]


def test_one_way_links_do_not_make_routes_back(tables):
    network = networks.from_tables(tables["links"].iloc[:1], tables["demand"])
    expected = [
        network.nodes[o] == 1 and network.nodes[d] == 2
        for o, d in zip(network.origin, network.destination, strict=True)
    ]
    assert network.has_route.tolist() == expected


# bad input: file, line, column and remedy in one error


def edit(folder, file, line, column, text):
    """Replace one cell; line counts from 1 with the header."""
    path = folder / file
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))
    rows[line - 1][rows[0].index(column)] = text
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


BAD_CELLS = [
    ("links.csv", 3, "travel_time", "-1", "below 0"),
    ("links.csv", 3, "travel_time", "fast", "not a number"),
    ("links.csv", 3, "travel_time", "", "is empty"),
    ("links.csv", 2, "capacity_cost", "nan", "not a number"),
    ("links.csv", 2, "capacity_cost", "-0.5", "below 0"),
    ("links.csv", 2, "capacity_cost", "inf", "not a number"),
    ("links.csv", 2, "capacity_cost", "1e300", "above"),
    ("links.csv", 2, "capacity_cost", "1_0", "not a number"),
    ("links.csv", 4, "from_node", "9", "is not in"),
    ("links.csv", 4, "from_node", " ", "not a label"),
    ("links.csv", 4, "to_node", "2", "to itself"),
    ("links.csv", 5, "to_node", "1", "already given in line 4"),
    ("links.csv", 5, "link_id", "1", "already given in line 2"),
    ("demand.csv", 2, "trips", "-3", "below 0"),
    ("demand.csv", 2, "trips", "NaN", "not a number"),
    ("demand.csv", 2, "alternative_time", "-3", "below 0"),
    ("demand.csv", 2, "revenue", "much", "not a number"),
    ("demand.csv", 7, "origin", "Rome", "is not in"),
    ("demand.csv", 7, "destination", "3", "are both"),
    ("demand.csv", 3, "destination", "2", "already given in line 2"),
    ("nodes.csv", 3, "node", "1", "already given in line 2"),
    ("nodes.csv", 3, "x", "east", "not a number"),
]


@pytest.mark.parametrize(("file", "line", "column", "text", "message"), BAD_CELLS)
def test_bad_cells(folder, file, line, column, text, message):
    edit(folder, file, line, column, text)
    with pytest.raises(InvalidInputError) as raised:
        networks.load(folder)
    error = str(raised.value)
    where = (
        "destination" if message == "already given in line 2" and file == "demand.csv" else column
    )
    where = "to_node" if message == "already given in line 4" else where
    assert error.startswith(f"{folder / file}, line {line}, column {where!r}: ")
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("file", FILES)
def test_missing_columns_are_named(folder, file):
    path = folder / file
    header, rest = path.read_text().split("\n", 1)
    for column in header.split(","):
        path.write_text(header.replace(column, "other", 1) + "\n" + rest)
        with pytest.raises(InvalidInputError, match=f"{file}: .*column") as raised:
            networks.load(folder)
        assert column in str(raised.value)


@pytest.mark.parametrize("file", ["links.csv", "demand.csv"])
def test_missing_file(folder, file):
    (folder / file).unlink()
    with pytest.raises(InvalidInputError, match=f"{file}: the file is missing"):
        networks.load(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"", "column .* is missing"),
        (lambda raw: raw.split(b"\n")[0], "the table is empty"),
        (lambda raw: raw.replace(b"\n", b"\n\xff", 3), "line 2: not UTF-8"),
        (lambda raw: raw.replace(b",", b";"), "comma-separated"),
        (lambda raw: raw + b"1,2\n", r"line \d+: 2 cells"),
        (lambda raw: raw + b'"1,2,3\n', "not valid CSV"),
        (lambda raw: b"x," + raw.split(b"\n")[0] + b",x\n" + raw.split(b"\n", 1)[1], "twice"),
    ],
)
def test_broken_files(folder, file, change, message):
    path = folder / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InvalidInputError, match=f"{file}.*{message}"):
        networks.load(folder)


def test_file_that_is_a_directory(folder):
    (folder / "links.csv").unlink()
    (folder / "links.csv").mkdir()
    with pytest.raises(InvalidInputError, match=r"links\.csv: cannot be read"):
        networks.load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sevilla", "Did you mean 'seville'"),
        ("/no/such/place", "neither a shipped instance nor a directory"),
        ("", "Shipped instances"),
        ("sioux_falls", "It is a road network"),
        ("a\0b", "neither"),
        ("x" * 5000, "neither"),
    ],
)
def test_unknown_instance(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=message):
        networks.load(name)


def test_file_instead_of_directory(folder):
    with pytest.raises(InvalidInputError, match="is a file; give the directory"):
        networks.load(folder / "links.csv")


def test_coordinates_out_of_range(folder):
    text = (folder / "nodes.csv").read_text().replace("x,y", "latitude,longitude")
    (folder / "nodes.csv").write_text(text.replace("1,0.0,0.0", "1,200.0,0.0"))
    with pytest.raises(InvalidInputError, match="line 2, column 'latitude': 200 is above 90"):
        networks.load(folder)


@pytest.mark.parametrize("bad", [None, 3, [1, 2], "links.csv"])
def test_not_a_table(tables, bad):
    with pytest.raises(InvalidInputError, match="links table: expected a DataFrame"):
        networks.from_tables(bad, tables["demand"])


@pytest.mark.parametrize(
    "cell", [None, pandas.NA, pandas.NaT, True, 1 + 2j, [1], b"1", 10**400, float("nan"), object()]
)
def test_cells_of_odd_types(tables, cell):
    links = {column: list(tables["links"][column]) for column in tables["links"]}
    links["travel_time"][1] = cell
    with pytest.raises(InvalidInputError, match="links table, row 2, column 'travel_time'"):
        networks.from_tables(links, tables["demand"])
    links["travel_time"][1], links["from_node"][1] = 1.0, cell
    with pytest.raises(InvalidInputError, match="links table, row 2, column 'from_node'"):
        networks.from_tables(links, tables["demand"])


def test_empty_cells_of_limits_may_be_what_pandas_has_there(tables):
    import pandas

    links = tables["links"].assign(maximum=pandas.array([3] + [None] * 5, dtype="Int64"))
    network = networks.from_tables(links, tables["demand"], tables["nodes"])
    np.testing.assert_array_equal(network.maximum, [3.0] + [np.nan] * 5)


def test_a_column_that_is_no_sequence_is_named(tables):
    with pytest.raises(InvalidInputError, match="column 'origin' is 3, not a sequence of cells"):
        networks.from_tables(tables["links"], {"origin": 3})


def test_a_graph_where_only_some_nodes_have_a_place_is_refused(tables):
    graph = networks.from_tables(**tables).to_networkx()
    del graph.nodes[2]["x"]
    with pytest.raises(InvalidInputError, match="row 2, column 'x': the cell is empty"):
        networks.from_networkx(graph)
    with pytest.raises(InvalidInputError, match="expected a networkx graph, got dict"):
        networks.from_networkx({})


def test_edge_without_attribute():
    graph = networkx.DiGraph([(1, 2)])
    with pytest.raises(InvalidInputError, match="no attribute 'travel_time'"):
        networks.from_networkx(graph, {})
    with pytest.raises(InvalidInputError, match="no demand given"):
        networks.from_networkx(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trips": [1, 2]}, "trips: expected shape"),
        ({"trips": [-1] * 6}, "trips: every entry"),
        ({"travel_time": [np.nan] * 6}, "travel_time: every entry"),
        ({"tail": [7] * 6}, "tail: every entry"),
        ({"nodes": ()}, "is empty"),
        ({"positions": np.full((3, 2), np.inf)}, "positions"),
    ],
)
def test_direct_construction_is_checked(change, message):
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(networks.load("three_node"), **change)


def test_missing_packages_are_named(tables, monkeypatch):
    original = importlib.import_module

    def absent(name, *arguments):
        if name in ("pandas", "networkx"):
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr("importlib.import_module", absent)
    network = networks.load("seville")  # files need neither package
    with pytest.raises(MissingDependencyError, match=r"pandas.*blocc\[transport\]"):
        network.to_tables()
    with pytest.raises(MissingDependencyError, match=r"networkx.*blocc\[transport\]"):
        network.to_networkx()


# whatever the corruption: an InvalidInputError or a sound network


@st.composite
def corruptions(draw):
    file = draw(st.sampled_from(FILES))
    kind = draw(st.sampled_from(["cell", "bytes", "cut", "repeat", "swap"]))
    place = draw(st.integers(0, 10**6))
    cell = draw(
        st.one_of(
            st.sampled_from(
                ["", "-1", "nan", "1e999", "0x1", "1", "2", "9", "-0", "1_0", '"', "a,b"]
            ),
            st.text(max_size=8),
        )
    )
    raw = draw(st.binary(max_size=6))
    return file, kind, place, cell, raw


def corrupt(content, kind, place, cell, raw):
    lines = content.split(b"\n")
    at = place % len(lines)
    if kind == "bytes":
        position = place % (len(content) + 1)
        return content[:position] + raw + content[position + len(raw) // 2 :]
    if kind == "cut":
        return content[: place % (len(content) + 1)]
    if kind == "repeat":
        return b"\n".join([*lines[:at], lines[at], *lines[at:]])
    if kind == "swap":
        return b"\n".join([*lines[:at], *reversed(lines[at:])])
    cells = lines[at].split(b",")
    cells[place % len(cells)] = cell.encode("utf-8", "surrogatepass")
    return b"\n".join([*lines[:at], b",".join(cells), *lines[at + 1 :]])


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(corruptions(), min_size=1, max_size=3))
def test_corrupt_files_never_surprise(folder, changes):
    networks.load("three_node").save(folder)
    for file, *change in changes:
        path = folder / file
        path.write_bytes(corrupt(path.read_bytes(), *change))
    try:
        network = networks.load(folder)
    except InvalidInputError as error:
        message = str(error)
        network = None
    if network is None:
        assert any(file in message for file in FILES)
        assert "\n" not in message
        return
    # sound: everything the solvers rely on, checked here anew
    n = len(network.nodes)
    assert len(set(network.nodes)) == n
    assert len(set(network.link_id)) == len(network.link_id)
    for one, other in ((network.tail, network.head), (network.origin, network.destination)):
        pairs = list(zip(one.tolist(), other.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs) > 0
        assert all(a != b and 0 <= a < n and 0 <= b < n for a, b in pairs)
    for values in (network.travel_time, network.capacity_cost, network.trips):
        assert (values >= 0).all()
        assert (values <= 1e15).all()
    assert np.isfinite(network.revenue).all()
    assert np.isfinite(network.positions).all()
    assert all(isinstance(note, str) for note in network.notes)
    network.save(folder)
    same(networks.load(folder), network)
