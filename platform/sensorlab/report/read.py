"""Reading a sweep's directory into :class:`~sensorlab.report.content.Sweep`; nothing is written, nothing is started.

A report is wanted most of sweeps that did not go well, so everything but the plan and the ledger may be missing or
cut off. Keys that this version does not know are ignored: reports of older and newer sweeps can be made.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorlab.cluster.files import read_json
from sensorlab.cluster.lease import DRIVER, is_held
from sensorlab.cluster.plans import SWEEP
from sensorlab.cluster.search.space import combinations
from sensorlab.cluster.sweep_config import load_sweep
from sensorlab.engine.duration import Duration
from sensorlab.errors import UserError
from sensorlab.report.content import Dimension, Mode, Status, Sweep
from sensorlab.report.read_trial import read_trial

_RANGES = tuple(f"{q}{log}{kind}" for kind in ("uniform", "integer") for log in ("", "log") for q in ("", "q"))


def read_sweep(directory: Path, *, ended: bool = False, now: float | None = None) -> Sweep:
    """Everything that the files of a sweep say.

    Args:
        directory: of the sweep: it holds ``sweep.json``, and ``ledger.json`` as soon as a trial has started.
        ended: the caller knows that no trial runs any more, although this process still holds the sweep's lease.
        now: seconds since the epoch; default: now.

    Raises:
        UserError: there is no readable ``sweep.json``, or a ledger that cannot be read.
    """
    plan = read_json(directory / SWEEP.file)
    if plan is None:
        raise UserError(f"{directory / SWEEP.file} is missing or damaged: this is not a sweep's directory")
    ledger = _ledger(directory)
    search: Mapping[str, Any] = plan.get("sweep") or {}
    now = time.time() if now is None else now
    mode: Mode = "min" if search.get("mode", ledger.get("mode")) == "min" else "max"
    objective = str(search.get("objective", "objective"))
    is_live = not ended and is_held(directory / DRIVER, now)
    base, space = plan.get("experiment") or {}, search.get("space") or {}
    entries = ledger.get("trials", [])
    trials = [read_trial(entry, directory, base, objective, is_live, now) for entry in entries]
    trials.sort(key=lambda trial: trial.number)
    expected = expected_trials(search, (base.get("train") or {}).get("duration"))
    # At its end a sweep has no outcome yet, or that of an earlier attempt.
    outcome = {} if ended else read_json(directory / "outcome.json") or {}
    cut_short = str(ledger.get("ended") or "")
    states = {str(entry.get("state")) for entry in entries}
    status = _status(states, len(trials), expected, is_live, ended, outcome)
    return Sweep(
        name=str(plan.get("name") or directory.name),
        directory=directory,
        objective=objective,
        mode=mode,
        status="ended early" if status == "finished" and cut_short else status,
        expected=expected,
        search=search,
        dimensions={key: _dimension(key, spec) for key, spec in space.items() if isinstance(spec, Mapping)},
        trials=tuple(trials),
        dataset=str(plan.get("dataset") or ""),
        tracking_uri=plan.get("tracking_uri"),
        parent_run_id=outcome.get("parent_run_id"),
        ended=cut_short,
    )


def _ledger(directory: Path) -> dict[str, Any]:
    path = directory / "ledger.json"
    ledger = read_json(path)
    if ledger is None:
        if path.exists():
            raise UserError(f"{path} is damaged: there is nothing to report; restore it from a copy")
        return {}  # no trial has started yet
    return ledger


def expected_trials(search: Mapping[str, Any], duration: Any = None) -> int | None:
    """Trials that the sweep section asks for, if none fails; ``duration`` of a training, which a population divides.

    The section is validated where a sweep starts. Sections of other versions, which may not pass here, count as grid
    or as the stated number, times their repeats.
    """
    with contextlib.suppress(UserError):
        return load_sweep(search).total_trials(_epochs(duration))
    space = search.get("space") or {}
    count = search.get("num_trials")
    if search.get("algorithm") == "grid":
        choices = {key: spec.get("choice") or () for key, spec in space.items()}
        count = len(combinations(choices, {key: spec.get("when") or {} for key, spec in space.items()}))
    seeds = search.get("seeds", 1)
    if not (isinstance(count, int) and count > 0 and isinstance(seeds, int) and seeds > 0):
        return None
    return count * seeds


def _epochs(duration: Any) -> int | None:
    with contextlib.suppress(ValueError):
        parsed = Duration.parse(duration)
        return parsed.count if parsed.unit == "epochs" else None
    return None


def _dimension(key: str, spec: Mapping[str, Any]) -> Dimension:
    if spec.get("choice"):
        return Dimension(key, choices=tuple(spec["choice"]))
    for kind in _RANGES:
        if spec.get(kind):
            low, high = (float(bound) for bound in spec[kind][:2])
            return Dimension(key, (), (low, high), is_log="log" in kind, is_integer=kind.endswith("integer"))
    return Dimension(key)


def _status(
    states: set[str], count: int, expected: int | None, is_live: bool, ended: bool, outcome: Mapping[str, Any]
) -> Status:
    """Where the sweep stands, by what its driver left: the ``states`` of its ``count`` trials, and the outcome."""
    if is_live:
        return "running"
    if "running" in states:
        return "killed"  # a driver that ends in any other way closes its trials
    if "interrupted" in states or outcome.get("interrupted"):
        return "interrupted"
    if expected is not None and count < expected:
        # A driver that ends well leaves an outcome behind, also when its time budget was used up.
        return "ended early" if outcome or ended else "killed"
    return "finished"
