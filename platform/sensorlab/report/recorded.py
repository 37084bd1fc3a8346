"""What only the tracking store knows of a sweep: the run of the sweep, and what its trials' directories lack.

A report must not hang on a store that is away: whatever fails here becomes a note in the report.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sensorlab.errors import UserError
from sensorlab.report.content import Sweep, Trial
from sensorlab.runs.client import open_client, without_password
from sensorlab.runs.tags import PARENT_TAG, ROLE_TAG, SWEEP_TAG

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_PROTOCOLS = "config/protocols.json"
_SWEEP_DIR_TAG = "sensorlab.sweep_dir"


def open_tracking_client(sweep: Sweep) -> tuple[MlflowClient | None, tuple[str, ...]]:
    """A client of the sweep's store, or the reason why there is none."""
    if sweep.tracking_uri is None:
        return None, ("the sweep was not recorded in a tracking store: pictures come from the trials' directories",)
    shown = without_password(sweep.tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar for every picture otherwise
    try:
        _check_file(sweep.tracking_uri)
        client = open_client(sweep.tracking_uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # whatever a store that is away raises
        reason = str(error).strip().partition("\n")[0][:200]
        return None, (f"the tracking store {shown} could not be read ({reason}): pictures may be missing",)
    return client, ()


def _check_file(uri: str) -> None:
    """A client would create a SQLite file that is not there."""
    path = _sqlite_file(uri)
    if path is not None and not path.is_file():
        raise UserError(f"{path} does not exist")


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.partition(":///")[2].partition("?")[0]) if urlsplit(uri).scheme.startswith("sqlite") else None


def completed(sweep: Sweep, client: MlflowClient) -> Sweep:
    """The sweep with its own run, and with the protocols of trials whose checkpoints are gone."""
    try:
        parent = sweep.parent_run_id or _parent(client, sweep)
        trials = tuple(_with_protocols(trial, client) for trial in sweep.trials)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        return sweep.with_notes(f"the tracking store could not be read: {reason}")
    return dataclasses.replace(sweep, parent_run_id=parent, trials=trials)


def _parent(client: MlflowClient, sweep: Sweep) -> str | None:
    name = sweep.name.replace("'", "")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{SWEEP_TAG}` = '{name}'", max_results=50)
    parents = [run for run in found if run.data.tags.get(ROLE_TAG) == "sweep"]
    return str(parents[0].info.run_id) if parents else None


def _with_protocols(trial: Trial, client: MlflowClient) -> Trial:
    if trial.protocols or not trial.measured or not trial.run_id:
        return trial
    if not any(file.path == _PROTOCOLS for file in client.list_artifacts(trial.run_id, "config")):
        return trial
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(trial.run_id, _PROTOCOLS, folder))
        return dataclasses.replace(trial, protocols=json.loads(path.read_text(encoding="utf-8")))


def sweep_directory(uri: str, run_id: str) -> Path:
    """Directory of the sweep whose own run in the store is ``run_id``.

    Raises:
        UserError: no such run, a run of something else, or a directory that is not on this machine.
    """
    shown = without_password(uri)
    try:
        _check_file(uri)
        tags = open_client(uri).get_run(run_id).data.tags
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"run {run_id} could not be read from the tracking store {shown}: {reason}") from error
    if tags.get(PARENT_TAG):
        raise UserError(f"run {run_id} is a trial; name the run of its sweep: {tags[PARENT_TAG]}")
    if _SWEEP_DIR_TAG not in tags:
        raise UserError(f"run {run_id} is not the run of a sweep (it has no tag {_SWEEP_DIR_TAG})")
    directory = Path(tags[_SWEEP_DIR_TAG])
    if not directory.is_dir():
        raise UserError(
            f"the sweep of run {run_id} lies in {directory}, which is not on this machine: make the report where it "
            "is, or copy the directory and name the copy"
        )
    return directory
