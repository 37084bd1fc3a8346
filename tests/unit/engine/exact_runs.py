"""One training with everything on whose resume could fail to be exact, alone or on two workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sensorlab.data.sampling import ImageWeightsSampling
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.early_stop import EarlyStop, EarlyStopConfig
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.duration import Duration
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import FitResult, fit
from sensorlab.engine.freeze import FreezeRule
from sensorlab.engine.multi_scale import MultiScaleConfig
from sensorlab.engine.optim import ClipConfig, GroupRule, OptimConfig
from sensorlab.engine.warmup import WarmupConfig
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import CheckpointConfig, DataConfig, EvalConfig, ExperimentConfig, TrainConfig
from toy_images import ToyImageConfig, ToyImageTask, streams

# 30 samples in batches of 4: 7 global batches an epoch. Accumulation ramps through the first, [0] [1] [2] [3] [4 5]
# [6], then it is [0 1] [2 3] [4 5] [6]. Early stopping ends the run after the third epoch of the five that are planned.
LAST_STEPS = (6, 10, 14)  # of each epoch
STEPS = LAST_STEPS[-1]


def experiment(dataset: Path, task: ToyImageConfig | None = None, **train: Any) -> ExperimentConfig:
    """Checkpoints, evaluations and logging intervals cut each other and the epochs unevenly.

    Args:
        dataset: where ``toy_images.write_splits`` wrote.
        train: replaces settings of ``train``.
    """
    settings: dict[str, Any] = {
        "duration": "5 epochs",
        "accumulate": {"passes": 2, "ramp": True},
        "clip": ClipConfig(value=0.5),
        "multi_scale": MultiScaleConfig(stride=4),
        "freeze": (
            FreezeRule(match=("stem.*", "norm.*"), until=Duration(1, "epochs"), norm_statistics=True),
            FreezeRule(match=("mixer.bias",), start=Duration(2, "epochs")),
        ),
        # No evaluation improves by 10: the patience counts from the first one, after global batch 4.
        "early_stop": EarlyStopConfig(patience="64 samples", min_delta=10.0),
        "ema": EmaConfig(tau=5.0),
        "nonfinite": "skip",
        "nonfinite_budget": 50,
        "log_every": "3 steps",
    }
    return ExperimentConfig(
        name="exact",
        task=task or ToyImageConfig(poison=22),
        data=DataConfig(path=str(dataset), global_batch=4, sampling=ImageWeightsSampling()),
        optim=OptimConfig(lr=1e-2, groups=(GroupRule(name="bias", match=("@bias",), weight_decay=0.0),)),
        warmup=WarmupConfig(length=1, unit="epochs", group_start={"bias": 3.0}),
        train=TrainConfig.model_validate(settings | train),
        eval=EvalConfig(metric="val/accuracy", every=["1 epoch", "4 steps"]),
        checkpoint=CheckpointConfig(every=["1 epoch", "2 steps"], keep_latest=1),
    )


def train(
    config: ExperimentConfig, run_dir: Path, *callbacks: Callback, workers: WorkerGroup | None = None
) -> FitResult:
    """Run or go on with the training of ``config`` in ``run_dir``, on one of the ``workers``."""
    workers = workers or WorkerGroup()
    task = ToyImageTask(config.task)
    both = streams(config, task, workers.rank, workers.world_size)
    stop = [EarlyStop(config.train.early_stop)] if config.train.early_stop else []
    try:
        return fit(config, task, *both, run_dir=run_dir, workers=workers, callbacks=[JsonLog(), *stop, *callbacks])
    finally:
        for stream in both:
            stream.close()


class Witness(Callback):
    """Notes where attempts start, what they read and which checkpoints they complete, in a way that survives a kill."""

    priority = 0

    def on_fit_start(self, training):
        self._note(training, "started", training.cursor.step)

    def on_batch(self, training, batch):
        rows = batch["index"].tolist()
        first = training.workers.rank * len(rows)  # place of this worker's share in the global batch
        places = dict(enumerate(rows, start=first))
        self._note(training, "read", [training.cursor.epoch, training.cursor.batch, list(places.items())])

    def on_checkpoint(self, training, path):
        self._note(training, "saved", training.cursor.step)

    def _note(self, training, what, value):
        with _witness_file(training.run_dir, training.workers.rank).open("a") as stream:
            stream.write(json.dumps([what, value]) + "\n")


def witnessed(run_dir: Path, rank: int = 0) -> list[tuple[str, Any]]:
    """What the attempts did, in order."""
    return [tuple(json.loads(line)) for line in _witness_file(run_dir, rank).read_text().splitlines()]


def global_batches(run_dir: Path) -> dict[tuple[int, int], list[int]]:
    """(epoch, global batch) -> rows, put together from all workers; whoever read a row again read the same one."""
    batches: dict[tuple[int, int], dict[int, int]] = {}
    for file in sorted(run_dir.glob("witness-*.jsonl")):
        for what, value in map(json.loads, file.read_text().splitlines()):
            if what == "read":
                epoch, batch, places = value
                for place, row in places:
                    known = batches.setdefault((epoch, batch), {}).setdefault(place, row)
                    assert known == row, f"epoch {epoch}, batch {batch}, place {place}: row {known}, then {row}"
    return {key: [rows[place] for place in range(4)] for key, rows in sorted(batches.items())}


def _witness_file(run_dir: Path, rank: int) -> Path:
    return run_dir / f"witness-{rank}.jsonl"
