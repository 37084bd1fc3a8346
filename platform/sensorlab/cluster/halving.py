"""Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020).

The decisions are those of Ray's own scheduler (a test compares them). What is different: its state is the ledger, so
a restored sweep decides with all that it had seen. Tune does not save the state of schedulers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sensorlab.cluster.ledger import Ledger, TrialRecord, shared_ledger
from sensorlab.cluster.search.standing import configuration_key
from sensorlab.cluster.sweep_config import AshaConfig


def rung_epochs(config: AshaConfig, max_epochs: int) -> list[int]:
    """Epochs after which trials are compared, ascending; all before the last epoch, where nothing is left to save."""
    powers = (round(config.grace_epochs * config.reduction**k) for k in itertools.count())
    return list(itertools.takewhile(lambda epoch: epoch < max_epochs, powers))


def survives(value: float, earlier: list[float], reduction: float, mode: str) -> bool:
    """Whether ``value`` is among the top ``1 / reduction`` of what reached its rung before. The first always is."""
    if not earlier:
        return True
    sign = 1.0 if mode == "max" else -1.0
    cutoff = np.percentile([sign * other for other in earlier], (1 - 1 / reduction) * 100)
    return bool(sign * value >= cutoff)


class SuccessiveHalving(FIFOScheduler):
    """Stops a trial that falls behind at a rung.

    Where configurations are repeated with several seeds, like is compared with like: the first repeat of a
    configuration competes with the first repeats of the others, which have the same seed, and its configuration stands
    or falls with it. The further repeats are never compared; they end at the rung where the first one ended, so all
    repeats of a configuration train equally long. (One that had run ahead ends at its next report.) If the first repeat
    fails, the next one takes its place.
    """

    def __init__(self, sweep_dir: str, config: AshaConfig, max_epochs: int, mode: str, repeats: bool = False) -> None:
        super().__init__()
        self._sweep_dir = sweep_dir
        self._config = config
        self._rungs = rung_epochs(config, max_epochs)
        self._mode = mode
        self._repeats = repeats

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        ledger = shared_ledger(self._sweep_dir)
        record = ledger.trials[trial.trial_id]
        leaders = first_repeats(ledger) if self._repeats else {}
        leader = leaders.get(configuration_key(record.values), record)
        reached = [rung for rung in self._rungs if rung <= result["epoch"]]
        # The highest rung counts, once: a trial that starts again reports epochs that were compared before.
        if reached and str(reached[-1]) not in record.rungs:
            rung, value = reached[-1], float(result["objective"])
            compared = leaders.values() if self._repeats else ledger.trials.values()
            earlier = [other.rungs[str(rung)] for other in compared if str(rung) in other.rungs]
            record.rungs[str(rung)] = value
            if leader is record and not survives(value, earlier, self._config.reduction, self._mode):
                record.stopped_at = rung
            ledger.save()  # with the decision: a driver that is killed now finds it
        if leader.stopped_at is None or result["epoch"] < leader.stopped_at:
            return TrialScheduler.CONTINUE
        record.stopped_at = leader.stopped_at
        record.reason = f"behind at epoch {leader.stopped_at}"
        return TrialScheduler.STOP


def first_repeats(ledger: Ledger) -> dict[str, TrialRecord]:
    """The first trial of every configuration that has not failed."""
    first: dict[str, TrialRecord] = {}
    for record in sorted(ledger.trials.values(), key=lambda record: record.number):
        if record.state != "failed":
            first.setdefault(configuration_key(record.values), record)
    return first
