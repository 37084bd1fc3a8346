"""Average precision as the PASCAL VOC development kits define it: the area under the curve, or its mean at 11 recalls.

In one image and class a detection tries the truth of the highest overlap; a truth belongs to the first that reaches
it, later ones are wrong, and what reaches a difficult truth does not count. The kit compares with ``>`` and takes the
right and bottom borders as the last pixel inside. In this project boxes are continuous, so the IoU of the kit's
integers is the plain one (``extent=0``). mmdet 1.x's ``eval_map`` is ``comparison=">="`` and ``extent=1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sensorlab.metrics.best_truth import Comparison, claims_per_threshold
from sensorlab.metrics.box_sets import Detections, Truths
from sensorlab.metrics.coco_ap import RECALLS, mean_or_nan

Interpolation = Literal["area", "11-point"]
ELEVEN_RECALLS = np.arange(11) / 10


@dataclass(frozen=True)
class VOCResult:
    """Average precision; NaN where a class has no truth that counts. Axes: T thresholds, C classes."""

    average_precision: np.ndarray  # (C, T) float64
    pr_curve: np.ndarray  # (C, 101) float64: precision at recalls 0, 0.01 .. 1, at the first threshold
    counts: np.ndarray  # (C,) int64 truths that count
    thresholds: tuple[float, ...]  # T

    def ap(self) -> np.ndarray:
        """(C,) mean over the thresholds."""
        return self.average_precision.mean(axis=1)

    def truths(self) -> np.ndarray:
        """(C,) int64 truths that count."""
        return self.counts

    def per_class(self) -> dict[str, np.ndarray]:
        """The numbers of :meth:`summary` for each class, (C,) each."""
        columns = zip(self.thresholds, self.average_precision.T, strict=True)
        return {f"ap{100 * threshold:.0f}": column for threshold, column in columns}

    def summary(self) -> dict[str, float]:
        """``ap50`` and so on: mean over the classes that have truths; NaN if none has."""
        return {name: mean_or_nan(values) for name, values in self.per_class().items()}


def voc_ap(
    detections: Detections,
    truths: Truths,
    num_classes: int,
    *,
    thresholds: tuple[float, ...] = (0.5,),
    interpolation: Interpolation = "area",
    comparison: Comparison = ">",
    extent: float = 0.0,
) -> VOCResult:
    """Average precision of every class (0 .. ``num_classes`` - 1) at every IoU threshold.

    Args:
        detections: in any order; of equal scores the lower image comes first, then the earlier one.
        truths: in any order; ``ignore`` means difficult.
        extent: added to the sides of boxes: 1 where right and bottom are the last pixel inside.
    """
    detections = detections.ranked()
    found, excused = claims_per_threshold(detections, truths, thresholds, comparison, extent)  # (T, M)
    counts = np.bincount(truths.classes[~truths.ignore], minlength=num_classes)
    values = np.full((num_classes, len(thresholds)), np.nan)
    curves = np.full((num_classes, len(RECALLS)), np.nan)
    ends = np.searchsorted(detections.classes, np.arange(num_classes + 1))
    for number in np.flatnonzero(counts):
        members = slice(ends[number], ends[number + 1])
        order = np.argsort(-detections.scores[members], kind="stable")
        for level in range(len(thresholds)):
            counted = ~excused[level, members][order]
            hits = np.cumsum(found[level, members][order][counted])
            recall, precision = hits / counts[number], hits / np.arange(1, len(hits) + 1)
            values[number, level] = average_precision(recall, precision, interpolation)
            if level == 0:
                curves[number] = precision_at(RECALLS, recall, precision)
    return VOCResult(values, curves, counts, thresholds)


def average_precision(recall: np.ndarray, precision: np.ndarray, interpolation: Interpolation) -> float:
    """Of one class, from recall and precision (m,) after each detection in score order."""
    if interpolation == "11-point":
        return float(precision_at(ELEVEN_RECALLS, recall, precision).mean())
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def precision_at(recalls: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The highest precision at or beyond each of ``recalls``; 0 where that recall is never reached."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(recall, recalls)]
