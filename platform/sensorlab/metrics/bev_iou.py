"""Intersection over union of a bird's-eye-view mask, with the protocol of the number.

Outputs hold ``seg`` (B, 1, Z, X) logits; batches hold ``seg`` (B, 1, Z, X) 0/1, ``valid`` (B, 1, Z, X) 0/1 (cells that
count) and, if they come from the stream, ``is_filler`` (B,) bool. Foreground is ``sigmoid(logit) > threshold`` in
float32: at 0.5 that is the original's ``round(sigmoid)``, which rounds 0.5 itself to background. All counts are whole
numbers in float64, so partial sums merge exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.metrics.base import Protocol, SumMetric

DistanceFrame = Literal["ground", "top_voxel"]


class BEVIoUProtocol(Protocol):
    """What an IoU of a BEV mask depends on besides the predictions. Published boards differ in every field."""

    metric: str = "bev_iou"
    source: str = "Simple-BEV eval_nuscenes.py"
    averaging: Literal["global", "sample_mean", "global_per_distance"] = "global"
    threshold: float = 0.5
    categories: tuple[str, ...] = ("vehicle",)  # prefixes of the foreground categories
    visibility: Literal["ignore", "keep"] = "ignore"  # cells of boxes with visibility 1: not counted, or counted
    min_lidar_points: int = 0  # boxes with fewer are not foreground
    frame: str = "CAM_FRONT"  # the grid is aligned with this camera
    frame_pose: Literal["exposure", "calibration"] = "exposure"  # its pose: as it exposed, or without ego motion
    x: tuple[float, float] = (-50.0, 50.0)  # metres, right
    z: tuple[float, float] = (-50.0, 50.0)  # metres, forward
    cells: tuple[int, int] = (200, 200)  # Z, X
    corners: Literal["rounded", "truncated"] = "rounded"  # how box corners become cells
    bins: tuple[float, ...] = ()  # edges in metres, for global_per_distance
    distance: DistanceFrame | None = None  # for global_per_distance


def foreground(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Bool mask of the logits' shape."""
    return torch.sigmoid(logits.float()) > threshold


def real_samples(batch: Mapping[str, Any]) -> Tensor:
    """Bool (B,): which samples of the batch are no fillers."""
    if "is_filler" in batch:
        return ~batch["is_filler"]
    return torch.ones(len(batch["seg"]), dtype=torch.bool, device=batch["seg"].device)


def counted_cells(batch: Mapping[str, Any]) -> Tensor:
    """Bool (B, 1, Z, X): the valid cells of samples that are no fillers."""
    return batch["valid"].bool() & real_samples(batch)[:, None, None, None]


