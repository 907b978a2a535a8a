"""Sphinx configuration. Build with ``sphinx-build -W -b html docs docs/_build/html``."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import blocc

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "blocc"
author = "The blocc developers"
copyright = "The blocc developers, Apache-2.0"
release = version = blocc.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "generated/figures", "generated/more.rst"]
templates_path = ["_templates"]
suppress_warnings = ["config.cache"]  # autosummary_context holds a function

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say shapes and units, which hints cannot
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "pydata_sphinx_theme"
html_title = "blocc"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_sidebars = {"api": [], "changelog": []}
html_show_sourcelink = False


def _figures() -> None:
    """Draw the figures unless they are newer than the script that makes them."""
    target = HERE / "generated" / "figures" / "measured.md"
    if target.exists() and target.stat().st_mtime > (HERE / "figures.py").stat().st_mtime:
        return
    importlib.import_module("figures").main(target.parent)


def _more_names() -> None:
    """List the public names of blocc that api.md does not list by hand, so that none is ever missing."""
    listed = (HERE / "api.md").read_text().split()
    missing = [name for name in blocc.__all__ if name != "__version__" and name not in listed]
    lines = [".. autosummary::", "   :toctree: generated/api", "", *(f"   {n}" for n in missing)]
    target = HERE / "generated" / "more.rst"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n" if missing else "None.\n")


def _members(name: str, what: str) -> list[str]:
    """Public methods or properties that a class defines itself, with a docstring."""
    module, _, cls = name.rpartition(".")
    found = getattr(importlib.import_module(module), cls)
    wanted = inspect.isfunction if what == "methods" else (lambda item: isinstance(item, property))
    own = {
        key: item
        for base in reversed(found.__mro__)
        if base.__module__.startswith("blocc")
        for key, item in vars(base).items()
    }
    chosen = []
    for key, item in own.items():
        plain = item.__func__ if isinstance(item, classmethod | staticmethod) else item
        if not key.startswith("_") and wanted(plain) and plain.__doc__:
            chosen.append(key)
    return chosen


autosummary_context = {"members_of": _members}


def setup(app: object) -> None:
    """Make what the pages include."""
    _figures()
    _more_names()
