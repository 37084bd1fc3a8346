"""The run in MLflow: parameters, metrics, pictures, tables, lineage, and the best model."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sensorlab.config import as_dict, digest
from sensorlab.data.dataset import PreparedDataset
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.best_model import SignatureProbe, export_model
from sensorlab.engine.training import Training
from sensorlab.errors import UserError
from sensorlab.runs.attempts import FILE as ATTEMPTS_FILE
from sensorlab.runs.attempts import Attempts
from sensorlab.runs.environment import Environment, capture_environment
from sensorlab.runs.recorder import RunRecorder, RunStatus
from sensorlab.runs.tags import PROTOCOL_TAG

logger = logging.getLogger(__name__)


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
        dataset: the prepared dataset that is read.
    """

    priority = 60
    goes_on_in_forks = False

    def __init__(
        self,
        recorder: RunRecorder,
        *,
        params: Mapping[str, Any],
        log_scaled: Collection[str] = (),
        code_root: Path | None = None,
        dataset: Path | None = None,
    ) -> None:
        self._recorder = recorder
        self._params = dict(params)
        self._log_scaled = log_scaled
        self._code_root = code_root
        self._dataset = dataset
        self._described: set[str] = set()
        self._last_logged_step = -1
        self._attempts: Attempts | None = None
        self._probe = SignatureProbe()

    def on_fit_start(self, training: Training) -> None:
        recorder = self._recorder
        recorder.log_params(self._params, self._log_scaled)
        recorder.log_text(yaml.safe_dump(as_dict(training.config), sort_keys=False), "config/experiment.yaml")
        recorder.set_tags(
            {
                "sensorlab.config_digest": training.config_digest,
                "sensorlab.seed": training.config.seed,
                "sensorlab.run_dir": str(training.run_dir),
                **{f"sensorlab.{name}": value for name, value in training.provenance.items()},
            }
        )
        environment = _environment(self._code_root)
        environment.record(recorder)
        self._record_datasets(training)
        self._attempts = Attempts(training.run_dir)
        self._attempts.begin(training.cursor.step, environment.tags["sensorlab.host"])
        self._record_lineage(training)

    def on_phase(self, training: Training, phase: str, total: int) -> None:
        if phase == "val" and self._probe.found is None and training.workers.is_main:
            self._probe.attach(training.evaluated_model)

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        self._recorder.log(metrics, step)
        self._last_logged_step = step
        if training.config.eval.metric in metrics:
            self._record_tables(training, "")
        if training.protocols.keys() - self._described:
            self._described.update(training.protocols)
            self._recorder.log_dict(training.protocols, "config/protocols.json")
            objective = training.config.eval.metric
            tags = {"sensorlab.objective": objective, "sensorlab.mode": training.config.eval.mode}
            if objective in training.protocols:
                tags[PROTOCOL_TAG] = digest(training.protocols[objective])
            self._recorder.set_tags(tags)

    def on_panels(self, training: Training, panels: list[tuple[str, np.ndarray]], step: int) -> None:
        for index, (_, picture) in enumerate(panels):
            self._recorder.log_image(picture, f"val/panel_{index}", step)

    def on_picture(self, training: Training, name: str, picture: np.ndarray, step: int) -> None:
        self._recorder.log_image(picture, name, step)

    def on_checkpoint(self, training: Training, path: Path) -> None:
        # What final weights are equal to is known also after the files are gone.
        manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
        tags = {"sensorlab.latest_checkpoint": str(path), "sensorlab.latest_step": training.cursor.step}
        self._recorder.set_tags({**tags, "sensorlab.weights_sha256": manifest["files"]["model.safetensors"]["sha256"]})
        now_best = training.metrics.get(training.config.eval.metric) == training.best_objective
        if now_best and training.evaluated.steps == training.cursor.step:
            self._recorder.set_tags({"sensorlab.best_checkpoint": str(path)})
            self._record_tables(training, "best/")

    def on_fit_end(self, training: Training) -> None:
        best = training.store.best() if training.workers.is_main else None
        if best is not None:
            self._recorder.set_tags({"sensorlab.best_checkpoint": str(best.path)})
            folder = training.run_dir / "best_model"
            try:
                export_model(best.path, folder, self._probe.found)
                self._recorder.log_model(folder, training.config.name)
            except (OSError, UserError) as error:
                logger.warning("the best model is not recorded: %s", error)
        self._close(training, "FINISHED", "finished")

    def on_error(self, training: Training, error: BaseException) -> None:
        if isinstance(error, SystemExit | KeyboardInterrupt):
            self._close(training, "KILLED", "killed")
            return
        reason = ": ".join(filter(None, (type(error).__name__, str(error))))[:500]
        self._recorder.set_tags({"sensorlab.error": reason})
        self._close(training, "FAILED", f"failed: {reason}")

    def state_dict(self) -> dict[str, Any]:
        # What a checkpoint counts as logged must be durable before it exists, or a run resumed from it has a gap.
        self._recorder.flush()
        return {"last_logged_step": self._last_logged_step}

    def _record_datasets(self, training: Training) -> None:
        """Both splits, with what the dataset's manifest says of them."""
        if self._dataset is None or "dataset" not in training.provenance:
            return
        try:
            prepared = PreparedDataset.open(self._dataset)
        except UserError as error:
            logger.warning("the datasets are not recorded: %s", error)
            return
        data = training.config.data
        datasets = {}
        for use, split in (("train", data.train_split), ("val", data.val_split)):
            info = prepared.manifest.splits[split]
            profile = {"num_samples": info.num_samples, "num_scenes": len(info.scenes), "max_samples": data.max_samples}
            name = f"{prepared.path.name}/{split}"
            datasets[use] = {"name": name, "digest": prepared.digest, "source": str(prepared.path), "profile": profile}
        self._recorder.log_datasets(datasets)

    def _record_tables(self, training: Training, folder: str) -> None:
        for name, columns in training.tables.items():
            try:
                self._recorder.log_table(columns, f"{folder}{name}", training.cursor.step)
            except ValueError as error:  # a run is worth more than a table of it
                logger.warning("table %s is not recorded: %s", name, error)

    def _record_lineage(self, training: Training) -> None:
        """The attempts, and the description that links all that the run came from and left."""
        assert self._attempts is not None
        self._recorder.log_dict(self._attempts.as_dict(), ATTEMPTS_FILE)
        environment = _environment(self._code_root)
        best, latest = training.store.best(), next(reversed(training.store.all()), None)
        kept = {"best": best, "latest": latest}
        self._recorder.describe(
            {
                **self._attempts.as_dict(),
                "checkpoints": {name: str(info.path) for name, info in kept.items() if info is not None},
                "dataset": training.provenance.get("dataset"),
                "config_digest": training.config_digest,
                "code": training.provenance.get("code") or environment.tags["mlflow.source.git.commit"],
                "has_diff": "git.diff" in environment.files,
                "environment": f"python {environment.tags['sensorlab.python']}, {environment.tags['sensorlab.device']}",
                "run_dir": str(training.run_dir),
            }
        )

    def _close(self, training: Training, status: RunStatus, outcome: str) -> None:
        if self._attempts is not None:
            self._attempts.end(training.cursor.step, outcome)
            self._record_lineage(training)
        self._recorder.close(status)
