"""3D boxes: corners, yaw, membership of points, and the flat form used by labels and losses.

A box has a pose ``a_from_box`` (its centre is the origin, x along its length, y along its width, z along its height)
and a size (length, width, height) in metres. The flat form ``boxes3d`` (..., 7) is (x, y, z, length, width, height,
yaw) with the centre in a z-up frame and the rotation about z only. Functions take numpy arrays and torch tensors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sensorlab.geometry.poses import (
    ArrayT,
    inverse_rigid,
    quaternion_from_yaw,
    rigid_from_quaternion,
    rotation_from_quaternion,
    transform_points,
)

# Signs of the corners in the box's own axes: the four corners of the front face (+x) first, each face in the order
# top-left, top-right, bottom-right, bottom-left as seen by somebody who stands behind the box and looks along +x.
CORNER_SIGNS = (
    (1, 1, 1), (1, -1, 1), (1, -1, -1), (1, 1, -1),
    (-1, 1, 1), (-1, -1, 1), (-1, -1, -1), (-1, 1, -1),
)  # fmt: skip
# The footprint seen from above, counter-clockwise from the front left corner.
FOOTPRINT_SIGNS = ((1, 1), (-1, 1), (-1, -1), (1, -1))


def box_corners(a_from_box: ArrayT, size: ArrayT) -> ArrayT:
    """Corners (..., 8, 3) in frame a of boxes with poses (..., 4, 4) and sizes (..., 3); order of ``CORNER_SIGNS``."""
    return transform_points(a_from_box, 0.5 * size[..., None, :] * _like(CORNER_SIGNS, size))


def footprint_corners(boxes3d: ArrayT) -> ArrayT:
    """BEV corners (..., 4, 2) as x, y metres of boxes3d (..., 7), counter-clockwise from the front left one."""
    local = 0.5 * boxes3d[..., None, 3:5] * _like(FOOTPRINT_SIGNS, boxes3d)
    sin, cos = _sin_cos(boxes3d[..., 6, None])
    x = local[..., 0] * cos - local[..., 1] * sin + boxes3d[..., 0, None]
    y = local[..., 0] * sin + local[..., 1] * cos + boxes3d[..., 1, None]
    return _stack([x, y])


def points_in_box(a_from_box: ArrayT, size: ArrayT, points: ArrayT, margin: float = 0.0) -> ArrayT:
    """Which points (N, 3) of frame a lie in which boxes: (..., N) bool for poses (..., 4, 4) and sizes (..., 3).

    The surface counts as inside; ``margin`` metres are added on every side.
    """
    local = transform_points(inverse_rigid(a_from_box), points)
    x, y, z = (abs(local[..., i]) <= 0.5 * size[..., None, i] + margin for i in range(3))
    return x & y & z


def yaw_from_quaternion(quaternion: ArrayT) -> ArrayT:
    """Yaw (...) in radians of quaternions (..., 4): the heading of the rotated x axis in the x-y plane.

    Pitch and roll are ignored, not assumed zero. Undefined (returned as is from atan2) for an x axis along z.
    """
    rotation = rotation_from_quaternion(quaternion)
    return _arctan2(rotation[..., 1, 0], rotation[..., 0, 0])


def boxes3d_from_poses(a_from_box: ArrayT, size: ArrayT) -> ArrayT:
    """Flat boxes3d (..., 7) from poses (..., 4, 4) and sizes (..., 3); pitch and roll are dropped."""
    yaw = _arctan2(a_from_box[..., 1, 0], a_from_box[..., 0, 0])
    return _concatenate([a_from_box[..., :3, 3], size, yaw[..., None]])


def boxes3d_from_quaternions(center: ArrayT, size: ArrayT, quaternion: ArrayT) -> ArrayT:
    """Flat boxes3d (..., 7) from centres (..., 3), sizes (..., 3) as l, w, h and quaternions (..., 4)."""
    return _concatenate([center, size, yaw_from_quaternion(quaternion)[..., None]])


def poses_from_boxes3d(boxes3d: ArrayT) -> ArrayT:
    """Poses ``a_from_box`` (..., 4, 4) of flat boxes3d (..., 7); their sizes are ``boxes3d[..., 3:6]``."""
    return rigid_from_quaternion(quaternion_from_yaw(boxes3d[..., 6]), boxes3d[..., :3])


def _like(values: tuple[tuple[int, ...], ...], array: ArrayT) -> ArrayT:
    if isinstance(array, Tensor):
        return torch.tensor(values, dtype=array.dtype, device=array.device)
    return np.array(values, dtype=array.dtype)


def _sin_cos(angle: ArrayT) -> tuple[ArrayT, ArrayT]:
    return (angle.sin(), angle.cos()) if isinstance(angle, Tensor) else (np.sin(angle), np.cos(angle))


def _arctan2(y: ArrayT, x: ArrayT) -> ArrayT:
    return torch.atan2(y, x) if isinstance(y, Tensor) else np.arctan2(y, x)


def _stack(parts: list[ArrayT]) -> ArrayT:
    return torch.stack(parts, -1) if isinstance(parts[0], Tensor) else np.stack(parts, -1)


def _concatenate(parts: list[ArrayT]) -> ArrayT:
    return torch.cat(parts, -1) if isinstance(parts[0], Tensor) else np.concatenate(parts, -1)
