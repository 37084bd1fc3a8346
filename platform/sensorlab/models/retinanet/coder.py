"""Boxes as displacements of anchors (Girshick et al. 2014, arXiv 1311.2524, appendix C), with unit scales.

dx, dy: distance of the centres in widths and heights of the anchor; dw, dh: logarithms of the ratios of the sides.
``offset`` is 1 where x2, y2 are the last pixel inside (mmdet 1.x), else 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A predicted side is at most 62.5 times the anchor's, and at least 1 / 62.5 of it.
MAX_LOG_RATIO = math.log(1000 / 16)


def encode(anchors: Tensor, boxes: Tensor, offset: float = 0.0) -> Tensor:
    """(..., 4) xyxy each -> (..., 4) dx, dy, dw, dh of ``boxes`` relative to ``anchors``."""
    anchor_center, anchor_size = _center_and_size(anchors, offset)
    center, size = _center_and_size(boxes, offset)
    return torch.cat([(center - anchor_center) / anchor_size, (size / anchor_size).log()], dim=-1)


def decode(anchors: Tensor, deltas: Tensor, offset: float = 0.0) -> Tensor:
    """(..., 4) anchors xyxy and (..., 4) dx, dy, dw, dh -> (..., 4) xyxy; not clipped to any image."""
    anchor_center, anchor_size = _center_and_size(anchors, offset)
    center = anchor_center + deltas[..., :2] * anchor_size
    half = (anchor_size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() - offset) / 2
    return torch.cat([center - half, center + half], dim=-1)


def _center_and_size(boxes: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return (top_left + bottom_right) / 2, bottom_right - top_left + offset
