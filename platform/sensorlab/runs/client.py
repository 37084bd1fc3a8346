"""The one door to MLflow: process switches, the client, and which of its errors are worth a retry.

Only ``MlflowClient`` with explicit run ids is used: the fluent API keeps thread-local state that does not survive Ray
workers, and MLflow's own asynchronous logging loses points when eight clients share a server's connection pool.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SWITCHES = {
    # Nothing about a run leaves the machine except to the store that the user named.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Loading a model must never execute a pickle (MLflow's default would).
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # Commands print tables; a bar for every small file would be between their lines.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's job runner starts 8 processes and 1.8 GB per server; nothing here uses it.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # Defaults (7 retries, 120 s each) block a caller for minutes when a server is away. The recorder retries itself.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Environment variables that every process of a run sets before it imports MLflow; a value set by the user wins.

The launcher also hands them to Ray workers (``runtime_env["env_vars"]``) and to servers that it starts.
"""

_PERMANENT_CODES = frozenset(
    {
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_ALREADY_EXISTS",
        "INVALID_STATE",
        "ENDPOINT_NOT_FOUND",
    }
)


def apply_switches() -> None:
    """Set the environment switches of this process that the user has not set."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def import_client(uri: str) -> type[MlflowClient]:
    """Import what a client of ``uri`` needs (1-2 s the first time), with the switches set before."""
    apply_switches()
    from mlflow.tracking import MlflowClient

    if not uri.startswith("http"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    return MlflowClient


def open_client(uri: str) -> MlflowClient:
    """A client for the store at ``uri``.

    For SQLite this assumes that :func:`sensorlab.runs.store.open_store` has created the database.
    """
    return import_client(uri)(tracking_uri=uri)


def is_permanent(error: Exception) -> bool:
    """Whether repeating the same call cannot succeed (bad value, deleted run), as opposed to a store that is away.

    Authentication and permission errors count as passing: tokens get renewed while a run goes on.
    """
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _PERMANENT_CODES
    return isinstance(error, (ValueError, TypeError, FileNotFoundError, IsADirectoryError))


def without_password(uri: str) -> str:
    """``uri`` with the password of ``user:password@host`` masked, for messages and links."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))
