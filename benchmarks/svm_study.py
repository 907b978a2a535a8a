"""The SVM study: the paper's per-sample problem by every method, T-fold selection against grids, and growth with size.

    python -m benchmarks.svm_study --out DIR [--parts slack,labels,growth,irrelevant,folds] [--splits 10]

Writes one CSV and one markdown table a part, figures where matplotlib is installed, and ``environment.json``. CPU
seconds are process time with one BLAS thread.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: CPU time must mean one core
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import scipy.stats
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    train_test_split,
)
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from benchmarks.baselines import bic_gaffa, blocc_published, gam, lv_hba, sflcb
from benchmarks.baselines.common import Outcome, Problem
from benchmarks.environment import environment
from blocc.applications.svm import BilevelSVC, SlackBoundProblem
from blocc.applications.svm.data import Split, load, study_splits
from blocc.errors import LowerLevelError

Array = Any
UPPERS = ("squared", "norm")
SELECTION_COLUMNS = ("dataset", "seed", "method", "cv_loss", "test_accuracy", "cpu_seconds")


def _blocc_now(problem: SlackBoundProblem, data: Problem, seed: int) -> Outcome:
    result = problem.solve(on_failure="return")
    return Outcome(result.x, result.y)


METHODS: dict[str, tuple[Callable[..., Outcome] | None, float]] = {
    # name: (function, penalty of the intercept that the method needs)
    "blocc (relaxation, certified)": (None, 0.0),
    "BLOCC as published": (blocc_published.run, 0.0),
    "BLOCC as published, norm in the steps": (
        lambda problem, seed: blocc_published.run(replace(problem, upper="norm"), seed),
        0.0,
    ),
    "LV-HBA": (lv_hba.run, 0.0),
    "GAM": (gam.run, 0.0),
    "SFLCB": (sflcb.run, 0.01),
    "BiC-GAFFA": (bic_gaffa.run, 0.0),
}


def slack_bounds(splits: int) -> pd.DataFrame:
    """The paper's problem: every method on every split and both regularisers."""
    rows = []
    for dataset in ("diabetes", "fourclass"):
        for split in study_splits(dataset, splits):
            rows += _slack_split(dataset, split)
        print(f"slack bounds: {dataset} done", flush=True)
    return slack_table(rows)


def _slack_split(dataset: str, split: Split) -> list[dict[str, Any]]:
    rows = []
    for upper in UPPERS:
        for method, (function, penalty) in METHODS.items():
            problem = SlackBoundProblem(
                split.X_train, split.y_train, split.X_val, split.y_val, upper, penalty
            )
            model = problem.model
            data = Problem(model.train, model.validation, upper, penalty)
            bound = problem.solve().bound
            began = time.process_time()
            with np.errstate(over="ignore", invalid="ignore"):
                outcome = (
                    _blocc_now(problem, data, split.seed)
                    if function is None
                    else function(data, split.seed)
                )
                seconds = time.process_time() - began
                row = _measure(problem, data, outcome, split)
            rows.append(
                {
                    "dataset": dataset,
                    "seed": split.seed,
                    "upper": upper,
                    "method": method,
                    "cpu_seconds": seconds,
                    "F_star": bound,
                    **row,
                }
            )
    return rows


