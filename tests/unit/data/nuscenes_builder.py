"""A tiny nuScenes dataroot for tests, written by hand: every value is simple enough to compute on paper.

One lidar, two radars and two cameras; the vehicle drives along global x at ``SPEED`` from x = 100 and is turned by 90
degrees (it faces global +y but slides along x: no real car does, but errors of frames cannot hide). Keyframes are 0.6 s
apart with two radar and lidar sweeps between them. One car drives along global x at 4 m/s, one pedestrian is annotated
once. Independent of the reader: files are written with ``struct`` and ``json``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sample_factory import make_jpeg

SPEED = 10.0  # m/s along global x
START = 1_600_000_000_000_000  # microseconds
STEP = 600_000  # between keyframes
HALF = 0.7071067811865476
EGO_ROTATION = [HALF, 0.0, 0.0, HALF]  # 90 degrees about z
CHANNELS = {
    "LIDAR_TOP": ("lidar", [1.0, 0.0, 1.8]),
    "RADAR_FRONT": ("radar", [3.0, 0.0, 0.5]),
    "RADAR_BACK": ("radar", [-1.0, 0.0, 0.5]),
    "CAM_FRONT": ("camera", [1.5, 0.0, 1.5]),
    "CAM_BACK": ("camera", [-0.5, 0.0, 1.5]),
}
CAMERA_ROTATION = [0.5, -0.5, 0.5, -0.5]  # camera z along ego x
INTRINSICS = [[50.0, 0.0, 31.5], [0.0, 50.0, 17.5], [0.0, 0.0, 1.0]]
WIDTH, HEIGHT = 64, 36
CAMERA_DELAY = 20_000  # the cameras' images are taken 20 ms after the lidar's keyframe
RADAR_FORMAT = "<fffbhfffffbbbbbbbb"
RADAR_NAMES = (
    "x y z dyn_prop id rcs vx vy vx_comp vy_comp is_quality_valid ambig_state x_rms y_rms invalid_state pdh0 vx_rms "
    "vy_rms"
)


def radar_point(x: float, y: float, number: int = 0) -> tuple[Any, ...]:
    """One radar record; fields that tests do not look at count up."""
    return (x, y, 0.0, 1, 300 + number, 12.5, 1.0, -1.0, 0.5, -0.5, 1, 3, 4, 5, 0, 1, 6, 7)


def pcd_bytes(points: list[tuple[Any, ...]], count: int | None = None) -> bytes:
    """A binary radar file as nuScenes has it."""
    total = len(points) if count is None else count
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
        f"FIELDS {RADAR_NAMES}\nSIZE 4 4 4 1 2 4 4 4 4 4 1 1 1 1 1 1 1 1\nTYPE F F F I I F F F F F I I I I I I I I\n"
        f"COUNT {' '.join(['1'] * 18)}\nWIDTH {total}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {total}\nDATA binary\n"
    )
    return header.encode() + b"".join(struct.pack(RADAR_FORMAT, *point) for point in points)


def ego_x(timestamp: int) -> float:
    """Global x of the vehicle."""
    return 100.0 + SPEED * (timestamp - START) * 1e-6


class NuScenesBuilder:
    """Collects the tables and writes the sensor files."""

    def __init__(self, root: Path, version: str = "v1.0-mini") -> None:
        self.root, self.version = root, version
        self.tables: dict[str, list[dict[str, Any]]] = {
            "attribute": [{"token": "attr-moving", "name": "vehicle.moving", "description": ""}],
            "category": [
                {"token": "cat-car", "name": "vehicle.car", "description": ""},
                {"token": "cat-person", "name": "human.pedestrian.adult", "description": ""},
            ],
            "visibility": [
                {"token": str(i + 1), "level": level, "description": ""}
                for i, level in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"))
            ],
            "log": [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": ""}],
            "map": [],
            "sensor": [
                {"token": f"sensor-{channel}", "channel": channel, "modality": modality}
                for channel, (modality, _) in CHANNELS.items()
            ],
            "calibrated_sensor": [
                {
                    "token": f"calib-{channel}",
                    "sensor_token": f"sensor-{channel}",
                    "translation": translation,
                    "rotation": CAMERA_ROTATION if modality == "camera" else [1, 0, 0, 0],
                    "camera_intrinsic": INTRINSICS if modality == "camera" else [],
                }
                for channel, (modality, translation) in CHANNELS.items()
            ],
        }
        for table in ("scene", "sample", "sample_data", "ego_pose", "sample_annotation", "instance"):
            self.tables[table] = []

    def add_scene(self, name: str, keyframes: int, sweeps_between: int = 2) -> None:
        """A scene of ``keyframes`` samples, ``sweeps_between`` lidar and radar files before each but the first."""
        number = len(self.tables["scene"])
        samples = [f"{name}-sample-{k}" for k in range(keyframes)]
        self.tables["scene"].append({"token": f"{name}-token", "name": name, "nbr_samples": keyframes, "log_token": ""})
        start = START + number * 100_000_000
        for k, token in enumerate(samples):
            self.tables["sample"].append(
                {"token": token, "timestamp": start + k * STEP, "scene_token": f"{name}-token", "prev": "", "next": ""}
            )
        for channel, (modality, _) in CHANNELS.items():
            self._add_recordings(name, channel, modality, start, samples, sweeps_between)
        self._add_boxes(name, start, samples)

    def _add_recordings(
        self, name: str, channel: str, modality: str, start: int, samples: list[str], sweeps_between: int
    ) -> None:
        between = 0 if modality == "camera" else sweeps_between
        period = STEP // (between + 1)
        previous = ""
        for step in range((len(samples) - 1) * (between + 1) + 1):
            timestamp = start + step * period + (CAMERA_DELAY if modality == "camera" else 0)
            is_key = step % (between + 1) == 0
            suffix = {"camera": "jpg", "radar": "pcd", "lidar": "pcd.bin"}[modality]
            file = f"{'samples' if is_key else 'sweeps'}/{channel}/{name}__{timestamp}.{suffix}"
            token = f"{name}-{channel}-{step}"
            self.tables["ego_pose"].append(
                {
                    "token": f"pose-{token}",
                    "timestamp": timestamp,
                    "rotation": EGO_ROTATION,
                    "translation": [ego_x(timestamp), 0.0, 0.0],
                }
            )
            self.tables["sample_data"].append(
                {
                    "token": token,
                    "sample_token": samples[-(-step // (between + 1))],
                    "ego_pose_token": f"pose-{token}",
                    "calibrated_sensor_token": f"calib-{channel}",
                    "timestamp": timestamp,
                    "fileformat": suffix.split(".")[0],
                    "is_key_frame": is_key,
                    "height": HEIGHT if modality == "camera" else 0,
                    "width": WIDTH if modality == "camera" else 0,
                    "filename": file,
                    "prev": previous,
                    "next": "",
                }
            )
            previous = token
            self._write_file(file, modality, step)

    def _write_file(self, file: str, modality: str, step: int) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if modality == "camera":
            path.write_bytes(make_jpeg(WIDTH, HEIGHT, step))
        elif modality == "radar":
            path.write_bytes(pcd_bytes([radar_point(10.0 + step, 1.0, n) for n in range(3)]))
        else:
            path.write_bytes(np.array([[5.0, step, 0.5, 30, 2], [6.0, step, 0.5, 20, 3]], "<f4").tobytes())

    def _add_boxes(self, name: str, start: int, samples: list[str]) -> None:
        self.tables["instance"] += [
            {"token": f"{name}-car", "category_token": "cat-car"},
            {"token": f"{name}-person", "category_token": "cat-person"},
        ]
        for k, sample in enumerate(samples):
            self.tables["sample_annotation"].append(
                {
                    "token": f"{name}-car-{k}",
                    "sample_token": sample,
                    "instance_token": f"{name}-car",
                    "visibility_token": "4",
                    "attribute_tokens": ["attr-moving"],
                    "translation": [120.0 + 4.0 * k * STEP * 1e-6, 7.0, 1.0],
                    "size": [1.9, 4.5, 1.6],
                    "rotation": EGO_ROTATION,
                    "prev": f"{name}-car-{k - 1}" if k else "",
                    "next": f"{name}-car-{k + 1}" if k + 1 < len(samples) else "",
                    "num_lidar_pts": 5,
                    "num_radar_pts": 1,
                }
            )
        self.tables["sample_annotation"].append(
            {
                "token": f"{name}-person-0",
                "sample_token": samples[0],
                "instance_token": f"{name}-person",
                "visibility_token": "",
                "attribute_tokens": [],
                "translation": [100.0, 20.0, 0.9],
                "size": [0.6, 0.7, 1.8],
                "rotation": [1, 0, 0, 0],
                "prev": "",
                "next": "",
                "num_lidar_pts": 0,
                "num_radar_pts": 0,
            }
        )

    def write(self) -> Path:
        """Write the tables; returns the dataroot."""
        directory = self.root / self.version
        directory.mkdir(parents=True, exist_ok=True)
        for table, records in self.tables.items():
            (directory / f"{table}.json").write_text(json.dumps(records, indent=0))
        return self.root


def build_root(root: Path, train: int = 3, val: int = 2) -> Path:
    """Two scenes, ``drive-train`` and ``drive-val``."""
    builder = NuScenesBuilder(root)
    builder.add_scene("drive-train", train)
    builder.add_scene("drive-val", val)
    return builder.write()


def edit_table(
    root: Path, table: str, change: Callable[[list[dict[str, Any]]], Any], version: str = "v1.0-mini"
) -> None:
    """Apply ``change`` to the records of a table in place."""
    path = root / version / f"{table}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))
