"""Trying a network without a trace of it in the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def no_trace(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put buffers and random streams back and drop the gradients, however the block ends.

    For passes forward and backward; weights are not kept.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for parameter in network.parameters():
                parameter.grad = None
            with torch.no_grad():
                for buffer, value in zip(network.buffers(), before, strict=True):
                    buffer.copy_(value)
