"""Small samples for the tests of BEV segmentation: a rig that turns and moves, a few boxes, radar and lidar."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from sensorlab.config import merge, validate
from sensorlab.data.sample import Boxes, CameraFrame, PointSweep, Sample
from sensorlab.geometry.poses import inverse_rigid, quaternion_from_yaw, rigid, rigid_from_quaternion
from sensorlab.tasks.bev_segmentation import Task

WIDTH, HEIGHT = 320, 192  # pixels of the encoded images
INTRINSICS = np.array([[200.0, 0, 160.0], [0, 200.0, 90.0], [0, 0, 1]])
HEADINGS = {"CAM_FRONT_LEFT": 60.0, "CAM_FRONT": 0.0, "CAM_FRONT_RIGHT": -60.0, "CAM_BACK": 180.0}  # degrees, left > 0
# Axes of a camera that looks along the vehicle's x: right = -y, down = -z, forward = x.
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])

SMALL: dict[str, Any] = {
    "name": "bev_segmentation",
    "grid": {"x": [-20, 20], "z": [-20, 20], "cells": [40, 2, 40]},
    "model": {"encoder": "res18", "latent_dim": 8, "neck_width": 8, "decoder_width": 8},
    "image": {"size": [48, 80]},
}


def small_task(tree: Mapping[str, Any] | None = None) -> Task:
    """A task on a 40 x 2 x 40 grid of 1 m cells with a tiny network; ``tree`` is merged over that."""
    return Task(validate(Task.Config, merge(SMALL, tree or {})))


def yaw_pose(degrees: float, translation: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """(4, 4) rotation about the vertical axis and a translation."""
    return rigid_from_quaternion(quaternion_from_yaw(np.radians(np.array(degrees))), np.array(translation, float))


def box_list(*rows: tuple[str, float, float, float, int]) -> Boxes:
    """Boxes of 4 x 2 x 1.6 m standing on the ground from (category, x, y, yaw in degrees, visibility), ego frame."""
    yaw = np.radians(np.array([row[3] for row in rows], float))
    return Boxes(
        category=[row[0] for row in rows],
        visibility=np.array([row[4] for row in rows], np.int8),
        center=np.array([[row[1], row[2], 0.8] for row in rows], float).reshape(-1, 3),
        size=np.tile([4.0, 2.0, 1.6], (len(rows), 1)),
        rotation=quaternion_from_yaw(yaw).reshape(-1, 4),
        num_lidar_points=np.arange(len(rows), dtype=np.int32),
    )


BOXES = box_list(
    ("vehicle.car", 10.0, 3.0, 20.0, 4),
    ("human.pedestrian.adult", 6.0, -4.0, 0.0, 4),
    ("vehicle.truck", -8.0, -2.0, 90.0, 1),
    ("vehicle.car", 9.0, -7.0, -30.0, 3),
)


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def make_sample(
    token: str = "s0", boxes: Boxes = BOXES, seed: int = 0, pictures: Mapping[str, np.ndarray] | None = None
) -> Sample:
    """A sample whose vehicle drives and turns between the exposures of its cameras.

    Args:
        pictures: images by camera name; noise of ``seed`` otherwise.
    """
    random = np.random.default_rng(seed)
    global_from_ego = yaw_pose(35.0, (600.0, 1500.0, 2.0))
    cameras = []
    for index, (name, heading) in enumerate(HEADINGS.items()):
        pixels = None if pictures is None else pictures[name]
        if pixels is None:
            pixels = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        mounted = yaw_pose(heading, (1.0, 0.1 * index, 1.5)) @ rigid(FORWARD, np.zeros(3))
        moved = global_from_ego @ yaw_pose(0.4 * index, (0.3 * index, 0.0, 0.0))
        cameras.append(CameraFrame(name, encode(pixels), WIDTH, HEIGHT, INTRINSICS, mounted, moved, 1000 * index))
    return Sample(
        token, "scene", "st", 0, global_from_ego, cameras=cameras, boxes=boxes,
        radars=[radar_sweep(random, "RADAR_FRONT", lag) for lag in (0.0, 0.08, 0.16)],
        lidars=[lidar_sweep(random, lag) for lag in (0.0, 0.05)],
    )  # fmt: skip


def radar_sweep(random: np.random.Generator, name: str, time_lag: float, count: int = 30) -> PointSweep:
    points = np.zeros((count, 18), np.float32)
    points[:, :2] = random.uniform(3, 18, (count, 2))
    points[:, 3] = random.integers(0, 8, count)  # dyn_prop: 7 fails the default filters
    points[:, 6:10] = random.normal(0, 5, (count, 4))
    points[:, 11] = 3
    return PointSweep(name, 0, time_lag, yaw_pose(10.0, (3.4, 0.0, 0.5)), points)


def lidar_sweep(random: np.random.Generator, time_lag: float, count: int = 400) -> PointSweep:
    points = np.zeros((count, 5), np.float32)
    points[:, :3] = random.uniform((-18, -18, -1.5), (18, 18, 0.5), (count, 3))
    return PointSweep("LIDAR_TOP", 0, time_lag, yaw_pose(-90.0, (0.9, 0.0, 1.8)), points)


def ego_from_camera_now(sample: Sample, name: str) -> np.ndarray:
    """Where a camera was when it exposed, in the ego frame of the reference time."""
    camera = next(c for c in sample.cameras if c.name == name)
    return inverse_rigid(sample.global_from_ego) @ camera.global_from_ego @ camera.ego_from_camera
