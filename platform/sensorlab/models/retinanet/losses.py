"""The losses of RetinaNet: focal loss of the classes, L1 of the displacements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorlab.models.retinanet.anchors import AnchorGrid
from sensorlab.models.retinanet.assign import IGNORED, AssignOptions, assign_batch, count_positives
from sensorlab.models.retinanet.coder import encode


@dataclass(frozen=True)
class LossOptions:
    """Settings of :func:`retinanet_loss`."""

    assign: AssignOptions = field(default_factory=AssignOptions)
    focal_alpha: float = 0.25  # weight of the positives; negatives have 1 - alpha
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 0.0  # below it the box loss is quadratic; 0: plain L1 (mmdet 1.x: 0.11)
    box_gain: float = 1.0
    class_gain: float = 1.0


class RetinaNetLoss(NamedTuple):
    """What :func:`retinanet_loss` returns."""

    terms: dict[str, Tensor]  # "box", "class": scalars with their gains; the objective is their sum
    level_box: Tensor  # (levels,) the parts of the levels, detached
    level_class: Tensor  # (levels,)
    num_positives: Tensor  # () float32, anchors of this batch


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Binary focal loss (Lin et al. 2017, arXiv 1708.02002, equation 5) of each element, not reduced.

    Args:
        logits: float, any shape.
        targets: same shape; 1 where the class is present, else 0.
        alpha: weight of the present ones.
        gamma: exponent of the probability of being wrong.
    """
    probability = logits.sigmoid()
    wrong = probability * (1 - targets) + (1 - probability) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * wrong.pow(gamma) * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def smooth_l1(predicted: Tensor, target: Tensor, beta: float = 0.0) -> Tensor:
    """|d| - beta / 2 of each element, and d^2 / (2 beta) where |d| < beta; not reduced. beta 0: L1."""
    return F.smooth_l1_loss(predicted, target, reduction="none", beta=beta)


def retinanet_loss(
    raw: Sequence[Tensor],
    boxes: Tensor,
    classes: Tensor,
    box_image: Tensor,
    image_size: tuple[int, int],
    *,
    anchors: AnchorGrid,
    options: LossOptions | None = None,
    ignored: Tensor | None = None,
    ignored_image: Tensor | None = None,
    content_size: Tensor | None = None,
    assigned: Tensor | None = None,
    normalizer: Tensor | None = None,
) -> RetinaNetLoss:
    """Loss of a batch: sums over the anchors that count, divided by the number of positives.

    Args:
        raw: predictions (B, H, W, A, 4 + C) of each level (:class:`~sensorlab.models.retinanet.network.RetinaNet`).
        boxes, classes, box_image: (M, 4) xyxy input pixels, (M,) and (M,) int64: the objects of the batch.
        image_size: (height, width) of the input in pixels.
        anchors: of the network.
        options: thresholds, gains and variants.
        ignored, ignored_image, content_size: see :func:`~sensorlab.models.retinanet.assign.assign_batch`.
        assigned: its result, if it is known already.
        normalizer: () by how much to divide: the mean over the workers of
            :func:`~sensorlab.models.retinanet.assign.count_positives` makes the averaged gradient that of the global
            batch. Without it, the count of this batch, as in mmdetection.
    """
    options = options or LossOptions()
    if assigned is None:
        assigned = assign_batch(
            boxes,
            box_image,
            image_size,
            batch_size=len(raw[0]),
            anchors=anchors,
            options=options.assign,
            ignored=ignored,
            ignored_image=ignored_image,
            content_size=content_size,
        )
    normalizer = count_positives(assigned) if normalizer is None else normalizer
    box_sums, class_sums = [], []
    by_level = assigned.split(anchors.level_counts(image_size), dim=1)
    for level, grid, rows in zip(raw, anchors.levels(image_size, boxes.device), by_level, strict=True):
        # Sums over all cells do not fit half precision.
        predicted = (level.float() if level.dtype.itemsize < 4 else level).flatten(1, 3)  # (B, n, 4 + C)
        image, anchor = (rows >= 0).nonzero(as_tuple=True)  # (P,) each
        row = rows[image, anchor]
        deltas = encode(grid[anchor], boxes[row], anchors.offset).to(predicted)  # (P, 4)
        box_sums.append(smooth_l1(predicted[image, anchor, :4], deltas, options.smooth_l1_beta).sum())
        logits = predicted[..., 4:]  # (B, n, C)
        present = torch.zeros_like(logits)
        present[image, anchor, classes[row]] = 1
        losses = focal_loss(logits, present, options.focal_alpha, options.focal_gamma)
        class_sums.append((losses * (rows != IGNORED)[..., None]).sum())
    level_box = options.box_gain * torch.stack(box_sums) / normalizer
    level_class = options.class_gain * torch.stack(class_sums) / normalizer
    terms = {"box": level_box.sum(), "class": level_class.sum()}
    return RetinaNetLoss(terms, level_box.detach(), level_class.detach(), (assigned >= 0).sum().float())
