"""Streams side by side in a small object store: within their limits, nothing spilled, none waits for another."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sensorlab.cluster.preflight import Demand, capacity
from sensorlab.data.dataset import Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.stream import STREAMS_OF_A_RUN, StreamConfig, StreamSpec

SEARCH_PATH = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit" / "data")]
sys.path[:0] = SEARCH_PATH
from stream_toys import ToyTask, toy_split  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MB = 10**6
STORE = 250 * MB


class LargeTask(ToyTask):
    """1 MB a sample."""

    def transform(self, sample, rng, training):
        return super().transform(sample, rng, training) | {"large": np.full(MB // 4, sample.timestamp, np.float32)}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[list[dict[str, float]]]:
    import ray

    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(SEARCH_PATH)}}
    ray.init(address="local", num_cpus=1, include_dashboard=False, runtime_env=environment, object_store_memory=STORE)
    yield [node["Resources"] for node in ray.nodes()]
    ray.shutdown()


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return toy_split(tmp_path_factory.mktemp("toys"), (32, 32))


def make_spec(split: Split, training: bool, **config: object) -> StreamSpec:
    config = {"transform_in": "task", "stall_timeout_s": 60.0} | config
    return StreamSpec(split, LargeTask(), 2, 3, training, StreamConfig(**config))


def store_in_use() -> tuple[int, bool]:
    """(bytes, whether something has ever been spilled)."""
    import ray
    from ray._private.internal_api import memory_summary

    text = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    used = re.search(r"Plasma memory usage (\d+) MiB", text)
    assert used is not None
    return int(used[1]) * 2**20, "Spilled" in text


@pytest.mark.parametrize("limit", [None, 4 * MB])
def test_a_stream_runs_ahead_as_far_as_its_limit_allows(ray_cluster, split, limit):
    from sensorlab.data.ray_stream import RayStream, least_object_store

    spec = make_spec(split, True, object_store=limit)
    least = least_object_store(spec)
    assert least == pytest.approx(20 * 2 * MB, rel=0.01)  # 20 batches of 2 samples
    stream = RayStream(spec, None, end_epoch=3)
    next(iter(stream.batches(0)))
    used, still_since = 0, time.monotonic()
    while time.monotonic() < still_since + 4:  # nobody reads: it comes to rest
        time.sleep(0.2)
        now, _ = store_in_use()
        if now != used:
            used, still_since = now, time.monotonic()
    stream.close()
    if limit is None:
        assert used > 1.5 * least
    else:
        assert 4 * MB < used <= least


def run(split: Split, limit: int | None) -> dict[tuple[str, int, int], bytes]:
    """Two epochs with an evaluation after each, as a trial reads them."""
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    specs = {name: make_spec(split, name == "train", object_store=limit) for name in ("train", "val")}
    train = RayStream(specs["train"], None, end_epoch=2)
    val = RayStream(specs["val"], ray_dataset(specs["val"], 1).iterator())
    batches = read(train, val)
    for stream in (train, val):
        stream.close()
    return batches


def read(train, val) -> dict[tuple[str, int, int], bytes]:
    return {
        (name, epoch, number): b"".join(tensor.numpy().tobytes() for tensor in batch.values())
        for epoch in range(2)
        for name, stream in (("train", train), ("val", val))
        for number, batch in enumerate(stream.batches(epoch))
    }


def test_two_runs_at_a_time_spill_nothing_and_read_what_one_reads(ray_cluster, split):
    from sensorlab.data.ray_stream import least_object_store

    least = sum(least_object_store(make_spec(split, training)) for training in (True, False))
    fitting = capacity(Demand(1, 0.1, 0.0, 0.0, object_store=least), ray_cluster)
    assert fitting.runs == 2, fitting
    assert fitting.limited_by.startswith("object store (80 MB each, 0.2 GB for it")
    assert fitting.share.object_store == STORE // 2 // 2 // STREAMS_OF_A_RUN
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run(split, fitting.share.object_store), range(2)))
    _, spilled = store_in_use()
    assert not spilled
    alone = read(*(LocalStream(make_spec(split, training), end_epoch=2) for training in (True, False)))
    assert both[0] == both[1] == alone


def test_an_evaluation_does_not_wait_for_training_tasks_that_wait_for_it(ray_cluster, split):
    """The tasks of a training that is not read keep their CPUs when they may write no more."""
    from sensorlab.data.ray_stream import RayStream, ray_dataset

    data_cpus, tasks = 1.0, 2  # all that the cluster has
    options = {"tasks": tasks, "batches_per_task": 32, "object_store": 4 * MB}
    options["task_cpus"] = data_cpus / (tasks * STREAMS_OF_A_RUN)
    train = RayStream(make_spec(split, True, **options), None, end_epoch=4)
    first = train.batches(0)
    next(first)
    time.sleep(3)  # its tasks have filled what they may fill, and wait
    spec = make_spec(split, False, **options)
    val = RayStream(spec, ray_dataset(spec, 1).iterator())
    assert sum(1 for _ in val.batches(0)) == 32
    assert sum(1 for _ in first) == 31
    for stream in (train, val):
        stream.close()
