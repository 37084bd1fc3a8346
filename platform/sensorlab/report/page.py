"""The page: all sections in the order in which a decision is made, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sensorlab import __version__
from sensorlab.report import charts, lineage, result_tables, tables
from sensorlab.report.charts import PHASES, phase_name
from sensorlab.report.content import Trial
from sensorlab.report.distinguish import ALPHA
from sensorlab.report.gather import Exhibit, Report
from sensorlab.report.importance import CONTROL, ENOUGH_PER_KEY
from sensorlab.report.markup import Markup, el, join
from sensorlab.report.parallel import MAX_AXES, MAX_LINES, parallel_coordinates
from sensorlab.report.pictures import series
from sensorlab.report.ranking import leading
from sensorlab.report.script import SCRIPT
from sensorlab.report.style import CSS
from sensorlab.report.summary import banner, decision, facts, plural, with_spread

_MAX_TIMES = 40  # trials in the chart of times; the table has all


def render(report: Report) -> str:
    """The whole HTML file."""
    sweep = report.sweep
    title = f"Sweep {sweep.name}"
    sections = [section for section in _sections(report) if section is not None]
    links = (el("li", el("a", name, href=f"#{anchor}")) for anchor, name, _ in sections)
    head_parts = (banner(report), facts(report))
    body = [
        el("header", el("h1", title), el("p", _origin(report), class_="under"), *head_parts, class_="top"),
        el("nav", el("ul", *links), aria_label="Sections"),
        el("main", *(_section(*section) for section in sections)),
        el("footer", f"Made by sensorlab {__version__} on {report.created} from {sweep.directory}. "
           "This file is complete in itself and loads nothing."),
        el("script", Markup(SCRIPT)),
    ]  # fmt: skip
    head = [
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy()),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Markup(CSS)),
    ]
    return f"<!DOCTYPE html>\n{el('html', el('head', *head), el('body', *body), lang='en')}\n"


def _policy() -> str:
    """Nothing is fetched, and no script runs but the page's own, whatever the names in the report are."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _origin(report: Report) -> str:
    sweep = report.sweep
    parts = [f"{sweep.search.get('algorithm', '?')} search, scheduler {sweep.search.get('scheduler', '?')}"]
    parts += [f"dataset {sweep.dataset}"] if sweep.dataset else []
    parts += [f"MLflow run {sweep.parent_run_id}"] if sweep.parent_run_id else []
    return " · ".join(parts)


def _section(anchor: str, name: str, content: Any) -> Markup:
    content = content if isinstance(content, Markup) else join(content)
    return el("section", el("h2", name, id=f"{anchor}-name"), content, id=anchor, aria_labelledby=f"{anchor}-name")


def _sections(report: Report) -> list[tuple[str, str, Any] | None]:
    return [
        ("decision", "Decision", decision(report)),
        _ranking(report),
        _other_levels(report),
        _other_protocols(report),
        _lineage(report),
        _curves(report),
        _cost(report),
        _search_space(report),
        _pictures(report),
        _result_tables(report),
        _differences(report),
        _times(report),
        _failures(report),
        _protocols(report),
        ("about", "Method", _about(report)),
    ]


def _ranking(report: Report) -> tuple[str, str, Any] | None:
    if report.main is None:
        return None
    note = (
        "Repeats with different seeds are one row: mean, standard deviation between seeds (n − 1), and n; "
        "“(+1)” counts repeats that are left out because they trained for fewer epochs or repeat a seed. Click a "
        "column's name to sort; point at a row to find it in the charts, click its configuration to keep it there."
    )
    further: dict[str, tables.Column] = {}
    population = report.population
    if population is not None:
        note += " Each trial is one generation of one member of the population."
        further = {
            "generation": lambda configuration: str(population.generation(configuration.trials[0])),
            "member": lambda configuration: str(population.member(configuration.trials[0])),
            "from": lambda configuration: population.origin(configuration.trials[0]),
        }
    parts = [el("p", note, class_="note"), tables.ranking_table(report, report.main, further)]
    if report.main.fidelity is not None:
        parts.insert(0, el("p", f"Ranked are the trials of {report.level_name(report.main)}."))
    return "ranking", "Ranking", parts