def slack_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of all splits, with the objectives as multiples of F* above it."""
    table = pd.DataFrame(rows)
    table["reported_above_F_star"] = table["upper_reported"] / table["F_star"] - 1.0
    table["true_above_F_star"] = table["upper_at_response"] / table["F_star"] - 1.0
    return table


def _measure(
    problem: SlackBoundProblem, data: Problem, outcome: Outcome, split: Any
) -> dict[str, float]:
    """Everything about an answer (c, y), recomputed."""
    model, c, y = problem.model, outcome.c, outcome.y
    lower = 0.5 * float(data.curvature @ y**2)
    scores = problem.decision_function(y, split.X_test)
    try:
        exact = problem.respond(c)
        response = model.upper(c, exact.y)
        gap = (lower - exact.value) / (1.0 + abs(lower))
        accuracy = np.mean(
            np.sign(problem.decision_function(exact.y, split.X_test)) == split.y_test
        )
    except LowerLevelError:  # no separator meets the margins of this c
        response = gap = accuracy = np.nan
    return {
        "upper_reported": data.upper_value(c, y),
        "upper_at_response": response,
        "lower_gap": gap,
        "violation": max(0.0, float(np.max(1.0 - c - data.train @ y))),
        "validation_loss": float(np.mean(np.exp(1.0 - data.validation @ y))),
        "test_accuracy": float(np.mean(np.sign(scores) == split.y_test)),
        "test_accuracy_at_response": float(accuracy),
    }


def permuted_labels(splits: int) -> pd.DataFrame:
    """How much of the per-sample problem's accuracy the training labels are responsible for."""
    rows = []
    for dataset in ("diabetes", "fourclass"):
        for split in study_splits(dataset, splits):
            shuffled = np.random.default_rng(split.seed).permutation(split.y_train)
            for labels, y_train in (("true", split.y_train), ("permuted", shuffled)):
                problem = SlackBoundProblem(split.X_train, y_train, split.X_val, split.y_val)
                result = problem.solve(on_failure="return")
                scores = problem.decision_function(result.y, split.X_test)
                accuracy = float(np.mean(np.sign(scores) == split.y_test))
                rows.append((dataset, split.seed, "per-sample bounds", labels, accuracy))
            X = np.vstack([split.X_train, split.X_val])
            grid = GridSearchCV(
                LinearSVC(loss="hinge", max_iter=20_000, random_state=0),
                {"C": 10.0 ** np.arange(-3, 4)},
                cv=5,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                grid.fit(X, np.concatenate([split.y_train, split.y_val]))
            accuracy = float(grid.score(split.X_test, split.y_test))
            rows.append((dataset, split.seed, "LinearSVC + grid over C", "true", accuracy))
    return pd.DataFrame(rows, columns=["dataset", "seed", "method", "training_labels", "accuracy"])


def data_sets() -> Iterator[tuple[str, Array, Array]]:
    """Two-class data sets: shipped ones, scikit-learn's, and synthetic ones with irrelevant features."""
    from sklearn import datasets

    rng = np.random.default_rng(0)
    diabetes = load("diabetes")
    yield "diabetes", *diabetes
    yield "fourclass", *load("fourclass")
    X, y = datasets.load_breast_cancer(return_X_y=True)
    yield "breast_cancer", X, 2.0 * y - 1.0
    X, y = datasets.load_iris(return_X_y=True)
    yield "iris (2 of 3)", X[y > 0], 2.0 * y[y > 0] - 3.0
    X, y = datasets.load_wine(return_X_y=True)
    yield "wine (1 or not)", X, np.where(y == 1, 1.0, -1.0)
    X, y = datasets.load_digits(return_X_y=True)
    kept = (y == 3) | (y == 8)
    yield "digits (3 or 8)", X[kept], np.where(y[kept] == 3, 1.0, -1.0)
    X, y = datasets.make_classification(
        600, 40, n_informative=5, n_redundant=0, flip_y=0.1, class_sep=0.8, random_state=0
    )
    yield "synthetic, 35 of 40 irrelevant", X, 2.0 * y - 1.0
    X, y = datasets.make_classification(
        400, 80, n_informative=4, n_redundant=0, flip_y=0.05, random_state=1
    )
    yield "synthetic, 76 of 80 irrelevant", X, 2.0 * y - 1.0
    noise = rng.normal(size=(len(diabetes[0]), 30))
    yield "diabetes + 30 noise features", np.hstack([diabetes[0], noise]), diabetes[1]


def _hinge(machine: Any, X: Array, y: Array) -> float:
    return -float(np.mean(np.maximum(0.0, 1.0 - y * machine.decision_function(X))))


def selection(splits: int) -> pd.DataFrame:
    """Cross-validated selection: BilevelSVC against grid search, random search and Optuna on the same folds."""
    rows = []
    for name, X, y in data_sets():
        for seed in range(splits):
            rows += [(name, seed, *row) for row in _selection_of_split(X, y, seed)]
        print(f"selection: {name} done", flush=True)
    return pd.DataFrame(rows, columns=list(SELECTION_COLUMNS))


def _selection_of_split(X: Array, y: Array, seed: int) -> list[tuple[str, float, float, float]]:
    """(method, cross-validation loss, test accuracy, CPU seconds, the final refit included) of every method."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    X, X_test, y, y_test = train_test_split(
        X, y, train_size=min(400, len(y) // 2), random_state=seed, stratify=y
    )
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    rows = []
    for method, bounds in (("BilevelSVC", True), ("BilevelSVC, C only", False)):
        began = time.process_time()
        model = BilevelSVC(feature_bounds=bounds, random_state=seed).fit(X, y)
        seconds = time.process_time() - began
        rows.append((method, model.validation_loss_, model.score(X_test, y_test), seconds))
    fold = model.fold_of(X, y)
    cv = [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(5)]
    machine = LinearSVC(loss="hinge", random_state=0)
    grid = {"C": 10.0 ** np.arange(-3, 3.1, 0.5)}
    uniform = {"C": scipy.stats.loguniform(1e-3, 1e3)}
    searches = {
        "grid (13)": GridSearchCV(machine, grid, scoring=_hinge, cv=cv),
        "random (30)": RandomizedSearchCV(
            machine, uniform, n_iter=30, scoring=_hinge, cv=cv, random_state=seed
        ),
    }
    for method, search in searches.items():
        began = time.process_time()
        search.fit(X, y)
        seconds = time.process_time() - began
        accuracy = float(np.mean(search.predict(X_test) == y_test))
        rows.append((method, -search.best_score_, accuracy, seconds))

    def objective(trial: Any) -> float:
        tried = LinearSVC(
            loss="hinge", random_state=0, C=trial.suggest_float("C", 1e-3, 1e3, log=True)
        )
        return -float(np.mean(cross_val_score(tried, X, y, scoring=_hinge, cv=cv)))

    began = time.process_time()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=100)
    best = machine.set_params(**study.best_params).fit(X, y)
    seconds = time.process_time() - began
    rows.append(("Optuna (100)", study.best_value, best.score(X_test, y_test), seconds))
    return rows


def irrelevant_features(noise: int, seed: int) -> tuple[Array, Array]:
    """2,200 rows of 10 informative features, then ``noise`` irrelevant ones; 5 % of the labels are flipped."""
    from sklearn.datasets import make_classification

    X, y = make_classification(
        2200,
        10 + noise,
        n_informative=10,
        n_redundant=0,
        n_clusters_per_class=1,
        flip_y=0.05,
        shuffle=False,
        random_state=seed,
    )
    order = np.random.default_rng(seed).permutation(len(y))  # rows come cluster by cluster
    return X[order], 2.0 * y[order] - 1.0


def irrelevant(draws: int) -> pd.DataFrame:
    """Test accuracy against the number of irrelevant features: 200 training rows, 2,000 test rows, every draw anew."""
    rows = []
    for noise in (0, 10, 40, 90):
        for seed in range(draws):
            rows += _irrelevant_draw(noise, seed)
        print(f"irrelevant: {noise} done", flush=True)
    return pd.DataFrame(rows)


def _irrelevant_draw(noise: int, seed: int) -> list[dict[str, Any]]:
    X, y = irrelevant_features(noise, seed)
    X = StandardScaler().fit(X[:200]).transform(X)
    rows = []
    for method, machine in _machines(seed).items():
        began = time.process_time()
        machine.fit(X[:200], y[:200])
        seconds = time.process_time() - began
        weights = np.abs(getattr(machine, "best_estimator_", machine).coef_[0])
        rows.append(
            {
                "irrelevant": noise,
                "seed": seed,
                "method": method,
                "accuracy": float(np.mean(machine.predict(X[200:]) == y[200:])),
                "weight_on_informative": weights[:10].sum() / weights.sum(),
                "cpu_seconds": seconds,
            }
        )
    return rows


def _machines(seed: int) -> dict[str, Any]:
    grid = {"C": 10.0 ** np.arange(-3, 3.1, 0.5)}
    return {
        "BilevelSVC": BilevelSVC(random_state=seed),
        "BilevelSVC, C only": BilevelSVC(feature_bounds=False, random_state=seed),
        "LinearSVC, grid over C": GridSearchCV(
            LinearSVC(loss="hinge", random_state=0), grid, scoring=_hinge, cv=5
        ),
        "LinearSVC with l1 penalty, grid over C": GridSearchCV(
            LinearSVC(penalty="l1", dual=False, random_state=0), grid, scoring=_hinge, cv=5
        ),
    }


def summarize_irrelevant(table: pd.DataFrame) -> pd.DataFrame:
    """Means, and paired t-tests of BilevelSVC's accuracy against each method's."""
    rows = []
    for noise, part in table.groupby("irrelevant"):
        accuracy = part.pivot_table(index="seed", columns="method", values="accuracy")
        for method, own in part.groupby("method", sort=False):
            gain = accuracy["BilevelSVC"] - accuracy[method]
            p = float(scipy.stats.ttest_1samp(gain, 0.0).pvalue) if np.any(gain != 0) else np.nan
            rows.append(
                {
                    "irrelevant": noise,
                    "method": method,
                    "accuracy": own["accuracy"].mean(),
                    "deviation": own["accuracy"].std(),
                    "gain_of_BilevelSVC": gain.mean(),
                    "p_value": p,
                    "weight_on_informative": own["weight_on_informative"].mean(),
                    "cpu_seconds": own["cpu_seconds"].median(),
                }
            )
    return pd.DataFrame(rows)


def _warm_up() -> None:
    """Load or compile the followers' solver, once a process: not a part of any fit."""
    BilevelSVC(2).fit(np.arange(8.0)[:, None], np.arange(8) % 2)


def growth() -> pd.DataFrame:
    """Wall seconds of one fit against rows, features and folds, with two threads."""
    from sklearn.datasets import make_classification

    cases = [(rows, 20, 5) for rows in (300, 1000, 3000, 10_000)]
    cases += [(1000, features, 5) for features in (10, 40, 100)]
    cases += [(1000, 20, folds) for folds in (3, 10)]
    cases += [(10_000, 100, 5)]
    found = []
    for rows, features, folds in cases:
        X, y = make_classification(
            rows, features, n_informative=max(2, features // 5), flip_y=0.1, random_state=0
        )
        wall, cpu = time.perf_counter(), time.process_time()
        model = BilevelSVC(folds, random_state=0, n_jobs=2).fit(X, y)
        found.append(
            (
                rows,
                features,
                folds,
                time.perf_counter() - wall,
                time.process_time() - cpu,
                model.validation_loss_,
            )
        )
        print(f"growth: {rows} x {features}, {folds} folds: {found[-1][3]:.1f} s", flush=True)
    columns = ["rows", "features", "folds", "wall_seconds", "cpu_seconds", "cv_loss"]
    return pd.DataFrame(found, columns=columns)


def summarize_slack(table: pd.DataFrame) -> pd.DataFrame:
    """Medians over splits, and accuracy mean and deviation."""
    groups = table.groupby(["dataset", "upper", "method"], sort=False)
    return groups.agg(
        cpu_seconds=("cpu_seconds", "median"),
        reported_above_F_star=("reported_above_F_star", "median"),
        true_above_F_star=("true_above_F_star", "median"),
        worst_true=("true_above_F_star", "max"),
        no_response=("upper_at_response", lambda column: int(column.isna().sum())),
        lower_gap=("lower_gap", "median"),
        violation=("violation", "median"),
        validation_loss=("validation_loss", "median"),
        accuracy=("test_accuracy", "mean"),
        deviation=("test_accuracy", "std"),
    ).reset_index()


def summarize_selection(table: pd.DataFrame) -> pd.DataFrame:
    """Means by data set and method, share of splits without a better peer, and a paired test of accuracy."""
    peers = ["grid (13)", "random (30)", "Optuna (100)"]
    rows = []
    for dataset, part in table.groupby("dataset", sort=False):
        loss = part.pivot_table(index="seed", columns="method", values="cv_loss")
        accuracy = part.pivot_table(index="seed", columns="method", values="test_accuracy")
        seconds = part.groupby("method")["cpu_seconds"].mean()
        best_peer = accuracy[peers].mean().idxmax()
        best_loss = loss[peers].min(axis=1)
        cpu = part.pivot_table(index="seed", columns="method", values="cpu_seconds")
        close = cpu[peers].where(loss[peers].le(1.01 * loss.min(axis=1), axis=0))
        reached = close.notna().any(axis=1)
        for method in part["method"].unique():
            difference = accuracy[method] - accuracy[best_peer]
            p = np.nan
            if method not in peers and np.any(difference != 0):
                p = float(scipy.stats.ttest_rel(accuracy[method], accuracy[best_peer]).pvalue)
            rows.append(
                {
                    "dataset": dataset,
                    "method": method,
                    "cv_loss": loss[method].mean(),
                    "no_worse_than_peers": float(np.mean(loss[method] <= best_loss + 1e-6)),
                    "within_1_percent": float(np.mean(loss[method] <= 1.01 * loss.min(axis=1))),
                    "test_accuracy": accuracy[method].mean(),
                    "deviation": accuracy[method].std(),
                    "minus_best_peer": difference.mean(),
                    "p_value": p,
                    "cpu_seconds": seconds[method],
                    # splits where a peer comes within 1 % of the best loss, and where no such peer is cheaper
                    "peer_within_1_percent": int(reached.sum()),
                    "no_dearer_there": int((cpu[method] <= close.min(axis=1))[reached].sum()),
                }
            )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A table for people."""

    def text(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(text, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def plot_growth(table: pd.DataFrame, path: Path) -> None:
    """Seconds against rows, features and folds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    views = {
        "rows": table[(table.features == 20) & (table.folds == 5)],
        "features": table[(table.rows == 1000) & (table.folds == 5)],
        "folds": table[(table.rows == 1000) & (table.features == 20)],
    }
    row = figure.subplots(1, 3, sharey=True)
    for axes, (column, part) in zip(row, views.items(), strict=True):
        part = part.sort_values(column)
        axes.loglog(part[column], part["wall_seconds"], "o-", label="wall, 2 threads")
        axes.loglog(part[column], part["cpu_seconds"], "o--", label="CPU")
        axes.set_xticks(part[column], map(str, part[column]))
        axes.minorticks_off()
        axes.set_yticks([0.2, 0.5, 1.0, 2.0, 5.0], ["0.2", "0.5", "1", "2", "5"])
        axes.set_xlabel(column)
    row[0].set_ylabel("seconds of one fit")
    row[0].legend(frameon=False)
    figure.savefig(path)


def main(
    out: str | os.PathLike[str],
    parts: tuple[str, ...] = ("slack", "labels", "growth", "irrelevant", "folds"),
    splits: int = 10,
) -> dict[str, str]:
    """Run parts of the study; returns the markdown tables by name."""
    warnings.filterwarnings("ignore", message="Liblinear failed to converge")
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "environment.json").write_text(
        json.dumps(environment("scikit-learn", "daqp", "optuna", "pandas"), indent=2) + "\n"
    )
    tables: dict[str, str] = {}
    _warm_up()

    def keep(name: str, table: pd.DataFrame, summary: pd.DataFrame) -> None:
        table.to_csv(directory / f"{name}.csv", index=False)
        tables[name] = markdown(summary)
        (directory / f"{name}.md").write_text(tables[name])

    if "slack" in parts:
        table = slack_bounds(splits)
        keep("slack", table, summarize_slack(table))
    if "labels" in parts:
        table = permuted_labels(splits)
        groups = table.groupby(["dataset", "method", "training_labels"], sort=False)["accuracy"]
        keep("labels", table, groups.agg(["mean", "std"]).reset_index())
    if "growth" in parts:
        table = growth()
        keep("growth", table, table)
        plot_growth(table, directory / "growth.svg")
    if "irrelevant" in parts:
        table = irrelevant(splits)
        keep("irrelevant", table, summarize_irrelevant(table))
    if "folds" in parts:
        table = selection(splits)
        keep("folds", table, summarize_selection(table))
    return tables


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--parts", default="slack,labels,growth,irrelevant,folds")
    parser.add_argument("--splits", type=int, default=10)
    chosen = parser.parse_args()
    for table_name, text in main(chosen.out, tuple(chosen.parts.split(",")), chosen.splits).items():
        print(f"\n## {table_name}\n\n{text}")
