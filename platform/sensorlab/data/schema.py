"""The Arrow schema of a sample: what a prepared dataset holds on disk, and the two ways between rows and objects.

One row is one :class:`~sensorlab.data.sample.Sample`. Sensors are lists of structs, so any rig fits; matrices are
row-major lists; points are flat float32 lists. Readers name the top-level columns they use, and a modality that was not
read decodes to an empty list. Plain Arrow types only, no extension types: any Parquet reader can open a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from sensorlab.data.sample import LIDAR_FIELDS, RADAR_FIELDS, Boxes, Boxes2D, CameraFrame, PointSweep, Sample
from sensorlab.errors import UserError

SCHEMA_VERSION = 1
# Read with every request: they identify a sample and place it in the world.
META_COLUMNS = ("token", "scene", "scene_token", "timestamp", "global_from_ego")
SENSOR_COLUMNS = ("cameras", "radars", "lidars", "boxes", "boxes2d")
ADDED_COLUMNS = ("boxes2d",)
"""Columns that shards of before may lack. They decode as empty, and count in a sample's digest only where they are not,
so that datasets of before stay what they are."""

_MATRIX = pa.list_(pa.float64())
_CAMERA = pa.struct(
    [
        ("name", pa.string()),
        ("jpeg", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("intrinsics", _MATRIX),  # 9 values: 3x3
        ("ego_from_camera", _MATRIX),  # 16 values: 4x4
        ("global_from_ego", _MATRIX),
        ("timestamp", pa.int64()),  # microseconds
    ]
)
_SWEEP = pa.struct(
    [
        ("name", pa.string()),
        ("sensor_id", pa.int32()),
        ("time_lag", pa.float64()),  # seconds
        ("ego_from_sensor", _MATRIX),
        ("points", pa.list_(pa.float32())),  # N * 18 (radar) or N * 5 (lidar) values
    ]
)
_BOX = pa.struct(
    [
        ("token", pa.string()),
        ("instance", pa.string()),
        ("category", pa.string()),
        ("attributes", pa.list_(pa.string())),
        ("visibility", pa.int8()),
        ("center", pa.list_(pa.float64())),  # 3
        ("size", pa.list_(pa.float64())),  # 3: length, width, height
        ("rotation", pa.list_(pa.float64())),  # 4: w, x, y, z
        ("velocity", pa.list_(pa.float64())),  # 3
        ("num_lidar_points", pa.int32()),
        ("num_radar_points", pa.int32()),
    ]
)
_BOX2D = pa.struct(
    [
        ("category", pa.string()),
        ("instance", pa.string()),
        ("camera", pa.int32()),
        ("xyxy", pa.list_(pa.float64())),  # 4: left, top, right, bottom in pixels
        ("area", pa.float64()),
        ("ignore", pa.int8()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("scene", pa.string()),
        ("scene_token", pa.string()),
        ("timestamp", pa.int64()),  # microseconds
        ("global_from_ego", _MATRIX),
        ("cameras", pa.list_(_CAMERA)),
        ("radars", pa.list_(_SWEEP)),
        ("lidars", pa.list_(_SWEEP)),
        ("boxes", pa.list_(_BOX)),
        ("boxes2d", pa.list_(_BOX2D)),
    ]
)

ItemT = TypeVar("ItemT")
BoxesT = TypeVar("BoxesT", Boxes, Boxes2D)


@dataclass(frozen=True)
class _Layout(Generic[BoxesT]):
    """Fields of a class of arrays over boxes, by their kind."""

    kind: type[BoxesT]
    texts: tuple[str, ...]
    vectors: Mapping[str, int]  # name -> number of values
    scalars: Mapping[str, type]


_BOXES = _Layout(
    Boxes,
    ("token", "instance", "category", "attributes"),
    {"center": 3, "size": 3, "rotation": 4, "velocity": 3},
    {"visibility": np.int8, "num_lidar_points": np.int32, "num_radar_points": np.int32},
)
_BOXES2D = _Layout(
    Boxes2D, ("category", "instance"), {"xyxy": 4}, {"camera": np.int32, "area": np.float64, "ignore": np.int8}
)


def arrow_schema(columns: Sequence[str] | None = None) -> pa.Schema:
    """The schema of a shard, or of a reading of ``columns`` (the meta columns are always part of it).

    Raises:
        UserError: a name that is not a column; the message lists those that are.
    """
    if columns is None:
        return _SCHEMA
    unknown = sorted(set(columns) - set(_SCHEMA.names))
    if unknown:
        raise UserError(f"unknown sample column {unknown[0]!r}; the columns are {', '.join(_SCHEMA.names)}")
    wanted = set(META_COLUMNS) | set(columns)
    return pa.schema([field for field in _SCHEMA if field.name in wanted])


def encode_sample(sample: Sample) -> dict[str, Any]:
    """One row as plain Python values and flat numpy arrays, with every column of the schema."""
    return {
        "token": sample.token,
        "scene": sample.scene,
        "scene_token": sample.scene_token,
        "timestamp": int(sample.timestamp),
        "global_from_ego": _flat(sample.global_from_ego, 16),
        "cameras": [_encode_camera(camera) for camera in sample.cameras],
        "radars": [_encode_sweep(sweep, len(RADAR_FIELDS)) for sweep in sample.radars],
        "lidars": [_encode_sweep(sweep, len(LIDAR_FIELDS)) for sweep in sample.lidars],
        "boxes": _encode_boxes(sample.boxes, _BOXES),
        "boxes2d": _encode_boxes(sample.boxes2d, _BOXES2D),
    }


def encode_table(samples: Sequence[Sample]) -> pa.Table:
    """Samples as a table of the full schema. Points are concatenated once, never visited value by value."""
    rows = [encode_sample(sample) for sample in samples]
    return pa.Table.from_arrays(
        [_build_array([row[field.name] for row in rows], field.type) for field in _SCHEMA], schema=_SCHEMA
    )


def decode_sample(row: Mapping[str, Any]) -> Sample:
    """A sample from one row as a mapping (for example of ``Table.to_pylist``); absent columns decode as empty."""
    return Sample(
        token=row["token"],
        scene=row["scene"],
        scene_token=row["scene_token"],
        timestamp=int(row["timestamp"]),
        global_from_ego=np.asarray(row["global_from_ego"], np.float64).reshape(4, 4),
        cameras=[_decode_camera(camera) for camera in _items(row, "cameras")],
        radars=[_decode_sweep(sweep, len(RADAR_FIELDS)) for sweep in _items(row, "radars")],
        lidars=[_decode_sweep(sweep, len(LIDAR_FIELDS)) for sweep in _items(row, "lidars")],
        boxes=_decode_boxes(_items(row, "boxes"), _BOXES),
        boxes2d=_decode_boxes(_items(row, "boxes2d"), _BOXES2D),
    )


def decode_table(table: pa.Table) -> list[Sample]:
    """Samples of all rows. Arrays are read-only numpy views into the table's buffers; only JPEG bytes are copied.

    Columns that the table does not have decode as empty lists.

    Raises:
        UserError: a matrix, vector or point list whose number of values does not fit its shape.
    """
    samples: list[Sample] = []
    for batch in table.to_batches():
        samples.extend(_decode_batch(batch))
    return samples


# ---------------------------------------------------------------------------------------------------------- encoding


def _flat(array: np.ndarray, values: int) -> np.ndarray:
    flat = np.ascontiguousarray(array, np.float64).reshape(-1)
    if flat.size != values:
        raise ValueError(f"expected {values} values, found an array of shape {np.shape(array)}")
    return flat


def _encode_camera(camera: CameraFrame) -> dict[str, Any]:
    return {
        "name": camera.name,
        "jpeg": camera.jpeg,
        "width": int(camera.width),
        "height": int(camera.height),
        "intrinsics": _flat(camera.intrinsics, 9),
        "ego_from_camera": _flat(camera.ego_from_camera, 16),
        "global_from_ego": _flat(camera.global_from_ego, 16),
        "timestamp": int(camera.timestamp),
    }


def _encode_sweep(sweep: PointSweep, fields: int) -> dict[str, Any]:
    if sweep.points.ndim != 2 or sweep.points.shape[1] != fields:
        raise ValueError(f"{sweep.name}: expected points of shape (N, {fields}), found {sweep.points.shape}")
    return {
        "name": sweep.name,
        "sensor_id": int(sweep.sensor_id),
        "time_lag": float(sweep.time_lag),
        "ego_from_sensor": _flat(sweep.ego_from_sensor, 16),
        "points": np.ascontiguousarray(sweep.points, np.float32).reshape(-1),
    }


def _encode_boxes(boxes: Boxes | Boxes2D, layout: _Layout) -> list[dict[str, Any]]:
    rows = []
    for index in range(len(boxes)):
        row: dict[str, Any] = {name: getattr(boxes, name)[index] for name in layout.texts}
        row.update({name: _flat(getattr(boxes, name)[index], size) for name, size in layout.vectors.items()})
        row.update({name: getattr(boxes, name)[index].item() for name in layout.scalars})
        rows.append(row)
    return rows


def _build_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Arrow array of ``values``; lists of numbers are concatenated as numpy arrays instead of converted one by one."""
    if pa.types.is_struct(kind):
        children = [_build_array([value[field.name] for value in values], field.type) for field in kind]
        return pa.StructArray.from_arrays(children, fields=list(kind))
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise UserError("a row group holds more than 2**31 values in one column: use a smaller row-group size")
    if pa.types.is_floating(kind.value_type):
        numbers = np.concatenate(values) if values else np.zeros(0)
        child = pa.array(numbers.astype(kind.value_type.to_pandas_dtype(), copy=False))
    else:
        child = _build_array([item for value in values for item in value], kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), child, type=kind)


