"""One process at a time works in a run's directory.

Two drivers may resume the same run, and a trial may outlive its driver on a cluster while the resumed sweep starts it
again: both would write the same checkpoints. A lease is a small file in the directory that names its holder. The
holder renews the file's time every few seconds, and stops when it finds that the lease has gone to another process.

A lease is taken over from a process that is gone: at once if it ran on this host (and in this container), where that
can be seen; after ``STALE_S`` without renewal otherwise. All times are the file server's, so clocks may differ.

What it relies on, and what it does not promise:

- exclusive creation, atomic renaming and close-to-open consistency: local disks, NFS, Lustre, CephFS; no object store
  behind a mount;
- a holder that is stopped for longer than ``STALE_S`` (suspended machine, lost network) can lose the lease. It notices
  at its next renewal and ends before its next step, but may write in between, for at most ``RENEW_S``;
- of two processes that take over the same stale lease at the same moment the later one wins; the earlier one sees
  that if both act within ``_SETTLE_S``, and at its next renewal otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sensorlab.cluster.files import read_json
from sensorlab.engine.callbacks.base import Callback
from sensorlab.errors import UserError

if TYPE_CHECKING:
    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training

RENEW_S = 10.0
STALE_S = 60.0
_SETTLE_S = 0.2
_POLL_S = 0.5

DRIVER, TRAINING = ".driver.lease", ".training.lease"


class Lease:
    """A lease that this process holds; :func:`hold` makes it."""

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.lost = False
        self._token = token
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if not self.lost and _token(self.path) == self._token:
            self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            try:
                self.lost = _token(self.path) != self._token
                if self.lost:
                    return
                os.utime(self.path)
            except OSError:
                continue  # a file system that is away; the next renewal tells whether the lease is still there


class LeaseGuard(Callback):
    """Ends a training that has lost its lease, before it writes over the work of the one that has it now."""

    priority = 0

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        self._check()

    def on_phase(self, training: Training, phase: str, total: int) -> None:
        self._check()

    def _check(self) -> None:
        if self._lease.lost:
            raise RuntimeError(
                f"another process has taken over {self._lease.path.parent} ({_describe(self._lease.path)}); this one "
                f"had not renewed its lease for {STALE_S:.0f} s and ends here"
            )


@contextlib.contextmanager
def hold(directory: Path, name: str, *, patience_s: float = 0.0) -> Iterator[Lease]:
    """Hold the lease ``name`` of ``directory``.

    Args:
        directory: of a run or a sweep; made if it does not exist.
        name: ``DRIVER`` for what starts and concludes a run, ``TRAINING`` for what writes its checkpoints.
        patience_s: how long to wait for a holder that is about to end.

    Raises:
        UserError: another process holds it, or the directory cannot be written.
    """
    path = directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        token = _take(path, patience_s)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from error
    lease = Lease(path, token)
    try:
        yield lease
    finally:
        lease.release()


def is_held(path: Path, now: float) -> bool:
    """Whether a process holds the lease at ``path``, for those who only look: nothing is written.

    Args:
        now: seconds since the epoch, by which a holder on another host is judged: its clock may differ.
    """
    try:
        age = now - path.stat().st_mtime
    except OSError:
        return False
    holder = read_json(path) or {}
    return _is_alive(holder) if holder.get("where") == _place() else age < STALE_S


def _take(path: Path, patience_s: float) -> str:
    token = uuid.uuid4().hex
    own = path.with_name(f"{path.name}.{token}")
    holder = {"token": token, "host": socket.gethostname(), "where": _place(), "pid": os.getpid()}
    holder["started"] = _started(os.getpid())
    deadline = time.monotonic() + patience_s
    try:
        while True:
            own.write_text(json.dumps(holder), encoding="utf-8")  # again: its time is what "now" is on the server
            with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                json.dump(holder, file)
                return token
            if _is_stale(path, own):
                os.replace(own, path)
                time.sleep(_SETTLE_S)
                if _token(path) == token:
                    return token
            elif time.monotonic() >= deadline:
                raise UserError(
                    f"{path.parent} is in use by {_describe(path)}. End that process, or wait until it is done. If it "
                    f"is gone already, the directory is free {STALE_S:.0f} s after its last sign of life"
                )
            else:
                time.sleep(_POLL_S)
    finally:
        own.unlink(missing_ok=True)


def _is_stale(path: Path, own: Path) -> bool:
    holder = read_json(path) or {}
    if holder.get("where") == _place():
        return not _is_alive(holder)
    try:
        with path.open("rb") as file:  # opening makes a network file system ask the server
            return own.stat().st_mtime - os.fstat(file.fileno()).st_mtime > STALE_S
    except FileNotFoundError:
        return False  # released just now


def _is_alive(holder: dict[str, Any]) -> bool:
    try:
        is_running = psutil.Process(holder["pid"]).status() != psutil.STATUS_ZOMBIE
        return is_running and _started(holder["pid"]) == holder["started"]
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _started(pid: int) -> float:
    """When a process of this host began: in ticks since boot where the kernel says so, which no clock can shift."""
    with contextlib.suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return float(after_name.split()[19])
    return float(psutil.Process(pid).create_time())


def _place() -> str:
    """Where process ids mean the same: this boot of this machine, and this container."""
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(read().strip())
    return " ".join(parts)


def _token(path: Path) -> str | None:
    return (read_json(path) or {}).get("token")


def _describe(path: Path) -> str:
    holder = read_json(path) or {}
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
