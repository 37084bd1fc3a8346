"""Sending records to the tracking store so that each (metric, step) ends up there exactly once.

Three facts make that hold. Records arrive in the order in which they were made, so for every metric the store always
has a prefix of the points. A point carries the time of its recording, and the store keeps identical points once, so a
batch whose answer got lost may be sent again. And a run that resumes from a checkpoint repeats steps: points at or
below the last step that the store has of their metric are left out; the store already has the same step.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sensorlab.runs.client import is_permanent, open_client
from sensorlab.runs.datasets import log_datasets
from sensorlab.runs.names import MAX_TAG_LENGTH, MetricNames, metric_name, shortened
from sensorlab.runs.outbox import Artifact, deliver, image_key, stored_images
from sensorlab.runs.overview import describe
from sensorlab.runs.pending import is_pending
from sensorlab.runs.spool import Record

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

MAX_METRICS_PER_CALL = 1000
MAX_TEXTS_PER_CALL = 100
MANY_METRICS = 60
"""More distinct metric names than this make MLflow's pages slow and unreadable: warned once per run."""
_WHOLE = {"datasets": log_datasets, "overview": describe}  # kinds of records that are taken or refused as a whole


class StoreAwayError(Exception):
    """The run cannot be written at the moment: keep everything and try again later."""


