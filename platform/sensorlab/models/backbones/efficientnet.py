"""EfficientNet trunks (Tan and Le 2019), b0 and b4, with ``efficientnet_pytorch``'s parameter names and arithmetic.

Published checkpoints of that package (and of networks built on it) load by name. Two of its habits are kept because
weights depend on them:

* "Same" padding is fixed at construction, as if every input had the variant's nominal size (224 px for b0, 380 px for
  b4). For b4 the odd 95 px map makes block 6 (5x5, stride 2) pad 2 on every side, where an even map, which is what
  real inputs have, would ask for 1 before and 2 after.
* A block's drop-connect rate grows with its index over the blocks *that exist in the trunk*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorlab.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One row of table 1 of the paper, at b0 scale."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int


STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)
# variant: (width multiplier, depth multiplier, nominal input size in pixels)
VARIANTS = {"b0": (1.0, 1.0, 224), "b4": (1.4, 1.8, 380)}

STEM_CHANNELS = 32
SQUEEZE_RATIO = 0.25  # squeezed channels over the block's *input* channels
DROP_CONNECT_RATE = 0.2  # of the block after the last one
NORM_EPS = 1e-3
NORM_MOMENTUM = 0.01


def scale_channels(channels: int, multiplier: float, divisor: int = 8) -> int:
    """Scaled channels, rounded to a multiple of ``divisor`` but never down by more than 10 %."""
    scaled = channels * multiplier
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding (before, after) along an axis of ``size``: output size is ceil(size / stride)."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class StaticSameConv2d(nn.Conv2d):
    """Convolution without bias whose "same" padding was fixed for a nominal input size.

    Args:
        nominal_size: height and width in pixels for which the padding is computed.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, nominal_size: int, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False, groups=groups)
        before, after = same_padding(nominal_size, kernel_size, stride)
        if before == after:  # fold into the convolution: no padded copy of the input
            self.padding = (before, before)
        self.extra_padding = None if before == after else (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride)) for sizes of the nominal size's parity."""
        return super().forward(x if self.extra_padding is None else F.pad(x, self.extra_padding))


def drop_connect(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth: zero whole samples with probability ``rate``, scale the rest to keep the mean. (N, C, H, W)."""
    keep = 1.0 - rate
    mask = torch.floor(keep + torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device))
    return x / keep * mask


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with EfficientNet's constants."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class MBConvBlock(nn.Module):
    """Mobile inverted bottleneck: expand 1x1, depthwise, squeeze-and-excitation, project 1x1, residual.

    Args:
        nominal_size: size of the input map for the variant's nominal image, see :class:`StaticSameConv2d`.
        drop_connect_rate: probability that a sample skips the residual branch in training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expansion: int,
        nominal_size: int,
        drop_connect_rate: float,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        squeezed = max(1, int(in_channels * SQUEEZE_RATIO))
        self.has_residual = stride == 1 and in_channels == out_channels
        self.drop_connect_rate = drop_connect_rate
        self._expand_conv: nn.Conv2d | None = None
        if expansion != 1:
            self._expand_conv = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self._bn0 = batch_norm(hidden)
        self._depthwise_conv = StaticSameConv2d(hidden, hidden, kernel_size, stride, nominal_size, groups=hidden)
        self._bn1 = batch_norm(hidden)
        self._se_reduce = nn.Conv2d(hidden, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, hidden, 1)
        self._project_conv = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self._bn2 = batch_norm(out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        x = inputs
        if self._expand_conv is not None:
            x = F.silu(self._bn0(self._expand_conv(x)))  # (N, hidden, H, W)
        x = F.silu(self._bn1(self._depthwise_conv(x)))  # (N, hidden, H/stride, W/stride)
        gate = x.mean(dim=(2, 3), keepdim=True)  # (N, hidden, 1, 1)
        gate = self._se_expand(F.silu(self._se_reduce(gate)))
        x = self._bn2(self._project_conv(torch.sigmoid(gate) * x))  # (N, out_channels, H/stride, W/stride)
        if not self.has_residual:
            return x
        if self.training and self.drop_connect_rate > 0:
            x = drop_connect(x, self.drop_connect_rate)
        return x + inputs


class EfficientNet(nn.Module):
    """EfficientNet trunk: stem and the first ``num_blocks`` blocks, without head.

    Args:
        variant: "b0" (16 blocks) or "b4" (32 blocks).
        num_blocks: blocks to keep; all by default.
        out_blocks: ascending indices of the blocks whose outputs are returned; the last block by default.

    Attributes:
        out_channels, out_strides: of the returned feature maps, in the order of ``out_blocks``.

    Raises:
        UserError: unknown variant or block.
    """

    def __init__(self, variant: str, num_blocks: int | None = None, out_blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise UserError(f"EfficientNet variant {variant!r} does not exist; variants: {', '.join(VARIANTS)}")
        width, depth, size = VARIANTS[variant]
        layout = _block_layout(width, depth)
        num_blocks = len(layout) if num_blocks is None else num_blocks
        self.out_blocks = (num_blocks - 1,) if out_blocks is None else tuple(out_blocks)
        if not 0 < num_blocks <= len(layout) or not set(self.out_blocks) <= set(range(num_blocks)):
            raise UserError(
                f"EfficientNet {variant} has blocks 0 to {len(layout) - 1}; "
                f"asked to keep {num_blocks} and to return {self.out_blocks}"
            )
        stem_channels = scale_channels(STEM_CHANNELS, width)
        self._conv_stem = StaticSameConv2d(3, stem_channels, 3, 2, nominal_size=size)
        self._bn0 = batch_norm(stem_channels)
        size, stride = math.ceil(size / 2), 2
        self._blocks = nn.ModuleList()
        strides = []
        for index, block in enumerate(layout[:num_blocks]):
            rate = DROP_CONNECT_RATE * index / num_blocks
            self._blocks.append(
                MBConvBlock(
                    block.in_channels, block.out_channels, block.kernel_size, block.stride, block.expansion, size, rate
                )
            )
            size, stride = math.ceil(size / block.stride), stride * block.stride
            strides.append(stride)
        self.out_channels = tuple(layout[index].out_channels for index in self.out_blocks)
        self.out_strides = tuple(strides[index] for index in self.out_blocks)
        self._init_weights()

    def _init_weights(self) -> None:
        """Fan-out normal convolutions (fan-out counted per group, as in the original), zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised images -> outputs of ``out_blocks``: (N, C_i, H / stride_i, W / stride_i)."""
        x = F.silu(self._bn0(self._conv_stem(images)))  # (N, stem_channels, H/2, W/2)
        features = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.out_blocks:
                features.append(x)
        return features


def _block_layout(width: float, depth: float) -> list[Stage]:
    """One entry (``repeats`` 1) per block at the given scale."""
    layout = []
    for stage in STAGES:
        in_channels = scale_channels(stage.in_channels, width)
        out_channels = scale_channels(stage.out_channels, width)
        for repeat in range(math.ceil(stage.repeats * depth)):
            first = repeat == 0
            layout.append(
                Stage(
                    repeats=1,
                    kernel_size=stage.kernel_size,
                    stride=stage.stride if first else 1,
                    expansion=stage.expansion,
                    in_channels=in_channels if first else out_channels,
                    out_channels=out_channels,
                )
            )
    return layout
