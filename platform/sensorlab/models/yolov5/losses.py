"""The loss of YOLOv5: CIoU of the positives, objectness of every cell, classes of the positives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorlab.errors import UserError
from sensorlab.models.ops.boxes import ciou, cxcywh_to_xyxy
from sensorlab.models.yolov5.assign import LevelTargets, assign_targets

# Weight of each level's objectness, finest level first, by number of levels.
BALANCES = {
    "v3": {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.4, 0.1)},
    "v7": {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06), 5: (4.0, 1.0, 0.25, 0.06, 0.02)},
}


@dataclass(frozen=True)
class LossOptions:
    """Settings of :func:`yolo_loss`; the defaults are those of both eras, for 80 classes, 3 levels and 640 px."""

    box_gain: float = 0.05
    objectness_gain: float = 1.0
    class_gain: float = 0.5
    balance: tuple[float, ...] = (4.0, 1.0, 0.4)  # of the objectness of each level
    max_ratio: float = 4.0  # between the sides of a box and of an anchor that it fits
    iou_share: float = 1.0  # objectness of a positive: 1 - share + share * IoU
    focal_gamma: float = 0.0  # 0: no focal weight
    focal_alpha: float = 0.25
    class_pos_weight: float = 1.0
    objectness_pos_weight: float = 1.0
    label_smoothing: float = 0.0

    def scaled(self, era: str, num_classes: int, num_levels: int, image_side: int) -> LossOptions:
        """Gains and balance as the training programs derive them from the settings of 80 classes and 640 px.

        Args:
            era: "v3" (box, objectness and class by 3 / levels, objectness by 1.4 with 4 levels, class by classes / 80)
                or "v7" (the same without 1.4, and objectness by (side / 640) squared).
            num_classes, num_levels: of the model.
            image_side: longer side of the training images in pixels.

        Raises:
            UserError: there is no balance for this era and number of levels.
        """
        balance = BALANCES.get(era, {}).get(num_levels)
        if balance is None:
            known = ", ".join(f"{name} with {sorted(levels)} levels" for name, levels in BALANCES.items())
            raise UserError(f"no YOLOv5 loss of era {era!r} with {num_levels} levels; there are {known}")
        share = 3 / num_levels
        if era == "v3":
            objectness = 1.4 if num_levels == 4 else 1.0
        else:
            objectness = (image_side / 640) ** 2
        return replace(
            self,
            box_gain=self.box_gain * share,
            objectness_gain=self.objectness_gain * share * objectness,
            class_gain=self.class_gain * share * num_classes / 80,
            balance=balance,
        )


class YoloLoss(NamedTuple):
    """What :func:`yolo_loss` returns."""

    terms: dict[str, Tensor]  # "box", "objectness", "class": scalars with their gains; the objective is their sum
    level_objectness: Tensor  # (levels,) mean objectness loss of each level before its balance, detached
    num_positives: Tensor  # (levels,) float32, of this batch


def yolo_loss(
    raw: Sequence[Tensor],
    boxes: Tensor,
    classes: Tensor,
    box_image: Tensor,
    image_size: tuple[int, int],
    *,
    anchors: Tensor,
    strides: Sequence[int],
    options: LossOptions | None = None,
    positives: Tensor | None = None,
    balance: Tensor | None = None,
) -> YoloLoss:
    """Loss of a batch, as a mean: box and class over the positives of each level, objectness over its cells.

    The originals multiply the sum by the batch size (v3 and v7), so that it grows with what is accumulated.

    Args:
        raw: predictions (B, A, H, W, 5 + C) of each level.
        boxes, classes, box_image: (N, 4) xyxy input pixels, (N,), (N,): the objects of the batch.
        image_size: (height, width) of the input in pixels.
        anchors: (levels, A, 2) in input pixels.
        strides: pixels per cell of the levels.
        options: gains and variants.
        positives: (levels,) by how many positives to divide: the mean over the workers of
            :func:`~sensorlab.models.yolov5.assign.count_positives` makes the averaged gradient that of the global
            batch. Without it, the positives of this batch, as in the originals.
        balance: (levels,) weights of the objectness in place of those of the options (see :func:`updated_balance`).
    """
    options = options or LossOptions()
    targets = assign_targets(boxes, classes, box_image, anchors, strides, image_size, options.max_ratio)
    counts = raw[0].new_tensor([len(level) for level in targets], dtype=torch.float32)
    divisors = (counts if positives is None else positives.to(counts)).clamp(min=torch.finfo(torch.float32).tiny)
    weights = options.balance if balance is None else balance.tolist()
    box = objectness = label = torch.zeros((), device=raw[0].device)
    level_objectness = []
    for prediction, target, divisor, weight in zip(raw, targets, divisors, weights, strict=True):
        # Products of areas and sums over all cells do not fit half precision.
        prediction = prediction.float() if prediction.dtype.itemsize < 4 else prediction
        positive = prediction[target.image, target.anchor, target.row, target.column]  # (P, 5 + C)
        truth, sizes = target.boxes.to(prediction), target.anchor_sizes.to(prediction)
        overlap = ciou(predicted_boxes(positive, sizes), cxcywh_to_xyxy(truth))  # (P,)
        box = box + (1 - overlap).sum() / divisor
        label = label + _class_loss(positive[:, 5:], target.classes, options).sum() / divisor
        wanted = objectness_target(prediction.shape[:4], target, overlap.detach(), options.iou_share)
        level = _cross_entropy(prediction[..., 4], wanted, options.objectness_pos_weight, options).mean()
        objectness = objectness + level * weight
        level_objectness.append(level.detach())
    terms = {
        "box": box * options.box_gain,
        "objectness": objectness * options.objectness_gain,
        "class": label * options.class_gain,
    }
    return YoloLoss(terms, torch.stack(level_objectness), counts)


def predicted_boxes(positive: Tensor, anchor_sizes: Tensor) -> Tensor:
    """(P, 4) xyxy in cells, relative to the corner of the cell, from raw predictions (P, 5 + C)."""
    offset = positive[:, :2].sigmoid() * 2 - 0.5
    size = (positive[:, 2:4].sigmoid() * 2).square() * anchor_sizes
    return cxcywh_to_xyxy(torch.cat([offset, size], dim=1))


def objectness_target(shape: Sequence[int], target: LevelTargets, overlap: Tensor, iou_share: float = 1.0) -> Tensor:
    """(B, A, H, W): 0 without an object, else how well the prediction overlaps it.

    Where several positives meet in one cell and anchor, the last of them in the order of the targets counts. The
    originals write all of them and leave the order to the device; here the winner is found first.

    Args:
        shape: (B, A, H, W) of the level.
        target: its P positives.
        overlap: (P,) IoU of prediction and box; negative ones count as 0.
        iou_share: the target is 1 - share + share * IoU.
    """
    batch, num_anchors, height, width = shape
    cell = ((target.image * num_anchors + target.anchor) * height + target.row) * width + target.column  # (P,)
    order = torch.arange(len(cell), device=cell.device)
    winner = torch.full((batch * num_anchors * height * width,), -1, device=cell.device)
    winner.scatter_reduce_(0, cell, order, "amax")
    quality = 1 - iou_share + iou_share * overlap.clamp(min=0)
    return torch.cat([quality, quality.new_zeros(1)])[winner].view(*shape)  # -1: the appended zero


def updated_balance(balance: Tensor, level_objectness: Tensor, stride16: int = 1) -> Tensor:
    """Weights (levels,) after a step with autobalance (v5 on): levels with a small loss slowly get a larger weight.

    Args:
        balance: (levels,) weights of the step.
        level_objectness: (levels,) of its :class:`YoloLoss`.
        stride16: position of the level whose weight stays 1.
    """
    moved = balance * 0.9999 + 0.0001 / level_objectness
    return moved / moved[stride16]


def _class_loss(logits: Tensor, classes: Tensor, options: LossOptions) -> Tensor:
    """(P,): mean over the classes of the cross-entropy with the (smoothed) label; 0 where there is one class only."""
    if logits.shape[1] == 1:
        return logits.new_zeros(len(logits))
    half = options.label_smoothing / 2
    wanted = torch.full_like(logits, half)
    wanted.scatter_(1, classes[:, None], 1 - half)
    return _cross_entropy(logits, wanted, options.class_pos_weight, options).mean(dim=1)


def _cross_entropy(logits: Tensor, wanted: Tensor, pos_weight: float, options: LossOptions) -> Tensor:
    """Binary cross-entropy, unreduced, with the weight of focal loss (Lin et al. 2017) if asked for."""
    wanted = wanted.to(logits)
    weight = logits.new_tensor([pos_weight])
    loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none")
    if options.focal_gamma <= 0:
        return loss
    probability = logits.sigmoid()
    right = wanted * probability + (1 - wanted) * (1 - probability)
    alpha = wanted * options.focal_alpha + (1 - wanted) * (1 - options.focal_alpha)
    return loss * alpha * (1 - right) ** options.focal_gamma
