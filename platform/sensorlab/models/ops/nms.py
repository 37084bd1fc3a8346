"""Greedy non-maximum suppression in plain torch: exact, deterministic, without a time limit."""

from __future__ import annotations

import torch
from torch import Tensor

from sensorlab.models.ops.boxes import pairwise_iou

# Boxes that are compared with each other at once: bounds the memory, whatever the number of boxes.
_BLOCK = 1024


def nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    inclusive: bool = False,
    *,
    classes: Tensor | None = None,
    offset: float = 0.0,
    max_kept: int | None = None,
) -> Tensor:
    """Keep a box unless a better one that is kept overlaps it too much.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,). Of equal scores the first comes first.
        threshold: IoU above which a box suppresses another.
        inclusive: suppress at IoU >= ``threshold`` (mmdet 1.x) instead of > (torchvision, mmcv 2).
        classes: (N,) integers; only boxes of one class suppress each other. Without it all do.
        offset: 1 where x2, y2 are the last pixel inside (mmdet 1.x), else 0.
        max_kept: stop after as many.

    Returns:
        (K,) int64: positions of the kept boxes, best first.
    """

    def suppresses(first: Tensor, second: Tensor) -> Tensor:
        """(len(first), len(second)) bool: the two overlap too much and are of one class."""
        overlap = pairwise_iou(boxes[first], boxes[second], offset)
        close = overlap >= threshold if inclusive else overlap > threshold
        return close if classes is None else close & (classes[first][:, None] == classes[second])

    order = torch.argsort(scores, descending=True, stable=True)
    kept = order[:0]
    for block in order.split(_BLOCK):
        for earlier in kept.split(_BLOCK):
            block = block[~suppresses(earlier, block).any(dim=0)]
        kept = torch.cat([kept, block[_greedy(suppresses(block, block))]])
        if max_kept is not None and len(kept) >= max_kept:
            return kept[:max_kept]
    return kept


def _greedy(suppresses: Tensor) -> Tensor:
    """(N,) bool: which of N boxes, best first, stay. ``suppresses`` (N, N): row removes column.

    The answer is the only fixed point of "a box stays unless an earlier one that stays suppresses it". Each round makes
    at least one more leading box final, and in practice a handful of rounds settle all.
    """
    earlier = suppresses.triu(diagonal=1)
    stays = torch.ones(len(suppresses), dtype=torch.bool, device=suppresses.device)
    while True:
        revised = ~(earlier & stays[:, None]).any(dim=0)
        if torch.equal(revised, stays):
            return stays
        stays = revised
