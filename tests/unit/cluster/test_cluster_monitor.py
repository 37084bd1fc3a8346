"""The driver's judgement: what a trial was really given, when a sweep is hopeless, why a trial was stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sensorlab.cluster import monitor
from sensorlab.cluster.ledger import Ledger, share_ledger
from sensorlab.cluster.monitor import SweepDriver
from sensorlab.cluster.sweep_budget import SweepBudget
from sensorlab.cluster.sweep_config import load_sweep
from sensorlab.cluster.trial import FAILED, TrialPlan
from sensorlab.config import as_dict, merge, nested
from sensorlab.experiment import experiment_from

TREE = {
    "name": "toy",
    "task": {"name": "bev_segmentation"},
    "data": {"path": "d"},
    "train": {"duration": "6 epochs"},
}


def new_driver(folder: Path) -> SweepDriver:
    ledger = Ledger(folder / "ledger.json", "max")
    share_ledger(folder, ledger)
    plan = TrialPlan(as_dict(experiment_from(TREE)), str(folder), "d", True, 0, "max", None, None)  # type: ignore[arg-type]
    sweep = load_sweep({"space": {"optim.lr": {"choice": [0.1, 0.2]}}})
    return SweepDriver(plan, ledger, None, "val/iou", SweepBudget(sweep, ledger))


def ordered(driver: SweepDriver, values: dict[str, Any], trial_id: str = "t") -> dict[str, Any]:
    driver.order(trial_id, values)
    return json.loads((driver.plan.run_dir(trial_id) / "trial.json").read_text())


@pytest.mark.parametrize(
    "values",
    [
        {"optim.lr": 1, "schedule.name": "polynomial", "train.clip": None},
        {"optim": 'json:{"lr":0.5,"name":"sgd"}', "train.duration": "1 epoch"},
        {"seed": 3, "train.clip": 'json:{"value":2.5}'},
    ],
)
def test_values_are_in_the_configuration_however_they_are_written(tmp_path: Path, values: dict[str, Any]) -> None:
    word = ordered(new_driver(tmp_path), values)
    assert "error" not in word
    assert len(word["config_digest"]) == 16


def test_a_value_that_another_one_would_remove_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_after_the_other(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        for key, value in values.items():  # another name of a section replaces all of it
            base = merge(base, nested(key, value))
        return base

    monkeypatch.setattr(monitor, "resolve", one_after_the_other)
    driver = new_driver(tmp_path)
    error = ordered(driver, {"schedule.end_factor": 0.5, "schedule.name": "polynomial"})["error"]
    assert "configuration of trial t does not have schedule.end_factor=0.5" in error


def fail(driver: SweepDriver, name: str) -> None:
    driver.order(name, {"optim.lr": 0.1})
    assert driver.check(name, {FAILED: "no data"})
    driver.ended(name)


def test_failures_of_an_earlier_driver_do_not_end_a_resumed_sweep(tmp_path: Path) -> None:
    driver = new_driver(tmp_path)
    for name in "ab":
        fail(driver, name)
        assert not driver.gives_up()
    driver.crashed("c", {"optim.lr": 0.2}, "its process died", restarts=False)
    assert driver.gives_up()
    assert driver.given_up == "3 trials failed, none has trained an epoch"
    resumed = new_driver(tmp_path)
    assert resumed.ledger.count("failed") == 3
    assert not resumed.gives_up()
    for name in "def":
        fail(resumed, name)
    assert resumed.gives_up()


def test_a_trial_that_starts_again_after_its_end_keeps_the_reason(tmp_path: Path) -> None:
    driver = new_driver(tmp_path)
    driver.order("a", {"optim.lr": 0.1})
    record = driver.ledger.trials["a"]
    record.stopped_at, record.reason = 2, "behind at epoch 2"
    driver.ended("a")
    driver.order("a", {"optim.lr": 0.1})  # Tune had not saved that it ended
    driver.ended("a")
    assert (record.state, record.reason) == ("stopped", "behind at epoch 2")


class AwayAtFirst:
    """Stands in for the runs of a sweep; the store comes back when it is told to."""

    def __init__(self) -> None:
        self.is_away, self.asked = True, 0
        self.best: list[str] = []

    def mirror_best(self, trial_id: str, *arguments: Any) -> None:
        self.best.append(trial_id)

    def child(self, trial_id: str, *arguments: Any, **options: Any) -> str:
        self.asked += 1
        if self.is_away:
            raise ConnectionError("no route to the store")
        return f"run-of-{trial_id}"


def test_trials_that_begin_while_the_store_is_away_get_their_runs_later(tmp_path: Path) -> None:
    driver, runs = new_driver(tmp_path), AwayAtFirst()
    driver.runs = runs  # type: ignore[assignment]
    words = {name: ordered(driver, {"optim.lr": 0.1}, name) for name in "ab"}
    assert [word["run_id"] for word in words.values()] == ["pending-a", "pending-b"]
    assert {record.run_id for record in driver.ledger.trials.values()} == {None}
    spool = driver.plan.run_dir("b") / "recording" / "pending-b.jsonl"
    spool.parent.mkdir()
    spool.write_text("what was recorded")
    driver.take("b", {"epoch": 1, "objective": 0.5, "run_id": None})
    driver.make_pending_runs()
    assert runs.asked == 3  # it does not wait for the store once for each trial
    runs.is_away = False
    assert ordered(driver, {"optim.lr": 0.1}, "a")["run_id"] == "run-of-a"  # started again
    driver.make_pending_runs()
    assert spool.with_name("run-of-b.jsonl").read_text() == "what was recorded"
    assert runs.best == ["b"]
    saved = Ledger(driver.ledger.path, "max")
    assert [record.run_id for record in saved.trials.values()] == ["run-of-a", "run-of-b"]


def test_a_trial_that_hangs_ends_the_sweep_and_one_that_works_slowly_does_not(tmp_path: Path) -> None:
    driver, now = new_driver(tmp_path), [100.0]
    driver.clock = lambda: now[0]

    def later(seconds: float) -> bool:
        now[0] += seconds
        return driver.gives_up()

    assert not driver.gives_up()
    for name in "ab":
        driver.order(name, {"optim.lr": 0.1})
    assert not later(3600)  # starting up
    progress = driver.plan.run_dir("a") / "progress.json"
    for written in range(1, 6):
        progress.write_text("{}")
        os.utime(progress, ns=(written, written))  # on a machine whose clock is wrong
        assert not later(7000)  # b hangs, but a goes on
    driver.ended("a")
    assert not later(10)  # it sees that the trial has ended
    assert not later(7000)
    assert later(300)
    assert driver.given_up.startswith("#1 did not get on for 2 hours")


def test_without_running_trials_a_sweep_waits_a_quarter_of_an_hour(tmp_path: Path) -> None:
    driver, now = new_driver(tmp_path), [100.0]
    driver.clock = lambda: now[0]
    driver.order("a", {"optim.lr": 0.1})
    assert not driver.gives_up()
    driver.ended("a")
    now[0] += 800
    assert not driver.gives_up()  # it sees only now that the trial has ended
    now[0] += 890
    assert not driver.gives_up()
    now[0] += 20
    assert driver.gives_up()
    assert driver.given_up.startswith("no trial could start for 15 minutes")
