"""What the driver knows about the trials of a sweep; kept on disk so that a killed driver can go on."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sensorlab.cluster.files import read_json, write_json
from sensorlab.cluster.search.standing import standings
from sensorlab.report.ranking import FORK, Ranking, leading

State = Literal["running", "done", "stopped", "failed", "interrupted"]


@dataclass
class TrialRecord:
    """One trial.

    ``done`` trained to the end of its budget, ``stopped`` was ended early by the scheduler or by a budget of the sweep,
    ``interrupted`` was running when the driver ended and continues with ``--resume``.
    """

    number: int
    trial_id: str
    values: dict[str, Any]  # searched key -> sampled value
    config_digest: str  # of the configuration that the driver sent
    run_dir: str
    state: State = "running"
    epoch: int = 0
    objective: float | None = None  # best over the epochs
    last_objective: float | None = None  # of the latest report
    best_epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # at the best epoch
    protocol: str = ""  # digest of what defines the objective: metric, threshold, split, dataset, ...
    rungs: dict[str, float] = field(default_factory=dict)  # epoch of a rung of the scheduler -> objective there
    curve: dict[str, float] = field(default_factory=dict)  # epoch -> objective, where a scheduler compares whole curves
    position: int | None = None  # of its configuration among those that the search has proposed
    forked_from: str | None = None  # id of the trial from whose last checkpoint it went on
    fidelity: int | None = None  # its level: position of its value in sweep.fidelity.values
    bracket: int | None = None  # of HyperBand: rungs that its configuration passes without being compared
    stopped_at: int | None = None  # epoch of the rung at which the scheduler stopped it
    best_checkpoint: str | None = None
    run_id: str | None = None  # of the tracking store
    seconds: float = 0.0  # wall time of all attempts
    restarts: int = 0
    reason: str = ""  # of a failure or a stop
    verified: bool = False  # the worker has proven that it runs the configuration that was sent
    started: float | None = None  # time.time() of the current attempt

    @property
    def ended(self) -> bool:
        return self.state in ("done", "stopped", "failed")


class Ledger:
    """The trials of a sweep in the order of their start; every change is saved to ``path``."""

    def __init__(self, path: Path, mode: str) -> None:
        self.path = path
        self.mode = mode
        self.trials: dict[str, TrialRecord] = {}
        saved = read_json(path) or {}
        self.is_exhausted: bool = saved.get("is_exhausted", False)  # the search has nothing more to propose
        self.seconds: float = saved.get("seconds", 0.0)  # wall time of all drivers
        self.ended: str = saved.get("ended", "")  # why the sweep was ended before all of its trials
        self._positions: dict[str, int] = {}  # of the trials that were proposed, also of those that have not started
        for entry in saved.get("trials", []):
            record = TrialRecord(**entry)
            if record.state == "running":  # the driver that ran it is gone
                record.state, record.started = "interrupted", None
            self.trials[record.trial_id] = record

    def start(self, trial_id: str, values: Mapping[str, Any], digest: str, run_dir: Path) -> TrialRecord:
        """A trial starts, or starts again after a failure or a restored sweep."""
        record = self.trials.get(trial_id)
        if record is None:
            number = 1 + max((other.number for other in self.trials.values()), default=-1)
            record = TrialRecord(number, trial_id, dict(values), digest, str(run_dir))
            record.position = self._positions.get(trial_id)
            record.forked_from = self.owner(values[FORK]) if FORK in values else None
            self.trials[trial_id] = record
        record.state, record.started, record.reason = "running", time.time(), ""
        self.save()
        return record

    def report(self, trial_id: str, report: Mapping[str, Any]) -> None:
        """Take in what a worker reported."""
        record = self.trials[trial_id]
        record.epoch = int(report["epoch"])
        record.run_id = report.get("run_id") or record.run_id
        record.best_checkpoint = report.get("best_checkpoint") or record.best_checkpoint
        value = report.get("objective")
        record.last_objective = record.last_objective if value is None else float(value)
        if value is not None and (record.objective is None or self.better(value, record.objective)):
            record.objective, record.best_epoch = value, record.epoch
            record.metrics = dict(report.get("metrics", {}))
            record.protocol = report.get("protocol", "")
        self.save()

    def end(self, trial_id: str, state: State, reason: str = "") -> None:
        """A trial leaves the cluster. A recorded failure stays one."""
        record = self.trials[trial_id]
        if record.started is not None:
            record.seconds += time.time() - record.started
            record.started = None
        if record.state != "failed":
            record.state, record.reason = state, reason
        self.save()

    def note_proposed(self, trial_id: str, position: int) -> None:
        """The search has proposed its configuration number ``position`` for a trial that is to start."""
        self._positions[trial_id] = position

    def unclaimed(self, position: int, values: Mapping[str, Any], claimed: Collection[str]) -> str | None:
        """A trial that ended with these ``values`` at ``position`` of the search, and that is none of ``claimed``.

        A driver that is killed within half a second of a trial's start may leave a search that does not know of it.
        """
        for record in self.trials.values():
            is_meant = record.position == position and record.values == values
            if is_meant and record.ended and record.trial_id not in claimed:
                return record.trial_id
        return None

    def owner(self, checkpoint: str) -> str | None:
        """Id of the trial that wrote a checkpoint."""
        directory = Path(checkpoint).parent.parent
        return next((record.trial_id for record in self.trials.values() if Path(record.run_dir) == directory), None)

    def note_exhausted(self) -> None:
        """The search has nothing more to propose."""
        if not self.is_exhausted:
            self.is_exhausted = True
            self.save()

    def forget_unknown(self, known: Collection[str]) -> list[TrialRecord]:
        """Drop unfinished trials that a restored search does not know: it started them just before its driver was
        killed, and proposes others in their place."""
        lost = [record for record in self.trials.values() if not record.ended and record.trial_id not in known]
        for record in lost:
            del self.trials[record.trial_id]
        if lost:
            self.save()
        return lost

    def reopen(self, trial_ids: Collection[str]) -> None:
        """Trials that crashed, and that a restored sweep starts again: a search waits for them as for any other."""
        again = [record for record in self.trials.values() if record.trial_id in trial_ids and record.state == "failed"]
        for record in again:
            record.state, self.is_exhausted = "interrupted", False
        if again:
            self.save()

    def better(self, value: float, other: float) -> bool:
        return value > other if self.mode == "max" else value < other

    def ranked(self) -> list[TrialRecord]:
        """Best first, level by level; trials that have no place in a ranking come last, in the order of their start."""
        sign = -1.0 if self.mode == "max" else 1.0
        found = enumerate(leading(self.standings()))
        places = {trial.trial_id: place for place, ranking in found for trial in ranking.trials}

        def key(record: TrialRecord) -> tuple[int, float, int]:
            place = places.get(record.trial_id)
            if place is None:
                return len(self.trials), 0.0, record.number
            return place, sign * (record.objective or 0.0), record.number

        return sorted(self.trials.values(), key=key)

    def best(self) -> TrialRecord | None:
        """The best trial of the best configuration: its configuration has the best mean over its repeats."""
        ranking = self.standing()
        if ranking is None:
            return None
        sign = -1.0 if self.mode == "max" else 1.0
        repeats = (trial for trial in ranking.configurations[0].compared if trial.objective is not None)
        best = min(repeats, key=lambda trial: (sign * (trial.objective or 0.0), trial.number))
        return self.trials[best.trial_id]

    def standing(self) -> Ranking | None:
        """The configurations that compete for the best, best first, each with the mean of its repeats; ``None`` while
        nothing was measured."""
        return next(iter(self.standings()), None)

    def standings(self) -> list[Ranking]:
        """That ranking, and those of the trials that do not compare with it: of other levels and other protocols."""
        return standings(list(self.trials.values()), self.mode)

    def count(self, *states: State) -> int:
        return sum(record.state in states for record in list(self.trials.values()))

    def save(self) -> None:
        content = {
            "mode": self.mode,
            "is_exhausted": self.is_exhausted,
            "seconds": self.seconds,
            "ended": self.ended,
            "trials": [asdict(record) for record in self.trials.values()],
        }
        write_json(self.path, content)


# Tune pickles schedulers, stoppers and callbacks into its experiment state and brings copies of them back to life in a
# restored driver. They therefore hold the directory of the sweep only, and share the driver's one ledger through it.
_SHARED: dict[str, Ledger] = {}


def share_ledger(sweep_dir: Path | str, ledger: Ledger) -> None:
    """Make ``ledger`` the one of ``sweep_dir`` in this process."""
    _SHARED[str(sweep_dir)] = ledger


def shared_ledger(sweep_dir: Path | str) -> Ledger:
    """The ledger of ``sweep_dir`` in this process."""
    return _SHARED[str(sweep_dir)]
