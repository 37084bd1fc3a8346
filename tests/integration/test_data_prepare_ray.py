"""Preparing through Ray Data gives what preparing in one process gives, and ends cleanly."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from sensorlab.data.check import check_dataset
from sensorlab.data.prepare import prepare_nuscenes
from sensorlab.errors import UserError

# The hand-written dataroot of the unit tests.
sys.path.append(str(Path(__file__).parents[1] / "unit" / "data"))
from nuscenes_builder import build_root

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return build_root(tmp_path / "root", train=5, val=2)


def prepare(root: Path, out: Path, workers: int, lines: list[str] | None = None):
    return prepare_nuscenes(
        root, "v1.0-mini", out, sweeps=2, samples_per_shard=1, workers=workers,
        report=(lines if lines is not None else []).append,
    )  # fmt: skip


@pytest.mark.usefixtures("cluster")
def test_same_dataset_whatever_the_number_of_workers(root: Path, tmp_path: Path) -> None:
    straight = prepare(root, tmp_path / "zero", 0)
    lines: list[str] = []
    parallel = prepare(root, tmp_path / "two", 2, lines)
    assert parallel.manifest.splits == straight.manifest.splits  # rows, bytes and SHA-256 of every shard
    assert parallel.digest == straight.digest
    assert "7 samples in 7 shards, 7 samples to write with 2 Ray workers" in lines[0]
    assert "7/7 samples (100 %)" in lines[-2]
    assert check_dataset(parallel.path).findings == []
    assert ray.is_initialized()  # a cluster that was there stays


@pytest.mark.usefixtures("cluster")
def test_fault_in_a_task_is_one_clear_error_and_the_rest_can_continue(root: Path, tmp_path: Path) -> None:
    radar = sorted((root / "samples" / "RADAR_FRONT").glob("drive-train*"))[2]
    content = radar.read_bytes()
    radar.write_bytes(content[:-5])
    with pytest.raises(UserError, match=rf"^table sample_data: record 'drive-train-RADAR_FRONT-6': {radar}: truncated"):
        prepare(root, tmp_path / "out", 2)
    radar.write_bytes(content)
    lines: list[str] = []
    dataset = prepare(root, tmp_path / "out", 2, lines)
    left = int(lines[0].split(", ")[1].split()[0])
    assert 1 <= left < 7
    assert dataset.digest == prepare(root, tmp_path / "straight", 0).digest


def test_own_cluster_is_started_and_ended(root: Path, tmp_path: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    dataset = prepare(root, tmp_path / "out", 1)
    assert not ray.is_initialized()
    assert dataset.manifest.num_samples == 7
