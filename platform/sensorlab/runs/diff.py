"""Two runs side by side: what was set otherwise, what came of it, and whether the numbers compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from sensorlab.config import flatten
from sensorlab.runs.query import StoredRun
from sensorlab.runs.table import aligned, number

_ABSENT = "-"
_ORIGIN = (
    ("dataset", "dataset"),
    ("code", "code"),
    ("device", "device"),
    ("host", "host"),
    ("python", "python"),
    ("order of samples", "order"),
    ("went on from run", "forked_from"),
)


def run_diff(first: StoredRun, second: StoredRun) -> str:
    """The differences of two runs as text: configuration, origin, metrics, protocols."""
    names = [f"{run.run_id[:12]} {run.name}" for run in (first, second)]
    blocks = [_section("configuration", names, settings(first), settings(second), "the same configuration")]
    origins = [{shown: run.tag(tag) for shown, tag in _ORIGIN if run.tag(tag)} for run in (first, second)]
    blocks.append(_section("origin", names, origins[0], origins[1], "the same data, code and machine"))
    blocks.append(_metrics(first, second, names))
    blocks.append(_protocols(first, second, names))
    return "\n\n".join(blocks)


def settings(run: StoredRun) -> dict[str, Any]:
    """The run's configuration with dotted keys; its parameters where the configuration was not recorded."""
    recorded = run.text("config/experiment.yaml")
    return flatten(yaml.safe_load(recorded)) if recorded else dict(run.params)


def differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, left, right) where two mappings differ; what one lacks is ``-``."""
    keys = sorted(left.keys() | right.keys())
    pairs = [(key, left.get(key, _ABSENT), right.get(key, _ABSENT)) for key in keys]
    return [(key, a, b) for key, a, b in pairs if a != b]


def _section(title: str, names: list[str], left: Mapping[str, Any], right: Mapping[str, Any], equal: str) -> str:
    rows = differing(left, right)
    if not rows:
        return f"{title}: {equal if left else 'not recorded of either run'}"
    return aligned([[title, *names], *([key, _text(a), _text(b)] for key, a, b in rows)], left=(0,))


def _metrics(first: StoredRun, second: StoredRun, names: list[str]) -> str:
    rows = []
    for run, other in ((first, second),):
        objective = run.tag("objective")
        if run.best and other.best and objective == other.tag("objective"):
            rows.append(
                [f"{objective} (best)", number(run.best[0]), number(other.best[0]), _change(run.best[0], other.best[0])]
            )
    left, right = first.metrics, second.metrics
    for name in sorted(left.keys() | right.keys()):
        if name.startswith(("train/", "val/")) or name == "perf/goodput":
            a, b = left.get(name), right.get(name)
            rows.append([name, number(a), number(b), _change(a, b)])
    rows.append(["seconds", number(first.seconds), number(second.seconds), _change(first.seconds, second.seconds)])
    return aligned([["metrics (latest)", *names, "difference"], *rows], left=(0,))


def _change(a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return _ABSENT
    return "0" if a == b else f"{b - a:+.3g}"


def _protocols(first: StoredRun, second: StoredRun, names: list[str]) -> str:
    """Which of the common numbers do not compare, and what their definitions differ in."""
    left, right = (run.json("config/protocols.json") for run in (first, second))
    if not left or not right:
        return "protocols: not recorded for both runs, so that nothing says whether their numbers compare"
    odd: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for name in sorted(left.keys() & right.keys()):
        found = differing(flatten(left[name]), flatten(right[name]))
        if found:
            odd.setdefault(tuple((key, _text(a), _text(b)) for key, a, b in found), []).append(name)
    if not odd:
        return "protocols: the same; the numbers of both runs compare"
    blocks = [
        f"different protocols: {', '.join(metrics)} do NOT compare\n"
        + aligned([["", *names], *map(list, rows)], left=(0,))
        for rows, metrics in odd.items()
    ]
    return "\n\n".join(blocks)


def _text(value: Any) -> str:
    return number(value) if not isinstance(value, float) or math.isnan(value) else f"{value:.6g}"
