"""Populations: members by generations, who took over whose checkpoint, and how the best trial came about.

A trial is one generation of one member. It goes on from the last checkpoint of a trial of the generation before: its
own member's, or that of a better one, which it replaces ("exploited").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensorlab.report.charts import WIDTH, svg, text
from sensorlab.report.content import Dimension, Trial, text_key
from sensorlab.report.markup import Markup, el, join, number_cell, table
from sensorlab.report.parallel import shade
from sensorlab.report.scales import Scale, scale_of
from sensorlab.runs.table import number

MAX_MEMBERS, MAX_GENERATIONS, MAX_KEYS = 60, 60, 6
_LEFT, _RIGHT, _TOP, _ROW = 84.0, WIDTH - 60.0, 24.0, 30.0
_PANEL = 120.0  # height of the panel of a key
_FEW = 8  # generations at which there is room for the objectives beside the dots


@dataclass(frozen=True)
class Population:
    """The trials of a population in the order of the search.

    Attributes:
        members: size of the population.
        winner: the trial whose origin is shown.
        names: searched key to its short name, those that are shown, most important first.
    """

    trials: tuple[Trial, ...]
    members: int
    winner: Trial
    names: Mapping[str, str]
    objective: str
    mode: str

    def generation(self, trial: Trial) -> int:
        return (trial.position or 0) // self.members

    def member(self, trial: Trial) -> int:
        return (trial.position or 0) % self.members

    @property
    def generations(self) -> int:
        return 1 + max(self.generation(trial) for trial in self.trials)

    def donor(self, trial: Trial) -> Trial | None:
        """The trial whose checkpoint this one went on from."""
        return next((other for other in self.trials if other.trial_id == trial.forked_from), None)

    def is_exploit(self, trial: Trial) -> bool:
        """Whether it replaced what its member was before."""
        donor = self.donor(trial)
        return donor is not None and self.member(donor) != self.member(trial)

    def origin(self, trial: Trial) -> str:
        donor = self.donor(trial)
        if donor is None:
            return "–"
        return f"#{donor.number} ({f'exploited member {self.member(donor)}' if self.is_exploit(trial) else 'own'})"

    def path(self) -> list[Trial]:
        """The trials whose checkpoints led to the winner, first generation first, and the winner."""
        found = [self.winner]
        while (donor := self.donor(found[-1])) is not None and donor not in found:
            found.append(donor)
        return found[::-1]


def at_its_end(trial: Trial) -> float | None:
    """The objective by which a generation is judged: its latest one, not its best."""
    return trial.last_objective if trial.last_objective is not None else trial.objective


def lineage_chart(population: Population, labels: Mapping[str, str]) -> Markup:
    """A dot per trial, members by generations; arrows where a member took over another's checkpoint."""
    rows, columns = min(population.members, MAX_MEMBERS), min(population.generations, MAX_GENERATIONS)
    shown = [t for t in population.trials if population.member(t) < rows and population.generation(t) < columns]
    bottom = _TOP + rows * _ROW
    x = Scale(0.0, float(max(columns - 1, 1)), _LEFT + 20, _RIGHT - 20)
    y = Scale(0.0, 1.0, _TOP + _ROW / 2, _TOP + _ROW * 1.5)
    parts = [text(_LEFT - 14, y(row) + 4, f"member {row}", "tick", "end") for row in range(rows)]
    parts += [text(x(column), bottom + 18, str(column), "tick", "middle") for column in range(columns)]
    parts.append(text((_LEFT + _RIGHT) / 2, bottom + 40, "generation", "name", "middle"))
    path = {trial.trial_id for trial in population.path()}
    for trial in sorted(shown, key=lambda trial: trial.trial_id in path):  # the winner's on top
        donor = population.donor(trial)
        if donor in shown and donor is not None:
            begin = x(population.generation(donor)), y(population.member(donor))
            end = x(population.generation(trial)), y(population.member(trial))
            kind = "exploit" if population.is_exploit(trial) else "own"
            won = " won" if trial.trial_id in path else ""
            parts.append(el("g", _edge(begin, end, kind), class_=f"fork {kind}{won}"))
    for trial in shown:
        place = x(population.generation(trial)), y(population.member(trial))
        parts.append(_dot(population, trial, place, labels.get(trial.trial_id), columns <= _FEW))
    return svg(bottom + 52, "Members by generations, with the checkpoints that they took over", *parts, class_="tree")


