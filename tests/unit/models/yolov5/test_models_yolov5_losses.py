"""The loss: exact over a global batch, deterministic where positives meet, finite at the edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sensorlab.errors import UserError
from sensorlab.models.ops.boxes import cxcywh_to_xyxy
from sensorlab.models.yolov5 import COCO_ANCHORS, LossOptions, YoloLoss, count_positives, updated_balance, yolo_loss
from sensorlab.models.yolov5.assign import assign_targets
from sensorlab.models.yolov5.losses import objectness_target

ANCHORS, STRIDES, SIZE = torch.tensor(COCO_ANCHORS), (8, 16, 32), (64, 96)
Objects = tuple[Tensor, Tensor, Tensor]


def raw_predictions(num_images: int, num_classes: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [
        torch.randn(num_images, 3, 64 // s, 96 // s, 5 + num_classes, generator=random, dtype=torch.float64)
        for s in STRIDES
    ]


def some_objects(images: list[int], num_classes: int = 3) -> Objects:
    random = torch.Generator().manual_seed(2)
    center = torch.rand(len(images), 2, generator=random) * torch.tensor([96.0, 64.0])
    size = 10 + torch.rand(len(images), 2, generator=random) * 80
    classes = torch.randint(0, num_classes, (len(images),), generator=random)
    image = torch.tensor(images, dtype=torch.int64)
    return cxcywh_to_xyxy(torch.cat([center, size], dim=1)).double(), classes, image


def loss_of(raw: list[Tensor], objects: Objects, **options) -> YoloLoss:
    return yolo_loss(raw, *objects, SIZE, anchors=ANCHORS, strides=STRIDES, **options)


def total(loss: YoloLoss) -> Tensor:
    return torch.stack(list(loss.terms.values())).sum()


def gradient(raw: list[Tensor], objects: Objects, **options) -> Tensor:
    inputs = [level.clone().requires_grad_() for level in raw]
    total(loss_of(inputs, objects, **options)).backward()
    return torch.cat([level.grad.flatten(1) for level in inputs], dim=1)  # (B, everything)


def test_workers_with_the_mean_count_have_the_gradient_of_the_global_batch():
    raw = raw_predictions(4)
    boxes, classes, image = some_objects([0, 0, 0, 0, 0, 1, 2])  # image 3 has none
    together = gradient(raw, (boxes, classes, image))
    first = image < 2
    parts = [(boxes[first], classes[first], image[first]), (boxes[~first], classes[~first], image[~first] - 2)]
    halves = [[level[:2] for level in raw], [level[2:] for level in raw]]
    mean = torch.stack([count_positives(part[0], ANCHORS, STRIDES, SIZE) for part in parts]).mean(dim=0)
    exact = [gradient(half, part, positives=mean) / 2 for half, part in zip(halves, parts, strict=True)]
    torch.testing.assert_close(torch.cat(exact), together)
    own = [gradient(half, part) / 2 for half, part in zip(halves, parts, strict=True)]
    assert not torch.allclose(torch.cat(own), together)


def test_without_objects_only_the_objectness_counts():
    raw = [level.requires_grad_() for level in raw_predictions(1)]
    loss = loss_of(raw, some_objects([]))
    total(loss).backward()
    assert float(loss.terms["box"].detach()) == float(loss.terms["class"].detach()) == 0
    assert float(loss.terms["objectness"].detach()) > 0
    for level in raw:
        assert level.grad is not None
        assert level.grad[..., 4].abs().min() > 0
        assert not level.grad[..., :4].any()
        assert not level.grad[..., 5:].any()


def test_a_count_of_zero_gives_no_nan():
    loss = loss_of(raw_predictions(1), some_objects([]), positives=torch.zeros(3))
    assert torch.isfinite(total(loss))


def test_one_class_has_no_class_loss():
    loss = loss_of(raw_predictions(1, 1), some_objects([0, 0, 0], 1))
    assert float(loss.terms["class"]) == 0
    assert float(loss.terms["box"]) > 0


def test_perfect_predictions_cost_nothing():
    boxes = torch.tensor([[5.0, 5.0, 45.0, 45.0], [50.0, 10.0, 90.0, 60.0]])
    objects = boxes, torch.tensor([2, 0]), torch.tensor([0, 0])
    raw = [torch.full((1, 3, 64 // s, 96 // s, 8), -30.0) for s in STRIDES]
    for level, target in zip(raw, assign_targets(*objects, ANCHORS, STRIDES, SIZE), strict=True):
        values = torch.full((len(target), 8), -30.0)
        values[:, :2] = torch.logit((target.boxes[:, :2] + 0.5) / 2)
        values[:, 2:4] = torch.logit((target.boxes[:, 2:] / target.anchor_sizes).sqrt() / 2)
        values[:, 4] = 30.0
        values.scatter_(1, 5 + target.classes[:, None], 30.0)
        level[target.image, target.anchor, target.row, target.column] = values
    loss = loss_of(raw, objects)
    assert all(float(value) == pytest.approx(0, abs=1e-4) for value in loss.terms.values())


def test_the_last_positive_of_a_cell_counts():
    box = cxcywh_to_xyxy(torch.tensor([[36.0, 28.0, 16.0, 20.0]] * 2))
    [target, *_] = assign_targets(box, torch.tensor([0, 1]), torch.tensor([0, 0]), ANCHORS, STRIDES, SIZE)
    assert len(target) == 6  # two boxes on three anchors of one cell
    quality = torch.tensor([0.1, 0.2, 0.3, 0.4, -0.5, 0.6])
    found = objectness_target((1, 3, 8, 12), target, quality)
    torch.testing.assert_close(found[0, :, 3, 4], torch.tensor([0.2, 0.4, 0.6]))
    assert int((found > 0).sum()) == 3
    negative = objectness_target((1, 3, 8, 12), target, -quality, iou_share=0.5)
    torch.testing.assert_close(negative[0, :, 3, 4], torch.tensor([0.5, 0.5, 0.5]))


def test_half_precision_predictions_are_judged_in_float32():
    raw = [level.to(torch.float16) for level in raw_predictions(2)]
    objects = some_objects([0, 0, 1])
    half, full = loss_of(raw, objects), loss_of([level.float() for level in raw], objects)
    assert total(half).dtype == torch.float32
    torch.testing.assert_close(total(half), total(full))


def test_balance_replaces_that_of_the_options():
    raw, objects = raw_predictions(1), some_objects([0])
    found = loss_of(raw, objects, balance=torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(found.terms["objectness"], found.level_objectness[0])


def test_autobalance_raises_the_weight_of_a_small_loss():
    balance = torch.tensor([4.0, 1.0, 0.4])
    for _ in range(3):
        balance = updated_balance(balance, torch.tensor([0.001, 0.02, 0.01]))
    assert balance[1] == 1
    assert balance[2] > 0.4
    assert balance[0] > 4.0


@pytest.mark.parametrize(
    ("era", "num_classes", "num_levels", "side", "gains"),  # as recorded from the training programs
    [
        ("v3", 20, 3, 1280, (0.05, 1.0, 0.125)),
        ("v3", 20, 4, 640, (0.0375, 1.05, 0.09375)),
        ("v7", 3, 3, 320, (0.05, 0.25, 0.01875)),
        ("v7", 20, 4, 1280, (0.0375, 3.0, 0.09375)),
    ],
)
def test_gains(era, num_classes, num_levels, side, gains):
    options = LossOptions().scaled(era, num_classes, num_levels, side)
    assert (options.box_gain, options.objectness_gain, options.class_gain) == pytest.approx(gains)
    assert len(options.balance) == num_levels


def test_no_gains_for_unknown_eras_and_levels():
    with pytest.raises(UserError, match=r"era 'v9' with 3 levels; there are v3 with \[3, 4\] levels"):
        LossOptions().scaled("v9", 80, 3, 640)
    with pytest.raises(UserError, match="era 'v3' with 5 levels"):
        replace(LossOptions(), focal_gamma=1.0).scaled("v3", 80, 5, 640)
