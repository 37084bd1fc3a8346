"""Global batches and their slices: who trains on what, and when.

Global batch ``k`` of an epoch is a fixed list of rows, ``order[k * B : (k + 1) * B]``. Worker ``r`` of ``n`` takes the
contiguous slice ``r`` of it. The world size therefore only slices: the samples of a step, and the mean of a loss over
them, are the same on 1, 2 or 8 workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sensorlab.config import digest
from sensorlab.data.order import OrderPolicy, Scores, SplitFacts
from sensorlab.data.random_streams import keyed_generator
from sensorlab.errors import UserError

# What happens to the last, partial global batch of an epoch:
#   drop  it is left out (training; `dropped_per_epoch` states the count)
#   pad   it is filled with rows from the start of the epoch's order, which then count twice (training)
#   fill  it is filled the same way with rows marked as filler, which never count (evaluation)
Remainder = Literal["drop", "pad", "fill"]

ScoresKey = tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class WorkerBatch:
    """The rows that one worker processes in one step."""

    epoch: int
    batch: int  # global batch in the epoch
    rank: int
    world_size: int
    rows: np.ndarray  # (B / world_size,) int64 row numbers
    is_filler: np.ndarray  # (B / world_size,) bool
    partners: np.ndarray  # (B / world_size, K) int64 row numbers of the samples that each one is composed with

    @property
    def reads(self) -> np.ndarray:
        """Row numbers to read: those of the samples, then those of partners that are not among them."""
        if not self.partners.size:
            return self.rows
        return np.array(list(dict.fromkeys([*self.rows.tolist(), *self.partners.ravel().tolist()])), np.int64)

    @property
    def name(self) -> str:
        return f"epoch {self.epoch}, batch {self.batch}, worker {self.rank} of {self.world_size}"


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """All global batches of all epochs, as a pure function; picklable, without the orders that it remembers.

    Args:
        max_batches: an epoch ends after this many of its global batches.
        num_partners: other samples that each one is composed with (mosaic, mixup).
        partner_window: positions of an epoch among which partners are drawn, so that reading stays local.
    """

    facts: SplitFacts
    policy: OrderPolicy
    seed: int
    global_batch: int
    remainder: Remainder
    max_batches: int | None = None
    num_partners: int = 0
    partner_window: int = 1
    # (epoch, scores) -> order, of the last two that were asked for
    _orders: dict[tuple[int, ScoresKey], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise UserError(f"the global batch must be at least 1, got {self.global_batch}")
        if self.max_batches is not None and self.max_batches < 1:
            raise UserError(f"data.max_batches must be at least 1, got {self.max_batches}")
        if self._length == 0:
            raise UserError("the split has no samples")
        if self.batches_per_epoch == 0:
            raise UserError(
                f"the split has {self._length} samples, fewer than one global batch of {self.global_batch}: "
                "lower data.global_batch, or keep partial batches (data.last_batch: pad)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_orders", "_length")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _orders={})

    @cached_property
    def _length(self) -> int:
        return self.policy.length(self.facts)

    @property
    def adaptive(self) -> bool:
        """Whether the order of an epoch depends on the scores at the end of the one before."""
        return self.policy.adaptive

    @property
    def batches_per_epoch(self) -> int:
        whole, rest = divmod(self._length, self.global_batch)
        batches = whole + (1 if rest and self.remainder != "drop" else 0)
        return batches if self.max_batches is None else min(batches, self.max_batches)

    @property
    def samples_per_epoch(self) -> int:
        """Samples that count: those of the order under ``fill``, whole global batches otherwise."""
        rows = self.batches_per_epoch * self.global_batch
        return min(rows, self._length) if self.remainder == "fill" else rows

    @property
    def dropped_per_epoch(self) -> int:
        """Rows at the end of an epoch's order that it leaves out."""
        return max(0, self._length - self.batches_per_epoch * self.global_batch)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of everything the plan depends on: which row every worker gets in every step.

        Sender and receiver of a stream compare it, and so does a run that goes on from a checkpoint: the row groups
        are part of it, which the digest of a dataset's content leaves out and the order of an epoch follows.
        """
        composed = {"partners": [self.num_partners, self.partner_window]} if self.num_partners else {}
        return digest(
            composed
            | {
                "dataset": self.facts.digest,
                "row_groups": hashlib.sha256(np.ascontiguousarray(self.facts.row_groups, "<i8").data).hexdigest(),
                "policy": repr(self.policy),
                "seed": self.seed,
                "global_batch": self.global_batch,
                "remainder": self.remainder,
                "max_batches": self.max_batches,
            }
        )

    def scores_key(self, scores: Scores | None) -> ScoresKey:
        """Equal where two scores give equal orders: empty for a policy that does not look at them."""
        return tuple(sorted(scores.items())) if scores and self.adaptive else ()

    def epoch_order(self, epoch: int, scores: Scores | None = None) -> np.ndarray:
        """(length,) int64; the last two orders asked for are remembered, since prefetching straddles their border."""
        key = (epoch, self.scores_key(scores))
        order = self._orders.get(key)
        if order is None:
            order = self.policy.order(self.facts, self.seed, epoch, scores if self.adaptive else None)
            if len(order) != self._length:
                raise RuntimeError(f"{self.policy!r} gave {len(order)} rows in epoch {epoch}, not {self._length}")
            order.flags.writeable = False
            for old in list(self._orders)[:-1]:
                self._orders.pop(old, None)
            self._orders[key] = order
        return order

    def check_divides(self, world_size: int) -> int:
        """Rows per worker. Raises ``UserError`` when the global batch cannot be sliced evenly."""
        if world_size < 1 or self.global_batch % world_size:
            raise UserError(
                f"the global batch of {self.global_batch} samples does not divide by {world_size} workers: "
                f"choose a multiple of {world_size}"
            )
        return self.global_batch // world_size

    def worker_batch(
        self, epoch: int, batch: int, rank: int = 0, world_size: int = 1, scores: Scores | None = None
    ) -> WorkerBatch:
        """The slice of global batch ``batch`` that worker ``rank`` of ``world_size`` processes.

        Raises:
            UserError: the global batch does not divide by the number of workers.
            IndexError: there is no such batch or worker.
        """
        size = self.check_divides(world_size)
        if not (0 <= batch < self.batches_per_epoch and 0 <= rank < world_size):
            raise IndexError(f"no batch {batch} of {self.batches_per_epoch}, or no worker {rank} of {world_size}")
        order = self.epoch_order(epoch, scores)
        positions = batch * self.global_batch + rank * size + np.arange(size)
        beyond = positions >= len(order)
        is_filler = beyond if self.remainder == "fill" else np.zeros(size, bool)
        rows = order[positions % len(order)]
        return WorkerBatch(
            epoch, batch, rank, world_size, rows, is_filler, self._partners(order, epoch, batch, rank, size)
        )

    def _partners(self, order: np.ndarray, epoch: int, batch: int, rank: int, size: int) -> np.ndarray:
        """(size, K) rows: for each position uniform draws from its window of the epoch, which may be the row itself."""
        if not self.num_partners:
            return np.zeros((size, 0), np.int64)
        window = max(self.partner_window, self.global_batch)
        start = batch * self.global_batch // window * window
        width = min(window, len(order) - start)
        generator = keyed_generator("partners", self.facts.digest, self.seed, epoch, batch)
        draws = generator.random((self.global_batch, self.num_partners))  # of all workers: each takes its slice
        return order[start + (draws[rank * size : (rank + 1) * size] * width).astype(np.int64)]

    def cursors(self, start: tuple[int, int], end_epoch: int) -> Iterator[tuple[int, int]]:
        """(epoch, batch) from the cursor ``start`` up to, not including, ``end_epoch``."""
        epoch, batch = self.normal_cursor(start)
        while epoch < end_epoch:
            yield epoch, batch
            epoch, batch = self.normal_cursor((epoch, batch + 1))

    def normal_cursor(self, cursor: tuple[int, int]) -> tuple[int, int]:
        """The end of an epoch and the start of the next are one cursor; returns the latter form."""
        epoch, batch = cursor
        if not 0 <= batch <= self.batches_per_epoch:
            raise UserError(f"cursor at batch {batch} of an epoch of {self.batches_per_epoch} batches")
        return (epoch + 1, 0) if batch == self.batches_per_epoch else (epoch, batch)
