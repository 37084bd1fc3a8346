"""Population based training (Jaderberg et al., 2017, arXiv 1711.09846) with checkpoints that stay where they are.

A trial is one generation of one member: position ``p`` of the search is generation ``p // members`` of member
``p % members``. It trains until the end of its generation (``train.until``) and, after the first one, goes on from the
last checkpoint of a trial of the generation before (``train.fork``): its own member's, or that of a better one.

Generations are synchronous: none begins before all members have ended the one before. Decisions are therefore a
function of the seed and of results, never of timing or of which trial a machine happened to finish first, and a trial
has one configuration from its start to its end. Ray's own PBT decides by the order in which reports arrive, and changes
the configuration of a trial that runs: neither can be repeated, nor proven afterwards. The price is that a generation
takes as long as its slowest member.

Exploit: a member of the worst ``quantile``, by its latest objective, goes on from a random member of the best
``quantile``, if that one is strictly better. A member that failed is always among the worst, so that a population
repairs itself; a search whose whole generation failed has ended. Explore: the donor's values are perturbed
(:mod:`sensorlab.cluster.search.explore`) or, for PB2, searched (:mod:`sensorlab.cluster.search.pb2`). All others go on
with their own values, so that a population in which none is replaced equals trainings that were never divided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from sensorlab.cluster.search.explore import Explorer
from sensorlab.cluster.search.propose import WAIT, Outcome, Proposal, Random
from sensorlab.cluster.sweep_config import SweepConfig
from sensorlab.engine.duration import Duration
from sensorlab.report.ranking import UNTIL

_ROUNDING = 1e-9  # 0.1 * 30 is a little more than 3


class Population:
    """``algorithm: pbt``.

    Args:
        sweep: the search; ``num_trials`` is the number of members.
        max_epochs: of a whole training.
    """

    def __init__(self, sweep: SweepConfig, max_epochs: int) -> None:
        self._sweep = sweep
        self._members = sweep.num_trials
        self._max_epochs = max_epochs
        self._random = Random(sweep)
        self._explorer = Explorer(sweep)

    def propose(self, history: Sequence[Outcome]) -> Proposal | Literal["wait"] | None:
        generation, member = divmod(len(history), self._members)
        length = self._sweep.population.generation
        if generation * length >= self._max_epochs:
            return None
        assigned = {UNTIL: str(Duration(min((generation + 1) * length, self._max_epochs), "epochs"))}
        if generation == 0:
            first = self._random.propose(history)
            return replace(first, assigned=assigned) if first else None
        begin = (generation - 1) * self._members
        before = history[begin : begin + self._members]
        if any(outcome.state == "pending" for outcome in before):
            return WAIT
        generator = np.random.default_rng((self._sweep.seed, len(history)))
        parent = choose_parent(self.fitness(before), member, self._sweep.population.quantile, generator)
        if parent is None:
            return None
        values = before[parent].proposal.values
        if parent != member:
            values = self._explored(values, history, generator)
        return Proposal(values, assigned=assigned, parent=begin + parent)

    def fitness(self, outcomes: Sequence[Outcome]) -> list[float | None]:
        """Latest objectives, higher is better; ``None`` for what failed or has diverged."""
        sign = 1.0 if self._sweep.mode == "max" else -1.0
        return [
            sign * outcome.last
            if outcome.state == "complete" and outcome.last is not None and math.isfinite(outcome.last)
            else None
            for outcome in outcomes
        ]

    def survivors(self, outcomes: Sequence[Outcome]) -> list[int]:
        """Members that go on with their own values after a generation with these ``outcomes``."""
        donors = donors_of(self.fitness(outcomes), self._sweep.population.quantile)
        return [member for member, found in enumerate(donors) if found is None]

    def _explored(
        self, values: Mapping[str, Any], history: Sequence[Outcome], generator: np.random.Generator
    ) -> Mapping[str, Any]:
        """The values of a member that has taken over the checkpoint of one with ``values``."""
        return self._explorer.explore(values, generator)


def choose_parent(
    fitness: Sequence[float | None], member: int, quantile: float, generator: np.random.Generator
) -> int | None:
    """The member whose checkpoint ``member`` goes on from: itself, unless it is replaced. ``None``: all have failed."""
    donors = donors_of(fitness, quantile)[member]
    if donors is None:
        return member
    return donors[generator.integers(len(donors))] if donors else None


def donors_of(fitness: Sequence[float | None], quantile: float) -> list[list[int] | None]:
    """For each member the members that may replace it; ``None`` for one that goes on by itself.

    Args:
        fitness: of each member, higher is better; ``None`` for a failed one.
        quantile: share of the worst, and of the best; part of a member counts as one, up to half of all.
    """
    alive = {index: value for index, value in enumerate(fitness) if value is not None}
    ranked = sorted(alive, key=lambda index: -alive[index])  # stable: of equals the first is the better
    count = min(math.ceil(quantile * len(fitness) - _ROUNDING), max(1, len(fitness) // 2))
    failed = len(fitness) - len(alive)
    best, worst = ranked[:count], ranked[len(ranked) - max(0, count - failed) :]
    found: list[list[int] | None] = []
    for member in range(len(fitness)):
        if member not in alive:
            found.append(best)
            continue
        better = [index for index in best if alive[index] > alive[member]]
        found.append(better if member in worst and better else None)
    return found


def new_population(sweep: SweepConfig, max_epochs: int) -> Population:
    """The population that ``sweep.algorithm`` names."""
    if sweep.algorithm == "pb2":
        from sensorlab.cluster.search.pb2 import BanditPopulation

        return BanditPopulation(sweep, max_epochs)
    return Population(sweep, max_epochs)
