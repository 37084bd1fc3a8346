from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sensorlab.config import validate
from sensorlab.engine.ema import EmaConfig, ExponentialAverage
from sensorlab.engine.optim import (
    ClipConfig,
    GroupRule,
    OptimConfig,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    parameter_groups,
    set_rates,
    take_moments,
)
from sensorlab.engine.presets import PRESETS
from sensorlab.engine.warmup import Rates
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
    set_rates(optimizer, 0.5, Rates(1.0, {}, None))
    assert [group(optimizer, name)["lr"] for name in ("default", "norm", "bias")] == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (("head.*",), r"'head\.\*' of the rule 'lost' \(the model has .*\)"),
        (("0.*", "1.wieght"), r"by '1\.wieght' of the rule 'lost' \(the model has 1\.weight, "),
        (("0.*", "@nrom"), r"by '@nrom' of the rule 'lost' \(the model has @norm, "),
        (("2.*", "a.*", "b.*"), r"'a\.\*' of the rule 'lost' .*, 'b\.\*' of the rule 'lost' "),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(match, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(model(), OptimConfig(groups=(GroupRule(name="lost", match=match),)))


def test_a_pattern_of_frozen_parameters_matches_nothing():
    net = model()
    net[0].requires_grad_(False)
    with pytest.raises(UserError, match=r"no trainable parameter is matched by '0\.\*'"):
        build_optimizer(net, OptimConfig(groups=(GroupRule(name="lost", match=("0.*", "2.*")),)))


def test_parameters_of_two_rules_are_an_error_that_names_them_and_both():
    rules = (GroupRule(name="first", match=("[02].*",)), GroupRule(name="biases", match=("@bias", "@norm")))
    with pytest.raises(UserError, match=r"two rules: '0.bias' by 'first' and 'biases', '2.bias' by 'first' and"):
        build_optimizer(model(), OptimConfig(groups=rules))
    both = (GroupRule(name="first", match=("*",)), GroupRule(name="second", match=("*",)))
    with pytest.raises(UserError, match=r"'2\.weight' by 'first' and 'second', and 1 more; make the rules disjoint"):
        build_optimizer(model(), OptimConfig(groups=both))


def test_what_contradicts_itself_is_refused():
    def refuses(message, **optim):
        with pytest.raises(UserError, match=message):
            validate(OptimConfig, optim, "test")

    rules = [{"name": name, "match": [f"{index}.*"]} for index, name in enumerate(("a", "b", "a"))]
    refuses("two rules are called 'a'; merge", groups=rules)
    refuses("'default' is the name of what no rule matches", groups=[{"name": "default", "match": ["0.*"]}])
    refuses("match", groups=[{"name": "empty", "match": []}])
    refuses("nesterov=true needs momentum > 0", name="sgd", nesterov=True, momentum=0.0)
    assert OptimConfig(name="adamw", nesterov=True, momentum=0.0).nesterov  # AdamW knows neither


def test_frozen_parameters_are_left_out():
    net = model()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net, OptimConfig())
    assert len(optimizer.param_groups[0]["params"]) == 4


def test_yolov5_groups_take_the_bias_of_norm_layers_apart_from_their_weight():
    rules = tuple(
        GroupRule(**{**rule, "match": tuple(rule["match"])}) for rule in PRESETS["yolov5_v7"]["optim"]["groups"]
    )
    groups = parameter_groups(model(), OptimConfig(groups=rules))
    assert {g["name"]: len(g["params"]) for g in groups} == {"default": 2, "bias": 3, "norm": 1}


def test_decay_scales_with_the_samples_of_a_step():
    config = OptimConfig(
        name="sgd",
        weight_decay=5e-4,
        weight_decay_batch=64,
        groups=(GroupRule(name="bias", match=("@bias",), weight_decay=1e-3),),
    )
    optimizer = build_optimizer(model(), config, samples_per_step=96)
    assert group(optimizer, "default")["weight_decay"] == pytest.approx(7.5e-4, rel=1e-12)
    assert group(optimizer, "bias")["weight_decay"] == pytest.approx(1.5e-3, rel=1e-12)
    assert OptimConfig().decay_scale(96) == 1.0


