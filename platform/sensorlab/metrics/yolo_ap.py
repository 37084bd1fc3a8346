"""The two average precisions that YOLOv5 prints, by name. Neither is COCO's: on one set of detections the published
program of August 2020 says .341, v7.0 .422 and pycocotools .356, so a number needs its definition beside it.

``yolov5-v3`` (August 2020): a detection tries its best truth only, and the first one above the lowest threshold keeps
it for all of them (a later, better one gets nothing); IoU > t; precision falls to 0 right behind the last recall;
precision and recall are those at score 0.1.

``yolov5-v7``: at each threshold a truth belongs to the first detection whose best truth it is; IoU >= t; precision
starts at 1 for recall 0 and falls linearly from the last recall to 0 at recall 1; precision and recall are those at
the score of the highest mean F1 (smoothed).

Both integrate the envelope by the trapezoid rule over 101 recalls. Ignored truths do not exist for either. Overlaps
are in float64 here (float32 there): they differ where one lies within 1e-7 of a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sensorlab.metrics.best_truth import Comparison, best_truths, claims_per_threshold, first_claims, reaches
from sensorlab.metrics.box_sets import Detections, Truths, overlapping_pairs, take
from sensorlab.metrics.coco_ap import IOU_THRESHOLDS, RECALLS, mean_or_nan

Definition = Literal["yolov5-v3", "yolov5-v7"]
SCORES = np.linspace(0.0, 1.0, 1000)  # where curves over the score are sampled
FITNESS_WEIGHTS = (0.1, 0.9)  # of ap50 and ap
EPSILON = 1e-16


@dataclass(frozen=True)
class YOLORules:
    """In what the definitions differ."""

    comparison: Comparison  # of an overlap with a threshold
    claims: Literal["once", "per_threshold"]  # whether a truth is given away for all thresholds at once
    tail: Literal["cut", "linear"]  # precision beyond the last recall
    operating_point: Literal["score_0.1", "best_f1"]  # where precision and recall are read


RULES: dict[Definition, YOLORules] = {
    "yolov5-v3": YOLORules(">", "once", "cut", "score_0.1"),
    "yolov5-v7": YOLORules(">=", "per_threshold", "linear", "best_f1"),
}


@dataclass(frozen=True)
class YOLOResult:
    """All of it is NaN where a class has no truth. Axes: T = 10 thresholds, C classes, S = 1000 scores (``SCORES``)."""

    average_precision: np.ndarray  # (C, T) float64
    precision: np.ndarray  # (C,) float64 at the operating point and IoU .5, as recall and f1
    recall: np.ndarray  # (C,)
    f1: np.ndarray  # (C,)
    pr_curve: np.ndarray  # (C, 101): precision at recalls 0, 0.01 .. 1, as it is integrated, at IoU .5
    precision_curve: np.ndarray  # (C, S) over the score, at IoU .5
    recall_curve: np.ndarray  # (C, S)
    f1_curve: np.ndarray  # (C, S)
    operating_score: float  # of precision, recall and f1
    counts: np.ndarray  # (C,) int64 truths

    def ap(self) -> np.ndarray:
        """(C,) mean over the thresholds."""
        return self.average_precision.mean(axis=1)

    def truths(self) -> np.ndarray:
        """(C,) int64."""
        return self.counts

    def per_class(self) -> dict[str, np.ndarray]:
        """``precision``, ``recall``, ``f1``, ``ap50`` and ``ap`` of each class, (C,) each."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "ap50": self.average_precision[:, 0],
            "ap": self.ap(),
        }

    def summary(self) -> dict[str, float]:
        """``precision``, ``recall``, ``ap50``, ``ap``: means of the classes; ``fitness``. NaN for no truths."""
        means = {name: mean_or_nan(values) for name, values in self.per_class().items() if name != "f1"}
        return {**means, "fitness": fitness(means["ap50"], means["ap"])}

    def matches(self) -> tuple[np.ndarray, np.ndarray]:
        """(C,) found and wrong detections at the operating point, whole numbers worked out from the rates."""
        found = np.round(self.recall * self.counts)
        return found, np.round(found / (self.precision + EPSILON) - found)


def fitness(ap50: float, ap: float) -> float:
    """The number by which YOLOv5 chooses its best epoch and its parents in evolution."""
    return FITNESS_WEIGHTS[0] * ap50 + FITNESS_WEIGHTS[1] * ap


