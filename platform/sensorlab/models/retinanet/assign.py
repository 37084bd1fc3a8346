"""Which object each anchor answers for: by overlap, all anchors of an image at once (mmdetection's MaxIoUAssigner)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sensorlab.models.ops.boxes import pairwise_iof, pairwise_iou
from sensorlab.models.retinanet.anchors import AnchorGrid

# Instead of the row of an object.
BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class AssignOptions:
    """Settings of :func:`assign_image`; the defaults are RetinaNet's."""

    positive_iou: float = 0.5  # an anchor answers for the object that it overlaps most, if by at least this
    negative_iou: float = 0.4  # it is background if it overlaps all by less; between the two it does not count
    # An object's best anchors answer for it, whatever they overlap otherwise, if they overlap by at least this; of
    # several such objects the last one wins. None: no such rule.
    best_iou: float | None = 0.0
    all_best: bool = True  # all anchors that overlap it equally, not the first of them only
    # Anchors with a larger share of their area in one ignored region do not count. None: regions have no effect, which
    # is what mmdetection's RetinaNet recipe has.
    ignored_share: float | None = 0.5


def assign_image(
    anchors: Tensor,
    boxes: Tensor,
    ignored: Tensor | None = None,
    options: AssignOptions | None = None,
    offset: float = 0.0,
) -> Tensor:
    """Assign the anchors of one image.

    An object that overlaps no anchor at all gets none. (In mmdetection, whose ``best_iou`` of 0 means "at least 0", all
    anchors that overlap it by exactly 0 answer for it.)

    Args:
        anchors: (N, 4) xyxy.
        boxes: (G, 4) xyxy, the objects; G may be 0.
        ignored: (R, 4) xyxy, regions in which nothing counts.
        options: thresholds.
        offset: of widths, see :mod:`sensorlab.models.ops.boxes`.

    Returns:
        (N,) int64: row of ``boxes``, :data:`BACKGROUND` or :data:`IGNORED`.
    """
    options = options or AssignOptions()
    if ignored is not None and len(ignored) and options.ignored_share is not None:
        counts = pairwise_iof(anchors, ignored, offset).amax(dim=1) <= options.ignored_share  # (N,)
    else:
        counts = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    if not len(boxes):
        return torch.where(counts, BACKGROUND, IGNORED)
    # Below any threshold where the anchor does not count, so that it is nobody's best either.
    overlap = pairwise_iou(boxes, anchors, offset).masked_fill(~counts, -1.0)  # (G, N)
    best, row = overlap.max(dim=0)  # (N,) each; of equal ones the first
    assigned = torch.where(best < options.negative_iou, BACKGROUND, IGNORED)
    assigned = torch.where(best >= options.positive_iou, row, assigned)
    if options.best_iou is not None:
        claimed = _claimed_by(overlap, options.best_iou, options.all_best)
        assigned = torch.where(claimed >= 0, claimed, assigned)
    return torch.where(counts, assigned, IGNORED)


def _claimed_by(overlap: Tensor, best_iou: float, all_best: bool) -> Tensor:
    """(N,) int64: the last object that an anchor is the best one for, -1 where there is none; overlap is (G, N)."""
    best, position = overlap.max(dim=1, keepdim=True)  # (G, 1) each; of equal ones the first
    if all_best:
        claims = overlap == best
    else:
        claims = torch.zeros_like(overlap, dtype=torch.bool).scatter_(1, position, True)
    claims &= (best >= best_iou) & (best > 0)
    number = torch.arange(len(overlap), device=overlap.device)[:, None]
    return torch.where(claims, number, -1).amax(dim=0)


def assign_batch(
    boxes: Tensor,
    box_image: Tensor,
    image_size: tuple[int, int],
    *,
    batch_size: int,
    anchors: AnchorGrid,
    options: AssignOptions | None = None,
    ignored: Tensor | None = None,
    ignored_image: Tensor | None = None,
    content_size: Tensor | None = None,
) -> Tensor:
    """Assign the anchors of all images of a batch.

    Args:
        boxes, box_image: (M, 4) xyxy input pixels and (M,) int64, position of the image in the batch.
        image_size: (height, width) of the input in pixels.
        batch_size: number of images B.
        anchors: shapes and places.
        options: thresholds.
        ignored, ignored_image: (R, 4) and (R,): regions in which nothing counts.
        content_size: (B, 2) height, width of the part of each image that is not padding; without it all counts.

    Returns:
        (B, N) int64 over the anchors of all levels: row of ``boxes``, :data:`BACKGROUND` or :data:`IGNORED`.
    """
    grid = torch.cat(anchors.levels(image_size, boxes.device))
    assigned = torch.full((batch_size, len(grid)), IGNORED, device=boxes.device)
    for i in range(batch_size):
        rows = (box_image == i).nonzero()[:, 0]
        regions = None if ignored is None or ignored_image is None else ignored[ignored_image == i]
        numbers = torch.cat([rows, rows.new_tensor([IGNORED, BACKGROUND])])  # -2 and -1 index the last two
        if content_size is None:
            assigned[i] = numbers[assign_image(grid, boxes[rows], regions, options, anchors.offset)]
        else:
            inside = anchors.inside(image_size, content_size[i].tolist(), boxes.device)
            assigned[i, inside] = numbers[assign_image(grid[inside], boxes[rows], regions, options, anchors.offset)]
    return assigned


def count_positives(assigned: Tensor) -> Tensor:
    """() float32: what RetinaNet's losses of a batch are divided by, the sum over the images of max(positives, 1).

    Args:
        assigned: (B, N) from :func:`assign_batch`.
    """
    return (assigned >= 0).sum(dim=1).clamp(min=1).sum().float()
