"""Reading one trial: its ledger entry, its log of metrics and its newest checkpoint."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sensorlab.cluster.files import ERROR, REPORT, read_json
from sensorlab.cluster.sweep_config import resolve
from sensorlab.config import flatten
from sensorlab.report.content import Point, Trial

_GOODPUT = "perf/goodput"
_PROGRESS = "train/epoch"
_BEHIND = re.compile(r"behind at epoch (\d+(?:\.\d+)?)")
_ERROR_LINES = 25
METRICS = "metrics.jsonl"


def read_trial(
    entry: Mapping[str, Any], directory: Path, base: Mapping[str, Any], objective: str, is_live: bool, now: float
) -> Trial:
    """A trial from its entry in the ledger.

    Args:
        directory: of the sweep; a sweep that was moved as a whole is read where it is now.
        base: experiment of the sweep, before the trial's values.
        objective: name of the metric that ranks the trials.
        is_live: the sweep's driver is at work, so an open trial is running.
        now: seconds since the epoch.
    """
    trial_id = str(entry.get("trial_id", "?"))
    run_dir = _run_dir(entry, directory, trial_id)
    values = dict(entry.get("values") or {})
    state = read_checkpoint(run_dir)
    curve, goodput = read_curve(run_dir / METRICS, objective)
    best_epoch = entry.get("best_epoch")
    config = state.get("config") or resolve(base, values)
    state_now, reason = str(entry.get("state", "?")), str(entry.get("reason") or "")
    if state_now == "running" and not is_live:
        state_now, reason = "interrupted", reason or "its sweep's driver ended without closing it"
    behind = _BEHIND.fullmatch(reason)
    metrics = {n: value for n, found in (entry.get("metrics") or {}).items() if (value := _finite(found)) is not None}
    return Trial(
        number=int(entry.get("number", -1)),
        trial_id=trial_id,
        run_dir=run_dir,
        values=values,
        state=state_now,
        seed=config.get("seed"),
        epoch=int(entry.get("epoch") or 0),
        objective=_finite(entry.get("objective")),
        best_epoch=best_epoch,
        best_step=_best_step(curve, _finite(entry.get("objective"))),
        metrics=metrics,
        protocol=str(entry.get("protocol") or ""),
        protocols=state.get("protocols") or {},
        rungs={float(epoch): float(value) for epoch, value in (entry.get("rungs") or {}).items()},
        stopped_at=_finite(entry.get("stopped_at")) or (float(behind[1]) if behind else None),
        position=entry.get("position"),
        forked_from=entry.get("forked_from"),
        last_objective=_finite(entry.get("last_objective")),
        fidelity=entry.get("fidelity"),
        seconds=_seconds(entry, run_dir, is_live, now),
        restarts=int(entry.get("restarts") or 0),
        reason=reason,
        verified=bool(entry.get("verified")),
        run_id=entry.get("run_id"),
        best_checkpoint=entry.get("best_checkpoint"),
        curve=curve,
        goodput=goodput if goodput is not None else _finite(metrics.get(_GOODPUT)),
        clock=_clock(state.get("clock") or {}),
        config=flatten(config),
        provenance=state.get("provenance") or {},
        error=_tail(run_dir / ERROR),
    )


def read_curve(path: Path, objective: str) -> tuple[tuple[Point, ...], float | None]:
    """Every finite value of the objective in a log of metrics, and the last goodput.

    Logs grow to many megabytes, so lines are parsed only if they can matter. Only training lines say how far into its
    epoch a step is; the one of an evaluation's step stands before it.
    """
    points: dict[int, Point] = {}
    goodput: float | None = None
    before = ""
    for line in _lines(path):
        has_objective = f'"{objective}"' in line
        if has_objective or f'"{_GOODPUT}"' in line:
            content = _parsed(line)
            goodput = _finite(content.get(_GOODPUT, goodput))
            value, step = _finite(content.get(objective)), content.get("step")
            if has_objective and value is not None and isinstance(step, int):
                points[step] = Point(_epoch(content, _parsed(before)), step, value)
        if _PROGRESS in line:
            before = line
    return tuple(points[step] for step in sorted(points)), goodput


def _epoch(content: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    own = _finite(content.get(_PROGRESS))
    if own is None and before.get("step") == content["step"]:
        own = _finite(before.get(_PROGRESS))
    # "epoch" is the index of the epoch that the step belongs to; evaluations stand at its end.
    return own if own is not None else float(content.get("epoch", 0)) + 1.0


def read_checkpoint(run_dir: Path) -> dict[str, Any]:
    """``state.json`` of the newest readable checkpoint: the configuration that the engine really held, protocols,
    clock and provenance. Empty where there is none."""
    for path in sorted((run_dir / "checkpoints").glob("step-*/state.json"), reverse=True):
        state = read_json(path)
        if state is not None:
            return state
    return {}


def _clock(saved: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by what they went to: a section of their own, which earlier versions of the engine did not have."""
    totals = saved.get("totals", saved)
    return {name: seconds for name, value in totals.items() if (seconds := _finite(value)) is not None}


def _run_dir(entry: Mapping[str, Any], directory: Path, trial_id: str) -> Path:
    here = directory / "trials" / trial_id
    return here if here.is_dir() else Path(str(entry.get("run_dir") or here))


def _best_step(curve: tuple[Point, ...], objective: float | None) -> int | None:
    return next((point.step for point in curve if point.value == objective), None)


def _seconds(entry: Mapping[str, Any], run_dir: Path, is_live: bool, now: float) -> float:
    """Wall time, with that of an attempt whose end nobody noted: until now, or until its last sign of life."""
    seconds, started = float(entry.get("seconds") or 0.0), entry.get("started")
    if started is None:
        return seconds
    if not is_live:
        signs = [run_dir / name for name in (METRICS, REPORT, "progress.json")]
        now = max((path.stat().st_mtime for path in signs if path.exists()), default=started)
    return seconds + max(0.0, now - float(started))


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            yield from stream
    except OSError:
        return


def _parsed(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:  # the last line of a killed process
        return {}
    return content if isinstance(content, dict) else {}


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _tail(path: Path) -> str:
    return "".join(list(_lines(path))[-_ERROR_LINES:]).strip()
