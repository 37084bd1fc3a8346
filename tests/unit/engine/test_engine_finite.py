"""The check before an update, read at once and read later."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.finite import LAG, FiniteCheck
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import OptimConfig, build_optimizer, gradient_norm
from sensorlab.engine.training import Cursor
from sensorlab.experiment import EvalConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment


class Steps:
    """A few optimiser steps of a linear layer with the check; gradients are NaN where asked."""

    def __init__(self, optimizer: str, deferred: bool, **train) -> None:
        self.model = nn.Linear(3, 2)
        self.optimizer = build_optimizer(self.model, OptimConfig(name=optimizer, lr=0.1))
        self.scaler = torch.amp.GradScaler("cpu", enabled=train.get("precision") == "fp16", init_scale=4.0)
        self.scaler.scale(torch.ones(1))  # starts it
        self.check = FiniteCheck(TrainConfig(duration="1 epoch", **train), self.model, self.optimizer, self.scaler)
        self.check._is_deferred = deferred
        self.cursor = Cursor()

    def __call__(self, poisoned: bool = False) -> bool:
        self.check.begin_step()
        loss = self.model(torch.ones(4, 3)).square().mean() * (float("nan") if poisoned else 1.0)
        loss.backward()
        norm = gradient_norm(self.model.parameters())
        allowed = self.check.allows_update(norm, {"loss": loss}, self.cursor)
        if allowed:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.cursor.step += 1
        return allowed


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_deferred_check_keeps_the_weights_and_tells_later(optimizer):
    steps = Steps(optimizer, deferred=True)
    steps()
    before = copy.deepcopy(steps.model.state_dict())
    state = copy.deepcopy(steps.optimizer.state_dict())
    assert steps(poisoned=True)  # nobody has read the norm yet
    for name, value in steps.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert str(steps.optimizer.state_dict()) == str(state)
    with pytest.raises(FloatingPointError, match=r"epoch 0, step 1: gradient norm nan, loss=nan; its update was left"):
        steps.check.settle()


def test_a_deferred_check_is_read_after_the_same_number_of_steps():
    steps = Steps("adamw", deferred=True)
    steps(poisoned=True)
    for _ in range(LAG - 1):
        steps()
    with pytest.raises(FloatingPointError, match="step 0"):
        steps()


def test_deferred_and_immediate_checks_train_the_same():
    torch.manual_seed(0)
    immediate = Steps("adamw", deferred=False)
    torch.manual_seed(0)
    deferred = Steps("adamw", deferred=True)
    for _ in range(5):
        assert immediate()
        assert deferred()
    deferred.check.settle()
    assert torch.equal(immediate.model.weight, deferred.model.weight)


def test_an_immediate_check_stops_before_the_update():
    steps = Steps("sgd", deferred=False)
    before = steps.model.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="the weights were not updated"):
        steps(poisoned=True)
    assert torch.equal(steps.model.weight, before)


def test_skipped_steps_count_up_to_the_budget():
    steps = Steps("sgd", deferred=False, nonfinite="skip", nonfinite_budget=1)
    assert not steps(poisoned=True)
    assert steps()
    with pytest.raises(FloatingPointError, match=r"more than train\.nonfinite_budget=1"):
        steps(poisoned=True)


def test_with_fp16_what_stays_not_finite_is_no_overflow():
    steps = Steps("sgd", deferred=False, precision="fp16")
    for scale in (4.0, 1.0):
        steps.scaler.update(scale)
        assert not steps(poisoned=True)
    steps.scaler.update(0.5)
    with pytest.raises(FloatingPointError, match="the weights were not updated"):
        steps(poisoned=True)


def test_a_skipped_fp16_step_puts_running_statistics_back(tmp_path):
    task = ToyTask(ToyConfig(poison_input=3))
    config = toy_experiment(
        task=task.config,
        train=TrainConfig(duration="2 epochs", precision="fp16"),
        eval=EvalConfig(metric="val/mse", mode="min"),
    )
    train, val = ToyStream(12, 4, task), ToyStream(3, 3, task, training=False)
    result = fit(config, task, train, val, run_dir=tmp_path, callbacks=[JsonLog()])
    assert result.metrics["perf/skipped_steps"] >= 2.0  # once per epoch, and where the first scale is too high
    assert math.isfinite(result.metrics["val/mse"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)
