"""Whom a generation of a population descends from, as the store has it: each run names the one that it went on from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sensorlab.runs.names import metric_name
from sensorlab.runs.table import aligned, number
from sensorlab.runs.tags import FORKED_TAG, GENERATION_TAG, MEMBER_TAG

OBJECTIVE_TAG = "sensorlab.objective"

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


def descent(client: MlflowClient, run: Run) -> list[Run]:
    """The run, the one whose checkpoint it went on from, and so on back to the first; as far as they are stored."""
    from mlflow.exceptions import MlflowException

    found = [run]
    while donor := found[-1].data.tags.get(FORKED_TAG):
        if any(donor == each.info.run_id for each in found):
            break
        try:
            found.append(client.get_run(donor))
        except MlflowException:  # it was deleted for good
            break
    return found


def place(run: Run) -> str:
    """``generation 3 of member 2``; empty for a run that is no part of a population."""
    tags = run.data.tags
    return f"generation {tags[GENERATION_TAG]} of member {tags[MEMBER_TAG]}" if GENERATION_TAG in tags else ""


def lineage_table(line: Sequence[Run]) -> str:
    """Runs of a line of descent, first generation first, with their values and the objective that each ended with."""
    ordered, objective = list(reversed(line)), _objective(line)
    keys = sorted({key for run in ordered for key in run.data.params if "log10_" not in key})
    header = ["generation", "member", "run", "name", "from", objective, *keys]
    rows = []
    for index, run in enumerate(ordered):
        tags, donor = run.data.tags, ordered[index - 1] if index else None
        value = run.data.metrics.get(metric_name(objective), math.nan)
        rows.append(
            [
                *(tags.get(GENERATION_TAG, "-"), tags.get(MEMBER_TAG, "-")),
                *(run.info.run_id[:12], run.info.run_name or ""),
                "-" if donor is None else origin(run, donor),
                "-" if math.isnan(value) else number(value),
                *(run.data.params.get(key, "-") for key in keys),
            ]
        )
    return aligned([header, *rows], left=(2, 3, 4))


def origin(run: Run, donor: Run) -> str:
    """``own`` for a member's next generation, ``exploited`` for one that took over another member's checkpoint."""
    return "own" if run.data.tags.get(MEMBER_TAG) == donor.data.tags.get(MEMBER_TAG) else "exploited"


def lineage_lines(line: Sequence[Run]) -> list[tuple[str, str, str]]:
    """(name, run id, remark) of each run of a line of descent, first generation first."""
    ordered, objective, lines = list(reversed(line)), _objective(line), []
    for index, run in enumerate(ordered):
        value = run.data.metrics.get(metric_name(objective), math.nan)
        values = [f"{key} {text}" for key, text in sorted(run.data.params.items()) if "log10_" not in key]
        remarks = [place(run)] + ([origin(run, ordered[index - 1])] if index else [])
        remarks += [] if math.isnan(value) else [f"{objective} {number(value)}"]
        lines.append((run.info.run_name or "", run.info.run_id, ", ".join([*remarks, *values])))
    return lines


def _objective(line: Sequence[Run]) -> str:
    """Known of a run since its first evaluation."""
    return next((run.data.tags[OBJECTIVE_TAG] for run in line if OBJECTIVE_TAG in run.data.tags), "objective")
