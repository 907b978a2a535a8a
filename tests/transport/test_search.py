"""The global search: the same design for any number of jobs, after a kill and a resume, when a worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import blocc
from blocc.applications import transport
from blocc.applications.transport import critical, prices, reference, search
from blocc.applications.transport.model import TransitModel


@pytest.fixture(scope="module")
def model():
    return TransitModel(transport.load("three_node"))


@pytest.fixture(scope="module")
def nine():
    return TransitModel(transport.load("nine_node"))


def test_search_does_not_fall_and_its_profit_is_that_of_cvxpy(nine):
    seen = []
    found = search.search(nine, trials=8, callback=seen.append)
    profits = [now.profit for now in seen]
    assert sorted({now.trials for now in seen}) == [0, 4, 8]
    assert (
        sum(now.trials == 0 for now in seen) > 2
    )  # something is shown while the first climb lasts
    assert profits == sorted(profits)
    assert profits[-1] > profits[0]
    capacity = found.capacity(nine)
    assert reference.profit(nine.network, capacity) == pytest.approx(found.profit, rel=1e-4)


def test_design_is_the_same_for_any_number_of_jobs(nine):
    alone = search.search(nine, trials=4, n_jobs=1)
    together = search.search(nine, trials=4, n_jobs=2)
    assert alone.state.tobytes() == together.state.tobytes()


def test_perturbations_differ_by_seed_and_kind():
    capacity = np.linspace(0.0, 2.0, 200)

    def way(seed, closes, perturbed):
        return perturbed(capacity, np.random.default_rng(seed), closes)

    for perturbed in (search.perturbed, prices.perturbed):
        ways = [way(seed, closes, perturbed) for seed in (0, 1) for closes in (False, True)]
        for index, one in enumerate(ways):
            assert all(np.any(one != other) for other in ways[:index])
            assert np.all(one >= 0)
        np.testing.assert_array_equal(ways[0], way(0, False, perturbed))
    assert np.count_nonzero(way(0, False, search.perturbed) == 0) <= 1  # a closed link may open


KILLED = """
import sys, time
from blocc.applications import transport
slow = lambda record: print("round", flush=True) or time.sleep(0.1)
transport.design(transport.load("three_node"), starts=8, checkpoint=sys.argv[1], callback=slow)
"""


def test_killed_search_resumes_to_the_same_design(tmp_path):
    checkpoint = tmp_path / "search.npz"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(checkpoint)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while not checkpoint.exists():  # the first climb reports as well
        assert process.stdout.readline() == "round\n"
    assert process.stdout.readline() == "round\n"
    process.kill()
    process.wait()
    resumed = search._resumed(
        checkpoint, search._identity(TransitModel(transport.load("three_node")), 0, None, 1e-6)
    )
    assert resumed.trials < 8
    network = transport.load("three_node")
    again = transport.design(network, starts=8, resume=checkpoint)
    whole = transport.design(network, starts=8)
    assert again.capacity.tobytes() == whole.capacity.tobytes()
    assert again.profit == whole.profit


def test_resumed_search_knows_its_critical_point(nine, tmp_path):
    model, checkpoint = nine, tmp_path / "search.npz"
    found = search.search(model, trials=0, checkpoint=checkpoint)
    again = search.search(model, trials=0, resume=checkpoint)
    assert again.point.proof(model) == found.point.proof(model)
    assert found.point.proof(model).stationarity <= 1e-6


def test_checkpoint_of_another_search_is_refused(model, tmp_path):
    checkpoint = tmp_path / "search.npz"
    search.search(model, trials=0, checkpoint=checkpoint)
    with pytest.raises(blocc.InvalidInputError, match="another network, seed"):
        search.search(model, trials=0, seed=1, resume=checkpoint)
    with pytest.raises(blocc.InvalidInputError, match="checkpoint of another"):
        search.search(model, trials=0, tol=1e-4, resume=checkpoint)


class _Mortal(TransitModel):
    """A model that ends the worker in which it is solved first."""

    def lower(self, x, *, tol, warm=None):
        if os.getpid() != self.parent and not self.died.exists():
            self.died.touch()
            os._exit(1)
        return super().lower(x, tol=tol, warm=warm)


def test_worker_that_dies_is_reported_and_its_trials_redone(model, tmp_path):
    mortal = _Mortal(model.network, maximum=10.0)  # with limits, climbs solve the lower level
    mortal.parent, mortal.died = os.getpid(), tmp_path / "died"
    with pytest.warns(UserWarning, match="a worker of the search died"):
        found = search.search(mortal, trials=4, n_jobs=2)
    assert mortal.died.exists()
    expected = search.search(TransitModel(model.network, maximum=10.0), trials=4)
    assert found.trials == 4
    assert found.state.tobytes() == expected.state.tobytes()


def test_ctrl_c_returns_the_best_so_far():
    def stop(record):
        if record["iteration"] == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    network = transport.load("nine_node")
    # a suite that a shell started in the background ignores Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        plan = transport.design(network, starts=4000, callback=stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert plan.status is blocc.Status.INTERRUPTED
    assert not plan.result.success
    assert plan.result.certificate.lower_ok(1e-6)
    assert reference.profit(network, plan.capacity) == pytest.approx(plan.profit, rel=1e-6)
    assert plan.profit > 10


def test_ctrl_c_on_the_way_to_the_critical_point_keeps_what_the_search_found(monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(critical.Settling, "run", stopped)
    network = transport.load("nine_node")
    plan = transport.design(network)
    assert plan.status is blocc.Status.INTERRUPTED
    assert plan.result.certificate.lower_ok(1e-6)
    assert reference.profit(network, plan.capacity) == pytest.approx(plan.profit, rel=1e-6)
    assert plan.profit > 17


ON_DASK = """
import sys
import distributed, joblib
import numpy as np
from blocc.applications import transport
from blocc.applications.transport import search
from blocc.applications.transport.model import TransitModel

if __name__ == "__main__":
    model = TransitModel(transport.load("three_node"))
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        found = search.search(model, trials=8)
        ran = client.run(lambda dask_worker: len(dask_worker.state.log))
    assert len(ran) == 2 and all(ran.values()), ran
    np.save(sys.argv[1], found.state)
"""


@pytest.mark.slow
def test_dask_cluster_runs_the_trials_without_any_change(model, tmp_path):
    pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")
    script, states = tmp_path / "on_dask.py", tmp_path / "states.npy"
    script.write_text(ON_DASK)
    subprocess.run([sys.executable, script, states], check=True, timeout=150)
    assert np.load(states).tobytes() == search.search(model, trials=8).state.tobytes()
