"""``blocc svm tune`` (a CSV in; parameters, folds, a plot, a summary out) and ``blocc reproduce svm``, as functions."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from blocc import __version__
from blocc.errors import InvalidInputError, require
from blocc.files import write_atomically


def tune(
    csv: str | os.PathLike[str],
    target: str,
    out: str | os.PathLike[str],
    *,
    folds: int = 5,
    feature_bounds: bool = True,
    kernel: str = "linear",
    standardize: bool = True,
    n_jobs: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Tune and fit a :class:`BilevelSVC` on a table, and write what came of it.

    Parameters
    ----------
    csv : path
        A header, one row a sample, numeric features.
    target : str
        Column with the class.
    out : path
        Directory, created if missing. Gets ``parameters.csv`` (one row a feature and machine: weight and bound in the
        units of the standardised features, and the mean and scale that standardise), ``folds.csv``,
        ``summary.json``, ``result.npz`` (one a machine) and ``plot.png``.
    folds, feature_bounds, kernel, n_jobs
        See :class:`BilevelSVC`.
    standardize : bool
        Whether to shift and scale every feature to mean 0 and deviation 1 first.
    seed : int
        Of the fold assignment.

    Returns
    -------
    dict
        The summary that is written: instance, rows, features, classes, C, validation_loss, training_accuracy, status,
        selection, success, certificate, seconds, seed, versions, files.

    Raises
    ------
    InvalidInputError
        If the file, the column or its entries are not as described; the message names the culprit.
    """
    pandas = require("pandas", "svm", "blocc svm tune")
    sklearn = require("sklearn", "svm", "blocc svm tune")
    from blocc.applications.svm import BilevelSVC

    began = time.perf_counter()
    names, X, y = _read(pandas, Path(csv), target)
    mean, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
    if standardize:
        mean, scale = X.mean(axis=0), X.std(axis=0)
        scale[scale == 0] = 1.0
    Z = (X - mean) / scale
    model = BilevelSVC(folds, feature_bounds, kernel, n_jobs, seed)
    try:
        model.fit(Z, y)
    except ValueError as error:
        raise InvalidInputError(f"{csv}: {error}") from error
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    results = model.result_ if isinstance(model.result_, list) else [model.result_]
    machines = [str(model.classes_[1])] if len(results) == 1 else [str(c) for c in model.classes_]
    files = []
    if kernel == "linear":
        bounds = np.atleast_2d(
            model.best_params_.get("feature_bounds", np.full(Z.shape[1], np.inf))
        )
        rows = [
            (machine, name, weights[j], bound[j], model.feature_importances_[j], mean[j], scale[j])
            for machine, weights, bound in zip(
                machines, model.coef_, np.broadcast_to(bounds, model.coef_.shape), strict=True
            )
            for j, name in enumerate(names)
        ]
        columns = ["class", "feature", "weight", "bound", "importance", "mean", "scale"]
        pandas.DataFrame(rows, columns=columns).to_csv(directory / "parameters.csv", index=False)
        files.append("parameters.csv")
    table = [
        {"class": machine, **row}
        for machine, part in zip(machines, model.fold_tables_, strict=True)
        for row in part
    ]
    pandas.DataFrame(table).to_csv(directory / "folds.csv", index=False)
    files.append("folds.csv")
    for index, result in enumerate(results):
        name = "result.npz" if len(results) == 1 else f"result_{index}.npz"
        result.save(directory / name)
        files.append(name)
    _plot(directory / "plot.png", names, model)
    files.append("plot.png")
    parameters = {
        key: np.asarray(value).tolist()
        for key, value in model.best_params_.items()
        if key != "feature_bounds"
    }
    summary = {
        "instance": str(csv),
        "rows": len(y),
        "features": len(names),
        "classes": [str(label) for label in model.classes_],
        **parameters,
        "validation_loss": model.validation_loss_,
        "training_accuracy": float(model.score(Z, y)),
        "status": [result.status.name.lower() for result in results],
        "selection": "certified stationary"
        if all(result.success for result in results)
        else "the best found, not certified stationary",
        "success": all(result.certificate.lower_ok() for result in results),
        "certificate": [result.certificate.to_dict() for result in results],
        "seconds": time.perf_counter() - began,
        "seed": seed,
        "versions": {
            "blocc": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "files": [*files, "summary.json"],
    }
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
    return summary


def reproduce(out: str | os.PathLike[str], *, splits: int = 10) -> dict[str, Any]:
    """Solve the BLOCC study's SVM problem on its splits; in a source checkout, by the other methods as well.

    Parameters
    ----------
    out : path
        Directory, created if missing. Gets ``splits.csv`` (one row a split and regulariser: the certified optimum,
        status, validation loss, test accuracy, CPU seconds), ``summary.json``, and, in a checkout, the comparison of
        ``benchmarks/svm_study.py``: ``slack.csv``, ``slack.md``, ``environment.json``.
    splits : int
        The first this many of the study's ten.

    Returns
    -------
    dict
        success (every split certified optimal), splits, largest bound gap, median CPU seconds, accuracy, files,
        peers (False where the benchmarks are not at hand).
    """
    pandas = require("pandas", "svm", "blocc reproduce svm")
    from blocc.applications.svm import SlackBoundProblem
    from blocc.applications.svm.data import DATASETS, study_splits

    if not 1 <= splits <= 10:
        raise InvalidInputError(f"splits must be between 1 and 10, got {splits}")
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in DATASETS:
        for split in study_splits(name, splits):
            for upper in ("squared", "norm"):
                began = time.process_time()
                problem = SlackBoundProblem(
                    split.X_train, split.y_train, split.X_val, split.y_val, upper
                )
                result = problem.solve(on_failure="return")
                seconds = time.process_time() - began
                predicted = np.sign(problem.decision_function(result.y, split.X_test))
                losses = np.exp(1.0 - problem.model.validation @ result.y)
                rows.append(
                    {
                        "dataset": name,
                        "seed": split.seed,
                        "upper": upper,
                        "objective": result.objective,
                        "bound_gap": result.certificate.bound_gap,
                        "status": result.status.name.lower(),
                        "validation_loss": float(np.mean(losses)),
                        "test_accuracy": float(np.mean(predicted == split.y_test)),
                        "cpu_seconds": seconds,
                    }
                )
    table = pandas.DataFrame(rows)
    table.to_csv(directory / "splits.csv", index=False)
    files = ["splits.csv"]
    study = _study()
    if study is not None:
        study.main(directory, ("slack",), splits)
        files += ["slack.csv", "slack.md", "environment.json"]
    summary = {
        "instance": "svm study",
        "splits": splits,
        "success": bool((table["status"] == "optimal").all()),
        "largest_bound_gap": float(table["bound_gap"].abs().max()),
        "cpu_seconds_median": float(table["cpu_seconds"].median()),
        "test_accuracy": {
            f"{name}, {upper}": float(part["test_accuracy"].mean())
            for (name, upper), part in table.groupby(["dataset", "upper"])
        },
        "peers": study is not None,
        "versions": {"blocc": __version__, "numpy": np.__version__},
        "files": [*files, "summary.json"],
    }
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
    return summary


def _study() -> Any:
    """The comparison with other methods, which is not installed: found in a source checkout only."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "svm_study.py").exists():
        return None
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module("benchmarks.svm_study")


def _read(pandas: Any, path: Path, target: str) -> tuple[list[str], Any, Any]:
    """Names, features and classes; every complaint names its column."""
    try:
        table = pandas.read_csv(path)
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path}: no such file") from error
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InvalidInputError(f"{path}: not a readable CSV table ({error})") from error
    if len(table.columns) == 1 and (wrong := _separator(str(table.columns[0]))):
        raise InvalidInputError(
            f"{path}: its cells are separated by {wrong}; write the table with commas "
            "(and decimal points)"
        )
    if target not in table.columns:
        raise InvalidInputError(
            f"{path}: no column {target!r}; it has {', '.join(map(str, table.columns))}"
        )
    labels, features = table[target], table.drop(columns=[target])
    if features.shape[1] == 0 or len(features) == 0:
        raise InvalidInputError(f"{path}: no features, or no rows")
    for name in table.columns:
        missing = int(table[name].isna().sum())
        if missing:
            raise InvalidInputError(f"{path}: column {name!r} has {missing} missing entries")
    for name in features.columns:
        if not pandas.api.types.is_numeric_dtype(features[name]):
            raise InvalidInputError(
                f"{path}: column {name!r} is not numeric; encode it first, or leave it out"
            )
        if not np.all(np.isfinite(features[name].to_numpy(dtype=float))):
            raise InvalidInputError(f"{path}: column {name!r} has infinite entries")
    names = [str(name) for name in features.columns]
    return names, features.to_numpy(dtype=float), labels.to_numpy()


def _separator(header: str) -> str | None:
    """What separates the cells of a header that has no comma."""
    return next(
        (name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in header), None
    )


def _plot(path: Path, names: list[str], model: Any) -> None:
    """Validation loss over the grid of C with the selected point, and the features' importances."""
    figure_module = require("matplotlib.figure", "plot", "the plot of blocc svm tune")
    figure = figure_module.Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, machine in enumerate(model._machines):
        color = f"C{index % 10}"
        grid = np.array(machine.tuning.grid)
        left.semilogx(grid[:, 0], grid[:, 1], ".-", color=color, alpha=0.6)
        left.plot(machine.C, machine.tuning.result.objective, "*", color=color, markersize=12)
    left.set_xlabel("C (dots: grid without bounds; star: selected)")
    left.set_ylabel("mean validation hinge loss")
    if hasattr(model, "feature_importances_"):
        order = np.argsort(model.feature_importances_)[-20:]
        right.barh([names[j] for j in order], model.feature_importances_[order])
        right.set_xlabel("importance")
    else:
        right.axis("off")
    figure.savefig(path)
