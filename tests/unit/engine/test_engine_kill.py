"""A run killed with SIGKILL at any point and resumed equals the run that was never killed, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from exact_runs import experiment, witnessed
from kill_child import FAULTS, KILLED, in_child
from run_states import assert_equal, final_state

from sensorlab.engine.checkpoint import CheckpointStore
from toy_images import write_splits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a server that has imported torch")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    dataset = tmp_path_factory.mktemp("dataset")
    write_splits(dataset)
    return experiment(dataset)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, config):
    run_dir = tmp_path_factory.mktemp("straight")
    assert in_child(config, run_dir) == 0
    return final_state(run_dir)


def assert_equals_straight(run_dir: Path, straight) -> None:
    """Same state, same log; every attempt went on from the newest complete checkpoint; nothing is left over."""
    assert_equal(final_state(run_dir), straight)
    saved = 0
    for what, step in witnessed(run_dir):
        if what == "read":
            continue
        if what == "started":
            assert step >= saved, "an attempt repeated steps that were in a checkpoint"
        saved = max(saved, step)
    kept = {info.path for info in CheckpointStore(run_dir / "checkpoints").all()}
    assert set((run_dir / "checkpoints").iterdir()) == kept
    assert len(kept) <= 2  # the latest and the best


@pytest.mark.parametrize("call", [1, pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_killed_at_a_named_place(straight, config, tmp_path, fault, call):
    assert in_child(config, tmp_path, fault, call) == KILLED
    assert in_child(config, tmp_path) == 0
    assert_equals_straight(tmp_path, straight)


def test_killed_before_file_operations_all_over_the_run(straight, config, tmp_path):
    operations = _kill_at_each(straight, config, tmp_path, stride=29)
    assert operations > 150  # the hook sees the run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_before_every_file_operation(straight, config, tmp_path):
    _kill_at_each(straight, config, tmp_path, stride=1)


def _kill_at_each(straight, config, tmp_path: Path, stride: int) -> int:
    """Runs killed before file operation 1, 1 + stride, ... until one runs through; the number of operations."""
    for operation in range(1, 10_000, stride):
        run_dir = tmp_path / f"{operation}"
        exit_code = in_child(config, run_dir, "file operation", operation)
        if exit_code == 0:
            return operation
        assert exit_code == KILLED
        assert in_child(config, run_dir) == 0
        assert_equals_straight(run_dir, straight)
    raise AssertionError("the run never ends")


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(straight, config, tmp_path, seed):
    generator = np.random.default_rng(seed)
    names = list(FAULTS)
    for _ in range(6):
        fault = names[generator.integers(len(names))]
        assert in_child(config, tmp_path, fault, int(generator.integers(1, 4))) in (KILLED, 0), fault
    assert in_child(config, tmp_path) == 0
    assert_equals_straight(tmp_path, straight)