# ---------------------------------------------------------------------------------------------------------- decoding


def _items(row: Mapping[str, Any], column: str) -> Sequence[Mapping[str, Any]]:
    value = row.get(column)
    return () if value is None else value


def _decode_camera(row: Mapping[str, Any]) -> CameraFrame:
    return CameraFrame(
        name=row["name"],
        jpeg=bytes(row["jpeg"]),
        width=int(row["width"]),
        height=int(row["height"]),
        intrinsics=np.asarray(row["intrinsics"], np.float64).reshape(3, 3),
        ego_from_camera=np.asarray(row["ego_from_camera"], np.float64).reshape(4, 4),
        global_from_ego=np.asarray(row["global_from_ego"], np.float64).reshape(4, 4),
        timestamp=int(row["timestamp"]),
    )


def _decode_sweep(row: Mapping[str, Any], fields: int) -> PointSweep:
    return PointSweep(
        name=row["name"],
        sensor_id=int(row["sensor_id"]),
        time_lag=float(row["time_lag"]),
        ego_from_sensor=np.asarray(row["ego_from_sensor"], np.float64).reshape(4, 4),
        points=np.asarray(row["points"], np.float32).reshape(-1, fields),
    )


def _decode_boxes(rows: Sequence[Mapping[str, Any]], layout: _Layout[BoxesT]) -> BoxesT:
    values: dict[str, Any] = {name: [row[name] for row in rows] for name in layout.texts}
    for name, size in layout.vectors.items():
        values[name] = np.array([row[name] for row in rows], np.float64).reshape(-1, size)
    for name, dtype in layout.scalars.items():
        values[name] = np.array([row[name] for row in rows], dtype)
    return layout.kind(**values)


