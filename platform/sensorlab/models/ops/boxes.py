"""Boxes in images: areas, overlaps, conversions.

Boxes are (..., 4) floats x1, y1, x2, y2 in continuous pixels, unless a name says ``cxcywh`` (centre and size). Overlaps
of pairs broadcast over the leading dimensions; the ``pairwise_`` functions compare every box of one list with every box
of another. ``offset`` is 1 for programs that take x2, y2 as the last pixel inside (mmdet 1.x), 0 otherwise. A box
without area overlaps nothing: no division by zero, no NaN, finite gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Added to denominators. Below half of float32's spacing at 1, so a proper box has an IoU of 1 with itself; the areas
# that matter here are far above it, in pixels and in grid cells alike.
EPSILON = 1e-9


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> (..., 4) corners."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre x, centre y, width, height."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def area(boxes: Tensor, offset: float = 0.0) -> Tensor:
    """(..., 4) -> (...): width times height; 0 where a side is negative."""
    return (boxes[..., 2:] - boxes[..., :2] + offset).clamp(min=0).prod(dim=-1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of each box (..., 4) inside an image of ``size`` (height, width) pixels."""
    height, width = size
    limits = (width, height, width, height)
    return torch.stack([side.clamp(0, limit) for side, limit in zip(boxes.unbind(-1), limits, strict=True)], dim=-1)


def intersection(a: Tensor, b: Tensor, offset: float = 0.0) -> Tensor:
    """Area of the common part of pairs; (..., 4) and (..., 4) broadcast."""
    top_left = torch.maximum(a[..., :2], b[..., :2])
    bottom_right = torch.minimum(a[..., 2:], b[..., 2:])
    return (bottom_right - top_left + offset).clamp(min=0).prod(dim=-1)


def iou(a: Tensor, b: Tensor, offset: float = 0.0) -> Tensor:
    """Intersection over union of pairs; (..., 4) and (..., 4) broadcast."""
    common = intersection(a, b, offset)
    return common / (area(a, offset) + area(b, offset) - common).clamp(min=EPSILON)


def giou(a: Tensor, b: Tensor, offset: float = 0.0) -> Tensor:
    """Generalised IoU of pairs in (-1, 1] (Rezatofighi et al. 2019): IoU less the empty share of the hull."""
    common = intersection(a, b, offset)
    union = area(a, offset) + area(b, offset) - common
    hull = _hull_sides(a, b, offset).prod(dim=-1)
    return common / union.clamp(min=EPSILON) - (hull - union) / hull.clamp(min=EPSILON)


def diou(a: Tensor, b: Tensor) -> Tensor:
    """Distance IoU of pairs (Zheng et al. 2020): IoU less (distance of the centres / diagonal of the hull) squared."""
    diagonal = _hull_sides(a, b).square().sum(dim=-1)
    distance = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(dim=-1)
    return iou(a, b) - distance / diagonal.clamp(min=EPSILON)


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU of pairs (Zheng et al. 2020): DIoU less a weighted difference of the aspect ratios.

    The weight takes no gradient, as the paper has it.
    """
    aspect = (4 / math.pi**2) * (_angle(a) - _angle(b)).square()
    with torch.no_grad():
        weight = aspect / (1 - iou(a, b) + aspect).clamp(min=EPSILON)
    return diou(a, b) - weight * aspect


def pairwise_iou(a: Tensor, b: Tensor, offset: float = 0.0) -> Tensor:
    """(N, 4) and (M, 4) -> (N, M) intersection over union."""
    return iou(a[:, None], b[None], offset)


def pairwise_iof(a: Tensor, b: Tensor, offset: float = 0.0) -> Tensor:
    """(N, 4) and (M, 4) -> (N, M) intersection over the area of ``a`` (the foreground)."""
    return intersection(a[:, None], b[None], offset) / area(a, offset)[:, None].clamp(min=EPSILON)


def _hull_sides(a: Tensor, b: Tensor, offset: float = 0.0) -> Tensor:
    """(..., 2) width and height of the smallest box around each pair."""
    return torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2]) + offset


def _angle(boxes: Tensor) -> Tensor:
    """Angle of the diagonal in radians, (...)."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return torch.atan(width / height.clamp(min=EPSILON))
