"""From row numbers to the arrays of one batch: read, decode, transform, collate.

The same code runs in the threads of a training worker, in a Ray task and in a plain process, and gives the same bytes:
every random draw is keyed by (seed, epoch, sample token). This module imports neither torch nor Ray, so that a task
that only reads starts in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from sensorlab.data.dataset import Split
from sensorlab.data.payload import CorruptSample
from sensorlab.data.plan import WorkerBatch
from sensorlab.data.random_streams import SampleRandom, keyed_generator
from sensorlab.data.sample import Sample
from sensorlab.data.schema import decode_table
from sensorlab.errors import UserError

Arrays = dict[str, np.ndarray]

# What a sample raises that cannot be read or decoded. Anything else is a bug in the task and keeps its traceback.
CORRUPT_ERRORS = (UserError, OSError, EOFError, pa.ArrowException)
_REPLACEMENT_ATTEMPTS = 16


class SampleTransform(Protocol):
    """The part of a task that the stream uses; see :class:`sensorlab.tasks.base.BaseTask`."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def num_partners(self) -> int: ...

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays: ...

    def compose(self, samples: Sequence[Sample], random: SampleRandom) -> Arrays: ...

    def collate(self, items: Sequence[Arrays]) -> Arrays: ...


@dataclass(frozen=True, eq=False)
class RowReader:
    """Reads the compressed samples of a worker batch. Picklable; knows no task."""

    split: Split
    columns: tuple[str, ...]
    tolerate_corrupt: bool

    def __call__(self, rows: np.ndarray) -> tuple[pa.Table, tuple[CorruptSample, ...]]:
        """Table of the readable rows of ``rows`` in order, and those that are not readable (if tolerated).

        Raises:
            UserError: a row cannot be read; names its shard and row.
        """
        try:
            return self.split.read(rows, self.columns), ()
        except CORRUPT_ERRORS:
            pass  # find out which row it is
        tables, corrupt = [self.split.read([], self.columns)], []
        for row in rows.tolist():
            try:
                tables.append(self.split.read([row], self.columns))
            except CORRUPT_ERRORS as error:
                corrupt.append(describe_corrupt(self.split, row, error))
                if not self.tolerate_corrupt:
                    raise corrupt_error(corrupt[0]) from error
        return pa.concat_tables(tables), tuple(corrupt)


