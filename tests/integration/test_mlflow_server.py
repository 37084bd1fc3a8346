"""Recording through a real MLflow server that goes away for some seconds and comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorlab.runs.client import SWITCHES, open_client
from sensorlab.runs.models import download_model, logged_models, promote, write_model
from sensorlab.runs.query import RunIndex, StoredRun
from sensorlab.runs.recorder import RunRecorder
from sensorlab.runs.store import open_store
from sensorlab.runs.sweep_runs import SweepRuns

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Server:
    """An ``mlflow server`` on a free loopback port, in its own process group."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **SWITCHES}
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.stop()


def test_outage_of_a_real_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with ThreadPoolExecutor(4) as pool:  # four drivers at once: no file lock spans hosts, the race is handled
        stores = set(pool.map(lambda _: open_store(server.url, "outage"), range(4)))
    assert len(stores) == 1
    store = stores.pop()
    sweep = SweepRuns(store, "s", "sweep", "val/iou", "max", tmp_path / "spool")
    run_id = sweep.child("t1", params={"lr": 0.1})
    recorder = RunRecorder(store.uri, run_id, tmp_path / "spool", interval_s=0.1, first_retry_s=0.2, max_retry_s=0.5)
    slowest = 0.0
    for step in range(300):
        if step == 100:
            assert recorder.flush(30)
            server.stop()
        if step == 200:
            assert recorder.flush(0.5) is False
            server.start()
        start = time.perf_counter()
        recorder.log({"val/iou": step / 300}, step)
        slowest = max(slowest, time.perf_counter() - start)
        if step in (50, 150):
            recorder.log_image(np.full((8, 8, 3), step, np.uint8), "val/panel", step)
        if step == 150:
            record_lineage(recorder, tmp_path / "model")
        time.sleep(0.005)
    assert slowest < 0.5  # a store that is away never holds up a step
    assert recorder.close("FINISHED", 60)
    assert sweep.close("FINISHED", 60)

    client = open_client(store.uri)
    history = client.get_metric_history(run_id, "val/iou")
    assert [(point.step, point.value) for point in history][1:] == [(step, step / 300) for step in range(300)]
    assert len(client.list_artifacts(run_id, "images")) == 4
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [trial.trial_id for trial in sweep.trials()] == ["t1"]
    assert sweep.publish_view().startswith(server.url)
    check_lineage(RunIndex(server.url).find(run_id[:10]))


DATASETS = {"train": {"name": "world/train", "digest": "ab" * 32, "source": "/data/world", "profile": {}}}


def record_lineage(recorder: RunRecorder, folder: Path) -> None:
    write_model(folder, {"w": torch.ones(2)}, {"step": 150, "config": {}})
    recorder.log_model(folder, "toy")
    recorder.log_datasets(DATASETS)
    recorder.log_table({"class": ["car"], "ap": [0.5]}, "classes", 150)
    recorder.describe({"config_digest": "c0ffee"})


def check_lineage(run: StoredRun) -> None:
    """What was recorded while the server was away is there, once; artifacts went through the server."""
    (model,) = logged_models(run.client, run.store.experiment_id, run.run_id)
    assert model.artifact_location.startswith("mlflow-artifacts:")
    assert {file.name for file in download_model(run.store.uri, model).iterdir()} == {
        *("model.safetensors", "model.json", "MLmodel"),
    }
    assert run.datasets == DATASETS
    assert run.json("tables/classes.json")["data"] == [[150, "car", 0.5]]
    assert "configuration c0ffee" in run.tags["mlflow.note.content"]
    version = promote(run.client, run.store.experiment_id, run.run_id, "toy", "best")
    assert run.client.get_model_version_by_alias("toy", "best").version == version.version
