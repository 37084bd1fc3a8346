"""A stream without Ray: reads and transforms in threads of this process."""

from __future__ import annotations

from collections.abc import Iterator

from sensorlab.data.order import Scores
from sensorlab.data.ordered import OrderedPrefetcher
from sensorlab.data.plan import WorkerBatch
from sensorlab.data.shards import ROW_GROUP_CACHE
from sensorlab.data.stream import PrefetchedStream, Ready, StreamSpec


class LocalStream(PrefetchedStream):
    """Batches of one worker, made in this process; used under plain torch, by tests and by benchmarks.

    Any cursor can be opened at any time, and only what is delivered (or looked ahead to) is read. With ``end_epoch``
    the look-ahead runs on into the following epochs, unless their order is adaptive.
    """

    def __init__(
        self,
        spec: StreamSpec,
        rank: int = 0,
        world_size: int = 1,
        end_epoch: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(spec, rank, world_size, end_epoch, pin_memory)

    def _open(self, start: tuple[int, int], end_epoch: int, scores: Scores) -> OrderedPrefetcher:
        config = self.spec.config
        ROW_GROUP_CACHE.hold(self.spec.window)
        jobs = self._jobs(start, end_epoch, scores)
        return OrderedPrefetcher(jobs, self._make, config.threads, config.prefetch_batches, "local-stream")

    def _make(self, job: WorkerBatch) -> Ready:
        return self._finish(self.spec.maker(job))

    def _jobs(self, start: tuple[int, int], end_epoch: int, scores: Scores) -> Iterator[WorkerBatch]:
        for epoch, batch in self.plan.cursors(start, end_epoch):
            yield self.plan.worker_batch(epoch, batch, self.rank, self.world_size, scores)
