"""Mosaic and MixUp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorlab.data.augment.mixup import MixupConfig, mixup, sample_mixup
from sensorlab.data.augment.mosaic import mosaic_boxes, mosaic_tiles, paste_mosaic, sample_center

SIZE = 16
sizes = st.tuples(st.integers(1, SIZE), st.integers(1, SIZE))


def _image(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, (*size, 3), dtype=np.uint8)  # never the fill


def test_four_identical_images() -> None:
    image = _image(0, (SIZE, SIZE))
    tiles = mosaic_tiles([(SIZE, SIZE)] * 4, (SIZE, SIZE), SIZE)
    assert np.array_equal(paste_mosaic([image] * 4, tiles, SIZE), np.tile(image, (2, 2, 1)))
    box = np.array([[2.0, 3.0, 7.5, 9.0]])
    shifts = [tuple(row[:2] - box[0, :2]) for row in mosaic_boxes([box] * 4, tiles, SIZE)]
    assert shifts == [(0, 0), (SIZE, 0), (0, SIZE), (SIZE, SIZE)]


@settings(max_examples=60, deadline=None)
@given(st.tuples(sizes, sizes, sizes, sizes), st.integers(0, 99))
def test_boxes_hold_the_pixels_that_they_held(shapes: tuple[tuple[int, int], ...], seed: int) -> None:
    images = [_image(index, shape) for index, shape in enumerate(shapes)]
    center = sample_center(np.random.default_rng(seed), SIZE)
    assert min(center) >= SIZE // 2
    assert max(center) < 3 * SIZE // 2
    tiles = mosaic_tiles(shapes, center, SIZE)
    canvas = paste_mosaic(images, tiles, SIZE)
    whole = [np.array([[0.0, 0.0, width, height]]) for height, width in shapes]
    boxes = mosaic_boxes(whole, tiles, SIZE)
    covered = 0
    for image, tile, box in zip(images, tiles, boxes.astype(int), strict=True):
        assert tuple(box) == tile.target
        x0, y0, x1, y1 = tile.source
        assert np.array_equal(canvas[box[1] : box[3], box[0] : box[2]], image[y0:y1, x0:x1])
        covered += (x1 - x0) * (y1 - y0)
    assert (canvas[..., 0] == 114).sum() == 4 * SIZE * SIZE - covered


def test_images_without_boxes() -> None:
    tiles = mosaic_tiles([(4, 4)] * 4, (10, 10), SIZE)
    assert mosaic_boxes([np.zeros((0, 4))] * 4, tiles, SIZE).shape == (0, 4)


def test_a_mosaic_has_four_images() -> None:
    with pytest.raises(ValueError, match="4 images, not 3"):
        mosaic_tiles([(4, 4)] * 3, (10, 10), SIZE)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.7, 1.0])
def test_mixup_blends(weight: float) -> None:
    first, second = _image(0, (5, 7)), _image(1, (5, 7))
    exact = weight * first.astype(np.float64) + (1 - weight) * second
    np.testing.assert_allclose(mixup(first, second, weight), exact - 0.5, atol=0.5001)  # truncated


def test_mixup_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="equal size"):
        mixup(_image(0, (5, 7)), _image(1, (7, 5)), 0.5)


def test_mixup_weights_are_beta() -> None:
    generator = np.random.default_rng(0)
    drawn = [sample_mixup(generator, MixupConfig(probability=0.5, beta=8.0)) for _ in range(2000)]
    weights = np.array([weight for weight in drawn if weight is not None])
    assert abs(len(weights) / 2000 - 0.5) < 0.05
    assert abs(weights.mean() - 0.5) < 0.015
    assert abs(weights.std() - 0.5 / np.sqrt(17)) < 0.01  # of Beta(a, a): 1 / (2 sqrt(2 a + 1))


def test_the_probability_does_not_change_later_draws() -> None:
    after = []
    for probability in (0.0, 1.0):
        generator = np.random.default_rng(3)
        sample_mixup(generator, MixupConfig(probability=probability))
        after.append(generator.random())
    assert after[0] == after[1]
