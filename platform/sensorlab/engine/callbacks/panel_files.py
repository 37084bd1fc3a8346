"""Validation pictures as PNG files: ``run_dir/panels/step-00000120-0.png``."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.training import Training


class PanelFiles(Callback):
    """Writes the pictures of every evaluation."""

    priority = 75

    def on_panels(self, training: Training, panels: list[tuple[str, np.ndarray]], step: int) -> None:
        folder = training.run_dir / "panels"
        folder.mkdir(parents=True, exist_ok=True)
        for index, (_, picture) in enumerate(panels):
            Image.fromarray(picture).save(folder / f"step-{step:08d}-{index}.png")
