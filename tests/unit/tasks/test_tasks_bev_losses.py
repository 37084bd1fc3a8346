"""The losses where they differ from the original: reduction per sample, masks. Parity is a golden test."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sensorlab.tasks.bev_segmentation.config import LossConfig
from sensorlab.tasks.bev_segmentation.losses import bev_losses


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ce_weight = nn.Parameter(torch.tensor(0.3))
        self.center_weight = nn.Parameter(torch.tensor(-0.2))
        self.offset_weight = nn.Parameter(torch.tensor(0.1))


def _random(batch: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 1, 8, 8)
    outputs = {
        "seg": torch.randn(shape, generator=generator),
        "center": torch.rand(shape, generator=generator),
        "offset": torch.randn(batch, 2, 8, 8, generator=generator),
    }
    share = torch.linspace(0.1, 0.9, batch).view(-1, 1, 1, 1)  # samples differ in how many cells count
    truth = {
        "seg": (torch.rand(shape, generator=generator) < share).to(torch.uint8),
        "valid": (torch.rand(shape, generator=generator) < 1.1 - share).to(torch.uint8),
        "center": torch.rand(shape, generator=generator),
        "offset": torch.randn(batch, 2, 8, 8, generator=generator),
    }
    return outputs, truth


def _total(outputs: dict[str, Tensor], batch: dict[str, Tensor], rows: slice, reduction: str) -> Tensor:
    part = {name: value[rows] for name, value in outputs.items()}
    truth = {name: value[rows] for name, value in batch.items()}
    terms, _ = bev_losses(part, truth, Scales(), LossConfig(), reduction)  # type: ignore[arg-type]
    return torch.stack(list(terms.values())).sum()


def test_means_of_samples_do_not_depend_on_how_the_batch_is_split() -> None:
    outputs, batch = _random()
    whole = _total(outputs, batch, slice(0, 4), "sample")
    halves = (_total(outputs, batch, slice(0, 2), "sample") + _total(outputs, batch, slice(2, 4), "sample")) / 2
    torch.testing.assert_close(whole, halves)
    whole = _total(outputs, batch, slice(0, 4), "batch")
    halves = (_total(outputs, batch, slice(0, 2), "batch") + _total(outputs, batch, slice(2, 4), "batch")) / 2
    assert abs(whole - halves) > 1e-3


@pytest.mark.parametrize("mask_center", [True, False])
def test_cells_that_do_not_count_have_no_gradient(mask_center: bool) -> None:
    outputs, batch = _random()
    leaves = {name: value.requires_grad_() for name, value in outputs.items()}
    terms, _ = bev_losses(leaves, batch, Scales(), LossConfig(), mask_center=mask_center)
    torch.stack(list(terms.values())).sum().backward()
    hidden = batch["valid"] == 0
    assert hidden.any()
    for name in ("seg", "offset", "center"):
        gradient = leaves[name].grad
        assert gradient is not None
        assert gradient.any()
        touched = gradient[hidden.expand_as(gradient)].any()
        assert bool(touched) == (name == "center" and not mask_center)


def test_terms_add_up_and_the_raw_losses_are_recorded() -> None:
    outputs, batch = _random()
    model = Scales()
    terms, extras = bev_losses(outputs, batch, model, LossConfig())
    assert list(terms) == ["seg", "center", "offset", "uncertainty"]
    torch.testing.assert_close(terms["seg"], 10 * extras["raw_seg"] * torch.exp(-model.ce_weight))
    torch.testing.assert_close(terms["center"], 0.5 * extras["raw_center"] * torch.exp(-model.center_weight))
    torch.testing.assert_close(terms["offset"], 0.5 * extras["raw_offset"] * torch.exp(-model.offset_weight))
    assert float(terms["uncertainty"].detach()) == pytest.approx(0.1)
    assert not extras["scale_seg"].requires_grad
    fixed, _ = bev_losses(outputs, batch, nn.Module(), LossConfig(uncertainty=False, seg=2.0))
    assert list(fixed) == ["seg", "center", "offset"]
    torch.testing.assert_close(fixed["seg"], 2 * extras["raw_seg"])


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_nothing_to_learn_from_is_zero_not_nan(reduction: str) -> None:
    outputs, batch = _random()
    batch["valid"] = torch.zeros_like(batch["valid"])
    terms, _ = bev_losses(outputs, batch, Scales(), LossConfig(), reduction)  # type: ignore[arg-type]
    assert [float(terms[name].detach()) for name in ("seg", "center", "offset")] == [0, 0, 0]
