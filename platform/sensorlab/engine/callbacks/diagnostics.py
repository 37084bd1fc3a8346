"""What may be watched in a run beside its numbers: all off unless asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sensorlab.config import StrictModel
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.early_stop import EarlyStop, EarlyStopConfig
from sensorlab.engine.callbacks.first_batches import FirstBatches
from sensorlab.engine.callbacks.profiler import Profiler
from sensorlab.engine.callbacks.sync_debug import SyncDebug
from sensorlab.engine.callbacks.tensorboard import TensorBoard
from sensorlab.engine.callbacks.weight_norms import WeightNorms
from sensorlab.engine.duration import Every

MAX_PROFILED_STEPS = 100


class DiagnosticsConfig(StrictModel):
    """Ways to look into a run. None of them changes what is trained.

    Cost on the step path, measured on one core of a busy machine: below 1 microsecond per step for ``first_batches``
    (after the first batches), ``sync_debug`` on the CPU, ``profile_steps`` outside of its window; 5 per step for
    ``norms_every`` and about 300 more in a step that reports 26 parameters; 30 per reported number for ``tensorboard``.
    """

    first_batches: int = Field(default=0, ge=0, le=100)  # training batches to draw, inputs and targets
    tensorboard: bool = False  # also write TensorBoard event files; needs the extra sensorlab[tensorboard]
    norms_every: Every | None = None  # gradient and weight norms per top-level module, for example 100 steps
    profile_steps: tuple[int, int] | None = None  # first and last step to profile, counted from 1
    sync_debug: Literal["off", "warn", "error"] = "off"  # on CUDA: steps that wait for the GPU warn or raise

    @model_validator(mode="after")
    def _window(self) -> DiagnosticsConfig:
        if self.profile_steps is not None:
            first, last = self.profile_steps
            if not 1 <= first <= last < first + MAX_PROFILED_STEPS:
                raise ValueError(
                    f"profile_steps is [first, last] with 1 <= first <= last, at most {MAX_PROFILED_STEPS} steps"
                    f" (found [{first}, {last}])"
                )
        return self


def build_callbacks(diagnostics: DiagnosticsConfig, early_stop: EarlyStopConfig | None = None) -> list[Callback]:
    """The callbacks that a configuration asks for, in the order in which they run (the engine sorts by priority).

    ========== ============ ============================================================================
    priority   callback     why there
    ========== ============ ============================================================================
    0          SyncDebug    ends its watch before the others wait for the device
    10         EarlyStop    decides before the evaluation is recorded
    30, 40     WeightNorms, FirstBatches: make what the recorders record
    60 to 80   Tracking (60), JsonLog (70), TensorBoard (72), PanelFiles (75), TableFiles (76), TextLog (80)
    95         Profiler     starts and ends after the others' work for a step
    ========== ============ ============================================================================

    Raises:
        UserError: a package is missing.
    """
    callbacks: list[Callback] = []
    if diagnostics.sync_debug != "off":
        callbacks.append(SyncDebug(diagnostics.sync_debug))
    if early_stop is not None:
        callbacks.append(EarlyStop(early_stop))
    if diagnostics.norms_every is not None:
        callbacks.append(WeightNorms(diagnostics.norms_every))
    if diagnostics.first_batches:
        callbacks.append(FirstBatches(diagnostics.first_batches))
    if diagnostics.tensorboard:
        callbacks.append(TensorBoard())
    if diagnostics.profile_steps is not None:
        callbacks.append(Profiler(*diagnostics.profile_steps))
    return callbacks
