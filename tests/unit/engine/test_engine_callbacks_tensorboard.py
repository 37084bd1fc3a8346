"""TensorBoard files: every number once, whatever happened to the run."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from callback_runs import EPOCHS, STEPS_PER_EPOCH, Interrupted, StopAfter, StopAtCheckpoint, log_of, run

from sensorlab.engine.callbacks.tensorboard import TensorBoard
from sensorlab.errors import UserError
from sensorlab.experiment import CheckpointConfig, EvalConfig, TrainConfig

loader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_file_loader",
    reason="needs the extra sensorlab[tensorboard]",
    exc_type=ImportError,
)

LAST_STEP = EPOCHS * STEPS_PER_EPOCH


def events(run_dir) -> tuple[list[tuple[int, str, float]], list[tuple[int, str]]]:
    """(step, tag, value) of all scalars and (step, tag) of all pictures in the files, nothing purged by the reader."""
    scalars, pictures = [], []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        for event in loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    scalars.append((event.step, value.tag, value.tensor.float_val[0]))
                else:
                    pictures.append((event.step, value.tag))
    return scalars, pictures


def assert_same_as_log(run_dir) -> None:
    """Each number of ``metrics.jsonl`` is there once, and no other one; float32 is what the format stores."""
    scalars, pictures = events(run_dir)
    expected = [(step, name, float(np.float32(value))) for step, name, value in log_of(run_dir, *PREFIXES)]
    assert sorted(scalars) == sorted(expected)
    assert len(scalars) > 100
    steps = sorted({step for step, name, _ in expected if name == "val/mse"})
    assert sorted(pictures) == [(step, f"val/panel_{index}") for step in steps for index in (0, 1)]


PREFIXES = ("train/", "val/", "perf/", "system/")


def test_scalars_and_pictures_of_a_run(tmp_path):
    run(tmp_path, TensorBoard())
    assert_same_as_log(tmp_path)
    assert (LAST_STEP, "val/mse") in {(step, tag) for step, tag, _ in events(tmp_path)[0]}


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7, LAST_STEP])
def test_a_resumed_run_has_each_point_once(tmp_path, stop):
    with pytest.raises(Interrupted):
        run(tmp_path, TensorBoard(), StopAfter(stop))
    run(tmp_path, TensorBoard())
    assert_same_as_log(tmp_path)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_points_after_a_checkpoint_of_the_same_step_are_cut_and_those_before_stay(tmp_path, number):
    for _ in range(2):  # two attempts die
        with pytest.raises(Interrupted):
            run(tmp_path, TensorBoard(), StopAtCheckpoint(number))
    run(tmp_path, TensorBoard())
    assert_same_as_log(tmp_path)


def test_the_file_of_an_attempt_without_a_checkpoint_is_removed(tmp_path):
    rarely = {"checkpoint": CheckpointConfig(every="1 epoch"), "eval": EvalConfig(metric="val/mse", mode="min")}
    for stop in (7, 9):  # both after the checkpoint of step 5; the second has one file with points of its own
        with pytest.raises(Interrupted):
            run(tmp_path, TensorBoard(), StopAfter(stop), **rarely)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    run(tmp_path, TensorBoard(), **rarely)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert_same_as_log(tmp_path)


def test_a_fork_that_begins_twice_has_each_point_once(tmp_path):
    run(tmp_path / "donor", TensorBoard())
    fork = {"checkpoint": str(tmp_path / "donor" / "checkpoints" / "step-00000006")}
    train = TrainConfig.model_validate({"duration": "3 epochs", "log_every": "1 step", "fork": fork})
    with pytest.raises(Interrupted):
        run(tmp_path / "fork", TensorBoard(), StopAfter(8), train=train)  # before its first checkpoint
    run(tmp_path / "fork", TensorBoard(), train=train)
    scalars, _ = events(tmp_path / "fork")
    expected = log_of(tmp_path / "fork", *PREFIXES)
    assert sorted((step, name) for step, name, _ in scalars) == sorted((step, name) for step, name, _ in expected)
    assert min(step for step, _, _ in scalars) == 7


def test_what_was_recorded_before_it_was_off_for_a_while_stays(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, TensorBoard(), StopAfter(4))
    before = events(tmp_path)[0]
    with pytest.raises(Interrupted):
        run(tmp_path, StopAfter(8))
    run(tmp_path, TensorBoard())
    after = events(tmp_path)[0]
    assert before
    assert set(before) <= set(after)
    assert {step for step, tag, _ in after if tag == "train/loss"} >= {2, 10, 12, LAST_STEP}


def test_a_missing_package_is_a_user_error_before_anything_is_trained(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_tensorboard(name, *arguments, **keywords):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError("No module named 'tensorboard'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_tensorboard)
    with pytest.raises(UserError, match=r"pip install 'sensorlab\[tensorboard\]'"):
        TensorBoard()
