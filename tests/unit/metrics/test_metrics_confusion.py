"""The confusion of classes, and the errors of images."""

from __future__ import annotations

import numpy as np
import torch
from detection_cases import NUM_CLASSES, box_sets, detections_of, truths_of
from hypothesis import given, settings

from sensorlab.geometry.boxes2d import box_iof, box_iou
from sensorlab.metrics.box_sets import Detections, Truths
from sensorlab.metrics.confusion import ConfusionProtocol, DetectionConfusion, confusion_matrix, image_outcomes

BOX, FAR = [0.0, 0.0, 50.0, 50.0], [200.0, 200.0, 250.0, 250.0]


def _walk(detections: Detections, truths: Truths) -> np.ndarray:
    counts = np.zeros((NUM_CLASSES + 1, NUM_CLASSES + 1), int)
    chosen = [d for d in range(len(detections)) if detections.scores[d] > 0.25]
    chosen.sort(key=lambda d: (detections.classes[d], detections.image[d], -detections.scores[d], d))
    real = [t for t in range(len(truths)) if not truths.ignore[t]]
    claims = []  # of detections on their best truths
    for place, d in enumerate(chosen):
        mine = [t for t in real if truths.image[t] == detections.image[d]]
        if mine:
            iou = [float(box_iou(detections.boxes[d], truths.boxes[t])) for t in mine]
            best = int(np.argmax(iou))
            if iou[best] > 0.45:
                claims.append((-iou[best], -detections.scores[d], place, d, mine[best]))
    taken: dict[int, int] = {}
    for *_, d, t in sorted(claims):
        if t not in taken:
            taken[t] = d
    for t in real:
        counts[detections.classes[taken[t]] if t in taken else NUM_CLASSES, truths.classes[t]] += 1
    for d in chosen:
        hidden = any(
            truths.ignore[t]
            and truths.image[t] == detections.image[d]
            and box_iof(detections.boxes[d], truths.boxes[t]) >= 0.45
            for t in range(len(truths))
        )
        if d not in taken.values() and not hidden:
            counts[detections.classes[d], NUM_CLASSES] += 1
    return counts


@settings(max_examples=100, deadline=None)
@given(box_sets())
def test_counts_are_those_of_a_walk(boxes: tuple[Detections, Truths]) -> None:
    assert np.array_equal(confusion_matrix(*boxes, NUM_CLASSES), _walk(*boxes))


def test_known_counts() -> None:
    truths = truths_of([(0, 0, BOX), (0, 1, FAR), (1, 1, BOX), (2, 0, BOX)], ignore=[3])
    detections = detections_of(
        [
            (0, 1, BOX, 0.9),  # the box is right, its class is not
            (0, 0, [0.0, 0.0, 40.0, 50.0], 0.95),  # surer, but less exact: wrong
            (1, 1, BOX, 0.2),  # below the score
            (1, 0, FAR, 0.6),  # nothing there, in an image without matches
            (2, 1, BOX, 0.6),  # on an ignored box
        ]
    )
    assert confusion_matrix(detections, truths, 2).tolist() == [[0, 0, 2], [1, 0, 0], [0, 2, 0]]


def test_the_accumulator_counts_per_batch_and_merges() -> None:
    def update(metric: DetectionConfusion, row: int, number: int, filler: bool = False) -> None:
        outputs = {
            "det_boxes": torch.tensor([BOX]), "det_scores": torch.tensor([0.9]), "det_classes": torch.tensor([number]),
            "det_image": torch.tensor([0]),
        }  # fmt: skip
        batch = {
            "index": torch.tensor([row]), "is_filler": torch.tensor([filler]), "gt_boxes": torch.tensor([BOX]),
            "gt_classes": torch.tensor([0]), "gt_image": torch.tensor([0]), "gt_ignore": torch.tensor([False]),
            "gt_area": torch.tensor([2500.0]),
        }  # fmt: skip
        metric.update(outputs, batch)

    metrics = [DetectionConfusion(ConfusionProtocol(classes=("cat", "dog"))) for _ in range(3)]
    update(metrics[0], 0, 0)
    update(metrics[1], 1, 1)
    update(metrics[1], 2, 0)
    update(metrics[1], 2, 0, filler=True)
    for part in metrics[:2]:
        metrics[2].merge(part.state())
    assert metrics[2].matrix().tolist() == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert metrics[2].matrix().dtype == np.int64
    assert metrics[2].table() == {"predicted": ["cat", "dog"], "actual": ["cat", "cat"], "count": [2, 1]}
    assert metrics[2].compute() == {}
    metrics[2].reset()
    assert metrics[2].table()["count"] == []


def test_errors_of_images() -> None:
    truths = truths_of([(4, 0, BOX), (4, 0, FAR), (7, 1, BOX), (9, 0, BOX)], ignore=[3])
    detections = detections_of(
        [(4, 0, BOX, 0.9), (4, 0, BOX, 0.8), (4, 0, FAR, 0.1), (7, 0, BOX, 0.9), (9, 0, BOX, 0.9), (3, 1, BOX, 0.3)]
    )
    outcomes = image_outcomes(detections, truths, np.array([3, 4, 5, 7, 9]))
    assert {name: column.tolist() for name, column in outcomes.items()} == {
        "found": [0, 1, 0, 0, 0],
        "missed": [0, 1, 0, 1, 0],
        "wrong": [1, 1, 0, 1, 0],
    }
