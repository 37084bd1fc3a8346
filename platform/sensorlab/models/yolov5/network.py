"""The YOLOv5 networks: a cross-stage-partial backbone, a path-aggregation neck, one 1x1 convolution per level.

Layers have the positions of the published networks in one list, so that published state dicts load by name. Sizes
differ in depth and width only: ``n, s, m, l, x`` scale the number of blocks and of channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sensorlab.errors import UserError
from sensorlab.models.yolov5.anchors import COCO_ANCHORS, STRIDES, anchor_tensor
from sensorlab.models.yolov5.blocks import C3, SPP, SPPF, Activation, BottleneckCSP, ConvBlock, Focus


class Size(NamedTuple):
    """Multiples of a network size."""

    depth: float  # of the number of blocks in a stage
    width: float  # of the number of channels


SIZES = {
    "n": Size(0.33, 0.25),
    "s": Size(0.33, 0.50),
    "m": Size(0.67, 0.75),
    "l": Size(1.00, 1.00),
    "x": Size(1.33, 1.25),
}


@dataclass(frozen=True)
class Variant:
    """What differs between the releases."""

    stage: Callable[..., nn.Module]  # the cross-stage-partial block
    activation: Activation
    focus: bool  # stem: patches to channels, else a strided 6x6 convolution
    fast_pooling: bool  # SPPF after the last stage, which is residual, else SPP before it, which is not
    stage4_blocks: int  # blocks of the stage at stride 8, before the depth multiple
    bias_gap: float  # eps in the prior log(0.6 / (classes - 1 + eps)) of the class scores


VARIANTS = {
    # The release of August 2020, v3.0 and v3.1.
    "v3": Variant(BottleneckCSP, lambda: nn.Hardswish(inplace=True), True, False, 9, 0.01),
    # The git tag v3.0, and v1, v2.
    "v3_leaky": Variant(BottleneckCSP, lambda: nn.LeakyReLU(0.1, inplace=True), True, False, 9, 0.01),
    "v5": Variant(C3, lambda: nn.SiLU(inplace=True), True, False, 9, 0.01),  # v4 and v5
    "v7": Variant(C3, lambda: nn.SiLU(inplace=True), False, True, 6, 1e-5),  # v6 and v7
}


class Detect(nn.Module):
    """The head: raw predictions of every anchor on every cell.

    Buffers:
        anchors: (levels, anchors, 2) float32 in cells of each level (published state dicts hold them so).
    """

    anchors: Tensor

    def __init__(self, num_classes: int, anchors: Tensor, strides: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.num_anchors = anchors.shape[1]
        self.register_buffer("anchors", anchors / torch.tensor(strides)[:, None, None])
        num_outputs = self.num_anchors * (5 + num_classes)
        self.m = nn.ModuleList(nn.Conv2d(width, num_outputs, 1) for width in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(N, C, H, W) per level -> (N, anchors, H, W, 5 + classes) per level: x, y, w, h, objectness, classes."""
        levels = []
        for feature, conv in zip(features, self.m, strict=True):
            batch, _, height, width = feature.shape
            raw = conv(feature).view(batch, self.num_anchors, -1, height, width)
            levels.append(raw.permute(0, 1, 3, 4, 2).contiguous())  # (N, anchors, H, W, 5 + classes)
        return levels

    def init_biases(self, strides: Sequence[int], bias_gap: float) -> None:
        """Start from the scores that random places deserve: 8 objects in a 640 px image, class scores of 0.6 / C.

        As in focal loss (Lin et al. 2017, section 3.3), so that the many empty cells do not swamp the first steps.
        """
        for conv, stride in zip(self.m, strides, strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            bias = conv.bias.detach().view(self.num_anchors, -1)  # (anchors, 5 + classes), shares the memory
            num_classes = bias.shape[1] - 5
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (num_classes - 1 + bias_gap))


class Concat(nn.Module):
    """Maps of one size, channels after channels."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, C_i, H, W) each -> (N, sum of C_i, H, W)."""
        return torch.cat(list(maps), dim=1)


# Layers that read others than the one before them, by position; the head reads P3, P4 and P5.
_ROUTES = {12: (11, 6), 16: (15, 4), 19: (18, 14), 22: (21, 10)}
_LEVELS = (17, 20, 23)
_KEPT = {position for route in (*_ROUTES.values(), _LEVELS) for position in route}


