"""One process at a time in a run's directory; the other process is a real one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_program import ToyProgram

from sensorlab.cluster import lease as leases
from sensorlab.cluster.lease import DRIVER, TRAINING, LeaseGuard, hold
from sensorlab.cluster.single import RunPlan, run_single
from sensorlab.cluster.start import Cluster
from sensorlab.cluster.sweep import SweepPlan, run_sweep
from sensorlab.cluster.sweep_config import load_sweep
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from

HOLDER = """
import sys, time
from pathlib import Path
from sensorlab.cluster.lease import DRIVER, hold
with hold(Path(sys.argv[1]), DRIVER):
    print("held", flush=True)
    sys.stdin.readline()
"""
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lease of ``tmp_path`` until it reads a line."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], **PIPES)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path, holder):
    with pytest.raises(UserError, match=rf"{tmp_path} is in use by process {holder.pid} on ") as caught:
        hold(tmp_path, DRIVER).__enter__()
    assert "End that process, or wait until it is done" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [DRIVER], "the refused process left something behind"


def test_who_waits_gets_it_when_the_holder_ends(tmp_path, holder):
    holder.stdin.write("end\n")
    holder.stdin.flush()
    with hold(tmp_path, DRIVER, patience_s=30):
        assert json.loads((tmp_path / DRIVER).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / DRIVER).exists()
    started = time.monotonic()
    with hold(tmp_path, DRIVER):
        assert time.monotonic() - started < 5


def test_a_process_id_that_was_given_again_is_another_process(tmp_path, holder):
    path = tmp_path / DRIVER
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": 1.0}))
    with hold(tmp_path, DRIVER):
        pass


def test_a_second_driver_of_a_run_or_a_sweep_is_refused_before_anything_starts(tmp_path):
    tree = {"name": "toy", "task": {"name": "bev_segmentation"}, "data": {"path": "d"}}
    config = experiment_from(tree | {"train": {"duration": "1 epoch"}})
    sweep = load_sweep({"space": {"optim.lr": {"choice": [1e-3, 1e-2]}}, "algorithm": "grid", "scheduler": "none"})
    here = Cluster("", True, ({"CPU": 4.0},))
    run = RunPlan(tmp_path / "runs" / "r", config, "d", None)
    plan = SweepPlan("s", tmp_path, config, sweep, "d", None)
    for directory, second in (
        (run.run_dir, lambda: run_single(run, here, ToyProgram())),
        (plan.directory, lambda: run_sweep(plan, here, ToyProgram())),
    ):
        directory.mkdir(parents=True)
        other = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory)], **PIPES)
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"in use by process {other.pid} on "):
                second()
        finally:
            other.kill()
            other.wait()


def elsewhere(path: Path) -> None:
    """Make the lease one of a process on another host."""
    path.write_text(json.dumps({"token": "t", "host": "far", "where": "far", "pid": os.getpid(), "started": 0.0}))


def test_a_lease_of_another_host_is_free_when_it_is_not_renewed(tmp_path):
    path = tmp_path / DRIVER
    elsewhere(path)
    with pytest.raises(UserError, match="on far"):
        hold(tmp_path, DRIVER).__enter__()
    past = time.time() - leases.STALE_S - 5
    os.utime(path, (past, past))
    with hold(tmp_path, DRIVER):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_holder_renews_its_lease_and_notices_that_it_has_lost_it(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    path = tmp_path / TRAINING
    with hold(tmp_path, TRAINING) as lease:
        os.utime(path, (1.0, 1.0))
        wait_until(lambda: path.stat().st_mtime > 1.0)
        guard = LeaseGuard(lease)
        guard.on_step_end(None, None)
        elsewhere(path)
        wait_until(lambda: lease.lost)
        for hook in (lambda: guard.on_step_end(None, None), lambda: guard.on_phase(None, "checkpoint", 1)):
            with pytest.raises(RuntimeError, match="another process has taken over"):
                hook()
    assert path.exists(), "the lease of the new holder was removed"


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        hold(tmp_path / "file", DRIVER).__enter__()


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
