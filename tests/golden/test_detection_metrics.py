"""Average precisions against pycocotools, mmdet and both generations of YOLOv5: every array of their packs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorlab.geometry.boxes2d import box_area
from sensorlab.metrics.box_sets import Detections, Truths
from sensorlab.metrics.coco_ap import RECALLS, coco_ap
from sensorlab.metrics.detection import COCOAP, VOCAP, YOLOAP, COCOAPProtocol, VOCAPProtocol, yolo_protocol
from sensorlab.metrics.voc_ap import voc_ap
from sensorlab.metrics.yolo_ap import RULES, Definition, correct_detections, sampled_precision, yolo_ap

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data"
NUM_CLASSES = 5
ERAS: dict[str, Definition] = {"v30": "yolov5-v3", "v70": "yolov5-v7"}


def _load(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / name))


def _boxes(system: str, ignored: np.ndarray | None = None) -> tuple[Detections, Truths]:
    inputs = _load(f"{system}/ap_inputs.npz")
    found, truth = inputs["ap_det"].astype(np.float64), inputs["ap_gt"].astype(np.float64)
    ignore = np.zeros(len(truth), bool)
    if ignored is not None:
        ignore[ignored] = True
    truths = Truths(truth[:, 0].astype(int), truth[:, 2:], truth[:, 1].astype(int), ignore, box_area(truth[:, 2:]))
    return Detections(found[:, 0].astype(int), found[:, 1:5], found[:, 5], found[:, 6].astype(int)), truths


def _coco(value: np.ndarray) -> np.ndarray:
    """With pycocotools' -1 for nothing."""
    return np.where(np.isnan(value), -1.0, value)


def _numbers(summary: dict[str, float]) -> np.ndarray:
    return _coco(np.array(list(summary.values())))


def _close(value: np.ndarray, expected: np.ndarray) -> None:
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)


def test_every_array_is_looked_at() -> None:
    assert set(_load("retinanet/coco_ap.npz")) == {
        "coco_stats12", "coco_precision_TRK_all_100", "coco_recall_TK_all_100", "coco_per_class_ap", "crowd_ann_ids",
        "coco_stats12_with_crowd",
    }  # fmt: skip
    both = {
        "p", "r", "f1", "ap", "classes", "correct", "conf", "pred_cls", "summary_P_R_mAP50_mAP", "maps",
        "coco_stats12", "coco_precision_all_area_max100", "coco_per_class_ap", "compute_ap",
    }  # fmt: skip
    assert set(_load("yolov5/v30_ap.npz")) == both
    assert set(_load("yolov5/v70_ap.npz")) == both | {"tp", "fp"}
    assert len(_load("retinanet/v1_voc_ap.npz")) == 4


def test_coco() -> None:
    golden = _load("retinanet/coco_ap.npz")
    result = coco_ap(*_boxes("retinanet"), NUM_CLASSES)
    _close(_numbers(result.summary()), golden["coco_stats12"])
    _close(_coco(result.precision[..., 0]), golden["coco_precision_TRK_all_100"])
    _close(_coco(result.recall[:, :, 0, 2]), golden["coco_recall_TK_all_100"])
    _close(result.ap(), golden["coco_per_class_ap"])


def test_coco_with_crowds() -> None:
    golden = _load("retinanet/coco_ap.npz")
    result = coco_ap(*_boxes("retinanet", golden["crowd_ann_ids"] - 1), NUM_CLASSES)
    _close(_numbers(result.summary()), golden["coco_stats12_with_crowd"])


def test_the_rounded_numbers_of_mmdet() -> None:
    golden = json.loads((DATA / "retinanet" / "v3_coco_metric.json").read_text(encoding="utf-8"))
    result = coco_ap(*_boxes("retinanet"), NUM_CLASSES)
    names = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
    numbers = dict(zip((f"coco/bbox_{name}" for name in names), _numbers(result.summary())[:6], strict=True))
    numbers |= {f"coco/c{number}_precision": value for number, value in enumerate(result.ap())}
    assert golden == {name: pytest.approx(value, abs=5.1e-4) for name, value in numbers.items()}


@pytest.mark.parametrize("era", ERAS)
def test_coco_on_the_boxes_of_yolov5(era: str) -> None:
    golden = _load(f"yolov5/{era}_ap.npz")
    result = coco_ap(*_boxes("yolov5"), NUM_CLASSES)
    _close(_numbers(result.summary()), golden["coco_stats12"])
    _close(_coco(result.precision[..., 0]), golden["coco_precision_all_area_max100"])
    _close(result.ap(), golden["coco_per_class_ap"])


