"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from blocc.errors import NotWrittenError


@contextmanager
def replacing(path: str | os.PathLike[str], *, parents: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears at its path in one step, when the block ends without an error.

    Until then, and after an error or an interrupt, whatever was at the path stays there, and nothing is left beside it.

    Parameters
    ----------
    path : path
    parents : bool, default False
        Create missing parent directories.

    Yields
    ------
    binary file

    Raises
    ------
    NotWrittenError
        If it cannot be written (read-only, full disk, a directory of that name): the message names path and cause.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:  # permissions by the umask, as for any new file
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):  # where nothing can be written there is nothing to remove
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise NotWrittenError(
                f"{target}: cannot be written ({error.strerror or error}); "
                "choose another directory, or make room and check its permissions"
            ) from error
        raise


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file in one step, missing parent directories included; see :func:`replacing`."""
    with replacing(path, parents=True) as stream:
        stream.write(data)
    return Path(path)
