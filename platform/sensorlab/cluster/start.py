"""Start a local Ray cluster or attach to one, so that every worker finds this package and every wait is finite.

The same script runs in three places:

* on a laptop: nothing is running, a private local cluster is started. Ray 2.60 turns token authentication on for it,
  unless ``RAY_AUTH_MODE`` says otherwise, and the dashboard listens on the loopback interface only;
* with ``RAY_ADDRESS`` set: it attaches to that cluster and ships the package to its workers;
* as the entrypoint of ``ray job submit --working-dir .``: the same, the job sets ``RAY_ADDRESS`` itself.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorlab.errors import UserError
from sensorlab.runs.client import SWITCHES

PACKAGE = Path(__file__).resolve().parents[1]
OUTPUT_ROOT_VARIABLE = "SENSORLAB_OUTPUT_ROOT"
_CONNECT_S = 10.0  # for the first packet to the head of an existing cluster
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the entrypoint of a submitted job

# Read by Ray in the driver, in its controllers and in its workers; a value that the user has set wins. Each limit
# that Ray leaves open (or at half an hour) has a finite value here: what does not make progress must end with an error.
ENVIRONMENT: dict[str, str] = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # also the rate at which reports are drained; 2 s by default
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # the new source starts 32 actors per epoch and is not deterministic
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # keep the working directory, so that relative paths mean what the user wrote
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the old reporter is the silent one
    "TUNE_GLOBAL_CHECKPOINT_S": "0.5",  # a killed driver forgets trials that started in this time; Ray: 10 s and more
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "45",  # a stopped trial may take this long to close its run before actor reuse
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune waits 10 s for trials in the middle of an epoch, and then kills them
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each trial between the table and its reader
    "RAY_USAGE_STATS_ENABLED": "0",
    **SWITCHES,
}

# One process per worker group less: nobody reclaims the machine that the driver itself runs on.
_LOCAL_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@dataclass(frozen=True)
class Cluster:
    """What the driver is connected to."""

    address: str
    local: bool
    nodes: tuple[dict[str, float], ...]
    """Resources of each living node, e.g. ``{"CPU": 2.0, "GPU": 1.0}``."""

    @property
    def cpus(self) -> float:
        return sum(node.get("CPU", 0.0) for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.get("GPU", 0.0) for node in self.nodes)


def in_job() -> bool:
    """Whether this process is the entrypoint of a submitted Ray job."""
    return _JOB_VARIABLE in os.environ


def is_cluster_root() -> bool:
    """Whether the output root is one that the cluster dictates, rather than a directory of the user's choice."""
    return in_job() or bool(os.environ.get(OUTPUT_ROOT_VARIABLE))


def output_root(configured: str) -> Path:
    """Absolute directory for runs, sweeps and the tracking store.

    A relative path counts from the working directory; but the working directory of a submitted job is a copy that Ray
    deletes, so there it counts from the home directory of the head (``sensorlab-outputs``).
    ``SENSORLAB_OUTPUT_ROOT`` wins over both.

    Raises:
        UserError: the directory cannot be created or written.
    """
    if os.environ.get(OUTPUT_ROOT_VARIABLE):
        root = Path(os.environ[OUTPUT_ROOT_VARIABLE]).expanduser().absolute()
    elif in_job() and not Path(configured).expanduser().is_absolute():
        root = Path.home() / "sensorlab-outputs"
        print(
            f"a submitted job runs in a directory that is deleted: results go to {root} "
            f"(set {OUTPUT_ROOT_VARIABLE} to change that)"
        )
    else:
        root = Path(configured).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to the output directory {root}: {error.strerror}; "
            f"set output_dir or {OUTPUT_ROOT_VARIABLE} to a directory that you may write to"
        ) from error
    return root


