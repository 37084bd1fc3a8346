"""Overlaps, targets, loss, detections and anchor search against the originals: every array of their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from yolov5_pack import ERAS, INPUTS, arrays, objects, single_thread

from sensorlab.models.ops.boxes import ciou, cxcywh_to_xyxy, diou, giou, iou
from sensorlab.models.yolov5 import (
    COCO_ANCHORS,
    LossOptions,
    SelectionOptions,
    YoloLoss,
    count_positives,
    select,
    updated_balance,
    yolo_loss,
)
from sensorlab.models.yolov5.assign import LevelTargets, assign_targets
from sensorlab.models.yolov5.auto_anchor import anchor_fit, check_anchors
from sensorlab.models.yolov5.decode import CLASS_OFFSETS
from sensorlab.models.yolov5.losses import objectness_target, predicted_boxes

pytestmark = pytest.mark.golden

BASE = LossOptions(class_gain=0.0375)  # 0.5 * 6 / 80
FOUR_LEVELS = ((436.0, 615.0), (739.0, 380.0), (925.0, 792.0))
CASES: dict[str, LossOptions] = {
    "base": BASE,
    "empty": BASE,
    "focal": replace(BASE, focal_gamma=1.5),
    "posweight": replace(BASE, class_pos_weight=1.4, objectness_pos_weight=0.7),
    "nc1": BASE,
    "gr05": replace(BASE, iou_share=0.5),
    "anchor_t2": replace(BASE, max_ratio=2.0),
    "nl4": BASE,
    "smooth": replace(BASE, label_smoothing=0.1),
    "autobalance": BASE,
}
ONLY_V70 = {"smooth", "autobalance"}
RUNS = [(version, case) for version in ERAS for case in CASES if version == "v70" or case not in ONLY_V70]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


class LossCase:
    """The inputs of a case, and what the loss makes of them."""

    def __init__(self, version: str, case: str) -> None:
        num_classes = 1 if case == "nc1" else 6
        self.num_levels = 4 if case == "nl4" else 3
        self.size = (128, 128) if case == "nl4" else (96, 128)
        self.strides = [8 * 2**level for level in range(self.num_levels)]
        self.anchors = torch.tensor([*COCO_ANCHORS, FOUR_LEVELS][: self.num_levels])
        self.options = self._options(version, case)
        targets = INPUTS["targets"][:0] if case == "empty" else INPUTS["targets"].copy()
        if case == "nc1":
            targets[:, 1] = 0
        self.objects = objects(targets, self.size)
        self.raw = []
        for level, stride in enumerate(self.strides):
            shape = (3, 3, self.size[0] // stride, self.size[1] // stride, 5 + num_classes)
            wave = 2 * np.sin(0.29 * np.arange(np.prod(shape)) + level)
            self.raw.append(torch.from_numpy(wave.astype(np.float32).reshape(shape)).requires_grad_())

    def _options(self, version: str, case: str) -> LossOptions:
        if case != "nl4":
            return CASES[case]
        scaled = CASES[case].scaled(ERAS[version], 80, self.num_levels, 640)
        if version == "v30":
            return scaled
        return replace(CASES[case], balance=scaled.balance)  # v70 scales its gains outside the loss: not here

    def loss(self) -> YoloLoss:
        anchors, strides = self.anchors, self.strides
        return yolo_loss(self.raw, *self.objects, self.size, anchors=anchors, strides=strides, options=self.options)

    def targets(self) -> list[LevelTargets]:
        return assign_targets(*self.objects, self.anchors, self.strides, self.size, self.options.max_ratio)


@pytest.mark.parametrize(("version", "case"), RUNS)
def test_loss_and_gradients(version, case):
    golden, inputs = arrays(f"{version}_loss"), LossCase(version, case)
    loss = inputs.loss()
    total = torch.stack(list(loss.terms.values())).sum()
    (total * 3).backward()  # 3 images
    np.testing.assert_allclose(float(total.detach()) * 3, golden[f"{case}_loss"][0], rtol=1e-5)
    items = [float(term.detach()) for term in loss.terms.values()]
    expected = golden[f"{case}_items"]
    np.testing.assert_allclose([*items, sum(items)][: len(expected)], expected, rtol=1e-5, atol=1e-6)
    assert loss.num_positives.tolist() == golden[f"{case}_npos"].tolist()
    norms = [float(prediction.grad.norm()) for prediction in inputs.raw]
    np.testing.assert_allclose(norms, golden[f"{case}_grad_norms"], rtol=1e-3)
    for level, prediction in enumerate(inputs.raw, start=3):
        whole = golden.get(f"{case}_grad_p{level}")
        found = prediction.grad.numpy()
        if whole is None:
            whole, found = golden[f"{case}_grad_p{level}_sub"], found.ravel()[::13]
        np.testing.assert_allclose(found, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("version", ERAS)
@pytest.mark.parametrize("case", ["base", "anchor_t2", "nl4"])
def test_targets(version, case):
    golden, inputs = arrays(f"{version}_loss"), LossCase(version, case)
    levels = inputs.targets()
    for level, target in enumerate(levels, start=3):
        rows = torch.stack([target.image, target.anchor, target.row, target.column, target.classes], dim=1)
        assert rows.tolist() == golden[f"{case}_idx_p{level}"].tolist()
        np.testing.assert_allclose(target.boxes.numpy(), golden[f"{case}_tbox_p{level}"], rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(target.anchor_sizes.numpy(), golden[f"{case}_anch_p{level}"], rtol=1e-6)
    counts = count_positives(inputs.objects[0], inputs.anchors, inputs.strides, inputs.size, inputs.options.max_ratio)
    assert counts.tolist() == [len(target) for target in levels]


@pytest.mark.parametrize("version", ERAS)
@pytest.mark.parametrize("case", ["base", "gr05"])
def test_objectness_targets(version, case):
    golden, inputs = arrays(f"{version}_loss"), LossCase(version, case)
    for level, (raw, target) in enumerate(zip(inputs.raw, inputs.targets(), strict=True), start=3):
        positive = raw.detach()[target.image, target.anchor, target.row, target.column]
        overlap = ciou(predicted_boxes(positive, target.anchor_sizes), cxcywh_to_xyxy(target.boxes))
        found = objectness_target(raw.shape[:4], target, overlap, inputs.options.iou_share)
        np.testing.assert_allclose(found.numpy(), golden[f"{case}_tobj_p{level}"], rtol=1e-5, atol=2e-6)


def test_balance_after_a_step():
    inputs = LossCase("v70", "autobalance")
    found = updated_balance(torch.tensor(inputs.options.balance), inputs.loss().level_objectness)
    np.testing.assert_allclose(found.numpy(), arrays("v70_loss")["autobalance_balance"], rtol=1e-5)


@pytest.mark.parametrize("version", ERAS)
def test_overlaps(version):
    golden = arrays(f"{version}_loss")
    first = torch.from_numpy(INPUTS["iou_box1_xywh"]).requires_grad_()
    a, b = cxcywh_to_xyxy(first), cxcywh_to_xyxy(torch.from_numpy(INPUTS["iou_box2_xywh"]))
    for name, overlap in (("IoU", iou), ("GIoU", giou), ("DIoU", diou), ("CIoU", ciou)):
        np.testing.assert_allclose(overlap(a, b).detach().numpy(), golden[f"iou_{name}"], rtol=1e-5, atol=1e-6)
    (1 - ciou(a, b)).sum().backward()
    assert first.grad is not None
    np.testing.assert_allclose(first.grad.numpy(), golden["iou_CIoU_grad_box1"], rtol=1e-3, atol=1e-6)


def test_every_array_of_the_losses_is_looked_at():
    for version in ERAS:
        compared = {"iou_IoU", "iou_GIoU", "iou_DIoU", "iou_CIoU", "iou_CIoU_grad_box1"}
        for case in [case for one, case in RUNS if one == version]:
            levels = [f"p{level}" for level in range(3, 7 if case == "nl4" else 6)]
            compared |= {f"{case}_{name}" for name in ("loss", "items", "grad_norms", "npos")}
            compared |= {f"{case}_grad_{level}{'' if case == 'base' else '_sub'}" for level in levels}
            if case in {"base", "anchor_t2", "nl4"}:
                compared |= {f"{case}_{name}_{level}" for name in ("idx", "tbox", "anch") for level in levels}
            if case in {"base", "gr05"}:
                compared |= {f"{case}_tobj_{level}" for level in levels}
        golden = set(arrays(f"{version}_loss"))
        assert golden - compared == ({"autobalance_balance"} if version == "v70" else set())
        assert compared <= golden


PLAIN = SelectionOptions(score_threshold=0.1, iou_threshold=0.45)
SELECTIONS: dict[str, SelectionOptions] = {
    "conf0.1_iou0.6": replace(PLAIN, iou_threshold=0.6),
    "conf0.001_iou0.65": replace(PLAIN, score_threshold=0.001, iou_threshold=0.65),
    "conf0.25_iou0.45": replace(PLAIN, score_threshold=0.25),
    "agnostic": replace(PLAIN, agnostic=True),
    "classes_0_2": replace(PLAIN, classes=(0, 2)),
    "single_class": PLAIN,
    "max300": PLAIN,
    "merge": replace(PLAIN, iou_threshold=0.65, merge=True),
    "best_label_only": replace(PLAIN, multi_label=False),
    "max_det15": replace(PLAIN, max_detections=15),
}
NOT_IN = {"v30": {"best_label_only", "max_det15"}, "v70": {"merge"}}


def selection_input(case: str) -> Tensor:
    if case == "max300":
        return torch.from_numpy(INPUTS["nms_many"])
    predictions = torch.from_numpy(INPUTS["nms_pred"])
    return predictions[..., :6] if case == "single_class" else predictions


@pytest.mark.parametrize("version", ERAS)
@pytest.mark.parametrize("offset", ["classes apart", "class offset"])
def test_selection(version, offset):
    golden: dict[str, Any] = arrays(f"{version}_nms")
    class_offset = CLASS_OFFSETS[ERAS[version]] if offset == "class offset" else None
    for case, options in SELECTIONS.items():
        if case in NOT_IN[version]:
            continue
        for image, found in enumerate(select(selection_input(case), replace(options, class_offset=class_offset))):
            rows = torch.cat([found.boxes, found.scores[:, None], found.classes[:, None]], dim=1)
            np.testing.assert_allclose(rows.numpy(), golden.pop(f"{case}_img{image}"), rtol=1e-5, atol=1e-4)
    assert not golden


@pytest.mark.parametrize("version", ERAS)
def test_anchor_search(version):
    golden = arrays(f"{version}_autoanchor")
    sizes = golden["wh"]
    shapes = INPUTS["anchor_shapes_wh"]
    scaled = 640 * shapes / shapes.max(axis=1, keepdims=True)
    labels = scaled[INPUTS["anchor_label_image"]] * INPUTS["anchor_label_wh_norm"]
    np.testing.assert_allclose(sizes, labels, rtol=1e-6)
    for threshold in (4.0, 2.5):
        fit = anchor_fit(sizes, np.array(COCO_ANCHORS), threshold)
        assert fit.recall == pytest.approx(float(golden[f"bpr_thr{threshold}"]), rel=1e-6)
        assert fit.anchors_per_box == pytest.approx(float(golden[f"aat_thr{threshold}"]), rel=1e-6)
    quality = golden["kmeans_bpr_fitness"]
    for seed in range(4):
        recorded = anchor_fit(sizes, golden[f"kmeans_seed{seed}"])
        assert [recorded.recall, recorded.fitness] == pytest.approx(quality[seed].tolist(), rel=1e-5)
        found = check_anchors(sizes, COCO_ANCHORS, seed=seed)
        assert found.replaced
        assert found.after.recall >= quality[:, 0].min() - 0.03
        assert found.after.fitness >= quality[:, 1].min() - 0.03
