"""Where voxels fall into images: the projection behind a lift plan, in float64, on visible pairs only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import inverse_rigid

Sampling = Literal["centered", "legacy", "index"]


@dataclass(frozen=True)
class SampleMapping:
    """Image pixels to feature coordinates ("x", tested for validity) and from there to the sampled position."""

    scale: tuple[float, float]  # x = scale * u + shift, for (u, v)
    shift: tuple[float, float]
    stretch: tuple[float, float]  # position = stretch * x + offset
    offset: float

    @staticmethod
    def of(sampling: Sampling, image_size: tuple[int, int], feature_size: tuple[int, int]) -> SampleMapping:
        (height, width), (rows, columns) = image_size, feature_size
        scale = (columns / width, rows / height)
        if sampling == "centered":
            return SampleMapping(scale, (0.5 * scale[0] - 0.5, 0.5 * scale[1] - 0.5), (1.0, 1.0), 0.0)
        if sampling == "index":
            return SampleMapping(scale, (0.0, 0.0), (1.0, 1.0), 0.0)
        if min(rows, columns) < 2:
            raise ValueError(f"legacy sampling needs a feature map of at least 2x2 pixels, found {rows}x{columns}")
        return SampleMapping(scale, (0.0, 0.0), (columns / (columns - 1), rows / (rows - 1)), -0.5)

    def feature_from_ref(self, intrinsics: Tensor, ref_from_camera: Tensor) -> Tensor:
        """(S, 3, 4): reference-frame points to homogeneous feature coordinates (x * z, y * z, z)."""
        to_feature = torch.eye(3, dtype=intrinsics.dtype, device=intrinsics.device)
        for axis in range(2):
            to_feature[axis, axis] = self.scale[axis]
            to_feature[axis, 2] = self.shift[axis]
        return to_feature @ intrinsics @ inverse_rigid(ref_from_camera)[:, :3]

    def position_x(self, x: Tensor) -> Tensor:
        return x * self.stretch[0] + self.offset

    def position_y(self, y: Tensor) -> Tensor:
        return y * self.stretch[1] + self.offset


def visible_pairs(
    grid: BEVGrid, projection: Tensor, feature_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Camera, voxel (int32, ascending), feature x and y (float64) of every pair with the voxel in the image."""
    columns, rows = float(feature_size[1]) - 0.5, float(feature_size[0]) - 0.5
    x, y, z = (torch.as_tensor(c, device=projection.device) for c in grid.axis_centers())
    column, camera = _candidate_columns(projection, x, y, z, columns, rows)
    # Homogeneous coordinates of every voxel of the candidate columns: three (Q, Y) arrays.
    selected = projection[camera]
    base = (
        selected[:, :, 0] * x[column % len(x), None]
        + selected[:, :, 2] * z[column // len(x), None]
        + selected[:, :, 3]
    )  # fmt: skip
    h_x, h_y, depth = (base[:, i, None] + selected[:, i, 1, None] * y for i in range(3))
    visible = depth > 0
    for h, upper in ((h_x, columns), (h_y, rows)):
        visible &= (h > -0.5 * depth) & (h < upper * depth)
    which, level = visible.nonzero(as_tuple=True)
    depth = depth[which, level]
    voxel, order = torch.sort((column[which] * len(y) + level).int(), stable=True)
    feature_x, feature_y = ((h[which, level] / depth)[order] for h in (h_x, h_y))
    return camera[which][order], voxel, feature_x, feature_y


def _candidate_columns(
    projection: Tensor, x: Tensor, y: Tensor, z: Tensor, upper_x: float, upper_y: float
) -> tuple[Tensor, Tensor]:
    """BEV columns (z * X + x) and cameras such that the camera may see a voxel of the column; none is missed.

    A voxel is visible where five linear functions of its position are positive (in front of the camera, inside the
    four borders). Along a column each function is largest at one end, which discards most columns with one test.
    """
    sides = torch.stack(
        [
            projection[:, 2],
            projection[:, 0] + 0.5 * projection[:, 2],
            upper_x * projection[:, 2] - projection[:, 0],
            projection[:, 1] + 0.5 * projection[:, 2],
            upper_y * projection[:, 2] - projection[:, 1],
        ]
    )  # (5, S, 4)
    highest = torch.maximum(sides[..., 1] * y[0], sides[..., 1] * y[-1]) + sides[..., 3]
    possible = torch.ones((len(z), len(x), projection.shape[0]), dtype=torch.bool, device=projection.device)
    for side, constant in zip(sides, highest, strict=True):
        along_x = x[:, None] * side[:, 0] + constant
        along_z = z[:, None] * side[:, 2]
        # Not below zero by more than rounding: the exact test follows for every voxel.
        possible &= along_z[:, None] + along_x >= -1e-6
    column, camera = possible.flatten(0, 1).nonzero(as_tuple=True)
    return column, camera


def bilinear_taps(x: Tensor, y: Tensor, feature_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixels row * Wf + column (P, 4) int32 and weights (P, 4) float32 of bilinear samples at float64 positions."""
    rows, columns = feature_size
    left, top = x.floor(), y.floor()
    right_weight, bottom_weight = (x - left).float(), (y - top).float()
    left, top = left.int(), top.int()
    taps = x.new_empty((len(x), 4), dtype=torch.int32)
    weights = x.new_empty((len(x), 4), dtype=torch.float32)
    for k, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        row, column = top + down, left + right
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        weight = (bottom_weight if down else 1 - bottom_weight) * (right_weight if right else 1 - right_weight)
        weights[:, k] = weight * inside
        taps[:, k] = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
    return taps, weights