class YoloV5(nn.Module):
    """YOLOv5 detector.

    Args:
        variant: key of :data:`VARIANTS`.
        size: key of :data:`SIZES`.
        num_classes: number of classes C >= 1.
        anchors: (width, height) in input pixels, by level and anchor; the finest level first.

    Attributes:
        strides: pixels per cell of the levels.

    Raises:
        UserError: unknown variant or size, no classes, anchors that do not fit.
    """

    strides = STRIDES

    def __init__(
        self,
        variant: str = "v7",
        size: str = "s",
        num_classes: int = 80,
        anchors: Sequence[Sequence[Sequence[float]]] = COCO_ANCHORS,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS or size not in SIZES:
            known = f"variants: {', '.join(VARIANTS)}; sizes: {', '.join(SIZES)}"
            raise UserError(f"YOLOv5 variant {variant!r} size {size!r} does not exist; {known}")
        if num_classes < 1:
            raise UserError(f"YOLOv5 needs at least one class, found num_classes {num_classes}")
        self.num_classes = num_classes
        plan = _Plan(VARIANTS[variant], SIZES[size])
        self.model = nn.ModuleList(plan.backbone() + plan.neck())
        channels = [plan.channels(width) for width in (256, 512, 1024)]
        self.model.append(Detect(num_classes, anchor_tensor(anchors), self.strides, channels))
        self.detect.init_biases(self.strides, VARIANTS[variant].bias_gap)

    @property
    def detect(self) -> Detect:
        """The head, last layer of ``model``."""
        head = self.model[-1]
        assert isinstance(head, Detect)
        return head

    @property
    def anchors(self) -> Tensor:
        """(levels, anchors, 2) float32 widths and heights in input pixels."""
        cells = self.detect.anchors
        return cells * cells.new_tensor(self.strides)[:, None, None]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raw predictions, before any sigmoid.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1]; H and W are multiples of the coarsest stride.

        Returns:
            Per level, finest first: (N, anchors, H / stride, W / stride, 5 + C): x, y, w, h, objectness, classes.

        Raises:
            UserError: the size of the images does not fit.
        """
        height, width = images.shape[-2:]
        if height % self.strides[-1] or width % self.strides[-1]:
            raise UserError(f"images of {height} x {width} px: YOLOv5 needs multiples of {self.strides[-1]} px")
        x = images
        kept: dict[int, Tensor] = {}
        for position, layer in enumerate(self.model[:-1]):
            route = _ROUTES.get(position)
            x = layer(x) if route is None else layer([kept[source] for source in route])
            if position in _KEPT:
                kept[position] = x
        return self.detect([kept[position] for position in _LEVELS])


@dataclass(frozen=True)
class _Plan:
    """Makes the layers of a variant in a size."""

    variant: Variant
    size: Size

    def channels(self, base: int) -> int:
        """Channels in this size of a layer with ``base`` of them at width 1: a multiple of 8."""
        return math.ceil(base * self.size.width / 8) * 8

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int | None = None) -> ConvBlock:
        inputs = inputs if inputs == 3 else self.channels(inputs)  # the images
        return ConvBlock(inputs, self.channels(outputs), kernel, stride, padding, activation=self.variant.activation)

    def stage(self, inputs: int, outputs: int, blocks: int, shortcut: bool) -> nn.Module:
        """``inputs`` and ``outputs`` at width 1. A concatenation has the sum of its parts, each rounded by itself."""
        number = max(round(blocks * self.size.depth), 1)
        inputs, outputs = self.channels(inputs), self.channels(outputs)
        return self.variant.stage(inputs, outputs, number, shortcut, activation=self.variant.activation)

    def stem(self) -> nn.Module:
        if self.variant.focus:
            return Focus(3, self.channels(64), 3, activation=self.variant.activation)
        return self.conv(3, 64, kernel=6, stride=2, padding=2)

    def backbone(self) -> list[nn.Module]:
        """Layers 0 to 9: strides 2 to 32."""
        deepest, activation = self.channels(1024), self.variant.activation
        layers = [
            self.stem(),
            self.conv(64, 128, 3, 2),
            self.stage(128, 128, 3, True),
            self.conv(128, 256, 3, 2),
            self.stage(256, 256, self.variant.stage4_blocks, True),
            self.conv(256, 512, 3, 2),
            self.stage(512, 512, 9, True),
            self.conv(512, 1024, 3, 2),
        ]
        if self.variant.fast_pooling:
            return [*layers, self.stage(1024, 1024, 3, True), SPPF(deepest, deepest, activation=activation)]
        return [*layers, SPP(deepest, deepest, activation=activation), self.stage(1024, 1024, 3, False)]

    def neck(self) -> list[nn.Module]:
        """Layers 10 to 23: top-down to P3 (17), then bottom-up to P4 (20) and P5 (23)."""
        return [
            self.conv(1024, 512, 1, 1),
            nn.Upsample(scale_factor=2),
            Concat(),  # with the end of stride 16
            self.stage(1024, 512, 3, False),
            self.conv(512, 256, 1, 1),
            nn.Upsample(scale_factor=2),
            Concat(),  # with the end of stride 8
            self.stage(512, 256, 3, False),
            self.conv(256, 256, 3, 2),
            Concat(),  # with layer 14
            self.stage(512, 512, 3, False),
            self.conv(512, 512, 3, 2),
            Concat(),  # with layer 10
            self.stage(1024, 1024, 3, False),
        ]