class MisfitError(UserError):
    """Raised by a task's ``collate``: item ``position`` does not fit the others. The message goes on "sample X ..."."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, eq=False)
class BatchMaker:
    """Turns the samples of a worker batch into collated arrays. Picklable."""

    reader: RowReader
    task: SampleTransform
    seed: int
    training: bool

    def __call__(self, job: WorkerBatch) -> tuple[Arrays, tuple[CorruptSample, ...]]:
        """Read and transform in one go."""
        table, corrupt = self.reader(job.reads)
        return self.make(job, table, corrupt)

    def make(
        self, job: WorkerBatch, table: pa.Table, unreadable: tuple[CorruptSample, ...] = ()
    ) -> tuple[Arrays, tuple[CorruptSample, ...]]:
        """Transform and collate the samples in ``table``: those of ``job.reads`` that are not in ``unreadable``.

        A corrupt sample is replaced by another of the same split, chosen by (seed, epoch, row): in training it takes
        the place, in evaluation it is a filler, which never counts. Where a partner cannot be read, or a replacement
        has none, the sample itself is its partner.

        Returns:
            The task's arrays plus ``index`` (b,) int64, row numbers really used, and ``is_filler`` (b,) bool; and the
            corrupt samples that were met.

        Raises:
            UserError: a sample cannot be used and ``tolerate_corrupt`` is off; names sample, shard and row. Or samples
                that do not fit into one batch.
        """
        corrupt = {sample.row: sample for sample in unreadable}
        samples = self._decode([row for row in job.reads.tolist() if row not in corrupt], table, corrupt)
        items, index, is_filler = [], job.rows.copy(), job.is_filler.copy()
        for position, row in enumerate(job.rows.tolist()):
            item = None
            if row in samples:
                partners = [samples.get(other, samples[row]) for other in job.partners[position].tolist()]
                item = self._transform(job.epoch, row, samples[row], partners, corrupt)
            if item is None:
                item, index[position] = self._replace(job.epoch, row, corrupt)
                is_filler[position] |= not self.training
            items.append(item)
        try:
            arrays = self.task.collate(items)
        except MisfitError as error:
            row = int(index[error.position])
            name = f"sample {samples[row].token!r}, row {row}" if row in samples else f"row {row}"
            raise UserError(f"{name} of split {self.reader.split.name!r} {error}") from error
        if {"index", "is_filler"} & arrays.keys():
            raise TypeError("a task's arrays must not be called 'index' or 'is_filler': the stream adds these")
        return {**arrays, "index": index, "is_filler": is_filler}, tuple(corrupt.values())

    def _decode(self, rows: list[int], table: pa.Table, corrupt: dict[int, CorruptSample]) -> dict[int, Sample]:
        """The samples of ``table`` by row number, without those that do not decode (if tolerated)."""
        try:
            return dict(zip(rows, decode_table(table), strict=True))
        except CORRUPT_ERRORS:
            pass  # find out which row it is
        samples = {}
        for position, row in enumerate(rows):
            try:
                samples[row] = decode_table(table.slice(position, 1))[0]
            except CORRUPT_ERRORS as error:
                self._note(row, error, None, corrupt)
        return samples

    def _transform(
        self, epoch: int, row: int, sample: Sample, partners: Sequence[Sample], corrupt: dict[int, CorruptSample]
    ) -> Arrays | None:
        """The sample's arrays, or None (and an entry in ``corrupt``) when it is corrupt and that is tolerated."""
        random = SampleRandom(self.seed, epoch, sample.token)
        try:
            if not partners:
                return self.task.transform(sample, random, self.training)
            return self.task.compose([sample, *partners], random)
        except CORRUPT_ERRORS as error:
            self._note(row, error, sample.token, corrupt)
            return None

    def _note(self, row: int, error: Exception, token: str | None, corrupt: dict[int, CorruptSample]) -> None:
        found = describe_corrupt(self.reader.split, row, error, token)
        if not self.reader.tolerate_corrupt:
            raise corrupt_error(found) from error
        corrupt[row] = found

    def _replace(self, epoch: int, row: int, corrupt: dict[int, CorruptSample]) -> tuple[Arrays, int]:
        """Arrays and row number of the sample that stands in for a corrupt ``row``."""
        split = self.reader.split
        generator = keyed_generator("replacement", split.dataset_digest, self.seed, epoch, row)
        for other in generator.integers(split.num_samples, size=_REPLACEMENT_ATTEMPTS).tolist():
            if other in corrupt:
                continue
            table, unreadable = self.reader(np.array([other]))
            corrupt.update({sample.row: sample for sample in unreadable})
            for row_number, sample in self._decode([] if unreadable else [other], table, corrupt).items():
                alone = [sample] * self.task.num_partners if self.training else []
                item = self._transform(epoch, row_number, sample, alone, corrupt)
                if item is not None:
                    return item, other
        raise UserError(f"{corrupt[row].message}; and none of {_REPLACEMENT_ATTEMPTS} other samples could replace it")


def describe_corrupt(split: Split, row: int, error: Exception, token: str | None = None) -> CorruptSample:
    """Say where a bad row is stored and what is wrong with it."""
    ends = np.cumsum(split.row_groups[:, 2])
    index = int(np.searchsorted(ends, row, side="right"))
    shard, group, size = split.row_groups[index].tolist()
    offset = row - int(ends[index] - size)
    where = f"{split.shards[shard]}, row group {group}, row {offset} in it"
    name = f"sample {token!r}" if token else "a sample"
    return CorruptSample(row, where, f"{name} (row {row} of split {split.name!r}; {where}) cannot be used: {error}")


def corrupt_error(sample: CorruptSample) -> UserError:
    """The error that stops a run at a corrupt sample."""
    return UserError(
        f"{sample.message}. Check the dataset with `sensorlab data check`; "
        "to skip such samples set data.max_corrupt_fraction"
    )
