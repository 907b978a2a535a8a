"""Fetching from a server on this machine: checksums, a missing network, what is kept."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import socket
import sys
import threading

import pytest

from blocc.applications import transport
from blocc.applications.transport import fetch as fetching
from blocc.cli import main
from blocc.errors import InvalidInputError

from .test_roads import SHARED, tables
from .test_tntp import write_tntp


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A mirror with one small network under the name SiouxFalls; yields its address."""
    pytest.importorskip("pooch")
    folder = tmp_path / "mirror" / "SiouxFalls"
    folder.mkdir(parents=True)
    texts = write_tntp(transport.roads_from_tables(*tables()), folder, first=1)
    digests = {}
    for part, text in texts.items():
        (folder / f"case_{part}.tntp").rename(folder / f"SiouxFalls_{part}.tntp")
        digests[part] = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setitem(fetching.NETWORKS, "SiouxFalls", ("SiouxFalls", digests))
    handler = functools.partial(Quiet, directory=str(tmp_path / "mirror"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_fetched_network_can_be_loaded_and_is_not_fetched_twice(server, tmp_path):
    out = tmp_path / "out"
    files = fetching.fetch("SiouxFalls", out, base_url=server)
    assert sorted(files) == ["net", "trips"]
    assert len(transport.load_roads(out).link_id) == 4
    again = fetching.fetch("SiouxFalls", out, base_url="http://127.0.0.1:9")  # nobody listens there
    assert again == files


def test_a_wrong_checksum_is_refused_and_nothing_kept(server, tmp_path):
    served = tmp_path / "mirror" / "SiouxFalls" / "SiouxFalls_net.tntp"
    served.write_text(served.read_text() + "~ altered\n")
    with pytest.raises(InvalidInputError, match="sha256") as caught:
        fetching.fetch("SiouxFalls", tmp_path / "out", base_url=server)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.tntp"))


def test_without_a_network_the_error_says_what_to_do(tmp_path):
    pytest.importorskip("pooch")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InvalidInputError, match="by hand") as caught:
        fetching.fetch("Anaheim", tmp_path, base_url=f"http://127.0.0.1:{port}")
    assert "\n" not in str(caught.value)


def test_a_file_that_the_server_lacks_is_named(server, tmp_path):
    with pytest.raises(InvalidInputError, match="Anaheim_net"):
        fetching.fetch("Anaheim", tmp_path / "out", base_url=server)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(InvalidInputError, match="SiouxFalls, Anaheim"):
        fetching.fetch("Springfield", tmp_path)


def test_pinned_checksums_are_those_of_the_shared_manifest():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: the TNTP data is not ours to ship")
    facts = json.loads((SHARED / "MANIFEST.json").read_text())
    assert facts["commit"] == fetching.COMMIT
    for name, (_, digests) in fetching.NETWORKS.items():
        stated = facts["files"][name]["src_sha256"]
        assert {f"{name}_{part}.tntp": digest for part, digest in digests.items()} == stated


def command(monkeypatch, *arguments) -> int:
    """Exit code of ``blocc transport ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["blocc", "transport", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_commands_fetch_solve_and_expand(server, tmp_path, monkeypatch, capsys):
    out = tmp_path / "net"
    fetched = ("fetch", "SiouxFalls", "--out", out, "--base-url", server)
    assert command(monkeypatch, *fetched) == 0
    assert "academic research" in capsys.readouterr().err
    assert command(monkeypatch, "equilibrium", out, "--out", tmp_path / "eq", "--json") == 0
    assert json.loads(capsys.readouterr().out)["gap"] <= 1e-8
    assert {p.name for p in (tmp_path / "eq").iterdir()} == {
        "links.csv",
        "pairs.csv",
        "summary.json",
    }
    assert command(monkeypatch, "expand", out, "--out", tmp_path / "plan") == 2
    assert "no link can be expanded" in capsys.readouterr().err
    plan = ("expand", "harker_friesz_1", "--exponent", "1", "--out", tmp_path / "plan")
    assert command(monkeypatch, *plan) == 0
    assert "199.6" in capsys.readouterr().out
    assert (tmp_path / "plan" / "expansion.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (("fetch", "Springfield"), 2, "Springfield"),
        (("fetch", "Anaheim", "--base-url", "http://127.0.0.1:9"), 2, "by hand"),
        (("equilibrium", "no_such_place"), 2, "no_such_place"),
        (("equilibrium", "sioux_falls", "--max-iterations", "1"), 1, "the gap is"),
        (("expand", "harker_friesz_2", "--exponent", "1", "--max-iterations", "1"), 1, "raise max"),
        (("expand", "sioux_falls", "--exponent", "0"), 2, "exponent"),
    ],
)
def test_exit_codes_and_one_clear_line(arguments, code, fragment, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, *arguments, "--out", tmp_path / "out") == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("blocc: ")]
    assert len(said) == 1
    assert fragment in said[0]
    assert (tmp_path / "out" / "summary.json").exists() == (code == 1)
