"""What can be known before anything starts: whether it fits, because Ray waits without a word for what does not, and
whether its results can be recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensorlab.errors import UserError

if TYPE_CHECKING:
    from sensorlab.runs.store import Store

TRIAL_DRIVER_CPUS = 0.1
"""CPUs of the process that starts and watches the workers of a multi-worker trial. Tune does not allow zero."""

_EPSILON = 1e-6


@dataclass(frozen=True)
class Demand:
    """What one run needs at the same time.

    Attributes:
        workers: number of training processes.
        cpus_per_worker, gpus_per_worker: reserved for each of them, on one node.
        data_cpus: kept free for Ray Data's tasks, in all.
        driver_cpus: reserved for the process that starts the workers; 0 when the run trains in that process.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    data_cpus: float
    driver_cpus: float = 0.0

    @property
    def cpus(self) -> float:
        return self.driver_cpus + self.workers * self.cpus_per_worker + self.data_cpus

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker

    def describe(self) -> str:
        parts = [f"{self.workers} worker{'s' * (self.workers > 1)} x {self.cpus_per_worker:g} CPU"]
        if self.driver_cpus:
            parts.append(f"{self.driver_cpus:g} CPU to start them")
        if self.data_cpus:
            parts.append(f"{self.data_cpus:g} CPU for reading data")
        text = f"{self.cpus:g} CPUs ({' + '.join(parts)})"
        return f"{text} and {self.gpus:g} GPUs" if self.gpus else text


def concurrent_runs(demand: Demand, nodes: Sequence[Mapping[str, float]], limit: int | None = None) -> int:
    """How many runs of ``demand`` fit on the cluster together, at most ``limit``.

    Workers are placed node by node, so that half a worker on one node and half on another do not count as one.

    Args:
        demand: what one run needs.
        nodes: resources of each node, ``{"CPU": 8.0, "GPU": 1.0}``.
        limit: the user's own maximum.

    Raises:
        UserError: not even one fits; the message says what is needed and what there is.
    """
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    slots = sum(_worker_slots(demand, node) for node in nodes)
    by_workers = math.floor(slots / demand.workers + _EPSILON)
    by_cpus = math.floor(cpus / demand.cpus + _EPSILON) if demand.cpus else by_workers
    fitting = min(by_workers, by_cpus)
    if fitting < 1:
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        raise UserError(
            f"this does not fit: one run needs {demand.describe()}; the cluster has {cpus:g} CPUs and {gpus:g} GPUs "
            f"on {len(nodes)} node{'s' * (len(nodes) != 1)} (largest: {largest:g} CPUs). "
            "Lower resources.num_workers, resources.cpus_per_worker, resources.gpus_per_worker or resources.data_cpus"
        )
    return fitting if limit is None else min(fitting, limit)


def _worker_slots(demand: Demand, node: Mapping[str, float]) -> int:
    """Training processes that fit on one node."""
    counts = [
        math.floor(node.get(name, 0.0) / need + _EPSILON)
        for name, need in (("CPU", demand.cpus_per_worker), ("GPU", demand.gpus_per_worker))
        if need > 0
    ]
    return min(counts, default=demand.workers)


def open_tracking(uri: str | None, experiment: str, nodes: int) -> Store | None:
    """The tracking store of a run on a cluster of ``nodes`` nodes; ``None`` when nothing is recorded.

    Raises:
        UserError: the store cannot be used, or it is a file that the other nodes do not see.
    """
    from sensorlab.runs.store import open_store

    if uri is None:
        return None
    store = open_store(uri, experiment)
    if store.is_single_host and nodes > 1:
        raise UserError(
            f"the tracking store {store.uri} is a file, and the cluster has {nodes} nodes: "
            "start an MLflow server (cluster/README.md) and set MLFLOW_TRACKING_URI"
        )
    return store
