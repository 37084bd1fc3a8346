"""Every reported number as one JSON line: ``run_dir/metrics.jsonl``."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.training import Training

logger = logging.getLogger(__name__)


class JsonLog(Callback):
    """Appends ``{"step", "epoch", <name>: value, ...}``; a resumed run has each line once.

    A value that is not finite is ``null``: JSON has no word for it.

    The checkpoint holds the length of the file. Whatever the attempt that died wrote after its checkpoint is cut off,
    because its steps are done again.
    """

    priority = 70
    goes_on_in_forks = False

    def __init__(self) -> None:
        self._length = 0
        self._path: Path | None = None

    def on_fit_start(self, training: Training) -> None:
        if training.workers.is_main:
            self._path = training.run_dir / "metrics.jsonl"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                size = os.fstat(stream.fileno()).st_size
                if size < self._length:  # someone cut it: later attempts must count from what is really there
                    logger.warning("%s has lost its last %d bytes", self._path, self._length - size)
                    self._length = size
                stream.truncate(self._length)

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        if self._path is not None:
            values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            line = json.dumps({"step": step, "epoch": training.cursor.epoch, **values}, allow_nan=False) + "\n"
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(line)
            self._length += len(line.encode())

    def state_dict(self) -> dict[str, Any]:
        return {"length": self._length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._length = state.get("length", 0)
