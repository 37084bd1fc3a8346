"""Optimisers: configuration, parameter groups, rates of a step, gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorlab.config import StrictModel
from sensorlab.engine.patterns import NamePatterns, near, some
from sensorlab.engine.warmup import Rates
from sensorlab.errors import UserError

DEFAULT_GROUP = "default"  # the parameters that no rule matches


class GroupRule(StrictModel):
    """Settings for the parameters whose name matches one of the glob patterns.

    Patterns by kind: ``@norm`` is every parameter of a normalisation layer, ``@norm_weight`` and ``@norm_bias`` its
    parts, ``@bias`` every other bias. A parameter that two rules match is an error, and so is a pattern that matches
    nothing.
    """

    name: str
    match: tuple[str, ...] = Field(min_length=1)
    lr_multiplier: float = 1.0
    weight_decay: float | None = None  # None: the optimiser's


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(StrictModel):
    """Optimiser settings; ``lr`` is the peak, shaped by the schedule."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=3e-4, ge=0)
    weight_decay: float = Field(default=1e-7, ge=0)
    weight_decay_batch: int | None = Field(default=None, ge=1)  # samples per step it is meant for: scaled to the actual
    momentum: float = Field(default=0.9, ge=0, lt=1)  # sgd
    nesterov: bool = False  # sgd
    betas: tuple[Decay, Decay] = (0.9, 0.999)  # adam, adamw
    eps: float = Field(default=1e-8, gt=0)  # adam, adamw
    groups: tuple[GroupRule, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> OptimConfig:
        names = [DEFAULT_GROUP, *(rule.name for rule in self.groups)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice == DEFAULT_GROUP:
            raise ValueError(f"groups: {twice!r} is the name of what no rule matches; give the rule another one")
        if twice is not None:
            raise ValueError(f"groups: two rules are called {twice!r}; merge their patterns, or rename one")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs momentum > 0; raise momentum, or set nesterov=false")
        return self

    def decay_scale(self, samples_per_step: int) -> float:
        """Factor on every weight decay (YOLOv5 scales it from 64 samples per step)."""
        return samples_per_step / self.weight_decay_batch if self.weight_decay_batch else 1.0


class ClipConfig(StrictModel):
    """Limit on the gradients of a step: their total p-norm, or each entry."""

    kind: Literal["norm", "value"] = "norm"
    value: float = Field(gt=0)
    p: float | Literal["inf"] = 2.0  # norm

    @model_validator(mode="after")
    def _a_norm(self) -> ClipConfig:
        if self.p != "inf" and not 1.0 <= self.p < math.inf:
            raise ValueError("p must be at least 1; write inf for the largest entry")
        return self


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters of ``model`` split by the rules of ``config``; each group carries its ``name``.

    Raises:
        UserError: a pattern matches no trainable parameter, or parameters match two rules.
    """
    patterns = NamePatterns(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    _check_patterns(patterns, config.groups, trained)
    owners = {name: [rule.name for rule in config.groups if patterns.matches_any(name, rule.match)] for name in trained}
    _check_disjoint({name: rules for name, rules in owners.items() if len(rules) > 1})
    members: dict[str, list[Tensor]] = {rule.name: [] for rule in config.groups}
    rest: list[Tensor] = []
    for name, parameter in trained.items():
        (members[owners[name][0]] if owners[name] else rest).append(parameter)

    groups: list[dict[str, Any]] = [{"name": DEFAULT_GROUP, "params": rest, "lr_multiplier": 1.0}] if rest else []
    for rule in config.groups:
        group = {"name": rule.name, "params": members[rule.name], "lr_multiplier": rule.lr_multiplier}
        if rule.weight_decay is not None:
            group["weight_decay"] = rule.weight_decay
        groups.append(group)
    return groups


def _check_patterns(patterns: NamePatterns, rules: Sequence[GroupRule], names: Collection[str]) -> None:
    lost = [
        f"{pattern!r} of the rule {rule.name!r} (the model has {near(pattern, names)})"
        for rule in rules
        for pattern in rule.match
        if not any(patterns.matches(name, pattern) for name in names)
    ]
    if lost:
        raise UserError(
            f"optim.groups: no trainable parameter is matched by {some(lost)}; correct or remove the pattern"
        )


def _check_disjoint(shared: Mapping[str, Sequence[str]]) -> None:
    if shared:
        found = [f"{name!r} by {' and '.join(map(repr, rules))}" for name, rules in shared.items()]
        raise UserError(f"optim.groups: parameters are matched by two rules: {some(found)}; make the rules disjoint")


def build_optimizer(model: nn.Module, config: OptimConfig, samples_per_step: int = 1) -> torch.optim.Optimizer:
    """The optimiser over the groups of ``config``, fused: one kernel instead of some ten per parameter.

    Args:
        samples_per_step: samples of an optimiser step over all workers and passes, see ``weight_decay_batch``.
    """
    groups = parameter_groups(model, config)
    scale = config.decay_scale(samples_per_step)
    for group in groups:
        group["weight_decay"] = scale * group.get("weight_decay", config.weight_decay)
    if config.name == "sgd":
        sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        if config.momentum > 0:
            _begin_momentum(sgd)
        return sgd
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum of 0 instead of none: the first step is the same, but parameters may make theirs at different times.

    torch's fused SGD begins the momentum of all parameters in one step, or fails: one that thaws later has none yet.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, each tensor in the memory layout of its parameter.

    Fused kernels walk through parameter and state side by side in memory. A file keeps values and no layout, so the
    moments of a channels-last convolution would come back in another order than its weights, without an error.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def take_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the moments of a saved state into the same groups; rates, decays and betas stay those of ``optimizer``.

    A momentum that the saved optimiser did not have begins at 0; one that ``optimizer`` does not have is dropped.

    Raises:
        ValueError: groups or shapes are not those of ``optimizer``; it is as it was.
    """
    groups = optimizer.state_dict()["param_groups"]
    sizes = [[(group["name"], len(group["params"])) for group in each] for each in (groups, state["param_groups"])]
    if sizes[0] != sizes[1]:
        raise ValueError(f"groups of (name, parameters) {sizes[1]}, here {sizes[0]}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                shapes = tuple(value.shape), tuple(parameters[index].shape)
                raise ValueError(f"{name} of parameter {index} has shape {shapes[0]}, here {shapes[1]}")
    restore_optimizer(optimizer, {"state": state["state"], "param_groups": groups})
    if isinstance(optimizer, torch.optim.SGD):
        if optimizer.defaults["momentum"] > 0:
            _begin_momentum(optimizer)
        else:
            optimizer.state.clear()


def set_rates(optimizer: torch.optim.Optimizer, lr: float, rates: Rates) -> None:
    """Give every group its factor of the peak rate ``lr`` times its multiplier, and the momentum of the step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * rates.group_factors.get(group["name"], rates.factor) * group["lr_multiplier"]
        if rates.momentum is not None:
            group["momentum"] = rates.momentum


def gradient_norm(parameters: Iterable[Tensor], p: float = 2.0) -> Tensor:
    """Total p-norm of the gradients, a 0-d tensor on their device."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None], p)


def clip_gradients(parameters: Sequence[Tensor], config: ClipConfig, norm: Tensor) -> None:
    """Clip in place; ``norm`` is the L2 norm that is known already."""
    if config.kind == "value":
        nn.utils.clip_grad_value_(parameters, config.value)
        return
    p = float(config.p)
    nn.utils.clip_grads_with_norm_(parameters, config.value, norm if p == 2.0 else gradient_norm(parameters, p))
