"""What can be known before anything starts: how much fits at a time and why not more, because Ray waits without a word
for what does not fit, and whether results can be recorded.

CPUs, GPUs and memory are Ray's logical resources: each training process reserves them, so Ray itself never starts more
than fits. ``memory`` of a node is what was free there when Ray started, less the object store. The object store cannot
be reserved; its half is divided among the runs that go on at a time, as limits of their streams
(:mod:`sensorlab.data.ray_stream`), and the other half is for what such a limit does not count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensorlab.data.stream import STREAMS_OF_A_RUN
from sensorlab.errors import UserError

if TYPE_CHECKING:
    from sensorlab.runs.store import Store

GB = 10**9
TRIAL_DRIVER_CPUS = 0.1
"""CPUs of the process that starts and watches the workers of a multi-worker trial. Tune does not allow zero."""
TRIAL_DRIVER_MEMORY = 1.2 * GB
"""Bytes for that process and what Ray starts beside it, measured as below: the trial and Ray Train's controller 0.27 GB
each, six actors (two split coordinators, data sets, placement group, reports) 0.12 GB each."""
WORKER_MEMORY = 2 * GB
"""Bytes that a training process is taken to need, with its share of the reading tasks, where resources.memory_gb does
not say. Measured as the highest proportional set size on a CPU (2026-11-20): trials of ``tune_bev.yaml`` 0.8 GB (res18,
cameras) and 1.7 GB (effb0, cameras + lidar), each of two workers 0.6 GB; reading tasks 0.13 to 0.29 GB each, two per
trial."""
STORE_SHARE = 0.5
"""Of the object store, for the streams of all runs."""
STORE_USABLE = 0.8
"""Of the object store, for what streams cannot do without; the rest is for other objects and for fragments."""

_EPSILON = 1e-6


@dataclass(frozen=True)
class Demand:
    """What one run needs at the same time.

    Attributes:
        workers: number of training processes.
        cpus_per_worker, gpus_per_worker: reserved for each of them, on one node.
        data_cpus: kept free for Ray Data's tasks, in all.
        driver_cpus: reserved for the process that starts the workers; 0 when the run trains in that process.
        memory_per_worker, driver_memory: bytes, likewise.
        is_memory_known: the user has said how much memory it is; otherwise it never makes a run impossible.
        object_store: bytes without which its streams spill to disk; 0: not known.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    data_cpus: float
    driver_cpus: float = 0.0
    memory_per_worker: float = 0.0
    driver_memory: float = 0.0
    is_memory_known: bool = False
    object_store: float = 0.0

    @property
    def cpus(self) -> float:
        return self.driver_cpus + self.workers * self.cpus_per_worker + self.data_cpus

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker

    @property
    def memory(self) -> float:
        return self.driver_memory + self.workers * self.memory_per_worker

    def describe(self) -> str:
        parts = [f"{self.workers} worker{'s' * (self.workers > 1)} x {self.cpus_per_worker:g} CPU"]
        if self.driver_cpus:
            parts.append(f"{self.driver_cpus:g} CPU to start them")
        if self.data_cpus:
            parts.append(f"{self.data_cpus:g} CPU for reading data")
        amounts = [f"{self.cpus:g} CPUs ({' + '.join(parts)})"]
        amounts += [f"{self.gpus:g} GPUs"] if self.gpus else []
        amounts += [f"{size(self.memory)} of memory"] if self.memory else []
        return " and ".join([", ".join(amounts[:-1]), amounts[-1]] if amounts[1:] else amounts)


@dataclass(frozen=True)
class Share:
    """What one run takes of a cluster beside its CPUs and GPUs.

    Attributes:
        memory: bytes that each of its training processes reserves; 0: none.
        object_store: bytes that each of its streams may fill; ``None``: as Ray likes.
    """

    memory: int = 0
    object_store: int | None = None


UNSHARED = Share()
"""Nothing reserved, nothing limited."""


@dataclass(frozen=True)
class Capacity:
    """How many runs go on at a time.

    Attributes:
        runs: at least 1.
        limited_by: what keeps them from being more.
        share: of each of them.
        warning: what may go wrong nevertheless; empty if nothing is known to.
    """

    runs: int
    limited_by: str
    share: Share
    warning: str = ""

    def describe(self) -> str:
        """``2 at a time: memory (4.0 GB each, 9.1 GB in the cluster)``."""
        return f"{self.runs} at a time: {self.limited_by}"


