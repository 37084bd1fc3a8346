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

from sensorlab.cluster.ledger import shared_ledger
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
    """Stops a trial that falls behind at a rung."""

    def __init__(self, sweep_dir: str, config: AshaConfig, max_epochs: int, mode: str) -> None:
        super().__init__()
        self._sweep_dir = sweep_dir
        self._config = config
        self._rungs = rung_epochs(config, max_epochs)
        self._mode = mode

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        ledger = shared_ledger(self._sweep_dir)
        record = ledger.trials[trial.trial_id]
        reached = [rung for rung in self._rungs if rung <= result["epoch"]]
        # The highest rung counts, once: a trial that starts again reports epochs that were compared before.
        if not reached or str(reached[-1]) in record.rungs:
            return TrialScheduler.CONTINUE
        rung, value = str(reached[-1]), float(result["objective"])
        earlier = [other.rungs[rung] for other in ledger.trials.values() if rung in other.rungs]
        record.rungs[rung] = value
        ledger.save()
        if survives(value, earlier, self._config.reduction, self._mode):
            return TrialScheduler.CONTINUE
        record.reason = f"behind at epoch {rung}"
        return TrialScheduler.STOP
