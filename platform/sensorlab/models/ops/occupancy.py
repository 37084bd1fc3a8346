"""Radar and lidar points as voxel occupancy, with or without features.

A batch of point clouds is one concatenated array plus the sample number of every point: nothing is padded. The
``legacy`` switches reproduce what Simple-BEV's ``run_model`` and ``utils/vox.py`` do instead, for published weights:

* The first row of cells loses points whose voxel z is exactly 0, cell (0, 0, 0) is always empty, and points closer
  than 0.1 cells to the reference camera are dropped (there, clean-up after zero padding).
* Radar clouds are zero-padded, so the voxel at the ego origin is occupied in every sample.
* Lidar drops points within 1 m of the ego origin by the mask of sample 0, column by column, in every sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid

# Simple-BEV drops lidar points closer than this to the ego origin (metres): returns from the vehicle itself.
LIDAR_MIN_DISTANCE = 1.0
# Distance from the reference camera, in cells, below which the original drops points.
_LEGACY_ORIGIN_RADIUS = 0.1


def voxelize_points(
    points: Tensor,
    grid: BEVGrid,
    *,
    features: Tensor | None = None,
    batch_index: Tensor | None = None,
    batch_size: int = 1,
    legacy: bool = False,
) -> Tensor:
    """Occupancy of the voxels, or the features of one of the points in each voxel.

    Args:
        points: (N, 3) float, reference-camera frame, metres. Points outside the grid, or not finite, are ignored.
        grid: the voxels; a point belongs to the cell to which its voxel coordinates round (ties to even).
        features: (N, D) float. Where several points share a voxel, the first of them in the order of ``points`` gives
            the features (sweeps come newest first). The original picks one at random.
        batch_index: (N,) integers in 0..batch_size-1; without it all points belong to sample 0.
        batch_size: number of samples B.
        legacy: the first rule of the module's description.

    Returns:
        (B, 1, Z, Y, X) of 0 and 1, or (B, D, Z, Y, X), in the dtype of ``points`` or ``features``.
    """
    if batch_index is None:
        batch_index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    if points.shape != (len(batch_index), 3) or (features is not None and len(features) != len(points)):
        raise ValueError(
            f"expected points (N, 3) with as many features and batch indices, found {tuple(points.shape)}, "
            f"{None if features is None else tuple(features.shape)}, {tuple(batch_index.shape)}"
        )
    cells_z, cells_y, cells_x = grid.cells
    voxels = grid.to_voxel(points)
    inside = grid.contains(voxels)
    if legacy:
        origin = grid.to_voxel(torch.zeros_like(points[:1]))
        inside &= (voxels[:, 2] != 0) & (torch.linalg.vector_norm(voxels - origin, dim=1) >= _LEGACY_ORIGIN_RADIUS)
    x, y, z = grid.to_cells(voxels[inside]).unbind(1)
    if legacy:
        origin_cell = (x == 0) & (y == 0) & (z == 0)
        inside[inside.clone()] = ~origin_cell
        x, y, z = (axis[~origin_cell] for axis in (x, y, z))
    cell = ((batch_index[inside].long() * cells_z + z) * cells_y + y) * cells_x + x
    num_cells = batch_size * grid.num_voxels
    if features is None:
        volume = points.new_zeros(num_cells)
        volume[cell] = 1
        return volume.view(batch_size, 1, cells_z, cells_y, cells_x)
    winner = _first_point_per_cell(cell, num_cells)
    occupied = winner < len(cell)
    scattered = features.new_zeros((num_cells, features.shape[1]))
    scattered[occupied] = features[inside][winner[occupied]]
    return scattered.view(batch_size, cells_z, cells_y, cells_x, -1).permute(0, 4, 1, 2, 3)


def radar_occupancy(
    points: Tensor,
    batch_index: Tensor,
    ref_from_ego: Tensor,
    grid: BEVGrid,
    *,
    metadata: Tensor | None = None,
    legacy: bool = False,
) -> Tensor:
    """What the radar branch of the network reads.

    Args:
        points: (N, 3) ego frame, metres, all samples concatenated.
        batch_index: (N,) integers, the sample of every point.
        ref_from_ego: (B, 4, 4) rigid.
        grid: voxels in the reference-camera frame.
        metadata: (N, D) fields of the returns; then they are scattered instead of ones.
        legacy: also occupy the voxel at each ego origin, as zero-padded clouds do (with metadata zero).

    Returns:
        (B, 1, Z, Y, X) or, with metadata, (B, D, Z, Y, X).
    """
    if legacy:
        padding = torch.arange(len(ref_from_ego), device=batch_index.device, dtype=batch_index.dtype)
        points = torch.cat([points, points.new_zeros((len(padding), 3))])
        batch_index = torch.cat([batch_index, padding])
        if metadata is not None:
            metadata = torch.cat([metadata, metadata.new_zeros((len(padding), metadata.shape[1]))])
    return voxelize_points(
        _to_ref(points, batch_index, ref_from_ego),
        grid,
        features=metadata,
        batch_index=batch_index,
        batch_size=len(ref_from_ego),
        legacy=legacy,
    )


def lidar_occupancy(
    points: Tensor,
    batch_index: Tensor,
    ref_from_ego: Tensor,
    grid: BEVGrid,
    *,
    min_distance: float = LIDAR_MIN_DISTANCE,
    legacy: bool = False,
) -> Tensor:
    """What the lidar branch of the network reads: (B, 1, Z, Y, X) occupancy.

    Args:
        points: (N, 3) ego frame, metres, all samples concatenated; within a sample in their original order.
        batch_index, ref_from_ego, grid: as for :func:`radar_occupancy`.
        min_distance: points within this distance of the ego origin are dropped.
        legacy: drop by the mask of sample 0 in every sample, and keep the zero padding that this mask lets through.
    """
    far = torch.linalg.vector_norm(points, dim=1) > min_distance
    if legacy:
        points, batch_index = _filter_by_first_sample(points, batch_index, far, len(ref_from_ego))
    else:
        points, batch_index = points[far], batch_index[far]
    return voxelize_points(
        _to_ref(points, batch_index, ref_from_ego),
        grid,
        batch_index=batch_index,
        batch_size=len(ref_from_ego),
        legacy=legacy,
    )


def _to_ref(points: Tensor, batch_index: Tensor, ref_from_ego: Tensor) -> Tensor:
    """Points (N, 3) of many samples, each moved by the matrix of its sample."""
    matrix = ref_from_ego.to(points.dtype)[batch_index.long()]
    return (matrix[:, :3, :3] @ points[:, :, None])[..., 0] + matrix[:, :3, 3]


def _first_point_per_cell(cell: Tensor, num_cells: int) -> Tensor:
    """(num_cells,) number of the first point in each cell; len(cell) where there is none. Deterministic."""
    order = torch.arange(len(cell), device=cell.device)
    first = torch.full((num_cells,), len(cell), dtype=torch.int64, device=cell.device)
    return first.scatter_reduce_(0, cell, order, "amin")


def _filter_by_first_sample(points: Tensor, batch_index: Tensor, far: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Simple-BEV's lidar filter on padded columns, expressed on concatenated clouds.

    Column j of every sample is kept if column j of sample 0 is far from the ego origin. Padding columns of sample 0 are
    not; those of a shorter sample are kept where sample 0 has a far point, and lie at the ego origin.
    """
    kept_columns = far[batch_index == 0]
    kept_points, kept_index = [], []
    for sample in range(batch_size):
        cloud = points[batch_index == sample][: len(kept_columns)]
        padded = torch.cat([cloud, cloud.new_zeros((len(kept_columns) - len(cloud), 3))])[kept_columns]
        kept_points.append(padded)
        kept_index.append(torch.full((len(padded),), sample, dtype=batch_index.dtype, device=batch_index.device))
    return torch.cat(kept_points), torch.cat(kept_index)
