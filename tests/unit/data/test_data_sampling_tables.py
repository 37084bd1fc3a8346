"""Tables of a split: what is counted, what is read for it, and what is said when it is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError
from stream_toys import ToyTask, toy_split

from sensorlab.data import sampling_tables
from sensorlab.data.dataset import Split
from sensorlab.data.order import ShuffledOrder
from sensorlab.data.sample import Sample
from sensorlab.data.sampling import (
    ClassBalancedSampling,
    ImageWeightsSampling,
    RepeatFactorSampling,
    SamplingConfig,
    ShuffledSampling,
    order_policy,
)
from sensorlab.data.sampling_policies import ClassBalancedOrder, GroupedOrder, ImageWeightsOrder, RepeatFactorOrder
from sensorlab.data.sampling_tables import ClassTable, aspect_groups, class_table
from sensorlab.data.shards import read_row_group
from sensorlab.data.subset import first_rows
from sensorlab.errors import UserError

CLASSES = {0: ["car", "car", "bus"], 5: ["bus"], 14: ["dog", "car"]}


@pytest.fixture(autouse=True)
def no_tables_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_tables, "_TABLES", sampling_tables._Tables())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The columns of every row group that is read for a table, and the bytes that came."""
    found: list[tuple[str, ...]] = []

    def read(path: str, group: int, columns: Sequence[str]) -> pa.Table:
        table = read_row_group(path, group, columns)
        assert table.nbytes < 2000  # without images and points; a toy JPEG alone has 600 bytes
        found.append(tuple(columns))
        return table

    monkeypatch.setattr(sampling_tables, "read_row_group", read)
    return found


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return toy_split(tmp_path_factory.mktemp("toys"), classes=CLASSES, portrait={3, 4, 20})


def test_class_table(split: Split, reads: list[tuple[str, ...]]) -> None:
    table = class_table(split, ToyTask())
    assert table.classes == ("bus", "car", "dog")
    assert (table.num_samples, split.num_samples) == (23, 23)
    entries = list(zip(table.rows.tolist(), table.labels.tolist(), table.counts.tolist(), strict=True))
    assert entries == [(0, 0, 1), (0, 1, 2), (5, 0, 1), (14, 1, 1), (14, 2, 1)]
    assert table.samples_per_class.tolist() == [2, 2, 1]
    assert table.objects_per_class.tolist() == [2, 3, 1]
    weighted = table.weighted_objects(np.array([1.0, 0.5, 0.25]))
    assert {row: value for row, value in enumerate(weighted.tolist()) if value} == {0: 2.0, 5: 1.0, 14: 0.75}
    assert len(reads) == len(split.row_groups)
    assert all("boxes" in columns and not {"cameras", "lidars"} & set(columns) for columns in reads)


def test_tables_of_a_part_end_where_it_does(split: Split) -> None:
    part = first_rows(split, 15)  # cuts the row groups 13 + 4 after 2
    table = class_table(part, ToyTask())
    assert (table.num_samples, table.rows.tolist()) == (15, [0, 0, 5, 14, 14])
    assert class_table(first_rows(split, 14), ToyTask()).rows.tolist() == [0, 0, 5]
    assert np.flatnonzero(aspect_groups(part).of_row == 0).tolist() == [3, 4]
    assert len(aspect_groups(part).of_row) == 15


class CarsOnly(ToyTask):
    def __init__(self, config: str) -> None:
        self.config = config

    def sample_classes(self, sample: Sample) -> Mapping[str, int]:
        return {"car": sample.boxes.category.count("car"), "nothing": 0}


def test_a_table_is_read_once_per_split_task_and_configuration(split: Split, reads: list[tuple[str, ...]]) -> None:
    groups = len(split.row_groups)
    first = class_table(split, ToyTask())
    again = Split(split.name, split.dataset_digest, split.shards, split.row_groups.copy())
    assert class_table(again, ToyTask()) is first
    assert len(reads) == groups
    cars = class_table(split, CarsOnly("a"))
    assert cars.classes == ("car",)  # a class that never occurs is none
    assert class_table(split, CarsOnly("a")) is cars
    assert class_table(split, CarsOnly("b")) is not cars
    assert len(reads) == 3 * groups


