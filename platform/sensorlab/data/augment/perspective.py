"""Random affine and perspective warps of an image and its boxes (the geometry of YOLOv5's ``random_perspective``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import Field

from sensorlab.config import StrictModel
from sensorlab.data.augment.decode import require_rgb
from sensorlab.data.augment.filters import clip_boxes
from sensorlab.data.augment.letterbox import FILL


class PerspectiveConfig(StrictModel):
    """Half ranges of the random warp."""

    degrees: float = Field(default=0.0, ge=0, le=180)  # rotation, +- degrees
    translate: float = Field(default=0.1, ge=0)  # +- share of the output's size
    scale: float = Field(default=0.5, ge=0, lt=1)  # factor 1 +- this
    shear: float = Field(default=0.0, ge=0, lt=90)  # +- degrees, for each axis
    perspective: float = Field(default=0.0, ge=0)  # +- 1/px; 0.001 is strong


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
    # Positions of the output -> positions of the image, both continuous: pixel centres are at halves.
    half = np.eye(3)
    half[:2, 2] = 0.5
    inverse = half @ np.linalg.inv(matrix) @ np.linalg.inv(half)
    part, (x, y) = _needed_part(image, inverse, size, fill)
    move = np.eye(3)
    move[:2, 2] = -x, -y
    inverse = move @ inverse
    inverse /= inverse[2, 2]
    affine = not inverse[2, :2].any()
    warped = Image.fromarray(part).transform(
        (size[1], size[0]),
        Image.Transform.AFFINE if affine else Image.Transform.PERSPECTIVE,
        inverse.ravel()[: 6 if affine else 8].tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=(fill, fill, fill),
    )
    return np.asarray(warped)


def _needed_part(
    image: np.ndarray, inverse: np.ndarray, size: tuple[int, int], fill: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """The window of the image that a warp reads, and its (x, y) in the image.

    Where it touches the border of the image it has one more pixel of ``fill``, so that the border fades into it as in
    OpenCV instead of ending.
    """
    height, width = image.shape[:2]
    corners = np.array([(0, 0, 1), (size[1], 0, 1), (size[1], size[0], 1), (0, size[0], 1)]) @ inverse.T  # (4, 3)
    x0, y0, x1, y1 = -1, -1, width + 1, height + 1  # the image with its frame
    if (corners[:, 2] > 0).all():  # else the horizon is in sight, and the output is not the hull of its corners
        seen = corners[:, :2] / corners[:, 2:]
        lowest, highest = np.floor(seen.min(axis=0)) - 1, np.ceil(seen.max(axis=0)) + 1
        # At least one pixel, where the warp sees nothing of the image: that one is of the frame.
        x0, y0 = int(lowest[0].clip(-1, width)), int(lowest[1].clip(-1, height))
        x1, y1 = int(highest[0].clip(x0 + 1, width + 1)), int(highest[1].clip(y0 + 1, height + 1))
    inner = image[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    if inner.shape[:2] == (y1 - y0, x1 - x0):
        return np.ascontiguousarray(inner), (x0, y0)
    framed = np.full((y1 - y0, x1 - x0, 3), fill, dtype=np.uint8)
    top, left = max(-y0, 0), max(-x0, 0)
    framed[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return framed, (x0, y0)


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The axis-aligned hull of the four warped corners of each box (N, 4), clipped to ``size`` = (height, width).

    A box that reaches behind the horizon of a strong perspective has no hull and becomes (0, 0, 0, 0).
    """
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # (N, 4 corners, 2)
    mapped = corners @ matrix[:, :2].T + matrix[:, 2]  # (N, 4, 3)
    in_front = (mapped[..., 2] > 0).all(axis=1)
    points = mapped[..., :2] / np.where(in_front[:, None], mapped[..., 2], 1.0)[..., None]
    hull = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)  # (N, 4)
    return np.where(in_front[:, None], clip_boxes(hull, size), 0.0)
