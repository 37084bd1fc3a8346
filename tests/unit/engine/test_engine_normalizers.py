"""Losses that are divided by counts: two workers train as one does, however unevenly the counts are spread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from two_workers import run_on_two_workers

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import OptimConfig
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import EvalConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")


class _AtEnd(Callback):
    def __init__(self, take):
        self._take = take

    def on_fit_end(self, training):
        self._take(training)


class PositivesOnly(ToyTask):
    """Learns the samples with a positive target alone: the sum of their errors by their number."""

    def normalizers(self, batch):
        return {"num_positives": (batch["y"] > 0).sum().float()}

    def losses(self, model, outputs, batch):
        error = (outputs["y"] - batch["y"]).square()[batch["y"] > 0].sum()
        count = batch["num_positives"] if "num_positives" in batch else self.normalizers(batch)["num_positives"]
        return {"squared": error / torch.where(count > 0, count, 1.0)}, {}


class Legacy(PositivesOnly):
    """Each worker divides by its own count."""

    def normalizers(self, batch):
        return {}

    def losses(self, model, outputs, batch):
        own = PositivesOnly.normalizers(self, batch)
        return super().losses(model, outputs, {**batch, **own})


def _trained(workers: WorkerGroup, directory: str, kind: str) -> dict[str, torch.Tensor]:
    config = toy_experiment(
        task=ToyConfig(dropout=0.0, norm=False),
        optim=OptimConfig(name="sgd", lr=0.1),  # Adam would enlarge the rounding of gradients near zero
        train=TrainConfig(duration="2 epochs", log_every="1 epoch"),
        eval=EvalConfig(metric="val/mse", mode="min"),
    )
    task = {"exact": PositivesOnly, "legacy": Legacy}[kind](config.task)
    place = {"rank": workers.rank, "n": workers.world_size}
    streams = ToyStream(24, 6, task, **place), ToyStream(8, 4, task, training=False, **place)
    final: dict[str, torch.Tensor] = {}

    def keep(training):
        final.update({name: value.clone() for name, value in training.model.state_dict().items()})

    fit(config, task, *streams, run_dir=Path(directory), workers=workers, callbacks=[_AtEnd(keep)])
    return final


def _of_two(rank: int, directory: str, kind: str) -> dict[str, torch.Tensor]:
    return _trained(WorkerGroup(rank, 2), directory, kind)


def _difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_two_workers_train_as_one_does(tmp_path):
    alone = _trained(WorkerGroup(), str(tmp_path / "one"), "exact")
    exact = run_on_two_workers(_of_two, tmp_path, str(tmp_path / "two"), "exact")[0]
    legacy = run_on_two_workers(_of_two, tmp_path, str(tmp_path / "legacy"), "legacy")[0]
    assert _difference(alone, exact) < 2e-6
    assert _difference(alone, legacy) > 1e-3


def _averaged(rank: int) -> dict[str, torch.Tensor]:
    return WorkerGroup(rank, 2).average({"a": torch.tensor(1.0 + rank), "b": torch.full((2, 2), 10.0 * rank)})


def test_tensors_are_averaged_in_one_exchange(tmp_path):
    first, second = run_on_two_workers(_averaged, tmp_path)
    for found in (first, second):
        assert torch.equal(found["a"], torch.tensor(1.5))
        assert torch.equal(found["b"], torch.full((2, 2), 5.0))


def test_one_worker_keeps_its_tensors():
    count = torch.tensor(3.0)
    assert WorkerGroup().average({"a": count})["a"] is count
