"""Tables of evaluations as JSON files: ``run_dir/tables/step-00000120-iou_by_distance.json``."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.training import Training
from sensorlab.runs.names import metric_name
from sensorlab.runs.tables import table_content

logger = logging.getLogger(__name__)


class TableFiles(Callback):
    """Writes the tables of every evaluation, with the content that the tracking store would get."""

    priority = 76

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        if training.config.eval.metric not in metrics or not training.workers.is_main:
            return
        folder = training.run_dir / "tables"
        for name, columns in training.tables.items():
            try:
                content = table_content(columns, step)
            except ValueError as error:  # a run is worth more than a table of it
                logger.warning("table %s is not written: %s", name, error)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"step-{step:08d}-{metric_name(name).replace('/', '~')}.json").write_bytes(content)
