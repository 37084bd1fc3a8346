"""Addresses of MLflow's pages that show a sweep as it should be seen.

A plain experiment address opens on a page for language-model traces, and the list of runs shows the collapsed parent
without a chart. The address built here names the classic mode, filters to the sweep's trials (which flattens the
list) and sorts by the objective.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import quote

from sensorlab.runs.client import without_password
from sensorlab.runs.names import metric_name
from sensorlab.runs.store import Store

LOCAL_UI = "http://127.0.0.1:5000"
WORKFLOW = "workflowType=machine_learning"
"""Without it, pages open in the mode for language models."""


def base_url(uri: str) -> str:
    """Where the pages of the store at ``uri`` are: the server itself, or the local server of :func:`ui_command`."""
    return without_password(uri).rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL_UI


def ui_command(uri: str) -> str | None:
    """The command that serves the pages of a database store on this machine; ``None`` if a server already does.

    One worker and no job runner: 0.5 GB of memory instead of 2.3 GB.
    """
    if uri.startswith(("http://", "https://")):
        return None
    store = without_password(uri)
    quoted = f'"{store}"' if " " in store else store
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 --backend-store-uri {quoted}"


def sweep_link(store: Store, parent_run_id: str, objective: str, mode: str = "max", charts: bool = True) -> str:
    """The comparison of a sweep's trials, best first, as charts (or as a table).

    Args:
        objective: metric name as recorded.
        mode: "max" or "min": which end of the objective comes first.
    """
    ascending = "true" if mode == "min" else "false"
    query = {
        "workflowType": "machine_learning",
        "searchFilter": trials_filter(parent_run_id),
        "orderByKey": f"metrics.`{metric_name(objective)}`",
        "orderByAsc": ascending,
        "compareRunsMode": "CHART" if charts else "TABLE",
    }
    return f"{_experiment(store)}/runs?{_query(query)}"


def shared_view_link(store: Store, key: str) -> str:
    """The page in the state stored under ``key`` (:mod:`sensorlab.runs.views`). Any filter here would disable it."""
    query = {"workflowType": "machine_learning", "compareRunsMode": "CHART", "viewStateShareKey": key}
    return f"{_experiment(store)}/runs?{_query(query)}"


def trials_filter(parent_run_id: str) -> str:
    """Search expression for the trials of a sweep."""
    return f"tags.mlflow.parentRunId = '{parent_run_id}'"


def run_link(store: Store, run_id: str) -> str:
    """The page of one run."""
    return f"{_experiment(store)}/runs/{run_id}?{WORKFLOW}"


def compare_link(store: Store, run_ids: Iterable[str]) -> str:
    """The comparison of given runs: parallel coordinates, parameters and metrics side by side."""
    query = {"runs": json.dumps(list(run_ids)), "experiments": json.dumps([store.experiment_id])}
    return f"{base_url(store.uri)}/#/compare-runs?{_query(query)}"


def _experiment(store: Store) -> str:
    return f"{base_url(store.uri)}/#/experiments/{store.experiment_id}"


def _query(parameters: dict[str, str]) -> str:
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
