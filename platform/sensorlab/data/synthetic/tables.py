"""Rows of the 13 nuScenes tables, and the tokens that link them.

A token is a digest of what it stands for, so the same world has the same tokens everywhere and two worlds of
different seeds never share one, except for the taxonomy and the sensors, which are the same in every world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from sensorlab.data.synthetic.catalogue import ATTRIBUTES, CATEGORIES, VISIBILITY_LEVELS
from sensorlab.data.synthetic.rig import CAMERA_NAMES, LIDAR_NAME, RADAR_NAMES
from sensorlab.geometry.poses import quaternion_from_rotation, quaternion_from_yaw

TABLE_NAMES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample",
    "sample_annotation", "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip

Row = dict[str, Any]
Tables = dict[str, list[Row]]


def token(*parts: str | int) -> str:
    """32 hexadecimal digits that stand for ``parts``."""
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def category_token(name: str) -> str:
    return token("category", name)


def attribute_token(name: str) -> str:
    return token("attribute", name)


def sensor_token(channel: str) -> str:
    return token("sensor", channel)


def shared_tables() -> Tables:
    """The tables that do not depend on the scenes: taxonomy, visibility levels and sensors."""
    percent = ("0 and 40", "40 and 60", "60 and 80", "80 and 100")
    modalities = [(name, "camera") for name in CAMERA_NAMES]
    modalities += [(LIDAR_NAME, "lidar"), *((name, "radar") for name in RADAR_NAMES)]
    return {
        "category": [{"token": category_token(name), "name": name, "description": ""} for name in CATEGORIES],
        "attribute": [{"token": attribute_token(name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [
            {"token": str(i + 1), "level": level, "description": f"visibility of whole object is between {share}%"}
            for i, (level, share) in enumerate(zip(VISIBILITY_LEVELS, percent, strict=True))
        ],
        "sensor": [{"token": sensor_token(n), "channel": n, "modality": modality} for n, modality in modalities],
    }


def visibility_token(visible_pixels: int, pixels_alone: int) -> str:
    """Token "1" to "4" for the share of an object's pixels that is seen; an object outside all images has "1"."""
    share = visible_pixels / pixels_alone if pixels_alone else 0.0
    return str(1 + sum(share >= limit for limit in (0.4, 0.6, 0.8)))


def calibration_row(key: str, channel: str, ego_from_sensor: np.ndarray, intrinsics: np.ndarray | None) -> Row:
    return {
        "token": key,
        "sensor_token": sensor_token(channel),
        "translation": numbers(ego_from_sensor[:3, 3]),
        "rotation": numbers(quaternion_from_rotation(ego_from_sensor[:3, :3])),
        "camera_intrinsic": [] if intrinsics is None else [numbers(line) for line in intrinsics],
    }


def ego_pose_row(key: str, timestamp: int, pose: tuple[float, float, float]) -> Row:
    return {
        "token": key,
        "timestamp": timestamp,
        "rotation": yaw_rotation(pose[2]),
        "translation": [float(pose[0]), float(pose[1]), 0.0],
    }


def yaw_rotation(yaw: float) -> list[float]:
    """Quaternion w, x, y, z of a rotation about z."""
    return numbers(quaternion_from_yaw(np.array(yaw)))


def numbers(values: np.ndarray) -> list[float]:
    return [float(value) for value in values]


def link(rows: Iterable[Row]) -> None:
    """Fill ``prev`` and ``next`` of rows that follow one another, in place."""
    previous: Row | None = None
    for row in rows:
        row["prev"], row["next"] = previous["token"] if previous else "", ""
        if previous:
            previous["next"] = row["token"]
        previous = row


def merge_tables(parts: Iterable[Tables]) -> Tables:
    """All rows of several partial tables, in the order of the parts; every table is present."""
    merged: Tables = {name: [] for name in TABLE_NAMES}
    for part in parts:
        for name, rows in part.items():
            merged[name].extend(rows)
    return merged
