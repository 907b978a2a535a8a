"""Disks that fill up, folders that may not be written, files that are damaged or hostile: one clear error, no loss."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
import zipfile

import numpy as np
import pytest

import blocc
from blocc.errors import CorruptFileError, NotWrittenError
from blocc.methods.homotopy import CHECKPOINT
from blocc.result import read_archive, write_archive
from tests.core import problems

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="uses Linux resource limits"
)


def run(**options):
    qp = problems.CoupledQP(2, 3, 3, 0, seed=1)
    start = np.zeros(2), np.zeros(3)
    return blocc.minimize(qp.f, qp.g, qp.c, *start, x_set=qp.x_set, on_failure="return", **options)


def checkpoint(path):
    """A checkpoint as a stopped run leaves it."""

    def stop(record):
        if record["gamma"] > 1:
            raise KeyboardInterrupt

    with pytest.raises(blocc.SolveInterrupted):
        run(checkpoint=path, callback=stop)
    return path


# ---- writing ------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_made(tmp_path):
    path = tmp_path / "new" / "folder"
    result = run(checkpoint=path / "checkpoint.npz")
    assert (path / "checkpoint.npz").exists()
    assert result.save(path / "more" / "result.npz").exists()


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    seen = []
    with pytest.raises(NotWrittenError, match=r"checkpoint\.npz: cannot be written"):
        run(checkpoint=tmp_path / "file" / "checkpoint.npz", callback=seen.append)
    assert seen == []


def test_a_disk_that_fills_up_on_the_way_costs_no_answer(tmp_path, monkeypatch):
    """The solve goes on with a warning; the checkpoint before stays, whole, and can be resumed."""
    path = tmp_path / "checkpoint.npz"
    expected = run()
    calls, true_fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        true_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"No space left.*The solve goes on"):
        result = run(checkpoint=path)
    monkeypatch.undo()
    assert result.x.tobytes() == expected.x.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.npz"]
    resumed = run(resume=path)
    assert resumed.objective == pytest.approx(expected.objective, abs=1e-8)


@LINUX
def test_a_true_limit_on_file_size_leaves_the_old_file_and_no_litter(tmp_path):
    """The kernel's own refusal half way through a write (RLIMIT_FSIZE), in a process of its own."""
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from blocc.errors import NotWrittenError
        from blocc.result import write_archive
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        path = Path(sys.argv[1]) / "result.npz"
        write_archive(path, {"x": np.zeros(10)}, {"format": "test"})
        old = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_archive(path, {"x": np.zeros(1_000_000)}, {"format": "test"})
        except NotWrittenError as error:
            assert "result.npz: cannot be written" in str(error), error
        else:
            raise SystemExit("written beyond the limit")
        assert path.read_bytes() == old
        assert [file.name for file in path.parent.iterdir()] == ["result.npz"]
        print("whole")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.strip() == "whole", done.stderr


# ---- reading ------------------------------------------------------------------------------------------------------


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    """Ours are stored plain, so a small file can never unpack to a large one."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, meta=np.zeros(200_000_000, np.uint8), digest=np.zeros(32, np.uint8))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(CorruptFileError, match=r"bomb\.npz.*compressed"):
        blocc.Result.load(path)


def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    path = tmp_path / "claims.npz"
    head = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (40000000000,)}"
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.npy", head + len(text).to_bytes(2, "little") + text + b"\0" * 80)
    with pytest.raises(CorruptFileError, match=r"claims\.npz"):
        blocc.Result.load(path)


@pytest.mark.parametrize("kind", ["a result", "a checkpoint of a later version"])
def test_a_file_of_another_kind_is_refused(kind, tmp_path):
    path = tmp_path / "other.npz"
    if kind == "a result":
        run().save(path)
    else:
        arrays, meta = read_archive(checkpoint(path), CHECKPOINT)
        write_archive(path, arrays, {**meta, "format": f"{CHECKPOINT}0"})
    with pytest.raises(CorruptFileError, match=f"not a {CHECKPOINT} file"):
        run(resume=path)


def test_a_damaged_checkpoint_is_refused_or_means_the_same(tmp_path):
    """Bits turned over the whole file, and every kind of truncation."""
    whole = checkpoint(tmp_path / "whole.npz").read_bytes()
    expected = read_archive(tmp_path / "whole.npz", CHECKPOINT)
    path, random, refused = tmp_path / "damaged.npz", np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << int(random.integers(8))
        if random.random() < 0.2:
            del damaged[random.integers(len(whole)) :]
        path.write_bytes(damaged)
        try:
            arrays, meta = read_archive(path, CHECKPOINT)
        except CorruptFileError:
            refused += 1
            continue
        assert meta == expected[1]
        for name, array in arrays.items():
            assert array.tobytes() == expected[0][name].tobytes()
    assert refused > 150


@pytest.mark.parametrize("missing", ["state", "problem", "records", "x", "interior"])
def test_an_incomplete_checkpoint_is_refused(missing, tmp_path):
    path = checkpoint(tmp_path / "checkpoint.npz")
    arrays, meta = read_archive(path, CHECKPOINT)
    arrays.pop(missing, None)
    meta.pop(missing, None)
    write_archive(path, arrays, meta)
    with pytest.raises(CorruptFileError, match=r"checkpoint\.npz: not a complete"):
        run(resume=path)


def test_no_warning_where_nothing_is_wrong(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(checkpoint=tmp_path / "checkpoint.npz")
