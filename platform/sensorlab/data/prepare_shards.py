"""Writing the shards of a dataset: one job per shard, in this process or as Ray Data tasks.

A job holds one row group in memory at a time and leaves two files when it is done: the shard, and a record of what the
shard holds. A job whose record fits its shard never runs again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from sensorlab.config import StrictModel, as_dict
from sensorlab.data.sample import Sample
from sensorlab.data.shards import (
    DEFAULT_ROW_GROUP_SIZE,
    ShardInfo,
    atomic_path,
    file_sha256,
    sample_digest,
    write_shard,
)
from sensorlab.data.sources.base import SampleSource
from sensorlab.data.sources.camera_jpeg import limit_height
from sensorlab.data.statistics import ContentStatistics
from sensorlab.errors import UserError

STATE_DIRECTORY = ".prepare"


class PrepareOptions(StrictModel):
    """How samples become shards, whatever the source."""

    image_height: int | None = Field(default=None, ge=1)  # re-encode higher images to this height; None keeps the files
    row_group_size: int = Field(default=DEFAULT_ROW_GROUP_SIZE, ge=1)
    samples_per_shard: int = Field(default=32, ge=1)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """Samples of one split that make one shard."""

    split: str
    file: str  # relative to the dataset
    numbers: tuple[int, ...]


class ShardRecord(StrictModel):
    """What a finished job leaves beside its shard."""

    shard: ShardInfo
    digests: tuple[str, ...]  # of each sample, hex
    statistics: ContentStatistics


def plan_jobs(splits: dict[str, Sequence[int]], samples_per_shard: int) -> list[ShardJob]:
    """Consecutive samples of each split, ``samples_per_shard`` to a shard."""
    jobs = []
    for split, numbers in splits.items():
        for start in range(0, len(numbers), samples_per_shard):
            file = f"{split}/shard-{start // samples_per_shard:05d}.parquet"
            jobs.append(ShardJob(split, file, tuple(int(n) for n in numbers[start : start + samples_per_shard])))
    return jobs


def write_job(
    source: SampleSource,
    job: ShardJob,
    root: Path,
    options: PrepareOptions,
    on_sample: Callable[[], None] | None = None,
) -> ShardRecord:
    """Write the job's shard and then its record."""
    digests: list[str] = []
    statistics: list[ContentStatistics] = []

    def samples() -> Iterator[Sample]:
        for number in job.numbers:
            sample = _with_smaller_images(source.read(number), options.image_height)
            digests.append(sample_digest(sample).hex())
            statistics.append(ContentStatistics.of(sample))
            yield sample
            if on_sample is not None:
                on_sample()

    shard = write_shard(root, job.file, samples(), options.row_group_size)
    record = ShardRecord(shard=shard, digests=tuple(digests), statistics=ContentStatistics.merge(statistics))
    with atomic_path(_record_path(root, job)) as temporary:
        temporary.write_text(json.dumps(as_dict(record)), encoding="utf-8")
    return record


def _with_smaller_images(sample: Sample, height: int | None) -> Sample:
    if height is None:
        return sample
    cameras = []
    for camera in sample.cameras:
        try:
            cameras.append(limit_height(camera, height))
        except ValueError as error:
            raise UserError(f"sample {sample.token!r}, {camera.name}: {error}") from None
    return dataclasses.replace(sample, cameras=cameras)


def _record_path(root: Path, job: ShardJob) -> Path:
    return root / STATE_DIRECTORY / f"{job.file.replace('/', '-').removesuffix('.parquet')}.json"


def finished_record(root: Path, job: ShardJob, verify_digest: bool = True) -> ShardRecord | None:
    """The record of a job that is done, or None.

    Done means that the record is readable and the shard has its size and, with ``verify_digest``, its SHA-256.
    """
    path = root / job.file
    try:
        record = ShardRecord.model_validate_json(_record_path(root, job).read_text(encoding="utf-8"))
        intact = path.stat().st_size == record.shard.bytes
        if intact and verify_digest:
            intact = file_sha256(path) == record.shard.sha256
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return record if intact and len(record.digests) == len(job.numbers) else None


