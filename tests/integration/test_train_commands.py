"""The commands around a training, through the script, with Ray: on the debug configuration of the laptop experiment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sensorlab.engine.compare import first_difference, losses_of, read_series

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "train_bev.py"
GOLDEN = ROOT / "tests" / "golden" / "data" / "losses" / "tune_bev.jsonl"
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def script(place: Path, *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """(last line of the output as JSON, whole output)."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == code, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else {}), done.stdout + done.stderr


@pytest.fixture(scope="module")
def debugged(place: Path) -> dict[str, Any]:
    return script(place, "--debug")[0]


def test_a_debug_run_has_the_stored_losses_and_is_not_recorded(place, debugged):
    found = losses_of(read_series(Path(debugged["directory"])))
    assert first_difference(read_series(GOLDEN), found, 1e-3) is None
    assert debugged["run_id"] is None
    assert not (place / "mlruns.db").exists()


def test_an_extended_run_equals_a_planned_one(place, debugged):
    planned = script(place, "--debug", "train.duration=2 epochs", "train.extend.duration=1 epoch")[0]
    short = script(place, "--debug", "train.duration=2 epochs")[0]
    assert short["steps"] == 4
    extended = script(place, "--resume", short["run"], "train.extend.duration=1 epoch")[0]
    assert extended["steps"] == planned["steps"] == 6
    left, right = (read_series(Path(run["directory"])) for run in (planned, extended))
    assert first_difference(left, right) is None  # the script, Ray's stream, channels-last weights: to the bit
    weights = [Path(run["last_checkpoint"]) / "model.safetensors" for run in (planned, extended)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    refused = script(place, "--resume", short["run"], "train.duration=9 epochs", code=2)[1]
    assert "train.duration: '2 epochs' -> '9 epochs'" in refused


def test_validation_repeats_the_numbers_of_the_training_on_one_worker_and_on_two(place, debugged):
    run = debugged["run"]
    in_training = {name: value for name, value in debugged["metrics"].items() if name.startswith("val/")}
    alone, output = script(place, "--validate", run, "--checkpoint", "latest")
    assert alone["metrics"] == in_training
    assert "protocol of val/iou: averaging=global" in output
    assert alone["run_id"] is None  # as the run itself
    two = ["resources.num_workers=2", "resources.cpus_per_worker=0.5"]
    both = script(place, "--validate", run, "--checkpoint", "latest", *two)[0]["metrics"]
    assert both == pytest.approx(in_training, rel=1e-5)
    directory = Path(alone["directory"])
    assert not (directory / "checkpoints").exists()
    weights = Path(debugged["last_checkpoint"]) / "model.safetensors"
    assert script(place, "--debug", "--validate", str(weights))[0]["metrics"] == in_training
    refused = script(place, "--validate", run, "task.model.latent_dim=16", code=2)[1]
    assert "holds the weights of another model than task describes" in refused


def test_a_validation_is_recorded_beside_its_run(place, debugged):
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{place / 'recorded.db'}"
    weights = Path(debugged["last_checkpoint"])
    found = script(place, "--validate", str(weights), f"tracking.uri={store}", "data.val_split=train")[0]
    recorded = MlflowClient(store).get_run(found["run_id"])
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["sensorlab.role"] == "validation"
    assert recorded.data.tags["sensorlab.weights"] == str(weights)
    assert recorded.data.tags["sensorlab.validated_run_dir"] == debugged["directory"]
    assert recorded.data.params["data.val_split"] == "train"
    assert recorded.data.metrics["val/iou"] == pytest.approx(found["metrics"]["val/iou"])


def test_overfit_passes_and_fails(place):
    learned = ["--debug", "--overfit", "2", "optim.lr=2e-3", "train.duration=100 steps", "eval.panels=0"]
    passed, output = script(place, *learned)
    assert passed["overfit"]["share"] < 0.5
    assert "passed" in output
    failed = script(place, "--debug", "--overfit", "2", "train.duration=3 steps", "optim.lr=1e-8", code=1)[1]
    assert "FAILED: below 50.0% is asked for" in failed
    assert "split 'train' has 4 samples" in script(place, "--debug", "--overfit", "5", code=2)[1]


def test_find_lr_leaves_a_curve_and_no_run(place):
    before = sorted((place / "outputs" / "runs").iterdir())
    found = script(place, "--debug", "--find-lr", "--lr-range", "1e-5", "1", "--lr-steps", "30")[0]
    directory = Path(found["directory"])
    assert 1e-4 < found["suggestion"]["steepest"] < 0.5
    assert len(json.loads((directory / "lr_finder.json").read_text())["lr"]) == 30
    assert (directory / "lr_finder.png").stat().st_size > 10_000
    assert not (directory / "checkpoints").exists()
    assert sorted((place / "outputs" / "runs").iterdir()) == before
