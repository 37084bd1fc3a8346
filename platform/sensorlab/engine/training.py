"""The state of one training: everything that a step changes and a checkpoint holds."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sensorlab.config import as_dict, digest
from sensorlab.data.stream import SampleStream
from sensorlab.engine.accumulate import Accumulation
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.checkpoint import CheckpointInfo, CheckpointStore, load
from sensorlab.engine.ema import ExponentialAverage
from sensorlab.engine.meters import IntervalMeter, WallClock
from sensorlab.engine.optim import build_optimizer
from sensorlab.engine.schedules import SchedulePoint
from sensorlab.engine.workers import WorkerGroup
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, InitConfig, refuse_changed
from sensorlab.models.weights import load_weights
from sensorlab.tasks.base import BaseTask, Batch, Outputs

logger = logging.getLogger(__name__)


@dataclass
class Cursor:
    """Where training is. With the seed it determines all data seen and to be seen."""

    epoch: int = 0
    batch: int = 0  # global batches of the epoch already consumed
    step: int = 0  # optimiser steps done in all

    def sample(self, global_batch: int) -> int:
        """Samples of the epoch already consumed, over all workers."""
        return self.batch * global_batch


class TaskModule(nn.Module):
    """Model and objective as one module, so that data parallelism sees every parameter that gets a gradient."""

    def __init__(self, task: BaseTask, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> tuple[Outputs, dict[str, Tensor], dict[str, Tensor]]:
        outputs = self.task.forward(self.model, batch)
        terms, extras = self.task.losses(self.model, outputs, batch)
        return outputs, terms, extras


class Training:
    """All state of a run on one worker; built equal on every worker."""

    def __init__(
        self,
        config: ExperimentConfig,
        task: BaseTask,
        train_stream: SampleStream,
        *,
        run_dir: Path,
        workers: WorkerGroup,
        callbacks: Sequence[Callback] = (),
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.config_digest = digest(config)
        self.task = task
        self.workers = workers
        self.run_dir = run_dir
        self.callbacks = sorted(callbacks, key=lambda callback: callback.priority)
        self.provenance = dict(provenance or {})
        self.cursor = Cursor()
        self.meter = IntervalMeter()
        self.clock = WallClock()
        self.evaluated_step = -1  # of the last evaluation
        self.best_objective: float | None = None
        self.skipped_steps = 0  # updates skipped because a gradient was not finite
        self.corrupt_samples: list[str] = []  # messages of the samples that were skipped, of all workers and attempts
        self.metrics: dict[str, float] = {}  # latest value of every reported name
        self.protocols: dict[str, dict[str, Any]] = {}  # reported name -> all that defines the number
        self.store = CheckpointStore(
            run_dir / "checkpoints",
            keep_latest=config.checkpoint.keep_latest,
            best_metric=config.eval.metric,
            best_mode=config.eval.mode,
        )

        torch.manual_seed(step_seed(config.seed, "weights"))
        self.model = task.build_model().to(workers.device)
        if config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        samples_per_step = config.data.global_batch * config.train.accumulate.passes_of(config.data.global_batch)
        self.optimizer = build_optimizer(self.model, config.optim, samples_per_step)
        self.scaler = torch.amp.GradScaler(workers.device.type, enabled=config.train.precision == "fp16")
        self.ema = ExponentialAverage(self.model, config.train.ema) if config.train.ema else None
        self.network: nn.Module = TaskModule(task, self.model)
        if workers.world_size > 1:
            self.network = DistributedDataParallel(self.network)

        self.batches_per_epoch = train_stream.batches_per_epoch
        if self.batches_per_epoch == 0:
            raise UserError(
                f"the training split is smaller than data.global_batch={config.data.global_batch}: no batch is "
                "complete; lower data.global_batch or set data.last_batch=pad"
            )
        self.accumulation = Accumulation(
            config.train.accumulate,
            global_batch=config.data.global_batch,
            batches_per_epoch=self.batches_per_epoch,
            warmup=config.warmup,
        )
        self.steps_per_epoch = -(-self.batches_per_epoch // self.accumulation.passes)  # after a ramp
        budget = config.train
        self.total_steps = budget.max_steps or self.accumulation.steps_of(budget.max_epochs or 0)
        self.total_epochs = budget.max_epochs or self.accumulation.epochs_for(self.total_steps)

    def schedule_point(self, num_passes: int) -> SchedulePoint:
        """Where the schedule is read for the optimiser step that begins at the cursor: at the last of its passes."""
        cursor = self.cursor
        batch = cursor.epoch * self.batches_per_epoch + cursor.batch + num_passes - 1
        return SchedulePoint(
            cursor.step,
            batch,
            cursor.epoch,
            self.total_steps,
            self.total_epochs,
            self.steps_per_epoch,
            self.batches_per_epoch,
        )

    @property
    def finished(self) -> bool:
        return self.cursor.epoch >= self.total_epochs

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that validation measures and the best checkpoint is chosen by."""
        return self.ema.model if self.ema else self.model

    def takes_as_best(self, value: float) -> bool:
        """Note the objective of an evaluation; ``True`` if it is the best so far."""
        if not math.isfinite(value):
            return False
        sign = 1.0 if self.config.eval.mode == "max" else -1.0
        if self.best_objective is not None and sign * value <= sign * self.best_objective:
            return False
        self.best_objective = value
        return True

    def load_initial_weights(self, init: InitConfig) -> None:
        """Start from the weights of a file, and the average with them. Raises ``UserError``, see ``load_weights``."""
        report = load_weights(
            self.model,
            init.path,
            include=init.include,
            exclude=init.exclude,
            rename=init.rename,
            on_shape_mismatch=init.on_shape_mismatch,
        )
        if self.ema:
            self.ema.model.load_state_dict(self.model.state_dict())
        if self.workers.is_main:
            logger.info("%s", report)
            (self.run_dir / "initial_weights.txt").write_text(f"{report}\n", encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """The complete state. Collective: every worker calls it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "cursor": {
                "epoch": self.cursor.epoch,
                "batch": self.cursor.batch,
                "sample": self.cursor.sample(self.config.data.global_batch),
                "step": self.cursor.step,
            },
            "meters": self.workers.gather(self.meter.state_dict()),
            "clock": dict(self.clock.totals),
            "skipped_steps": self.skipped_steps,
            "evaluated_step": self.evaluated_step,
            "best_objective": self.best_objective,
            "corrupt_samples": list(self.corrupt_samples),
            "metrics": dict(self.metrics),
            "protocols": dict(self.protocols),
            "callbacks": {_key(self.callbacks, callback): callback.state_dict() for callback in self.callbacks},
            # The draws of augmentation and of each step are pure functions of (seed, epoch, sample) and (seed, step,
            # rank), so the seed is the whole state of the random streams.
            "random": {"seed": self.config.seed},
            "config": as_dict(self.config),
            "config_digest": self.config_digest,
            "provenance": self.provenance,
        }

    def restore(self, info: CheckpointInfo) -> None:
        """Continue from a checkpoint of this run.

        Raises:
            UserError: the configuration or the dataset differ in what a resumed run may not change.
        """
        state = load(info.path, self.workers.device)
        refuse_changed(state["config"], self.config)
        for what in ("dataset", "order"):
            saved, present = state["provenance"].get(what), self.provenance.get(what)
            if saved != present:
                raise UserError(
                    f"{info.path} was trained on the {what} with digest {saved}, this one is {present}: resuming "
                    "would see other samples, or the same ones in another order"
                )
        if state["provenance"].get("code") != self.provenance.get("code"):
            saved, present = state["provenance"].get("code"), self.provenance.get("code")
            logger.warning(
                "%s was written by the code %s, this is %s: equal bytes are not promised", *(info.path, saved, present)
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        cursor = state["cursor"]
        self.cursor = Cursor(cursor["epoch"], cursor["batch"], cursor["step"])
        self.meter.load_state_dict(state["meters"], self.workers)
        self.clock.totals.update(state["clock"])
        self.skipped_steps = state["skipped_steps"]
        self.evaluated_step = state["evaluated_step"]
        self.best_objective = state["best_objective"]
        self.corrupt_samples = state["corrupt_samples"]
        self.metrics = state["metrics"]
        self.protocols = state["protocols"]
        for callback in self.callbacks:
            callback.load_state_dict(state["callbacks"].get(_key(self.callbacks, callback), {}))


def step_seed(*key: str | int) -> int:
    """A torch seed that is a pure function of ``key``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_step(device: torch.device, *key: str | int) -> None:
    """Seed what a step on ``device`` draws from (dropout, for example) with a pure function of ``key``.

    ``torch.manual_seed`` would also queue the seed, with a stack trace, for each kind of accelerator that torch knows
    and has not started: 0.4 ms in every step.
    """
    seed = step_seed(*key)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _key(callbacks: Sequence[Callback], callback: Callback) -> str:
    """Name of a callback in the checkpoint: its class, numbered where a class occurs twice."""
    same = [other for other in callbacks if type(other) is type(callback)]
    name = type(callback).__name__
    return name if len(same) == 1 else f"{name}#{same.index(callback)}"
