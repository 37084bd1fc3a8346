"""BEV IoU: merging, thresholds, distances, and the constant masks it is compared with."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.metrics.bev_iou import (
    BEVIoUProtocol,
    CellCounts,
    DistanceIoU,
    GlobalIoU,
    SampleMeanIoU,
    cell_distances,
    foreground,
)


def _random(batch: int, seed: int = 0, shape: tuple[int, int] = (8, 8)) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 1, *shape, generator=generator)
    truth = (torch.rand(batch, 1, *shape, generator=generator) < 0.3).to(torch.uint8)
    valid = (torch.rand(batch, 1, *shape, generator=generator) < 0.9).to(torch.uint8)
    return {"seg": logits}, {"seg": truth, "valid": valid}


def _metrics() -> list[GlobalIoU | SampleMeanIoU | DistanceIoU]:
    protocol = BEVIoUProtocol()
    binned = protocol.model_copy(update={"bins": (0.0, 30.0, 60.0), "distance": "ground"})
    return [
        GlobalIoU(protocol),
        SampleMeanIoU(protocol),
        DistanceIoU(binned, cell_distances(BEVGrid(cells=(8, 2, 8)))),
    ]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4, 5]], [[5, 0], [3, 1], [2, 4]], [[0], [1, 2, 3, 4], [5]]])
def test_any_partition_of_the_samples_gives_the_same_number(which: int, parts: list[list[int]]) -> None:
    outputs, batch = _random(6)
    whole = _metrics()[which]
    whole.update(outputs, batch)
    merged = _metrics()[which]
    for part in parts:
        worker = _metrics()[which]
        worker.update({"seg": outputs["seg"][part]}, {name: value[part] for name, value in batch.items()})
        merged.merge(worker.state())
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12)
    whole.reset()
    assert all(math.isnan(value) for value in whole.compute().values())


def test_fillers_do_not_count() -> None:
    outputs, batch = _random(4)
    counts, expected_counts = CellCounts(BEVIoUProtocol(), (8, 8)), CellCounts(BEVIoUProtocol(), (8, 8))
    for metric, expected in zip([*_metrics(), counts], [*_metrics(), expected_counts], strict=True):
        metric.update(outputs, batch | {"is_filler": torch.tensor([False, True, False, True])})
        expected.update({"seg": outputs["seg"][[0, 2]]}, {name: value[[0, 2]] for name, value in batch.items()})
        assert metric.compute() == pytest.approx(expected.compute(), rel=1e-12)
        assert all(torch.equal(metric.sums[name], value) for name, value in expected.sums.items())


def test_invalid_cells_do_not_count() -> None:
    outputs, batch = _random(3)
    hidden = batch["valid"] == 0
    assert hidden.any()
    changed = {"seg": torch.where(hidden, 100.0, outputs["seg"])}
    for metric, other in zip(_metrics(), _metrics(), strict=True):
        metric.update(outputs, batch)
        other.update(changed, batch)
        assert metric.compute() == other.compute()


def test_foreground_is_strictly_above_the_threshold() -> None:
    logits = torch.tensor([0.0, 1e-9, 1e-6, -1e-6, math.log(0.4 / 0.6) + 1e-3])
    assert foreground(logits).tolist() == [False, False, True, False, False]
    assert foreground(logits, 0.4).tolist() == [True, True, True, True, True]


def test_a_known_iou() -> None:
    truth = torch.zeros(2, 1, 2, 2)
    truth[0, 0, 0] = 1  # sample 0: 2 cells, one found, one false alarm: 1 / 3. Sample 1: nothing there, one false alarm
    logits = torch.full((2, 1, 2, 2), -9.0)
    logits[0, 0, :, 0] = 9
    logits[1, 0, 0, 0] = 9
    batch = {"seg": truth, "valid": torch.ones_like(truth)}
    overall, mean = GlobalIoU(BEVIoUProtocol()), SampleMeanIoU(BEVIoUProtocol())
    overall.update({"seg": logits}, batch)
    mean.update({"seg": logits}, batch)
    assert overall.compute() == {"iou": 0.25}
    assert mean.compute()["iou_sample_mean"] == pytest.approx(1 / 6, abs=1e-4)


def test_distances_and_bins() -> None:
    grid = BEVGrid()
    ground, top = cell_distances(grid), cell_distances(grid, "top_voxel")
    assert ground.shape == (200, 200)
    assert ground.min() == pytest.approx(math.hypot(0.25, 0.25))
    assert top.min() == pytest.approx(math.sqrt(2 * 0.25**2 + 3.375**2))
    metric = DistanceIoU(BEVIoUProtocol(bins=(0.0, 7.1, 14.2), distance="ground"), ground)
    everywhere = torch.ones(1, 1, 200, 200)
    metric.update({"seg": everywhere}, {"seg": everywhere, "valid": everywhere})
    in_bins = [(ground < 7.1).sum(), ((ground >= 7.1) & (ground < 14.2)).sum()]
    assert metric.sums["union"].tolist() == in_bins
    assert list(metric.compute()) == ["iou_distance_00.0-07.1m", "iou_distance_07.1-14.2m"]


def test_every_field_of_the_protocol_changes_its_digest() -> None:
    base = BEVIoUProtocol()
    changes = {
        "averaging": "sample_mean", "threshold": 0.4, "categories": ("human",), "visibility": "keep",
        "min_lidar_points": 1, "frame": "CAM_BACK", "frame_pose": "calibration", "x": (-30.0, 30.0),
        "z": (0.0, 50.0), "cells": (100, 100), "corners": "truncated", "bins": (0.0, 1.0), "distance": "ground",
    }  # fmt: skip
    digests = {base.digest} | {base.model_copy(update={name: value}).digest for name, value in changes.items()}
    assert len(digests) == 1 + len(changes) == len(BEVIoUProtocol.model_fields) - 1


@pytest.mark.parametrize("seed", range(5))
def test_best_constant_mask_beats_every_other(seed: int) -> None:
    _, batch = _random(4, seed, shape=(2, 3))
    counts = CellCounts(BEVIoUProtocol(), (2, 3))
    counts.update({}, batch)
    best = counts.iou_of(counts.best_mask())
    every = []
    for bits in itertools.product([False, True], repeat=6):
        mask = np.array(bits).reshape(2, 3)
        metric = GlobalIoU(BEVIoUProtocol())
        logits = torch.from_numpy(np.where(mask, 9.0, -9.0)).expand(4, 1, 2, 3)
        metric.update({"seg": logits}, batch)
        score = metric.compute()["iou"]
        assert counts.iou_of(mask) == pytest.approx(score)
        every.append(score)
    assert best == pytest.approx(max(every))


def test_counts_of_nothing() -> None:
    counts = CellCounts(BEVIoUProtocol(), (2, 2))
    assert math.isnan(counts.compute()["foreground_fraction"])
    assert not counts.best_mask().any()
    assert math.isnan(counts.iou_of(counts.best_mask()))


def test_the_confusion_by_hand() -> None:
    """One sample of 2 x 4 cells, one of them invalid: 2 found, 1 false alarm, 1 missed, 3 rightly empty."""
    truth = torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 1]])[None, None]
    logits = torch.where(torch.tensor([[1, 1, 0, 1], [0, 0, 0, 1]])[None, None] == 1, 9.0, -9.0)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])[None, None]  # the last cell was found, and does not count
    metric = GlobalIoU(BEVIoUProtocol())
    metric.update({"seg": logits}, {"seg": truth, "valid": valid})
    assert metric.confusion() == {
        "iou": [2 / 4], "precision": [2 / 3], "recall": [2 / 3], "f1": [2 / 3],
        "tp": [2], "fp": [1], "fn": [1], "tn": [3],
    }  # fmt: skip


def test_a_share_of_nothing_is_nan() -> None:
    empty = torch.zeros(1, 1, 2, 2)
    metric = GlobalIoU(BEVIoUProtocol())
    metric.update({"seg": empty - 9}, {"seg": empty, "valid": empty + 1})
    columns = metric.confusion()
    assert all(math.isnan(columns[name][0]) for name in ("iou", "precision", "recall", "f1"))
    assert (columns["tp"], columns["fp"], columns["fn"], columns["tn"]) == ([0], [0], [0], [4])


def test_bins_and_the_whole_agree() -> None:
    outputs, batch = _random(4)
    overall, binned = _metrics()[0], _metrics()[2]
    assert isinstance(overall, GlobalIoU)
    assert isinstance(binned, DistanceIoU)
    for metric in (overall, binned):
        metric.update(outputs, batch)
    for name in ("tp", "fp", "fn", "tn"):
        inside = sum(binned.confusion()[name])
        assert 0 < inside <= overall.confusion()[name][0]
    assert sum(overall.confusion()[name][0] for name in ("tp", "fp", "fn", "tn")) == int(batch["valid"].sum())
