"""Parts of a split, and training without augmentation."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_toys import ToyTask, toy_split

from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.sampling import (
    ClassBalancedSampling,
    ImageWeightsSampling,
    RepeatFactorSampling,
    SamplingConfig,
    ShuffledSampling,
)
from sensorlab.data.sampling_tables import class_table
from sensorlab.data.stream import StreamConfig, StreamSpec
from sensorlab.data.subset import Unaugmented, first_rows, spread_fraction


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    classes = {row: ["car"] for row in range(23)} | {5: ["car", "bus"]}
    return toy_split(tmp_path_factory.mktemp("toys"), classes=classes)  # 23 samples; row groups of 4, 4, 4, 1, 4, 4, 2


def spec(split: Split, training: bool, task: Any = None, **more: Any) -> StreamSpec:
    return StreamSpec(split, task or ToyTask(), 3, 7, training, StreamConfig(last_batch="pad"), **more)


def rows_of(spec: StreamSpec, epoch: int) -> list[int]:
    stream = LocalStream(spec)
    batches = list(stream.batches(epoch))
    stream.close()
    return [int(row) for batch in batches for row in batch["index"][~batch["is_filler"]]]


@pytest.mark.parametrize("count", [1, 3, 4, 6, 12, 13, 14, 23])
def test_the_first_samples_and_no_others_are_read(split: Split, count: int) -> None:
    part = first_rows(split, count)
    assert part.num_samples == count
    assert rows_of(spec(part, training=False), 0) == list(range(count))
    for epoch in range(2):
        assert set(rows_of(spec(part, training=True), epoch)) == set(range(count))
    whole, read = split.read(np.arange(count), ["cameras"]), part.read(np.arange(count), ["cameras"])
    assert read.equals(whole)
    with pytest.raises(IndexError):
        part.read([count])


def test_a_split_with_fewer_samples_stays_whole_and_is_not_changed(split: Split) -> None:
    before = split.row_groups.copy()
    assert first_rows(split, 24).num_samples == first_rows(split, 23).num_samples == 23
    first_rows(split, 2)
    assert np.array_equal(split.row_groups, before)


def test_a_part_has_a_plan_of_its_own(split: Split) -> None:
    fingerprints = {spec(first_rows(split, count), training=True).plan.fingerprint for count in (5, 6, 23)}
    assert len(fingerprints) == 3
    assert spec(split, training=True).plan.fingerprint in fingerprints  # all samples are the split itself


def test_the_classes_of_a_part_are_those_of_its_samples(split: Split) -> None:
    assert set(class_table(first_rows(split, 5), ToyTask()).classes) == {"car"}
    assert set(class_table(first_rows(split, 6), ToyTask()).classes) == {"bus", "car"}
    rows = rows_of(spec(first_rows(split, 6), True, sampling=ClassBalancedSampling()), 0)
    assert set(rows) <= set(range(6))
    assert rows.count(5) > 1


def tokens(split: Split) -> set[str]:
    return set(split.read(np.arange(split.num_samples), []).column("token").to_pylist())


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.1, 2), (0.5, 12), (0.61, 14), (0.99, 23), (1.0, 23)])
def test_a_fraction_is_a_split_of_its_own(split: Split, fraction: float, count: int) -> None:
    part = spread_fraction(split, fraction)
    assert part.num_samples == len(tokens(part)) == count
    assert tokens(part) <= tokens(split)
    for epoch in range(2):
        assert sorted(rows_of(spec(part, training=True), epoch)[:count]) == list(range(count))
    whole = spec(split, training=True).plan.fingerprint
    assert (spec(part, training=True).plan.fingerprint == whole) == (count == 23)


def test_a_larger_fraction_contains_a_smaller_one(split: Split) -> None:
    parts = [tokens(spread_fraction(split, fraction)) for fraction in np.linspace(0.02, 1.0, 50)]
    for smaller, larger in itertools.pairwise(parts):
        assert smaller <= larger
    assert len({len(part) for part in parts}) == 23  # of any size


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("digest", ["a", "b", "c"])
def test_a_fraction_comes_from_all_over_the_split(fraction: float, digest: str) -> None:
    groups = np.array([(0, group, 8) for group in range(1000)], np.int64)
    chosen = spread_fraction(Split("train", digest, ("shard",), groups), fraction).row_groups[:, 1]
    gaps = np.diff(chosen)
    assert len(chosen) == round(1000 * fraction)
    assert len(set(gaps.tolist())) <= 3
    assert max(gaps.max(), chosen[0], 1000 - chosen[-1]) <= 3 / fraction
    other = spread_fraction(Split("train", "other", ("shard",), groups), fraction).row_groups[:, 1]
    assert not np.array_equal(chosen, other)


@pytest.mark.parametrize(
    "sampling",
    [ShuffledSampling(), ClassBalancedSampling(), RepeatFactorSampling(threshold=0.5), ImageWeightsSampling()],
)
def test_every_policy_draws_from_the_fraction_alone(split: Split, sampling: SamplingConfig) -> None:
    part = spread_fraction(split, 0.5)
    sampled = spec(part, training=True, sampling=sampling)
    stream = LocalStream(sampled)
    seen = {int(time) for batch in stream.batches(0) for time in batch["timestamp"]}
    stream.close()
    allowed = {int(token.removeprefix("token-")) for token in tokens(part)}
    assert seen <= allowed
    assert sampled.plan.samples_per_epoch <= 12 + 3 * (not isinstance(sampling, ShuffledSampling)) * 2
    if isinstance(sampling, ShuffledSampling):
        assert seen == allowed


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_a_fraction_is_one(split: Split, fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be in"):
        spread_fraction(split, fraction)


def test_without_augmentation_training_samples_are_those_of_evaluation(split: Split, tmp_path: Path) -> None:
    def arrays(training: bool, task: Any) -> dict[int, bytes]:
        stream = LocalStream(spec(first_rows(split, 6), training, task))
        batches = list(stream.batches(1))
        stream.close()
        return {int(b["index"][i]): b["noise"][i].numpy().tobytes() for b in batches for i in range(len(b["index"]))}

    evaluated = arrays(False, ToyTask())
    assert arrays(True, Unaugmented(ToyTask())) == evaluated
    assert arrays(True, ToyTask()) != evaluated
    sampled = spec(split, True, Unaugmented(ToyTask()), sampling=ClassBalancedSampling())
    assert rows_of(sampled, 0) == rows_of(spec(split, True, sampling=ClassBalancedSampling()), 0)
