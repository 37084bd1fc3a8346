"""A small image classification task on a dataset on disk: all that makes an exact resume hard, in a few milliseconds.

Images that can be resized, stochastic augmentation, batch statistics, dropout, classes with scores, and a sample that
can be made to give a loss that is not finite.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sensorlab.config import StrictModel
from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.random_streams import SampleRandom, keyed_generator
from sensorlab.data.sample import Boxes, Sample
from sensorlab.data.shards import write_shard
from sensorlab.data.stream import StreamConfig, StreamSpec
from sensorlab.experiment import ExperimentConfig
from sensorlab.metrics.base import Metric, Protocol, SumMetric
from sensorlab.tasks.base import Arrays, BaseTask, Batch, Outputs

CLASSES = ("car", "cyclist", "person")
TRAIN_SAMPLES, VAL_SAMPLES = 30, 10


class ToyImageConfig(StrictModel):
    name: Literal["toy_image"] = "toy_image"
    size: int = 8  # pixels of a side
    width: int = 6  # channels
    dropout: float = 0.2
    norm: bool = True
    poison: int = -1  # row of the training sample whose image is NaN


class ClassAccuracy(SumMetric):
    """Share of the samples of each class that are told right."""

    protocol = Protocol(metric="accuracy", source="tests")

    def __init__(self) -> None:
        super().__init__({"right": (len(CLASSES),), "count": (len(CLASSES),)})

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        label = batch["label"][~batch["is_filler"]]
        right = outputs["scores"].argmax(1)[~batch["is_filler"]] == label
        self.sums["count"] += torch.bincount(label, minlength=len(CLASSES))
        self.sums["right"] += torch.bincount(label[right], minlength=len(CLASSES))

    def compute(self) -> dict[str, float]:
        return {"accuracy": float(self.sums["right"].sum() / self.sums["count"].sum())}


class ToyImageTask(BaseTask):
    Config = ToyImageConfig
    columns = ("boxes",)

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays:
        label, size = CLASSES.index(sample.boxes.category[0]), self.config.size
        image = keyed_generator("toy", sample.token).standard_normal((1, size, size))
        image += 2.0 * np.sin(np.arange(size) * (label + 1.0))
        if training:
            image += 0.3 * random.stream("noise").standard_normal(image.shape)
            image = image[..., ::-1] if random.stream("flip").random() < 0.5 else image
        return {"image": np.ascontiguousarray(image, np.float32), "label": np.int64(label)}

    def build_model(self) -> nn.Module:
        width = self.config.width
        layers: dict[str, nn.Module] = {
            "stem": nn.Conv2d(1, width, 3, padding=1, bias=not self.config.norm),  # a bias would only be noise
            "norm": nn.BatchNorm2d(width) if self.config.norm else nn.Identity(),
            "relu": nn.ReLU(),
            "mixer": nn.Conv2d(width, width, 3, padding=1),
            "pool": nn.AdaptiveAvgPool2d(2),
            "flat": nn.Flatten(),
            "dropout": nn.Dropout(self.config.dropout),
            "head": nn.Linear(4 * width, len(CLASSES)),
        }
        return nn.Sequential(OrderedDict(layers))

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        poisoned = (batch["index"] == self.config.poison) & model.training
        return {"scores": model(batch["image"].masked_fill(poisoned[:, None, None, None], float("nan")))}

    def losses(self, model: nn.Module, outputs: Outputs, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        scores = outputs["scores"].float()
        terms = {
            "cross_entropy": nn.functional.cross_entropy(scores, batch["label"]),
            "size": 1e-3 * scores.abs().mean(),
        }
        return terms, {"confidence": scores.softmax(1).amax(1).mean()}

    def metrics(self) -> dict[str, Metric]:
        return {"accuracy": ClassAccuracy()}

    def class_scores(self, metrics: Mapping[str, Metric]) -> dict[str, float]:
        state = metrics["accuracy"].state()
        shares = (state["right"] / state["count"]).tolist()
        return {name: share for name, share in zip(CLASSES, shares, strict=True) if share == share}

    def image_size(self, batch: Batch) -> tuple[int, int]:
        height, width = batch["image"].shape[-2:]
        return height, width

    def resize(self, batch: Batch, size: tuple[int, int]) -> Batch:
        return batch | {"image": nn.functional.interpolate(batch["image"], size, mode="bilinear")}

    def input_panels(self, batch: Batch) -> list[tuple[str, np.ndarray]]:
        grey = (batch["image"][:, 0].clamp(-4, 4) * 30 + 128).to(torch.uint8).cpu().numpy()
        titles = [CLASSES[label] for label in batch["label"].tolist()]
        return [(title, np.repeat(image[..., None], 3, axis=2)) for title, image in zip(titles, grey, strict=True)]

    def decode(self, outputs: Outputs) -> list[str]:
        return [CLASSES[label] for label in outputs["scores"].argmax(1).tolist()]

    def panels(self, outputs: Outputs, batch: Batch) -> list[tuple[str, np.ndarray]]:
        return self.input_panels(batch)


def write_splits(root: Path) -> None:
    """The shards of ``split`` in the directory ``root``; the classes are of unequal number."""
    for name, samples in (("train", TRAIN_SAMPLES), ("val", VAL_SAMPLES)):
        write_shard(root, f"{name}.parquet", (_sample(name, row) for row in range(samples)), 4)


def _sample(split: str, row: int) -> Sample:
    label = CLASSES[(0, 0, 0, 1, 0, 1, 2)[row % 7]]
    boxes = Boxes(
        token=["box"],
        instance=["instance"],
        category=[label],
        attributes=[[]],
        visibility=np.zeros(1, np.int8),
        center=np.zeros((1, 3)),
        size=np.ones((1, 3)),
        rotation=np.array([[1.0, 0, 0, 0]]),
        velocity=np.zeros((1, 3)),
        num_lidar_points=np.zeros(1, np.int32),
        num_radar_points=np.zeros(1, np.int32),
    )
    return Sample(f"{split}-{row}", "scene", "scene-token", row, np.eye(4), boxes=boxes)


def split(root: str | Path, name: str) -> Split:
    samples = {"train": TRAIN_SAMPLES, "val": VAL_SAMPLES}[name]
    sizes = [min(4, samples - first) for first in range(0, samples, 4)]
    groups = np.array([(0, group, size) for group, size in enumerate(sizes)], np.int64)
    return Split(name, "toy-images", (str(Path(root) / f"{name}.parquet"),), groups)


def streams(
    config: ExperimentConfig, task: BaseTask, rank: int = 0, world_size: int = 1
) -> tuple[LocalStream, LocalStream]:
    """Training and validation streams of ``config``, of the splits that :func:`write_splits` wrote to its ``path``."""
    batch, root, threads = config.data.global_batch, config.data.path, StreamConfig(threads=1)
    train = StreamSpec(split(root, "train"), task, batch, config.seed, True, threads, sampling=config.data.sampling)
    val = StreamSpec(split(root, "val"), task, batch, config.seed, False, threads)
    return LocalStream(train, rank, world_size, end_epoch=99), LocalStream(val, rank, world_size)
