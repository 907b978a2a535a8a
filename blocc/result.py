"""The result of a solve: frozen, with attribute and item access, saved without pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from blocc.arrays import to_numpy
from blocc.certificate import Certificate
from blocc.errors import CorruptFileError, InvalidInputError, require
from blocc.files import replacing

Array = Any
FORMAT = "blocc-result-1"


class Status(Enum):
    """Why a solve ended. The value is the sentence to show."""

    OPTIMAL = (
        "globally optimal: the objective attains a proven bound, and the lower level is solved"
    )
    STATIONARY = "stationary: no first-order descent direction, and the lower level is solved"
    IMPROVED = (
        "improved: moved without loss of the true objective from a stationary point of the penalised problem; "
        "the lower level is solved"
    )
    ROUNDED = (
        "rounded: discrete values, sought from a certified continuous answer; the lower level is solved at them, "
        "and stationarity is not claimed"
    )
    FEASIBLE = (
        "bilevel feasible: the lower level is solved at x, but stationarity in x was not reached"
    )
    LOWER_NOT_SOLVED = "not certified: the lower level is not solved to tolerance at the answer"
    ITERATION_LIMIT = "stopped at the iteration limit; the lower level is solved at x"
    INTERRUPTED = "interrupted; the best point so far is returned"

    @property
    def success(self) -> bool:
        """Whether the status is a certified answer."""
        return self in (Status.OPTIMAL, Status.STATIONARY, Status.IMPROVED, Status.ROUNDED)

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, eq=False)
class Result(Mapping[str, Any]):
    """Answer of a bilevel solve, with its certificate.

    Fields can be read as attributes or items: ``result.x``, ``result["x"]``.

    Attributes
    ----------
    x, y : array, or dict of arrays by variable name (CVXPY front end)
        Upper and lower variables.
    objective : float
        f(x, y) at the returned pair.
    lower_objective : float
        g(x, y) at the returned pair.
    bound : float or None
        Proven bound on the optimal objective, None where there is none.
    status : Status
        Its value is a sentence.
    duals : mapping of str to array
        Lower-level multipliers at x, by constraint name; nonnegative for inequalities.
    certificate : Certificate
        Residuals recomputed from the problem after the solve.
    records : tuple of dict
        One entry an outer iteration; :attr:`history` is the same as a DataFrame.
    timings : mapping of str to float
        Wall seconds by phase.
    message : str
        Status, and what to do about it where it is not a success.
    """

    x: Any
    y: Any
    objective: float
    lower_objective: float
    bound: float | None
    status: Status
    duals: Mapping[str, Any]
    certificate: Certificate
    records: tuple[dict[str, Any], ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def success(self) -> bool:
        """Whether the answer is certified optimal or stationary."""
        return self.status.success

    @property
    def history(self) -> Any:
        """The outer iterations as a pandas DataFrame: gamma, penalised and true upper values, residuals, seconds."""
        pandas = require("pandas", "plot", "result.history")
        return pandas.DataFrame(list(self.records))

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in set(self)

    def __iter__(self) -> Iterator[str]:
        yield from (f.name for f in fields(self))
        yield "success"

    # identity: arrays have no truth value, so Mapping's comparison by content could only fail
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __len__(self) -> int:
        return len(fields(self)) + 1

    def __str__(self) -> str:
        bound = "none" if self.bound is None else f"{self.bound:.8g}"
        return "\n".join(
            [
                f"status: {self.status.name.lower()} ({self.message or self.status.value})",
                f"objective {self.objective:.8g}   bound {bound}   "
                f"{len(self.records)} iterations   {self.timings.get('total', math.nan):.2f} s",
                str(self.certificate),
            ]
        )

    def to_frame(self) -> Any:
        """Return the answer as a tidy DataFrame: level, variable, index, value."""
        pandas = require("pandas", "plot", "result.to_frame()")
        rows = []
        for level, values in (("upper", self.x), ("lower", self.y), ("dual", self.duals)):
            named = (
                values
                if isinstance(values, Mapping)
                else {"x" if level == "upper" else "y": values}
            )
            for name, value in named.items():
                array = to_numpy(value)
                for index in np.ndindex(array.shape):
                    rows.append(
                        (level, name, index if len(index) != 1 else index[0], float(array[index]))
                    )
        return pandas.DataFrame(rows, columns=["level", "variable", "index", "value"])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Plot upper value, penalty and gamma over the outer iterations.

        Parameters
        ----------
        path : path, optional
            Write the figure there (format by suffix).

        Returns
        -------
        matplotlib.figure.Figure
        """
        figure_module = require("matplotlib.figure", "plot", "result.plot()")
        figure = figure_module.Figure(figsize=(7, 6), layout="constrained")
        axes = figure.subplots(3, 1, sharex=True)
        iterations = [r["iteration"] for r in self.records]
        axes[0].plot(
            iterations, [r["response"] for r in self.records], label="f at the lower level's answer"
        )
        axes[0].plot(
            iterations, [r["penalized"] for r in self.records], "--", label="penalised value"
        )
        if self.bound is not None:
            axes[0].axhline(self.bound, color="0.5", linestyle=":", label="bound")
        axes[0].set_ylabel("upper value")
        axes[0].legend(frameon=False)
        floor = 1e-16
        axes[1].semilogy(
            iterations, [max(abs(r["penalty"]), floor) for r in self.records], label="penalty left"
        )
        axes[1].semilogy(
            iterations, [max(r["stationarity"], floor) for r in self.records], label="stationarity"
        )
        axes[1].legend(frameon=False)
        axes[1].set_ylabel("residual")
        axes[2].semilogy(iterations, [r["gamma"] for r in self.records], drawstyle="steps-post")
        axes[2].set_ylabel("gamma")
        axes[2].set_xlabel("outer iteration")
        if path is not None:
            figure.savefig(path)
        return figure

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one .npz file: arrays, and a JSON text for the rest. No pickle.

        Raises
        ------
        NotWrittenError
            An :class:`OSError` too: if the path cannot be written; an existing file is left as it was.
        """
        arrays: dict[str, Any] = {}
        meta: dict[str, Any] = {
            "format": FORMAT,
            "objective": self.objective,
            "lower_objective": self.lower_objective,
            "bound": self.bound,
            "status": self.status.name,
            "certificate": self.certificate.to_dict(),
            "records": list(self.records),
            "timings": dict(self.timings),
            "message": self.message,
            "mappings": [
                name for name in ("x", "y", "duals") if isinstance(getattr(self, name), Mapping)
            ],
        }
        for name in ("x", "y", "duals"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                arrays.update({f"{name}/{key}": to_numpy(item) for key, item in value.items()})
            else:
                arrays[name] = to_numpy(value)
        return write_archive(path, arrays, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read a result written by :meth:`save`; arrays come back as NumPy arrays.

        Raises
        ------
        CorruptFileError
            If the file is damaged or is not a result. Nothing in it is executed.
        """
        arrays, meta = read_archive(path, FORMAT)
        try:
            parts: dict[str, Any] = {}
            for name in ("x", "y", "duals"):
                if name in meta["mappings"]:
                    prefix = f"{name}/"
                    parts[name] = {
                        k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)
                    }
                else:
                    parts[name] = arrays[name]
            return cls(
                **parts,
                objective=meta["objective"],
                lower_objective=meta["lower_objective"],
                bound=meta["bound"],
                status=Status[meta["status"]],
                certificate=Certificate(**meta["certificate"]),
                records=tuple(meta["records"]),
                timings=meta["timings"],
                message=meta["message"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{path}: not a complete blocc result ({error!r})") from error


def write_archive(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], meta: Mapping[str, Any]
) -> Path:
    """Write arrays and a JSON text to one .npz file, atomically: a reader sees the old file or the whole new one."""
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    members = {"meta": text, **arrays}
    with replacing(path, parents=True) as stream:
        np.savez(stream, **members, digest=_digest(members))
    return Path(path)


def _digest(members: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """SHA-256 of names, types, shapes and contents: a zip file's own checksums miss damage to its directory."""
    digest = hashlib.sha256()
    for name in sorted(members):
        array = np.asarray(members[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def read_archive(
    path: str | os.PathLike[str], expected: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`write_archive` wrote.

    Raises
    ------
    InvalidInputError
        If there is no such file, or it may not be read.
    CorruptFileError
        If it is damaged or of another kind.
    """
    try:
        with zipfile.ZipFile(path) as listing:
            members = listing.infolist()
        # as written, members are stored plain: nothing may unpack to more than the file's own size
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > os.path.getsize(path):
            raise ValueError("it is compressed")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if arrays.pop("digest").tobytes() != _digest(arrays).tobytes():
            raise ValueError("its checksum does not match")
        meta = json.loads(arrays.pop("meta").tobytes().decode())
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path}: no such file") from error
    except PermissionError as error:
        raise InvalidInputError(f"{path}: may not be read ({error.strerror})") from error
    except Exception as error:  # damaged bytes can trip zip, NumPy, zlib and JSON in many ways
        raise CorruptFileError(f"{path}: damaged, or not written by blocc ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != expected:
        raise CorruptFileError(f"{path}: not a {expected} file")
    return arrays, meta
