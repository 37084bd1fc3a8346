"""Streams of training batches: what the engine sees, and the parts that all of them share.

A stream gives one worker its slice of the global batches of an epoch, from any batch on, as CPU tensors. Two exist and
give the same bytes: :class:`~sensorlab.data.local_stream.LocalStream` reads and transforms in threads of this process,
:class:`~sensorlab.data.ray_stream.RayStream` receives what Ray Data tasks have read.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from sensorlab.config import StrictModel
from sensorlab.data.batch import Arrays, BatchMaker, RowReader, SampleTransform, corrupt_error
from sensorlab.data.dataset import Split
from sensorlab.data.order import DEFAULT_WINDOW_ROW_GROUPS, OrderPolicy, Scores, SequentialOrder, SplitFacts
from sensorlab.data.ordered import OrderedPrefetcher
from sensorlab.data.payload import CorruptSample
from sensorlab.data.plan import ScoresKey, StreamPlan
from sensorlab.data.sampling import SamplingConfig, ShuffledSampling, order_policy
from sensorlab.errors import UserError

log = logging.getLogger(__name__)

TensorBatch = dict[str, torch.Tensor]
Made = tuple[Arrays, tuple[CorruptSample, ...]]
Ready = tuple[TensorBatch, tuple[CorruptSample, ...]]

STREAMS_OF_A_RUN = 2
"""Training and evaluation: while one is read, the other waits, and keeps what it has."""


class StreamConfig(StrictModel):
    """How samples get from the shards to the step. None of these options changes the content of a batch, except
    ``window_row_groups`` and ``last_batch``."""

    transform_in: Literal["worker", "task"] = "worker"
    """Where decoding and augmentation run under Ray: in threads of the training worker (fastest on one host, since
    only compressed samples cross the object store) or in Ray tasks (when CPU nodes feed GPU nodes)."""
    threads: int = Field(default=2, ge=1)
    """Transform threads of each training worker."""
    prefetch_batches: int = Field(default=4, ge=1)
    """Batches that are ready or in the making ahead of the step, in each training worker."""
    window_row_groups: int = Field(default=DEFAULT_WINDOW_ROW_GROUPS, ge=1)
    """Training order: rows are mixed inside windows of this many shuffled row groups."""
    last_batch: Literal["drop", "pad"] = "drop"
    """Training: leave the last partial global batch out, or pad it from the start of the epoch's order."""
    max_corrupt_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the split's samples that may be corrupt before the run stops; 0 stops at the first. Each worker counts
    those that it has met, and those of the others when they are exchanged (``note_corrupt``)."""
    tasks: int = Field(default=2, ge=1)
    """Ray Data tasks that read (and transform) at the same time, for all workers together. With transforms in tasks, a
    few more than the CPUs they may use hide the cost of handing blocks over."""
    task_cpus: float = Field(default=0.0, ge=0.0)
    """Logical CPUs that each of these tasks reserves. 0 always fits beside the training workers, so nothing can wait
    for ever on a small machine; set 1 where CPU nodes do the transforms."""
    batches_per_task: int = Field(default=8, ge=1)
    """Worker batches made by one Ray task, one block each: starting a task costs as much as several blocks."""
    object_store: int | None = Field(default=None, ge=1)
    """Bytes of Ray's object store that the stream may fill, over all workers; default: half of the store. A stream
    takes what it cannot do without (:func:`~sensorlab.data.ray_stream.least_object_store`) also where that is more."""
    stall_timeout_s: float = Field(default=300.0, gt=0.0)
    """Give up when no batch arrives for this long while the step waits for it."""


class SampleStream(Protocol):
    """What the engine sees of a stream, on one worker."""

    @property
    def global_batch(self) -> int: ...

    @property
    def batches_per_epoch(self) -> int: ...

    @property
    def samples_per_epoch(self) -> int: ...

    @property
    def dropped_per_epoch(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits: equal where the same rows come in the same batches of every epoch, whatever the workers."""
        ...

    @property
    def is_adaptive(self) -> bool:
        """Whether the order of an epoch depends on the class scores that ``batches`` is given."""
        ...

    @property
    def corrupt_samples(self) -> list[CorruptSample]: ...

    def batches(self, epoch: int, start_batch: int = 0, scores: Scores | None = None) -> Iterator[TensorBatch]: ...

    def note_corrupt(self, found: Iterable[CorruptSample]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class StreamSpec:
    """Everything that defines the content of a stream; picklable. Driver and workers hold equal ones.

    Args:
        training: sampled and augmented, or (False) in storage order with every sample counted once.
        policy: order of the epochs in place of that of ``sampling``.
        sampling, max_batches: of training; evaluation has neither.
    """

    split: Split
    task: SampleTransform
    global_batch: int
    seed: int
    training: bool
    config: StreamConfig = field(default_factory=StreamConfig)
    policy: OrderPolicy | None = None
    sampling: SamplingConfig = field(default_factory=ShuffledSampling)
    max_batches: int | None = None

    @cached_property
    def plan(self) -> StreamPlan:
        facts = SplitFacts(self.split.dataset_digest, self.split.row_groups)
        if facts.num_samples == 0:
            raise UserError(f"split {self.split.name!r} of the dataset has no samples")
        remainder = self.config.last_batch if self.training else "fill"
        max_batches = self.max_batches if self.training else None
        num_partners = self.task.num_partners if self.training else 0
        largest = int(self.split.row_groups[:, 2].max())
        return StreamPlan(
            *(facts, self._policy(), self.seed, self.global_batch, remainder, max_batches, num_partners),
            partner_window=self.config.window_row_groups * largest,
        )

    def _policy(self) -> OrderPolicy:
        if self.policy is not None:
            return self.policy
        if not self.training:
            return SequentialOrder()
        if self.global_batch < 1:
            raise UserError(f"the global batch must be at least 1, got {self.global_batch}")
        config = self.config
        return order_policy(
            self.sampling,
            self.split,
            self.task,
            config.window_row_groups,
            self.global_batch,
            pad=config.last_batch == "pad",
        )

    @property
    def window(self) -> int:
        """Row groups that the order goes to and fro between; a process that reads them one by one should hold them."""
        return self.config.window_row_groups if self.training else 0

    @cached_property
    def maker(self) -> BatchMaker:
        reader = RowReader(self.split, tuple(self.task.columns), self.config.max_corrupt_fraction > 0)
        return BatchMaker(reader, self.task, self.seed, self.training)


class PrefetchedStream(ABC):
    """Base of the streams: keeps one look-ahead pipeline that runs on across the end of an epoch.

    An adaptive order is known when its epoch begins: the look-ahead ends with the epoch then.

    Args:
        rank, world_size: this worker.
        end_epoch: first epoch that will not be asked for; the look-ahead stops there.
        pin_memory: batches come in page-locked memory, from which a copy to a GPU does not wait.
    """

    def __init__(
        self, spec: StreamSpec, rank: int, world_size: int, end_epoch: int | None, pin_memory: bool = False
    ) -> None:
        spec.plan.check_divides(world_size)
        self.spec = spec
        self.plan = spec.plan
        self.rank = rank
        self.world_size = world_size
        self.pin_memory = pin_memory
        self.corrupt_samples: list[CorruptSample] = []
        self._end_epoch = end_epoch
        self._pipeline: OrderedPrefetcher | None = None
        self._pipeline_end = 0  # epoch at which the pipeline ends
        self._next: tuple[int, int] | None = None  # cursor of the pipeline's next batch
        self._scores: ScoresKey = ()  # those that the pipeline's order was made from

    @property
    def global_batch(self) -> int:
        return self.plan.global_batch

    @property
    def batches_per_epoch(self) -> int:
        return self.plan.batches_per_epoch

    @property
    def samples_per_epoch(self) -> int:
        """Samples that count in an epoch, over all workers."""
        return self.plan.samples_per_epoch

    @property
    def dropped_per_epoch(self) -> int:
        return self.plan.dropped_per_epoch

    @property
    def fingerprint(self) -> str:
        """That of the plan: dataset, row-group layout, order policy, seed, global batch and remainder."""
        return self.plan.fingerprint

    @property
    def is_adaptive(self) -> bool:
        """Whether the order of an epoch depends on the class scores that :meth:`batches` is given."""
        return self.plan.adaptive

    @abstractmethod
    def _open(self, start: tuple[int, int], end_epoch: int, scores: Scores) -> OrderedPrefetcher:
        """Start the pipeline of this worker's batches from the cursor ``start`` up to ``end_epoch``."""

    def batches(self, epoch: int, start_batch: int = 0, scores: Scores | None = None) -> Iterator[TensorBatch]:
        """This worker's slice of the global batches ``start_batch``.. of ``epoch``.

        Keys: the task's arrays, ``index`` (b,) int64 row numbers in the split, ``is_filler`` (b,) bool. Leaving the
        iteration early is allowed; it can be taken up again at the next batch. Evaluation sees the same batches in
        every epoch.

        Args:
            scores: of the classes, for an adaptive order; fixed for the whole epoch and equal on all workers.

        Raises:
            UserError: a corrupt sample beyond what ``max_corrupt_fraction`` allows.
        """
        if not self.spec.training:
            epoch = 0
        if start_batch == self.batches_per_epoch:
            return
        cursor, key = (epoch, start_batch), self.plan.scores_key(scores)
        if self._next != cursor or epoch >= self._pipeline_end or self._scores != key:
            self.close()
            ahead = self.spec.training and not self.is_adaptive and self._end_epoch is not None
            self._pipeline_end = max(epoch + 1, self._end_epoch or 0) if ahead else epoch + 1
            self._pipeline = self._open(cursor, self._pipeline_end, dict(key))
            self._next, self._scores = cursor, key
        for batch in range(start_batch, self.batches_per_epoch):
            if self._next != (epoch, batch):
                raise RuntimeError("a stream has one reader: another iteration has moved it")
            tensors, corrupt = self._take((epoch, batch))
            self._next = self.plan.normal_cursor((epoch, batch + 1))
            self.note_corrupt(corrupt)
            yield tensors
        if self._next is not None and self._next[0] >= self._pipeline_end:
            self.close()  # nothing is ahead: no idle threads until the next evaluation, or after the last epoch

    def close(self) -> None:
        """Stop all threads and release what was read ahead. The stream can be used again."""
        if self._pipeline is not None:
            self._pipeline.close()
        self._pipeline = self._next = None

    def _finish(self, made: Made) -> Ready:
        """The last stage of the pipeline, in its threads: copies and page locks are not left to the step."""
        arrays, corrupt = made
        tensors = to_tensors(arrays)
        if self.pin_memory:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return tensors, corrupt

    def _take(self, cursor: tuple[int, int]) -> Ready:
        assert self._pipeline is not None
        timeout, started = self.spec.config.stall_timeout_s, time.monotonic()
        warn_after = min(30.0, timeout / 2)
        if not self._pipeline.ready(warn_after):
            log.warning("waiting for data for %.0f s (epoch %d, batch %d)", warn_after, *cursor)
            if not self._pipeline.ready(timeout - warn_after):
                self._pipeline.close(timeout=0.0)  # something in it is stuck
                self._pipeline = self._next = None
                raise TimeoutError(self._stall_message(cursor, time.monotonic() - started))
        try:
            return next(self._pipeline)
        except StopIteration:
            raise RuntimeError(f"the stream ended before epoch {cursor[0]}, batch {cursor[1]}") from None

    def _stall_message(self, cursor: tuple[int, int], waited: float) -> str:
        return f"no data for {waited:.0f} s, waiting for epoch {cursor[0]}, batch {cursor[1]}"

    def note_corrupt(self, found: Iterable[CorruptSample]) -> None:
        """Note each corrupt sample once; stop the run when there are too many.

        A worker meets its own slices only. Given what all workers have found, each of them counts the same samples,
        and all stop together.

        Raises:
            UserError: the noted samples are a larger share of the split than ``max_corrupt_fraction``.
        """
        known = {sample.row for sample in self.corrupt_samples}
        for sample in found:
            if sample.row not in known:
                known.add(sample.row)
                log.warning("skipped: %s", sample.message)
                self.corrupt_samples.append(sample)
        fraction, total = self.spec.config.max_corrupt_fraction, self.spec.split.num_samples
        if len(self.corrupt_samples) > fraction * total:
            raise UserError(
                f"{len(self.corrupt_samples)} of {total} samples are corrupt, more than data.max_corrupt_fraction "
                f"{fraction:g} allows. The last: {corrupt_error(self.corrupt_samples[-1])}"
            )


def to_tensors(arrays: Mapping[str, np.ndarray]) -> TensorBatch:
    """Tensors that share memory with the arrays, except with read-only ones, which are copied."""
    return {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}
