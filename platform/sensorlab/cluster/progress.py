"""Live progress: what a run writes while it trains, and the line that the driver prints from it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sensorlab.cluster.files import PROGRESS, read_json, write_json
from sensorlab.cluster.ledger import Ledger, TrialRecord
from sensorlab.cluster.table import duration, number
from sensorlab.engine.callbacks.base import Callback

if TYPE_CHECKING:
    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training

WRITE_EVERY_S = 1.0
PRINT_EVERY_S = 5.0
_STALE_S = 30.0  # a run that has not written for so long (evaluation, checkpoint, restart) shows no rate


class ProgressWriter(Callback):
    """Writes ``progress.json`` of the run: where it is, how fast, and how much of the time it waits for data.

    A full or absent disk costs the line on the screen, not the training: the first failure is said, later ones are not.
    """

    priority = 20

    def __init__(self) -> None:
        self._samples = 0
        self._data_wait_s = 0.0
        self._busy_s = 0.0
        self._written = 0.0
        self._warned = False

    def on_fit_start(self, training: Training) -> None:
        self._write(training)

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        self._samples += record.num_samples
        self._data_wait_s += record.data_wait_s
        self._busy_s += record.data_wait_s + record.step_s
        if time.monotonic() - self._written >= WRITE_EVERY_S:
            self._write(training)

    def on_epoch_end(self, training: Training, metrics: Mapping[str, float]) -> None:
        self._write(training)

    def _write(self, training: Training) -> None:
        self._written = time.monotonic()
        if not training.workers.is_main:
            return
        cursor = training.cursor
        content: dict[str, Any] = {
            "time": time.time(),
            "step": cursor.step,
            "total_steps": training.total_steps,
            "epoch": cursor.epoch + cursor.batch / training.batches_per_epoch,
            "total_epochs": training.total_epochs,
        }
        if self._busy_s > 0:
            content["samples_per_s"] = self._samples / self._busy_s
            content["data_wait"] = self._data_wait_s / self._busy_s
        self._samples, self._data_wait_s, self._busy_s = 0, 0.0, 0.0
        path = training.run_dir / PROGRESS
        try:
            write_json(path, content)
        except OSError as error:
            if not self._warned:
                print(f"warning: the progress cannot be written to {path}: {error}", file=sys.stderr, flush=True)
            self._warned = True


class Ticker:
    """Prints a line every few seconds from a thread, as plain text: the same in a terminal, a log file and a job."""

    def __init__(self, line: Callable[[], str], every_s: float = PRINT_EVERY_S, stream: TextIO | None = None) -> None:
        self._line = line
        self._every_s = every_s
        self._stream = stream
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._last = ""

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * self._every_s)
        self.print()

    def print(self) -> None:
        line = self._line()
        stream = self._stream or sys.stdout
        if line and line != self._last:
            print(line, file=stream, flush=True)
            self._last = line

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.print()


class RunLine:
    """Progress of a single run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._started = time.time()
        self._first: tuple[float, float] | None = None  # (time, epoch) when this attempt began

    def __call__(self) -> str:
        seen = read_json(self._run_dir / PROGRESS)
        elapsed = time.time() - self._started
        if seen is None or seen["time"] < self._started:
            return f"[{duration(elapsed):>6}] starting"
        if self._first is None:
            self._first = (seen["time"], seen["epoch"])
        since, begin = self._first
        parts = [f"epoch {seen['epoch']:.2f}/{seen['total_epochs']}", f"step {seen['step']}/{seen['total_steps']}"]
        parts += _rates([seen])
        if seen["epoch"] > begin:
            per_epoch = (seen["time"] - since) / (seen["epoch"] - begin)
            parts.append(f"ETA {duration(max(seen['total_epochs'] - seen['epoch'], 0) * per_epoch)}")
        return f"[{duration(elapsed):>6}] " + " | ".join(parts)


class SweepLine:
    """Progress of a sweep: trials by state, epochs, rate, share of waiting for data, best so far, time left."""

    def __init__(self, ledger: Ledger, objective: str, total_trials: int, concurrent: int) -> None:
        self._ledger = ledger
        self._objective = objective
        self._total = total_trials
        self._concurrent = concurrent
        self._started = time.time()

    def __call__(self) -> str:
        ledger = self._ledger
        records = list(ledger.trials.values())
        running = [record for record in records if record.state == "running"]
        seen = {r.trial_id: p for r in running if (p := read_json(Path(r.run_dir) / PROGRESS)) is not None}
        waiting = max(self._total - len(records), 0) + ledger.count("interrupted")
        counts = [f"{len(running)} running", f"{ledger.count('done')} done", f"{ledger.count('stopped')} stopped"]
        if ledger.count("failed"):
            counts.append(f"{ledger.count('failed')} FAILED")
        counts.append(f"{waiting} waiting")
        parts = [f"trials {', '.join(counts)}"]
        if seen:
            where = (f"#{r.number} {seen[r.trial_id]['epoch']:.1f}" for r in running if r.trial_id in seen)
            total_epochs = max(progress["total_epochs"] for progress in seen.values())
            parts.append(f"epochs {', '.join(where)} of {total_epochs}")
            parts += _rates(list(seen.values()))
        best = ledger.best()
        if best is not None:
            parts.append(f"best {self._objective} {number(best.objective)} (#{best.number})")
        left = self._time_left(records, seen, waiting)
        if left is not None:
            parts.append(f"ETA {duration(left)}")
        return f"[{duration(time.time() - self._started):>6}] " + " | ".join(parts)

    def _time_left(
        self, records: Sequence[TrialRecord], seen: Mapping[str, Mapping[str, Any]], waiting: int
    ) -> float | None:
        """Seconds, from the mean time of an epoch; waiting trials are expected to run as long as those that ended."""
        now = time.time()
        epochs = {r.trial_id: seen[r.trial_id]["epoch"] if r.trial_id in seen else float(r.epoch) for r in records}
        spent = sum(r.seconds + (now - r.started if r.started else 0.0) for r in records)
        done = sum(epochs.values())
        if done <= 0:
            return None
        ended = [epochs[r.trial_id] for r in records if r.state in ("done", "stopped")]
        total = max((p["total_epochs"] for p in seen.values()), default=max(epochs.values()))
        typical = sum(ended) / len(ended) if ended else total
        left = sum(max(typical - epochs[trial_id], 0.5) for trial_id in seen) + waiting * typical
        return left * (spent / done) / max(self._concurrent, 1)


def _rates(seen: Sequence[Mapping[str, Any]]) -> list[str]:
    fresh = [p for p in seen if "samples_per_s" in p and time.time() - p["time"] < _STALE_S]
    if not fresh:
        return []
    wait = sum(p["data_wait"] for p in fresh) / len(fresh)
    return [f"{sum(p['samples_per_s'] for p in fresh):.1f} samples/s", f"data wait {wait:.0%}"]
