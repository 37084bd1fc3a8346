"""What detection metrics read from an evaluated batch, checked.

The arrays are ragged: all boxes of the batch in one array, with the position of their image in the batch beside them.
All coordinates are pixels of the original image, so that a number does not depend on the size of the network's input.

========================  =====================  ====================================================================
``outputs``               ``det_boxes``          (M, 4) float, xyxy
                          ``det_scores``         (M,) float
                          ``det_classes``        (M,) int, 0 .. C-1
                          ``det_image``          (M,) int, position in the batch
``batch``                 ``gt_boxes``           (N, 4) float, xyxy, as annotated: neither cropped nor filtered
                          ``gt_classes``         (N,) int, 0 .. C-1
                          ``gt_image``           (N,) int, position in the batch
                          ``gt_ignore``          (N,) bool or int: crowd or difficult
                          ``gt_area``            (N,) float, px^2 of the original image
                          ``index``              (B,) int, row number of the sample in its split
                          ``is_filler``          (B,) bool; without it all samples count
========================  =====================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorlab.errors import UserError
from sensorlab.metrics.box_sets import Detections, Truths, take

OUTPUTS = ("det_boxes", "det_scores", "det_classes", "det_image")
TARGETS = ("gt_boxes", "gt_classes", "gt_image", "gt_ignore", "gt_area")


def read_batch(
    outputs: Mapping[str, Tensor], batch: Mapping[str, Any], classes: tuple[str, ...]
) -> tuple[np.ndarray, Detections, Truths]:
    """The samples of a batch that count: their row numbers (b,) int64, detections and truths with those as ``image``.

    Raises:
        ValueError: an array is missing or has another length or shape than its neighbours, or a position is outside the
            batch.
        UserError: coordinates or scores that are no numbers, borders in the wrong order, classes out of range. The
            message names the row of the sample.
    """
    rows = batch["index"].detach().cpu().numpy().astype(np.int64)
    counted = ~batch["is_filler"].cpu().numpy() if "is_filler" in batch else np.ones(len(rows), bool)
    found = _columns(outputs, OUTPUTS, len(rows))
    truth = _columns(batch, TARGETS, len(rows))
    _check(found["det_image"], rows, "a detected box", found["det_boxes"], found["det_classes"], classes)
    _check(truth["gt_image"], rows, "an annotated box", truth["gt_boxes"], truth["gt_classes"], classes)
    _refuse(~np.isfinite(found["det_scores"]), found["det_image"], rows, "a detection's score is no number")
    _refuse(~np.isfinite(truth["gt_area"]), truth["gt_image"], rows, "the area of an annotated box is no number")
    detections = Detections(
        rows[found["det_image"]],
        found["det_boxes"].astype(np.float64),
        found["det_scores"].astype(np.float64),
        found["det_classes"].astype(np.int64),
    )
    truths = Truths(
        rows[truth["gt_image"]],
        truth["gt_boxes"].astype(np.float64),
        truth["gt_classes"].astype(np.int64),
        truth["gt_ignore"].astype(bool),
        truth["gt_area"].astype(np.float64),
    )
    # By the position: a filler has the row number of a sample that counts.
    return rows[counted], take(detections, counted[found["det_image"]]), take(truths, counted[truth["gt_image"]])


def _columns(source: Mapping[str, Any], names: tuple[str, ...], batch_size: int) -> dict[str, np.ndarray]:
    """The named arrays: of one length, the positions inside the batch."""
    missing = [name for name in names if name not in source]
    if missing:
        raise ValueError(f"detection metrics need {', '.join(names)}; {', '.join(missing)} is missing")
    columns = {name: _numpy(source[name]) for name in names}
    length = len(columns[names[-1]])
    for name, column in columns.items():
        shape = (length, 4) if name.endswith("_boxes") else (length,)
        if column.shape != shape:
            raise ValueError(f"{name} has the shape {column.shape}, but {names[-1]} makes it {shape}")
    image = next(name for name in names if name.endswith("_image"))
    if ((columns[image] < 0) | (columns[image] >= batch_size)).any():
        raise ValueError(f"{image} holds positions outside the batch, 0 .. {batch_size - 1}")
    return columns


def _numpy(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    array: np.ndarray = (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
    return array


def _check(
    position: np.ndarray, rows: np.ndarray, kind: str, boxes: np.ndarray, number: np.ndarray, classes: tuple[str, ...]
) -> None:
    hint = ": has training diverged? Try a lower learning rate" if kind == "a detected box" else ""
    _refuse(~np.isfinite(boxes).all(axis=1), position, rows, f"{kind} has borders that are no numbers{hint}")
    inverted = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    _refuse(inverted, position, rows, f"{kind} has its right border before its left one, or bottom before top")
    outside = (number < 0) | (number >= len(classes))
    known = f"0 .. {len(classes) - 1} ({_short(classes)})"
    _refuse(outside, position, rows, f"the class of {kind} is none of {known}")


def _refuse(wrong: np.ndarray, position: np.ndarray, rows: np.ndarray, problem: str) -> None:
    if wrong.any():
        raise UserError(f"row {rows[position[wrong.argmax()]]} of the evaluated split: {problem}")


def _short(classes: tuple[str, ...]) -> str:
    return ", ".join(classes if len(classes) <= 6 else (*classes[:5], "..."))
