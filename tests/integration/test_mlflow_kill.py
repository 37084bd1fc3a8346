"""A run that is killed while it records, and resumed from its last checkpoint, has every point exactly once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sensorlab.runs.client import open_client
from sensorlab.runs.store import Store, open_store

STEPS = 400
CHECKPOINT_EVERY = 25

# The recording side of a training: resume at the checkpoint, record every step, flush before a checkpoint counts.
TRAINING = """
import sys, time
from pathlib import Path
from sensorlab.runs.recorder import RunRecorder

uri, run_id, folder, steps, every, pause = sys.argv[1:4] + [int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])]
checkpoint = Path(folder) / "checkpoint"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
recorder = RunRecorder(uri, run_id, Path(folder) / "spool", interval_s=0.05, first_retry_s=0.05, max_retry_s=0.2)
print("started", flush=True)
while step < steps:
    step += 1
    recorder.log({"train/loss": 1 / step, "perf/time": time.perf_counter()}, step)
    if step % 10 == 0:
        recorder.log({"val/iou": step / steps}, step)
    if step % every == 0:
        recorder.flush()
        part = checkpoint.with_suffix(".part")
        part.write_text(str(step))
        part.rename(checkpoint)
    time.sleep(pause)
assert recorder.close("FINISHED", 60)
"""


def start(store_uri: str, run_id: str, folder: Path, pause_s: float) -> subprocess.Popen[str]:
    arguments = [store_uri, run_id, str(folder), str(STEPS), str(CHECKPOINT_EVERY), str(pause_s)]
    process = subprocess.Popen([sys.executable, "-c", TRAINING, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL


def assert_every_point_once(store: Store, run_id: str) -> None:
    client = open_client(store.uri)
    for metric, expected in (("train/loss", range(1, STEPS + 1)), ("val/iou", range(10, STEPS + 1, 10))):
        steps = [point.step for point in client.get_metric_history(run_id, metric)]
        assert steps == list(expected), metric
    # A value that differs between attempts: still one point per step.
    assert len(client.get_metric_history(run_id, "perf/time")) == STEPS
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path}/mlruns.db", "kill")


def test_killed_twice_while_recording(store: Store, tmp_path: Path) -> None:
    run_id = str(open_client(store.uri).create_run(store.experiment_id).info.run_id)
    generator = random.Random(0)
    for target in (0.3, 0.6):
        process = start(store.uri, run_id, tmp_path, pause_s=0.02)
        checkpoint = tmp_path / "checkpoint"
        deadline = time.monotonic() + 120
        while not checkpoint.exists() or int(checkpoint.read_text()) < target * STEPS:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 0.3))
        kill(process)
        assert int(checkpoint.read_text()) < STEPS
    assert start(store.uri, run_id, tmp_path, pause_s=0.0).wait(timeout=120) == 0
    assert_every_point_once(store, run_id)


def test_killed_while_the_store_was_away(store: Store, tmp_path: Path) -> None:
    run_id = str(open_client(store.uri).create_run(store.experiment_id).info.run_id)
    # Nothing listens on port 9: the first attempt can only spool.
    process = start("http://127.0.0.1:9", run_id, tmp_path, pause_s=0.005)
    checkpoint = tmp_path / "checkpoint"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() or int(checkpoint.read_text()) < STEPS // 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill(process)
    assert (tmp_path / "spool" / f"{run_id}.jsonl").stat().st_size > 0
    assert start(store.uri, run_id, tmp_path, pause_s=0.0).wait(timeout=120) == 0
    assert_every_point_once(store, run_id)
