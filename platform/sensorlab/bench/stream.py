"""The Ray Data stream into one training worker against a torch DataLoader with the same transform.

Sides: ``dataloader`` (``--processes`` worker processes, persistent), ``ray_worker`` (Ray tasks read, as many threads of
the consumer transform) and ``ray_task`` (as many Ray tasks transform). Each runs in a fresh process, one after the
other, over the same global batches of the same dataset; with ``--rounds`` more than once the sides take turns and the
medians are reported. The consumer does nothing with a batch, unless ``--step-ms`` makes it sleep like a training step
that waits for a GPU.

Steady state is what comes after the first epoch. ``first_batch_s`` is the wait for the first batch of each epoch;
``cpu_ms_per_sample`` counts the whole process tree, Ray's own processes included, in steady state. On a machine that
does other work the sides get unequal shares of it (``cores_used``): compare CPU time there, not rates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sensorlab.bench import _samples
from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.stream import StreamConfig, StreamSpec, TensorBatch, to_tensors
from sensorlab.errors import UserError

NAME = "stream"
SIDES = ("dataloader", "ray_worker", "ray_task")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _samples.add_arguments(parser)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--samples", type=int, default=96, help="samples per epoch; a smaller split is gone through again"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes or threads that transform")
    parser.add_argument("--step-ms", type=float, default=0.0, help="sleep of the consumer per batch")
    parser.add_argument("--rounds", type=int, default=1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Figures of the three sides and the ratios of their steady-state rates to the DataLoader's."""
    names = ("split", "image_size", "batch", "epochs", "samples", "processes", "step_ms")
    parameters = {name: getattr(args, name) for name in names}
    if args.small:
        parameters |= {"image_size": [64, 112], "batch": 2, "epochs": 3, "samples": 8}
    if parameters["epochs"] < 2:
        raise UserError("--epochs must be at least 2: steady state is what comes after the first epoch")
    with _samples.dataset_path(args) as path:
        facts = _samples.describe(PreparedDataset.open(path), args.split)
        rounds = [
            {side: _in_fresh_process(side, {**parameters, "dataset": str(path)}) for side in SIDES}
            for _ in range(args.rounds)
        ]
    sides = {side: _medians([one[side] for one in rounds]) for side in SIDES}
    baseline = sides["dataloader"]["samples_per_second"]
    return {
        "bench": NAME,
        "data": facts,
        "parameters": parameters | {"rounds": args.rounds},
        **sides,
        "ratio_ray_worker": sides["ray_worker"]["samples_per_second"] / baseline,
        "ratio_ray_task": sides["ray_task"]["samples_per_second"] / baseline,
        "ratio_cpu_ray_worker": sides["dataloader"]["cpu_ms_per_sample"] / sides["ray_worker"]["cpu_ms_per_sample"],
        "ratio_cpu_ray_task": sides["dataloader"]["cpu_ms_per_sample"] / sides["ray_task"]["cpu_ms_per_sample"],
        "bar": {"ratio_ray_worker": ">= 1.0", "ray first_batch_s after the first epoch": "<= 0.3"},
    }


def measure(side: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """One side in this process."""
    dataset, epochs = PreparedDataset.open(parameters["dataset"]), parameters["epochs"]
    config = StreamConfig(
        transform_in="task" if side == "ray_task" else "worker",
        threads=1 if side == "ray_task" else parameters["processes"],
        tasks=parameters["processes"],
    )
    split = dataset.split(parameters["split"])
    task, policy = _samples.bev_task(parameters["image_size"]), _samples.RepeatedOrder(parameters["samples"])
    spec = StreamSpec(split, task, parameters["batch"], 0, True, config, policy)
    started = time.perf_counter()
    if side == "dataloader":
        return _consume(_dataloader_epochs(spec, parameters["processes"], epochs), parameters, started)
    import ray

    ray.init(address="local", num_cpus=parameters["processes"], include_dashboard=False, log_to_driver=False)
    try:
        started = time.perf_counter()  # a cluster is there already when a training starts
        return _consume(_ray_epochs(spec, epochs), parameters, started)
    finally:
        ray.shutdown()


class _Batches:
    """Map-style dataset of the worker batches of the current epoch, as a DataLoader's workers use it."""

    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec

    def __getitem__(self, cursor: tuple[int, int]) -> TensorBatch:
        arrays, _ = self.spec.maker(self.spec.plan.worker_batch(*cursor))
        return to_tensors(arrays)


class _EpochSampler:
    """Cursors of one epoch after the other."""

    def __init__(self, batches_per_epoch: int) -> None:
        self.epoch = -1
        self.batches_per_epoch = batches_per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.epoch += 1
        return iter([(self.epoch, batch) for batch in range(self.batches_per_epoch)])

    def __len__(self) -> int:
        return self.batches_per_epoch


def _dataloader_epochs(spec: StreamSpec, processes: int, epochs: int) -> Iterator[Iterable[TensorBatch]]:
    from torch.utils.data import DataLoader

    sampler: Any = _EpochSampler(spec.plan.batches_per_epoch)
    dataset: Any = _Batches(spec)
    loader: Any = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=processes, persistent_workers=True)
    for _ in range(epochs):
        yield loader


def _ray_epochs(spec: StreamSpec, epochs: int) -> Iterator[Iterable[TensorBatch]]:
    from sensorlab.data.ray_stream import RayStream

    stream = RayStream(spec, None, end_epoch=epochs)
    for epoch in range(epochs):
        yield stream.batches(epoch)
    stream.close()


def _consume(epochs: Iterator[Iterable[TensorBatch]], parameters: dict[str, Any], started: float) -> dict[str, Any]:
    """Go through all epochs; ``started`` is when the wait for the very first batch began."""
    waits, steady_start, steady_cpu, counted = [], 0.0, 0.0, 0
    for epoch, batches in enumerate(epochs):
        asked = started if epoch == 0 else time.perf_counter()
        if epoch == 1:
            steady_start, steady_cpu = asked, _tree_cpu_seconds()
        for number, batch in enumerate(batches):
            if number == 0:
                waits.append(time.perf_counter() - asked)
            counted += len(batch["index"]) if epoch else 0
            if parameters["step_ms"]:
                time.sleep(parameters["step_ms"] / 1e3)
        if epoch == parameters["epochs"] - 1:  # before the generator goes on to close the stream
            seconds, cpu = time.perf_counter() - steady_start, _tree_cpu_seconds() - steady_cpu
    return {
        "samples_per_second": counted / seconds,
        "cpu_ms_per_sample": 1e3 * cpu / counted,
        "cores_used": cpu / seconds,
        "first_batch_s": {"epoch_1": waits[0], "epoch_2": waits[1], "later_max": max(waits[1:])},
    }


def _tree_cpu_seconds() -> float:
    """CPU seconds of this process and all its living descendants."""
    import psutil

    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _in_fresh_process(side: str, parameters: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "sensorlab.bench.stream", side, json.dumps(parameters)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"side {side!r} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _medians(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median of every number of equally shaped results."""
    merged: dict[str, Any] = {}
    for name, value in results[0].items():
        column = [result[name] for result in results]
        merged[name] = _medians(column) if isinstance(value, dict) else statistics.median(column)
    return merged


def main(arguments: Sequence[str], report: Callable[[str], None] = print) -> None:
    """The child process: one side, its figures as the last line of stdout."""
    side, parameters = arguments
    report(json.dumps(measure(side, json.loads(parameters))))


if __name__ == "__main__":
    main(sys.argv[1:])
