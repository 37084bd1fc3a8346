"""Cheap trials of all configurations, dearer ones of the best: successive halving along a key of the experiment.

``sweep.fidelity`` names the key and its values, cheapest first; position ``k`` among them is *level* ``k``. All
configurations of the search's algorithm run at level 0, and the algorithm sees the outcomes of that level alone. When a
whole level has ended, the best ``1 / asha.reduction`` of it run again, from nothing, at the next one (Jamieson &
Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016).

Levels are synchronous, unlike the rungs of ASHA: which configurations go on is a function of what was measured, never
of the order in which trials ended. The price is that a level takes as long as its slowest trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sensorlab.cluster.search.options import FidelityConfig
from sensorlab.cluster.search.propose import WAIT, Outcome, Proposal, Proposer
from sensorlab.cluster.sweep_config import SweepConfig, decode_values, encode_choice
from sensorlab.config import canonical_json


class Promotions:
    """The configurations of ``base`` at level 0, then the best of each level at the next one.

    A configuration that failed is not replaced by another one, and of equal ones the earliest goes on. If nothing of a
    level was measured, the search ends with it.
    """

    def __init__(self, sweep: SweepConfig, fidelity: FidelityConfig, base: Proposer) -> None:
        self._sweep = sweep
        self._fidelity = fidelity
        self._base = base

    def propose(self, history: Sequence[Outcome]) -> Proposal | Literal["wait"] | None:
        levels: list[list[Outcome]] = [[] for _ in self._fidelity.values]
        for outcome in history:
            levels[self._fidelity.level(decode_values(outcome.proposal.assigned))].append(outcome)
        if len(levels[0]) < self._sweep.total_configurations:
            proposal = self._base.propose(levels[0])
            if proposal == WAIT:
                return WAIT
            if isinstance(proposal, Proposal):
                return self._at(0, proposal)
        for level in range(1, len(levels)):
            if any(outcome.state == "pending" for outcome in levels[level - 1]):
                return WAIT
            promoted = self._best(levels[level - 1])
            known = {_key(outcome.proposal) for outcome in levels[level]}
            if len(known) < len(promoted):
                return self._at(level, next(each for each in promoted if _key(each) not in known))
        return None

    def _best(self, ended: Sequence[Outcome]) -> list[Proposal]:
        """Those of a level that go on, best first; each configuration once, however often it was proposed."""
        sign = -1.0 if self._sweep.mode == "max" else 1.0
        measured = [(sign * outcome.value, outcome.proposal) for outcome in ended if outcome.value is not None]
        ranked = [proposal for _, proposal in sorted(measured, key=lambda pair: pair[0])]  # stable: the earliest first
        different: dict[str, Proposal] = {}
        for proposal in ranked:
            different.setdefault(_key(proposal), proposal)
        return list(different.values())[: self._sweep.asha.survivors(len(ended))]

    def _at(self, level: int, proposal: Proposal) -> Proposal:
        value = encode_choice(self._fidelity.values[level])
        return replace(proposal, assigned={**proposal.assigned, self._fidelity.key: value})


def _key(proposal: Proposal) -> str:
    return canonical_json(dict(proposal.values))
