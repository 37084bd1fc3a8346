"""Batches that detection metrics refuse, and what the messages say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sensorlab.errors import UserError
from sensorlab.metrics.detection_batch import OUTPUTS, TARGETS, read_batch

NAMES = ("red", "white")


def _case() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 9], [0, 0, 0, 3]])
    outputs = {
        "det_boxes": boxes.clone(), "det_scores": torch.tensor([0.9, 0.5, 0.1]), "det_classes": torch.tensor([0, 1, 1]),
        "det_image": torch.tensor([0, 1, 2]),
    }  # fmt: skip
    batch = {
        "index": torch.tensor([70, 80, 80]), "is_filler": torch.tensor([False, False, True]), "gt_boxes": boxes.clone(),
        "gt_classes": torch.tensor([1, 0, 0]), "gt_image": torch.tensor([1, 1, 2]),
        "gt_ignore": torch.tensor([0, 1, 0], dtype=torch.int8), "gt_area": torch.tensor([100.0, 16, 0]),
    }  # fmt: skip
    return outputs, batch


def test_positions_become_row_numbers_and_fillers_are_left_out() -> None:
    rows, detections, truths = read_batch(*_case(), NAMES)
    assert rows.tolist() == [70, 80]
    assert detections.image.tolist() == [70, 80]
    assert truths.image.tolist() == [80, 80]
    assert truths.ignore.tolist() == [False, True]
    outputs, batch = _case()
    del batch["is_filler"]
    assert read_batch(outputs, batch, NAMES)[0].tolist() == [70, 80, 80]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read(dtype: torch.dtype) -> None:
    outputs, batch = _case()
    outputs |= {name: outputs[name].to(dtype) for name in ("det_boxes", "det_scores")}
    detections = read_batch(outputs, batch, NAMES)[1]
    assert detections.boxes.dtype == detections.scores.dtype == "float64"
    assert detections.scores[1] == 0.5


def test_images_without_anything() -> None:
    outputs, batch = _case()
    outputs = {name: value[:0] for name, value in outputs.items()}
    batch |= {name: batch[name][:0] for name in TARGETS}
    rows, detections, truths = read_batch(outputs, batch, NAMES)
    assert (rows.tolist(), len(detections), len(truths)) == ([70, 80], 0, 0)


@pytest.mark.parametrize("name", [*OUTPUTS, *TARGETS])
def test_arrays_that_are_missing_or_of_another_length(name: str) -> None:
    outputs, batch = _case()
    source = outputs if name in outputs else batch
    value = source.pop(name)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read_batch(outputs, batch, NAMES)
    source[name] = value[:2]
    with pytest.raises(ValueError, match=r"has the shape .* makes it"):
        read_batch(outputs, batch, NAMES)


@pytest.mark.parametrize("name", ["det_image", "gt_image"])
@pytest.mark.parametrize("position", [-1, 3])
def test_positions_outside_the_batch(name: str, position: int) -> None:
    outputs, batch = _case()
    (outputs if name in outputs else batch)[name][0] = position
    with pytest.raises(ValueError, match=rf"{name} holds positions outside the batch, 0 \.\. 2"):
        read_batch(outputs, batch, NAMES)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("det_boxes", (1, 2), float("nan"), r"row 80 .* a detected box has borders that are no numbers: has training"),
        ("det_boxes", (0, 0), float("inf"), r"row 70 .* a detected box has borders that are no numbers"),
        ("det_boxes", (1, 0), 20.0, r"row 80 .* a detected box has its right border before its left one"),
        ("det_scores", 0, float("nan"), r"row 70 .* score is no number"),
        ("det_classes", 1, 2, r"row 80 .* class of a detected box is none of 0 \.\. 1 \(red, white\)"),
        ("gt_boxes", (0, 1), float("nan"), r"row 80 .* an annotated box has borders that are no numbers$"),
        ("gt_boxes", (1, 3), 1.0, r"row 80 .* annotated box has its right border .* or bottom before top"),
        ("gt_area", 0, float("nan"), r"row 80 .* the area of an annotated box is no number"),
        ("gt_classes", 0, -1, r"row 80 .* class of an annotated box is none of 0 \.\. 1"),
    ],
)
def test_values_that_cannot_be_measured(name: str, place, value: float, message: str) -> None:
    outputs, batch = _case()
    (outputs if name in outputs else batch)[name][place] = value
    with pytest.raises(UserError, match=message):
        read_batch(outputs, batch, NAMES)


def test_many_classes_are_not_all_named() -> None:
    outputs, batch = _case()
    outputs["det_classes"][0] = 99
    with pytest.raises(UserError, match=r"0 \.\. 79 \(c0, c1, c2, c3, c4, \.\.\.\)"):
        read_batch(outputs, batch, tuple(f"c{number}" for number in range(80)))
