"""Learning-rate schedules as pure functions of where training is.

Each shape gives the multiple of the peak rate used **for** an optimiser step. Being pure, a schedule has nothing to
save or restore: resuming at step k is evaluating it at k. A warm-up (``sensorlab.engine.warmup``) goes on top.

Shapes with ``by`` are written in position p and length L: step p of L steps in all, or epoch p of L epochs (the rate is
then held for an epoch). Sources: mmcv's ``lr_updater`` hooks, MMEngine's parameter schedulers, YOLOv5's ``lf``,
video_analyst's ``lr_policy``, ``torch.optim.lr_scheduler``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from sensorlab.config import StrictModel


class SchedulePoint(NamedTuple):
    """Where training is at the last forward pass of an optimiser step."""

    step: int  # optimiser steps done
    batch: int  # global batches consumed in all before that pass
    epoch: int
    total_steps: int
    total_epochs: int
    steps_per_epoch: int
    batches_per_epoch: int

    def within(self, steps: int, epochs: int, length_steps: int, length_epochs: int) -> SchedulePoint:
        """The same moment counted in a span that begins after ``steps`` and ``epochs`` and has the given length."""
        return self._replace(
            step=self.step - steps,
            epoch=self.epoch - epochs,
            total_steps=length_steps,
            total_epochs=length_epochs,
        )


class Shape(StrictModel, ABC):
    """A multiple of the peak rate over the training."""

    @abstractmethod
    def at(self, point: SchedulePoint, lag: bool = True) -> float:
        """The multiple at ``point``; without ``lag``, that of the epoch itself, which a warm-up aims at."""


class PositionShape(Shape):
    """A shape in (position, length), counted in steps or epochs."""

    by: Literal["step", "epoch"] = "step"  # the rate changes with every step, or is held for an epoch
    lag: int = Field(default=0, ge=0)  # by epoch: epochs the rate is behind, from the one after the warm-up's end on

    @model_validator(mode="after")
    def _lag_of_epochs(self) -> PositionShape:
        if self.lag and self.by != "epoch":
            raise ValueError("lag is counted in epochs: set by: epoch")
        return self

    @abstractmethod
    def factor(self, position: int, length: int) -> float: ...

    def at(self, point: SchedulePoint, lag: bool = True) -> float:
        if self.by == "step":
            return self.factor(point.step, point.total_steps)
        return self.factor(max(point.epoch - self.lag, 0) if lag else point.epoch, point.total_epochs)


class ConstantSchedule(Shape):
    """One multiple of the peak rate throughout."""

    name: Literal["constant"] = "constant"
    multiple: float = Field(default=1.0, ge=0)

    def at(self, point: SchedulePoint, lag: bool = True) -> float:
        return self.multiple


class OneCycleSchedule(Shape):
    """Linear or cosine rise to the peak, then fall; arithmetic of ``torch.optim.lr_scheduler.OneCycleLR``.

    The defaults are Simple-BEV's (``train_nuscenes.py:fetch_optimizer``): linear, 5 % rise, total steps + 100, start at
    peak / 25, end at start / 1e4.
    """

    name: Literal["one_cycle"] = "one_cycle"
    rise_fraction: float = Field(default=0.05, gt=0, lt=1)
    start_divisor: float = Field(default=25.0, gt=0)
    end_divisor: float = Field(default=1e4, gt=0)  # of the start rate
    extra_steps: int = 100  # added to the total: the cycle never quite ends
    anneal: Literal["linear", "cosine"] = "linear"

    def at(self, point: SchedulePoint, lag: bool = True) -> float:
        return self.factor(point.step, point.total_steps)

    def factor(self, step: int, total_steps: int) -> float:
        last = total_steps + self.extra_steps - 1
        peak_step = self.rise_fraction * (total_steps + self.extra_steps) - 1
        start = 1.0 / self.start_divisor
        end = start / self.end_divisor
        if step < peak_step:
            return self._between(start, 1.0, step / peak_step)
        # A total of one step has neither rise nor fall.
        return self._between(1.0, end, min((step - peak_step) / max(last - peak_step, 1e-12), 1.0))

    def _between(self, a: float, b: float, position: float) -> float:
        if self.anneal == "linear":
            return a + (b - a) * position
        return b + (a - b) / 2.0 * (1.0 + math.cos(math.pi * position))


class StepSchedule(PositionShape):
    """``gamma ** (p // size)``: a drop every ``size`` steps or epochs."""

    name: Literal["step"] = "step"
    size: int = Field(ge=1)
    gamma: float = Field(default=0.1, gt=0)

    def factor(self, position: int, length: int) -> float:
        return self.gamma ** (position // self.size)


class MultiStepSchedule(PositionShape):
    """``gamma`` to the number of ``milestones`` passed: the rate drops at each of them."""

    name: Literal["multi_step"] = "multi_step"
    milestones: tuple[int, ...]  # steps or epochs, counted from 0
    gamma: float = Field(default=0.1, gt=0)

    def factor(self, position: int, length: int) -> float:
        return self.gamma ** sum(position >= milestone for milestone in self.milestones)


class ExponentialSchedule(PositionShape):
    """``gamma ** p``, or with ``end_factor`` straight in log space: ``start * (end / start) ** (p / L)``."""

    name: Literal["exponential"] = "exponential"
    gamma: float | None = Field(default=None, gt=0)  # give this one or end_factor
    start_factor: float = Field(default=1.0, gt=0)
    end_factor: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_rate(self) -> ExponentialSchedule:
        if (self.gamma is None) == (self.end_factor is None):
            raise ValueError("give exactly one of gamma and end_factor")
        return self

    def factor(self, position: int, length: int) -> float:
        if self.end_factor is None:
            return self.start_factor * self.gamma**position  # type: ignore[operator]  # one of the two is given
        return self.start_factor * (self.end_factor / self.start_factor) ** _share(position, length)


class PolynomialSchedule(PositionShape):
    """``end + (1 - end) * (1 - p / L) ** power``."""

    name: Literal["polynomial"] = "polynomial"
    power: float = Field(default=1.0, gt=0)
    end_factor: float = Field(default=0.0, ge=0)
    extra: int = 0  # added to L; -1: the last step has the end value, as in MMEngine

    def factor(self, position: int, length: int) -> float:
        remaining = 1.0 - _share(position, length + self.extra)
        return self.end_factor + (1.0 - self.end_factor) * remaining**self.power


class InverseSchedule(PositionShape):
    """``(1 + gamma * p) ** -power``."""

    name: Literal["inverse"] = "inverse"
    gamma: float = Field(gt=0)
    power: float = Field(default=1.0, gt=0)

    def factor(self, position: int, length: int) -> float:
        return (1.0 + self.gamma * position) ** -self.power


class CosineSchedule(PositionShape):
    """Half a cosine from ``start_factor`` to ``end_factor``: ``end + (start - end) * (1 + cos(pi * p / L)) / 2``."""

    name: Literal["cosine"] = "cosine"
    start_factor: float = Field(default=1.0, ge=0)
    end_factor: float = Field(default=0.0, ge=0)
    extra: int = 0  # added to L

    def factor(self, position: int, length: int) -> float:
        wave = 0.5 * (1.0 + math.cos(math.pi * _share(position, length + self.extra)))
        return self.end_factor + (self.start_factor - self.end_factor) * wave


class LinearSchedule(PositionShape):
    """Straight from ``start_factor`` to ``end_factor``."""

    name: Literal["linear"] = "linear"
    start_factor: float = Field(default=1.0, ge=0)
    end_factor: float = Field(default=0.0, ge=0)
    extra: int = 0  # added to L

    def factor(self, position: int, length: int) -> float:
        return self.start_factor + (self.end_factor - self.start_factor) * _share(position, length + self.extra)


def _share(position: int, length: int) -> float:
    """Share of the way that is done, at most 1."""
    return min(position / length, 1.0) if length > 0 else 1.0


_SimpleShape = (
    ConstantSchedule
    | OneCycleSchedule
    | StepSchedule
    | MultiStepSchedule
    | ExponentialSchedule
    | PolynomialSchedule
    | InverseSchedule
    | CosineSchedule
    | LinearSchedule
)


class Piece(StrictModel):
    """One shape for a while. Inside of it steps and epochs count from its begin, and its length is their total."""

    length: int | None = Field(default=None, ge=1)  # None, in the last piece only: the rest of the training
    shape: Annotated[_SimpleShape, Field(discriminator="name")]


class PiecewiseSchedule(Shape):
    """Shapes one after the other; beyond the last one its value goes on."""

    name: Literal["piecewise"] = "piecewise"
    unit: Literal["steps", "epochs"] = "epochs"  # of the lengths of the pieces
    pieces: tuple[Piece, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _only_the_last_is_open(self) -> PiecewiseSchedule:
        if any(piece.length is None for piece in self.pieces[:-1]):
            raise ValueError("only the last piece may be without a length")
        if self.unit == "steps" and any(getattr(piece.shape, "by", "step") == "epoch" for piece in self.pieces):
            raise ValueError("shapes by epoch need pieces with unit: epochs")
        return self

    def at(self, point: SchedulePoint, lag: bool = True) -> float:
        now = point.step if self.unit == "steps" else point.epoch
        begin = 0
        for piece in self.pieces[:-1]:
            if now < begin + piece.length:  # type: ignore[operator]  # only the last one may be open
                break
            begin += piece.length  # type: ignore[operator]
        else:
            piece = self.pieces[-1]
        return piece.shape.at(self._span(point, begin, piece.length), lag)

    def _span(self, point: SchedulePoint, begin: int, length: int | None) -> SchedulePoint:
        if self.unit == "steps":
            return point.within(begin, 0, length or point.total_steps - begin, point.total_epochs)
        steps = begin * point.steps_per_epoch
        length_steps = point.total_steps - steps if length is None else length * point.steps_per_epoch
        return point.within(steps, begin, length_steps, length or point.total_epochs - begin)


ScheduleConfig = Annotated[_SimpleShape | PiecewiseSchedule, Field(discriminator="name")]
