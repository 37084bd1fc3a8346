"""Pinhole cameras: projection, and what resizing and cropping an image does to its intrinsics.

A camera frame is x right, y down, z forward (metres). Pixel centres are at integer coordinates: the image of width W
covers u from -0.5 to W - 0.5, and pixel 0 covers -0.5 to 0.5. Functions take numpy arrays and torch tensors alike.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sensorlab.geometry.poses import ArrayT

ResizeConvention = Literal["exact", "origin"]


def project_points(intrinsics: ArrayT, points: ArrayT, min_depth: float = 1e-6) -> tuple[ArrayT, ArrayT]:
    """Pixels and depths of points in the camera frame.

    Args:
        intrinsics: (..., 3, 3), pixels.
        points: (..., N, 3), camera frame, metres.
        min_depth: depths are raised to this before the division, so that points beside and behind the camera give
            finite (meaningless) pixels. Decide visibility with :func:`points_in_image`, which looks at the depth.

    Returns:
        pixels (..., N, 2) as u, v, and the true depth z (..., N), metres, negative behind the camera.
    """
    homogeneous = points @ intrinsics.swapaxes(-1, -2)
    depth = points[..., 2]
    clamped = homogeneous[..., 2:].clip(min=min_depth)
    return homogeneous[..., :2] / clamped, depth


def unproject_pixels(intrinsics: ArrayT, pixels: ArrayT, depth: ArrayT) -> ArrayT:
    """Points (..., N, 3) in the camera frame, metres, at ``depth`` (..., N) behind pixels (..., N, 2)."""
    v = (pixels[..., 1] - intrinsics[..., 1, 2, None]) / intrinsics[..., 1, 1, None]
    u = (pixels[..., 0] - intrinsics[..., 0, 2, None] - intrinsics[..., 0, 1, None] * v) / intrinsics[..., 0, 0, None]
    if isinstance(depth, Tensor):
        return torch.stack([u * depth, v * depth, depth], -1)
    return np.stack([u * depth, v * depth, depth], -1)


def points_in_image(pixels: ArrayT, depth: ArrayT, image_size: tuple[int, int], min_depth: float = 0.0) -> ArrayT:
    """Which points (..., N) fall onto the image (height, width): -0.5 < u < W - 0.5, v alike, depth > min_depth."""
    height, width = image_size
    u, v = pixels[..., 0], pixels[..., 1]
    return (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5) & (depth > min_depth)


def resize_intrinsics(intrinsics: ArrayT, scale: tuple[float, float], convention: ResizeConvention = "exact") -> ArrayT:
    """Intrinsics (..., 3, 3) of an image resized by ``scale`` = (new width / width, new height / height).

    ``exact``: the borders of the image map to the borders, so u' = (u + 0.5) * s - 0.5: f' = f * s and
    c' = (c + 0.5) * s - 0.5. This is what resampling by area, bilinear and nearest filters do (Pillow, OpenCV,
    ``F.interpolate(align_corners=False)``).

    ``origin``: u' = u * s, so c' = c * s, as Simple-BEV, Lift-Splat and many others compute it. It differs by
    (1 - s) / 2 pixels of the new image: 0.375 px for nuScenes at a quarter of its size.
    """
    scale_x, scale_y = scale
    resized = _copy(intrinsics)
    resized[..., 0, :] = intrinsics[..., 0, :] * scale_x
    resized[..., 1, :] = intrinsics[..., 1, :] * scale_y
    if convention == "exact":
        resized[..., 0, 2] += 0.5 * scale_x - 0.5
        resized[..., 1, 2] += 0.5 * scale_y - 0.5
    return resized


def crop_intrinsics(intrinsics: ArrayT, left: float, top: float) -> ArrayT:
    """Intrinsics (..., 3, 3) after cropping so that pixel (left, top) becomes pixel (0, 0). Negative values pad."""
    cropped = _copy(intrinsics)
    cropped[..., 0, 2] -= left
    cropped[..., 1, 2] -= top
    return cropped


def _copy(array: ArrayT) -> ArrayT:
    return array.clone() if isinstance(array, Tensor) else array.copy()
