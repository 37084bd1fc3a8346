"""Trials as configurations: repeats with other seeds are one, and it has their mean.

The arithmetic is that of the report (:mod:`sensorlab.report.ranking`), so the terminal, the searchers and the report
never disagree about a mean or about which configuration is the best.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorlab.report.content import Mode, Sweep, Trial
from sensorlab.report.ranking import SEED, Ranking, rankings

if TYPE_CHECKING:
    from sensorlab.cluster.ledger import TrialRecord


def standings(records: Iterable[TrialRecord], mode: str) -> list[Ranking]:
    """The rankings of the configurations of those records (:func:`sensorlab.report.ranking.rankings`)."""
    trials = tuple(_trial(record) for record in records)
    direction: Mode = "min" if mode == "min" else "max"
    return rankings(Sweep("", Path(), "", direction, "running", None, {}, {}, trials))


def mean_objective(records: Iterable[TrialRecord], mode: str) -> float | None:
    """Mean over the repeats of one configuration that trained equally long; ``None`` if none was measured."""
    found = standings(records, mode)
    return found[0].configurations[0].mean if found else None


def configuration_key(values: Mapping[str, Any]) -> str:
    """Equal for the repeats of one configuration."""
    return json.dumps({key: value for key, value in values.items() if key != SEED}, sort_keys=True)


def _trial(record: TrialRecord) -> Trial:
    return Trial(
        number=record.number,
        trial_id=record.trial_id,
        run_dir=Path(record.run_dir),
        values=record.values,
        state=record.state,
        seed=record.values.get(SEED),
        epoch=record.epoch,
        objective=record.objective,
        protocol=record.protocol,
        fidelity=record.fidelity,
        seconds=record.seconds,
        metrics=record.metrics,
    )
