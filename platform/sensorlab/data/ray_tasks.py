"""What runs inside the Ray Data tasks of a stream. Imports neither torch nor Ray: a reading task starts at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from sensorlab.data.batch import BatchMaker, RowReader
from sensorlab.data.order import Scores
from sensorlab.data.payload import encode_payload, pack_arrays, pack_table
from sensorlab.data.plan import StreamPlan, WorkerBatch
from sensorlab.data.shards import ROW_GROUP_CACHE
from sensorlab.errors import UserError

# Plans of this process by fingerprint, with the orders that they remember: each task brings its own copy of its plan,
# and an order takes 6 to 50 ms (28,000 samples shuffled, 130,000 rows drawn by class).
_PLANS: OrderedDict[str, StreamPlan] = OrderedDict()
_PLANS_KEPT = 4


def _known_plan(fingerprint: str, plan: StreamPlan) -> StreamPlan:
    plan = _PLANS.setdefault(fingerprint, plan)
    _PLANS.move_to_end(fingerprint)
    while len(_PLANS) > _PLANS_KEPT:
        _PLANS.popitem(last=False)
    return plan


@dataclass(frozen=True, eq=False)
class MakeBlocks:
    """Map function: a table of (epoch, batch, rank) in, one block with one row per worker batch out.

    Args:
        work: a reader (the blocks hold compressed samples) or a batch maker (they hold the collated arrays).
        scores: of the classes, where the plan's order is adaptive.
        window: row groups that the order mixes, which this process should hold.
    """

    plan: StreamPlan
    fingerprint: str
    world_size: int
    work: RowReader | BatchMaker
    scores: Scores = field(default_factory=dict)
    window: int = 0

    def __call__(self, chunk: pa.Table) -> Iterator[pa.Table]:
        ROW_GROUP_CACHE.hold(self.window)
        plan = _known_plan(self.fingerprint, self.plan)
        for epoch, batch, rank in zip(
            *(chunk.column(name).to_pylist() for name in ("epoch", "batch", "rank")), strict=True
        ):
            job = plan.worker_batch(epoch, batch, rank, self.world_size, self.scores)
            try:
                yield self._block(job)
            except UserError as error:
                # As data, not as an exception: it is raised when, and if, the consumer gets there.
                yield encode_payload(job, self.fingerprint, "error", pa.py_buffer(str(error).encode()))

    def _block(self, job: WorkerBatch) -> pa.Table:
        if isinstance(self.work, RowReader):
            table, corrupt = self.work(job.reads)
            return encode_payload(job, self.fingerprint, "samples", pack_table(table), corrupt)
        arrays, corrupt = self.work(job)
        return encode_payload(job, self.fingerprint, "arrays", pack_arrays(arrays), corrupt)
