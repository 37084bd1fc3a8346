"""The stream through Ray Data: tasks read the planned rows, each training worker receives its own batches in order.

On the driver, :func:`ray_dataset` turns a plan into a ``ray.data.Dataset`` whose row ``k`` is worker batch ``k``: ranks
0..n-1 of global batch 0, then of global batch 1, and so on. With ``preserve_order``, ``streaming_split(n, equal=True)``
gives row ``k`` to worker ``k mod n`` when every block holds one row: the splitter hands each block to the worker with
the fewest rows so far (``ray/data/_internal/execution/operators/output_splitter.py``). Nothing relies on that blindly:
each row says which worker batch it is, and :class:`RayStream` refuses any other than the one it expects.

Such a dataset covers all epochs from the cursor to the end, so the first batches of an epoch are made while the last
ones of the epoch before are trained on. Its plan is written before the first batch comes, one object per task (0.8 ms
each), and an adaptive order (:class:`~sensorlab.data.order.OrderPolicy`), which is known only when the epoch before has
been evaluated, cannot be written at all. A stream that is given no dataset therefore makes its own, piece by piece:
each worker executes datasets of its own batches, one after the other, without a coordinator; the next piece starts
while the last batches of the one before wait in the look-ahead. All workers' tasks together use the same number of
CPUs, and the same share of the object store, as those of one dataset would.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sensorlab.data.order import Scores
from sensorlab.data.ordered import OrderedPrefetcher
from sensorlab.data.payload import Payload, decode_payload, pack_arrays, pack_table, unpack_arrays, unpack_table
from sensorlab.data.plan import WorkerBatch
from sensorlab.data.ray_tasks import MakeBlocks
from sensorlab.data.stream import Made, PrefetchedStream, Ready, StreamSpec
from sensorlab.errors import UserError

if TYPE_CHECKING:
    import ray.data
    import ray.train

MIB = 1 << 20
_JOIN_TIMEOUT_S = 5.0
PIECE_TASKS = 128  # of the datasets that a stream makes for itself; starting one takes about 0.1 s
# Of the object store, for the output of all executions of a run; Ray's own default for each of them.
_OBJECT_STORE_SHARE = 0.5
_BATCHES_PER_TASK, _BATCHES_IN_ITERATOR = 2, 12  # see least_object_store
_PROBED_ROWS = 2


def configure_data_context() -> None:
    """Pin the Ray Data settings that the project relies on; :func:`ray_dataset` calls it.

    - Parquet through the V1 source: the V2 source starts 32 actors per execution and is not deterministic.
    - ``preserve_order``: the order of the stream is part of its contract.
    - 32 MiB blocks: decoded images in larger ones spill.
    - No "no progress" timeout of Ray's own: it also fires while the consumer pauses, for example to evaluate. The
      stream has its own (``stall_timeout_s``), which runs only while a step waits.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    context.use_datasource_v2 = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 32 * MIB
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    # "Execution finished" after every evaluation is no news.
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def train_data_config(object_store: int | None = None) -> ray.train.DataConfig:
    """For ``TorchTrainer(dataset_config=...)``: split every dataset in order, wherever the workers are; each fills no
    more than ``object_store`` bytes.

    Ray Train replaces the execution options of a dataset by those of the process that made the trainer, whose
    ``DataContext`` need not be the one that made the dataset; here they are explicit.
    """
    from ray.data import ExecutionOptions
    from ray.train import DataConfig

    options = ExecutionOptions(preserve_order=True, resource_limits=_object_store_limit(object_store))
    return DataConfig(execution_options=options, enable_shard_locality=False)


