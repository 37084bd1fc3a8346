"""What a second attempt of a run knows of the first, beyond weights and log lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_states import assert_equal, final_state

from sensorlab.data.payload import CorruptSample
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.checkpoint import CheckpointStore
from sensorlab.engine.fit import fit
from sensorlab.experiment import CheckpointConfig, DataConfig, EvalConfig, ExperimentConfig, TrainConfig
from toy import ToyStream, ToyTask, toy_experiment


def experiment(**changes: Any) -> ExperimentConfig:
    """Three epochs of three steps (21 samples in batches of 4, two passes a step). Step 6 is saved twice."""
    sections = {
        "eval": EvalConfig(metric="val/mse", mode="min", every=["1 epoch", "4 steps"]),
        "train": TrainConfig(duration="3 epochs", log_every="4 steps", accumulate=2),
        "checkpoint": CheckpointConfig(every=["1 epoch", "2 steps"], keep_latest=1),
    }
    return toy_experiment(**(sections | changes))


class Interrupted(Exception):
    pass


class StopAtStep(Callback):
    """Raises at the first number that is reported at ``step``; keeps the training."""

    priority = 0

    def __init__(self, step: int = -1) -> None:
        self.step = step

    def on_fit_start(self, training):
        self.training = training

    def on_step_end(self, training, record):
        if record.step == self.step:
            raise Interrupted


def run(config: ExperimentConfig, run_dir: Path, stop: int = -1, corrupt: tuple[CorruptSample, ...] = ()):
    task, stopper = ToyTask(config.task), StopAtStep(stop)
    train, val = ToyStream(21, 4, task), ToyStream(9, 4, task, training=False)
    train.corrupt_samples += corrupt
    try:
        fit(config, task, train, val, run_dir=run_dir, callbacks=[JsonLog(), stopper])
    except Interrupted:
        assert stop >= 0
    return stopper.training


def test_corrupt_samples_of_all_attempts_are_counted_and_listed(tmp_path):
    config = experiment(data=DataConfig(path="nowhere", global_batch=4, max_corrupt_fraction=0.5))
    run(config, tmp_path, stop=5, corrupt=(CorruptSample(3, "shard 0", "sample 'x' is bad"),))
    second = run(config, tmp_path, corrupt=(CorruptSample(4, "shard 0", "sample 'y' is bad"),))
    assert second.metrics["perf/corrupt_samples"] == 2
    assert (tmp_path / "corrupt_samples.txt").read_text().splitlines() == ["sample 'x' is bad", "sample 'y' is bad"]


def test_the_count_of_corrupt_samples_is_in_the_checkpoint_of_its_epoch(tmp_path):
    config = experiment(data=DataConfig(path="nowhere", global_batch=4, max_corrupt_fraction=0.5))
    run(config, tmp_path, corrupt=(CorruptSample(3, "shard 0", "sample 'x' is bad"),))
    length = (tmp_path / "metrics.jsonl").stat().st_size
    again = run(config, tmp_path)  # nothing is left to do, and nothing that was logged is cut off
    assert again.metrics["perf/corrupt_samples"] == 1
    assert (tmp_path / "metrics.jsonl").stat().st_size == length


def test_protocols_are_known_before_the_next_evaluation(tmp_path):
    first = run(experiment(), tmp_path, stop=5)
    again = run(experiment(), tmp_path, stop=5)
    assert again.evaluated.steps == 4  # of the first attempt
    assert again.protocols == first.protocols
    assert again.protocols["val/mse"]["metric"] == "mse"


def test_a_checkpoint_is_ranked_by_an_evaluation_of_its_own_weights(tmp_path):
    config = experiment(
        eval=EvalConfig(metric="val/mse", mode="min", every="4 steps"),
        checkpoint=CheckpointConfig(every="2 steps", keep_latest=10),
    )
    run(config, tmp_path)
    ranked = {info.step: "val/mse" in info.metrics for info in CheckpointStore(tmp_path / "checkpoints").all()}
    assert ranked == {2: False, 4: True, 6: False, 8: True, 9: True}


def test_the_rate_is_reported_where_a_checkpoint_cuts_the_interval(tmp_path):
    config = experiment(checkpoint=CheckpointConfig(every=["1 epoch", "1 step"]))
    run(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    reported = [line for line in lines if "train/loss" in line]
    assert len(reported) == 5
    assert all("train/lr" in line for line in reported)


def test_a_log_that_was_cut_from_outside_is_named_and_has_no_line_twice(tmp_path, caplog):
    run(experiment(), tmp_path, stop=5)
    (tmp_path / "metrics.jsonl").write_text("")
    run(experiment(), tmp_path, stop=7)
    assert "metrics.jsonl has lost its last" in caplog.text
    run(experiment(), tmp_path)
    steps = [
        line["step"]
        for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        if "train/loss" in line
    ]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("stop", [1, 2])
def test_before_the_first_checkpoint_a_run_starts_anew(tmp_path, stop):
    run(experiment(checkpoint=CheckpointConfig(every="1 epoch")), tmp_path, stop=stop)
    assert CheckpointStore(tmp_path / "checkpoints").latest() is None
    assert run(experiment(), tmp_path).cursor.step == 9


class StopWhenSaved(Callback):
    """Raises as soon as the first checkpoint of step ``step`` is complete."""

    priority = 100

    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, training, path):
        if training.cursor.step == self.step:
            raise Interrupted


@pytest.mark.parametrize("duration", ["3 epochs", "8 steps"])
def test_a_run_that_died_after_the_checkpoint_of_its_last_step_is_brought_to_its_end(tmp_path, duration):
    config = experiment(
        train=TrainConfig(duration=duration, log_every="4 steps", accumulate=2),
        eval=EvalConfig(metric="val/mse", mode="min"),
        checkpoint=CheckpointConfig(every="1 step", keep_latest=1),
    )
    task = ToyTask(config.task)
    for name, last in (("straight", -1), ("resumed", 9 if duration == "3 epochs" else 8)):
        for stop in (last, -1):
            streams = ToyStream(21, 4, task), ToyStream(9, 4, task, training=False)
            callbacks = [JsonLog(), StopWhenSaved(stop)]
            try:
                fit(config, task, *streams, run_dir=tmp_path / name, callbacks=callbacks)
            except Interrupted:
                assert stop == last
    assert_equal(final_state(tmp_path / "resumed"), final_state(tmp_path / "straight"))


def test_a_checkpoint_that_is_kept_for_good_stays_so_when_its_step_is_saved_again(tmp_path):
    # Step 6 is saved inside of its epoch, and again when the epoch has ended.
    config = experiment(checkpoint=CheckpointConfig(every=["1 epoch", "2 steps"], keep_latest=1, keep_every="6 steps"))
    run(config, tmp_path)
    kept = {info.step: info.permanent for info in CheckpointStore(tmp_path / "checkpoints").all()}
    assert kept[6]


class Panels(Callback):
    """Notes the steps whose evaluation has pictures."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_panels(self, training, panels, step):
        self.steps.append(step)


