"""Lower precision on the CPU: exact in itself, and how far from float32."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from exact_runs import STEPS, experiment, train
from kill_child import KILLED, in_child
from run_states import assert_equal, final_state

from sensorlab.data.sampling import ShuffledSampling
from sensorlab.engine import checkpoint
from sensorlab.engine.callbacks.base import Callback
from toy_images import ToyImageConfig, write_splits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a server that has imported torch")

SETTINGS = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "channels last": {"channels_last": True},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    write_splits(root)
    return root


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_and_resumed_equals_straight(dataset, tmp_path, name):
    config = experiment(dataset, **SETTINGS[name])
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert in_child(config, straight) == 0
    for step in (3, 6):  # of the attempt: in the middle of the first epoch, and of the second
        assert in_child(config, resumed, "after a step, before its record", step) == KILLED
    assert in_child(config, resumed) == 0
    assert_equal(final_state(resumed), final_state(straight))


class Overflow(Callback):
    """Scales the losses of step 4 (from 0) beyond float16, the others by 2**10; notes what each step leaves."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_batch(self, training, batch):
        training.scaler.update(2.0**40 if training.cursor.step == 4 else 2.0**10)

    def on_step_end(self, training, record):
        self.scales.append(training.scaler.get_scale())
        self.weights.append(training.model.head.weight.detach().clone())


def test_an_overflow_of_fp16_skips_the_step_and_halves_the_scale(dataset, tmp_path):
    config = experiment(dataset, ToyImageConfig(), precision="fp16", nonfinite="stop", duration="6 steps")
    watch = Overflow()
    state = checkpoint.load(train(config, tmp_path, watch).last_checkpoint)
    assert watch.scales == [2.0**10] * 4 + [2.0**39, 2.0**10]
    changes = [not torch.equal(*pair) for pair in itertools.pairwise(watch.weights)]
    assert changes == [True, True, True, False, True]
    assert state["ema"]["updates"] == 5
    assert state["scaler"]["scale"] == 2.0**10
    assert state["finite"]["skipped"] == 0  # an event of the scaler, not of the budget


# Losses around 1 over 14 steps. Measured: bf16 (8 bits of mantissa) 1.2e-3, fp16 (11 bits) 1.2e-4.
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 5e-3), ("fp16", 5e-4)])
def test_losses_of_lower_precision_follow_those_of_float32(dataset, tmp_path, precision, tolerance):
    losses = []
    for name in ("fp32", precision):
        config = experiment(dataset, ToyImageConfig(), precision=name, log_every="1 step")
        data = config.data.model_copy(update={"sampling": ShuffledSampling()})  # scores would differ, and the order
        train(config.model_copy(update={"data": data}), tmp_path / name)
        losses.append([line["train/loss"] for line in final_state(tmp_path / name)[1] if "train/loss" in line])
    assert len(losses[0]) == STEPS
    largest = max(abs(a - b) for a, b in zip(*losses, strict=True))
    assert 1e-6 < largest < tolerance
