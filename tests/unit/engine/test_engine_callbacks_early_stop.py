"""Early stopping: YOLOv5's rule, margins, units, and equal ends of resumed and uninterrupted runs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from callback_runs import STEPS_PER_EPOCH, Interrupted, StopAfter, run

from sensorlab.config import validate
from sensorlab.engine.budget import ExtendConfig
from sensorlab.engine.callbacks.early_stop import EarlyStop, EarlyStopConfig
from sensorlab.engine.duration import Duration, Progress
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import OptimConfig
from sensorlab.engine.training import Cursor
from sensorlab.errors import UserError
from sensorlab.experiment import EvalConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment


class Judged:
    """What the callback sees of a training that reports the given values, one per evaluation."""

    def __init__(self, mode: str, batches_per_epoch: int = 7, global_batch: int = 4) -> None:
        self.cursor, self.batches_per_epoch, self.stop_reason = Cursor(), batches_per_epoch, None
        self.donor, self.evaluation_was_due = None, True
        objective = SimpleNamespace(metric="val/x", mode=mode)
        self.config = SimpleNamespace(eval=objective, data=SimpleNamespace(global_batch=global_batch))

    @property
    def batches_done(self) -> int:
        return self.cursor.epoch * self.batches_per_epoch + self.cursor.batch

    @property
    def progress(self) -> Progress:
        samples = self.batches_done * self.config.data.global_batch
        return Progress(self.cursor.epoch, self.cursor.step, samples)

    def request_stop(self, reason: str) -> None:
        assert self.stop_reason is None, "asked twice"
        self.stop_reason = reason


def stopping_epoch(values, config: EarlyStopConfig, mode: str = "max") -> int | None:
    """Number (from 1) of the epoch whose evaluation ends the run."""
    callback, training = EarlyStop(config), Judged(mode)
    for epoch, value in enumerate(values, start=1):
        training.cursor = Cursor(epoch=epoch, batch=0, step=10 * epoch)
        callback.on_metrics(training, {"val/x": value, "val/other": 0.0}, step=10 * epoch)
        callback.on_metrics(training, {"train/loss": 1.0}, step=10 * epoch)  # no evaluation
        if training.stop_reason is not None:
            return epoch
    return None


def patience(text: str, **keys) -> EarlyStopConfig:
    return EarlyStopConfig(patience=Duration.parse(text), **keys)


def yolov5_stop(fitness, patience: int) -> int | None:
    """YOLOv5's rule as its behaviour is described: ties renew the best, the end is `patience` epochs after it."""
    for epoch in range(len(fitness)):
        so_far = fitness[: epoch + 1]
        best = max(i for i, value in enumerate(so_far) if value == max(so_far))
        if epoch - best >= patience:
            return epoch + 1
    return None


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_stops_at_the_epoch_at_which_yolov5_stops(limit):
    generator = np.random.default_rng(limit)
    stopped = 0
    for _ in range(200):
        fitness = generator.integers(0, 6, size=30) / 10  # few values: ties are frequent
        expected = yolov5_stop(fitness.tolist(), limit)
        assert stopping_epoch(fitness.tolist(), patience(f"{limit} epochs", ties_improve=True)) == expected
        stopped += expected is not None
    assert stopped > 50


@pytest.mark.parametrize(
    ("values", "config", "mode", "expected"),
    [
        ([1, 2, 3, 4, 5], patience("2 epochs"), "max", None),
        ([1, 2, 3, 4, 5], patience("2 epochs"), "min", 3),
        ([5, 4, 4, 4], patience("2 epochs"), "min", 4),
        ([5, 4, 4, 4], patience("2 epochs", ties_improve=True), "min", None),
        ([1.0, 1.5, 1.9, 1.95], patience("2 epochs", min_delta=1.0), "max", 3),
        # Small gains that add up to more than the margin are an improvement; exactly the margin is none.
        ([1.0, 1.5, 2.25, 2.5], patience("2 epochs", min_delta=1.0), "max", None),
        ([1.0, 2.0, 2.0], patience("2 epochs", min_delta=1.0, ties_improve=True), "max", 3),
        ([math.nan, math.nan, 1.0], patience("2 epochs"), "max", 2),
        ([math.inf, 1.0, 0.5], patience("2 epochs"), "min", None),
        ([1.0, math.inf, math.nan], patience("2 epochs"), "max", 3),
    ],
)
def test_rule(values, config, mode, expected):
    assert stopping_epoch(values, config, mode) == expected


