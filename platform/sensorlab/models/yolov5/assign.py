"""Which cells and anchors of which level answer for a box: the targets of YOLOv5.

On every level a box goes to each anchor whose width and height differ from its own by less than a factor, in the cell
of its centre and in the nearest neighbour cells to the left or right and above or below: up to three cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sensorlab.models.ops.boxes import xyxy_to_cxcywh

# Cells are chosen by coordinates rounded to this part of a cell (0.002 px at stride 8), so that a centre that lies on a
# border or in the middle of a cell does not change its cells by the last bit of a conversion.
_STEPS_PER_CELL = 4096
# Towards which side of a cell the centre is moved to find the cell: own, left, up, right, down; half a cell.
_MOVES = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))


class LevelTargets(NamedTuple):
    """The P positives of one level, in the order own cells, left, up, right, down; inside it by anchor, then by box."""

    image: Tensor  # (P,) int64, position in the batch
    anchor: Tensor  # (P,) int64
    row: Tensor  # (P,) int64, y of the cell
    column: Tensor  # (P,) int64, x of the cell
    classes: Tensor  # (P,) int64
    boxes: Tensor  # (P, 4) centre relative to the cell's corner, width, height; in cells
    anchor_sizes: Tensor  # (P, 2) width, height in cells

    def __len__(self) -> int:
        """The number of positives (of a NamedTuple it would be that of the fields)."""
        return len(self.image)


def assign_targets(
    boxes: Tensor,
    classes: Tensor,
    box_image: Tensor,
    anchors: Tensor,
    strides: Sequence[int],
    image_size: tuple[int, int],
    max_ratio: float = 4.0,
) -> list[LevelTargets]:
    """Targets of a batch, by level.

    Args:
        boxes: (N, 4) xyxy, input pixels, all images of the batch one after the other.
        classes, box_image: (N,) int64: class, and position of the image in the batch.
        anchors: (levels, A, 2) widths and heights in input pixels.
        strides: pixels per cell of the levels.
        image_size: (height, width) of the input in pixels.
        max_ratio: a box fits an anchor if both sides differ by less than this factor.
    """
    centered = xyxy_to_cxcywh(boxes)
    levels = []
    for sizes, stride in zip(anchors.to(boxes), strides, strict=True):
        cells, sizes = centered / stride, sizes / stride  # (N, 4), (A, 2) in cells
        anchor, box = _fits(cells, sizes, max_ratio).nonzero(as_tuple=True)  # (M,) each
        limits = _grid_limits(cells, image_size, stride)
        center = _rounded(cells[:, :2])
        move, pair = _takes(center[box], limits).nonzero(as_tuple=True)  # (P,) each
        anchor, box = anchor[pair], box[pair]
        cell = (center[box] - center.new_tensor(_MOVES)[move]).long()
        # A centre on the right or lower border of the image belongs to the last cell.
        cell = torch.minimum(cell.clamp(min=0), limits.long() - 1)
        offset_and_size = torch.cat([cells[box, :2] - cell, cells[box, 2:]], dim=1)
        column, row = cell.unbind(1)
        levels.append(LevelTargets(box_image[box], anchor, row, column, classes[box], offset_and_size, sizes[anchor]))
    return levels


def count_positives(
    boxes: Tensor, anchors: Tensor, strides: Sequence[int], image_size: tuple[int, int], max_ratio: float = 4.0
) -> Tensor:
    """(levels,) float32: how many positives :func:`assign_targets` finds; without waiting for the device."""
    centered = xyxy_to_cxcywh(boxes)
    counts = []
    for sizes, stride in zip(anchors.to(boxes), strides, strict=True):
        cells, sizes = centered / stride, sizes / stride
        fits = _fits(cells, sizes, max_ratio).sum(dim=0)  # (N,) anchors of each box
        takes = _takes(_rounded(cells[:, :2]), _grid_limits(cells, image_size, stride)).sum(
            dim=0
        )  # (N,) cells of each box
        counts.append((fits * takes).sum())
    return torch.stack(counts).float()


def _fits(cells: Tensor, sizes: Tensor, max_ratio: float) -> Tensor:
    """(A, N) bool: the box is of the anchor's size, within the factor. A box without width or height fits none."""
    ratio = cells[None, :, 2:] / sizes[:, None]  # (A, N, 2)
    return torch.maximum(ratio, 1 / ratio).amax(dim=-1) < max_ratio


def _takes(center: Tensor, limits: Tensor) -> Tensor:
    """(5, M) bool: whether each of the moves leads to a cell that answers too: always, left, up, right, down.

    Args:
        center: (M, 2) x, y in cells.
        limits: (2,) columns, rows of the level.
    """
    mirrored = limits - center
    before = (center % 1 < 0.5) & (center > 1)  # (M, 2): left, up
    after = (mirrored % 1 < 0.5) & (mirrored > 1)  # (M, 2): right, down
    return torch.cat([torch.ones_like(before[:, :1]), before, after], dim=1).T


def _rounded(center: Tensor) -> Tensor:
    """Coordinates in cells, rounded for decisions."""
    return (center * _STEPS_PER_CELL).round() / _STEPS_PER_CELL


def _grid_limits(cells: Tensor, image_size: tuple[int, int], stride: int) -> Tensor:
    """(2,) columns, rows of a level."""
    height, width = image_size
    return cells.new_tensor([width // stride, height // stride])
