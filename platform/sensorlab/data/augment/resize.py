"""Resize images, in the ways that the originals of our detectors do."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from sensorlab.data.augment.decode import require_rgb

# How pixels become pixels; sample positions are those of pixel centres for all of them.
#   "linear"     between the four nearest pixels, also when shrinking (OpenCV's INTER_LINEAR): fast, aliases
#   "antialias"  a triangle as wide as an output pixel (Pillow's BILINEAR); equal to "linear" when enlarging
#   "area"       the exact mean over the area of an output pixel (OpenCV's INTER_AREA when shrinking): slow
Interpolation = Literal["linear", "antialias", "area"]


def resize_image(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation = "linear") -> np.ndarray:
    """Resize (H, W, 3) uint8 to ``size`` = (height, width). The image itself where it already has that size.

    "area" shrinks only; enlarging, it is the same as "linear".
    """
    height, width = require_rgb(image).shape[:2]
    if (height, width) == size:
        return image
    if interpolation == "area" and size[0] <= height and size[1] <= width:
        rows = _area_means(image, size[0])  # (size[0], W, 3)
        means = _area_means(rows.swapaxes(0, 1), size[1]).swapaxes(0, 1)  # (*size, 3)
        return np.rint(means).astype(np.uint8)
    picture = Image.fromarray(image)
    if interpolation == "antialias":
        return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    extent = (0, 0, width, height)
    return np.asarray(picture.transform((size[1], size[0]), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR))


def _area_means(values: np.ndarray, count: int) -> np.ndarray:
    """Means of ``values`` (N, ...) over ``count`` <= N equal spans of the first axis, float64.

    The integral of a step function is linear between its steps: a mean is a difference of two interpolated sums.
    """
    sums = np.zeros((len(values) + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, dtype=np.float64, out=sums[1:])
    edges = np.linspace(0, len(values), count + 1)
    whole = np.minimum(edges.astype(np.int64), len(values) - 1)
    part = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    at_edges = sums[whole] * (1 - part) + sums[whole + 1] * part  # (count + 1, ...)
    return np.diff(at_edges, axis=0) * (count / len(values))
