"""Tests of reading a sweep's directory, whole or damaged."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
from report_sweeps import experiment, trial_entry, write_sweep, write_trial

from sensorlab.cluster.ledger import Ledger
from sensorlab.errors import UserError
from sensorlab.report.read import expected_trials, read_sweep
from sensorlab.report.read_trial import read_curve


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sweeps" / "toy"


def test_a_trial_with_all_its_files(directory):
    entry = trial_entry(
        directory, 0, objective=0.4, best_epoch=2, rungs={"1": 0.2}, state="stopped", reason="behind at epoch 1"
    )
    write_trial(entry, [0.2, 0.4, 0.3])
    (trial,) = read_sweep(write_sweep(directory, [entry])).trials
    assert [(point.epoch, point.step, point.value) for point in trial.curve] == [
        (1, 10, 0.2),
        (2, 20, 0.4),
        (3, 30, 0.3),
    ]
    assert trial.best_step == 20
    assert trial.rungs == {1.0: 0.2}
    assert trial.stopped_at == 1
    assert trial.goodput == pytest.approx(0.64)
    assert trial.clock == {"step": pytest.approx(42.0), "data_wait": 4.0, "evaluation": 6.0}
    assert trial.protocols["val/iou"]["threshold"] == 0.5
    assert trial.config["optim.lr"] == 1e-3
    assert trial.seed == 0


def test_a_ledger_that_the_sweep_itself_wrote(directory):
    ledger = Ledger(directory / "ledger.json", "max")
    ledger.start("a", {"optim.lr": 0.1}, "digest", directory / "trials" / "a")
    ledger.report("a", {"epoch": 3, "objective": 0.7, "metrics": {"val/iou": 0.7}, "protocol": "p", "run_id": "r"})
    ledger.end("a", "done")
    write_sweep(directory, None)
    (trial,) = read_sweep(directory).trials
    assert (trial.objective, trial.epoch, trial.state, trial.protocol) == (0.7, 3, "done", "p")
    assert trial.config["optim.lr"] == 0.1  # without a checkpoint: what the sweep gave it


def test_keys_of_other_versions_are_ignored(directory):
    entry = trial_entry(directory, 0, a_new_field={"x": 1})
    del entry["restarts"], entry["rungs"]
    sweep = read_sweep(write_sweep(directory, [entry], seeds=3, something_else=True))
    assert sweep.trials[0].objective == pytest.approx(0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_an_objective_that_is_no_number_is_none(directory, value):
    (trial,) = read_sweep(write_sweep(directory, [trial_entry(directory, 0, objective=value)])).trials
    assert trial.objective is None
    assert not trial.measured


def test_no_trial_yet(directory):
    sweep = read_sweep(write_sweep(directory, None, num_trials=4))
    assert sweep.trials == ()
    assert sweep.expected == 4


def test_missing_plan_and_damaged_ledger(directory):
    with pytest.raises(UserError, match=r"sweep\.json is missing or damaged"):
        read_sweep(directory)
    write_sweep(directory, None)
    (directory / "ledger.json").write_text('{"mode": "max", "tri')
    with pytest.raises(UserError, match=r"ledger\.json is damaged"):
        read_sweep(directory)


def test_a_cut_log_loses_its_last_line_only(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "epoch": 0, "val/iou": 0.1}\n{"step": 2, "epoch": 1, "val/iou": NaN}\n{"step": 3, "ep')
    points, goodput = read_curve(log, "val/iou")
    assert [(point.step, point.epoch) for point in points] == [(1, 1.0)]
    assert goodput is None
    assert read_curve(tmp_path / "none", "val/iou") == ((), None)


def test_evaluations_within_an_epoch_have_fractional_epochs(tmp_path):
    lines = [
        {"step": 4, "epoch": 0, "train/epoch": 0.4},
        {"step": 5, "epoch": 0, "train/epoch": 0.5},
        {"step": 5, "epoch": 0, "val/iou": 0.1},
        {"step": 5, "epoch": 0, "val/iou": 0.2},  # repeated after a restart: the later one counts
    ]
    (tmp_path / "log").write_text("\n".join(map(json.dumps, lines)))
    (point,) = read_curve(tmp_path / "log", "val/iou")[0]
    assert (point.epoch, point.value) == (0.5, 0.2)


def test_a_moved_sweep_is_read_where_it_is(directory, tmp_path):
    entry = trial_entry(directory, 0)
    write_trial(entry, [0.1])
    write_sweep(directory, [entry])
    moved = tmp_path / "elsewhere"
    directory.rename(moved)
    assert len(read_sweep(moved).trials[0].curve) == 1


def test_open_time_of_running_and_of_killed_trials(directory):
    entry = trial_entry(directory, 0, state="running", seconds=10.0, started=1000.0)
    write_trial(entry, [0.1])
    os.utime(Path(entry["run_dir"]) / "metrics.jsonl", (1030.0, 1030.0))
    write_sweep(directory, [entry])
    assert read_sweep(directory, now=2000.0).trials[0].seconds == pytest.approx(40.0)  # until its last sign of life
    lease = directory / ".driver.lease"
    lease.write_text("{}")
    os.utime(lease, (1995.0, 1995.0))
    assert read_sweep(directory, now=2000.0).trials[0].seconds == pytest.approx(1010.0)


@pytest.mark.parametrize(
    ("states", "outcome", "lease", "status"),
    [
        (["done", "failed"], {"interrupted": False}, False, "finished"),
        (["done", "stopped"], None, False, "finished"),
        (["done", "running"], None, False, "killed"),
        (["done"], None, False, "killed"),  # between two trials
        (["done"], {"interrupted": False}, False, "ended early"),
        (["done", "interrupted"], {"interrupted": True}, False, "interrupted"),
        (["done", "running"], None, True, "running"),
        (["done", "running"], {"interrupted": True}, True, "running"),  # resumed
    ],
)
def test_where_the_sweep_stands(directory, states, outcome, lease, status):
    entries = [trial_entry(directory, number, state=state) for number, state in enumerate(states)]
    write_sweep(directory, entries, num_trials=2)
    if outcome is not None:
        (directory / "outcome.json").write_text(json.dumps(outcome))
    if lease:
        (directory / ".driver.lease").write_text("{}")
    assert read_sweep(directory).status == status
    if lease:  # a driver whose lease was not renewed is gone
        assert read_sweep(directory, now=time.time() + 3600).status != "running"


def test_the_end_is_known_to_who_ended_it(directory):
    write_sweep(directory, [trial_entry(directory, 0)])
    (directory / ".driver.lease").write_text("{}")
    assert read_sweep(directory, ended=True).status == "finished"


def test_the_outcome_of_an_earlier_attempt_says_nothing_at_the_end(directory):
    write_sweep(directory, [trial_entry(directory, 0)])
    (directory / "outcome.json").write_text(json.dumps({"interrupted": True}))
    assert read_sweep(directory).status == "interrupted"
    assert read_sweep(directory, ended=True).status == "finished"
    write_sweep(directory, [trial_entry(directory, 0)], num_trials=3)  # its time budget was used up
    assert read_sweep(directory, ended=True).status == "ended early"


def test_expected_trials():
    grid = {"algorithm": "grid", "num_trials": 8, "space": {"a": {"choice": [1, 2, 3]}, "b": {"choice": [1, 2]}}}
    assert expected_trials(grid) == 6
    assert expected_trials({"algorithm": "random", "num_trials": 5}) == 5
    assert expected_trials({}) is None


def test_the_seed_of_a_trial(directory):
    entries = [trial_entry(directory, 0), trial_entry(directory, 1, values={"seed": 7})]
    assert [trial.seed for trial in read_sweep(write_sweep(directory, entries)).trials] == [experiment()["seed"], 7]