def _edge(begin: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    middle = (begin[0] + end[0]) / 2
    curve = f"M{begin[0]:.1f} {begin[1]:.1f}C{middle:.1f} {begin[1]:.1f} {middle:.1f} {end[1]:.1f} "
    parts = [el("path", d=f"{curve}{end[0] - 8:.1f} {end[1]:.1f}", class_="way")]
    if kind == "exploit":
        parts.append(el("path", d=f"M{end[0] - 8:.1f} {end[1]:.1f}l-9 -5v10z", class_="head"))
    return join(parts)


def _dot(population: Population, trial: Trial, place: tuple[float, float], label: str | None, is_roomy: bool) -> Markup:
    generation = population.generation(trial)
    sign = -1.0 if population.mode == "max" else 1.0
    rivals = [t for t in population.trials if population.generation(t) == generation and t.measured]
    ranked = sorted(rivals, key=lambda t: sign * (at_its_end(t) or 0.0))
    kind = f"q{shade(ranked.index(trial), len(ranked))}" if trial in ranked else "rest"
    values = ", ".join(f"{name} {number(trial.values.get(key))}" for key, name in population.names.items())
    tip = (
        f"#{trial.number}: generation {generation}, member {population.member(trial)}, {trial.state}, from "
        f"{population.origin(trial)}; {population.objective} {number(at_its_end(trial))} at its end; {values}"
    )
    x, y = place
    if trial.state == "failed":
        shape = el("path", d=f"M{x - 6:.1f} {y - 6:.1f}l12 12m0 -12l-12 12", class_="stop")
    elif trial.state == "done":
        shape = el("circle", cx=x, cy=y, r=7.0, class_="mark")
    else:
        shape = el("rect", x=x - 6, y=y - 6, width=12, height=12, class_="mark")
    ring = el("circle", cx=x, cy=y, r=11.0, class_="ring") if trial is population.winner else None
    value = text(x + 12, y - 7, number(at_its_end(trial)), "tick halo") if is_roomy and trial.measured else None
    return el("g", el("title", tip), ring, shape, value, class_=f"point {kind}", data_config=label)


def value_paths(population: Population, dimensions: Mapping[str, Dimension]) -> Markup:
    """A panel per key: the values of all trials over the generations, and those on the way of the winner."""
    keys = list(population.names)[:MAX_KEYS]
    columns = population.generations
    x = Scale(0.0, float(max(columns - 1, 1)), _LEFT + 40, _RIGHT)
    parts = []
    for index, key in enumerate(keys):
        top = 26.0 + index * _PANEL
        place, ticks = _values_axis([t.values.get(key) for t in population.trials], dimensions.get(key), top)
        parts.append(text(_LEFT - 60, top - 8, population.names[key], "name"))
        for at, name in ticks:
            parts.append(el("line", x1=_LEFT + 26, x2=_RIGHT + 14, y1=at, y2=at, class_="grid"))
            parts.append(text(_LEFT + 18, at + 4, name, "tick", "end"))
        parts += [_spot(population, trial, x, place, key) for trial in population.trials if key in trial.values]
        way = [trial for trial in population.path() if key in trial.values]
        points = " ".join(f"{x(population.generation(t)):.1f},{place(t.values[key]):.1f}" for t in way)
        parts.append(el("polyline", points=points, class_="way won"))
    bottom = 26.0 + len(keys) * _PANEL
    step = math.ceil(columns / 20)
    parts += [text(x(column), bottom, str(column), "tick", "middle") for column in range(0, columns, step)]
    parts.append(text((_LEFT + _RIGHT) / 2, bottom + 22, "generation", "name", "middle"))
    return svg(bottom + 34, "Values of the searched keys over the generations", *parts, class_="values")


def _spot(population: Population, trial: Trial, x: Scale, place: Any, key: str) -> Markup:
    title = el("title", f"#{trial.number}, member {population.member(trial)}: {number(trial.values[key])}")
    return el("circle", title, cx=x(population.generation(trial)), cy=place(trial.values[key]), r=3.5, class_="spot")


def _values_axis(values: Sequence[Any], dimension: Dimension | None, top: float) -> tuple[Any, list[tuple[float, str]]]:
    """(value to height, ticks) of a panel: a scale of numbers, or evenly spaced choices."""
    low, high = top + _PANEL - 46, top + 8
    present = [value for value in values if value is not None]
    if present and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in present):
        is_log = bool(dimension and dimension.is_log) and min(present) > 0
        scale = scale_of(map(float, present), low, high, is_log=is_log, margin=0.08)
        return scale, [(scale(value), name) for value, name in scale.ticks(3)]
    options = sorted({text_key(value) for value in present})
    step = (low - high) / max(len(options) - 1, 1)
    places = {option: low - index * step for index, option in enumerate(options)}
    return lambda value: places[text_key(value)], [(y, option.strip('"')[:9]) for option, y in places.items()]


def path_table(population: Population) -> Markup:
    """The way of the winner, generation by generation; bold: a value that is not the one before."""
    header = ["generation", "member", "trial", "from", f"{population.objective} at its end", *population.names.values()]
    rows, before = [], None
    for trial in population.path():
        end = at_its_end(trial)
        cells = [
            number_cell(str(population.generation(trial))),
            number_cell(str(population.member(trial))),
            el("td", f"#{trial.number}"),
            el("td", population.origin(trial)),
            number_cell(number(end), end),
        ]
        for key in population.names:
            value = trial.values.get(key)
            is_new = before is not None and before.values.get(key) != value
            cells.append(el("td", el("strong", number(value)) if is_new else number(value), class_="num"))
        rows.append(el("tr", *cells))
        before = trial
    return table(header, rows, label="Lineage of the best trial", class_="result")
