"""Gradient accumulation: which forward passes make an optimiser step, as a pure function of the position."""

from __future__ import annotations

import bisect
from typing import Any, Literal

from pydantic import Field, model_validator

from sensorlab.config import StrictModel
from sensorlab.engine.warmup import WarmupConfig
from sensorlab.errors import UserError


class AccumulateConfig(StrictModel):
    """How many forward passes make an optimiser step; a plain number stands for ``passes``.

    ``window`` says where the passes of a step begin. ``epoch``: anew with each epoch, and what is left at its end makes
    a smaller step. ``run`` (YOLOv5 since 2021): after the previous step, also across epochs. ``multiple`` (YOLOv5 v3):
    a step where the number of the global batch is a multiple of the passes. The last two leave out the batches at the
    end of an epoch that make no full step; the originals compute their gradients and throw them away.
    """

    passes: int | None = Field(default=None, ge=1)  # None: from nominal_batch, else 1
    nominal_batch: int | None = Field(
        default=None, ge=1
    )  # samples wanted per step: passes = round(this / global_batch)
    ramp: bool = False  # from one pass at the begin of the warm-up to all at its end
    window: Literal["epoch", "run", "multiple"] = "epoch"  # begins anew with the epoch, after a step, at a multiple
    reduction: Literal["mean", "sum"] = "mean"  # sum adds up the losses of the passes (Simple-BEV, YOLOv5)

    @model_validator(mode="before")
    @classmethod
    def _number_of_passes(cls, value: Any) -> Any:
        return {"passes": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_size(self) -> AccumulateConfig:
        if self.passes is not None and self.nominal_batch is not None:
            raise ValueError("give passes or nominal_batch, not both")
        return self

    def target(self, global_batch: int) -> float:
        """Passes per step before rounding."""
        return self.passes or (self.nominal_batch / global_batch if self.nominal_batch else 1)

    def passes_of(self, global_batch: int) -> int:
        """Passes per step after the ramp."""
        return max(1, round(self.target(global_batch)))


class Accumulation:
    """The optimiser steps of a training by global batch.

    Args:
        warmup: the warm-up, in epochs, over which the passes ramp if ``config.ramp``.

    Raises:
        UserError: an epoch is shorter than a step that must not cross its end.
    """

    def __init__(
        self, config: AccumulateConfig, *, global_batch: int, batches_per_epoch: int, warmup: WarmupConfig | None = None
    ) -> None:
        self.window, self.target = config.window, config.target(global_batch)
        self.passes = config.passes_of(global_batch)
        self.global_batch, self.batches_per_epoch = global_batch, batches_per_epoch
        self.ramp_batches = warmup.end(batches_per_epoch) if config.ramp and warmup else 0
        if self.window != "epoch" and self.passes > batches_per_epoch:
            raise UserError(
                f"train.accumulate: a step takes {self.passes} passes and an epoch has {batches_per_epoch} batches; "
                "use window: epoch, or fewer passes"
            )
        # In ``run`` windows a step depends on the one before: walk through the ramp once, after it steps are regular.
        self._ramp_ends = [-1]
        for batch in range(self.ramp_batches + 1 if self.window == "run" else 0):
            if batch - self._ramp_ends[-1] >= self.passes_at(batch):
                self._ramp_ends.append(batch)

    def passes_at(self, batch: int) -> int:
        """Passes per step that hold at a global batch number."""
        if batch >= self.ramp_batches:
            return self.passes
        return max(1, round(1.0 + (self.target - 1.0) * batch / self.ramp_batches))

    def passes_from(self, epoch: int, batch: int) -> int:
        """Passes of the step that begins with batch ``batch`` of ``epoch``; 0 when what is left makes no step."""
        first, left = epoch * self.batches_per_epoch + batch, self.batches_per_epoch - batch
        if self.window == "epoch" and first >= self.ramp_batches:
            return min(self.passes, left)
        for passes in range(1, left + 1):
            if self._ends_step(first, first + passes - 1):
                return passes
        return left if self.window == "epoch" else 0

    def steps_of_epoch(self, epoch: int) -> int:
        """Optimiser steps of one epoch."""
        if self.window == "epoch" and epoch * self.batches_per_epoch >= self.ramp_batches:
            return -(-self.batches_per_epoch // self.passes)
        begin = epoch * self.batches_per_epoch
        if self.window != "epoch" and begin > self.ramp_batches:
            anchor = self._ramp_ends[-1] if self.window == "run" else 0
            return (begin + self.batches_per_epoch - 1 - anchor) // self.passes - (begin - 1 - anchor) // self.passes
        steps, batch = 0, 0
        while batch < self.batches_per_epoch and (passes := self.passes_from(epoch, batch)):
            steps, batch = steps + 1, batch + passes
        return steps

    def steps_of(self, epochs: int) -> int:
        """Optimiser steps of the first ``epochs`` epochs."""
        return sum(self.steps_of_epoch(epoch) for epoch in range(epochs))

    def steps_for_samples(self, samples: int) -> int:
        """Optimiser steps until at least ``samples`` samples are read; those of unused batches count as read."""
        epochs, batches = divmod(-(-samples // self.global_batch), self.batches_per_epoch)
        steps, batch = self.steps_of(epochs), 0
        while batch < batches and (passes := self.passes_from(epochs, batch)):
            steps, batch = steps + 1, batch + passes
        return max(steps, 1)

    def epochs_for(self, steps: int) -> int:
        """Epochs that ``steps`` optimiser steps reach into."""
        epoch = 0
        while steps > 0:
            steps -= self.steps_of_epoch(epoch)
            epoch += 1
        return epoch

    def _ends_step(self, first: int, batch: int) -> bool:
        """Whether the step that begins with global batch ``first`` of the run ends with ``batch``."""
        if self.window == "multiple":
            return batch % self.passes_at(batch) == 0
        last = first - 1 if self.window == "epoch" else self._last_end_before(first)
        return batch - last >= self.passes_at(batch)

    def _last_end_before(self, batch: int) -> int:
        anchor = self._ramp_ends[-1]
        if batch > anchor:
            return anchor + (batch - 1 - anchor) // self.passes * self.passes
        return self._ramp_ends[bisect.bisect_left(self._ramp_ends, batch) - 1]