def capacity(
    demand: Demand, nodes: Sequence[Mapping[str, float]], limit: int | None = None, limit_name: str = ""
) -> Capacity:
    """How many runs of ``demand`` fit on the cluster together, at most ``limit``, and what each of them gets.

    Workers are placed node by node, so that half a worker on one node and half on another do not count as one, and
    GPU by GPU likewise.

    Args:
        demand: what one run needs.
        nodes: resources of each node, ``{"CPU": 8.0, "GPU": 1.0, "memory": 2e10, "object_store_memory": 9e9}``; a node
            that does not say how much memory it has sets no limit.
        limit: the user's own maximum, and what it is called.

    Raises:
        UserError: not even one fits; the message says what is needed and what there is.
    """
    warnings = []
    bounds = _bounds(demand, nodes)
    if min(bounds.values()) < 1 and not demand.is_memory_known:
        warnings.append(
            f"one run is taken to need {size(demand.memory)} of memory, more than there is "
            f"({_memory_text(nodes)}): nothing is reserved, and one goes on at a time. "
            "Set resources.memory_gb to what a training process needs"
        )
        demand = dataclasses.replace(demand, memory_per_worker=0.0, driver_memory=0.0)
        bounds = _bounds(demand, nodes) | {"memory, which is short": 1}
    if min(bounds.values()) < 1:
        raise UserError(_does_not_fit(demand, nodes))
    if limit is not None:
        bounds[limit_name or "the given maximum"] = limit
    store = sum(node.get("object_store_memory", math.inf) for node in nodes if node.get("CPU") or node.get("GPU"))
    if demand.object_store > STORE_USABLE * store:
        warnings.append(
            f"the streams of one run hold {size(demand.object_store)} in the object store, which has {size(store)}: "
            "Ray will move batches to disk and back. Start Ray with a larger object store, or lower data.prefetch or "
            "data.global_batch"
        )
        bounds[f"object store ({size(demand.object_store)} each, {size(store)} in the cluster)"] = 1
    elif demand.object_store and math.isfinite(store):
        text = f"object store ({size(demand.object_store)} each, {size(STORE_USABLE * store)} for it in the cluster)"
        bounds[text] = math.floor(STORE_USABLE * store / demand.object_store)
    name = min(bounds, key=lambda name: bounds[name])
    part = STORE_SHARE * store / bounds[name] / STREAMS_OF_A_RUN
    share = Share(int(demand.memory_per_worker), int(part) if math.isfinite(part) else None)
    return Capacity(bounds[name], name, share, "; ".join(warnings))


def _bounds(demand: Demand, nodes: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Runs that each resource allows, by a text that names it; the last entry is what all together allow."""
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    slots = [_worker_slots(demand, node) for node in nodes]
    bounds: dict[str, int] = {}

    def bound(text: str, resource: str, need: float, total: float) -> None:
        if need:
            workers = sum(slot.get(resource, 0) for slot in slots)
            bounds[text] = min(math.floor(workers / demand.workers + _EPSILON), math.floor(total / need + _EPSILON))

    where = "on the node" if len(nodes) == 1 else f"on {len(nodes)} nodes"
    bound(f"CPUs ({demand.cpus:g} each, {cpus:g} {where})", "CPU", demand.cpus, cpus)
    bound(f"GPUs ({_gpu_text(demand)}, {gpus:g} {where})", "GPU", demand.gpus, gpus)
    if all("memory" in node for node in nodes):
        memory = sum(node["memory"] for node in nodes)
        bound(f"memory ({size(demand.memory)} each, {size(memory)} {where})", "memory", demand.memory, memory)
    together = math.floor(sum(min(slot.values(), default=demand.workers) for slot in slots) / demand.workers + _EPSILON)
    bounds[f"what fits on one node ({', '.join(_node_text(node) for node in nodes[:3])})"] = together
    return bounds


def _worker_slots(demand: Demand, node: Mapping[str, float]) -> dict[str, int]:
    """Training processes that fit on one node, by resource."""
    slots = {}
    if demand.cpus_per_worker:
        slots["CPU"] = math.floor(node.get("CPU", 0.0) / demand.cpus_per_worker + _EPSILON)
    if demand.memory_per_worker and "memory" in node:
        slots["memory"] = math.floor(node["memory"] / demand.memory_per_worker + _EPSILON)
    share, gpus = demand.gpus_per_worker, node.get("GPU", 0.0)
    if 0 < share < 1:  # a fraction is of one GPU: two workers of 0.6 do not share three halves
        slots["GPU"] = math.floor(1 / share + _EPSILON) * math.floor(gpus)
    elif share:
        slots["GPU"] = math.floor(gpus / share + _EPSILON)
    return slots


def _does_not_fit(demand: Demand, nodes: Sequence[Mapping[str, float]]) -> str:
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    keys = ["num_workers", "cpus_per_worker", "gpus_per_worker"]
    memory = ""
    if demand.memory:
        keys.append("memory_gb")
        memory = f"; {_memory_text(nodes)}"
    keys = [f"resources.{key}" for key in keys]
    return (
        f"this does not fit: one run needs {demand.describe()}; the cluster has {cpus:g} CPUs and {gpus:g} GPUs "
        f"on {len(nodes)} node{'s' * (len(nodes) != 1)} (largest: {largest:g} CPUs{memory}). "
        f"Lower {', '.join(keys)} or resources.data_cpus"
    )


def _memory_text(nodes: Sequence[Mapping[str, float]]) -> str:
    free = [node["memory"] for node in nodes if "memory" in node]
    return f"memory for training: {size(sum(free))}" + (f", at most {size(max(free))} on a node" if free[1:] else "")


def _node_text(node: Mapping[str, float]) -> str:
    amounts = [f"{node[name]:g} {name}s" for name in ("CPU", "GPU") if node.get(name)]
    return " + ".join([*amounts, *([size(node["memory"])] if "memory" in node else [])])


def _gpu_text(demand: Demand) -> str:
    return f"{demand.gpus:g} each" if demand.workers == 1 else f"{demand.workers} x {demand.gpus_per_worker:g} each"


def size(count: float) -> str:
    """``9.1 GB``, ``38 MB``."""
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / 10**6:.0f} MB"


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
