"""How a worker batch travels through Ray's object store: one Arrow row that says what it is.

One row is one block, and a row cannot be split or merged, so a batch arrives whole or not at all. The row carries its
identity (epoch, batch, rank, world size, plan), which the receiver compares with what it expects. An error that names a
bad sample travels the same way: it reaches the consumer in order, as the message the reader wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from sensorlab.data.plan import WorkerBatch

Kind = Literal["samples", "arrays", "error"]
_SCHEMA = pa.schema(
    [
        ("epoch", pa.int64()),
        ("batch", pa.int64()),
        ("rank", pa.int32()),
        ("world_size", pa.int32()),
        ("plan", pa.string()),  # fingerprint of the StreamPlan that the row was made by
        ("kind", pa.string()),
        ("corrupt", pa.string()),  # JSON list of CorruptSample
        ("content", pa.large_binary()),  # samples: Arrow IPC table; arrays: pack_arrays; error: UTF-8 message
    ]
)


@dataclass(frozen=True)
class CorruptSample:
    """A sample that could not be used and was replaced."""

    row: int  # row number in the split
    where: str  # shard, row group and row in it
    message: str


@dataclass(frozen=True)
class Payload:
    """A received row."""

    epoch: int
    batch: int
    rank: int
    world_size: int
    plan: str
    kind: Kind
    corrupt: tuple[CorruptSample, ...]
    content: pa.Buffer

    @property
    def name(self) -> str:
        return f"epoch {self.epoch}, batch {self.batch}, worker {self.rank} of {self.world_size} of plan {self.plan}"


def encode_payload(
    job: WorkerBatch, plan: str, kind: Kind, content: pa.Buffer, corrupt: tuple[CorruptSample, ...] = ()
) -> pa.Table:
    """One-row table. ``content`` is referred to, not copied."""
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    columns = [
        pa.array([value], field.type)
        for value, field in zip(
            (job.epoch, job.batch, job.rank, job.world_size, plan, kind, json.dumps([asdict(c) for c in corrupt])),
            _SCHEMA,
            strict=False,
        )
    ]
    columns.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, content]))
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def decode_payload(block: pa.Table) -> Payload:
    """Read a one-row table without copying its content."""
    if block.num_rows != 1:
        raise RuntimeError(f"a stream block must hold one worker batch, this one holds {block.num_rows}")
    fields = {name: block.column(name)[0].as_py() for name in _SCHEMA.names[:-1]}
    corrupt = tuple(CorruptSample(**entry) for entry in json.loads(fields.pop("corrupt")))
    return Payload(**fields, corrupt=corrupt, content=block.column("content")[0].as_buffer())


def pack_table(table: pa.Table) -> pa.Buffer:
    """Arrow IPC stream of a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpack_table(content: pa.Buffer) -> pa.Table:
    """Inverse of :func:`pack_table`; the table's buffers are views of ``content``."""
    return pa.ipc.open_stream(content).read_all()


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> pa.Buffer:
    """Named arrays as an Arrow IPC stream: one row, one binary column per array, dtype and shape beside it."""
    fields, columns = [], []
    for name, array in arrays.items():
        array = np.asarray(array, order="C")
        if array.dtype.kind not in "biuf":
            raise TypeError(f"array {name!r} has dtype {array.dtype}; batches hold numbers and booleans only")
        header = {"dtype": array.dtype.str, "shape": json.dumps(array.shape)}
        fields.append(pa.field(name, pa.large_binary(), metadata=header))
        offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
        data = pa.py_buffer(array.reshape(-1).view(np.uint8))
        columns.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data]))
    return pack_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)))


def unpack_arrays(content: pa.Buffer) -> dict[str, np.ndarray]:
    """Inverse of :func:`pack_arrays`; the arrays are read-only views of ``content``."""
    table = unpack_table(content)
    arrays = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        header = {key.decode(): value.decode() for key, value in field.metadata.items()}
        flat = np.frombuffer(column[0].as_buffer(), dtype=np.dtype(header["dtype"]))
        arrays[field.name] = flat.reshape(json.loads(header["shape"]))
    return arrays
