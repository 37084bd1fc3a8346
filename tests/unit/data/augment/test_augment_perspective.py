"""Warps of images and boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sensorlab.data.augment.perspective import PerspectiveConfig, Warp, sample_warp, warp_boxes, warp_image

STRONG = PerspectiveConfig(degrees=180.0, translate=0.6, scale=0.9, shear=30.0, perspective=0.001)
sides = st.integers(1, 40)


def _bilinear(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The definition: the output pixel (x, y) is the image at inverse (x, y), whole coordinates are pixel centres."""
    y, x = np.mgrid[: size[0], : size[1]]
    mapped = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(matrix).T
    source = mapped[..., :2] / mapped[..., 2:]
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)), constant_values=114.0)
    base = np.floor(source)
    part = (source - base)[..., None]
    out = np.zeros((*size, 3))
    for dx in (0, 1):
        for dy in (0, 1):
            column = (base[..., 0] + dx + 1).clip(0, image.shape[1] + 1).astype(int)
            row = (base[..., 1] + dy + 1).clip(0, image.shape[0] + 1).astype(int)
            weight = np.abs(1 - dx - part[..., 0, :]) * np.abs(1 - dy - part[..., 1, :])
            out += weight * padded[row, column]
    return out


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 999))
def test_pixels_follow_the_definition(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    matrix = sample_warp(generator, STRONG).matrix((height, width), (rows, columns))
    np.testing.assert_allclose(
        warp_image(image, matrix, (rows, columns)), _bilinear(image, matrix, (rows, columns)), atol=1.01
    )


def test_the_horizon_may_be_in_sight() -> None:
    image = np.random.default_rng(0).integers(0, 100, (30, 40, 3), dtype=np.uint8)  # never the fill
    matrix = np.array([[1, 0, 0], [0, 1, 0], [0.0207, 0, 1.0]])  # the image ends at x = 22, the horizon is at x = 48
    warped = warp_image(image, matrix, (30, 100))
    np.testing.assert_allclose(warped, _bilinear(image, matrix, (30, 100)), atol=1.01)
    assert (warped[:10, :20] != 114).all()
    assert (warped[:, 25:] == 114).all()


def test_an_image_out_of_sight_leaves_the_fill() -> None:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    for shift in ((500.0, 0.0), (0.0, -500.0), (-31.0, 21.0)):
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1.0]])
        assert (warp_image(image, matrix, (20, 30), fill=77) == 77).all()


def test_no_warp_is_no_copy() -> None:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    assert warp_image(image, Warp().matrix((20, 30), (20, 30)), (20, 30)) is image


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999))
def test_boxes_are_the_hull_of_their_corners(seed: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = sample_warp(generator, STRONG).matrix((50, 80), (60, 70))
    points = generator.random((6, 2, 2)) * (80, 50)
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    warped = warp_boxes(boxes, matrix, (60, 70))
    for box, got in zip(boxes, warped, strict=True):
        corners = [matrix @ (x, y, 1) for x in box[[0, 2]] for y in box[[1, 3]]]
        x, y = np.array([corner[:2] / corner[2] for corner in corners]).T
        expected = np.clip([x.min(), y.min(), x.max(), y.max()], 0, (70, 60, 70, 60))
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_behind_the_horizon_there_is_no_box() -> None:
    matrix = np.array([[1, 0, 0], [0, 1, 0], [-0.1, 0, 1.0]])  # x = 10 is the horizon
    boxes = np.array([[1.0, 1.0, 5.0, 5.0], [8.0, 1.0, 12.0, 5.0]])
    assert warp_boxes(boxes, matrix, (100, 100)).tolist() == [[1 / 0.9, 1 / 0.9, 10.0, 10.0], [0.0] * 4]


def test_images_without_boxes() -> None:
    assert warp_boxes(np.zeros((0, 4)), np.eye(3), (5, 5)).shape == (0, 4)


def test_draws_stay_in_their_ranges_and_do_not_depend_on_each_other() -> None:
    generator = np.random.default_rng(0)
    config = PerspectiveConfig(degrees=10.0, translate=0.1, scale=0.5, shear=2.0, perspective=0.001)
    warps = [sample_warp(generator, config) for _ in range(500)]
    for values, middle, half in (
        ([warp.angle for warp in warps], 0.0, 10.0),
        ([warp.scale for warp in warps], 1.0, 0.5),
        ([warp.shear[1] for warp in warps], 0.0, 2.0),
        ([warp.translate[0] for warp in warps], 0.5, 0.1),
        ([warp.perspective[0] for warp in warps], 0.0, 0.001),
    ):
        deviation = np.abs(np.array(values) - middle) / half
        assert deviation.max() <= 1 + 1e-9
        assert abs(deviation.mean() - 0.5) < 0.06
    still = sample_warp(np.random.default_rng(1), PerspectiveConfig())
    turned = sample_warp(np.random.default_rng(1), PerspectiveConfig(degrees=5.0))
    assert (still.scale, still.translate) == (turned.scale, turned.translate)


def test_a_scale_that_can_vanish_is_refused() -> None:
    with pytest.raises(ValidationError):
        PerspectiveConfig(scale=1.0)
