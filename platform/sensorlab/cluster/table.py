"""The ranked table that a sweep ends with, as text and as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sensorlab.cluster.ledger import Ledger, TrialRecord
from sensorlab.runs.table import aligned, duration, number


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys without their section where that stays unique: ``optim.lr`` -> ``lr``."""
    tails = [key.partition(".")[2] or key for key in keys]
    return {key: tail if tails.count(tail) == 1 else key for key, tail in zip(keys, tails, strict=True)}


def ranked_table(ledger: Ledger, objective: str) -> str:
    """Rank, trial, objective and two related metrics, searched values, epochs, time, status."""
    ranked = ledger.ranked()
    keys = sorted({key for record in ranked for key in record.values})
    shorts = short_keys(keys)
    metrics = _further_metrics(ranked, objective)
    header = ["rank", "trial", objective, *metrics, *(shorts[key] for key in keys), "epochs", "time", "status"]
    rows = []
    for rank, record in enumerate(ranked, start=1):
        rows.append(
            [
                str(rank) if ledger.ranks(record) else "-",
                f"#{record.number}",
                number(record.objective),
                *(number(record.metrics.get(name)) for name in metrics),
                *(number(record.values.get(key)) for key in keys),
                str(record.epoch),
                duration(record.seconds),
                record.state,
            ]
        )
    return aligned([header, *rows])


def failures(ledger: Ledger) -> list[str]:
    """One line per trial without a place in the ranking: its number and why."""
    lines = []
    for record in ledger.trials.values():
        if record.state == "failed":
            lines.append(f"#{record.number} failed: {record.reason}")
        elif record.objective is not None and not ledger.ranks(record):
            lines.append(f"#{record.number} is not ranked: its objective follows another protocol than most")
    return lines


def summary(ledger: Ledger, **extra: Any) -> dict[str, Any]:
    """The outcome as plain data: the sweep's last line on stdout."""
    best = ledger.best()
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
    }


def _further_metrics(records: Iterable[TrialRecord], objective: str) -> list[str]:
    """The objective's closest relative (such as another average of the same quantity) and the validation loss."""
    names = {name for record in records for name in record.metrics}
    relatives = sorted((name for name in names if name.startswith(f"{objective}_")), key=lambda name: (len(name), name))
    return relatives[:1] + [name for name in ("val/loss",) if name in names and name != objective]
