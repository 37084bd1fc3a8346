"""The charts over numeric axes: learning curves, objective against cost, bars. Inline SVG, coloured by the page's CSS.

Marks carry ``data-config``, the label of their configuration, by which the page's script finds what belongs together.
Shapes and dashes repeat what colours say, for print and for readers who do not see all colours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensorlab.cluster.table import duration, number
from sensorlab.report.content import Trial
from sensorlab.report.importance import CONTROL, Importances
from sensorlab.report.markup import Markup, el, join
from sensorlab.report.scales import Scale, scale_of, spread_out

WIDTH = 940
COLOURED = 5  # configurations with a colour of their own; more cannot be told apart
_RUNG_LABEL = 36.0  # half the width of a rung's label
_FAR = 8.0  # a value this many times farther from the middle than most are leaves the frame


@dataclass(frozen=True)
class Frame:
    """The area of a chart inside of its axes."""

    left: float = 64.0
    top: float = 46.0
    right: float = WIDTH - 120.0
    bottom: float = 340.0
    height: float = 390.0


def series_class(position: int) -> str:
    """CSS class of the configuration at a position of the ranking."""
    return f"s{position}" if position < COLOURED else "rest"


def svg(height: float, title: str, *content: Any, class_: str = "") -> Markup:
    return el(
        "svg",
        el("title", title),
        *content,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        class_=f"chart {class_}".strip(),
    )


def text(x: float, y: float, content: str, class_: str = "", anchor: str | None = None) -> Markup:
    return el("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def axes(frame: Frame, x: Scale, y: Scale, x_name: str, y_name: str, x_ticks: Sequence[tuple[float, str]]) -> Markup:
    """Grid lines, tick labels and the names of both axes."""
    parts = []
    for value, name in y.ticks(7):
        parts.append(el("line", x1=frame.left, x2=frame.right, y1=y(value), y2=y(value), class_="grid"))
        parts.append(text(frame.left - 8, y(value) + 4, name, "tick", "end"))
    for value, name in x_ticks:
        parts.append(el("line", x1=x(value), x2=x(value), y1=frame.bottom, y2=frame.bottom + 5, class_="axis"))
        parts.append(text(x(value), frame.bottom + 20, name, "tick", "middle"))
    parts.append(el("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="axis"))
    parts.append(text((frame.left + frame.right) / 2, frame.bottom + 42, x_name, "name", "middle"))
    parts.append(text(frame.left - 56, 14.0, y_name, "name"))
    return join(parts)


def learning_curves(
    trials: Sequence[Trial], positions: Mapping[str, int], labels: Mapping[str, str], name: str
) -> Markup:
    """The objective over the epochs, with what the scheduler decided at its rungs.

    Args:
        trials: with at least one point each.
        positions: trial id to the position of its configuration in the ranking.
        labels: trial id to the label of its configuration.
        name: of the objective.
    """
    frame = Frame()
    values = [point.value for trial in trials for point in trial.curve]
    epochs = [point.epoch for trial in trials for point in trial.curve]
    x = Scale(0.0, max([*epochs, 1.0]) * 1.02, frame.left, frame.right)
    y = scale_of(within_sight(values), frame.bottom, frame.top)
    ordered = sorted(trials, key=lambda trial: -positions[trial.trial_id])  # the best are drawn last, on top
    parts = [axes(frame, x, y, "epochs", name, [tick for tick in x.ticks(8) if tick[0] >= 0])]
    parts.append(_rungs(trials, frame, x))
    # Values out of sight are cut off at the frame.
    clip = el(
        "clipPath",
        el("rect", x=frame.left, y=frame.top - 8, width=WIDTH - frame.left, height=frame.bottom - frame.top + 14),
        id="plot",
    )
    parts += [clip, el("g", *(_curve(trial, positions, labels, x, y) for trial in ordered), clip_path="url(#plot)")]
    parts.append(_end_labels(ordered, positions, labels, x, y, frame))
    return svg(frame.height, f"Learning curves: {name} over epochs", *parts, class_="curves")


def within_sight(values: Sequence[float]) -> list[float]:
    """The values without those that would flatten all others, such as the loss of a training that diverged."""
    ordered = sorted(values)
    if len(ordered) < 8:
        return ordered
    low, middle, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9))
    reach = _FAR * max(high - middle, middle - low)
    return [value for value in ordered if abs(value - middle) <= reach] if reach > 0 else ordered


def _rungs(trials: Iterable[Trial], frame: Frame, x: Scale) -> Markup:
    """A line per rung, with how many trials reached it and how many of them went on."""
    reached: dict[float, list[Trial]] = {}
    for trial in trials:
        for epoch in trial.rungs:
            reached.setdefault(epoch, []).append(trial)
    parts = []
    ends = [float("-inf"), float("-inf")]  # right ends of the labels in the two lines above the frame
    for epoch, group in sorted(reached.items()):
        on = sum(trial.stopped_at != epoch for trial in group)
        line = 0 if x(epoch) - _RUNG_LABEL > ends[0] or ends[0] <= ends[1] else 1
        ends[line] = x(epoch) + _RUNG_LABEL
        parts.append(el("line", x1=x(epoch), x2=x(epoch), y1=frame.top, y2=frame.bottom, class_="rung"))
        parts.append(
            el(
                "text",
                f"{len(group)} → {on}",
                el("title", f"rung at epoch {epoch:g}: {len(group)} trials reached it, {on} went on"),
                x=x(epoch),
                y=frame.top - 8 - 15 * line,
                class_="rung-label",
                text_anchor="middle",
            )
        )
    return join(parts)


def _curve(trial: Trial, positions: Mapping[str, int], labels: Mapping[str, str], x: Scale, y: Scale) -> Markup:
    points = " ".join(f"{x(point.epoch):.1f},{y(point.value):.1f}" for point in trial.curve)
    position = positions[trial.trial_id]
    parts = [el("polyline", points=points, class_="line")]
    if len(trial.curve) == 1 or position < COLOURED:
        parts += [el("circle", cx=x(p.epoch), cy=y(p.value), r=2.5, class_="dot") for p in trial.curve]
    at = {point.epoch: point.value for point in trial.curve}
    for epoch in trial.rungs:
        if epoch in at and epoch != trial.stopped_at:
            title = el("title", f"#{trial.number} went on at epoch {epoch:g} with {number(at[epoch])}")
            parts.append(el("circle", title, cx=x(epoch), cy=y(at[epoch]), r=4.0, class_="passed"))
    last = trial.curve[-1]
    if trial.state in ("stopped", "interrupted", "running"):
        parts.append(_end_mark(trial, x(last.epoch), y(last.value)))
    best = f"best {number(trial.objective)} at epoch {trial.best_epoch}"
    tip = f"#{trial.number}: {best}, {trial.epoch} epochs, {trial.state}"
    return el(
        "g", el("title", tip), *parts, class_=f"curve {series_class(position)}", data_config=labels[trial.trial_id]
    )


def _end_mark(trial: Trial, x: float, y: float) -> Markup:
    """A cross where a trial was stopped, an open square where it has not come to its end."""
    title = el("title", f"#{trial.number} {trial.state}: {trial.reason or f'after {trial.epoch} epochs'}")
    if trial.state == "stopped":
        r = 4.5
        return el(
            "path", title, d=f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}", class_="stop"
        )
    return el("rect", title, x=x - 4, y=y - 4, width=8, height=8, class_="open")


def _end_labels(
    trials: Sequence[Trial],
    positions: Mapping[str, int],
    labels: Mapping[str, str],
    x: Scale,
    y: Scale,
    frame: Frame,
) -> Markup:
    """The names of the coloured configurations, each at the end of its longest curve; apart where they would touch."""
    longest: dict[str, Trial] = {}
    for trial in trials:
        label = labels[trial.trial_id]
        if positions[trial.trial_id] < COLOURED and (
            label not in longest or trial.curve[-1].epoch > longest[label].curve[-1].epoch
        ):
            longest[label] = trial
    groups: dict[float, list[Trial]] = {}
    for trial in longest.values():
        groups.setdefault(trial.curve[-1].epoch, []).append(trial)
    parts = []
    for epoch, ends in groups.items():
        heights = [min(max(y(trial.curve[-1].value), frame.top), frame.bottom) for trial in ends]
        moved = spread_out(heights, 15.0, frame.top, frame.bottom - 10)
        for trial, before, after in zip(ends, heights, moved, strict=True):
            position, label, begin = positions[trial.trial_id], labels[trial.trial_id], x(epoch) + 8
            leader = el("line", x1=begin, x2=begin + 10, y1=before, y2=after, class_=f"leader s{position}")
            name = text(begin + 13, after + 4, f"{position + 1}. {label}", f"label halo s{position}")
            parts.append(el("g", leader, name, data_config=label))
    return join(parts)


def cost_scatter(
    trials: Sequence[Trial],
    named: Collection[str],
    positions: Mapping[str, int],
    labels: Mapping[str, str],
    name: str,
    mode: str,
) -> Markup:
    """Each trial's objective against its wall time, with the front: nothing cheaper is better.

    Args:
        named: ids of the trials that stand for their configurations; the coloured ones among them get their names.
        positions, labels, name: see :func:`learning_curves`.
    """
    frame = Frame()
    seconds = [trial.seconds for trial in trials]
    is_log = min(seconds) > 0 and max(seconds) / min(seconds) > 20
    x = scale_of(seconds, frame.left, frame.right, is_log=is_log)
    if not is_log:
        x = Scale(0.0, x.high, frame.left, frame.right)
    y = scale_of(within_sight([trial.objective or 0.0 for trial in trials]), frame.bottom, frame.top)
    parts = [axes(frame, x, y, "seconds of wall time, all attempts", name, x.ticks(8))]
    front = pareto_front(trials, mode)
    if len(front) > 1:
        path = " ".join(f"{x(trial.seconds):.1f},{y(trial.objective or 0.0):.1f}" for trial in front)
        parts.append(el("polyline", points=path, class_="front"))
    for trial in sorted(trials, key=lambda trial: -positions[trial.trial_id]):
        parts.append(_scatter_mark(trial, positions[trial.trial_id], labels[trial.trial_id], x, y))
    shown = [t for t in trials if t.trial_id in named and positions[t.trial_id] < COLOURED]
    heights = spread_out([y(trial.objective or 0.0) for trial in shown], 15.0, frame.top, frame.bottom - 10)
    for trial, height in zip(shown, heights, strict=True):
        position, label = positions[trial.trial_id], labels[trial.trial_id]
        name = text(x(trial.seconds) + 11, height + 4, f"{position + 1}. {label}", f"label halo s{position}")
        parts.append(el("g", name, data_config=label))
    return svg(frame.height, f"{name} against seconds", *parts, class_="scatter")


def pareto_front(trials: Iterable[Trial], mode: str) -> list[Trial]:
    """Trials that no other one beats in less time, cheapest first."""
    sign = 1.0 if mode == "max" else -1.0
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.seconds, -sign * (trial.objective or 0.0))):
        if not front or sign * (trial.objective or 0.0) > sign * (front[-1].objective or 0.0):
            front.append(trial)
    return front


def _scatter_mark(trial: Trial, position: int, label: str, x: Scale, y: Scale) -> Markup:
    cx, cy = x(trial.seconds), y(trial.objective or 0.0)
    tip = (
        f"#{trial.number}: {number(trial.objective)} in {duration(trial.seconds)}, {trial.epoch} epochs, {trial.state}"
    )
    if trial.state == "done":
        shape = el("circle", cx=cx, cy=cy, r=6.0, class_="mark")
    elif trial.state == "stopped":
        shape = el("path", d=f"M{cx:.1f} {cy - 6:.1f}l6.5 11h-13z", class_="mark")
    else:
        shape = el("rect", x=cx - 5, y=cy - 5, width=10, height=10, class_="mark")
    return el("g", el("title", tip), shape, class_=f"point {series_class(position)}", data_config=label)


def importance_bars(found: Importances, names: Mapping[str, str]) -> Markup:
    """A bar per key with the range over the resamples; the key of random numbers is hatched."""
    row, left, right = 30.0, 210.0, WIDTH - 150.0
    height = 34.0 + row * len(found.items) + 40
    x = Scale(0.0, max([item.high for item in found.items] + [0.01]), left, right)
    bottom = height - 44
    parts = []
    for value, tick in x.ticks(5):
        parts.append(el("line", x1=x(value), x2=x(value), y1=14, y2=bottom, class_="grid"))
        parts.append(text(x(value), bottom + 16, tick, "tick", "middle"))
    for index, item in enumerate(found.items):
        y = 22.0 + index * row
        kind = "bar control" if item.key == CONTROL else "bar"
        tip = f"{item.key}: {item.share:.2f}, {item.low:.2f} to {item.high:.2f} without a quarter of the trials"
        parts.append(text(left - 10, y + 14, names.get(item.key, item.key), "tick key", "end"))
        parts.append(
            el("rect", el("title", tip), x=left, y=y, width=max(x(item.share) - left, 1.0), height=18, class_=kind)
        )
        parts.append(
            el(
                "path",
                d=f"M{x(item.low):.1f} {y + 9}H{x(item.high):.1f}m0 -5v10M{x(item.low):.1f} {y + 4}v10",
                class_="range",
            )
        )
        if item.direction is not None and item.key != CONTROL:
            parts.append(text(right + 12, y + 14, f"rank corr. {item.direction:+.2f}", "tick"))
    parts.append(text((left + right) / 2, height - 2, "share of the variance of the objective", "name", "middle"))
    return svg(height, "Importance of the searched keys", *parts, class_="bars")


PHASES = ("step", "data_wait", "evaluation", "checkpoint", "callback", "restart", "lost", "other")


def phase_name(phase: str) -> str:
    """What readers call a part of a run's time: every run has a ``restart``, most of them only the first one."""
    return "start" if phase == "restart" else phase.replace("_", " ")