def yolo_ap(
    detections: Detections,
    truths: Truths,
    num_classes: int,
    *,
    rules: YOLORules,
) -> YOLOResult:
    """Average precision, precision and recall of every class 0 .. ``num_classes`` - 1.

    Args:
        detections: in any order; of equal scores the lower image comes first, then the earlier one.
        truths: in any order; those with ``ignore`` set are left out.
        rules: ``RULES["yolov5-v3"]`` or ``RULES["yolov5-v7"]``.
    """
    detections, truths = detections.ranked(), take(truths, ~truths.ignore)
    correct = correct_detections(detections, truths, rules)  # (T, M)
    counts = np.bincount(truths.classes, minlength=num_classes)
    values = np.full((num_classes, len(IOU_THRESHOLDS)), np.nan)
    pr_curve = np.full((num_classes, len(RECALLS)), np.nan)
    curves = np.full((2, num_classes, len(SCORES)), np.nan)  # precision, recall
    at_score = np.full((2, num_classes), np.nan)
    ends = np.searchsorted(detections.classes, np.arange(num_classes + 1))
    for number in np.flatnonzero(counts):
        members = slice(ends[number], ends[number + 1])
        order = np.argsort(-detections.scores[members], kind="stable")
        scores = detections.scores[members][order]
        hits = np.cumsum(correct[:, members][:, order], axis=1)  # (T, m)
        precision, recall = hits / np.arange(1, len(scores) + 1), hits / counts[number]
        samples = np.stack([sampled_precision(*row, rules.tail) for row in zip(recall, precision, strict=True)])
        values[number], pr_curve[number] = np.trapezoid(samples, RECALLS, axis=1), samples[0]
        curves[:, number] = over_scores(SCORES, scores, precision[0], recall[0])
        at_score[:, number] = over_scores(0.1, scores, precision[0], recall[0], held=True)
    f1_curve = f1_score(*curves)
    score = 0.1
    if rules.operating_point == "best_f1":
        at_score, score = _at_best_f1(curves, f1_curve, counts)
    return YOLOResult(
        average_precision=values,
        precision=at_score[0],
        recall=at_score[1],
        f1=f1_score(*at_score),
        pr_curve=pr_curve,
        precision_curve=curves[0],
        recall_curve=curves[1],
        f1_curve=f1_curve,
        operating_score=score,
        counts=counts,
    )


def correct_detections(detections: Detections, truths: Truths, rules: YOLORules) -> np.ndarray:
    """(T, M) bool: which of the ranked detections find a truth (none of them ignored) at which threshold."""
    if rules.claims == "per_threshold":
        return claims_per_threshold(detections, truths, IOU_THRESHOLDS, rules.comparison)[0]
    truth, overlap = best_truths(overlapping_pairs(detections, truths, IOU_THRESHOLDS[0]), len(detections))
    first = first_claims(truth, reaches(overlap, IOU_THRESHOLDS[0], rules.comparison))
    return np.stack([first & reaches(overlap, threshold, rules.comparison) for threshold in IOU_THRESHOLDS])


def sampled_precision(recall: np.ndarray, precision: np.ndarray, tail: Literal["cut", "linear"]) -> np.ndarray:
    """(101,) envelope of the precision at recalls 0, 0.01 .. 1, from recall and precision (m,) in score order."""
    if not len(recall):
        return np.zeros(len(RECALLS))
    if tail == "cut":
        start, end = 0.0, min(float(recall[-1]) + 1e-3, 1.0)
    else:
        start, end = 1.0, 1.0
    envelope = np.maximum.accumulate(np.concatenate([[start], precision, [0.0]])[::-1])[::-1]
    return np.interp(RECALLS, np.concatenate([[0.0], recall, [end]]), envelope)


def over_scores(
    at: np.ndarray | float, scores: np.ndarray, precision: np.ndarray, recall: np.ndarray, held: bool = False
) -> np.ndarray:
    """Precision and recall (2, ...) when detections below the scores ``at`` are left out, interpolated linearly.

    Above the highest score they are 1 and 0 or, if ``held``, those of the best detection. 0 without detections.

    Args:
        scores, precision, recall: (m,) in falling order of the scores.
    """
    if not len(scores):
        return np.zeros((2, *np.shape(at)))
    left = (None, None) if held else (1.0, 0.0)
    values = zip((precision, recall), left, strict=True)
    return np.stack([np.interp(-np.asarray(at), -scores, value, left=above) for value, above in values])


def f1_score(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Harmonic mean; 0 where both are 0."""
    return 2 * precision * recall / (precision + recall + EPSILON)


def _at_best_f1(curves: np.ndarray, f1_curve: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Precision and recall (2, C) at the score of the highest smoothed mean F1 of the classes, and that score."""
    if not counts.any():
        return curves[:, :, 0], float("nan")
    position = int(smooth(f1_curve[counts > 0].mean(axis=0), 0.1).argmax())
    return curves[:, :, position], float(SCORES[position])


def smooth(values: np.ndarray, fraction: float) -> np.ndarray:
    """Moving average (n,) over about ``fraction`` of the values (n,), an odd number; the borders are repeated."""
    half = round(len(values) * fraction) // 2
    width = 2 * half + 1
    return np.convolve(np.pad(values, half, mode="edge"), np.full(width, 1 / width), mode="valid")
