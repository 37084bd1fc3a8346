"""Sampled orders through a real Ray Data execution: an adaptive one, and one of many rows, against the local stream."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.sampling import ClassBalancedSampling, ImageWeightsSampling, SamplingConfig, ShuffledSampling
from sensorlab.data.stream import PrefetchedStream, StreamConfig, StreamSpec
from sensorlab.data.subset import spread_fraction

# The toys are shared with the unit tests; Ray workers import them, and this module, too.
SEARCH_PATH = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit" / "data")]
sys.path[:0] = SEARCH_PATH
from stream_toys import ToyTask, toy_split  # noqa: E402

pytestmark = pytest.mark.ray

SCORES: list[Mapping[str, float]] = [{}, {"car": 0.9, "bus": 0.1}]
WEIGHTS = ImageWeightsSampling(aspect_groups=True)
Batches = dict[tuple[int, int], dict[str, bytes]]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    import ray

    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(SEARCH_PATH)}}
    ray.init(address="local", num_cpus=2, include_dashboard=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    classes = {row: ["car"] * (1 + row % 3) + ["bus"] * (row % 4 == 0) for row in range(23)}
    return toy_split(tmp_path_factory.mktemp("toys"), classes=classes, portrait=range(0, 23, 3))


class PointTask(ToyTask):
    """Without images, so that samples of any aspect ratio fit into one batch."""

    def transform(self, *args: Any) -> dict[str, Any]:
        return {name: value for name, value in super().transform(*args).items() if name != "image"}


def make_spec(split: Split, sampling: SamplingConfig, **config: Any) -> StreamSpec:
    return StreamSpec(split, ToyTask(), 6, 3, True, StreamConfig(**config), sampling=sampling)


def read(stream: PrefetchedStream, start: tuple[int, int] = (0, 0)) -> Batches:
    """Both epochs from ``start`` on, each with its scores."""
    batches: Batches = {}
    for epoch in range(start[0], 2):
        first = start[1] if epoch == start[0] else 0
        for number, batch in enumerate(stream.batches(epoch, first, SCORES[epoch]), first):
            batches[epoch, number] = {name: _bytes(tensor) for name, tensor in batch.items()}
    stream.close()
    return batches


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes() + str((tensor.dtype, tensor.shape)).encode()


@pytest.mark.parametrize("where", ["worker", "task"])
@pytest.mark.parametrize("world", [1, 2])
def test_an_adaptive_order_gives_the_bytes_of_the_local_stream(
    ray_cluster: None, split: Split, world: int, where: str
) -> None:
    from sensorlab.data.ray_stream import RayStream

    spec = make_spec(split, WEIGHTS, transform_in=where, batches_per_task=2)
    with ThreadPoolExecutor(world) as pool:
        received = list(pool.map(lambda rank: read(RayStream(spec, None, rank, world, end_epoch=2)), range(world)))
    assert sorted(received[0]) == [(epoch, batch) for epoch in range(2) for batch in range(3)]
    for rank in range(world):
        assert received[rank] == read(LocalStream(spec, rank, world, end_epoch=2))


def test_an_adaptive_stream_resumes_anywhere_with_the_scores_of_the_epoch(ray_cluster: None, split: Split) -> None:
    from sensorlab.data.ray_stream import RayStream

    spec = make_spec(split, WEIGHTS)
    whole = read(LocalStream(spec, 1, 2))
    for start in [(0, 2), (1, 0), (1, 1)]:
        tail = read(RayStream(spec, None, 1, 2, start=start, end_epoch=2), start)
        assert tail == {cursor: batch for cursor, batch in whole.items() if cursor >= start}


def test_an_adaptive_epoch_starts_soon(ray_cluster: None, split: Split) -> None:
    """An execution of its own for every epoch: nothing is made ahead, so its start is waited for."""
    from sensorlab.data.ray_stream import RayStream

    spec = make_spec(split, WEIGHTS)
    stream = RayStream(spec, None, end_epoch=4)
    waits = []
    for epoch in range(4):
        batches = stream.batches(epoch, scores=SCORES[epoch % 2])
        started = time.monotonic()
        next(batches)
        waits.append(time.monotonic() - started)
        list(batches)
    stream.close()
    assert max(waits[1:]) < 3.0, waits


def test_a_class_balanced_stream_is_one_dataset_as_ever(ray_cluster: None, split: Split) -> None:
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    spec = make_spec(split, ClassBalancedSampling(aspect_groups=True))
    shards = ray_dataset(spec, 2, end_epoch=2).streaming_split(2, equal=True)
    with ThreadPoolExecutor(2) as pool:
        streams = [RayStream(spec, shard, rank, 2, end_epoch=2) for rank, shard in enumerate(shards)]
        received = list(pool.map(read, streams))
    assert received == [read(LocalStream(spec, rank, 2, end_epoch=2)) for rank in range(2)]


@pytest.mark.parametrize("sampling", [ShuffledSampling(aspect_groups=True), ClassBalancedSampling(aspect_groups=True)])
def test_a_fraction_gives_the_bytes_of_the_local_stream(
    ray_cluster: None, split: Split, sampling: SamplingConfig
) -> None:
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    spec = make_spec(spread_fraction(split, 0.6), sampling, last_batch="pad")
    received = read(RayStream(spec, ray_dataset(spec, 1, end_epoch=2).iterator(), end_epoch=2))
    assert received == read(LocalStream(spec, end_epoch=2))
    assert received != read(LocalStream(make_spec(split, sampling, last_batch="pad"), end_epoch=2))


def test_an_adaptive_stream_takes_no_dataset(ray_cluster: None, split: Split) -> None:
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    spec = make_spec(split, WEIGHTS)
    with pytest.raises(ValueError, match="no dataset can be made before its epoch"):
        RayStream(spec, ray_dataset(spec, 1).iterator())


@pytest.mark.parametrize("world", [1, 2])
def test_a_stream_without_a_dataset_makes_its_own_piece_by_piece(
    ray_cluster: None, split: Split, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of three batches end in the middle of epochs of four, and go on across their border."""
    from sensorlab.data import ray_stream

    monkeypatch.setattr(ray_stream, "PIECE_TASKS", 3)
    spec = make_spec(split, ClassBalancedSampling(aspect_groups=True), batches_per_task=1)
    assert spec.plan.batches_per_epoch == 4
    for rank in range(world):
        whole = read(LocalStream(spec, rank, world, end_epoch=2))
        for start in [(0, 0), (1, 1)]:
            stream = ray_stream.RayStream(spec, None, rank, world, start=start, end_epoch=2)
            assert read(stream, start) == {cursor: batch for cursor, batch in whole.items() if cursor >= start}
    evaluation = StreamSpec(split, PointTask(), 2, 3, False, StreamConfig(batches_per_task=1))
    stream, local = ray_stream.RayStream(evaluation, None, 0, 2), LocalStream(evaluation, 0, 2)
    for _ in range(2):
        expected = [batch["index"].tolist() for batch in local.batches(0)]
        assert [batch["index"].tolist() for batch in stream.batches(0)] == expected


