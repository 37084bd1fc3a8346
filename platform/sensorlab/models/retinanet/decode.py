"""From raw predictions to detections: selection by score, boxes, suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sensorlab.models.detections import Detections
from sensorlab.models.ops.boxes import clip
from sensorlab.models.ops.nms import nms
from sensorlab.models.retinanet.anchors import AnchorGrid
from sensorlab.models.retinanet.coder import decode


@dataclass(frozen=True)
class SelectionOptions:
    """Settings of :func:`detections`; the defaults are RetinaNet's."""

    score_threshold: float = 0.05  # a detection scores more
    iou_threshold: float = 0.5  # a box suppresses others of its class that overlap more
    max_detections: int = 100  # per image
    max_candidates: int = 1000  # per level and image: the best so many enter suppression


def detections(
    raw: Sequence[Tensor],
    image_size: tuple[int, int],
    *,
    anchors: AnchorGrid,
    options: SelectionOptions | None = None,
    content_size: Tensor | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> list[Detections]:
    """Detections of every image.

    ``AnchorGrid(legacy=True)`` brings mmdet 1.x's other rules: the best anchors of a level (by their best class) are
    selected instead of the best pairs of anchor and class, a box suppresses at IoU >= threshold instead of >, and boxes
    without area are kept.

    Args:
        raw: predictions (B, H, W, A, 4 + C) of each level.
        image_size: (height, width) of the input in pixels.
        anchors: of the network.
        options: thresholds and limits.
        content_size: (B, 2) height, width of the part of each input that is not padding: boxes are clipped to it.
            Without it, to the input.
        scale, offset: (B, 2) x, y with input = original * scale + offset. Boxes are in original pixels where they are
            given, else in input pixels.
    """
    options = options or SelectionOptions()
    grids = anchors.levels(image_size, raw[0].device)
    found = []
    for i in range(len(raw[0])):
        levels = [_candidates(level[i], grid, anchors, options) for level, grid in zip(raw, grids, strict=True)]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels, strict=True))
        height, width = image_size if content_size is None else content_size[i].tolist()
        last = int(anchors.offset)  # 1 where the right and lower edge are the last pixel inside
        boxes = clip(boxes, (height - last, width - last))
        if offset is not None:
            boxes = boxes - offset[i].to(boxes).repeat(2)
        if scale is not None:
            boxes = boxes / scale[i].to(boxes).repeat(2)
        found.append(_suppressed(Detections(boxes, scores, classes), anchors, options))
    return found


def _candidates(level: Tensor, grid: Tensor, anchors: AnchorGrid, options: SelectionOptions) -> Detections:
    """What scores enough on one level (H, W, A, 4 + C) of an image."""
    predicted = (level.float() if level.dtype.itemsize < 4 else level).flatten(0, 2)  # (n, 4 + C)
    scores = predicted[:, 4:].sigmoid()  # (n, C)
    if anchors.legacy:
        best = _best(scores.amax(dim=1), options.max_candidates)
        predicted, scores, grid = predicted[best], scores[best], grid[best]
    row, label = (scores > options.score_threshold).nonzero(as_tuple=True)
    if not anchors.legacy:
        best = _best(scores[row, label], options.max_candidates)
        row, label = row[best], label[best]
    boxes = decode(grid[row], predicted[row, :4], anchors.offset)
    return Detections(boxes, scores[row, label], label)


def _best(scores: Tensor, limit: int) -> Tensor:
    """Positions of the ``limit`` highest scores, highest first; of equal ones the first."""
    return torch.argsort(scores, descending=True, stable=True)[:limit]


def _suppressed(found: Detections, anchors: AnchorGrid, options: SelectionOptions) -> Detections:
    """The detections of one image from all candidates."""
    if not anchors.legacy:
        has_area = (found.boxes[:, 2:] > found.boxes[:, :2]).all(dim=1)
        found = Detections(*(values[has_area] for values in found))
    kept = nms(
        found.boxes,
        found.scores,
        options.iou_threshold,
        inclusive=anchors.legacy,
        classes=found.classes,
        offset=anchors.offset,
        max_kept=options.max_detections,
    )
    return Detections(*(values[kept] for values in found))
