"""The tables: rankings, differences of configurations, times, trials without a place, protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sensorlab.cluster.table import duration, number
from sensorlab.report.charts import series_class
from sensorlab.report.content import Trial, text_key
from sensorlab.report.distinguish import Difference
from sensorlab.report.gather import Report
from sensorlab.report.markup import Markup, el, join, number_cell, table
from sensorlab.report.ranking import FORK, SEED, Configuration, Ranking, unranked
from sensorlab.report.scales import Scale, scale_of

# The order of the samples follows the seed, which repeats have of their own; a generation goes on from a checkpoint.
_OF_ITS_PLACE = {SEED, "provenance.order", "provenance.fork", FORK.rpartition(".")[0]}
_MAX_OTHERS = 200  # configurations in the table of differences


Column = Callable[[Configuration], str]


def ranking_table(report: Report, ranking: Ranking, further: Mapping[str, Column] | None = None) -> Markup:
    """Configurations with the mean, the spread and the number of their repeats, best first.

    Args:
        further: name to content of more columns, which stand before the values.
    """
    further = further or {}
    metrics = further_metrics(ranking, report.sweep.objective)
    keys = report.keys
    values = [value for configuration in ranking.configurations for value in configuration.objectives]
    scale = scale_of(values, 6, 104)
    mixed = [name for name in metrics if _is_mixed(ranking, name)]
    header = ["rank", "config", f"mean {report.sweep.objective}", "± sd", "n", "epochs", "repeats", "against the best"]
    header += [*further, *(report.names[key] for key in keys), "time", "trials"]
    header += [f"{name} *" if name in mixed else name for name in metrics]
    rows = [
        _ranking_row(configuration, place, ranking, keys, metrics, scale, report, further)
        for place, configuration in enumerate(ranking.configurations)
    ]
    same = ", ".join(f"{report.names[k]} = {value_text(v)}" for k, v in report.constants.items() if k not in keys)
    notes = [f"The same in all trials: {same}."] if same else []
    if mixed:
        notes.append(
            f"* {', '.join(mixed)}: defined by each trial's own configuration, so rows do not compare with each other."
        )
    written = (el("p", note, class_="note") for note in notes)
    return join([table(header, rows, label="Ranking", class_="ranking", sortable=True), *written])


def _ranking_row(
    configuration: Configuration,
    place: int,
    ranking: Ranking,
    keys: Sequence[str],
    metrics: Sequence[str],
    scale: Scale,
    report: Report,
    further: Mapping[str, Column],
) -> Markup:
    deviation = configuration.deviation
    count = len(configuration.compared)
    left_out = len(configuration.trials) - count
    trial = configuration.typical
    colour = series_class(place) if ranking is report.main else "rest"  # the charts draw the main ranking alone
    cells = [
        number_cell(str(place + 1), place + 1),
        el("th", el("span", "", class_=f"swatch {colour}"), _pick(configuration), scope="row"),
        number_cell(number(configuration.mean), configuration.mean),
        number_cell("–" if deviation is None else f"{deviation:.2g}", deviation),
        number_cell(f"{count}" + (f" (+{left_out})" if left_out else ""), count),
        number_cell(str(trial.epoch), trial.epoch),
        el("td", _dots(configuration, scale)),
        _against(ranking.difference(place)),
    ]
    cells += [el("td", content(configuration)) for content in further.values()]
    cells += [_value_cell(configuration.values.get(key)) for key in keys]
    states = {state: sum(t.state == state for t in configuration.trials) for state in ("done", "stopped")}
    other = len(configuration.trials) - sum(states.values())
    named = [f"{total} {state}" for state, total in (*states.items(), ("open", other)) if total]
    numbers = " ".join(f"#{t.number}" for t in configuration.trials)
    cells += [
        number_cell(duration(configuration.seconds), configuration.seconds),
        el("td", ", ".join(named) + (f" ({numbers})" if len(configuration.trials) > 1 else "")),
    ]
    cells += [number_cell(number(trial.metrics.get(name)), trial.metrics.get(name)) for name in metrics]
    return el("tr", *cells, data_config=configuration.label)


def _pick(configuration: Configuration) -> Markup:
    """The label as a button that keeps the configuration brought out in all charts."""
    return el("button", configuration.label, type="button", class_="pick", aria_pressed="false")


def _against(difference: Difference | None) -> Markup:
    if difference is None:
        return el("td", "best", data_sort="2")
    if difference.p is None:
        shown = "not tested" if difference.is_rival else f"trained {'longer' if difference.is_longer else 'shorter'}"
        return el("td", shown, class_="muted", data_sort="-1", title=difference.test)
    sort = f"{difference.p:.6g}"
    if difference.is_clear:
        return el("td", f"worse, p = {difference.p:.2g}", data_sort=sort, title=difference.test)
    chip = el("span", "not distinguishable", class_="chip")
    return el("td", chip, f" p = {difference.p:.2g}", data_sort=sort, title=difference.test)


def _dots(configuration: Configuration, scale: Scale) -> Markup:
    """The repeats as dots over the mean and its spread, on a scale that all rows share."""
    marks = []
    mean, deviation = configuration.mean, configuration.deviation
    if deviation is not None:
        low, high = (min(max(scale(mean + sign * deviation), 2.0), 108.0) for sign in (-1, 1))
        marks.append(el("line", x1=low, x2=high, y1=9, y2=9, class_="range"))
        marks.append(el("line", x1=scale(mean), x2=scale(mean), y1=3, y2=15, class_="range"))
    marks += [el("circle", cx=scale(value), cy=9, r=3.5, class_="mark") for value in configuration.objectives]
    label = ", ".join(number(value) for value in configuration.objectives)
    return el("svg", el("title", label), *marks, viewBox="0 0 110 18", width=110, height=18, class_="spark", role="img")


def value_text(value: Any) -> str:
    """A value as in a configuration file; numbers with four digits."""
    return text_key(value).replace(",", ", ") if isinstance(value, list | dict) else number(value)


def _definition(value: Any) -> Markup:
    text = value_text(value)
    is_digest = len(text) >= 40 and " " not in text  # of a dataset; its begin is enough to recognise it
    return el("dd", f"{text[:12]}…", title=text) if is_digest else el("dd", text)


def _value_cell(value: Any, **attributes: Any) -> Markup:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number_cell(number(value), value, **attributes)
    return el("td", value_text(value), **attributes)


def further_metrics(ranking: Ranking, objective: str) -> list[str]:
    """The objective's closest relatives and the validation loss, where they were measured."""
    names = {name for trial in ranking.trials for name in trial.metrics}
    relatives = sorted((name for name in names if name.startswith(f"{objective}_")), key=lambda name: (len(name), name))
    return relatives[:1] + [name for name in ("val/loss",) if name in names and name != objective]


