"""Prepared datasets: opening, splits and reading rows by number."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from sample_factory import make_sample

from sensorlab.config import as_dict
from sensorlab.data import dataset as dataset_module
from sensorlab.data.dataset import Manifest, PreparedDataset, Sensors, SplitInfo
from sensorlab.data.schema import SCHEMA_VERSION, decode_table
from sensorlab.data.shards import ROW_GROUP_CACHE, read_row_group, write_shard
from sensorlab.errors import UserError


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    """11 training samples in two shards (row groups of 4, 4, 3 -> shard one has 7 rows) and 2 for validation."""
    ROW_GROUP_CACHE.clear()
    shards = {
        "train": [
            write_shard(tmp_path, "train/shard-00000.parquet", [make_sample(i) for i in range(7)], 4),
            write_shard(tmp_path, "train/shard-00001.parquet", [make_sample(i) for i in range(7, 11)], 4),
        ],
        "val": [write_shard(tmp_path, "val/shard-00000.parquet", [make_sample(i) for i in (20, 21)], 4)],
    }
    splits = {
        name: SplitInfo(num_samples=sum(s.num_samples for s in infos), scenes=("scene-a",), shards=tuple(infos))
        for name, infos in shards.items()
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tool_version="test",
        source={"kind": "test"},
        origin="nowhere",
        digest=f"digest of {tmp_path}",
        num_samples=13,
        num_boxes=39,
        sensors=Sensors(),
        classes={},
        splits=splits,
    )
    (tmp_path / "manifest.json").write_text(json.dumps(as_dict(manifest)))
    return PreparedDataset.open(tmp_path)


def tokens(table) -> list[str]:
    return table.column("token").to_pylist()


def test_split_layout(dataset: PreparedDataset) -> None:
    split = dataset.split("train")
    assert split.num_samples == 11
    assert split.row_groups.tolist() == [[0, 0, 4], [0, 1, 3], [1, 0, 4]]
    assert all(Path(shard).is_absolute() for shard in split.shards)


@pytest.mark.parametrize("rows", [[0], [10], [3, 4, 5], [10, 0, 5, 5, 4], list(range(11)), list(range(10, -1, -1)), []])
def test_rows_come_in_the_given_order(dataset: PreparedDataset, rows: list[int]) -> None:
    table = dataset.split("train").read(rows, ["lidars"])
    assert tokens(table) == [f"sample-{i}" for i in rows]
    assert table.column_names == ["token", "scene", "scene_token", "timestamp", "global_from_ego", "lidars"]
    for sample, row in zip(decode_table(table), rows, strict=True):
        np.testing.assert_array_equal(sample.lidars[0].points, make_sample(row).lidars[0].points)


def test_each_row_group_is_read_once(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def counting(path, group, columns):
        reads.append((Path(path).name, group))
        return read_row_group(path, group, columns)

    monkeypatch.setattr(dataset_module, "read_row_group", counting)
    split = dataset.split("train")
    split.read([0, 9, 1, 2, 8], ["boxes"])
    split.read([3, 10], ["boxes"])
    assert reads == [("shard-00000.parquet", 0), ("shard-00001.parquet", 0)]
    split.read([3], ["radars"])
    assert len(reads) == 3  # another projection is another reading


@pytest.mark.parametrize("row", [-1, 11])
def test_rows_outside_the_split(dataset: PreparedDataset, row: int) -> None:
    with pytest.raises(IndexError, match=r"0\.\.10"):
        dataset.split("train").read([row])


def test_split_is_small_and_survives_pickling(dataset: PreparedDataset) -> None:
    split = dataset.split("train")
    split.read(range(11))
    stored = pickle.dumps(split)
    assert len(stored) < 2000
    assert tokens(pickle.loads(stored).read([7])) == ["sample-7"]


def test_threads_read_the_same_rows(dataset: PreparedDataset) -> None:
    split, results = dataset.split("train"), []

    def work(seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, 11, 40)
        results.append(tokens(split.read(rows)) == [f"sample-{i}" for i in rows])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_unknown_split_lists_the_splits(dataset: PreparedDataset) -> None:
    with pytest.raises(UserError, match=r"no split 'test'; its splits are train, val"):
        dataset.split("test")


def test_unknown_column(dataset: PreparedDataset) -> None:
    with pytest.raises(UserError, match="unknown sample column 'images'"):
        dataset.split("val").read([0], ["images"])


def test_open_a_directory_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a prepared dataset.*sensorlab data prepare"):
        PreparedDataset.open(tmp_path)


def test_open_another_schema_version(dataset: PreparedDataset) -> None:
    file = dataset.path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        PreparedDataset.open(dataset.path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}'])
def test_open_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        PreparedDataset.open(tmp_path)


def test_damaged_shard_stops_the_reading(dataset: PreparedDataset) -> None:
    Path(dataset.split("val").shards[0]).write_bytes(b"PAR1 rubbish PAR1")
    with pytest.raises(UserError, match=r"val/shard-00000\.parquet, row group 0"):
        dataset.split("val").read([0])
