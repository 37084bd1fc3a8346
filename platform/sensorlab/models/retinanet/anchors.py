"""Anchors: boxes of fixed shapes on every cell of every level, which predictions are relative to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorGrid:
    """Shapes and places of the anchors; the defaults are RetinaNet's (Lin et al. 2017, arXiv 1708.02002, section 4).

    An anchor of scale s and ratio r (height / width) on stride t has the area (s t)^2. Anchors are ordered by level,
    row, column, ratio, scale.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)  # input pixels per cell, finest level first
    base_scale: float = 4.0  # side of the smallest square anchor in cells
    scales_per_octave: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    # mmdet 1.x: x2, y2 are the last pixel inside, corners are rounded to integers, and the anchors of the first cell
    # are centred at (stride - 1) / 2. Otherwise they are centred at 0, as in mmdet 2 and 3.
    legacy: bool = False

    @property
    def per_cell(self) -> int:
        """Anchors of one cell."""
        return self.scales_per_octave * len(self.ratios)

    @property
    def offset(self) -> float:
        """What is added to x2 - x1 to get a width."""
        return 1.0 if self.legacy else 0.0

    def level_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(rows, columns) of each level for images of (height, width) pixels: what strided convolutions give."""
        return [(-(-image_size[0] // stride), -(-image_size[1] // stride)) for stride in self.strides]

    def level_counts(self, image_size: tuple[int, int]) -> list[int]:
        """Number of anchors of each level."""
        return [rows * columns * self.per_cell for rows, columns in self.level_sizes(image_size)]

    def first_cell(self, stride: int) -> Tensor:
        """(A, 4) float32 xyxy, input pixels: the anchors of row 0, column 0 of the level with ``stride``."""
        octave = torch.arange(self.scales_per_octave, dtype=torch.float64) / self.scales_per_octave
        side = stride * self.base_scale * 2**octave  # (scales,)
        aspect = torch.tensor(self.ratios, dtype=torch.float64).sqrt()[:, None]  # (ratios, 1)
        size = torch.stack([side / aspect, side * aspect], dim=-1).flatten(0, 1)  # (A, 2) width, height
        half = (size - self.offset) / 2
        if self.legacy:
            center = (stride - 1) / 2
            return torch.cat([center - half, center + half], dim=1).float().round()
        return torch.cat([-half, half], dim=1).float()

    def levels(self, image_size: tuple[int, int], device: torch.device | str = "cpu") -> list[Tensor]:
        """(rows * columns * A, 4) float32 xyxy, input pixels, per level."""
        grids = []
        for stride, (rows, columns) in zip(self.strides, self.level_sizes(image_size), strict=True):
            y = torch.arange(rows, device=device) * stride
            x = torch.arange(columns, device=device) * stride
            corner = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (rows, columns, 2): x, y
            shift = corner.repeat(1, 1, 2)[:, :, None]  # (rows, columns, 1, 4)
            grids.append((self.first_cell(stride).to(device) + shift).flatten(0, 2))
        return grids

    def inside(self, image_size: tuple[int, int], content_size: Sequence[int], device: torch.device | str) -> Tensor:
        """(N,) bool, all levels: whether the cell of an anchor is not just padding.

        Args:
            image_size: (height, width) of the input of the network.
            content_size: (height, width) of the upper left part that is an image (mmdetection counts the padding up to
                the next multiple of 32 with it).
            device: of the result.
        """
        flags = []
        for stride, (rows, columns) in zip(self.strides, self.level_sizes(image_size), strict=True):
            row = torch.arange(rows, device=device) * stride < content_size[0]
            column = torch.arange(columns, device=device) * stride < content_size[1]
            flags.append((row[:, None] & column).flatten().repeat_interleave(self.per_cell))
        return torch.cat(flags)
