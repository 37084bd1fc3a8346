"""The parts below the streams: the ordered pipeline and the payload of a Ray block."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sensorlab.data.ordered import OrderedPrefetcher
from sensorlab.data.payload import (
    CorruptSample,
    decode_payload,
    encode_payload,
    pack_arrays,
    pack_table,
    unpack_arrays,
    unpack_table,
)
from sensorlab.data.plan import WorkerBatch

JOB = WorkerBatch(3, 14, 1, 2, np.array([4, 5]), np.array([False, True]), np.zeros((2, 0), np.int64))


def wait_until(condition: Callable[[], bool]) -> None:
    """Until it holds, and then long enough for what should not happen to happen."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)


def test_results_keep_the_order_of_the_source() -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))
        return number * number

    assert list(OrderedPrefetcher(range(20), slow_when_even, 4, 6, "test")) == [n * n for n in range(20)]


def test_no_more_than_the_bound_is_ahead() -> None:
    done: list[int] = []
    pipeline = OrderedPrefetcher(itertools.count(), lambda n: done.append(n) or n, 2, 3, "test")
    wait_until(lambda: len(done) >= 3)
    assert len(done) == 3
    assert next(pipeline) == 0
    wait_until(lambda: len(done) >= 4)
    assert len(done) == 4
    pipeline.close()
    assert list(pipeline) == []


def test_errors_come_at_their_place_and_end_the_iteration() -> None:
    def fail_at_two(number: int) -> int:
        if number == 2:
            raise LookupError("two")
        return number

    pipeline = OrderedPrefetcher(range(9), fail_at_two, 3, 9, "test")
    assert [next(pipeline), next(pipeline)] == [0, 1]
    with pytest.raises(LookupError, match="two"):
        next(pipeline)
    assert list(pipeline) == []


def test_an_error_of_the_source_is_raised_and_the_source_is_closed_in_its_own_thread() -> None:
    closed_in: list[str] = []

    def source() -> Iterator[int]:
        try:
            yield 1
            raise LookupError("source")
        finally:
            closed_in.append(threading.current_thread().name)

    pipeline = OrderedPrefetcher(source(), lambda n: n, 1, 1, "test")
    assert next(pipeline) == 1
    with pytest.raises(LookupError, match="source"):
        next(pipeline)
    assert closed_in == ["test-feed"]


def test_closing_early_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    pipeline = OrderedPrefetcher(source(), lambda n: n, 2, 2, "test")
    next(pipeline)
    pipeline.close()
    assert closed.wait(5)


def test_ready_waits_only_so_long() -> None:
    gate = threading.Event()
    pipeline = OrderedPrefetcher([1], lambda n: gate.wait(5) and n, 1, 1, "test")
    assert not pipeline.ready(0.05)
    gate.set()
    assert pipeline.ready(5)
    assert next(pipeline) == 1
    assert pipeline.ready(5)  # the end is known
    assert list(pipeline) == []


dtypes = st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes())
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))


@settings(max_examples=40)
@given(batch=st.dictionaries(st.text(min_size=1, max_size=5), arrays, max_size=4))
def test_packed_arrays_come_back(batch: dict[str, np.ndarray]) -> None:
    found = unpack_arrays(pack_arrays(batch))
    assert list(found) == list(batch)
    for name, array in batch.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_strided_arrays_are_packed_and_objects_refused() -> None:
    array = np.arange(24).reshape(4, 6)[::2, ::-3]
    assert (unpack_arrays(pack_arrays({"x": array}))["x"] == array).all()
    with pytest.raises(TypeError, match="'names'"):
        pack_arrays({"names": np.array(["a"])})


def test_payload_round_trip() -> None:
    corrupt = (CorruptSample(4, "shard, row group 1, row 0 in it", "cannot be used: ümlaut"),)
    table = pa.table({"token": ["a", "b"], "jpeg": pa.array([b"1", b"23"], pa.binary())})
    payload = decode_payload(encode_payload(JOB, "plan", "samples", pack_table(table.slice(1)), corrupt))
    assert (payload.epoch, payload.batch, payload.rank, payload.world_size) == (3, 14, 1, 2)
    assert (payload.plan, payload.kind, payload.corrupt) == ("plan", "samples", corrupt)
    assert unpack_table(payload.content).to_pylist() == [{"token": "b", "jpeg": b"23"}]


def test_a_block_with_more_than_one_batch_is_refused() -> None:
    row = encode_payload(JOB, "plan", "error", pa.py_buffer(b"x"))
    with pytest.raises(RuntimeError, match="this one holds 2"):
        decode_payload(pa.concat_tables([row, row]))
