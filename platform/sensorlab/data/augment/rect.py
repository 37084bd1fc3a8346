"""Rectangular batches: images of similar aspect share one input shape, so that little of it is padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RectangularBatches:
    """Which image goes into which batch, and the input shape of each."""

    order: np.ndarray  # (N,) int64: images by rising aspect (height / width); equal ones in their given order
    batch: np.ndarray  # (N,) int64: the batch of each place in ``order``
    shapes: np.ndarray  # (batches, 2) int64: height, width, px


def rectangular_batches(
    sizes: np.ndarray, size: int, batch_size: int, *, stride: int = 32, pad: float = 0.5
) -> RectangularBatches:
    """Sort images by aspect and give each batch the smallest shape that holds all of it (YOLOv5's rule).

    Args:
        sizes: (N, 2) height, width of the images, px.
        size: the longer side of the input, px, before padding.
        pad: of a stride, added before rounding up to a multiple of ``stride``.
    """
    aspect = sizes[:, 0] / sizes[:, 1]
    order = np.argsort(aspect, kind="stable")
    batch = np.arange(len(sizes)) // batch_size
    starts = np.arange(0, len(sizes), batch_size)
    sorted_aspect = aspect[order]
    lowest = sorted_aspect[starts]
    highest = sorted_aspect[np.minimum(starts + batch_size, len(sizes)) - 1]
    # Share of ``size`` that the sides need: all images flat -> the height of the tallest, all tall -> the width of the
    # widest, mixed -> a square.
    height = np.where(highest < 1, highest, 1.0)
    width = np.where(lowest > 1, 1 / lowest, 1.0)
    shares = np.stack([height, width], axis=1)  # (batches, 2)
    shapes = np.ceil(shares * size / stride + pad).astype(np.int64) * stride
    return RectangularBatches(order=order, batch=batch, shapes=shapes)
