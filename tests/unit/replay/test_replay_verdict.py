from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from tracked_runs import run

from sensorlab.engine.checkpoint import CheckpointStore, load
from sensorlab.engine.compare import read_series
from sensorlab.replay.program import StopAfter
from sensorlab.replay.verdict import WeightsCheck, check_weights, compared, judge

EQUAL = WeightsCheck("the same")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    run(run_dir)
    return run_dir


def tag_of(run_dir: Path, step: int) -> tuple[str, int]:
    manifest = json.loads((run_dir / "checkpoints" / f"step-{step:08d}" / "MANIFEST.json").read_text())
    return manifest["files"]["model.safetensors"]["sha256"], step


def test_a_repetition_is_bit_equal(whole: Path, tmp_path: Path) -> None:
    run(tmp_path)
    weights = check_weights(whole, None, tmp_path)
    assert weights.text.startswith("weights at step 15 bit-equal")
    verdict = judge(*compared(read_series(whole), read_series(tmp_path), None), weights, 0.0)
    assert (verdict.kind, verdict.difference) == ("bit-equal", "")
    assert verdict.numbers.endswith("over 15 steps")
    assert verdict.is_equal


def test_the_first_steps_are_those_of_the_whole_run(whole: Path, tmp_path: Path) -> None:
    """The schedule is that of the whole budget, and what the early end adds at its last step is not compared."""
    assert run(tmp_path, StopAfter(8)).steps == 8
    expected, found = read_series(whole), read_series(tmp_path)
    assert (8, "val/mse") in found.keys() - expected.keys()
    left, right = compared(expected, found, 8)
    assert max(step for step, _ in right) == 8
    weights = check_weights(whole, None, tmp_path)
    assert weights.text.startswith("weights at step 8 bit-equal")
    assert judge(left, right, weights, 0.0).kind == "bit-equal"


def test_a_number_that_is_missing_is_a_difference(whole: Path) -> None:
    series = read_series(whole)
    less = {key: value for key, value in series.items() if key != (3, "train/loss")}
    for left, right, where in ((series, less, "first"), (less, series, "second")):
        for steps in (None, 9):
            verdict = judge(*compared(left, right, steps), EQUAL, 1.0)
            assert (verdict.kind, verdict.difference) == ("different", f"step 3: train/loss is only in the {where}")


def test_another_seed_is_different_from_the_first_step(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, seed=1)
    verdict = judge(read_series(whole), read_series(tmp_path), check_weights(whole, None, tmp_path), 1e-5)
    assert verdict.kind == "different"
    assert verdict.difference.startswith("step 1: train/squared is ")
    assert "differ by at most" in verdict.weights


def test_tolerance_is_of_numbers_and_of_weights(whole: Path) -> None:
    series = read_series(whole)
    off = {**series, (4, "train/loss"): series[4, "train/loss"] + 1e-7}
    near = judge(series, off, EQUAL, 1e-5)
    assert near.kind == "equal within the tolerance"
    assert near.difference.startswith("step 4: train/loss")
    assert judge(series, off, EQUAL, 1e-9).kind == "different"
    assert judge(series, off, EQUAL, 0.0).kind == "different"
    for largest, kind in ((1e-6, "equal within the tolerance"), (1e-3, "different"), (math.nan, "different")):
        assert judge(series, series, WeightsCheck("w", largest, "tensor x differs"), 1e-5).kind == kind


def test_weights_are_compared_by_digest_where_the_files_are_gone(whole: Path, tmp_path: Path) -> None:
    assert check_weights(None, tag_of(whole, 15), whole).text.startswith("weights at step 15 bit-equal")
    other = check_weights(None, tag_of(whole, 4), whole)
    assert other.text.startswith("weights at step 4 bit-equal")
    wrong = check_weights(None, ("0" * 64, 15), whole)
    assert "the recorded ones are not here" in wrong.text
    assert math.isnan(wrong.largest)
    unknown = check_weights(None, ("0" * 64, 99), whole)
    assert "not compared" in unknown.text
    verdict = judge(read_series(whole), read_series(whole), unknown, 0.0)
    assert verdict.kind == "numbers bit-equal (no weights were recorded to compare)"
    assert verdict.is_equal
    assert "not compared" in check_weights(None, None, whole).text
    assert "not compared" in check_weights(whole, None, tmp_path).text


def test_a_weight_that_moved_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "moved")
    store = CheckpointStore(tmp_path / "moved" / "checkpoints")
    latest = store.latest()
    state = load(latest.path)
    state["model"]["4.bias"] += 0.5
    shutil.rmtree(latest.path)
    store.save(state, step=15, metrics={})
    check = check_weights(whole, None, tmp_path / "moved")
    assert check.largest == pytest.approx(0.5)
    assert check.difference == "step 15: tensor 4.bias differs by 0.5"
