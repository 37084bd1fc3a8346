"""The detections and truths of an evaluation, accumulated batch by batch and worker by worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorlab.metrics.box_sets import Detections, Truths, rank_in_group, take
from sensorlab.metrics.detection_batch import read_batch

# Truths keep the precision of their files: overlaps of round numbers lie on thresholds exactly.
COLUMNS: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "images": (torch.int64, ()),
    "det_image": (torch.int64, ()),
    "det_boxes": (torch.float32, (4,)),
    "det_scores": (torch.float32, ()),
    "det_classes": (torch.int32, ()),
    "gt_image": (torch.int64, ()),
    "gt_boxes": (torch.float64, (4,)),
    "gt_classes": (torch.int32, ()),
    "gt_ignore": (torch.bool, ()),
    "gt_area": (torch.float64, ()),
}
KEYS = {"images": "images", "det": "det_image", "gt": "gt_image"}  # column by which those of a prefix are sorted


class DetectionStore:
    """All boxes of an evaluation with the row number of their sample.

    The state is sorted by the sample, within a sample detections by falling score (ties and truths keep their order),
    so it is the same for every partition of the samples over batches and workers. It takes 32 bytes per detection, at
    most ``max_per_image`` of them per image (48 MB for 5000 images with 300), and 53 bytes per truth.

    Args:
        classes: names of the classes 0 .. C-1.
        max_per_image: of an image the detections with the highest scores are kept.
    """

    def __init__(self, classes: tuple[str, ...], max_per_image: int = 300) -> None:
        self.classes = classes
        self.max_per_image = max_per_image
        self.version = 0  # changes with the contents
        self.merges = 0  # states added since the last reset
        self._parts: dict[str, list[Tensor]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._parts = {name: [torch.empty((0, *shape), dtype=dtype)] for name, (dtype, shape) in COLUMNS.items()}
        self.version += 1
        self.merges = 0

    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Add the samples of a batch that count; names and errors: :mod:`sensorlab.metrics.detection_batch`."""
        rows, detections, truths = read_batch(outputs, batch, self.classes)
        detections = take(detections, np.lexsort((-detections.scores, detections.image)))
        detections = take(detections, rank_in_group(detections.image) < self.max_per_image)
        self._add(
            {"images": rows}
            | {f"det_{name}": value for name, value in vars(detections).items()}
            | {f"gt_{name}": value for name, value in vars(truths).items()}
        )

    def state(self) -> dict[str, Tensor]:
        """The columns of ``COLUMNS``, sorted; on the CPU."""
        for key, column in KEYS.items():
            order = torch.sort(torch.cat(self._parts[column]), stable=True).indices
            for name in COLUMNS:
                if name.startswith(key):
                    self._parts[name] = [torch.cat(self._parts[name])[order]]
        return {name: parts[0].clone() for name, parts in self._parts.items()}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the state of another store."""
        self._add({name: state[name] for name in COLUMNS})
        self.merges += 1

    def boxes(self) -> tuple[Detections, Truths]:
        """Everything, as metrics take it; ``image`` is the row number of the sample.

        Raises:
            ValueError: a sample was added twice, so every box of it would count twice.
        """
        state = {name: value.numpy() for name, value in self.state().items()}
        twice = state["images"][1:][np.diff(state["images"]) == 0]
        if len(twice):
            raise ValueError(f"row {twice[0]} of the evaluated split was added twice")
        detections = Detections(
            state["det_image"],
            state["det_boxes"].astype(np.float64),
            state["det_scores"].astype(np.float64),
            state["det_classes"].astype(np.int64),
        )
        classes = state["gt_classes"].astype(np.int64)
        truths = Truths(state["gt_image"], state["gt_boxes"], classes, state["gt_ignore"], state["gt_area"])
        return detections, truths

    def _add(self, columns: Mapping[str, np.ndarray | Tensor]) -> None:
        for name, (dtype, _) in COLUMNS.items():
            self._parts[name].append(torch.as_tensor(columns[name]).to(dtype))
        self.version += 1
