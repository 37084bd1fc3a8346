"""Parts of a split, and transforms without augmentation: ``data.max_samples``, ``train_fraction`` and ``augment``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorlab.data.batch import Arrays
from sensorlab.data.dataset import Split
from sensorlab.data.random_streams import SampleRandom, keyed_generator
from sensorlab.data.sample import Sample

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def first_rows(split: Split, count: int) -> Split:
    """A view of the first ``count`` samples of ``split`` (or of all, if it has fewer), in storage order.

    It is a split like any other: orders, streams and plans see its rows alone, and the fingerprint of a plan over it
    differs from one over the whole. The last row group may be cut; reading a row of it still reads the whole group.
    """
    return _first_in(np.arange(len(split.row_groups)), split, count)


def spread_fraction(split: Split, fraction: float) -> Split:
    """A view of ``round(fraction * N)`` samples of ``split``, one at least, taken from all over it.

    It consists of whole row groups, the last of which may be cut: neighbours stay together, and what is not trained on
    is not read. (Single rows would be more diverse, but a tenth of them lies in more than half of the row groups.)
    Groups are taken in the order of ``(i * golden ratio + offset) mod 1``, which leaves gaps of at most three different
    lengths between them, so every part of the split has its share. The offset is a function of the dataset and the
    split alone: a larger fraction contains a smaller one, and trainings with other seeds see the same samples.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    offset = keyed_generator("train_fraction", split.dataset_digest, split.name).random()
    places = (np.arange(len(split.row_groups)) * _GOLDEN + offset) % 1.0
    return _first_in(np.argsort(places, kind="stable"), split, max(1, round(fraction * split.num_samples)))


def _first_in(order: np.ndarray, split: Split, count: int) -> Split:
    """The first ``count`` samples of the row groups in ``order`` (G,), as a split in storage order."""
    groups = split.row_groups.copy()
    sizes = groups[order, 2]
    before = np.cumsum(sizes) - sizes
    groups[order, 2] = np.minimum(sizes, count - before)
    return dataclasses.replace(split, row_groups=groups[groups[:, 2] > 0])


@dataclass(frozen=True)
class Unaugmented:
    """A task as a stream sees it, that transforms training samples as in evaluation."""

    task: Any  # a BaseTask

    @property
    def config(self) -> Any:
        return self.task.config

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.task.columns)

    @property
    def num_partners(self) -> int:
        return 0

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays:
        arrays: Arrays = self.task.transform(sample, random, False)
        return arrays

    def collate(self, items: Sequence[Arrays]) -> Arrays:
        arrays: Arrays = self.task.collate(items)
        return arrays

    def compose(self, samples: Sequence[Sample], random: SampleRandom) -> Arrays:
        raise NotImplementedError("a transform without augmentation has no partners")

    def sample_classes(self, sample: Sample) -> Mapping[str, int]:
        classes: Mapping[str, int] = self.task.sample_classes(sample)
        return classes
