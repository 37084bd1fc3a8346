"""Optimisers: configuration, parameter groups, rates of a step, gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorlab.config import StrictModel
from sensorlab.engine.patterns import NamePatterns
from sensorlab.engine.warmup import Rates
from sensorlab.errors import UserError


class GroupRule(StrictModel):
    """Settings for the parameters whose name matches one of the glob patterns.

    Patterns by kind: ``@norm`` is every parameter of a normalisation layer, ``@norm_weight`` and ``@norm_bias`` its
    parts, ``@bias`` every other bias. A parameter that two rules match is an error, and so is a rule that matches
    nothing.
    """

    name: str
    match: tuple[str, ...]
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
        UserError: a rule matches no trainable parameter, or a parameter matches two rules.
    """
    patterns = NamePatterns(model)
    members: dict[str, list[tuple[str, Tensor]]] = {rule.name: [] for rule in config.groups}
    rest: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owners = [rule.name for rule in config.groups if patterns.matches_any(name, rule.match)]
        if len(owners) > 1:
            raise UserError(f"optim.groups: parameter {name!r} is matched by the rules {owners}; make them disjoint")
        (members[owners[0]] if owners else rest).append((name, parameter))
    empty = [rule.name for rule in config.groups if not members[rule.name]]
    if empty:
        raise UserError(f"optim.groups: the rules {empty} match no trainable parameter")

    groups = [{"name": "default", "params": [p for _, p in rest], "lr_multiplier": 1.0}] if rest else []
    for rule in config.groups:
        group = {
            "name": rule.name,
            "params": [p for _, p in members[rule.name]],
            "lr_multiplier": rule.lr_multiplier,
        }
        if rule.weight_decay is not None:
            group["weight_decay"] = rule.weight_decay
        groups.append(group)
    return groups


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


def _begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Momentum of 0 instead of none: the first step is the same, but parameters may make theirs at different times.

    torch's fused SGD begins the momentum of all parameters in one step, or fails: one that thaws later has none yet.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


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
