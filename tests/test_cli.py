"""The command line, run as users run it: outputs, exit codes 0 / 1 / 2, one clear line for bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scipy.special import expit

from blocc import cli
from blocc.applications import transport
from blocc.applications.transport import reference, search
from blocc.result import read_archive


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from blocc.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        **options,
    )


def test_info_lists_versions_and_devices():
    done = run("info", "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert facts["packages"]["cvxpy"] != "not installed"
    assert "numpy" in facts["backends"]
    assert run("info").returncode == 0


def test_the_version_is_shown():
    import blocc

    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.strip() == f"blocc {blocc.__version__}"


def test_design_writes_everything_and_the_summary_is_true(tmp_path):
    done = run("transport", "design", "nine_node", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "design.csv",
        "shares.csv",
        "summary.json",
        "map.png",
        "report.html",
    }
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    network = transport.load("nine_node")
    independent = reference.evaluate_design(network, tmp_path / "out" / "design.csv")
    assert summary["objective"] == pytest.approx(independent.profit, rel=1e-6)
    assert summary["certificate"]["lower_gap"] <= 1e-6
    assert summary["bound"] >= summary["profit"]
    assert summary["seed"] == 0
    assert "profit" in done.stdout
    assert "certificate" in done.stdout


def test_help_is_all_that_a_group_without_a_command_prints():
    done = run("transport")
    assert done.returncode == 2
    assert "scenarios" in done.stdout + done.stderr
    assert "blocc: " not in done.stderr


def test_scenarios_write_a_row_for_every_combination(tmp_path):
    options = ("--demand-growth", "0,0.5", "--subsidy", "0,1", "--starts", "0")
    done = run("transport", "scenarios", "three_node", "--out", str(tmp_path), "--json", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    wanted = {(0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.5, 1.0)}
    assert {(row["demand_growth"], row["subsidy"]) for row in rows} == wanted
    with (tmp_path / "scenarios.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    profits = [float(row["profit"]) for row in written]
    assert profits == pytest.approx([row["profit"] for row in rows], rel=1e-9)
    grown = [row["profit"] for row in rows if row["demand_growth"] == 0.5 and row["subsidy"] == 0]
    assert grown[0] == pytest.approx(1.5 * 2 * expit(2.0), rel=1e-4)  # the optimum in closed form
    assert (tmp_path / "pareto.png").stat().st_size > 1000
    bad = run("transport", "scenarios", "three_node", "--out", str(tmp_path), "--cost", "1;2")
    assert bad.returncode == 2
    assert "'1;2' is not a list of numbers" in bad.stderr


def test_an_early_interrupt_is_one_line_and_exit_code_130(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(transport, "load", interrupted)
    monkeypatch.setattr(sys, "argv", ["blocc", "transport", "design", "seville", "--out", "x"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "blocc: interrupted\n"


def test_scenarios_compare_budgets_with_none(tmp_path):
    options = ("--budget", "none,1", "--starts", "0", "--json")
    done = run("transport", "scenarios", "three_node", "--out", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr
    free, limited = json.loads(done.stdout)
    assert (free["budget"], limited["budget"]) == (None, 1.0)
    assert limited["capacity_cost"] <= 1.0 + 1e-9 < free["capacity_cost"]


def test_interrupted_design_is_written_and_can_be_resumed(tmp_path):
    program = [sys.executable, "-c", "from blocc.cli import main; main()"]
    command = ["transport", "design", "nine_node", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*program, *command, "--starts", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoint = tmp_path / "checkpoint.npz"
    until = time.monotonic() + 120
    while not (checkpoint.exists() and checkpoint.stat().st_size) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "interrupted; the best design so far is written" in err
    assert "--resume continues" in err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"
    trials = read_archive(checkpoint, search.CHECKPOINT)[1]["trials"]
    resumed = run(*command, "--resume", "--starts", str(trials))
    assert resumed.returncode == 0, resumed.stderr
    assert not checkpoint.exists()
    assert json.loads((tmp_path / "summary.json").read_text())["status"] != "interrupted"


@pytest.mark.slow
def test_killed_search_of_seville_resumes_to_the_same_design(tmp_path):
    program = [sys.executable, "-c", "from blocc.cli import main; main()"]
    killed = tmp_path / "killed"
    command = ("transport", "design", "seville", "--json", "--out")
    process = subprocess.Popen(
        [*program, *command, str(killed), "--starts", "100000"], stdout=subprocess.DEVNULL
    )
    checkpoint, done = killed / "checkpoint.npz", 0
    until = time.monotonic() + 120
    while done < 4 and time.monotonic() < until:
        time.sleep(0.2)
        if checkpoint.exists() and checkpoint.stat().st_size:
            done = read_archive(checkpoint, search.CHECKPOINT)[1]["trials"]
    process.kill()
    process.wait()
    done = read_archive(checkpoint, search.CHECKPOINT)[1]["trials"]
    assert done >= 4
    starts = ("--starts", str(done + 4))
    resumed = run(*command, str(killed), "--resume", *starts)
    whole = run(*command, str(tmp_path / "whole"), *starts)
    assert resumed.returncode == whole.returncode == 0, resumed.stderr + whole.stderr
    written = [tmp_path / name / "design.csv" for name in ("killed", "whole")]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_json_output_is_one_object(tmp_path):
    done = run("transport", "design", "three_node", "--out", str(tmp_path), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["instance"] == "three_node"


def test_a_directory_of_tables_is_designed(tmp_path):
    transport.load("three_node").save(tmp_path / "tables")
    done = run(
        "transport", "design", str(tmp_path / "tables"), "--out", str(tmp_path / "out"), "--json"
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["profit"] == pytest.approx(1.76159, abs=1e-4)


def test_unfinished_design_is_written_and_exits_with_1(tmp_path):
    brief = ("--budget", "20", "--starts", "0", "--max-iterations", "1")
    done = run("transport", "design", "nine_node", "--out", str(tmp_path), *brief)
    assert done.returncode == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] not in ("optimal", "stationary")
    assert (tmp_path / "design.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["transport", "design", "nowhere", "--out", "{out}"], "nowhere"),
        (["transport", "design", "three_node"], "--out"),
        (["transport", "design", "three_node", "--out", "{out}", "--tol", "-1"], "tol"),
        (["transport", "design", "three_node", "--out", "{out}", "--lower", "magic"], "lower"),
        (["transport", "design", "three_node", "--out", "{out}", "--resume"], "checkpoint"),
        (["transport", "design", "three_node", "--out", "{out}", "--jobs", "0"], "--jobs"),
        (["transport", "design", "three_node", "--out", "{out}", "--seed", "-1"], "--seed"),
        (["transport", "scenarios", "three_node", "--out", "{out}", "--budget", "x"], "--budget"),
        (["transport", "equilibrium", "seville", "--out", "{out}"], "transit network"),
        (["transport", "dessign"], "dessign"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, culprit):
    done = run(*(a.format(out=tmp_path / "out") for a in arguments))
    assert done.returncode == 2
    assert culprit in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_malformed_table_names_file_and_line(tmp_path):
    transport.load("three_node").save(tmp_path / "tables")
    links = tmp_path / "tables" / "links.csv"
    lines = links.read_text().splitlines()
    lines[2] = lines[2].rsplit(",", 1)[0] + ",cheap"
    links.write_text("\n".join(lines) + "\n")
    done = run("transport", "design", str(tmp_path / "tables"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "links.csv" in done.stderr
    assert "3" in done.stderr
    assert "capacity_cost" in done.stderr


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root writes anywhere: a read-only directory does not stop it"
)
def test_read_only_output_is_refused_before_any_work(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = run("transport", "design", "three_node", "--out", str(closed / "out"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_output_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    done = run("transport", "design", "three_node", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_the_installed_script_exists():
    script = shutil.which("blocc", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("blocc is not installed as a script beside this interpreter")
    assert subprocess.run([script, "--help"], capture_output=True, check=False).returncode == 0


def test_svm_tune_writes_its_tables_and_bad_tables_are_refused(tmp_path):
    pytest.importorskip("sklearn")
    from importlib.resources import files

    table = tmp_path / "fourclass.csv"
    table.write_text((files("blocc.data") / "svm" / "fourclass.csv").read_text())
    done = run(
        "svm", "tune", str(table), "--target", "label", "--out", str(tmp_path / "out"), "--json"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert 0 < summary["validation_loss"] < 1
    assert (tmp_path / "out" / "folds.csv").exists()
    for arguments in (["nowhere.csv", "--target", "label"], [str(table), "--target", "price"]):
        refused = run("svm", "tune", *arguments, "--out", str(tmp_path / "other"))
        assert refused.returncode == 2
        assert len(refused.stderr.strip().splitlines()) == 1
