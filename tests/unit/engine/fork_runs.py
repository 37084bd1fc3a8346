"""A training with everything on and a checkpoint after every step, and the runs that are forked from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from exact_runs import experiment
from run_states import final_state

from sensorlab.config import as_dict, merge
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.checkpoint import load
from sensorlab.experiment import ExperimentConfig, experiment_from

STEPS = 12  # 6 in the first epoch, 4 in the second
# What is of a run rather than of its training.
OF_THE_RUN = ("config", "config_digest", "provenance", "best_objective", "callbacks", "metrics")


def planned(dataset: Path) -> ExperimentConfig:
    """``dataset``: where ``toy_images.write_splits`` wrote."""
    config = experiment(dataset, early_stop=None, duration=f"{STEPS} steps")
    return with_values(config, checkpoint={"every": "1 step", "keep_latest": 99})


def with_values(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    """``config`` with other values in some sections, validated anew."""
    tree = merge(as_dict(config), sections)
    task = type(config.task).model_validate(tree["task"])
    return experiment_from({**tree, "task": {"name": "bev_segmentation"}}).model_copy(update={"task": task})


def checkpoint_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def forked(config: ExperimentConfig, run_dir: Path, step: int, **sections: Any) -> ExperimentConfig:
    """``config`` with other values in some sections, for a run that begins after ``step`` of the one in ``run_dir``."""
    fork = {"fork": {"checkpoint": str(checkpoint_of(run_dir, step))}}
    return with_values(with_values(config, train=fork), **sections)


def comparable(run_dir: Path, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The training's state at the end, and the lines of the log that are of steps after ``step``."""
    state, log = final_state(run_dir)
    for name in OF_THE_RUN:
        state.pop(name)
    return state, [line for line in log if line["step"] > step]


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """Of the model and of its average."""
    state = load(checkpoint_of(run_dir, step))
    return {**state["model"], **{f"ema.{name}": value for name, value in state["ema"]["model"].items()}}


class Look(Callback):
    """Copies what an attempt begins with."""

    priority = 1

    def on_fit_start(self, training):
        self.step, self.best, self.stop_reason = training.cursor.step, training.best_objective, training.stop_reason
        self.metrics, self.seconds = dict(training.metrics), dict(training.clock.totals)
        groups = training.optimizer.param_groups
        self.groups = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        moments = training.optimizer.state_dict()["state"]
        self.moments = {key: {name: value.clone() for name, value in each.items()} for key, each in moments.items()}
