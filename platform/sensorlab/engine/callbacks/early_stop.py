"""End a run when its objective has stopped to improve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sensorlab.config import StrictModel
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.duration import Duration

if TYPE_CHECKING:
    from sensorlab.engine.training import Training


class EarlyStopConfig(StrictModel):
    """End the run when ``eval.metric`` has not improved for ``patience``; judged at each evaluation."""

    patience: Duration  # without an improvement: 30 epochs, 2000 steps or 500000 samples
    min_delta: float = Field(default=0.0, ge=0.0)  # an improvement is larger than this
    ties_improve: bool = False  # with min_delta 0, an equal value is an improvement too, as in YOLOv5


class EarlyStop(Callback):
    """Asks for the end of the run once ``patience`` has passed since the last improvement, or since the start.

    An evaluation that was made only because the training ends is not judged: it may go on, and then ends where one
    does that was planned as long.

    The value to beat is that of the last improvement: many small gains, none of them above ``min_delta``, are one when
    they add up to more than it. A value that is not finite never improves.

    YOLOv5 (v6 on) stops after epoch e when ``e - best >= patience``, where ``best`` is the last epoch whose fitness was
    not below all others: ``patience: 100 epochs``, ``ties_improve: true`` and an evaluation per epoch.

    Every worker sees the same reduced numbers, so all decide alike without an exchange. The state is set before the
    checkpoint of the same evaluation is written: a resumed run ends where the uninterrupted one does.

    A run that was ended so and is extended (``train.extend``) begins with its whole patience again; the value to beat
    stays.
    """

    priority = 10
    goes_on_in_forks = False

    def __init__(self, config: EarlyStopConfig) -> None:
        self._config = config
        self._best: float | None = None
        self._best_at = 0  # in units of ``_now``
        self._is_used_up = False  # the patience

    def on_fit_start(self, training: Training) -> None:
        if training.donor is not None:
            self._best_at = self._now(training)[0]
        if self._is_used_up and training.stop_reason is None:  # the end is no more: the run was extended
            self._best_at, self._is_used_up = self._now(training)[0], False

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        name = training.config.eval.metric
        if name not in metrics or not training.evaluation_was_due:
            return
        now, patience = self._now(training)
        if self._improves(metrics[name], training.config.eval.mode):
            self._best, self._best_at = metrics[name], now
            return
        self._is_used_up = now - self._best_at >= patience
        if self._is_used_up and training.stop_reason is None:
            best = "no finite value so far" if self._best is None else f"best {self._best:.6g}"
            margin = f" by more than {self._config.min_delta:g}" if self._config.min_delta else ""
            training.request_stop(
                f"{name} has not improved{margin} for {self._config.patience} ({best}, now {metrics[name]:.6g})"
            )

    def _improves(self, value: float, mode: str) -> bool:
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        gain = value - self._best if mode == "max" else self._best - value
        return gain > self._config.min_delta or (self._config.ties_improve and gain == self._config.min_delta == 0.0)

    def _now(self, training: Training) -> tuple[int, int]:
        """Where training is and the patience: whole numbers, so that a resumed run compares the same ones."""
        patience, progress = self._config.patience, training.progress
        if patience.unit == "steps":
            return progress.steps, patience.count
        if patience.unit == "samples":
            return progress.samples, patience.count
        # Epochs in batches: evaluations may fall inside of epochs.
        return training.batches_done, patience.count * training.batches_per_epoch

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "best_at": self._best_at, "is_used_up": self._is_used_up}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._best_at = state.get("best"), state.get("best_at", 0)
        self._is_used_up = state.get("is_used_up", False)
