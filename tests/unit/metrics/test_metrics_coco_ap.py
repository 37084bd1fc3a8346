"""COCO's average precision: against pycocotools on random boxes, and by hand where it is not installed."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from detection_cases import NUM_CLASSES, box_sets, detections_of, truths_of
from hypothesis import given, settings

from sensorlab.bench.detection_metrics import coco_tables, random_boxes
from sensorlab.metrics.box_sets import Detections, Truths
from sensorlab.metrics.coco_ap import COCOResult, coco_ap

BOX = [0.0, 0.0, 50.0, 50.0]
SHIFTED = [10.0, 0.0, 60.0, 50.0]  # IoU 2/3 with BOX


def _pycocotools(
    detections: Detections, truths: Truths, num_classes: int, limits: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision (T, R, C, A) with the last limit and recall (T, C, A, L), NaN for -1; the twelve numbers."""
    COCO = pytest.importorskip("pycocotools.coco").COCO
    COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        tables = [COCO(), COCO()]
        for table, content in zip(tables, coco_tables(detections, truths, num_classes), strict=True):
            table.dataset = content
            table.createIndex()
        evaluation = COCOeval(*tables, "bbox")
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = (evaluation.eval["precision"][..., -1], evaluation.eval["recall"], evaluation.stats)
    precision, recall, stats = (np.where(value == -1, np.nan, value) for value in values)
    return precision, recall, stats


