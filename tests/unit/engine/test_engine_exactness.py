"""N straight steps equal k steps + SIGKILL + resume, bit for bit, with everything on: weights, optimiser, average,
metrics and log, on one worker and on two."""

from __future__ import annotations

import sys

import pytest
from exact_runs import LAST_STEPS, STEPS, experiment, global_batches, witnessed
from kill_child import KILLED, in_child, in_children
from run_states import assert_equal, final_state

from toy_images import write_splits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a server that has imported torch")

# Steps after which the run is killed: in the middle of each epoch, at its last step and at the first of the next.
MOMENTS = [0, 1, 3, LAST_STEPS[0], LAST_STEPS[0] + 1, 9, LAST_STEPS[1], LAST_STEPS[1] + 1, STEPS - 1, STEPS]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    dataset = tmp_path_factory.mktemp("dataset")
    write_splits(dataset)
    return experiment(dataset)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, config):
    run_dir = tmp_path_factory.mktemp("straight")
    assert in_child(config, run_dir) == 0
    return run_dir


@pytest.fixture(scope="module")
def straight_of_two(tmp_path_factory, config):
    run_dir = tmp_path_factory.mktemp("two") / "straight"
    assert in_children(config, run_dir) == [0, 0]
    return run_dir


def fault_after(steps: int) -> tuple[str, int]:
    return ("after a step, before its record", steps) if steps else ("before the forward pass", 1)


def test_everything_is_on(straight):
    state, log = final_state(straight)
    assert state["cursor"] == {"epoch": 3, "batch": 0, "sample": 0, "step": STEPS}
    assert "not improved" in state["stop_reason"]
    assert 1 <= state["finite"]["skipped"] < STEPS / 2
    assert state["ema"]["updates"] == STEPS - state["finite"]["skipped"]
    assert [line["step"] for line in log if "train/loss" in line] == [3, 6, 9, 10, 12, 14]
    assert [line["step"] for line in log if "val/loss" in line] == [4, 6, 8, 10, 12, 14]
    norms = [line["train/grad_norm"] for line in log if "train/loss" in line]
    assert any(norm > 0.5 for norm in norms)  # clipped
    batches = global_batches(straight)
    assert len(batches) == 3 * 7
    assert len({row for rows in batches.values() for row in rows}) < 30  # drawn with replacement


@pytest.mark.parametrize("steps", MOMENTS)
def test_killed_and_resumed_equals_straight(straight, config, tmp_path, steps):
    assert in_child(config, tmp_path, *fault_after(steps)) == KILLED
    assert in_child(config, tmp_path) == 0
    assert_equal(final_state(tmp_path), final_state(straight))
    assert global_batches(tmp_path) == global_batches(straight)


@pytest.mark.parametrize("steps", [5, 9])
def test_evaluating_the_model_itself_leaves_no_trace(config, tmp_path, steps):
    """Without an average, evaluations inside of an epoch switch the mode of a model of which parts are frozen."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"ema": None})})
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert in_child(config, straight) == 0
    assert in_child(config, resumed, *fault_after(steps)) == KILLED  # goes on right after an evaluation
    assert in_child(config, resumed) == 0
    assert_equal(final_state(resumed), final_state(straight))


@pytest.mark.parametrize(("steps", "ranks"), [(0, {1}), (1, {0}), (6, {1}), (7, {0, 1}), (9, {0}), (13, {0, 1})])
def test_two_workers_killed_and_resumed_equal_straight(straight_of_two, config, tmp_path, steps, ranks):
    run_dir = tmp_path / "run"
    codes = in_children(config, run_dir, *fault_after(steps), ranks=ranks)
    assert all(codes)
    assert KILLED in [codes[rank] for rank in ranks]
    assert in_children(config, run_dir) == [0, 0]
    assert_equal(final_state(run_dir), final_state(straight_of_two))
    assert global_batches(run_dir) == global_batches(straight_of_two)


def test_two_workers_read_the_batches_of_one(straight_of_two):
    batches = global_batches(straight_of_two)
    assert len(batches) == 3 * 7
    assert all(len(rows) == 4 for rows in batches.values())
    assert [witnessed(straight_of_two, rank)[-1][0] for rank in (0, 1)] == ["saved", "read"]
