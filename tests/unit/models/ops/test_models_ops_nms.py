"""Non-maximum suppression against the definition, written as a loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sensorlab.models.ops import nms as module
from sensorlab.models.ops.boxes import pairwise_iou
from sensorlab.models.ops.nms import nms


def by_definition(boxes: Tensor, scores: Tensor, threshold: float, classes: Tensor) -> list[int]:
    """Go through the boxes from the best; keep one unless a kept box of its class overlaps it by more."""
    overlap = pairwise_iou(boxes, boxes)
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(overlap[j, i] <= threshold or classes[j] != classes[i] for j in kept):
            kept.append(i)
    return kept


def crowd(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=random) * 100
    boxes = torch.cat([corner, corner + 5 + torch.rand(number, 2, generator=random) * 50], dim=1)
    scores = torch.randint(0, 50, (number,), generator=random) / 50  # many ties
    return boxes, scores, torch.randint(0, 3, (number,), generator=random)


@pytest.mark.parametrize(("number", "block"), [(0, 7), (1, 7), (2, 1), (40, 1), (40, 7), (200, 32), (200, 1024)])
def test_equals_the_definition(number, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    for seed, threshold in enumerate((0.0, 0.3, 0.6)):
        boxes, scores, classes = crowd(number, seed)
        assert nms(boxes, scores, threshold).tolist() == by_definition(boxes, scores, threshold, torch.zeros(number))
        assert nms(boxes, scores, threshold, classes=classes).tolist() == by_definition(
            boxes, scores, threshold, classes
        )


def test_a_suppressed_box_suppresses_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])  # a chain: neighbours overlap by 6/14
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.4).tolist() == [0, 2]
    assert nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.4).tolist() == [1]


def test_inclusive_suppresses_at_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU exactly 0.5
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.5, inclusive=True).tolist() == [0]


def test_offset_of_inclusive_pixels():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.5, inclusive=True, offset=1).tolist() == [0]
    assert nms(boxes, scores, 0.5, inclusive=True).tolist() == [0, 1]  # 36 / 81


def test_max_kept_takes_the_best():
    boxes, scores, _ = crowd(300, 5)
    assert nms(boxes, scores, 0.3, max_kept=4).tolist() == nms(boxes, scores, 0.3).tolist()[:4]
    assert nms(boxes, scores, 0.3, max_kept=0).tolist() == []
