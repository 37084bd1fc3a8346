"""The Arrow schema: round trips, projections, views instead of copies, and damage that is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from sample_factory import make_sample

from sensorlab.data.sample import Sample
from sensorlab.data.schema import (
    META_COLUMNS,
    arrow_schema,
    decode_sample,
    decode_table,
    encode_sample,
    encode_table,
)
from sensorlab.data.shards import sample_digest
from sensorlab.errors import UserError


def assert_same(actual: Sample, expected: Sample) -> None:
    assert sample_digest(actual) == sample_digest(expected)
    np.testing.assert_array_equal(actual.global_from_ego, expected.global_from_ego)
    for left, right in zip(actual.cameras, expected.cameras, strict=True):
        assert left.jpeg == right.jpeg
        np.testing.assert_array_equal(left.intrinsics, right.intrinsics)
    for left, right in zip(actual.radars + actual.lidars, expected.radars + expected.lidars, strict=True):
        np.testing.assert_array_equal(left.points, right.points)
        assert left.points.dtype == np.float32
    np.testing.assert_array_equal(actual.boxes.velocity, expected.boxes.velocity)
    assert actual.boxes.attributes == expected.boxes.attributes


SAMPLES = [
    make_sample(0),
    make_sample(1, cameras=0),
    make_sample(2, radars=0, lidars=0),
    make_sample(3, boxes=0),
    make_sample(4, cameras=6, radars=5, lidars=3, boxes=20),
]


def test_table_round_trip() -> None:
    table = encode_table(SAMPLES)
    assert table.schema == arrow_schema()
    for actual, expected in zip(decode_table(table), SAMPLES, strict=True):
        assert_same(actual, expected)


def test_row_round_trip() -> None:
    for sample in SAMPLES:
        assert_same(decode_sample(encode_sample(sample)), sample)


def test_generic_arrow_conversion_agrees_with_the_fast_encoder() -> None:
    generic = pa.Table.from_pylist([encode_sample(sample) for sample in SAMPLES], schema=arrow_schema())
    # NaN velocities are unequal to themselves, so compare the decoded samples' bytes.
    assert [sample_digest(s) for s in decode_table(generic)] == [sample_digest(s) for s in SAMPLES]
    row = generic.slice(4, 1).to_pylist()[0]
    assert_same(decode_sample(row), SAMPLES[4])


def test_slices_and_chunks_decode_like_the_whole() -> None:
    table = encode_table(SAMPLES)
    pieces = pa.concat_tables([table.slice(3, 2), table.slice(0, 1), table.slice(2, 1)])
    for actual, index in zip(decode_table(pieces), [3, 4, 0, 2], strict=True):
        assert_same(actual, SAMPLES[index])


def test_projection_decodes_missing_modalities_as_empty() -> None:
    schema = arrow_schema(["radars"])
    assert set(schema.names) == {*META_COLUMNS, "radars"}
    (sample,) = decode_table(encode_table([SAMPLES[4]]).select(schema.names))
    assert len(sample.radars) == 5
    assert (sample.cameras, sample.lidars, len(sample.boxes)) == ([], [], 0)
    assert decode_sample({name: encode_sample(SAMPLES[4])[name] for name in META_COLUMNS}).cameras == []


def test_points_are_views_of_the_arrow_buffers() -> None:
    table = encode_table([SAMPLES[4]])
    values = table.column("lidars").chunk(0).flatten().field("points").flatten().to_numpy(zero_copy_only=True)
    (sample,) = decode_table(table)
    assert all(np.shares_memory(sweep.points, values) for sweep in sample.lidars)
    assert not sample.lidars[0].points.flags.writeable


def test_no_samples() -> None:
    assert decode_table(encode_table([])) == []


def test_unknown_column_is_named_with_the_valid_ones() -> None:
    with pytest.raises(UserError, match=r"unknown sample column 'lidar'.*lidars"):
        arrow_schema(["lidar"])


@pytest.mark.parametrize(("column", "path"), [("lidars", "lidars.points"), ("radars", "radars.points")])
def test_points_that_do_not_divide_into_fields(column: str, path: str) -> None:
    row = encode_sample(SAMPLES[0])
    row[column][0]["points"] = row[column][0]["points"][:-1]
    table = pa.Table.from_pylist([row], schema=arrow_schema())
    with pytest.raises(UserError, match=path):
        decode_table(table)


def test_matrix_of_wrong_length() -> None:
    row = encode_sample(SAMPLES[0])
    row["global_from_ego"] = row["global_from_ego"][:12]
    with pytest.raises(UserError, match=r"global_from_ego.*16 values"):
        decode_table(pa.Table.from_pylist([row], schema=arrow_schema()))


def test_encoding_refuses_points_of_the_wrong_shape() -> None:
    lidar = dataclasses.replace(SAMPLES[0].lidars[0], points=np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="LIDAR_0"):
        encode_sample(dataclasses.replace(SAMPLES[0], lidars=[lidar]))
