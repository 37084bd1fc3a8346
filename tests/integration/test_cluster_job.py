"""``ray job submit`` to a head that was started with a token, as the documentation says."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

PROBE = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))
from sensorlab.cluster.start import connect, disconnect, output_root
import sensorlab, ray
cluster = connect()
assert not cluster.local
@ray.remote(num_cpus=0.1)
def look():
    import os, platform, sensorlab
    return sensorlab.__file__, platform.system(), os.environ["RAY_ADDRESS"]
print("DRIVER", sensorlab.__file__)
print("WORKER", *ray.get(look.remote(), timeout=100))
print("OUTPUT", output_root("outputs"))
disconnect()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Head:
    """A Ray head of its own: token, ports, folder, home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.dashboard = free_port(), free_port()
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "wrong").write_text(secrets.token_hex(32))
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))
        }
        self.environment |= {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        (folder / "home").mkdir()
        command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "2"]
        command += ["--port", str(self.port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard)]
        # The agent starts the jobs; its default port may be that of another head on this machine.
        command += ["--dashboard-agent-listen-port", str(free_port()), "--temp-dir", str(folder / "ray")]
        with (folder / "head.log").open("w") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "head.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", self.dashboard), timeout=1).close()
                return
            except OSError:
                time.sleep(0.5)
        raise TimeoutError((self.folder / "head.log").read_text())

    def submit(self, working_dir: Path, *entrypoint: str, **environment: str) -> subprocess.CompletedProcess:
        command = [str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{self.dashboard}"]
        command += ["--working-dir", ".", "--", "python", *entrypoint]
        merged = self.environment | environment
        deadline = time.monotonic() + 90
        while True:
            done = subprocess.run(
                command, cwd=working_dir, env=merged, capture_output=True, text=True, timeout=600, check=False
            )
            # The head answers before the agent that starts jobs is up.
            if "No available agent" not in done.stderr + done.stdout or time.monotonic() > deadline:
                return done
            time.sleep(2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)  # ends this head only; `ray stop` would end every one of the user
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="module")
def head():
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: Ray puts sockets below it
    started = Head(folder)
    yield started
    started.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What a fresh clone holds, as far as a job needs it."""
    root = tmp_path_factory.mktemp("clone")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("platform", "experiments"):
        shutil.copytree(ROOT / name, root / name, ignore=skip)
    (root / "experiments" / "probe.py").write_text(PROBE)
    return root


def test_the_package_reaches_the_workers_of_a_job(head, clone):
    done = head.submit(clone, "experiments/probe.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    said = {
        line.split()[0]: line.split()[1:]
        for line in done.stdout.splitlines()
        if line.startswith(("DRIVER", "WORKER", "OUTPUT"))
    }
    # Neither comes from an installation: the driver's is the job's copy, the workers' the one that the driver shipped.
    assert "working_dir_files" in said["DRIVER"][0]
    assert "py_modules_files" in said["WORKER"][0]
    assert said["WORKER"][1] == "Linux"
    assert said["WORKER"][2].endswith(f":{head.port}")
    assert said["OUTPUT"] == [str(head.folder / "home" / "sensorlab-outputs")]


def test_the_users_command_runs_a_sweep(head, clone):
    overrides = ["data.prepare.scenes=2", "data.prepare.keyframes=3", "data.global_batch=2", "train.duration=1 epoch"]
    overrides += ["sweep.num_trials=2", "sweep.space.task.model.encoder=null", "sweep.space.task.image.size=null"]
    done = head.submit(clone, "experiments/tune_bev.py", *overrides)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    outcome = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"sweep"'))
    assert outcome["done"] == 2
    assert outcome["failed"] == 0
    home = head.folder / "home" / "sensorlab-outputs"
    assert outcome["directory"].startswith(str(home))
    assert Path(outcome["best"]["checkpoint"]).is_dir()
    assert (home / "mlruns.db").is_file()


def test_a_wrong_token_gives_one_clear_message(head, clone):
    environment = head.environment | {
        "RAY_AUTH_TOKEN_PATH": str(head.folder / "wrong"),
        "RAY_ADDRESS": f"127.0.0.1:{head.port}",
    }
    command = [sys.executable, "experiments/tune_bev.py", "--output", str(head.folder / "out")]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: the Ray cluster at 127.0.0.1:{head.port} refused the authentication token")


def test_an_address_where_nothing_answers_is_named(head, clone):
    environment = head.environment | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    command = [sys.executable, "experiments/train_bev.py", "--output", str(head.folder / "out")]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "does not answer" in done.stderr
