"""Learning-rate schedules as pure functions of the optimiser step.

``factor(step, total_steps)`` is the multiple of the peak rate used **for** optimiser step ``step`` (0-based). Being
pure, a schedule has nothing to save or restore: resuming at step k is evaluating it at k.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from sensorlab.config import StrictModel


class ConstantSchedule(StrictModel):
    """The peak rate throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, total_steps: int) -> float:
        return 1.0


class OneCycleSchedule(StrictModel):
    """Linear or cosine rise to the peak, then fall; arithmetic of ``torch.optim.lr_scheduler.OneCycleLR``.

    The defaults are Simple-BEV's (``train_nuscenes.py:fetch_optimizer``): linear, 5 % rise, total steps + 100, start at
    peak / 25, end at start / 1e4.
    """

    name: Literal["one_cycle"] = "one_cycle"
    rise_fraction: float = Field(default=0.05, gt=0, lt=1)
    start_divisor: float = 25.0
    end_divisor: float = 1e4  # of the start rate
    extra_steps: int = 100  # added to the total: the cycle never quite ends
    anneal: Literal["linear", "cosine"] = "linear"

    def factor(self, step: int, total_steps: int) -> float:
        last = total_steps + self.extra_steps - 1
        peak_step = self.rise_fraction * (total_steps + self.extra_steps) - 1
        start = 1.0 / self.start_divisor
        end = start / self.end_divisor
        if step <= peak_step:
            return self._between(start, 1.0, step / peak_step)
        return self._between(1.0, end, min((step - peak_step) / (last - peak_step), 1.0))

    def _between(self, a: float, b: float, position: float) -> float:
        if self.anneal == "linear":
            return a + (b - a) * position
        return b + (a - b) / 2.0 * (1.0 + math.cos(math.pi * position))


class CosineSchedule(StrictModel):
    """Linear warm-up over ``warmup_fraction`` of the steps, then a half cosine to ``end_factor``."""

    name: Literal["cosine"] = "cosine"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    start_factor: float = 0.04
    end_factor: float = 0.0

    def factor(self, step: int, total_steps: int) -> float:
        warmup = self.warmup_fraction * total_steps
        if step < warmup:
            return self.start_factor + (1.0 - self.start_factor) * step / warmup
        position = min((step - warmup) / max(total_steps - warmup, 1.0), 1.0)
        return self.end_factor + (1.0 - self.end_factor) * 0.5 * (1.0 + math.cos(math.pi * position))


ScheduleConfig = Annotated[ConstantSchedule | OneCycleSchedule | CosineSchedule, Field(discriminator="name")]
