"""Pinhole projection and intrinsics under resize and crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sensorlab.geometry.cameras import (
    crop_intrinsics,
    points_in_image,
    project_points,
    resize_intrinsics,
    unproject_pixels,
)

K = np.array([[1266.0, 0, 816.3], [0, 1260.0, 491.5], [0, 0, 1]])


def test_projection_by_hand() -> None:
    pixels, depth = project_points(K, np.array([[1.0, -0.5, 10.0], [0.0, 0.0, 2.0]]))
    assert np.allclose(pixels, [[816.3 + 126.6, 491.5 - 63.0], [816.3, 491.5]])
    assert np.allclose(depth, [10, 2])


def test_behind_the_camera_is_finite_and_outside() -> None:
    pixels, depth = project_points(K, np.array([[0.0, 0.0, -3.0], [0.0, 0.0, 0.0]]))
    assert np.isfinite(pixels).all()
    assert not points_in_image(pixels, depth, (900, 1600)).any()


def test_image_borders_are_half_a_pixel_outside_the_centres() -> None:
    pixels = np.array([[-0.5, 0.0], [-0.49, 0.0], [1599.49, 899.49], [1599.5, 0.0], [0.0, 899.5], [0.0, -0.5]])
    assert points_in_image(pixels, np.ones(6), (900, 1600)).tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_unprojection_inverts_projection(library: str) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-5, -5, 1], [5, 5, 50], size=(2, 20, 3))
    skewed = np.stack([K, K + np.array([[0, 3.0, 0], [0, 0, 0], [0, 0, 0]])])
    k, p = (skewed, points) if library == "numpy" else (torch.from_numpy(skewed), torch.from_numpy(points))
    pixels, depth = project_points(k, p)
    assert np.allclose(np.asarray(unproject_pixels(k, pixels, depth)), points)


def test_exact_resize_follows_the_image_content() -> None:
    """A gradient image tells where Pillow takes each pixel from: the resized image must show the same pixel values."""
    width, height, new_width, new_height = 64, 48, 16, 24
    scale = (new_width / width, new_height / height)
    ramp = np.tile(np.arange(width, dtype=np.float32), (height, 1))
    resized = np.asarray(Image.fromarray(ramp).resize((new_width, new_height), Image.Resampling.BOX))
    k = np.array([[50.0, 0, 30.0], [0, 50.0, 20.0], [0, 0, 1]])
    point = np.array([[0.3, 0.1, 4.0]])
    (source,), _ = project_points(k, point)
    (target,), _ = project_points(resize_intrinsics(k, scale), point)
    assert np.interp(target[0], np.arange(new_width), resized[0]) == pytest.approx(source[0], abs=1e-4)
    (published,), _ = project_points(resize_intrinsics(k, scale, "origin"), point)
    assert np.allclose(published, source * scale)
    assert np.allclose(published - target, (1 - np.array(scale)) / 2)


def test_crop_moves_the_principal_point_only() -> None:
    cropped = crop_intrinsics(K, 20, -7)
    (before,), _ = project_points(K, np.array([[1.0, 1.0, 5.0]]))
    (after,), _ = project_points(cropped, np.array([[1.0, 1.0, 5.0]]))
    assert np.allclose(after, before - [20, -7])
    assert K[0, 2] == 816.3  # the input is not changed


def test_batched_torch_intrinsics() -> None:
    k = torch.from_numpy(K).repeat(3, 1, 1)
    resized = crop_intrinsics(resize_intrinsics(k, (0.25, 0.25)), 4, 8)
    want = crop_intrinsics(resize_intrinsics(K, (0.25, 0.25)), 4, 8)
    assert resized.shape == (3, 3, 3)
    assert np.allclose(resized[1].numpy(), want)
