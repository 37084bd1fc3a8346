"""A run trained again through Ray from nothing but its record in the tracking store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sensorlab.runs.client import open_client
from sensorlab.runs.query import RunIndex

ROOT = Path(__file__).parents[2]
BASE = ROOT / "experiments" / "configs" / "tune_bev.yaml"
REPLAY = """
import argparse, sys
from sensorlab.errors import exit_on_user_error
from sensorlab.replay.commands import register
parser = argparse.ArgumentParser()
register(parser.add_subparsers())
args = parser.parse_args(["replay", *sys.argv[1:]])
sys.exit(exit_on_user_error(lambda: args.run(args)))
"""
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


def call(place: Path, *command: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """(last line of the output as JSON, whole output)."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = (sys.executable, *command)
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else {}), done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replayed")


@pytest.fixture(scope="module")
def trained(place: Path) -> dict[str, Any]:
    """A recorded run of the experiment's debug size: four steps."""
    small = yaml.safe_load(BASE.read_text())["debug"]
    (place / "small.yaml").write_text(yaml.safe_dump({"base": str(BASE), **small}))
    return call(place, str(ROOT / "experiments" / "train_bev.py"), "--config", "small.yaml")[0]


def replay(place: Path, *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    return call(place, "-c", REPLAY, *arguments, code=code)


def test_a_replay_is_bit_equal_and_a_run_of_its_own(place: Path, trained: dict[str, Any]) -> None:
    found, output = replay(place, trained["run_id"][:12], "--tolerance", "0")
    assert found["kind"] == "bit-equal"
    assert "weights at step 4 bit-equal" in found["weights"]
    assert f"replay of {trained['run_id']}" in output
    assert Path(found["directory"]).parent == Path(trained["directory"]).parent.parent / "replays"
    index = RunIndex(f"sqlite:///{place}/mlruns.db")
    repeated = index.find(found["run_id"])
    assert (repeated.role, repeated.tag("replay_of"), repeated.status) == ("replay", trained["run_id"], "FINISHED")
    assert repeated.tag("config_digest") == trained["config_digest"]
    assert index.find(trained["run_id"]).tag("replayed_by") == f"{found['run_id']}: bit-equal"


def test_the_first_steps_alone(place: Path, trained: dict[str, Any]) -> None:
    found, _ = replay(place, trained["run"], "--steps", "2")
    assert found["kind"] == "bit-equal"
    assert found["numbers"].endswith("over 2 steps")


def test_other_data_is_refused_and_a_difference_is_found(place: Path, trained: dict[str, Any]) -> None:
    client = open_client(f"sqlite:///{place}/mlruns.db")
    client.set_tag(trained["run_id"], "sensorlab.dataset", "0" * 64)
    refused = replay(place, trained["run_id"], code=2)[1]
    assert "cannot be repeated as it was (--force repeats it anyway)" in refused
    assert "the run was trained on 0000000000000000" in refused
    file = Path(trained["directory"]) / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    wrong = next(line for line in lines if line["step"] == 2 and "train/loss" in line)
    wrong["train/loss"] += 0.5
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, output = replay(place, trained["run_id"], "--force", "--steps", "3", code=1)
    assert found["kind"] == "different"
    assert found["difference"].startswith("step 2: train/loss is ")
    assert "what was not the same: data: " in output
