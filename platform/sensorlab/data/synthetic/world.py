"""The embedded world: scenes with roads, traffic, people, road works and buildings, all drawn from a seed.

A scene is a pure function of (seed, index, duration). Objects are proposed one after the other and kept if they touch
nothing that was kept before, at any time of the scene, so nothing ever drives through anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sensorlab.data.random_streams import keyed_generator
from sensorlab.data.synthetic.catalogue import KINDS, draw_colour, draw_size
from sensorlab.data.synthetic.motion import Actor, Motion, WorldState, standing, world_state
from sensorlab.data.synthetic.roads import (
    LANE_WIDTH,
    SIDEWALK_WIDTH,
    Path,
    Pose2d,
    Road,
    RoadLayout,
    make_layout,
    turning_path,
)

MAP_MARGIN = 130.0  # metres of map around the way of the ego vehicle
_EGO_FOOTPRINT = (5.4, 2.3)  # metres, with some clearance
_EGO_CENTRE_AHEAD = 1.4  # the ego frame is at the rear axle
_JUNCTION = 20.0  # no parking this close to a junction
_CHECK_STEP = 0.25  # seconds between collision checks


@dataclass(frozen=True)
class Scene:
    """One scene: its place, its weather and its actors."""

    index: int
    name: str
    description: str
    night: bool
    rain: bool
    duration: float  # seconds
    layout: RoadLayout
    ego: Motion
    actors: tuple[Actor, ...]
    extent: tuple[float, float]  # metres; the map covers [0, x] by [0, y]

    def at(self, time: float) -> WorldState:
        """The world at ``time`` seconds after the first keyframe."""
        return world_state(self.ego, self.actors, time)


def make_scene(seed: int, index: int, duration: float, split: str, position: int) -> Scene:
    """Draw scene ``index`` of the world of ``seed``: number ``position`` of its ``split`` (train or val)."""
    rng = keyed_generator("synthetic-world", seed, index)
    # Fixed cycles instead of draws, so that small worlds have night in both splits, rain and every manoeuvre.
    night = position % 4 == 2 if split == "train" else position % 2 == 1
    rain = not night and position % 4 == (3 if split == "train" else 2)
    manoeuvre = ("straight", "left turn", "right turn", "curve")[(index + index // 4) % 4]
    layout, ego = _plan_ego(manoeuvre, duration, rng)
    layout, ego, extent = _place(layout, ego, duration)
    builder = _SceneBuilder(layout, ego, duration, rng)
    builder.populate()
    words = [manoeuvre, f"{layout.main.lanes * 2} lanes", "junction" if layout.cross else "no junction"]
    words += ["night"] * night + ["rain"] * rain
    description = ", ".join(words).capitalize()
    actors = tuple(builder.actors)
    name = f"world-{index:04d}-{split}"
    return Scene(index, name, description, night, rain, duration, layout, ego, actors, extent)


def _plan_ego(manoeuvre: str, duration: float, rng: np.random.Generator) -> tuple[RoadLayout, Motion]:
    """Road layout around the origin and the ego vehicle's motion; the manoeuvre happens within the duration."""
    heading = float(rng.uniform(-math.pi, math.pi))
    lanes = int(rng.integers(1, 3))
    if manoeuvre in ("left turn", "right turn"):
        turn = 1 if manoeuvre == "left turn" else -1
        layout = make_layout((0.0, 0.0, heading), 0.0, lanes)
        lane = 0 if turn > 0 else lanes - 1
        speed = float(rng.uniform(5.0, 6.5))
        return layout, Motion(turning_path(layout, lane, 0.3 * speed * duration, turn), 0.0, speed)
    curvature = float(rng.choice([-1, 1])) / float(rng.uniform(70.0, 140.0)) if manoeuvre == "curve" else 0.0
    layout = make_layout((0.0, 0.0, heading), curvature, lanes)
    lane = int(rng.integers(lanes))
    speed = float(rng.uniform(7.0, 11.0))
    path = layout.main.offset_path(
        -0.5 * speed * duration - float(rng.uniform(5.0, 15.0)), layout.main.lane_offset(lane, 1)
    )
    if rng.random() < 0.4:
        return layout, Motion(path, 0.0, speed, final_speed=0.3 * speed, rate=-1.2)
    return layout, Motion(path, 0.0, speed)