def test_digests_follow_the_content() -> None:
    base = [{"car": 1}, {}, {"bus": 2}]
    table = ClassTable.of(iter(base))
    assert repr(ClassTable.of(iter(base))) == repr(table)
    for other in ([{"car": 2}, {}, {"bus": 2}], [{"car": 1}, {"bus": 2}, {}], [{"van": 1}, {}, {"bus": 2}]):
        assert ClassTable.of(iter(other)).digest != table.digest
    assert repr(ClassTable.of(iter([*base, {}]))) != repr(table)


def test_aspect_groups_are_read_without_images(split: Split, reads: list[tuple[str, ...]]) -> None:
    groups = aspect_groups(split)
    assert np.flatnonzero(groups.of_row == 0).tolist() == [3, 4, 20]
    assert groups.sizes.tolist() == [3, 20]
    assert set(reads) == {("cameras.list.element.width", "cameras.list.element.height")}
    assert aspect_groups(split) is groups


def test_a_square_image_is_not_wider_than_high(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_toys.IMAGE", (12, 12))
    assert aspect_groups(toy_split(tmp_path, (4,))).of_row.tolist() == [0, 0, 0, 0]


def test_a_sample_without_an_image_has_no_aspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream_toys import toy_sample

    def blind(row: int, *options: Any) -> Sample:
        sample = toy_sample(row)
        if row == 6:
            sample.cameras.clear()
        return sample

    monkeypatch.setattr("stream_toys.toy_sample", blind)
    with pytest.raises(UserError, match=r"row 6 of split 'train' has no image.*aspect_groups=false"):
        aspect_groups(toy_split(tmp_path, (8,)))


def build(split: Split, sampling: SamplingConfig, global_batch: int = 2, pad: bool = False) -> object:
    return order_policy(sampling, split, ToyTask(), 7, global_batch, pad)


def test_configurations_become_policies(split: Split) -> None:
    table = class_table(split, ToyTask())
    assert build(split, ShuffledSampling()) == ShuffledOrder(7)
    assert repr(build(split, ClassBalancedSampling())) == repr(ClassBalancedOrder(table, 7))
    assert repr(build(split, RepeatFactorSampling(threshold=0.25))) == repr(RepeatFactorOrder(table, 0.25, 7))
    assert repr(build(split, ImageWeightsSampling())) == repr(ImageWeightsOrder(table, 7))
    grouped = build(split, ImageWeightsSampling(aspect_groups=True), pad=True)
    assert repr(grouped) == repr(GroupedOrder(ImageWeightsOrder(table, 7), aspect_groups(split), 2, True))


@pytest.mark.parametrize("sampling", [ClassBalancedSampling(), RepeatFactorSampling(), ImageWeightsSampling()])
def test_a_split_without_boxes_is_refused_by_those_that_need_them(tmp_path: Path, sampling: SamplingConfig) -> None:
    bare = toy_split(tmp_path, (6,))
    with pytest.raises(UserError, match=rf"data\.sampling\.name={sampling.name} .* 6 samples of split 'train'"):
        build(bare, sampling)
    assert build(bare, ShuffledSampling()) == ShuffledOrder(7)


def test_a_group_smaller_than_a_batch_would_never_be_seen(split: Split) -> None:
    with pytest.raises(UserError, match=r"'train' has 3 samples of one aspect ratio.*batch of 4.*last_batch=pad"):
        build(split, ShuffledSampling(aspect_groups=True), 4)
    build(split, ShuffledSampling(aspect_groups=True), 3)
    build(split, ShuffledSampling(aspect_groups=True), 4, pad=True)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    split = toy_split(tmp_path, (4,), classes={0: ["car"]})
    Path(split.shards[0]).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"shard-00000\.parquet"):
        class_table(split, ToyTask())


def test_the_name_chooses_the_configuration() -> None:
    adapter = TypeAdapter(SamplingConfig)
    parsed = adapter.validate_json('{"name": "repeat_factor", "threshold": 0.01, "aspect_groups": true}')
    assert parsed == RepeatFactorSampling(threshold=0.01, aspect_groups=True)
    for bad in (
        '{"name": "shuffled", "threshold": 0.01}',
        '{"name": "repeat_factor", "threshold": 0.0}',
        '{"name": "x"}',
    ):
        with pytest.raises(ValidationError):
            adapter.validate_json(bad)
