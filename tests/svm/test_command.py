"""``blocc svm tune`` as a function."""

import json

import numpy as np
import pandas as pd
import pytest

import blocc
from blocc.applications.svm import command
from blocc.applications.svm.command import reproduce, tune
from blocc.errors import InvalidInputError

from .conftest import ROOT


def test_tune_writes_what_it_promises(tmp_path):
    out = tmp_path / "out"
    source = ROOT / "data" / "svm" / "fourclass.csv"
    summary = tune(source, "label", out, folds=3)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert all((out / name).exists() for name in summary["files"])
    assert summary["success"]
    assert summary["rows"] == 862
    parameters = pd.read_csv(out / "parameters.csv")
    assert list(parameters["feature"]) == ["x1", "x2"]
    assert np.all(parameters["weight"].abs() <= parameters["bound"] + 1e-12)
    folds = pd.read_csv(out / "folds.csv")
    assert folds["rows"].sum() == 862
    assert folds["validation_loss"].mean() == pytest.approx(summary["validation_loss"], rel=1e-6)
    loaded = blocc.Result.load(out / "result.npz")
    assert loaded.objective == summary["validation_loss"]


def test_three_classes_and_a_kernel(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"])
    table["kind"] = np.where(table.a > 0.5, "x", np.where(table.b > 0, "y", "z"))
    table.to_csv(tmp_path / "t.csv", index=False)
    linear = tune(tmp_path / "t.csv", "kind", tmp_path / "linear", folds=2)
    assert linear["classes"] == ["x", "y", "z"]
    assert len(linear["status"]) == 3
    kernel = tune(tmp_path / "t.csv", "kind", tmp_path / "kernel", folds=2, kernel="rbf")
    assert "parameters.csv" not in kernel["files"]
    assert len(kernel["gamma"]) == 3


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        (lambda t: t, "nowhere", "no column 'nowhere'; it has a, b, kind"),
        (lambda t: t.assign(b="word"), "kind", "column 'b' is not numeric"),
        (lambda t: t.assign(b=np.nan), "kind", "column 'b' has 20 missing"),
        (lambda t: t.assign(b=np.inf), "kind", "column 'b' has infinite"),
        (lambda t: t.assign(kind=1), "kind", "one class"),
        (lambda t: t[["kind"]], "kind", "no features"),
        (lambda t: t.head(3), "kind", "folds=5 cannot be greater"),
    ],
)
def test_bad_tables(tmp_path, change, target, message):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(20, 2)), columns=["a", "b"]).assign(
        kind=np.arange(20) % 2
    )
    change(table).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InvalidInputError, match=message):
        tune(tmp_path / "t.csv", target, tmp_path / "out")


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_separator_is_named(tmp_path, mark, name):
    pd.DataFrame({"a": [0.5, 1.0], "kind": [0, 1]}).to_csv(
        tmp_path / "t.csv", sep=mark, index=False
    )
    with pytest.raises(
        InvalidInputError, match=f"separated by {name}; write the table with commas"
    ):
        tune(tmp_path / "t.csv", "kind", tmp_path / "out")


def test_no_file(tmp_path):
    with pytest.raises(InvalidInputError, match="no such file"):
        tune(tmp_path / "none.csv", "y", tmp_path / "out")


def test_reproduce_certifies_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_study", lambda: None)  # as where only the package is installed
    summary = reproduce(tmp_path, splits=1)
    assert summary["success"]
    assert not summary["peers"]
    assert summary["largest_bound_gap"] <= 1e-6
    assert len(pd.read_csv(tmp_path / "splits.csv")) == 4
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    with pytest.raises(InvalidInputError, match="between 1 and 10"):
        reproduce(tmp_path, splits=0)


@pytest.mark.slow
def test_reproduce_compares_with_the_peers(tmp_path):
    if not (ROOT / "benchmarks" / "svm_study.py").exists():
        pytest.skip("no source checkout: benchmarks/ is not here")
    summary = reproduce(tmp_path, splits=1)
    assert summary["peers"]
    peers = pd.read_csv(tmp_path / "slack.csv")
    ours = peers[peers["method"].str.startswith("blocc (")]
    assert np.all(ours["true_above_F_star"].abs() <= 1e-6)
    rest = peers.drop(ours.index)["true_above_F_star"].dropna()
    assert np.all(rest >= -1e-9)  # nobody is below a proven bound
