"""How a member of a population leaves the values of its donor: by small steps, now and then by a leap.

With ``resample_probability`` a value is drawn anew. Otherwise a number is multiplied by one of ``factors``, and a
choice moves to a neighbour in the order in which the choices are listed; at an end of the list, or of a range, it stays
with the one that is there. A number that would be rounded back to where it was moves by one step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from sensorlab.cluster.search.evolution import bounded
from sensorlab.cluster.search.propose import draw
from sensorlab.cluster.search.space import is_active, parents_first, same
from sensorlab.cluster.sweep_config import Dimension, SweepConfig, decode_values, tune_space


class Explorer:
    """Perturbs the values of a configuration."""

    def __init__(self, sweep: SweepConfig) -> None:
        self._space = sweep.space
        self._config = sweep.population
        self._conditions = sweep.conditions
        self._domains = tune_space(sweep)
        self._order = parents_first(sweep.space, sweep.conditions)

    def explore(
        self, values: Mapping[str, Any], generator: np.random.Generator, kept: Collection[str] = ()
    ) -> dict[str, Any]:
        """A neighbour of ``values`` (choices encoded), in which ``kept`` keys stay as they are.

        A key that has become active by another one's change is drawn; one that no longer is active is left out.
        """
        found: dict[str, Any] = {}
        for key in self._order:
            if not is_active(key, decode_values(found), self._conditions):
                continue
            if key in kept and key in values:
                found[key] = values[key]
            elif key not in values or generator.random() < self._config.resample_probability:
                found[key] = draw(self._domains[key], generator)
            else:
                found[key] = self._moved(key, values[key], generator)
        return found

    def _moved(self, key: str, value: Any, generator: np.random.Generator) -> Any:
        if self._space[key].choice is not None:
            choices = self._domains[key].categories
            index = next(i for i, choice in enumerate(choices) if same(choice, value))
            return choices[int(np.clip(index + generator.choice((-1, 1)), 0, len(choices) - 1))]
        factor = float(generator.choice(self._config.factors))
        return perturbed(value, factor, self._space[key]) if value else draw(self._domains[key], generator)


def perturbed(value: float, factor: float, dimension: Dimension) -> float:
    """``value * factor`` as a value of ``dimension``; never the same where a step in that direction is inside of it."""
    moved = bounded(value * factor, dimension)
    is_stepped = dimension.quantum is not None or dimension.is_integer
    step = dimension.quantum or 1.0
    if is_stepped and factor != 1.0 and math.isclose(moved, value):
        moved = bounded(value + math.copysign(step, value * (factor - 1.0)), dimension)
    return moved
