"""The top of the page: where the sweep stands, what to choose, and how sure that is."""

from __future__ import annotations

import shlex
from typing import Any

from sensorlab.cluster.table import duration, number
from sensorlab.config import parse_yaml
from sensorlab.errors import UserError
from sensorlab.report.content import Sweep, text_key
from sensorlab.report.distinguish import ALPHA, NO_SPREAD
from sensorlab.report.gather import Report
from sensorlab.report.markup import Markup, el, join
from sensorlab.report.ranking import Configuration, Ranking, leading
from sensorlab.report.tables import value_text

_STANDING = {
    "finished": "",
    "running": "The sweep is still running. Everything below is what it had measured when this report was made.",
    "interrupted": "The sweep was interrupted and has not come to its end. Unfinished trials may still improve.",
    "killed": "The sweep's driver ended without closing the sweep (killed, or its machine went down). What is below is "
    "what had been written by then; unfinished trials may still improve.",
    "ended early": "The sweep ended before all of its trials had come to an end of their own.",
}


def banner(report: Report) -> Markup | None:
    """What the reader must know before the first number, if the sweep did not come to its end."""
    sweep = report.sweep
    if not _STANDING[sweep.status]:
        return None
    expected = f" of {sweep.expected}" if sweep.expected else ""
    ended = sweep.count("done", "stopped", "failed")
    parts: list[Any] = [el("strong", sweep.status.upper()), f" {_STANDING[sweep.status]} "]
    parts.append(f"{ended}{expected} trials have ended{_open_trials(sweep)}.")
    if sweep.status == "ended early" and sweep.ended:
        parts.append(f" Reason: {sweep.ended}.")
    if sweep.status in ("interrupted", "killed"):
        parts += [" Go on with: ", el("code", f"--resume {sweep.directory}"), " of the script that started it."]
    return el("p", *parts, class_="banner", role="status")


def _open_trials(sweep: Sweep) -> str:
    """``, 2 running (#3, #4), 6 not started``."""
    parts = []
    for state in ("running", "interrupted"):
        numbers = [f"#{trial.number}" for trial in sweep.trials if trial.state == state]
        if numbers:
            shown = ", ".join(numbers[:12]) + (" …" if len(numbers) > 12 else "")
            parts.append(f"{len(numbers)} {state} ({shown})")
    if (sweep.expected or 0) > len(sweep.trials):
        parts.append(f"{(sweep.expected or 0) - len(sweep.trials)} not started")
    return "".join(f", {part}" for part in parts)


def facts(report: Report) -> Markup:
    """The figures that people look for first."""
    sweep, main = report.sweep, report.main
    best = main.configurations[0] if main else None
    seconds = sum(trial.seconds for trial in sweep.trials)
    goodputs = [trial.goodput for trial in sweep.trials if trial.goodput is not None]
    items: list[tuple[str, Any]] = [
        (f"best {sweep.objective} ({sweep.mode})", _in_two_sizes(best) if best else "–"),
        ("best configuration", best.label if best else "–"),
        ("trials", f"{len(sweep.trials)}" + (f" of {sweep.expected}" if sweep.expected else "")),
        ("done / stopped / failed", " / ".join(str(sweep.count(state)) for state in ("done", "stopped", "failed"))),
        ("time of all trials", duration(seconds)),
        ("median goodput", f"{100 * sorted(goodputs)[len(goodputs) // 2]:.0f}%" if goodputs else "–"),
    ]
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in items), class_="facts")


def _in_two_sizes(configuration: Configuration) -> Markup:
    value, _, rest = with_spread(configuration).partition(" ")
    return join([value, " ", el("small", rest)])


def with_spread(configuration: Configuration) -> str:
    """``0.374 ± 0.012 (n = 3)``; a single training has no ±."""
    deviation = configuration.deviation
    count = len(configuration.compared)
    spread = f" ± {deviation:.2g}" if deviation is not None else ""
    return f"{number(configuration.mean)}{spread} (n = {count})"


def decision(report: Report) -> Markup:
    """Which configuration to take, and whether the data carries that."""
    main = report.main
    if main is None:
        return el("p", f"No trial has a finite {report.sweep.objective} yet, so there is nothing to rank.")
    best = main.configurations[0]
    values = ", ".join(f"{report.names.get(key, key)} = {value_text(value)}" for key, value in best.values.items())
    parts: list[Any] = [
        el(
            "p",
            "Best by its mean: configuration ",
            el("strong", best.label),
            f" with {report.sweep.objective} {with_spread(best)}: {values or 'no searched values'}.",
        ),
        el("p", *verdict(main), class_="verdict"),
    ]
    parts += [el("p", text) for text in cautions(report, main)]
    if best.values:
        overrides = " ".join(shlex.quote(f"{key}={yaml_text(value)}") for key, value in best.values.items())
        parts.append(el("p", "As overrides: ", el("code", overrides)))
    if best.typical.best_checkpoint:
        parts.append(el("p", f"Checkpoint of #{best.typical.number}: ", el("code", best.typical.best_checkpoint)))
    return join(parts)


