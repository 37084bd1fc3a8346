"""Residual networks (He et al. 2015) with torchvision's parameter names and arithmetic.

Written here because the project does not depend on torchvision: its state dicts (for example the ImageNet weights
``resnet50-0676ba61.pth``) load by name. As there, a bottleneck strides in its 3x3 convolution ("ResNet v1.5").
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sensorlab.errors import UserError


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size at stride 1; no bias, a norm follows."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution; no bias, a norm follows."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet-18, -34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that closes the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand around a shortcut (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that closes the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)


Block = type[BasicBlock] | type[Bottleneck]

# depth: (block, number of blocks in stages 1 to 4)
RESNETS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def residual_stage(block: Block, in_channels: int, width: int, num_blocks: int, stride: int) -> nn.Sequential:
    """A stage of ``num_blocks`` blocks; the first strides and projects the shortcut where its shape changes.

    Output channels: ``width * block.expansion``.
    """
    out_channels = width * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
    blocks = [block(in_channels, width, stride, downsample)]
    blocks += [block(out_channels, width) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def init_residual_network(module: nn.Module, zero_init_residual: bool = False) -> None:
    """He initialisation as in torchvision: fan-out normal convolutions, unit norms.

    Args:
        module: initialised in place, with everything below it.
        zero_init_residual: start every residual branch at zero, so that each block begins as its shortcut
            (Goyal et al. 2017, "Accurate, large minibatch SGD").
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(child, nn.BatchNorm2d):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
    if zero_init_residual:
        for child in module.modules():
            if isinstance(child, BasicBlock | Bottleneck):
                nn.init.zeros_(child.last_norm.weight)


class ResNet(nn.Module):
    """ResNet trunk, cut after the last stage that is asked for.

    Parameter names are torchvision's (``conv1``, ``bn1``, ``layer1`` .. ``layer4``); stages beyond the last one
    and the classifier ``fc`` do not exist.

    Args:
        depth: 18, 34, 50 or 101.
        out_stages: ascending stages 1..4 whose feature maps are returned; stage s has stride ``2 ** (s + 1)``.
        zero_init_residual: see :func:`init_residual_network`.
        frozen_stages: 0 keeps the stem at its values, s also the stages up to s, with the statistics of their norms;
            None trains everything. Detectors start from ImageNet weights and keep the generic first filters.
        norm_eval: all norms work with the statistics that they have, also in training: a few large images per device
            are no sample of the data. Their scales and offsets are trained.

    Attributes:
        out_channels: channels of the returned feature maps, in the order of ``out_stages``.

    Raises:
        UserError: unknown depth or stage.
    """

    def __init__(
        self,
        depth: int,
        out_stages: Sequence[int] = (1, 2, 3, 4),
        zero_init_residual: bool = False,
        *,
        frozen_stages: int | None = None,
        norm_eval: bool = False,
    ) -> None:
        super().__init__()
        if depth not in RESNETS:
            raise UserError(f"ResNet depth {depth} does not exist; depths: {', '.join(map(str, RESNETS))}")
        if not out_stages or list(out_stages) != sorted(set(out_stages)) or not set(out_stages) <= {1, 2, 3, 4}:
            raise UserError(f"ResNet stages {tuple(out_stages)} must be ascending numbers from 1 to 4")
        if frozen_stages is not None and not 0 <= frozen_stages <= max(out_stages):
            raise UserError(f"ResNet frozen_stages {frozen_stages} must be from 0 (the stem) to {max(out_stages)}")
        block, num_blocks = RESNETS[depth]
        self.out_stages = tuple(out_stages)
        self.norm_eval = norm_eval
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = 64
        stage_channels = {}
        for stage in range(1, max(out_stages) + 1):
            width = 32 * 2**stage
            stride = 1 if stage == 1 else 2
            self.add_module(f"layer{stage}", residual_stage(block, channels, width, num_blocks[stage - 1], stride))
            channels = width * block.expansion
            stage_channels[stage] = channels
        self.out_channels = tuple(stage_channels[stage] for stage in out_stages)
        init_residual_network(self, zero_init_residual)
        self._frozen: tuple[str, ...] = ()
        if frozen_stages is not None:
            self._frozen = ("conv1", "bn1", *(f"layer{stage}" for stage in range(1, frozen_stages + 1)))
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> ResNet:
        """As always, but what is frozen and, with ``norm_eval``, every norm stays in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised images -> feature maps of ``out_stages``: (N, C_s, H / 2^(s+1), W / 2^(s+1))."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (N, 64, H/4, W/4)
        features = []
        for stage in range(1, self.out_stages[-1] + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            if stage in self.out_stages:
                features.append(x)
        return features
