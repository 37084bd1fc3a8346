"""The ranked table that a sweep ends with, as text and as data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sensorlab.cluster.ledger import Ledger, TrialRecord
from sensorlab.cluster.search.options import FidelityConfig
from sensorlab.report.content import text_key
from sensorlab.report.ranking import ASSIGNED, Configuration, Ranking, leading
from sensorlab.runs.table import aligned, duration, number


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys without their section where that stays unique: ``optim.lr`` -> ``lr``."""
    tails = [key.partition(".")[2] or key for key in keys]
    return {key: tail if tails.count(tail) == 1 else key for key, tail in zip(keys, tails, strict=True)}


def ranked_table(ledger: Ledger, objective: str, fidelity: FidelityConfig | None = None) -> str:
    """Rank, trial, objective and two related metrics, searched values, epochs, time, status.

    Where configurations were repeated with other seeds, a row is a configuration: mean, standard deviation between its
    repeats and their number; the lines below say whether the best can be told from the others. Only the level that the
    best is from has ranks; trials of lower ones follow, each with what became of its configuration.
    """
    found = leading(ledger.standings())
    fates = {} if fidelity is None else _fates(ledger, fidelity)
    fates |= _cut_off(ledger)
    if any(len(configuration.trials) > 1 for ranking in found for configuration in ranking.configurations):
        keys = _keys(ledger, ASSIGNED, fidelity)
        blocks = [_configurations(ledger, found, objective, keys, fates), "", *verdict(found[0], objective)]
    else:
        blocks = [_trials(ledger, found, objective, _keys(ledger, (), fidelity), fates)]
    if fidelity is not None and len(found) > 1:
        value = number(found[0].trials[0].values.get(fidelity.key))
        blocks += ["", f"ranked are the trials with {fidelity.key}={value}, with which the others do not compare"]
    return "\n".join(blocks)


def _keys(ledger: Ledger, hidden: Iterable[str], fidelity: FidelityConfig | None) -> list[str]:
    """Keys that trials have values of their own for: that of the fidelity, then those that are searched."""
    found = {key for record in ledger.trials.values() for key in record.values}.difference(hidden)
    return sorted(found, key=lambda key: (fidelity is None or key != fidelity.key, key))


def _trials(
    ledger: Ledger, found: Sequence[Ranking], objective: str, keys: Sequence[str], fates: Mapping[str, str]
) -> str:
    ranked = ledger.ranked()
    shorts = short_keys(keys)
    metrics = _further_metrics(ranked, objective)
    header = ["rank", "trial", objective, *metrics, *(shorts[key] for key in keys), "epochs", "time", "status"]
    rows = []
    competing = {trial.trial_id for trial in found[0].trials} if found else set()
    for rank, record in enumerate(ranked, start=1):
        rows.append(
            [
                str(rank) if record.trial_id in competing else "-",
                f"#{record.number}",
                number(record.objective),
                *(number(record.metrics.get(name)) for name in metrics),
                *(number(record.values.get(key)) for key in keys),
                str(record.epoch),
                duration(record.seconds),
                record.state + fates.get(record.trial_id, ""),
            ]
        )
    return aligned([header, *rows])


def _configurations(
    ledger: Ledger, found: Sequence[Ranking], objective: str, keys: Sequence[str], fates: Mapping[str, str]
) -> str:
    metrics = _further_metrics(ledger.trials.values(), objective)
    shorts = short_keys(keys)
    header = ["rank", "trials", objective, "±", "n", *metrics, *(shorts[key] for key in keys)]
    rows = [[*header, "epochs", "time", "status"]]
    for ranking in found:
        for rank, configuration in enumerate(ranking.configurations, start=1):
            means = [_mean([trial.metrics.get(name) for trial in configuration.compared]) for name in metrics]
            states = [trial.state for trial in configuration.trials]
            counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            rows.append(
                [
                    str(rank) if ranking is found[0] else "-",
                    _numbers(configuration),
                    number(configuration.mean),
                    number(configuration.deviation),
                    str(len(configuration.compared)),
                    *(number(mean) for mean in means),
                    *(number(configuration.values.get(key)) for key in keys),
                    str(configuration.epoch),
                    duration(sum(trial.seconds for trial in configuration.trials)),
                    counted + next((fate for trial in configuration.trials if (fate := fates.get(trial.trial_id))), ""),
                ]
            )
    placed = {trial.trial_id for ranking in found for trial in ranking.trials}
    for record in ledger.trials.values():
        if record.trial_id not in placed:
            values = [number(record.values.get(key)) for key in keys]
            blank = [number(None)] * (3 + len(metrics))
            state = record.state + fates.get(record.trial_id, "")
            rows.append(["-", f"#{record.number}", *blank, *values, str(record.epoch), duration(record.seconds), state])
    return aligned(rows)


def _cut_off(ledger: Ledger) -> dict[str, str]:
    """Trial id to why the sweep ended before the trial."""
    stopped = [record for record in ledger.trials.values() if record.state == "stopped" and record.reason]
    return {record.trial_id: f", {record.reason}" for record in stopped if record.reason == ledger.ended}