def yaml_text(value: Any) -> str:
    """``value`` as the command line takes it, without quotes where it reads the same without."""
    if isinstance(value, str):
        try:
            if parse_yaml(value) == value:
                return value
        except UserError:
            pass
    return text_key(value)


def verdict(main: Ranking) -> list[Any]:
    """Whether the best two can be told apart, with the test."""
    best = main.configurations[0]
    if len(main.configurations) < 2:
        return ["Only one configuration has an objective: there is nothing to compare it with."]
    if not main.rivals:
        return [
            el("strong", "Not tested: "),
            f"no other configuration trained for {best.epoch} epochs as {best.label} did. That it is the best rests on "
            "the scheduler's decisions to end the others.",
        ]
    second, difference = main.rivals[0]
    gap = f"the means of {best.label} and {second.label} differ by {number(abs(difference.gap))}"
    if difference.test == NO_SPREAD:
        return [el("strong", "Not tested: "), f"{gap}; {NO_SPREAD.removeprefix('no test: ')}."]
    if difference.p is None:
        return [
            el("strong", "Not tested: "),
            f"{gap}, but no configuration was trained to its end with more than one seed, so nothing is known about "
            "how much of that is chance. Train the first few again with other seeds before you decide.",
        ]
    corrected = f", Holm-corrected for {len(main.rivals)} comparisons" if len(main.rivals) > 1 else ""
    test = f"p = {difference.p:.2g}; {difference.test}{corrected}"
    is_next = second is main.configurations[1]
    others = "The best two are" if is_next else f"The best and {second.label}, the next that trained as long, are"
    if difference.is_clear:
        text: list[Any] = [el("strong", f"{others} distinguishable: "), f"{gap} ({test})."]
    else:
        text = [el("strong", f"{others} not distinguishable: "), f"{gap} ({test})."]
    unclear = [configuration.label for configuration in main.unclear]
    if unclear:
        listed = ", ".join(unclear[:12]) + (" …" if len(unclear) > 12 else "")
        text.append(
            f" At {100 * ALPHA:.0f}%, {len(unclear)} of {len(main.rivals)} others that trained as long cannot be told "
            f"from the best: {listed}. Among these, choose by cost or robustness, or train them with more seeds."
        )
    return text


def plural(count: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def cautions(report: Report, main: Ranking) -> list[str]:
    """What makes the numbers of the ranking less than they seem."""
    texts = []
    best = main.configurations[0]
    by_level = leading(report.rankings)
    elsewhere = sum(len(ranking.trials) for ranking in report.rankings if ranking not in by_level)
    if elsewhere:
        texts.append(
            f"{plural(elsewhere, 'trial')} measured by another protocol, listed apart: those numbers do not compare "
            "with these."
        )
    if report.population is not None:
        texts.append(
            "The values are those of the last generation only: what they were before, and on whose checkpoints it "
            "stands, is under Lineage. A training with these values from its start is another experiment."
        )
    if len(by_level) > 1:
        lower = plural(sum(len(ranking.trials) for ranking in by_level[1:]), "trial")
        texts.append(f"The best is from {report.level_name(main)}; {lower} of other levels are listed apart.")
    compared = zip(main.configurations[1:], main.differences, strict=True)
    longer = [configuration for configuration, difference in compared if difference.is_longer]
    if longer and not report.sweep.members:  # a generation of a population is as long as its place says
        names = ", ".join(configuration.label for configuration in longer[:12]) + (" …" if len(longer) > 12 else "")
        texts.append(
            f"The best configuration trained for {plural(best.epoch, 'epoch')} only; {names} trained longer, up to "
            f"{max(configuration.epoch for configuration in longer)}. Whether it would have stayed ahead is not known."
        )
    left_out = len(best.trials) - len(best.compared)
    if left_out:
        texts.append(
            f"{plural(left_out, 'repeat')} of the best configuration left out of its mean: trained for fewer epochs, "
            "or with a seed that was there already. A mean of the survivors is optimistic."
        )
    if any(trial.state in ("running", "interrupted") for trial in best.trials):
        texts.append("The best configuration has trials that have not come to their end.")
    if not all(trial.verified for trial in best.trials):
        texts.append(
            "At least one trial of the best configuration has not proven that it trained with the values it was given."
        )
    texts.append(
        "Each trial counts with its best epoch on the validation data, and the best configuration was chosen on the "
        "same data: expect less on new data."
    )
    return texts
