"""Radar and lidar points of a sample, selected and moved into the ego frame; voxels are made on the device.

Points of all sweeps are concatenated, youngest sweep first: where several returns share a voxel, the first one
describes it. Samples have different numbers of points; a batch is padded with NaN, which no voxel contains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sensorlab.data.sample import RADAR_FIELDS, PointSweep
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import transform_points
from sensorlab.models.ops.occupancy import lidar_occupancy, radar_occupancy
from sensorlab.tasks.bev_segmentation.config import LidarConfig, RadarConfig

# Features of a radar return: its fields but the position, and its age in seconds.
RADAR_FEATURES = (*RADAR_FIELDS[3:], "time_lag")
_DYN_PROP, _AMBIG_STATE, _INVALID_STATE = (RADAR_FIELDS.index(n) for n in ("dyn_prop", "ambig_state", "invalid_state"))
_VELOCITIES = [[RADAR_FEATURES.index(n) for n in pair] for pair in (("vx", "vy"), ("vx_comp", "vy_comp"))]


def select_sweeps(sweeps: Sequence[PointSweep], count: int) -> list[PointSweep]:
    """The ``count`` youngest sweeps of every sensor, youngest first."""
    chosen: list[PointSweep] = []
    for name in dict.fromkeys(sweep.name for sweep in sweeps):
        chosen += sorted((s for s in sweeps if s.name == name), key=lambda s: s.time_lag)[:count]
    return sorted(chosen, key=lambda sweep: sweep.time_lag)


def passes_default_filters(points: np.ndarray) -> np.ndarray:
    """Which radar returns (N, 18) the default filters of the nuScenes devkit keep.

    They are valid (invalid_state 0), unambiguous (ambig_state 3) and of a known dynamic property (0 to 6).
    """
    dyn_prop = points[:, _DYN_PROP]
    known = (dyn_prop >= 0) & (dyn_prop <= 6)
    return known & (points[:, _INVALID_STATE] == 0) & (points[:, _AMBIG_STATE] == 3)


def is_distant(points: np.ndarray, min_distance: float) -> np.ndarray:
    """Which points (N, >= 2) lie outside the square |x| < d, |y| < d around their sensor: no returns of the vehicle."""
    return (np.abs(points[:, 0]) >= min_distance) | (np.abs(points[:, 1]) >= min_distance)


def radar_points(
    sweeps: Sequence[PointSweep], config: RadarConfig, ref_from_ego: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Points (M, 3) float32 in the ego frame and their features (M, 16) float32, ``RADAR_FEATURES``, raw.

    Args:
        ref_from_ego: turn velocities into components along the reference camera's right and forward axes, those of the
            BEV map. None: leave them in the axes of each radar, as the original does.
    """
    positions = [np.zeros((0, 3), np.float32)]
    features = [np.zeros((0, len(RADAR_FEATURES)), np.float32)]
    for sweep in select_sweeps(sweeps, config.sweeps):
        keep = is_distant(sweep.points, config.min_distance)
        if config.filters == "default":
            keep &= passes_default_filters(sweep.points)
        points = sweep.points[keep]
        positions.append(transform_points(sweep.ego_from_sensor, points[:, :3].astype(np.float64)).astype(np.float32))
        described = np.column_stack([points[:, 3:], np.full(len(points), sweep.time_lag, np.float32)])
        if ref_from_ego is not None:
            ref_from_sensor = ref_from_ego @ sweep.ego_from_sensor
            axes = ref_from_sensor[np.ix_((0, 2), (0, 1))].astype(np.float32)  # sensor x, y -> ref right, forward
            for pair in _VELOCITIES:
                described[:, pair] = described[:, pair] @ axes.T
        features.append(described)
    return np.concatenate(positions), np.concatenate(features)


def lidar_points(sweeps: Sequence[PointSweep], config: LidarConfig) -> np.ndarray:
    """Points (M, 3) float32 in the ego frame."""
    positions = [np.zeros((0, 3), np.float32)]
    for sweep in select_sweeps(sweeps, config.sweeps):
        points = sweep.points[is_distant(sweep.points, config.min_distance), :3]
        positions.append(transform_points(sweep.ego_from_sensor.astype(np.float32), points))
    return np.concatenate(positions)


def pad_points(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack point arrays (M_i, C) to (B, max M_i, C), filled up with NaN."""
    padded = np.full((len(arrays), max(len(a) for a in arrays), arrays[0].shape[1]), np.nan, arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def radar_volume(batch: Mapping[str, Tensor], config: RadarConfig, grid: BEVGrid, legacy: bool) -> Tensor | None:
    """What the network's radar input is: (B, 1, Z, Y, X) occupancy, (B, 16, Z, Y, X) features, or None."""
    if config.input == "none":
        return None
    points, sample = _unpad(batch["radar_points"])
    features = None
    if config.input == "metadata":
        features = batch["radar_features"][~batch["radar_points"].isnan().any(-1)]
    return radar_occupancy(points, sample, batch["ref_from_ego"], grid, metadata=features, legacy=legacy)


def lidar_volume(batch: Mapping[str, Tensor], config: LidarConfig, grid: BEVGrid, legacy: bool) -> Tensor | None:
    """What the network's lidar input is: (B, 1, Z, Y, X) occupancy, or None."""
    if not config.enabled:
        return None
    points, sample = _unpad(batch["lidar_points"])
    return lidar_occupancy(points, sample, batch["ref_from_ego"], grid, min_distance=config.min_range, legacy=legacy)


def _unpad(padded: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N, 3) of a padded batch (B, M, 3), and the sample (N,) of each."""
    present = ~padded.isnan().any(-1)
    return padded[present], torch.nonzero(present)[:, 0]
