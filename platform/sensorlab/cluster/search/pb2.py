"""Population based bandits (Parker-Holder et al., NeurIPS 2020, arXiv 2002.02518): PBT whose ranges are searched.

A member that takes over a checkpoint gets its numbers from a bandit instead of from a perturbation. The reward of
values in a generation is the change of the objective from the checkpoint that it began with; a Gaussian process with a
kernel that forgets (:mod:`sensorlab.cluster.search.gaussian_process`) learns it over (values, generation). The
values with the highest upper confidence bound for the coming generation are chosen, after the process has been told its
own mean at the values that other members are known to train with. Choices are explored as PBT does.

Three things are not as in the paper. Rewards are standardised within each generation instead of all together, because
early generations improve by far more than late ones; so the first generation counts too, whose members all begin with
the same weights. The acquisition is maximised over random candidates that narrow around the best, instead of by
gradients. And candidates keep a distance from values that are taken, which a high mean would otherwise give to several
members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sensorlab.cluster.search.evolution import bounded
from sensorlab.cluster.search.gaussian_process import Floats, Process, fitted
from sensorlab.cluster.search.population import Population
from sensorlab.cluster.search.propose import Outcome
from sensorlab.cluster.sweep_config import SweepConfig

_REMEMBERED = 300  # latest trials that the process sees: its cost grows with their cube
_CANDIDATES, _NARROWED, _ROUNDS = 512, 64, 4
_APART = 0.05  # from the values of another member, at least: the same donor with the same values is the same training
_EXPLORATION = (0.2, 0.4)  # beta = c1 + log(c2 n), as in the authors' code


class BanditPopulation(Population):
    """``algorithm: pb2``."""

    def __init__(self, sweep: SweepConfig, max_epochs: int) -> None:
        super().__init__(sweep, max_epochs)
        self._ranges = {key: sweep.space[key] for key in sorted(sweep.space) if sweep.space[key].choice is None}

    def _explored(
        self, values: Mapping[str, Any], history: Sequence[Outcome], generator: np.random.Generator
    ) -> Mapping[str, Any]:
        generation = len(history) // self._members
        process = fitted(*self.rewards(history[: generation * self._members]))
        pending = self._pending(history)
        process = process.with_pending(pending, np.full(len(pending), float(generation)))
        chosen = self._best_candidate(process, float(generation), pending, generator)
        return self._explorer.explore({**values, **chosen}, generator, kept=self._ranges)

    def rewards(self, history: Sequence[Outcome]) -> tuple[Floats, Floats, Floats]:
        """(points [n, d], generations [n], rewards [n]) of the latest trials of whole generations."""
        points, times, rewards = [], [], []
        everything = self.fitness(history)
        for begin in range(0, len(history), self._members):
            changes = {}
            for position in range(begin, begin + self._members):
                after, parent = everything[position], history[position].proposal.parent
                before = 0.0 if parent is None else everything[parent]
                if after is not None and before is not None:
                    changes[position] = after - before
            points += [self._scaled(history[position].proposal.values) for position in changes]
            times += [begin / self._members] * len(changes)
            rewards += standardised(list(changes.values()))
        shape = (-1, len(self._ranges))
        return (
            np.array(points, dtype=np.float64).reshape(shape)[-_REMEMBERED:],
            np.array(times, dtype=np.float64)[-_REMEMBERED:],
            np.array(rewards, dtype=np.float64)[-_REMEMBERED:],
        )

    def _pending(self, history: Sequence[Outcome]) -> Floats:
        """Points [m, d] that other members are known to train with in the coming generation: those that were proposed
        for it, and those of the members behind that go on with their own."""
        generation, member = divmod(len(history), self._members)
        begun = [outcome.proposal.values for outcome in history[generation * self._members :]]
        before = history[(generation - 1) * self._members : generation * self._members]
        going_on = [before[index].proposal.values for index in self.survivors(before) if index > member]
        points = [self._scaled(values) for values in (*begun, *going_on)]
        return np.array(points, dtype=np.float64).reshape(-1, len(self._ranges))

    def _best_candidate(
        self, process: Process, time: float, pending: Floats, generator: np.random.Generator
    ) -> dict[str, Any]:
        """The values of the ranges with the highest upper confidence bound, off those that are pending."""
        first, second = _EXPLORATION
        beta = first + max(0.0, math.log(second * max(1, len(process.targets))))
        apart = min(_APART, 0.25 / max(1, len(pending)))  # half of a single range stays free at least
        candidates = generator.random((_CANDIDATES, len(self._ranges)))
        best, highest = candidates[0], -math.inf
        for narrowing in range(_ROUNDS):
            points = self._valid(candidates)
            mean, variance = process.posterior(points, np.full(len(points), time))
            bounds = mean + np.sqrt(beta * variance)
            distances = np.linalg.norm(points[:, None] - pending[None], axis=2).min(axis=1, initial=math.inf)
            bounds[distances < apart] = -math.inf
            index = int(np.argmax(bounds))
            if bounds[index] > highest:
                best, highest = points[index], float(bounds[index])
            steps = generator.standard_normal((_NARROWED, len(self._ranges)))
            candidates = np.clip(best + 0.1 / 3**narrowing * steps, 0.0, 1.0)
        pairs = zip(self._ranges.items(), best, strict=True)
        return {key: bounded(dimension.at(float(place)), dimension) for (key, dimension), place in pairs}

    def _valid(self, points: Floats) -> Floats:
        """``points`` [n, d], each moved to the nearest one that stands for values."""
        columns = []
        for dimension, places in zip(self._ranges.values(), points.T, strict=True):
            is_stepped = dimension.quantum is not None or dimension.is_integer
            columns.append([dimension.place(dimension.at(place)) for place in places] if is_stepped else places)
        return np.array(columns, dtype=np.float64).T

    def _scaled(self, values: Mapping[str, Any]) -> Floats:
        """The ranges of a configuration as a point in the unit cube."""
        return np.array([dimension.place(values[key]) for key, dimension in self._ranges.items()], dtype=np.float64)


def standardised(values: Sequence[float]) -> list[float]:
    """Mean 0 and variance 1; all 0 where they do not differ."""
    deviation = float(np.std(values)) if values else 0.0
    if deviation == 0.0:
        return [0.0] * len(values)
    return [float(value) for value in (np.asarray(values) - np.mean(values)) / deviation]
