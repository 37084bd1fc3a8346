"""A small regression task and stream for tests of the engine: real torch, no sensors, no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sensorlab.config import StrictModel, digest
from sensorlab.data.payload import CorruptSample
from sensorlab.data.random_streams import SampleRandom, keyed_generator
from sensorlab.data.sample import Sample
from sensorlab.experiment import DataConfig, ExperimentConfig, TrainConfig
from sensorlab.metrics.base import Protocol, SumMetric
from sensorlab.tasks.base import Arrays, BaseTask, Batch, Outputs


class ToyConfig(StrictModel):
    name: Literal["toy"] = "toy"
    width: int = 8
    dropout: float = 0.2
    norm: bool = True
    poison_step: int = -1  # the loss of this sample index is NaN
    poison_input: int = -1  # so is the input of this one


class SquaredError(SumMetric):
    protocol = Protocol(metric="mse", source="tests")

    def __init__(self) -> None:
        super().__init__({"error": (), "count": ()})

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        self.sums["error"] += (outputs["y"] - batch["y"]).double().square().sum().cpu()
        self.sums["count"] += len(batch["y"])

    def compute(self) -> dict[str, float]:
        return {"mse": float(self.sums["error"] / self.sums["count"])}


class ToyTask(BaseTask):
    Config = ToyConfig
    columns = ()

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays:
        x = keyed_generator("toy", sample.token).standard_normal(4).astype(np.float32)
        if training:
            x = x + 0.1 * random.stream("noise").standard_normal(4).astype(np.float32)
        return {"x": x, "y": np.float32([np.tanh(x.sum())])}

    def build_model(self) -> nn.Module:
        width = self.config.width
        norm = nn.BatchNorm1d(width) if self.config.norm else nn.Identity()
        return nn.Sequential(nn.Linear(4, width), norm, nn.ReLU(), nn.Dropout(self.config.dropout), nn.Linear(width, 1))

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        poisoned = (batch["index"] == self.config.poison_input)[:, None]
        return {"y": model(torch.where(poisoned, float("nan"), batch["x"]))}

    def losses(self, model: nn.Module, outputs: Outputs, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        error = outputs["y"] - batch["y"]
        if self.config.poison_step in batch["index"]:
            error = error * float("nan")
        return {"squared": error.square().mean(), "small": 0.1 * error.abs().mean()}, {"bias": error.mean()}

    def metrics(self) -> dict[str, SquaredError]:
        return {"mse": SquaredError()}

    def decode(self, outputs: Outputs) -> list[float]:
        return outputs["y"][:, 0].tolist()

    def panels(self, outputs: Outputs, batch: Batch) -> list[tuple[str, np.ndarray]]:
        return [("toy", np.zeros((4, 4, 3), np.uint8)) for _ in batch["index"]]


class ToyStream:
    """An in-memory stream with the order and sharding rules of the real ones."""

    def __init__(
        self,
        size: int,
        global_batch: int,
        task: ToyTask,
        *,
        seed: int = 0,
        training: bool = True,
        rank: int = 0,
        n: int = 1,
    ) -> None:
        self.size, self.global_batch, self.task = size, global_batch, task
        self.seed, self.training, self.rank, self.n = seed, training, rank, n
        self.batches_per_epoch = size // global_batch if training else -(-size // global_batch)
        self.fingerprint = digest({"size": size, "global_batch": global_batch, "seed": seed, "training": training})
        self.read: list[int] = []
        self.corrupt_samples: list[CorruptSample] = []
        self.is_adaptive = False

    def close(self) -> None: ...

    def note_corrupt(self, found: Iterable[CorruptSample]) -> None:
        self.corrupt_samples += [sample for sample in found if sample not in self.corrupt_samples]

    def batches(self, epoch: int, start_batch: int = 0, scores: Mapping[str, float] | None = None) -> Iterator[Batch]:
        order = np.arange(self.size)
        if self.training:
            order = keyed_generator("order", self.seed, epoch).permutation(self.size)
        for k in range(start_batch, self.batches_per_epoch):
            rows = order[k * self.global_batch : (k + 1) * self.global_batch]
            share = -(-len(rows) // self.n)
            own = rows[self.rank * share : (self.rank + 1) * share]
            if len(own) == 0:
                continue
            self.read += own.tolist()
            samples = [Sample(str(i), "scene", "scene", 0, np.eye(4)) for i in own]
            items = [
                self.task.transform(sample, SampleRandom(self.seed, epoch, sample.token), self.training)
                for sample in samples
            ]
            batch = self.task.collate(items) | {"index": own, "is_filler": np.zeros(len(own), bool)}
            yield {name: torch.from_numpy(value) for name, value in batch.items()}


def toy_experiment(**sections: Any) -> ExperimentConfig:
    """An experiment on the toy task; keyword arguments replace whole sections."""
    defaults: dict[str, Any] = {
        "name": "toy",
        "task": ToyConfig(),
        "data": DataConfig(path="nowhere", global_batch=4),
        "train": TrainConfig(duration="3 epochs", log_every="2 steps"),
    }
    return ExperimentConfig(**(defaults | sections))
