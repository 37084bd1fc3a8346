"""Boxes in images as numpy arrays: areas and overlaps in float64, for metrics, statistics and data preparation.

Boxes are (..., 4) left, top, right, bottom in continuous pixels: the width is right - left. ``extent`` is added to
every side: 1 for programs that take right and bottom as the last pixel inside (the VOC development kit, mmdet 1.x).
A box without area overlaps nothing; its overlap with itself is 0, not NaN. (Networks use the same definitions in
torch: ``sensorlab.models.ops.boxes``.)
"""

from __future__ import annotations

import numpy as np


def box_area(boxes: np.ndarray, extent: float = 0.0) -> np.ndarray:
    """(..., 4) -> (...) float64, px^2; 0 where a side is negative."""
    boxes = np.asarray(boxes, np.float64)
    return np.maximum(boxes[..., 2:] - boxes[..., :2] + extent, 0).prod(axis=-1)


def intersection_area(a: np.ndarray, b: np.ndarray, extent: float = 0.0) -> np.ndarray:
    """Area of the common part of pairs, px^2; (..., 4) and (..., 4) broadcast.

    One side after the other: millions of pairs pass here, and the corners of all of them at once leave the cache.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + extent
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + extent
    return np.maximum(width, 0) * np.maximum(height, 0)


def box_iou(a: np.ndarray, b: np.ndarray, extent: float = 0.0) -> np.ndarray:
    """Intersection over union of pairs, float64 in [0, 1]; (..., 4) and (..., 4) broadcast."""
    common = intersection_area(a, b, extent)
    return _share(common, box_area(a, extent) + box_area(b, extent) - common)


def box_iof(a: np.ndarray, b: np.ndarray, extent: float = 0.0) -> np.ndarray:
    """Share of the area of ``a`` that lies inside ``b``, float64 in [0, 1]; (..., 4) and (..., 4) broadcast.

    Intersection over foreground: how detections overlap a crowd.
    """
    return _share(intersection_area(a, b, extent), box_area(a, extent))


def pairwise_iou(a: np.ndarray, b: np.ndarray, extent: float = 0.0) -> np.ndarray:
    """IoU (N, M) float64 of every box of ``a`` (N, 4) with every box of ``b`` (M, 4)."""
    return box_iou(np.asarray(a)[:, None], np.asarray(b)[None], extent)


def pairwise_iof(a: np.ndarray, b: np.ndarray, extent: float = 0.0) -> np.ndarray:
    """Share (N, M) float64 of every box of ``a`` (N, 4) inside every box of ``b`` (M, 4)."""
    return box_iof(np.asarray(a)[:, None], np.asarray(b)[None], extent)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)
