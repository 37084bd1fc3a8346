from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sensorlab.errors import UserError
from sensorlab.runs.client import SWITCHES, apply_switches, open_client, without_password
from sensorlab.runs.store import Store, default_store_uri, file_lock, open_store


def _open(uri: str, barrier: Any, results: Any) -> None:
    barrier.wait(timeout=60)
    try:
        opened = open_store(uri, "cold start")
        client = open_client(opened.uri)
        run = client.create_run(opened.experiment_id)
        client.log_metric(run.info.run_id, "x", 1.0, step=0, synchronous=True)
        results.put(opened)
    except BaseException as error:
        results.put(error)


def test_eight_processes_open_a_fresh_store_together(tmp_path: Path) -> None:
    # MLflow alone fails here in 7 or 8 of 8 processes: each one runs the migrations.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sensorlab.runs.store", "mlflow.store.tracking.sqlalchemy_store"])
    uri = f"sqlite:///{tmp_path}/new/mlruns.db"
    barrier, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_open, args=(uri, barrier, results)) for _ in range(8)]
    for process in processes:
        process.start()
    opened = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert len({result for result in opened if isinstance(result, Store)}) == 1, opened
    client = open_client(opened[0].uri)
    assert len(client.search_runs([opened[0].experiment_id])) == 8
    assert [e.name for e in client.search_experiments()].count("cold start") == 1


def test_the_database_uses_a_write_ahead_log(store: Store) -> None:
    with sqlite3.connect(store.uri.removeprefix("sqlite:///")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_process_killed_while_creating_leaves_no_half_made_store(tmp_path: Path) -> None:
    path = tmp_path / "mlruns.db"
    code = f"""
import os, signal
from mlflow.store.db import utils
from sensorlab.runs.store import open_store
utils._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)  # in the middle of MLflow's migrations
open_store("sqlite:///{path}", "e")
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == -signal.SIGKILL
    assert not path.exists()
    opened = open_store(f"sqlite:///{path}", "e")
    assert open_client(opened.uri).get_experiment(opened.experiment_id).name == "e"
    assert sorted(p.name for p in tmp_path.iterdir() if "creating" in p.name) == []


def test_opening_again_finds_the_same_experiment_from_any_directory(
    store_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store_file.parent)
    first = open_store("sqlite:///mlruns.db", "bev: day/night")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_store(first.uri, "bev: day/night", artifact_root=tmp_path / "other") == first
    location = open_client(first.uri).get_experiment(first.experiment_id).artifact_location
    assert location == (tmp_path / "mlartifacts" / "bev_day_night").as_uri()
    assert first.is_single_host
    assert list((tmp_path / "elsewhere").iterdir()) == []  # nothing lands in the working directory


def test_remote_artifact_root_is_kept(store: Store) -> None:
    opened = open_store(store.uri, "remote", artifact_root="s3://bucket/mlflow/")
    experiment = open_client(opened.uri).get_experiment(opened.experiment_id)
    assert experiment.artifact_location == "s3://bucket/mlflow/remote"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///tmp/mlruns", "folders are no longer a tracking store"),
        ("./mlruns", "folders are no longer a tracking store"),
        ("ftp://host", "unknown scheme 'ftp'"),
        ("sqlite:///:memory:", "in-memory stores end with the process"),
        ("sqlite://", "expected sqlite:///path"),
        ("sqlite:////proc/none/mlruns.db", "cannot write in /proc/none"),
    ],
)
def test_unusable_addresses_are_refused(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_store(uri, "e")


def test_an_unreachable_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"cannot reach the MLflow server http://me:\*\*\*@127.0.0.1:9"):
        open_store("http://me:secret@127.0.0.1:9", "e")


def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("precious notes")
    with pytest.raises(UserError, match="not a SQLite database"):
        open_store(f"sqlite:///{text}", "e")
    assert text.read_text() == "precious notes"
    with pytest.raises(UserError, match="is a folder"):
        open_store(f"sqlite:///{tmp_path}", "e")


def test_a_store_of_another_mlflow_version_says_how_to_upgrade(store_file: Path) -> None:
    with sqlite3.connect(store_file) as database:
        database.execute("UPDATE alembic_version SET version_num = '0a8213491aaa'")
    with pytest.raises(UserError, match="mlflow db upgrade"):
        open_store(f"sqlite:///{store_file}", "e")


def test_a_deleted_experiment_says_how_to_restore(store: Store) -> None:
    opened = open_store(store.uri, "to delete")
    open_client(store.uri).delete_experiment(opened.experiment_id)
    with pytest.raises(UserError, match=f"restore --experiment-id {opened.experiment_id}"):
        open_store(store.uri, "to delete")


@pytest.mark.parametrize("name", ["", "  ", "x" * 501])
def test_experiment_names_are_checked(store: Store, name: str) -> None:
    with pytest.raises(UserError, match="1 to 500 characters"):
        open_store(store.uri, name)


def test_a_lock_held_by_another_process_is_waited_for_then_named(tmp_path: Path) -> None:
    with file_lock(tmp_path / "a.lock"):
        start = time.monotonic()
        with pytest.raises(UserError, match="another process has held this lock"), file_lock(tmp_path / "a.lock", 0.2):
            pass
        assert time.monotonic() - start >= 0.2
    with file_lock(tmp_path / "a.lock", 0.2):  # free again
        pass


def test_default_store_and_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_store_uri(tmp_path) == f"sqlite:///{tmp_path}/mlruns.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert default_store_uri(tmp_path) == "http://host:5000"
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    apply_switches()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "true"  # the user's choice wins
    assert SWITCHES["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_passwords_are_masked() -> None:
    assert without_password("postgresql://u:p@h:1/db") == "postgresql://u:***@h:1/db"
    assert without_password("http://h:5000") == "http://h:5000"
