"""Progress as text: a line per logging interval and per evaluation, to a file and, if asked, to the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.training import Training


class TextLog(Callback):
    """Writes ``run_dir/log.txt``; main worker only."""

    priority = 80

    def __init__(self, to_terminal: bool = True) -> None:
        self._to_terminal = to_terminal
        self._path: Path | None = None
        self._started = 0.0
        self._first_step = 0

    def on_fit_start(self, training: Training) -> None:
        if not training.workers.is_main:
            return
        self._path = training.run_dir / "log.txt"
        self._started, self._first_step = time.monotonic(), training.cursor.step
        num_parameters = sum(p.numel() for p in training.model.parameters())
        self._write(
            f"{training.config.name}: {training.total_epochs} epochs x {training.steps_per_epoch} steps, "
            f"{num_parameters / 1e6:.2f} M parameters, {training.workers.world_size} worker(s) on "
            f"{training.workers.device}, config {training.config_digest}"
        )
        order = ", ".join(f"{type(callback).__name__}({callback.priority})" for callback in training.callbacks)
        self._write(f"callbacks in order: {order}")
        if training.cursor.step:
            cursor = training.cursor
            self._write(f"resumed at epoch {cursor.epoch}, batch {cursor.batch}, step {cursor.step}")

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        phase = "val" if any(name.startswith("val/") for name in metrics) else "train"
        shown = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(f"{phase}/")}
        if not training.workers.is_main or not shown:
            return
        values = "  ".join(f"{name} {value:.4g}" for name, value in list(shown.items())[:8])
        line = f"{phase:5} epoch {min(training.cursor.epoch + 1, training.total_epochs)}/{training.total_epochs}"
        line += f" step {step}/{training.total_steps}  {values}"
        if phase == "train":
            line += f"  data {1e3 * metrics['perf/data_wait_s']:.0f} ms  step {1e3 * metrics['perf/step_s']:.0f} ms"
            line += f"  {metrics['perf/samples_per_s']:.1f} samples/s  ETA {self._eta(training, step)}"
        self._write(line)

    def on_error(self, training: Training, error: BaseException) -> None:
        if training.workers.is_main and self._path is not None:
            self._write(f"stopped at step {training.cursor.step}: {type(error).__name__}: {error}")

    def _eta(self, training: Training, step: int) -> str:
        done = step - self._first_step
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - self._started) / done * (training.total_steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"

    def _write(self, line: str) -> None:
        assert self._path is not None
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(stamped + "\n")
        if self._to_terminal:
            print(stamped, file=sys.stdout, flush=True)
