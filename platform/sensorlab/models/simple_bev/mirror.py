"""Mirroring of BEV maps, the feature-space flip augmentation of Simple-BEV.

``flip_bev`` is (B, 2) bool: mirror a sample's maps along X (``[:, 0]``, left-right) and along Z (``[:, 1]``,
front-back).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid


def flip_maps(maps: Tensor, flip_bev: Tensor | None) -> Tensor:
    """Mirror maps (B, C, Z, X). Applied twice, it gives the maps back."""
    if flip_bev is None:
        return maps
    along_x, along_z = flip_bev.reshape(-1, 2, 1, 1, 1).unbind(1)  # (B, 1, 1, 1) each
    maps = torch.where(along_x, maps.flip(-1), maps)
    return torch.where(along_z, maps.flip(-2), maps)


def mirror_poses(ref_from_camera: Tensor, flip_bev: Tensor | None, grid: BEVGrid) -> Tensor:
    """Reflect cameras (B, S, 4, 4) about the middle of the grid, so that they fill a mirrored volume.

    A lift with the result equals the mirrored lift with the input. Mirroring six matrices is free; mirroring the
    volume, the largest tensor of a step, costs four passes over it. The result is float64, as the projection is.
    """
    if flip_bev is None:
        return ref_from_camera
    reflection = torch.eye(4, dtype=torch.float64, device=ref_from_camera.device).repeat(len(flip_bev), 1, 1)
    for column, axis, bounds in ((0, 0, grid.x), (1, 2, grid.z)):
        flip = flip_bev[:, column].double()
        reflection[:, axis, axis] = 1 - 2 * flip
        reflection[:, axis, 3] = (bounds[0] + bounds[1] + 2 * grid.centroid[axis]) * flip
    return reflection[:, None] @ ref_from_camera.double()
