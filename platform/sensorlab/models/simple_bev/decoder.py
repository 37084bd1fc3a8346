"""BEV decoder of Simple-BEV: a small residual U-net over the ground plane and four heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorlab.models.backbones.resnet import BasicBlock, init_residual_network, residual_stage
from sensorlab.models.necks.upsampling import UpsamplingAdd

STRIDE = 8  # BEV cells per cell of the coarsest map: both sides of the grid must be multiples of it


def build_head(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, instance norm, ReLU, 1x1 projection: (B, in_channels, Z, X) -> (B, out_channels, Z, X)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
        nn.InstanceNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, 1),
    )


class BEVDecoder(nn.Module):
    """ResNet-18 stages 1 to 3 over the BEV map, three upsampling skips back to full size, four heads.

    Args:
        in_channels: channels of the BEV map and of the shared feature map before the heads.
        width: channels of the first stage; the second and third have twice and four times as many. 64 is published.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        self.first_conv = nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = residual_stage(BasicBlock, width, width, 2, stride=1)
        self.layer2 = residual_stage(BasicBlock, width, 2 * width, 2, stride=2)
        self.layer3 = residual_stage(BasicBlock, 2 * width, 4 * width, 2, stride=2)
        for stage in (self.layer1, self.layer2, self.layer3):
            init_residual_network(stage, zero_init_residual=True)  # trained from scratch: start as shortcuts
        self.up3_skip = UpsamplingAdd(4 * width, 2 * width)
        self.up2_skip = UpsamplingAdd(2 * width, width)
        self.up1_skip = UpsamplingAdd(width, in_channels)
        self.feat_head = build_head(in_channels, in_channels)
        self.segmentation_head = build_head(in_channels, 1)
        self.instance_offset_head = build_head(in_channels, 2)
        self.instance_center_head = build_head(in_channels, 1)

    def trunk(self, bev: Tensor) -> Tensor:
        """Shared features before the heads: (B, in_channels, Z, X) -> the same shape."""
        x = self.relu(self.bn1(self.first_conv(bev)))  # (B, width, Z/2, X/2)
        stage1 = self.layer1(x)  # (B, width, Z/2, X/2)
        stage2 = self.layer2(stage1)  # (B, 2 width, Z/4, X/4)
        stage3 = self.layer3(stage2)  # (B, 4 width, Z/8, X/8)
        x = self.up3_skip(stage3, stage2)  # (B, 2 width, Z/4, X/4)
        x = self.up2_skip(x, stage1)  # (B, width, Z/2, X/2)
        return self.up1_skip(x, bev)  # (B, in_channels, Z, X)

    def heads(self, x: Tensor, with_features: bool = False) -> dict[str, Tensor]:
        """Predictions from shared features (B, in_channels, Z, X).

        Returns:
            ``seg`` (B, 1, Z, X) logits; ``center`` (B, 1, Z, X) heat map in [0, 1]; ``offset`` (B, 2, Z, X) in cells;
            with ``with_features`` also ``feat`` (B, in_channels, Z, X), the output of the head that has no loss.
            All are at least float32, also under autocast: losses and thresholds need it and the maps are small.
        """
        heads = {
            "seg": self.segmentation_head,
            "center": self.instance_center_head,
            "offset": self.instance_offset_head,
        }
        if with_features:
            heads["feat"] = self.feat_head
        outputs = {}
        for name, head in heads.items():
            output = head(x)
            outputs[name] = output.to(torch.promote_types(output.dtype, torch.float32))
        outputs["center"] = torch.sigmoid(outputs["center"])
        return outputs
