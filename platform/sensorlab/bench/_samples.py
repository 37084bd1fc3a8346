"""What the data benchmarks share: six-camera samples and the task that transforms them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.order import Scores, ShuffledOrder, SplitFacts
from sensorlab.data.stream import SampleTransform
from sensorlab.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", help="prepared dataset; default: a small embedded world, made for the occasion")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image-size", type=int, nargs=2, default=[224, 400], metavar=("H", "W"))
    parser.add_argument("--source-size", type=int, nargs=2, default=[1600, 900], metavar=("W", "H"))
    parser.add_argument("--small", action="store_true", help="few small images: seconds, for tests; no figures")


@contextmanager
def dataset_path(args: argparse.Namespace) -> Iterator[Path]:
    """The dataset asked for, or an embedded world in a temporary folder (progress on stderr)."""
    if args.dataset is not None:
        yield Path(args.dataset)
        return
    from sensorlab.data.prepare import prepare_nuscenes
    from sensorlab.data.synthetic.writer import write_world

    size, keyframes = ((320, 180), 3) if args.small else (tuple(args.source_size), 8)
    with tempfile.TemporaryDirectory(prefix="sensorlab-bench-") as folder:
        root = Path(folder)
        with redirect_stdout(sys.stderr):  # stdout is for the figures
            print(f"writing an embedded world of {keyframes} training samples, images {size[0]}x{size[1]}")
            write_world(root / "world", scenes=2, keyframes=keyframes, image_size=size, sweeps=False, val_scenes=1)
            prepare_nuscenes(root / "world", "v1.0-mini", root / "dataset", workers=0)
        yield root / "dataset"


def bev_task(image_size: list[int]) -> SampleTransform:
    """BEV segmentation from all cameras at the published grid, augmentation on."""
    from sensorlab.config import validate
    from sensorlab.tasks.base import task_class

    cls: Any = task_class("bev_segmentation")
    return cls(validate(cls.Config, {"image": {"size": image_size}}))


def describe(dataset: PreparedDataset, split: str) -> dict[str, Any]:
    """The data a figure belongs to."""
    chosen = dataset.split(split)
    if chosen.num_samples == 0:
        raise UserError(f"split {split!r} of {dataset.path} has no samples")
    cameras = {camera.name: [list(size) for size in camera.sizes] for camera in dataset.manifest.sensors.cameras}
    return {"digest": dataset.digest[:16], "split": split, "samples": chosen.num_samples, "cameras": cameras}


@dataclass(frozen=True)
class RepeatedOrder:
    """Epochs of ``samples`` samples from a split of any size: shuffled passes, one after the other."""

    samples: int

    adaptive: ClassVar[bool] = False

    def length(self, facts: SplitFacts) -> int:
        return self.samples

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        passes = -(-self.samples // facts.num_samples)
        shuffled = [ShuffledOrder().order(facts, seed, epoch * passes + number) for number in range(passes)]
        return np.concatenate(shuffled)[: self.samples]
