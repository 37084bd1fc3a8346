"""Find the places where a training step waits for the GPU without need."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from sensorlab.engine.callbacks.base import Callback

if TYPE_CHECKING:
    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training
    from sensorlab.tasks.base import Batch

logger = logging.getLogger(__name__)


@contextmanager
def syncs_allowed(device: torch.device) -> Iterator[None]:
    """Around a wait that is intended, such as the copy of a picture: :class:`SyncDebug` says nothing about it."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


class SyncDebug(Callback):
    """Has torch warn of, or raise at, each operation of a step that waits for the GPU (``.item()``, ``nonzero``, ...).

    Watched is what lies between the copy of the first batch of a step and the end of its update. The first step of an
    attempt is left out: there, libraries start and choose their algorithms. Has no effect on the CPU, and says so.
    """

    priority = 0  # the first to hear of a step's end: the other callbacks may wait

    def __init__(self, mode: Literal["warn", "error"]) -> None:
        self._mode = mode
        self._watches = False

    def on_fit_start(self, training: Training) -> None:
        if training.workers.device.type != "cuda" and training.workers.is_main:
            logger.warning(
                "diagnostics.sync_debug=%s has no effect on %s: only CUDA operations are watched",
                self._mode,
                training.workers.device,
            )

    def on_batch(self, training: Training, batch: Batch) -> None:
        if self._watches:
            torch.cuda.set_sync_debug_mode(self._mode)

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        self._off()
        self._watches = training.workers.device.type == "cuda"

    def on_fit_end(self, training: Training) -> None:
        self._off()

    def on_error(self, training: Training, error: BaseException) -> None:
        self._off()

    def _off(self) -> None:
        if self._watches:
            torch.cuda.set_sync_debug_mode("default")
            self._watches = False
