"""MixUp: two images blended, the boxes of both (Zhang et al. 2018; the use in detection of YOLOv5)."""

from __future__ import annotations

import numpy as np
from PIL import Image
from pydantic import Field

from sensorlab.config import StrictModel
from sensorlab.data.augment.decode import require_rgb


class MixupConfig(StrictModel):
    """How often and how strongly to blend a second image in."""

    probability: float = Field(default=0.0, ge=0, le=1)  # of blending
    beta: float = Field(default=32.0, gt=0)  # the weight is drawn from Beta(beta, beta); 8 in YOLOv5 before release 6.0


def sample_mixup(generator: np.random.Generator, config: MixupConfig) -> float | None:
    """Weight of the first image, or None for no MixUp. Draws: one uniform, then always one Beta."""
    chosen = generator.random() < config.probability
    weight = float(generator.beta(config.beta, config.beta))
    return weight if chosen else None


def mixup(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """``weight * first + (1 - weight) * second``, truncated to whole grey levels. The boxes of both stay as they are.

    Args:
        first, second: (H, W, 3) uint8 of equal size.
        weight: in [0, 1].
    """
    if require_rgb(first).shape != require_rgb(second).shape:
        raise ValueError(f"MixUp needs images of equal size, not {first.shape} and {second.shape}")
    # One grey image three times as wide: Pillow blends bytes, and does not have to spread RGB to four bytes.
    below, above = (Image.fromarray(image.reshape(image.shape[0], -1), "L") for image in (second, first))
    return np.asarray(Image.blend(below, above, weight)).reshape(first.shape)
