"""Detection metrics as accumulators: any partition gives one result, stores are shared, protocols say everything."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sensorlab.bench.detection_metrics import random_boxes
from sensorlab.metrics.coco_ap import coco_ap
from sensorlab.metrics.detection import (
    COCOAP,
    VOCAP,
    YOLOAP,
    COCOAPProtocol,
    DetectionMetric,
    VOCAPProtocol,
    yolo_protocol,
)
from sensorlab.metrics.detection_store import DetectionStore

NAMES = ("red", "white", "platelet")
NUM_IMAGES = 9
Batch = dict[str, Tensor]


def _batch(rows: list[int], fillers: tuple[int, ...] = (), seed: int = 0) -> tuple[Batch, Batch]:
    """Outputs and batch of samples of one data set; ``fillers`` are positions."""
    detections, truths = random_boxes(NUM_IMAGES, 30, 6, len(NAMES), seed)
    detections.scores[:] = (detections.scores * 8).round() / 8  # ties
    found = [np.flatnonzero(detections.image == row) for row in rows]
    truth = [np.flatnonzero(truths.image == row) for row in rows]
    mine, theirs = np.concatenate(found), np.concatenate(truth)
    outputs = {
        "det_boxes": torch.from_numpy(detections.boxes[mine]).float(),
        "det_scores": torch.from_numpy(detections.scores[mine]).float(),
        "det_classes": torch.from_numpy(detections.classes[mine]),
        "det_image": torch.repeat_interleave(torch.tensor([len(part) for part in found])),
    }
    batch = {
        "index": torch.tensor(rows),
        "is_filler": torch.tensor([position in fillers for position in range(len(rows))]),
        "gt_boxes": torch.from_numpy(truths.boxes[theirs]),
        "gt_classes": torch.from_numpy(truths.classes[theirs]),
        "gt_image": torch.repeat_interleave(torch.tensor([len(part) for part in truth])),
        "gt_ignore": torch.from_numpy(truths.ignore[theirs]),
        "gt_area": torch.from_numpy(truths.area[theirs]),
    }
    return outputs, batch


def _metrics() -> list[DetectionMetric]:
    return [
        COCOAP(COCOAPProtocol(classes=NAMES)),
        VOCAP(VOCAPProtocol(classes=NAMES)),
        YOLOAP(yolo_protocol("yolov5-v3", NAMES)),
        YOLOAP(yolo_protocol("yolov5-v7", NAMES)),
    ]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    "parts", [[list(range(9))], [[8, 0, 3], [1], [7, 2, 6, 5], [4]], [[row] for row in range(8, -1, -1)]]
)
def test_any_partition_of_the_samples_gives_the_same_result(which: int, parts: list[list[int]]) -> None:
    whole, merged = _metrics()[which], _metrics()[which]
    whole.update(*_batch(list(range(NUM_IMAGES))))
    for part in parts:
        worker = _metrics()[which]
        for row in part:
            worker.update(*_batch([row]))
        merged.merge(worker.state())
    assert {name: value.tolist() for name, value in merged.state().items()} == {
        name: value.tolist() for name, value in whole.state().items()
    }
    assert merged.compute() == whole.compute()  # to the last bit
    assert 0.02 < whole.compute()["ap50"] < 0.95
    whole.reset()
    assert all(math.isnan(value) for value in whole.compute().values())


def test_the_numbers_are_those_of_the_definition() -> None:
    metric = COCOAP(COCOAPProtocol(classes=NAMES), prefix="coco_")
    metric.update(*_batch(list(range(NUM_IMAGES))))
    summary = coco_ap(*metric.store.boxes(), len(NAMES)).summary()
    assert metric.compute() == {f"coco_{name}": value for name, value in summary.items()}


def test_fillers_do_not_count() -> None:
    with_fillers, without = COCOAP(COCOAPProtocol(classes=NAMES)), COCOAP(COCOAPProtocol(classes=NAMES))
    with_fillers.update(*_batch([0, 1, 2, 2], fillers=(3,)))  # fillers repeat a sample
    without.update(*_batch([0, 1, 2]))
    for name, value in without.state().items():
        assert torch.equal(with_fillers.state()[name], value)


def test_new_boxes_change_the_result_and_old_ones_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = COCOAP(COCOAPProtocol(classes=NAMES))
    metric.update(*_batch([0, 1, 2]))
    first = metric.result
    assert metric.result is first
    metric.update(*_batch([3, 4]))
    assert metric.result is not first
    assert metric.result.truths().sum() > first.truths().sum()


def test_a_shared_store() -> None:
    """As an evaluation has it: states gathered, then each metric reset, merged and computed in turn."""
    alone = YOLOAP(yolo_protocol("yolov5-v7", NAMES), prefix="yolo_")
    alone.update(*_batch(list(range(NUM_IMAGES))))
    workers = []
    for rows in ([0, 2, 4, 6, 8], [1, 3, 5, 7]):
        coco = COCOAP(COCOAPProtocol(classes=NAMES))
        pair = [coco, YOLOAP(yolo_protocol("yolov5-v7", NAMES), prefix="yolo_", store=coco.store)]
        for metric in pair:
            metric.update(*_batch(rows))
        workers.append(pair)
    states = [[metric.state() for metric in pair] for pair in workers]
    assert [len(state) for state in states[0]] == [10, 0]
    for metric, parts in zip(workers[0], zip(*states, strict=True), strict=True):
        metric.reset()
        for part in parts:
            metric.merge(part)
        numbers = metric.compute()
    assert numbers == alone.compute()
    coco, yolo = workers[1]
    yolo.reset()
    for _ in states:
        yolo.merge({})
    with pytest.raises(ValueError, match="must come before those that share it"):
        yolo.compute()
    with pytest.raises(ValueError, match="equal classes and max_per_image"):
        VOCAP(VOCAPProtocol(classes=NAMES, max_per_image=100), store=coco.store)


def test_the_best_detections_of_an_image_are_kept() -> None:
    outputs, batch = _batch([5, 1])
    store = DetectionStore(NAMES, max_per_image=4)
    store.update(outputs, batch)
    state = store.state()
    assert state["det_image"].tolist() == [1] * 4 + [5] * 4
    for row, position in ((5, 0), (1, 1)):
        best = outputs["det_scores"][outputs["det_image"] == position].sort(descending=True).values[:4]
        assert torch.equal(state["det_scores"][state["det_image"] == row], best)


def test_low_scores_do_not_count() -> None:
    metric = COCOAP(COCOAPProtocol(classes=NAMES, min_score=0.5))
    metric.update(*_batch(list(range(NUM_IMAGES))))
    detections, truths = metric.store.boxes()
    detections.scores[detections.scores < 0.5] = 0  # they sort last and get nothing, but take truths
    assert metric.compute()["ar100"] < coco_ap(detections, truths, len(NAMES)).summary()["ar100"]
    assert metric.compute()["ar100"] > 0


def test_tables_scores_and_curves_of_classes() -> None:
    metric = COCOAP(COCOAPProtocol(classes=(*NAMES, "unseen")))
    metric.update(*_batch(list(range(NUM_IMAGES))))
    table = metric.class_table()
    assert table["class"] == [*NAMES, "unseen"]
    assert {len(column) for column in table.values()} == {4}
    assert table["truths"][3] == 0
    assert math.isnan(table["ap"][3])
    assert np.mean(table["ap"][:3]) == pytest.approx(metric.compute()["ap"])
    scores = metric.class_scores()
    assert scores["red"] == table["ap"][0]
    assert scores["unseen"] == pytest.approx(metric.compute()["ap"])
    curves = metric.pr_curves()
    assert list(curves) == list(NAMES)
    assert curves["red"].mean() == pytest.approx(table["ap50"][0])
    empty = VOCAP(VOCAPProtocol(classes=NAMES))
    assert empty.class_scores() == dict.fromkeys(NAMES, 0.0)
    assert empty.pr_curves() == {}


def test_a_sample_that_comes_twice_is_refused() -> None:
    metric = COCOAP(COCOAPProtocol(classes=NAMES))
    metric.update(*_batch([3, 4]))
    metric.update(*_batch([4]))
    with pytest.raises(ValueError, match="row 4 of the evaluated split was added twice"):
        metric.compute()


def test_every_field_of_a_protocol_changes_its_digest() -> None:
    bases = [COCOAPProtocol(classes=NAMES), VOCAPProtocol(classes=NAMES), yolo_protocol("yolov5-v7", NAMES)]
    common = {"classes": ("a",), "max_per_image": 100, "min_score": 0.1}
    changes = [
        {"iou_thresholds": (0.5,), "max_detections": (100,), "sizes": (4.0, 9.0), "ignored": "object"},
        {"iou_thresholds": (0.7,), "interpolation": "11-point", "comparison": ">=", "extent": 1.0},
        {"comparison": ">", "claims": "once", "tail": "cut", "operating_point": "score_0.1", "definition": "yolov5-v3"},
    ]
    fixed = [{"interpolation"}, set(), {"iou_thresholds", "interpolation"}]
    for base, own, same in zip(bases, changes, fixed, strict=True):
        changed = {**common, **own}
        assert set(type(base).model_fields) == {"metric", "source", *changed, *same}
        digests = {base.digest} | {base.model_copy(update={name: value}).digest for name, value in changed.items()}
        assert len(digests) == 1 + len(changed)


def test_the_two_generations_of_yolov5_differ_in_every_rule() -> None:
    old, new = (yolo_protocol(name, NAMES).model_dump() for name in ("yolov5-v3", "yolov5-v7"))
    same = {"metric", "classes", "iou_thresholds", "max_per_image", "min_score", "interpolation"}
    assert {name for name in old if old[name] == new[name]} == same


@pytest.mark.parametrize("thresholds", [(), (0.75, 0.5), (0.0, 0.5), (0.5, 1.5)])
def test_thresholds_that_make_no_sense(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="ascending"):
        COCOAPProtocol(classes=NAMES, iou_thresholds=thresholds)
    with pytest.raises(ValidationError, match=r"0\.5, 0\.55"):
        yolo_protocol("yolov5-v7", NAMES, iou_thresholds=(0.5,))
