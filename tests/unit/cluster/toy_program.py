"""A training that is a formula: the cluster code around it is real, the model is not the subject."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sensorlab.cluster.worker import RunContext, RunSpec
from sensorlab.config import digest
from sensorlab.engine.training import Cursor
from sensorlab.errors import UserError


@dataclass(frozen=True)
class ToyProgram:
    """``duration`` epochs of ``epoch_s`` seconds; the objective approaches ``-log10(lr)``-distance from 3.

    Keeps its epoch in ``run_dir/toy.json``, so that an attempt continues where the previous one ended.
    """

    epoch_s: float = 0.0
    ignore_configuration: bool = False  # trains with the defaults, whatever the configuration says
    kill_at_epoch: int | None = None  # SIGKILL of this process, once
    fail_with: str | None = None

    def datasets(self, spec: RunSpec) -> dict[str, Any]:
        return {}

    def train(self, context: RunContext) -> Mapping[str, Any]:
        config = context.config
        if self.ignore_configuration:
            config = config.model_copy(update={"optim": type(config.optim)()})
        if self.fail_with == "user":
            raise UserError("the sample 'abc' cannot be used")
        if self.fail_with == "bug":
            raise ZeroDivisionError("a bug")
        context.run_dir.mkdir(parents=True, exist_ok=True)
        state = context.run_dir / "toy.json"
        first = json.loads(state.read_text())["epoch"] if state.exists() else 0
        total = config.train.duration.count
        training = toy_training(context, config, total)
        for callback in context.callbacks:
            callback.on_fit_start(training)
        if context.workers.is_main:
            with (context.run_dir / "attempts.txt").open("a") as log:
                log.write(f"{first}\n")
        quality = 1.0 / (1.0 + abs(math.log10(config.optim.lr) + 3.0))
        try:
            for epoch in range(first, total):
                time.sleep(self.epoch_s)
                if (
                    epoch == self.kill_at_epoch
                    and not (context.run_dir / "killed").exists()
                    and context.workers.is_main
                ):
                    (context.run_dir / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                training.cursor.epoch, training.cursor.step = epoch + 1, 10 * (epoch + 1)
                training.finished = epoch + 1 == total
                metrics = {"val/iou": quality * (1 - 0.5 ** (epoch + 1)), "train/loss": 1.0 / (epoch + 1)}
                if context.workers.is_main:
                    state.write_text(json.dumps({"epoch": epoch + 1}))
                for callback in context.callbacks:
                    callback.on_metrics(training, metrics, training.cursor.step)
                for callback in context.callbacks:
                    callback.on_epoch_end(training, metrics)
        except BaseException as error:
            for callback in context.callbacks:
                callback.on_error(training, error)
            (context.run_dir / f"ended-{type(error).__name__}").touch()
            raise
        for callback in context.callbacks:
            callback.on_fit_end(training)
        return {"epochs": total, "steps": 10 * total}


def toy_training(context: RunContext, config: Any, total: int) -> Any:
    """What callbacks read of a training."""
    best = context.run_dir / "checkpoints" / "step-00000010"
    best.mkdir(parents=True, exist_ok=True)
    (best / "model.safetensors").write_bytes(b"weights")
    info = SimpleNamespace(path=best, step=10, metrics={})
    return SimpleNamespace(
        config=config,
        config_digest=digest(config),
        provenance={"dataset": "none"},
        protocols={},
        tables={},
        task=SimpleNamespace(metrics=dict),
        ema=None,
        workers=context.workers,
        run_dir=context.run_dir,
        cursor=Cursor(),
        batches_per_epoch=10,
        total_steps=10 * total,
        total_epochs=total,
        metrics={},
        finished=False,
        store=SimpleNamespace(best=lambda: info, all=lambda: [info]),
    )
