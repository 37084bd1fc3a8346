"""The order in which an epoch visits the samples of a split: a pure function of (dataset digest, seed, epoch).

Nothing here knows the batch size, the number of workers or what was visited before, so the order of any epoch can be
computed anywhere, at any time, without state. Row numbers count the rows of a split in storage order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sensorlab.data.random_streams import keyed_generator

# Rows of this many row groups are mixed with each other. With the usual 8 rows per group a window is 128 samples drawn
# from 16 places of the dataset; a reader that holds one window in memory reads every row group once.
DEFAULT_WINDOW_ROW_GROUPS = 16


@dataclass(frozen=True, eq=False)
class SplitFacts:
    """What an order may depend on besides (seed, epoch): the content and the storage layout of a split."""

    digest: str  # content digest of the dataset
    row_groups: np.ndarray  # (G, 3) int64: shard, row group inside the shard, number of rows; storage order

    @property
    def num_samples(self) -> int:
        return int(self.row_groups[:, 2].sum())


class OrderPolicy(Protocol):
    """Which rows an epoch visits, and when. Picklable and immutable; tables such as class weights are its fields."""

    def length(self, facts: SplitFacts) -> int:
        """Rows of every epoch; the same for all epochs, so that the number of steps is known beforehand."""
        ...

    def order(self, facts: SplitFacts, seed: int, epoch: int) -> np.ndarray:
        """(``length``,) int64 row numbers. A row may be repeated or left out. Equal arguments give equal orders."""
        ...


@dataclass(frozen=True)
class SequentialOrder:
    """Storage order, every epoch: evaluation."""

    def length(self, facts: SplitFacts) -> int:
        return facts.num_samples

    def order(self, facts: SplitFacts, seed: int, epoch: int) -> np.ndarray:
        return np.arange(facts.num_samples, dtype=np.int64)


@dataclass(frozen=True)
class ShuffledOrder:
    """A new permutation each epoch that keeps reading sequential; see :func:`epoch_order`."""

    window_row_groups: int = DEFAULT_WINDOW_ROW_GROUPS

    def length(self, facts: SplitFacts) -> int:
        return facts.num_samples

    def order(self, facts: SplitFacts, seed: int, epoch: int) -> np.ndarray:
        return epoch_order(facts.row_groups, facts.digest, seed, epoch, self.window_row_groups)


def epoch_order(row_groups: np.ndarray, digest: str, seed: int, epoch: int, window_row_groups: int) -> np.ndarray:
    """Shuffle row groups of the whole split, then rows inside windows of ``window_row_groups`` consecutive groups.

    Args:
        row_groups: (G, 3) int64; column 2 is the number of rows of each (shard, row group), in storage order.
        digest: content digest of the dataset; part of the random key.
        window_row_groups: at least 1. G or more gives a uniform permutation of all rows.

    Returns:
        (N,) int64, a permutation of 0..N-1.
    """
    if window_row_groups < 1:
        raise ValueError(f"window_row_groups must be at least 1, got {window_row_groups}")
    sizes = np.asarray(row_groups, np.int64)[:, 2]
    starts = np.cumsum(sizes) - sizes
    # Sorting by uniform keys, not Generator.permutation: numpy keeps the stream of `random` the same across versions.
    generator = keyed_generator("epoch_order", digest, seed, epoch)
    groups = np.argsort(generator.random(len(sizes)), kind="stable")
    rows = concatenated_ranges(starts[groups], sizes[groups])
    window = np.repeat(np.arange(len(sizes)) // window_row_groups, sizes[groups])
    return rows[np.lexsort((generator.random(len(rows)), window))]


def concatenated_ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``[start, start + size)`` of every range, one after the other, as int64."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()), dtype=np.int64)
