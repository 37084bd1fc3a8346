"""Random samples for tests: small, deterministic, with every column filled."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sensorlab.data.sample import LIDAR_FIELDS, RADAR_FIELDS, Boxes, CameraFrame, PointSweep, Sample


def make_jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """A JPEG with a smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def make_pose(rng: np.random.Generator) -> np.ndarray:
    """A random rigid transform (4, 4)."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    pose[:3, 3] = rng.normal(size=3)
    return pose


def make_sample(index: int, cameras: int = 2, radars: int = 2, lidars: int = 1, boxes: int = 3) -> Sample:
    """Sample ``index`` of a fictitious scene; equal arguments give equal samples."""
    rng = np.random.default_rng(index)
    return Sample(
        token=f"sample-{index}",
        scene="scene-a",
        scene_token="scene-token-a",
        timestamp=1_000_000 + index * 500_000,
        global_from_ego=make_pose(rng),
        cameras=[_camera(rng, f"CAM_{i}", index) for i in range(cameras)],
        radars=[_sweep(rng, f"RADAR_{i}", i, int(rng.integers(0, 20)), len(RADAR_FIELDS)) for i in range(radars)],
        lidars=[_sweep(rng, f"LIDAR_{i}", i, int(rng.integers(1, 50)), len(LIDAR_FIELDS)) for i in range(lidars)],
        boxes=_boxes(rng, boxes),
    )


def _camera(rng: np.random.Generator, name: str, index: int) -> CameraFrame:
    intrinsics = np.array([[40.0, 0, 31.5], [0, 40.0, 17.5], [0, 0, 1]]) + rng.normal(size=(3, 3)) * [[1], [1], [0]]
    return CameraFrame(
        name, make_jpeg(64, 36, index), 64, 36, intrinsics, make_pose(rng), make_pose(rng), 1_000_000 + index
    )


def _sweep(rng: np.random.Generator, name: str, sensor: int, points: int, fields: int) -> PointSweep:
    values = rng.normal(size=(points, fields)).astype(np.float32)
    return PointSweep(name, sensor, 0.05 * sensor, make_pose(rng), values)


def _boxes(rng: np.random.Generator, count: int) -> Boxes:
    rotation = rng.normal(size=(count, 4))
    velocity = rng.normal(size=(count, 3))
    velocity[:1] = np.nan
    return Boxes(
        token=[f"box-{rng.integers(1 << 30)}" for _ in range(count)],
        instance=[f"instance-{i}" for i in range(count)],
        category=["vehicle.car" if i % 2 else "human.pedestrian.adult" for i in range(count)],
        attributes=[["vehicle.moving"] * (i % 3) for i in range(count)],
        visibility=rng.integers(0, 5, count).astype(np.int8),
        center=rng.normal(size=(count, 3)) * 20,
        size=rng.uniform(0.5, 4, (count, 3)),
        rotation=rotation / np.linalg.norm(rotation, axis=1, keepdims=True),
        velocity=velocity,
        num_lidar_points=rng.integers(0, 9, count).astype(np.int32),
        num_radar_points=rng.integers(0, 9, count).astype(np.int32),
    )
