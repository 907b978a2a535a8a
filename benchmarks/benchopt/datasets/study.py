"""The study's splits of diabetes and fourclass."""

from __future__ import annotations

from itertools import islice
from typing import ClassVar

from benchopt import BaseDataset

from blocc.applications.svm.data import study_splits


class Dataset(BaseDataset):
    """500 training and 150 validation rows."""

    name = "study"
    parameters: ClassVar = {"dataset": ["diabetes", "fourclass"], "split": [0]}

    def get_data(self):
        split = next(islice(study_splits(self.dataset), self.split, None))
        return {
            "X_train": split.X_train,
            "y_train": split.y_train,
            "X_val": split.X_val,
            "y_val": split.y_val,
        }
