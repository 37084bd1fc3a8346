"""Groups of boxes and the pairs of them that overlap."""

from __future__ import annotations

import numpy as np
import pytest
from detection_cases import box_sets, detections_of, truths_of
from hypothesis import given, settings

from sensorlab.geometry.boxes2d import box_iof, box_iou
from sensorlab.metrics import box_sets as module
from sensorlab.metrics.box_sets import Detections, Truths, group_numbers, overlapping_pairs, rank_in_group


def test_ranking_keeps_the_order_of_equal_scores() -> None:
    rows = [(1, 0, 0.5), (0, 1, 0.9), (1, 0, 0.7), (0, 0, 0.5), (1, 0, 0.7)]
    boxes = [(image, number, [float(i), 0, 9, 9], score) for i, (image, number, score) in enumerate(rows)]
    ranked = detections_of(boxes).ranked()
    assert ranked.boxes[:, 0].tolist() == [3, 2, 4, 0, 1]
    groups = group_numbers(ranked, truths_of([]))[0]
    assert rank_in_group(groups).tolist() == [0, 0, 1, 2, 0]


@settings(max_examples=60, deadline=None)
@given(box_sets())
def test_pairs_are_those_of_a_walk_over_all_boxes(boxes: tuple[Detections, Truths]) -> None:
    detections, truths = boxes
    for per_class in (True, False):
        expected = {}
        for d, t in np.ndindex(len(detections), len(truths)):
            same = truths.classes[t] == detections.classes[d] or not per_class
            if same and truths.image[t] == detections.image[d]:
                overlap = (box_iof if truths.ignore[t] else box_iou)(detections.boxes[d], truths.boxes[t])
                if overlap >= 0.25 and overlap > 0:
                    expected[d, t] = float(overlap)
        pairs = overlapping_pairs(detections, truths, 0.25, crowd=truths.ignore, per_class=per_class)
        found = list(zip(pairs.detection.tolist(), pairs.truth.tolist(), strict=True))
        assert dict(zip(found, pairs.overlap.tolist(), strict=True)) == expected
        assert found == sorted(expected)


@pytest.mark.parametrize("budget", [1, 3, 7, 1000])
def test_pairs_do_not_depend_on_how_many_are_made_at_once(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 9, (40, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 9, (40, 2))], axis=1).tolist()
    detections = detections_of([(i % 4, 0, boxes[i], 0.5) for i in range(25)])
    truths = truths_of([(i % 5, 0, boxes[25 + i]) for i in range(15)])
    whole = overlapping_pairs(detections, truths, 0.1)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", budget)
    parts = overlapping_pairs(detections, truths, 0.1)
    assert len(whole.detection) > 10
    for name in ("detection", "truth", "overlap"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name))


def test_nothing_pairs_with_nothing() -> None:
    one = detections_of([(0, 0, [0, 0, 9, 9], 0.5)])
    for detections, truths in ((one, truths_of([])), (detections_of([]), truths_of([(0, 0, [0, 0, 9, 9])]))):
        assert len(overlapping_pairs(detections, truths, 0.0).overlap) == 0
