"""Seeds of what torch itself draws: initial weights, dropout."""

from __future__ import annotations

import hashlib

import torch

_MASK = (1 << 64) - 1


def step_seed(*key: str | int) -> int:
    """A torch seed that is a pure function of ``key``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class StepSeeds:
    """Seeds what each step on ``device`` draws from: a pure function of ``key`` and the number of the step.

    The key is hashed once. From there a step's seed is that element of the sequence of splitmix64 (G. Steele et al.,
    "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), which costs a tenth of a hash.
    """

    def __init__(self, device: torch.device, *key: str | int) -> None:
        self._start = step_seed(*key)
        self._on_gpu = device.type == "cuda"

    def seed(self, step: int) -> None:
        """``torch.manual_seed`` would also queue the seed, with a stack trace, for each kind of accelerator that torch
        knows and has not started: 0.4 ms in every step.
        """
        seed = splitmix64(self._start + step) >> 1
        torch.default_generator.manual_seed(seed)
        if self._on_gpu:
            torch.cuda.manual_seed(seed)


def splitmix64(position: int) -> int:
    """Element ``position`` of the sequence, 64 bits."""
    z = (position + 1) * 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)
