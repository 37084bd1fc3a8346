"""Where a training ends, and where its schedule ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sensorlab.config import StrictModel, as_dict
from sensorlab.engine.accumulate import Accumulation
from sensorlab.engine.duration import Duration


class ExtendConfig(StrictModel):
    """More training after the planned end. The rule says what the schedule of the rates does there.

    ``hold``: the rates of the last planned step go on, and nothing before the end changes, so a finished run that is
    extended equals one that was planned so. That holds under ``image_weights`` too: the scores that weigh the samples
    come from the evaluations that ``eval.every`` makes due, not from one that was made because the run ended there.
    ``rescale``: the schedule is that of the whole length; a run that is
    extended in the middle or at its end jumps to the rate that the longer schedule has there.
    """

    duration: Duration  # how much more, in the unit of train.duration
    rule: Literal["hold", "rescale"] = "hold"


@dataclass(frozen=True)
class Budget:
    """Ends in optimiser steps, and in epochs that these reach into."""

    steps: int
    epochs: int
    schedule_steps: int
    schedule_epochs: int

    @classmethod
    def of(
        cls,
        duration: Duration,
        extend: ExtendConfig | None,
        accumulation: Accumulation,
        until: Duration | None = None,
    ) -> Budget:
        """The budget of a training.

        Args:
            duration: the planned length.
            extend: more of the same unit.
            until: where the training ends before that; the schedule is laid out as if it did not.
        """
        planned = _steps_and_epochs(duration, accumulation)
        whole = planned
        if extend is not None:
            more = Duration(duration.count + extend.duration.count, duration.unit)
            whole = _steps_and_epochs(more, accumulation)
        end = whole if until is None else _steps_and_epochs(until, accumulation)
        return cls(*end, *(planned if extend is None or extend.rule == "hold" else whole))


def early_stop_of(state: Mapping[str, Any], extend: ExtendConfig | None) -> str | None:
    """Why the training in a checkpoint's ``state`` ended before its budget; ``None`` if it did not, or goes on because
    it has been extended since (``EarlyStop`` has its whole patience again then)."""
    reason: str | None = state["stop_reason"]
    present = None if extend is None else as_dict(extend)
    return reason if present == state["config"]["train"]["extend"] else None


def _steps_and_epochs(duration: Duration, accumulation: Accumulation) -> tuple[int, int]:
    if duration.unit == "epochs":
        return accumulation.steps_of(duration.count), duration.count
    steps = duration.count if duration.unit == "steps" else accumulation.steps_for_samples(duration.count)
    return steps, accumulation.epochs_for(steps)
