"""What a solve shows while it runs: one header, one table, one status line; records for the history."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from blocc.errors import InvalidInputError

Record = dict[str, float | int | str]

COLUMNS = (
    ("iteration", 9, "d"),
    ("method", 15, "s"),
    ("gamma", 9, ".2e"),
    ("penalized", 14, ".6e"),
    ("response", 14, ".6e"),
    ("penalty", 10, ".1e"),
    ("stationarity", 12, ".1e"),
    ("seconds", 8, ".2f"),
)


class Progress:
    """Collects the records of a solve and prints them if asked.

    Parameters
    ----------
    verbose : bool
        Print the header, a row a record and the status line.
    callback : callable, optional
        Called with every record (a dict); an application's progress bar, for example.
    stream : file, optional
        Standard output by default.
    """

    def __init__(
        self,
        verbose: bool = False,
        callback: Callable[[Record], None] | None = None,
        stream: TextIO | None = None,
    ):
        if callback is not None and not callable(callback):
            raise InvalidInputError(f"callback must be callable, got {type(callback).__name__}")
        self.verbose, self.callback = verbose, callback
        self.stream = stream if stream is not None else sys.stdout
        self.records: list[Record] = []
        self.started = time.perf_counter()
        self.timings: dict[str, float] = {}
        self._offset = 0.0
        #: What objectives are multiplied by in records and prints: -1 where the user maximises, the unit that f is in.
        self.sense = 1.0
        #: The same for gamma.
        self.weight = 1.0

    @property
    def seconds(self) -> float:
        """Wall seconds since the start, those before a resume included."""
        return time.perf_counter() - self.started + self._offset

    def resume(self, records: list[Record]) -> None:
        """Continue the records of an earlier run."""
        self.records = list(records)
        self._offset = float(records[-1]["seconds"]) if records else 0.0

    def header(self, text: str) -> None:
        """Print the header and the column titles."""
        if self.verbose:
            titles = " ".join(f"{name:>{width}}" for name, width, _ in COLUMNS)
            print(f"{text}\n{titles}", file=self.stream, flush=True)

    def row(self, **values: Any) -> None:
        """Record one outer iteration."""
        for name in ("penalized", "response"):
            values[name] *= self.sense
        values["penalty"] *= abs(self.sense)
        values["gamma"] *= self.weight
        record: Record = {"iteration": len(self.records), **values, "seconds": self.seconds}
        self.records.append(record)
        if self.verbose:
            line = " ".join(f"{record[name]:>{width}{style}}" for name, width, style in COLUMNS)
            print(line, file=self.stream, flush=True)
        if self.callback is not None:
            self.callback(record)

    def status(self, text: str) -> None:
        """Print the status line."""
        if self.verbose:
            print(text, file=self.stream, flush=True)

    def timed(self, name: str) -> _Timer:
        """Context manager that adds its wall time to ``timings[name]``."""
        return _Timer(self.timings, name)


class _Timer:
    def __init__(self, timings: dict[str, float], name: str):
        self.timings, self.name = timings, name

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.timings[self.name] = (
            self.timings.get(self.name, 0.0) + time.perf_counter() - self.began
        )
