"""What is shown of a single run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sensorlab.cluster.progress.line import Frame, Line, Part
from sensorlab.cluster.progress.state import CHECKPOINT, DONE, START, TRAIN, Phase, Progress, ProgressReader
from sensorlab.runs.table import duration, number


class RunLine:
    """Frames of a run: its phase, and the phases that ended."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = ProgressReader(run_dir, clock)
        self._clock = clock
        self._started = clock()
        self._attempt: float | None = None
        self._shown = 0  # number of the latest phase of the attempt that was shown as finished

    def __call__(self) -> Frame:
        progress = self._reader.poll()
        clock = elapsed(self._clock() - self._started)
        if progress is None or not self._reader.has_news:
            return Frame(Line(f"{clock} starting"))
        finished = []
        if progress.attempt != self._attempt:
            if self._attempt is not None:
                finished.append(Line(f"{clock} the training started again", (Part(f"step {progress.step}"),)))
            self._attempt, self._shown = progress.attempt, 0
        for phase in progress.finished:
            if phase.number > self._shown:
                finished.append(_finished_line(clock, phase, progress))
                self._shown = phase.number
        live = None if progress.phase.name == DONE else _live_line(clock, progress, self._reader)
        return Frame(live, tuple(finished))


def elapsed(seconds: float) -> str:
    return f"[{duration(seconds):>6}]"


def eta(seconds: float | None, is_bound: bool = False) -> str:
    """Time left; ``is_bound``: it takes at least so long."""
    return "ETA ?" if seconds is None else f"ETA {'>' if is_bound else ''}{duration(seconds)}"


def rates(phases: Sequence[Phase]) -> list[Part]:
    """Samples per second of all, and the share of the time that they wait for data."""
    timed = [phase for phase in phases if phase.samples_per_s is not None]
    busy = sum((phase.data_wait_s or 0.0) + (phase.step_s or 0.0) for phase in timed)
    if busy <= 0:
        return []
    wait = sum(phase.data_wait_s or 0.0 for phase in timed) / busy
    total = sum(phase.samples_per_s or 0.0 for phase in timed)
    return [Part(f"{number(round(total, 1))} samples/s", 2), Part(f"data wait {wait:.0%}", 5)]


def _live_line(clock: str, progress: Progress, reader: ProgressReader) -> Line:
    phase = progress.phase
    if phase.name == START:
        return Line(f"{clock} starting", _steps(progress))
    parts: list[Part] = []
    if phase.name == CHECKPOINT:
        parts += _steps(progress)
    elif phase.total:
        parts.append(Part(f"{phase.done}/{phase.total}"))
    if phase.name == TRAIN:
        parts += [*_steps(progress), *_values(phase), *(_speed(phase) if reader.is_fresh else [])]
    parts += _memory(progress)
    if reader.silent_s:
        parts.append(Part(f"no news for {duration(reader.silent_s)}"))
    parts.append(Part(eta(progress.eta_s, progress.eta_is_bound), 1))
    return Line(_head(clock, phase, progress), tuple(parts), phase.done / phase.total if phase.total else None)


def _finished_line(clock: str, phase: Phase, progress: Progress) -> Line:
    parts = [Part(f"{phase.done}/{phase.total}"), *_values(phase)]
    if phase.name == TRAIN:
        parts += [*_speed(phase), *_memory(progress)]
    return Line(_head(clock, phase, progress), (*parts, Part(f"took {_short(phase.seconds)}", 1)))


def _head(clock: str, phase: Phase, progress: Progress) -> str:
    return f"{clock} epoch {phase.epoch}/{progress.total_epochs} {phase.name}"


def _steps(progress: Progress) -> tuple[Part, ...]:
    return (Part(f"step {progress.step}/{progress.total_steps}", 5),)


def _values(phase: Phase) -> list[Part]:
    """The first value is the one to see: the total loss, or the objective."""
    return [
        Part(f"{name} {number(value)}", 6 if index else 0) for index, (name, value) in enumerate(phase.values.items())
    ]


def _speed(phase: Phase) -> list[Part]:
    parts = [] if phase.lr is None else [Part(f"lr {phase.lr:.3g}", 4)]
    if phase.step_s is not None and phase.data_wait_s is not None:
        parts.append(Part(f"data {_short(phase.data_wait_s)}, step {_short(phase.step_s)}", 3))
    return parts + rates([phase])[:1]


def _short(seconds: float) -> str:
    if seconds >= 10.0:
        return duration(seconds)
    if seconds >= 1.0:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.1f} ms"


def _memory(progress: Progress) -> list[Part]:
    if progress.memory_gib is None:
        return []
    return [Part(f"{progress.memory_of} {progress.memory_gib:.1f} GiB", 7)]
