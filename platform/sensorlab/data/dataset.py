"""A prepared dataset: Parquet shards plus ``manifest.json``, and the reading of rows by number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sensorlab.config import StrictModel, validate
from sensorlab.data.schema import SCHEMA_VERSION, arrow_schema
from sensorlab.data.shards import ROW_GROUP_CACHE, ShardInfo, read_row_group
from sensorlab.errors import UserError

MANIFEST = "manifest.json"


class ClassStatistics(StrictModel):
    """Statistics of the boxes of one category over all splits."""

    count: int
    visible: int  # boxes with visibility 2..4, that is more than 40 % visible
    mean_size: tuple[float, float, float]  # length, width, height in metres


class CameraInfo(StrictModel):
    """A camera of the rig; ``sizes`` lists every (width, height) that its images have."""

    name: str
    sizes: tuple[tuple[int, int], ...]


class Sensors(StrictModel):
    """The rig: sensors in name order, which is also the order of ``sensor_id``."""

    cameras: tuple[CameraInfo, ...] = ()
    radars: tuple[str, ...] = ()
    lidars: tuple[str, ...] = ()


class SplitInfo(StrictModel):
    """One split: its scenes in order and the shards that hold its samples in order."""

    num_samples: int
    scenes: tuple[str, ...]
    shards: tuple[ShardInfo, ...]


class Manifest(StrictModel):
    """``manifest.json``: what the dataset is, where it came from and how to verify it."""

    schema_version: int
    tool_version: str
    source: dict[str, Any]  # kind, version and fingerprint of the source, and the arguments of the preparation
    origin: str  # where the source was when it was prepared; information only
    digest: str  # content digest: equal content gives equal digests, wherever and however it was written
    num_samples: int
    num_boxes: int
    sensors: Sensors
    classes: dict[str, ClassStatistics]
    splits: dict[str, SplitInfo]


class PreparedDataset:
    """A directory written by ``sensorlab data prepare``."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> PreparedDataset:
        """Open a prepared dataset; reads the manifest only.

        Raises:
            UserError: no dataset there, an unfinished or damaged one, or one of another schema version.
        """
        root = Path(path).expanduser().resolve()
        file = root / MANIFEST
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{root} is not a prepared dataset: it has no {MANIFEST}. "
                "Make one with `sensorlab data prepare`, or finish an interrupted one by repeating its command"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}") from error
        version = tree.get("schema_version") if isinstance(tree, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{file} has schema version {version}, this version of sensorlab reads {SCHEMA_VERSION}: "
                "prepare the dataset again, into another directory"
            )
        return cls(root, validate(Manifest, tree, str(file)))

    @property
    def digest(self) -> str:
        """Content digest of all samples."""
        return self.manifest.digest

    def split(self, name: str) -> Split:
        """The split called ``name``. Raises ``UserError`` that lists the splits when there is none."""
        info = self.manifest.splits.get(name)
        if info is None:
            raise UserError(f"{self.path} has no split {name!r}; its splits are {', '.join(self.manifest.splits)}")
        groups = [
            (shard, group, rows) for shard, entry in enumerate(info.shards) for group, rows in enumerate(entry.rows)
        ]
        return Split(
            name=name,
            dataset_digest=self.digest,
            shards=tuple(str(self.path / entry.file) for entry in info.shards),
            row_groups=np.array(groups, np.int64).reshape(-1, 3),
        )


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one split, numbered 0..num_samples-1 in (scene, timestamp) order. Small and picklable."""

    name: str
    dataset_digest: str
    shards: tuple[str, ...]  # absolute paths
    row_groups: np.ndarray  # (G, 3) int64: shard index, row group inside the shard, number of rows

    @property
    def num_samples(self) -> int:
        return int(self.row_groups[:, 2].sum())

    def read(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """The given rows, in the given order, with ``columns`` (None: all) and the meta columns.

        Each row group is read once, through a cache shared by all threads of the process. The result refers to the
        cached row groups wherever rows follow each other; copy it before keeping it for long.

        Raises:
            UserError: an unknown column, or a shard that is missing or damaged.
            IndexError: a row number outside the split.
        """
        schema = arrow_schema(columns)
        numbers = np.asarray(rows, np.int64).reshape(-1)
        if numbers.size == 0:
            return schema.empty_table()
        ends = np.cumsum(self.row_groups[:, 2])
        if numbers.min() < 0 or numbers.max() >= (ends[-1] if len(ends) else 0):
            raise IndexError(f"split {self.name!r} has rows 0..{self.num_samples - 1}, asked for {numbers.tolist()}")
        groups = np.searchsorted(ends, numbers, side="right")
        offsets = numbers - (ends - self.row_groups[:, 2])[groups]
        # Runs of consecutive rows of one row group are slices; nothing is copied.
        breaks = np.flatnonzero((np.diff(groups) != 0) | (np.diff(offsets) != 1)) + 1
        pieces = []
        for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(numbers)], strict=True):
            table = self._row_group(int(groups[start]), tuple(schema.names))
            pieces.append(table.slice(int(offsets[start]), stop - start))
        return pa.concat_tables(pieces)

    def _row_group(self, index: int, columns: tuple[str, ...]) -> pa.Table:
        shard, group, _ = self.row_groups[index].tolist()
        path = self.shards[shard]
        return ROW_GROUP_CACHE.get(
            (self.dataset_digest, path, group, columns), lambda: read_row_group(path, group, columns)
        )
