"""A tracked training of the toy task in a store of its own, once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked_runs import DieAfter, Died, tracked_run

import sensorlab.experiment
import sensorlab.replay.model
from sensorlab.runs.client import open_client
from sensorlab.runs.query import RunIndex, StoredRun
from sensorlab.runs.store import Store, open_store
from toy import ToyTask


@pytest.fixture(autouse=True)
def toy_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensorlab.experiment, "task_class", lambda name: ToyTask)
    monkeypatch.setattr(sensorlab.replay.model, "task_class", lambda name: ToyTask)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(f"sqlite:///{tmp_path_factory.mktemp('replay')}/mlruns.db", "replay")


@pytest.fixture(scope="session")
def finished(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(id, directory) of a run that died after step 7 and was brought to its end by a second attempt."""
    run_dir = tmp_path_factory.mktemp("runs") / "runs" / "toy"
    tags = {"sensorlab.role": "run", "sensorlab.run_dir": str(run_dir)}
    run_id = str(open_client(store.uri).create_run(store.experiment_id, tags=tags, run_name="toy run").info.run_id)
    with pytest.raises(Died):
        tracked_run(store, run_id, run_dir, DieAfter(7))
    tracked_run(store, run_id, run_dir)
    return run_id, run_dir


@pytest.fixture
def stored(store: Store, finished: tuple[str, Path]) -> StoredRun:
    return RunIndex(store.uri).find(finished[0])
