"""``sensorlab report`` of a real sweep while its driver lives, after kill -9, and after Ctrl-C."""

from __future__ import annotations

import ast
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sensorlab.cluster.files import read_json

HERE = Path(__file__).resolve().parent
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent / "unit" / "cluster")}  # workers find the toy's module
SECTION = {"scheduler": "none", "num_trials": 3}


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start(root: Path, resume: bool, processes: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    options = json.dumps({"sweep": SECTION, "program": {"epoch_s": 1.0}})
    command = [sys.executable, str(HERE / "toy_sweep_main.py"), str(root), "toy", "resume" if resume else "-", options]
    with (root / "log").open("ab") as log:
        processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT))
    return processes[-1]


def trials(root: Path) -> list[dict[str, Any]]:
    return (read_json(root / "sweeps" / "toy" / "ledger.json") or {}).get("trials", [])


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], root: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, (root / "log").read_text()[-3000:]
        assert time.monotonic() < deadline, (root / "log").read_text()[-3000:]
        time.sleep(0.05)


def report(root: Path) -> tuple[str, list[str]]:
    """(text of the page, what was written below the sweep's directory); the report itself lies there too."""
    directory = root / "sweeps" / "toy"
    out = directory / "report.html"
    command = [sys.executable, str(HERE / "watched_report.py"), str(directory), "toy", "--output", str(root)]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", out.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(page).split()), ast.literal_eval(done.stdout.rpartition("touched: ")[2].strip())


WRITTEN = ["open .report.html.part", "os.rename .report.html.part", "os.rename report.html"]


def test_alive_killed_resumed_and_interrupted(tmp_path, processes):
    driver = start(tmp_path, False, processes)
    wait_until(lambda: len(trials(tmp_path)) == 1 and trials(tmp_path)[0]["epoch"] >= 1, driver, tmp_path)
    page, written = report(tmp_path)
    assert driver.poll() is None
    assert "RUNNING The sweep is still running." in page
    assert re.search(r"\d of 3 trials have ended, 1 running \(#\d\), \d not started\.", page)
    assert written == WRITTEN
    assert "could not be read" not in page  # the store is used by the sweep at the same time

    wait_until(lambda: any(trial["state"] == "running" for trial in trials(tmp_path)), driver, tmp_path)
    driver.kill()
    driver.wait()
    before = trials(tmp_path)
    states = [trial["state"] for trial in before]
    assert "running" in states  # what the driver left
    page, written = report(tmp_path)
    assert "KILLED The sweep's driver ended without closing the sweep" in page
    assert f"{len(states) - 1} of 3 trials have ended, 1 interrupted (#{len(states) - 1})" in page
    assert "running" not in page
    assert f"--resume {tmp_path}/sweeps/toy" in page
    assert written == WRITTEN

    driver = start(tmp_path, True, processes)
    epochs = sum(trial["epoch"] for trial in before)
    wait_until(lambda: sum(trial["epoch"] for trial in trials(tmp_path)) > epochs, driver, tmp_path)
    page, _ = report(tmp_path)
    assert "RUNNING" in page
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=120) == 130
    page, written = report(tmp_path)
    assert "INTERRUPTED The sweep was interrupted and has not come to its end." in page
    assert "running" not in page
    assert written == WRITTEN
