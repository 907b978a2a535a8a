"""The documentation's code runs and prints what it says; the site builds without a warning."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md") if "```pycon" in page.read_text())
BLOCK = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\d*\.\d+|\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
EXTRAS = {
    "equilibrium.md": ("numba", "networkx", "pandas"),
    "gpu.md": ("jax",),
    "transport.md": ("numba", "networkx", "pandas", "matplotlib"),
    "troubleshooting.md": ("numba",),
}


class Checker(doctest.OutputChecker):
    """Texts must agree, and numbers to 1e-3 relative; below 1e-6 all are rounding noise."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        texts = [" ".join(NUMBER.sub("#", text).split()) for text in (want, got)]
        if not super().check_output(*texts, optionflags):
            return False
        wanted, found = ([float(n) for n in NUMBER.findall(text)] for text in (want, got))
        return len(wanted) == len(found) and all(
            abs(a - b) <= 1e-3 * abs(a) or max(abs(a), abs(b)) <= 1e-6
            for a, b in zip(wanted, found, strict=True)
        )


def blocks(page: Path) -> str:
    """A page's session: its code blocks in their places, so that line numbers are the page's."""
    text = page.read_text()
    session, end = "", 0
    for match in BLOCK.finditer(text):
        session += "\n" * text.count("\n", end, match.start(1)) + match.group(1)
        end = match.end(1)
    return session


@pytest.mark.parametrize("name", PAGES)
def test_code_prints_what_the_page_says(name, tmp_path, monkeypatch):
    needed = ("autograd", *EXTRAS.get(name, ()))
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    page = DOCS / name
    test = doctest.DocTestParser().get_doctest(blocks(page), {}, name, str(page), 0)
    assert test.examples
    report: list[str] = []
    runner = doctest.DocTestRunner(Checker(), verbose=False, optionflags=doctest.ELLIPSIS)
    failed, _ = runner.run(test, out=report.append)
    assert failed == 0, "".join(report)


def test_every_session_block_is_executed():
    """No page shows a prompt outside the blocks that the test above runs."""
    for page in DOCS.glob("*.md"):
        assert ">>>" not in BLOCK.sub("", page.read_text()), page.name


@pytest.mark.parametrize("page", [page.name for page in DOCS.glob("*.md")])
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([\w/.-]+\.md)(?:#[\w-]+)?\)", (DOCS / page).read_text()):
        assert (DOCS / target).exists(), f"{page} links to {target}"


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "numpydoc", "pydata_sphinx_theme", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'blocc[docs]'")
    source = tmp_path / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build", "generated"))
    shutil.copy(DOCS.parent / "CHANGELOG.md", tmp_path)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(source), str(tmp_path / "html")], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    for page in ("index", "mathematics", "transport", "api", "convergence"):
        assert (tmp_path / "html" / f"{page}.html").exists()
