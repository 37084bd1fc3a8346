"""Progress as text: a line per logging interval and per evaluation, to a file and, if asked, to the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sensorlab.engine.callbacks.base import Callback

if TYPE_CHECKING:
    from sensorlab.engine.training import Training

MAX_VALUES = 12  # in one line
_SHOWN_ELSEWHERE = {"train/lr", "train/epoch", "val/num_samples"}


class TextLog(Callback):
    """Writes ``run_dir/log.txt``; main worker only. Two kinds of lines, which differ in nothing but their values::

        12:00:05 train epoch 1/12 step 50/3000  loss 0.6931  segmentation 0.5122  ...  lr 0.0003  data 3 ms
                 step 210 ms  38.1 samples/s  memory 3.1 GiB  ETA 0:10:24
        12:00:41 val   epoch 1/12 step 250/3000  iou 0.2104  loss 0.6402  ...

    Losses are means since the line before; times are the slowest worker's, per step. Names stand in each line, so that
    a line found by ``grep`` needs no header and tasks may name what they like.

    The file is the history of all attempts: what one that died wrote after its checkpoint stays, and "resumed at" says
    from where its steps are done again. ``metrics.jsonl`` has each step once.
    """

    priority = 80

    def __init__(self, to_terminal: bool = True) -> None:
        self._to_terminal = to_terminal
        self._path: Path | None = None  # None: not the main worker, or not started
        self._started = 0.0
        self._first_step = 0

    def on_fit_start(self, training: Training) -> None:
        if not training.workers.is_main:
            return
        cursor = training.cursor
        self._path = training.run_dir / "log.txt"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._started, self._first_step = time.monotonic(), cursor.step
        num_parameters = sum(p.numel() for p in training.model.parameters())
        self._write(
            f"{training.config.name}: {training.total_epochs} epochs x {training.steps_per_epoch} steps, "
            f"{num_parameters / 1e6:.2f} M parameters, {training.workers.world_size} worker(s) on "
            f"{training.workers.device}, config {training.config_digest}"
        )
        order = ", ".join(f"{type(callback).__name__}({callback.priority})" for callback in training.callbacks)
        self._write(f"callbacks in order: {order}")
        if training.donor is not None:
            self._write(
                f"begins at epoch {cursor.epoch}, batch {cursor.batch}, step {cursor.step} with the state of "
                f"{training.donor.path}"
            )
        elif cursor.step:
            self._write(
                f"resumed at epoch {cursor.epoch}, batch {cursor.batch}, step {cursor.step}: lines above of later "
                "steps are of an attempt that ended, and their steps are done again"
            )

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        if self._path is None:
            return
        if any(name.startswith("val/") for name in metrics):
            self._write(f"{self._head('val', training, step)}  {_values('val/', metrics)}")
        elif "perf/step_s" in metrics:  # the report of an interval
            self._write(
                f"{self._head('train', training, step)}  {_values('train/', metrics)}  {_rates(metrics)}"
                f"  ETA {self._eta(training, step)}"
            )

    def on_fit_end(self, training: Training) -> None:
        if self._path is None:
            return
        why = f": {training.stop_reason}" if training.stop_reason else ""
        spent = _clock(time.monotonic() - self._started)
        self._write(f"finished at step {training.cursor.step}/{training.total_steps} after {spent}{why}")

    def on_error(self, training: Training, error: BaseException) -> None:
        if self._path is not None:
            self._write(f"stopped at step {training.cursor.step}: {type(error).__name__}: {error}")

    def _head(self, phase: str, training: Training, step: int) -> str:
        epoch = f"{training.cursor.epochs_begun}/{training.total_epochs}"
        return f"{phase:5} epoch {epoch} step {step}/{training.total_steps}"

    def _eta(self, training: Training, step: int) -> str:
        """Time left at the pace of this attempt, evaluations and checkpoints included."""
        done = step - self._first_step
        if done <= 0:
            return "?"
        return _clock((time.monotonic() - self._started) / done * (training.total_steps - step))

    def _write(self, line: str) -> None:
        assert self._path is not None
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(stamped + "\n")
        if self._to_terminal:
            print(stamped, file=sys.stdout, flush=True)


def _values(prefix: str, metrics: Mapping[str, float]) -> str:
    """``iou 0.21  loss 0.64  ...``: what a phase measured, its objective or loss first."""
    names = [name for name in metrics if name.startswith(prefix) and name not in _SHOWN_ELSEWHERE]
    if prefix == "train/":
        names.sort(key=lambda name: name != "train/loss")  # the rest stays in its order
    more = f"  (+{len(names) - MAX_VALUES} in metrics.jsonl)" if len(names) > MAX_VALUES else ""
    return "  ".join(f"{name.removeprefix(prefix)} {metrics[name]:.4g}" for name in names[:MAX_VALUES]) + more


def _rates(metrics: Mapping[str, float]) -> str:
    memory = metrics.get("system/gpu_memory_gib", metrics.get("system/memory_gib"))
    parts = [f"lr {metrics['train/lr']:.3g}"] if "train/lr" in metrics else []
    parts.append(f"data {1e3 * metrics['perf/data_wait_s']:.0f} ms")
    parts.append(f"step {1e3 * metrics['perf/step_s']:.0f} ms")
    parts.append(f"{metrics['perf/samples_per_s']:.1f} samples/s")
    parts += [f"memory {memory:.1f} GiB"] if memory is not None else []
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
