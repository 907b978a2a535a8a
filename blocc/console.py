"""What the commands of ``blocc`` and of its applications share: options, tables, a progress line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import rich.console
import rich.progress
import rich.table
import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Out = Annotated[Path, typer.Option("--out", help="Directory for the results; created if missing.")]


def show_table(rows: Mapping[str, Any], title: str) -> None:
    """Print a table of two columns."""
    table = rich.table.Table(title=title, show_header=False, title_justify="left")
    for key, value in rows.items():
        table.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
    rich.console.Console().print(table)


def report(summary: dict[str, Any], title: str, as_json: bool) -> None:
    """Print a summary; exit with code 1 where it says that there is no certified answer."""
    if as_json:
        print(json.dumps(summary, default=str))
    else:
        show_table({k: v for k, v in summary.items() if not isinstance(v, (dict, list))}, title)
    if summary.get("success") is False:
        typer.echo("blocc: no certified answer; what was found is written", err=True)
        raise typer.Exit(1)


class Bar:
    """Progress on standard error where it is a terminal: iteration, gamma, best value so far."""

    def __init__(self, text: str, quiet: bool):
        console = rich.console.Console(stderr=True)
        self.progress = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.text = text

    def __enter__(self) -> Bar:
        self.progress.start()
        self.task = self.progress.add_task(self.text, total=None)
        return self

    def update(self, record: dict[str, Any]) -> None:
        """Show a record of the solve."""
        self.say(
            f"iteration {record['iteration']}, gamma {record['gamma']:.3g}, "
            f"upper value {record['response']:.6g}"
        )

    def say(self, text: str) -> None:
        """Show a text after the title."""
        self.progress.update(self.task, description=f"{self.text}: {text}")

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
