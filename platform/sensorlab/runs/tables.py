"""Tables of a run (scores per class, confusions) as MLflow's pages show and compare them.

MLflow's own ``log_table`` appends to what is there, so that a table sent twice would have its rows twice. Here the file
of a table is replaced as a whole, and holds one evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sensorlab.runs.names import metric_name

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Columns = Mapping[str, Sequence[Any]]

MAX_ROWS = 10_000
_LISTING_TAG = "mlflow.loggedArtifacts"


def table_file(name: str) -> str:
    """Artifact of the table ``name``."""
    return f"tables/{metric_name(name)}.json"


def table_content(columns: Columns, step: int) -> bytes:
    """The table as MLflow's pages read it: JSON of the form that pandas calls "split", with the step in front.

    Raises:
        ValueError: columns of unequal length, none, or more than ``MAX_ROWS`` rows.
    """
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"a table needs columns of one length, got { ({n: len(v) for n, v in columns.items()}) }")
    (rows,) = lengths
    if rows > MAX_ROWS:
        raise ValueError(f"a table of {rows} rows is more than the {MAX_ROWS} that a page can show")
    data = [[step, *map(_plain, row)] for row in zip(*columns.values(), strict=True)]
    return json.dumps({"columns": ["step", *columns], "data": data}).encode()


def note_table(client: MlflowClient, run_id: str, file: str) -> None:
    """List an uploaded table among those that the pages offer to compare."""
    listing = json.loads(client.get_run(run_id).data.tags.get(_LISTING_TAG, "[]"))
    entry = {"path": file, "type": "table"}
    if entry not in listing:
        client.set_tag(run_id, _LISTING_TAG, json.dumps([*listing, entry]))


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's; what is not finite as null, which JSON has."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