def _other_levels(report: Report) -> tuple[str, str, Any] | None:
    """Trials with another value of the fidelity's key: each level has an order of its own."""
    levels = [ranking for ranking in leading(report.rankings) if ranking is not report.main]
    if not levels:
        return None
    text = (
        "Cheaper trials say which configurations are worth a dearer one. What they measured does not compare with the "
        "ranking above, nor do the levels with each other. “then”: where the configuration went on."
    )
    parts: list[Any] = [el("p", text, class_="note")]
    for ranking in levels:
        parts.append(el("h3", f"{report.level_name(ranking)}: {plural(len(ranking.trials), 'trial')}"))
        parts.append(tables.ranking_table(report, ranking, {"then": report.promotion}))
    return "levels", "Other levels", parts


def _other_protocols(report: Report) -> tuple[str, str, Any] | None:
    objective = report.sweep.objective
    compared = {ranking.fidelity: ranking for ranking in leading(report.rankings)}
    others = [ranking for ranking in report.rankings if ranking is not compared[ranking.fidelity]]
    if not others:
        return None
    parts: list[Any] = []
    for ranking in others:
        level = compared[ranking.fidelity]
        at = "" if ranking.fidelity is None else f" of {report.level_name(ranking)}"
        parts += [
            el("h3", f"{plural(len(ranking.trials), 'trial')} by protocol {ranking.protocol or '(unknown)'}"),
            el(
                "p",
                f"They measured {objective} by another protocol than the {len(level.trials)} ranked above{at}: the "
                "numbers are answers to different questions, so there is no order between the tables.",
            ),
            tables.protocol_difference(level.definition(objective), ranking.definition(objective)),
            tables.ranking_table(report, ranking),
        ]
    return "other-protocols", "Measured differently", parts


def _lineage(report: Report) -> tuple[str, str, Any] | None:
    population = report.population
    if population is None:
        return None
    note = (
        "A dot per trial, the darker (on dark pages: the brighter) the better within its generation, with its "
        "objective at the end of the generation, which is what decides. Grey: a member went on from its own "
        "checkpoint. Arrow: it took over the checkpoint of a better member, with other values. Blue: the way to the "
        f"best trial (#{population.winner.number}, ringed)."
    )
    values = "Dots: all trials. Line: the values along the way to the best trial."
    parts = [el("p", note, class_="note"), lineage.lineage_chart(population, report.labels)]
    parts += [el("h3", f"How #{population.winner.number} came about"), lineage.path_table(population)]
    if population.names:
        parts += [el("h3", "Values over the generations"), el("p", values, class_="note")]
        parts.append(lineage.value_paths(population, report.sweep.dimensions))
    return "lineage", "Lineage", parts


def _ranked_trials(report: Report) -> list[Trial]:
    return (
        [trial for configuration in report.main.configurations for trial in configuration.trials] if report.main else []
    )


def _curves(report: Report) -> tuple[str, str, Any] | None:
    trials = [trial for trial in _ranked_trials(report) if trial.curve]
    if not trials:
        return None
    note = (
        "Coloured: the first five configurations, named at their ends; grey: all others. Dotted lines: rungs of the "
        "scheduler, with “trials that reached it → trials that went on”. Ring: went on at a rung. Cross: stopped. "
        "Square: not at its end. The scheduler decides when a trial arrives, so an early trial may go on with a value "
        "that stops a later one."
    )
    chart = charts.learning_curves(trials, report.positions, report.labels, report.sweep.objective)
    return "curves", "Learning curves", [el("p", note, class_="note"), chart]


