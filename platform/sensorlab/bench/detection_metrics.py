"""COCO average precision of one evaluation: this project's and pycocotools' (skipped where it is not installed).

Both sides judge the same boxes: truths of mixed sizes, detections that are shifted truths of various quality or wrong.
Timed is everything from flat arrays to the twelve numbers and, for pycocotools, its evaluation alone too: evaluate and
accumulate, without the making of its tables. The definitions of VOC and YOLOv5 are timed beside it; they have no other
side.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sensorlab.geometry.boxes2d import box_area
from sensorlab.metrics.box_sets import Detections, Truths
from sensorlab.metrics.coco_ap import coco_ap
from sensorlab.metrics.voc_ap import voc_ap
from sensorlab.metrics.yolo_ap import RULES, yolo_ap

NAME = "detection_metrics"
IMAGE_SIZE = 640.0  # px


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of the published figures."""
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--truths", type=int, default=12, help="per image, on average")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="20 images: a check that it works, no figures")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each side, their ratio, and the largest difference of the twelve numbers."""
    images, rounds = (20, 1) if args.small else (args.images, args.rounds)
    detections, truths = random_boxes(images, args.detections, args.truths, args.classes, args.seed)
    seconds, ours = _fastest(rounds, lambda: coco_ap(detections, truths, args.classes).summary())
    report: dict[str, Any] = {
        "images": images,
        "detections": len(detections),
        "truths": len(truths),
        "classes": args.classes,
        "ap": round(ours["ap"], 4),
        "coco_s": round(seconds, 4),
    }
    for name, rules in RULES.items():
        call = partial(yolo_ap, detections, truths, args.classes, rules=rules)
        report[f"{name}_s"] = round(_fastest(rounds, call)[0], 4)
    report["voc_s"] = round(_fastest(rounds, lambda: voc_ap(detections, truths, args.classes))[0], 4)
    if importlib.util.find_spec("pycocotools") is None:
        return report | {"pycocotools_s": "not installed"}
    theirs, their_seconds, their_whole = _pycocotools(detections, truths, args.classes, rounds)
    mine = [-1.0 if np.isnan(value) else value for value in ours.values()]
    return report | {
        "pycocotools_s": {"evaluation": round(their_seconds, 4), "whole": round(their_whole, 4)},
        "ratio": {"evaluation": round(their_seconds / seconds, 1), "whole": round(their_whole / seconds, 1)},
        "largest_difference": float(np.abs(np.subtract(mine, theirs)).max()),
    }


def random_boxes(
    num_images: int, num_detections: int, num_truths: int, num_classes: int, seed: int
) -> tuple[Detections, Truths]:
    """``num_detections`` per image, a third of them near a truth, and ``num_truths`` per image on average."""
    random = np.random.default_rng(seed)
    image = np.sort(random.integers(0, num_images, num_images * num_truths))
    sides = np.exp(random.uniform(np.log(8), np.log(300), (len(image), 2)))
    corner = random.uniform(0, 1, (len(image), 2)) * (IMAGE_SIZE - sides)
    boxes = np.concatenate([corner, corner + sides], axis=1).round(2)
    classes = random.integers(0, num_classes, len(image))
    truths = Truths(image, boxes, classes, random.random(len(image)) < 0.02, box_area(boxes) * 0.8)
    near = random.integers(0, len(image), num_images * num_detections // 3)
    shift = random.normal(0, 0.08, (len(near), 4)) * np.tile(sides[near], 2)
    number = num_images * num_detections - len(near)
    low = random.uniform(0, IMAGE_SIZE - 20, (number, 2))
    wrong = np.concatenate([low, low + random.uniform(4, 200, (number, 2))], axis=1)
    every = np.concatenate([boxes[near] + shift, wrong])
    every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
    return (
        Detections(
            np.concatenate([image[near], random.integers(0, num_images, number)]),
            every.astype(np.float32).astype(np.float64),
            random.random(len(every)).astype(np.float32).astype(np.float64),
            np.concatenate([classes[near], random.integers(0, num_classes, number)]),
        ),
        truths,
    )


def _fastest(rounds: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest of ``rounds`` calls, and what the last one returned."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def _pycocotools(
    detections: Detections, truths: Truths, num_classes: int, rounds: int
) -> tuple[np.ndarray, float, float]:
    """The twelve numbers, seconds of evaluate and accumulate, seconds of everything from arrays."""
    COCO = importlib.import_module("pycocotools.coco").COCO
    COCOeval = importlib.import_module("pycocotools.cocoeval").COCOeval
    times, stats = [], np.zeros(12)
    for _ in range(rounds):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            start = time.perf_counter()
            truth, found = COCO(), COCO()
            truth.dataset, found.dataset = coco_tables(detections, truths, num_classes)
            truth.createIndex()
            found.createIndex()
            evaluation = COCOeval(truth, found, "bbox")
            before = time.perf_counter()
            evaluation.evaluate()
            evaluation.accumulate()
            after = time.perf_counter()
            evaluation.summarize()
            times.append((after - before, time.perf_counter() - start))
        stats = evaluation.stats
    return stats, min(time_ for time_, _ in times), min(time_ for _, time_ in times)


def coco_tables(detections: Detections, truths: Truths, num_classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The COCO json dictionaries of truths and of detections."""
    images = [{"id": int(image)} for image in np.unique(np.concatenate([truths.image, detections.image]))]
    common = {"images": images, "categories": [{"id": number} for number in range(num_classes)]}
    annotations = [
        _annotation(truths, i, area=float(truths.area[i]), iscrowd=int(truths.ignore[i])) for i in range(len(truths))
    ]
    results = [_annotation(detections, i, score=float(detections.scores[i]), iscrowd=0) for i in range(len(detections))]
    return {**common, "annotations": annotations}, {**common, "annotations": results}


def _annotation(boxes: Detections | Truths, position: int, **fields: Any) -> dict[str, Any]:
    left, top, right, bottom = boxes.boxes[position].tolist()
    return {
        "id": position + 1,
        "image_id": int(boxes.image[position]),
        "category_id": int(boxes.classes[position]),
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        **fields,
    }
