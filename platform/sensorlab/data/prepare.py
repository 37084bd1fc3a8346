"""From a source to a prepared dataset: resumable, atomic, verified.

Shards are written first, each under a temporary name until it is complete; ``manifest.json`` comes last, so a directory
with a manifest is a whole dataset. Repeating the command continues an interrupted preparation, verifies a finished one,
and writes damaged shards again. Equal arguments give equal bytes, whatever the number of workers.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import sensorlab
from sensorlab.config import as_dict
from sensorlab.data.dataset import MANIFEST, Manifest, PreparedDataset, SplitInfo
from sensorlab.data.prepare_shards import (
    STATE_DIRECTORY,
    PrepareOptions,
    Progress,
    ShardJob,
    ShardRecord,
    choose_workers,
    finished_record,
    plan_jobs,
    run_jobs,
)
from sensorlab.data.schema import SCHEMA_VERSION
from sensorlab.data.shards import DEFAULT_ROW_GROUP_SIZE, atomic_path, content_digest, file_sha256
from sensorlab.data.sources.base import SampleSource
from sensorlab.data.sources.nuscenes import MODALITIES, NuScenesSource
from sensorlab.data.statistics import ContentStatistics
from sensorlab.errors import UserError

Verify = Literal["digest", "size"]
ARGUMENTS = "arguments.json"  # of an unfinished preparation, in its state directory


def prepare_nuscenes(
    dataroot: str | Path,
    version: str,
    out: str | Path,
    *,
    sweeps: int = 1,
    modalities: Sequence[str] = MODALITIES,
    splits: Mapping[str, Sequence[str]] | None = None,
    image_height: int | None = None,
    row_group_size: int = DEFAULT_ROW_GROUP_SIZE,
    samples_per_shard: int = 32,
    workers: int | None = None,
    verify: Verify = "digest",
    report: Callable[[str], None] = print,
) -> PreparedDataset:
    """Prepare one version of a nuScenes dataroot; see :class:`NuScenesSource` and :func:`prepare` for the arguments."""
    options = _options(image_height=image_height, row_group_size=row_group_size, samples_per_shard=samples_per_shard)
    source = NuScenesSource(dataroot, version, sweeps, modalities, splits)
    return prepare(source, out, options, workers=workers, verify=verify, report=report)


def _options(**values: int | None) -> PrepareOptions:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    return PrepareOptions.model_validate(values)


def prepare(
    source: SampleSource,
    out: str | Path,
    options: PrepareOptions | None = None,
    *,
    workers: int | None = None,
    verify: Verify = "digest",
    report: Callable[[str], None] = print,
) -> PreparedDataset:
    """Write ``source`` to ``out`` or continue there, and open the result.

    Args:
        source: what to prepare.
        out: the dataset's directory; made if it does not exist.
        options: image size and shard layout.
        workers: Ray tasks at a time; 0 works in this process; None decides by the amount of work. On a cluster of
            several machines the source and ``out`` must be on a file system that all of them see.
        verify: how shards that exist already are checked: by SHA-256, or by size alone (for programs that prepare at
            every start).
        report: takes progress lines.

    Raises:
        UserError: a fault of the source, ``out`` cannot be written, or it holds something else: another dataset, the
            same source with other arguments, or files that are none of ours.
    """
    options = options or PrepareOptions()
    if workers is not None and workers < 0:
        raise UserError(f"workers is {workers}; it must be 0 (this process) or more")
    root = Path(out).expanduser().resolve()
    identity = {**source.description(), **as_dict(options)}
    _refuse_foreign(root, identity)
    with _locked(root, report):
        _refuse_foreign(root, identity)  # again: another process may have been at work while this one waited
        if (root / MANIFEST).exists() and _is_intact(root, verify):
            report(f"prepare: {root} is complete and up to date")
            return PreparedDataset.open(root)
        jobs = plan_jobs({name: list(numbers) for name, numbers in source.splits().items()}, options.samples_per_shard)
        if not jobs:
            raise UserError(f"{source.origin} has no samples")
        with atomic_path(root / STATE_DIRECTORY / ARGUMENTS) as temporary:
            temporary.write_text(json.dumps(identity), encoding="utf-8")
        for leftover in root.glob("*/.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        _write_missing_shards(source, jobs, root, options, workers, verify, report)
        _write_manifest(root, jobs, identity, source.origin)
    dataset = PreparedDataset.open(root)
    report(f"prepare: {root}: {dataset.manifest.num_samples} samples, digest {dataset.digest[:16]}")
    return dataset


def _refuse_foreign(root: Path, identity: Mapping[str, Any]) -> None:
    """Only write where nothing is, or where the same source was prepared with the same arguments."""
    state = root / STATE_DIRECTORY / ARGUMENTS
    if (root / MANIFEST).exists():
        found = PreparedDataset.open(root).manifest.source
    elif state.exists():
        try:
            found = json.loads(state.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {state} ({error}): delete {root} and prepare again") from error
    elif root.exists() and (not root.is_dir() or any(entry.name != STATE_DIRECTORY for entry in root.iterdir())):
        raise UserError(f"{root} exists and is no prepared dataset: choose another --out")
    else:
        return
    differing = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
    if differing:
        key = differing[0]
        raise UserError(
            f"{root} was prepared with other arguments ({key}: {found.get(key)!r} there, {identity.get(key)!r} now); "
            "choose another --out, or delete it"
        )


@contextmanager
def _locked(root: Path, report: Callable[[str], None]) -> Iterator[None]:
    """One process at a time writes a dataset; others wait and then find it complete."""
    path = root / STATE_DIRECTORY / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "w", encoding="utf-8")  # noqa: SIM115  (closed below; closing releases the lock)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            report(f"prepare: waiting for the process that is preparing {root}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _is_intact(root: Path, verify: Verify) -> bool:
    """Whether every shard of the manifest is there and unaltered."""
    for split in PreparedDataset.open(root).manifest.splits.values():
        for shard in split.shards:
            path = root / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                return False
            if verify == "digest" and file_sha256(path) != shard.sha256:
                return False
    return True


def _write_missing_shards(
    source: SampleSource,
    jobs: Sequence[ShardJob],
    root: Path,
    options: PrepareOptions,
    workers: int | None,
    verify: Verify,
    report: Callable[[str], None],
) -> None:
    missing = [job for job in jobs if finished_record(root, job, verify == "digest") is None]
    total, left = (sum(len(job.numbers) for job in some) for some in (jobs, missing))
    chosen = choose_workers(missing, options) if workers is None else workers
    how = f"{chosen} Ray workers" if chosen else "this process"
    report(f"prepare: {total} samples in {len(jobs)} shards, {left} samples to write with {how}")
    run_jobs(source, missing, root, options, chosen, Progress(total, total - left, report))


def _write_manifest(root: Path, jobs: Sequence[ShardJob], identity: Mapping[str, Any], origin: str) -> None:
    records: dict[str, list[ShardRecord]] = {}
    for job in jobs:
        record = finished_record(root, job, verify_digest=False)
        if record is None:
            raise UserError(f"{root / job.file} disappeared while the dataset was being prepared; repeat the command")
        records.setdefault(job.split, []).append(record)
    total = ContentStatistics.merge(record.statistics for some in records.values() for record in some)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tool_version=sensorlab.__version__,
        source=dict(identity),
        origin=origin,
        digest=content_digest(
            (split, [bytes.fromhex(digest) for record in some for digest in record.digests])
            for split, some in sorted(records.items())
        ),
        num_samples=total.num_samples,
        num_boxes=total.num_boxes,
        sensors=total.sensors(),
        classes=total.classes(),
        splits={split: _split_info(some) for split, some in records.items()},
    )
    with atomic_path(root / MANIFEST) as temporary:
        temporary.write_text(json.dumps(as_dict(manifest), indent=1) + "\n", encoding="utf-8")


def _split_info(records: Sequence[ShardRecord]) -> SplitInfo:
    statistics = ContentStatistics.merge(record.statistics for record in records)
    return SplitInfo(
        num_samples=statistics.num_samples,
        scenes=statistics.scenes,
        shards=tuple(record.shard for record in records),
    )
