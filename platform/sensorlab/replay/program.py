"""The engine's program, ended after some steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sensorlab.cluster.program import EngineProgram
from sensorlab.cluster.worker import RunContext
from sensorlab.engine.callbacks.base import Callback

if TYPE_CHECKING:
    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training


class StopAfter(Callback):
    """Ends the training after so many optimiser steps, with the schedules of the whole budget."""

    priority = 10

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        if training.cursor.step >= self._steps:
            training.request_stop(f"only the first {self._steps} steps are repeated")


@dataclass(frozen=True)
class FirstSteps(EngineProgram):
    """Train ``steps`` optimiser steps of an experiment."""

    steps: int = 0

    def train(self, context: RunContext) -> Mapping[str, Any]:
        return super().train(dataclasses.replace(context, callbacks=[*context.callbacks, StopAfter(self.steps)]))
