"""Freezing, synchronised batch norm and compiling in whole trainings, interrupted and resumed."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from callback_runs import Interrupted, StopAfter
from run_states import assert_equal, final_state
from two_workers import run_on_two_workers

from sensorlab.engine import checkpoint
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import OptimConfig
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import CheckpointConfig, EvalConfig, ExperimentConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment

# The toy's layers: 0 linear, 1 batch norm, 4 linear. Epochs have 3 steps, the last of one pass.
RULES = (
    {"match": ["0.*", "1.*"], "until": "1 epoch", "norm_statistics": True},
    {"match": ["4.bias"], "start": "2 epochs"},
)


class Watch(Callback):
    """After each step: the parameters that are trained, and whether the norm layer is held."""

    def __init__(self) -> None:
        self.trained: list[set[str]] = []
        self.held: list[bool] = []

    def on_step_end(self, training, record):
        self.trained.append({name for name, value in training.model.named_parameters() if value.requires_grad})
        self.held.append(not training.model[1].training)


def experiment(dropout: float = 0.2, **train) -> ExperimentConfig:
    settings = {"duration": "3 epochs", "log_every": "2 steps", "accumulate": 2, "freeze": list(RULES)}
    return toy_experiment(
        task=ToyConfig(dropout=dropout),
        optim=OptimConfig(name="sgd", lr=0.05, weight_decay=0.1),
        eval=EvalConfig(metric="val/mse", mode="min", every=["1 epoch", "2 steps"]),  # also inside of an epoch
        train=TrainConfig.model_validate_json(json.dumps(settings | train)),
        checkpoint=CheckpointConfig(every=["1 epoch", "1 step"], keep_latest=20),
    )


def run(config: ExperimentConfig, run_dir: Path, *callbacks: Callback, rank: int = 0, world_size: int = 1) -> None:
    task = ToyTask(config.task)
    train = ToyStream(21, 4, task, seed=config.seed, rank=rank, n=world_size)
    val = ToyStream(9, 4, task, training=False, rank=rank, n=world_size)
    workers = WorkerGroup(rank, world_size)
    try:
        fit(config, task, train, val, run_dir=run_dir, workers=workers, callbacks=[JsonLog(), *callbacks])
    except Interrupted:
        assert any(isinstance(callback, StopAfter) for callback in callbacks)


def states(run_dir: Path) -> dict[int, dict]:
    """Model, optimiser and average after each step."""
    store = checkpoint.CheckpointStore(run_dir / "checkpoints")
    return {info.step: checkpoint.load(info.path) for info in store.all()}


EMA = {"kind": "constant", "decay": 0.9}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run_dir, watch = tmp_path_factory.mktemp("straight"), Watch()
    run(experiment(ema=EMA), run_dir, watch)
    return run_dir, watch


def test_each_epoch_trains_what_its_rules_say(straight):
    _, watch = straight
    everything = {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}
    by_epoch = [{"4.weight", "4.bias"}, everything, everything - {"4.bias"}]
    assert watch.trained == [by_epoch[step // 3] for step in range(9)]
    assert watch.held == [True] * 3 + [False] * 6


def test_what_is_frozen_stays_equal_in_weights_statistics_and_average(straight):
    run_dir, _ = straight
    found = states(run_dir)
    for name in found[1]["model"]:
        early = [torch.equal(found[3]["model"][name], found[step]["model"][name]) for step in (1, 2, 4)]
        assert early == ([True, True, False] if name[0] in "01" else [False] * 3), name
        if name[0] in "01":
            assert torch.equal(found[3]["ema"]["model"][name], found[3]["model"][name]), name
    assert torch.equal(found[6]["model"]["4.bias"], found[9]["model"]["4.bias"])
    assert not torch.equal(found[6]["model"]["4.weight"], found[9]["model"]["4.weight"])


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6, 7])
def test_an_interrupted_training_ends_with_the_same_bits(straight, tmp_path, stop):
    config = experiment(ema=EMA)
    run(config, tmp_path, Watch(), StopAfter(stop))
    run(config, tmp_path, Watch())
    assert_equal(final_state(tmp_path), final_state(straight[0]))


def _on_worker(rank: int, directory: str) -> dict[str, object]:
    config = experiment(dropout=0.0, sync_batchnorm=True)
    run(config, Path(directory, "straight"), rank=rank, world_size=2)
    run(config, Path(directory, "resumed"), StopAfter(5), rank=rank, world_size=2)
    run(config, Path(directory, "resumed"), rank=rank, world_size=2)
    run(config, Path(directory, "moved"), StopAfter(2), rank=rank, world_size=2)
    return {}


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")
def test_two_workers_with_synchronised_norms_train_as_one_does_and_resume_bit_for_bit(tmp_path):
    run_on_two_workers(_on_worker, tmp_path, str(tmp_path))
    run(experiment(dropout=0.0, sync_batchnorm=True), tmp_path / "one")
    run(experiment(dropout=0.0, sync_batchnorm=True), tmp_path / "moved")  # the rest with one worker
    one, straight, resumed, moved = (
        final_state(tmp_path / name)[0] for name in ("one", "straight", "resumed", "moved")
    )
    assert_equal(straight["model"], resumed["model"])
    assert_equal(straight["optimizer"], resumed["optimizer"])
    for name, value in one["model"].items():
        # Means over 4 samples are means of two means over 2: equal up to the rounding of float32 sums, in 9 steps.
        assert torch.allclose(straight["model"][name], value, rtol=1e-4, atol=1e-5), name
        assert torch.allclose(moved["model"][name], value, rtol=1e-4, atol=1e-5), name


def test_a_compiler_that_is_missing_costs_a_warning_and_no_bit(straight, tmp_path, caplog):
    config = pytest.importorskip("torch._inductor.config")
    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        run(experiment(ema=EMA, compile=True), tmp_path)
    assert "training goes on without it: InvalidCxxCompiler" in caplog.text
    plain, compiled = final_state(straight[0])[0], final_state(tmp_path)[0]
    for key in ("model", "optimizer", "ema", "metrics"):
        assert_equal(plain[key], compiled[key], key)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_training_is_close_to_a_plain_one_and_resumes_bit_for_bit(tmp_path, caplog):
    run(experiment(dropout=0.0), tmp_path / "plain")
    config = experiment(dropout=0.0, compile=True)
    run(config, tmp_path / "straight")
    run(config, tmp_path / "resumed", StopAfter(4))
    run(config, tmp_path / "resumed")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    plain, straight, resumed = (final_state(tmp_path / name) for name in ("plain", "straight", "resumed"))
    assert_equal(straight, resumed)
    assert list(plain[0]["model"]) == list(straight[0]["model"])
    for name, value in plain[0]["model"].items():
        assert torch.allclose(straight[0]["model"][name], value, rtol=1e-4, atol=1e-5), name
