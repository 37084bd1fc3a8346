"""Small sets of boxes for tests of detection metrics: made by hypothesis, or written by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from sensorlab.geometry.boxes2d import box_area
from sensorlab.metrics.box_sets import Detections, Truths

NUM_CLASSES = 3  # the last one has no truth
GRID = 16  # px: boxes of 2 x 2 and 6 x 6 cells lie on the borders of COCO's sizes exactly

_box = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 7), st.integers(0, 7))
_place = st.tuples(st.integers(0, 2), st.integers(0, 1))  # image, class
_truth = st.tuples(_place, _box, st.sampled_from([False, False, False, True]), st.sampled_from([0.4, 1.0, 1.0]))
_found = st.tuples(_place, _box, st.integers(0, 6), st.booleans())


def truths_of(rows: list[tuple[int, int, list[float]]], ignore: list[int] | None = None) -> Truths:
    """From rows (image, class, xyxy); ``ignore`` are positions."""
    image, classes, boxes = _columns(rows)
    flags = np.isin(np.arange(len(rows)), ignore or [])
    return Truths(image, boxes, classes, flags, box_area(boxes))


def detections_of(rows: list[tuple[int, int, list[float], float]]) -> Detections:
    """From rows (image, class, xyxy, score)."""
    image, classes, boxes = _columns([row[:3] for row in rows])
    return Detections(image, boxes, np.array([row[3] for row in rows], float), classes)


def _columns(rows: list[tuple[int, int, list[float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, classes = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    return image, classes, np.array([row[2] for row in rows], float).reshape(-1, 4)


@st.composite
def box_sets(draw: st.DrawFn) -> tuple[Detections, Truths]:
    """Boxes on a grid in few images and classes, so that overlaps, scores and areas are often equal."""
    truth_rows = draw(st.lists(_truth, max_size=12))
    found_rows = draw(st.lists(_found, max_size=16))
    truths = truths_of([(*place, _xyxy(box)) for place, box, _, _ in truth_rows])
    truths = Truths(
        truths.image,
        truths.boxes,
        truths.classes,
        np.array([row[2] for row in truth_rows], bool),
        truths.area * [row[3] for row in truth_rows],
    )
    rows = []
    for number, (place, box, score, near) in enumerate(found_rows):
        xyxy = _xyxy(box)
        if near and len(truths):  # as the truth, wider or narrower by some pixels
            position = number % len(truths)
            place = int(truths.image[position]), int(truths.classes[position])
            left, top, right, bottom = truths.boxes[position].tolist()
            xyxy = [left, top, max(right + 4 * box[0] - 8, left), bottom + box[1]]
        rows.append((*place, xyxy, score / 8))
    return detections_of(rows), truths


def _xyxy(box: tuple[int, int, int, int]) -> list[float]:
    x, y, width, height = (GRID * value for value in box)
    return [float(x), float(y), float(x + width), float(y + height)]
