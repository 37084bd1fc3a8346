"""The learning-rate range test: its schedule, when it ends, what it reads off the curve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorlab.data.sampling import ImageWeightsSampling
from sensorlab.engine import lr_finder
from sensorlab.engine.callbacks.early_stop import EarlyStopConfig
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.checkpoint import CheckpointStore
from sensorlab.engine.compare import read_series
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import fit
from sensorlab.engine.lr_finder import LrFinder, RateRange, range_test, smoothed, suggest, write_report
from sensorlab.engine.warmup import WarmupConfig
from sensorlab.errors import UserError
from sensorlab.experiment import DataConfig, ExperimentConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment


@pytest.fixture(autouse=True)
def _toy_is_a_task(monkeypatch):
    monkeypatch.setattr("sensorlab.experiment.task_class", lambda name: ToyTask)


def run(config: ExperimentConfig, run_dir: Path) -> LrFinder:
    task, finder = ToyTask(config.task), LrFinder()
    fit(config, task, ToyStream(40, 8, task), None, run_dir=run_dir, callbacks=[JsonLog(), finder])
    return finder


def toy(**changes) -> ExperimentConfig:
    sections = {"train": TrainConfig(duration="7 epochs", accumulate=2, ema=EmaConfig())}
    return toy_experiment(**(sections | {"warmup": WarmupConfig(length=3)} | changes))


def test_the_rate_rises_by_the_same_factor_in_every_step_whatever_the_experiment_says(tmp_path):
    rates = RateRange(1e-5, 1e-1, 40)
    finder = run(range_test(toy(), rates), tmp_path)
    assert len(finder.rates) == 40
    assert finder.rates[0] == pytest.approx(1e-5)
    steps = np.diff(np.log10(finder.rates))
    assert steps == pytest.approx(np.full(39, 4 / 40))
    series = read_series(tmp_path)
    assert finder.losses == [series[step, "train/loss"] for step in range(1, 41)]


def test_data_model_and_optimiser_are_those_of_the_experiment():
    config = toy()
    tested = range_test(config, RateRange())
    assert tested.task == config.task
    assert tested.data == config.data
    assert tested.seed == config.seed
    assert tested.optim.model_copy(update={"lr": config.optim.lr}) == config.optim
    assert tested.train.accumulate == config.train.accumulate
    assert (tested.train.ema, tested.warmup) == (None, None)


def test_an_experiment_that_follows_its_evaluations_can_be_tested_too(tmp_path):
    """The test has none: nothing stops it early, and samples are drawn as in the first epoch of the training."""
    train = TrainConfig(duration="7 epochs", early_stop=EarlyStopConfig(patience="1 epoch"))
    data = DataConfig(path="nowhere", global_batch=4, sampling=ImageWeightsSampling())
    tested = range_test(toy(train=train, data=data), RateRange(steps=12))
    assert tested.train.early_stop is None
    assert tested.data == data
    task = ToyTask(tested.task)
    assert fit(tested, task, ToyStream(21, 4, task), None, run_dir=tmp_path).steps == 12


def test_a_loss_that_is_not_finite_ends_the_test(tmp_path):
    config = range_test(toy(task=ToyConfig(poison_step=17)), RateRange(steps=30))
    finder = run(config, tmp_path)
    assert finder.stopped is not None
    assert "loss or gradient is not finite at rate" in finder.stopped
    latest = CheckpointStore(tmp_path / "checkpoints").latest()
    assert latest is not None
    assert latest.step == len(finder.losses) + 1 < 30


class _Training:
    reason: str | None = None

    def request_stop(self, reason: str) -> None:
        assert self.reason is None
        self.reason = reason


def feed(losses: list[float]) -> tuple[LrFinder, _Training]:
    finder, training = LrFinder(), _Training()
    for step, loss in enumerate(losses):
        finder.on_metrics(training, {"train/loss": loss, "train/lr": 10.0 ** (step / 10)}, step)  # type: ignore[arg-type]
    return finder, training


def test_divergence_is_a_mean_above_four_times_the_best():
    finder, training = feed([1.0] * 50 + [4.0] * 50)  # the mean comes close to four and stays below
    assert training.reason is None
    finder, training = feed([1.0] * 50 + [8.0] * 50)
    # mean after n steps of 8: 8 - 7 * 0.9 ** n > 4 (1 - tiny bias) from n = 6 on
    assert len(finder.losses) == 56
    assert training.reason == finder.stopped
    assert "above 4 times its best" in str(training.reason)
    assert feed([100.0, 1.0, 1.0, 100.0])[1].reason is None  # one step is no divergence


def test_smoothing_shifts_nothing_and_keeps_a_line():
    line = np.linspace(3.0, 1.0, 50)
    curve = smoothed(line, 100)
    assert curve[15:-15] == pytest.approx(line[15:-15], rel=1e-6)
    peak = np.exp(-0.5 * ((np.arange(101) - 40) / 8.0) ** 2)
    assert int(np.argmax(smoothed(peak, 100))) == 40


def test_suggestions_on_a_known_curve():
    # A logistic fall around 1e-3 in log10(rate), then a wall from 1e-1 on: steepest at 1e-3, lowest at 1e-1.
    position = np.linspace(-6, 0, 121)
    losses = 1 / (1 + np.exp(3 * (position + 3))) + np.where(position > -1, 5 * (position + 1), 0)
    found = suggest(10.0**position, losses)
    assert found is not None
    assert found.steepest == pytest.approx(1e-3, rel=0.15)
    assert found.minimum == pytest.approx(1e-1, rel=0.15)
    assert found.minimum_tenth == found.minimum / 10
    assert suggest(10.0**position, np.linspace(1, 2, 121)) is None  # it only rises


def test_the_fall_after_the_minimum_is_not_the_steepest():
    position = np.linspace(-4, 0, 41)
    losses = np.concatenate([np.linspace(2, 1, 20), [9.0] * 10, np.linspace(9, 1.5, 11)])
    found = suggest(10.0**position, losses)
    assert found is not None
    assert found.steepest < 10.0 ** position[20]


def test_report_and_picture(tmp_path):
    rates = RateRange(1e-6, 10.0, 60)
    finder = run(range_test(toy(), rates), tmp_path)
    report = write_report(finder, rates, "abc", tmp_path)
    assert json.loads((tmp_path / lr_finder.REPORT).read_text()) == report
    assert report["range"] == {"low": 1e-6, "high": 10.0, "steps": 60}
    assert len(report["lr"]) == len(report["loss"]) == len(report["smoothed"]) == report["steps"]
    assert 1e-6 < report["suggestion"]["steepest"] <= report["suggestion"]["minimum"] < 10
    picture = np.asarray(Image.open(tmp_path / lr_finder.PICTURE).convert("RGB"))
    assert picture.shape == (500, 800, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_test_that_fails_at_once_says_to_start_lower(tmp_path):
    finder, _ = feed([float("inf")])
    with pytest.raises(UserError, match=r"ended after 0 steps \(loss or gradient is not finite.*start at a lower rate"):
        write_report(finder, RateRange(), "abc", tmp_path)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (1e-3, 1e-3), (1e-1, 1e-2), (-1.0, 1.0), (1e-3, float("inf"))])
def test_wrong_ranges(bounds):
    with pytest.raises(UserError, match="two positive rates, the lower one first"):
        RateRange(*bounds)


def test_too_few_steps():
    with pytest.raises(UserError, match="--lr-steps 9: a curve needs at least 10 steps"):
        RateRange(steps=9)
