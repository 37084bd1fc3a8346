"""Budgets of a sweep on a real local Ray cluster: they end it, hold over its drivers, and can be raised."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TOYS = HERE.parent / "unit" / "cluster"
sys.path.insert(0, str(TOYS))

from toy_program import ToyProgram  # noqa: E402

from sensorlab.cluster.start import Cluster, connect, disconnect  # noqa: E402
from sensorlab.cluster.sweep import SweepPlan, run_sweep, with_objective  # noqa: E402
from sensorlab.cluster.sweep_budget import SAVE_S  # noqa: E402
from sensorlab.cluster.sweep_config import load_sweep, with_more  # noqa: E402
from sensorlab.experiment import experiment_from  # noqa: E402
from sensorlab.report.read import read_sweep  # noqa: E402
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


def plan_of(root: Path, **sweep) -> SweepPlan:
    tree = {
        "name": "toy",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "d"},
        "train": {"duration": "4 epochs"},
        "resources": {"cpus_per_worker": 0.5, "data_cpus": 0.25},
    }
    section = {"space": {"optim.lr": {"loguniform": [1e-4, 1e-1]}}, "scheduler": "none", "max_concurrent": 1}
    config = load_sweep(section | sweep)
    uri = f"sqlite:///{root}/mlruns.db"
    return SweepPlan("s", root, with_objective(experiment_from(tree), config), config, "d", uri)


def raised(plan: SweepPlan, *overrides: str) -> SweepPlan:
    loaded = SweepPlan.load(plan.root, plan.name)
    return dataclasses.replace(loaded, sweep=with_more(loaded.sweep, overrides))


def statuses(root: Path) -> dict[str, str]:
    client = open_client(f"sqlite:///{root}/mlruns.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name: run.info.status for run in client.search_runs(experiments)}


def attempts(outcome) -> list[list[str]]:
    records = outcome.ledger.trials.values()
    return [(Path(record.run_dir) / "attempts.txt").read_text().split() for record in records]


def stands(outcome) -> list[tuple[str, int, str]]:
    return [(record.state, record.epoch, record.reason) for record in outcome.ledger.trials.values()]


@pytest.mark.slow
def test_epochs_end_a_sweep_and_more_of_them_let_it_go_on(cluster: Cluster, tmp_path, capfd):
    """A sweep that gets its epochs bit by bit is the sweep that had them all."""
    evolution = {"algorithm": "evolution", "evolution": {"initial": 1, "mutation_probability": 1.0}}
    whole = run_sweep(plan_of(tmp_path / "whole", num_trials=3, **evolution), cluster, ToyProgram())
    expected = [record.values for record in whole.ledger.trials.values()]
    assert len({json.dumps(values) for values in expected}) == 3

    plan = plan_of(tmp_path, num_trials=2, epoch_budget=6, **evolution)
    first = run_sweep(plan, cluster, ToyProgram())
    reached = "epoch budget reached"
    assert first.exit_code == 0
    assert stands(first) == [("done", 4, ""), ("stopped", 2, reached)]
    assert (first.summary["ended"], first.summary["epochs"]) == (reached, 6)
    assert statuses(tmp_path) == {"s": "FINISHED", "trial 000": "FINISHED", "trial 001": "KILLED"}
    printed = capfd.readouterr().out
    assert f"stopped, {reached}" in printed
    assert "budget: 6 of 6 epochs (sweep.epoch_budget). To go on, raise it: " in printed
    assert read_sweep(plan.directory).ended == reached

    again = run_sweep(raised(plan), cluster, ToyProgram(), resume=True)
    assert again.exit_code == 0
    assert f"the sweep was ended: {reached}" in capfd.readouterr().out
    assert stands(again) == stands(first)
    assert attempts(again) == [["0"], ["0"]]  # nothing was started

    more = run_sweep(raised(plan, "sweep.epoch_budget=9", "sweep.num_trials=3"), cluster, ToyProgram(), resume=True)
    assert stands(more) == [("done", 4, ""), ("done", 4, ""), ("stopped", 1, reached)]
    last = run_sweep(raised(plan, "sweep.epoch_budget=null"), cluster, ToyProgram(), resume=True)
    assert stands(last) == [("done", 4, "")] * 3
    assert attempts(last) == [["0"], ["0", "2"], ["0", "1"]]
    assert [record.values for record in last.ledger.trials.values()] == expected
    assert last.summary["ended"] is None
    assert set(statuses(tmp_path).values()) == {"FINISHED"}
    assert read_sweep(plan.directory).status == "finished"
    assert last.summary["seconds"] > more.summary["seconds"] > again.summary["seconds"] >= first.summary["seconds"] > 0


def test_trials_that_run_beside_the_last_epoch_end_with_their_next_report(cluster: Cluster, tmp_path):
    plan = plan_of(tmp_path, num_trials=4, epoch_budget=3, max_concurrent=2)
    outcome = run_sweep(plan, cluster, ToyProgram(epoch_s=0.2))
    assert outcome.exit_code == 0
    assert 3 <= outcome.summary["epochs"] <= 4
    assert len(outcome.ledger.trials) <= 3
    assert all(record.reason == "epoch budget reached" for record in outcome.ledger.trials.values())
    assert "RUNNING" not in statuses(tmp_path).values()


def test_time_ends_a_sweep_in_the_middle_of_an_epoch(cluster: Cluster, tmp_path):
    plan = plan_of(tmp_path, num_trials=2, time_budget_s=1.0)
    began = time.monotonic()
    outcome = run_sweep(plan, cluster, ToyProgram(epoch_s=600.0))
    assert time.monotonic() - began < 120
    assert outcome.exit_code == 0
    assert outcome.summary["ended"] == "time budget reached"
    assert {state for state, _, _ in stands(outcome)} <= {"stopped"}
    assert set(statuses(tmp_path).values()) <= {"FINISHED", "KILLED"}


def start(root: Path, mode: str, **options) -> subprocess.Popen:
    command = [sys.executable, str(HERE / "toy_sweep_main.py"), str(root), "s", mode, json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": str(TOYS)}
    with (root / f"{mode}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def ledger_of(root: Path) -> dict:
    try:
        return json.loads((root / "sweeps" / "s" / "ledger.json").read_text())
    except (OSError, ValueError):
        return {"trials": []}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("budget", [{"epoch_budget": 8}, {"time_budget_s": 10000.0}], ids=["epochs", "time"])
def test_a_killed_driver_has_spent_what_it_has_spent(tmp_path, budget):
    options = {"sweep": {"scheduler": "none", "num_trials": 3, **budget}, "program": {"epoch_s": 1.0}}
    process = start(tmp_path, "new", **options)
    began, deadline = None, time.monotonic() + 240
    while sum(trial["epoch"] for trial in ledger_of(tmp_path)["trials"]) < 7:  # the second trial's first
        if began is None and (tmp_path / "sweeps" / "s" / "sweep.json").exists():
            began = time.monotonic()
        assert process.poll() is None, (tmp_path / "new.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    killed, known = time.monotonic(), ledger_of(tmp_path)["seconds"]
    assert known >= killed - began - SAVE_S - 3.0  # and what a busy machine takes for one turn of Tune's loop

    if "time_budget_s" in budget:
        options["raised"] = [f"sweep.time_budget_s={known}"]  # nothing is left
    resumed = start(tmp_path, "resume", **options)
    log = tmp_path / "resume.log"
    assert resumed.wait(timeout=300) == 0, log.read_text()[-3000:]
    ledger = ledger_of(tmp_path)
    reached = "epoch budget reached" if "epoch_budget" in budget else "time budget reached"
    assert ledger["ended"] == reached
    assert f"the sweep was ended: {reached}" in log.read_text()
    assert ledger["seconds"] >= known
    assert [(trial["state"], trial["reason"]) for trial in ledger["trials"]] == [("done", ""), ("stopped", reached)]
    epochs = sum(trial["epoch"] for trial in ledger["trials"])
    assert epochs == (8 if "epoch_budget" in budget else 7)
    assert set(statuses(tmp_path).values()) == {"FINISHED", "KILLED"}
