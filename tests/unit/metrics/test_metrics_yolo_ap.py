"""YOLOv5's two average precisions: matching against plain walks over the boxes, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from detection_cases import NUM_CLASSES, box_sets, detections_of, truths_of
from hypothesis import given, settings

from sensorlab.geometry.boxes2d import box_iou
from sensorlab.metrics.box_sets import Detections, Truths, take
from sensorlab.metrics.coco_ap import IOU_THRESHOLDS
from sensorlab.metrics.yolo_ap import (
    RULES,
    Definition,
    correct_detections,
    fitness,
    over_scores,
    sampled_precision,
    smooth,
    yolo_ap,
)

BOX = [0.0, 0.0, 50.0, 50.0]
ERAS: tuple[Definition, ...] = ("yolov5-v3", "yolov5-v7")


def _overlaps(detections: Detections, truths: Truths) -> np.ndarray:
    """(M, N) IoU; -1 for pairs of different images or classes."""
    iou = box_iou(detections.boxes[:, None], truths.boxes[None])
    same = detections.image[:, None] == truths.image
    return np.where(same & (detections.classes[:, None] == truths.classes), iou, -1.0)


def _walk_v3(iou: np.ndarray) -> np.ndarray:
    correct, gone = np.zeros((len(IOU_THRESHOLDS), len(iou)), bool), set()
    for d, row in enumerate(iou):
        if len(row) and row.max() > 0.5 and int(row.argmax()) not in gone:
            gone.add(int(row.argmax()))
            correct[:, d] = row.max() > np.array(IOU_THRESHOLDS)
    return correct


def _walk_v7(iou: np.ndarray) -> np.ndarray:
    correct = np.zeros((len(IOU_THRESHOLDS), len(iou)), bool)
    for level, threshold in enumerate(IOU_THRESHOLDS):
        pairs = sorted(((-iou[d, t], t, d) for d, t in zip(*np.nonzero(iou >= threshold), strict=True)))
        choice: dict[int, int] = {}
        for _, t, d in pairs:  # the pair of the highest overlap is the one that a detection keeps
            choice.setdefault(d, t)
        taken: set[int] = set()
        for d in sorted(choice):
            correct[level, d] = choice[d] not in taken
            taken.add(choice[d])
    return correct


@pytest.mark.parametrize(("era", "walk"), [("yolov5-v3", _walk_v3), ("yolov5-v7", _walk_v7)])
@settings(max_examples=80, deadline=None)
@given(boxes=box_sets())
def test_matches_are_those_of_a_walk(era: Definition, walk, boxes: tuple[Detections, Truths]) -> None:
    detections, truths = boxes[0].ranked(), take(boxes[1], ~boxes[1].ignore)
    assert np.array_equal(correct_detections(detections, truths, RULES[era]), walk(_overlaps(detections, truths)))


@pytest.mark.parametrize("era", ERAS)
@settings(max_examples=40, deadline=None)
@given(boxes=box_sets())
def test_scores_stay_in_their_range_and_ignored_truths_do_not_exist(
    era: Definition, boxes: tuple[Detections, Truths]
) -> None:
    detections, truths = boxes
    result = yolo_ap(detections, truths, NUM_CLASSES, rules=RULES[era])
    fewer = yolo_ap(detections, take(truths, ~truths.ignore), NUM_CLASSES, rules=RULES[era])
    np.testing.assert_equal(result.summary(), fewer.summary())
    counted = np.bincount(truths.classes[~truths.ignore], minlength=NUM_CLASSES)
    assert result.truths().tolist() == counted.tolist()
    for values in result.per_class().values():
        assert np.array_equal(np.isnan(values), counted == 0)
        assert ((values[counted > 0] >= 0) & (values[counted > 0] <= 1 + 1e-12)).all()


def test_the_definitions_differ_where_the_first_detection_is_the_worse_one() -> None:
    """At .5 the first detection takes the truth. v3 gives it away for good; v7 asks again at each threshold."""
    truths = truths_of([(0, 0, BOX)])
    found = detections_of([(0, 0, [0.0, 0.0, 31.0, 50.0], 0.9), (0, 0, BOX, 0.8)]).ranked()  # IoU .62 and 1
    old, new = (correct_detections(found, truths, RULES[era]) for era in ERAS)
    assert old.tolist() == [[True, False]] * 3 + [[False, False]] * 7
    assert new.tolist() == [[True, False]] * 3 + [[False, True]] * 7


def test_an_overlap_on_the_lowest_threshold_counts_in_v7_only() -> None:
    half, truths = detections_of([(0, 0, [0.0, 0.0, 25.0, 50.0], 0.9)]), truths_of([(0, 0, BOX)])
    ap50 = [yolo_ap(half, truths, 1, rules=RULES[era]).summary()["ap50"] for era in ERAS]
    assert ap50 == [0.0, pytest.approx(0.995)]  # v7 falls from 1 at recall .99.. to 0 at 1: half a step is lost


def test_the_tail_beyond_the_last_recall() -> None:
    recall, precision = np.array([0.25, 0.5]), np.array([1.0, 0.8])
    cut, linear = (sampled_precision(recall, precision, tail) for tail in ("cut", "linear"))
    assert cut[[0, 25, 50, 51, 100]].tolist() == pytest.approx([1.0, 1.0, 0.8, 0.0, 0.0])
    assert linear[[0, 25, 50, 75, 100]].tolist() == pytest.approx([1.0, 1.0, 0.8, 0.4, 0.0])
    assert not sampled_precision(recall[:0], precision[:0], "linear").any()


def test_precision_and_recall_over_the_score() -> None:
    scores, precision, recall = np.array([0.8, 0.6]), np.array([1.0, 0.5]), np.array([0.5, 0.5])
    assert over_scores(np.array([0.9, 0.8, 0.7, 0.1]), scores, precision, recall).tolist() == [
        [1.0, 1.0, pytest.approx(0.75), 0.5],
        [0.0, 0.5, 0.5, 0.5],
    ]
    assert over_scores(0.9, scores, precision, recall, held=True).tolist() == [1.0, 0.5]


def test_operating_points() -> None:
    """One right detection of score .9, one wrong of .3: v3 reads below both, v7 where the wrong one is left out."""
    truths = truths_of([(0, 0, BOX)])
    found = detections_of([(0, 0, BOX, 0.9), (0, 0, [200.0, 200.0, 250.0, 250.0], 0.3)])
    old, new = (yolo_ap(found, truths, 1, rules=RULES[era]) for era in ERAS)
    assert (old.summary()["precision"], old.summary()["recall"], old.operating_score) == (0.5, 1.0, 0.1)
    assert 0.75 < new.operating_score < 0.9  # smoothing moves it off the border
    assert new.summary()["precision"] == pytest.approx(0.5 + 0.5 * (new.operating_score - 0.3) / 0.6)
    assert new.summary()["recall"] == 1.0
    assert [value.tolist() for value in new.matches()] == [[1.0], [0.0]]
    assert old.f1[0] == pytest.approx(2 / 3)


def test_smoothing_keeps_constants_and_the_length() -> None:
    assert smooth(np.full(50, 0.3), 0.1) == pytest.approx(np.full(50, 0.3))
    step = smooth((np.arange(20) >= 10).astype(float), 0.1)  # 3 wide
    assert step[8:12] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_fitness_and_nothing() -> None:
    assert fitness(0.5, 0.3) == pytest.approx(0.32)
    for era in ERAS:
        nothing = yolo_ap(detections_of([]), truths_of([]), 2, rules=RULES[era])
        assert all(math.isnan(value) for value in nothing.summary().values())
        missed = yolo_ap(detections_of([]), truths_of([(0, 1, BOX)]), 2, rules=RULES[era])
        assert missed.summary() == {"precision": 0, "recall": 0, "ap50": 0, "ap": 0, "fitness": 0}
