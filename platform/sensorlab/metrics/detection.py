"""Average precision of detections as accumulators: the definitions by name, each with its protocol.

Several definitions of one evaluation share one store of boxes::

    coco = COCOAP(COCOAPProtocol(classes=names))
    yolo = YOLOAP(yolo_protocol("yolov5-v7", names), prefix="yolo_", store=coco.store)
    metrics = {"coco": coco, "yolo": yolo}  # the owner of the store first

What batches and outputs hold: :mod:`sensorlab.metrics.detection_batch`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from sensorlab.metrics.base import Metric, Protocol
from sensorlab.metrics.best_truth import Comparison
from sensorlab.metrics.box_sets import Detections, Truths, take
from sensorlab.metrics.coco_ap import IOU_THRESHOLDS, LARGE, LIMITS, SMALL, COCOResult, coco_ap, mean_or_nan
from sensorlab.metrics.detection_store import DetectionStore
from sensorlab.metrics.voc_ap import Interpolation, VOCResult, voc_ap
from sensorlab.metrics.yolo_ap import RULES, Definition, YOLOResult, YOLORules, yolo_ap

ResultT = TypeVar("ResultT", COCOResult, VOCResult, YOLOResult)


class DetectionProtocol(Protocol):
    """What every average precision depends on besides the detections."""

    classes: tuple[str, ...]  # names of the classes 0 .. C-1; the mean is over those that have truths
    iou_thresholds: tuple[float, ...] = IOU_THRESHOLDS  # ascending
    max_per_image: int = Field(300, ge=1)  # an image's detections of the highest scores, of all classes, that count
    min_score: float = 0.0  # detections with lower scores do not count

    @field_validator("iou_thresholds")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(set(value)) or not 0 < value[0] <= value[-1] <= 1:
            raise ValueError("IoU thresholds must be in (0, 1] and ascending")
        return value


class COCOAPProtocol(DetectionProtocol):
    """COCO's definition; the defaults are the official settings."""

    metric: str = "coco_ap"
    source: str = "pycocotools 2.0 COCOeval, bbox"
    interpolation: Literal["101 recalls, envelope"] = "101 recalls, envelope"
    max_detections: tuple[int, ...] = LIMITS  # of a class in an image: the last one for precision, all for recall
    sizes: tuple[float, float] = (SMALL, LARGE)  # px^2: borders of small, medium and large annotated areas
    ignored: Literal["crowd", "object"] = "crowd"  # matched by the share inside, any number of times; or by IoU, once

    @property
    def areas(self) -> dict[str, tuple[float, float]]:
        """Name to (lowest, highest) area, px^2."""
        small, large = self.sizes
        return {"all": (0.0, 1e10), "small": (0.0, small), "medium": (small, large), "large": (large, 1e10)}


class VOCAPProtocol(DetectionProtocol):
    """PASCAL VOC's definitions: 2010 and later (area), 2007 (11-point)."""

    metric: str = "voc_ap"
    source: str = "PASCAL VOC development kit"
    iou_thresholds: tuple[float, ...] = (0.5,)
    interpolation: Interpolation = "area"
    comparison: Comparison = ">"  # of an IoU with the threshold
    extent: float = 0.0  # added to the sides of boxes; 1 where right and bottom are the last pixel inside


