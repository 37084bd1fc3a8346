"""Algorithms that propose configurations.

A proposer has no state. What it proposes is a function of the sweep's seed, of the configuration's position in the
sweep, and of the outcomes of the configurations before it. Trials that run when a configuration is proposed are
``pending``: a sweep of several trials at a time therefore depends on when they end, as every such search does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np

from sensorlab.cluster.search.space import combinations, drop_inactive
from sensorlab.cluster.sweep_config import SweepConfig, decode_values, encode_choice, tune_space

WAIT: Final = "wait"
"""Proposed by a proposer that cannot go on before more of the trials have ended."""


@dataclass(frozen=True)
class Proposal:
    """A configuration.

    Attributes:
        values: searched key to value, choices encoded by ``encode_choice``.
        notes: the proposer's own.
        assigned: keys beside the searched ones that the trial gets from the sweep (``ASSIGNED``).
        parent: position of the proposal whose last checkpoint the trial goes on from; ``None`` starts from nothing.
    """

    values: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)
    assigned: Mapping[str, Any] = field(default_factory=dict)
    parent: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a proposal.

    Attributes:
        state: ``pending`` until all of its repeats have ended, ``failed`` if none has an objective that compares.
        value: mean objective of its repeats; ``None`` unless it is ``complete``.
        last: the objective that its first repeat reported last.
        rungs: epoch of a rung of the scheduler, or of the end of a training that came to it, to the objective that its
            first repeat had there, ended or not.
    """

    proposal: Proposal
    state: Literal["pending", "complete", "failed"]
    value: float | None = None
    last: float | None = None
    rungs: Mapping[int, float] = field(default_factory=dict)


class Proposer(Protocol):
    """Proposes the configuration of a position, given the outcomes of all before it."""

    def propose(self, history: Sequence[Outcome]) -> Proposal | Literal["wait"] | None:
        """The configuration at position ``len(history)``; ``None``: there are no more; ``WAIT``: not yet."""


class Grid:
    """Every combination; the values of the first key in alphabetical order change fastest."""

    def __init__(self, sweep: SweepConfig) -> None:
        choices = {key: dimension.choice or () for key, dimension in sweep.space.items()}
        found = combinations(choices, sweep.conditions)
        self._combinations = [{key: encode_choice(value) for key, value in values.items()} for values in found]

    def propose(self, history: Sequence[Outcome]) -> Proposal | None:
        position = len(history)
        return Proposal(self._combinations[position]) if position < len(self._combinations) else None


class Random:
    """Independent draws."""

    def __init__(self, sweep: SweepConfig) -> None:
        generator = np.random.default_rng(sweep.seed)
        space = tune_space(sweep)
        # All draws are made at once: a later position is then the same whether or not the sweep was restored.
        draws = (
            {key: domain.sample(random_state=generator) for key, domain in space.items()}
            for _ in range(sweep.num_trials)
        )
        active = [drop_inactive(decode_values(values), sweep.conditions) for values in draws]
        self._drawn = [{key: encode_choice(value) for key, value in values.items()} for values in active]

    def propose(self, history: Sequence[Outcome]) -> Proposal | None:
        position = len(history)
        return Proposal(self._drawn[position]) if position < len(self._drawn) else None


def draw(domain: Any, generator: np.random.Generator) -> Any:
    """A value of one of the domains of ``tune_space``."""
    return encode_choice(decode_values({"": domain.sample(random_state=generator)})[""])


def new_proposer(sweep: SweepConfig, max_epochs: int | None = None) -> Proposer:
    """The proposer that the sweep asks for; ``max_epochs``: of a training, which a population divides."""
    proposer = _of_algorithm(sweep, max_epochs)
    if sweep.fidelity is None:
        return proposer
    from sensorlab.cluster.search.fidelity import Promotions

    return Promotions(sweep, sweep.fidelity, proposer)


def _of_algorithm(sweep: SweepConfig, max_epochs: int | None) -> Proposer:
    if sweep.algorithm == "grid":
        return Grid(sweep)
    if sweep.algorithm == "random":
        return Random(sweep)
    if sweep.algorithm == "evolution":
        from sensorlab.cluster.search.evolution import Evolution

        return Evolution(sweep)
    if sweep.algorithm == "bohb":
        from sensorlab.cluster.search.bohb import Bohb

        return Bohb(sweep)
    if sweep.is_population:
        from sensorlab.cluster.search.population import new_population

        return new_population(sweep, max_epochs or 1)
    from sensorlab.cluster.search.optuna_proposer import OptunaProposer

    return OptunaProposer(sweep)
