"""Ctrl-C at any moment of a run in the driver: exit code 130 within seconds, no traceback, nothing left open."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sensorlab.cluster.files import PROGRESS, read_json
from sensorlab.cluster.lease import DRIVER, TRAINING, hold
from sensorlab.errors import exit_on_user_error
from sensorlab.runs.client import open_client

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "train_bev.py"

TINY = """
name: tiny
task:
  name: bev_segmentation
  grid: {x: [-20, 20], y: [-5, 5], z: [-20, 20], cells: [40, 2, 40]}
  model: {encoder: res18, latent_dim: 16, neck_width: 32, decoder_width: 16}
  image: {size: [48, 96]}
data:
  path: world
  prepare: {source: synthetic, scenes: 2, keyframes: 3, sweeps: 1, image_height: 90}
  global_batch: 1
train: {duration: 1000 epochs, log_every: 1 step}
checkpoint: {every: 1 epoch}
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)


def interrupt(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the process printed until it ended."""
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    try:
        code = process.wait(timeout=120)
    finally:
        process.kill()
    printed = log.read_text()
    assert code == 130, printed[-3000:]
    assert "Traceback" not in printed
    assert time.monotonic() - started < 30, "slow even for a busy machine"
    return printed


def test_while_the_program_imports(tmp_path):
    process = start(tmp_path, "--help")
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "libtorch" in maps.read_text(), process, tmp_path / "log")  # seconds of imports are to come
    assert interrupt(process, tmp_path / "log") == "interrupted\n"


def test_an_interrupt_that_reaches_the_entry_point_is_no_traceback(capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_on_user_error(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("interrupt")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def is_in(phase: str) -> Callable[[Path], bool]:
    return lambda run: ((read_json(run / PROGRESS) or {}).get("phase") or {}).get("name") == phase


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "run begins": lambda run: True,
    "group starts": lambda run: (run / "ray_train").exists(),  # until it trains: 10 s
    "training": is_in("train"),
    "evaluation": is_in("val"),
    "checkpoint": lambda run: any(run.glob("checkpoints/.tmp-*")),
}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("moment", "resources"),
    [(moment, ()) for moment in MOMENTS if moment != "group starts"]
    + [
        (moment, ("resources.num_workers=2", "resources.cpus_per_worker=0.5", "data.global_batch=2"))
        for moment in ("group starts", "training")
    ],
)
def test_in_the_middle_of_a_run(experiment, moment, resources):
    root, log = experiment / "outputs", experiment / "log"
    before = set(root.glob("runs/*"))
    process = start(experiment, "--config", "tiny.yaml", "--output", str(root), *resources)

    def reached() -> bool:
        return any(MOMENTS[moment](run) for run in set(root.glob("runs/*")) - before if (run / "run.json").exists())

    wait_until(reached, process, log)
    printed = interrupt(process, log)
    (run,) = set(root.glob("runs/*")) - before
    assert f"not finished; continue with: python {SCRIPT} --resume {run}" in printed
    client = open_client(f"sqlite:///{experiment}/mlruns.db")
    experiments = [found.experiment_id for found in client.search_experiments()]
    assert {found.info.status for found in client.search_runs(experiments)} == {"KILLED"}
    for lease in (DRIVER, TRAINING):  # free at once, although the workers of a group had no time to say so
        with hold(run, lease):
            pass
