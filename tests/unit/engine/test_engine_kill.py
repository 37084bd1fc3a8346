"""A run killed with SIGKILL at any point and resumed equals the run that was never killed, bit for bit."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from kill_child import EPOCHS, FAULTS, STEPS_PER_EPOCH, in_child, witnessed
from run_states import assert_equal, final_state

from sensorlab.engine.checkpoint import CheckpointStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a server that has imported torch")

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    assert in_child(run_dir) == 0
    return final_state(run_dir)


def assert_equals_straight(run_dir: Path, straight) -> None:
    """Same state, same log; every attempt went on from the newest complete checkpoint; nothing is left over."""
    assert_equal(final_state(run_dir), straight)
    saved = 0
    for what, step in witnessed(run_dir):
        if what == "started":
            assert step >= saved, "an attempt repeated steps that were in a checkpoint"
        saved = max(saved, step)
    kept = {info.path for info in CheckpointStore(run_dir / "checkpoints").all()}
    assert set((run_dir / "checkpoints").iterdir()) == kept
    assert len(kept) <= 2  # the latest and the best


@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_killed_at_a_named_place(straight, tmp_path, fault, call):
    assert in_child(tmp_path, fault, call) == KILLED
    assert in_child(tmp_path) == 0
    assert_equals_straight(tmp_path, straight)


def test_killed_before_file_operations_all_over_the_run(straight, tmp_path):
    operations = _kill_at_each(straight, tmp_path, stride=23)
    assert operations > 150  # the hook sees the run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_before_every_file_operation(straight, tmp_path):
    _kill_at_each(straight, tmp_path, stride=1)


def _kill_at_each(straight, tmp_path: Path, stride: int) -> int:
    """Runs killed before file operation 1, 1 + stride, ... until one runs through; the number of operations."""
    for operation in range(1, 10_000, stride):
        run_dir = tmp_path / f"{operation}"
        exit_code = in_child(run_dir, "file operation", operation)
        if exit_code == 0:
            return operation
        assert exit_code == KILLED
        assert in_child(run_dir) == 0
        assert_equals_straight(run_dir, straight)
    raise AssertionError("the run never ends")


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(straight, tmp_path, seed):
    generator = np.random.default_rng(seed)
    names = list(FAULTS)
    for _ in range(6):
        fault = names[generator.integers(len(names))]
        assert in_child(tmp_path, fault, int(generator.integers(1, 4))) in (KILLED, 0), fault
    assert in_child(tmp_path) == 0
    assert_equals_straight(tmp_path, straight)


def test_the_straight_run_reached_its_end(straight):
    state, log = straight
    assert state["cursor"] == {"epoch": EPOCHS, "batch": 0, "sample": 0, "step": EPOCHS * STEPS_PER_EPOCH}
    assert [line["step"] for line in log if "train/loss" in line] == [3, 4, 6, 8, 9]
    assert [line["step"] for line in log if "val/mse" in line] == [3, 4, 6, 8, 9]
    assert all("train/lr" in line for line in log if "train/loss" in line)
