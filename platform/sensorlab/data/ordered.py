"""A bounded pipeline of threads that keeps the order: the look-ahead of every stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Generic, TypeVar

SourceT = TypeVar("SourceT")
ResultT = TypeVar("ResultT")


class _End:
    """Marks the end of the source in the queue of results."""


class OrderedPrefetcher(Generic[SourceT, ResultT]):
    """Iterator over ``function(item)`` for the items of ``source``, computed ahead of the consumer, in order.

    A feeder thread pulls from ``source``, so that waiting for the source, computing and consuming overlap. An error in
    ``source`` or ``function`` is raised at its place in the order and ends the iteration. A ``source`` that is a
    generator is closed on the feeder thread.

    Args:
        threads: how many items are processed at once, at least 1.
        ahead: bound on the results that are ready or in the making, beside the one the consumer holds; at least
            ``threads`` keeps all threads busy.
        name: prefix of the threads' names.
    """

    def __init__(
        self, source: Iterable[SourceT], function: Callable[[SourceT], ResultT], threads: int, ahead: int, name: str
    ) -> None:
        self._source = source
        self._function = function
        self._stopped = threading.Event()
        self._slots = threading.Semaphore(max(1, ahead))
        self._results: queue.Queue[Future[ResultT] | _End] = queue.Queue()
        self._head: Future[ResultT] | _End | None = None  # taken from the queue, not yet given to the consumer
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"{name}-transform")
        self._feeder = threading.Thread(target=self._feed, name=f"{name}-feed", daemon=True)
        self._feeder.start()

    def __iter__(self) -> Iterator[ResultT]:
        return self

    def __next__(self) -> ResultT:
        if self._stopped.is_set():
            raise StopIteration
        head = self._results.get() if self._head is None else self._head
        self._head = None
        if isinstance(head, _End):
            self.close()
            raise StopIteration
        try:
            return head.result()
        except BaseException:
            self.close()
            raise
        finally:
            self._slots.release()

    def ready(self, timeout: float) -> bool:
        """Whether ``next`` will return at once, after waiting for that up to ``timeout`` seconds."""
        if self._head is None:
            try:
                self._head = self._results.get(timeout=timeout)
            except queue.Empty:
                return False
        return isinstance(self._head, _End) or bool(wait([self._head], timeout).done)

    def close(self, timeout: float = 10.0) -> None:
        """Stop the threads; results that were not taken are thrown away. Idempotent.

        Args:
            timeout: seconds to wait for a source that does not answer; its thread is left behind then. 0 waits for
                nothing.
        """
        self._stopped.set()
        self._slots.release()  # the feeder may be waiting for one
        self._feeder.join(timeout)
        # What is in the making may hold memory that belongs to the source.
        self._pool.shutdown(wait=timeout > 0, cancel_futures=True)
        self._head = None
        with suppress(queue.Empty):
            while True:
                self._results.get_nowait()

    def _feed(self) -> None:
        iterator: Iterator[SourceT] | None = None
        try:
            iterator = iter(self._source)
            while True:
                self._slots.acquire()
                if self._stopped.is_set():
                    break
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                if self._stopped.is_set():
                    break
                self._results.put(self._pool.submit(self._function, item))
        except BaseException as error:
            failed: Future[ResultT] = Future()
            failed.set_exception(error)
            self._results.put(failed)
        finally:
            self._results.put(_End())
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