def _is_mixed(ranking: Ranking, name: str) -> bool:
    return len({text_key(trial.protocols[name]) for trial in ranking.trials if name in trial.protocols}) > 1


def differences_table(report: Report, ranking: Ranking) -> Markup:
    """What every other configuration has that the best has not; equal values are grey."""
    best, *others = ranking.configurations
    also = also_different(ranking)
    keys = report.keys
    header = ["config", report.sweep.objective, *(report.names[key] for key in keys), *also]
    rows = [_difference_row(best, best, keys, also)]
    rows += [_difference_row(other, best, keys, also) for other in others[:_MAX_OTHERS]]
    return table(header, rows, label="Differences", class_="differences")


def also_different(ranking: Ranking) -> list[str]:
    """Keys that differ between trials although nobody searched them: parts of other models, revisions of the code.

    What a trial has because of its place in the sweep is none of them.
    """
    searched = {key for trial in ranking.trials for key in trial.values} | _OF_ITS_PLACE
    seen: dict[str, set[str]] = {}
    for trial in ranking.trials:
        for key, value in _facts(trial).items():
            if not any(key == known or key.startswith(f"{known}.") for known in searched):
                seen.setdefault(key, set()).add(text_key(value))
    counts = {key: sum(key in _facts(trial) for trial in ranking.trials) for key in seen}
    return sorted(key for key, values in seen.items() if len(values) > 1 or counts[key] < len(ranking.trials))


def _facts(trial: Trial) -> dict[str, Any]:
    return {**trial.config, **{f"provenance.{name}": value for name, value in trial.provenance.items()}}


