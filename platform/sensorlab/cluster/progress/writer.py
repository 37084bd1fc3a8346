"""The callback that tells the driver where a run is."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil

from sensorlab.cluster.files import PROGRESS
from sensorlab.cluster.progress.pace import Interruption, Pace
from sensorlab.cluster.progress.state import CHECKPOINT, DONE, START, TRAIN, VAL, Phase, Progress
from sensorlab.engine.callbacks.base import Callback

if TYPE_CHECKING:
    import torch

    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training

WRITE_EVERY_S = 1.0
_KEPT_PHASES = 8  # finished phases in the file: those that a driver that reads once a second may have missed
_VAL_VALUES = 4


class ProgressWriter(Callback):
    """Writes ``progress.json`` of the run once a second and whenever a phase begins; main worker only.

    The step path costs some additions: no tensor is read there. Losses are the means that the engine reports anyway,
    averaged over the epoch; only before the first report of an epoch they are those of the latest step, which is read
    (and waited for) once a second. A full or absent disk costs the line on the screen, not the training: the first
    failure is said, later ones are not.
    """

    priority = 20

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_main = False
        self._attempt = 0.0
        self._phase = Phase(0, START, 1)
        self._finished: deque[Phase] = deque(maxlen=_KEPT_PHASES)
        self._began = self._written = self._stepped = clock()
        self._steps_before = 0  # optimiser steps when the phase began
        self._pace = Pace()
        self._evaluations: Interruption | None = None
        self._checkpoints: Interruption | None = None
        self._record: StepRecord | None = None
        self._losses = _RunningMean()
        self._knows_cycle = False  # an evaluation was timed, or an epoch has gone by without one
        self._warned = False

    def on_fit_start(self, training: Training) -> None:
        self._is_main = training.workers.is_main
        self._attempt = time.time()
        self._losses.start(training.cursor.step)
        self._begin(training, START, 0)

    def on_phase(self, training: Training, phase: str, total: int) -> None:
        self._begin(training, phase, total)

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        if not self._is_main:
            return
        now = self._clock()
        if self._phase.name != TRAIN:  # goes on after an evaluation or a checkpoint inside of an epoch
            self._stepped = now - record.data_wait_s - record.step_s
            self._begin(training, TRAIN, training.batches_per_epoch, began=self._stepped)
            self._steps_before = record.step - 1
        self._pace.add(record.num_samples, record.data_wait_s, record.step_s, now - self._stepped)
        self._stepped = now
        self._record = record
        if now - self._written >= WRITE_EVERY_S:
            self._write(training)

    def on_eval_batch(self, training: Training, done: int, total: int) -> None:
        if not self._is_main:
            return
        self._phase = replace(self._phase, done=done, total=total)
        if self._clock() - self._written >= WRITE_EVERY_S:
            self._write(training)

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        if self._phase.name == VAL:
            self._phase = replace(self._phase, values=_val_values(metrics) or self._phase.values)
        if self._record is not None:
            self._losses.add(self._record.losses, metrics, step)

    def on_epoch_end(self, training: Training, metrics: Mapping[str, float]) -> None:
        self._knows_cycle = True
        self._write(training)

    def on_fit_end(self, training: Training) -> None:
        self._begin(training, DONE, 0)

    def on_error(self, training: Training, error: BaseException) -> None:
        self._write(training)

    def _begin(self, training: Training, name: str, total: int, began: float | None = None) -> None:
        if not self._is_main:
            return
        began = self._clock() if began is None else began
        self._end_phase(training, began)
        step, epoch = training.cursor.step, self._phase.epoch
        if name == TRAIN:
            epoch = training.cursor.epoch + 1  # evaluation and checkpoint of its end come with the cursor moved on
            self._stepped = began
            if epoch != self._phase.epoch:
                self._losses.start(step)
        elif name == VAL and self._evaluations is None:
            self._evaluations = Interruption(max(training.evaluated.steps, 0))
        elif name == CHECKPOINT and self._checkpoints is None:
            self._checkpoints = Interruption(training.saved.steps)
        self._phase = Phase(self._phase.number + 1, name, epoch, total=total)
        self._began, self._steps_before = began, step
        self._write(training)

    def _end_phase(self, training: Training, now: float) -> None:
        """Keep the phase that ends, if it has done anything, and its share of the time."""
        phase, step, seconds = self._phase, self._steps_before, now - self._began
        if phase.name == TRAIN and training.cursor.step > step:
            self._pace.settle()
            self._finished.append(self._current(training, now))
        elif phase.name == VAL and self._evaluations is not None:
            self._finished.append(self._current(training, now))
            self._evaluations.add(step, seconds)
            self._knows_cycle = True
        elif phase.name == CHECKPOINT and self._checkpoints is not None:
            self._checkpoints.add(step, seconds)

    def _write(self, training: Training) -> None:
        if not self._is_main:
            return
        now = self._written = self._clock()
        cursor = training.cursor
        self._pace.settle()
        eta_s = self._eta(training, now)
        memory_gib, memory_of = _memory(training.workers.device)
        progress = Progress(
            attempt=self._attempt,
            time=time.time(),
            step=cursor.step,
            total_steps=training.total_steps,
            epoch=cursor.epoch + cursor.batch / training.batches_per_epoch,
            total_epochs=training.total_epochs,
            phase=self._current(training, now),
            finished=tuple(self._finished),
            eta_s=eta_s,
            eta_is_bound=eta_s is not None and not self._knows_cycle and cursor.step < training.total_steps,
            memory_gib=memory_gib,
            memory_of=memory_of,
        )
        try:
            progress.write(training.run_dir)
        except OSError as error:
            if not self._warned:
                path = training.run_dir / PROGRESS
                print(f"warning: the progress cannot be written to {path}: {error}", file=sys.stderr, flush=True)
            self._warned = True

    def _current(self, training: Training, now: float) -> Phase:
        """The phase as it is now."""
        pace, record = self._pace, self._record
        phase = replace(
            self._phase,
            seconds=now - self._began,
            data_wait_s=pace.data_wait_s,
            step_s=pace.step_s,
            samples_per_s=pace.samples_per_s,
        )
        if phase.name != TRAIN:
            return phase
        # The cursor of a finished epoch stands at the begin of the next.
        done = phase.total if training.cursor.epoch >= phase.epoch else training.cursor.batch
        if record is None:
            return replace(phase, done=done)
        return replace(phase, done=done, values=self._losses.values or _read(record), lr=record.lr)

    def _eta(self, training: Training, now: float) -> float | None:
        """Seconds to the end: the steps that are left, the evaluations and checkpoints between them and after them."""
        phase, step, total = self._phase, training.cursor.step, training.total_steps
        if phase.name == DONE:
            return 0.0
        seconds = 0.0
        evaluations = self._evaluations
        if phase.name == VAL and phase.done > 0 and evaluations is not None:
            passed = now - self._began
            whole = passed / phase.done * phase.total
            seconds += max(whole - passed, 0.0)
            evaluations = evaluations.expecting(step, whole)
        if step < total:
            if self._pace.wall_s is None:
                return None
            seconds += (total - step) * self._pace.wall_s
        return seconds + sum(each.left_s(total) for each in (evaluations, self._checkpoints) if each is not None)


class _RunningMean:
    """Mean of the losses over the epoch so far, from the means over its logging intervals."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        self._step = step
        self._steps = 0
        self._sums: dict[str, float] = {}

    def add(self, names: Mapping[str, object], metrics: Mapping[str, float], step: int) -> None:
        """Take in the means of the interval that ends at ``step``, if ``metrics`` are such."""
        found = {name: metrics[f"train/{name}"] for name in names if f"train/{name}" in metrics}
        if not found or step <= self._step:
            return
        weight, self._step = step - self._step, step
        self._steps += weight
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value

    @property
    def values(self) -> dict[str, float]:
        return _total_first({name: value / self._steps for name, value in self._sums.items()})


def _read(record: StepRecord) -> dict[str, float]:
    return _total_first({name: float(value) for name, value in record.losses.items()})


def _total_first(losses: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(losses.items(), key=lambda item: item[0] != "loss"))


def _val_values(metrics: Mapping[str, float]) -> dict[str, float]:
    """The objective, the loss, and the next of the metrics, which the engine orders by importance."""
    names = [name for name in metrics if name.startswith("val/") and name != "val/num_samples"]
    chosen = dict.fromkeys([*names[:1], *(name for name in names if name == "val/loss"), *names])
    return {name: metrics[name] for name in list(chosen)[:_VAL_VALUES]}


def _memory(device: torch.device) -> tuple[float, str]:
    """GiB, and of what. Asking the allocator for its peak does not wait for the GPU."""
    if device.type == "cuda":
        import torch  # the driver imports this module, too, and need not wait for it

        return torch.cuda.max_memory_allocated(device) / 2**30, "GPU"
    return psutil.Process().memory_info().rss / 2**30, "process"
