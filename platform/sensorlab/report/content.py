"""What a report shows, as plain data. Reading fills these; drawing knows nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Mode = Literal["max", "min"]
Status = Literal["finished", "ended early", "running", "interrupted", "killed"]


@dataclass(frozen=True)
class Point:
    """A measured value of the objective. ``epoch`` counts from 0 at the start and is fractional within an epoch."""

    epoch: float
    step: int
    value: float


@dataclass(frozen=True)
class Dimension:
    """A searched key. ``choices`` is empty for ranges; ``bounds`` is ``None`` for choices."""

    key: str
    choices: tuple[Any, ...] = ()
    bounds: tuple[float, float] | None = None
    is_log: bool = False
    is_integer: bool = False


@dataclass(frozen=True)
class Trial:
    """One trial of the ledger with what its directory holds.

    Attributes:
        values: searched key to the value that this trial had.
        seed: of the training; repeats of a configuration differ in it.
        objective: best finite value over the trial's evaluations; ``None`` if there is none.
        protocol: digest of all that defines the objective; objectives of two protocols do not compare.
        protocols: reported name to its definition.
        rungs: epoch of a rung of the scheduler to the objective there; infinite for a value that was no number.
        stopped_at: epoch of the rung at which the scheduler ended the trial.
        position: of its configuration in the search.
        forked_from: id of the trial from whose last checkpoint it went on.
        last_objective: at the latest evaluation.
        fidelity: level of the trial in a sweep that promotes configurations along a key, 0 for the cheapest.
        seconds: wall time of all attempts.
        clock: seconds of the loop by what they went to, from the newest checkpoint.
        config: dotted key to value, of the configuration that the engine held where a checkpoint says so.
        provenance: digests and revisions of what went into the trial.
        error: end of the latest traceback.
    """

    number: int
    trial_id: str
    run_dir: Path
    values: Mapping[str, Any]
    state: str
    seed: int | None = None
    epoch: int = 0
    objective: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    protocol: str = ""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rungs: Mapping[float, float] = field(default_factory=dict)
    stopped_at: float | None = None
    position: int | None = None
    forked_from: str | None = None
    last_objective: float | None = None
    fidelity: int | None = None
    seconds: float = 0.0
    restarts: int = 0
    reason: str = ""
    verified: bool = False
    run_id: str | None = None
    best_checkpoint: str | None = None
    curve: tuple[Point, ...] = ()
    goodput: float | None = None
    clock: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def measured(self) -> bool:
        """Whether it has an objective to rank it by."""
        return self.state != "failed" and self.objective is not None and math.isfinite(self.objective)


@dataclass(frozen=True)
class Sweep:
    """A sweep as its directory has it at one moment."""

    name: str
    directory: Path
    objective: str
    mode: Mode
    status: Status
    expected: int | None  # trials that the sweep was to run; None if its plan does not say
    search: Mapping[str, Any]  # the sweep section
    dimensions: Mapping[str, Dimension]
    trials: tuple[Trial, ...]
    dataset: str = ""
    tracking_uri: str | None = None
    parent_run_id: str | None = None
    ended: str = ""  # why it ended before all of its trials
    notes: tuple[str, ...] = ()  # what could not be read, for the reader of the report

    @property
    def members(self) -> int | None:
        """Size of the population; ``None`` for other searches."""
        count = self.search.get("num_trials")
        return count if self.search.get("algorithm") in ("pbt", "pb2") and isinstance(count, int) and count else None

    def with_notes(self, *notes: str) -> Sweep:
        return replace(self, notes=(*self.notes, *notes))

    def count(self, *states: str) -> int:
        return sum(trial.state in states for trial in self.trials)


@dataclass(frozen=True)
class Panel:
    """A picture of the validation, ready to embed."""

    name: str
    step: int
    mime: str
    data: bytes
    width: int
    height: int


def text_key(value: Any) -> str:
    """Equal for equal values, whatever they are: configurations refuse NaN, but ledgers and logs may hold it."""
    return json.dumps(value, sort_keys=True, default=str)
