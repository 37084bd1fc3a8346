"""Letterbox, keep-ratio resize, flips, filters and rectangular batches: properties that hold for any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorlab.data.augment.filters import CandidateFilter, candidates, clip_boxes, valid_boxes
from sensorlab.data.augment.flips import FlipConfig, flip_boxes, flip_image, sample_flips
from sensorlab.data.augment.letterbox import Placement, keep_ratio, letterbox, map_back, map_boxes, place_image
from sensorlab.data.augment.rect import rectangular_batches
from sensorlab.data.augment.resize import resize_image

sides = st.integers(1, 3000)
sizes = st.tuples(sides, sides)
bounded = settings(max_examples=60, deadline=None)


def _boxes(seed: int, size: tuple[int, int], count: int = 5) -> np.ndarray:
    """Boxes (count, 4) within an image of ``size`` = (height, width)."""
    points = np.random.default_rng(seed).random((count, 2, 2)) * (size[1], size[0])
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def _plan(kind: int, source: tuple[int, int], shape: tuple[int, int]) -> Placement:
    if kind == 3:
        return keep_ratio(source, max(shape), min(shape), multiple=32)
    return letterbox(source, shape, multiple=32 if kind == 1 else None, stretch=kind == 2)


@bounded
@given(st.integers(0, 3), sizes, sizes, st.integers(0, 99))
def test_a_placement_keeps_boxes_inside_and_maps_back(
    kind: int, source: tuple[int, int], shape: tuple[int, int], seed: int
) -> None:
    plan = _plan(kind, source, shape)
    scale, offset = plan.mapping()
    boxes = _boxes(seed, source)
    placed = map_boxes(boxes, scale, offset)
    assert np.allclose(placed, clip_boxes(placed, plan.size), atol=1e-9)
    np.testing.assert_allclose(map_back(placed, scale, offset), boxes, atol=1e-9 * max(source), rtol=0)
    # All of the image lands on all of the resized image.
    whole = map_boxes(np.array([[0.0, 0.0, source[1], source[0]]]), scale, offset)
    x, y = plan.offset
    np.testing.assert_allclose(whole, [[x, y, x + plan.resized[1], y + plan.resized[0]]], rtol=1e-12)
    if kind == 1:
        assert max(plan.size[0] - plan.resized[0], plan.size[1] - plan.resized[1]) < 32
    elif kind == 3:
        assert plan.size[0] % 32 == plan.size[1] % 32 == 0
    else:
        assert plan.size == shape


@pytest.mark.parametrize(
    ("source", "shape", "resized"),
    [((1, 1), (64, 96), (64, 64)), ((1, 900), (64, 64), (1, 64)), ((900, 1), (9, 9), (9, 1))],
)
def test_pixels_of_extreme_images(source: tuple[int, int], shape: tuple[int, int], resized: tuple[int, int]) -> None:
    image = np.full((*source, 3), 200, dtype=np.uint8)
    placed = place_image(image, letterbox(source, shape))
    assert placed.shape == (*shape, 3)
    assert set(np.unique(placed)) == {114, 200}
    assert (placed[..., 0] == 200).sum() == resized[0] * resized[1]


def test_pixels_are_where_the_exact_mapping_says() -> None:
    image = np.zeros((30, 50, 3), dtype=np.uint8)
    image[10:20, 20:40] = 255
    plan = letterbox((30, 50), (95, 150))  # a scale of 3 and an odd padding of 5 rows
    assert plan.offset == (0, 2)
    assert plan.pad == (0.0, 2.5)
    left, top, right, bottom = map_boxes(np.array([[20.0, 10.0, 40.0, 20.0]]), *plan.mapping())[0]
    rows, columns = np.nonzero(place_image(image, plan, fill=0)[..., 0] > 127)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [left, top, right, bottom]


def test_a_size_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        letterbox((0, 5), (64, 64))


@bounded
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_area_keeps_the_mean(height: int, width: int, more_rows: int, more_columns: int, seed: int) -> None:
    shape = (height + more_rows, width + more_columns, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    shrunk = resize_image(image, (height, width), "area")
    np.testing.assert_allclose(shrunk.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=0.5)


def test_area_of_whole_factors_is_the_mean_of_blocks() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    blocks = image.reshape(3, 4, 5, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_image(image, (3, 5), "area"), blocks, atol=0.5)


@bounded
@given(sizes, st.booleans(), st.booleans(), st.integers(0, 99))
def test_flips_are_involutions(size: tuple[int, int], horizontal: bool, vertical: bool, seed: int) -> None:
    boxes = _boxes(seed, size)
    once = flip_boxes(boxes, size, horizontal, vertical)
    assert valid_boxes(once).all()
    assert np.array_equal(once, clip_boxes(once, size))
    np.testing.assert_allclose(flip_boxes(once, size, horizontal, vertical), boxes, atol=1e-9, rtol=0)


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
def test_flipped_boxes_hold_the_same_pixels(horizontal: bool, vertical: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    flipped = flip_image(image, horizontal, vertical)
    left, top, right, bottom = flip_boxes(np.array([[3, 1, 8, 7]]), (9, 14), horizontal, vertical)[0]
    part = flip_image(flipped[top:bottom, left:right], horizontal, vertical)
    assert np.array_equal(part, image[1:7, 3:8])


def test_flips_are_drawn_as_often_as_asked() -> None:
    generator = np.random.default_rng(0)
    drawn = np.array([sample_flips(generator, FlipConfig(horizontal=0.3, vertical=1.0)) for _ in range(2000)])
    assert drawn[:, 1].all()
    assert abs(drawn[:, 0].mean() - 0.3) < 0.04  # four standard deviations


@bounded
@given(sizes, st.integers(0, 99))
def test_clipped_boxes_are_inside(size: tuple[int, int], seed: int) -> None:
    boxes = np.random.default_rng(seed).normal(scale=2000.0, size=(20, 4))
    clipped = clip_boxes(boxes, size)
    assert (clipped >= 0).all()
    assert (clipped[:, [0, 2]] <= size[1]).all()
    assert (clipped[:, [1, 3]] <= size[0]).all()


def test_degenerate_boxes() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0, 5], [3, 0, 1, 5], [0, 0, 5, np.nan], [0, 0, 3, 2]])
    assert valid_boxes(boxes).tolist() == [True, False, False, False, True]
    assert valid_boxes(boxes, 2.0).tolist() == [False] * 5  # strictly larger


def test_every_limit_of_the_candidate_filter_is_exclusive() -> None:
    rule = CandidateFilter(min_side=2.0, max_aspect=4.0, min_area_ratio=0.25)
    after = np.array([[0, 0, 3.0, 3.0], [0, 0, 2.0, 3.0], [0, 0, 3.0, 2.0], [0, 0, 12.0, 3.0], [0, 0, 4.0, 4.0]])
    before = after.copy()
    before[4] = (0, 0, 8.0, 8.0)
    assert candidates(before, after, rule).tolist() == [True, False, False, False, False]
    assert candidates(before, after + np.array([0, 0, 0.01, 0.01]), rule).all()


def test_nothing_in_nothing_out() -> None:
    none = np.zeros((0, 4))
    assert flip_boxes(none, (5, 5), True, True).shape == (0, 4)
    assert map_boxes(none, *letterbox((5, 5), (7, 7)).mapping()).shape == (0, 4)
    assert candidates(none, none, CandidateFilter()).shape == (0,)


@bounded
@given(st.lists(sizes, min_size=1, max_size=20), st.integers(1, 7), st.integers(2, 20))
def test_rectangular_batches_hold_their_images(images: list[tuple[int, int]], batch_size: int, strides: int) -> None:
    size = 32 * strides
    plan = rectangular_batches(np.array(images), size, batch_size, pad=0.0)
    assert sorted(plan.order.tolist()) == list(range(len(images)))
    assert (plan.shapes % 32 == 0).all()
    assert plan.shapes.max() <= size
    for place, image in enumerate(plan.order):
        height, width = images[image]
        need = np.array([height, width]) * size / max(height, width)
        assert (need <= plan.shapes[plan.batch[place]] + 1e-6).all()
