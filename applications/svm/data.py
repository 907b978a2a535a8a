"""The study's two data sets, its features and its ten splits.

Jiang et al., NeurIPS 2024 (arXiv:2406.10148), section 4 and its public code: 500 training rows, 150 validation rows,
the rest for testing; the rows are shuffled again and again with seeds 0, 1, 2, ..., each shuffle on top of the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from blocc.errors import InvalidInputError

Array = Any
DATASETS = ("diabetes", "fourclass")
TRAIN_ROWS, VALIDATION_ROWS = 500, 150


@dataclass(frozen=True)
class Split:
    """One split of a data set: arrays of shapes (rows, features) and labels of -1 and 1."""

    dataset: str
    seed: int
    X_train: Array
    y_train: Array
    X_val: Array
    y_val: Array
    X_test: Array
    y_test: Array


def load(name: str) -> tuple[Array, Array]:
    """Features and labels (-1 or 1) of a shipped data set.

    Parameters
    ----------
    name : {"diabetes", "fourclass"}

    Returns
    -------
    X : array of shape (768, 8) or (862, 2)
    y : array of shape (768,) or (862,)

    Raises
    ------
    InvalidInputError
        For another name.
    """
    if name not in DATASETS:
        raise InvalidInputError(f"data set must be one of {', '.join(DATASETS)}, got {name!r}")
    source = resources.files("blocc.data").joinpath("svm", f"{name}.csv")
    with source.open("r", encoding="utf-8") as stream:
        rows = np.loadtxt(stream, delimiter=",", skiprows=1)
    return rows[:, 1:], rows[:, 0]


def study_features(name: str, X: Array) -> Array:
    """Features as the study uses them: diabetes gets 1, x, squares and pairwise products; fourclass stays as it is."""
    if name != "diabetes":
        return X
    first, second = np.triu_indices(X.shape[1], 1)
    return np.hstack([np.ones((len(X), 1)), X, X**2, X[:, first] * X[:, second]])


def study_splits(name: str, count: int = 10) -> Iterator[Split]:
    """Yield the study's splits of a data set, seeds 0 to ``count - 1``."""
    X, y = load(name)
    rows = np.column_stack([y, X])
    for seed in range(count):
        # the study's splits are defined by NumPy's legacy generator, and each shuffles what the last one left
        np.random.RandomState(seed).shuffle(rows)
        labels, features = rows[:, 0].copy(), study_features(name, rows[:, 1:])
        parts = np.split(np.arange(len(rows)), [TRAIN_ROWS, TRAIN_ROWS + VALIDATION_ROWS])
        arrays = [array for part in parts for array in (features[part], labels[part])]
        yield Split(name, seed, *arrays)
