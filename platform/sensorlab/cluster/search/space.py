"""Conditional dimensions: keys that are searched only where other searched keys have certain values.

``conditions`` maps a key to what it depends on (key to value); keys without conditions may be missing. Values compare
as JSON, so ``1``, ``1.0`` and ``True`` are three values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sensorlab.config import canonical_json

Conditions = Mapping[str, Mapping[str, Any]]


def parents_first(keys: Iterable[str], conditions: Conditions) -> list[str]:
    """``keys`` in an order in which what a key depends on comes before it.

    Raises:
        ValueError: keys depend on each other in a circle.
    """
    ordered: list[str] = []
    waiting = list(keys)
    while waiting:
        ready = [key for key in waiting if not any(parent in waiting for parent in conditions.get(key, {}))]
        if not ready:
            raise ValueError(f"{', '.join(waiting)} depend on each other in a circle; take out one 'when'")
        ordered += ready
        waiting = [key for key in waiting if key not in ready]
    return ordered


def is_active(key: str, values: Mapping[str, Any], conditions: Conditions) -> bool:
    """Whether ``key`` is searched, given the values of the keys that come before it."""
    needed = conditions.get(key, {})
    return all(parent in values and same(values[parent], value) for parent, value in needed.items())


def drop_inactive(values: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
    """``values`` without the keys that are not searched beside the others."""
    kept: dict[str, Any] = {}
    for key in parents_first(values, conditions):
        if is_active(key, kept, conditions):
            kept[key] = values[key]
    return {key: kept[key] for key in values if key in kept}


def combinations(choices: Mapping[str, Sequence[Any]], conditions: Conditions) -> list[dict[str, Any]]:
    """All combinations, the first key's values in alphabetical order changing fastest; those that differ in inactive
    keys only are one."""
    keys = sorted(choices, reverse=True)
    found: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*(choices[key] for key in keys)):
        values = drop_inactive(dict(zip(keys, combination, strict=True)), conditions)
        found.setdefault(canonical_json(values), values)
    return list(found.values())


def same(a: Any, b: Any) -> bool:
    return canonical_json(a) == canonical_json(b)
