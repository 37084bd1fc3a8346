"""The JSON Lines file that keeps recorded points while the tracking store is away.

One line is one record, appended and flushed at once, so a record that was written survives the death of the process
(``sync`` also forces it to the disk). Records are kept until the store has them; delivering a record twice is harmless,
because a point carries the timestamp of its recording and the store keeps identical points once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from sensorlab.errors import UserError

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """One call of the recorder.

    Attributes:
        kind: "metrics", "params", "tags", "datasets", "overview" or "status".
        step: global step of the metrics; 0 for the other kinds.
        time_ms: when it was recorded, milliseconds since the epoch; part of a point's identity in the store.
        values: name to number (metrics), text (params, tags, status) or plain data (the rest).
    """

    kind: str
    step: int
    time_ms: int
    values: dict[str, Any]


class Spool:
    """First-in first-out queue of records in a file. One process at a time; not thread-safe (the recorder locks).

    Args:
        path: the file; it exists only while it holds records. Its folder must outlive the process, and the host if
            the run may continue on another one.
        patience_s: how long to wait for a dying predecessor to free the file.

    Raises:
        UserError: the folder cannot be written, or another live process records the same run.
    """

    def __init__(self, path: Path, patience_s: float = 10.0) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = open(path.with_suffix(".lock"), "a+b")  # noqa: SIM115  (held as long as the spool)
        except OSError as error:
            raise UserError(f"cannot write the recording spool {path}: {error.strerror}") from error
        self._acquire(patience_s)
        self._writer: IO[bytes] | None = None  # unbuffered, so that a full disk leaves no half-known state behind
        self._reader: IO[bytes] | None = None
        self._start = 0  # byte offset of the first undelivered record
        self._length = 0  # undelivered records
        if path.exists():
            self._adopt()

    def __len__(self) -> int:
        """Number of records not yet delivered."""
        return self._length

    def append(self, records: Iterable[Record]) -> None:
        """Add records at the end; they are with the operating system when this returns.

        Raises:
            OSError: the disk is full or gone; none of the records was added.
        """
        lines = [json.dumps(record, separators=(",", ":"), default=_number_or_text) for record in records]
        if not lines:
            return
        writer = self._open()
        size = os.fstat(writer.fileno()).st_size
        data = memoryview(("\n".join(lines) + "\n").encode())
        try:
            while data:
                data = data[writer.write(data) :]
        except OSError:
            os.ftruncate(writer.fileno(), size)
            raise
        self._length += len(lines)

    def sync(self) -> None:
        """Force what was appended to the disk: it survives a power loss."""
        if self._writer is not None:
            os.fsync(self._writer.fileno())

    def peek(self, points: int) -> tuple[list[Record], int]:
        """The oldest records, about ``points`` values in all, and the position to hand to :meth:`advance`."""
        if self._reader is None:
            return [], self._start
        records: list[Record] = []
        self._reader.seek(self._start)
        while points > 0 and (line := self._reader.readline()):
            records.append(Record(*json.loads(line)))
            points -= len(records[-1].values)
        return records, self._reader.tell()

    def advance(self, position: int, count: int) -> None:
        """Forget the ``count`` oldest records, which end at ``position``. An emptied file is removed."""
        self._start = position
        self._length -= count
        if self._length == 0:
            self._close_files()
            self.path.unlink(missing_ok=True)
            self._start = 0

    def last_steps(self) -> dict[str, int]:
        """Highest spooled step per metric, by the name that was recorded."""
        last: dict[str, int] = {}
        for record in self.peek(sys.maxsize)[0]:
            if record.kind == "metrics":
                for name in record.values:
                    last[name] = max(record.step, last.get(name, record.step))
        return last

    def close(self) -> None:
        """Close the files; undelivered records stay on disk for the next process."""
        self._close_files()
        self._lock.close()

    def _open(self) -> IO[bytes]:
        if self._writer is None:
            self._writer = open(self.path, "ab", buffering=0)  # noqa: SIM115  (kept open between calls)
            self._reader = open(self.path, "rb")  # noqa: SIM115
        return self._writer

    def _close_files(self) -> None:
        for file in (self._writer, self._reader):
            if file is not None:
                file.close()
        self._writer = self._reader = None

    def _acquire(self, patience_s: float) -> None:
        # POSIX record locks: forked data-loading processes do not inherit them, so they cannot keep a dead run locked.
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
            if time.monotonic() > deadline:
                self._lock.close()
                raise UserError(
                    f"{self.path}: another process records this run; only rank 0 of one attempt may: end it first"
                )
            time.sleep(0.05)

    def _adopt(self) -> None:
        """Take over the file of a process that died: count its records, cut a line that it did not finish."""
        good_end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not _is_record(line):
                    break
                good_end += len(line)
                self._length += 1
        torn = self.path.read_bytes()[good_end:]
        if torn.count(b"\n"):  # no process that died leaves this: a disk did, or it is no spool
            kept = self.path.with_suffix(".damaged")
            kept.write_bytes(torn)
            logger.warning("%s: the last %d bytes are no records; they are moved to %s", self.path, len(torn), kept)
        elif torn:
            logger.warning("%s: the last %d bytes are an unfinished record and are dropped", self.path, len(torn))
        os.truncate(self.path, good_end)
        self._open()
        if self._length == 0:
            self.advance(0, 0)


def _number_or_text(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _is_record(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        kind, step, time_ms, values = json.loads(line)
    except ValueError:
        return False
    return isinstance(kind, str) and isinstance(step, int) and isinstance(time_ms, int) and isinstance(values, dict)
