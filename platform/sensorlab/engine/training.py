"""The state of one training: everything that a step changes and a checkpoint holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sensorlab.config import as_dict, digest
from sensorlab.data.stream import SampleStream
from sensorlab.engine.accumulate import Accumulation
from sensorlab.engine.budget import Budget, early_stop_of
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.checkpoint import CheckpointInfo, CheckpointStore, load
from sensorlab.engine.compilation import compile_network
from sensorlab.engine.duration import Progress
from sensorlab.engine.ema import ExponentialAverage
from sensorlab.engine.finite import FiniteCheck
from sensorlab.engine.freeze import Freezing
from sensorlab.engine.meters import IntervalMeter, SystemMeter, WallClock
from sensorlab.engine.optim import build_optimizer, restore_optimizer
from sensorlab.engine.schedules import SchedulePoint
from sensorlab.engine.seeds import StepSeeds, step_seed
from sensorlab.engine.sync_batchnorm import convert_sync_batchnorm
from sensorlab.engine.timers import StepTimer
from sensorlab.engine.workers import WorkerGroup, average_each_gradient
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

    @property
    def epochs_begun(self) -> int:
        return self.epoch + (self.batch > 0)


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
        self.phase = "start"  # then "train", "val" or "checkpoint"
        self.meter = IntervalMeter()
        self.seeds = StepSeeds(workers.device, config.seed, "step", workers.rank)
        self.timer = StepTimer(workers.device)
        self.system = SystemMeter(workers.device)
        self.clock = WallClock()
        self.donor: CheckpointInfo | None = None  # of another run, whose state this attempt began with
        self.evaluated = Progress(-1, -1, -1)  # at the last evaluation
        self.evaluation_was_due = True  # by ``eval.every``; False: the last one was made because the training ended
        self.saved = Progress(0, 0, 0)  # at the last checkpoint
        self.best_objective: float | None = None
        self.stop_reason: str | None = None  # why training ends before its budget
        self.class_scores: dict[str, float] = {}  # of the last evaluation
        self.tables: dict[str, dict[str, Sequence[Any]]] = {}  # of the last evaluation: name -> column -> values
        self.order_scores: dict[str, float] = {}  # those that the order of the current epoch was made from
        self.corrupt_samples: list[str] = []  # messages of the samples that were skipped, of all workers and attempts
        self.metrics: dict[str, float] = {}  # latest value of every reported name
        self.protocols: dict[str, dict[str, Any]] = {}  # reported name -> all that defines the number
        self.step_callbacks = [each for each in self.callbacks if type(each).on_step_end is not Callback.on_step_end]
        self.batch_callbacks = [each for each in self.callbacks if type(each).on_batch is not Callback.on_batch]
        self.store = CheckpointStore(
            run_dir / "checkpoints",
            keep_latest=config.checkpoint.keep_latest,
            best_metric=config.eval.metric,
            best_mode=config.eval.mode,
        )
        self._build_model()
        self._plan(train_stream.batches_per_epoch)

    def _build_model(self) -> None:
        """Model, optimiser, scaler, average, and the network as the step calls it."""
        config, workers = self.config, self.workers
        torch.manual_seed(step_seed(config.seed, "weights"))
        self.model = self.task.build_model().to(workers.device)
        if config.train.sync_batchnorm:
            self.model = convert_sync_batchnorm(self.model)
        if config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.freezing = Freezing(self.model, config.train.freeze)
        samples_per_step = config.data.global_batch * config.train.accumulate.passes_of(config.data.global_batch)
        self.optimizer = build_optimizer(self.model, config.optim, samples_per_step)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.scaler = torch.amp.GradScaler(workers.device.type, enabled=config.train.precision == "fp16")
        self.finite = FiniteCheck(config.train, self.model, self.optimizer, self.scaler)
        self.ema = ExponentialAverage(self.model, config.train.ema) if config.train.ema else None
        self.objective = TaskModule(self.task, self.model)
        self._wrap()
        self.is_rehearsed = False  # by this attempt

    def _plan(self, batches_per_epoch: int) -> None:
        """Where optimiser steps, epochs and the training end."""
        config = self.config
        self.batches_per_epoch = batches_per_epoch
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
        self.budget = Budget.of(config.train.duration, config.train.extend, self.accumulation, config.train.until)

    def schedule_point(self, num_passes: int) -> SchedulePoint:
        """Where the schedule is read for the optimiser step that begins at the cursor: at the last of its passes."""
        cursor, budget = self.cursor, self.budget
        batch = self.batches_done + num_passes - 1
        return SchedulePoint(
            min(cursor.step, budget.schedule_steps - 1),
            min(batch, budget.schedule_epochs * self.batches_per_epoch - 1),
            min(cursor.epoch, budget.schedule_epochs - 1),
            budget.schedule_steps,
            budget.schedule_epochs,
            self.steps_per_epoch,
            self.batches_per_epoch,
        )

    @property
    def total_steps(self) -> int:
        return self.budget.steps

    @property
    def total_epochs(self) -> int:
        """Epochs that the training reaches into."""
        return self.budget.epochs

    @property
    def progress(self) -> Progress:
        return Progress(self.cursor.epoch, self.cursor.step, self.batches_done * self.config.data.global_batch)

    @property
    def batches_done(self) -> int:
        """Global batches read in all."""
        return self.cursor.epoch * self.batches_per_epoch + self.cursor.batch

    @property
    def finished(self) -> bool:
        return self.stop_reason is not None or self.cursor.step >= self.budget.steps

    def enter_epoch(self) -> None:
        """Prepare for the batches of the cursor's epoch."""
        if self.cursor.batch == 0:
            self.order_scores = dict(self.class_scores)
        self.train_mode()

    def train_mode(self) -> None:
        """Put the model into training mode, without the parts that are frozen in the cursor's epoch."""
        self.model.train()
        if self.freezing.apply(self.cursor.epoch):
            self._wrap()

    def rehearse(self, try_batch: Callable[[], object]) -> None:
        """What must be tried with a batch before the first step of an attempt: compiling the network."""
        self.is_rehearsed = True
        if not self.config.train.compile:
            return
        failure = compile_network(self.objective, try_batch, self.workers)
        if failure is not None:
            self._wrap()
        compiled = failure or "compiled"
        before = self.provenance.setdefault("compile", compiled)
        self.provenance["compile"] = compiled
        if not self.workers.is_main:
            return
        if failure is not None:
            logger.warning("%s", failure)
        if before != compiled:
            logger.warning("until the last checkpoint the network ran so: %s; equal bytes are not promised", before)

    def _wrap(self) -> None:
        """Make ``network``, the objective as the step calls it; anew whenever what is trained changes."""
        self.network: nn.Module = self.objective  # lets the old wrapper go, with its buckets, before there is a new one
        if self.workers.world_size > 1:
            self.network = DistributedDataParallel(self.objective)
            if self.workers.world_size > 2 and self.workers.device.type == "cpu":
                self.network.register_comm_hook(None, lambda _, bucket: average_each_gradient(bucket))

    def check_classes(self, is_needed: bool) -> None:
        """Refuse an order by class scores before an epoch is spent, where the task has none."""
        if is_needed and type(self.task).class_scores is BaseTask.class_scores:
            raise UserError(
                "data.sampling orders samples by the score of each class, and the task reports no such scores: choose "
                "another order"
            )

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Hand reduced numbers to the callbacks."""
        if not metrics:
            return
        self.metrics.update(metrics)
        with self.clock.span("callback"):
            for callback in self.callbacks:
                callback.on_metrics(self, metrics, self.cursor.step)

    def request_stop(self, reason: str) -> None:
        """End training after the current step, or epoch, with its evaluation and a checkpoint.

        For callbacks; every worker must ask for it at the same point, or they wait for each other for ever.
        """
        self.stop_reason = reason

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
            (self.run_dir / "initial_weights.txt").write_text(f"{report.listing()}\n", encoding="utf-8")

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
                "sample": self.cursor.batch * self.config.data.global_batch,
                "step": self.cursor.step,
            },
            "meters": self.workers.gather(self.meter.state_dict()),
            "clock": self.clock.state_dict(),
            "finite": self.finite.state_dict(),
            "evaluated": tuple(self.evaluated),
            "stop_reason": self.stop_reason,
            "class_scores": dict(self.class_scores),
            "order_scores": dict(self.order_scores),
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
        self.check_provenance(state, info.path)
        for what in ("compile", "fork"):
            if what in state["provenance"]:
                self.provenance[what] = state["provenance"][what]
        restore_optimizer(self.optimizer, state["optimizer"])
        self.take(state)
        self.stop_reason = early_stop_of(state, self.config.train.extend)
        self.clock.load_state_dict(state["clock"], is_over=self.finished)
        self.best_objective = state["best_objective"]
        self.corrupt_samples = state["corrupt_samples"]
        self.metrics = state["metrics"]
        self.protocols = state["protocols"]
        for callback, saved in self.states_of_callbacks(state):
            callback.load_state_dict(saved)

    def check_provenance(self, state: Mapping[str, Any], path: Path) -> None:
        """Raise ``UserError`` if the checkpoint ``state`` saw other samples; say so if other code wrote it."""
        for what in ("dataset", "order"):
            saved, present = state["provenance"].get(what), self.provenance.get(what)
            if saved != present:
                raise UserError(
                    f"{path} was trained on the {what} with digest {saved}, this one is {present}: going on from it "
                    "would see other samples, or the same ones in another order"
                )
        saved, present = state["provenance"].get("code"), self.provenance.get("code")
        if saved != present:
            logger.warning(
                "%s was written by the code %s, this is %s: equal bytes are not promised", path, saved, present
            )

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's ``state``, of this run or another, with all of it but the optimiser's that decides
        on the steps to come."""
        self.model.load_state_dict(state["model"])
        if state["scaler"]:  # empty: of a run that needed none
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        cursor = state["cursor"]
        self.cursor = Cursor(cursor["epoch"], cursor["batch"], cursor["step"])
        self.meter.load_state_dict(state["meters"], self.workers)
        self.saved = self.progress
        self.finite.load_state_dict(state["finite"])
        self.evaluated = Progress(*state["evaluated"])
        self.class_scores, self.order_scores = state["class_scores"], state["order_scores"]

    def states_of_callbacks(self, state: Mapping[str, Any]) -> Iterator[tuple[Callback, Mapping[str, Any]]]:
        """(callback, what it saved in the checkpoint ``state``)."""
        for callback in self.callbacks:
            yield callback, state["callbacks"].get(_key(self.callbacks, callback), {})


def _key(callbacks: Sequence[Callback], callback: Callback) -> str:
    """Name of a callback in the checkpoint: its class, numbered where a class occurs twice."""
    same = [other for other in callbacks if type(other) is type(callback)]
    name = type(callback).__name__
    return name if len(same) == 1 else f"{name}#{same.index(callback)}"