def _search_space(report: Report) -> tuple[str, str, Any] | None:
    trials = sorted(
        _ranked_trials(report), key=lambda t: (t.objective or 0.0) * (-1 if report.sweep.mode == "max" else 1)
    )
    if len(trials) < 2 or not report.names:
        return None
    chart = parallel_coordinates(
        trials,
        report.keys,
        report.sweep.dimensions,
        report.labels,
        report.names,
        report.sweep.objective,
        report.sweep.mode,
    )
    limits = f" The first {MAX_AXES} of {len(report.keys)} keys are shown." if len(report.keys) > MAX_AXES else ""
    limits += f" The best {MAX_LINES} of {len(trials)} trials are shown." if len(trials) > MAX_LINES else ""
    note = "One line per trial, the darker (on dark pages: the brighter) the better; better is up on the last axis. "
    note += "Axes that were searched on a logarithmic scale are logarithmic." + limits
    right = [el("h3", "Parallel coordinates"), el("p", note, class_="note"), chart]
    content = el("div", el("div", *_importance(report)), el("div", *right), class_="pair")
    return "space", "Searched keys", content


def _importance(report: Report) -> list[Any]:
    found = report.importances
    heading = el("h3", "Importance")
    if not found.items:
        return [heading, el("p", f"Not computed: {found.reason}.", class_="missing")]
    keys = len(found.items) - 1
    at = "" if found.epoch is None else f" at epoch {found.epoch:g}, which all trials reached"
    note = (
        f"fANOVA (a random forest, as Optuna computes it) over {found.num_trials} trials, of "
        f"{report.sweep.objective}{at}. "
        f"Bar: share of the variance that a key explains alone. Line: its range when a quarter of the trials is left "
        f"out. {CONTROL}: a key that means nothing; what is not clearly above it means nothing either. “rank corr.” is "
        "Spearman's: the sign says which way. These are associations within this sweep, not effects."
    )
    parts = [heading, el("p", note, class_="note")]
    if found.num_trials < ENOUGH_PER_KEY * keys:
        few = f"{found.num_trials} trials for {keys} keys are few: below about {ENOUGH_PER_KEY} per key the order of "
        parts.append(
            el("p", few + "the bars changes with every further trial. Take it as a hint at most.", class_="banner")
        )
    return [*parts, charts.importance_bars(found, report.names)]


def _cost(report: Report) -> tuple[str, str, Any] | None:
    trials = _ranked_trials(report)
    if not trials:
        return None
    note = (
        "Each trial; circle: done, triangle: stopped by the scheduler, square: not at its end. Dashed: the front, "
        "trials that nothing cheaper beats. Time is that of this sweep's machines, with whatever shared them."
    )
    assert report.main is not None
    named = {configuration.typical.trial_id for configuration in report.main.configurations}
    sweep = report.sweep
    chart = charts.cost_scatter(trials, named, report.positions, report.labels, sweep.objective, sweep.mode)
    return "cost", "Objective against cost", [el("p", note, class_="note"), chart]


def _pictures(report: Report) -> tuple[str, str, Any] | None:
    if not report.exhibits:
        return None
    names = series(exhibit.panels for exhibit in report.exhibits)
    cells = [el("h3", f"{e.role}: {e.configuration.label}, {with_spread(e.configuration)}") for e in report.exhibits]
    cells += [_figure(name, exhibit) for name in names for exhibit in report.exhibits]
    if not names:
        missing = "no pictures were found in the trial's directory or its MLflow run"
        cells += [el("p", missing, class_="missing") for _ in report.exhibits]
    note = "Validation pictures of the best, the median and the worst configuration of the ranking, each at the best "
    note += "evaluation of its trial; the same row is the same sample."
    larger = el("button", "Larger pictures", type="button", class_="larger", aria_pressed="false", hidden="")
    grid = el("div", *cells, class_=f"exhibits columns{len(report.exhibits)}")
    return "pictures", "Pictures", [el("p", note, class_="note"), larger if names else None, grid]


def _figure(name: str, exhibit: Exhibit) -> Markup:
    panel = next((panel for panel in exhibit.panels if panel.name.rpartition("/")[2] == name), None)
    trial = exhibit.trial
    if panel is None:
        return el("p", f"{exhibit.role}: no {name} of trial #{trial.number}", class_="missing")
    source = f"data:{panel.mime};base64,{base64.b64encode(panel.data).decode()}"
    caption = f"{exhibit.role}: {name} of trial #{trial.number} at step {panel.step}"
    moved = "" if panel.step == trial.best_step or trial.best_step is None else f" (its best is step {trial.best_step})"
    picture = el("img", src=Markup(source), alt=caption, width=panel.width, height=panel.height)
    return el("figure", picture, el("figcaption", caption + moved))


