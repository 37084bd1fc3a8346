"""``sensorlab data check``: is a prepared dataset whole, unaltered and plausible?

Every fault is reported with its shard and sample; nothing stops at the first one. The checks are of three kinds: files
(size, SHA-256, schema, row groups), content against the manifest (digest, counts, statistics), and samples themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.prepare_shards import Progress, usable_cores
from sensorlab.data.sample import Boxes, CameraFrame, PointSweep, Sample
from sensorlab.data.schema import ADDED_COLUMNS, arrow_schema, decode_table
from sensorlab.data.shards import ShardInfo, content_digest, damaged_shard, file_sha256, read_row_group, sample_digest
from sensorlab.data.sources.camera_jpeg import decode_jpeg
from sensorlab.data.statistics import ContentStatistics
from sensorlab.errors import UserError

_SHOWN = 50
_ORTHONORMAL_TOLERANCE = 1e-4


@dataclass
class CheckReport:
    """What a check saw and what it found."""

    dataset: PreparedDataset
    images_decoded: bool
    num_samples: int = 0
    num_images: int = 0
    num_points: int = 0
    findings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The readable report."""
        manifest = self.dataset.manifest
        yield f"dataset   {self.dataset.path}"
        yield f"source    {manifest.source.get('kind')} {manifest.source.get('version', '')} from {manifest.origin}"
        yield f"digest    {manifest.digest}"
        for name, split in manifest.splits.items():
            size = sum(shard.bytes for shard in split.shards) / 1e6
            yield (
                f"split     {name}: {split.num_samples} samples, {len(split.scenes)} scenes, "
                f"{len(split.shards)} shards, {size:.1f} MB"
            )
        for camera in manifest.sensors.cameras:
            yield f"camera    {camera.name}: {', '.join(f'{width}x{height}' for width, height in camera.sizes)}"
        for kind in ("radars", "lidars"):
            names = getattr(manifest.sensors, kind)
            yield f"{kind:9s} {', '.join(names) or 'none'}"
        for category, one in manifest.classes.items():
            length, width, height = one.mean_size
            yield (
                f"class     {category}: {one.count} boxes, {one.visible} more than 40 % visible, "
                f"mean {length:.2f} x {width:.2f} x {height:.2f} m"
            )
        decoded = "decoded" if self.images_decoded else "not decoded (--fast)"
        yield f"checked   {self.num_samples} samples, {self.num_images} images ({decoded}), {self.num_points} points"
        yield from (f"FAULT     {finding}" for finding in self.findings[:_SHOWN])
        if len(self.findings) > _SHOWN:
            yield f"FAULT     ... and {len(self.findings) - _SHOWN} more"
        yield "result    no faults" if not self.findings else f"result    {len(self.findings)} faults"


