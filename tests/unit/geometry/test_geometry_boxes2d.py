"""Overlaps of boxes in images."""

from __future__ import annotations

import numpy as np
import pytest

from sensorlab.geometry.boxes2d import box_area, box_iof, box_iou, intersection_area, pairwise_iof, pairwise_iou

UNIT = np.array([0.0, 0.0, 10.0, 10.0])


@pytest.mark.parametrize(
    ("other", "common", "iou", "inside"),
    [
        ([0, 0, 10, 10], 100, 1.0, 1.0),
        ([5, 0, 15, 10], 50, 50 / 150, 0.5),
        ([5, 5, 15, 15], 25, 25 / 175, 0.25),
        ([2, 2, 4, 4], 4, 4 / 100, 0.04),
        ([10, 0, 20, 10], 0, 0.0, 0.0),  # they touch
        ([30, 30, 40, 40], 0, 0.0, 0.0),  # apart in both directions: two negative sides have no area
        ([3, 3, 3, 9], 0, 0.0, 0.0),  # no area
    ],
)
def test_known_overlaps(other: list[float], common: float, iou: float, inside: float) -> None:
    box = np.array(other, float)
    assert intersection_area(UNIT, box) == intersection_area(box, UNIT) == common
    assert box_iou(UNIT, box) == pytest.approx(iou)
    assert box_iof(UNIT, box) == pytest.approx(inside)


def test_borders_that_are_the_last_pixel_inside() -> None:
    assert box_area(UNIT, extent=1) == 121
    assert box_iou(UNIT, np.array([5.0, 0, 15, 10]), extent=1) == pytest.approx(66 / 176)


def test_a_box_without_area_overlaps_nothing() -> None:
    empty = np.array([[3.0, 3, 3, 3]])
    assert box_area(empty).tolist() == [0]
    assert box_area(np.array([5.0, 5, 3, 9])) == 0  # left and right exchanged
    assert pairwise_iou(empty, empty).tolist() == [[0]]
    assert pairwise_iof(empty, UNIT[None]).tolist() == [[0]]


def test_every_box_with_every_other() -> None:
    random = np.random.default_rng(0)
    a, b = (np.sort(random.uniform(0, 50, (count, 2, 2)), axis=1).reshape(count, 4) for count in (4, 7))
    iou, inside = pairwise_iou(a, b), pairwise_iof(a, b)
    assert iou.shape == inside.shape == (4, 7)
    for row, column in np.ndindex(4, 7):
        assert iou[row, column] == box_iou(a[row], b[column])
        assert inside[row, column] == box_iof(a[row], b[column])
    assert (inside >= iou).all()
    assert pairwise_iou(a, b[:0]).shape == (4, 0)


def test_whole_numbers_and_single_precision_are_computed_in_float64() -> None:
    box = np.array([[0, 0, 3, 7]], np.int32)
    assert box_area(box).dtype == box_iou(box.astype(np.float32), box).dtype == np.float64
    assert box_area(box)[0] == 21
