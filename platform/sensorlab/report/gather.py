"""Everything that a report shows, gathered before the first line of it is drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorlab.cluster.table import short_keys
from sensorlab.report.content import Panel, Sweep, Trial, text_key
from sensorlab.report.importance import Importances, importances
from sensorlab.report.lineage import Population
from sensorlab.report.pictures import panels_of
from sensorlab.report.ranking import ASSIGNED, Configuration, Ranking, rankings, varying
from sensorlab.report.read import read_sweep
from sensorlab.report.recorded import completed, open_tracking_client
from sensorlab.report.result_tables import ResultTable, tables_of
from sensorlab.runs.table import number

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Exhibit:
    """The pictures of one place in the ranking: ``best``, ``median`` or ``worst``."""

    role: str
    configuration: Configuration
    trial: Trial
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Report:
    """What the sections of the page draw.

    Attributes:
        rankings: one per protocol, the main one first; empty without an objective.
        names: searched key to its short name.
        labels, positions: trial id to its configuration's label and place in the main ranking.
        tables: of the best configuration's typical trial, at its best evaluation.
    """

    sweep: Sweep
    rankings: tuple[Ranking, ...]
    importances: Importances
    exhibits: tuple[Exhibit, ...]
    created: str
    names: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)
    tables: tuple[ResultTable, ...] = ()

    @property
    def main(self) -> Ranking | None:
        return self.rankings[0] if self.rankings else None

    @property
    def population(self) -> Population | None:
        """The trials as generations of members, where the sweep is a population and something was measured."""
        members = self.sweep.members
        placed = tuple(trial for trial in self.sweep.trials if trial.position is not None)
        if members is None or self.main is None or not placed:
            return None
        names = {key: self.names[key] for key in self.keys}
        best = self.main.configurations[0].trials[0]
        return Population(placed, members, best, names, self.sweep.objective, self.sweep.mode)

    def level_name(self, ranking: Ranking) -> str:
        """``level 1 of 3: data.train_fraction = 0.5``."""
        fidelity = self.sweep.search.get("fidelity") or {}
        key = str(fidelity.get("key", "?"))
        value = number(ranking.trials[0].values.get(key))
        return f"level {(ranking.fidelity or 0) + 1} of {len(fidelity.get('values', ()))} ({key} = {value})"

    def promotion(self, configuration: Configuration) -> str:
        """The trials with which a configuration went on at the next level."""
        key = str((self.sweep.search.get("fidelity") or {}).get("key"))
        level = (configuration.trials[0].fidelity or 0) + 1
        own = {name: value for name, value in configuration.values.items() if name != key}
        found = [
            f"#{trial.number}"
            for trial in self.sweep.trials
            if trial.fidelity == level
            and {name: v for name, v in trial.values.items() if name not in (key, *ASSIGNED)} == own
        ]
        return f"went on as {' '.join(found)}" if found else "–"

    @property
    def keys(self) -> list[str]:
        """Searched keys that differ between the trials, those that matter most first; all of them if none differs."""
        order = {item.key: -item.share for item in self.importances.items}
        shown = set(self.names) - set(self.constants) or set(self.names)
        return sorted(shown, key=lambda key: (order.get(key, 0.0), key))

    @property
    def constants(self) -> dict[str, Any]:
        """Searched keys for which every trial has the same value, with that value."""
        trials = self.sweep.trials
        kinds = {key: {text_key(trial.values.get(key)) for trial in trials} for key in self.names}
        return {key: trials[0].values.get(key) for key, found in kinds.items() if len(found) == 1}


def gather(directory: Path, *, ended: bool = False, use_tracking: bool = True) -> Report:
    """Read a sweep and work out what its report says.

    Args:
        directory: of the sweep.
        ended: see :func:`sensorlab.report.read.read_sweep`.
        use_tracking: ask the tracking store for what the directories lack; a store that is away becomes a note.

    Raises:
        UserError: the directory holds no sweep that can be read.
    """
    sweep = read_sweep(directory, ended=ended)
    client, notes = open_tracking_client(sweep) if use_tracking else (None, ())
    sweep = sweep.with_notes(*notes)
    if client is not None:
        sweep = completed(sweep, client)
    found = tuple(rankings(sweep))
    exhibits: tuple[Exhibit, ...] = ()
    tables: tuple[ResultTable, ...] = ()
    if found:
        try:
            exhibits = _exhibits(found[0], client)
            tables = tables_of(found[0].configurations[0].typical, client)
        except Exception as error:  # whatever a store raises that was there a moment ago
            reason = str(error).strip().partition("\n")[0][:200]
            sweep = sweep.with_notes(f"pictures and tables could not be read from the tracking store: {reason}")
    return assemble(sweep, found, exhibits, tables)


def assemble(
    sweep: Sweep,
    found: tuple[Ranking, ...],
    exhibits: tuple[Exhibit, ...] = (),
    tables: tuple[ResultTable, ...] = (),
) -> Report:
    """The report of what was read."""
    main = found[0].configurations if found else ()
    return Report(
        sweep=sweep,
        rankings=found,
        importances=importances(sweep, found[0]) if found else Importances(reason="no trial has an objective"),
        exhibits=exhibits,
        created=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        names=short_keys(varying(sweep.trials)),
        labels={trial.trial_id: configuration.label for configuration in main for trial in configuration.trials},
        positions={trial.trial_id: place for place, configuration in enumerate(main) for trial in configuration.trials},
        tables=tables,
    )


def _exhibits(ranking: Ranking, client: MlflowClient | None) -> tuple[Exhibit, ...]:
    """Best, median and worst configuration with their pictures; the repeat nearest to the mean stands for each."""
    configurations = ranking.configurations
    last = len(configurations) - 1
    places = {last: "worst", last // 2: "median", 0: "best"} if last > 1 else {last: "worst", 0: "best"}
    exhibits = []
    for place, role in sorted(places.items()):
        exhibits.append(_exhibit(role, configurations[place], client))
    return tuple(exhibits)


def _exhibit(role: str, configuration: Configuration, client: MlflowClient | None) -> Exhibit:
    """The repeat nearest to the mean; where it has no pictures, another one that has."""
    typical = configuration.typical
    others = (trial for trial in configuration.compared if trial is not typical)
    for trial in (typical, *others):
        if panels := panels_of(trial, client):
            return Exhibit(role, configuration, trial, panels)
    return Exhibit(role, configuration, typical, ())
