"""``blocc reproduce``: what runs, what fails and what is left out is written down; every cited script exists."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from blocc import reproduce as module
from blocc.errors import InvalidInputError

ROOT = Path(__file__).parents[1]
STUDIES = """
[good]
group = "toy"
command = ["good.py", "{out}"]
quick = ["--quick"]
minutes = 1
needs = []
cited = []

[bad]
group = "toy"
command = ["bad.py"]
minutes = 1
needs = []
cited = []

[absent]
group = "other"
command = ["good.py", "{out}"]
minutes = 1
needs = ["no_such_module"]
files = ["no_such_file"]
cited = []
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "studies.toml").write_text(STUDIES)
    (tmp_path / "benchmarks" / "environment.py").write_text(
        (ROOT / "benchmarks" / "environment.py").read_text()
    )
    (tmp_path / "good.py").write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[1], 'table.csv').write_text(' '.join(sys.argv[2:]))\n"
    )
    (tmp_path / "bad.py").write_text("raise SystemExit('it broke')\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def test_a_failing_study_costs_only_its_own_results(checkout, tmp_path):
    said = []
    manifest = module.reproduce("all", tmp_path / "out", progress=said.append)
    states = {name: entry["state"] for name, entry in manifest["studies"].items()}
    assert states == {"good": "done", "bad": "failed", "absent": "left out"}
    assert manifest["success"] is False
    assert "no_such_module" in manifest["studies"]["absent"]["reason"]
    assert "no_such_file" in manifest["studies"]["absent"]["reason"]
    assert "it broke" in (tmp_path / "out" / "bad" / "log.txt").read_text()
    table = (tmp_path / "out" / "good" / "table.csv").read_bytes()
    assert manifest["studies"]["good"]["files"]["table.csv"] == hashlib.sha256(table).hexdigest()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert manifest["environment"]["python"]
    assert any("bad" in line and "exit code 1" in line for line in said)


def test_quick_adds_the_study_s_own_arguments(checkout, tmp_path):
    manifest = module.reproduce("toy", tmp_path / "out", quick=True, progress=str)
    assert set(manifest["studies"]) == {"good", "bad"}
    assert (tmp_path / "out" / "good" / "table.csv").read_text() == "--quick"


@pytest.mark.parametrize("group", ["", "toys", "good"])
def test_an_unknown_group_is_refused_by_name(checkout, tmp_path, group):
    with pytest.raises(InvalidInputError, match="toy, other or all"):
        module.reproduce(group, tmp_path / "out")


def test_without_a_checkout_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    with pytest.raises(InvalidInputError, match="clone the repository"):
        module.reproduce("all", tmp_path / "out")


def test_an_unwritable_folder_is_refused_before_anything_runs(checkout, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="--out"):
        module.reproduce("toy", tmp_path / "file" / "out", progress=pytest.fail)


@pytest.mark.parametrize("name", module.studies())
def test_every_study_exists_and_is_named_where_its_figures_are_cited(name):
    study = module.studies()[name]
    words = study["command"]
    script = f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0]
    assert (ROOT / script).exists()
    for page in study["cited"]:
        assert Path(script).stem in (ROOT / page).read_text(), f"{page} cites no {script}"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_study_runs_at_its_smallest_size(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from blocc.cli import main; main()"),
            *("reproduce", "all", "--quick", "--out", tmp_path, "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    manifest = json.loads(done.stdout)
    failed = {n: e["reason"] for n, e in manifest["studies"].items() if e["state"] == "failed"}
    assert not failed
    assert done.returncode == 0
