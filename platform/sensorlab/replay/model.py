"""The best model of a recorded run, ready to be called: weights, network and task, without a pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.models import DESCRIPTION, WEIGHTS, best_model, download_model
from sensorlab.runs.query import RunIndex
from sensorlab.tasks.base import BaseTask, task_class


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, on the CPU.

    Attributes:
        task: transforms samples, and decodes what ``task.forward(model, batch)`` gives.
        description: ``model.json``: step, metrics, digests, signature.
    """

    model: nn.Module
    task: BaseTask
    experiment: ExperimentConfig
    description: dict[str, Any]


def load_model(run_id: str, store: str | None = None) -> LoadedModel:
    """The best model of a run.

    Args:
        run_id: the run's id, or an unambiguous begin of it, or its name.
        store: tracking URI; default as in ``sensorlab runs``.

    Raises:
        UserError: no such run, it has no model, or the model is damaged.
    """
    index = RunIndex(store)
    run = index.find(run_id)
    return load_folder(download_model(index.uri, best_model(index.client, run.store.experiment_id, run.run_id)))


def load_folder(folder: Path) -> LoadedModel:
    """The model in a folder of :func:`sensorlab.runs.models.write_model`.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    from safetensors.torch import load_file

    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        found = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the model in {folder}: {error}") from error
    if found != description.get("weights_sha256"):
        raise UserError(f"{folder / WEIGHTS} was altered: its SHA-256 is not the one in {DESCRIPTION}")
    experiment = experiment_from(description["config"], where=str(folder / DESCRIPTION))
    task = task_class(experiment.task.name)(experiment.task)  # type: ignore[attr-defined]
    model = task.build_model()
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit the model of this version: {error}") from error
    return LoadedModel(model.eval(), task, experiment, description)
