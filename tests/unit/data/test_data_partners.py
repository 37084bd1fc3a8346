"""Samples that are composed with others: who they are, and that every stream delivers them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stream_toys import ToyTask, toy_split

from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.stream import StreamConfig, StreamSpec


class MosaicTask(ToyTask):
    num_partners = 3


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return toy_split(tmp_path_factory.mktemp("toys"))


def make_spec(split: Split, global_batch: int = 6, training: bool = True, **config: Any) -> StreamSpec:
    return StreamSpec(split, MosaicTask(), global_batch, 3, training, StreamConfig(**{"window_row_groups": 2} | config))


def partners_of(spec: StreamSpec, epoch: int, world: int = 1) -> list[np.ndarray]:
    """(B, 3) rows of every global batch."""
    batches = range(spec.plan.batches_per_epoch)
    return [
        np.concatenate([spec.plan.worker_batch(epoch, batch, rank, world).partners for rank in range(world)])
        for batch in batches
    ]


@pytest.mark.parametrize("world", [2, 3])
def test_partners_do_not_depend_on_the_workers(split: Split, world: int) -> None:
    np.testing.assert_array_equal(partners_of(make_spec(split), 1), partners_of(make_spec(split), 1, world))


def test_partners_come_from_the_window_of_their_sample(split: Split) -> None:
    spec = make_spec(split)
    window = max(2 * int(split.row_groups[:, 2].max()), 6)
    order = spec.plan.epoch_order(0)
    for batch, rows in enumerate(partners_of(spec, 0)):
        start = batch * 6 // window * window
        assert set(rows.ravel()) <= set(order[start : start + window])


def test_partners_change_with_batch_epoch_and_seed(split: Split) -> None:
    spec = make_spec(split)
    first = np.concatenate(partners_of(spec, 0))
    other_seed = StreamSpec(split, MosaicTask(), 6, 4, True, spec.config)
    assert not np.array_equal(first, np.concatenate(partners_of(spec, 1)))
    assert not np.array_equal(first, np.concatenate(partners_of(other_seed, 0)))
    assert len(np.unique(first, axis=0)) == len(first)


def test_only_composed_plans_have_another_fingerprint(split: Split) -> None:
    plain = StreamSpec(split, ToyTask(), 6, 3, True, StreamConfig(window_row_groups=2))
    assert make_spec(split).plan.fingerprint != plain.plan.fingerprint
    evaluation = [StreamSpec(split, task, 6, 3, False) for task in (MosaicTask(), ToyTask())]
    assert evaluation[0].plan.fingerprint == evaluation[1].plan.fingerprint


def read(spec: StreamSpec, start: int = 0, rank: int = 0, world: int = 1) -> list[dict[str, torch.Tensor]]:
    stream = LocalStream(spec, rank, world)
    try:
        return list(stream.batches(1, start))
    finally:
        stream.close()


def test_a_stream_composes_with_the_partners_of_the_plan(split: Split) -> None:
    spec = make_spec(split)
    timestamps = split.read(range(split.num_samples), ()).column("timestamp").to_numpy()
    batches = read(spec)
    for batch, rows in zip(batches, partners_of(spec, 1), strict=True):
        np.testing.assert_array_equal(batch["partners"].numpy(), timestamps[rows])
    for late, whole in zip(read(spec, 2), batches[2:], strict=True):
        assert all(torch.equal(late[name], whole[name]) for name in whole)
    halves = [read(spec, rank=rank, world=2) for rank in range(2)]
    for index, whole in enumerate(batches):
        joint = torch.cat([half[index]["partners"] for half in halves])
        assert torch.equal(joint, whole["partners"])


def test_evaluation_composes_nothing(split: Split) -> None:
    assert all("partners" not in batch for batch in read(make_spec(split, training=False)))


def test_a_sample_stands_in_for_a_partner_that_cannot_be_read(tmp_path: Path) -> None:
    split = toy_split(tmp_path)
    spec = make_spec(split, max_corrupt_fraction=1.0)
    job = spec.plan.worker_batch(0, 0)
    stranger = next(row for row in job.partners.ravel().tolist() if row not in job.rows)
    readable = [row for row in job.reads.tolist() if row != stranger]
    from sensorlab.data.payload import CorruptSample

    table = split.read(readable, ToyTask.columns)
    arrays, corrupt = spec.maker.make(job, table, (CorruptSample(stranger, "there", "is broken"),))
    assert [sample.row for sample in corrupt] == [stranger]
    timestamps = split.read(range(split.num_samples), ()).column("timestamp").to_numpy()
    own = np.broadcast_to(job.rows[:, None], job.partners.shape)
    expected = timestamps[np.where(job.partners == stranger, own, job.partners)]
    np.testing.assert_array_equal(arrays["partners"], expected)


def test_repeated_partners_are_read_once(split: Split) -> None:
    reads: Sequence[int] = make_spec(split).plan.worker_batch(0, 0).reads.tolist()
    assert len(reads) == len(set(reads))
