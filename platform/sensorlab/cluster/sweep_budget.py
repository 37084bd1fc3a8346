"""What a sweep may spend, over all of its drivers: seconds and epochs.

``sweep.time_budget_s`` counts the wall time of every driver that has worked on the sweep. The ledger keeps it, and is
saved every ``SAVE_S`` seconds, so that a driver that is killed loses no more than that. When it is used up, running
trials are ended at once.

``sweep.epoch_budget`` counts the epochs that trials have reported, those of failed trials and of cheap levels of a
fidelity too. A trial that went on from the checkpoint of another one counts for what it has trained itself; what was
trained again after a crash does not count twice. When it is used up, no trial starts, and each running one ends with
its next report: up to one epoch more for each trial that runs beside the one whose report was the last of the budget.

A trial that was ended by a budget is ``stopped``, but nothing has judged it: when the sweep goes on with more to spend,
so does the trial, from its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sensorlab.cluster.files import STOPPED
from sensorlab.cluster.ledger import Ledger
from sensorlab.cluster.sweep_config import SweepConfig

SAVE_S = 2.0


class SweepBudget:
    """The clock of a driver, and what is left."""

    def __init__(self, sweep: SweepConfig, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_seconds = sweep.time_budget_s
        self._max_epochs = sweep.epoch_budget
        self._ledger = ledger
        self._clock = clock
        self._started = self._saved = clock()
        self._seconds_before = ledger.seconds

    def tick(self, save: bool = False) -> None:
        """Note the time that has passed."""
        now = self._clock()
        self._ledger.seconds = self._seconds_before + now - self._started
        if save or now - self._saved >= SAVE_S:
            self._saved = now
            self._ledger.save()

    @property
    def is_out_of_time(self) -> bool:
        return self._max_seconds is not None and self._ledger.seconds >= self._max_seconds

    def is_out_of_epochs(self, more: int = 0) -> bool:
        """Whether the epochs are used up; ``more``: of a report that the ledger does not know yet."""
        return self._max_epochs is not None and epochs_trained(self._ledger) + more >= self._max_epochs

    @property
    def spent(self) -> str:
        """The budget that is used up; empty if there is something left."""
        if self.is_out_of_time:
            return "time budget reached"
        return "epoch budget reached" if self.is_out_of_epochs() else ""

    def describe(self) -> str:
        """How much of it is used, and how the sweep gets more."""
        parts = []
        if self._max_seconds is not None:
            parts.append(f"{self._ledger.seconds:.0f} of {self._max_seconds:g} s (sweep.time_budget_s)")
        if self._max_epochs is not None:
            parts.append(f"{epochs_trained(self._ledger)} of {self._max_epochs} epochs (sweep.epoch_budget)")
        return ", ".join(parts)


def epochs_trained(ledger: Ledger) -> int:
    """By all trials together."""
    begun_at = {record.trial_id: record.epoch for record in ledger.trials.values()}
    return sum(max(record.epoch - begun_at.get(record.forked_from or "", 0), 0) for record in ledger.trials.values())


def reopen(ledger: Ledger) -> None:
    """Let trials go on that the end of the sweep had stopped; those that a scheduler stopped are marked as such."""
    for record in ledger.trials.values():
        if record.state == "stopped" and not (ledger.path.parent / "trials" / record.trial_id / STOPPED).exists():
            record.state, record.reason = "interrupted", ""
    ledger.ended = ""
    ledger.save()
