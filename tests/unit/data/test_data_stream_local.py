"""The local stream: content, cursors, look-ahead, corrupt samples."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from stream_toys import ToyTask, damage, toy_split

from sensorlab.data.batch import MisfitError
from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.stream import StreamConfig, StreamSpec, to_tensors
from sensorlab.errors import UserError


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return toy_split(tmp_path_factory.mktemp("toys"))  # 23 samples


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield

    def left() -> list[str]:
        return [thread.name for thread in set(threading.enumerate()) - before if "local-stream" in thread.name]

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and left():
        time.sleep(0.01)
    assert not left()


def make_spec(split: Split, training: bool = True, global_batch: int = 6, **config: Any) -> StreamSpec:
    return StreamSpec(split, ToyTask(), global_batch, 3, training, StreamConfig(**config))


def read(spec: StreamSpec, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> list[dict[str, torch.Tensor]]:
    stream = LocalStream(spec, rank, world)
    batches = list(stream.batches(epoch, start))
    stream.close()
    return batches


def assert_equal(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype, name
            assert torch.equal(one[name], other[name]), name


def by_sample(batches: list[dict[str, torch.Tensor]]) -> dict[int, bytes]:
    """What each sample became."""
    return {
        int(row): batch["image"][at].numpy().tobytes()
        + batch["noise"][at].numpy().tobytes()
        + bytes([batch["flip"][at]])
        for batch in batches
        for at, row in enumerate(batch["index"])
    }


def test_facts(split: Split) -> None:
    stream = LocalStream(make_spec(split))
    assert (stream.global_batch, stream.batches_per_epoch) == (6, 3)
    assert (stream.samples_per_epoch, stream.dropped_per_epoch) == (18, 5)
    padded = LocalStream(make_spec(split, last_batch="pad"))
    assert (padded.batches_per_epoch, padded.samples_per_epoch, padded.dropped_per_epoch) == (4, 24, 0)


def test_the_fingerprint_follows_the_row_groups_and_not_the_workers(split: Split, tmp_path: Path) -> None:
    """The same samples under the same digest in other row groups come in another order."""
    regrouped = toy_split(tmp_path, group=5)
    assert (regrouped.dataset_digest, regrouped.num_samples) == (split.dataset_digest, split.num_samples)
    fingerprint = LocalStream(make_spec(split)).fingerprint
    assert LocalStream(make_spec(regrouped)).fingerprint != fingerprint
    assert LocalStream(make_spec(split, threads=1, prefetch_batches=2), 1, 2).fingerprint == fingerprint


def test_every_sample_once_per_epoch_in_an_order_of_its_own(split: Split) -> None:
    spec = make_spec(split, global_batch=1)
    orders = [[int(batch["index"]) for batch in read(spec, epoch)] for epoch in range(3)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    other_seed = StreamSpec(split, ToyTask(), 1, 4, True)
    assert [int(batch["index"]) for batch in read(other_seed, 0)] != orders[0]


@pytest.mark.parametrize("training", [True, False])
def test_the_same_global_batches_for_1_2_and_3_workers(split: Split, training: bool) -> None:
    spec = make_spec(split, training)
    whole = read(spec, 1)
    for world in (2, 3):
        parts = [read(spec, 1, rank=rank, world=world) for rank in range(world)]
        joined = [
            {name: torch.cat([part[name] for part in slices]) for name in slices[0]}
            for slices in zip(*parts, strict=True)
        ]
        assert_equal(joined, whole)


def test_augmentation_depends_on_seed_epoch_and_sample_alone(split: Split) -> None:
    reference = by_sample(read(make_spec(split, global_batch=1), 2))
    for other in [
        make_spec(split, global_batch=6, last_batch="pad"),
        make_spec(split, global_batch=1, window_row_groups=1, threads=4),
    ]:
        assert by_sample(read(other, 2)) == reference
    assert by_sample(read(make_spec(split, global_batch=1), 3)) != reference
    assert by_sample(read(StreamSpec(split, ToyTask(), 1, 4, True), 2)) != reference


def test_threads_and_look_ahead_do_not_change_a_byte(split: Split) -> None:
    reference = read(make_spec(split, threads=1, prefetch_batches=1), 0)
    assert_equal(read(make_spec(split, threads=5, prefetch_batches=9), 0), reference)


@pytest.mark.parametrize("training", [True, False])
def test_any_cursor_gives_the_tail(split: Split, training: bool) -> None:
    spec = make_spec(split, training)
    whole = read(spec, 1)
    for start in range(len(whole) + 1):
        assert_equal(read(spec, 1, start), whole[start:])


class CountingSplit(Split):
    """Remembers every row that is read."""

    def read(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        READS.extend(int(row) for row in rows)
        return super().read(rows, columns)


READS: list[int] = []


def test_a_start_from_a_cursor_does_not_read_what_it_skips(split: Split) -> None:
    counting = CountingSplit(split.name, split.dataset_digest, split.shards, split.row_groups)
    spec = make_spec(counting)
    READS.clear()
    batches = read(spec, 1, 2)
    assert sorted(READS) == sorted(int(row) for batch in batches for row in batch["index"])
    assert len(READS) == 6


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_every_sample_once(split: Split, world: int) -> None:
    spec = make_spec(split, training=False)
    counted: list[int] = []
    for rank in range(world):
        for batch in read(spec, 0, rank=rank, world=world):
            counted += batch["index"][~batch["is_filler"]].tolist()
    assert sorted(counted) == list(range(23))


def test_evaluation_is_the_same_in_every_epoch_and_repeatable(split: Split) -> None:
    stream = LocalStream(make_spec(split, training=False))
    first = list(stream.batches(0))
    assert_equal(list(stream.batches(7)), first)
    assert_equal(list(stream.batches(7)), first)
    stream.close()


def test_no_threads_stay_behind_after_the_last_batch(split: Split) -> None:
    evaluation, training = LocalStream(make_spec(split, training=False)), LocalStream(make_spec(split), end_epoch=2)
    list(evaluation.batches(0))
    assert not [thread for thread in threading.enumerate() if "local-stream" in thread.name]
    for epoch in range(2):
        list(training.batches(epoch))
        assert any("local-stream" in thread.name for thread in threading.enumerate()) == (epoch == 0)


def test_leaving_early_and_taking_up_again(split: Split) -> None:
    spec = make_spec(split)
    stream = LocalStream(spec, end_epoch=2)
    expected = read(spec, 0) + read(spec, 1)
    head = [next(stream.batches(0))]
    rest = list(stream.batches(0, 1)) + list(stream.batches(1))
    assert_equal(head + rest, expected)
    stream.close()


def test_two_readers_at_once_are_refused(split: Split) -> None:
    stream = LocalStream(make_spec(split))
    one, other = stream.batches(0), stream.batches(1)
    next(one)
    next(other)
    with pytest.raises(RuntimeError, match="one reader"):
        next(one)
    stream.close()


def test_the_next_epoch_is_read_ahead_up_to_the_end_and_no_further(split: Split) -> None:
    counting = CountingSplit(split.name, split.dataset_digest, split.shards, split.row_groups)
    spec = make_spec(counting, prefetch_batches=4)
    READS.clear()
    stream = LocalStream(spec, end_epoch=2)
    batches = stream.batches(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(READS) < 30 and time.monotonic() < deadline:  # batch 0, and 4 ahead: the last two are of epoch 1
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(READS) == 30
    assert len([*batches, *stream.batches(1)]) == 5
    stream.close()
    assert len(READS) == 36


def test_tensors_can_be_written(split: Split) -> None:
    batch = read(make_spec(split), 0)[0]
    batch["image"] += 1
    frozen = np.arange(3)
    frozen.flags.writeable = False
    to_tensors({"x": frozen})["x"][0] = 5
    assert frozen[0] == 0
    shared = np.arange(3)
    to_tensors({"x": shared})["x"][0] = 5
    assert shared[0] == 5  # no copy when none is needed


def test_a_corrupt_sample_names_sample_shard_and_row(tmp_path: Path) -> None:
    stream = LocalStream(make_spec(toy_split(tmp_path, broken=(15,)), training=False))
    with pytest.raises(
        UserError,
        match=r"'token-15' \(row 15 of split 'train'; .*shard-00001\.parquet, row group 0, row 2.*data\.max_corrupt",
    ):
        list(stream.batches(0))


def test_a_damaged_row_group_is_found(tmp_path: Path) -> None:
    broken = toy_split(tmp_path)
    damage(broken.shards[0], 1)
    with pytest.raises(UserError, match=r"row \d+ of split 'train'.*shard-00000\.parquet.*not readable"):
        read(make_spec(broken), 0)
    tolerant = LocalStream(make_spec(broken, max_corrupt_fraction=0.5, last_batch="pad"))
    rows = torch.cat([batch["index"] for batch in tolerant.batches(0)]).tolist()
    bad = {sample.row for sample in tolerant.corrupt_samples}
    assert 0 < len(bad) <= 4  # one row group
    assert not bad & set(rows)
    tolerant.close()


def test_replacement_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    spec = make_spec(toy_split(tmp_path, broken=(2, 15)), max_corrupt_fraction=0.2, last_batch="pad")
    stream = LocalStream(spec)
    whole = list(stream.batches(0))
    assert sorted(sample.row for sample in stream.corrupt_samples) == [2, 15]
    assert "token-2" in stream.corrupt_samples[0].message + stream.corrupt_samples[1].message
    index = torch.cat([batch["index"] for batch in whole])
    assert not {2, 15} & set(index.tolist())
    assert len(index) == 24
    assert not torch.cat([batch["is_filler"] for batch in whole]).any()
    halves = [torch.cat([batch["index"] for batch in read(spec, 0, rank=rank, world=2)]) for rank in range(2)]
    assert torch.equal(torch.stack([half.reshape(-1, 3) for half in halves], 1).flatten(), index)
    # Listed once, however often it is met.
    list(stream.batches(1))
    assert len(stream.corrupt_samples) == 2
    stream.close()


def test_in_evaluation_the_replacement_never_counts(tmp_path: Path) -> None:
    spec = make_spec(toy_split(tmp_path, broken=(2, 15)), training=False, max_corrupt_fraction=0.2)
    counted = [row for batch in read(spec, 0) for row in batch["index"][~batch["is_filler"]].tolist()]
    assert sorted(counted) == sorted(set(range(23)) - {2, 15})


def test_more_corrupt_samples_than_allowed_stop_the_run(tmp_path: Path) -> None:
    spec = make_spec(toy_split(tmp_path, broken=(2, 8, 15)), global_batch=1, max_corrupt_fraction=0.1)
    stream = LocalStream(spec)
    with pytest.raises(
        UserError, match=r"3 of 23 samples are corrupt, more than data\.max_corrupt_fraction 0\.1 allows.*token-"
    ):
        list(stream.batches(0))
    stream.close()


def test_nothing_but_corrupt_samples_is_an_error_and_no_endless_search(tmp_path: Path) -> None:
    spec = make_spec(toy_split(tmp_path, (4,), broken=(0, 1, 2, 3)), global_batch=2, max_corrupt_fraction=1.0)
    with pytest.raises(UserError, match="none of 16 other samples"):
        read(spec, 0)


class BuggyTask(ToyTask):
    def transform(self, sample: Any, random: Any, training: bool) -> dict[str, np.ndarray]:
        raise KeyError("a bug in the task")


def test_a_bug_in_a_task_is_no_corrupt_sample(split: Split) -> None:
    spec = StreamSpec(split, BuggyTask(), 2, 0, True, StreamConfig(max_corrupt_fraction=1.0))
    with pytest.raises(KeyError, match="a bug in the task"):
        read(spec, 0)


class UniformTask(ToyTask):
    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        raise MisfitError(1, "is too wide")


def test_a_sample_that_does_not_fit_its_batch_is_named(split: Split) -> None:
    spec = StreamSpec(split, UniformTask(), 4, 0, False, StreamConfig(max_corrupt_fraction=1.0))
    with pytest.raises(UserError, match=r"sample 'token-1', row 1 of split 'train' is too wide"):
        read(spec, 0)


class NamesakeTask(ToyTask):
    def transform(self, sample: Any, random: Any, training: bool) -> dict[str, np.ndarray]:
        return {**super().transform(sample, random, training), "index": np.zeros(1)}


def test_a_task_cannot_take_the_names_of_the_stream(split: Split) -> None:
    with pytest.raises(TypeError, match="'index'"):
        read(StreamSpec(split, NamesakeTask(), 2, 0, True), 0)


class SlowTask(ToyTask):
    def transform(self, sample: Any, random: Any, training: bool) -> dict[str, np.ndarray]:
        time.sleep(0.6)
        return super().transform(sample, random, training)


def test_a_stall_is_an_error(split: Split) -> None:
    stream = LocalStream(StreamSpec(split, SlowTask(), 2, 0, True, StreamConfig(stall_timeout_s=0.3)))
    with pytest.raises(TimeoutError, match="waiting for epoch 0, batch 0"):
        next(stream.batches(0))
    stream.close()


def test_an_uneven_number_of_workers_is_refused_at_once(split: Split) -> None:
    with pytest.raises(UserError, match="6 samples does not divide by 4 workers"):
        LocalStream(make_spec(split), 0, 4)


def test_an_empty_split_is_named(split: Split) -> None:
    empty = Split("val", split.dataset_digest, (), np.zeros((0, 3), np.int64))
    with pytest.raises(UserError, match=r"'val'.*no samples"):
        LocalStream(make_spec(empty))