def _difference_row(
    configuration: Configuration, best: Configuration, keys: Sequence[str], also: Sequence[str]
) -> Markup:
    cells = [el("th", configuration.label, scope="row"), number_cell(number(configuration.mean), configuration.mean)]
    pairs = [(configuration.values.get(key), best.values.get(key)) for key in keys]
    own, reference = _facts(configuration.trials[0]), _facts(best.trials[0])
    pairs += [(own.get(key), reference.get(key)) for key in also]
    for value, wanted in pairs:
        is_same = configuration is not best and value == wanted
        cells.append(_value_cell(value, title="as the best" if is_same else None, data_same="" if is_same else None))
    return el("tr", *cells, data_config=configuration.label, class_="first" if configuration is best else None)


def times_table(report: Report) -> Markup:
    header = ["trial", "state", "time", "epochs", "goodput", "restarts", "seconds per epoch"]
    rows = []
    for trial in report.sweep.trials:
        per_epoch = trial.seconds / trial.epoch if trial.epoch else None
        cells = [
            el("th", f"#{trial.number}", scope="row", data_sort=str(trial.number)),
            el("td", trial.state),
            number_cell(duration(trial.seconds), trial.seconds),
            number_cell(str(trial.epoch), trial.epoch),
            number_cell("–" if trial.goodput is None else f"{100 * trial.goodput:.0f}%", trial.goodput),
            number_cell(str(trial.restarts), trial.restarts),
            number_cell("–" if per_epoch is None else number(per_epoch), per_epoch),
        ]
        rows.append(el("tr", *cells, data_config=report.labels.get(trial.trial_id)))
    return table(header, rows, label="Times", class_="times", sortable=True)


def unranked_table(report: Report) -> Markup | None:
    """Trials without an objective, and why; with the end of the traceback where there is one."""
    rows = []
    for trial, reason in unranked(report.sweep):
        values = ", ".join(f"{report.names.get(key, key)} = {value_text(value)}" for key, value in trial.values.items())
        trace = el("details", el("summary", "end of the traceback"), el("pre", trial.error)) if trial.error else None
        cells = [el("th", f"#{trial.number}", scope="row"), el("td", trial.state), el("td", reason, trace)]
        cells += [el("td", values), number_cell(str(trial.epoch)), number_cell(duration(trial.seconds))]
        cells.append(number_cell(str(trial.restarts)))
        rows.append(el("tr", *cells))
    if not rows:
        return None
    header = ["trial", "state", "why", "values", "epochs", "time", "restarts"]
    return table(header, rows, label="Trials without a result", class_="failures")


def protocols_list(protocols: Mapping[str, Mapping[str, Any]], objective: str) -> Markup:
    """Every metric with its definition; metrics of one definition stand together, the objective's first."""
    groups: dict[str, list[str]] = {}
    for name in sorted(protocols, key=lambda name: (name != objective, name)):
        definition = {
            key: value for key, value in protocols[name].items() if key != "metric" or "task" not in protocols[name]
        }
        groups.setdefault(text_key(definition), []).append(name)
    parts = []
    for names in groups.values():
        left_out = "metric" if len(names) > 1 and "task" in protocols[names[0]] else None  # losses: the name says it
        shown = [(k, v) for k, v in protocols[names[0]].items() if v not in (None, [], "") and k != left_out]
        terms = (el("div", el("dt", key), _definition(value)) for key, value in shown)
        heading = join((el("code", name) for name in names), " ")
        parts.append(el("div", el("h3", heading), el("dl", *terms, class_="terms"), class_="protocol"))
    return join(parts)


def protocol_difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> Markup:
    """The parts of two definitions of the objective that are not equal."""
    rows = []
    for key in sorted(first.keys() | other.keys()):
        if first.get(key) != other.get(key):
            cells = (el("td", value_text(side.get(key))) for side in (first, other))
            rows.append(el("tr", el("th", key, scope="row"), *cells))
    if not rows:
        return el("p", "What differs is not known: no checkpoint of these trials is left that says it.", class_="note")
    return table(["part of the definition", "first ranking", "this one"], rows, label="Definitions")
