"""What ``progress.json`` holds, and how the driver reads it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sensorlab.cluster.files import PROGRESS, read_json, write_json

# Phases of a run. Only "train" and "val" have batches to count.
START, TRAIN, VAL, CHECKPOINT, DONE = "start", "train", "val", "checkpoint", "done"

_SILENT_S = 30.0  # a run that has not written for so long shows no rate, but that it is silent


@dataclass(frozen=True)
class Phase:
    """One phase of a run, as it is or as it ended."""

    number: int  # phases that the attempt began before this one
    name: str
    epoch: int  # counted from 1
    done: int = 0  # global batches of the epoch (train), batches of the main worker (val)
    total: int = 0
    seconds: float = 0.0  # since it began
    values: dict[str, float] = field(default_factory=dict)  # losses (train), metrics (val), in the order to show
    lr: float | None = None
    # Means over the latest training steps of the main worker, see ``Pace``; in every phase.
    data_wait_s: float | None = None
    step_s: float | None = None
    samples_per_s: float | None = None  # over all workers


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    attempt: float  # ``time.time()`` of the start of this attempt on its host; only compared for equality
    time: float  # ``time.time()`` of the writing
    step: int  # optimiser steps done
    total_steps: int
    epoch: float  # epochs done, with the fraction of the current one
    total_epochs: int
    phase: Phase
    finished: tuple[Phase, ...] = ()  # the latest phases of training and validation that ended, oldest first
    eta_s: float | None = None
    eta_is_bound: bool = False  # it takes at least so long: no evaluation has been timed yet
    memory_gib: float | None = None  # most that was allocated on the GPU; without one, the process now
    memory_of: str = ""  # "GPU" or "process"

    def write(self, run_dir: Path) -> None:
        """Replace the file. Raises ``OSError``."""
        write_json(run_dir / PROGRESS, asdict(self))

    @classmethod
    def read(cls, run_dir: Path) -> Progress | None:
        """``None`` if there is no file (yet), or none that this version of the code understands."""
        content: dict[str, Any] | None = read_json(run_dir / PROGRESS)
        if content is None:
            return None
        try:
            phase = Phase(**content.pop("phase"))
            finished = tuple(Phase(**each) for each in content.pop("finished"))
            return cls(**content, phase=phase, finished=finished)
        except (KeyError, TypeError):
            return None


class ProgressReader:
    """Follows the file of one run.

    What an attempt that is over has left there is no news. Whether a file is fresh is told by its changes as this
    process sees them: clocks of hosts differ.
    """

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._run_dir = run_dir
        self._clock = clock
        self._changed: float | None = None
        self.latest = Progress.read(run_dir)

    def poll(self) -> Progress | None:
        """The content of the file now."""
        found = Progress.read(self._run_dir)
        if found is not None and found != self.latest:
            self.latest, self._changed = found, self._clock()
        return self.latest

    @property
    def has_news(self) -> bool:
        """Whether anything was written since this object exists."""
        return self._changed is not None

    @property
    def silent_s(self) -> float:
        """Seconds since the last news, when they are worth mentioning; else 0."""
        silent = 0.0 if self._changed is None else self._clock() - self._changed
        return silent if silent >= _SILENT_S else 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether rates in the file are those of now."""
        return self.has_news and not self.silent_s
