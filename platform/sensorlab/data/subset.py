"""Parts of a split, and transforms without augmentation: ``data.max_samples`` and ``data.augment``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorlab.data.batch import Arrays
from sensorlab.data.dataset import Split
from sensorlab.data.random_streams import SampleRandom
from sensorlab.data.sample import Sample


def first_rows(split: Split, count: int) -> Split:
    """A view of the first ``count`` samples of ``split`` (or of all, if it has fewer), in storage order.

    It is a split like any other: orders, streams and plans see its rows alone, and the fingerprint of a plan over it
    differs from one over the whole. The last row group may be cut; reading a row of it still reads the whole group.
    """
    groups = split.row_groups.copy()
    before = np.cumsum(groups[:, 2]) - groups[:, 2]
    groups[:, 2] = np.minimum(groups[:, 2], count - before)
    return dataclasses.replace(split, row_groups=groups[before < count])


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

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays:
        arrays: Arrays = self.task.transform(sample, random, False)
        return arrays

    def collate(self, items: Sequence[Arrays]) -> Arrays:
        arrays: Arrays = self.task.collate(items)
        return arrays

    def sample_classes(self, sample: Sample) -> Mapping[str, int]:
        classes: Mapping[str, int] = self.task.sample_classes(sample)
        return classes
