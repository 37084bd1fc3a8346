"""The stream through a real Ray Data execution gives what the local stream gives."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.stream import StreamConfig, StreamSpec
from sensorlab.errors import UserError

# The toys are shared with the unit tests; Ray workers import them, and this module, too.
SEARCH_PATH = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit" / "data")]
sys.path[:0] = SEARCH_PATH
from stream_toys import ToyTask, damage, toy_split  # noqa: E402

pytestmark = pytest.mark.ray

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
    return toy_split(tmp_path_factory.mktemp("toys"))


def make_spec(
    split: Split, training: bool = True, global_batch: int = 6, task: object = None, **config: object
) -> StreamSpec:
    return StreamSpec(split, task or ToyTask(), global_batch, 3, training, StreamConfig(**config))


def as_bytes(batch: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() + str(tensor.dtype).encode() for name, tensor in batch.items()}


def collect_local(spec: StreamSpec, rank: int, world: int, start: tuple[int, int], end: int) -> Batches:
    stream = LocalStream(spec, rank, world, end_epoch=end)
    return read_epochs(stream, start, end)


def read_epochs(stream: object, start: tuple[int, int], end: int) -> Batches:
    batches: Batches = {}
    for epoch in range(start[0], end):
        first = start[1] if epoch == start[0] else 0
        for number, batch in enumerate(stream.batches(epoch, first), first):
            batches[epoch, number] = as_bytes(batch)
    stream.close()
    return batches


def collect_ray(spec: StreamSpec, world: int, start: tuple[int, int] = (0, 0), end: int = 1) -> list[Batches]:
    """What each of ``world`` workers receives; the workers are threads, the splitter and the tasks are Ray's."""
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    dataset = ray_dataset(spec, world, start, end)
    shards = dataset.streaming_split(world, equal=True) if world > 1 else [dataset.iterator()]
    with ThreadPoolExecutor(world) as pool:
        streams = [RayStream(spec, shard, rank, world, start, end) for rank, shard in enumerate(shards)]
        return list(pool.map(lambda stream: read_epochs(stream, start, end), streams))


@pytest.mark.parametrize(
    ("world", "where"), [(1, "worker"), (2, "worker"), (3, "worker"), (1, "task"), (2, "task"), (3, "task")]
)
def test_every_worker_receives_the_bytes_of_the_local_stream(
    ray_cluster: None, split: Split, world: int, where: str
) -> None:
    spec = make_spec(split, transform_in=where, batches_per_task=2)
    received = collect_ray(spec, world, end=2)
    assert sorted(received[0]) == [(e, b) for e in range(2) for b in range(3)]
    for rank in range(world):
        assert received[rank] == collect_local(spec, rank, world, (0, 0), 2)


