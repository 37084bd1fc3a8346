"""Every reported number and picture for TensorBoard: ``tensorboard --logdir RUN_DIR/tensorboard``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorlab.engine.callbacks.base import Callback
from sensorlab.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from sensorlab.engine.training import Training


def summary_writer() -> type[SummaryWriter]:
    """The writer's class. Raises ``UserError`` where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"diagnostics.tensorboard needs the tensorboard package ({error}): "
            "pip install 'sensorlab[tensorboard]', or set diagnostics.tensorboard=false"
        ) from error
    return SummaryWriter


class TensorBoard(Callback):
    """Scalars under our names and pictures, written by a thread of the writer's own; main worker only.

    A resumed run has each point once. TensorBoard's ``purge_step`` alone cannot promise that: it drops whole steps, and
    of the step of a checkpoint some points come before it and some after. So the checkpoint holds the lengths of the
    event files, and what the attempt that died wrote after it is cut off. ``purge_step`` is for a TensorBoard that is
    open and has read those points.
    """

    priority = 72
    goes_on_in_forks = False

    def __init__(self) -> None:
        self._writer_class = summary_writer()  # here, so that a missing package costs no training time
        self._writer: SummaryWriter | None = None
        self._folder: Path | None = None
        self._lengths: dict[str, int] | None = None  # bytes of each event file at the checkpoint

    def on_fit_start(self, training: Training) -> None:
        if not training.workers.is_main:
            return
        self._folder = training.run_dir / "tensorboard"
        begins = training.cursor.step == 0 or training.donor is not None
        if begins or self._lengths is not None:
            for path in self._event_files():
                length = (self._lengths or {}).get(path.name, 0)
                if length == 0:
                    path.unlink()
                elif path.stat().st_size > length:
                    os.truncate(path, length)
        self._writer = self._writer_class(str(self._folder), purge_step=training.cursor.step + 1)

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def on_panels(self, training: Training, panels: list[tuple[str, np.ndarray]], step: int) -> None:
        for index, (_, picture) in enumerate(panels):
            self.on_picture(training, f"val/panel_{index}", picture, step)

    def on_picture(self, training: Training, name: str, picture: np.ndarray, step: int) -> None:
        if self._writer is not None:
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def on_fit_end(self, training: Training) -> None:
        self._close()

    def on_error(self, training: Training, error: BaseException) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        if self._writer is not None:
            self._writer.flush()
        return {"lengths": {path.name: path.stat().st_size for path in self._event_files()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._lengths = state.get("lengths")  # None: the run was not recorded here until now

    def _event_files(self) -> Iterator[Path]:
        return iter(()) if self._folder is None else iter(sorted(self._folder.glob("events.out.tfevents.*")))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
