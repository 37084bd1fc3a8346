"""Where batches become tensors, and where their memory is pinned: in the threads of the stream, not in the step."""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from stream_toys import ToyTask, toy_split

from sensorlab.data import stream as stream_module
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.ray_stream import RayStream
from sensorlab.data.ray_tasks import MakeBlocks
from sensorlab.data.stream import StreamSpec, TensorBatch, to_tensors


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StreamSpec:
    return StreamSpec(toy_split(tmp_path_factory.mktemp("toys")), ToyTask(), 6, 3, True)  # 3 batches


def read(stream: LocalStream) -> list[TensorBatch]:
    batches = list(stream.batches(0))
    stream.close()
    return batches


def assert_equal(left: list[TensorBatch], right: list[TensorBatch]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def pinned_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that have pinned a tensor; without a GPU nothing can be pinned for real."""
    threads: list[str] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return threads


def test_batches_are_pinned_in_the_threads_that_make_them(spec: StreamSpec, pinned_in: list[str]) -> None:
    plain = read(LocalStream(spec))
    assert pinned_in == []
    assert_equal(read(LocalStream(spec, pin_memory=True)), plain)
    assert len(pinned_in) == sum(len(batch) for batch in plain)  # every tensor once
    assert all("local-stream-transform" in name for name in pinned_in)


def test_tensors_are_made_in_the_threads_too(spec: StreamSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def converting(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        threads.append(threading.current_thread().name)
        return to_tensors(arrays)

    monkeypatch.setattr(stream_module, "to_tensors", converting)
    assert len(read(LocalStream(spec))) == len(threads) == 3
    assert all("local-stream-transform" in name for name in threads)


@pytest.mark.parametrize("transform_in", ["worker", "task"])
def test_the_ray_stream_pins_what_it_makes_of_a_block(
    spec: StreamSpec, pinned_in: list[str], transform_in: Literal["worker", "task"]
) -> None:
    """The function that its threads run, on the blocks that its tasks make; without Ray."""
    work = spec.maker if transform_in == "task" else spec.maker.reader
    blocks = MakeBlocks(spec.plan, spec.plan.fingerprint, 1, work)
    chunk = pa.table({"epoch": [0, 0, 0], "batch": [0, 1, 2], "rank": [0, 0, 0]})
    stream = RayStream(spec, None, pin_memory=True)
    made = [stream._make(((0, batch), block), {})[0] for batch, block in enumerate(blocks(chunk))]
    assert len(pinned_in) == sum(len(batch) for batch in made)
    assert_equal(made, read(LocalStream(spec)))