class Delivery:
    """The connection of one run to its store. Used by one thread; every method may block for seconds.

    Args:
        uri: tracking URI, as :class:`sensorlab.runs.store.Store` has it.
        run_id: an existing run.
        reopen: set a run that had ended back to RUNNING (a new attempt); off when only a spool is delivered.
    """

    def __init__(self, uri: str, run_id: str, reopen: bool = True) -> None:
        self.uri = uri
        self.run_id = run_id
        self.last_steps: dict[str, int] = {}  # by stored name; what the store has
        self.skipped = 0  # points left out because the store had their step
        self._reopen = reopen
        self.attempt = uuid.uuid4().hex  # a clock could not tell attempts apart: hosts differ, and so do milliseconds
        self._client: MlflowClient | None = None
        self._images: set[tuple[str, int]] = set()
        self._names = MetricNames()
        self._warned: set[str] = set()

    @property
    def is_connected(self) -> bool:
        return self._client is not None

    def connect(self) -> None:
        """Find out what the store already has of the run; only the first call that succeeds does anything."""
        if self._client is not None:
            return
        if is_pending(self.run_id):
            raise StoreAwayError("the run is made when the store is back")
        client = open_client(self.uri)
        run = client.get_run(self.run_id)
        if run.info.lifecycle_stage != "active":
            raise StoreAwayError(f"run {self.run_id} is deleted in the store; restore it to have its points recorded")
        # The protocol message carries the step of the latest point of each metric; the run's dictionary does not.
        self.last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        if "mlflow.loggedImages" in run.data.tags:
            self._images = stored_images(client, self.run_id)
        if self._reopen and run.info.status != "RUNNING":
            client.update_run(self.run_id, status="RUNNING")
        self._client = client

    def send(self, records: Sequence[Record]) -> None:
        """Write records in order. After an exception the same records can be sent again without doubling a point."""
        metrics: list[Metric] = []
        steps = dict(self.last_steps)
        for record in records:
            if record.kind == "metrics":
                metrics += self._new_points(record, steps)
                continue
            self._send_metrics(metrics)
            metrics = []
            self._send_texts(record)
        self._send_metrics(metrics)

    def send_artifact(self, artifact: Artifact) -> None:
        """Upload one artifact; one that can never be delivered is dropped with a warning."""
        assert self._client is not None, "connect() first"
        image = (image_key(artifact.name), artifact.step)
        if artifact.kind == "image" and image in self._images:
            return
        try:
            deliver(self._client, self.run_id, artifact)
        except Exception as error:
            if not is_permanent(error):
                raise
            logger.warning("run %s: artifact %r cannot be recorded: %s", self.run_id, artifact.name, error)
            return
        if artifact.kind == "image":
            self._images.add(image)

    def _new_points(self, record: Record, steps: dict[str, int]) -> list[Metric]:
        """The points of a record that the store does not have yet; ``steps`` moves on."""
        from mlflow.entities import Metric

        points = []
        for raw_name, raw_value in record.values.items():
            name = self._names(raw_name)
            value = self._number(raw_name, raw_value)
            if value is None:
                continue
            if record.step <= steps.get(name, record.step - 1):
                self.skipped += 1
                continue
            steps[name] = record.step
            points.append(Metric(name, value, record.time_ms, record.step))
        if len(steps) > MANY_METRICS:
            self._warn_once("many", f"more than {MANY_METRICS} different metrics make the comparison pages slow")
        return points

    def _number(self, name: str, value: Any) -> float | None:
        try:
            number = float(value)
        except (TypeError, ValueError):
            self._warn_once(name, f"metric {name!r} is left out where it is no number: {value!r}")
            return None
        if math.isinf(number):
            # The store would write 1.8e308, which flattens every chart it is in. A gap says "not finite" as well.
            self._warn_once(name, f"metric {name!r} became infinite; such points are stored as NaN")
            return math.nan
        return number

    def _send_metrics(self, metrics: list[Metric]) -> None:
        for start in range(0, len(metrics), MAX_METRICS_PER_CALL):
            chunk = metrics[start : start + MAX_METRICS_PER_CALL]
            self._attempt(chunk, lambda part: self._log_batch(metrics=part))
            self.last_steps.update((metric.key, metric.step) for metric in chunk)

    def _send_texts(self, record: Record) -> None:
        from mlflow.entities import Param, RunTag

        assert self._client is not None, "connect() first"
        items = list(record.values.items())
        if record.kind == "params":
            params = [Param(metric_name(key), value) for key, value in items]
            self._in_calls(params, lambda part: self._log_batch(params=part))
        elif record.kind == "tags":
            tags = [RunTag(key, shortened(str(value), MAX_TAG_LENGTH)) for key, value in items]
            self._in_calls(tags, lambda part: self._log_batch(tags=part))
        elif record.kind in _WHOLE:
            client, values = self._client, record.values
            self._attempt([record.kind], lambda kinds: _WHOLE[kinds[0]](client, self.run_id, values))
        elif record.kind == "status":
            if self._reopen and record.values.get("attempt") != self.attempt:
                return  # the end of an earlier attempt, delivered late: the run goes on
            self._client.set_terminated(self.run_id, status=record.values["status"], end_time=record.time_ms)
        else:
            logger.warning("run %s: unknown record %r is skipped", self.run_id, record.kind)

    def _log_batch(self, **entities: Any) -> None:
        assert self._client is not None, "connect() first"
        self._client.log_batch(self.run_id, synchronous=True, **entities)

    def _in_calls(self, items: list[Item], call: Callable[[list[Item]], None]) -> None:
        for start in range(0, len(items), MAX_TEXTS_PER_CALL):
            self._attempt(items[start : start + MAX_TEXTS_PER_CALL], call)

    def _attempt(self, items: list[Item], call: Callable[[list[Item]], None]) -> None:
        """``call(items)``; if the store refuses the batch for good, halve it until only the refused items are left out.

        A parameter that a resumed run sets to another value is the usual case: parameters are write-once.
        """
        try:
            call(items)
        except Exception as error:
            if not is_permanent(error):
                raise
            self._check_run(error)
            if len(items) == 1:
                logger.warning("run %s: the store refuses %r: %s", self.run_id, items[0], _first_line(error))
                return
            self._attempt(items[: len(items) // 2], call)
            self._attempt(items[len(items) // 2 :], call)

    def _check_run(self, error: Exception) -> None:
        """Tell a bad item from a run that is gone (deleted meanwhile): then every item would be refused."""
        assert self._client is not None, "connect() first"
        try:
            stage = self._client.get_run(self.run_id).info.lifecycle_stage
        except Exception as missing:
            raise StoreAwayError(f"run {self.run_id} is not in the store: {_first_line(missing)}") from error
        if stage != "active":
            raise StoreAwayError(f"run {self.run_id} is deleted in the store") from error

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("run %s: %s", self.run_id, message)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
