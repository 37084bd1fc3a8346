"""Opening the tracking store: once, in the driver, before any worker starts.

Eight workers that open a fresh SQLite store together destroy it (every one runs MLflow's migrations, and the file can
be left unusable for good). So the driver creates and migrates it under a file lock, in a temporary file that is
renamed when complete, and hands workers nothing but the address, the experiment id and their run id.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sensorlab.errors import UserError
from sensorlab.runs.client import import_client, is_permanent, open_client, without_password

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

_LOCK_PATIENCE_S = 120.0
_SQLITE_HEADER = b"SQLite format 3\x00"
_SERVER_SCHEMES = ("http", "https")
_DATABASE_SCHEMES = ("postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class Store:
    """An opened store: all that a worker needs besides its run id. Plain strings, so it travels anywhere.

    Attributes:
        uri: tracking URI, independent of the working directory (SQLite paths are absolute).
        experiment_id: id of the experiment that holds the runs.
        experiment: its name.
    """

    uri: str
    experiment_id: str
    experiment: str

    @property
    def is_single_host(self) -> bool:
        """SQLite serves the processes of one machine only; several nodes need a server (see cluster/README.md)."""
        return self.uri.startswith("sqlite:")


def default_store_uri(directory: str | Path) -> str:
    """``MLFLOW_TRACKING_URI`` if it is set, else the SQLite file ``mlruns.db`` in ``directory``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(directory).resolve() / 'mlruns.db'}"


def open_store(uri: str, experiment: str, artifact_root: str | Path | None = None) -> Store:
    """Create the store and the experiment where they do not exist. Call in the driver, before workers start.

    Args:
        uri: ``sqlite:///path`` (relative paths start at the working directory), ``http(s)://host``, or a database
            address such as ``postgresql://...``, whose schema MLflow creates.
        experiment: name of the experiment, at most 500 characters.
        artifact_root: folder or remote URI below which artifacts of a *new* experiment go. Default: ``mlartifacts``
            beside the SQLite file; for a server its own artifact store. An existing experiment keeps its location.

    Raises:
        UserError: unsupported address, unreachable server, unusable or outdated database, deleted experiment.
    """
    if not experiment.strip() or len(experiment) > 500:
        raise UserError(f"experiment name {experiment[:60]!r}: must have 1 to 500 characters")
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "sqlite":
        path = _sqlite_path(uri)
        uri = f"sqlite:///{path}"
        import_client(uri)  # seconds of imports that need not be spent under the lock
        with file_lock(path.with_name(path.name + ".lock")):
            _prepare_sqlite(path)
            location = _artifact_location(artifact_root or path.parent / "mlartifacts", experiment)
            return _store(uri, experiment, location)
    if scheme in _SERVER_SCHEMES or scheme in _DATABASE_SCHEMES:
        remote = artifact_root if "://" in str(artifact_root or "") or scheme in _DATABASE_SCHEMES else None
        return _store(uri.rstrip("/"), experiment, _artifact_location(remote, experiment) if remote else None)
    if scheme in ("", "file"):
        raise UserError(
            f"tracking URI {uri!r}: folders are no longer a tracking store in MLflow 3; use a database file such as "
            "sqlite:///mlruns.db (old folders: mlflow migrate-filestore) or a server, http://host:5000"
        )
    raise UserError(
        f"tracking URI {uri!r}: unknown scheme {scheme!r}; use sqlite:///..., http(s)://... or postgresql://..."
    )


