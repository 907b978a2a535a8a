"""Files are written whole or not at all, and what stops a write is said in one line."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from blocc.errors import InvalidInputError, NotWrittenError
from blocc.files import replacing, write_atomically


def test_replacing_is_atomic(tmp_path, monkeypatch):
    """A disk that fills up half way leaves the old file and no litter."""
    path = tmp_path / "design.csv"
    write_atomically(path, b"old")
    assert path.read_bytes() == b"old"

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWrittenError, match=r"design\.csv.*No space left") as raised:
        write_atomically(path, b"new")
    assert str(tmp_path) in str(raised.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path):
    mask = os.umask(0o022)
    try:
        path = write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_half_way_leaves_the_old_file_and_no_litter(tmp_path, error):
    path = write_atomically(tmp_path / "old", b"old")

    def half():
        with replacing(path) as stream:
            stream.write(b"half of the n")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named_with_cause_and_remedy(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "taken", tmp_path / "file" / "below"):
        with pytest.raises(NotWrittenError, match="choose another directory") as raised:
            write_atomically(path, b"new")
        assert str(path) in str(raised.value)
        assert isinstance(raised.value, OSError)
        assert isinstance(raised.value, InvalidInputError)
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", tmp_path / "taken"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_device_is_reported(tmp_path):
    """A true ENOSPC, from the kernel, at the flush of what was written."""

    def write():
        with replacing(tmp_path / "a") as stream:
            os.dup2(os.open("/dev/full", os.O_WRONLY), stream.fileno())
            stream.write(b"x")

    with pytest.raises(NotWrittenError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_directory_is_reported(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    root = os.geteuid() == 0  # root may write anywhere: act as somebody else meanwhile
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(NotWrittenError, match="Permission denied"):
            write_atomically(folder / "a", b"")
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
    assert list(folder.iterdir()) == []
