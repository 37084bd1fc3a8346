"""The in-memory form of one sample: what a task's transform receives.

One sample is one row of a prepared dataset (:mod:`sensorlab.data.schema`), decoded to numpy views. Lists hold any
number of sensors, so any rig fits; a modality that was not recorded, or that the experiment did not ask for, is an
empty list.

Frames (right-handed, metres, radians): *global* is the map; *ego* is the vehicle (x forward, y left, z up) **at the
sample's reference time**; *camera* is x right, y down, z forward; radar and lidar frames are those of the sensor.
``a_from_b`` is the 4x4 float64 matrix that maps points of frame b into frame a.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Field order of the points of a radar sweep: the 18 fields of a nuScenes radar file, raw, in the radar's own frame.
RADAR_FIELDS = (
    "x", "y", "z", "dyn_prop", "id", "rcs", "vx", "vy", "vx_comp", "vy_comp", "is_quality_valid", "ambig_state",
    "x_rms", "y_rms", "invalid_state", "pdh0", "vx_rms", "vy_rms",
)  # fmt: skip
# Field order of the points of a lidar sweep.
LIDAR_FIELDS = ("x", "y", "z", "intensity", "ring")


@dataclass(frozen=True)
class CameraFrame:
    """One encoded image with its calibration at its own time."""

    name: str
    jpeg: bytes  # encoded image: JPEG, or PNG where the source has that
    width: int  # pixels of the encoded image
    height: int
    intrinsics: np.ndarray  # (3, 3) float64, pixels of the encoded image, pixel centres at integer coordinates
    ego_from_camera: np.ndarray  # (4, 4) calibration: the ego frame at the camera's own time
    global_from_ego: np.ndarray  # (4, 4) ego pose at the camera's own time
    timestamp: int  # microseconds


@dataclass(frozen=True)
class PointSweep:
    """Points of one sweep of one sensor, raw, in the sensor's frame."""

    name: str
    sensor_id: int  # index of the sensor in the rig, stable within a dataset
    time_lag: float  # seconds before the sample's reference time; 0 for the keyframe, positive for older sweeps
    ego_from_sensor: np.ndarray  # (4, 4) into the sample's ego frame, ego motion since the sweep included
    points: np.ndarray  # (N, 18) RADAR_FIELDS or (N, 5) LIDAR_FIELDS, float32


@dataclass(frozen=True)
class Boxes:
    """Annotated 3D boxes in the sample's ego frame, as arrays over N boxes."""

    token: list[str] = field(default_factory=list)
    instance: list[str] = field(default_factory=list)
    category: list[str] = field(default_factory=list)  # for example "vehicle.car"
    attributes: list[list[str]] = field(default_factory=list)
    visibility: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))  # 1 (0-40 %) .. 4; 0 unknown
    center: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))  # (N, 3) float64, metres
    size: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))  # (N, 3) length, width, height, metres
    rotation: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))  # (N, 4) ego_from_box quaternion w, x, y, z
    velocity: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))  # (N, 3) m/s in ego axes; NaN where unknown
    num_lidar_points: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    num_radar_points: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.category)


@dataclass(frozen=True)
class Boxes2D:
    """Annotated boxes in the images, as arrays over M boxes.

    Coordinates are continuous pixels of the encoded image: 0 is its left or upper border, not the centre of its first
    pixel, so a box over all of a W x H image is (0, 0, W, H).
    """

    category: list[str] = field(default_factory=list)  # for example "RBC"
    instance: list[str] = field(default_factory=list)  # equal for one object over a sequence; "" where unknown
    camera: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # (M,) position in Sample.cameras
    xyxy: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))  # (M, 4) float64: left, top, right, bottom
    area: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (M,) float64, px^2: of the mask where there is one
    ignore: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))  # 1: crowd or difficult, not scored

    def __len__(self) -> int:
        return len(self.category)


@dataclass(frozen=True)
class Sample:
    """Everything one training example needs."""

    token: str
    scene: str  # scene name
    scene_token: str
    timestamp: int  # microseconds, the reference time of the sample
    global_from_ego: np.ndarray  # (4, 4) ego pose at the reference time
    cameras: list[CameraFrame] = field(default_factory=list)
    radars: list[PointSweep] = field(default_factory=list)  # keyframe sweeps first (time_lag 0), then older ones
    lidars: list[PointSweep] = field(default_factory=list)
    boxes: Boxes = field(default_factory=Boxes)
    boxes2d: Boxes2D = field(default_factory=Boxes2D)
