"""Recording a run without slowing its training: a queue, one background thread, and a spool on disk.

``log`` appends to a queue and returns. The thread writes to the store every two seconds, or earlier when 1,000 points
wait. While the store is away the queue moves to the spool (:mod:`sensorlab.runs.spool`) and is delivered in order
when the store is back, by this process or, after its death, by the next attempt of the run.
"""

from __future__ import annotations

import atexit
import json
import logging
import random
import re
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sensorlab.runs.client import without_password
from sensorlab.runs.delivery import Delivery
from sensorlab.runs.names import metric_name, param_values
from sensorlab.runs.outbox import Artifact, Outbox, checked_image
from sensorlab.runs.pending import is_pending
from sensorlab.runs.spool import Record, Spool
from sensorlab.runs.tables import Columns, table_content, table_file

logger = logging.getLogger(__name__)

_RUN_ID = re.compile(r"[0-9a-f]{32}")  # a run's directory holds other .jsonl files, which are no spools

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class RunRecorder:
    """Records one run. One per run: only rank 0 of the run has one, and a second process on the same spool is refused.

    All methods return at once except ``flush``, ``close`` and ``last_logged_steps``, which take a deadline. No method
    raises because of the store: training goes on, and what was recorded is kept.

    Args:
        uri: tracking URI, as :class:`sensorlab.runs.store.Store` has it.
        run_id: an existing run; it is set to RUNNING. Or a pending one (:mod:`sensorlab.runs.pending`).
        spool_dir: folder for what cannot be delivered yet; the same in every attempt of the run.
        interval_s: pause between writes.
        batch_points: number of waiting points that ends the pause early.
        capacity: calls of ``log`` kept in memory (artifacts: 1 in 100 of that); beyond, the queue moves to the spool.
        first_retry_s, max_retry_s: pause after a failed write, doubled up to the maximum, with 20 % jitter.

    Raises:
        UserError: the spool folder cannot be written, or another live process records this run.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        spool_dir: str | Path,
        *,
        interval_s: float = 2.0,
        batch_points: int = 1000,
        capacity: int = 10_000,
        first_retry_s: float = 1.0,
        max_retry_s: float = 60.0,
        reopen: bool = True,
    ) -> None:
        self.run_id = run_id
        self._interval_s = interval_s
        self._batch_points = batch_points
        self._capacity = capacity
        self._retry_s = (first_retry_s, max_retry_s)
        self._delivery = Delivery(uri, run_id, reopen)
        self._spool = Spool(Path(spool_dir) / f"{run_id}.jsonl")
        self._outbox = Outbox(Path(spool_dir) / f"{run_id}.artifacts")

        self._queue: deque[Record] = deque()
        self._artifacts: deque[Artifact] = deque()
        self._waiting_points = 0
        # Guards everything that leaves the queues (taking records out in order) and the files; never held while the
        # store is called. Appending to a deque needs no lock.
        self._lock = threading.RLock()
        self._in_flight: list[Record] = []  # taken from the queue, not yet known to be stored, not in the spool
        self._busy = False  # an artifact is being uploaded
        self._failures = 0
        self._retry_at = 0.0
        self._closed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"recorder-{run_id[:8]}", daemon=True)
        self._thread.start()
        atexit.register(self._save)  # a script that forgets close() loses nothing that was recorded

    # ------------------------------------------------------------------ recording: cheap, from the training thread

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a global step. Steps of one metric must increase: later points at old steps are dropped.

        Args:
            metrics: name to float; anything ``float()`` accepts is stored, but converting a tensor would synchronise
                with the device, so convert in batches before. NaN stays NaN, infinities become NaN.
            step: global step, also for values of an epoch.
        """
        if self._closed:
            raise RuntimeError("the recorder is closed")
        self._queue.append(Record("metrics", step, int(time.time() * 1000), dict(metrics)))
        self._waiting_points += len(metrics)
        if self._waiting_points >= self._batch_points:
            self._wake.set()
            if len(self._queue) >= self._capacity:
                self._save()

    def log_params(self, params: Mapping[str, Any], log_scaled: Collection[str] = ()) -> None:
        """Record parameters (write-once in the store), with ``log10_`` companions for the names in ``log_scaled``."""
        self._queue.append(Record("params", 0, _now_ms(), param_values(params, log_scaled)))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; the last value of a key wins."""
        self._queue.append(Record("tags", 0, _now_ms(), {key: str(value) for key, value in tags.items()}))

    def log_image(self, image: np.ndarray, key: str, step: int) -> None:
        """Record a picture of a series: the run's page shows a series with a slider over its steps.

        Args:
            image: (H, W), (H, W, 3) or (H, W, 4) uint8; copied.
        """
        self._put(Artifact("image", key, step, _now_ms(), checked_image(image)))

    def log_text(self, text: str, artifact_file: str) -> None:
        """Record a text as the file ``artifact_file``, for example ``config/resolved.yaml``."""
        self._put(Artifact("content", artifact_file, 0, _now_ms(), text.encode()))

    def log_dict(self, content: Mapping[str, Any], artifact_file: str) -> None:
        """Record a mapping as a JSON file."""
        self.log_text(json.dumps(content, indent=2, default=str) + "\n", artifact_file)

    def log_artifact(self, path: str | Path, artifact_path: str = "") -> None:
        """Upload a file or folder into the folder ``artifact_path``. It is read later: leave it until ``flush``."""
        self._put(Artifact("path", artifact_path, 0, _now_ms(), str(Path(path).resolve())))

    def log_table(self, columns: Columns, name: str, step: int) -> None:
        """Record one evaluation's table, column name to values; the next one of this name replaces it.

        Raises:
            ValueError: see :func:`sensorlab.runs.tables.table_content`.
        """
        self._put(Artifact("table", table_file(name), step, _now_ms(), table_content(columns, step)))

    def log_model(self, folder: str | Path, name: str) -> None:
        """Upload a folder of :func:`sensorlab.runs.models.write_model` as a logged model. Leave it until ``flush``."""
        self._put(Artifact("model", name, 0, _now_ms(), str(Path(folder).resolve())))

    def log_datasets(self, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        """Record what the run read: use ("train", "val") to ``name``, ``digest``, ``source`` and ``profile``."""
        self._queue.append(Record("datasets", 0, _now_ms(), {use: dict(entry) for use, entry in datasets.items()}))

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write the description on the run's page (see :mod:`sensorlab.runs.overview`)."""
        self._queue.append(Record("overview", 0, _now_ms(), dict(facts)))

    # ------------------------------------------------------------------ synchronisation

    def flush(self, deadline_s: float = 0.0) -> bool:
        """Make everything recorded so far durable: in the store if that takes at most ``deadline_s``, else on disk.

        Call it before a checkpoint is declared good (``deadline_s`` 0 costs a file write): then a run that resumes
        from the checkpoint has no gap. Pictures that wait are only moved to disk by a deadline above 0 that passes,
        because encoding them takes long; a crash can cost the last of them.

        Returns:
            True if the store has everything.
        """
        if deadline_s > 0:
            self._retry_at = 0.0
            deadline = time.monotonic() + deadline_s
            while not self._is_delivered() and time.monotonic() < deadline:
                self._wake.set()
                time.sleep(0.005)
        if self._is_delivered():
            return True
        self._save(artifacts=deadline_s > 0, sync=True)
        return False

    def close(self, status: RunStatus | None = None, deadline_s: float = 30.0) -> bool:
        """Deliver everything, end the run with ``status`` (``None``: leave it open), stop the thread.

        Returns:
            True if the store has everything; else the rest is in the spool for the next attempt of the run, or for
            :func:`deliver_spool`.
        """
        if self._closed:
            return True
        deadline_s = 0.0 if is_pending(self.run_id) else deadline_s
        deadline = time.monotonic() + deadline_s
        self._save(artifacts=True)  # first to disk: a trial that was stopped may be ended while it sends
        self.flush(deadline_s)
        if status is not None:
            self._queue.append(Record("status", 0, _now_ms(), {"status": status, "attempt": self._delivery.attempt}))
        delivered = self.flush(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._save(artifacts=True, sync=True)
            self._closed = True
            self._spool.close()
        self._wake.set()
        self._thread.join(timeout=max(0.1, deadline - time.monotonic()))
        atexit.unregister(self._save)
        if not delivered:
            logger.warning(
                "run %s: %d records and %d artifacts did not reach %s; they are kept in %s (sensorlab runs deliver)",
                *(self.run_id, len(self._spool), len(self._outbox)),
                *(without_password(self._delivery.uri), self._spool.path.parent),
            )
        return delivered

    def last_logged_steps(self, deadline_s: float = 10.0) -> dict[str, int]:
        """Highest durable step per metric, in its stored spelling, from the store and the spool.

        Waits up to ``deadline_s`` for the store; without it only the spool is known.
        """
        deadline = time.monotonic() + deadline_s
        while not self._delivery.is_connected and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.01)
        with self._lock:
            steps = dict(self._delivery.last_steps)
            for name, step in self._spool.last_steps().items():
                stored = metric_name(name)
                steps[stored] = max(step, steps.get(stored, step))
        return steps

    # ------------------------------------------------------------------ the background thread

    def _run(self) -> None:
        while not self._closed:
            try:
                if time.monotonic() < self._retry_at:
                    self._save(artifacts=True)
                else:
                    self._deliver()
            except Exception as error:  # whatever the store throws, the run goes on
                self._failed(error)
            self._wake.wait(self._interval_s)
            self._wake.clear()

    def _deliver(self) -> None:
        self._delivery.connect()
        while not self._closed:
            records, position = self._take()
            if not records:
                break
            self._delivery.send(records)
            self._taken(records, position)
        while not self._closed and self._deliver_artifact():
            pass
        if self._failures:
            logger.warning("run %s: the tracking store is back; everything kept is delivered", self.run_id)
            self._failures = 0

    def _take(self) -> tuple[list[Record], int | None]:
        """The oldest undelivered records, and their position if they come from the spool. The spool is older."""
        with self._lock:
            if self._closed:
                return [], None
            if len(self._spool):
                return self._spool.peek(self._batch_points)
            self._waiting_points = 0
            points = 0
            while self._queue and points < self._batch_points:
                self._in_flight.append(self._queue.popleft())
                points += len(self._in_flight[-1].values)
            return self._in_flight, None

    def _taken(self, records: list[Record], position: int | None) -> None:
        with self._lock:
            if position is None:
                # A save() meanwhile copied these to the spool and replaced the list; the replay will skip them.
                self._in_flight = []
            elif not self._closed:
                self._spool.advance(position, len(records))

    def _deliver_artifact(self) -> bool:
        """Deliver the oldest artifact; False if there is none."""
        with self._lock:
            kept = self._outbox.first()
            artifact = kept[1] if kept else (self._artifacts[0] if self._artifacts else None)
            self._busy = artifact is not None
        if artifact is None:
            return False
        try:
            self._delivery.send_artifact(artifact)
            with self._lock:
                if kept:
                    self._outbox.remove(kept[0])
                elif self._artifacts and self._artifacts[0] is artifact:
                    self._artifacts.popleft()
        finally:
            self._busy = False
        return True

    def _failed(self, error: Exception) -> None:
        first, longest = self._retry_s
        pause = min(longest, first * 2 ** min(self._failures, 30)) * random.uniform(0.9, 1.1)
        self._failures += 1
        self._retry_at = time.monotonic() + pause
        self._save(artifacts=True)
        if self._failures == 1 and not self._closed:
            logger.warning(
                "run %s: the tracking store %s cannot be written (%s); training goes on, points are kept in %s",
                *(self.run_id, without_password(self._delivery.uri), str(error).strip().partition("\n")[0][:200]),
                self._spool.path,
            )

    # ------------------------------------------------------------------ queues and files

    def _put(self, artifact: Artifact) -> None:
        self._artifacts.append(artifact)
        if len(self._artifacts) > max(1, self._capacity // 100):
            self._save(artifacts=True)

    def _save(self, artifacts: bool = False, sync: bool = False) -> None:
        """Move what is in memory to disk, in order."""
        with self._lock:
            if self._closed:
                return
            try:
                self._save_locked(artifacts, sync)
            except OSError as error:
                # Disk full: memory is the last place left, so keep it there and say so.
                logger.error("cannot write the recording spool %s: %s", self._spool.path, error)

    def _save_locked(self, artifacts: bool, sync: bool) -> None:
        count = len(self._queue)
        records = self._in_flight + [self._queue[i] for i in range(count)]
        self._spool.append(records)
        self._in_flight = []
        for _ in range(count):
            self._queue.popleft()
        self._waiting_points = 0
        if sync:
            self._spool.sync()
        while artifacts and self._artifacts:
            self._outbox.put(self._artifacts[0])
            self._artifacts.popleft()

    def _is_delivered(self) -> bool:
        with self._lock:
            waiting = self._queue or self._in_flight or len(self._spool) or self._artifacts or self._busy
            return not waiting and not len(self._outbox)


def _now_ms() -> int:
    return int(time.time() * 1000)


def spooled(folder: str | Path) -> list[tuple[Path, str]]:
    """(spool folder, run id) of what waits in ``folder`` and below, as the directories of runs and sweeps hold it."""
    found = {(path.parent, path.stem) for kind in ("jsonl", "artifacts") for path in Path(folder).rglob(f"*.{kind}")}
    return sorted(entry for entry in found if _RUN_ID.fullmatch(entry[1]))


def deliver_spool(uri: str, folder: str | Path, deadline_s: float = 60.0) -> dict[str, bool]:
    """Deliver what ended runs left in their spools, for example after a server was down at their end.

    Args:
        folder: a spool folder, or the directory of a run or of a sweep.
        deadline_s: for each run.

    Returns:
        Run id to whether the store now has everything of that run.

    Raises:
        UserError: one of the runs is being recorded by a live process.
    """
    delivered = {}
    for spool_dir, run_id in spooled(folder):
        recorder = RunRecorder(uri, run_id, spool_dir, interval_s=0.1, reopen=False)
        delivered[run_id] = recorder.close(deadline_s=deadline_s)
    return delivered