class RecordingSplit(Split):
    """Writes down every row that is read, by whichever process."""

    def read(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        with open(Path(self.shards[0]).parent / "reads", "a") as log:
            log.write("".join(f"{row} " for row in rows))
        return super().read(rows, columns)


def test_start_from_a_cursor_gives_the_tail_and_reads_nothing_before_it(ray_cluster: None, tmp_path: Path) -> None:
    plain = toy_split(tmp_path)
    split = RecordingSplit(plain.name, plain.dataset_digest, plain.shards, plain.row_groups)
    spec = make_spec(split, batches_per_task=2)
    log = Path(plain.shards[0]).parent / "reads"
    whole = [collect_local(make_spec(plain), rank, 2, (0, 0), 3) for rank in range(2)]
    for start in [(0, 3), (1, 2)]:
        log.unlink(missing_ok=True)
        tail = collect_ray(spec, 2, start, 3)
        normal = spec.plan.normal_cursor(start)
        assert tail == [{key: value for key, value in batches.items() if key >= normal} for batches in whole]
        delivered = [row for cursor in spec.plan.cursors(start, 3) for row in spec.plan.worker_batch(*cursor).rows]
        assert sorted(map(int, log.read_text().split())) == sorted(delivered)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_every_sample_once_and_can_be_repeated(ray_cluster: None, split: Split, world: int) -> None:
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    spec = make_spec(split, training=False)
    dataset = ray_dataset(spec, world)
    shards = dataset.streaming_split(world, equal=True) if world > 1 else [dataset.iterator()]
    streams = [RayStream(spec, shard, rank, world) for rank, shard in enumerate(shards)]

    def counted(stream: RayStream) -> list[int]:
        return [
            int(row)
            for batch in stream.batches(next(epochs))
            for row, filler in zip(batch["index"], batch["is_filler"], strict=True)
            if not filler
        ]

    with ThreadPoolExecutor(world) as pool:
        epochs = itertools.count()
        for _ in range(2):
            rows = [row for part in pool.map(counted, streams) for row in part]
            assert sorted(rows) == list(range(split.num_samples))


def test_first_batch_of_the_next_epoch_is_there_already(ray_cluster: None, split: Split) -> None:
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    spec = make_spec(split)
    stream = RayStream(spec, ray_dataset(spec, 1, end_epoch=4).iterator(), end_epoch=4)
    waits = []
    for epoch in range(4):
        batches = stream.batches(epoch)
        started = time.monotonic()
        next(batches)
        waits.append(time.monotonic() - started)
        for _ in batches:
            time.sleep(0.05)  # a step
    stream.close()
    assert max(waits[1:]) < 0.3, waits


@pytest.mark.parametrize("where", ["worker", "task"])
def test_a_corrupt_sample_stops_with_a_user_error_that_names_it(ray_cluster: None, tmp_path: Path, where: str) -> None:
    spec = make_spec(toy_split(tmp_path, broken=(15,)), transform_in=where)
    with pytest.raises(
        UserError, match=r"token-15.*row 15 of split 'train'.*shard-00001\.parquet, row group 0, row 2"
    ) as raised:
        collect_ray(spec, 1, end=2)
    assert "RayTaskError" not in str(raised.value)


def test_a_damaged_shard_stops_with_a_user_error_that_names_it(ray_cluster: None, tmp_path: Path) -> None:
    split = toy_split(tmp_path)
    damage(split.shards[1], 0)
    with pytest.raises(UserError, match=r"shard-00001\.parquet"):
        collect_ray(make_spec(split), 1, end=1)


@pytest.mark.parametrize("where", ["worker", "task"])
def test_tolerated_corrupt_samples_are_replaced_alike_everywhere(ray_cluster: None, tmp_path: Path, where: str) -> None:
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    spec = make_spec(
        toy_split(tmp_path, broken=(2, 15)), transform_in=where, max_corrupt_fraction=0.1, last_batch="pad"
    )
    stream = RayStream(spec, ray_dataset(spec, 1).iterator())
    assert read_epochs(stream, (0, 0), 1) == collect_local(spec, 0, 1, (0, 0), 1)
    assert sorted(sample.row for sample in stream.corrupt_samples) == [2, 15]


class MosaicTask(ToyTask):
    num_partners = 3


@pytest.mark.parametrize("where", ["worker", "task"])
def test_partners_come_along(ray_cluster: None, split: Split, where: str) -> None:
    spec = make_spec(split, task=MosaicTask(), transform_in=where)
    received = collect_ray(spec, 2, start=(0, 1))
    assert received == [collect_local(spec, rank, 2, (0, 1), 1) for rank in range(2)]


class BuggyTask(ToyTask):
    def transform(self, sample: object, random: object, training: bool) -> dict[str, np.ndarray]:
        raise ZeroDivisionError("a bug in the task")


def test_a_bug_in_a_task_keeps_its_type_and_traceback(ray_cluster: None, split: Split) -> None:
    with pytest.raises(Exception, match="a bug in the task") as raised:
        collect_ray(make_spec(split, task=BuggyTask(), transform_in="task"), 1)
    assert "ZeroDivisionError" in str(raised.value) + repr(raised.value)


def test_a_stream_planned_otherwise_is_refused(ray_cluster: None, split: Split) -> None:
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    spec = make_spec(split)
    dataset = ray_dataset(spec, 1)
    with pytest.raises(RuntimeError, match="delivered epoch 0, batch 0, worker 0 of 1 of plan"):
        next(RayStream(replace(spec, seed=4), dataset.iterator()).batches(0))
    # The shards of the other rank: right plan, wrong worker.
    first, second = ray_dataset(spec, 2).streaming_split(2, equal=True)
    with ThreadPoolExecutor(2) as pool:
        swapped = [RayStream(spec, second, 0, 2), RayStream(spec, first, 1, 2)]
        for result in [pool.submit(read_epochs, stream, (0, 0), 1) for stream in swapped]:
            with pytest.raises(RuntimeError, match=r"worker . of 2"):
                result.result()


def test_a_training_stream_cannot_jump(ray_cluster: None, split: Split) -> None:
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    spec = make_spec(split)
    stream = RayStream(spec, ray_dataset(spec, 1, (0, 1), 2).iterator(), start=(0, 1), end_epoch=2)
    with pytest.raises(RuntimeError, match="asked for"):
        next(stream.batches(0))
    assert len(list(stream.batches(0, 1))) == 2
    stream.close()


def ray_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("iter_threaded", "ray-stream", "Prefetcher"))]


