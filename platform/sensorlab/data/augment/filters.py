"""Which boxes survive a transform."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sensorlab.config import StrictModel


class CandidateFilter(StrictModel):
    """When a box is still worth learning after a warp and a clip (YOLOv5's rule, defaults of its release 7.0)."""

    min_side: float = Field(default=2.0, ge=0)  # px; width and height must be larger
    max_aspect: float = Field(default=100.0, gt=1)  # longer over shorter side must be smaller; 20 in release 3.0
    # Area after over area before the clip must be larger; 0.2 at the tag 3.0.
    min_area_ratio: float = Field(default=0.1, ge=0, lt=1)


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) clipped to an image of ``size`` = (height, width). A box outside becomes one without area."""
    height, width = size
    return np.clip(boxes, 0.0, (width, height, width, height))


def valid_boxes(boxes: np.ndarray, min_side: float = 0.0) -> np.ndarray:
    """Which boxes (N, 4) are not degenerate: (N,) bool, both sides larger than ``min_side`` px; NaN is degenerate."""
    return (boxes[:, 2] - boxes[:, 0] > min_side) & (boxes[:, 3] - boxes[:, 1] > min_side)


def candidates(before: np.ndarray, after: np.ndarray, rule: CandidateFilter) -> np.ndarray:
    """Which boxes pass ``rule``: (N,) bool.

    Args:
        before: (N, 4) boxes before the transform, already multiplied by its scale, so that areas can be compared.
        after: (N, 4) boxes after the transform and the clip.
    """
    tiny = 1e-16  # a box without area must not divide by zero
    width, height = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    area_before = (before[:, 2] - before[:, 0]) * (before[:, 3] - before[:, 1])
    aspect = np.maximum(width / (height + tiny), height / (width + tiny))
    return (
        (width > rule.min_side)
        & (height > rule.min_side)
        & (width * height / (area_before + tiny) > rule.min_area_ratio)
        & (aspect < rule.max_aspect)
    )
