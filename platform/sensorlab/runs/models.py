"""A run's best model in the store: MLflow's logged model, without a pickle anywhere.

A model is a folder::

    model.safetensors   the weights, by the names of the model's own state
    model.json          what they belong to: configuration, step, metrics, dataset, code, signature
    MLmodel             the same for MLflow's pages, written when the model is delivered

The flavor is the project's own and has no Python loader, so nothing can execute it;
:func:`sensorlab.replay.model.load_model` reads the two files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorlab.errors import UserError
from sensorlab.runs.client import is_permanent

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient
    from torch import Tensor

WEIGHTS, DESCRIPTION, MLMODEL = "model.safetensors", "model.json", "MLmodel"
DIGEST_TAG = "sensorlab.weights_sha256"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor that a model takes or gives; the first dimension, of the batch, is -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a model takes and what it gives."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def plain(self) -> dict[str, Any]:
        return {side: [_plain(tensor) for tensor in getattr(self, side)] for side in ("inputs", "outputs")}


def write_model(folder: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a model's folder, replacing what is there.

    Args:
        weights: the model's state.
        description: plain data; ``step``, ``config`` and, where they are known, ``signature`` (see
            ``Signature.plain``) and ``summary``, what the model's page lists.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save_file

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, temporary / WEIGHTS
        )
        digest = hashlib.sha256((temporary / WEIGHTS).read_bytes()).hexdigest()
        content = {**description, "weights_sha256": digest}
        (temporary / DESCRIPTION).write_text(json.dumps(content, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def deliver_model(client: MlflowClient, run_id: str, name: str, folder: Path) -> None:
    """Make the folder's model a logged model of the run, once: a model that was begun before is completed."""
    from mlflow.entities import LoggedModelOutput

    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    run = client.get_run(run_id)
    model = _begun(client, run.info.experiment_id, run_id, description["weights_sha256"])
    if model is None:
        tags = {DIGEST_TAG: description["weights_sha256"], "sensorlab.step": str(description["step"])}
        params = {key: str(value) for key, value in description.get("summary", {}).items()}
        model = client.create_logged_model(run.info.experiment_id, name, run_id, tags, params, model_type="sensorlab")
    if str(model.status) != "READY":
        (folder / MLMODEL).write_text(_mlmodel(description, run_id, model), encoding="utf-8")
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
    if all(output.model_id != model.model_id for output in run.outputs.model_outputs if run.outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, description["step"])])


def logged_models(client: MlflowClient, experiment_id: str, run_id: str) -> list[LoggedModel]:
    """The models of a run, newest first."""
    found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    return sorted(found, key=lambda model: model.creation_timestamp, reverse=True)


def best_model(client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel:
    """The complete model of a run. Raises ``UserError`` if it has none."""
    for model in logged_models(client, experiment_id, run_id):
        if str(model.status) == "READY":
            return model
    raise UserError(
        f"run {run_id} has no model in the store: it has not ended yet, or was recorded without one; its checkpoints "
        "are named by `sensorlab runs show`"
    )


def download_model(uri: str, model: LoggedModel) -> Path:
    """Folder of a model on this machine: where the store has it, or a copy of it."""
    import mlflow.artifacts

    return Path(mlflow.artifacts.download_artifacts(artifact_uri=model.artifact_location, tracking_uri=uri))


def promote(client: MlflowClient, experiment_id: str, run_id: str, name: str, alias: str) -> ModelVersion:
    """Register the model of a run under ``name``, unless that version is there, and let ``alias`` name it.

    Raises:
        UserError: the run has no model, or the registry refuses the name or the alias.
    """
    model = best_model(client, experiment_id, run_id)
    try:
        version = _version_of(client, name, model)
        client.set_registered_model_alias(name, alias, version.version)
    except Exception as error:
        if is_permanent(error):
            raise UserError(f"the registry refuses {name}@{alias}: {str(error).partition(chr(10))[0]}") from error
        raise
    return version


def _version_of(client: MlflowClient, name: str, model: LoggedModel) -> ModelVersion:
    """The registered version of a model; made if there is none."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.model_id == model.model_id or version.source == model.artifact_location:
            return version
    # Waiting for READY polls every few seconds; nothing of it is asynchronous in the stores that are supported.
    return client.create_model_version(
        name, model.artifact_location, model.source_run_id, model_id=model.model_id, await_creation_for=0
    )


def _begun(client: MlflowClient, experiment_id: str, run_id: str, digest: str) -> LoggedModel | None:
    models = logged_models(client, experiment_id, run_id)
    return next((model for model in models if model.tags.get(DIGEST_TAG) == digest), None)


def _mlmodel(description: Mapping[str, Any], run_id: str, model: LoggedModel) -> str:
    import yaml

    content = {
        "artifact_path": model.artifact_location,
        "flavors": {"sensorlab": {"weights": WEIGHTS, "description": DESCRIPTION}},
        "model_id": model.model_id,
        "run_id": run_id,
    }
    signature = description.get("signature")
    if signature:
        sides = {side: json.dumps([_spec(tensor) for tensor in signature[side]]) for side in ("inputs", "outputs")}
        content["signature"] = {**sides, "params": None}
    return yaml.safe_dump(content, sort_keys=False)


def _spec(tensor: Mapping[str, Any]) -> dict[str, Any]:
    spec = {"dtype": tensor["dtype"], "shape": tensor["shape"]}
    return {"name": tensor["name"], "type": "tensor", "tensor-spec": spec}


def _plain(tensor: TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
