"""Exponential moving average of a model's weights, evaluated and saved beside it."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import nn

from sensorlab.config import StrictModel


class EmaConfig(StrictModel):
    """``constant``: decay d. ``warmup``: d * (1 - exp(-updates / tau)), after YOLOv5's ModelEMA."""

    kind: Literal["constant", "warmup"] = "warmup"
    decay: float = 0.9999
    tau: float = 2000.0  # updates; warmup only


class ExponentialAverage:
    """Holds the averaged copy; floating-point parameters and buffers are averaged, other buffers copied."""

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.config = config
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average in the weights after one optimiser step."""
        self.updates += 1
        decay = self.config.decay
        if self.config.kind == "warmup":
            decay *= 1.0 - math.exp(-self.updates / self.config.tau)
        source = model.state_dict()
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                value.lerp_(source[name], 1.0 - decay)
            else:
                value.copy_(source[name])

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