def _decode_batch(batch: pa.RecordBatch) -> Iterator[Sample]:
    names = set(batch.schema.names)
    matrices = _shaped(batch.column("global_from_ego"), (4, 4), "global_from_ego")
    scalars = [batch.column(name).to_pylist() for name in ("token", "scene", "scene_token", "timestamp")]
    cameras = _per_row(batch, "cameras", names, _camera_factory)
    radars = _per_row(batch, "radars", names, lambda items: _sweep_factory(items, len(RADAR_FIELDS), "radars"))
    lidars = _per_row(batch, "lidars", names, lambda items: _sweep_factory(items, len(LIDAR_FIELDS), "lidars"))
    boxes = _boxes_per_row(batch, _BOXES, "boxes")
    boxes2d = _boxes_per_row(batch, _BOXES2D, "boxes2d")
    for index, (token, scene, scene_token, timestamp) in enumerate(zip(*scalars, strict=True)):
        yield Sample(
            token=token,
            scene=scene,
            scene_token=scene_token,
            timestamp=timestamp,
            global_from_ego=matrices[index],
            cameras=cameras(index),
            radars=radars(index),
            lidars=lidars(index),
            boxes=boxes(index),
            boxes2d=boxes2d(index),
        )


def _per_row(
    batch: pa.RecordBatch, column: str, present: set[str], factory: Callable[[pa.StructArray], Callable[[int], ItemT]]
) -> Callable[[int], list[ItemT]]:
    """Function from a row number to that row's list of sensor objects."""
    if column not in present:
        return lambda row: []
    array = batch.column(column)
    offsets = _offsets(array)
    make = factory(array.flatten())
    return lambda row: [make(item) for item in range(offsets[row], offsets[row + 1])]


