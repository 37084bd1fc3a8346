"""The datasets of a run as MLflow's inputs: its page lists them, and runs can be searched by them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

USE_TAG = "mlflow.data.context"  # what MLflow's pages show beside a dataset
MAX_DIGEST = 32  # the store takes 36 characters; the whole digest is in the profile


def log_datasets(client: MlflowClient, run_id: str, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Make ``datasets`` inputs of the run; those that it has already stay as they are.

    Args:
        datasets: use ("train", "val") to ``name`` (with the split: the store keeps one input of a name and digest),
            ``digest``, ``source`` (path) and ``profile`` (plain data).
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    inputs = []
    for use, entry in datasets.items():
        source = json.dumps({"uri": entry["source"]})
        profile = json.dumps({**entry.get("profile", {}), "digest": entry["digest"]})
        dataset = Dataset(entry["name"], entry["digest"][:MAX_DIGEST], "local", source, profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag(USE_TAG, use)]))
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        # Runs that start together all want to add the same dataset; where another was faster, it is there now.
        logger.debug("run %s: datasets again, after: %s", run_id, error)
        client.log_inputs(run_id, inputs)


def stored_datasets(run: Any) -> dict[str, dict[str, Any]]:
    """The datasets of a run of the store, by use, as they were given to :func:`log_datasets`."""
    stored = {}
    for entry in run.inputs.dataset_inputs if run.inputs else []:
        use = next((tag.value for tag in entry.tags if tag.key == USE_TAG), "")
        dataset = entry.dataset
        profile = json.loads(dataset.profile or "{}")
        stored[use] = {
            "name": dataset.name,
            "digest": profile.pop("digest", dataset.digest),
            "source": json.loads(dataset.source).get("uri", ""),
            "profile": profile,
        }
    return stored
