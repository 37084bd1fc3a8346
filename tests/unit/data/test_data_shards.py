"""Shards: layout, atomic writing, checksums, digests and the row-group cache."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_factory import make_sample

from sensorlab.data.schema import arrow_schema, decode_table
from sensorlab.data.shards import (
    RowGroupCache,
    atomic_path,
    content_digest,
    file_sha256,
    read_row_group,
    sample_digest,
    write_shard,
)
from sensorlab.errors import UserError

ALL = arrow_schema().names


def test_row_group_layout_and_round_trip(tmp_path: Path) -> None:
    samples = [make_sample(i) for i in range(7)]
    info = write_shard(tmp_path, "train/shard-00000.parquet", iter(samples), row_group_size=3)
    path = tmp_path / info.file
    assert info.rows == (3, 3, 1)
    assert info.num_samples == 7
    assert info.bytes == path.stat().st_size
    assert info.sha256 == file_sha256(path)
    footer = pq.read_metadata(path)
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [3, 3, 1]
    read = [s for group in range(3) for s in decode_table(read_row_group(str(path), group, ALL))]
    assert [sample_digest(s) for s in read] == [sample_digest(s) for s in samples]
    assert [p.name for p in path.parent.iterdir()] == ["shard-00000.parquet"]


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    first = write_shard(tmp_path, "a.parquet", (make_sample(i) for i in range(3)))
    second = write_shard(tmp_path, "b.parquet", (make_sample(i) for i in range(3)))
    assert first.sha256 == second.sha256


def test_nothing_appears_when_writing_fails(tmp_path: Path) -> None:
    def samples():
        yield make_sample(0)
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        write_shard(tmp_path, "a.parquet", samples(), row_group_size=1)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_target_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(UserError, match=r"cannot write .*file/a\.parquet"):
        write_shard(tmp_path, "file/a.parquet", [make_sample(0)])


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.parquet, row group 2: no such file"):
        read_row_group(str(tmp_path / "gone.parquet"), 2, ALL)


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    info = write_shard(tmp_path, "a.parquet", [make_sample(0)])
    os.truncate(tmp_path / "a.parquet", info.bytes // 2)
    with pytest.raises(UserError, match=r"a\.parquet, row group 0: not readable"):
        read_row_group(str(tmp_path / "a.parquet"), 0, ALL)


def test_one_flipped_bit_is_found_at_reading(tmp_path: Path) -> None:
    sample = make_sample(0)
    write_shard(tmp_path, "a.parquet", [sample])
    path = tmp_path / "a.parquet"
    content = bytearray(path.read_bytes())
    position = content.find(sample.cameras[0].jpeg) + len(sample.cameras[0].jpeg) // 2
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet, row group 0: not readable"):
        read_row_group(str(path), 0, ["cameras"])


def test_sample_digest_sees_every_field() -> None:
    sample = make_sample(1)
    changed = [
        dataclasses.replace(sample, token="other"),
        dataclasses.replace(sample, timestamp=sample.timestamp + 1),
        dataclasses.replace(sample, cameras=sample.cameras[:1]),
        dataclasses.replace(sample, global_from_ego=sample.global_from_ego + 1e-12),
        dataclasses.replace(sample, boxes=dataclasses.replace(sample.boxes, center=sample.boxes.center + 1e-9)),
        dataclasses.replace(sample, lidars=[dataclasses.replace(sample.lidars[0], time_lag=0.5)]),
    ]
    digests = {sample_digest(s) for s in (sample, *changed)}
    assert len(digests) == len(changed) + 1
    assert sample_digest(make_sample(1)) == sample_digest(sample)


def test_content_digest_depends_on_split_and_order() -> None:
    a, b = b"a" * 32, b"b" * 32
    digests = [
        content_digest([("train", [a, b])]),
        content_digest([("train", [b, a])]),
        content_digest([("val", [a, b])]),
        content_digest([("train", [a]), ("val", [b])]),
    ]
    assert len(set(digests)) == 4


def _table(megabytes: float) -> pa.Table:
    return pa.table({"x": pa.array(bytes(int(megabytes * 1e6)), pa.uint8())})


def test_cache_is_bounded_in_bytes_and_drops_the_oldest() -> None:
    cache, loads = RowGroupCache(max_bytes=2_500_000), []

    def get(key: str, size: float = 1.0) -> None:
        cache.get(key, lambda: loads.append(key) or _table(size))

    for key in ("a", "b", "a", "c", "a", "b"):  # c displaces b, the least recently used
        get(key)
    assert loads == ["a", "b", "c", "b"]
    assert cache.nbytes <= 2_500_000
    get("huge", 5.0)
    assert cache.nbytes <= 2_500_000


def test_cache_holds_a_window_beyond_its_bytes_but_not_beyond_those_of_a_window() -> None:
    cache, table = RowGroupCache(max_bytes=2_500_000, window_bytes=6_500_000), pa.table({"x": np.zeros(125_000)})

    def held_after(keys: int) -> int:
        cache.clear()
        for key in range(keys):
            cache.get(key, lambda: table)
        return len(cache)

    assert held_after(5) == 2
    cache.hold(4)
    cache.hold(3)  # of another reader: the larger one counts
    assert held_after(4) == 4
    assert held_after(5) == 4
    cache.hold(9)
    assert held_after(9) == 6


def test_cache_loads_once_for_many_threads_and_does_not_keep_errors() -> None:
    cache, loads, barrier = RowGroupCache(max_bytes=10**7), [], threading.Barrier(4)
    release = threading.Event()

    def load() -> pa.Table:
        loads.append(1)
        release.wait(5)
        return _table(0.1)

    def work() -> None:
        barrier.wait()
        cache.get("k", load)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    barrier.wait()
    release.set()
    for thread in threads:
        thread.join()
    assert len(loads) == 1

    def broken() -> pa.Table:
        raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
        cache.get("bad", broken)
    assert cache.get("bad", lambda: _table(0.1)).num_rows == 100_000
