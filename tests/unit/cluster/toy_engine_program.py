"""A real training of the engine on the toy task: real checkpoints, real forks, a second or less."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sensorlab.cluster.worker import RunContext, RunSpec
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.fit import fit
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import ExperimentConfig, experiment_from
from toy import ToyConfig, ToyStream, ToyTask


def engine_experiment(epochs: int, **sections: Any) -> ExperimentConfig:
    """An experiment whose task is only a name: :class:`ToyEngineProgram` trains the toy task under it."""
    tree = {
        "name": "toy",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "d", "global_batch": 4},
        "train": {"duration": f"{epochs} epochs", "log_every": "2 steps"},
        "eval": {"metric": "val/mse", "mode": "min", "panels": 0},
        "resources": {"cpus_per_worker": 0.5, "data_cpus": 0.25},
    }
    return experiment_from({**tree, **sections})


@dataclass(frozen=True)
class ToyEngineProgram:
    """``step_s``: seconds that a step takes longer than it needs; ``fails_at``: learning rates below do not train."""

    step_s: float = 0.0
    fails_below: float = 0.0

    def datasets(self, spec: RunSpec) -> dict[str, Any]:
        return {}

    def train(self, context: RunContext) -> Mapping[str, Any]:
        if context.config.optim.lr < self.fails_below:
            raise FloatingPointError("the loss is not finite")
        return train(context.config, context.run_dir, context.workers, [*context.callbacks, Slow(self.step_s)])


class Slow(Callback):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_step_end(self, training: Any, record: Any) -> None:
        time.sleep(self._seconds)


def train(config: ExperimentConfig, run_dir: Any, workers: WorkerGroup | None = None, callbacks: Any = ()) -> dict:
    task = ToyTask(ToyConfig())
    streams = ToyStream(32, 4, task, seed=config.seed), ToyStream(16, 4, task, seed=config.seed, training=False)
    options = {"workers": workers, "callbacks": callbacks, "provenance": {"dataset": "toy"}}
    result = fit(config, task, *streams, run_dir=run_dir, **options)
    return {"epochs": result.epochs, "steps": result.steps, "metrics": result.metrics}
