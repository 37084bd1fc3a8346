"""The three losses of Simple-BEV and their weighing by learned scales (uncertainty weighting).

All means run over the cells that count; ``reduction`` says which cells are averaged together: those of each sample,
followed by a mean over samples (then the loss does not depend on how samples are spread over workers and
micro-batches), or those of the whole batch (the original).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorlab.tasks.bev_segmentation.config import LossConfig

Reduction = Literal["sample", "batch"]
_EPSILON = 1e-6  # keeps means over no cell at zero


def masked_mean(values: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Scalar mean of ``values`` (B, 1, Z, X) over the cells where ``mask`` (same shape, 0/1) is 1; 0 without any."""
    dims = (0, 1, 2, 3) if reduction == "batch" else (1, 2, 3)
    return ((values * mask).sum(dims) / (mask.sum(dims) + _EPSILON)).mean()


def segmentation_loss(logits: Tensor, truth: Tensor, valid: Tensor, pos_weight: float, reduction: Reduction) -> Tensor:
    """Binary cross entropy (B, 1, Z, X) over valid cells, foreground weighed by ``pos_weight``."""
    weight = torch.full((1,), pos_weight, dtype=logits.dtype, device=logits.device)
    loss = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight, reduction="none")
    return masked_mean(loss, valid, reduction)


def center_loss(heat: Tensor, truth: Tensor, valid: Tensor | None, reduction: Reduction) -> Tensor:
    """Squared error of heat maps (B, 1, Z, X), hot (> 0.5) and cold (< 0.5) cells balanced against each other.

    ``valid=None``: all cells count, as in the original.
    """
    error = (heat - truth) ** 2
    counted = torch.ones_like(truth) if valid is None else valid
    hot = masked_mean(error, (truth > 0.5) * counted, reduction)
    cold = masked_mean(error, (truth < 0.5) * counted, reduction)
    return 0.5 * (hot + cold)


def offset_loss(offset: Tensor, truth: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Absolute error of offsets (B, 2, Z, X), summed over x and z, over the cells of ``mask`` (B, 1, Z, X)."""
    return masked_mean((offset - truth).abs().sum(1, keepdim=True), mask, reduction)


def bev_losses(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    model: nn.Module,
    config: LossConfig,
    reduction: Reduction = "sample",
    mask_center: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(terms, extras) of a batch; the objective is the sum of the terms.

    With ``config.uncertainty`` a loss L of scale w (``model.ce_weight``, ``center_weight``, ``offset_weight``: scalars)
    becomes L * exp(-w), and the term ``uncertainty`` = (sum of w) / 2 keeps w from growing (Kendall et al., 2018).
    """
    seg, center, offset = (outputs[name].float() for name in ("seg", "center", "offset"))
    truth, valid = batch["seg"].float(), batch["valid"].float()
    raw = {
        "seg": segmentation_loss(seg, truth, valid, config.pos_weight, reduction),
        "center": center_loss(center, batch["center"].float(), valid if mask_center else None, reduction),
        "offset": offset_loss(offset, batch["offset"].float(), truth * valid, reduction),
    }
    factors = {"seg": config.seg, "center": config.center, "offset": config.offset}
    extras = {f"raw_{name}": value for name, value in raw.items()}
    if not config.uncertainty:
        return {name: factors[name] * value for name, value in raw.items()}, extras
    scales: dict[str, Tensor] = {"seg": model.ce_weight, "center": model.center_weight, "offset": model.offset_weight}  # type: ignore[dict-item]
    terms = {name: factors[name] * value * torch.exp(-scales[name]) for name, value in raw.items()}
    terms["uncertainty"] = 0.5 * torch.stack(list(scales.values())).sum()
    extras |= {f"scale_{name}": scale.detach() for name, scale in scales.items()}
    return terms, extras
