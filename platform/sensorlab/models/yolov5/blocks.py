"""Building blocks of YOLOv5: convolution with norm, cross-stage-partial stages, pyramid pooling.

Written from the published description of the networks. Attribute names (``conv``, ``bn``, ``cv1``, ``m``) are those of
the published state dicts, so that these load by name; all maps are (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Makes a fresh activation module.
Activation = Callable[[], nn.Module]
BN_EPS, BN_MOMENTUM = 1e-3, 0.03


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the constants of all YOLOv5 networks."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, activation.

    Args:
        in_channels, out_channels: of the map.
        kernel: side of the kernel.
        stride: step of the kernel.
        padding: by default half of the kernel, so that stride 1 keeps the size.
        activation: makes the activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        *,
        activation: Activation,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = batch_norm(out_channels)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        return self.act(self.bn(self.conv(x)))


class Focus(nn.Module):
    """The stem of the networks before v6: each 2x2 patch of pixels becomes the channels of one, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, activation: Activation) -> None:
        super().__init__()
        self.conv = ConvBlock(4 * in_channels, out_channels, kernel, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H/2, W/2). Patch order: down the columns, then along the row."""
        patches = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(patches, dim=1))  # (N, 4 * in_channels, H/2, W/2) inside


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution of one width, with a shortcut around them where asked for."""

    def __init__(self, channels: int, shortcut: bool, *, activation: Activation) -> None:
        super().__init__()
        self.cv1 = ConvBlock(channels, channels, 1, activation=activation)
        self.cv2 = ConvBlock(channels, channels, 3, activation=activation)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class BottleneckCSP(nn.Module):
    """Cross-stage-partial stage of the networks before v4 (Wang et al. 2019): two branches, joined under a norm.

    Args:
        in_channels, out_channels: of the map; each branch has half of the latter.
        num_blocks: bottlenecks of the first branch.
        shortcut: whether they are residual.
        activation: of the convolutions. The norm over both branches is always followed by a leaky ReLU (0.1).
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, shortcut: bool, *, activation: Activation
    ) -> None:
        super().__init__()
        width = out_channels // 2
        self.cv1 = ConvBlock(in_channels, width, 1, activation=activation)
        self.cv2 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.cv3 = nn.Conv2d(width, width, 1, bias=False)
        self.cv4 = ConvBlock(2 * width, out_channels, 1, activation=activation)
        self.bn = batch_norm(2 * width)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.m = nn.Sequential(*(Bottleneck(width, shortcut, activation=activation) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        branches = [self.cv3(self.m(self.cv1(x))), self.cv2(x)]
        return self.cv4(self.act(self.bn(torch.cat(branches, dim=1))))


class C3(nn.Module):
    """Cross-stage-partial stage since v4: as :class:`BottleneckCSP` with three convolutions, each with its own norm."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, shortcut: bool, *, activation: Activation
    ) -> None:
        super().__init__()
        width = out_channels // 2
        self.cv1 = ConvBlock(in_channels, width, 1, activation=activation)
        self.cv2 = ConvBlock(in_channels, width, 1, activation=activation)
        self.cv3 = ConvBlock(2 * width, out_channels, 1, activation=activation)
        self.m = nn.Sequential(*(Bottleneck(width, shortcut, activation=activation) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))


class SPP(nn.Module):
    """Spatial pyramid pooling (He et al. 2014): the map beside its maxima over windows of three sizes."""

    def __init__(
        self, in_channels: int, out_channels: int, windows: tuple[int, ...] = (5, 9, 13), *, activation: Activation
    ) -> None:
        super().__init__()
        width = in_channels // 2
        self.cv1 = ConvBlock(in_channels, width, 1, activation=activation)
        self.cv2 = ConvBlock(width * (len(windows) + 1), out_channels, 1, activation=activation)
        self.windows = windows

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(_window_max(x, window) for window in self.windows)], dim=1))


class SPPF(nn.Module):
    """:class:`SPP` at less cost (v6 on): windows 5, 9 and 13 by pooling over 5 once, twice and three times."""

    def __init__(self, in_channels: int, out_channels: int, window: int = 5, *, activation: Activation) -> None:
        super().__init__()
        width = in_channels // 2
        self.cv1 = ConvBlock(in_channels, width, 1, activation=activation)
        self.cv2 = ConvBlock(4 * width, out_channels, 1, activation=activation)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        pooled = [self.cv1(x)]
        for _ in range(3):
            pooled.append(_window_max(pooled[-1], self.window))
        return self.cv2(torch.cat(pooled, dim=1))


def _window_max(x: Tensor, window: int) -> Tensor:
    """Maximum over the window around each cell; the size stays."""
    return F.max_pool2d(x, window, stride=1, padding=window // 2)
