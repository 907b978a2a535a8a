"""Ctrl-C during compiled functions."""

from __future__ import annotations

import pytest

from blocc.applications.transport import compiled as module


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_an_interrupt_that_numba_swallowed_is_raised_again(monkeypatch, levels):
    def raising(cause):
        def dispatcher():
            error = cause
            for _ in range(levels):
                above = SystemError("returned a result with an exception set")
                above.__cause__ = error
                error = above
            raise error

        monkeypatch.setattr(module, "njit", lambda cache, nogil: lambda function: dispatcher)
        return module.compiled(len)

    with pytest.raises(KeyboardInterrupt):
        raising(KeyboardInterrupt())()
    for other in (ValueError(), None):
        with pytest.raises(SystemError):
            raising(other)()


def test_compiled_functions_keep_their_name_and_value():
    @module.compiled
    def total(values):  # type: ignore[no-untyped-def]
        """Sum."""
        result = 0.0
        for value in values:
            result += value
        return result

    assert (total.__name__, total.__doc__) == ("total", "Sum.")
    assert total((1.0, 2.5)) == 3.5
