"""Lidar and radar of the embedded world: the same bodies, seen by their geometry.

A sweep is taken at one instant: lidar points of a real turn are compensated to one time before they are published, so
nothing is lost. Points are written raw, in the sensor's own frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sensorlab.data.synthetic.ground import Ground
from sensorlab.data.synthetic.motion import MOVING_SPEED, Actor, WorldState
from sensorlab.data.synthetic.raycast import intersect, origin_in_box, to_box_axes
from sensorlab.data.synthetic.rig import LIDAR_RANGE, RADAR_HALF_FOV, LidarSpec, RadarSpec
from sensorlab.geometry.boxes import footprint_corners
from sensorlab.geometry.poses import transform_points

LIDAR_NOISE = 0.009  # metres along the ray, cut at 2.5 deviations: less than the air in a box
_LIDAR_MINIMUM = 1.2

RADAR_POSITION_NOISE = 0.08  # metres along the line of sight
RADAR_BEARING_NOISE = math.radians(0.25)
RADAR_SPEED_NOISE = 0.04  # m/s
_RADAR_MINIMUM = 1.0

# Codes of the dynamic property of a radar point in nuScenes.
MOVING, STATIONARY, ONCOMING, STATIONARY_CANDIDATE, _UNKNOWN, _CROSSING_STATIONARY, CROSSING_MOVING, STOPPED = range(8)

# The record of one point of a nuScenes radar file.
RADAR_DTYPE = np.dtype(
    [
        ("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4"),
        ("vx", "<f4"), ("vy", "<f4"), ("vx_comp", "<f4"), ("vy_comp", "<f4"), ("is_quality_valid", "i1"),
        ("ambig_state", "i1"), ("x_rms", "i1"), ("y_rms", "i1"), ("invalid_state", "i1"), ("pdh0", "i1"),
        ("vx_rms", "i1"), ("vy_rms", "i1"),
    ]
)  # fmt: skip


class LidarScanner:
    """The lidar in one scene."""

    def __init__(self, spec: LidarSpec, ground: Ground, rain: bool) -> None:
        self.spec = spec
        self._ground, self._rain = ground, rain
        rotation = spec.ego_from_sensor[:3, :3].astype(np.float32)
        self._origin = spec.ego_from_sensor[:3, 3]
        d = spec.directions
        # Written out: a matrix product may differ in the last bit between BLAS builds.
        self._ego = np.stack([d[..., 0] * r[0] + d[..., 1] * r[1] + d[..., 2] * r[2] for r in rotation])
        down = np.minimum(self._ego[2], np.float32(-1e-6))
        self._ground_range = np.float32(-self._origin[2]) / down
        self._ground_range[self._ground_range > LIDAR_RANGE] = np.inf
        self._azimuth = np.arctan2(self._ego[1].mean(axis=1), self._ego[0].mean(axis=1))

    def scan(self, state: WorldState, actors: tuple[Actor, ...], rng: np.random.Generator) -> np.ndarray:
        """Points (N, 5) float32 of one sweep: x, y, z in the lidar frame, intensity 0..255, ring."""
        distance, body = self.cast(state)
        azimuths, rings = np.nonzero(np.isfinite(distance))
        distance, body = distance[azimuths, rings], body[azimuths, rings]
        intensity = self._intensity(state, actors, azimuths, rings, distance, body, rng)
        # Weak and far echoes get lost.
        loss = 0.02 + 0.35 * np.exp(-intensity / 6.0) * distance / LIDAR_RANGE + (0.12 if self._rain else 0.0)
        kept = rng.random(len(distance)) > loss
        noise = np.clip(rng.standard_normal(len(distance)), -2.5, 2.5) * LIDAR_NOISE
        measured = (distance + noise.astype(np.float32))[kept, None]
        points = np.empty((len(measured), 5), dtype=np.float32)
        points[:, :3] = self.spec.directions[azimuths[kept], rings[kept]] * measured
        points[:, 3], points[:, 4] = intensity[kept], rings[kept]
        return points

    def cast(self, state: WorldState) -> tuple[np.ndarray, np.ndarray]:
        """Exact distances (A, 32) float32, ``inf`` without an echo, and the body hit (A, 32) int32, -1 for ground."""
        distance = self._ground_range.copy()
        body = np.full(distance.shape, -1, dtype=np.int32)
        solids = state.solids_in_ego()
        for index, columns in self._candidates(solids):
            box = solids[index]
            directions = to_box_axes(box, (self._ego[0, columns], self._ego[1, columns], self._ego[2, columns]))
            t, _ = intersect(box[3:6] / 2, origin_in_box(box, self._origin), directions)
            nearer = (t < distance[columns]) & (t > _LIDAR_MINIMUM) & (t < LIDAR_RANGE)
            distance[columns] = np.where(nearer, t, distance[columns])
            body[columns] = np.where(nearer, index, body[columns])
        return distance, body

    def _candidates(self, solids: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Bodies in range with the columns (index arrays) that may see them."""
        corners = footprint_corners(solids) - self._origin[:2]
        centre = solids[:, :2] - self._origin[:2]
        near = np.hypot(corners[..., 0], corners[..., 1]).min(axis=1) < LIDAR_RANGE
        bearing = np.arctan2(centre[:, 1], centre[:, 0])
        relative = np.arctan2(corners[..., 1], corners[..., 0]) - bearing[:, None]
        relative = (relative + math.pi) % (2 * math.pi) - math.pi
        margin = 2.5 * 2 * math.pi / len(self._azimuth)
        low, high = relative.min(axis=1) - margin, relative.max(axis=1) + margin
        column = (self._azimuth[None] - bearing[:, None] + math.pi) % (2 * math.pi) - math.pi
        seen = (column >= low[:, None]) & (column <= high[:, None])
        return [(int(i), np.nonzero(seen[i])[0]) for i in np.nonzero(near)[0]]

    def _intensity(
        self,
        state: WorldState,
        actors: tuple[Actor, ...],
        azimuths: np.ndarray,
        rings: np.ndarray,
        distance: np.ndarray,
        body: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Intensities (N,) float32: of bodies by their kind, of the ground by its albedo (paint shines)."""
        reflectivity = np.array([actor.kind.reflectivity for actor in actors] + [0.0], dtype=np.float32)
        base = reflectivity[body]
        on_ground = body < 0
        d = self._ego[:, azimuths[on_ground], rings[on_ground]]
        x, y, yaw = state.ego
        local_x = np.float32(self._origin[0]) + d[0] * distance[on_ground]
        local_y = np.float32(self._origin[1]) + d[1] * distance[on_ground]
        cos, sin = np.float32(math.cos(yaw)), np.float32(math.sin(yaw))
        albedo = self._ground.coarse.nearest(
            np.float32(x) + cos * local_x - sin * local_y, np.float32(y) + sin * local_x + cos * local_y
        )
        base[on_ground] = 2.0 + 22.0 * (albedo[:, 0].astype(np.float32) / 255) ** 2
        spread = np.exp(np.float32(0.35) * rng.standard_normal(len(base), dtype=np.float32))
        return np.clip(np.round(base * spread), 0, 255).astype(np.float32)


@dataclass(frozen=True)
class RadarScan:
    """One radar sweep: the file's records and, beside them, which body each point came from (-1: clutter)."""

    points: np.ndarray  # (N,) RADAR_DTYPE
    body: np.ndarray  # (N,) int64


class RadarScanner:
    """One radar: detections in the plane of the sensor, with Doppler velocities along the line of sight."""

    def __init__(self, spec: RadarSpec) -> None:
        self.spec = spec
        rotation = spec.ego_from_sensor[:2, :2]
        self._yaw = math.atan2(rotation[1, 0], rotation[0, 0])

    def scan(self, state: WorldState, actors: tuple[Actor, ...], rng: np.random.Generator) -> RadarScan:
        """One sweep at the instant of ``state``."""
        xy, body = self._detections(state, actors, rng)
        clutter = self._clutter(rng)
        xy = np.concatenate([xy, clutter])
        body = np.concatenate([body, np.full(len(clutter), -1)])
        return RadarScan(self._measure(state, actors, xy, body, rng), body)

    def sensor_velocity(self, state: WorldState) -> np.ndarray:
        """(2,) velocity of the sensor over ground in its own axes, m/s: ego speed and the lever arm's share."""
        lever = transform_points(state_pose(state), self.spec.ego_from_sensor[None, :3, 3])[0, :2] - state.ego[:2]
        over_ground = np.array(state.ego_velocity) + state.ego_yaw_rate * np.array([-lever[1], lever[0]])
        return self._to_sensor_axes(over_ground[None], state)[0]

    def _to_sensor_axes(self, vectors: np.ndarray, state: WorldState) -> np.ndarray:
        """Global vectors (N, 2) in the axes of the sensor."""
        yaw = state.ego[2] + self._yaw
        cos, sin = math.cos(yaw), math.sin(yaw)
        return np.stack([cos * vectors[:, 0] + sin * vectors[:, 1], cos * vectors[:, 1] - sin * vectors[:, 0]], axis=1)

    def _boxes_in_sensor(self, state: WorldState) -> np.ndarray:
        """(N, 5) footprints of the solids: x, y, length, width, yaw in the sensor frame."""
        solids = state.solids_in_ego()
        dx, dy = solids[:, 0] - self.spec.ego_from_sensor[0, 3], solids[:, 1] - self.spec.ego_from_sensor[1, 3]
        cos, sin = math.cos(self._yaw), math.sin(self._yaw)
        x, y = cos * dx + sin * dy, cos * dy - sin * dx
        return np.stack([x, y, solids[:, 3], solids[:, 4], solids[:, 6] - self._yaw], axis=1)

    def _detections(
        self, state: WorldState, actors: tuple[Actor, ...], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reflection points (M, 2) on visible near sides, and their bodies (M,)."""
        boxes = self._boxes_in_sensor(state)
        distance = np.hypot(boxes[:, 0], boxes[:, 1])
        bearing = np.abs(np.arctan2(boxes[:, 1], boxes[:, 0]))
        candidates = np.nonzero((distance < self.spec.max_range) & (bearing < RADAR_HALF_FOV + 0.3))[0]
        rcs = np.array([actor.kind.rcs for actor in actors])[candidates]
        # A strong, near reflector gives several detections, a weak, far one sometimes none.
        expected = np.clip(2.2 + 0.16 * rcs - distance[candidates] / 45.0, 0.08, 5.0)
        counts = np.minimum(rng.poisson(expected), 8)
        owners = np.repeat(candidates, counts)
        if not len(owners):
            return np.zeros((0, 2)), np.zeros(0, dtype=np.int64)
        points = _near_side_points(boxes[owners], rng.uniform(-0.95, 0.95, len(owners)), rng.random(len(owners)))
        seen = ~_blocked(points, owners, boxes)
        seen &= np.abs(np.arctan2(points[:, 1], points[:, 0])) < RADAR_HALF_FOV
        radius = np.hypot(points[:, 0], points[:, 1])
        seen &= (radius < self.spec.max_range) & (radius > _RADAR_MINIMUM)
        return points[seen], owners[seen].astype(np.int64)

    def _clutter(self, rng: np.random.Generator) -> np.ndarray:
        """Echoes of kerbs, bushes and nothing at all, (K, 2)."""
        count = int(rng.poisson(9.0))
        radius = 3.0 + (self.spec.max_range - 5.0) * rng.random(count) ** 1.6
        bearing = rng.uniform(-RADAR_HALF_FOV, RADAR_HALF_FOV, count)
        return np.stack([radius * np.cos(bearing), radius * np.sin(bearing)], axis=1)

    def _measure(
        self, state: WorldState, actors: tuple[Actor, ...], xy: np.ndarray, body: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Records of reflection points; positions and velocities get the noise of the sensor."""
        count, real = len(xy), body >= 0
        radius = np.hypot(xy[:, 0], xy[:, 1]) + RADAR_POSITION_NOISE * np.clip(rng.standard_normal(count), -2.5, 2.5)
        bearing = np.arctan2(xy[:, 1], xy[:, 0]) + RADAR_BEARING_NOISE * np.clip(rng.standard_normal(count), -2.5, 2.5)
        sight = np.stack([np.cos(bearing), np.sin(bearing)], axis=1)
        over_ground = np.zeros((count, 2))
        over_ground[real] = self._to_sensor_axes(state.velocities[body[real]], state)
        radial = (over_ground * sight).sum(axis=1)
        measured = radial - sight @ self.sensor_velocity(state) + RADAR_SPEED_NOISE * rng.standard_normal(count)
        compensated = measured + sight @ self.sensor_velocity(state)
        points = np.zeros(count, dtype=RADAR_DTYPE)
        points["x"], points["y"] = (sight * radius[:, None]).T
        points["vx"], points["vy"] = (sight * measured[:, None]).T
        points["vx_comp"], points["vy_comp"] = (sight * compensated[:, None]).T
        points["dyn_prop"] = self._dynamic_property(state, over_ground, radial, body)
        points["id"] = np.arange(count)
        mean_rcs = np.array([actor.kind.rcs for actor in actors] + [-4.0])[body]
        points["rcs"] = np.round(2 * (mean_rcs + rng.normal(0.0, 4.0, count))) / 2
        points["is_quality_valid"], points["pdh0"] = 1, rng.choice([1, 2, 3], count, p=[0.85, 0.1, 0.05])
        points["ambig_state"] = np.where(real | (rng.random(count) < 0.7), 3, 4)
        points["invalid_state"] = np.where(real | (rng.random(count) < 0.6), 0, rng.choice([4, 8, 11], count))
        points["x_rms"] = points["y_rms"] = 19 + (radius > 40) + (radius > 80)
        points["vx_rms"] = points["vy_rms"] = 3
        return points

    @staticmethod
    def _dynamic_property(
        state: WorldState, over_ground: np.ndarray, radial: np.ndarray, body: np.ndarray
    ) -> np.ndarray:
        """Labels of motion: moving things come, go or cross; still ones are stopped or have always stood."""
        speed = np.hypot(over_ground[:, 0], over_ground[:, 1])
        share = radial / np.maximum(speed, 1e-6)
        moving = np.where(share < -0.5, ONCOMING, np.where(share > 0.5, MOVING, CROSSING_MOVING))
        standing = np.where(state.driven[body], STOPPED, STATIONARY)
        label = np.where(speed > MOVING_SPEED, moving, standing)
        return np.where(body < 0, STATIONARY_CANDIDATE, label)


def state_pose(state: WorldState) -> np.ndarray:
    """global_from_ego (4, 4) of a world state."""
    x, y, yaw = state.ego
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0.0, x], [sin, cos, 0.0, y], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def _near_side_points(boxes: np.ndarray, along: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """One point (M, 2) on a side of each footprint (M, 5) that faces the origin.

    Args:
        along: (M,) position on the side, -1..1. choice: (M,) in 0..1, which of the (at most two) facing sides.
    """
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    # The sensor in the frame of each box.
    own_x, own_y = -(cos * boxes[:, 0] + sin * boxes[:, 1]), -(cos * boxes[:, 1] - sin * boxes[:, 0])
    half_l, half_w = boxes[:, 2] / 2, boxes[:, 3] / 2
    faces_x, faces_y = np.abs(own_x) > half_l, np.abs(own_y) > half_w
    # The wider a side appears, the more often it answers.
    seen_x, seen_y = faces_x * boxes[:, 3] * np.abs(own_x), faces_y * boxes[:, 2] * np.abs(own_y)
    on_x = choice * (seen_x + seen_y) < seen_x
    x = np.where(on_x, np.sign(own_x) * half_l, along * half_l)
    y = np.where(on_x, along * half_w, np.sign(own_y) * half_w)
    # Reflections come from a little below the skin.
    x, y = x * (1 - 0.06 / half_l * on_x), y * (1 - 0.06 / half_w * ~on_x)
    return np.stack([boxes[:, 0] + cos * x - sin * y, boxes[:, 1] + sin * x + cos * y], axis=1)


def _blocked(points: np.ndarray, owners: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether another footprint (N, 5) crosses the segment from the origin to each point (M, 2); (M,) bool."""
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    start = np.stack([-(cos * boxes[:, 0] + sin * boxes[:, 1]), -(cos * boxes[:, 1] - sin * boxes[:, 0])])
    step_x = points[:, :1] * cos + points[:, 1:] * sin
    step_y = points[:, 1:] * cos - points[:, :1] * sin
    enter, leave = np.zeros(step_x.shape), np.ones(step_x.shape)
    for step, origin, half in ((step_x, start[0], boxes[:, 2] / 2), (step_y, start[1], boxes[:, 3] / 2)):
        inverse = 1.0 / np.where(np.abs(step) < 1e-9, 1e-9, step)
        first, second = (-half - origin) * inverse, (half - origin) * inverse
        enter, leave = np.maximum(enter, np.minimum(first, second)), np.minimum(leave, np.maximum(first, second))
    crossed: np.ndarray = np.less(enter, leave)
    crossed[np.arange(len(points)), owners] = False
    return np.any(crossed, axis=1)