def test_closing_early_or_late_leaves_no_thread_at_work(ray_cluster: None, split: Split) -> None:
    """Ray ends the process with code 1 when a thread of an iteration still uses it in ``ray.shutdown()``."""
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    before = ray_threads()  # those of iterations that other tests broke off
    spec = make_spec(split, global_batch=1)
    stream = RayStream(spec, ray_dataset(spec, 1, end_epoch=3).iterator(), end_epoch=3)
    for epoch in range(3):
        list(stream.batches(epoch))
    stream.close()
    assert ray_threads() == before
    stream = RayStream(spec, ray_dataset(spec, 1, end_epoch=3).iterator(), end_epoch=3)
    next(stream.batches(0))
    stream.close()
    # Ray forgets one parked prefetcher thread when an iteration is broken off.
    assert ray_threads() in (before, [*before, "Prefetcher"])


def test_nothing_left_to_stream_is_a_user_error(ray_cluster: None, split: Split) -> None:
    from sensorlab.data.ray_stream import ray_dataset

    with pytest.raises(UserError, match="nothing to stream"):
        ray_dataset(make_spec(split), 1, (1, 3), 2)


@contextmanager
def all_cpus_taken() -> Iterator[None]:
    """As two training workers of one CPU each take them on a small machine."""
    import ray

    @ray.remote(num_cpus=2)
    class AllCpus:
        def held(self) -> bool:
            return True

    holder = AllCpus.remote()
    assert ray.get(holder.held.remote())
    try:
        yield
    finally:
        ray.kill(holder)


def test_tasks_run_when_no_cpu_is_free(ray_cluster: None, split: Split) -> None:
    with all_cpus_taken():
        assert len(collect_ray(make_spec(split), 1)[0]) == 3


def test_a_stall_is_an_error_that_says_what_is_missing(ray_cluster: None, split: Split) -> None:
    spec = make_spec(split, task_cpus=0.5, stall_timeout_s=2.0)
    with all_cpus_taken(), pytest.raises(TimeoutError, match=r"2 tasks of 0\.5 CPUs each; 0 CPUs are free"):
        collect_ray(spec, 1)
    # The feeder was left behind; with CPUs free again it gets its block, sees that nobody wants it and ends.
    deadline = time.monotonic() + 60
    while any(name != "Prefetcher" for name in ray_threads()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [name for name in ray_threads() if name != "Prefetcher"] == []


def test_reading_tasks_import_no_torch(ray_cluster: None, split: Split) -> None:
    """Decoding elsewhere means that a reading task starts in a fraction of a second."""
    import ray

    from sensorlab.data.ray_tasks import MakeBlocks

    spec = make_spec(split)
    work = MakeBlocks(spec.plan, spec.plan.fingerprint, 1, spec.maker.reader)

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"STREAM_TEST": "fresh process"}})
    def modules_of(work: MakeBlocks) -> list[str]:
        list(work(pa.table({"epoch": [0], "batch": [0], "rank": [0]})))
        return sorted(sys.modules)

    assert "torch" not in ray.get(modules_of.remote(work))


@pytest.mark.slow
def test_ray_train_workers_receive_their_slices_from_the_cursor(
    ray_cluster: None, split: Split, tmp_path: Path
) -> None:
    """Two processes of a real TorchTrainer; the datasets are functions, as after a restart."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from sensorlab.data.ray_stream import ray_dataset, train_data_config

    train, val = make_spec(split, batches_per_task=1), make_spec(split, training=False, batches_per_task=1)
    start, end = (0, 2), 2

    def train_worker(out: str) -> None:
        import ray.train

        from sensorlab.data.ray_stream import RayStream

        rank = ray.train.get_context().get_world_rank()
        shards = {name: ray.train.get_dataset_shard(name) for name in ("train", "val")}
        train_stream = RayStream(train, shards["train"], rank, 2, start, end)
        val_stream = RayStream(val, shards["val"], rank, 2)
        log = []
        for epoch in range(start[0], end):
            for batch in train_stream.batches(epoch, start[1] if epoch == start[0] else 0):
                log.append(["train", epoch, *batch["index"].tolist()])
            for batch in val_stream.batches(epoch):
                log.append(["val", epoch, *batch["index"][~batch["is_filler"]].tolist()])
        train_stream.close()
        val_stream.close()
        Path(out, f"rank-{rank}.json").write_text(json.dumps(log))

    TorchTrainer(
        lambda config: train_worker(config["out"]),
        train_loop_config={"out": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="stream", storage_path=str(tmp_path / "ray")),
        datasets={"train": lambda: ray_dataset(train, 2, start, end), "val": lambda: ray_dataset(val, 2)},
        dataset_config=train_data_config(),
    ).fit()
    logs = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for rank, log in enumerate(logs):
        expected = [
            ["train", epoch, *train.plan.worker_batch(epoch, batch, rank, 2).rows.tolist()]
            for epoch, batch in train.plan.cursors(start, end)
        ]
        assert [line for line in log if line[0] == "train"] == expected
    for epoch in range(end):
        counted = [row for log in logs for line in log if line[:2] == ["val", epoch] for row in line[2:]]
        assert sorted(counted) == list(range(split.num_samples))
