"""Tables of a BEV evaluation, with values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import torch

from sensorlab.metrics.bev_iou import SampleMeanIoU
from sensorlab.runs.tables import table_content
from sensorlab.tasks.bev_segmentation.config import BEVSegmentationConfig, GridConfig, MetricConfig
from sensorlab.tasks.bev_segmentation.tables import confusion_tables
from sensorlab.tasks.bev_segmentation.task import BEVSegmentation


def task(**metrics: Any) -> BEVSegmentation:
    """A grid of 8 x 8 cells of 2.5 m: the centres of the inner four are hypot(1.25, 1.25) = 1.77 m away."""
    return BEVSegmentation(
        BEVSegmentationConfig(
            name="bev_segmentation",
            grid=GridConfig(x=(-10.0, 10.0), z=(-10.0, 10.0), cells=(8, 2, 8)),
            metrics=MetricConfig(**metrics),
        )
    )


def evaluated(task: BEVSegmentation) -> dict[str, dict]:
    """Probabilities 0.9 (right), 0.6 (wrong), 0.3 (missed), 0.1 (right) in the inner four cells; no other counts."""
    metrics = task.metrics()
    logits, truth, valid = torch.zeros(3, 1, 1, 8, 8)
    inner = (0, 0, slice(3, 5), slice(3, 5))
    logits[inner] = torch.logit(torch.tensor([[0.9, 0.6], [0.3, 0.1]]))
    truth[inner] = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    valid[inner] = 1.0
    for metric in metrics.values():
        metric.update({"seg": logits}, {"seg": truth, "valid": valid})
    return task.tables(metrics)


def test_by_threshold() -> None:
    table = evaluated(task(more_thresholds=(0.7, 0.2), distance_bins=0))
    assert list(table) == ["iou_by_threshold"]
    assert table["iou_by_threshold"] == {
        "threshold": [0.5, 0.7, 0.2],
        "iou": [1 / 3, 1 / 2, 2 / 3],
        "precision": [1 / 2, 1.0, 2 / 3],
        "recall": [1 / 2, 1 / 2, 1.0],
        "f1": [1 / 2, 2 / 3, 4 / 5],
        "tp": [1, 1, 2],
        "fp": [1, 0, 1],
        "fn": [1, 1, 0],
        "tn": [1, 2, 1],
    }


def test_by_distance() -> None:
    table = evaluated(task(distance_bins=2, max_distance=2.0))["iou_by_distance"]
    assert (list(table["from_m"]), list(table["to_m"])) == ([0.0, 1.0], [1.0, 2.0])
    assert math.isnan(table["iou"][0])  # no cell is nearer than 1 m
    assert [table[name][1] for name in ("iou", "precision", "recall", "f1")] == [1 / 3, 1 / 2, 1 / 2, 1 / 2]
    assert [table[name] for name in ("tp", "fp", "fn", "tn")] == [[0, 1]] * 4


def test_they_can_be_stored() -> None:
    for table in evaluated(task(distance_bins=2, max_distance=2.0)).values():
        assert b"NaN" not in table_content(table, 3)


def test_metrics_without_counts_have_no_table() -> None:
    configured = task()
    assert confusion_tables({"iou_sample_mean": SampleMeanIoU(configured.protocol)}) == {}
