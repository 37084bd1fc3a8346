"""From raw predictions to detections: boxes in pixels, selection by score, suppression."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sensorlab.models.detections import Detections
from sensorlab.models.ops.boxes import cxcywh_to_xyxy, pairwise_iou
from sensorlab.models.ops.nms import nms

# What the originals add to the corners per class so that one suppression serves all classes, in pixels.
CLASS_OFFSETS = {"v3": 4096.0, "v7": 7680.0}


@dataclass(frozen=True)
class SelectionOptions:
    """Settings of :func:`select`; those that are not thresholds are the originals' defaults."""

    score_threshold: float = 0.001  # a detection scores more
    iou_threshold: float = 0.6  # a box suppresses others of its class that overlap more
    max_detections: int = 300  # per image
    max_candidates: int | None = None  # the best so many enter suppression (v7: 30000)
    multi_label: bool = True  # a box is a detection of every class that scores enough, not only of its best
    agnostic: bool = False  # boxes suppress each other whatever their class
    classes: Collection[int] | None = None  # only these
    class_offset: float | None = None  # None: classes apart, exactly; else as in CLASS_OFFSETS
    merge: bool = False  # v3's option: a box becomes the mean of those it overlaps, alone ones are dropped


def decode(raw: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Boxes and probabilities of all cells.

    Args:
        raw: predictions (B, A, H, W, 5 + C) of each level.
        anchors: (levels, A, 2) widths and heights in input pixels.
        strides: pixels per cell of the levels.

    Returns:
        (B, sum of A * H * W, 5 + C) float32 (or float64): centre x, y, width, height in input pixels, objectness and
        class probabilities. Rows by level, anchor, y, x.
    """
    levels = []
    for prediction, sizes, stride in zip(raw, anchors, strides, strict=True):
        prediction = prediction.float() if prediction.dtype.itemsize < 4 else prediction
        height, width = prediction.shape[2:4]
        rows = torch.arange(height, device=prediction.device)
        columns = torch.arange(width, device=prediction.device)
        cell = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H, W, 2): x, y
        probability = prediction.sigmoid()
        center = (probability[..., :2] * 2 - 0.5 + cell) * stride
        size = (probability[..., 2:4] * 2).square() * sizes.to(prediction)[:, None, None]
        levels.append(torch.cat([center, size, probability[..., 4:]], dim=-1).flatten(1, 3))
    return torch.cat(levels, dim=1)


def select(decoded: Tensor, options: SelectionOptions) -> list[Detections]:
    """Detections of every image from the output (B, N, 5 + C) of :func:`decode`.

    Boxes are in input pixels and not clipped; a score is objectness times class probability.
    """
    return [_select_image(image, options) for image in decoded]


def _select_image(decoded: Tensor, options: SelectionOptions) -> Detections:
    found = _candidates(decoded, options)
    if options.max_candidates is not None and len(found.scores) > options.max_candidates:
        best = torch.argsort(found.scores, descending=True, stable=True)[: options.max_candidates]
        found = _take(found, best)
    boxes, groups = found.boxes, None if options.agnostic else found.classes
    if options.class_offset is not None and groups is not None:
        boxes, groups = boxes + groups[:, None] * options.class_offset, None
    kept = nms(boxes, found.scores, options.iou_threshold, classes=groups, max_kept=options.max_detections)
    return _merged(found, boxes, groups, kept, options) if options.merge else _take(found, kept)


def _candidates(decoded: Tensor, options: SelectionOptions) -> Detections:
    """All that scores enough in one image (N, 5 + C), in the order of the rows, then of the classes."""
    decoded = decoded[decoded[:, 4] > options.score_threshold]
    scores = decoded[:, 5:] * decoded[:, 4:5]  # (N', C)
    if options.multi_label:
        row, label = (scores > options.score_threshold).nonzero(as_tuple=True)
    else:
        best, label = scores.max(dim=1)
        row = (best > options.score_threshold).nonzero()[:, 0]
        label = label[row]
    if options.classes is not None:
        wanted = torch.isin(label, label.new_tensor(sorted(options.classes)))
        row, label = row[wanted], label[wanted]
    return Detections(cxcywh_to_xyxy(decoded[row, :4]), scores[row, label], label)


def _merged(
    found: Detections, boxes: Tensor, groups: Tensor | None, kept: Tensor, options: SelectionOptions
) -> Detections:
    """Each kept box as the mean, weighted by score, of those it suppressed and itself; without any it is dropped.

    Args:
        found: the candidates.
        boxes: their boxes as they were suppressed, with the class offset if there is one.
        groups: their classes where only equal ones suppress each other.
        kept: positions of the best.
        options: of the selection.
    """
    close = pairwise_iou(boxes[kept], boxes) > options.iou_threshold  # (K, N)
    if groups is not None:
        close &= groups[kept, None] == groups
    weights = close * found.scores
    merged = weights @ found.boxes / weights.sum(dim=1, keepdim=True)
    confirmed = close.sum(dim=1) > 1
    return Detections(merged[confirmed], *(values[kept[confirmed]] for values in found[1:]))


def _take(found: Detections, positions: Tensor) -> Detections:
    return Detections(*(values[positions] for values in found))
