"""Detections and annotated boxes of many images as flat arrays, and the pairs of them that overlap.

All definitions of average precision start here: boxes of one class in one image (a group) compete with each other,
and nothing else does. Groups are ranges of sorted arrays, so no array is padded to the most crowded image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from sensorlab.geometry.boxes2d import box_iof, box_iou

BoxSetT = TypeVar("BoxSetT", "Truths", "Detections")
PAIRS_AT_ONCE = 1 << 18  # of overlaps: their intermediate arrays stay in the cache of a core


@dataclass(frozen=True)
class Truths:
    """N annotated boxes."""

    image: np.ndarray  # (N,) int64: equal for the boxes of one image
    boxes: np.ndarray  # (N, 4) float64, xyxy, pixels of the original image
    classes: np.ndarray  # (N,) int64
    ignore: np.ndarray  # (N,) bool: crowd or difficult; neither finding nor missing it counts
    area: np.ndarray  # (N,) float64, px^2: what size ranges mean; of the mask where the data set has one

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Detections:
    """M detected boxes."""

    image: np.ndarray  # (M,) int64
    boxes: np.ndarray  # (M, 4) float64, xyxy, pixels of the original image
    scores: np.ndarray  # (M,) float64
    classes: np.ndarray  # (M,) int64

    def __len__(self) -> int:
        return len(self.image)

    def ranked(self) -> Detections:
        """Sorted by class, within it by image, within it from the highest score down; ties keep their order."""
        return take(self, np.lexsort((-self.scores, self.image, self.classes)))


def take(boxes: BoxSetT, chosen: np.ndarray) -> BoxSetT:
    """The boxes at ``chosen``: positions or a mask."""
    return type(boxes)(**{field.name: getattr(boxes, field.name)[chosen] for field in fields(boxes)})


def group_numbers(detections: Detections, truths: Truths, per_class: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (M,) and (N,) int64, equal for boxes that may be matched: of one image and, by default, of one class.

    They grow with the class, then with the image, as the order of :meth:`Detections.ranked`.
    """
    images = np.unique(np.concatenate([detections.image, truths.image]))
    of_detection = np.searchsorted(images, detections.image)
    of_truth = np.searchsorted(images, truths.image)
    if not per_class:
        return of_detection, of_truth
    return detections.classes * len(images) + of_detection, truths.classes * len(images) + of_truth


def rank_in_group(groups: np.ndarray) -> np.ndarray:
    """(M,) int64: how many elements of the same group stand before each one, for ascending ``groups`` (M,)."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


@dataclass(frozen=True)
class Pairs:
    """P pairs of a detection and a truth of one group, sorted by detection, then by truth."""

    detection: np.ndarray  # (P,) int64 position
    truth: np.ndarray  # (P,) int64 position
    overlap: np.ndarray  # (P,) float64 in [0, 1]


def overlapping_pairs(
    detections: Detections,
    truths: Truths,
    minimum: float,
    *,
    crowd: np.ndarray | None = None,
    per_class: bool = True,
    extent: float = 0.0,
) -> Pairs:
    """All pairs of one group whose overlap is at least ``minimum`` (and not 0).

    Args:
        crowd: (N,) bool; the overlap with these truths is the share of the detection inside (IoF), else it is IoU.
        per_class: whether only boxes of one class are compared.
        extent: added to the sides of boxes (:mod:`sensorlab.geometry.boxes2d`).
    """
    detection_group, truth_group = group_numbers(detections, truths, per_class)
    order = np.argsort(truth_group, kind="stable")
    truth_group = truth_group[order]
    first = np.searchsorted(truth_group, detection_group)
    counts = np.searchsorted(truth_group, detection_group, side="right") - first
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for rows in _slices(counts, PAIRS_AT_ONCE):
        number = counts[rows]
        detection = np.repeat(np.arange(rows.start, rows.stop), number)  # (p,)
        within = np.arange(len(detection)) - np.repeat(np.cumsum(number) - number, number)
        truth = order[np.repeat(first[rows], number) + within]
        overlap = box_iou(detections.boxes[detection], truths.boxes[truth], extent)
        if crowd is not None and crowd.any():
            inside = crowd[truth]
            overlap[inside] = box_iof(detections.boxes[detection[inside]], truths.boxes[truth[inside]], extent)
        kept = (overlap >= minimum) & (overlap > 0)
        parts.append((detection[kept], truth[kept], overlap[kept]))
    detection, truth, overlap = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Pairs(detection, truth, overlap)


def _slices(counts: np.ndarray, budget: int) -> Iterator[slice]:
    """Ranges that cover ``counts``, each with a sum of about ``budget`` (more where one element exceeds it)."""
    ends = np.cumsum(counts)
    start = 0
    while True:
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + budget, side="right")), start + 1)
        yield slice(start, min(stop, len(counts)))
        start = stop
        if start >= len(counts):
            return