def runtime_env(local: bool, where: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runtime environment that makes ``import sensorlab`` work in every worker, whether or not it is installed there.

    A local cluster reads the package in place. Another cluster gets a copy (content-addressed, so an unchanged
    package is uploaded once): its nodes may not see this file system, and with ``--working-dir .`` the package lies
    in ``platform/``, which is not on the workers' path.

    Args:
        local: the cluster is a local one of this process.
        where: environment variables that tell workers which cluster they belong to. Ray's own watcher, which frees
            the resources of ended trials, otherwise looks for running clusters on its host, and dies when it finds
            two; then the next trial waits for ever.
    """
    settings = ENVIRONMENT | (_LOCAL_ENVIRONMENT if local else {})
    variables = {name: os.environ.get(name, value) for name, value in settings.items()} | dict(where or {})
    if local:
        previous = os.environ.get("PYTHONPATH")
        variables["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), *([previous] if previous else [])])
        return {"env_vars": variables}
    job = json.loads(os.environ.get(_JOB_VARIABLE, "{}")).get("runtime_env", {})
    # Ray refuses a second value for what the submitter has set; then the submitter decides.
    environment: dict[str, Any] = {
        "env_vars": {name: value for name, value in variables.items() if name not in job.get("env_vars", {})}
    }
    if "py_modules" not in job:
        environment["py_modules"] = [str(PACKAGE)]
    return environment


def connect(
    *,
    address: str | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    dashboard: bool = False,
) -> Cluster:
    """Attach to ``address`` (default: ``RAY_ADDRESS``) or, when there is none, start a local cluster.

    Args:
        address: Ray address such as ``10.0.0.1:6379`` or ``auto``.
        num_cpus: CPUs of a local cluster; default: as many as this process may use. Ignored when attaching.
        num_gpus: GPUs of a local cluster; default: all visible ones. Ignored when attaching.
        dashboard: start the dashboard of a local cluster. Must be on when worker groups run inside of a sweep: Ray
            asks it which trials live before it frees the resources of a dead one.

    Raises:
        UserError: no cluster answers at the address, the token is not the cluster's, or the Ray versions differ.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    local = not address
    if address:
        _check_address(address)

    import ray

    for name in ("ray", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # prints every failure of a trial; the sweep does that
    options: dict[str, Any] = {
        "address": address or "local",
        "runtime_env": runtime_env(local, {"RAY_ADDRESS": address} if address and address != "auto" else None),
        "log_to_driver": False,  # workers write to files; a run reports through its progress and its tracking run
        "logging_level": logging.ERROR,
        "ignore_reinit_error": True,
    }
    if local:
        options |= {
            "num_cpus": num_cpus if num_cpus is not None else _usable_cpus(),
            "include_dashboard": dashboard,
            "dashboard_host": "127.0.0.1",
        }
        if dashboard:
            options["dashboard_port"] = _free_port()
            address_of_dashboard = f"http://127.0.0.1:{options['dashboard_port']}"
            options["runtime_env"] = runtime_env(local, {"RAY_API_SERVER_ADDRESS": address_of_dashboard})
        if num_gpus is not None:
            options["num_gpus"] = num_gpus
    try:
        with _quiet_unless_failing(address):
            context = ray.init(**options)
    except Exception as error:
        message = _explain(error, address)
        if message is None:
            raise
        raise UserError(message) from error
    _end_cleanly_on_sigterm()
    nodes = tuple(dict(node["Resources"]) for node in ray.nodes() if node["Alive"])
    return Cluster(context.address_info["gcs_address"], local, nodes)


def disconnect() -> None:
    """Leave the cluster; a local one ends with it. Takes no notice of Ctrl-C, which would leave half of it running."""
    import ray

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        ray.shutdown()
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _end_cleanly_on_sigterm() -> None:
    """Let SIGTERM unwind the main thread as ``SystemExit`` (143; 1 when it arrives inside of a call into Ray).

    Ray's own handler, which this replaces, does that too, but prints a native stack and aborts the process after 3 s.
    """

    def terminate(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what cleans up is not to be interrupted
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _check_address(address: str) -> None:
    """Refuse at once what ``ray.init`` would try for minutes. Raises ``UserError``."""
    if "://" in address:
        raise UserError(
            f"Ray address {address!r}: expected host:port of the head, such as 10.0.0.1:6379. An http address is for "
            "`ray job submit` (RAY_API_SERVER_ADDRESS); ray:// clients cannot run sweeps"
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"Ray address {address!r}: expected host:port, such as 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise UserError(_no_answer(address, str(error.strerror or error))) from error


def _no_answer(address: str, detail: str) -> str:
    return (
        f"the Ray cluster at {address} does not answer ({detail}). Check the address and that the head is running "
        "(`ray status`), or unset RAY_ADDRESS to start a local cluster"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _explain(error: BaseException, address: str | None) -> str | None:
    """One clear message for the mistakes that users make when they attach; ``None`` for anything else."""
    if address is None:
        return None
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(texts)
    where = f"the Ray cluster at {address}"
    if "AuthenticationError" in text or "InvalidAuthToken" in text or "Unauthenticated" in text:
        return (
            f"{where} refused the authentication token. Set RAY_AUTH_MODE=token and give the token of that cluster in "
            "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token (`ray get-auth-token` on the head prints it)"
        )
    if "Version mismatch" in text or "version mismatch" in text:
        return f"{where} runs other versions than this process: {error}"
    if isinstance(error, ConnectionError | TimeoutError) or "Failed to connect to GCS" in text:
        return _no_answer(address, str(error).splitlines()[0])
    return None


@contextmanager
def _quiet_unless_failing(address: str | None) -> Iterator[None]:
    """Hold back what Ray's native code writes to stderr; print it only if something unexpected happens."""
    try:
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ else 2
        saved = os.dup(descriptor)
    except (OSError, ValueError):  # no real stderr, for example under some test runners
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), descriptor)
        try:
            yield
        except Exception as error:
            if _explain(error, address) is None:
                held.seek(0)
                os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, descriptor)
            os.close(saved)
