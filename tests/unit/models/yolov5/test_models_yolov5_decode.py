"""Decoding and selection: inverse of the targets, what the options do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sensorlab.models.ops.boxes import cxcywh_to_xyxy
from sensorlab.models.yolov5 import COCO_ANCHORS, SelectionOptions, decode, select
from sensorlab.models.yolov5.assign import assign_targets

ANCHORS, STRIDES, SIZE = torch.tensor(COCO_ANCHORS), (8, 16, 32), (64, 96)
OPTIONS = SelectionOptions(score_threshold=0.1, iou_threshold=0.5)


def rows(*values: tuple[float, ...]) -> Tensor:
    """(1, N, 5 + C) as from ``decode``: centre, size, objectness, classes."""
    return torch.tensor([values])


def test_what_answers_for_a_box_decodes_to_it():
    boxes = torch.tensor([[10.0, 5.0, 50.0, 61.0], [60.0, 20.0, 90.0, 44.0]])
    classes, image = torch.tensor([1, 0]), torch.tensor([1, 0])
    raw = [torch.full((2, 3, 64 // s, 96 // s, 7), -20.0) for s in STRIDES]
    for level, target in zip(raw, assign_targets(boxes, classes, image, ANCHORS, STRIDES, SIZE), strict=True):
        values = torch.full((len(target), 7), -20.0)
        values[:, :2] = torch.logit((target.boxes[:, :2] + 0.5) / 2)
        values[:, 2:4] = torch.logit((target.boxes[:, 2:] / target.anchor_sizes).sqrt() / 2)
        values[:, 4] = 20.0
        values.scatter_(1, 5 + target.classes[:, None], 20.0)
        level[target.image, target.anchor, target.row, target.column] = values
    first, second = select(decode(raw, ANCHORS, STRIDES), OPTIONS)
    torch.testing.assert_close(first.boxes, boxes[1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(second.boxes, boxes[:1], atol=1e-3, rtol=0)
    assert (first.classes.tolist(), second.classes.tolist()) == ([0], [1])


def test_half_precision_is_decoded_in_float32():
    raw = [torch.zeros(1, 3, 64 // s, 96 // s, 6, dtype=torch.float16) for s in STRIDES]
    decoded = decode(raw, ANCHORS, STRIDES)
    assert decoded.dtype == torch.float32
    assert decoded[0, 0].tolist() == [4, 4, 10, 13, 0.5, 0.5]  # the middle of the first cell, the first anchor


def test_a_box_is_found_for_every_class_that_scores_enough():
    decoded = rows((50, 50, 20, 20, 1.0, 0.9, 0.6, 0.05))
    [found] = select(decoded, OPTIONS)
    assert found.classes.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6]))
    [best] = select(decoded, replace(OPTIONS, multi_label=False))
    assert best.classes.tolist() == [0]
    [agnostic] = select(decoded, replace(OPTIONS, agnostic=True))
    assert agnostic.classes.tolist() == [0]
    [wanted] = select(decoded, replace(OPTIONS, classes={1, 2}))
    assert wanted.classes.tolist() == [1]


def test_score_is_objectness_times_class_and_must_exceed_the_threshold():
    [found] = select(
        rows((50, 50, 20, 20, 0.5, 0.5), (90, 90, 20, 20, 0.5, 0.125)), replace(OPTIONS, score_threshold=0.25)
    )
    assert len(found.scores) == 0
    [found] = select(rows((50, 50, 20, 20, 0.5, 0.5)), replace(OPTIONS, score_threshold=0.2))
    assert found.scores.tolist() == [0.25]


def test_a_class_offset_mixes_boxes_that_are_farther_apart_than_it():
    decoded = rows((0.0, 0.0, 10, 10, 1.0, 0.9, 0.0), (-100.0, -100.0, 10, 10, 1.0, 0.0, 0.8))
    assert len(select(decoded, OPTIONS)[0].scores) == 2
    assert len(select(decoded, replace(OPTIONS, class_offset=100.0))[0].scores) == 1


def test_limits_keep_the_best():
    decoded = rows(*((50.0 * i, 50, 20, 20, 1.0, 0.2 + 0.1 * i) for i in range(5)))
    torch.testing.assert_close(select(decoded, replace(OPTIONS, max_detections=2))[0].scores, torch.tensor([0.6, 0.5]))
    torch.testing.assert_close(select(decoded, replace(OPTIONS, max_candidates=1))[0].scores, torch.tensor([0.6]))


def test_merged_boxes_are_means_and_alone_ones_vanish():
    decoded = rows((50, 50, 20, 20, 1.0, 0.75), (52, 50, 20, 20, 1.0, 0.25), (150, 50, 20, 20, 1.0, 0.9))
    [found] = select(decoded, replace(OPTIONS, merge=True))
    torch.testing.assert_close(found.boxes, cxcywh_to_xyxy(torch.tensor([[50.5, 50.0, 20.0, 20.0]])))
    assert found.scores.tolist() == [0.75]


def test_nothing_found():
    [found] = select(rows((50, 50, 20, 20, 0.01, 0.9)), OPTIONS)
    assert found.boxes.shape == (0, 4)
    assert select(torch.zeros(2, 0, 8), OPTIONS)[1].classes.tolist() == []
    [merged] = select(torch.zeros(1, 4, 8), replace(OPTIONS, merge=True))
    assert merged.boxes.shape == (0, 4)
