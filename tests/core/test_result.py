"""Result: what it holds, saved and loaded exactly, damaged and foreign files refused, old files left alone."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pickle
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from hypothesis.extra.numpy import arrays as numpy_arrays

import blocc
from blocc.errors import CorruptFileError, InvalidInputError
from blocc.result import Result, Status, read_archive, write_archive
from tests.core.problems import toy

CERTIFICATE = {
    "lower_gap": 1e-9,
    "violation": 0.0,
    "dual_infeasibility": 2e-12,
    "complementarity": 0.1 + 0.2,
    "stationarity": 5e-324,
    "gamma": math.inf,
    "response_objective": -1.5,
    "response_violation": 0.0,
    "penalized_objective": -1.25,
    "bound": None,
    "bound_gap": None,
}


def certificate(**changes):
    fields = {field.name for field in dataclasses.fields(blocc.Certificate)}
    values = {**dict.fromkeys(fields, 0.0), **CERTIFICATE, **changes}
    return blocc.Certificate(**values)


def example(**changes) -> Result:
    values = {
        "x": np.array([0.1, -2.5]),
        "y": {"flow": np.arange(6.0).reshape(2, 3) / 7, "share": np.array(0.3)},
        "objective": 1 / 3,
        "lower_objective": -0.0,
        "bound": None,
        "status": Status.STATIONARY,
        "duals": {"cap": np.array([1e-300, 0.0]), "names with / and ünicode": np.zeros((0, 2))},
        "certificate": certificate(),
        "records": ({"iteration": 0, "method": "lbfgsb", "gamma": math.inf, "seconds": 0.1},),
        "timings": {"total": 1.25},
        "message": 'said "so"\n√',
    }
    return Result(**{**values, **changes})


def flat(value, prefix=""):
    """Leaves of a nested value, arrays as (dtype, shape, bytes): equal exactly where the values are."""
    if isinstance(value, dict):
        return {f"{prefix}/{k}": leaf for key in value for k, leaf in flat(value[key], key).items()}
    if isinstance(value, (tuple, list)):
        return flat(dict(enumerate(value)), prefix)
    if isinstance(value, np.ndarray):
        return {prefix: (value.dtype.str, value.shape, value.tobytes())}
    return {prefix: repr(value)}


def content(result: Result) -> dict:
    return flat({**dict(result), "certificate": result.certificate.to_dict()})


# ---- what it holds ------------------------------------------------------------------------------------------------


def test_items_are_attributes():
    result = example()
    assert set(result) == {f.name for f in dataclasses.fields(Result)} | {"success"}
    assert len(result) == len(list(result))
    for key in result:
        assert result[key] is getattr(result, key)
    assert "x" in result
    assert "nothing" not in result
    assert "save" not in result  # methods are not items
    assert dict(**result)["objective"] == 1 / 3
    with pytest.raises(KeyError, match="nothing"):
        result["nothing"]
    with pytest.raises(AttributeError):
        _ = result.nothing


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().objective = 0.0


def test_equality_and_hash_are_identity():
    """Arrays have no truth value, so comparing by content could only fail."""
    result = example()
    assert result == result
    assert result != example()
    assert len({result, result}) == 1


@pytest.mark.parametrize("status", Status)
def test_success_is_a_property_of_the_status(status):
    assert example(status=status).success is status.success
    assert str(status) == status.value
    assert len(status.value.split()) > 3  # a sentence


def test_success_and_its_opposite():
    assert Status.OPTIMAL.success
    assert Status.STATIONARY.success
    for status in ("FEASIBLE", "LOWER_NOT_SOLVED", "ITERATION_LIMIT", "INTERRUPTED"):
        assert not Status[status].success


def test_text_shows_status_objective_bound_and_certificate():
    text = str(example(bound=0.25, certificate=certificate(bound=0.25, bound_gap=0.0625)))
    for expected in ("stationary", "0.33333333", "bound 0.25", "lower_gap", "1.25 s", "6.25e-02"):
        assert expected in text
    assert "bound none" in str(example())


def test_to_frame_is_tidy():
    frame = example(x=np.array([[1.0, 2.0]])).to_frame()
    assert list(frame.columns) == ["level", "variable", "index", "value"]
    rows = {(r.level, r.variable, r.index): r.value for r in frame.itertuples(index=False)}
    assert rows[("upper", "x", (0, 1))] == 2.0
    assert rows[("lower", "flow", (1, 2))] == 5 / 7
    assert rows[("lower", "share", ())] == 0.3
    assert rows[("dual", "cap", 0)] == 1e-300
    assert len(rows) == 2 + 6 + 1 + 2


def test_history_and_plot(tmp_path):
    f, g, c = toy(4, 1.0)
    result = blocc.minimize(
        f, g, c, [1.0], [0.5], x_set=blocc.Box(0, 3), y_set=blocc.Box(0, 3), on_failure="return"
    )
    history = result.history
    assert list(history["iteration"]) == list(range(len(result.records)))
    assert history["seconds"].is_monotonic_increasing
    figure = result.plot(tmp_path / "history.png")
    assert len(figure.axes) == 3
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


# ---- saved and loaded ---------------------------------------------------------------------------------------------


def test_round_trip_is_exact(tmp_path):
    result = example()
    path = result.save(tmp_path / "result.npz")
    assert path == tmp_path / "result.npz"
    assert content(Result.load(path)) == content(result)


floats = st.floats(allow_nan=True, allow_infinity=True)
values = numpy_arrays(
    st.sampled_from([np.float64, np.float32, np.int64]),
    array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda name: "\\" not in name and ":" not in name
)
named = st.dictionaries(names, values, max_size=3)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(
    x=st.one_of(values, named),
    y=st.one_of(values, named),
    duals=named,
    objective=floats,
    bound=st.one_of(st.none(), floats),
    status=st.sampled_from(Status),
    message=st.text(st.characters(exclude_categories=["Cs"])),
    records=st.lists(
        st.dictionaries(st.text(max_size=5), st.one_of(floats, st.integers(), st.text())),
        max_size=2,
    ),
)
def test_round_trip_of_any_content_is_exact(tmp_path, **changes):
    result = example(**{**changes, "records": tuple(changes["records"])})
    loaded = Result.load(result.save(tmp_path / "result.npz"))
    assert content(loaded) == content(result)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_round_trip_of_a_solve(dtype, tmp_path):
    f, g, c = toy(4, 1.0)
    start = np.array([1.0], dtype=dtype), np.array([0.5], dtype=dtype)
    result = blocc.minimize(
        f,
        g,
        c,
        *start,
        x_set=blocc.Box(0, 3),
        y_set=blocc.Box(0, 3),
        gamma=10.0,
        on_failure="return",
    )
    assert result.x.dtype == dtype
    assert content(Result.load(result.save(tmp_path / "solve.npz"))) == content(result)


def test_any_file_name_is_kept(tmp_path):
    """No suffix is added, so that what was asked for is what is there."""
    example().save(tmp_path / "answer")
    assert [file.name for file in tmp_path.iterdir()] == ["answer"]
    assert content(Result.load(str(tmp_path / "answer"))) == content(example())


def test_saved_files_follow_the_umask(tmp_path):
    """Others may read them, as they may any new file."""
    before = os.umask(0o022)
    try:
        path = example().save(tmp_path / "result.npz")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


# ---- damaged, foreign, dangerous ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, bytes]:
    path = example().save(tmp_path_factory.mktemp("saved") / "result.npz")
    return path, path.read_bytes()


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_noticed_or_harmless(saved, data):
    """After up to three changed bytes the file is refused, or every number in it is what it was."""
    path, original = saved
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] ^= data.draw(st.integers(1, 255))
    broken = path.with_name("damaged.npz")
    broken.write_bytes(damaged)
    try:
        loaded = Result.load(broken)
    except CorruptFileError:
        return
    assert content(loaded) == content(example())


def test_every_single_changed_byte_is_noticed_or_harmless(saved):
    """Every position, one bit each: exhaustive where the random test samples."""
    path, original = saved
    broken = path.with_name("bits.npz")
    refused = 0
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << (position % 8)
        broken.write_bytes(damaged)
        try:
            loaded = Result.load(broken)
        except CorruptFileError:
            refused += 1
            continue
        assert content(loaded) == content(example()), position
    assert refused > 0.5 * len(original)


def test_every_truncation_is_noticed(saved):
    path, original = saved
    broken = path.with_name("truncated.npz")
    for length in [*range(0, len(original), 37), len(original) - 1]:
        broken.write_bytes(original[:length])
        with pytest.raises(CorruptFileError, match=r"truncated\.npz"):
            Result.load(broken)


class Bomb:
    """Runs code when unpickled."""

    exploded = False

    def __reduce__(self):
        return (setattr, (Bomb, "exploded", True))


def member(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def archive(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as target:
        for name, value in members.items():
            target.writestr(f"{name}.npy", value)


def meta(**changes) -> bytes:
    text = json.dumps({"format": "blocc-result-1", **changes}).encode()
    return member(np.frombuffer(text, np.uint8))


FOREIGN = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("x,y\n1,2\n"),
    "npy": lambda p: p.write_bytes(member(np.zeros(3))),
    "npz of something else": lambda p: archive(p, x=member(np.zeros(3))),
    "zip without arrays": lambda p: archive(p, x=b"text"),
    "pickle": lambda p: p.write_bytes(pickle.dumps(Bomb())),
    "pickle inside": lambda p: archive(p, meta=member(np.array([Bomb()], dtype=object))),
    "pickle beside": lambda p: archive(p, meta=meta(), x=member(np.array([Bomb()], dtype=object))),
    "meta is no JSON": lambda p: archive(p, meta=member(np.frombuffer(b"{", np.uint8))),
    "meta is a list": lambda p: archive(p, meta=member(np.frombuffer(b"[1]", np.uint8))),
    "meta is a number": lambda p: archive(p, meta=member(np.frombuffer(b"1", np.uint8))),
    "folder": lambda p: p.mkdir(),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused_and_nothing_in_them_runs(case, tmp_path):
    path = tmp_path / "foreign.npz"
    FOREIGN[case](path)
    with pytest.raises(CorruptFileError, match=r"foreign\.npz"):
        Result.load(path)
    assert Bomb.exploded is False


WELL_FORMED = {
    "another format": (
        {"x": np.zeros(1)},
        {"format": "blocc-result-9"},
        "not a blocc-result-1 file",
    ),
    "a checkpoint": (
        {"x": np.zeros(1)},
        {"format": "blocc-checkpoint-2"},
        "not a blocc-result-1 file",
    ),
    "no dictionary": ({"x": np.zeros(1)}, ["format"], "not a blocc-result-1 file"),
    "incomplete": ({"x": np.zeros(1)}, {"format": "blocc-result-1"}, "not a complete blocc result"),
    "unknown status": (
        {"x": np.zeros(1), "y": np.zeros(1)},
        {"format": "blocc-result-1", "mappings": ["duals"], "status": "GREAT", "objective": 0.0}
        | {"lower_objective": 0.0, "bound": None, "certificate": {}, "records": [], "timings": {}},
        "not a complete blocc result",
    ),
}


@pytest.mark.parametrize("case", WELL_FORMED)
def test_intact_files_of_another_kind_are_refused(case, tmp_path):
    arrays, text, message = WELL_FORMED[case]
    path = write_archive(tmp_path / "other.npz", arrays, text)
    with pytest.raises(CorruptFileError, match=message):
        Result.load(path)


def test_the_bomb_works():
    """Otherwise the test above proves nothing."""
    pickle.loads(pickle.dumps(Bomb()))
    assert Bomb.exploded is True
    Bomb.exploded = False


def test_a_file_that_lost_an_array_is_refused(tmp_path):
    path = example().save(tmp_path / "result.npz")
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    lost = [name for name in members if "cap" in name]
    assert len(lost) == 1
    with zipfile.ZipFile(path, "w") as target:
        for name, value in members.items():
            if name not in lost:
                target.writestr(name, value)
    with pytest.raises(CorruptFileError, match=r"result\.npz"):
        Result.load(path)


def test_a_file_that_may_not_be_read_is_bad_input(tmp_path, monkeypatch):
    path = example().save(tmp_path / "result.npz")

    def refused(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", refused)
    with pytest.raises(InvalidInputError, match=r"result\.npz: may not be read .Permission denied"):
        Result.load(path)


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(InvalidInputError, match=r"nowhere\.npz: no such file"):
        Result.load(tmp_path / "nowhere.npz")


# ---- the old file survives ----------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path) -> tuple[Path, bytes]:
    path = example(message="old").save(tmp_path / "result.npz")
    return path, path.read_bytes()


def assert_untouched(old):
    path, original = old
    assert path.read_bytes() == original
    assert list(path.parent.iterdir()) == [path]


def failing(*arguments, **keywords):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(function, old, monkeypatch):
    monkeypatch.setattr(os, function, failing)
    with pytest.raises(OSError, match="No space left"):
        example(message="new").save(old[0])
    monkeypatch.undo()
    assert_untouched(old)


def test_a_full_disk_half_way_leaves_the_old_file(old, monkeypatch):
    def half(stream, **arrays):
        stream.write(b"PK")
        failing()

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="No space left"):
        example(message="new").save(old[0])
    assert_untouched(old)


def test_an_interrupt_half_way_leaves_the_old_file(old, monkeypatch):
    def interrupt(stream, **arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        example(message="new").save(old[0])
    assert_untouched(old)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_folder_leaves_the_old_file(old):
    old[0].parent.chmod(0o555)
    try:
        with pytest.raises(OSError, match="Permission denied"):
            example(message="new").save(old[0])
        assert_untouched(old)
    finally:
        old[0].parent.chmod(0o755)


def test_what_has_no_text_form_is_refused_before_the_old_file_is_touched(old):
    with pytest.raises(TypeError):
        example(records=({"x": object()},)).save(old[0])
    assert_untouched(old)


def test_archives_are_plain_npz(tmp_path):
    """NumPy alone reads them: the arrays under their names, the rest as JSON text."""
    path = example().save(tmp_path / "result.npz")
    with np.load(path, allow_pickle=False) as archive:
        assert archive["x"].tolist() == [0.1, -2.5]
        text = json.loads(archive["meta"].tobytes())
    assert text["objective"] == 1 / 3
    assert read_archive(path, "blocc-result-1")[1]["message"] == 'said "so"\n√'
