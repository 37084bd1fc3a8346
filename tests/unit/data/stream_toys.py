"""A tiny prepared split and a task with every kind of array, shared by the tests of the streams."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from sensorlab.data.dataset import Split
from sensorlab.data.random_streams import SampleRandom
from sensorlab.data.sample import LIDAR_FIELDS, Boxes, CameraFrame, PointSweep, Sample
from sensorlab.data.shards import write_shard

IMAGE = (12, 16)  # height, width


def toy_jpeg(row: int, portrait: bool = False) -> bytes:
    height, width = IMAGE[::-1] if portrait else IMAGE
    pixels = np.random.default_rng(row).integers(0, 255, (height, width, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def toy_sample(row: int, broken: bool = False, classes: Sequence[str] = (), portrait: bool = False) -> Sample:
    jpeg = toy_jpeg(row, portrait)
    identity = np.eye(4)
    height, width = IMAGE[::-1] if portrait else IMAGE
    data = jpeg[: len(jpeg) // 2] if broken else jpeg
    camera = CameraFrame("CAM_FRONT", data, width, height, np.eye(3), identity, identity, row)
    points = np.full((2 + row % 3, len(LIDAR_FIELDS)), row, np.float32)
    lidar = PointSweep("LIDAR_TOP", 0, 0.0, identity, points)
    return Sample(
        f"token-{row}", "scene", "scene-token", row, identity, cameras=[camera], lidars=[lidar], boxes=_boxes(classes)
    )


def _boxes(classes: Sequence[str]) -> Boxes:
    number = len(classes)
    return Boxes(
        token=["box"] * number,
        instance=["instance"] * number,
        category=list(classes),
        attributes=[[] for _ in classes],
        visibility=np.zeros(number, np.int8),
        center=np.zeros((number, 3)),
        size=np.ones((number, 3)),
        rotation=np.tile([1.0, 0, 0, 0], (number, 1)),
        velocity=np.zeros((number, 3)),
        num_lidar_points=np.zeros(number, np.int32),
        num_radar_points=np.zeros(number, np.int32),
    )


def toy_split(
    root: Path,
    shard_rows: tuple[int, ...] = (13, 10),
    group: int = 4,
    broken: Container[int] = (),
    classes: Mapping[int, Sequence[str]] | None = None,
    portrait: Container[int] = (),
) -> Split:
    """Shards on disk with samples token-0, token-1, ... in row order.

    Rows in ``broken`` hold half a JPEG, those in ``portrait`` an upright one; each row has a box of each of its
    ``classes``.
    """
    classes = classes or {}
    shards, groups, first = [], [], 0
    for index, count in enumerate(shard_rows):
        rows = range(first, first + count)
        samples = (toy_sample(row, row in broken, classes.get(row, ()), row in portrait) for row in rows)
        info = write_shard(root, f"train/shard-{index:05d}.parquet", samples, group)
        shards.append(str(root / info.file))
        groups += [(index, number, size) for number, size in enumerate(info.rows)]
        first += count
    return Split("train", "toy-digest", tuple(shards), np.array(groups, np.int64))


def damage(shard: str | Path, group: int) -> None:
    """Change one byte in the middle of the images of a row group."""
    metadata = pq.read_metadata(shard).row_group(group)
    columns = {metadata.column(index).path_in_schema: metadata.column(index) for index in range(metadata.num_columns)}
    images = columns["cameras.list.element.jpeg"]
    data = bytearray(Path(shard).read_bytes())
    data[images.data_page_offset + images.total_compressed_size // 2] ^= 0xFF
    Path(shard).write_bytes(data)


class ToyTask:
    """Decodes the image, draws augmentation, and outputs uint8, float32, int64 and bool arrays."""

    columns = ("cameras", "lidars")
    num_partners = 0

    def sample_classes(self, sample: Sample) -> Mapping[str, int]:
        return Counter(sample.boxes.category)

    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> dict[str, np.ndarray]:
        image = np.asarray(Image.open(io.BytesIO(sample.cameras[0].jpeg)))  # OSError when truncated
        noise = random.stream("noise").normal(size=3) if training else np.zeros(3)
        return {
            "image": image,
            "noise": noise.astype(np.float32),
            "timestamp": np.int64(sample.timestamp),
            "flip": np.bool_(training and random.stream("flip").random() < 0.5),
            "points": sample.lidars[0].points,
        }

    def compose(self, samples: Sequence[Sample], random: SampleRandom) -> dict[str, np.ndarray]:
        """The first sample, and who its partners are."""
        partners = np.array([sample.timestamp for sample in samples[1:]], np.int64)
        return {**self.transform(samples[0], random, True), "partners": partners}

    def collate(self, items: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Ragged points are packed: values and the number of points of each sample."""
        stacked = {name: np.stack([item[name] for item in items]) for name in items[0] if name != "points"}
        points = [item["points"] for item in items]
        return {**stacked, "points": np.concatenate(points), "num_points": np.array([len(p) for p in points])}
