"""Matching in which a detection tries one truth only, that of the highest overlap: VOC's and YOLOv5's.

COCO's matching lets a detection take another truth when its best one is gone (:mod:`sensorlab.metrics.coco_ap`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from sensorlab.metrics.box_sets import Detections, Pairs, Truths, overlapping_pairs

Comparison = Literal[">", ">="]


def best_truths(pairs: Pairs, num_detections: int) -> tuple[np.ndarray, np.ndarray]:
    """The truth of the highest overlap of each detection, the first of equal ones.

    Returns:
        truth: (M,) int64, -1 where a detection is in no pair.
        overlap: (M,) float64, 0 there.
    """
    truth, overlap = np.full(num_detections, -1), np.zeros(num_detections)
    order = np.lexsort((pairs.truth, -pairs.overlap, pairs.detection))
    detection, first = np.unique(pairs.detection[order], return_index=True)
    truth[detection] = pairs.truth[order[first]]
    overlap[detection] = pairs.overlap[order[first]]
    return truth, overlap


def first_claims(truth: np.ndarray, claims: np.ndarray) -> np.ndarray:
    """(M,) bool: which of the detections that claim (M,) bool their ``truth`` (M,) are the first to claim it."""
    claiming = np.flatnonzero(claims)
    first = np.zeros(len(truth), bool)
    first[claiming[np.unique(truth[claiming], return_index=True)[1]]] = True
    return first


def reaches(overlap: np.ndarray, threshold: float, comparison: Comparison) -> np.ndarray:
    """Whether overlaps pass a threshold; two boxes without common area never do."""
    return (overlap > threshold if comparison == ">" else overlap >= threshold) & (overlap > 0)


def claims_per_threshold(
    detections: Detections,
    truths: Truths,
    thresholds: tuple[float, ...],
    comparison: Comparison,
    extent: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """At each threshold a truth belongs to the first detection whose best truth it is and whose overlap passes.

    Args:
        detections: ranked (:meth:`Detections.ranked`).
        truths: those with ``ignore`` set take part; what claims one is excused, and does not count.

    Returns:
        found, excused: (T, M) bool; a detection that is neither is wrong.
    """
    pairs = overlapping_pairs(detections, truths, min(thresholds), extent=extent)
    truth, overlap = best_truths(pairs, len(detections))
    on_ignored = np.append(truths.ignore, False)[truth]  # -1: nothing
    claims = np.stack([reaches(overlap, threshold, comparison) for threshold in thresholds])  # (T, M)
    found = np.stack([first_claims(truth, row & ~on_ignored) for row in claims])
    return found, claims & on_ignored
