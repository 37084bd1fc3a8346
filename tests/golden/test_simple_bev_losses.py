"""Losses and their gradients against Simple-BEV: every array of losses.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sensorlab.metrics.bev_iou import BEVIoUProtocol, SampleMeanIoU
from sensorlab.tasks.bev_segmentation.config import LossConfig
from sensorlab.tasks.bev_segmentation.losses import bev_losses

pytestmark = pytest.mark.golden

GOLDEN = dict(np.load(Path(__file__).parent / "data" / "simple_bev" / "losses.npz"))
CASES = ("A", "B", "C", "D")
INPUTS = {"pred_seg", "pred_center", "pred_offset", "gt_seg", "gt_valid", "gt_center", "gt_offset", "weights"}
MATCHED = {"losses", "grad_seg", "grad_center", "grad_offset", "grad_weights"}


class Scales(nn.Module):
    """The learned scales of the network, by their names there."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.ce_weight, self.center_weight, self.offset_weight = (
            nn.Parameter(torch.tensor(float(value))) for value in values
        )


def test_every_array_is_looked_at() -> None:
    assert set(GOLDEN) == {f"{case}_{name}" for case in CASES for name in INPUTS | MATCHED}
    assert len(CASES) * len(MATCHED) == 20


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case: str) -> None:
    outputs = {
        name: torch.from_numpy(GOLDEN[f"{case}_pred_{name}"]).requires_grad_() for name in ("seg", "center", "offset")
    }
    batch = {name: torch.from_numpy(GOLDEN[f"{case}_gt_{name}"]) for name in ("seg", "valid", "center", "offset")}
    model = Scales(GOLDEN[f"{case}_weights"])
    terms, _ = bev_losses(outputs, batch, model, LossConfig(), reduction="batch", mask_center=False)
    total = torch.stack(list(terms.values())).sum()
    total.backward()

    metric = SampleMeanIoU(BEVIoUProtocol())
    metric.update({"seg": outputs["seg"].detach()}, batch)
    values = [float(v.detach()) for v in (total, terms["seg"], terms["center"], terms["offset"])]
    np.testing.assert_allclose(
        [*values, metric.compute()["iou_sample_mean"]], GOLDEN[f"{case}_losses"], rtol=2e-5, atol=1e-6
    )
    for name, output in outputs.items():
        assert output.grad is not None
        np.testing.assert_allclose(output.grad.numpy(), GOLDEN[f"{case}_grad_{name}"], rtol=1e-4, atol=1e-7)
    scales = [float(p.grad) for p in model.parameters() if p.grad is not None]
    np.testing.assert_allclose(scales, GOLDEN[f"{case}_grad_weights"], rtol=1e-4, atol=1e-6)