def check_dataset(path: str | Path, fast: bool = False, report: Callable[[str], None] | None = None) -> CheckReport:
    """Verify a prepared dataset.

    Args:
        path: the dataset's directory.
        fast: do not decode images (their bytes are still covered by the digests).
        report: takes progress lines.

    Raises:
        UserError: ``path`` is not a prepared dataset.
    """
    dataset = PreparedDataset.open(path)
    result = CheckReport(dataset, images_decoded=not fast)
    progress = Progress(dataset.manifest.num_samples, 0, report or (lambda line: None), label="check")
    digests: dict[str, list[bytes]] = {}
    statistics: dict[str, ContentStatistics] = {}
    tokens: dict[str, str] = {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        for name, split in dataset.manifest.splits.items():
            shards = []
            order = _OrderCheck(name, tokens, result.findings)
            digests[name] = []
            for shard in split.shards:
                samples = []
                for sample in _read_shard(dataset.path, shard, result.findings):
                    problems = _sample_problems(sample, pool if not fast else None)
                    result.findings += [f"{shard.file}, sample {sample.token}: {text}" for text in problems]
                    order.see(sample, shard.file)
                    digests[name].append(sample_digest(sample))
                    samples.append(ContentStatistics.of(sample))
                    result.num_samples += 1
                    result.num_images += len(sample.cameras)
                    result.num_points += sum(len(sweep.points) for sweep in sample.radars + sample.lidars)
                    progress.advance()
                shards.append(ContentStatistics.merge(samples))
            statistics[name] = ContentStatistics.merge(shards)
    result.findings += _manifest_problems(dataset, digests, statistics)
    return result


def _read_shard(root: Path, shard: ShardInfo, findings: list[str]) -> Iterator[Sample]:
    """Samples of the row groups that can be read; what cannot be read becomes a finding."""
    path = root / shard.file
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            findings.append(f"{shard.file}: {size} bytes, the manifest says {shard.bytes}")
        elif file_sha256(path) != shard.sha256:
            findings.append(f"{shard.file}: altered, its SHA-256 is not the manifest's")
        with pq.ParquetFile(path) as file:
            rows = tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            schema = file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        findings.append(str(damaged_shard(path, error)))
        return
    earlier = pa.schema([field for field in arrow_schema() if field.name not in ADDED_COLUMNS])
    if not schema.equals(arrow_schema()) and not schema.equals(earlier):
        findings.append(f"{shard.file}: its columns are not those of the sample schema")
        return
    if rows != shard.rows:
        findings.append(f"{shard.file}: row groups of {rows} rows, the manifest says {shard.rows}")
    for group in range(len(rows)):
        try:
            samples = decode_table(read_row_group(str(path), group, arrow_schema().names))
        except UserError as error:
            findings.append(str(error))
            continue
        yield from samples


class _OrderCheck:
    """Order inside a split, and that no sample occurs twice in the dataset."""

    def __init__(self, split: str, tokens: dict[str, str], findings: list[str]) -> None:
        self._split, self._tokens, self._findings = split, tokens, findings
        self._scenes: list[str] = []
        self._timestamp = 0

    def see(self, sample: Sample, file: str) -> None:
        if sample.token in self._tokens:
            self._findings.append(f"{file}, sample {sample.token}: occurs already in {self._tokens[sample.token]}")
        self._tokens[sample.token] = file
        if self._scenes and sample.scene == self._scenes[-1]:
            if sample.timestamp <= self._timestamp:
                self._findings.append(f"{file}, sample {sample.token}: timestamp is not after the sample before it")
        else:
            if self._scenes and sample.scene < self._scenes[-1]:
                self._findings.append(f"{file}, sample {sample.token}: scene {sample.scene} is out of order")
            self._scenes.append(sample.scene)
        self._timestamp = sample.timestamp


def _manifest_problems(
    dataset: PreparedDataset, digests: dict[str, list[bytes]], statistics: dict[str, ContentStatistics]
) -> Iterator[str]:
    manifest = dataset.manifest
    if content_digest(sorted(digests.items())) != manifest.digest:
        yield "manifest.json: the content digest is not that of the samples"
    owner: dict[str, str] = {}
    for name, split in manifest.splits.items():
        seen = statistics[name]
        if seen.num_samples != split.num_samples:
            yield f"split {name}: {seen.num_samples} samples read, the manifest says {split.num_samples}"
        elif seen.scenes != split.scenes:
            yield f"split {name}: the scenes of its samples are not those of the manifest"
        for scene in seen.scenes:
            if owner.setdefault(scene, name) != name:
                yield f"scene {scene} is in the splits {owner[scene]} and {name}"
    total = ContentStatistics.merge(statistics.values())
    if total.classes() != manifest.classes or total.num_boxes != manifest.num_boxes:
        yield "manifest.json: the class statistics are not those of the samples"
    if total.sensors() != manifest.sensors:
        yield "manifest.json: the sensors are not those of the samples"


def _sample_problems(sample: Sample, pool: ThreadPoolExecutor | None) -> list[str]:
    """Everything that is wrong with one sample; images are decoded if there is a pool to do it in."""
    problems = [f"global_from_ego {text}" for text in _pose_problems(sample.global_from_ego)]
    for camera in sample.cameras:
        problems += [f"{camera.name}: {text}" for text in _camera_problems(camera)]
    if pool is not None:
        problems += [text for text in pool.map(_image_problem, sample.cameras) if text]
    for sweeps in (sample.radars, sample.lidars):
        problems += [f"{sweep.name}: {text}" for sweep in sweeps for text in _sweep_problems(sweep)]
    return problems + list(_box_problems(sample.boxes))


def _pose_problems(pose: np.ndarray) -> Iterator[str]:
    rotation = pose[:3, :3]
    if not np.isfinite(pose).all():
        yield "is not finite"
    elif not np.array_equal(pose[3], [0, 0, 0, 1]):
        yield "has a last row other than 0 0 0 1"
    elif np.abs(rotation @ rotation.T - np.eye(3)).max() > _ORTHONORMAL_TOLERANCE or np.linalg.det(rotation) < 0:
        yield "is no rotation: not orthonormal, or mirrored"


def _camera_problems(camera: CameraFrame) -> Iterator[str]:
    yield from (f"ego_from_camera {text}" for text in _pose_problems(camera.ego_from_camera))
    yield from (f"global_from_ego {text}" for text in _pose_problems(camera.global_from_ego))
    k = camera.intrinsics
    if not np.isfinite(k).all() or not np.array_equal(k[2], [0, 0, 1]) or k[0, 0] <= 0 or k[1, 1] <= 0:
        yield f"intrinsics are not those of a camera: {k.tolist()}"
    elif not (0 <= k[0, 2] < camera.width and 0 <= k[1, 2] < camera.height):
        yield f"principal point ({k[0, 2]:.1f}, {k[1, 2]:.1f}) is outside the {camera.width}x{camera.height} image"


def _image_problem(camera: CameraFrame) -> str | None:
    try:
        size = decode_jpeg(camera.jpeg).size
    except ValueError as error:
        return f"{camera.name}: {error}"
    if size != (camera.width, camera.height):
        return f"{camera.name}: the image is {size[0]}x{size[1]}, the sample says {camera.width}x{camera.height}"
    return None


def _sweep_problems(sweep: PointSweep) -> Iterator[str]:
    yield from (f"ego_from_sensor {text}" for text in _pose_problems(sweep.ego_from_sensor))
    if not np.isfinite(sweep.time_lag) or sweep.time_lag < 0:
        yield f"time lag {sweep.time_lag} s is not a lag"
    bad = ~np.isfinite(sweep.points).all(axis=1)
    if bad.any():
        yield f"{int(bad.sum())} of {len(bad)} points are not finite"


def _box_problems(boxes: Boxes) -> Iterator[str]:
    def name(rows: np.ndarray) -> str:
        return f"box {boxes.token[int(rows.argmax())]}" + (f" and {int(rows.sum()) - 1} more" if rows.sum() > 1 else "")

    checks: Iterable[tuple[np.ndarray, str]] = (
        (~np.isfinite(boxes.center).all(axis=1), "centre is not finite"),
        (~((boxes.size > 0) & np.isfinite(boxes.size)).all(axis=1), "size is not positive"),
        (~(np.abs(np.linalg.norm(boxes.rotation, axis=1) - 1) < 1e-3), "rotation is not a unit quaternion"),
        (np.isinf(boxes.velocity).any(axis=1), "velocity is infinite"),
        ((boxes.visibility < 0) | (boxes.visibility > 4), "visibility is not in 0..4"),
        ((boxes.num_lidar_points < 0) | (boxes.num_radar_points < 0), "number of points is negative"),
        (np.array([not category for category in boxes.category], bool), "category is empty"),
    )
    yield from (f"{name(rows)}: {text}" for rows, text in checks if rows.any())
    if _has_duplicates(boxes.token):
        yield "two boxes have the same token"


def _has_duplicates(values: Sequence[str]) -> bool:
    return len(set(values)) != len(values)
