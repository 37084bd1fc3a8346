"""Parquet shards: how samples are written, identified and read back.

A shard holds consecutive samples of one split in small row groups, because a row group is the unit of reading: eight
samples are one read of a few megabytes, and an epoch order that keeps row groups together stays sequential. Pages carry
CRC32 checksums, verified at every read: a flipped bit ends in an error, never in a training step. Measured on 6
cameras + lidar (PandaSet, 8 samples of 1.2 MB): a row group reads in 14 ms, 2 ms of it for the checksums.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sensorlab.config import StrictModel
from sensorlab.data.sample import Sample
from sensorlab.data.schema import ADDED_COLUMNS, arrow_schema, encode_table
from sensorlab.errors import UserError

DEFAULT_ROW_GROUP_SIZE = 8


class ShardInfo(StrictModel):
    """What the manifest knows about one shard."""

    file: str  # relative to the dataset
    rows: tuple[int, ...]  # rows of each row group
    bytes: int
    sha256: str  # of the file

    @property
    def num_samples(self) -> int:
        return sum(self.rows)


# ------------------------------------------------------------------------------------------------------------ writing


def write_shard(
    root: Path, file: str, samples: Iterable[Sample], row_group_size: int = DEFAULT_ROW_GROUP_SIZE
) -> ShardInfo:
    """Write ``samples`` to ``root/file``, holding one row group in memory at a time.

    The file appears under its name only when it is complete and on disk.

    Raises:
        UserError: the file cannot be written (permissions, no space).
    """
    path, rows = root / file, []
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, arrow_schema(), **_writer_options()) as writer:
        for group in _grouped(samples, row_group_size):
            writer.write_table(encode_table(group), row_group_size=len(group))
            rows.append(len(group))
    return ShardInfo(file=file, rows=tuple(rows), bytes=path.stat().st_size, sha256=file_sha256(path))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` (fsync, then rename) if the body succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            _sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def _writer_options() -> dict[str, Any]:
    # JPEG bytes do not compress; LZ4 halves the points at almost no cost in reading.
    return {
        "compression": {leaf: "none" if leaf.endswith("jpeg") else "lz4" for leaf in _leaf_paths(arrow_schema())},
        "use_dictionary": ["scene", "scene_token"],
        "write_statistics": False,
        "write_page_checksum": True,
    }


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Parquet column paths of every leaf of an Arrow schema."""

    def walk(prefix: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_struct(kind):
            for field in kind:
                yield from walk(f"{prefix}.{field.name}", field.type)
        elif pa.types.is_list(kind):
            yield from walk(f"{prefix}.list.element", kind.value_type)
        else:
            yield prefix

    return [leaf for field in schema for leaf in walk(field.name, field.type)]


def _grouped(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


# ------------------------------------------------------------------------------------------------------------ digests


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    state = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def sample_digest(sample: Sample) -> bytes:
    """SHA-256 over everything a sample holds; equal for equal samples however and wherever they are stored."""
    state = hashlib.sha256()
    _feed(state, sample)
    return state.digest()


def _feed(state: Any, value: Any) -> None:
    """Feed a tree of dataclasses, lists, arrays and scalars; every leaf is prefixed with its kind and length."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        state.update(f"a{array.dtype.str}{array.shape}".encode())
        state.update(array.data)
    elif isinstance(value, bytes):
        state.update(b"b%d:" % len(value))
        state.update(value)
    elif isinstance(value, (list, tuple)):
        state.update(b"l%d:" % len(value))
        for item in value:
            _feed(state, item)
    elif isinstance(value, (str, int, float)):
        text = repr(value).encode()
        state.update(b"s%d:" % len(text))
        state.update(text)
    else:
        for field in fields(value):
            content = getattr(value, field.name)
            if field.name not in ADDED_COLUMNS or len(content):
                _feed(state, content)


def content_digest(splits: Iterable[tuple[str, Sequence[bytes]]]) -> str:
    """Digest of a dataset from its splits' names and their samples' digests, in order.

    Independent of paths, of shard boundaries and of the number of workers that wrote them.
    """
    state = hashlib.sha256()
    for name, digests in splits:
        state.update(f"{name}:{len(digests)}:".encode())
        for digest in digests:
            state.update(digest)
    return state.hexdigest()


# ------------------------------------------------------------------------------------------------------------ reading


def read_row_group(path: str, group: int, columns: Sequence[str]) -> pa.Table:
    """One row group of a shard, memory-mapped, checksums verified.

    Raises:
        UserError: missing, truncated or altered file; the message names the file and the row group.
    """
    try:
        file = pq.ParquetFile(path, memory_map=True, metadata=_metadata(path), page_checksum_verification=True)
        with file:
            return file.read_row_group(group, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise damaged_shard(path, error, group) from error


def damaged_shard(path: str | Path, error: Exception, group: int | None = None) -> UserError:
    """The error for a shard that cannot be read."""
    where = f"{path}, row group {group}" if group is not None else str(path)
    if isinstance(error, FileNotFoundError):
        return UserError(f"{where}: no such file: the dataset is incomplete, prepare it again")
    reason = str(error).splitlines()[0]
    return UserError(f"{where}: not readable ({reason}); run `sensorlab data check`, then prepare the dataset again")


@lru_cache(maxsize=4096)
def _footer(path: str, size: int, modified: int) -> pq.FileMetaData:
    return pq.read_metadata(path)


def _metadata(path: str) -> pq.FileMetaData:
    """A shard's footer, parsed once per version of the file."""
    status = os.stat(path)
    return _footer(path, status.st_size, status.st_mtime_ns)


class RowGroupCache:
    """Least-recently-used tables, bounded in bytes; threads that miss the same key wait for one load.

    Args:
        max_bytes: of all tables together.
        window_bytes: bound instead of ``max_bytes`` while there are no more tables than :meth:`hold` has asked for.
    """

    def __init__(self, max_bytes: int, window_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.window_bytes = max(max_bytes, window_bytes)
        self._window = 0
        self._lock = threading.Lock()
        self._tables: OrderedDict[Hashable, Future[pa.Table]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}

    def get(self, key: Hashable, load: Callable[[], pa.Table]) -> pa.Table:
        """The table of ``key``; ``load`` makes it when it is not here. Errors of ``load`` are raised, not kept."""
        with self._lock:
            found = self._tables.get(key)
            if found is not None:
                self._tables.move_to_end(key)
            else:
                mine: Future[pa.Table] = Future()
                self._tables[key] = mine
        if found is not None:
            return found.result()
        try:
            table = load()
        except BaseException as error:
            with self._lock:
                self._tables.pop(key, None)
            mine.set_exception(error)
            raise
        mine.set_result(table)
        self._keep(key, table.get_total_buffer_size())
        return table

    def hold(self, tables: int) -> None:
        """A reader goes to and fro between so many tables: keep them all, within ``window_bytes``.

        Of a larger window, a cache of ``max_bytes`` has lost most tables when they are needed again: with 6 cameras
        (10 MB a row group) and a window of 64 row groups, 5.2 rows were read for each that was used.
        """
        with self._lock:
            self._window = max(self._window, tables)

    def _keep(self, key: Hashable, size: int) -> None:
        with self._lock:
            if key in self._tables:  # else cleared in between
                self._sizes[key] = size
            total = sum(self._sizes.values())
            for old in list(self._tables):
                if total <= (self.window_bytes if len(self._sizes) <= self._window else self.max_bytes):
                    break
                if old in self._sizes:  # a load in flight has no size yet and stays
                    total -= self._sizes.pop(old)
                    del self._tables[old]

    def clear(self) -> None:
        """Forget every table."""
        with self._lock:
            self._tables.clear()
            self._sizes.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        with self._lock:
            return sum(self._sizes.values())

    def __len__(self) -> int:
        return len(self._tables)


# One per process: the collate threads of a worker share what they read.
ROW_GROUP_CACHE = RowGroupCache(max_bytes=256 << 20, window_bytes=1 << 30)
