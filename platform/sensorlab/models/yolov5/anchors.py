"""Anchor sizes: shapes that the predicted width and height are relative to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sensorlab.errors import UserError

STRIDES = (8, 16, 32)

# (level, anchor, (width, height)) in pixels of a 640 px image, found by k-means on COCO: the published networks.
COCO_ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)


def anchor_tensor(anchors: Sequence[Sequence[Sequence[float]]], strides: Sequence[int] = STRIDES) -> Tensor:
    """(levels, anchors, 2) float32 widths and heights in pixels, checked.

    Args:
        anchors: by level, finest first, then by anchor: (width, height) in input pixels.
        strides: of the levels.

    Raises:
        UserError: levels are missing, of unequal length, in the wrong order, or a side is not positive.
    """
    counts = [len(level) for level in anchors]
    if len(counts) != len(strides) or len(set(counts)) != 1 or not counts[0]:
        raise UserError(f"anchors: {len(strides)} levels with equally many sizes are needed, found {counts}")
    if any(len(size) != 2 or not all(0 < side < float("inf") for side in size) for level in anchors for size in level):
        raise UserError(f"anchors: each is (width, height), both positive, in pixels; found {anchors}")
    areas = [sum(width * height for width, height in level) / len(level) for level in anchors]
    if areas != sorted(areas):
        raise UserError(f"anchors: the finest level, stride {strides[0]}, takes the smallest; found mean areas {areas}")
    return torch.tensor(anchors, dtype=torch.float32)
