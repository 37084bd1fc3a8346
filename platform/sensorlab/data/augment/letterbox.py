"""Fit an image into an input: resize, pad, and the exact way back.

Two rules: *letterbox* (YOLOv5) resizes into a given shape and centres the image in it; *keep ratio* (mmdetection)
limits the longer and the shorter side and pads at the right and the bottom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sensorlab.data.augment.filters import clip_boxes
from sensorlab.data.augment.resize import Interpolation, resize_image

FILL = 114  # grey level of padding, YOLOv5
# "exact" is what happens to the pixels. "nominal" is what YOLOv5 does to boxes: the ratio before the rounding of the
# resized size, and half of the padding even where that is half a pixel.
Convention = Literal["exact", "nominal"]


@dataclass(frozen=True)
class Placement:
    """Where an image of size ``source`` lands in an input of size ``size``. Sizes are (height, width), px."""

    source: tuple[int, int]
    resized: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]  # (x, y) of the resized image in the input, px
    ratio: tuple[float, float]  # (width, height) the factors asked for, before rounding
    pad: tuple[float, float]  # (x, y) half of the padding, not rounded

    def mapping(self, convention: Convention = "exact") -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset, each (2,) float64 in x, y: input = source * scale + offset."""
        if convention == "nominal":
            return np.array(self.ratio), np.array(self.pad)
        scale = self.resized[1] / self.source[1], self.resized[0] / self.source[0]
        return np.array(scale), np.array(self.offset, dtype=np.float64)


def _check_sizes(*sizes: tuple[int, int]) -> None:
    if min(min(size) for size in sizes) < 1:
        raise ValueError(f"sizes must be at least one pixel: {sizes}")


def letterbox(
    source: tuple[int, int],
    shape: tuple[int, int],
    *,
    multiple: int | None = None,
    stretch: bool = False,
    enlarge: bool = True,
) -> Placement:
    """Plan of YOLOv5's letterbox: the largest size with the same aspect, centred.

    Args:
        source: (height, width) of the image.
        shape: (height, width) of the input.
        multiple: pad only to the next smaller input whose padding is below this many pixels (32; 64 in release 3.0)
            instead of to all of ``shape``.
        stretch: fill ``shape`` and give up the aspect.
        enlarge: False leaves small images as they are.
    """
    _check_sizes(source, shape)
    ratio = min(shape[0] / source[0], shape[1] / source[1])
    if not enlarge:
        ratio = min(ratio, 1.0)
    if stretch:
        return Placement(source, shape, shape, (0, 0), (shape[1] / source[1], shape[0] / source[0]), (0.0, 0.0))
    # A side of an extreme aspect would round to nothing.
    resized = max(round(source[0] * ratio), 1), max(round(source[1] * ratio), 1)
    spare = shape[0] - resized[0], shape[1] - resized[1]
    if multiple is not None:
        spare = spare[0] % multiple, spare[1] % multiple
    # Of an odd padding the smaller half goes to the left and the top.
    return Placement(
        source=source,
        resized=resized,
        size=(resized[0] + spare[0], resized[1] + spare[1]),
        offset=(spare[1] // 2, spare[0] // 2),
        ratio=(ratio, ratio),
        pad=(spare[1] / 2, spare[0] / 2),
    )


def keep_ratio(source: tuple[int, int], long: int, short: int, multiple: int = 1) -> Placement:
    """Plan of mmdetection's keep-ratio resize: as large as ``long`` x ``short`` allows, padded right and below.

    Args:
        source: (height, width) of the image.
        long, short: limits of the longer and the shorter side, px; 1333 and 800 in its standard configuration.
        multiple: the input is padded to a multiple of this, px; 32 there.
    """
    _check_sizes(source, (long, short))
    ratio = min(long / max(source), short / min(source))
    resized = max(int(source[0] * ratio + 0.5), 1), max(int(source[1] * ratio + 0.5), 1)
    size = pad_to_multiple(resized, multiple)
    return Placement(source, resized, size, (0, 0), (ratio, ratio), (0.0, 0.0))


def pad_to_multiple(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The smallest (height, width) of multiples that holds ``size``."""
    return math.ceil(size[0] / multiple) * multiple, math.ceil(size[1] / multiple) * multiple


def long_side(source: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) with the longer side ``size``, the other truncated: how YOLOv5 loads an image."""
    ratio = size / max(source)
    return max(int(source[0] * ratio), 1), max(int(source[1] * ratio), 1)


def place_image(
    image: np.ndarray, placement: Placement, fill: int = FILL, interpolation: Interpolation = "linear"
) -> np.ndarray:
    """The input (*placement.size, 3) uint8: ``image`` resized and placed on ``fill``."""
    resized = resize_image(image, placement.resized, interpolation)
    if placement.resized == placement.size:
        return resized
    out = np.full((*placement.size, 3), fill, dtype=np.uint8)
    (x, y), (height, width) = placement.offset, placement.resized
    out[y : y + height, x : x + width] = resized
    return out


def map_boxes(boxes: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) of the source in the input: ``x * scale + offset``."""
    return boxes * np.tile(scale, 2) + np.tile(offset, 2)


def map_back(
    boxes: np.ndarray, scale: np.ndarray, offset: np.ndarray, source: tuple[int, int] | None = None
) -> np.ndarray:
    """Boxes (N, 4) of the input in the source, clipped to ``source`` = (height, width) where that is given."""
    mapped = (boxes - np.tile(offset, 2)) / np.tile(scale, 2)
    return mapped if source is None else clip_boxes(mapped, source)
