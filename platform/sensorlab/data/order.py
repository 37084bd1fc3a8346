"""The order in which an epoch visits the samples of a split: a pure function of (dataset digest, seed, epoch).

Nothing here knows the batch size, the number of workers or what was visited before, so the order of any epoch can be
computed anywhere, at any time, without state. Row numbers count the rows of a split in storage order.

The policies that draw samples by their classes are in :mod:`sensorlab.data.sampling_policies`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from sensorlab.data.random_streams import keyed_generator

# Rows of this many row groups are mixed with each other. With the usual 8 rows per group a window is 128 samples drawn
# from 16 places of the dataset; a reader that holds one window in memory reads every row group once.
DEFAULT_WINDOW_ROW_GROUPS = 16

Scores = Mapping[str, float]  # class -> score in [0, 1] at the last evaluation


@dataclass(frozen=True, eq=False)
class SplitFacts:
    """What an order may depend on besides (seed, epoch): the content and the storage layout of a split."""

    digest: str  # content digest of the dataset
    row_groups: np.ndarray  # (G, 3) int64: shard, row group inside the shard, number of rows; storage order

    @property
    def num_samples(self) -> int:
        return int(self.row_groups[:, 2].sum())


class OrderPolicy(Protocol):
    """Which rows an epoch visits, and when. Picklable and immutable; tables such as class counts are its fields.

    ``repr`` is a policy's identity in the fingerprint of a plan: complete, and short, so tables print their digest.
    """

    @property
    def adaptive(self) -> bool:
        """Whether the order depends on ``scores``, which are known only when the epoch before has ended."""
        ...

    def length(self, facts: SplitFacts) -> int:
        """Rows of every epoch; the same for all epochs, so that the number of steps is known beforehand."""
        ...

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        """(``length``,) int64 row numbers. A row may be repeated or left out. Equal arguments give equal orders.

        Args:
            scores: of the classes, at the evaluation before the epoch; ``None`` or empty before the first.
        """
        ...


@dataclass(frozen=True)
class SequentialOrder:
    """Storage order, every epoch: evaluation."""

    adaptive: ClassVar[bool] = False

    def length(self, facts: SplitFacts) -> int:
        return facts.num_samples

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        return np.arange(facts.num_samples, dtype=np.int64)


@dataclass(frozen=True)
class ShuffledOrder:
    """A new permutation each epoch that keeps reading sequential; see :func:`epoch_order`."""

    window_row_groups: int = DEFAULT_WINDOW_ROW_GROUPS

    adaptive: ClassVar[bool] = False

    def length(self, facts: SplitFacts) -> int:
        return facts.num_samples

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        return epoch_order(facts.row_groups, facts.digest, seed, epoch, self.window_row_groups)


def epoch_order(
    row_groups: np.ndarray,
    digest: str,
    seed: int,
    epoch: int,
    window_row_groups: int,
    copies: np.ndarray | None = None,
) -> np.ndarray:
    """Shuffle row groups of the whole split, then rows inside windows of ``window_row_groups`` consecutive groups.

    A row that comes n times makes its row group be visited n times, at n independent places of the epoch: copy k of
    each of its rows belongs to visit k, and visits are what is shuffled and gathered into windows.

    Args:
        row_groups: (G, 3) int64; column 2 is the number of rows of each (shard, row group), in storage order.
        digest: content digest of the dataset; part of the random key.
        window_row_groups: at least 1. As many as there are visits, or more, gives a uniform shuffle of all rows.
        copies: (N,) int64, how often each row comes; default once.

    Returns:
        (sum of copies,) int64 row numbers; without ``copies`` a permutation of 0..N-1.
    """
    if window_row_groups < 1:
        raise ValueError(f"window_row_groups must be at least 1, got {window_row_groups}")
    sizes = np.asarray(row_groups, np.int64)[:, 2]
    group_of_row = np.repeat(np.arange(len(sizes)), sizes)
    copies = np.ones(len(group_of_row), np.int64) if copies is None else copies
    rows = np.repeat(np.arange(len(copies)), copies)
    copy_number = concatenated_ranges(np.zeros_like(copies), copies)
    visits, visit = np.unique(copy_number * len(sizes) + group_of_row[rows], return_inverse=True)
    # Sorting by uniform keys, not Generator.permutation: numpy keeps the stream of `random` the same across versions.
    generator = keyed_generator("epoch_order", digest, seed, epoch)
    place = np.empty(len(visits), np.int64)
    place[np.argsort(generator.random(len(visits)), kind="stable")] = np.arange(len(visits))
    in_order = np.argsort(place[visit], kind="stable")
    window = place[visit][in_order] // window_row_groups
    return rows[in_order][np.lexsort((generator.random(len(rows)), window))]


def concatenated_ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``[start, start + size)`` of every range, one after the other, as int64."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()), dtype=np.int64)
