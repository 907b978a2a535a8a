"""Strict arrays on a device that is not the host's: nothing converts silently, no data-dependent shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import array_api_strict
import pytest
from array_api_strict._array_object import Array

SYNCS = (
    "__float__",
    "__bool__",
    "__index__",
    "__int__",
    "__complex__",
    "__iter__",
    "__dlpack__",
    "__array__",
    "__buffer__",
    "to_device",
)


@pytest.fixture
def device() -> Iterator[object]:
    """``device1`` of array-api-strict, with its strictest flags."""
    array_api_strict.set_array_api_strict_flags(data_dependent_shapes=False, boolean_indexing=False)
    yield array_api_strict.Device("device1")
    array_api_strict.reset_array_api_strict_flags()


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts every call, from outside array-api-strict, that would make a host wait for a device."""
    import sys

    counts: Counter[str] = Counter()

    def counted(name: str):
        original = getattr(Array, name)

        def method(self, *arguments, **keywords):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("array_api_strict"):
                counts[name] += 1
            return original(self, *arguments, **keywords)

        return method

    for name in SYNCS:
        if hasattr(Array, name):
            monkeypatch.setattr(Array, name, counted(name))
    return counts
