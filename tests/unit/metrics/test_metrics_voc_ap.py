"""VOC's average precision: against a plain walk over the boxes, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from detection_cases import NUM_CLASSES, box_sets, detections_of, truths_of
from hypothesis import given, settings

from sensorlab.geometry.boxes2d import box_iou
from sensorlab.metrics.box_sets import Detections, Truths
from sensorlab.metrics.voc_ap import Interpolation, average_precision, voc_ap

BOX = [0.0, 0.0, 50.0, 50.0]


def _walk(detections: Detections, truths: Truths, number: int, threshold: float) -> float:
    """The development kit's loop over the detections of one class, in score order."""
    mine = np.flatnonzero(truths.classes == number)
    total = int((~truths.ignore[mine]).sum())
    chosen = np.flatnonzero(detections.classes == number)
    order = sorted(chosen, key=lambda d: (-detections.scores[d], detections.image[d], d))
    taken: set[int] = set()
    recall, precision, found, seen = [], [], 0, 0
    for d in order:
        best, overlap = -1, 0.0
        for t in mine[truths.image[mine] == detections.image[d]]:
            value = float(box_iou(detections.boxes[d], truths.boxes[t]))
            if value > overlap:
                best, overlap = t, value
        if overlap > threshold and truths.ignore[best]:
            continue
        seen += 1
        if overlap > threshold and best not in taken:
            taken.add(best)
            found += 1
        recall.append(found / max(total, 1))
        precision.append(found / seen)
    if not total:
        return float("nan")
    area, before = 0.0, 0.0
    for i, value in enumerate(recall):
        area += (value - before) * max(precision[i:])
        before = value
    return area


@settings(max_examples=100, deadline=None)
@given(box_sets())
def test_random_boxes_score_as_by_a_walk(boxes: tuple[Detections, Truths]) -> None:
    result = voc_ap(*boxes, NUM_CLASSES, thresholds=(0.25, 0.5))
    expected = [[_walk(*boxes, number, threshold) for threshold in (0.25, 0.5)] for number in range(NUM_CLASSES)]
    np.testing.assert_allclose(result.average_precision, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("interpolation", "expected"),
    # Precision 1 to recall .3, .75 to .6; recalls .0 .1 .2 .3 and .4 .5 .6.
    [("area", 0.3 * 1 + 0.3 * 0.75), ("11-point", (4 * 1 + 3 * 0.75) / 11)],
)
def test_both_interpolations_by_hand(interpolation: Interpolation, expected: float) -> None:
    recall = np.array([1, 2, 3, 3, 3, 4, 5, 6]) / 10
    precision = np.array([1, 1, 1, 3 / 4, 3 / 5, 4 / 6, 5 / 7, 6 / 8])
    assert average_precision(recall, precision, interpolation) == pytest.approx(expected)


@pytest.mark.parametrize(("comparison", "expected"), [(">", 0.0), (">=", 1.0)])
def test_an_overlap_on_the_threshold(comparison, expected: float) -> None:
    half = detections_of([(0, 0, [0.0, 0.0, 25.0, 50.0], 0.9)])
    assert voc_ap(half, truths_of([(0, 0, BOX)]), 1, comparison=comparison).summary() == {"ap50": expected}


def test_a_detection_tries_its_best_truth_only() -> None:
    truths = truths_of([(0, 0, BOX), (0, 0, [10.0, 0.0, 60.0, 50.0])])
    both = detections_of([(0, 0, BOX, 0.9), (0, 0, [1.0, 0.0, 51.0, 50.0], 0.8)])
    assert voc_ap(both, truths, 1).summary() == {"ap50": 0.5}


@pytest.mark.parametrize(("order", "expected"), [((0, 1), 1.0), ((1, 0), 0.5)])
def test_of_equal_overlaps_the_first_truth_is_tried(order: tuple[int, int], expected: float) -> None:
    """The first detection lies between two truths, the second one on the right truth."""
    boxes = [[0.0, 0.0, 20.0, 10.0], [10.0, 0.0, 30.0, 10.0]]
    truths = truths_of([(0, 0, boxes[i]) for i in order])
    detections = detections_of([(0, 0, [5.0, 0.0, 25.0, 10.0], 0.9), (0, 0, [12.0, 0.0, 32.0, 10.0], 0.8)])
    assert voc_ap(detections, truths, 1).summary() == {"ap50": expected}


def test_difficult_truths_count_neither_way() -> None:
    truths = truths_of([(0, 0, BOX), (0, 0, [100.0, 100.0, 150.0, 150.0])], ignore=[1])
    found = [(0, 0, [100.0, 100.0, 150.0, 150.0], 0.9), (0, 0, [101.0, 100.0, 150.0, 150.0], 0.8), (0, 0, BOX, 0.5)]
    assert voc_ap(detections_of(found), truths, 1).summary() == {"ap50": 1.0}
    assert voc_ap(detections_of(found[:2]), truths, 1).summary() == {"ap50": 0.0}


def test_names_curves_and_nothing() -> None:
    truths = truths_of([(0, 0, BOX), (1, 0, BOX)])
    result = voc_ap(detections_of([(0, 0, BOX, 0.9)]), truths, 2, thresholds=(0.5, 0.75))
    assert result.summary() == {"ap50": 0.5, "ap75": 0.5}
    assert result.pr_curve[0].tolist() == [1.0] * 51 + [0.0] * 50
    assert np.isnan(result.pr_curve[1]).all()
    assert result.ap()[0] == 0.5
    assert math.isnan(result.ap()[1])
    assert result.truths().tolist() == [2, 0]
    nothing = voc_ap(detections_of([]), truths_of([]), 2)
    assert math.isnan(nothing.summary()["ap50"])
