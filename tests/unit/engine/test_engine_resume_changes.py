"""What a resumed run may change, in whole trainings: the same weights, or a run that could not go on goes on."""

from __future__ import annotations

import pytest
from callback_runs import STEPS_PER_EPOCH, Interrupted, StopAfter, run
from run_states import assert_equal, final_state

from sensorlab.experiment import CheckpointConfig, EvalConfig, TrainConfig
from toy import ToyConfig

STEPS = 3 * STEPS_PER_EPOCH


def skipping(budget: int) -> dict:
    """One sample is never finite: each epoch skips the step that reads it."""
    train = TrainConfig(duration="3 epochs", nonfinite="skip", nonfinite_budget=budget)
    return {"train": train, "task": ToyConfig(poison_step=5)}


def test_a_run_that_has_used_up_its_skipped_steps_goes_on_with_more_of_them(tmp_path):
    with pytest.raises(FloatingPointError, match=r"more than train\.nonfinite_budget=1 steps"):
        run(tmp_path / "resumed", **skipping(1))
    with pytest.raises(FloatingPointError, match=r"more than train\.nonfinite_budget=1 steps"):
        run(tmp_path / "resumed", **skipping(1))  # those of the attempt before count
    run(tmp_path / "resumed", **skipping(3))
    run(tmp_path / "straight", **skipping(3))
    resumed, straight = (final_state(tmp_path / name)[0] for name in ("resumed", "straight"))
    assert resumed["finite"]["skipped"] == 3
    for part in ("model", "optimizer", "finite", "cursor"):
        assert_equal(resumed[part], straight[part], part)


CHANGES = {
    "log_every": {"train": TrainConfig(duration="3 epochs", log_every="1 step", dry_run=False)},
    "checkpoint": {"checkpoint": CheckpointConfig(every="3 steps", keep_latest=1, keep_every="2 steps")},
    "eval": {"eval": EvalConfig(metric="val/mse", mode="min", every=["1 epoch", "3 steps"], panels=0)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_weights_are_those_of_a_run_that_changed_nothing(tmp_path, change):
    run(tmp_path / "straight")
    with pytest.raises(Interrupted):
        run(tmp_path / "resumed", StopAfter(STEPS_PER_EPOCH + 3))
    run(tmp_path / "resumed", **CHANGES[change])
    resumed, straight = (final_state(tmp_path / name)[0] for name in ("resumed", "straight"))
    assert straight["cursor"]["step"] == STEPS
    for part in ("model", "optimizer", "cursor", "best_objective"):
        assert_equal(resumed[part], straight[part], part)
