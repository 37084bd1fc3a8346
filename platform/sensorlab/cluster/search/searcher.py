"""The searcher that Tune asks: configurations of a proposer, each with several seeds.

Tune's own ``Repeater`` marks a repeat by an extra key in its configuration, averages what each repeat reported last,
however long it trained, and advises against schedulers that stop trials. Here a repeat differs in the experiment's
``seed``, and the searcher is told the mean that the ranking has, once all repeats have ended.

What was proposed is saved by Tune together with its list of trials; what became of it is in the ledger. Both are all
that a restored sweep needs.
"""

from __future__ import annotations

import pickle
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray.tune.search import Searcher

from sensorlab.cluster.ledger import shared_ledger
from sensorlab.cluster.search.propose import WAIT, Outcome, Proposal, new_proposer
from sensorlab.cluster.search.standing import mean_objective
from sensorlab.cluster.sweep_config import SweepConfig, decode_values
from sensorlab.engine.checkpoint import CheckpointStore
from sensorlab.report.ranking import FORK, INIT, SEED, leading


@dataclass
class Repeated:
    """A proposal and the ids of its trials, in the order of their seeds."""

    proposal: Proposal
    trial_ids: list[str] = field(default_factory=list)


class SweepSearch(Searcher):
    """Proposes trial after trial: all seeds of a configuration, then the next one."""

    def __init__(self, sweep_dir: str, sweep: SweepConfig, base_seed: int, max_epochs: int | None = None) -> None:
        super().__init__(metric="objective", mode=sweep.mode)
        self._sweep_dir = sweep_dir
        self._sweep = sweep
        self._base_seed = base_seed
        self._proposer = new_proposer(sweep, max_epochs)
        self._total = sweep.total_trials(max_epochs)
        self._proposed: list[Repeated] = []

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # the sweep says all of it

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        ledger = shared_ledger(self._sweep_dir)
        while True:
            current = self._current()
            if current == WAIT:
                return None  # Tune asks again
            if current is None:
                ledger.note_exhausted()
                return str(Searcher.FINISHED)
            values, position = self._values(current), len(self._proposed) - 1
            claimed = {each for repeated in self._proposed for each in repeated.trial_ids}
            found = ledger.unclaimed(position, decode_values(values), claimed)
            current.trial_ids.append(found or trial_id)
            if found is None:
                ledger.note_proposed(trial_id, position)
                return values

    def _current(self) -> Repeated | Literal["wait"] | None:
        """The configuration that the next trial is of; ``None``: all have been proposed."""
        if self._proposed and len(self._proposed[-1].trial_ids) < self._sweep.seeds:
            return self._proposed[-1]
        if len(self._proposed) * self._sweep.seeds >= self._total:
            return None
        comparable = self._comparable()
        proposal = self._proposer.propose([self._outcome(repeated, comparable) for repeated in self._proposed])
        if proposal is None or proposal == WAIT:
            return proposal
        self._proposed.append(Repeated(proposal))
        return self._proposed[-1]

    def _values(self, current: Repeated) -> dict[str, Any]:
        values = {**current.proposal.values, **current.proposal.assigned}
        if current.proposal.parent is not None:
            values[FORK], values[INIT] = self._last_checkpoint(current.proposal.parent), None
        if self._sweep.seeds > 1:
            values[SEED] = self._base_seed + len(current.trial_ids)
        return values

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to keep: the ledger knows what became of the trial."""

    def _comparable(self) -> set[str]:
        """Ids of the trials whose objectives compare: those of the protocol that most trials of their level have."""
        found = leading(shared_ledger(self._sweep_dir).standings())
        return {trial.trial_id for ranking in found for trial in ranking.trials}

    def _outcome(self, repeated: Repeated, comparable: AbstractSet[str]) -> Outcome:
        """What became of a proposal. Without trials that are ``comparable`` it has failed: another protocol's number
        would say nothing about the values that were proposed."""
        known = shared_ledger(self._sweep_dir).trials
        records = [known[trial_id] for trial_id in repeated.trial_ids if trial_id in known]
        seen: dict[str, Any] = {}
        if records:
            rungs = {int(epoch): value for epoch, value in records[0].rungs.items()}
            if records[0].state == "done" and records[0].last_objective is not None:
                rungs[records[0].epoch] = records[0].last_objective
            seen = {"last": records[0].last_objective, "rungs": rungs}
        if len(records) < self._sweep.seeds or not all(record.ended for record in records):
            return Outcome(repeated.proposal, "pending", **seen)
        mean = mean_objective(records, self._sweep.mode)
        if mean is not None and comparable.isdisjoint(record.trial_id for record in records):
            return Outcome(repeated.proposal, "failed")
        return Outcome(repeated.proposal, "failed" if mean is None else "complete", mean, **seen)

    def _last_checkpoint(self, position: int) -> str:
        """Where the (first) trial of a proposal has left off."""
        record = shared_ledger(self._sweep_dir).trials[self._proposed[position].trial_ids[0]]
        latest = CheckpointStore(Path(record.run_dir) / "checkpoints").latest()
        if latest is None:
            raise RuntimeError(f"trial {record.trial_id} ended without a checkpoint to go on from")
        return str(latest.path)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self._proposed))

    def restore(self, checkpoint_path: str) -> None:
        self._proposed = pickle.loads(Path(checkpoint_path).read_bytes())
        for position, repeated in enumerate(self._proposed):
            for trial_id in repeated.trial_ids:
                shared_ledger(self._sweep_dir).note_proposed(trial_id, position)
