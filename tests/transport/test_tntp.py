"""TNTP files: what is written is read back, and nothing malformed passes or crashes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocc.applications import transport
from blocc.errors import InvalidInputError

from .test_roads import SHARED, tables, tntp


def write_tntp(roads: transport.RoadNetwork, directory, first: int, coordinates: bool = False):
    """Write a network whose nodes are numbered from 1 as TNTP files; return their texts by name."""
    number = {node: i + 1 for i, node in enumerate(roads.nodes)}
    count = len(roads.nodes)
    links = zip(
        roads.tail,
        roads.head,
        roads.capacity,
        roads.length,
        roads.free_flow_time,
        roads.b,
        roads.power,
        roads.toll,
        strict=True,
    )
    texts = {}
    texts["net"] = (
        f"<NUMBER OF ZONES> {count}\n<NUMBER OF NODES> {count}\n<FIRST THRU NODE> {first}\n"
        f"<NUMBER OF LINKS> {len(roads.tail)}\n<END OF METADATA>\n\n\n"
        "~ \tinit_node\tterm_node\tcapacity\tlength\tfree_flow_time\tb\tpower\tspeed\ttoll\tlink_type\t;\n"
    )
    for tail, head, capacity, length, time, b, power, toll in links:
        texts["net"] += (
            f"\t{tail + 1}\t{head + 1}\t{capacity}\t{length}\t{time}\t{b}\t{power}\t0\t{toll}\t1\t;\n"
        )
    texts["trips"] = (
        f"<NUMBER OF ZONES> {count}\n<TOTAL OD FLOW> {roads.trips.sum()}\n<END OF METADATA>\n\n"
    )
    for origin in np.unique(roads.origin):
        texts["trips"] += f"\nOrigin \t{origin + 1}\n"
        where = np.flatnonzero(roads.origin == origin)
        for start in range(0, len(where), 5):
            entries = (
                f"{roads.destination[i] + 1:5d} : {roads.trips[i]!r};"
                for i in where[start : start + 5].tolist()
            )
            texts["trips"] += " ".join(entries).replace("np.float64(", "").replace(")", "") + "\n"
    if coordinates:
        texts["node"] = "Node\tX\tY\t;\n" + "".join(
            f"{number[node]}\t{x}\t{y}\t;\n"
            for node, (x, y) in zip(roads.nodes, roads.positions.tolist(), strict=True)
        )
    if roads.volume is not None:
        texts["flow"] = "From \tTo \tVolume \tCost \n" + "".join(
            f"{tail + 1} \t{head + 1} \t{volume} \t0.0 \n"
            for tail, head, volume in zip(roads.tail, roads.head, roads.volume, strict=True)
        )
    for part, text in texts.items():
        (directory / f"case_{part}.tntp").write_text(text)
    return texts


def read(directory, **options):
    parts = {
        part: directory / f"case_{part}.tntp"
        for part in ("net", "trips", "node", "flow")
        if (directory / f"case_{part}.tntp").exists()
    }
    return transport.read_tntp(**parts, **options)


def same(one: transport.RoadNetwork, other: transport.RoadNetwork) -> bool:
    names = ("tail", "head", "capacity", "length", "free_flow_time", "b", "power", "toll")
    pairs = [
        sorted(zip(r.origin.tolist(), r.destination.tolist(), r.trips.tolist(), strict=True))
        for r in (one, other)
    ]
    return pairs[0] == pairs[1] and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in names
    )


def random_roads(seed: int) -> transport.RoadNetwork:
    rng = np.random.default_rng(seed)
    count, m = int(rng.integers(2, 7)), int(rng.integers(1, 12))
    tail = rng.integers(0, count, m)
    head = (tail + rng.integers(1, count, m)) % count
    pairs = rng.permutation([(i, j) for i in range(count) for j in range(count) if i != j])
    pairs = pairs[: int(rng.integers(1, len(pairs) + 1))]
    size = lambda k: rng.uniform(0, 1, k) * 10.0 ** rng.integers(-3, 6, k)  # noqa: E731
    return transport.RoadNetwork(
        name="case",
        nodes=tuple(range(1, count + 1)),
        through=np.ones(count, dtype=bool),
        positions=rng.normal(size=(count, 2)),
        geographic=False,
        link_id=tuple(range(1, m + 1)),
        tail=tail,
        head=head,
        capacity=size(m) + 1e-3,
        free_flow_time=size(m),
        b=size(m),
        power=rng.choice([0.0, 1.0, 4.0], m),
        length=size(m),
        toll=size(m),
        origin=pairs[:, 0],
        destination=pairs[:, 1],
        trips=size(len(pairs)) + 1e-3,
    )


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6))
def test_any_network_is_read_back_exactly(seed, tmp_path):
    roads = random_roads(seed)
    write_tntp(roads, tmp_path, first=1, coordinates=True)
    back = read(tmp_path)
    assert same(roads, back)
    assert np.array_equal(back.positions, roads.positions)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_corrupted_files_are_read_or_refused_in_one_line_but_never_crash(data, tmp_path):
    roads = random_roads(data.draw(st.integers(0, 50)))
    write_tntp(roads, tmp_path, first=1, coordinates=True)
    part = data.draw(st.sampled_from(["net", "trips", "node"]))
    path = tmp_path / f"case_{part}.tntp"
    raw = path.read_bytes()
    where = data.draw(st.integers(0, len(raw)))
    kind = data.draw(st.sampled_from(["truncate", "insert", "delete", "overwrite"]))
    junk = data.draw(
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from(
                [b"nan", b"inf", b"-", b"e999", b"\n", b";", b"\x00", b"<", b"99999999"]
            ),
        )
    )
    length = data.draw(st.integers(1, 40))
    path.write_bytes(
        {
            "truncate": raw[:where],
            "insert": raw[:where] + junk + raw[where:],
            "delete": raw[:where] + raw[where + length :],
            "overwrite": raw[:where] + junk + raw[where + len(junk) :],
        }[kind]
    )
    message = ""
    try:
        read(tmp_path)
    except InvalidInputError as error:
        message = str(error)
    assert "\n" not in message


CASES = {
    "truncated table": ("net", lambda t: t[: t.rindex("\t1\t;")], "line 12", "end with one ';'"),
    "a link lost": ("net", lambda t: t[: t.rindex("\t3\t4")], "line 11", "NUMBER OF LINKS"),
    "metadata cut": ("net", lambda t: t[:40], "line 2", "END OF METADATA"),
    "tag missing": (
        "net",
        lambda t: t.replace("<FIRST THRU NODE> 1\n", ""),
        "line 1",
        "FIRST THRU",
    ),
    "tag twice": (
        "net",
        lambda t: "<NUMBER OF NODES> 4\n" + t,
        "line 3",
        "already given in line 1",
    ),
    "count not whole": ("net", lambda t: t.replace("LINKS> 4", "LINKS> four"), "line 4", "'four'"),
    "capacity NaN": ("net", lambda t: t.replace("\t10.0\t", "\tnan\t", 1), "line 9", "capacity"),
    "power negative": ("net", lambda t: t.replace("\t4.0\t", "\t-4.0\t", 1), "line 9", "power"),
    "unknown node": ("net", lambda t: t.replace("\t3\t4\t", "\t3\t5\t"), "line 12", "from 1 to 4"),
    "few columns": ("net", lambda t: t + "1 2 3 ;\n", "line 13", "3 columns"),
    "a toll lost": ("net", lambda t: t.replace("\t0\t0.0\t1\t;", "\t;", 1), "line 9", "no toll"),
    "binary": ("net", lambda t: t[:60] + "\udcff\udcfe", "line 4", "UTF-8"),
    "zones differ": ("trips", lambda t: t.replace("ZONES> 4", "ZONES> 9"), "line 1", "net file 4"),
    "sum differs": ("trips", lambda t: t.replace(": 5.0", ": 4.0"), "line 10", "TOTAL OD FLOW"),
    "entry cut": ("trips", lambda t: t.rstrip()[:-1], "line 10", "end with ';'"),
    "no origin": ("trips", lambda t: t.replace("Origin \t1\n", ""), "line 6", "before the first"),
    "no colon": ("trips", lambda t: t.replace("4 : 5.0", "4 5.0"), "line 7", "destination : trips"),
    "trips text": ("trips", lambda t: t.replace(": 5.0", ": many"), "line 7", "'many'"),
    "pair twice": (
        "trips",
        lambda t: t.replace("2 : 1.0;", "4 : 1.0;"),
        "line 7",
        "already given in line 7",
    ),
    "node lost": ("node", lambda t: t[: t.rindex("4\t")], "line 4", "node 4 has no coordinates"),
    "x infinite": ("node", lambda t: t.replace("2\t1.0", "2\tinf"), "line 3", "'inf'"),
    "flow of no link": ("flow", lambda t: t.replace("3 \t4", "4 \t3"), "line 5", "no link"),
    "flow lost": ("flow", lambda t: t[: t.rindex("3 \t4")], "line 4", "1 links have no flow"),
    "no volume": ("flow", lambda t: t.replace("Volume", "Vol"), "line 1", "'volume'"),
}


@pytest.mark.parametrize("case", CASES)
def test_malformed_files_are_refused_by_file_and_line(case, tmp_path):
    part, damage, line, fragment = CASES[case]
    links, demand, nodes = tables()
    demand = {"origin": [1, 1, 2], "destination": [4, 2, 4], "trips": [5.0, 1.0, 2.0]}
    roads = transport.roads_from_tables(links, demand, nodes)
    object.__setattr__(roads, "volume", np.arange(4.0))
    texts = write_tntp(roads, tmp_path, first=1, coordinates=True)
    assert read(tmp_path).volume.tolist() == [0.0, 1.0, 2.0, 3.0]
    damaged = damage(texts[part])
    assert damaged != texts[part]
    path = tmp_path / f"case_{part}.tntp"
    path.write_bytes(damaged.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert f"{line}:" in message or f"{line}," in message
    assert fragment in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match="no_net"):
        transport.read_tntp(tmp_path / "no_net.tntp", tmp_path / "no_trips.tntp")


def test_metadata_state_the_factors_and_arguments_override_them(tmp_path):
    texts = write_tntp(random_roads(3), tmp_path, first=1)
    (tmp_path / "case_net.tntp").write_text("<DISTANCE FACTOR> 0.04\n" + texts["net"])
    assert read(tmp_path).distance_factor == 0.04
    assert read(tmp_path, distance_factor=0.5).distance_factor == 0.5
    assert transport.load_roads(tmp_path).distance_factor == 0.04
    assert transport.load_roads(tmp_path, distance_factor=0.0).distance_factor == 0.0


def test_a_first_through_node_beside_the_files_own_is_refused(tmp_path):
    write_tntp(random_roads(3), tmp_path, first=1)
    with pytest.raises(InvalidInputError, match=r"case_net\.tntp states its own first through"):
        transport.load_roads(tmp_path, first_through_node=3)


def test_tntp_files_become_a_transit_network(tmp_path):
    roads = transport.roads_from_tables(*tables())
    write_tntp(roads, tmp_path, first=3)
    network = transport.from_tntp(
        tmp_path / "case_net.tntp", tmp_path / "case_trips.tntp", fare=2.0
    )
    assert "2 arrivals" in network.nodes
    assert set(network.revenue) == {2.0}


@pytest.mark.parametrize("name", ["SiouxFalls", "Anaheim", "Barcelona"])
def test_a_directory_of_tntp_files_is_the_network_of_the_tables(name, tmp_path):
    roads = tntp(name)
    facts = json.loads((SHARED / "MANIFEST.json").read_text())["files"][name]
    write_tntp(roads, tmp_path, first=facts["first_thru_node"])
    back = transport.load_roads(tmp_path)
    assert same(roads, back)
    assert np.array_equal(back.through, roads.through)
