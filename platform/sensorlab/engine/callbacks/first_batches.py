"""Pictures of the first training batches: what the network really gets, and what it is asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from PIL import Image

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.pictures import contact_sheet
from sensorlab.engine.callbacks.sync_debug import syncs_allowed

if TYPE_CHECKING:
    from sensorlab.engine.training import Training
    from sensorlab.tasks.base import Batch

logger = logging.getLogger(__name__)


class FirstBatches(Callback):
    """Draws the first ``count`` global batches of a run, each once: ``run_dir/first_batches/batch-0.png``.

    One picture per batch, of up to 16 samples (``task.input_panels``), handed on to whoever records pictures as
    ``train/batch_0``. With several workers it shows the main worker's share. Which batches these are follows from the
    cursor, so a resumed run draws only those that are left.
    """

    priority = 40

    def __init__(self, count: int) -> None:
        self._count = count

    def on_batch(self, training: Training, batch: Batch) -> None:
        cursor = training.cursor
        if cursor.epoch or cursor.batch >= self._count or not training.workers.is_main:
            return
        with syncs_allowed(training.workers.device):
            panels = training.task.input_panels(batch)
        if not panels:
            if cursor.batch == 0:
                task = type(training.task).__module__
                logger.warning("diagnostics.first_batches: %s draws no inputs (input_panels is empty)", task)
            return
        sheet = contact_sheet(panels)
        folder = training.run_dir / "first_batches"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(folder / f"batch-{cursor.batch}.png")
        for callback in training.callbacks:
            callback.on_picture(training, f"train/batch_{cursor.batch}", sheet, cursor.step)