def ray_dataset(
    spec: StreamSpec,
    world_size: int,
    start: tuple[int, int] = (0, 0),
    end_epoch: int = 1,
    rank: int | None = None,
    scores: Scores | None = None,
    max_tasks: int | None = None,
) -> ray.data.Dataset:
    """The dataset that feeds ``world_size`` workers; give it to Ray Train, which splits it, or use ``.iterator()``.

    Nothing before the cursor ``start`` = (epoch, batch) is read. For all workers of an evaluation ``start`` and
    ``end_epoch`` mean nothing: the dataset is one pass over the split, executed again for each evaluation.

    Args:
        rank: of the only worker that the dataset feeds, one of ``world_size`` that have one each and share the tasks.
        scores: of the classes, for an adaptive order.
        max_tasks: the dataset ends after the batches of so many tasks.

    Raises:
        UserError: the global batch does not divide by ``world_size``, or nothing is left to do.
    """
    import ray.data
    from ray.data import TaskPoolStrategy

    configure_data_context()
    plan, config = spec.plan, spec.config
    plan.check_divides(world_size)
    if not spec.training and rank is None:
        start, end_epoch = (0, 0), 1
    ranks = range(world_size) if rank is None else range(rank, rank + 1)
    limit = None if max_tasks is None else max_tasks * config.batches_per_task // len(ranks)
    cursors = itertools.islice(plan.cursors(start, end_epoch), limit)
    chunks = _plan_chunks(cursors, ranks, config.batches_per_task)
    if not chunks:
        raise UserError(f"nothing to stream: the cursor {start} is at or behind the end of epoch {end_epoch - 1}")
    work = spec.maker.reader if config.transform_in == "worker" else spec.maker
    sharing = 1 if rank is None else world_size
    tasks = max(1, config.tasks // sharing)
    dataset = ray.data.from_blocks(chunks).map_batches(
        MakeBlocks(plan, plan.fingerprint, world_size, work, dict(scores or {}), spec.window),
        batch_size=None,  # a task gets a whole chunk
        batch_format="pyarrow",
        # A task that waits for its consumer keeps its CPUs: all workers' tasks must fit side by side.
        num_cpus=config.task_cpus * config.tasks / (tasks * sharing),
        compute=TaskPoolStrategy(size=min(tasks, len(chunks))),
    )
    # A row cannot be split, and a block is closed as soon as it is larger than this: one row per block, always.
    dataset.context.target_max_block_size = 1
    dataset.context.override_object_store_memory_limit_fraction = _OBJECT_STORE_SHARE / sharing
    dataset.context.execution_options.resource_limits = _object_store_limit(config.object_store, sharing)
    return dataset


def least_object_store(spec: StreamSpec, world_size: int = 1) -> int:
    """Bytes of the object store that the stream holds however narrow its limit is; with less, Ray spills to disk.

    The size of a batch is that of a small one, made here; how many there are at a time was measured (batches of 8 MB
    and a limit of two of them; look-ahead of 1 to 16, 1 to 4 tasks: 14 to 24): those that tasks have finished, that
    Ray's iterator formats and fetches, and the look-ahead's.
    """
    config = spec.config
    job = spec.plan.worker_batch(0, 0, 0, world_size)
    probe = replace(job, rows=job.rows[:_PROBED_ROWS], is_filler=job.is_filler[:_PROBED_ROWS])
    in_worker = config.transform_in == "worker"
    content = pack_table(spec.maker.reader(probe.rows)[0]) if in_worker else pack_arrays(spec.maker(probe)[0])
    batches = world_size * (config.prefetch_batches + _BATCHES_IN_ITERATOR) + _BATCHES_PER_TASK * config.tasks
    return math.ceil(content.size / len(probe.rows) * len(job.rows)) * batches


def _object_store_limit(size: int | None, sharing: int = 1) -> ray.data.ExecutionResources:
    """Limit of one of ``sharing`` executions that fill ``size`` bytes of the object store together."""
    from ray.data import ExecutionResources

    return ExecutionResources.for_limits(object_store_memory=None if size is None else size / sharing)


def _plan_chunks(cursors: Iterable[tuple[int, int]], ranks: Sequence[int], size: int) -> list[pa.Table]:
    """Tables of (epoch, batch, rank), ``size`` rows for each task; all rows in stream order."""
    pairs = np.array(list(cursors), np.int64).reshape(-1, 2)
    table = pa.table(
        {
            "epoch": np.repeat(pairs[:, 0], len(ranks)),
            "batch": np.repeat(pairs[:, 1], len(ranks)),
            "rank": np.tile(ranks, len(pairs)),
        }
    )
    return [table.slice(first, size) for first in range(0, table.num_rows, size)]


def makes_own_datasets(spec: StreamSpec, world_size: int) -> bool:
    """Whether the workers of a training should be given no dataset, and make their own.

    An adaptive order leaves no choice. Otherwise one worker does without the plan of the whole training, whose start
    grows with its length (2.6 s for 25,000 batches), while several share what a task has read: those of a dataset of
    their own each read every row group of a window for their slice of it.
    """
    return spec.training and (spec.plan.adaptive or world_size == 1)


class RayStream(PrefetchedStream):
    """One worker's end of a :func:`ray_dataset`, or of datasets that it makes for itself.

    Args:
        spec: equal to the one that the dataset was made from.
        iterator: this worker's shard (``ray.train.get_dataset_shard``) or, for a single worker, ``dataset.iterator()``.
            ``None``: the stream makes its own datasets, and can be asked for any cursor at any time.
        start: as given to :func:`ray_dataset`.
        end_epoch: as given to :func:`ray_dataset`; the look-ahead stops there.
        pin_memory: see :class:`~sensorlab.data.stream.PrefetchedStream`.
    """

    def __init__(
        self,
        spec: StreamSpec,
        iterator: ray.data.DataIterator | None,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
        end_epoch: int = 1,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(spec, rank, world_size, end_epoch, pin_memory)
        if iterator is not None and self.is_adaptive:
            raise ValueError("the order of this stream is adaptive, so that no dataset can be made before its epoch")
        self._iterator = iterator
        self._start = self.plan.normal_cursor(start) if spec.training else (0, 0)

    def _open(self, start: tuple[int, int], end_epoch: int, scores: Scores) -> OrderedPrefetcher:
        config = self.spec.config
        make = functools.partial(self._make, scores=scores)
        source = self._received(start, end_epoch, scores)
        return OrderedPrefetcher(source, make, config.threads, config.prefetch_batches, "ray-stream")

    def _received(
        self, start: tuple[int, int], end_epoch: int, scores: Scores
    ) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        """Every cursor with its block."""
        cursors = self.plan.cursors(start, end_epoch)
        if self._iterator is not None:
            if start != self._start:
                raise RuntimeError(
                    f"this stream was planned to start at (epoch, batch) {self._start} and was asked for {start}: "
                    "a training stream runs forward only, make a new dataset to move it"
                )
            yield from self._blocks_of(self._iterator, cursors)
            return
        while piece := list(itertools.islice(cursors, PIECE_TASKS * self.spec.config.batches_per_task)):
            dataset = ray_dataset(self.spec, self.world_size, piece[0], end_epoch, self.rank, scores, PIECE_TASKS)
            yield from self._blocks_of(dataset.iterator(), piece)

    def _blocks_of(
        self, iterator: ray.data.DataIterator, cursors: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        ahead = min(2, self.spec.config.prefetch_batches)
        blocks = iterator.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=ahead)
        return _paired(cursors, blocks)

    def _make(self, pair: tuple[tuple[int, int], pa.Table], scores: Scores) -> Ready:
        return self._finish(self._decode(pair, scores))

    def _decode(self, pair: tuple[tuple[int, int], pa.Table], scores: Scores) -> Made:
        (epoch, batch), block = pair
        payload = decode_payload(block)
        job = self.plan.worker_batch(epoch, batch, self.rank, self.world_size, scores)
        self._check_identity(payload, job)
        if payload.kind == "error":
            raise UserError(payload.content.to_pybytes().decode())
        if payload.kind == "arrays":
            return unpack_arrays(payload.content), payload.corrupt
        return self.spec.maker.make(job, unpack_table(payload.content), payload.corrupt)

    def _check_identity(self, payload: Payload, job: WorkerBatch) -> None:
        found = (payload.epoch, payload.batch, payload.rank, payload.world_size, payload.plan)
        if found != (job.epoch, job.batch, job.rank, job.world_size, self.plan.fingerprint):
            raise RuntimeError(
                f"the stream delivered {payload.name} where {job.name} of plan {self.plan.fingerprint} was due"
            )

    def _stall_message(self, cursor: tuple[int, int], waited: float) -> str:
        import ray

        config = self.spec.config
        free = ray.available_resources().get("CPU", 0.0)
        return (
            f"{super()._stall_message(cursor, waited)}. The stream runs {config.tasks} tasks of {config.task_cpus:g} "
            f"CPUs each; {free:g} CPUs are free in the cluster. Lower resources.data_cpus, or give the cluster more"
        )


def _paired(
    cursors: Iterable[tuple[int, int]], blocks: Iterable[pa.Table]
) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """Each expected cursor with the block that arrived.

    Closing it ends Ray's execution and waits for the threads that Ray started for the iteration. They are daemons that
    nobody joins, and Ray ends the whole process, with exit code 1, when one of them is still at work in
    ``ray.shutdown()``.
    """
    before = set(threading.enumerate())
    iterator: Any = iter(blocks)
    try:
        for cursor in cursors:
            block = next(iterator, None)
            if block is None:
                raise RuntimeError(f"the dataset ended before epoch {cursor[0]}, batch {cursor[1]}")
            yield cursor, block
        next(iterator, None)  # nothing more comes; reaching the end lets Ray stop its prefetching thread
    finally:
        iterator.close()
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        for thread in set(threading.enumerate()) - before:
            if thread.name == "iter_threaded":
                thread.join(max(0.0, deadline - time.monotonic()))
