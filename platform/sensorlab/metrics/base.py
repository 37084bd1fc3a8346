"""What a metric is: a mergeable accumulator that carries the protocol of the number it reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensorlab.config import StrictModel, digest


class Protocol(StrictModel):
    """The definition behind a reported number. Two numbers compare only if their protocols are equal.

    Subclasses add the fields that define their metric: threshold, averaging, visibility rule, frame, range, classes.
    """

    metric: str  # definition, for example "bev_iou"
    source: str  # paper section or file of the original that defines it

    @property
    def digest(self) -> str:
        return digest(self)


class Metric(ABC):
    """Accumulates over batches on each worker, merges over workers, then reports.

    ``state`` is a flat mapping of tensors. Merging the states of any partition of the samples, in any order, gives the
    state of all of them, so the result does not depend on the number of workers. Counts are float64 or int64: sums of
    integers stay exact.
    """

    protocol: Protocol

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def update(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Add one batch. Filler samples (``batch["is_filler"]`` true, shape (B,)) must not count."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The accumulated state, detached, on the CPU."""

    @abstractmethod
    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the state of another accumulator of the same metric."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The reported numbers by name, for example ``{"iou": 0.47}``; NaN where nothing was accumulated."""


class SumMetric(Metric):
    """A metric whose state is a set of named sums; subclasses fill ``self.sums`` and define ``compute``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float64) -> None:
        self.sums = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}

    def reset(self) -> None:
        for value in self.sums.values():
            value.zero_()

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.sums.items()}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.sums.items():
            value += state[name].to(value)
