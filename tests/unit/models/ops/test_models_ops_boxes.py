"""Areas and overlaps of boxes: values worked out by hand, symmetries, degenerate boxes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sensorlab.models.ops.boxes import (
    area,
    ciou,
    clip,
    cxcywh_to_xyxy,
    diou,
    giou,
    iou,
    pairwise_iof,
    pairwise_iou,
    xyxy_to_cxcywh,
)

COORDINATE = st.floats(-50, 50, width=32)
BOX = st.tuples(COORDINATE, COORDINATE, st.floats(0.125, 40, width=32), st.floats(0.125, 40, width=32))


def box(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_overlaps_worked_out_by_hand():
    a, b = box(0, 0, 4, 2), box(2, 1, 6, 5)  # common 2 x 1; union 8 + 16 - 2; hull 6 x 5
    assert float(iou(a, b)) == pytest.approx(2 / 22)
    assert float(giou(a, b)) == pytest.approx(2 / 22 - 8 / 30)
    assert float(diou(a, b)) == pytest.approx(2 / 22 - (4 + 4) / (36 + 25))
    aspect = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert float(ciou(a, b)) == pytest.approx(2 / 22 - 8 / 61 - aspect**2 / (1 - 2 / 22 + aspect))
    assert float(pairwise_iof(a[None], b[None])) == pytest.approx(2 / 8)


def test_offset_counts_the_last_pixel():
    a, b = box(0, 0, 3, 1), box(2, 1, 5, 4)
    assert float(area(a, 1)) == 8
    assert float(iou(a, b, 1)) == pytest.approx(2 / 22)
    assert float(giou(a, b, 1)) == pytest.approx(2 / 22 - 8 / 30)


def test_pairs_of_lists():
    a = torch.stack([box(0, 0, 4, 2), box(0, 0, 1, 1), box(9, 9, 10, 10)])
    b = torch.stack([box(0, 0, 2, 2), box(0, 0, 8, 8)])
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor([[0.5, 1 / 8], [0.25, 1 / 64], [0, 0]]).double())
    torch.testing.assert_close(pairwise_iof(a, b), torch.tensor([[0.5, 1.0], [1.0, 1.0], [0, 0]]).double())
    assert pairwise_iou(a[:0], b).shape == (0, 2)
    assert pairwise_iou(a, b[:0]).shape == (3, 0)


@pytest.mark.parametrize("overlap", [iou, giou, diou, ciou])
def test_equal_and_empty_boxes_are_finite_with_finite_gradients(overlap):
    boxes = torch.tensor([[0, 0, 4, 2], [3, 3, 3, 3], [5, 5, 5, 9]], dtype=torch.float32, requires_grad=True)
    values = overlap(boxes, boxes.detach())
    values.sum().backward()
    assert float(values[0].detach()) == 1
    assert torch.isfinite(values).all()
    assert boxes.grad is not None
    assert torch.isfinite(boxes.grad).all()


def test_area_of_inverted_boxes_is_zero():
    assert area(torch.stack([box(4, 0, 0, 2), box(4, 2, 0, 0)])).tolist() == [0, 0]


def test_clip_keeps_what_is_inside():
    boxes = torch.stack([box(-3, -4, 5, 6), box(7, 8, 30, 40), box(-9, 1, -2, 3)])
    assert clip(boxes, (20, 10)).tolist() == [[0, 0, 5, 6], [7, 8, 10, 20], [0, 1, 0, 3]]


@given(BOX, BOX)
def test_ranges_and_symmetry(first, second):
    a, b = (cxcywh_to_xyxy(torch.tensor(values, dtype=torch.float64)) for values in (first, second))
    for overlap in (iou, giou, diou, ciou):
        assert float(overlap(a, b)) == pytest.approx(float(overlap(b, a)), abs=1e-9)
    assert 0 <= float(iou(a, b)) <= 1 + 1e-9
    assert -1 <= float(giou(a, b)) <= float(iou(a, b)) + 1e-9
    assert float(ciou(a, b)) <= float(diou(a, b)) + 1e-9 <= float(iou(a, b)) + 2e-9


@given(BOX)
def test_conversions_are_inverse(values):
    boxes = torch.tensor([values], dtype=torch.float64)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)
