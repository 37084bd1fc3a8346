"""Trainings of the toy task with everything that is recorded of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.callbacks.tracking import Tracking
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import FitResult, fit
from sensorlab.experiment import CheckpointConfig, EvalConfig, ExperimentConfig, TrainConfig
from sensorlab.metrics.base import Metric
from sensorlab.runs.recorder import RunRecorder
from sensorlab.runs.store import Store
from toy import ToyStream, ToyTask, toy_experiment


class Died(BaseException):
    pass


class DieAfter(Callback):
    priority = 0  # before anything is said of the step

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, training, record):
        if record.step == self.step:
            raise Died


class TableTask(ToyTask):
    def tables(self, metrics: Mapping[str, Metric]) -> dict[str, dict[str, Sequence[Any]]]:
        return {"parts": {"part": ["all"], "mse": [metrics["mse"].compute()["mse"]]}}


def experiment(**sections: Any) -> ExperimentConfig:
    """Three epochs of five steps, an average of the weights, a checkpoint every four steps."""
    defaults = {
        "eval": EvalConfig(metric="val/mse", mode="min"),
        "train": TrainConfig(duration="3 epochs", log_every="1 step", ema=EmaConfig(decay=0.9, tau=5.0)),
        "checkpoint": CheckpointConfig(every=["1 epoch", "4 steps"], keep_latest=20),
    }
    return toy_experiment(**(defaults | sections))


def run(run_dir: Path, *callbacks: Callback, **sections: Any) -> FitResult:
    config = experiment(**sections)
    task = TableTask(config.task)
    provenance = {"dataset": "d" * 64, "code": "c0de"}
    streams = ToyStream(21, 4, task, seed=config.seed), ToyStream(10, 4, task, training=False)
    return fit(config, task, *streams, run_dir=run_dir, callbacks=[JsonLog(), *callbacks], provenance=provenance)


def tracked_run(store: Store, run_id: str, run_dir: Path, *callbacks: Callback) -> FitResult:
    recorder = RunRecorder(store.uri, run_id, run_dir / "recording", interval_s=0.02)
    return run(run_dir, Tracking(recorder, params={"optim.lr": 1e-3}), *callbacks)
