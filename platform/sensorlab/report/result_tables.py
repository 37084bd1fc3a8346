"""The tables of a trial's validation (scores per class, confusions), from its directory or from the tracking store."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorlab.report.content import Trial, text_key
from sensorlab.report.markup import Markup, el, number_cell, table
from sensorlab.runs.table import number

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_ROWS = 200  # of a table in the report
_FILE = re.compile(r"step-(\d+)-(.+)\.json")
_STEP = "step"


@dataclass(frozen=True)
class ResultTable:
    """One table of one evaluation; ``step`` is ``None`` where the file does not say it."""

    name: str
    step: int | None
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def tables_of(trial: Trial, client: MlflowClient | None = None) -> tuple[ResultTable, ...]:
    """Tables of a trial's best evaluation, or else of the one nearest to it, by name.

    Args:
        client: of the tracking store; asked where the trial's directory has no tables. Errors of the store pass.
    """
    found = _in_directory(trial)
    if not found and client is not None and trial.run_id:
        found = _in_store(client, trial.run_id)
    return tuple(sorted(found, key=lambda item: item.name))


def parsed(name: str, content: bytes) -> ResultTable | None:
    """A table as :func:`sensorlab.runs.tables.table_content` writes it; ``None`` for anything else."""
    try:
        tree = json.loads(content)
        columns, rows = [str(column) for column in tree["columns"]], [list(row) for row in tree["data"]]
    except (ValueError, TypeError, KeyError):
        return None
    if not columns or any(len(row) != len(columns) for row in rows):
        return None
    step = None
    if columns[0] == _STEP:
        step = rows[0][0] if rows else None
        columns, rows = columns[1:], [row[1:] for row in rows]
    return ResultTable(name, step, tuple(columns), tuple(map(tuple, rows)))


def _in_directory(trial: Trial) -> list[ResultTable]:
    files = [
        (path, match) for path in (trial.run_dir / "tables").glob("*.json") if (match := _FILE.fullmatch(path.name))
    ]
    if not files:
        return []
    steps = {int(match[1]) for _, match in files}
    wanted = trial.best_step if trial.best_step is not None else max(steps)
    nearest = min(steps, key=lambda step: (abs(step - wanted), step))
    tables = [parsed(match[2], path.read_bytes()) for path, match in files if int(match[1]) == nearest]
    return [found for found in tables if found is not None]


def _in_store(client: MlflowClient, run_id: str) -> list[ResultTable]:
    """Those of the best evaluation that has a checkpoint; without one, the latest."""
    for folder in ("tables/best", "tables"):
        paths = [file.path for file in client.list_artifacts(run_id, folder) if file.path.endswith(".json")]
        with tempfile.TemporaryDirectory() as place:
            files = [Path(client.download_artifacts(run_id, path, place)) for path in paths]
            tables = [parsed(file.stem, file.read_bytes()) for file in files]
        if found := [item for item in tables if item is not None]:
            return found
    return []


def drawn(result: ResultTable) -> Markup:
    """The table; a column of numbers is right-aligned, and what was not finite is a dash."""
    is_numeric = [all(_is_number(row[i]) or row[i] is None for row in result.rows) for i in range(len(result.columns))]
    rows = [
        el("tr", *(_cell(value, numeric) for value, numeric in zip(row, is_numeric, strict=True)))
        for row in result.rows[:MAX_ROWS]
    ]
    return table(result.columns, rows, label=result.name, class_="result")


def _cell(value: Any, numeric: bool) -> Markup:
    if not numeric:
        return el("td", value if isinstance(value, str) else text_key(value))
    if value is None:
        return number_cell("–")
    return number_cell(f"{value:,}" if isinstance(value, int) else number(value), value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
