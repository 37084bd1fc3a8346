"""What schedulers have in common: like is compared with like, and decisions survive the driver.

Where configurations are repeated with several seeds, the first repeat of a configuration competes with the first
repeats of the others, which have the same seed, and its configuration stands or falls with it. The further repeats are
never compared; they end at the epoch where the first one ended, so all repeats of a configuration train equally long.
(One that had run ahead ends at its next report.) If the first repeat fails, the next one takes its place.

Objectives that were measured by different protocols are different quantities, and are not compared either.

The state of a scheduler is the ledger, so a restored sweep decides with all that it had seen. Tune does not save the
state of schedulers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sensorlab.cluster.ledger import Ledger, TrialRecord, shared_ledger
from sensorlab.cluster.search.standing import configuration_key
from sensorlab.cluster.sweep_config import MedianConfig


class EarlyStopping(FIFOScheduler):
    """Stops trials for good. A subclass says which ones."""

    def __init__(self, sweep_dir: str, mode: str, repeats: bool = False) -> None:
        super().__init__()
        self._sweep_dir = sweep_dir
        self._mode = mode
        self._repeats = repeats

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def enter(self, leader: TrialRecord, rivals: Sequence[TrialRecord]) -> None:
        """A configuration, by its first repeat, among ``rivals``: called before each of its reports is looked at."""

    def fell_behind(self, record: TrialRecord, rivals: Sequence[TrialRecord], epoch: int, value: float) -> int | None:
        """Enter in ``record`` what was reported; the epoch of the comparison that it lost, ``None`` if it lost none.

        Args:
            record: the trial that has reported. It may report again what it did before a restart.
            rivals: the trials that it is compared with, without itself: those that measured by the same protocol.
            epoch: trained so far.
            value: the objective there.
        """
        raise NotImplementedError

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        ledger = shared_ledger(self._sweep_dir)
        record = ledger.trials[trial.trial_id]
        leaders = first_repeats(ledger) if self._repeats else {}
        leader = leaders.get(configuration_key(record.values), record)
        compared = leaders.values() if self._repeats else ledger.trials.values()
        rivals = [other for other in compared if other is not leader]
        before = _written(leader), _written(record)
        self.enter(leader, rivals)
        record.bracket = leader.bracket
        protocol = result.get("protocol", "")
        alike = [other for other in rivals if not protocol or other.protocol in ("", protocol)]
        lost = self.fell_behind(record, alike, int(result["epoch"]), float(result["objective"]))
        if leader is record and lost is not None and record.stopped_at is None:
            record.stopped_at = lost
        if before != (_written(leader), _written(record)):
            ledger.save()  # the report with its decision: a driver that is killed now finds both
        if leader.stopped_at is None or result["epoch"] < leader.stopped_at:
            return TrialScheduler.CONTINUE
        record.stopped_at = leader.stopped_at
        record.reason = f"behind at epoch {leader.stopped_at}"
        return TrialScheduler.STOP


class MedianStopping(EarlyStopping):
    """The median rule of Golovin et al., "Google Vizier" (KDD 2017).

    A trial is stopped at an epoch if its best objective so far is worse than the median, over the other trials that
    got as far, of the mean of their objectives up to that epoch.
    """

    def __init__(self, sweep_dir: str, config: MedianConfig, max_epochs: int, mode: str, repeats: bool = False) -> None:
        super().__init__(sweep_dir, mode, repeats)
        self._config = config
        self._max_epochs = max_epochs

    def fell_behind(self, record: TrialRecord, rivals: Sequence[TrialRecord], epoch: int, value: float) -> int | None:
        record.curve[str(epoch)] = value
        if not self._config.grace_epochs <= epoch < self._max_epochs:  # after the last epoch nothing is left to save
            return None
        sign = 1.0 if self._mode == "max" else -1.0
        means = [sign * _mean_until(other, epoch) for other in rivals if str(epoch) in other.curve]
        means = [mean for mean in means if math.isfinite(mean)]  # an objective that was no number arrives as infinite
        if len(means) < self._config.min_trials:
            return None
        best = max(sign * reported for reported in record.curve.values())
        return epoch if best < statistics.median(means) else None


def _written(record: TrialRecord) -> tuple[int, int, int | None, int | None]:
    """Changes with whatever a scheduler enters in a record."""
    return len(record.rungs), len(record.curve), record.bracket, record.stopped_at


def _mean_until(record: TrialRecord, epoch: int) -> float:
    return statistics.fmean(value for at, value in record.curve.items() if int(at) <= epoch)


def first_repeats(ledger: Ledger) -> dict[str, TrialRecord]:
    """The first trial of every configuration that has not failed."""
    first: dict[str, TrialRecord] = {}
    for record in sorted(ledger.trials.values(), key=lambda record: record.number):
        if record.state != "failed":
            first.setdefault(configuration_key(record.values), record)
    return first