def _offsets(array: pa.ListArray) -> np.ndarray:
    """Bounds of each list inside ``array.flatten()``, also when ``array`` is a slice of a larger one."""
    offsets = array.offsets.to_numpy()
    return offsets - offsets[0]


def _shaped(array: pa.ListArray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """All fixed-size lists of a column as one array (rows, *shape), a view."""
    values = array.flatten().to_numpy(zero_copy_only=True)
    size = int(np.prod(shape))
    if not (np.diff(array.offsets.to_numpy()) == size).all():
        raise UserError(f"column {name!r} holds a list that has not {size} values: the dataset is damaged")
    return values.reshape(-1, *shape)


def _camera_factory(items: pa.StructArray) -> Callable[[int], CameraFrame]:
    name, jpeg = items.field("name"), items.field("jpeg")
    width, height, timestamp = (items.field(key).to_numpy() for key in ("width", "height", "timestamp"))
    intrinsics = _shaped(items.field("intrinsics"), (3, 3), "cameras.intrinsics")
    ego_from_camera = _shaped(items.field("ego_from_camera"), (4, 4), "cameras.ego_from_camera")
    global_from_ego = _shaped(items.field("global_from_ego"), (4, 4), "cameras.global_from_ego")

    def make(index: int) -> CameraFrame:
        return CameraFrame(
            name=name[index].as_py(),
            jpeg=jpeg[index].as_py(),
            width=int(width[index]),
            height=int(height[index]),
            intrinsics=intrinsics[index],
            ego_from_camera=ego_from_camera[index],
            global_from_ego=global_from_ego[index],
            timestamp=int(timestamp[index]),
        )

    return make


def _sweep_factory(items: pa.StructArray, fields: int, column: str) -> Callable[[int], PointSweep]:
    name = items.field("name")
    sensor_id, time_lag = items.field("sensor_id").to_numpy(), items.field("time_lag").to_numpy()
    ego_from_sensor = _shaped(items.field("ego_from_sensor"), (4, 4), f"{column}.ego_from_sensor")
    points = items.field("points")
    bounds, values = _offsets(points), points.flatten().to_numpy(zero_copy_only=True)
    if (np.diff(bounds) % fields).any():
        raise UserError(
            f"column '{column}.points' holds a list that is no multiple of {fields}: the dataset is damaged"
        )

    def make(index: int) -> PointSweep:
        return PointSweep(
            name=name[index].as_py(),
            sensor_id=int(sensor_id[index]),
            time_lag=float(time_lag[index]),
            ego_from_sensor=ego_from_sensor[index],
            points=values[bounds[index] : bounds[index + 1]].reshape(-1, fields),
        )

    return make


def _boxes_per_row(batch: pa.RecordBatch, layout: _Layout[BoxesT], column: str) -> Callable[[int], BoxesT]:
    """Function from a row number to that row's boxes; none where the column was not read."""
    if column not in batch.schema.names:
        return lambda row: layout.kind()
    array = batch.column(column)
    offsets, items = _offsets(array), array.flatten()
    values: dict[str, Any] = {name: items.field(name).to_pylist() for name in layout.texts}
    values |= {name: _shaped(items.field(name), (size,), f"{column}.{name}") for name, size in layout.vectors.items()}
    values |= {name: items.field(name).to_numpy() for name in layout.scalars}

    def make(row: int) -> BoxesT:
        part = slice(offsets[row], offsets[row + 1])
        return layout.kind(**{name: content[part] for name, content in values.items()})

    return make
