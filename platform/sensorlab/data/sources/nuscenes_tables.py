"""The relational tables of a nuScenes dataroot, read from JSON into Arrow columns.

A table is a JSON array of flat records; the big ones (``sample_data``: 2.6 million records, more than a gigabyte) must
not become Python objects all at once. Records are decoded from a sliding window, turned into columns batch by batch,
and only the columns and rows that are needed are kept. Foreign keys become row numbers by one hash join per column.

Table schema: https://www.nuscenes.org/nuscenes#data-format.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sensorlab.errors import UserError

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip

_VECTOR3 = pa.list_(pa.float64(), 3)
_QUATERNION = pa.list_(pa.float64(), 4)
# The columns that are read; what the tables hold beyond them is skipped. ``log`` and ``map`` are not needed.
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "scene": {"token": pa.string(), "name": pa.string()},
    "sample": {"token": pa.string(), "timestamp": pa.int64(), "scene_token": pa.string()},
    "sample_data": {
        "token": pa.string(),
        "sample_token": pa.string(),
        "ego_pose_token": pa.string(),
        "calibrated_sensor_token": pa.string(),
        "timestamp": pa.int64(),
        "is_key_frame": pa.bool_(),
        "height": pa.int32(),
        "width": pa.int32(),
        "filename": pa.string(),
        "prev": pa.string(),
    },
    "ego_pose": {"token": pa.string(), "rotation": _QUATERNION, "translation": _VECTOR3},
    "calibrated_sensor": {
        "token": pa.string(),
        "sensor_token": pa.string(),
        "rotation": _QUATERNION,
        "translation": _VECTOR3,
        "camera_intrinsic": pa.list_(pa.list_(pa.float64())),
    },
    "sensor": {"token": pa.string(), "channel": pa.string(), "modality": pa.string()},
    "sample_annotation": {
        "token": pa.string(),
        "sample_token": pa.string(),
        "instance_token": pa.string(),
        "visibility_token": pa.string(),
        "attribute_tokens": pa.list_(pa.string()),
        "translation": _VECTOR3,
        "size": _VECTOR3,
        "rotation": _QUATERNION,
        "prev": pa.string(),
        "next": pa.string(),
        "num_lidar_pts": pa.int32(),
        "num_radar_pts": pa.int32(),
    },
    "instance": {"token": pa.string(), "category_token": pa.string()},
    "category": {"token": pa.string(), "name": pa.string()},
    "attribute": {"token": pa.string(), "name": pa.string()},
    "visibility": {"token": pa.string(), "level": pa.string()},
}
# Converters of other datasets leave these empty or null; everywhere else a null is an error.
_NULLABLE = {
    "height", "width", "camera_intrinsic", "prev", "next", "visibility_token", "num_lidar_pts", "num_radar_pts",
}  # fmt: skip
_WINDOW = 4 << 20  # characters decoded at a time
_LONGEST_RECORD = 64 << 20
_SEPARATORS = re.compile(r"[\s,]*")


class TableReader:
    """Reads the tables of one version of a dataroot."""

    def __init__(self, dataroot: Path, version: str) -> None:
        """
        Raises:
            UserError: no such directory, or no such version in it (the message lists the versions that are there).
        """
        self.directory = dataroot / version
        if not dataroot.is_dir():
            raise UserError(f"dataroot {dataroot} does not exist or is not a directory")
        if not self.directory.is_dir():
            versions = sorted(path.parent.name for path in dataroot.glob("*/sample.json"))
            known = f"it has {', '.join(versions)}" if versions else "it has no nuScenes tables (VERSION/sample.json)"
            raise UserError(f"dataroot {dataroot} has no version {version!r}; {known}")

    def path(self, table: str) -> Path:
        """File of a table."""
        return self.directory / f"{table}.json"

    def fingerprint(self) -> str:
        """SHA-256 over the bytes of all tables (sensor files are not covered).

        Raises:
            UserError: a table that is needed is missing.
        """
        state = hashlib.sha256()
        for table in TABLES:
            path = self.path(table)
            if table in COLUMNS:
                self._require(table)
            elif not path.exists():
                continue
            state.update(f"{table}:{path.stat().st_size}:".encode())
            with open(path, "rb") as handle:
                while chunk := handle.read(1 << 20):
                    state.update(chunk)
        return state.hexdigest()

    def read(self, table: str, keep: Callable[[pa.Table], pa.Array] | None = None) -> pa.Table:
        """The needed columns of ``table``; ``keep`` maps a batch of rows to a boolean mask.

        Raises:
            UserError: missing, truncated or malformed table; a record without a needed key or with a value of another
                type; a token that occurs twice.
        """
        schema = pa.schema(list(COLUMNS[table].items()))
        batches = []
        for records in self._record_batches(table):
            batch = self._columns(table, records, schema)
            batches.append(batch.filter(keep(batch)) if keep else batch)
        result = pa.concat_tables(batches).combine_chunks() if batches else schema.empty_table()
        tokens = result.column("token")
        if len(pc.unique(tokens)) != len(tokens):
            counts = pc.value_counts(tokens).to_pylist()
            twice = next(entry["values"] for entry in counts if entry["counts"] > 1)
            raise UserError(f"table {table} ({self.path(table)}): token {twice!r} occurs twice")
        return result

    def _require(self, table: str) -> Path:
        path = self.path(table)
        if not path.is_file():
            raise UserError(f"table {table} is missing: {path} does not exist")
        return path

    def _record_batches(self, table: str, size: int = 20_000) -> Iterator[list[dict[str, Any]]]:
        batch: list[dict[str, Any]] = []
        for record in self._records(table):
            batch.append(record)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _records(self, table: str) -> Iterator[dict[str, Any]]:
        """Decode the records of the table's array one by one from a window of the file."""
        path = self._require(table)
        decode = json.JSONDecoder().raw_decode
        count = 0
        try:
            with open(path, encoding="utf-8") as handle:
                window = handle.read(_WINDOW).lstrip("\ufeff \t\r\n")
                if not window.startswith("["):
                    raise UserError(f"table {table} ({path}): expected a JSON array of records")
                position = 1
                while True:
                    position = _SEPARATORS.match(window, position).end()  # type: ignore[union-attr]
                    if window.startswith("]", position):
                        return
                    try:
                        record, position = decode(window, position)
                    except json.JSONDecodeError as error:
                        more = handle.read(_WINDOW)
                        if not more or len(window) - position > _LONGEST_RECORD:
                            what = "truncated" if not more else "malformed"
                            raise UserError(
                                f"table {table} ({path}): {what} JSON after {count} records ({error.msg})"
                            ) from None
                        window, position = window[position:] + more, 0
                        continue
                    if not isinstance(record, dict):
                        raise UserError(f"table {table} ({path}): record {count} is not an object")
                    count += 1
                    yield record
        except UnicodeDecodeError as error:
            raise UserError(f"table {table} ({path}): not UTF-8 text after {count} records ({error.reason})") from None
        except OSError as error:
            raise UserError(f"table {table}: cannot read {path}: {error.strerror}") from error

    def _columns(self, table: str, records: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        arrays = []
        for field in schema:
            try:
                array = pa.array([record[field.name] for record in records], field.type)
                if array.null_count and field.name not in _NULLABLE:
                    raise ValueError("null")
                arrays.append(array)
            except KeyError:
                record = next(record for record in records if field.name not in record)
                raise UserError(
                    f"table {table} ({self.path(table)}): record {record.get('token')!r} has no key {field.name!r}"
                ) from None
            except (pa.ArrowException, TypeError, OverflowError, ValueError):
                token, value = _misfit(records, field)
                raise UserError(
                    f"table {table} ({self.path(table)}): record {token!r}: {field.name} is {value!r:.80}, "
                    f"expected {field.type}"
                ) from None
        return pa.Table.from_arrays(arrays, schema=schema)


def _misfit(records: Sequence[dict[str, Any]], field: pa.Field) -> tuple[Any, Any]:
    """Token and value of the first record whose value is not of the field's type."""
    for record in records:
        try:
            fits = pa.array([record[field.name]], field.type).null_count == 0 or field.name in _NULLABLE
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            fits = False
        if not fits:
            return record.get("token"), record[field.name]
    return None, None


def resolve(
    table: str, rows: pa.Table, column: str, target: str, tokens: pa.ChunkedArray, optional: bool = False
) -> np.ndarray:
    """Row numbers (int64) in ``target`` that the foreign keys ``rows[column]`` point to.

    With ``optional``, an empty key is -1.

    Raises:
        UserError: a key that is not among ``tokens``; the message names both tables, the record and the key.
    """
    keys = rows.column(column)
    found = pc.index_in(keys, value_set=tokens.combine_chunks())
    numbers = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    dangling = numbers < 0
    if optional:
        dangling &= pc.not_equal(pc.fill_null(keys, ""), "").to_numpy()
    if dangling.any():
        first = int(dangling.argmax())
        raise UserError(
            f"table {table}: record {rows.column('token')[first].as_py()!r}: {column} {keys[first].as_py()!r} "
            f"is not a token of table {target}"
        )
    return numbers


def fixed_lists(rows: pa.Table, column: str) -> np.ndarray:
    """A fixed-size-list column as an array (rows, size) float64."""
    size = rows.schema.field(column).type.list_size
    return np.asarray(pc.list_flatten(rows.column(column)).to_numpy(), np.float64).reshape(-1, size)
