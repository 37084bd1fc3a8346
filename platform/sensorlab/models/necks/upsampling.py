"""Joining of a coarse feature map with a finer one from an earlier stage.

Both modules use instance norm without affine parameters or running statistics: they hold convolution weights only
and behave equally in training and evaluation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upsample_twice(x: Tensor) -> Tensor:
    """Bilinear x2 with half-pixel centres: (N, C, H, W) -> (N, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class UpsamplingConcat(nn.Module):
    """Upsample the coarse map, concatenate behind the fine one, mix by two 3x3 convolutions.

    Args:
        in_channels: channels of both inputs together.
        out_channels: channels of the result, also between the two convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, C1, H, W) and (N, C2, 2H, 2W) -> (N, out_channels, 2H, 2W)."""
        x = torch.cat([fine, upsample_twice(coarse)], dim=1)  # (N, C2 + C1, 2H, 2W): fine channels first
        return self.conv(x)


class UpsamplingAdd(nn.Module):
    """Upsample the coarse map, project its channels, add the fine one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # Index 1 holds the only weights: the published state dict names them ``upsample_layer.1.weight``.
        self.upsample_layer = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.InstanceNorm2d(out_channels),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, in_channels, H, W) and (N, out_channels, 2H, 2W) -> (N, out_channels, 2H, 2W)."""
        return self.upsample_layer(coarse) + fine
