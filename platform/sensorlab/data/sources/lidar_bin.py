"""Lidar sweeps of nuScenes: ``.pcd.bin`` files, which are plain float32 records (x, y, z, intensity, ring)."""

from __future__ import annotations

import numpy as np

from sensorlab.data.sample import LIDAR_FIELDS


def parse_lidar_bin(data: bytes) -> np.ndarray:
    """Points (N, 5) float32 in the order of ``LIDAR_FIELDS``, in the lidar's frame; a view of ``data``.

    Raises:
        ValueError: the file does not hold a whole number of points.
    """
    record = 4 * len(LIDAR_FIELDS)
    if len(data) % record:
        raise ValueError(f"truncated: {len(data)} bytes are not a whole number of {record}-byte points")
    return np.frombuffer(data, "<f4").reshape(-1, len(LIDAR_FIELDS))
