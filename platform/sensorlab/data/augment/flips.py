"""Mirror images. In continuous pixels x becomes exactly width - x."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sensorlab.config import StrictModel


class FlipConfig(StrictModel):
    """How often to mirror."""

    horizontal: float = Field(default=0.5, ge=0, le=1)  # probability to exchange left and right
    vertical: float = Field(default=0.0, ge=0, le=1)  # probability to exchange top and bottom


def sample_flips(generator: np.random.Generator, config: FlipConfig) -> tuple[bool, bool]:
    """(horizontal, vertical). Draws: two uniforms, horizontal first, whatever the probabilities are."""
    horizontal, vertical = generator.random(2)
    return bool(horizontal < config.horizontal), bool(vertical < config.vertical)


def flip_image(image: np.ndarray, horizontal: bool, vertical: bool) -> np.ndarray:
    """Mirrored (H, W, 3) image: a view, no copy."""
    return image[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def flip_boxes(boxes: np.ndarray, size: tuple[int, int], horizontal: bool, vertical: bool) -> np.ndarray:
    """Boxes (N, 4) in a mirrored image of ``size`` = (height, width)."""
    height, width = size
    left, top, right, bottom = boxes.T
    if horizontal:
        left, right = width - right, width - left
    if vertical:
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], axis=1)  # (N, 4)
