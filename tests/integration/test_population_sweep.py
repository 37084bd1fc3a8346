"""A population of real trainings, killed at random moments, makes the decisions of the one that was left alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sensorlab.engine.checkpoint import CheckpointStore
from sensorlab.runs.client import open_client
from sensorlab.runs.tags import FORKED_TAG, GENERATION_TAG, MEMBER_TAG

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
PATHS = [str(TESTS), str(TESTS / "unit" / "cluster"), *filter(None, [os.environ.get("PYTHONPATH")])]


def start(root: Path, mode: str, options: dict) -> subprocess.Popen:
    root.mkdir(exist_ok=True)
    command = [sys.executable, str(HERE / "population_main.py"), str(root), mode, json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}
    with (root / "log.txt").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def trials(root: Path) -> list[dict]:
    try:
        return json.loads((root / "sweeps" / "s" / "ledger.json").read_text())["trials"]
    except (OSError, ValueError):
        return []


def comparable(root: Path) -> list[tuple]:
    """What a trial was and became, by its place in the search; donors by theirs; weights by their bytes."""
    found = trials(root)
    places = {trial["trial_id"]: trial["position"] for trial in found}
    rows = []
    for trial in sorted(found, key=lambda trial: trial["position"]):
        values = {key: value for key, value in trial["values"].items() if key != "train.fork.checkpoint"}
        latest = CheckpointStore(Path(trial["run_dir"]) / "checkpoints").latest()
        manifest = json.loads((latest.path / "MANIFEST.json").read_text())
        weights = manifest["files"]["model.safetensors"]["sha256"]
        donor = places.get(trial["forked_from"])
        rows.append((trial["position"], values, donor, trial["state"], trial["last_objective"], latest.step, weights))
    return rows


def end_of(process: subprocess.Popen, root: Path, seconds: float = 400) -> None:
    assert process.wait(timeout=seconds) == 0, (root / "log.txt").read_text()[-3000:]


def kill_at_random(root: Path, options: dict, kills: int) -> int:
    """Starts and kills the driver ``kills`` times, then lets it finish. Returns how many were killed at work."""
    draw, at_work = random.Random(1), 0
    for attempt in range(kills):
        process = start(root, "resume" if attempt else "new", options)
        seen, deadline = len(trials(root)), time.monotonic() + 200
        while process.poll() is None and len(trials(root)) == seen and time.monotonic() < deadline:
            time.sleep(0.05)  # until it starts a trial of its own
        time.sleep(draw.uniform(0, 3))
        at_work += process.poll() is None
        process.kill()
        process.wait(timeout=60)
    end_of(start(root, "resume", options), root)
    return at_work


@pytest.mark.parametrize("algorithm", ["pbt", "pb2"])
def test_killed_drivers_change_nothing(tmp_path, algorithm):
    options = {"sweep": {"algorithm": algorithm}, "epochs": 4, "program": {"step_s": 0.08}}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    end_of(start(alone, "new", options), alone)
    assert kill_at_random(killed, options, 3) >= 2
    expected = comparable(alone)
    assert [row[0] for row in expected] == list(range(12))
    assert any(row[2] is not None and row[2] % 3 != row[0] % 3 for row in expected), "nobody was replaced"
    assert comparable(killed) == expected

    outcomes = [json.loads((root / "sweeps" / "s" / "outcome.json").read_text()) for root in (alone, killed)]
    lineages = [[(each["generation"], each["member"], each["values"]) for each in o["lineage"]] for o in outcomes]
    assert lineages[0] == lineages[1]
    check_runs(killed)


def check_runs(root: Path) -> None:
    """Every trial's run is finished and says whom it descends from."""
    client = open_client(f"sqlite:///{root}/mlruns.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = {run.info.run_id: run for run in client.search_runs(experiments)}
    known = trials(root)
    for trial in known:
        run = runs[trial["run_id"]]
        assert run.info.status == "FINISHED"
        donor = next((other["run_id"] for other in known if other["trial_id"] == trial["forked_from"]), None)
        assert run.data.tags.get(FORKED_TAG) == donor
        assert run.data.tags[GENERATION_TAG] == str(trial["position"] // 3)
        assert run.data.tags[MEMBER_TAG] == str(trial["position"] % 3)
        assert {"optim.lr", "optim.weight_decay"} <= run.data.params.keys()
        assert not any(key.startswith("train.") for key in run.data.params)
    assert all(run.info.status != "RUNNING" for run in runs.values())


def test_a_member_that_fails_goes_on_from_another_ones_checkpoint(tmp_path):
    sweep = {"algorithm": "pbt", "num_trials": 4, "seed": 2}
    options = {"sweep": sweep, "epochs": 2, "program": {"fails_below": 2e-3}}
    process = start(tmp_path, "new", options)
    assert process.wait(timeout=400) == 1, (tmp_path / "log.txt").read_text()[-3000:]  # 1: a trial failed
    found = sorted(trials(tmp_path), key=lambda trial: trial["position"])
    first, second = found[:4], found[4:]
    assert len(second) == 4
    failed = [position for position, trial in enumerate(first) if trial["state"] == "failed"]
    assert 1 <= len(failed) <= 3
    assert all("training diverged: the loss is not finite" in first[position]["reason"] for position in failed)
    best = min((trial for trial in first if trial["state"] == "done"), key=lambda trial: trial["last_objective"])
    for position in failed:
        assert second[position]["forked_from"] == best["trial_id"]
        assert second[position]["values"]["optim.lr"] != first[position]["values"]["optim.lr"]
    alive = next(position for position in range(4) if position not in failed)
    assert second[alive]["forked_from"] == first[alive]["trial_id"]
