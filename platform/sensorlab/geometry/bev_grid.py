"""The bird's-eye-view voxel grid around a reference camera.

The grid lives in the reference-camera frame: x right, y **down**, z forward, metres. Volumes are indexed (Z, Y, X) and
BEV maps (Z, X), so row 0 is the rearmost (or nearest) row and column 0 the leftmost. Cell i of an axis covers
``minimum + i * size`` to ``minimum + (i + 1) * size``; its centre has the *voxel coordinate* i, so a point lies in the
grid if its voxel coordinates are between -0.5 and n - 0.5, and rounding them gives its cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sensorlab.geometry.poses import ArrayT


@dataclass(frozen=True)
class BEVGrid:
    """Bounds, resolution and position of a voxel grid. The defaults are those of Simple-BEV.

    Attributes:
        x, y, z: (minimum, maximum) in metres, before the centroid is added.
        cells: number of cells along (Z, Y, X).
        centroid: (x, y, z) of the grid's origin in the reference-camera frame, metres. Simple-BEV centres its grid
            1 m below the camera.
    """

    x: tuple[float, float] = (-50.0, 50.0)
    y: tuple[float, float] = (-5.0, 5.0)
    z: tuple[float, float] = (-50.0, 50.0)
    cells: tuple[int, int, int] = (200, 8, 200)
    centroid: tuple[float, float, float] = (0.0, 1.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("x", "y", "z"):
            low, high = getattr(self, name)
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"bounds of {name} must be finite and ascending, found ({low}, {high})")
        if len(self.cells) != 3 or min(self.cells) < 1:
            raise ValueError(f"cells must be three positive numbers (Z, Y, X), found {self.cells}")

    @property
    def cell_size(self) -> tuple[float, float, float]:
        """Edge lengths of one cell along x, y, z, metres."""
        cells_z, cells_y, cells_x = self.cells
        return (
            (self.x[1] - self.x[0]) / cells_x,
            (self.y[1] - self.y[0]) / cells_y,
            (self.z[1] - self.z[0]) / cells_z,
        )

    @property
    def num_voxels(self) -> int:
        return self.cells[0] * self.cells[1] * self.cells[2]

    @property
    def ref_from_voxel(self) -> np.ndarray:
        """(4, 4) float64: voxel coordinates (x, y, z) to metres in the reference-camera frame."""
        matrix = np.eye(4)
        for axis, (size, bounds, shift) in enumerate(
            zip(self.cell_size, (self.x, self.y, self.z), self.centroid, strict=True)
        ):
            matrix[axis, axis] = size
            matrix[axis, 3] = bounds[0] + 0.5 * size + shift
        return matrix

    @property
    def voxel_from_ref(self) -> np.ndarray:
        """(4, 4) float64: metres in the reference-camera frame to voxel coordinates (x, y, z)."""
        forward = self.ref_from_voxel
        matrix = np.eye(4)
        for axis in range(3):
            matrix[axis, axis] = 1 / forward[axis, axis]
            matrix[axis, 3] = -forward[axis, 3] / forward[axis, axis]
        return matrix

    def axis_centers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres of the cells along x (X,), y (Y,) and z (Z,), float64, metres in the reference-camera frame."""
        matrix = self.ref_from_voxel
        cells_z, cells_y, cells_x = self.cells
        x, y, z = (np.arange(n) * matrix[i, i] + matrix[i, 3] for i, n in enumerate((cells_x, cells_y, cells_z)))
        return x, y, z

    def voxel_centers(self) -> np.ndarray:
        """Centres (Z, Y, X, 3) as x, y, z, float64, metres in the reference-camera frame."""
        x, y, z = self.axis_centers()
        grid_z, grid_y, grid_x = np.meshgrid(z, y, x, indexing="ij")
        return np.stack([grid_x, grid_y, grid_z], -1)

    def to_voxel(self, points: ArrayT) -> ArrayT:
        """Voxel coordinates (..., 3) as x, y, z of points (..., 3) in the reference-camera frame."""
        return _scale_shift(points, self.voxel_from_ref)

    def to_ref(self, voxels: ArrayT) -> ArrayT:
        """Points (..., 3) in the reference-camera frame, metres, of voxel coordinates (..., 3) as x, y, z."""
        return _scale_shift(voxels, self.ref_from_voxel)

    def contains(self, voxels: ArrayT) -> ArrayT:
        """Which voxel coordinates (..., 3) lie inside the grid: -0.5 < v < n - 0.5 on every axis. Bool (...)."""
        cells_z, cells_y, cells_x = self.cells
        x, y, z = voxels[..., 0], voxels[..., 1], voxels[..., 2]
        inside_x = (x > -0.5) & (x < cells_x - 0.5)
        inside_y = (y > -0.5) & (y < cells_y - 0.5)
        return inside_x & inside_y & (z > -0.5) & (z < cells_z - 0.5)

    def to_cells(self, voxels: ArrayT) -> ArrayT:
        """Integer cells (..., 3) as x, y, z of voxel coordinates inside the grid: rounded, ties to the even cell.

        A coordinate just inside the far border may round to n when n is even; it belongs to the last cell.
        """
        cells_z, cells_y, cells_x = self.cells
        if isinstance(voxels, Tensor):
            upper = torch.tensor([cells_x - 1, cells_y - 1, cells_z - 1], device=voxels.device)
            return torch.minimum(voxels.round().long().clamp(min=0), upper)
        return np.clip(np.round(voxels).astype(np.int64), 0, [cells_x - 1, cells_y - 1, cells_z - 1])


def _scale_shift(points: ArrayT, matrix: np.ndarray) -> ArrayT:
    """Apply a 4x4 without rotation, in the dtype of ``points``."""
    if isinstance(points, Tensor):
        scale = torch.as_tensor(np.diagonal(matrix)[:3].copy(), dtype=points.dtype, device=points.device)
        shift = torch.as_tensor(matrix[:3, 3].copy(), dtype=points.dtype, device=points.device)
        return points * scale + shift
    return points * np.diagonal(matrix)[:3].astype(points.dtype) + matrix[:3, 3].astype(points.dtype)
