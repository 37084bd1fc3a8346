"""A small but complete training on data made in memory, through the product's stream and engine.

``python -m sensorlab.selftest.training RUN_DIR`` runs it in a process of its own and announces on standard output what
happens, one line each: ``started STEP`` (0, or the step of the checkpoint it goes on from), ``step STEP``,
``saved STEP``, ``finished``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sensorlab.config import StrictModel
from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.random_streams import SampleRandom, keyed_generator
from sensorlab.data.sample import Sample
from sensorlab.data.sampling import ImageWeightsSampling
from sensorlab.data.sampling_policies import ImageWeightsOrder
from sensorlab.data.sampling_tables import ClassTable
from sensorlab.data.schema import arrow_schema, encode_sample
from sensorlab.data.stream import StreamConfig, StreamSpec
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.duration import Every
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import FitResult, fit
from sensorlab.engine.meters import StepRecord
from sensorlab.engine.multi_scale import MultiScaleConfig
from sensorlab.engine.optim import ClipConfig, OptimConfig
from sensorlab.engine.training import Training
from sensorlab.engine.warmup import WarmupConfig
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import CheckpointConfig, DataConfig, EvalConfig, ExperimentConfig, TrainConfig
from sensorlab.metrics.base import Metric, Protocol, SumMetric
from sensorlab.tasks.base import Arrays, BaseTask, Batch, Outputs

CLASSES = 4
TRAIN_SAMPLES, VAL_SAMPLES = 330, 50


class StripesConfig(StrictModel):
    """Tell the direction of noisy stripes; sizes of image (pixels) and network (channels)."""

    name: Literal["stripes"] = "stripes"
    size: int = 24
    width: int = 16


class Accuracy(SumMetric):
    """Share of the samples whose class is right."""

    protocol = Protocol(metric="accuracy", source="sensorlab.selftest")

    def __init__(self) -> None:
        super().__init__({"right": (CLASSES,), "count": (CLASSES,)})

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        label = batch["label"][~batch["is_filler"]]
        right = outputs["scores"].argmax(1)[~batch["is_filler"]] == label
        self.sums["right"] += torch.bincount(label[right], minlength=CLASSES).cpu()
        self.sums["count"] += torch.bincount(label, minlength=CLASSES).cpu()

    def compute(self) -> dict[str, float]:
        return {"accuracy": float(self.sums["right"].sum() / self.sums["count"].sum())}


class StripesTask(BaseTask):
    """Has all that resuming must get right: augmentation, dropout, statistics of batches, sizes, scores of classes."""

    Config = StripesConfig

    @property
    def columns(self) -> tuple[str, ...]:
        return ()

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays:
        size, label = self.config.size, label_of(sample)
        angle = np.pi * label / CLASSES
        y, x = np.mgrid[:size, :size]
        wave = np.sin(x * np.cos(angle) + y * np.sin(angle))
        noise = keyed_generator("selftest", sample.token).standard_normal((3, size, size))
        if training:
            noise += random.stream("noise").standard_normal((3, size, size))
        return {"image": (wave + noise).astype(np.float32), "label": np.int64(label)}

    def build_model(self) -> nn.Module:
        width = self.config.width
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(2 * width, CLASSES),
        )

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        return {"scores": model(batch["image"])}

    def losses(self, model: nn.Module, outputs: Outputs, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"cross_entropy": nn.functional.cross_entropy(outputs["scores"], batch["label"])}, {}

    def metrics(self) -> dict[str, Any]:
        return {"accuracy": Accuracy()}

    def sample_classes(self, sample: Sample) -> Mapping[str, int]:
        return {str(label_of(sample)): 1}

    def class_scores(self, metrics: Mapping[str, Metric]) -> dict[str, float]:
        state = metrics["accuracy"].state()
        shares = 0.5 * state["right"] / state["count"].clamp(min=1)  # not up to 1: a class told right is not left out
        return {str(label): float(share) for label, share in enumerate(shares)}

    def image_size(self, batch: Batch) -> tuple[int, int]:
        height, width = batch["image"].shape[-2:]
        return height, width

    def resize(self, batch: Batch, size: tuple[int, int]) -> Batch:
        return batch | {"image": nn.functional.interpolate(batch["image"], size, mode="bilinear")}

    def decode(self, outputs: Outputs) -> list[int]:
        return outputs["scores"].argmax(1).tolist()

    def panels(self, outputs: Outputs, batch: Batch) -> list[tuple[str, np.ndarray]]:
        return []


def label_of(sample: Sample) -> int:
    """The class of a sample; they are of unequal frequency."""
    return (0, 1, 2, 3, 0, 1, 0)[int(sample.token) % 7]


def _sample(row: int) -> Sample:
    return Sample(str(row), "scene", "scene", row, np.eye(4))


class MemorySplit(Split):
    """A split whose rows are made when they are read: a sample is its number."""

    def read(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        schema = arrow_schema(columns)
        encoded = [encode_sample(_sample(row)) for row in np.asarray(rows).tolist()]
        return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in encoded], schema)


def memory_split(name: str, samples: int) -> MemorySplit:
    """Rows in groups of eight, as in a prepared dataset."""
    sizes = [min(8, samples - start) for start in range(0, samples, 8)]
    groups = np.array([(0, group, size) for group, size in enumerate(sizes)], np.int64)
    return MemorySplit(name, f"selftest-{name}-{samples}", (), groups)


def stripes_experiment(seed: int) -> ExperimentConfig:
    """Three epochs of 14 steps, with all that a resume could get wrong; logged, saved and evaluated unevenly."""
    return ExperimentConfig(
        name="selftest",
        seed=seed,
        task=StripesConfig(),
        data=DataConfig(path="memory", global_batch=12, sampling=ImageWeightsSampling()),
        optim=OptimConfig(lr=2e-2),
        warmup=WarmupConfig(length=5),
        train=TrainConfig.model_validate(
            {
                "duration": "3 epochs",
                "accumulate": 2,
                "clip": ClipConfig(value=1.0),
                "multi_scale": MultiScaleConfig(stride=8),
                "ema": EmaConfig(decay=0.9, tau=10.0),
                "log_every": "4 steps",
            }
        ),
        eval=EvalConfig(metric="val/accuracy", every=Every.parse("1 epoch")),
        checkpoint=CheckpointConfig(every=Every.parse(["1 epoch", "3 steps"]), keep_latest=2),
    )


def train(
    config: ExperimentConfig, run_dir: Path, *callbacks: Callback, workers: WorkerGroup | None = None
) -> FitResult:
    """Run or go on with the training of ``config`` in ``run_dir``, as one of ``workers``."""
    task, workers = StripesTask(config.task), workers or WorkerGroup()
    place = workers.rank, workers.world_size
    batch, threads = config.data.global_batch, StreamConfig(threads=1)
    split = memory_split("train", TRAIN_SAMPLES)
    policy = None
    if isinstance(config.data.sampling, ImageWeightsSampling):  # its table is otherwise read from shards
        table = ClassTable.of(task.sample_classes(_sample(row)) for row in range(TRAIN_SAMPLES))
        policy = ImageWeightsOrder(table, config.data.shuffle_window)
    train_stream = LocalStream(StreamSpec(split, task, batch, config.seed, True, threads, policy), *place)
    val_split = memory_split("val", VAL_SAMPLES)
    val_stream = LocalStream(StreamSpec(val_split, task, batch, config.seed, False, threads), *place)
    provenance = {"dataset": split.dataset_digest}
    streams = train_stream, val_stream
    try:
        return fit(config, task, *streams, run_dir=run_dir, callbacks=callbacks, provenance=provenance, workers=workers)
    finally:
        train_stream.close()
        val_stream.close()


class Announcer(Callback):
    """Tells the parent process where training is."""

    priority = 0

    def on_fit_start(self, training: Training) -> None:
        self._say(f"started {training.cursor.step}")

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        self._say(f"step {record.step}")

    def on_checkpoint(self, training: Training, path: Path) -> None:
        self._say(f"saved {training.cursor.step}")

    def on_fit_end(self, training: Training) -> None:
        self._say("finished")

    def _say(self, line: str) -> None:
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--meeting", help="file that the workers find each other by; not there yet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    workers = WorkerGroup(args.rank, args.workers)
    if args.workers > 1:
        meeting = f"file://{args.meeting}"
        dist.init_process_group("gloo", init_method=meeting, rank=args.rank, world_size=args.workers)
    train(stripes_experiment(args.seed), args.run_dir, JsonLog(), Announcer(), workers=workers)
    if args.workers > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
