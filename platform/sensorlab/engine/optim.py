"""Optimisers: configuration, parameter groups, gradient clipping."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sensorlab.config import StrictModel
from sensorlab.errors import UserError


class GroupRule(StrictModel):
    """Settings for the parameters whose name matches one of the glob patterns.

    ``kind`` patterns: ``"@bias"`` is every bias, ``"@norm"`` every parameter of a normalisation layer. The first rule
    that lists a pattern matching a parameter owns it; a parameter that two rules match is an error, and so is a rule
    that matches nothing.
    """

    name: str
    match: tuple[str, ...]
    lr_multiplier: float = 1.0
    weight_decay: float | None = None  # None: the optimiser's


class OptimConfig(StrictModel):
    """Optimiser settings; ``lr`` is the peak, shaped by the schedule."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 3e-4
    weight_decay: float = 1e-7
    momentum: float = 0.9  # sgd
    nesterov: bool = False  # sgd
    betas: tuple[float, float] = (0.9, 0.999)  # adam, adamw
    eps: float = 1e-8  # adam, adamw
    groups: tuple[GroupRule, ...] = ()


_NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters of ``model`` split by the rules of ``config``; each group carries its ``name``.

    Raises:
        UserError: a rule matches no trainable parameter, or a parameter matches two rules.
    """
    norm_names = {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if isinstance(module, _NORM_LAYERS)
        for name, _ in module.named_parameters(recurse=False)
    }

    def matches(name: str, pattern: str) -> bool:
        if pattern == "@norm":
            return name in norm_names
        if pattern == "@bias":
            return name.rpartition(".")[2] == "bias" and name not in norm_names
        return fnmatch.fnmatchcase(name, pattern)

    members: dict[str, list[tuple[str, Tensor]]] = {rule.name: [] for rule in config.groups}
    rest: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owners = [rule.name for rule in config.groups if any(matches(name, pattern) for pattern in rule.match)]
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


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the groups of ``config``; fused on CUDA."""
    groups = parameter_groups(model, config)
    on_cuda = any(parameter.is_cuda for group in groups for parameter in group["params"])
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=on_cuda,
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=on_cuda
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's rate to ``lr`` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Total L2 norm of the gradients, a 0-d tensor on their device."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
