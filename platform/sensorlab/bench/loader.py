"""BEV samples per second and core through the full transform, beside the bare JPEG decode of the same images.

The full side is what a training worker does for a batch: rows from the shards, Arrow to samples, the task's training
transform (decode, augment, resize, labels), collate, tensors. The bare side opens and decodes the JPEGs of the same
samples at the same scale and does nothing with the pixels. Both run on one thread, taking turns batch by batch; the
ratio is of CPU seconds, which other processes on the machine disturb least. Wall seconds stand beside them.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from sensorlab.bench import _samples
from sensorlab.data.batch import BatchMaker
from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.images import MAX_ENLARGEMENT
from sensorlab.data.plan import WorkerBatch
from sensorlab.data.schema import decode_table
from sensorlab.data.stream import StreamSpec, to_tensors

NAME = "loader"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _samples.add_arguments(parser)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=24, help="measured batches of each side")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and samples per second and core of both sides, the stages of the full side, and the ratio."""
    with _samples.dataset_path(args) as path:
        dataset = PreparedDataset.open(path)
        facts = _samples.describe(dataset, args.split)
        batch = min(args.batch, facts["samples"])
        spec = StreamSpec(dataset.split(args.split), _samples.bev_task(args.image_size), batch, 0, True)
        timers = {name: _Timer() for name in ("bare_decode", "full", "read", "transform_and_collate", "tensors")}
        cursors = list(spec.plan.cursors((0, 0), 1 + args.batches // spec.plan.batches_per_epoch))[: args.batches]
        for warm_up in (True, False):
            for cursor in cursors[: 2 if warm_up else None]:
                _measure(spec.plan.worker_batch(*cursor), spec.maker, args.image_size, timers)
            if warm_up:
                timers = {name: _Timer() for name in timers}
    samples = len(cursors) * batch
    sides = {name: timers[name].report(samples) for name in ("bare_decode", "full")}
    return {
        "bench": NAME,
        "data": facts,
        "parameters": {"image_size": args.image_size, "batch": batch, "batches": len(cursors)},
        **sides,
        "full_stages_cpu_ms_per_sample": {
            name: round(1e3 * timers[name].cpu / samples, 3) for name in ("read", "transform_and_collate", "tensors")
        },
        "ratio_to_bare_decode": sides["bare_decode"]["cpu_ms_per_sample"] / sides["full"]["cpu_ms_per_sample"],
        "ratio_to_bare_decode_wall": sides["bare_decode"]["wall_ms_per_sample"] / sides["full"]["wall_ms_per_sample"],
        "bar": {"ratio_to_bare_decode": ">= 0.7"},
    }


class _Timer:
    """Sums CPU and wall seconds of calls."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            return function(*args)
        finally:
            self.cpu += time.thread_time() - cpu
            self.wall += time.perf_counter() - wall

    def report(self, samples: int) -> dict[str, float]:
        return {
            "samples_per_second_and_core": samples / self.cpu,
            "cpu_ms_per_sample": 1e3 * self.cpu / samples,
            "wall_ms_per_sample": 1e3 * self.wall / samples,
        }


def _measure(job: WorkerBatch, maker: BatchMaker, image_size: list[int], timers: dict[str, _Timer]) -> None:
    """One batch through both sides."""

    def full() -> None:
        table, corrupt = timers["read"](maker.reader, job.rows)
        arrays, _ = timers["transform_and_collate"](maker.make, job, table, corrupt)
        timers["tensors"](to_tensors, arrays)

    timers["full"](full)
    samples = decode_table(maker.reader(job.rows)[0])
    timers["bare_decode"](_bare_decode, [camera.jpeg for sample in samples for camera in sample.cameras], image_size)


def _bare_decode(jpegs: list[bytes], image_size: list[int]) -> None:
    """Decode at the scale that the transform uses for these images; see :func:`sensorlab.data.images.decode_image`."""
    height, width = (int(side / MAX_ENLARGEMENT) for side in np.asarray(image_size))
    for jpeg in jpegs:
        image = Image.open(io.BytesIO(jpeg))
        image.draft("RGB", (width, height))
        image.load()
