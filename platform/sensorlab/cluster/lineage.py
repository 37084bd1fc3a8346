"""A population as the user sees it: where its members stand, and whose checkpoints the best one goes back to."""

from __future__ import annotations

from typing import Any

from sensorlab.cluster.ledger import Ledger, TrialRecord
from sensorlab.cluster.table import short_keys
from sensorlab.report.ranking import searched
from sensorlab.runs.table import aligned, duration, number


def place_of(record: TrialRecord, members: int) -> tuple[int, int]:
    """(generation, member) of a trial, both counted from 0."""
    return divmod(record.position or 0, members)


def lineage(ledger: Ledger, record: TrialRecord) -> list[TrialRecord]:
    """The trials whose checkpoints led to ``record``, first generation first, and the trial itself."""
    found = [record]
    while (donor := ledger.trials.get(found[-1].forked_from or "")) is not None and donor not in found:
        found.append(donor)
    return found[::-1]


def population_table(ledger: Ledger, objective: str, members: int) -> str:
    """The latest trial of every member, best first, and the best of all, if it is older; then the lineage of the best.

    A trial stands with the best objective of its own generation.
    """
    latest: dict[int, TrialRecord] = {}
    for record in sorted(ledger.trials.values(), key=lambda record: record.position or 0):
        latest[place_of(record, members)[1]] = record
    best = ledger.best()
    shown = {record.trial_id for record in (*latest.values(), *([best] if best else []))}
    ranked = [record for record in ledger.ranked() if record.trial_id in shown]
    keys = _keys(ledger)
    header = ["rank", "trial", "generation", "member", "from", objective, *short_keys(keys).values()]
    rows = [[*header, "epochs", "time", "status"]]
    for rank, record in enumerate(ranked, start=1):
        is_measured = record.objective is not None and record.state != "failed"
        rows.append(
            [
                str(rank) if is_measured else "-",
                *_row(ledger, record, members, record.objective, keys),
                *(str(record.epoch), duration(record.seconds), record.state),
            ]
        )
    blocks = [aligned(rows)]
    if len(ledger.trials) > len(shown):
        blocks.append(f"{len(ledger.trials) - len(shown)} more trials are earlier generations of these members")
    return "\n\n".join([*blocks, *([lineage_table(ledger, best, objective, members)] if best else [])])


def lineage_table(ledger: Ledger, record: TrialRecord, objective: str, members: int) -> str:
    """How a trial came about, generation by generation, with the objective that each one ended with."""
    keys = _keys(ledger)
    header = ["trial", "generation", "member", "from", f"{objective} at its end", *short_keys(keys).values()]
    rows = [_row(ledger, each, members, each.last_objective, keys) for each in lineage(ledger, record)]
    return f"lineage of #{record.number}, the best:\n" + aligned([header, *rows])


def lineage_data(ledger: Ledger, record: TrialRecord, members: int) -> list[dict[str, Any]]:
    """The same as plain data."""
    found = []
    for each in lineage(ledger, record):
        generation, member = place_of(each, members)
        values, objective = searched(each.values), each.last_objective
        found.append(
            {"trial": each.number, "generation": generation, "member": member, "values": values, "objective": objective}
        )
    return found


def _row(ledger: Ledger, record: TrialRecord, members: int, value: float | None, keys: list[str]) -> list[str]:
    generation, member = place_of(record, members)
    donor = ledger.trials.get(record.forked_from or "")
    origin = "-"
    if donor is not None:
        origin = f"#{donor.number} (own)" if place_of(donor, members)[1] == member else f"#{donor.number} (exploited)"
    values = [number(record.values.get(key)) for key in keys]
    return [f"#{record.number}", str(generation), str(member), origin, number(value), *values]


def _keys(ledger: Ledger) -> list[str]:
    return sorted({key for record in ledger.trials.values() for key in searched(record.values)})
