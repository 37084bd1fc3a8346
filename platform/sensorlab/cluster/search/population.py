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
        fitness = self.fitness(before)
        parent = choose_parent(fitness, member, self._sweep.population.quantile, generator)
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

    def _explored(
        self, values: Mapping[str, Any], history: Sequence[Outcome], generator: np.random.Generator
    ) -> Mapping[str, Any]:
        """The values of a member that has taken over the checkpoint of one with ``values``."""
        return self._explorer.explore(values, generator)


def choose_parent(
    fitness: Sequence[float | None], member: int, quantile: float, generator: np.random.Generator
) -> int | None:
    """The member whose checkpoint ``member`` goes on from: itself, unless it is one of the worst.

    Args:
        fitness: of each member, higher is better; ``None`` for a failed one.
        quantile: share of the worst, and of the best; a tenth of a member counts as one, up to half of all.

    Returns:
        ``None`` if all have failed.
    """
    alive = [index for index, value in enumerate(fitness) if value is not None]
    if not alive:
        return None
    ranked = sorted(alive, key=lambda index: -(fitness[index] or 0.0))  # stable: of equals the first is the better
    count = min(math.ceil(quantile * len(fitness) - 1e-9), max(1, len(fitness) // 2))
    own, best = fitness[member], ranked[:count]
    if own is None:
        return best[generator.integers(len(best))]
    failed = len(fitness) - len(alive)
    worst = ranked[len(ranked) - max(0, count - failed) :]
    donors = [index for index in best if (fitness[index] or 0.0) > own]
    if member not in worst or not donors:
        return member
    return donors[generator.integers(len(donors))]


def new_population(sweep: SweepConfig, max_epochs: int) -> Population:
    """The population that ``sweep.algorithm`` names."""
    if sweep.algorithm == "pb2":
        from sensorlab.cluster.search.pb2 import BanditPopulation

        return BanditPopulation(sweep, max_epochs)
    return Population(sweep, max_epochs)
