"""Runs as the store has them, for commands and for the replay: found by what a user types."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorlab.errors import UserError
from sensorlab.runs.client import open_client, without_password
from sensorlab.runs.datasets import stored_datasets
from sensorlab.runs.names import metric_name
from sensorlab.runs.store import Store, default_store_uri, explained
from sensorlab.runs.tags import PARENT_TAG, PROTOCOL_TAG, ROLE_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_SHOWN = 8  # candidates that a message names


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run of the store; what it logged as files is read when it is asked for."""

    client: MlflowClient = field(repr=False)
    store: Store
    run: Run = field(repr=False)

    @property
    def run_id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def name(self) -> str:
        return self.run.info.run_name or ""

    @property
    def status(self) -> str:
        return str(self.run.info.status)

    @property
    def tags(self) -> Mapping[str, str]:
        return self.run.data.tags

    def tag(self, name: str) -> str:
        """Tag ``sensorlab.<name>``; empty without one."""
        return self.tags.get(f"sensorlab.{name}", "")

    @property
    def role(self) -> str:
        return self.tags.get(ROLE_TAG, "")

    @property
    def parent_id(self) -> str:
        return self.tags.get(PARENT_TAG, "")

    @property
    def protocol(self) -> str:
        return self.tags.get(PROTOCOL_TAG, "")

    @property
    def seconds(self) -> float:
        """From the start to the end, or to the latest number of a run that goes on."""
        points = (metric.timestamp for metric in self.run.data.to_proto().metrics)
        end = self.run.info.end_time or max(points, default=self.run.info.start_time)
        return max(0.0, (end - self.run.info.start_time) / 1000)

    @property
    def metrics(self) -> dict[str, float]:
        """Latest finite value of every metric, by stored name."""
        return {name: value for name, value in self.run.data.metrics.items() if math.isfinite(value)}

    @property
    def params(self) -> dict[str, str]:
        """What the page lists as parameters: in a sweep the searched values."""
        return dict(self.run.data.params)

    @cached_property
    def datasets(self) -> dict[str, dict[str, Any]]:
        """By use ("train", "val"): name, digest, source and profile."""
        return stored_datasets(self.run)

    def points(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, by its stored name, in the order of steps."""
        history = self.client.get_metric_history(self.run_id, metric)
        return sorted((point.step, point.value) for point in history if point.step >= 0)

    @cached_property
    def best(self) -> tuple[float, int] | None:
        """(value, step) of the best value of the objective."""
        objective = self.tag("objective")
        points = (
            [point for point in self.points(metric_name(objective)) if math.isfinite(point[1])] if objective else []
        )
        if not points:
            return None
        sign = -1.0 if self.tag("mode") == "min" else 1.0
        step, value = max(points, key=lambda point: (sign * point[1], -point[0]))
        return value, step

    def text(self, artifact: str) -> str | None:
        """Content of a text file that the run logged; ``None`` without it."""
        import mlflow.artifacts

        folder, _, _ = artifact.rpartition("/")
        if all(file.path != artifact for file in self.client.list_artifacts(self.run_id, folder or None)):
            return None
        path = mlflow.artifacts.download_artifacts(
            run_id=self.run_id, artifact_path=artifact, tracking_uri=self.store.uri
        )
        return Path(path).read_text(encoding="utf-8")

    def json(self, artifact: str) -> dict[str, Any]:
        """Content of a JSON file that the run logged; empty without it, or if it is none."""
        try:
            content = json.loads(self.text(artifact) or "{}")
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}


class RunIndex:
    """The runs of a tracking store.

    Args:
        uri: tracking URI; ``None``: ``MLFLOW_TRACKING_URI``, else ``mlruns.db`` of the working directory.

    Raises:
        UserError: there is no such store, or it cannot be read.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or default_store_uri(Path.cwd())
        if ":" not in self.uri:
            raise UserError(f"{self.uri!r} is no address of a tracking store; for a file: --store sqlite:///{self.uri}")
        file = re.fullmatch(r"sqlite:///([^?]+)", self.uri)
        if file and not Path(file[1]).expanduser().is_file():
            said = "" if uri or os.environ.get("MLFLOW_TRACKING_URI") else "; name the store: --store sqlite:///PATH"
            raise UserError(f"there is no tracking store {file[1]}{said}")
        if file:
            self.uri = f"sqlite:///{Path(file[1]).expanduser().resolve()}"
        try:
            self.client = open_client(self.uri)
            self._experiments = {each.experiment_id: each.name for each in self._all_experiments()}
        except Exception as error:
            raise explained(self.uri, error) from error

    def runs(
        self, experiment: str | None = None, parent: StoredRun | None = None, status: str | None = None
    ) -> list[StoredRun]:
        """Runs by experiment, by sweep and by status, newest first. Raises ``UserError`` for an unknown experiment."""
        ids = list(self._experiments)
        if experiment is not None:
            ids = [number for number, name in self._experiments.items() if experiment in (name, number)]
            if not ids:
                known = ", ".join(sorted(self._experiments.values()))
                raise UserError(f"there is no experiment {experiment!r} in {without_password(self.uri)}: {known}")
        clauses = [f"tags.`{PARENT_TAG}` = '{parent.run_id}'"] if parent else []
        clauses += [f"attributes.status = '{status.upper()}'"] if status else []
        return list(self._search(ids, " and ".join(clauses)))

    def find(self, text: str, role: str | None = None) -> StoredRun:
        """The run that ``text`` names: its id or the begin of it, or its name.

        Raises:
            UserError: there is none, or several; the message names them.
        """
        if not re.fullmatch(r"[A-Za-z0-9_.\- ]+", text):
            raise UserError(f"{text!r} is neither a run's id nor a name")
        found = []
        if re.fullmatch(r"[0-9a-f]{1,32}", text):
            found = list(self._search(list(self._experiments), f"attributes.run_id LIKE '{text}%'"))
        if not found:
            found = list(self._search(list(self._experiments), f"attributes.run_name = '{text}'"))
        if role is not None:
            found = [run for run in found if run.role == role]
        if len(found) == 1:
            return found[0]
        kind = role or "run"
        if not found:
            raise UserError(f"there is no {kind} {text!r} in {without_password(self.uri)}; see `sensorlab runs list`")
        named = [f"{run.run_id[:12]} ({run.name})" for run in found[:_SHOWN]]
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(f"{text!r} could be {len(found)} runs: {', '.join(named)}{more}; give more of the id")

    def _search(self, experiment_ids: Sequence[str], clause: str) -> Iterator[StoredRun]:
        token = None
        while experiment_ids:
            page = self.client.search_runs(
                list(experiment_ids), clause, order_by=["attributes.start_time DESC"], max_results=500, page_token=token
            )
            for run in page:
                number = str(run.info.experiment_id)
                yield StoredRun(self.client, Store(self.uri, number, self._experiments[number]), run)
            token = page.token
            if not token:
                return

    def _all_experiments(self) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_experiments(max_results=500, page_token=token)
            yield from page
            token = page.token
            if not token:
                return
