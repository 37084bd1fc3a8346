"""The line between a worker group and whoever waits for it: reports come in, the end goes out.

Ray's own ways block in ``trainer.fit()``. A trial that its scheduler stops cannot end there, so its process has to be
killed and the next trial pays for a new one (2 s of imports, and 1 s for the queue of ``TuneReportCallback``); and
Ctrl-C ends a driver with whatever exit code comes of it. Here ``fit()`` has a thread of its own. Its caller stays free,
ends the group itself, and in a trial both the process and the queue serve the next one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback
from ray.util.queue import Queue

logger = logging.getLogger(__name__)

_END_S = 30.0  # for a group to end after it was told to; less than the time that Tune waits for a stopped trial

Outcome = dict[str, Any]  # of a training; a report of one, too


class ForwardReports(UserCallback):
    """Puts what rank 0 reports into the trial's queue. Runs in the process of Ray Train's controller."""

    def __init__(self, queue: Queue, attempt: str) -> None:
        self._queue = queue
        self._attempt = attempt

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        # The queue has no bound: a controller that waits for the trial could not be told to end.
        self._queue.put((self._attempt, dict(metrics[0]), ray.get_runtime_context().current_actor))


def train_group(fit: Callable[[Sequence[Any]], Outcome], send: Callable[[Outcome], None]) -> Outcome:
    """Run ``fit`` in a thread and pass the reports of its workers to ``send``.

    Args:
        fit: trains a worker group to its end; takes the Ray Train callbacks that it must use.
        send: takes a report; what it raises (``SystemExit`` when the scheduler stops the trial) ends the group, and so
            does an interrupt.

    Returns:
        What ``fit`` returns; what it raises is raised.
    """
    queue, attempt = _open_queue(), uuid.uuid4().hex
    outcome: Future[Outcome] = Future()
    thread = threading.Thread(target=_fit, args=(fit, queue, attempt, outcome), name="worker-group", daemon=True)
    thread.start()
    controller: Any = None
    try:
        while True:
            source, report, controller = queue.get()
            if source != attempt:  # a group that had to be left behind
                continue
            if report is None:
                return outcome.result()
            send(report)
    except BaseException:
        if not outcome.done():
            _end_group(controller, thread)
        raise


def _fit(fit: Callable[[Sequence[Any]], Outcome], queue: Queue, attempt: str, outcome: Future[Outcome]) -> None:
    try:
        outcome.set_result(fit([ForwardReports(queue, attempt)]))
    except BaseException as error:
        outcome.set_exception(error)
    finally:
        with contextlib.suppress(RayError):  # the queue is gone: the reader knows
            queue.put((attempt, None, None))


def _end_group(controller: Any, thread: threading.Thread) -> None:
    """Ask the controller to end its workers and to give their resources back.

    A group whose controller is not known yet (nothing was reported) and one that does not end in time end with this
    process: a driver exits, and Tune replaces a process whose trial is still running.
    """
    if controller is None:
        return
    controller.abort.remote()
    thread.join(_END_S)
    if thread.is_alive():
        logger.warning("the worker group did not end within %.0f s", _END_S)


_queue: Queue | None = None


def _open_queue() -> Queue:
    """The queue of this process; a new one if its actor was lost, for example with its node."""
    global _queue  # noqa: PLW0603
    if _queue is not None:
        try:
            _queue.qsize()
        except RayError:
            _queue = None
    if _queue is None:
        _queue = Queue(actor_options={"num_cpus": 0})
    return _queue
