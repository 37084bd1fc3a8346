"""Sweeps on a real local Ray cluster with a real tracking store; the training is a formula."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

TOYS = Path(__file__).resolve().parents[1] / "unit" / "cluster"
sys.path.insert(0, str(TOYS))

from toy_program import ToyProgram  # noqa: E402

from sensorlab.cluster.start import Cluster, connect, disconnect  # noqa: E402
from sensorlab.cluster.sweep import SweepPlan, run_sweep, with_objective  # noqa: E402
from sensorlab.cluster.sweep_config import load_sweep  # noqa: E402
from sensorlab.experiment import experiment_from  # noqa: E402
from sensorlab.runs.client import open_client  # noqa: E402

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster():
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(TOYS))  # the toy's module must be found by the workers too
    connected = connect(num_cpus=2)
    yield connected
    disconnect()
    patch.undo()


def plan(root: Path, **sweep) -> SweepPlan:
    tree = {
        "name": "toy",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "d"},
        "train": {"duration": "6 epochs"},
        "resources": {"cpus_per_worker": 0.5, "data_cpus": 0.5},
    }
    section = {"space": {"optim.lr": {"choice": [1e-3, 1e-1]}}, "algorithm": "grid", "asha": {"grace_epochs": 2}}
    config = load_sweep(section | sweep)
    experiment = with_objective(experiment_from(tree), config)
    return SweepPlan("toy", root, experiment, config, "d", f"sqlite:///{root}/mlruns.db")


def statuses(root: Path) -> dict[str, str]:
    """Status of every run in the store, by name."""
    client = open_client(f"sqlite:///{root}/mlruns.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name: run.info.status for run in client.search_runs(experiments)}


def test_a_sweep_from_start_to_table(cluster: Cluster, tmp_path, capfd):
    space = {"optim.lr": {"loguniform": [1e-4, 1e-1]}}
    sweep = plan(tmp_path, space=space, algorithm="random", num_trials=4, max_concurrent=1)
    outcome = run_sweep(sweep, cluster, ToyProgram())
    printed = capfd.readouterr().out
    trials = list(outcome.ledger.trials.values())
    assert outcome.exit_code == 0
    assert len(trials) == 4
    assert {record.state for record in trials} == {"done", "stopped"}  # seed 0: two good and two bad learning rates
    assert all(record.verified for record in trials)
    assert len({record.config_digest for record in trials}) == 4
    assert all(record.epoch == (6 if record.state == "done" else 2) for record in trials)

    last = json.loads(printed.splitlines()[-1])
    assert last["best"]["objective"] == max(record.objective for record in trials)
    assert Path(last["best"]["checkpoint"]).is_dir()
    assert "viewStateShareKey" in last["link"]
    assert "rank  trial" in printed

    ended = statuses(tmp_path)
    assert ended.pop("toy") == "FINISHED"
    assert ended == {f"trial {r.number:03d}": "FINISHED" if r.state == "done" else "KILLED" for r in trials}
    best = open_client(sweep.tracking_uri or "").get_run(last["parent_run_id"]).data
    assert best.metrics["val/iou"] == pytest.approx(last["best"]["objective"])
    child = open_client(sweep.tracking_uri or "").get_run(last["best"]["run_id"]).data
    assert {"optim.lr", "optim.log10_lr"} <= child.params.keys()
    assert child.tags["sensorlab.config_digest"] == last["best"]["config_digest"]


def test_a_trial_that_ignores_its_configuration_fails(cluster: Cluster, tmp_path, capfd):
    outcome = run_sweep(plan(tmp_path), cluster, ToyProgram(ignore_configuration=True))
    assert outcome.exit_code == 1
    assert outcome.summary["best"] is None
    for record in outcome.ledger.trials.values():
        assert record.state == "failed"
        assert "trained another configuration" in record.reason
        assert record.config_digest in record.reason
    assert statuses(tmp_path) == {"toy": "FINISHED", "trial 000": "FAILED", "trial 001": "FAILED"}
    assert "#0 failed: it trained another configuration" in capfd.readouterr().out


def test_a_killed_trial_continues_where_it_was(cluster: Cluster, tmp_path):
    outcome = run_sweep(plan(tmp_path, scheduler="none"), cluster, ToyProgram(kill_at_epoch=3))
    assert outcome.exit_code == 0
    for record in outcome.ledger.trials.values():
        assert (record.state, record.epoch, record.restarts) == ("done", 6, 1)
        assert (Path(record.run_dir) / "attempts.txt").read_text().split() == ["0", "3"]
    assert set(statuses(tmp_path).values()) == {"FINISHED"}


def test_a_mistake_of_the_user_is_not_repeated(cluster: Cluster, tmp_path, capfd):
    outcome = run_sweep(plan(tmp_path), cluster, ToyProgram(fail_with="user"))
    assert outcome.exit_code == 1
    reasons = {record.reason for record in outcome.ledger.trials.values()}
    assert reasons == {"the sample 'abc' cannot be used"}
    assert all(record.restarts == 0 for record in outcome.ledger.trials.values())
    assert "Traceback" not in capfd.readouterr().err


def test_a_sweep_in_which_nothing_works_ends(cluster: Cluster, tmp_path, capfd):
    space = {"optim.lr": {"loguniform": [1e-4, 1e-1]}}
    sweep = plan(tmp_path, space=space, algorithm="random", num_trials=5, max_concurrent=1)
    started = time.monotonic()
    outcome = run_sweep(sweep, cluster, ToyProgram(fail_with="user"))
    assert time.monotonic() - started < 120  # Tune would wait 600 s for another trial
    assert outcome.exit_code == 1
    assert "3 trials failed, none has trained an epoch" in capfd.readouterr().out
    assert len(outcome.ledger.trials) == 3


def test_a_bug_is_retried_then_reported_with_its_traceback_on_disk(cluster: Cluster, tmp_path, capfd):
    outcome = run_sweep(plan(tmp_path, max_failures=1), cluster, ToyProgram(fail_with="bug"))
    assert outcome.exit_code == 1
    record = next(iter(outcome.ledger.trials.values()))
    assert record.restarts == 1
    assert record.reason.startswith("ZeroDivisionError: a bug")
    assert "in train" in (Path(record.run_dir) / "error.txt").read_text()
    assert "Traceback" not in capfd.readouterr().err
