"""A finished run that is extended, against one that was planned so from the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_states import assert_equal, final_state

from sensorlab.engine.budget import ExtendConfig
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.checkpoint import CheckpointStore, load
from sensorlab.engine.compare import read_series
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import FitResult, fit
from sensorlab.engine.warmup import WarmupConfig
from sensorlab.errors import UserError
from sensorlab.experiment import CheckpointConfig, EvalConfig, ExperimentConfig, TrainConfig
from toy import ToyStream, ToyTask, toy_experiment


def experiment(duration: str, more: str | None = None, rule: str = "hold", **changes) -> ExperimentConfig:
    extend = ExtendConfig.model_validate({"duration": more, "rule": rule}) if more else None
    train = TrainConfig(duration=duration, extend=extend, log_every="2 steps", accumulate=2, ema=EmaConfig(tau=5.0))
    sections = {
        "train": train,
        "warmup": WarmupConfig(length=2),
        "eval": EvalConfig(metric="val/mse", mode="min", every="1 epoch"),
        "checkpoint": CheckpointConfig(every="1 epoch", keep_latest=3),
    }
    return toy_experiment(**(sections | changes))


def run(config: ExperimentConfig, run_dir: Path) -> FitResult:
    task = ToyTask(config.task)
    train = ToyStream(21, 4, task, seed=config.seed)  # 5 batches an epoch: 3 steps, the last one of a single pass
    return fit(config, task, train, ToyStream(9, 4, task, training=False), run_dir=run_dir, callbacks=[JsonLog()])


def test_extended_equals_planned_bit_for_bit_in_state_and_log(tmp_path):
    run(experiment("2 epochs", "3 epochs"), tmp_path / "planned")
    assert run(experiment("2 epochs"), tmp_path / "extended").steps == 6
    assert run(experiment("2 epochs", "3 epochs"), tmp_path / "extended").steps == 15
    assert_equal(final_state(tmp_path / "extended"), final_state(tmp_path / "planned"))


@pytest.mark.parametrize(("duration", "more"), [("4 steps", "5 steps"), ("16 samples", "30 samples")])
def test_extended_inside_of_an_epoch_equals_planned_in_weights_and_training_losses(tmp_path, duration, more):
    run(experiment(duration, more), tmp_path / "planned")
    run(experiment(duration), tmp_path / "extended")
    run(experiment(duration, more), tmp_path / "extended")
    extended, planned = (final_state(tmp_path / name)[0] for name in ("extended", "planned"))
    # The run that ended there was evaluated there; its interval of losses ended there too.
    for state in (extended, planned):
        for name in ("metrics", "protocols", "best_objective", "evaluated", "meters"):
            state.pop(name)
    assert_equal(extended, planned)


def test_extended_twice_equals_extended_at_once(tmp_path):
    run(experiment("1 epoch"), tmp_path / "twice")
    for more in ("1 epoch", "3 epochs"):  # counted from the planned end each time
        run(experiment("1 epoch", more), tmp_path / "twice")
    run(experiment("1 epoch", "3 epochs"), tmp_path / "once")
    assert_equal(final_state(tmp_path / "twice"), final_state(tmp_path / "once"))


def test_hold_goes_on_with_the_last_rate_and_rescale_jumps_to_that_of_the_longer_schedule(tmp_path):
    rates = {}
    for rule in ("hold", "rescale"):
        run(experiment("2 epochs"), tmp_path / rule)
        run(experiment("2 epochs", "2 epochs", rule), tmp_path / rule)
        series = read_series(tmp_path / rule)
        rates[rule] = {step: value for (step, name), value in series.items() if name == "train/lr"}
    run(experiment("4 epochs"), tmp_path / "long")
    whole = {step: value for (step, name), value in read_series(tmp_path / "long").items() if name == "train/lr"}
    assert {rates["hold"][step] for step in rates["hold"] if step > 6} == {rates["hold"][6]}
    assert rates["rescale"][6] == rates["hold"][6]
    assert {step: rates["rescale"][step] for step in whole if step > 6} == {s: whole[s] for s in whole if s > 6}


def test_a_run_that_stopped_early_goes_on_when_it_is_extended(tmp_path):
    class Stop(JsonLog):
        def on_epoch_end(self, training, metrics):
            if training.cursor.epoch == 1:
                training.request_stop("enough")

    config = experiment("3 epochs")
    task = ToyTask(config.task)

    def streams():
        return ToyStream(21, 4, task, seed=config.seed), ToyStream(9, 4, task, training=False)

    assert fit(config, task, *streams(), run_dir=tmp_path, callbacks=[Stop()]).steps == 3
    assert fit(config, task, *streams(), run_dir=tmp_path, callbacks=[JsonLog()]).steps == 3  # it was over
    longer = experiment("3 epochs", "1 epoch")
    assert fit(longer, task, *streams(), run_dir=tmp_path, callbacks=[JsonLog()]).steps == 12


def test_what_an_extension_may_not_be(tmp_path):
    with pytest.raises(ValueError, match=r"extend.duration must be in epochs, as duration is"):
        experiment("2 epochs", "10 steps")
    run(experiment("2 epochs"), tmp_path)
    with pytest.raises(UserError, match=r"train.duration: '2 epochs' -> '3 epochs'"):
        run(experiment("3 epochs"), tmp_path)
    latest = CheckpointStore(tmp_path / "checkpoints").latest()
    assert latest is not None
    assert load(latest.path)["config"]["train"]["extend"] is None
