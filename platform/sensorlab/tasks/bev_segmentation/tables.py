"""What an evaluation found beyond its curves: the confusion of foreground and background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensorlab.metrics.base import Metric
from sensorlab.metrics.bev_iou import DistanceIoU, GlobalIoU

Table = dict[str, Sequence[Any]]


def confusion_tables(metrics: Mapping[str, Metric]) -> dict[str, Table]:
    """The tables of :class:`~sensorlab.tasks.bev_segmentation.task.BEVSegmentation`.

    Args:
        metrics: merged accumulators; those of other kinds are passed over.

    Returns:
        ``iou_by_threshold``: a row per threshold of the global IoU, the objective's first. ``iou_by_distance``: a row
        per bin at the objective's threshold, with its edges in metres; only with distance bins. Both have the
        columns of :meth:`sensorlab.metrics.bev_iou.CountedIoU.confusion`; counts are cells of all samples.
    """
    overall = [metric for metric in metrics.values() if isinstance(metric, GlobalIoU)]
    tables: dict[str, Table] = {}
    if overall:
        parts = [metric.confusion() for metric in overall]
        columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
        tables["iou_by_threshold"] = {"threshold": [metric.threshold for metric in overall], **columns}
    for metric in metrics.values():
        if isinstance(metric, DistanceIoU):
            low, high = zip(*metric.edges, strict=True)
            tables["iou_by_distance"] = {"from_m": low, "to_m": high, **metric.confusion()}
    return tables