@pytest.mark.parametrize(
    ("text", "stops_at_batch"),
    [("2 epochs", 21), ("13 steps", 20), ("14 steps", 21), ("56 samples", 21), ("57 samples", 22)],
)
def test_units_count_from_the_improvement_even_inside_of_an_epoch(text, stops_at_batch):
    callback, training = EarlyStop(patience(text)), Judged("max")
    for batch in range(1, 40):  # an evaluation after each batch; one step per batch; the best after the first epoch
        training.cursor = Cursor(epoch=batch // 7, batch=batch % 7, step=batch)
        callback.on_metrics(training, {"val/x": 1.0 if batch == 7 else 0.0}, step=batch)
        if training.stop_reason is not None:
            break
    assert batch == stops_at_batch


def test_the_reason_names_what_is_needed_to_judge_it():
    callback, training = EarlyStop(patience("2 epochs", min_delta=0.5)), Judged("max")
    for epoch, value in enumerate([0.25, 0.5, 0.625], start=1):
        training.cursor = Cursor(epoch=epoch)
        callback.on_metrics(training, {"val/x": value}, step=epoch)
    assert training.stop_reason == ("val/x has not improved by more than 0.5 for 2 epochs (best 0.25, now 0.625)")


def test_asks_once_even_if_training_goes_on_to_the_end_of_its_epoch():
    callback, training = EarlyStop(patience("1 step")), Judged("max")
    for step in range(1, 6):
        training.cursor = Cursor(batch=step, step=step)
        callback.on_metrics(training, {"val/x": 1.0}, step=step)
    assert "for 1 step" in training.stop_reason


# Weights that never change give a validation error that never improves.
STILL = {
    "task": ToyConfig(norm=False),
    "optim": OptimConfig(lr=0.0),
    "train": TrainConfig(duration="9 epochs", log_every="2 steps"),
    "eval": EvalConfig(metric="val/mse", mode="min", every="1 epoch"),
}


def test_a_run_ends_early_and_stays_ended(tmp_path):
    config = patience("2 epochs")
    result = run(tmp_path, EarlyStop(config), **STILL)
    assert (result.steps, result.epochs) == (3 * STEPS_PER_EPOCH, 3)  # best at the first evaluation
    assert result.last_checkpoint.name == f"step-{3 * STEPS_PER_EPOCH:08d}"
    assert run(tmp_path, EarlyStop(config), **STILL).steps == 3 * STEPS_PER_EPOCH  # nothing left to do


@pytest.mark.parametrize("stop", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2, 3 * STEPS_PER_EPOCH])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path, stop):
    config = patience("10 steps")
    with pytest.raises(Interrupted):
        run(tmp_path, EarlyStop(config), StopAfter(stop), **STILL)
    assert run(tmp_path, EarlyStop(config), **STILL).steps == 3 * STEPS_PER_EPOCH


def extended(more: str | None, stop: EarlyStopConfig) -> dict:
    extend = ExtendConfig(duration=Duration.parse(more)) if more else None
    train = TrainConfig(duration="5 epochs", log_every="2 steps", early_stop=stop, extend=extend)
    return STILL | {"train": train}


@pytest.mark.parametrize("text", ["2 epochs", "10 steps", "40 samples"])
def test_an_extended_run_has_its_whole_patience_again(tmp_path, text):
    config = patience(text)
    assert run(tmp_path, EarlyStop(config), **extended(None, config)).epochs == 3
    assert run(tmp_path, EarlyStop(config), **extended("1 epoch", config)).epochs == 5  # 6 are allowed
    assert run(tmp_path, EarlyStop(config), **extended("1 epoch", config)).epochs == 5  # it has ended again
    assert run(tmp_path, EarlyStop(config), **extended("3 epochs", config)).epochs == 7
    assert run(tmp_path, EarlyStop(config), **extended("4 epochs", config)).epochs == 9  # all that there are


@pytest.mark.parametrize("stop", [3 * STEPS_PER_EPOCH + 1, 4 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH + 3])
def test_an_extended_run_that_is_interrupted_does_not_get_another_patience(tmp_path, stop):
    config = patience("2 epochs")
    run(tmp_path, EarlyStop(config), **extended(None, config))
    with pytest.raises(Interrupted):
        run(tmp_path, EarlyStop(config), StopAfter(stop), **extended("4 epochs", config))
    assert run(tmp_path, EarlyStop(config), **extended("4 epochs", config)).epochs == 5


def test_the_value_to_beat_survives_the_extension():
    callback, training = EarlyStop(patience("2 epochs")), Judged("max")
    for epoch, value in enumerate([0.5, 0.1, 0.1], start=1):
        training.cursor = Cursor(epoch=epoch)
        callback.on_metrics(training, {"val/x": value}, step=epoch)
    assert training.stop_reason is not None
    again = EarlyStop(patience("2 epochs"))
    again.load_state_dict(callback.state_dict())
    training.stop_reason = None
    again.on_fit_start(training)
    for epoch, value in enumerate([0.3, 0.4], start=4):  # gains, but below the best
        assert training.stop_reason is None
        training.cursor = Cursor(epoch=epoch)
        again.on_metrics(training, {"val/x": value}, step=epoch)
    assert "best 0.5, now 0.4" in training.stop_reason


def test_a_run_that_was_not_ended_by_it_keeps_what_is_left_of_its_patience(tmp_path):
    config = patience("4 epochs")
    sections = extended(None, config)
    short = sections["train"].model_copy(update={"duration": Duration.parse("3 epochs")})
    assert run(tmp_path, EarlyStop(config), **(sections | {"train": short})).epochs == 3
    longer = short.model_copy(update={"extend": ExtendConfig(duration=Duration.parse("6 epochs"))})
    assert run(tmp_path, EarlyStop(config), **(sections | {"train": longer})).epochs == 5  # best after the first


def test_without_early_stop_the_same_run_goes_on(tmp_path):
    assert run(tmp_path, **STILL).steps == 9 * STEPS_PER_EPOCH


def test_configuration_is_written_as_text():
    config = validate(EarlyStopConfig, {"patience": "30 epochs", "min_delta": 0.001})
    assert (config.patience.count, config.patience.unit) == (30, "epochs")
    with pytest.raises(UserError, match="patience"):
        validate(EarlyStopConfig, {"patience": "soon"})
    with pytest.raises(UserError, match="min_delta"):
        validate(EarlyStopConfig, {"patience": "1 epoch", "min_delta": -0.1})


def test_without_a_validation_split_there_is_nothing_to_judge(tmp_path):
    task = ToyTask(ToyConfig())
    config = toy_experiment(
        train=TrainConfig(duration="1 epoch", early_stop=EarlyStopConfig(patience="1 epoch")),
        eval=EvalConfig(metric="val/mse", mode="min"),
    )
    with pytest.raises(UserError, match=r"train\.early_stop judges evaluations.*no validation split"):
        fit(config, task, ToyStream(12, 4, task), None, run_dir=tmp_path)