def _assert_equal(
    result: COCOResult, detections: Detections, truths: Truths, num_classes: int, limits: tuple[int, ...]
) -> None:
    precision, recall, stats = _pycocotools(detections, truths, num_classes, limits)
    np.testing.assert_allclose(result.precision, precision, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.recall, recall, rtol=0, atol=1e-9)
    if limits == (1, 10, 100):
        np.testing.assert_allclose(list(result.summary().values()), stats, rtol=0, atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(box_sets())
def test_random_boxes_score_as_in_pycocotools(boxes: tuple[Detections, Truths]) -> None:
    detections, truths = boxes
    if len(detections) or len(truths):  # pycocotools refuses an evaluation without images
        _assert_equal(coco_ap(detections, truths, NUM_CLASSES), detections, truths, NUM_CLASSES, (1, 10, 100))


@settings(max_examples=30, deadline=None)
@given(box_sets())
def test_limits_score_as_in_pycocotools(boxes: tuple[Detections, Truths]) -> None:
    detections, truths = boxes
    if len(detections) or len(truths):
        result = coco_ap(detections, truths, NUM_CLASSES, limits=(1, 2, 3))
        _assert_equal(result, detections, truths, NUM_CLASSES, (1, 2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_many_boxes_score_as_in_pycocotools(seed: int) -> None:
    detections, truths = random_boxes(12, 150, 20, 2, seed)
    result = coco_ap(detections, truths, 2)
    assert 0.02 < result.summary()["ap"] < 0.9
    _assert_equal(result, detections, truths, 2, (1, 10, 100))


def _ap50(detections: Detections, truths: Truths, **settings: bool) -> float:
    return coco_ap(detections, truths, 1, **settings).summary()["ap50"]


def test_perfect_detections() -> None:
    summary = coco_ap(detections_of([(0, 0, BOX, 0.9)]), truths_of([(0, 0, BOX)]), 1).summary()
    assert summary.pop("ap_small"), summary.pop("ap_large")
    assert {name: value for name, value in summary.items() if not math.isnan(value)} == {
        "ap": 1.0, "ap50": 1.0, "ap75": 1.0, "ap_medium": 1.0, "ar1": 1.0, "ar10": 1.0, "ar100": 1.0, "ar_medium": 1.0,
    }  # fmt: skip


def test_thresholds_count_one_by_one() -> None:
    """An IoU of 2/3 passes .5, .55, .6 and .65."""
    summary = coco_ap(detections_of([(0, 0, SHIFTED, 0.9)]), truths_of([(0, 0, BOX)]), 1).summary()
    assert (summary["ap"], summary["ap50"], summary["ap75"]) == (pytest.approx(0.4), 1.0, 0.0)


def test_wrong_detections_before_and_after_the_right_one() -> None:
    truths = truths_of([(0, 0, BOX)])
    wrong, right = (0, 0, [200.0, 200.0, 250.0, 250.0]), (0, 0, BOX)
    assert _ap50(detections_of([(*right, 0.9), (*wrong, 0.5)]), truths) == 1.0
    assert _ap50(detections_of([(*right, 0.5), (*wrong, 0.9)]), truths) == 0.5
    assert _ap50(detections_of([(*right, 0.9), (*right, 0.8)]), truths) == 1.0  # the double comes after full recall
    # In a second image without any truth it is as wrong.
    assert _ap50(detections_of([(*right, 0.5), (1, 0, BOX, 0.9)]), truths) == 0.5


def test_a_detection_may_take_its_second_choice() -> None:
    """The better of two overlapping truths is gone: the second detection takes the other one, unlike in VOC."""
    truths = truths_of([(0, 0, BOX), (0, 0, SHIFTED)])
    both = detections_of([(0, 0, BOX, 0.9), (0, 0, [1.0, 0.0, 51.0, 50.0], 0.8)])
    assert _ap50(both, truths) == 1.0


@pytest.mark.parametrize(("order", "expected"), [((0, 1), 51 / 101), ((1, 0), 1.0)])
def test_of_equal_overlaps_the_later_truth_is_taken(order: tuple[int, int], expected: float) -> None:
    """The first detection lies between two truths, the second one on the right truth."""
    boxes = [[0.0, 0.0, 20.0, 10.0], [10.0, 0.0, 30.0, 10.0]]
    truths = truths_of([(0, 0, boxes[i]) for i in order])
    detections = detections_of([(0, 0, [5.0, 0.0, 25.0, 10.0], 0.9), (0, 0, [12.0, 0.0, 32.0, 10.0], 0.8)])
    assert _ap50(detections, truths) == pytest.approx(expected)
    _assert_equal(coco_ap(detections, truths, 1), detections, truths, 1, (1, 10, 100))


def test_crowds() -> None:
    """Two detections inside a crowd count as nothing; on an ignored object only one is excused, and by its IoU."""
    truths = truths_of([(0, 0, BOX), (0, 0, [100.0, 100.0, 300.0, 300.0])], ignore=[1])
    inside = [(0, 0, [110.0, 110.0, 140.0, 140.0], 0.9), (0, 0, [150.0, 110.0, 190.0, 140.0], 0.8)]
    whole = [(0, 0, [100.0, 100.0, 300.0, 300.0], 0.9), (0, 0, [100.0, 100.0, 300.0, 290.0], 0.8)]
    found = [(0, 0, BOX, 0.5)]
    assert _ap50(detections_of(inside + found), truths) == 1.0
    assert _ap50(detections_of(inside + found), truths, crowds=False) == pytest.approx(1 / 3)
    assert _ap50(detections_of(whole + found), truths) == 1.0
    assert _ap50(detections_of(whole + found), truths, crowds=False) == 0.5


def test_sizes_go_by_the_annotated_area() -> None:
    truths = truths_of([(0, 0, BOX)])
    small = Truths(truths.image, truths.boxes, truths.classes, truths.ignore, np.array([32.0**2]))
    summary = coco_ap(detections_of([(0, 0, BOX, 0.9)]), small, 1).summary()
    assert (summary["ap_small"], summary["ap_medium"]) == (1.0, 1.0)  # the border belongs to both
    assert math.isnan(summary["ap_large"])


def test_nothing_at_all_is_nan_and_nothing_found_is_zero() -> None:
    nothing = coco_ap(detections_of([]), truths_of([]), 2)
    assert all(math.isnan(value) for value in nothing.summary().values())
    missed = coco_ap(detections_of([]), truths_of([(0, 1, BOX)]), 2)
    assert missed.summary()["ap"] == missed.summary()["ar100"] == 0.0
    assert np.isnan(missed.ap()).tolist() == [True, False]
    assert missed.truths().tolist() == [0, 1]
    only_wrong = coco_ap(detections_of([(0, 0, BOX, 0.9)]), truths_of([]), 2)
    assert math.isnan(only_wrong.summary()["ap"])


def test_a_threshold_that_was_not_measured() -> None:
    result = coco_ap(detections_of([]), truths_of([(0, 0, BOX)]), 1, thresholds=(0.3, 0.5))
    assert list(result.summary())[:3] == ["ap", "ap50", "ap_small"]
    with pytest.raises(ValueError, match=r"IoU 0\.75 is none of the thresholds 0\.3, 0\.5"):
        result.ap(0.75)
