"""What the SVM tests share."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def reference_values():
    """(dataset, seed, upper) -> global optimum, from the project's shared reference file."""
    shared = Path(os.environ.get("BLOCC_SHARED", ROOT.parent / "shared"))
    path = shared / "reference" / "svm_slack_bounds.json"
    if not path.exists():
        pytest.skip(f"{path} is not here (set BLOCC_SHARED)")
    names = {"half_sq": "squared", "norm": "norm"}
    rows = json.loads(path.read_text())["values"]
    return {(row["dataset"], row["seed"], names[row["upper"]]): row["F_star"] for row in rows}
