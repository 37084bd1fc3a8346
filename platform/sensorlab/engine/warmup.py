"""Warm-up, and the rates of one optimiser step: schedule and warm-up together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from sensorlab.config import StrictModel
from sensorlab.engine.schedules import ScheduleConfig, SchedulePoint


class WarmupConfig(StrictModel):
    """From a start to the scheduled rate, which runs on beneath: start s, target t, share x of the way.

    ``linear``: s + (t - s) x. ``exponential``: s^(1-x) t^x. ``constant``: s, then t. The default start is
    ``start_factor`` times the rate that the schedule has at that moment (mmcv); a group of ``group_start`` starts from
    its own fixed multiple of the peak rate (the bias rate of YOLOv5).
    """

    kind: Literal["linear", "constant", "exponential"] = "linear"
    length: float = Field(gt=0)
    unit: Literal["steps", "epochs"] = "steps"  # optimiser steps; epochs are counted in global batches
    at_least: int = Field(default=0, ge=0)  # lower limit of the length, in steps or global batches
    start_factor: float = Field(default=0.0, ge=0)
    group_start: Mapping[str, float] = {}  # name in optim.groups -> multiple of its peak rate
    momentum_start: float | None = Field(default=None, ge=0, lt=1)  # rises linearly to optim.momentum; sgd

    @model_validator(mode="after")
    def _positive_start(self) -> WarmupConfig:
        if self.kind == "exponential" and min([self.start_factor, *self.group_start.values()]) <= 0:
            raise ValueError("an exponential warm-up needs starts above 0")
        if min(self.group_start.values(), default=0.0) < 0:
            raise ValueError("group_start must not be negative")
        return self

    def end(self, batches_per_epoch: int) -> int:
        """Length in optimiser steps or, with ``unit: epochs``, in global batches."""
        length = self.length if self.unit == "steps" else self.length * batches_per_epoch
        return max(round(length), self.at_least, 1)

    def blend(self, start: float, target: float, share: float) -> float:
        """The multiple at ``share`` of the way, 0 <= share <= 1."""
        if self.kind == "constant":
            return start if share < 1.0 else target
        if self.kind == "linear":
            return start + (target - start) * share
        return start ** (1.0 - share) * target**share


class Rates(NamedTuple):
    """What a step uses."""

    factor: float  # multiple of the peak learning rate
    group_factors: Mapping[str, float]  # the same for the groups that differ, by name
    momentum: float | None  # None: leave it


_SAME: Mapping[str, float] = {}


def rates(schedule: ScheduleConfig, warmup: WarmupConfig | None, point: SchedulePoint, momentum: float) -> Rates:
    """Learning-rate factors and momentum for the optimiser step at ``point``; ``momentum`` is the configured one."""
    if warmup is None:
        return Rates(schedule.at(point), _SAME, None)
    end = warmup.end(point.batches_per_epoch)
    if warmup.unit == "steps":
        position, per_epoch = point.step, point.steps_per_epoch
    else:
        position, per_epoch = point.batch, point.batches_per_epoch
    ramps = warmup.momentum_start is not None
    if position > end:
        # What the warm-up has reached stays to the end of its epoch; a schedule that lags falls back after it (YOLOv5).
        return Rates(schedule.at(point, lag=point.epoch > end // per_epoch), _SAME, momentum if ramps else None)
    target, share = schedule.at(point, lag=False), position / end
    return Rates(
        factor=warmup.blend(warmup.start_factor * target, target, share),
        group_factors={name: warmup.blend(start, target, share) for name, start in warmup.group_start.items()},
        momentum=warmup.momentum_start + (momentum - warmup.momentum_start) * share  # type: ignore[operator]
        if ramps
        else None,
    )
