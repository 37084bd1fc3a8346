"""Evolution as YOLOv5 searches its hyperparameters: mutants of the best configurations so far.

A parent is drawn among the best ``parents`` configurations with a probability in proportion to how far its objective
is above the worst of them. Every number is multiplied by ``clip(1 + gain * g * n * u * sigma, 0.3, 3)`` with ``n``
normal, ``u`` uniform in [0, 1) and ``g`` 1 with probability ``mutation_probability``, else 0; then it is put back into
the bounds of its dimension. This is repeated until a configuration is new.

What YOLOv5 does not have: several configurations at a time; choices, which change into another one with
``choice_probability``; draws from the space as the first generation, instead of one given configuration; numbers that
are 0, which no factor changes and which are therefore drawn anew when they mutate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sensorlab.cluster.search.propose import Outcome, Proposal, Random, draw
from sensorlab.cluster.search.space import is_active, parents_first, same
from sensorlab.cluster.sweep_config import (
    Dimension,
    EvolutionConfig,
    SweepConfig,
    decode_values,
    tune_space,
)

_FACTORS = (0.3, 3.0)
_ATTEMPTS = 200  # until a new mutant; a small space may have none
_LEAST_WEIGHT = 1e-6  # of the worst parent: a single one, or several equal ones, can be drawn
_DIGITS = 5  # significant ones of a mutated number


class Evolution:
    """``algorithm: evolution``."""

    def __init__(self, sweep: SweepConfig) -> None:
        self._sweep = sweep
        self._config: EvolutionConfig = sweep.evolution
        self._random = Random(sweep)
        self._domains = tune_space(sweep)
        self._order = parents_first(sweep.space, sweep.conditions)

    def propose(self, history: Sequence[Outcome]) -> Proposal | None:
        parents = self._parents(history)
        if len(history) < self._config.initial or not parents:
            return self._random.propose(history)
        generator = np.random.default_rng((self._sweep.seed, len(history)))
        weights = selection_weights([value for _, value in parents])
        known = [outcome.proposal.values for outcome in history]
        for _ in range(_ATTEMPTS):
            parent = parents[generator.choice(len(parents), p=weights)][0]
            child = self._mutant(parent, generator)
            if not any(same(child, other) for other in known):
                return Proposal(child)
        return self._random.propose(history)

    def _parents(self, history: Sequence[Outcome]) -> list[tuple[Mapping[str, Any], float]]:
        """(values, fitness) of the best, best first; a higher fitness is better in either mode."""
        sign = 1.0 if self._sweep.mode == "max" else -1.0
        complete = [(outcome.proposal.values, sign * outcome.value) for outcome in history if outcome.value is not None]
        return sorted(complete, key=lambda pair: -pair[1])[: self._config.parents]

    def _mutant(self, parent: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        child: dict[str, Any] = {}
        for key in self._order:
            if not is_active(key, decode_values(child), self._sweep.conditions):
                continue
            if key not in parent:  # it has become active
                child[key] = draw(self._domains[key], generator)
            elif self._sweep.space[key].choice is not None:
                child[key] = self._other_choice(key, parent[key], generator)
            else:
                child[key] = self._mutated(key, parent[key], generator)
        return child

    def _other_choice(self, key: str, value: Any, generator: np.random.Generator) -> Any:
        choices = [other for other in self._domains[key].categories if not same(other, value)]
        mutates = generator.random() < self._config.choice_probability and self._config.gains.get(key, 1.0) > 0
        return choices[generator.integers(len(choices))] if mutates and choices else value

    def _mutated(self, key: str, value: float, generator: np.random.Generator) -> Any:
        gain = self._config.gains.get(key, 1.0)
        mutates = generator.random() < self._config.mutation_probability and gain > 0
        change = gain * generator.standard_normal() * generator.random() * self._config.sigma
        if not mutates:
            return value
        if value == 0:
            return draw(self._domains[key], generator)
        return bounded(value * float(np.clip(1 + change, *_FACTORS)), self._sweep.space[key])


def selection_weights(fitness: Sequence[float]) -> np.ndarray:
    """Chances of parents: in proportion to ``fitness - min(fitness)``."""
    weights = np.asarray(fitness, dtype=np.float64)
    weights = weights - weights.min() + _LEAST_WEIGHT
    return weights / weights.sum()


def bounded(value: float, dimension: Dimension) -> float:
    """The value of a range that is nearest to ``value``; of a continuous one, to five significant digits."""
    is_continuous = dimension.quantum is None and not dimension.is_integer
    return dimension.nearest(float(f"{value:.{_DIGITS}g}") if is_continuous else value)
