"""Two workers over gloo: the same samples and, without batch statistics, the same training as one."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sensorlab.engine import checkpoint
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.fit import fit
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import CheckpointConfig, EvalConfig, ExperimentConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment


class StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, training, record):
        if record.step == self.step:
            raise KeyboardInterrupt


def experiment(norm: bool) -> ExperimentConfig:
    return toy_experiment(
        task=ToyConfig(dropout=0.0, norm=norm),
        eval=EvalConfig(metric="val/mse", mode="min"),
        train=TrainConfig(duration="2 epochs", log_every="2 steps", accumulate=2),
        checkpoint=CheckpointConfig(every=["1 epoch", "1 step"], keep_latest=10),
    )


def train(config: ExperimentConfig, run_dir: Path, rank: int, world_size: int, stop: int | None) -> list[int]:
    task = ToyTask(config.task)
    stream = ToyStream(20, 4, task, rank=rank, n=world_size)
    val = ToyStream(9, 4, task, training=False, rank=rank, n=world_size)
    callbacks = [JsonLog()] + ([StopAfter(stop)] if stop else [])
    workers = WorkerGroup(rank, world_size)
    try:
        fit(config, task, stream, val, run_dir=run_dir, workers=workers, callbacks=callbacks)
    except KeyboardInterrupt:
        assert stop
    return stream.read


def _worker(rank: int, port: int, norm: bool, run_dir: str, stop: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    read = train(experiment(norm), Path(run_dir), rank, 2, stop)
    Path(run_dir, f"read-{rank}.json").write_text(json.dumps(read))
    dist.destroy_process_group()


def two_workers(norm: bool, run_dir: Path, stop: int | None = None) -> list[list[int]]:
    run_dir.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (port, norm, str(run_dir), stop), nprocs=2)
    return [json.loads((run_dir / f"read-{rank}.json").read_text()) for rank in range(2)]


def state_of(run_dir: Path) -> dict:
    return checkpoint.load(checkpoint.CheckpointStore(run_dir / "checkpoints").latest().path)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")


def test_two_workers_see_the_batches_of_one_and_reach_the_same_weights(tmp_path):
    one_read = train(experiment(False), tmp_path / "one", 0, 1, None)
    two_read = two_workers(False, tmp_path / "two")
    for k in range(10):
        both = two_read[0][2 * k : 2 * k + 2] + two_read[1][2 * k : 2 * k + 2]
        assert both == one_read[4 * k : 4 * k + 4]
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    for name, value in one["model"].items():
        # The mean over 4 samples is a mean of two means over 2: equal up to the rounding of float32 sums.
        assert torch.allclose(value, two["model"][name], rtol=1e-5, atol=1e-6), name
    assert two["metrics"]["val/num_samples"] == 9
    assert two["metrics"]["val/mse"] == pytest.approx(one["metrics"]["val/mse"], rel=1e-5)
    assert two["metrics"]["train/loss"] == pytest.approx(one["metrics"]["train/loss"], rel=1e-5)


def test_two_workers_resume_bit_for_bit_with_batch_statistics(tmp_path):
    two_workers(True, tmp_path / "straight")
    two_workers(True, tmp_path / "resumed", stop=4)
    two_workers(True, tmp_path / "resumed")
    straight, resumed = state_of(tmp_path / "straight"), state_of(tmp_path / "resumed")
    for name, value in straight["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    losses = [
        [line for line in map(json.loads, (tmp_path / name / "metrics.jsonl").open()) if "train/loss" in line]
        for name in ("straight", "resumed")
    ]
    assert [(line["step"], line["train/loss"]) for line in losses[0]] == [
        (line["step"], line["train/loss"]) for line in losses[1]
    ]
