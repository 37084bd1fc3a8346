"""Freezing rules: what is trained in which epoch, and what stays equal to the bit meanwhile."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_workers import run_on_two_workers

from sensorlab.config import StrictModel, validate
from sensorlab.engine.duration import Duration
from sensorlab.engine.ema import EmaConfig, ExponentialAverage
from sensorlab.engine.freeze import FreezeRule, Freezing
from sensorlab.engine.optim import OptimConfig, build_optimizer
from sensorlab.errors import UserError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6)
        )
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def rule(*match: str, start: int = 0, until: int = 0, **settings) -> FreezeRule:
    """0 epochs means not given."""
    first, end = (Duration(count, "epochs") if count else None for count in (start, until))
    return FreezeRule(match=match, start=first, until=end, **settings)


BACKBONE = {"backbone.0.weight", "backbone.0.bias", "backbone.3.weight"}
NORMS = {"backbone.1.weight", "backbone.1.bias", "backbone.4.weight", "backbone.4.bias"}


def batch(step: int, rows: int = 8) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(step))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, freezing: Freezing, epochs: range, average=None
) -> list[dict[str, Tensor]]:
    """Two steps an epoch as the engine does them; the state after each epoch."""
    states = []
    for epoch in epochs:
        model.train()
        freezing.apply(epoch)
        for step in range(2 * epoch, 2 * epoch + 2):
            model(batch(step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(model)
        states.append(copy.deepcopy(model.state_dict()))
    return states


def test_windows_exclusions_and_the_last_matching_rule():
    freezing = Freezing(
        net(),
        (
            rule("backbone.*", exclude=("@norm",)),
            rule("backbone.3.*", until=3),
            rule("head.*", "@norm_bias", start=2, until=4),
        ),
    )
    frozen = [set(freezing.frozen_parameters(epoch)) for epoch in range(5)]
    first, head = {"backbone.0.weight", "backbone.0.bias"}, {"head.weight", "head.bias"}
    late = head | {"backbone.1.bias", "backbone.4.bias"}
    assert frozen == [BACKBONE, BACKBONE, BACKBONE | late, first | late, first]


def test_frozen_parts_stay_equal_and_thaw_on_time():
    model = net()
    freezing = Freezing(model, (rule("backbone.*", until=2, norm_statistics=True),))
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    average = ExponentialAverage(model, EmaConfig(decay=0.9, tau=1.0))
    before = copy.deepcopy(model.state_dict())
    states = train(model, optimizer, freezing, range(3), average)
    for name, value in before.items():
        in_backbone = name.startswith("backbone.")
        assert [torch.equal(value, state[name]) for state in states] == [in_backbone, in_backbone, False], name


def test_the_average_of_frozen_weights_is_the_weights():
    model = net()
    freezing = Freezing(model, (rule("backbone.*", norm_statistics=True),))
    average = ExponentialAverage(model, EmaConfig(decay=0.9, tau=1.0))
    train(model, build_optimizer(model, OptimConfig(lr=0.1)), freezing, range(2), average)
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]) == name.startswith("backbone."), name


def test_statistics_of_frozen_norm_layers_move_unless_held():
    for held in (False, True):
        model = net()
        before = copy.deepcopy(model.state_dict())
        freezing = Freezing(model, (rule("backbone.*", norm_statistics=held),))
        train(model, build_optimizer(model, OptimConfig()), freezing, range(1))
        assert freezing.held_norms(0) == ({"backbone.1", "backbone.4"} if held else set())
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(model.state_dict()[f"backbone.1.{name}"], before[f"backbone.1.{name}"]) == held
        assert torch.equal(model.backbone[1].weight, before["backbone.1.weight"])


def test_statistics_can_be_held_while_the_weights_are_trained():
    """``norm_eval`` of mmdetection: the norm layers of stages that are trained keep their statistics too."""
    model = net()
    freezing = Freezing(model, (rule("backbone.*.running_*", norm_statistics=True, until=1),))
    before = copy.deepcopy(model.state_dict())
    first, second = train(model, build_optimizer(model, OptimConfig()), freezing, range(2))
    assert not freezing.frozen_parameters(0)
    assert torch.equal(first["backbone.4.running_var"], before["backbone.4.running_var"])
    assert not torch.equal(first["backbone.4.weight"], before["backbone.4.weight"])
    assert not torch.equal(second["backbone.4.running_var"], before["backbone.4.running_var"])


def test_the_optimiser_holds_what_thaws_later_and_not_what_never_does():
    model = net()
    Freezing(model, (rule("backbone.0.*"), rule("backbone.3.*", until=2)))
    held = {id(p) for group in build_optimizer(model, OptimConfig()).param_groups for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in held}
    assert names == {name for name, _ in model.named_parameters()} - {"backbone.0.weight", "backbone.0.bias"}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_stopping_at_any_epoch_and_going_on_changes_no_bit(name):
    rules = (rule("backbone.*", until=2), rule("head.bias", start=1, until=3))
    config = OptimConfig(name=name, lr=0.05, weight_decay=0.1)

    def start() -> tuple[Net, torch.optim.Optimizer, Freezing]:
        model = net()
        freezing = Freezing(model, rules)
        return model, build_optimizer(model, config), freezing

    model, optimizer, freezing = start()
    straight = train(model, optimizer, freezing, range(5))
    for stop in range(1, 5):
        model, optimizer, freezing = start()
        train(model, optimizer, freezing, range(stop))
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        model, optimizer, freezing = start()
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        resumed = train(model, optimizer, freezing, range(stop, 5))
        for key, value in straight[-1].items():
            assert torch.equal(value, resumed[-1][key]), (stop, key)


def test_apply_tells_whether_the_trained_set_changed():
    model = net()
    freezing = Freezing(model, (rule("backbone.*"), rule("head.bias", start=1, until=3)))
    assert [freezing.apply(epoch) for epoch in (0, 1, 1, 2, 3, 4)] == [False, True, False, False, True, False]


def test_a_gradient_that_was_left_over_is_dropped_when_its_parameter_freezes():
    model = net()
    freezing = Freezing(model, (rule("head.bias", start=1),))
    model(batch(0)).sum().backward()
    freezing.apply(1)
    assert model.head.bias.grad is None
    assert model.head.weight.grad is not None


def test_what_the_model_itself_does_not_train_is_left_alone():
    model = net()
    model.head.bias.requires_grad_(False)
    freezing = Freezing(model, (rule("head.*", until=1),))
    freezing.apply(5)
    assert not model.head.bias.requires_grad
    assert model.head.weight.requires_grad


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((rule("head.*"), rule("backbone.7.*")), r"freeze\[1\]: 'backbone.7.\*' matches no .*the model has backbone\."),
        ((rule("head.*", "bakbone.*"),), r"freeze\[0\]: 'bakbone.\*' matches no .*backbone\."),
        ((rule("backbone.*", exclude=("backbone.norm*",)),), r"'backbone.norm\*' matches no"),
        ((rule("@norms"),), r"'@norms' matches no .*@norm"),
        ((rule("backbone.1.running_*"),), r"running statistics only, which norm_statistics: true would hold"),
        ((rule("head.*"), rule("*", until=2, exclude=("@norm",))), r"freeze\[0\] \(match head.\*\) has no effect"),
        ((rule("head.*", exclude=("*",)),), "has no effect"),
        ((rule("*"),), r"epoch 0 .*would train nothing, all 9"),
        ((rule("backbone.*", until=9), rule("head.*", start=4)), "epoch 4 .*would train nothing"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        Freezing(net(), rules)


def test_rules_that_only_follow_each_other_are_accepted():
    Freezing(net(), (rule("backbone.*", until=4), rule("head.*", start=4)))


class Holder(StrictModel):
    freeze: tuple[FreezeRule, ...]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"match": ["head.*"], "until": "500 steps"}, "give until in epochs, not 500 steps"),
        ({"match": ["head.*"], "start": "64 samples"}, "give start in epochs, not 64 samples"),
        ({"match": ["head.*"], "start": "4 epochs", "until": "4 epochs"}, "until must be later"),
        ({"match": []}, "at least 1"),
        ({"match": ["head.*"], "untill": "4 epochs"}, "did you mean 'until'"),
    ],
)
def test_bad_keys_are_explained(tree, message):
    with pytest.raises(UserError, match=message):
        validate(Holder, {"freeze": [tree]}, "test")


def test_a_rule_reads_as_it_is_written():
    tree = {"match": ["backbone.*"], "until": "5 epochs"}
    assert validate(Holder, {"freeze": [tree]}, "test").freeze == (rule("backbone.*", until=5),)


def _train_in_parallel(rank: int) -> dict[str, Tensor]:
    """Half of each batch, wrapped anew when the trained set changes, without ``find_unused_parameters``."""
    model = without_batch_statistics()
    freezing = Freezing(model, (rule("backbone.0.*", until=1), rule("head.bias", start=2)))
    optimizer = build_optimizer(model, OptimConfig(name="sgd", lr=0.1))
    freezing.apply(0)
    network = DistributedDataParallel(model)
    wrapped = 1
    for epoch in range(4):
        network.train()
        if freezing.apply(epoch):
            network = DistributedDataParallel(model)
            wrapped += 1
        for step in range(2 * epoch, 2 * epoch + 2):
            network(batch(step)[4 * rank : 4 * rank + 4]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {"wrapped": torch.tensor(wrapped), **model.state_dict()}


def without_batch_statistics() -> nn.Module:
    model = net()
    model.backbone[1] = model.backbone[4] = nn.Identity()
    return model


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")
def test_two_workers_freeze_and_thaw_like_one(tmp_path):
    one, two = run_on_two_workers(_train_in_parallel, tmp_path)
    model = without_batch_statistics()
    freezing = Freezing(model, (rule("backbone.0.*", until=1), rule("head.bias", start=2)))
    train(model, build_optimizer(model, OptimConfig(name="sgd", lr=0.1)), freezing, range(4))
    assert int(one.pop("wrapped")) == int(two.pop("wrapped")) == 3
    for name, value in model.state_dict().items():
        assert torch.equal(one[name], two[name]), name
        # The mean over 8 rows is a mean of two means over 4: equal up to the rounding of float32 sums.
        assert torch.allclose(value, one[name], rtol=1e-5, atol=1e-6), name