def every_step(**changes: Any) -> ExperimentConfig:
    """Nine steps with an evaluation and a checkpoint each."""
    checkpoints = CheckpointConfig(every="1 step", keep_latest=1, keep_every="4 steps")
    evaluation = EvalConfig(metric="val/loss", mode="max", every="1 step", panels_every="3 steps")
    return experiment(checkpoint=checkpoints, eval=evaluation, **changes)


def attempts(run_dir: Path, stops: list[int]) -> list[int]:
    """Steps with pictures, of a run whose attempts die in ``stops``."""
    config, panels = every_step(), Panels()
    task = ToyTask(config.task)
    for stop in [*stops, -1]:
        streams = ToyStream(21, 4, task), ToyStream(9, 4, task, training=False)
        try:
            fit(config, task, *streams, run_dir=run_dir, callbacks=[JsonLog(), panels, StopAtStep(stop)])
        except Interrupted:
            assert stop in stops
    return panels.steps


@pytest.mark.parametrize("stops", [[], [4], [5], [4, 5, 8, 9]])
def test_what_is_kept_for_good_and_drawn_every_so_often_does_not_depend_on_kills(tmp_path, stops):
    assert attempts(tmp_path, stops) == [1, 3, 6, 9]  # the first evaluation has pictures too
    infos = {info.step: info for info in CheckpointStore(tmp_path / "checkpoints").all()}
    assert [step for step, info in infos.items() if info.permanent] == [4, 8]
    best = CheckpointStore(tmp_path / "checkpoints", best_metric="val/loss").best()
    assert set(infos) == {4, 8, 9, best.step}
