"""Random affine and perspective warps of an image and its boxes (the geometry of YOLOv5's ``random_perspective``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sensorlab.config import StrictModel
from sensorlab.data.augment.decode import require_rgb
from sensorlab.data.augment.filters import clip_boxes
from sensorlab.data.augment.letterbox import FILL


class PerspectiveConfig(StrictModel):
    """Half ranges of the random warp."""

    degrees: float = 0.0  # rotation, +- degrees
    translate: float = 0.1  # +- share of the output's size
    scale: float = 0.5  # factor 1 +- this
    shear: float = 0.0  # +- degrees, for each axis
    perspective: float = 0.0  # +- 1/px; 0.001 is strong


@dataclass(frozen=True)
class Warp:
    """One warp: five steps, applied from ``perspective`` upwards."""

    translate: tuple[float, float] = (0.5, 0.5)  # (x, y) where the image's centre lands, in sizes of the output
    shear: tuple[float, float] = (0.0, 0.0)  # (x, y) degrees
    scale: float = 1.0
    angle: float = 0.0  # degrees, counter-clockwise as seen on the screen
    perspective: tuple[float, float] = (0.0, 0.0)  # (x, y) 1/px

    def matrix(self, source: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """(3, 3) float64 that maps points (x, y, 1) of the source to the output: T S R P C.

        C moves the centre of the image to the origin, P is the perspective, R rotates and scales, S shears, T moves
        the origin to its place in the output.

        Args:
            source, size: (height, width) of the image and of the output, px.
        """
        center, perspective, rotation, shear, translation = (np.eye(3) for _ in range(5))
        center[:2, 2] = -source[1] / 2, -source[0] / 2
        perspective[2, :2] = self.perspective
        cosine, sine = (self.scale * f(math.radians(self.angle)) for f in (math.cos, math.sin))
        rotation[:2, :2] = (cosine, sine), (-sine, cosine)
        shear[0, 1], shear[1, 0] = (math.tan(math.radians(angle)) for angle in self.shear)
        translation[:2, 2] = self.translate[0] * size[1], self.translate[1] * size[0]
        return translation @ shear @ rotation @ perspective @ center


def sample_warp(generator: np.random.Generator, config: PerspectiveConfig) -> Warp:
    """Draws: eight uniforms in [-1, 1): perspective x, y, angle, scale, shear x, y, translation x, y.

    All are drawn whatever the ranges are, so switching one on does not change the others.
    """
    draws = generator.uniform(-1.0, 1.0, size=8).tolist()
    return Warp(
        perspective=(draws[0] * config.perspective, draws[1] * config.perspective),
        angle=draws[2] * config.degrees,
        scale=1.0 + draws[3] * config.scale,
        shear=(draws[4] * config.shear, draws[5] * config.shear),
        translate=(0.5 + draws[6] * config.translate, 0.5 + draws[7] * config.translate),
    )


def warp_image(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: int = FILL) -> np.ndarray:
    """Warp (H, W, 3) uint8 into ``size`` = (height, width), bilinear, ``fill`` outside of the image.

    Whole coordinates are pixel *centres* here, as in OpenCV, whereas boxes are warped by the same matrix in continuous
    pixels: a scale of s moves the pixels by (s - 1) / 2 px against the boxes, in the original as here.
    """
    if require_rgb(image).shape[:2] == size and np.array_equal(matrix, np.eye(3)):
        return image
    # One pixel of ``fill`` around the image, so that its border fades into it instead of ending.
    framed = np.full((image.shape[0] + 2, image.shape[1] + 2, 3), fill, dtype=np.uint8)
    framed[1:-1, 1:-1] = image
    # Pillow wants the inverse, between positions where pixel centres are at halves.
    to_centers, from_centers = np.eye(3), np.eye(3)
    to_centers[:2, 2], from_centers[:2, 2] = -0.5, 1.5  # a half for the centre, a whole for the frame
    inverse = from_centers @ np.linalg.inv(matrix) @ to_centers
    inverse /= inverse[2, 2]
    affine = not inverse[2, :2].any()
    warped = Image.fromarray(framed).transform(
        (size[1], size[0]),
        Image.Transform.AFFINE if affine else Image.Transform.PERSPECTIVE,
        inverse.ravel()[: 6 if affine else 8].tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=(fill, fill, fill),
    )
    return np.asarray(warped)


def warp_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) mapped by ``matrix`` (3, 3)."""
    mapped = points @ matrix[:, :2].T + matrix[:, 2]  # (..., 3)
    return mapped[..., :2] / mapped[..., 2:]


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The axis-aligned hull of the four warped corners of each box (N, 4), clipped to ``size`` = (height, width)."""
    corners = warp_points(boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]], matrix)  # (N, 4 corners, 2)
    return clip_boxes(np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1), size)
