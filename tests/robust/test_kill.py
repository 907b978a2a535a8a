"""A run that is killed at any moment resumes from its checkpoint and ends where it would have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import blocc
from blocc.errors import InvalidInputError
from blocc.methods.homotopy import CHECKPOINT
from blocc.result import Result, read_archive
from tests.core import problems

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
ROOT = Path(__file__).resolve().parents[2]

FUNCTIONAL = """
    from tests.core import problems
    qp = problems.CoupledQP(3, 6, 5, 1, seed=4)
    import numpy as np
    def solve(**options):
        return blocc.minimize(qp.f, qp.g, qp.c, np.zeros(3), np.zeros(6), h=qp.h, x_set=qp.x_set, **options)
"""
TRANSIT = """
    from blocc.applications.transport import load
    from blocc.applications.transport.model import TransitModel
    def solve(**options):
        model = TransitModel(load("nine_node"))
        return blocc.solve(model, on_failure="return", **options)
"""


def script(problem: str) -> str:
    """Solve, from the checkpoint where there is one, and save the result."""
    return textwrap.dedent(
        """
        import sys, warnings
        from pathlib import Path
        warnings.simplefilter("ignore")
        import blocc
        {problem}
        folder = Path(sys.argv[1])
        checkpoint = folder / "checkpoint.npz"
        print("ready", flush=True)
        result = solve(checkpoint=checkpoint, **({{"resume": checkpoint}} if checkpoint.exists() else {{}}))
        result.save(folder / "result.npz")
        """
    ).format(problem=textwrap.dedent(problem).strip())


def start(problem: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script(problem), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


def finish(problem: str, folder: Path) -> tuple[Result, float]:
    process = start(problem, folder)
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors
    return Result.load(folder / "result.npz"), time.monotonic() - began


def kill_again_and_again(problem: str, folder: Path, kills: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    (folder / "whole").mkdir()
    expected, seconds = finish(problem, folder / "whole")
    (folder / "killed").mkdir()
    checkpoint, stages = folder / "killed" / "checkpoint.npz", []
    for _ in range(kills):
        process = start(problem, folder / "killed")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0.0, 0.9 * seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if checkpoint.exists():  # whole, whenever the kill came
            stages.append(read_archive(checkpoint, CHECKPOINT)[1]["state"]["stage"])
    assert stages == sorted(stages)  # nothing but the last interval is ever lost
    resumed, _ = finish(problem, folder / "killed")
    assert resumed.status is expected.status
    assert resumed.objective == pytest.approx(expected.objective, rel=1e-7, abs=1e-7)
    np.testing.assert_allclose(resumed.x, expected.x, atol=1e-5 * (1 + np.abs(expected.x).max()))
    left = [file.name for file in (folder / "killed").iterdir() if file.suffix != ".part"]
    assert sorted(left) == ["checkpoint.npz", "result.npz"]


def test_a_functional_run_killed_at_random_moments_ends_the_same(tmp_path):
    kill_again_and_again(FUNCTIONAL, tmp_path, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [FUNCTIONAL, TRANSIT], ids=["functional", "transit"])
def test_runs_killed_many_times_end_the_same(problem, tmp_path):
    kill_again_and_again(problem, tmp_path, kills=8, seed=1)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    """Same shapes and options: only the lower level's value tells, and its bound would be another problem's."""
    path = tmp_path / "checkpoint.npz"

    def run(seed: int, **options):
        qp = problems.CoupledQP(2, 3, 3, 0, seed=seed)
        return blocc.minimize(
            qp.f, qp.g, qp.c, np.zeros(2), np.zeros(3), x_set=qp.x_set, tol=1e-3, **options
        )

    run(1, checkpoint=path)
    with pytest.raises(
        InvalidInputError, match=r"checkpoint of another solve .the lower level's value"
    ):
        run(2, resume=path)
    assert run(1, resume=path).success
