"""The sensors of the embedded world's vehicles: where they sit, how they look and when they fire.

Mounting positions, directions and focal lengths are typical of the nuScenes vehicles. There are two vehicles that
differ by a few centimetres and tenths of a degree, as in the real fleet, so that nothing can rely on one calibration.

The ego frame is at the rear axle on the ground: x forward, y left, z up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sensorlab.data.random_streams import keyed_generator
from sensorlab.geometry.cameras import resize_intrinsics
from sensorlab.geometry.poses import rigid

REFERENCE_IMAGE_SIZE = (1600, 900)  # width, height, pixels: what the focal lengths below belong to
VEHICLES = 2

LIDAR_RINGS = 32
LIDAR_ELEVATION = (-30.67, 10.67)  # degrees, ring 0 is the lowest
LIDAR_RANGE = 72.0  # metres
RADAR_PERIOD = 1.0 / 13.0  # seconds
RADAR_RANGE = {"RADAR_FRONT": 160.0}  # metres; the corner radars reach RADAR_RANGE_CORNER
RADAR_RANGE_CORNER = 85.0
RADAR_HALF_FOV = math.radians(62.0)

# name: (position x, y, z in metres; yaw, pitch up in degrees; focal length, principal point in pixels; time after the
# lidar's in seconds: the spinning lidar triggers each camera when it sweeps past its axis)
_CAMERAS: dict[str, tuple[tuple[float, float, float], float, float, tuple[float, float, float], float]] = {
    "CAM_FRONT": ((1.70, 0.01, 1.51), 0.3, -0.3, (1266.0, 816.0, 491.0), -0.0352),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -56.5, -0.5, (1261.0, 808.0, 495.0), -0.0272),
    "CAM_BACK_RIGHT": ((1.02, -0.48, 1.56), -111.0, -0.6, (1258.0, 807.0, 500.0), -0.0195),
    "CAM_BACK": ((0.03, 0.00, 1.58), 179.8, 0.7, (809.0, 829.0, 482.0), -0.0101),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.59), 108.6, -0.4, (1257.0, 793.0, 493.0), -0.0003),
    "CAM_FRONT_LEFT": ((1.53, 0.49, 1.51), 55.2, 0.2, (1271.0, 826.0, 480.0), -0.0429),
}
_RADARS: dict[str, tuple[tuple[float, float, float], float, float]] = {  # position, yaw, phase of the period in seconds
    "RADAR_FRONT": ((3.41, 0.00, 0.50), 0.0, 0.008),
    "RADAR_FRONT_LEFT": ((2.42, 0.80, 0.78), 89.5, 0.031),
    "RADAR_FRONT_RIGHT": ((2.42, -0.80, 0.77), -90.2, 0.052),
    "RADAR_BACK_LEFT": ((-0.56, 0.63, 0.53), 174.5, 0.017),
    "RADAR_BACK_RIGHT": ((-0.56, -0.62, 0.53), -175.6, 0.066),
}
_LIDAR = ("LIDAR_TOP", (0.95, 0.0, 1.84), -90.0, -0.25)

CAMERA_NAMES = tuple(_CAMERAS)
RADAR_NAMES = tuple(_RADARS)
LIDAR_NAME = _LIDAR[0]

# Columns are the axes of a camera (x right, y down, z forward) that looks along the ego x axis.
_EGO_FROM_LEVEL_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True)
class CameraSpec:
    """One camera: ``ego_from_sensor`` (4, 4), ``intrinsics`` (3, 3) for ``image_size`` = (width, height)."""

    name: str
    ego_from_sensor: np.ndarray
    intrinsics: np.ndarray
    image_size: tuple[int, int]
    time_offset: float  # seconds after the lidar


@dataclass(frozen=True)
class LidarSpec:
    """The lidar: ``directions`` (A, 32, 3) unit vectors in its frame, columns in firing order, ring 0 lowest."""

    name: str
    ego_from_sensor: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class RadarSpec:
    """One radar. It measures in the plane of its own x (boresight) and y axes."""

    name: str
    ego_from_sensor: np.ndarray
    max_range: float
    phase: float  # seconds


@dataclass(frozen=True)
class Rig:
    """All sensors of one vehicle."""

    vehicle: int
    cameras: tuple[CameraSpec, ...]
    lidar: LidarSpec
    radars: tuple[RadarSpec, ...]

    @property
    def sensors(self) -> tuple[CameraSpec | LidarSpec | RadarSpec, ...]:
        """All of them: cameras, lidar, radars."""
        return (*self.cameras, self.lidar, *self.radars)


def make_rig(vehicle: int, image_size: tuple[int, int], lidar_azimuths: int) -> Rig:
    """The sensors of vehicle 0 or 1.

    Args:
        image_size: width and height in pixels. The intrinsics are scaled so that the field of view stays the same.
        lidar_azimuths: columns per turn of the lidar.
    """
    rng = keyed_generator("synthetic-rig", vehicle)
    cameras = []
    for name, (position, yaw, pitch, (focal, cx, cy), offset) in _CAMERAS.items():
        yaw, pitch, roll = yaw + rng.uniform(-0.6, 0.6), pitch + rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.3)
        focal = focal + rng.uniform(-6.0, 6.0)
        full = np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]])
        scale = image_size[0] / REFERENCE_IMAGE_SIZE[0], image_size[1] / REFERENCE_IMAGE_SIZE[1]
        rotation = _rotation(yaw, pitch, roll) @ _EGO_FROM_LEVEL_CAMERA
        pose = rigid(rotation, _jittered(position, rng))
        cameras.append(CameraSpec(name, pose, resize_intrinsics(full, scale), image_size, offset))
    name, position, yaw, pitch = _LIDAR
    lidar_pose = rigid(_rotation(yaw, pitch, rng.uniform(-0.2, 0.2)), _jittered(position, rng))
    lidar = LidarSpec(name, lidar_pose, lidar_directions(lidar_azimuths))
    radars = tuple(
        RadarSpec(
            name,
            rigid(_rotation(yaw + rng.uniform(-0.4, 0.4), 0.0, 0.0), np.array(position)),
            RADAR_RANGE.get(name, RADAR_RANGE_CORNER),
            phase,
        )
        for name, (position, yaw, phase) in _RADARS.items()
    )
    return Rig(vehicle, tuple(cameras), lidar, radars)


def lidar_directions(azimuths: int) -> np.ndarray:
    """(azimuths, 32, 3) float32 unit vectors in the lidar frame; a turn runs clockwise and begins at -x."""
    azimuth = np.deg2rad(180.0 - np.arange(azimuths) * (360.0 / azimuths))[:, None]
    elevation = np.deg2rad(np.linspace(*LIDAR_ELEVATION, LIDAR_RINGS))[None, :]
    parts = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation) + 0 * azimuth)
    return np.stack(parts, axis=-1).astype(np.float32)


def _jittered(position: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    return np.array(position) + rng.uniform(-0.02, 0.02, 3)


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """ego_from_sensor rotation (3, 3): yaw about z, then pitch (positive looks up), then roll about x; degrees."""
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (yaw, -pitch, roll))
    about_z = np.array([[cy, -sy, 0.0], [sy, cy, 0.0], [0.0, 0.0, 1.0]])
    about_y = np.array([[cp, 0.0, sp], [0.0, 1.0, 0.0], [-sp, 0.0, cp]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cr, -sr], [0.0, sr, cr]])
    return about_z @ about_y @ about_x
