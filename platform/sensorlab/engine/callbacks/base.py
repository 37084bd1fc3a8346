"""What may happen around the loop. A callback reads; it never owns the step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training
    from sensorlab.tasks.base import Batch


class Callback:
    """Base of all callbacks; every method does nothing unless overridden.

    Order of calls in one run::

        on_fit_start
            on_phase *               "train", "val" or "checkpoint" begins
            on_batch *               each batch on the device, before its forward pass; on the step path
            on_step_end *            after each optimiser step; on the step path: do no slow work here
            on_eval_batch *          after each batch of an evaluation
            on_metrics *             reduced numbers: train/* and perf/* per logging interval, val/* per evaluation
            on_panels *              pictures of an evaluation, main worker only
            on_picture *             any other picture, from the callback that draws it; main worker only
            on_checkpoint *          main worker only
            on_epoch_end *           after the epoch's evaluation and checkpoint; metrics = latest of every name
        on_fit_end  |  on_error

    At the end of an epoch the cursor stands at the begin of the next: ``cursor.epochs_begun`` counts the epochs that
    have been trained on, from 1, in the middle and at the end alike.

    Callbacks run in order of ``priority`` (small first) on every worker. Whoever writes anything does so on the main
    worker only (``training.workers.is_main``). ``state_dict`` travels in the checkpoint of the main worker.
    """

    priority = 50
    # Its state is part of the training, which a fork (``train.fork``) takes over; False: of one run, and its files.
    goes_on_in_forks = True

    def on_fit_start(self, training: Training) -> None: ...

    def on_phase(self, training: Training, phase: str, total: int) -> None:
        """``total``: global batches of the phase, for "train" those of the whole epoch."""

    def on_batch(self, training: Training, batch: Batch) -> None: ...

    def on_step_end(self, training: Training, record: StepRecord) -> None: ...

    def on_eval_batch(self, training: Training, done: int, total: int) -> None: ...

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None: ...

    def on_panels(self, training: Training, panels: list[tuple[str, np.ndarray]], step: int) -> None: ...

    def on_picture(self, training: Training, name: str, picture: np.ndarray, step: int) -> None:
        """``picture``: (H, W, 3) uint8; ``name`` is where it is listed, for example ``train/batch_0``."""

    def on_epoch_end(self, training: Training, metrics: Mapping[str, float]) -> None: ...

    def on_checkpoint(self, training: Training, path: Path) -> None: ...

    def on_fit_end(self, training: Training) -> None: ...

    def on_error(self, training: Training, error: BaseException) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors that the callback needs after a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
