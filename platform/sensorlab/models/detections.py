"""What every detector answers for an image."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Detections(NamedTuple):
    """The D detections of one image, best first."""

    boxes: Tensor  # (D, 4) float xyxy, pixels
    scores: Tensor  # (D,) float in [0, 1]
    classes: Tensor  # (D,) int64
