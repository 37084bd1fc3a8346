"""Small real trainings for the tests of callbacks: the toy task, three epochs of five steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.fit import FitResult, fit
from sensorlab.experiment import CheckpointConfig, EvalConfig, ExperimentConfig, TrainConfig
from toy import ToyStream, ToyTask, toy_experiment

EPOCHS, STEPS_PER_EPOCH = 3, 5  # 21 samples in batches of 4


class Interrupted(Exception):
    pass


class StopAfter(Callback):
    """Raises when step ``step`` is done, before its logging, evaluation and checkpoint."""

    priority = 100

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, training, record):
        if record.step == self.step:
            raise Interrupted


class StopAtCheckpoint(Callback):
    """Raises once what is reported after checkpoint number ``number`` (from 1) of the attempt has been recorded."""

    priority = 100

    def __init__(self, number: int) -> None:
        self.left = number

    def on_checkpoint(self, training, path):
        self.left -= 1

    def on_metrics(self, training, metrics, step):
        if self.left <= 0:
            raise Interrupted


def experiment(**sections: Any) -> ExperimentConfig:
    defaults: dict[str, Any] = {
        "eval": EvalConfig(metric="val/mse", mode="min", every=["1 epoch", "3 steps"]),
        "train": TrainConfig(duration=f"{EPOCHS} epochs", log_every="2 steps"),
        "checkpoint": CheckpointConfig(every=["1 epoch", "2 steps"], keep_latest=20),
    }
    return toy_experiment(**(defaults | sections))


def run(run_dir: Path, *callbacks: Callback, task_class: type[ToyTask] = ToyTask, **sections: Any) -> FitResult:
    config = experiment(**sections)
    one = task_class(config.task)
    streams = ToyStream(21, 4, one, seed=config.seed), ToyStream(9, 4, one, training=False)
    return fit(config, one, *streams, run_dir=run_dir, callbacks=[JsonLog(), *callbacks])


def log_of(run_dir: Path, *prefixes: str) -> list[tuple[int, str, float]]:
    """(step, name, value) of every number in the log whose name begins with one of ``prefixes``."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name, line[name]) for line in lines for name in line if name.startswith(prefixes)]
