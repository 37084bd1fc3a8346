"""Validation without training: the numbers of the training's own evaluation, of the weights that it evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from two_workers import run_on_two_workers

from sensorlab.config import digest
from sensorlab.engine.accumulate import AccumulateConfig
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.checkpoint import CheckpointStore
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import FitResult, fit
from sensorlab.engine.freeze import FreezeRule
from sensorlab.engine.optim import GroupRule, OptimConfig
from sensorlab.engine.validate import validate, weights_of
from sensorlab.engine.warmup import WarmupConfig
from sensorlab.engine.workers import WorkerGroup
from sensorlab.errors import UserError
from sensorlab.experiment import CheckpointConfig, DataConfig, EvalConfig, ExperimentConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment

VAL_SAMPLES = 10


def experiment(ema: bool = True, **changes) -> ExperimentConfig:
    train = TrainConfig(duration="3 epochs", log_every="2 steps", ema=EmaConfig(tau=5.0) if ema else None)
    sections = {"train": train, "eval": EvalConfig(metric="val/mse", mode="min")}
    return toy_experiment(**(sections | {"checkpoint": CheckpointConfig(keep_latest=5)} | changes))


def train(config: ExperimentConfig, run_dir: Path) -> FitResult:
    task = ToyTask(config.task)
    val = ToyStream(VAL_SAMPLES, 4, task, training=False)
    return fit(config, task, ToyStream(20, 4, task), val, run_dir=run_dir, callbacks=[JsonLog()])


def measure(weights: Path, run_dir: Path, config: ExperimentConfig | None = None, size: int = VAL_SAMPLES, **more):
    config = config or experiment()
    task = ToyTask(config.task)
    stream = ToyStream(size, 4, task, training=False, **more.pop("place", {}))
    return validate(config, task, stream, run_dir=run_dir, weights=weights_of(weights), **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    train(experiment(), run_dir)
    return run_dir


def test_every_checkpoint_measures_as_it_did_in_training(trained, tmp_path):
    checkpoints = CheckpointStore(trained / "checkpoints").all()
    assert [info.step for info in checkpoints] == [5, 10, 15]
    for info in checkpoints:
        found = measure(info.path, tmp_path / info.path.name)
        in_training = {name: value for name, value in info.metrics.items() if name.startswith("val/")}
        assert found.metrics == in_training
        assert found.cursor.step == info.step
        assert found.protocols["val/mse"]["split"] == "val"


def test_the_running_average_is_measured_where_there_is_one(trained, tmp_path):
    last = CheckpointStore(trained / "checkpoints").all()[-1].path
    average, plain = (measure(last / f"{name}.safetensors", tmp_path / name).metrics for name in ("ema", "model"))
    assert average == measure(last, tmp_path / "checkpoint").metrics
    assert plain["val/mse"] != average["val/mse"]


def test_a_run_without_average_is_measured_by_its_weights(tmp_path):
    config = experiment(ema=False)
    result = train(config, tmp_path / "run")
    assert result.last_checkpoint is not None
    assert measure(result.last_checkpoint, tmp_path / "val", config).metrics["val/mse"] == result.metrics["val/mse"]


def test_nothing_is_trained_or_saved_and_callbacks_see_one_evaluation(trained, tmp_path):
    calls: list[str] = []

    class Watch(Callback):
        def on_fit_start(self, training):
            calls.append(f"start at step {training.cursor.step}")

        def on_phase(self, training, phase, total):
            calls.append(f"{phase} of {total}")

        def on_eval_batch(self, training, done, total):
            calls.append(f"batch {done}")

        def on_metrics(self, training, metrics, step):
            calls.append(f"metrics at step {step}")

        def on_panels(self, training, panels, step):
            calls.append(f"{len(panels)} panels")

        def on_step_end(self, training, record):
            calls.append("a step")

        def on_checkpoint(self, training, path):
            calls.append("a checkpoint")

        def on_fit_end(self, training):
            calls.append("end")

    last = CheckpointStore(trained / "checkpoints").all()[-1].path
    measure(last, tmp_path, callbacks=[Watch(), JsonLog()])
    assert calls == [
        *("start at step 15", "val of 3", "batch 1", "batch 2", "batch 3", "metrics at step 15", "2 panels", "end")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def _on_worker(rank: int, weights: str, run_dir: str) -> dict[str, float]:
    torch.set_num_threads(1)
    group = WorkerGroup(rank, 2, torch.device("cpu"))
    place = {"rank": rank, "n": 2}
    return measure(Path(weights), Path(run_dir), size=8, place=place, workers=group).metrics


def test_two_workers_measure_what_one_does(trained, tmp_path):
    last = CheckpointStore(trained / "checkpoints").all()[-1].path
    both = run_on_two_workers(_on_worker, tmp_path, str(last), str(tmp_path / "two"))
    assert both[0] == both[1]
    alone = measure(last, tmp_path / "one", size=8).metrics
    assert both[0] == pytest.approx(alone, rel=1e-12)  # sums of doubles, in another order
    assert both[0]["val/num_samples"] == 8


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ToyConfig(width=16), r"tensors differ \(0.bias: weights \(8,\), model \(16,\)"),
        (ToyConfig(norm=False), r"1.bias: only in the weights"),
    ],
)
def test_weights_of_another_model_are_refused(trained, tmp_path, task, message):
    last = CheckpointStore(trained / "checkpoints").all()[-1].path
    with pytest.raises(UserError, match=message):
        measure(last, tmp_path, experiment(task=task))


def test_an_altered_checkpoint_and_a_missing_one_are_refused_by_name(tmp_path):
    result = train(experiment(), tmp_path / "run")
    assert result.last_checkpoint is not None
    weights = result.last_checkpoint / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"step-00000015: the content of ema.safetensors was altered"):
        weights_of(result.last_checkpoint)
    with pytest.raises(UserError, match="does not exist"):
        weights_of(tmp_path / "nowhere.safetensors")


def test_what_is_measured_may_differ_from_training(trained, tmp_path):
    last = CheckpointStore(trained / "checkpoints").all()[-1].path
    config = experiment(
        data=DataConfig(path="nowhere", global_batch=4, val_split="other"),
        eval=EvalConfig(metric="val/mse", mode="min", max_batches=2),
    )
    found = measure(last, tmp_path, config)
    assert found.metrics["val/num_samples"] == 8
    assert found.protocols["val/mse"]["split"] == "other"
    assert found.protocols["val/mse"]["max_batches"] == 2


FEW = {
    "more passes than the split has batches": {"train": {"accumulate": AccumulateConfig(passes=4, window="multiple")}},
    "a ramp over a warm-up in epochs": {
        "train": {"accumulate": AccumulateConfig(passes=4, ramp=True)},
        "warmup": WarmupConfig(length=2, unit="epochs"),
    },
    "rules of freezing": {"train": {"freeze": (FreezeRule(match=("0.*",), norm_statistics=True),)}},
    "groups of parameters": {"optim": OptimConfig(groups=(GroupRule(name="bias", match=("@bias",)),))},
}


@pytest.mark.parametrize("needs", FEW)
def test_what_training_needs_is_not_asked_of_the_validation_split(tmp_path, needs):
    changes = dict(FEW[needs])
    settings = {"duration": "2 epochs", "log_every": "2 steps", "ema": EmaConfig(tau=5.0)} | changes.pop("train", {})
    config = experiment(train=TrainConfig.model_validate(settings), **changes)
    result = train(config, tmp_path / "run")  # 5 batches; the validation has 3
    assert result.last_checkpoint is not None
    found = measure(result.last_checkpoint, tmp_path / "val", config)
    assert found.metrics["val/mse"] == result.metrics["val/mse"]
    assert found.metrics["val/loss"] == result.metrics["val/loss"]


def test_what_is_reported_is_of_the_experiment_as_it_was_given(trained, tmp_path):
    seen = []

    class Watch(Callback):
        def on_fit_start(self, training):
            seen.append((training.config, training.config_digest))

    config = experiment(warmup=WarmupConfig(length=2), optim=OptimConfig(lr=0.5))
    last = CheckpointStore(trained / "checkpoints").all()[-1].path
    found = measure(last, tmp_path, config, callbacks=[Watch()], provenance={"dataset": "d", "code": "c"})
    assert seen == [(config, digest(config))]
    assert (found.config, found.config_digest) == (config, digest(config))
    assert found.provenance == {"dataset": "d", "code": "c", "weights": str(last)}
    assert found.protocols["val/loss"]["task"] == digest(config.task)
    assert found.protocols["val/mse"]["dataset"] == "d"
    assert found.optimizer.state_dict()["state"] == {}
