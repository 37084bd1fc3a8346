"""Parallel coordinates: one line per trial across the searched keys to the objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensorlab.cluster.table import number
from sensorlab.report.charts import WIDTH, svg, text
from sensorlab.report.content import Dimension, Mode, Trial, text_key
from sensorlab.report.markup import Markup, el, join
from sensorlab.report.scales import Scale, scale_of

MAX_AXES = 9
MAX_LINES = 300
SHADES = 8  # classes q0 (worst) ... q7 (best)
_TOP, _BOTTOM, _HEIGHT = 46.0, 330.0, 372.0
_MISSING = _BOTTOM + 22.0  # where a line passes whose trial does not have the key


@dataclass(frozen=True)
class Axis:
    """An axis with a place for every value: evenly spaced choices, or a scale of numbers."""

    key: str
    x: float
    places: Mapping[str, float]
    scale: Scale | None

    def __call__(self, value: Any) -> float:
        if value is None:
            return _MISSING
        if self.scale is None:
            return self.places.get(text_key(value), _MISSING)
        return self.scale(float(value))

    def ticks(self) -> list[tuple[float, str]]:
        if self.scale is not None:
            return [(self.scale(value), name) for value, name in self.scale.ticks(5)]
        return [(y, _short(key)) for key, y in self.places.items()]


def parallel_coordinates(
    trials: Sequence[Trial],
    keys: Sequence[str],
    dimensions: Mapping[str, Dimension],
    labels: Mapping[str, str],
    names: Mapping[str, str],
    objective: str,
    mode: Mode,
) -> Markup:
    """Every trial as a line, coloured by its place; the best are drawn last.

    Args:
        trials: of one ranking, best first.
        keys: the axes, most important first; at most ``MAX_AXES`` are drawn.
        labels: trial id to the label of its configuration.
        names: of the axes.
    """
    shown = list(keys[:MAX_AXES])
    left, right = 70.0, WIDTH - 70.0
    step = (right - left) / max(len(shown), 1)
    lines = [
        _axis(key, left + index * step, [trial.values.get(key) for trial in trials], dimensions.get(key))
        for index, key in enumerate(shown)
    ]
    values = [trial.objective or 0.0 for trial in trials]
    ends = (_BOTTOM, _TOP) if mode == "max" else (_TOP, _BOTTOM)  # better is up
    lines.append(Axis(objective, right, {}, scale_of(values, *ends, margin=0.02)))
    parts = [_polyline(trial, rank, len(trials), lines, labels) for rank, trial in enumerate(trials[:MAX_LINES])]
    frame = join(
        _drawn(axis, names.get(axis.key, axis.key), index % 2, is_last=axis is lines[-1])
        for index, axis in enumerate(lines)
    )
    return svg(
        _HEIGHT,
        f"Parallel coordinates of the searched keys and {objective}",
        *reversed(parts),
        frame,
        class_="parallel",
    )


def shade(rank: int, count: int) -> int:
    """Class of the colour of a place: the best has the last shade."""
    return round((1 - rank / max(count - 1, 1)) * (SHADES - 1))


def _polyline(trial: Trial, rank: int, count: int, lines: Sequence[Axis], labels: Mapping[str, str]) -> Markup:
    values = [trial.values.get(axis.key) for axis in lines[:-1]] + [trial.objective]
    points = [f"{axis.x:.1f},{axis(value):.1f}" for axis, value in zip(lines, values, strict=True)]
    tip = ", ".join(f"{axis.key} {number(value)}" for axis, value in zip(lines, values, strict=True))
    return el(
        "polyline",
        el("title", f"#{trial.number}: {tip}"),
        points=" ".join(points),
        class_=f"pc q{shade(rank, count)}",
        data_config=labels[trial.trial_id],
    )


def _axis(key: str, x: float, values: Sequence[Any], dimension: Dimension | None) -> Axis:
    present = [value for value in values if value is not None]
    are_numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in present
    )
    if present and are_numbers and not (dimension and dimension.choices):
        is_log = bool(dimension and dimension.is_log) and min(present) > 0
        return Axis(key, x, {}, scale_of(map(float, present), _BOTTOM, _TOP, is_log=is_log, margin=0.02))
    planned = [text_key(choice) for choice in dimension.choices] if dimension else []
    found = sorted({text_key(value) for value in present} - set(planned))
    options = planned + found
    step = (_BOTTOM - _TOP) / (len(options) + 1)
    return Axis(key, x, {option: _BOTTOM - (index + 1) * step for index, option in enumerate(options)}, None)


def _drawn(axis: Axis, name: str, level: int, is_last: bool) -> Markup:
    side, anchor = (1, "start") if is_last else (-1, "end")  # nothing stands right of the last axis
    parts = [el("line", x1=axis.x, x2=axis.x, y1=_TOP - 6, y2=_BOTTOM + 6, class_="axis")]
    for y, tick in axis.ticks():
        parts.append(el("line", x1=axis.x + 4 * side, x2=axis.x, y1=y, y2=y, class_="axis"))
        parts.append(text(axis.x + 7 * side, y + 4, tick, "tick halo", anchor))
    parts.append(
        el(
            "text",
            _short(name, 24),
            el("title", axis.key),
            x=axis.x,
            y=28.0 - 14 * level,
            class_="name",
            text_anchor="middle",
        )
    )
    return join(parts)


def _short(value: str, limit: int = 14) -> str:
    plain = value.strip('"')
    return plain if len(plain) <= limit else f"{plain[: limit - 1]}…"
