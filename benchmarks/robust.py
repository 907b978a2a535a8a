"""Random bilevel quadratic programs in their thousands: the share solved and certified, and what becomes of the rest.

    python benchmarks/robust.py [--count 5000] [--start 0] [--jobs 2] [--form cvxpy|functional|both] [--limit 30]
                                [--out DIR] [--family NAME]

Program k is made from seed k (tests/robust/programs.py). Every claim is put to the test without blocc
(tests/robust/oracle.py): the lower level is solved again at the answer's x by Clarabel, ``optimal`` is compared with
other points of the whole range of x, ``stationary`` with small moves from x. *false* counts the claims refuted so;
anything above zero is a defect, and so is a crash or a program out of time. A refusal as infeasible is checked in
rational arithmetic. *certified* is the share of programs with an answer that end optimal, stationary or improved at
the default tolerance of 1e-6. Writes programs.jsonl as it goes
(seeds already there are passed over, so that a run can be continued) and table.md at the end.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from tests.robust import programs, trial  # noqa: E402

Row = dict[str, Any]
PROVEN = "infeasible, proven"


def work(task: tuple[int, str, float]) -> Row:
    seed, form, limit = task
    return asdict(trial.attempt(programs.program(seed), form, limit))


def table(rows: list[Row]) -> str:
    """One line a form and family, then the reasons of what is not certified."""
    lines = [
        "| form | family | programs | certified | false | crash | out of time | CPU s median | 99 % | worst |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["form"], row["family"]].append(row)
        if row["family"] not in programs.HOPELESS and row["word"] != PROVEN:
            groups[row["form"], "all with an answer"].append(row)
        groups["all", "all"].append(row)
    for (form, family), group in sorted(groups.items()):
        seconds = [row["seconds"] for row in group]
        good = sum(row["word"] in ("OPTIMAL", "STATIONARY", "IMPROVED") for row in group)
        able = sum(row["word"] != PROVEN for row in group)
        hopeless = family in programs.HOPELESS or not able
        share = "none to find" if hopeless else f"{good / able:.1%}"
        counts = (
            sum(row["false"] is not None for row in group),
            sum(row["word"].startswith("crash") for row in group),
            sum(row["word"] == "out of time" for row in group),
        )
        lines.append(
            f"| {form} | {family} | {len(group)} | {share} | {counts[0]} | {counts[1]} | {counts[2]} "
            f"| {np.median(seconds):.2f} | {np.quantile(seconds, 0.99):.2f} | {max(seconds):.1f} |"
        )
    lines += ["", "| form | family | word | programs | seeds |", "|---|---|---|---|---|"]
    reasons = collections.defaultdict(list)
    for row in rows:
        if row["word"] not in ("OPTIMAL", "STATIONARY", "IMPROVED") or row["false"]:
            word = row["word"] + (f", FALSE: {row['false']}" if row["false"] else "")
            reasons[row["form"], row["family"], word].append(row["seed"])
    for (form, family, word), seeds in sorted(reasons.items()):
        shown = ", ".join(map(str, seeds[:6])) + (", ..." if len(seeds) > 6 else "")
        lines.append(f"| {form} | {family} | {word} | {len(seeds)} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--form", choices=[*trial.FORMS, "both"], default="both")
    parser.add_argument("--limit", type=float, default=30.0, help="CPU seconds a program")
    parser.add_argument("--family", choices=list(programs.FAMILIES))
    parser.add_argument("--out", type=Path, default=Path("robust"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "programs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["seed"], row["form"]) for row in rows}
    seeds = range(options.start, options.start + options.count)
    if options.family:
        place = list(programs.FAMILIES).index(options.family)
        seeds = [seed for seed in seeds if seed % len(programs.FAMILIES) == place]
    # the functional form's first-order solver takes some ten times as long: one family round in ten is its
    every = {"cvxpy": 0, "functional": 1, "both": 10}[options.form]

    def form(seed: int) -> str:
        turn = seed // len(programs.FAMILIES)
        return "functional" if every and turn % every == every - 1 else "cvxpy"

    tasks = [(seed, form(seed), options.limit) for seed in seeds]
    tasks = [task for task in tasks if task[:2] not in done]
    with multiprocessing.Pool(options.jobs) as pool, path.open("a") as stream:
        for row in pool.imap_unordered(work, tasks):
            rows.append(row)
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            if row["false"] or row["word"].startswith(("crash", "out")):
                print(
                    row["seed"], row["form"], row["family"], row["word"], row["false"], flush=True
                )
    text = table(rows)
    (options.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