class YOLOAPProtocol(DetectionProtocol):
    """One of YOLOv5's definitions; :func:`yolo_protocol` makes it from its name."""

    metric: str = "yolo_ap"
    interpolation: Literal["101 recalls, envelope, trapezoids"] = "101 recalls, envelope, trapezoids"
    definition: Definition
    comparison: Comparison  # of an IoU with a threshold
    claims: Literal["once", "per_threshold"]  # whether a truth is given away for all thresholds at once
    tail: Literal["cut", "linear"]  # precision beyond the last recall
    operating_point: Literal["score_0.1", "best_f1"]  # where precision and recall are read

    @field_validator("iou_thresholds")
    @classmethod
    def _official(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value != IOU_THRESHOLDS:
            raise ValueError("YOLOv5's definitions have the thresholds 0.5, 0.55 .. 0.95")
        return value

    @property
    def rules(self) -> YOLORules:
        """What :func:`yolo_ap` takes."""
        return YOLORules(self.comparison, self.claims, self.tail, self.operating_point)


def yolo_protocol(definition: Definition, classes: tuple[str, ...], **settings: Any) -> YOLOAPProtocol:
    """The protocol of ``yolov5-v3`` or ``yolov5-v7``; ``settings`` are fields of :class:`DetectionProtocol`."""
    source = {"yolov5-v3": "YOLOv5, August 2020, test.py", "yolov5-v7": "YOLOv5 v7.0 val.py, utils/metrics.py"}
    rules = vars(RULES[definition])
    return YOLOAPProtocol(definition=definition, source=source[definition], classes=classes, **rules, **settings)


class DetectionMetric(Metric, Generic[ResultT]):
    """Average precision over a store of boxes.

    Args:
        protocol: the definition.
        prefix: of the reported names.
        store: of another metric, which then accumulates, merges and resets for both. It has to be computed first.

    Raises:
        ValueError: the store holds other classes, or keeps another number of detections.
    """

    protocol: DetectionProtocol

    def __init__(self, protocol: DetectionProtocol, prefix: str = "", store: DetectionStore | None = None) -> None:
        self.protocol = protocol
        self.prefix = prefix
        self.owns_store = store is None
        self.store = DetectionStore(protocol.classes, protocol.max_per_image) if store is None else store
        if (self.store.classes, self.store.max_per_image) != (protocol.classes, protocol.max_per_image):
            raise ValueError("metrics that share a store need equal classes and max_per_image")
        self._merges = 0
        self._cached: tuple[int, ResultT] | None = None

    def reset(self) -> None:
        self._merges = 0
        if self.owns_store:
            self.store.reset()

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        if self.owns_store:
            self.store.update(outputs, batch)

    def state(self) -> dict[str, Tensor]:
        return self.store.state() if self.owns_store else {}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._merges += 1
        if self.owns_store:
            self.store.merge(state)

    def compute(self) -> dict[str, float]:
        """The numbers of the result's ``summary``, their names with the prefix."""
        return {self.prefix + name: value for name, value in self.result.summary().items()}

    @property
    def result(self) -> ResultT:
        """Everything that was measured: values per class, threshold and size, and curves.

        Raises:
            ValueError: another metric owns the store and has not merged the states that this one was given.
        """
        if self._merges != self.store.merges:
            raise ValueError("the metric that owns the store must come before those that share it")
        if self._cached is None or self._cached[0] != self.store.version:
            detections, truths = self.store.boxes()
            kept = take(detections, detections.scores >= self.protocol.min_score)
            self._cached = self.store.version, self._evaluate(kept, truths)
        return self._cached[1]

    def class_table(self) -> dict[str, list[Any]]:
        """Columns ``class`` (names), ``truths`` (counts), and the numbers per class; NaN where there is no truth."""
        result = self.result
        numbers = {name: column.tolist() for name, column in result.per_class().items()}
        return {"class": list(self.protocol.classes), "truths": result.truths().tolist(), **numbers}

    def class_scores(self) -> dict[str, float]:
        """Average precision of every class by name; classes without truths get the mean, all get 0 without any."""
        values = self.result.ap()
        fallback = np.nan_to_num(mean_or_nan(values))
        return dict(zip(self.protocol.classes, np.where(np.isnan(values), fallback, values).tolist(), strict=True))

    def pr_curves(self) -> dict[str, np.ndarray]:
        """Class name to precision (101,) at recalls 0, 0.01 .. 1 and the lowest threshold, for classes with truths."""
        curves = zip(self.protocol.classes, self.result.pr_curve, strict=True)
        return {name: curve for name, curve in curves if not np.isnan(curve).any()}

    @abstractmethod
    def _evaluate(self, detections: Detections, truths: Truths) -> ResultT:
        """The result on all boxes."""


class COCOAP(DetectionMetric[COCOResult]):
    """COCO's twelve: ``ap``, ``ap50``, ``ap75``, ``ap_small`` .., ``ar1``, ``ar10``, ``ar100``, ``ar_small`` .."""

    protocol: COCOAPProtocol

    def _evaluate(self, detections: Detections, truths: Truths) -> COCOResult:
        return coco_ap(
            detections,
            truths,
            len(self.protocol.classes),
            thresholds=self.protocol.iou_thresholds,
            limits=self.protocol.max_detections,
            areas=self.protocol.areas,
            crowds=self.protocol.ignored == "crowd",
        )


class VOCAP(DetectionMetric[VOCResult]):
    """``ap50`` as PASCAL VOC has it."""

    protocol: VOCAPProtocol

    def _evaluate(self, detections: Detections, truths: Truths) -> VOCResult:
        return voc_ap(
            detections,
            truths,
            len(self.protocol.classes),
            thresholds=self.protocol.iou_thresholds,
            interpolation=self.protocol.interpolation,
            comparison=self.protocol.comparison,
            extent=self.protocol.extent,
        )


class YOLOAP(DetectionMetric[YOLOResult]):
    """``precision``, ``recall``, ``ap50``, ``ap`` and ``fitness`` as YOLOv5 prints them."""

    protocol: YOLOAPProtocol

    def _evaluate(self, detections: Detections, truths: Truths) -> YOLOResult:
        return yolo_ap(
            detections,
            truths,
            len(self.protocol.classes),
            rules=self.protocol.rules,
        )