@contextmanager
def file_lock(path: Path, patience_s: float = _LOCK_PATIENCE_S) -> Iterator[None]:
    """Hold an exclusive lock between processes of this host. The kernel frees it when the holder dies.

    Raises:
        UserError: the folder cannot be written, or another process kept the lock for ``patience_s`` seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write in {path.parent}: {error.strerror}; choose another output directory") from error
    try:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"{path}: another process has held this lock for {patience_s:.0f} s") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)  # also frees the lock; the file stays, removing it would let two holders in


def _sqlite_path(uri: str) -> Path:
    # SQLAlchemy's form: three slashes and a path, absolute if a fourth follows.
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    if match is None or match[1].startswith((":memory:", "file:")):
        raise UserError(
            f"tracking URI {uri!r}: expected sqlite:///path/to/file.db (in-memory stores end with the process)"
        )
    path = Path(unquote(match[1]) if "%" in match[1] else match[1]).expanduser().resolve()
    if path.is_dir():
        raise UserError(f"tracking store {path} is a folder; name a file, for example {path / 'mlruns.db'}")
    return path


def _prepare_sqlite(path: Path) -> None:
    """Create or check the database file; the caller holds the lock."""
    try:
        if not path.exists() or path.stat().st_size == 0:
            _create_sqlite(path)
        else:
            with path.open("rb") as file:
                if file.read(len(_SQLITE_HEADER)) != _SQLITE_HEADER:
                    raise UserError(f"{path} is not a SQLite database; move it away or choose another store")
            _use_wal(path)
    except OSError as error:
        raise UserError(f"cannot create the tracking store {path}: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise UserError(f"the tracking store {path} cannot be used: {error}") from error


def _create_sqlite(path: Path) -> None:
    # Migrated under another name, then renamed: a process killed half-way leaves no half-made store behind.
    temporary = path.with_name(f".{path.name}.creating")
    for leftover in (temporary, *temporary.parent.glob(f"{temporary.name}-*")):
        leftover.unlink(missing_ok=True)
    uri = f"sqlite:///{temporary}"
    _check_usable(uri)
    _forget_engine(uri)
    _use_wal(temporary)
    temporary.rename(path)


def _use_wal(path: Path) -> None:
    """Switch the file to write-ahead logging: readers and the writer stop blocking each other. A lasting property.

    MLflow never sets it; it took the time of eight writers from 22 to 15 s and halved the longest stall.
    """
    connection = sqlite3.connect(path, timeout=20)
    try:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            logger.warning(
                "%s: this file system allows no write-ahead log (mode %s); expect slower recording", path, mode
            )
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        logger.warning("%s is in use; its journal mode stays as it is", path)
    finally:
        connection.close()


def _check_usable(uri: str) -> MlflowClient:
    """Connect, which creates a missing schema. Raises ``UserError`` for what the user must solve."""
    quiet = logging.getLogger("mlflow.store.db.utils")
    level = quiet.level
    quiet.setLevel(logging.WARNING)  # two lines of "Creating initial MLflow database tables"
    try:
        client = open_client(uri)
        client.search_experiments(max_results=1)
        return client
    except Exception as error:
        raise explained(uri, error) from error
    finally:
        quiet.setLevel(level)


def explained(uri: str, error: Exception) -> UserError:
    """What a failure to use the store at ``uri`` means for the user."""
    shown, text = without_password(uri), str(error).strip()
    reason = text.partition("\n")[0][:200]
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return UserError(
            f"{shown} was written by another MLflow version; back it up, then run: mlflow db upgrade {shown}"
        )
    if uri.startswith("http"):
        if any(word in text for word in ("UNAUTHENTICATED", "PERMISSION_DENIED", "401", "403")):
            return UserError(
                f"the MLflow server {shown} refused access; set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME "
                f"and MLFLOW_TRACKING_PASSWORD ({reason})"
            )
        return UserError(f"cannot reach the MLflow server {shown}; start it or correct MLFLOW_TRACKING_URI ({reason})")
    return UserError(f"the tracking store {shown} cannot be used: {reason}; move it away or choose another")


def _forget_engine(uri: str) -> None:
    """Close MLflow's cached connections to a temporary file, so that the file is complete and may be renamed."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.pop(uri, None)
    if engine is not None:
        engine.dispose()


def _artifact_location(root: Any, experiment: str) -> str:
    """Absolute location of an experiment's artifacts: workers run in other directories than the driver."""
    folder = re.sub(r"[^A-Za-z0-9_.\-]+", "_", experiment).strip("._") or "experiment"
    if "://" in str(root):
        return f"{str(root).rstrip('/')}/{folder}"
    return (Path(root).expanduser().resolve() / folder).as_uri()


def _store(uri: str, experiment: str, location: str | None) -> Store:
    client = _check_usable(uri)
    try:
        return Store(uri, _experiment_id(client, experiment, location), experiment)
    except UserError:
        raise
    except Exception as error:
        raise explained(uri, error) from error


def _experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    """Get or create. Another driver may create it in between (no lock spans hosts), so look again after a refusal."""
    for attempt in range(2):
        existing = client.get_experiment_by_name(name)
        if existing is not None:
            if existing.lifecycle_stage != "active":
                raise UserError(
                    f"experiment {name!r} is deleted in the store; run: mlflow experiments restore "
                    f"--experiment-id {existing.experiment_id}, or choose another name"
                )
            return str(existing.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception as error:
            if attempt or not is_permanent(error):
                raise
    raise AssertionError("unreachable")
