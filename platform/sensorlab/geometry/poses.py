"""Rotations and rigid transforms, for numpy arrays and torch tensors alike.

Conventions (the only place that states them): right-handed frames, metres, radians. ``a_from_b`` is the 4x4 matrix
that maps points of frame b into frame a, so transforms chain by reading: ``a_from_c = a_from_b @ b_from_c``.
Quaternions are (w, x, y, z); q and -q are the same rotation, and functions that return one return w >= 0.

Every function broadcasts over leading dimensions and returns the kind of array that it was given: numpy in float64
(float32 stays float32), torch in the tensor's own dtype and device.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

ArrayT = TypeVar("ArrayT", np.ndarray, Tensor)


def rotation_from_quaternion(quaternion: ArrayT) -> ArrayT:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) in the order w, x, y, z, normalised first.

    Raises:
        ValueError: the last dimension is not 4, or a quaternion is (nearly) zero.
    """
    if quaternion.shape[-1] != 4:
        raise ValueError(f"expected quaternions (..., 4), found shape {tuple(quaternion.shape)}")
    q = _floating(quaternion)
    norm = (q**2).sum(-1) ** 0.5
    if bool((norm < 1e-8).any()):
        raise ValueError("a quaternion of length zero is no rotation")
    w, x, y, z = (q[..., i] / norm for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return _stack([_stack(row, -1) for row in rows], -2)


def quaternion_from_rotation(rotation: ArrayT) -> ArrayT:
    """Unit quaternions (..., 4), w >= 0, of rotation matrices (..., 3, 3).

    Each of the four components can be recovered by itself up to sign from the diagonal; dividing by the largest one
    keeps the result accurate for every angle (Shepperd, 1978).
    """
    m = _floating(rotation)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    # Row i is 4 * q_i * (w, x, y, z).
    rows = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy, xz],
        [wy, xy, 1 - xx + yy - zz, yz],
        [wz, xz, yz, 1 - xx - yy + zz],
    ]
    candidates = _stack([_stack(row, -1) for row in rows], -2)
    largest = _stack([row[i] for i, row in enumerate(rows)], -1).argmax(-1)
    q = _take_row(candidates, largest)
    return _positive_w(q / ((q**2).sum(-1) ** 0.5)[..., None])


def quaternion_from_yaw(yaw: ArrayT) -> ArrayT:
    """Quaternions (..., 4) of rotations by ``yaw`` (...) radians about z."""
    half = _floating(yaw) / 2
    sin, cos = (half.sin(), half.cos()) if isinstance(half, Tensor) else (np.sin(half), np.cos(half))
    return _positive_w(_stack([cos, 0 * cos, 0 * cos, sin], -1))


def rigid(rotation: ArrayT, translation: ArrayT) -> ArrayT:
    """Homogeneous matrices (..., 4, 4) from rotations (..., 3, 3) and translations (..., 3) of equal leading shape."""
    rotation, translation = _floating(rotation), _floating(translation)
    if isinstance(rotation, Tensor):
        matrix = rotation.new_zeros((*rotation.shape[:-2], 4, 4))
    else:
        matrix = np.zeros((*rotation.shape[:-2], 4, 4), dtype=np.result_type(rotation, translation))
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def rigid_from_quaternion(quaternion: ArrayT, translation: ArrayT) -> ArrayT:
    """Homogeneous matrices (..., 4, 4) from quaternions (..., 4) and translations (..., 3)."""
    return rigid(rotation_from_quaternion(quaternion), translation)


def inverse_rigid(a_from_b: ArrayT) -> ArrayT:
    """``b_from_a`` (..., 4, 4): the transpose of the rotation and the translation seen from b.

    Exact for rotations and reflections, cheaper and better conditioned than a general inverse; wrong if it scales.
    """
    rotation = a_from_b[..., :3, :3].swapaxes(-1, -2)
    translation = -(rotation @ a_from_b[..., :3, 3:])[..., 0]
    return rigid(rotation, translation)


def transform_points(a_from_b: ArrayT, points: ArrayT) -> ArrayT:
    """Points (..., N, 3) of frame b in frame a; ``a_from_b`` is (..., 4, 4)."""
    return points @ a_from_b[..., :3, :3].swapaxes(-1, -2) + a_from_b[..., None, :3, 3]


def rotate_vectors(a_from_b: ArrayT, vectors: ArrayT) -> ArrayT:
    """Directions or velocities (..., N, 3) of frame b in the axes of frame a: rotation without translation."""
    return vectors @ a_from_b[..., :3, :3].swapaxes(-1, -2)


def wrap_angle(angle: ArrayT) -> ArrayT:
    """Angles in radians brought to [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _floating(array: ArrayT) -> ArrayT:
    """Integers become floats: float64 in numpy, torch's default dtype in torch."""
    if isinstance(array, Tensor):
        return array if array.is_floating_point() else array.to(torch.get_default_dtype())
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def _positive_w(quaternion: ArrayT) -> ArrayT:
    if isinstance(quaternion, Tensor):
        return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def _take_row(matrices: ArrayT, row: ArrayT) -> ArrayT:
    """Row ``row`` (...) of each of the (..., R, C) matrices."""
    if isinstance(matrices, Tensor):
        index = row[..., None, None].expand(*matrices.shape[:-2], 1, matrices.shape[-1])
        return torch.gather(matrices, -2, index)[..., 0, :]
    return np.take_along_axis(matrices, row[..., None, None], -2)[..., 0, :]


def _stack(parts: list[ArrayT], axis: int) -> ArrayT:
    return torch.stack(parts, axis) if isinstance(parts[0], Tensor) else np.stack(parts, axis)
