"""What is shown of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sensorlab.cluster.ledger import Ledger, TrialRecord
from sensorlab.cluster.progress.line import Frame, Line, Part
from sensorlab.cluster.progress.run_line import elapsed, eta, rates
from sensorlab.cluster.progress.state import Progress, ProgressReader
from sensorlab.report.ranking import searched
from sensorlab.runs.table import duration, number


class SweepLine:
    """Frames of a sweep: trials by state, epochs, rate, share of waiting for data, best so far, time left; and a line
    for each trial that ended.

    Args:
        total_trials: if none fails.
        levels: of these, how many are at each level of fidelity; empty: the sweep has none.
    """

    def __init__(
        self,
        ledger: Ledger,
        objective: str,
        total_trials: int,
        concurrent: int,
        levels: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._objective = objective
        self._total = total_trials
        self._levels = tuple(levels) or (total_trials,)
        self._concurrent = concurrent
        self._clock = clock
        self._started = clock()
        self._readers: dict[str, ProgressReader] = {}
        self._told = {record.trial_id for record in ledger.trials.values() if record.ended}  # of an earlier driver

    def __call__(self) -> Frame:
        records = list(self._ledger.trials.values())
        clock = elapsed(self._clock() - self._started)
        ended = [record for record in records if record.ended and record.trial_id not in self._told]
        self._told.update(record.trial_id for record in ended)
        finished = tuple(self._ended_line(clock, record) for record in ended)
        return Frame(self._live_line(clock, records), finished)

    def _live_line(self, clock: str, records: Sequence[TrialRecord]) -> Line:
        ledger = self._ledger
        running = [record for record in records if record.state == "running"]
        seen = self._poll(running)
        waiting = self._waiting(records)
        parts: list[Part] = []
        if ledger.count("failed"):
            parts.append(Part(f"{ledger.count('failed')} FAILED"))
        counts = f"{len(running)} running, {ledger.count('done')} done, {ledger.count('stopped')} stopped"
        parts.append(Part(f"{counts}, {sum(waiting)} waiting", 3))
        if seen:
            where = ", ".join(f"#{r.number} {seen[r.trial_id].epoch:.1f}" for r in running if r.trial_id in seen)
            parts.append(Part(f"epochs {where} of {max(progress.total_epochs for progress in seen.values())}", 4))
            parts += rates([p.phase for trial_id, p in seen.items() if self._readers[trial_id].is_fresh])
        best = ledger.best()
        if best is not None:
            parts.append(Part(f"best {self._objective} {number(best.objective)} (#{best.number})", 1))
        parts.append(Part(eta(*self._time_left(records, seen, waiting))))
        head = f"{clock} {sum(record.ended for record in records)}/{self._total} trials"
        return Line(head, tuple(parts), self._fraction(records, seen))

    def _poll(self, running: Sequence[TrialRecord]) -> dict[str, Progress]:
        """Progress of the running trials, by their ids."""
        self._readers = {r.trial_id: self._readers.get(r.trial_id) or self._open(r) for r in running}
        polled = {trial_id: reader.poll() for trial_id, reader in self._readers.items()}
        return {trial_id: progress for trial_id, progress in polled.items() if progress is not None}

    def _open(self, record: TrialRecord) -> ProgressReader:
        return ProgressReader(Path(record.run_dir), self._clock)

    def _ended_line(self, clock: str, record: TrialRecord) -> Line:
        parts = []
        if record.state == "failed":
            parts.append(Part(" ".join(record.reason.split())))
        elif record.objective is not None:
            parts.append(Part(f"{self._objective} {number(record.objective)} at epoch {record.best_epoch}"))
        values = ", ".join(f"{key}={number(value)}" for key, value in searched(record.values).items())
        donor = self._ledger.trials.get(record.forked_from or "")
        values += f", from #{donor.number}" if donor is not None else ""
        parts.append(Part(f"{record.epoch} epochs in {duration(record.seconds)}", 1))
        return Line(f"{clock} trial #{record.number} {record.state}", (*parts, *([Part(values, 2)] if values else [])))

    def _fraction(self, records: Sequence[TrialRecord], seen: Mapping[str, Progress]) -> float:
        """Of the sweep: a trial that ended is one, a running one what it has done of its steps."""
        running = sum(progress.step / max(progress.total_steps, 1) for progress in seen.values())
        return (sum(record.ended for record in records) + running) / max(self._total, 1)

    def _waiting(self, records: Sequence[TrialRecord]) -> list[int]:
        """Trials of each level that have not begun, or are to go on. Those that a level lacks when the next one has
        begun will never come: failures left fewer to promote."""
        begun = max((record.fidelity or 0 for record in records), default=0)
        waiting = []
        for level, size in enumerate(self._levels):
            own = [record for record in records if (record.fidelity or 0) == level]
            new = max(size - len(own), 0) if level >= begun else 0
            waiting.append(new + sum(record.state == "interrupted" for record in own))
        return waiting

    def _time_left(
        self, records: Sequence[TrialRecord], seen: Mapping[str, Progress], waiting: Sequence[int]
    ) -> tuple[float | None, bool]:
        """Seconds until the last trial ends (``None`` while a trial that matters has no estimate of its own), and
        whether that is a lower bound.

        Waiting trials are expected to take as long as those of their level that ended, early stops included; before
        there are any, as long as the running ones will take. A level begins when the one below has ended. Of one that
        has not begun, trials take at least as long as those of the level below.
        """
        whole, typical, is_bound = 0.0, None, False
        left = {trial_id: seconds for trial_id, p in seen.items() if (seconds := p.eta_s) is not None}
        for level, more in enumerate(waiting):
            own = [record for record in records if (record.fidelity or 0) == level]
            spent = _spent(own)
            lengths = [record.seconds for record in own if record.state in ("done", "stopped")]
            lengths = lengths or [spent[trial_id] + left[trial_id] for trial_id in spent if trial_id in left]
            typical = sum(lengths) / len(lengths) if lengths else typical
            if typical is None and (spent or more):
                return None, False
            is_bound = is_bound or bool(not lengths and (spent or more) and level)
            remaining = [
                left.get(trial_id, max((typical or 0.0) - seconds, 0.0)) for trial_id, seconds in spent.items()
            ]
            whole += makespan(remaining, [typical or 0.0] * more, self._concurrent)
        return whole, is_bound


def _spent(records: Sequence[TrialRecord]) -> dict[str, float]:
    """Seconds of the running trials until now, by their ids."""
    now = time.time()
    return {
        record.trial_id: record.seconds + now - (record.started or now)
        for record in records
        if record.state == "running"
    }


def makespan(running: Sequence[float], waiting: Sequence[float], slots: int) -> float:
    """Seconds until all are done when each of ``waiting`` starts, in order, in the first slot that is free."""
    ends = [*running, *[0.0] * max(slots - len(running), 0)]
    for seconds in waiting:
        ends.sort()
        ends[0] += seconds
    return max(ends, default=0.0)
