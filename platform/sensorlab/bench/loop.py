"""Cost of the engine per optimiser step, over a bare torch loop with the same model, batches and arithmetic.

Both sides train the same tiny network on the same batches, which lie ready in memory: forward, mean squared error,
backward, gradient norm and clipping, a finite check, AdamW, a learning rate per step. The engine adds what makes a run
a run: seeds per step, records, meters, callbacks with the JSON log every 50 steps, the cursor. The rounds of both sides
alternate in one process. The figures are medians over the rounds of the CPU time of the one thread that trains, which
other processes on the machine disturb least. ``fixed_lr_and_no_check`` is the barest loop: no rate and no finite check.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sensorlab.config import StrictModel
from sensorlab.data.payload import CorruptSample
from sensorlab.data.random_streams import SampleRandom
from sensorlab.data.sample import Sample
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.fit import fit
from sensorlab.engine.meters import StepRecord
from sensorlab.engine.schedules import ConstantSchedule
from sensorlab.engine.training import Training
from sensorlab.experiment import CheckpointConfig, DataConfig, ExperimentConfig, TrainConfig
from sensorlab.metrics.base import Metric
from sensorlab.tasks.base import Arrays, BaseTask, Batch, Outputs

NAME = "loop"
BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=400, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each side")
    parser.add_argument("--small", action="store_true", help="few steps: a check that it works, no figures")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Median CPU microseconds per step of the sides, what the engine adds, and of which parts that consists."""
    steps, rounds = (20, 2) if args.small else (args.steps, args.rounds)
    torch.set_num_threads(1)
    sides: dict[str, Callable[[int], float]] = {
        "engine": _engine_round,
        "bare": lambda steps: _bare_round(steps, complete=True),
        "fixed_lr_and_no_check": lambda steps: _bare_round(steps, complete=False),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            seconds = side(steps)
            if number > 0:  # the first round of each warms up
                times[name].append(1e6 * seconds / steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    differences = [engine - bare for engine, bare in zip(times["engine"], times["bare"], strict=True)]
    return {
        "bench": NAME,
        "parameters": {"steps": steps, "rounds": rounds, "batch": BATCH},
        "cpu_microseconds_per_step": {name: round(value, 1) for name, value in medians.items()},
        "added_by_the_engine_us": round(statistics.median(differences), 1),
        "added_over_fixed_lr_and_no_check_us": round(medians["engine"] - medians["fixed_lr_and_no_check"], 1),
        "fastest_round_us": {name: round(min(values), 1) for name, values in times.items()},
        "bar": {"added_by_the_engine_us": "<= 50"},
    }


class TinyConfig(StrictModel):
    name: Literal["tiny"] = "tiny"


class TinyTask(BaseTask):
    """Two linear layers; nothing but the contract."""

    Config = TinyConfig

    @property
    def columns(self) -> tuple[str, ...]:
        return ()

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays:
        raise NotImplementedError("the batches of this benchmark lie ready")

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        return {"y": model(batch["x"])}

    def losses(self, model: nn.Module, outputs: Outputs, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"squared": (outputs["y"] - batch["y"]).square().mean()}, {}

    def metrics(self) -> dict[str, Metric]:
        return {}

    def decode(self, outputs: Outputs) -> list[float]:
        return outputs["y"][:, 0].tolist()

    def panels(self, outputs: Outputs, batch: Batch) -> list[tuple[str, np.ndarray]]:
        return []


class ReadyStream:
    """One batch, again and again."""

    global_batch, samples_per_epoch, dropped_per_epoch, fingerprint, is_adaptive = BATCH, 0, 0, "loop", False

    def __init__(self, steps: int) -> None:
        self.batches_per_epoch = steps
        self.corrupt_samples: list[CorruptSample] = []
        generator = torch.Generator().manual_seed(0)
        self.batch = {name: torch.randn(BATCH, size, generator=generator) for name, size in (("x", 16), ("y", 1))}

    def batches(self, epoch: int, start_batch: int = 0, scores: Mapping[str, float] | None = None) -> Iterator[Batch]:
        for _ in range(start_batch, self.batches_per_epoch):
            yield dict(self.batch)

    def note_corrupt(self, found: Iterable[CorruptSample]) -> None: ...

    def close(self) -> None: ...


class _Stopwatch(Callback):
    """Time of the whole loop of an epoch: from the start of the run to the report of its last interval."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_fit_start(self, training: Training) -> None:
        self._start = time.thread_time()

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        if record.step == training.total_steps:
            self.seconds = time.thread_time() - self._start

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        if step == training.total_steps and "train/loss" in metrics:
            self.seconds = time.thread_time() - self._start


def _engine_round(steps: int) -> float:
    config = ExperimentConfig(
        name="loop",
        task=TinyConfig(),
        data=DataConfig(path="memory", global_batch=BATCH),
        schedule=ConstantSchedule(),
        train=TrainConfig.model_validate({"duration": "1 epoch", "log_every": "50 steps", "dry_run": False}),
        checkpoint=CheckpointConfig(),
    )
    stopwatch = _Stopwatch()
    with tempfile.TemporaryDirectory(prefix="sensorlab-bench-") as folder:
        fit(
            config,
            TinyTask(config.task),
            ReadyStream(steps),
            None,
            run_dir=Path(folder),
            callbacks=[JsonLog(), stopwatch],
        )
    return stopwatch.seconds


def _bare_round(steps: int, complete: bool) -> float:
    """The loop as one writes it by hand; ``complete``: with a rate per step, a finite check and a printed loss."""
    stream = ReadyStream(steps)
    model = TinyTask(TinyConfig()).build_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=1e-7, fused=True)
    start = time.thread_time()
    for step, batch in enumerate(stream.batches(0)):
        if complete:
            for group in optimizer.param_groups:
                group["lr"] = 3e-4
        loss = (model(batch["x"]) - batch["y"]).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        if complete and not bool(torch.isfinite(norm)):
            raise FloatingPointError(f"not finite at step {step}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if complete and (step + 1) % 50 == 0:
            str(loss.item())
    return time.thread_time() - start
