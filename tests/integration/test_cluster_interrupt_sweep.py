"""Ctrl-C and SIGTERM before the first report of a sweep: it ends within seconds, and leaves no process and no open run.

Signals go where a terminal sends them: to the program and to everything that it has started in the foreground.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sensorlab.cluster.files import read_json
from sensorlab.cluster.lease import DRIVER, TRAINING, hold
from sensorlab.runs.client import open_client

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).resolve().parent
TOYS = HERE.parent / "unit" / "cluster"
SCRIPT = HERE.parents[1] / "experiments" / "tune_bev.py"
MARK = "SENSORLAB_TEST_MARK"
PATIENCE_S = 30.0  # of a machine with many other things to do; 2 s of it are Ray's, 1.5 s the interpreter's

PREPARING = """
name: tiny
task: {name: bev_segmentation}
data:
  path: world
  prepare: {source: synthetic, scenes: 30, keyframes: 20, sweeps: 3}
  global_batch: 1
train: {duration: 1 epoch}
sweep: {num_trials: 2, space: {optim.lr: {choice: [1e-3, 1e-4]}}}
"""


class Program:
    """A program in a session of its own, and all processes that come of it."""

    def __init__(self, folder: Path, *command: str) -> None:
        self._mark = uuid.uuid4().hex
        self._log = folder / "log"
        environment = {**os.environ, "PYTHONPATH": str(TOYS), MARK: self._mark}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def names(self) -> list[str]:
        """Command lines of its processes that still live."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.printed[-3000:]
            assert time.monotonic() < deadline, self.printed[-3000:]
            time.sleep(0.05)

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def ended(self) -> int:
        """Its exit code, when nothing is left of it."""
        code = self.process.wait(timeout=PATIENCE_S)
        deadline = time.monotonic() + 5
        while self.names() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.names() == []
        assert "Traceback" not in self.printed
        return code

    def kill(self) -> None:
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark:
                    process.kill()
            except psutil.Error:
                continue


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def begin(*arguments: object) -> Program:
        folder, *command = arguments
        started.append(Program(Path(str(folder)), *map(str, command)))
        return started[-1]

    yield begin
    for program in started:
        program.kill()
        program.process.wait()


def trial_has(root: Path, file: str) -> Callable[[Program], bool]:
    return lambda program: any(root.glob(f"sweeps/s/trials/*/{file}"))


def runs_actor(name: str) -> Callable[[Program], bool]:
    return lambda program: any(line.startswith(f"ray::{name}") for line in program.names())


@pytest.mark.parametrize(
    ("moment", "workers", "signals", "codes"),
    [
        ("a trial is placed", 1, [signal.SIGINT], {130}),
        ("its only worker trains", 1, [signal.SIGINT, signal.SIGINT], {130}),
        ("its only worker trains", 1, [signal.SIGTERM], {143, 1}),
        ("its group is asked for", 2, [signal.SIGINT], {130}),
        ("its group starts", 2, [signal.SIGINT], {130}),
        ("its group trains", 2, [signal.SIGINT], {130}),
        ("its group starts", 2, [signal.SIGTERM], {143, 1}),
    ],
)
def test_before_the_first_report_of_a_trial(start, tmp_path, moment, workers, signals, codes):
    options = {"workers": workers, "program": {"epoch_s": 1000}}
    program = start(tmp_path, HERE / "toy_sweep_main.py", tmp_path, "s", "new", json.dumps(options))
    conditions = {
        "a trial is placed": trial_has(tmp_path, "trial.json"),
        "its only worker trains": trial_has(tmp_path, "attempts.txt"),
        "its group is asked for": runs_actor("TrainController"),
        "its group starts": runs_actor("RayTrainWorker"),
        "its group trains": trial_has(tmp_path, "attempts.txt"),
    }
    program.wait_until(lambda: conditions[moment](program))
    for number in signals:
        program.send(number)
        time.sleep(0.5)
    assert program.ended() in codes
    directory = tmp_path / "sweeps" / "s"
    assert f"Continue with: python experiments/tune_bev.py --resume {directory}" in program.printed
    client = open_client(f"sqlite:///{tmp_path}/mlruns.db")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert {run.info.run_name: run.info.status for run in runs} == {"s": "KILLED", "trial 000": "KILLED"}
    (trial,) = (read_json(directory / "ledger.json") or {})["trials"]
    assert trial["state"] == "interrupted"
    for folder, lease in ((directory, DRIVER), (Path(trial["run_dir"]), TRAINING)):
        with hold(folder, lease):  # free at once
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_the_dataset_is_made(start, tmp_path, number):
    (tmp_path / "tiny.yaml").write_text(PREPARING)
    program = start(tmp_path, SCRIPT, "--config", "tiny.yaml")
    program.wait_until(lambda: "writing" in program.printed or any(tmp_path.glob("outputs/roots/*/*")))
    program.send(number)
    assert program.ended() == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert not list(tmp_path.glob("outputs/sweeps/*")), "nothing has begun"