def test_the_pieces_of_all_workers_share_the_tasks_and_the_object_store(ray_cluster: None, split: Split) -> None:
    from sensorlab.data.ray_stream import ray_dataset

    spec = make_spec(split, WEIGHTS, tasks=4, task_cpus=0.25)
    shares = [ray_dataset(spec, 6, rank=rank).context.override_object_store_memory_limit_fraction for rank in range(6)]
    assert sum(shares) == pytest.approx(0.5)
    assert ray_dataset(spec, 6).context.override_object_store_memory_limit_fraction == 0.5


@pytest.mark.slow
def test_workers_of_ray_train_make_their_own_datasets(ray_cluster: None, split: Split, tmp_path: Path) -> None:
    """Two processes of a real TorchTrainer, whose training dataset is none of its own; the validation split's is."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from sensorlab.data.ray_stream import ray_dataset, train_data_config

    train = make_spec(split, WEIGHTS, batches_per_task=1, tasks=2, task_cpus=0.0)
    val = StreamSpec(split, PointTask(), 2, 3, False)

    def train_worker(out: str) -> None:
        import ray.train

        from sensorlab.data.ray_stream import RayStream

        rank = ray.train.get_context().get_world_rank()
        train_stream = RayStream(train, None, rank, 2, end_epoch=2)
        val_stream = RayStream(val, ray.train.get_dataset_shard("val"), rank, 2)
        log = []
        for epoch in range(2):
            for batch in train_stream.batches(epoch, scores=SCORES[epoch]):
                log.append(["train", epoch, *batch["index"].tolist()])
            log.append(["val", epoch, len(list(val_stream.batches(0)))])
        train_stream.close()
        val_stream.close()
        Path(out, f"rank-{rank}.json").write_text(json.dumps(log))

    TorchTrainer(
        lambda config: train_worker(config["out"]),
        train_loop_config={"out": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="sampled", storage_path=str(tmp_path / "ray")),
        datasets={"val": lambda: ray_dataset(val, 2)},
        dataset_config=train_data_config(),
    ).fit()
    for rank in range(2):
        log = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        expected = [
            ["train", epoch, *train.plan.worker_batch(epoch, batch, rank, 2, SCORES[epoch]).rows.tolist()]
            for epoch, batch in train.plan.cursors((0, 0), 2)
        ]
        assert [line for line in log if line[0] == "train"] == expected
        assert [line for line in log if line[0] == "val"] == [["val", 0, 12], ["val", 1, 12]]