class Progress:
    """Lines with count, rate and time left; at most one every two seconds."""

    def __init__(self, total: int, done: int, report: Callable[[str], None], label: str = "prepare") -> None:
        self._total, self._kept, self._done = total, done, done
        self._report, self._label = report, label
        self.start()

    def start(self) -> None:
        """Start the clock (again), when what came before was not work on samples."""
        self._start = self._last = time.monotonic()

    def advance(self, samples: int = 1) -> None:
        """Count finished samples and print a line when it is time."""
        self._done += samples
        now = time.monotonic()
        if now - self._last < 2.0 and self._done < self._total:
            return
        self._last = now
        rate = (self._done - self._kept) / max(now - self._start, 1e-6)
        left = (self._total - self._done) / max(rate, 1e-6)
        self._report(
            f"{self._label}: {self._done}/{self._total} samples ({100 * self._done // self._total} %), "
            f"{rate:.1f} samples/s, {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def run_jobs(
    source: SampleSource,
    jobs: Sequence[ShardJob],
    root: Path,
    options: PrepareOptions,
    workers: int,
    progress: Progress,
) -> None:
    """Run the jobs: in this process (``workers`` 0), or as at most ``workers`` Ray tasks at a time.

    Raises:
        UserError: the first job that failed; shards that are finished stay.
    """
    if workers == 0:
        for job in jobs:
            write_job(source, job, root, options, progress.advance)
    elif jobs:
        _run_on_ray(source, jobs, root, options, workers, progress)


def choose_workers(jobs: Sequence[ShardJob], options: PrepareOptions) -> int:
    """Workers when the user says nothing: this process for small work, else all cores.

    Starting Ray takes about 10 s; in that time one core writes about 1000 samples, or 100 whose images it re-encodes
    (measured: 80 samples/s with six 960x540 images and lidar, 240 with one image, radar and lidar).
    """
    samples = sum(len(job.numbers) for job in jobs)
    small = 1000 if options.image_height is None else 100
    ray = sys.modules.get("ray")  # importing it takes a second, and only who imported it can be connected
    connected = ray is not None and ray.is_initialized()
    if len(jobs) <= 1 or (samples < small and not connected):
        return 0
    cores = int(ray.cluster_resources().get("CPU", 1)) if ray is not None and connected else usable_cores()
    return max(1, min(cores, len(jobs)))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_on_ray(
    source: SampleSource,
    jobs: Sequence[ShardJob],
    root: Path,
    options: PrepareOptions,
    workers: int,
    progress: Progress,
) -> None:
    """Through Ray Data; joins a cluster that is up, else starts a local one and ends it."""
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    try:
        # Shared memory holds the source's arrays once per node, however many tasks read them.
        write = functools.partial(_ray_task, ray.put(source), ray.put(list(jobs)), str(root), options)
        rows = ray.data.from_items([{"job": i} for i in range(len(jobs))], override_num_blocks=len(jobs))
        results = rows.map(write, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=workers))
        results.context.enable_progress_bars = False
        progress.start()
        with _quiet_ray_data():
            for result in results.iter_rows():
                if result["error"]:
                    raise UserError(result["error"])
                progress.advance(result["samples"])
    finally:
        if own:
            ray.shutdown()


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Our progress lines instead of Ray Data's account of its plan."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _ray_task(
    source_ref: Any, jobs_ref: Any, root: str, options: PrepareOptions, row: dict[str, Any]
) -> dict[str, Any]:
    """One job; a user's error comes back as a value, because Ray would wrap the exception in its own traceback."""
    import ray

    job = ray.get(jobs_ref)[row["job"]]
    try:
        write_job(ray.get(source_ref), job, Path(root), options)
    except UserError as error:
        return {"samples": 0, "error": str(error)}
    return {"samples": len(job.numbers), "error": ""}
