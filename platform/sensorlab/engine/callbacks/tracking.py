"""The run in MLflow: parameters, metrics, pictures, configuration, and the best model."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sensorlab.config import as_dict, digest
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.training import Training
from sensorlab.runs.environment import Environment, capture_environment
from sensorlab.runs.recorder import RunRecorder, RunStatus
from sensorlab.runs.sweep_runs import PROTOCOL_TAG


@functools.lru_cache(maxsize=4)
def _environment(root: Path | None) -> Environment:
    """Captured once per process: the trials that one process trains run on the same code."""
    return capture_environment(root)


class Tracking(Callback):
    """Hands everything to a :class:`RunRecorder`, which never blocks the loop. Main worker only.

    Args:
        recorder: of a run that exists already.
        params: what the run's page lists as parameters: the searched keys in a sweep, the usual ones otherwise.
        log_scaled: names in ``params`` that also get their log10, so that plots over them are readable.
        code_root: folder whose git revision and diff describe the code.
    """

    priority = 60

    def __init__(
        self,
        recorder: RunRecorder,
        *,
        params: Mapping[str, Any],
        log_scaled: Collection[str] = (),
        code_root: Path | None = None,
    ) -> None:
        self._recorder = recorder
        self._params = dict(params)
        self._log_scaled = log_scaled
        self._code_root = code_root
        self._described: set[str] = set()
        self._last_logged_step = -1

    def on_fit_start(self, training: Training) -> None:
        recorder = self._recorder
        recorder.log_params(self._params, self._log_scaled)
        recorder.log_text(yaml.safe_dump(as_dict(training.config), sort_keys=False), "config/experiment.yaml")
        recorder.set_tags(
            {
                "sensorlab.config_digest": training.config_digest,
                "sensorlab.run_dir": str(training.run_dir),
                **{f"sensorlab.{name}": value for name, value in training.provenance.items()},
            }
        )
        _environment(self._code_root).record(recorder)

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        self._recorder.log(metrics, step)
        self._last_logged_step = step
        if training.protocols.keys() - self._described:
            self._described.update(training.protocols)
            self._recorder.log_dict(training.protocols, "config/protocols.json")
            objective = training.config.eval.metric
            tags = {"sensorlab.objective": objective}
            if objective in training.protocols:
                tags[PROTOCOL_TAG] = digest(training.protocols[objective])
            self._recorder.set_tags(tags)

    def on_panels(self, training: Training, panels: list[tuple[str, np.ndarray]], step: int) -> None:
        for index, (_, picture) in enumerate(panels):
            self._recorder.log_image(picture, f"val/panel_{index}", step)

    def on_picture(self, training: Training, name: str, picture: np.ndarray, step: int) -> None:
        self._recorder.log_image(picture, name, step)

    def on_checkpoint(self, training: Training, path: Path) -> None:
        self._recorder.set_tags({"sensorlab.latest_checkpoint": str(path)})

    def on_fit_end(self, training: Training) -> None:
        best = training.store.best() if training.workers.is_main else None
        if best is not None:
            weights = "ema.safetensors" if training.ema else "model.safetensors"
            self._recorder.log_artifact(best.path / weights, "best_model")
            description = {"step": best.step, "metrics": best.metrics, "weights": weights}
            self._recorder.log_text(json.dumps(description, indent=2), "best_model/about.json")
            self._recorder.set_tags({"sensorlab.best_checkpoint": str(best.path)})
        self._close("FINISHED")

    def on_error(self, training: Training, error: BaseException) -> None:
        killed = isinstance(error, SystemExit | KeyboardInterrupt)
        if not killed:
            self._recorder.set_tags({"sensorlab.error": f"{type(error).__name__}: {error}"[:500]})
        self._close("KILLED" if killed else "FAILED")

    def state_dict(self) -> dict[str, Any]:
        # What a checkpoint counts as logged must be durable before it exists, or a run resumed from it has a gap.
        self._recorder.flush()
        return {"last_logged_step": self._last_logged_step}

    def _close(self, status: RunStatus) -> None:
        self._recorder.close(status)