def _fates(ledger: Ledger, fidelity: FidelityConfig) -> dict[str, str]:
    """Trial id to ``, promoted`` or ``, not promoted``, for the levels below the highest that the sweep has reached."""
    reached: dict[str, int] = {}
    keys: dict[str, str] = {}
    records = [record for record in ledger.trials.values() if record.fidelity is not None]
    for record in records:
        same = {key: value for key, value in record.values.items() if key not in ASSIGNED and key != fidelity.key}
        key = keys[record.trial_id] = text_key(same)
        reached[key] = max(reached.get(key, 0), record.fidelity or 0)
    highest = max(reached.values(), default=0)
    return {
        record.trial_id: ", promoted" if reached[keys[record.trial_id]] > record.fidelity else ", not promoted"
        for record in records
        if record.fidelity is not None and record.fidelity < highest and record.state != "failed"
    }


def verdict(ranking: Ranking, objective: str) -> list[str]:
    """The best configuration, and whether it differs from the others by more than seeds do."""
    best = ranking.configurations[0]
    lines = [f"best configuration: {_numbers(best)}, {objective} {spread(best)}"]
    if not ranking.rivals:
        return [*lines, "no other configuration trained as long, so nothing is compared with it"]
    second, difference = ranking.rivals[0]
    if difference.p is None:
        lines.append(f"whether it differs from the next, {_numbers(second)}, is unknown ({difference.test})")
    elif difference.is_clear:
        lines.append(f"it differs from the next, {_numbers(second)} (p = {difference.p:.2g}, {difference.test})")
    else:
        lines.append(
            f"NOT DISTINGUISHABLE from the next, {_numbers(second)}, {objective} {spread(second)}: "
            f"p = {difference.p:.2g} ({difference.test}); more seeds would tell"
        )
    others = [_numbers(other) for other in ranking.unclear if other is not second]
    if others:
        lines.append(f"nor from {'; '.join(others)}" if not difference.is_clear else f"not from {'; '.join(others)}")
    return lines


def spread(configuration: Configuration) -> str:
    """``0.374 ± 0.012 (n = 3)``; a single training has no ±."""
    deviation = "" if configuration.deviation is None else f" ± {number(configuration.deviation)}"
    return f"{number(configuration.mean)}{deviation} (n = {len(configuration.compared)})"


def _numbers(configuration: Configuration) -> str:
    return " ".join(f"#{trial.number}" for trial in configuration.trials)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def failures(ledger: Ledger) -> list[str]:
    """One line per trial without a place in a ranking: its number and why."""
    lines = []
    placed = {trial.trial_id for ranking in leading(ledger.standings()) for trial in ranking.trials}
    for record in ledger.trials.values():
        if record.state == "failed":
            lines.append(f"#{record.number} failed: {record.reason}")
        elif record.objective is not None and not math.isfinite(record.objective):
            lines.append(f"#{record.number} is not ranked: its objective was never a finite number")
        elif record.objective is not None and record.trial_id not in placed:
            lines.append(f"#{record.number} is not ranked: its objective follows another protocol than most")
    return lines


def summary(ledger: Ledger, **extra: Any) -> dict[str, Any]:
    """The outcome as plain data: the sweep's last line on stdout."""
    best, ranking = ledger.best(), ledger.standing()
    trials = list(ledger.trials.values())
    return {
        **extra,
        "trials": len(trials),
        "done": ledger.count("done"),
        "stopped": ledger.count("stopped"),
        "failed": ledger.count("failed"),
        "unfinished": ledger.count("interrupted", "running"),
        "best": None
        if best is None
        else {
            "trial": best.number,
            "objective": best.objective,
            "epoch": best.best_epoch,
            "values": best.values,
            "checkpoint": best.best_checkpoint,
            "run_id": best.run_id,
            "config_digest": best.config_digest,
        },
        "best_configuration": None if ranking is None else _configuration(ranking),
    }


def _configuration(ranking: Ranking) -> dict[str, Any]:
    """The best configuration; ``distinguishable`` from the next best: ``None`` where no test is possible."""
    best = ranking.configurations[0]
    difference = ranking.rivals[0][1] if ranking.rivals else None
    return {
        "trials": [trial.number for trial in best.trials],
        "values": best.values,
        "mean": best.mean,
        "deviation": best.deviation,
        "n": len(best.compared),
        "distinguishable": None if difference is None or difference.p is None else difference.is_clear,
        "p": None if difference is None else difference.p,
    }


def _further_metrics(records: Iterable[TrialRecord], objective: str) -> list[str]:
    """The objective's closest relative (such as another average of the same quantity) and the validation loss."""
    names = {name for record in records for name in record.metrics}
    relatives = sorted((name for name in names if name.startswith(f"{objective}_")), key=lambda name: (len(name), name))
    return relatives[:1] + [name for name in ("val/loss",) if name in names and name != objective]
