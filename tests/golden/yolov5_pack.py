"""The arrays of the YOLOv5 packs, and models and pixels as they were when these were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from weight_fills import fill_model, read_entries

from sensorlab.models.ops.boxes import cxcywh_to_xyxy
from sensorlab.models.yolov5 import YoloV5

DATA = Path(__file__).parent / "data" / "yolov5"
PACK = Path(__file__).parents[3] / "shared" / "golden" / "yolov5"
# Prefix of the arrays -> variant of the network. v30tag has the state of v30.
VARIANTS = {"v30": "v3", "v30tag": "v3_leaky", "v70": "v7"}
ERAS = {"v30": "v3", "v70": "v7"}


def arrays(name: str, folder: Path = DATA) -> dict[str, np.ndarray]:
    """All arrays of ``name``.npz."""
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


INPUTS = arrays("inputs")


@contextmanager
def single_thread() -> Iterator[None]:
    """Small maps: threads that wait for each other cost more than they bring, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def state_entries(version: str) -> list[list[Any]]:
    """Entries of the state dict. ``anchor_grid``, v30's second copy of the anchors, does not exist here."""
    name = "v30" if version == "v30tag" else version
    entries = read_entries(DATA / f"{name}_state_dict.json.gz")
    return [entry for entry in entries if not entry[1].endswith("anchor_grid")]


def filled_model(version: str, fill: str, dtype: torch.dtype) -> YoloV5:
    """YOLOv5s with 80 classes, filled by "sin" or "hash"."""
    model = YoloV5(VARIANTS[version], "s", 80)
    fill_model(model, state_entries(version), fill)
    return model.to(dtype)


def images(dtype: torch.dtype) -> Tensor:
    """(2, 3, 128, 160); divided in float32, whatever the precision of the run."""
    return (torch.from_numpy(INPUTS["image_uint8"]).float() / 255).to(dtype)


def objects(targets: np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4) float32 xyxy pixels, classes, images from rows image, class, normalised centre and size."""
    rows = torch.from_numpy(targets)
    scale = torch.tensor([size[1], size[0]] * 2)
    return cxcywh_to_xyxy(rows[:, 2:].double() * scale).float(), rows[:, 1].long(), rows[:, 0].long()
