"""Every command of the README runs.

Commands that take minutes run with overrides that make them small; what is written in the README is otherwise what is
executed. ``ray job submit`` is run by test_cluster_job.py, ``compare-losses`` by test_engine_compare.py, the make
targets by whoever runs the tests.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TINY = [
    "train.duration=1 epoch",
    "data.prepare.scenes=4",
    "data.prepare.keyframes=3",
    "data.prepare.image_height=112",
    "task.image.size=[64,128]",
    "resources.cpus_per_worker=0.5",
]
TINY_SWEEP = [*TINY, "sweep.num_trials=2", "sweep.space.task.image.size=null", "sweep.space.task.model.encoder=null"]

# Command as the README has it -> arguments that make it small; None: not run here (see above).
COMMANDS: dict[str, list[str] | None] = {
    "make tune-bev": None,
    "make test": None,
    "python experiments/tune_bev.py": TINY_SWEEP,
    "python experiments/tune_bev.py sweep.num_trials=4 train.duration='3 epochs'": [*TINY_SWEEP, "sweep.num_trials=1"],
    "python experiments/train_bev.py": TINY,
    "python experiments/tune_bev.py --resume latest": [],
    "python experiments/train_bev.py --resume latest train.extend.duration='5 epochs'": [],
    "python experiments/train_bev.py --debug": [],
    "python experiments/train_bev.py --overfit 4": ["--debug", "optim.lr=2e-3"],
    "python experiments/train_bev.py --find-lr": ["--debug", "--lr-steps", "30"],
    "python experiments/train_bev.py --validate latest": [],
    "python tests/golden/test_experiment_losses.py": None,
    "sensorlab report latest --out report.html": [],
    "sensorlab runs list": [],
    "sensorlab runs best": [],
    "sensorlab replay RUN_ID": None,
    "sensorlab selftest resume --workers 2": ["--kills", "1"],
    "python experiments/baseline_bev.py": [],
    "mlflow ui --backend-store-uri sqlite:///mlruns.db": [],
    "sensorlab data synth --out world": [
        "--scenes",
        "2",
        "--val-scenes",
        "1",
        "--keyframes",
        "3",
        "--lidar-azimuths",
        "180",
    ],
    "sensorlab data prepare nuscenes --dataroot /data/nuscenes --version v1.0-mini --out datasets/mini --sweeps 3 "
    "--image-height 450": [],
    "sensorlab data check datasets/mini": [],
    "sensorlab data show datasets/mini --split val --index 3 --out sample.png": ["--index", "0"],
    "python experiments/train_bev.py data.path=$PWD/datasets/mini": [*TINY, "data.global_batch=2"],
    "sensorlab selftest resume": ["--kills", "1"],
    "sensorlab compare-losses A B": None,
    "sensorlab config": [],
    "sensorlab bench --list": [],
    ". .venv/bin/activate": None,
    "ray up": None,
    "export RAY_AUTH_MODE=token": None,
    "ray job submit --address http://HEAD:8265 --working-dir . -- python experiments/tune_bev.py": None,
}


def commands_of_the_readme() -> list[str]:
    """Commands in indented blocks and in backticks, without their comments, in order."""
    text = (ROOT / "README.md").read_text()
    programs = r"(?:make|python|sensorlab|mlflow|ray|export|\.)"
    blocks = re.findall(rf"^    ({programs} [^\n]*?)(?:\s+#[^\n]*)?$", text, flags=re.MULTILINE)
    inline = re.findall(rf"`({programs} [^`\n]+)`", text)
    return list(dict.fromkeys([*blocks, *inline]))


def test_every_command_is_known_here():
    assert set(commands_of_the_readme()) == set(COMMANDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory that looks like a checkout: the scripts and what they need."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("experiments", "platform"):
        (place / name).symlink_to(ROOT / name)
    return place


def run(command: str, more: list[str], place: Path) -> str:
    arguments = [part.replace("$PWD", str(place)) for part in shlex.split(command)]
    arguments = [str(place / "world") if part == "/data/nuscenes" else part for part in arguments]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    finished = subprocess.run(
        [*arguments, *more], cwd=place, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert finished.returncode == 0, f"{command}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}"
    return finished.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_the_commands_run(place):
    for command, more in COMMANDS.items():
        if more is not None and not command.startswith("mlflow"):
            output = run(command, more, place)
            if "tune_bev" in command:
                assert "rank" in output
                assert "best checkpoint" in output
    assert (place / "sample.png").stat().st_size > 10_000
    assert (place / "mlruns.db").is_file()
    _page_opens("mlflow ui --backend-store-uri sqlite:///mlruns.db", place)


def _page_opens(command: str, place: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    arguments = [*shlex.split(command), "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        arguments,
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    assert "MLflow" in answer.read().decode()
                    return
            except OSError:
                assert time.monotonic() < deadline, "the MLflow page did not open"
                assert server.poll() is None, "mlflow ui ended"
                time.sleep(1)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
