"""``blocc reproduce``: run the benchmarks that made the published tables and figures, and record where they ran.

The benchmarks are scripts of a source checkout (``benchmarks/studies.toml`` lists them); each runs in a process of its
own, so that one that fails costs nothing but its own results.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blocc.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[1]


def studies() -> dict[str, dict[str, Any]]:
    """What can be reproduced, by name, from ``benchmarks/studies.toml``.

    Raises
    ------
    InvalidInputError
        If there is no source checkout around this module: the benchmarks are not installed.
    """
    path = ROOT / "benchmarks" / "studies.toml"
    if not path.exists():
        raise InvalidInputError(
            "blocc reproduce runs the benchmarks of a source checkout, and this is an installed package: clone the "
            "repository, pip install -e '.[all]' there, and run it again (blocc reproduce svm works without)"
        )
    return tomllib.loads(path.read_text(encoding="utf-8"))


def reproduce(
    group: str,
    out: str | os.PathLike[str],
    *,
    quick: bool = False,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the studies of a group, each into its own folder, and write ``manifest.json``.

    Parameters
    ----------
    group : str
        A group of ``benchmarks/studies.toml``, or "all".
    out : path
        Folder for the results.
    quick : bool
        The smallest size of each: shows that everything runs, its figures mean nothing.
    progress : callable
        Is told one line before and after each study.

    Returns
    -------
    dict
        The manifest: environment, and for each study its command, state ("done", "failed", "left out"), reason,
        seconds and files with their sha256.

    Raises
    ------
    InvalidInputError
        Without a source checkout, for an unknown group, or if ``out`` cannot be written.
    """
    known = studies()
    groups = list(dict.fromkeys(study["group"] for study in known.values()))
    if group not in (*groups, "all"):
        raise InvalidInputError(f"nothing is called {group!r}; choose {', '.join(groups)} or all")
    directory = Path(out).resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "manifest.json").touch()
    except OSError as error:
        raise InvalidInputError(f"--out {out}: cannot be written ({error.strerror})") from error
    manifest: dict[str, Any] = {"quick": quick, "environment": _environment(), "studies": {}}
    for name, study in known.items():
        if group not in (study["group"], "all"):
            continue
        progress(f"{name}: about {study['minutes']} minutes" if not quick else f"{name}: quick")
        entry = _run(name, study, directory / name, quick)
        manifest["studies"][name] = entry
        progress(f"{name}: {entry['state']} {entry['reason']}".rstrip())
        # after every study: a run that is stopped keeps what it has
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    manifest["success"] = all(e["state"] != "failed" for e in manifest["studies"].values())
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _run(name: str, study: dict[str, Any], directory: Path, quick: bool) -> dict[str, Any]:
    missing = [module for module in study["needs"] if importlib.util.find_spec(module) is None]
    absent = [path for path in study.get("files", ()) if not (ROOT / path).exists()]
    arguments = [part.format(out=directory) for part in study["command"]]
    arguments += study.get("quick", []) if quick else []
    entry: dict[str, Any] = {
        "command": ["python", *arguments],
        "cited": study["cited"],
        "state": "left out",
        "reason": "",
    }
    if missing or absent:
        entry["reason"] = f"(needs {', '.join(missing + absent)})"
        return entry
    directory.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (directory / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    entry["seconds"] = round(time.perf_counter() - began, 1)
    entry["state"] = "done" if done.returncode == 0 else "failed"
    if done.returncode:
        entry["reason"] = f"(exit code {done.returncode}; see {name}/log.txt)"
    entry["files"] = {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    return entry


def _environment() -> dict[str, Any]:
    found: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "environment.py"))[
        "environment"
    ]()
    return found
