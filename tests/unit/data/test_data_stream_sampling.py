"""Streams whose order is sampled: classes, scores, aspect groups, the cap on an epoch, resuming."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from stream_toys import ToyTask, toy_split

from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.order import Scores, SequentialOrder, SplitFacts
from sensorlab.data.payload import CorruptSample, decode_payload, unpack_arrays
from sensorlab.data.ray_stream import makes_own_datasets
from sensorlab.data.ray_tasks import MakeBlocks
from sensorlab.data.sampling import (
    ClassBalancedSampling,
    ImageWeightsSampling,
    RepeatFactorSampling,
    SamplingConfig,
    ShuffledSampling,
)
from sensorlab.data.shards import RowGroupCache, read_row_group
from sensorlab.data.stream import StreamConfig, StreamSpec
from sensorlab.errors import UserError

CLASSES = {row: ["car"] * (1 + row % 3) + ["bus"] * (row % 4 == 0) for row in range(23)}
SCORES = [{}, {"car": 0.9, "bus": 0.1}, {"car": 0.2, "bus": 0.6}]


class PointTask(ToyTask):
    """Without images, so that samples of any aspect ratio fit into one batch."""

    def transform(self, *args: Any) -> dict[str, Any]:
        return {name: value for name, value in super().transform(*args).items() if name != "image"}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return toy_split(tmp_path_factory.mktemp("toys"), classes=CLASSES, portrait=range(0, 23, 3))


def make_spec(split: Split, sampling: SamplingConfig, global_batch: int = 6, **options: Any) -> StreamSpec:
    config = StreamConfig(**options.pop("config", {}))
    return StreamSpec(split, ToyTask(), global_batch, 3, True, config, sampling=sampling, **options)


WEIGHTS = ImageWeightsSampling(aspect_groups=True)


def rows_of(batches: Iterator[Mapping[str, torch.Tensor]]) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


@pytest.mark.parametrize("sampling", [WEIGHTS, ClassBalancedSampling(aspect_groups=True)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_of_one_shape_and_the_same_for_any_number_of_workers(
    split: Split, sampling: SamplingConfig, world: int
) -> None:
    """Stacking images of two shapes would fail."""
    spec = make_spec(split, sampling)
    whole = LocalStream(spec)
    parts = [LocalStream(spec, rank, world) for rank in range(world)]
    shapes = set()
    for epoch, scores in enumerate(SCORES):
        slices = [rows_of(part.batches(epoch, scores=scores)) for part in parts]
        for batch, *pieces in zip(whole.batches(epoch, scores=scores), *slices, strict=True):
            assert [row for piece in pieces for row in piece] == batch["index"].tolist()
            shapes.add(tuple(batch["image"].shape[1:3]))
    assert shapes == {(12, 16), (16, 12)}


def test_an_adaptive_stream_resumes_mid_epoch_with_the_scores_of_its_epoch(split: Split) -> None:
    spec = make_spec(split, WEIGHTS, 3)
    straight = LocalStream(spec, end_epoch=3)
    assert straight.is_adaptive
    whole = [list(straight.batches(epoch, scores=scores)) for epoch, scores in enumerate(SCORES)]
    for epoch, scores in enumerate(SCORES):
        for start in range(straight.batches_per_epoch + 1):
            resumed = LocalStream(spec, end_epoch=3)
            tail = list(resumed.batches(epoch, start, scores))
            resumed.close()
            assert len(tail) == len(whole[epoch]) - start
            for left, right in zip(tail, whole[epoch][start:], strict=True):
                assert left.keys() == right.keys()
                assert all(torch.equal(left[name], right[name]) for name in left)


def test_scores_change_an_adaptive_order_and_no_other(split: Split) -> None:
    adaptive, fixed = make_spec(split, WEIGHTS, 3), make_spec(split, ClassBalancedSampling(aspect_groups=True), 3)
    for spec, differs in [(adaptive, True), (fixed, False)]:
        stream = LocalStream(spec, end_epoch=9)
        assert stream.is_adaptive == differs
        orders = [rows_of(stream.batches(1, scores=scores)) for scores in SCORES]
        assert (orders[0] != orders[1] != orders[2]) == differs
        stream.close()


def test_other_scores_in_the_middle_of_an_epoch_are_not_mixed(split: Split) -> None:
    spec = make_spec(split, WEIGHTS, 3)
    stream = LocalStream(spec)
    next(stream.batches(1, scores=SCORES[1]))
    rest = rows_of(stream.batches(1, 1, SCORES[2]))
    expected = [spec.plan.worker_batch(1, batch, scores=SCORES[2]).rows.tolist() for batch in range(1, len(rest) + 1)]
    assert rest == expected
    stream.close()


def test_an_adaptive_order_is_not_read_ahead_of_its_epoch(split: Split) -> None:
    """Scores of the next epoch are not known; neither is any thread left waiting for them."""
    stream = LocalStream(make_spec(split, WEIGHTS, 3, config={"prefetch_batches": 9}), end_epoch=3)
    epoch = stream.batches(0, scores={})
    next(epoch)
    time.sleep(0.2)
    assert {key for key, _ in stream.plan._orders} == {0}
    list(epoch)
    assert not [thread for thread in threading.enumerate() if "local-stream" in thread.name]


def test_a_cap_ends_every_epoch_and_evaluation_has_none(split: Split) -> None:
    sampling = RepeatFactorSampling(threshold=0.5, aspect_groups=True)
    stream = LocalStream(make_spec(split, sampling, 3, max_batches=2), end_epoch=2)
    full = LocalStream(make_spec(split, sampling, 3))
    assert (stream.batches_per_epoch, stream.samples_per_epoch) == (2, 6)
    for epoch in range(2):
        expected = [full.plan.worker_batch(epoch, batch).rows.tolist() for batch in range(2)]
        assert rows_of(stream.batches(epoch)) == expected
    evaluation = StreamSpec(split, ToyTask(), 1, 3, False, max_batches=2, sampling=WEIGHTS)
    assert rows_of(LocalStream(evaluation).batches(0)) == [[row] for row in range(23)]


def test_a_split_without_boxes_says_which_policy_needs_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sampling\.name=image_weights draws samples by the classes"):
        LocalStream(make_spec(toy_split(tmp_path), ImageWeightsSampling()))


def test_workers_that_exchange_their_corrupt_samples_count_the_share_of_all(tmp_path: Path) -> None:
    """Two of 23 are allowed. Either worker meets fewer, and only together they know of the third."""
    broken = (2, 9, 14)  # in storage order even rows go to worker 0, odd ones to worker 1
    config = StreamConfig(max_corrupt_fraction=0.1)
    spec = StreamSpec(toy_split(tmp_path, broken=broken), ToyTask(), 2, 3, True, config, policy=SequentialOrder())
    streams = [LocalStream(spec, rank, 2) for rank in range(2)]
    for stream in streams:
        list(stream.batches(0))
    found = [sample for stream in streams for sample in stream.corrupt_samples]
    assert {sample.row for sample in found} == set(broken)
    assert max(len(stream.corrupt_samples) for stream in streams) < 3
    for stream in streams:
        with pytest.raises(UserError, match="3 of 23 samples are corrupt"):
            stream.note_corrupt(sorted(found, key=lambda sample: sample.row))
        assert sorted(sample.row for sample in stream.corrupt_samples) == [2, 9, 14]


def test_noting_a_corrupt_sample_twice_counts_it_once(split: Split) -> None:
    stream = LocalStream(make_spec(split, WEIGHTS, config={"max_corrupt_fraction": 0.05}))
    sample = CorruptSample(4, "shard, row group 1, row 0 in it", "sample 'token-4' cannot be used")
    stream.note_corrupt([sample, sample])
    stream.note_corrupt([sample])
    assert stream.corrupt_samples == [sample]


@pytest.mark.parametrize("window_bytes", [0, 1 << 30])
def test_a_large_window_is_held_so_that_its_row_groups_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window_bytes: int
) -> None:
    """160 samples, all of them one window, in 20 row groups of which the cache has room for 5 by itself."""
    split = toy_split(tmp_path, (160,), group=8)
    table = read_row_group(split.shards[0], 0, ("token", "cameras", "lidars"))
    cache = RowGroupCache(max_bytes=5 * table.get_total_buffer_size(), window_bytes=window_bytes)
    reads: list[int] = []

    def read(path: str, group: int, columns: Sequence[str]) -> pa.Table:
        reads.append(group)
        return read_row_group(path, group, columns)

    monkeypatch.setattr("sensorlab.data.dataset.ROW_GROUP_CACHE", cache)
    monkeypatch.setattr("sensorlab.data.local_stream.ROW_GROUP_CACHE", cache)
    monkeypatch.setattr("sensorlab.data.dataset.read_row_group", read)
    spec = StreamSpec(split, ToyTask(), 4, 3, True, StreamConfig(window_row_groups=20))
    assert len(rows_of(LocalStream(spec).batches(0))) == 40
    amplification = len(reads) * 8 / 160  # rows read for each that is used
    assert amplification == 1.0 if window_bytes else amplification > 3.0


class CountingOrder(SequentialOrder):
    """Remembers every order that is made."""

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        ORDERS.append(epoch)
        return super().order(facts, seed, epoch, scores)


ORDERS: list[int] = []


def test_tasks_of_a_process_make_the_order_of_an_epoch_once(split: Split) -> None:
    """Each task gets the plan by pickle, without the orders that others have made."""
    spec = StreamSpec(split, PointTask(), 2, 3, True, policy=CountingOrder())
    pickled = pickle.dumps(MakeBlocks(spec.plan, spec.plan.fingerprint, 1, spec.maker))
    ORDERS.clear()
    rows = []
    for batch in range(8):
        task = pickle.loads(pickled)
        blocks = task(pa.table({"epoch": [batch // 4], "batch": [batch % 4], "rank": [0]}))
        payloads = [decode_payload(block) for block in blocks]
        rows += [unpack_arrays(payload.content)["index"].tolist() for payload in payloads]
    assert rows == [[first, first + 1] for first in (0, 2, 4, 6)] * 2
    assert ORDERS == [0, 1]


def test_one_worker_or_an_adaptive_order_needs_no_dataset_from_outside(split: Split) -> None:
    adaptive, fixed = make_spec(split, WEIGHTS), make_spec(split, ShuffledSampling())
    evaluation = StreamSpec(split, ToyTask(), 6, 3, False)
    assert [makes_own_datasets(spec, 1) for spec in (adaptive, fixed, evaluation)] == [True, True, False]
    assert [makes_own_datasets(spec, 2) for spec in (adaptive, fixed, evaluation)] == [True, False, False]
