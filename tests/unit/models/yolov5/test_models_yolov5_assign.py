"""Targets of single boxes, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sensorlab.models.ops.boxes import cxcywh_to_xyxy
from sensorlab.models.yolov5.assign import LevelTargets, assign_targets, count_positives

ANCHORS = torch.tensor([[[16.0, 16.0], [64.0, 16.0]]])  # one level of stride 8
SIZE = (64, 96)


def assign(*centers_and_sizes: tuple[float, ...], max_ratio: float = 4.0) -> LevelTargets:
    boxes = cxcywh_to_xyxy(torch.tensor(centers_and_sizes, dtype=torch.float32).view(-1, 4))
    numbers = torch.arange(len(boxes))
    [level] = assign_targets(boxes, numbers + 10, numbers, ANCHORS, [8], SIZE, max_ratio)
    assert count_positives(boxes, ANCHORS, [8], SIZE, max_ratio).tolist() == [len(level)]
    return level


def cells(target: LevelTargets) -> list[tuple[int, int]]:
    """x, y of the positives of anchor 0."""
    kept = target.anchor == 0
    return list(zip(target.column[kept].tolist(), target.row[kept].tolist(), strict=True))


@pytest.mark.parametrize(
    ("center", "expected"),
    [
        ((34.0, 30.0), [(4, 3), (3, 3), (4, 4)]),  # 4.25, 3.75: left and below
        ((38.0, 26.0), [(4, 3), (4, 2), (5, 3)]),  # 4.75, 3.25: above and right
        ((36.0, 28.0), [(4, 3)]),  # exactly in the middle: no neighbour is nearer
        ((2.0, 2.0), [(0, 0)]),  # in the corner: there are no neighbours
        ((94.0, 62.0), [(11, 7)]),
        # On a line of the grid: left and above, and its own cell again as the nearest to the right and below.
        ((32.0, 24.0), [(4, 3), (3, 3), (4, 2), (4, 3), (4, 3)]),
        ((96.0, 64.0), [(11, 7)] * 3),  # on the border of the image: the last cell, whichever way
    ],
)
def test_cells_of_a_centre(center, expected):
    assert sorted(cells(assign((*center, 16.0, 16.0)))) == sorted(expected)


def test_a_conversion_error_does_not_move_a_centre_over_the_middle():
    exact, moved = assign((36.0, 28.0, 16.0, 16.0)), assign((36.00001, 27.99999, 16.0, 16.0))
    assert cells(exact) == cells(moved) == [(4, 3)]


def test_offsets_lead_back_to_the_box():
    target = assign((34.0, 30.0, 24.0, 12.0))
    center = target.boxes[:, :2] + torch.stack([target.column, target.row], dim=1)
    torch.testing.assert_close(center * 8, torch.tensor([[34.0, 30.0]]).expand(len(target), 2))
    torch.testing.assert_close(target.boxes[:, 2:] * 8, torch.tensor([[24.0, 12.0]]).expand(len(target), 2))
    assert set(target.classes.tolist()) == {10}


@pytest.mark.parametrize(
    ("size", "anchors"),
    [
        ((16.0, 16.0), {0}),  # 4 times narrower than the second: not less than 4
        ((32.0, 16.0), {0, 1}),
        ((4.0, 16.0), set()),
        ((4.1, 16.0), {0}),
        ((0.0, 16.0), set()),
    ],
)
def test_anchors_of_a_size(size, anchors):
    assert set(assign((36.0, 28.0, *size)).anchor.tolist()) == anchors


def test_order_is_by_cell_then_anchor_then_box():
    target = assign((34.0, 28.0, 32.0, 16.0), (34.0, 28.0, 32.0, 16.0))  # middle of the row: left neighbour only
    assert target.column.tolist() == [4, 4, 4, 4, 3, 3, 3, 3]
    assert target.anchor.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert target.image.tolist() == [0, 1] * 4


def test_no_boxes():
    target = assign()
    assert len(target) == 0
    assert target.boxes.shape == (0, 4)


def random_boxes(number: int) -> Tensor:
    random = torch.Generator().manual_seed(number)
    center = torch.rand(number, 2, generator=random) * torch.tensor([96.0, 64.0])
    return cxcywh_to_xyxy(torch.cat([center, torch.rand(number, 2, generator=random) * 80], dim=1))


def test_positives_stay_in_their_grid_and_within_reach():
    boxes, anchors = random_boxes(300), torch.tensor([[[12.0, 12.0]], [[40.0, 40.0]]])
    index = torch.zeros(300, dtype=torch.int64)
    levels = assign_targets(boxes, index, index, anchors, [8, 16], SIZE)
    for target, rows, columns in zip(levels, (8, 4), (12, 6), strict=True):
        assert len(target) > 100
        assert 0 <= int(target.row.min()) <= int(target.row.max()) < rows
        assert 0 <= int(target.column.min()) <= int(target.column.max()) < columns
        offset = target.boxes[:, :2]
        assert (offset >= -0.5).all()
        assert (offset <= 1.5).all()  # what 2 * sigmoid - 0.5 reaches
    counts = count_positives(boxes, anchors, [8, 16], SIZE)
    assert counts.tolist() == [len(target) for target in levels]