def time_parts(trial: Trial) -> dict[str, float]:
    """Seconds of a trial by what they went to; ``other`` is what the loop's clock did not see."""
    parts = {name: trial.clock.get(name, 0.0) for name in PHASES[:-1]}
    parts["other"] = max(0.0, trial.seconds - sum(parts.values()))
    return parts


def time_bars(trials: Sequence[Trial], labels: Mapping[str, str]) -> Markup:
    """A bar per trial, divided by what its time went to, with the goodput at its end."""
    row, left, right = 24.0, 84.0, WIDTH - 190.0
    height = 16.0 + row * len(trials) + 44
    x = Scale(0.0, max([sum(time_parts(trial).values()) for trial in trials] + [1.0]), left, right)
    bottom = height - 46
    parts = []
    for value, tick in x.ticks(6):
        parts.append(el("line", x1=x(value), x2=x(value), y1=8, y2=bottom, class_="grid"))
        parts.append(text(x(value), bottom + 16, tick, "tick", "middle"))
    for index, trial in enumerate(trials):
        y, begin, bars = 12.0 + index * row, left, []
        for name, seconds in time_parts(trial).items():
            width = x(seconds) - left
            if width > 0:
                title = el("title", f"#{trial.number} {phase_name(name)}: {duration(seconds)}")
                bars.append(el("rect", title, x=begin, y=y, width=width, height=16, class_=f"phase {name}"))
            begin += width
        goodput = "" if trial.goodput is None else f" · {100 * trial.goodput:.0f}% goodput"
        bars.append(text(left - 10, y + 12, f"#{trial.number}", "tick", "end"))
        bars.append(text(begin + 8, y + 12, f"{duration(trial.seconds)}{goodput}", "tick"))
        parts.append(el("g", *bars, class_="times", data_config=labels.get(trial.trial_id)))
    parts.append(text((left + right) / 2, height - 8, "seconds of wall time", "name", "middle"))
    return svg(height, "Time of each trial by what it went to", *parts, class_="time")
