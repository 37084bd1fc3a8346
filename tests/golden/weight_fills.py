"""The weight fills of the developers' packs: every network of them is filled by a formula, not by stored weights.

A ``*_state_dict.json`` lists ``[i, name, shape, dtype, rule]`` for every entry of the model state, in order.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GAIN = {"sin": 2.0, "hash": 6.0}


def read_entries(path: Path) -> list[list[Any]]:
    """The entries of a ``*_state_dict.json``, or of one compressed as ``.json.gz``."""
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


def base_vector(fill: str, position: int, size: int) -> np.ndarray:
    """(size,) float64 in [-1, 1]: the vector of entry number ``position`` of the state, by fill "sin" or "hash"."""
    k = np.arange(size, dtype=np.uint64)
    if fill == "sin":
        return np.sin(0.37 * k.astype(np.float64) + position)
    mask = np.uint64(0xFFFFFFFF)
    x = (k + np.uint64((0x9E3779B9 * (position + 1)) % 2**32)) & mask
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x7FEB352D)) & mask
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x846CA68B)) & mask
    x ^= x >> np.uint64(16)
    return x.astype(np.float64) / 2**31 - 1


def entry_value(fill: str, position: int, shape: list[int], rule: str) -> np.ndarray:
    """Value of one entry, float64, in the shape of the entry."""
    size = int(np.prod(shape))
    v = base_vector(fill, position, size)
    if rule == "var":
        v = 1 + 0.5 * np.abs(v)
    elif rule in {"mean", "bias"}:
        v = 0.1 * v
    elif rule in {"norm", "scalar"}:
        v = 1 + 0.1 * v
    elif rule == "fan_in":
        v = v * np.sqrt(GAIN[fill] / (size / shape[0]))
    else:
        raise ValueError(f"unknown rule {rule!r}")
    return v.reshape(shape)


def fill_model(model: nn.Module, entries: list[list[Any]], fill: str) -> None:
    """Fill the state of ``model`` in place, after checking that names, order and shapes are those of the entries.

    Values are rounded to float32 first, as in the originals, also where the model is float64.
    """
    state = model.state_dict()
    assert [(name, list(value.shape)) for name, value in state.items()] == [(e[1], e[2]) for e in entries]
    with torch.no_grad():
        for position, name, shape, _, rule in entries:
            if rule != "untouched":
                state[name].copy_(torch.from_numpy(entry_value(fill, position, shape, rule).astype(np.float32)))
