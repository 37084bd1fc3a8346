"""Radar and lidar points of a sample as voxels of the BEV grid.

A sensor becomes the ascending list of its occupied voxels (flat index in (Z, Y, X) order), with one row of features per
voxel for radar metadata: some kilobytes where the dense volume has megabytes. :func:`scatter` makes the dense volume on
the device. Where several points fall into one voxel, the youngest wins, and of equally young ones the last read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from sensorlab.data.sample import RADAR_FIELDS, PointSweep
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import transform_points
from sensorlab.tasks.bev_segmentation.config import LidarConfig, RadarConfig

PADDING = -1  # index of no voxel, where lists of a batch are padded to one length

# Features of a radar voxel: the fields of a return but its position, and the age in seconds.
RADAR_FEATURES = (*RADAR_FIELDS[3:], "time_lag")
_DYN_PROP, _AMBIG_STATE, _INVALID_STATE = (RADAR_FIELDS.index(n) for n in ("dyn_prop", "ambig_state", "invalid_state"))
_VX, _VY, _VX_COMP, _VY_COMP = (RADAR_FEATURES.index(n) for n in ("vx", "vy", "vx_comp", "vy_comp"))


def select_sweeps(sweeps: Sequence[PointSweep], count: int) -> list[PointSweep]:
    """The ``count`` youngest sweeps of every sensor, oldest first."""
    chosen: list[PointSweep] = []
    for name in dict.fromkeys(sweep.name for sweep in sweeps):
        chosen += sorted((s for s in sweeps if s.name == name), key=lambda s: s.time_lag)[:count]
    return sorted(chosen, key=lambda sweep: -sweep.time_lag)


def passes_default_filters(points: np.ndarray) -> np.ndarray:
    """Which radar returns (N, 18) the default filters of the nuScenes devkit keep: valid, unambiguous, dyn_prop 0-6."""
    dyn_prop = points[:, _DYN_PROP]
    return (
        (points[:, _INVALID_STATE] == 0) & (dyn_prop >= 0) & (dyn_prop <= 6) & (points[:, _AMBIG_STATE] == 3)
    )  # fmt: skip


def is_distant(points: np.ndarray, min_distance: float) -> np.ndarray:
    """Which points (N, >= 2) lie outside the square |x| < d, |y| < d around their sensor: no returns of the vehicle."""
    return (np.abs(points[:, 0]) >= min_distance) | (np.abs(points[:, 1]) >= min_distance)


def radar_voxels(
    sweeps: Sequence[PointSweep],
    config: RadarConfig,
    grid: BEVGrid,
    ref_from_ego: np.ndarray,
    rotate_velocity: bool,
    padding_point: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (M,) int32 and their features (M, 16) float32, ``RADAR_FEATURES``, raw.

    Args:
        rotate_velocity: give velocities along the reference camera's right and forward axes instead of each sensor's.
        padding_point: add a return at the ego origin, as the original's zero padding does.
    """
    positions, features = [np.zeros((0, 3))], [np.zeros((0, len(RADAR_FEATURES)), np.float32)]
    if padding_point:
        positions.append(ref_from_ego[None, :3, 3])
        features.append(np.zeros((1, len(RADAR_FEATURES)), np.float32))
    for sweep in select_sweeps(sweeps, config.sweeps):
        keep = is_distant(sweep.points, config.min_distance)
        if config.filters == "default":
            keep &= passes_default_filters(sweep.points)
        points = sweep.points[keep]
        ref_from_sensor = ref_from_ego @ sweep.ego_from_sensor
        positions.append(transform_points(ref_from_sensor, points[:, :3].astype(np.float64)))
        described = np.column_stack([points[:, 3:], np.full(len(points), sweep.time_lag, np.float32)])
        if rotate_velocity:
            axes = ref_from_sensor[np.ix_((0, 2), (0, 1))].astype(np.float32)  # sensor x, y -> ref right, forward
            for x, y in ((_VX, _VY), (_VX_COMP, _VY_COMP)):
                described[:, [x, y]] = described[:, [x, y]] @ axes.T
        features.append(described)
    voxels, inside = flat_voxels(np.concatenate(positions), grid)
    # The last of equal indices wins an assignment: the youngest return of the voxel.
    owner = np.full(grid.num_voxels, -1, np.int32)
    owner[voxels] = np.arange(len(voxels))
    occupied = np.flatnonzero(owner >= 0)
    return occupied.astype(np.int32), np.concatenate(features)[inside][owner[occupied]]


def lidar_voxels(
    sweeps: Sequence[PointSweep], config: LidarConfig, grid: BEVGrid, ref_from_ego: np.ndarray
) -> np.ndarray:
    """Occupied voxels (M,) int32."""
    occupied = np.zeros(grid.num_voxels, bool)
    for sweep in select_sweeps(sweeps, config.sweeps):
        points = sweep.points[is_distant(sweep.points, config.min_distance), :3]
        points = transform_points(sweep.ego_from_sensor.astype(np.float32), points)
        points = points[(points**2).sum(1) > config.min_range**2]
        voxels, _ = flat_voxels(transform_points(ref_from_ego.astype(np.float32), points), grid)
        occupied[voxels] = True
    return np.flatnonzero(occupied).astype(np.int32)


def flat_voxels(points: np.ndarray, grid: BEVGrid) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices (M,) of the points (N, 3) of the ref frame that lie in the grid, and the mask (N,) of those points.

    As in the original, the voxel (0, 0, 0) stays empty (it collects points that are outside) and points at the ref
    frame's origin, which mark missing values, are dropped.
    """
    coordinates = grid.to_voxel(points)
    origin = grid.to_voxel(np.zeros(3))
    missing = ((coordinates - origin) ** 2).sum(1) < 0.1**2
    cells = grid.to_cells(coordinates)
    inside = grid.contains(coordinates) & ~missing & (cells != 0).any(1)
    _, cells_y, cells_x = grid.cells
    x, y, z = cells[inside].T
    return (z * cells_y + y) * cells_x + x, inside


def pad_voxels(lists: Iterable[np.ndarray], fill: float = PADDING) -> np.ndarray:
    """Stack arrays (M_i, ...) of different lengths to (B, max M_i, ...), filled up with ``fill``."""
    arrays = list(lists)
    padded = np.full((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def scatter(voxels: Tensor, features: Tensor | None, grid: BEVGrid) -> Tensor:
    """Dense volumes (B, C, Z, Y, X) float32 from padded voxel lists (B, M).

    With ``features`` (B, M, C) the features at their voxels, otherwise occupancy with C = 1; zero elsewhere.
    """
    batch, channels = len(voxels), 1 if features is None else features.shape[-1]
    target = torch.where(voxels == PADDING, grid.num_voxels, voxels).long()  # padding goes to an extra voxel
    volume = torch.zeros(batch, channels, grid.num_voxels + 1, device=voxels.device)
    source = torch.ones_like(target, dtype=volume.dtype)[:, None] if features is None else features.transpose(1, 2)
    volume.scatter_(2, target[:, None].expand(-1, channels, -1), source)
    return volume[..., :-1].reshape(batch, channels, *grid.cells)
