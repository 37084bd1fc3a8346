from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sensorlab.engine.ema import EmaConfig, ExponentialAverage
from sensorlab.engine.optim import GroupRule, OptimConfig, build_optimizer, set_learning_rate
from sensorlab.engine.schedules import ConstantSchedule, CosineSchedule, OneCycleSchedule
from sensorlab.errors import UserError


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def group(optimizer, name):
    return next(g for g in optimizer.param_groups if g["name"] == name)


def test_rules_take_norm_and_bias_out_of_the_decay():
    rules = (
        GroupRule(name="norm", match=("@norm",), weight_decay=0.0),
        GroupRule(name="bias", match=("@bias",), weight_decay=0.0, lr_multiplier=2.0),
    )
    optimizer = build_optimizer(model(), OptimConfig(weight_decay=0.1, groups=rules))
    assert [len(group(optimizer, name)["params"]) for name in ("default", "norm", "bias")] == [2, 2, 2]
    assert [group(optimizer, name)["weight_decay"] for name in ("default", "norm", "bias")] == [0.1, 0.0, 0.0]
    set_learning_rate(optimizer, 0.5)
    assert [group(optimizer, name)["lr"] for name in ("default", "norm", "bias")] == [0.5, 0.5, 1.0]


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match="lost"):
        build_optimizer(model(), OptimConfig(groups=(GroupRule(name="lost", match=("head.*",)),)))


def test_a_parameter_of_two_rules_is_an_error_that_names_both():
    rules = (GroupRule(name="first", match=("0.*",)), GroupRule(name="biases", match=("@bias",)))
    with pytest.raises(UserError, match=r"'0.bias'.*first.*biases"):
        build_optimizer(model(), OptimConfig(groups=rules))


def test_frozen_parameters_are_left_out():
    net = model()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net, OptimConfig())
    assert len(optimizer.param_groups[0]["params"]) == 4


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_one_cycle_equals_torch(anneal):
    schedule = OneCycleSchedule(anneal=anneal, rise_fraction=0.3, extra_steps=0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    strategy = {"linear": "linear", "cosine": "cos"}[anneal]
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=50, pct_start=0.3, anneal_strategy=strategy, cycle_momentum=False
    )
    for step in range(49):
        assert 2.0 * schedule.factor(step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        oracle.step()


def test_cosine_starts_low_peaks_after_warm_up_and_ends_at_its_end():
    schedule = CosineSchedule(warmup_fraction=0.1, start_factor=0.1, end_factor=0.02)
    factors = [schedule.factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(range(101), key=factors.__getitem__) == 10
    assert factors[100] == pytest.approx(0.02)
    assert ConstantSchedule().factor(5, 10) == 1.0


def test_average_follows_the_stated_decay():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = ExponentialAverage(net, EmaConfig(kind="warmup", decay=0.9, tau=3.0))
    nn.init.ones_(net.weight)
    expected = 0.0
    for update in range(1, 6):
        average.update(net)
        decay = 0.9 * (1 - math.exp(-update / 3.0))
        expected = decay * expected + (1 - decay)
        assert float(average.model.weight) == pytest.approx(expected, rel=1e-6)