def intersection_union(predicted: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Bool masks (B, 1, Z, X) of the cells in the intersection and in the union, among those that count."""
    truth, counted = batch["seg"].bool(), counted_cells(batch)
    return predicted & truth & counted, (predicted | truth) & counted


class CountedIoU(SumMetric):
    """Sums over cells from which the whole confusion of foreground and background follows.

    ``intersection`` (true positives), ``union``, ``predicted`` (foreground of the prediction) and ``counted`` (all
    cells that count), each of the shape ``shape``.
    """

    protocol: BEVIoUProtocol

    def __init__(self, protocol: BEVIoUProtocol, name: str, shape: tuple[int, ...] = ()) -> None:
        super().__init__(dict.fromkeys(("intersection", "union", "predicted", "counted"), shape))
        self.protocol = protocol
        self.name = name
        self.threshold = protocol.threshold

    def masks(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Bool (4, B, 1, Z, X), in the order of the sums."""
        predicted, counted = foreground(outputs["seg"], self.threshold), counted_cells(batch)
        inside, union = intersection_union(predicted, batch)
        return torch.stack([inside, union, predicted & counted, counted])

    def confusion(self) -> dict[str, list[float]]:
        """Columns ``iou``, ``precision``, ``recall``, ``f1`` and the counts ``tp``, ``fp``, ``fn``, ``tn`` of cells.

        One value per element of ``shape``; a share of nothing is NaN.
        """
        inside, union, predicted, counted = (self.sums[name].reshape(-1) for name in self.sums)
        actual = union - predicted + inside
        columns = {
            "iou": inside / union,
            "precision": inside / predicted,
            "recall": inside / actual,
            "f1": 2 * inside / (predicted + actual),
        }
        counts = {"tp": inside, "fp": predicted - inside, "fn": union - predicted, "tn": counted - union}
        whole = {name: [int(value) for value in column] for name, column in counts.items()}
        return {name: column.tolist() for name, column in columns.items()} | whole


class GlobalIoU(CountedIoU):
    """Intersection over union of all cells of all samples: the number that Simple-BEV's evaluation reports."""

    def __init__(self, protocol: BEVIoUProtocol, name: str = "iou") -> None:
        super().__init__(protocol, name)

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        totals = self.masks(outputs, batch).flatten(1).sum(1).cpu()
        for value, total in zip(self.sums.values(), totals, strict=True):
            value += total

    def compute(self) -> dict[str, float]:
        return {self.name: float(self.sums["intersection"] / self.sums["union"])}  # 0 / 0 is NaN


class SampleMeanIoU(SumMetric):
    """Mean over samples of I / (U + 1e-4): what Simple-BEV's training log shows; its author measured 46.6 beside 47.4.

    A sample without foreground and without prediction counts as 0, as in the original.
    """

    def __init__(self, protocol: BEVIoUProtocol, name: str = "iou_sample_mean") -> None:
        super().__init__({"iou": (), "samples": ()})
        self.protocol = protocol
        self.name = name
        self.threshold = protocol.threshold

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        inside, union = intersection_union(foreground(outputs["seg"], self.threshold), batch)
        iou = inside.flatten(1).sum(1) / (union.flatten(1).sum(1) + 1e-4)
        self.sums["iou"] += iou.double().sum().cpu()
        self.sums["samples"] += real_samples(batch).sum().cpu()

    def compute(self) -> dict[str, float]:
        return {self.name: float(self.sums["iou"] / self.sums["samples"])}


class DistanceIoU(CountedIoU):
    """Global IoU in bins of distance from the reference camera.

    Args:
        protocol: with ``bins``, the ascending edges in metres; a bin holds its lower edge and not its upper one.
        distances: (Z, X) metres, of :func:`cell_distances`.
    """

    def __init__(self, protocol: BEVIoUProtocol, distances: np.ndarray, name: str = "iou_distance") -> None:
        self.num_bins = len(protocol.bins) - 1
        super().__init__(protocol, name, (self.num_bins,))
        bins = np.searchsorted(np.asarray(protocol.bins), distances.ravel(), side="right") - 1
        self._bins = torch.from_numpy(np.where((bins >= 0) & (bins < self.num_bins), bins, self.num_bins))  # (Z*X,)

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        per_cell = self.masks(outputs, batch).sum((1, 2)).flatten(1).cpu().double()  # (4, Z*X)
        for value, cells in zip(self.sums.values(), per_cell, strict=True):
            value += torch.bincount(self._bins, cells, self.num_bins + 1)[: self.num_bins]

    def compute(self) -> dict[str, float]:
        iou = (self.sums["intersection"] / self.sums["union"]).tolist()
        return {f"{self.name}_{low:04.1f}-{high:04.1f}m": iou[i] for i, (low, high) in enumerate(self.edges)}

    @property
    def edges(self) -> list[tuple[float, float]]:
        """(lower, upper) edge of every bin, metres."""
        return list(pairwise(self.protocol.bins))


def cell_distances(grid: BEVGrid, frame: DistanceFrame = "ground") -> np.ndarray:
    """Distance (Z, X) of the cells' centres from the reference camera, metres.

    ``ground``: along the ground, sqrt(x^2 + z^2). ``top_voxel``: in 3-D to the centre of the highest voxel of the
    column, as in Simple-BEV's eval_over_distance.py; no cell is then nearer than that voxel is above the camera.
    """
    x, y, z = grid.axis_centers()
    height = y[0] if frame == "top_voxel" else 0.0
    return np.sqrt(x[None, :] ** 2 + z[:, None] ** 2 + height**2)


class CellCounts(SumMetric):
    """How often each cell is foreground among the samples where it counts; what constant predictions need."""

    def __init__(self, protocol: BEVIoUProtocol, shape: tuple[int, int]) -> None:
        super().__init__({"positive": shape, "valid": shape})
        self.protocol = protocol

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        counted = counted_cells(batch)
        self.sums["positive"] += (batch["seg"].bool() & counted).sum((0, 1)).cpu()
        self.sums["valid"] += counted.sum((0, 1)).cpu()

    def compute(self) -> dict[str, float]:
        return {"foreground_fraction": float(self.sums["positive"].sum() / self.sums["valid"].sum())}

    def iou_of(self, mask: np.ndarray) -> float:
        """Global IoU of predicting ``mask`` (Z, X) bool for every sample."""
        positive, valid = self.sums["positive"].numpy(), self.sums["valid"].numpy()
        union = positive.sum() + (valid - positive)[mask].sum()
        return float(positive[mask].sum() / union) if union else float("nan")

    def best_mask(self) -> np.ndarray:
        """The constant mask (Z, X) of the highest global IoU on these samples.

        I / U with I = positives inside and U = all positives + negatives inside is largest for a set of the cells with
        the highest share of positives (adding a cell helps exactly if its positives / negatives exceed I / U), so
        trying every prefix in that order is exact.
        """
        positive = self.sums["positive"].numpy().ravel()
        negative = self.sums["valid"].numpy().ravel() - positive
        order = np.argsort(-positive / np.maximum(positive + negative, 1), kind="stable")
        iou = np.cumsum(positive[order]) / np.maximum(positive.sum() + np.cumsum(negative[order]), 1)
        mask = np.zeros(len(order), bool)
        mask[order[: int(iou.argmax()) + 1]] = positive.sum() > 0
        return mask.reshape(tuple(self.sums["positive"].shape))
