"""Rung 1: core modules reach arrays only through their namespace, and importing blocc imports no cupy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import blocc

PACKAGE = Path(blocc.__file__).parent
CORE = [
    "sets",
    "maxmin",
    "gradients",
    "functional",
    "penalty",
    "certificate",
    "model",
    "methods/descent",
    "methods/convex_concave",
    "methods/homotopy",
    "methods/published",
]


def imported(source: str) -> set[str]:
    """Top-level names of all modules that a source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if called in ("import_module", "__import__", "require"):
                names.add(str(getattr(first, "value", "")).split(".")[0])
    return names


@pytest.mark.parametrize("module", CORE)
def test_core_module_imports_no_array_library(module):
    found = imported((PACKAGE / f"{module}.py").read_text()) & {"numpy", "cupy", "torch", "jax"}
    assert not found, f"blocc/{module}.py imports {found}: take the namespace from the arrays"


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np",
        "def f():\n    from numpy.linalg import norm",
        "import importlib\nimportlib.import_module('numpy')",
    ],
)
def test_the_check_sees_an_import(source):
    assert "numpy" in imported(source)


def test_only_arrays_imports_cupy():
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "applications").rglob("*.py")]
    assert len(files) > 15
    importers = {file.name for file in files if "cupy" in imported(file.read_text())}
    assert importers == {"arrays.py"}


def test_importing_blocc_imports_no_cupy():
    """Nor a solve on NumPy with backend='auto': a broken CuPy installation cannot hurt those without a GPU."""
    code = (
        "import sys, blocc\n"
        "f = blocc.Function(lambda x, y, d: ((x - 1) ** 2 + y ** 2).sum(), lambda x, y, d: (2 * (x - 1), 2 * y))\n"
        "g = blocc.Function(lambda x, y, d: ((y - x) ** 2).sum(), lambda x, y, d: (2 * (x - y), 2 * (y - x)))\n"
        "blocc.minimize(f, g, None, [0.0], [0.0], x_set=blocc.Box(-2, 2), y_set=blocc.Box(-2, 2))\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('cupy', 'cupy_backends', 'torch', 'jax')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
