"""One migrated SQLite store for all tests of recording; every test makes its own runs in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from sensorlab.runs.client import open_client
from sensorlab.runs.store import Store, open_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("tracking store")  # with a space in its path
    return open_store(f"sqlite:///{folder}/mlruns.db", "unit tests")


@pytest.fixture
def store_file(store: Store, tmp_path: Path) -> Path:
    """A store of the test's own, ``tmp_path/mlruns.db``: a copy, because MLflow's migrations take seconds."""
    source = sqlite3.connect(store.uri.removeprefix("sqlite:///"))
    target = sqlite3.connect(tmp_path / "mlruns.db")
    source.backup(target)
    source.close()
    target.close()
    return tmp_path / "mlruns.db"


@pytest.fixture
def new_run(store: Store) -> Callable[[], str]:
    return lambda: str(open_client(store.uri).create_run(store.experiment_id).info.run_id)


@pytest.fixture
def history(store: Store) -> Callable[[str, str], list[tuple[int, float]]]:
    """(step, value) of a metric of a run, in stored order."""

    def read(run_id: str, metric: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in open_client(store.uri).get_metric_history(run_id, metric)]

    return read


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "spool"
