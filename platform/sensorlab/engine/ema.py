"""Exponential moving average of a model's weights, evaluated and saved beside it."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from sensorlab.config import StrictModel


class EmaConfig(StrictModel):
    """Decay d used at update u = 1, 2, ...: ``average = d * average + (1 - d) * weights``.

    ``constant``: d = ``decay``, and update 1 copies the weights (MMEngine's ExponentialMovingAverage). ``warmup``:
    ``decay * (1 - exp(-u / tau))`` (YOLOv5's ModelEMA). ``annealed``: ``min(decay, 1 - gamma / (gamma + u - 1))``, so
    update 1 copies too (MMEngine's MomentumAnnealingEMA). MMEngine's momentum is ``1 - decay`` and it copies buffers.
    """

    kind: Literal["constant", "warmup", "annealed"] = "warmup"
    decay: float = Field(default=0.9999, ge=0, lt=1)
    tau: float = Field(default=2000.0, gt=0)  # updates; warmup only
    gamma: float = Field(default=100.0, gt=0)  # updates; annealed only
    buffers: Literal["average", "copy"] = "average"  # floating-point buffers, such as the statistics of norm layers

    def decay_at(self, update: int) -> float:
        """Decay of update number ``update``, counted from 1."""
        if self.kind == "warmup":
            return self.decay * (1.0 - math.exp(-update / self.tau))
        if self.kind == "annealed":
            return min(self.decay, 1.0 - self.gamma / (self.gamma + update - 1))
        return self.decay if update > 1 else 0.0


class ExponentialAverage:
    """Holds the averaged copy; buffers that are not floating-point are copied."""

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.config = config
        self.updates = 0
        buffers = {name for name, _ in model.named_buffers()} if config.buffers == "copy" else set()
        state = self.model.state_dict()
        self._copied = {name for name, value in state.items() if name in buffers or not value.is_floating_point()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average in the weights after one optimiser step."""
        self.updates += 1
        weight = 1.0 - self.config.decay_at(self.updates)
        source = model.state_dict()
        for name, value in self.model.state_dict().items():
            if name in self._copied:
                value.copy_(source[name])
            else:
                value.lerp_(source[name], weight)

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
