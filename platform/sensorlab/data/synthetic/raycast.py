"""Rays against upright boxes: the one geometric kernel behind images, lidar and radar visibility.

A box is (x, y, z, length, width, height, yaw) in some z-up frame; rays are given in the same frame.
"""

from __future__ import annotations

import math

import numpy as np

FACE_X, FACE_Y, FACE_Z = 0, 1, 2  # which pair of faces a ray enters: front/back, left/right, top/bottom
_TINY = np.float32(1e-12)

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


def to_box_axes(box: np.ndarray, vectors: Triple) -> Triple:
    """Rotate direction components (any broadcastable shapes) into the axes of ``box`` (7,)."""
    cos, sin = np.float32(math.cos(box[6])), np.float32(math.sin(box[6]))
    x, y, z = vectors
    return cos * x + sin * y, cos * y - sin * x, z


def origin_in_box(box: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(3,) float32 coordinates of a point of the common frame in the frame of ``box``."""
    cos, sin = math.cos(box[6]), math.sin(box[6])
    x, y, z = (float(origin[i] - box[i]) for i in range(3))
    return np.array([cos * x + sin * y, cos * y - sin * x, z], dtype=np.float32)


def intersect(half: np.ndarray, origin: np.ndarray, directions: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Slab test of rays ``origin + t * direction`` in the frame of a box.

    Args:
        half: (3,) half length, width and height.
        origin: (3,) in the frame of the box (:func:`origin_in_box`), outside the box.
        directions: components in the axes of the box (:func:`to_box_axes`); they need not have unit length.

    Returns:
        t: float32, broadcast shape of the directions; where the ray enters, ``inf`` where it misses.
        face: int8, the pair of faces that it enters through; meaningless where it misses.
    """
    entries, leaves = [], []
    for axis in range(3):
        inverse = np.float32(1.0) / (directions[axis] + _TINY)
        first = (np.float32(-half[axis]) - origin[axis]) * inverse
        second = (np.float32(half[axis]) - origin[axis]) * inverse
        entries.append(np.minimum(first, second))
        leaves.append(np.maximum(first, second))
    sides = np.maximum(entries[0], entries[1])
    enter = np.maximum(sides, entries[2])
    leave = np.minimum(np.minimum(leaves[0], leaves[1]), leaves[2])
    face = np.where(entries[2] > sides, FACE_Z, np.where(entries[1] > entries[0], FACE_Y, FACE_X)).astype(np.int8)
    return np.where((enter <= leave) & (enter > 0), enter, np.float32(np.inf)), face
