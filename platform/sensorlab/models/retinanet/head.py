"""RetinaNet's head: two towers of convolutions that all levels share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sensorlab.models.necks.fpn import named_conv

# Score of every class on every anchor at the start, so that the many empty anchors do not swamp the first steps.
PRIOR = 0.01


class RetinaHead(nn.Module):
    """Classes and displacements of every anchor. Parameter names are mmdetection's.

    Args:
        num_classes: C.
        num_anchors: anchors per cell A.
        channels: of the pyramid levels and of the towers.
        num_convs: convolutions of each tower.
    """

    def __init__(self, num_classes: int, num_anchors: int, channels: int = 256, num_convs: int = 4) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        self.cls_convs = nn.Sequential(*(named_conv(channels, channels, 3, relu=True) for _ in range(num_convs)))
        self.reg_convs = nn.Sequential(*(named_conv(channels, channels, 3, relu=True) for _ in range(num_convs)))
        self.retina_cls = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        assert self.retina_cls.bias is not None
        nn.init.constant_(self.retina_cls.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, channels, H, W) per level -> (B, H, W, A, 4 + C) per level: dx, dy, dw, dh, logits of the classes."""
        raw = []
        for level in levels:
            logits = self.retina_cls(self.cls_convs(level))  # (B, A * C, H, W)
            deltas = self.retina_reg(self.reg_convs(level))  # (B, A * 4, H, W)
            raw.append(torch.cat([self._by_anchor(deltas), self._by_anchor(logits)], dim=-1))
        return raw

    def _by_anchor(self, maps: Tensor) -> Tensor:
        """(B, A * K, H, W) -> (B, H, W, A, K)."""
        return maps.permute(0, 2, 3, 1).unflatten(-1, (self.num_anchors, -1))
