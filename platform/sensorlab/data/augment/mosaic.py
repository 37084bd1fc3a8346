"""Mosaic: four images around one point of a canvas of twice the size (YOLOv4, YOLOv5).

Where the tiles go (:func:`mosaic_tiles`) is apart from the pasting, so the labels of a mosaic need no pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorlab.data.augment.decode import require_rgb
from sensorlab.data.augment.filters import clip_boxes
from sensorlab.data.augment.letterbox import FILL

NUM_TILES = 4


@dataclass(frozen=True)
class Tile:
    """The part of an image that is seen, and where. Windows are left, top, right, bottom in whole pixels."""

    source: tuple[int, int, int, int]  # of the image
    target: tuple[int, int, int, int]  # of the canvas, of the same size

    @property
    def shift(self) -> tuple[int, int]:
        """(x, y) from the image to the canvas, px."""
        return self.target[0] - self.source[0], self.target[1] - self.source[1]


def sample_center(generator: np.random.Generator, size: int) -> tuple[int, int]:
    """Point (x, y) where the tiles meet, uniform over the middle [size / 2, 3 size / 2) of the canvas.

    Draws: two uniforms, x first.
    """
    x, y = generator.uniform(size / 2, 3 * size / 2, size=2)
    return int(x), int(y)


def mosaic_tiles(sizes: Sequence[tuple[int, int]], center: tuple[int, int], size: int) -> list[Tile]:
    """Place images on a canvas of ``2 size`` x ``2 size``, each with one corner at ``center``.

    Args:
        sizes: (height, width) of the images for top left, top right, bottom left, bottom right.
        center: (x, y), px of the canvas.
        size: size of the network's input, px.
    """
    if len(sizes) != NUM_TILES:
        raise ValueError(f"a mosaic has {NUM_TILES} images, not {len(sizes)}")
    tiles = []
    for index, (height, width) in enumerate(sizes):
        x0, x1, source_x = _span(width, center[0], 2 * size, before=index % 2 == 0)
        y0, y1, source_y = _span(height, center[1], 2 * size, before=index < 2)
        source = (source_x, source_y, source_x + x1 - x0, source_y + y1 - y0)
        tiles.append(Tile(source=source, target=(x0, y0, x1, y1)))
    return tiles


def _span(length: int, center: int, limit: int, before: bool) -> tuple[int, int, int]:
    """One axis of a tile: start and end on the canvas, start in the image. What the canvas does not hold is cut off."""
    if before:
        start = max(center - length, 0)
        return start, center, length - (center - start)
    return center, min(center + length, limit), 0


def paste_mosaic(images: Sequence[np.ndarray], tiles: Sequence[Tile], size: int, fill: int = FILL) -> np.ndarray:
    """The canvas (2 size, 2 size, 3) uint8."""
    canvas = np.full((2 * size, 2 * size, 3), fill, dtype=np.uint8)
    for image, tile in zip(images, tiles, strict=True):
        (x0, y0, x1, y1), (left, top, right, bottom) = tile.source, tile.target
        canvas[top:bottom, left:right] = require_rgb(image)[y0:y1, x0:x1]
    return canvas


def mosaic_boxes(boxes: Sequence[np.ndarray], tiles: Sequence[Tile], size: int) -> np.ndarray:
    """The boxes of all tiles on the canvas, (sum of N_i, 4), tile after tile.

    They are clipped to the canvas and not dropped, so rows stay aligned with the labels; a box that is cut off entirely
    has no area, and :func:`sensorlab.data.augment.filters.candidates` drops it after the warp.
    """
    moved = [tile_boxes + np.tile(tile.shift, 2) for tile_boxes, tile in zip(boxes, tiles, strict=True)]
    return clip_boxes(np.concatenate(moved), (2 * size, 2 * size))