def test_voc_as_mmdet_1_has_it() -> None:
    golden = _load("retinanet/v1_voc_ap.npz")
    boxes = _boxes("retinanet")
    result = voc_ap(*boxes, NUM_CLASSES, thresholds=(0.5, 0.75), comparison=">=", extent=1.0)
    for column, threshold in enumerate(("0.5", "0.75")):
        _close(result.average_precision[:, column], golden[f"voc_area_ap_iou{threshold}"])
        mean = list(result.summary().values())[column]
        assert mean == pytest.approx(float(golden[f"voc_area_map_iou{threshold}"]), abs=1e-6)


@pytest.mark.parametrize("era", ERAS)
def test_yolov5(era: str) -> None:
    golden = _load(f"yolov5/{era}_ap.npz")
    detections, truths = _boxes("yolov5")
    assert np.array_equal(detections.scores.astype(np.float32), golden["conf"])
    assert np.array_equal(detections.classes, golden["pred_cls"])
    result = yolo_ap(detections, truths, NUM_CLASSES, rules=RULES[ERAS[era]])
    assert np.array_equal(np.flatnonzero(result.truths()), golden["classes"])
    for name, value in {"p": result.precision, "r": result.recall, "f1": result.f1, "maps": result.ap()}.items():
        _close(value, golden[name])
    _close(result.average_precision, golden["ap"])
    _close(_numbers(result.summary())[:4], golden["summary_P_R_mAP50_mAP"])
    if era == "v70":
        found, wrong = result.matches()
        assert np.array_equal(found, golden["tp"])
        assert np.array_equal(wrong, golden["fp"])


@pytest.mark.parametrize("era", ERAS)
def test_which_detections_of_yolov5_are_correct(era: str) -> None:
    golden = _load(f"yolov5/{era}_ap.npz")
    detections, truths = _boxes("yolov5")
    order = np.lexsort((-detections.scores, detections.image, detections.classes))
    correct = correct_detections(detections.ranked(), truths, RULES[ERAS[era]]).T
    assert np.array_equal(correct, golden["correct"][order])


@pytest.mark.parametrize("era", ERAS)
def test_the_area_of_given_curves(era: str) -> None:
    golden, inputs = _load(f"yolov5/{era}_ap.npz"), _load("yolov5/ap_inputs.npz")
    for number, expected in enumerate(golden["compute_ap"]):
        # The pack holds them in float32; recalls that are multiples of a hundredth lie on the samples exactly.
        recall, precision = (
            inputs[f"curve{number}_{name}"].astype(np.float64).round(6) for name in ("recall", "precision")
        )
        area = np.trapezoid(sampled_precision(recall, precision, RULES[ERAS[era]].tail), RECALLS)
        assert area == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("era", ERAS)
def test_the_accumulators_say_the_same(era: str) -> None:
    """From tensors, in pixels, batch by batch: the numbers of the packs."""
    golden = _load(f"yolov5/{era}_ap.npz")
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    coco = COCOAP(COCOAPProtocol(classes=names))
    yolo = YOLOAP(yolo_protocol(ERAS[era], names), store=coco.store)
    voc = VOCAP(VOCAPProtocol(classes=names, comparison=">=", extent=1.0), store=coco.store)
    detections, truths = _boxes("yolov5")
    for first in range(0, 14, 3):
        rows = np.arange(first, min(first + 3, 14))
        mine, theirs = np.isin(detections.image, rows), np.isin(truths.image, rows)
        outputs = {
            "det_boxes": detections.boxes[mine], "det_scores": detections.scores[mine],
            "det_classes": detections.classes[mine], "det_image": detections.image[mine] - first,
        }  # fmt: skip
        batch = {
            "index": rows, "gt_boxes": truths.boxes[theirs], "gt_classes": truths.classes[theirs],
            "gt_image": truths.image[theirs] - first, "gt_ignore": truths.ignore[theirs],
            "gt_area": truths.area[theirs],
        }  # fmt: skip
        for metric in (coco, yolo, voc):
            metric.update(
                {name: torch.from_numpy(value) for name, value in outputs.items()},
                {name: torch.from_numpy(value) for name, value in batch.items()},
            )
    _close(_numbers(coco.compute()), golden["coco_stats12"])
    _close(_numbers(yolo.compute())[:4], golden["summary_P_R_mAP50_mAP"])
    assert voc.compute() == voc_ap(detections, truths, NUM_CLASSES, comparison=">=", extent=1.0).summary()
