"""How things move: an actor is a kind of object on a path with a closed-form speed profile.

Everything is a pure function of time, so any sensor can look at the world at its own instant, and a velocity is the
exact derivative of the position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sensorlab.data.synthetic.catalogue import ActorKind, Colour
from sensorlab.data.synthetic.roads import Path, Pose2d

# The solid that cameras, lidar and radar see is this much smaller than the annotated box on every side: annotated
# boxes are drawn around the points, with a little air, so that range noise does not leave the box.
BOX_MARGIN = 0.03
MOVING_SPEED = 0.3  # m/s; slower counts as standing


@dataclass(frozen=True)
class Motion:
    """Along ``path`` from ``start`` (m) at ``speed`` (m/s), changing at ``rate`` (m/s^2, signed) to ``final_speed``.

    The change begins at time 0 and is over at ``(final_speed - speed) / rate``; before time 0 the speed is constant.
    """

    path: Path
    start: float = 0.0
    speed: float = 0.0
    final_speed: float | None = None
    rate: float = 0.0

    def distance(self, time: float) -> float:
        """Metres from the beginning of the path at ``time`` seconds."""
        duration = self._change_duration()
        changing = min(max(time, 0.0), duration)
        moved = self.speed * min(time, duration) + 0.5 * self.rate * changing**2
        return self.start + moved + max(time - duration, 0.0) * self.speed_at(duration)

    def speed_at(self, time: float) -> float:
        """Metres per second along the path."""
        return self.speed + self.rate * min(max(time, 0.0), self._change_duration())

    def _change_duration(self) -> float:
        if self.final_speed is None or self.rate == 0.0:
            return 0.0
        return (self.final_speed - self.speed) / self.rate

    def pose(self, time: float) -> Pose2d:
        return self.path.pose(self.distance(time))

    def velocity(self, time: float) -> tuple[float, float]:
        """Velocity of the followed point, m/s, global axes."""
        yaw, speed = self.pose(time)[2], self.speed_at(time)
        return speed * math.cos(yaw), speed * math.sin(yaw)

    def yaw_rate(self, time: float) -> float:
        """Radians per second."""
        return self.speed_at(time) * self.path.curvature(self.distance(time))


def standing(pose: Pose2d) -> Motion:
    """The motion of something that does not move."""
    return Motion(Path(pose, ((0.0, 0.0),)))


@dataclass(frozen=True)
class Actor:
    """One object of the world."""

    kind: ActorKind
    size: tuple[float, float, float]  # length, width, height of the annotated box, metres
    colour: Colour
    motion: Motion
    parked: bool = False  # vehicles: nobody in it
    rider: bool = False  # cycles

    @property
    def annotated(self) -> bool:
        """False for scenery (buildings, poles): sensors see it, the tables do not list it."""
        return self.kind.category != ""

    @property
    def driven(self) -> bool:
        """Whether it is a vehicle with somebody in or on it."""
        if self.kind.style == "cycle":
            return self.rider
        return self.kind.category.startswith("vehicle.") and not self.parked

    def attribute(self, time: float) -> str | None:
        """The nuScenes attribute at ``time``, or None for kinds that have none."""
        category = self.kind.category
        moving = self.motion.speed_at(time) > MOVING_SPEED
        if category in ("vehicle.bicycle", "vehicle.motorcycle"):
            return "cycle.with_rider" if self.rider else "cycle.without_rider"
        if category.startswith("vehicle."):
            if moving:
                return "vehicle.moving"
            return "vehicle.parked" if self.parked else "vehicle.stopped"
        if category.startswith("human."):
            return "pedestrian.moving" if moving else "pedestrian.standing"
        return None


@dataclass(frozen=True)
class WorldState:
    """Everything that sensors need at one instant. N objects, annotated ones and scenery, in the order of the scene."""

    time: float
    ego: Pose2d
    ego_velocity: tuple[float, float]  # m/s, global axes
    ego_yaw_rate: float  # rad/s
    boxes: np.ndarray  # (N, 7) float64 global x, y, z (centre), length, width, height, yaw: the annotated boxes
    velocities: np.ndarray  # (N, 2) float64 m/s, global axes
    driven: np.ndarray  # (N,) bool: a vehicle with somebody in it, so it is stopped, not parked, when it stands

    def solids_in_ego(self) -> np.ndarray:
        """(N, 7) the solid bodies (boxes less their margin) in the ego frame."""
        x, y, yaw = self.ego
        cos, sin = math.cos(yaw), math.sin(yaw)
        dx, dy = self.boxes[:, 0] - x, self.boxes[:, 1] - y
        solids = self.boxes.copy()
        solids[:, 0], solids[:, 1] = cos * dx + sin * dy, cos * dy - sin * dx
        solids[:, 3:6] -= 2 * BOX_MARGIN
        solids[:, 6] -= yaw
        return solids


def world_state(ego: Motion, actors: tuple[Actor, ...], time: float) -> WorldState:
    """The world at ``time`` seconds."""
    boxes, velocities = np.empty((len(actors), 7)), np.empty((len(actors), 2))
    for row, actor in enumerate(actors):
        x, y, yaw = actor.motion.pose(time)
        boxes[row] = (x, y, actor.size[2] / 2, *actor.size, yaw)
        velocities[row] = actor.motion.velocity(time)
    driven = np.array([actor.driven for actor in actors], dtype=bool)
    return WorldState(time, ego.pose(time), ego.velocity(time), ego.yaw_rate(time), boxes, velocities, driven)
