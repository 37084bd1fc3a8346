"""IoU and IoU over distance against Simple-BEV: every array of iou.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.metrics.bev_iou import BEVIoUProtocol, DistanceIoU, GlobalIoU, SampleMeanIoU, cell_distances

pytestmark = pytest.mark.golden

GOLDEN = dict(np.load(Path(__file__).parent / "data" / "simple_bev" / "iou.npz"))
INPUTS = {"logits", "gt", "valid", "dist_logits", "dist_gt", "dist_valid", "dist_bin_edges_m"}
MATCHED = {
    "train_iou_per_batch", "train_iou_mean", "intersection", "union", "global_iou_percent", "dist_inter", "dist_union",
}  # fmt: skip


def _batch(index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outputs = {"seg": torch.from_numpy(GOLDEN["logits"][index])}
    return outputs, {"seg": torch.from_numpy(GOLDEN["gt"][index]), "valid": torch.from_numpy(GOLDEN["valid"][index])}


def test_every_array_is_looked_at() -> None:
    assert set(GOLDEN) == INPUTS | MATCHED
    assert len(MATCHED) == 7


def test_global_iou() -> None:
    total = GlobalIoU(BEVIoUProtocol())
    for index in range(len(GOLDEN["logits"])):
        one = GlobalIoU(BEVIoUProtocol())
        one.update(*_batch(index))
        assert float(one.sums["intersection"]) == GOLDEN["intersection"][index]
        assert float(one.sums["union"]) == GOLDEN["union"][index]
        total.merge(one.state())
    assert 100 * total.compute()["iou"] == pytest.approx(float(GOLDEN["global_iou_percent"]), abs=1e-4)


def test_mean_over_samples() -> None:
    total = SampleMeanIoU(BEVIoUProtocol())
    for index in range(len(GOLDEN["logits"])):
        one = SampleMeanIoU(BEVIoUProtocol())
        one.update(*_batch(index))
        assert one.compute()["iou_sample_mean"] == pytest.approx(GOLDEN["train_iou_per_batch"][index], abs=1e-6)
        total.merge(one.state())
    assert total.compute()["iou_sample_mean"] == pytest.approx(float(GOLDEN["train_iou_mean"]), abs=1e-6)


def test_iou_over_distance() -> None:
    protocol = BEVIoUProtocol(bins=tuple(GOLDEN["dist_bin_edges_m"].tolist()), distance="top_voxel")
    metric = DistanceIoU(protocol, cell_distances(BEVGrid(cells=(40, 4, 40)), "top_voxel"))
    outputs = {"seg": torch.from_numpy(GOLDEN["dist_logits"])[:, None]}
    truth = {
        name: torch.from_numpy(GOLDEN[f"dist_{key}"])[:, None] for name, key in (("seg", "gt"), ("valid", "valid"))
    }
    metric.update(outputs, truth)
    assert np.array_equal(metric.sums["intersection"].numpy(), GOLDEN["dist_inter"])
    assert np.array_equal(metric.sums["union"].numpy(), GOLDEN["dist_union"])