def _result_tables(report: Report) -> tuple[str, str, Any] | None:
    if report.main is None or not report.tables:
        return None
    trial = report.main.configurations[0].typical
    steps = sorted({result.step for result in report.tables if result.step is not None})
    at = f", at step {steps[0]}" if len(steps) == 1 else ""
    note = f"Of trial #{trial.number}, which is nearest to the mean of the best configuration{at}."
    parts = [
        el("div", el("h3", result.name.replace("_", " ")), result_tables.drawn(result)) for result in report.tables
    ]
    return "tables", "Tables of the best run", [el("p", note, class_="note"), el("div", *parts, class_="pair")]


def _differences(report: Report) -> tuple[str, str, Any] | None:
    if report.main is None or len(report.main.configurations) < 2:
        return None
    also = tables.also_different(report.main)
    note = "The best first; bold: differs from it. "
    note += (
        f"Not searched, but different too: {', '.join(also)}."
        if also
        else "No other key of the configuration, no revision of the code and no dataset differs between these trials."
    )
    return (
        "differences",
        "Against the best",
        [
            el("p", note, class_="note"),
            tables.differences_table(report, report.main),
        ],
    )


def _times(report: Report) -> tuple[str, str, Any] | None:
    trials = report.sweep.trials
    if not trials:
        return None
    note = (
        "Goodput is the share of a run's time that went into training steps that count. “start” is the beginning of "
        "each attempt (model, checkpoint, compilation, dry run), “other” what the loop's clock does not see: start of "
        "the processes, preparation, and time after the last checkpoint."
    )
    few = f" The first {_MAX_TIMES} of {len(trials)} trials are drawn." if len(trials) > _MAX_TIMES else ""
    legend = el(
        "ul",
        *(el("li", el("span", "", class_=f"swatch phase {name}"), phase_name(name)) for name in PHASES),
        class_="legend",
    )
    chart = charts.time_bars(trials[:_MAX_TIMES], report.labels)
    everything = el("details", el("summary", "All trials as a table"), tables.times_table(report))
    return "times", "Time and goodput", [el("p", note + few, class_="note"), legend, chart, everything]


def _failures(report: Report) -> tuple[str, str, Any] | None:
    listed = tables.unranked_table(report)
    if listed is None:
        return None
    failed = report.sweep.count("failed")
    text = f"{plural(failed, 'trial')} failed; trials without a finite objective are listed too."
    return "failures", "Failures", [el("p", text), listed]


def _protocols(report: Report) -> tuple[str, str, Any] | None:
    if not report.rankings:
        return None
    note = "Two numbers compare only if their protocols are equal. "
    protocols: Mapping[str, Any] = next((t.protocols for t in report.rankings[0].trials if t.protocols), {})
    if not protocols:
        return (
            "protocols",
            "Protocols",
            el("p", note + "No checkpoint is left that says them.", class_="note"),
        )
    note += f"Those of the ranking above (digest {report.rankings[0].protocol}):"
    groups = el("div", tables.protocols_list(protocols, report.sweep.objective), class_="protocols")
    return "protocols", "Protocols", [el("p", note, class_="note"), groups]


def _about(report: Report) -> Markup:
    sweep = report.sweep
    texts = [
        "Test: the best configuration against each other one that trained for as many epochs; two-sided t-test with "
        "the variance between seeds pooled over these configurations (Welch's test where both have 5 repeats or more), "
        f"p values Holm-corrected, {100 * ALPHA:.0f}% level. “Not distinguishable” does not mean equal: few seeds see "
        "only large differences. Configurations that trained for more or for fewer epochs than the best are ranked by "
        "what they reached, and not tested: how those that were stopped would have gone on is not known.",
        *(f"Note: {note}." for note in sweep.notes),
    ]
    plan = json.dumps(sweep.search, indent=2, sort_keys=True, default=str)
    plan_details = el("details", el("summary", "The sweep section of this sweep"), el("pre", plan))
    return join([*(el("p", text) for text in texts), plan_details])
