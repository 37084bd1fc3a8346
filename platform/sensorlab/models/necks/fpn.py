"""Feature pyramid network (Lin et al. 2017, arXiv 1612.03144) with the extra levels of RetinaNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def named_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, relu: bool = False) -> nn.Module:
    """A convolution with bias that keeps the size at stride 1; its weights are called ``conv.*``, as in mmdetection."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


class FeaturePyramid(nn.Module):
    """Maps of one width at many scales: each gets what the coarser ones know, then further ones are strided off.

    Parameter names are mmdetection's (``lateral_convs.i.conv``, ``fpn_convs.i.conv``). The extra levels start from the
    coarsest input map, not from its pyramid level, and have no activation between them (RetinaNet's P6 and P7 there).

    Args:
        in_channels: channels of the input maps, finest first; each map has half the size of the one before.
        out_channels: channels of all levels.
        num_levels: levels returned, at least as many as there are inputs.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, num_levels: int = 5) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(named_conv(channels, out_channels, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(named_conv(out_channels, out_channels, 3) for _ in in_channels)
        channels = in_channels[-1]
        for _ in range(num_levels - len(in_channels)):
            self.fpn_convs.append(named_conv(channels, out_channels, 3, stride=2))
            channels = out_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) per input, finest first -> (B, out_channels, H_l, W_l) per level; sizes of any parity."""
        merged = [lateral(feature) for lateral, feature in zip(self.lateral_convs, features, strict=True)]
        for i in reversed(range(len(merged) - 1)):  # top-down: coarse to fine
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        levels = [conv(feature) for conv, feature in zip(self.fpn_convs, merged, strict=False)]
        extra = features[-1]
        for conv in list(self.fpn_convs)[len(merged) :]:
            extra = conv(extra)
            levels.append(extra)
        return levels
