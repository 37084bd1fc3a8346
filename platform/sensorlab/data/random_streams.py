"""Randomness without hidden state: every draw is a pure function of what it is for.

A generator is made from (seed, epoch, sample token, purpose) with a counter-based bit generator, so augmentation does
not depend on the number of workers, on the order of reading, or on where a run was resumed.
"""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_generator(*key: str | int) -> np.random.Generator:
    """A ``numpy`` generator that is a pure function of ``key``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


class SampleRandom:
    """The random streams of one sample in one epoch; one independent stream per purpose."""

    def __init__(self, seed: int, epoch: int, token: str) -> None:
        self._key = (seed, epoch, token)

    def stream(self, purpose: str) -> np.random.Generator:
        """Generator for one purpose, for example ``"image"`` or ``"flip"``. Equal arguments give equal draws."""
        return keyed_generator(*self._key, purpose)