def test_rates_reach_their_groups():
    rules = (GroupRule(name="bias", match=("@bias",), lr_multiplier=2.0),)
    optimizer = build_optimizer(model(), OptimConfig(name="sgd", groups=rules))
    set_rates(optimizer, 0.5, Rates(0.1, {"bias": 4.0}, 0.7))
    assert group(optimizer, "default")["lr"] == pytest.approx(0.05)
    assert group(optimizer, "bias")["lr"] == pytest.approx(4.0)
    assert [g["momentum"] for g in optimizer.param_groups] == [0.7, 0.7]
    set_rates(optimizer, 0.5, Rates(1.0, {}, None))
    assert group(optimizer, "bias")["lr"] == 1.0
    assert [g["momentum"] for g in optimizer.param_groups] == [0.7, 0.7]


GRADIENTS = [torch.tensor([3.0, -4.0]), torch.tensor([[12.0]])]  # L2 13, L1 19, largest 12


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ClipConfig(value=6.5), [[1.5, -2.0], [[6.0]]]),
        (ClipConfig(value=13.5), [[3.0, -4.0], [[12.0]]]),
        (ClipConfig(value=9.5, p=1.0), [[1.5, -2.0], [[6.0]]]),
        (ClipConfig(value=3.0, p="inf"), [[0.75, -1.0], [[3.0]]]),
        (ClipConfig(kind="value", value=3.5), [[3.0, -3.5], [[3.5]]]),
    ],
)
def test_clipping(config, expected):
    parameters = [torch.zeros_like(gradient, requires_grad=True) for gradient in GRADIENTS]
    for parameter, gradient in zip(parameters, GRADIENTS, strict=True):
        parameter.grad = gradient.clone()
    clip_gradients(parameters, config, gradient_norm(parameters))
    for parameter, values in zip(parameters, expected, strict=True):
        assert parameter.grad.tolist() == [pytest.approx(row, rel=1e-6) for row in values]


def test_a_norm_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ClipConfig(value=1.0, p=0.5)


def stepped(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    optimizer = build_optimizer(net, config)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_moments_are_taken_without_the_rates_they_were_made_with():
    before = stepped(model(), OptimConfig(lr=1.0, weight_decay=0.5, betas=(0.1, 0.2)))
    after = build_optimizer(model(), OptimConfig(lr=2.0, weight_decay=0.25, betas=(0.3, 0.4)))
    take_moments(after, before.state_dict())
    (group,) = after.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (2.0, 0.25, (0.3, 0.4))
    for old, new in zip(before.param_groups[0]["params"], group["params"], strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(before.state[old][name], after.state[new][name])


def test_moments_of_other_parameters_are_refused_and_nothing_is_changed():
    optimizer = build_optimizer(model(), OptimConfig())
    frozen = model()
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"groups of \(name, parameters\) \[\('default', 5\)\], here \[\('default', 6\)\]"
    ):
        take_moments(optimizer, stepped(frozen, OptimConfig()).state_dict())
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    with pytest.raises(ValueError, match=r"exp_avg of parameter 4 has shape \(3, 4, 1, 1\), here \(2, 4, 1, 1\)"):
        take_moments(optimizer, stepped(other, OptimConfig()).state_dict())
    assert not optimizer.state


@pytest.mark.parametrize(
    ("config", "decay"),
    [
        (EmaConfig(kind="warmup", decay=0.9, tau=3.0), lambda u: 0.9 * (1 - math.exp(-u / 3.0))),
        (EmaConfig(kind="constant", decay=0.9), lambda u: 0.9 if u > 1 else 0.0),
        (EmaConfig(kind="annealed", decay=0.9, gamma=2.0), lambda u: 1.0 - max(0.1, 2.0 / (2.0 + u - 1))),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_average_follows_the_stated_decay(config, decay):
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = ExponentialAverage(net, config)
    expected = 0.0
    for update in range(1, 26):
        nn.init.constant_(net.weight, float(update))
        average.update(net)
        expected = decay(update) * expected + (1 - decay(update)) * update
        assert float(average.model.weight) == pytest.approx(expected, rel=1e-5)


def test_buffers_are_averaged_or_copied():
    net = nn.BatchNorm1d(2)
    averages = [ExponentialAverage(net, EmaConfig(decay=0.5, tau=1e-3, buffers=kind)) for kind in ("average", "copy")]
    net.running_mean.fill_(4.0)
    net.num_batches_tracked.fill_(3)
    nn.init.constant_(net.weight, 2.0)
    for average in averages:
        average.update(net)
    assert [float(average.model.running_mean[0]) for average in averages] == [2.0, 4.0]
    assert [float(average.model.weight[0]) for average in averages] == [1.5, 1.5]
    assert [int(average.model.num_batches_tracked) for average in averages] == [3, 3]
