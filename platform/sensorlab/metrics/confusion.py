"""Which classes a detector confuses with which, and in which images it fails.

The rules of the confusion are those of YOLOv5 v7.0: detections above a score of 0.25, pairs of any classes above an IoU
of 0.45; a detection tries its best truth only, a truth keeps the detection of the highest overlap. Two things differ:
wrong detections count in every image (there only where something was matched), and those on an ignored box nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorlab.metrics.base import Protocol, SumMetric
from sensorlab.metrics.best_truth import best_truths, claims_per_threshold, first_claims
from sensorlab.metrics.box_sets import Detections, Truths, overlapping_pairs, take
from sensorlab.metrics.detection_batch import read_batch

BACKGROUND = "background"


class ConfusionProtocol(Protocol):
    """What the counts of a confusion depend on besides the detections."""

    metric: str = "detection_confusion"
    source: str = "YOLOv5 v7.0 utils/metrics.py ConfusionMatrix; wrong detections count in every image"
    classes: tuple[str, ...]  # names of the classes 0 .. C-1
    min_score: float = 0.25  # detections with higher scores count
    min_iou: float = 0.45  # pairs with a larger overlap are matched


class DetectionConfusion(SumMetric):
    """Counts of (predicted, actual) classes; the last row and column are the background.

    It reports no curves: its numbers are a table.
    """

    protocol: ConfusionProtocol

    def __init__(self, protocol: ConfusionProtocol) -> None:
        size = len(protocol.classes) + 1
        super().__init__({"counts": (size, size)}, torch.int64)
        self.protocol = protocol

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        _, detections, truths = read_batch(outputs, batch, self.protocol.classes)
        self.sums["counts"] += torch.from_numpy(
            confusion_matrix(
                detections,
                truths,
                len(self.protocol.classes),
                min_score=self.protocol.min_score,
                min_iou=self.protocol.min_iou,
            )
        )

    def compute(self) -> dict[str, float]:
        return {}

    def matrix(self) -> np.ndarray:
        """(C+1, C+1) int64: predicted class x actual class; C is the background."""
        return self.sums["counts"].numpy().copy()

    def table(self) -> dict[str, list[Any]]:
        """Columns ``predicted``, ``actual`` (names) and ``count`` of the pairs that occur."""
        matrix, names = self.matrix(), (*self.protocol.classes, BACKGROUND)
        predicted, actual = np.nonzero(matrix)
        return {
            "predicted": [names[i] for i in predicted],
            "actual": [names[i] for i in actual],
            "count": matrix[predicted, actual].tolist(),
        }


def confusion_matrix(
    detections: Detections, truths: Truths, num_classes: int, *, min_score: float = 0.25, min_iou: float = 0.45
) -> np.ndarray:
    """(C+1, C+1) int64 counts: predicted class x actual class; index C is nothing (missed, or wrong)."""
    detections = take(detections, detections.scores > min_score).ranked()
    ignored, truths = take(truths, truths.ignore), take(truths, ~truths.ignore)
    truth, overlap = best_truths(overlapping_pairs(detections, truths, min_iou, per_class=False), len(detections))
    matched = np.zeros(len(detections), bool)
    by_overlap = np.lexsort((-detections.scores, -overlap))
    matched[by_overlap] = first_claims(truth[by_overlap], overlap[by_overlap] > min_iou)
    every = np.ones(len(ignored), bool)
    inside = overlapping_pairs(detections, ignored, min_iou, crowd=every, per_class=False)
    excused = np.zeros(len(detections), bool)
    excused[inside.detection] = True
    missed = np.ones(len(truths), bool)
    missed[truth[matched]] = False
    wrong = ~matched & ~excused
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(counts, (detections.classes[matched], truths.classes[truth[matched]]), 1)
    counts[:, num_classes] += np.bincount(detections.classes[wrong], minlength=num_classes + 1)
    counts[num_classes] += np.bincount(truths.classes[missed], minlength=num_classes + 1)
    return counts


def image_outcomes(
    detections: Detections, truths: Truths, images: np.ndarray, *, min_score: float = 0.25, min_iou: float = 0.5
) -> dict[str, np.ndarray]:
    """Found and missed truths and wrong detections of each of ``images`` (n,), to order images by their errors.

    A truth is found by a detection of its own class with a score of at least ``min_score`` and an IoU of at least
    ``min_iou``; what lies on an ignored box counts nowhere.

    Returns:
        ``found``, ``missed``, ``wrong``: (n,) int64.
    """
    detections = take(detections, detections.scores >= min_score).ranked()
    found, excused = (rows[0] for rows in claims_per_threshold(detections, truths, (min_iou,), ">="))
    hits = _count(detections.image[found], images)
    return {
        "found": hits,
        "missed": _count(truths.image[~truths.ignore], images) - hits,
        "wrong": _count(detections.image[~found & ~excused], images),
    }


def _count(members: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(n,) int64: how often each of ``images`` (n,) stands among ``members``."""
    members = np.sort(members)
    return np.searchsorted(members, images, side="right") - np.searchsorted(members, images)
