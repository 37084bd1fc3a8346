"""What a run measures about itself: losses over a logging interval, and where its wall time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from sensorlab.engine.timers import StepTimer
from sensorlab.engine.workers import WorkerGroup

# Kinds of wall time; goodput is step / all of them.
#   step        forward, backward and update: the useful time
#   restart     model, checkpoint, compilation and dry run of each attempt
#   lost        from the checkpoint that an attempt goes on from to its start: work that was lost, and the pause
#   other       the loop itself
SPANS = ("step", "data_wait", "evaluation", "checkpoint", "callback", "restart", "lost", "other")


class SystemMeter:
    """What this process uses: memory of its own in GiB, and CPU in cores since the last look."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._last = (time.perf_counter(), time.process_time())

    def metrics(self) -> dict[str, float]:
        (wall, cpu), self._last = self._last, (time.perf_counter(), time.process_time())
        memory = self._process.memory_info()
        metrics = {
            # Pages of shared libraries and of the object store count once per host, not once per process.
            "system/memory_gib": (memory.rss - getattr(memory, "shared", 0)) / 2**30,
            "system/cpu_cores": (self._last[1] - cpu) / max(self._last[0] - wall, 1e-9),
        }
        if self._device.type == "cuda":
            metrics["system/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return metrics


@dataclass(slots=True)
class StepRecord:
    """What one optimiser step produced. Tensors stay on the device: reading one synchronises."""

    step: int  # optimiser steps done, this one included
    epoch: int
    num_samples: int  # over all workers
    losses: dict[str, Tensor]  # scalar terms of the objective, mean over the micro-batches of the step, detached
    extras: dict[str, Tensor]
    grad_norm: Tensor  # L2, before clipping
    lr: float
    data_wait_s: float  # this worker
    step_s: float  # the rest of the step
    updated: bool = True  # False: the update was skipped, because a gradient was not finite


def read_scalars(tensors: Sequence[Tensor]) -> list[float]:
    """The numbers in 0-d tensors of one device, with a single transfer from a GPU."""
    if not tensors:
        return []
    if tensors[0].device.type == "cpu":
        return [tensor.item() for tensor in tensors]  # stacking them takes several times as long
    return torch.stack([tensor.detach() for tensor in tensors]).double().tolist()


class WallClock:
    """Accounts every second of a run to one of ``SPANS``, from its making on; survives restarts through its state."""

    def __init__(self) -> None:
        self.totals = dict.fromkeys(SPANS, 0.0)
        self._kind = "restart"
        self._since = time.perf_counter()

    def enter(self, kind: str) -> str:
        """What follows is of ``kind``; returns what it was until now."""
        now = time.perf_counter()
        self.totals[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """The block is of ``kind``; a block inside of another takes its time away from it."""
        before = self.enter(kind)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, source: str, target: str) -> None:
        """A part of what was accounted to ``source`` was ``target``."""
        self.totals[source] -= seconds
        self.totals[target] += seconds

    def state_dict(self) -> dict[str, Any]:
        self.enter(self._kind)
        return {"totals": dict(self.totals), "time": time.time()}

    def load_state_dict(self, state: Mapping[str, Any], is_over: bool) -> None:
        """Go on counting; what passed since the checkpoint is lost, unless the training was over."""
        for kind, seconds in state["totals"].items():
            self.totals[kind] += seconds
        if not is_over:
            this_attempt = time.perf_counter() - self._since + self.totals["restart"] - state["totals"]["restart"]
            self.totals["lost"] += max(0.0, time.time() - state["time"] - this_attempt)

    def metrics(self) -> dict[str, float]:
        """``perf/goodput`` and the share of each kind of time, in [0, 1]."""
        self.enter(self._kind)
        total = sum(self.totals.values())
        shares = {f"perf/share_{kind}": seconds / total for kind, seconds in self.totals.items() if kind != "step"}
        return {"perf/goodput": self.totals["step"] / total, **shares}


class IntervalMeter:
    """Means of the step records since the last report.

    Steps whose update was skipped count for the times, not for the means of losses. ``update`` only keeps references:
    nothing is read from the device, and nothing is computed, on the step path. Sums
    run left to right in float64, so that an interval cut by a checkpoint and resumed gives the same bits.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}  # of the steps before the last ``_collect``
        self._pending: list[StepRecord] = []
        self._steps = 0
        self._counts: dict[str, float] = {}  # by name: steps that are in its sum
        self._num_samples = 0
        self._data_wait_s = 0.0
        self._step_s = 0.0
        self._lr: float | None = None  # of the last collected step

    def update(self, record: StepRecord) -> None:
        self._pending.append(record)

    def _collect(self) -> None:
        """Move the pending records into the sums, with one transfer from the device."""
        entries: list[tuple[str, Tensor]] = []
        for record in self._pending:
            if record.updated:  # all workers decide alike, so their means have the same names
                entries += record.losses.items()
                entries += record.extras.items()
                entries.append(("grad_norm", record.grad_norm))
            self._steps += 1
            self._num_samples += record.num_samples
            self._data_wait_s += record.data_wait_s
            self._step_s += record.step_s
            self._lr = record.lr
        if entries:
            values = read_scalars([value for _, value in entries])
            sums, counts = self._sums, self._counts
            for (name, _), value in zip(entries, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + 1.0
        self._pending.clear()

    def reduce(self, workers: WorkerGroup, timer: StepTimer) -> dict[str, float]:
        """The interval's metrics over all workers (losses: mean; times: the slowest's); starts a new interval."""
        if not self._pending and not self._steps:
            return {}
        self._collect()
        steps = self._steps
        metrics = workers.mean({f"train/{name}": value / self._counts[name] for name, value in self._sums.items()})
        times = {"perf/data_wait_s": self._data_wait_s / steps, "perf/step_s": self._step_s / steps}
        slowest = workers.max({**times, **timer.collect()})
        metrics.update(slowest)
        if self._lr is not None:
            metrics["train/lr"] = self._lr
        seconds = (slowest["perf/data_wait_s"] + slowest["perf/step_s"]) * steps
        metrics["perf/samples_per_s"] = self._num_samples / seconds if seconds > 0 else 0.0
        self.__init__()  # type: ignore[misc]
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """This worker's state, plain data."""
        self._collect()
        return {
            "steps": self._steps,
            "num_samples": self._num_samples,
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "data_wait_s": self._data_wait_s,
            "step_s": self._step_s,
            "lr": self._lr,
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], workers: WorkerGroup) -> None:
        """Restore from the states of all workers of the saved run.

        With as many workers as then, each takes its own state and the interval continues bit for bit. With another
        number, every worker takes the mean of the sums, which keeps the reported means up to rounding.
        """
        own = dict(states[workers.rank if len(states) == workers.world_size else 0])
        if len(states) != workers.world_size:
            own["sums"] = _mean_by_name([state["sums"] for state in states])
            own["counts"] = _mean_by_name([state["counts"] for state in states])
        self._steps, self._num_samples = own["steps"], own["num_samples"]
        self._data_wait_s, self._step_s = own["data_wait_s"], own["step_s"]
        self._sums, self._counts, self._lr = dict(own["sums"]), dict(own["counts"]), own["lr"]


def _mean_by_name(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each name over the parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    values = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
