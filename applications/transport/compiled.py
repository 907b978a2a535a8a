"""Compilation by numba, with Ctrl-C as in any other function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that is called from Python; those that compiled functions call need ``numba.njit`` itself.

    Where Ctrl-C comes during a call, numba returns the result all the same, and Python turns that into a SystemError,
    or a chain of them, whose cause is the KeyboardInterrupt. Here it becomes a KeyboardInterrupt again, so that what
    catches one can. The call leaves Python's lock to other threads.
    """
    dispatcher = njit(cache=True, nogil=True)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return dispatcher(*arguments)
        except SystemError as error:
            cause: BaseException | None = error
            while isinstance(cause, SystemError):
                cause = cause.__cause__
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise

    return call