def _place(layout: RoadLayout, ego: Motion, duration: float) -> tuple[RoadLayout, Motion, tuple[float, float]]:
    """Shift everything so that the map around the ego vehicle's way begins at (0, 0)."""
    way = np.array([ego.pose(time)[:2] for time in np.arange(0.0, duration + 0.5, 0.5)])
    shift = MAP_MARGIN - way.min(axis=0)
    extent = np.ceil(way.max(axis=0) + shift + MAP_MARGIN)

    def moved(pose: Pose2d) -> Pose2d:
        return pose[0] + float(shift[0]), pose[1] + float(shift[1]), pose[2]

    def moved_road(road: Road) -> Road:
        return Road(moved(road.origin), road.curvature, road.lanes, road.parking)

    placed = RoadLayout(moved_road(layout.main), moved_road(layout.cross) if layout.cross else None)
    path = Path(moved(ego.path.start), ego.path.pieces)
    motion = Motion(path, ego.start, ego.speed, ego.final_speed, ego.rate)
    return placed, motion, (float(extent[0]), float(extent[1]))


def footprints_touch(pose: np.ndarray, half: np.ndarray, poses: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Whether a rectangle touches others, by separating axes.

    Args:
        pose: (T, 3) x, y, yaw over time; half: (2,) half length and half width.
        poses: (K, T, 3); halves: (K, 2).

    Returns:
        (K, T) bool.
    """
    offset = poses[..., :2] - pose[:, :2]
    turned = poses[..., 2] - pose[:, 2]
    cos, sin = np.abs(np.cos(turned)), np.abs(np.sin(turned))
    touch = np.ones(turned.shape, dtype=bool)
    for yaw, own, other in ((pose[:, 2], half[None], halves), (poses[..., 2], halves, half[None])):
        along = offset[..., 0] * np.cos(yaw) + offset[..., 1] * np.sin(yaw)
        across = offset[..., 1] * np.cos(yaw) - offset[..., 0] * np.sin(yaw)
        touch &= np.abs(along) < own[:, :1] + other[:, :1] * cos + other[:, 1:] * sin
        touch &= np.abs(across) < own[:, 1:] + other[:, :1] * sin + other[:, 1:] * cos
    return touch


class _SceneBuilder:
    """Proposes actors and keeps those that never touch one another or the ego vehicle."""

    def __init__(self, layout: RoadLayout, ego: Motion, duration: float, rng: np.random.Generator) -> None:
        self.actors: list[Actor] = []
        self._layout, self._ego, self._rng = layout, ego, rng
        self._times = np.arange(0.0, duration + _CHECK_STEP, _CHECK_STEP)
        ego_poses = np.array([ego.pose(time) for time in self._times])
        ego_poses[:, 0] += _EGO_CENTRE_AHEAD * np.cos(ego_poses[:, 2])
        ego_poses[:, 1] += _EGO_CENTRE_AHEAD * np.sin(ego_poses[:, 2])
        self._poses, self._halves = [ego_poses], [np.array(_EGO_FOOTPRINT) / 2]
        s, _ = layout.main.coordinates(ego_poses[:, 0], ego_poses[:, 1])
        self._range = float(s.min()) - 60.0, float(s.max()) + 75.0

    def populate(self) -> None:
        """Fill the scene. The order is the order of precedence."""
        self._main_traffic()
        if self._layout.cross is not None:
            self._cross_traffic(self._layout.cross)
        self._road_works()
        self._parked()
        self._cyclists()
        self._people()
        self._scenery()

    def _add(self, kind: str, motion: Motion, *, parked: bool = False, rider: bool = False, gap: float = 0.25) -> bool:
        """Keep the actor if it stays ``gap`` metres clear of all others."""
        size = draw_size(KINDS[kind], self._rng)
        colour = draw_colour(KINDS[kind], self._rng)
        return self._keep(Actor(KINDS[kind], size, colour, motion, parked, rider), gap)

    def _keep(self, actor: Actor, gap: float) -> bool:
        half = np.array(actor.size[:2]) / 2
        poses = np.array([actor.motion.pose(time) for time in self._times])
        if footprints_touch(poses, half + gap, np.stack(self._poses), np.stack(self._halves)).any():
            return False
        self.actors.append(actor)
        self._poses.append(poses)
        self._halves.append(half)
        return True

    def _vehicle_kind(self) -> str:
        return str(self._rng.choice(["car", "truck", "bus", "motorcycle"], p=[0.74, 0.13, 0.06, 0.07]))

    def _main_traffic(self) -> None:
        rng, road = self._rng, self._layout.main
        for direction in (1, -1):
            for lane in range(road.lanes):
                # One speed per lane: nobody runs into the vehicle ahead. The own lane moves as the ego vehicle does.
                path_d = road.lane_offset(lane, direction)
                speed, final, rate = self._ego.speed, self._ego.final_speed, self._ego.rate
                if direction < 0 or rng.random() < 0.3:
                    speed, final, rate = float(rng.uniform(5.0, 11.0)), None, 0.0
                s = self._range[0] + float(rng.uniform(0.0, 15.0))
                while s < self._range[1]:
                    kind = self._vehicle_kind()
                    motion = Motion(road.offset_path(s, path_d, direction), 0.0, speed, final, rate)
                    if self._add(kind, motion, rider=True, gap=0.6) and kind == "truck" and rng.random() < 0.4:
                        self._tow(road, s, path_d, direction, motion)
                    s += float(rng.uniform(18.0, 50.0))

    def _tow(self, road: Road, s: float, d: float, direction: int, tractor: Motion) -> None:
        """A trailer behind the truck that was added last, with the same motion."""
        truck = self.actors[-1]
        size = draw_size(KINDS["trailer"], self._rng)
        behind = direction * (truck.size[0] + size[0] + 1.6) / 2
        path = road.offset_path(s - behind, d, direction)
        motion = Motion(path, 0.0, tractor.speed, tractor.final_speed, tractor.rate)
        self._keep(Actor(KINDS["trailer"], size, draw_colour(KINDS["trailer"], self._rng), motion), 0.3)

    def _cross_traffic(self, road: Road) -> None:
        """Queues that wait at the junction, and vehicles that leave it."""
        rng, line = self._rng, self._layout.main.half_width + 5.0
        for direction in (1, -1):
            d, s = road.lane_offset(0, direction), line + 2.5
            for _ in range(int(rng.integers(1, 4))):
                self._add(self._vehicle_kind(), standing(road.pose(-direction * s, d, direction)), rider=True)
                s += float(rng.uniform(8.0, 12.0))
            s, speed = line + float(rng.uniform(4.0, 20.0)), float(rng.uniform(6.0, 9.0))
            while s < 70.0:
                path = road.offset_path(direction * s, d, direction)
                self._add(self._vehicle_kind(), Motion(path, 0.0, speed), rider=True, gap=0.6)
                s += float(rng.uniform(16.0, 35.0))

    def _near_junction(self, s: float) -> bool:
        return self._layout.cross is not None and abs(s) < _JUNCTION

    def _parked(self) -> None:
        rng, road = self._rng, self._layout.main
        for side in (1, -1):
            s = self._range[0] + float(rng.uniform(0.0, 7.0))
            while s < self._range[1]:
                if rng.random() < 0.33 and not self._near_junction(s):
                    kind = str(rng.choice(["car", "truck", "trailer", "digger"], p=[0.86, 0.07, 0.04, 0.03]))
                    d = side * (road.half_width - 1.3) + float(rng.normal(0.0, 0.08))
                    x, y, yaw = road.pose(s, d, -side)
                    pose = x, y, yaw + float(rng.normal(0.0, 0.02))
                    self._add(kind, standing(pose), parked=True, gap=0.15)
                s += 6.8

    def _road_works(self) -> None:
        """Barriers and cones around a digger on the parking strip, with workers."""
        rng, road = self._rng, self._layout.main
        side = 1 if rng.random() < 0.5 else -1
        s = float(rng.uniform(self._range[0] + 40.0, self._range[1] - 45.0))
        if self._near_junction(s):
            s += math.copysign(2 * _JUNCTION, s)
        strip = side * (road.half_width - 1.5)
        self._add("digger", standing(road.pose(s, strip, -side)), parked=rng.random() < 0.5)
        for step in range(int(rng.integers(3, 6))):
            x, y, yaw = road.pose(s + 6.5 + 2.9 * step, strip + side * 0.9, -side)
            self._add("barrier", standing((x, y, yaw + math.pi / 2)), gap=0.1)
        for step in range(int(rng.integers(3, 7))):
            self._add(
                "cone", standing(road.pose(s - 5.0 - 2.2 * step, strip - side * (1.0 - 0.35 * step), side)), gap=0.1
            )
        for _ in range(2):
            place = road.pose(s + float(rng.uniform(5.0, 14.0)), strip - side * 0.7, side)
            self._add("worker", standing(place), gap=0.1)

    def _cyclists(self) -> None:
        rng, road = self._rng, self._layout.main
        for _ in range(5):
            s = float(rng.uniform(*self._range))
            direction = 1 if rng.random() < 0.5 else -1
            if rng.random() < 0.6:
                d = -direction * (road.lanes * LANE_WIDTH + 0.5)
                path = road.offset_path(s, d, direction)
                self._add("bicycle", Motion(path, 0.0, float(rng.uniform(3.0, 5.5))), rider=True)
            else:
                kind = "bicycle" if rng.random() < 0.6 else "motorcycle"
                pose = road.pose(s, direction * (road.half_width + 0.7), direction)
                self._add(kind, standing(pose))

    def _people(self) -> None:
        rng, road = self._rng, self._layout.main
        for _ in range(int(rng.integers(14, 22))):
            s, side = float(rng.uniform(*self._range)), 1 if rng.random() < 0.5 else -1
            direction = 1 if rng.random() < 0.5 else -1
            d = side * (road.half_width + float(rng.uniform(0.9, SIDEWALK_WIDTH - 0.5)))
            kind = "child" if rng.random() < 0.15 else "adult"
            speed = 0.0 if rng.random() < 0.3 else float(rng.uniform(0.8, 1.7))
            self._add(kind, Motion(road.offset_path(s, d, direction), 0.0, speed), gap=0.1)
        if self._layout.cross is not None:
            # On the crossings of the main road, walking to the other side.
            for _ in range(4):
                side, direction = (1 if rng.random() < 0.5 else -1), (1 if rng.random() < 0.5 else -1)
                path = self._layout.cross.offset_path(
                    -direction * float(rng.uniform(-2.0, road.half_width)),
                    side * (self._layout.cross.half_width + float(rng.uniform(1.8, 3.4))),
                    direction,
                )
                self._add("adult", Motion(path, 0.0, float(rng.uniform(1.0, 1.6))), gap=0.3)

    def _scenery(self) -> None:
        """Buildings and lamp posts along both roads."""
        rng = self._rng
        for road in (self._layout.main, self._layout.cross):
            if road is None:
                continue
            low, high = self._range if road is self._layout.main else (-80.0, 80.0)
            for side in (1, -1):
                kerb = road.half_width + SIDEWALK_WIDTH
                for s in np.arange(low, high, 24.0):
                    if not self._near_junction(float(s)):
                        self._add("pole", standing(road.pose(float(s), side * (kerb - 0.3))))
                s = low + float(rng.uniform(0.0, 25.0))
                while s < high:
                    self._building(road, s, side, kerb)
                    s += float(rng.uniform(24.0, 48.0))

    def _building(self, road: Road, s: float, side: int, kerb: float) -> None:
        size = draw_size(KINDS["building"], self._rng)
        colour = draw_colour(KINDS["building"], self._rng)
        motion = standing(road.pose(s, side * (kerb + float(self._rng.uniform(3.0, 9.0)) + size[1] / 2), 1))
        corners = self._corners(motion.pose(0.0), size)
        clear = [other for other in (self._layout.main, self._layout.cross) if other is not None]
        # Not on a road: a straight wall beside a curve, or a house beside the other road.
        if all(np.abs(other.coordinates(*corners)[1]).min() > other.half_width + SIDEWALK_WIDTH for other in clear):
            self._keep(Actor(KINDS["building"], size, colour, motion), 0.5)

    @staticmethod
    def _corners(pose: Pose2d, size: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
        x, y, yaw = pose
        ahead = np.array([1, 1, -1, -1, 0, 0, 1, -1]) * size[0] / 2
        left = np.array([1, -1, 1, -1, 1, -1, 0, 0]) * size[1] / 2
        return (
            x + ahead * math.cos(yaw) - left * math.sin(yaw),
            y + ahead * math.sin(yaw) + left * math.cos(yaw),
        )
