"""Where things can move: paths of constant-curvature pieces and the road layout of a scene.

Frame: the global, flat ground plane, x east, y north, yaw counter-clockwise from x; metres and radians. Traffic
keeps to the right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LANE_WIDTH = 3.5
PARKING_WIDTH = 2.7
SIDEWALK_WIDTH = 2.8

Pose2d = tuple[float, float, float]  # x, y, yaw


def advance(pose: Pose2d, length: float, curvature: float) -> Pose2d:
    """Pose after ``length`` metres along a circle of ``curvature`` (1/m, left positive); 0 is a straight line."""
    x, y, yaw = pose
    turn = length * curvature
    if abs(curvature) < 1e-9:
        return x + length * math.cos(yaw), y + length * math.sin(yaw), yaw
    radius = 1.0 / curvature
    return (
        x + radius * (math.sin(yaw + turn) - math.sin(yaw)),
        y - radius * (math.cos(yaw + turn) - math.cos(yaw)),
        yaw + turn,
    )


@dataclass(frozen=True)
class Path:
    """A planar curve of (length, curvature) pieces by arc length. It goes on beyond both ends with its end pieces."""

    start: Pose2d
    pieces: tuple[tuple[float, float], ...]

    def pose(self, distance: float) -> Pose2d:
        """Pose at ``distance`` metres from the start; negative distances go backwards."""
        pose = self.start
        for length, curvature in self.pieces[:-1]:
            if distance <= length:
                return advance(pose, distance, curvature)
            pose = advance(pose, length, curvature)
            distance -= length
        return advance(pose, distance, self.pieces[-1][1])

    def curvature(self, distance: float) -> float:
        """Curvature at ``distance``, 1/m."""
        for length, curvature in self.pieces[:-1]:
            if distance <= length:
                return curvature
            distance -= length
        return self.pieces[-1][1]


@dataclass(frozen=True)
class Road:
    """A road of constant curvature; ``s`` is metres along the centre line from ``origin``, ``d`` metres to its left."""

    origin: Pose2d
    curvature: float
    lanes: int  # per direction
    parking: bool

    @property
    def half_width(self) -> float:
        """From the centre line to the kerb."""
        return self.lanes * LANE_WIDTH + (PARKING_WIDTH if self.parking else 0.0)

    def pose(self, s: float, d: float, direction: int = 1) -> Pose2d:
        """Pose at (s, d), heading with (1) or against (-1) the direction of s."""
        x, y, yaw = advance(self.origin, s, self.curvature)
        turned = yaw if direction > 0 else yaw + math.pi
        return x - d * math.sin(yaw), y + d * math.cos(yaw), turned

    def offset_path(self, s: float, d: float, direction: int = 1) -> Path:
        """The parallel curve through (s, d), driven with or against the direction of s, without end."""
        curvature = self.curvature / (1.0 - self.curvature * d)
        return Path(self.pose(s, d, direction), ((0.0, direction * curvature),))

    def lane_offset(self, lane: int, direction: int) -> float:
        """``d`` of the middle of a lane; lane 0 is next to the centre line. Right-hand traffic."""
        return -direction * (lane + 0.5) * LANE_WIDTH

    def coordinates(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(s, d) of points, float32 arrays of the same shape."""
        x0, y0, yaw = self.origin
        dx, dy = np.float32(x - x0), np.float32(y - y0)
        cos, sin = np.float32(math.cos(yaw)), np.float32(math.sin(yaw))
        along, left = cos * dx + sin * dy, cos * dy - sin * dx
        if abs(self.curvature) < 1e-9:
            return along, left
        # In the frame of the origin the circle's centre is at (0, 1/curvature).
        radius = np.float32(1.0 / self.curvature)
        side = np.float32(math.copysign(1.0, self.curvature))
        distance = np.hypot(along, left - radius)
        return np.arctan2(along, (radius - left) * side) * abs(radius), radius - side * distance


@dataclass(frozen=True)
class RoadLayout:
    """The main road and, where there is a junction at s = 0, a straight road across it."""

    main: Road
    cross: Road | None


def make_layout(origin: Pose2d, curvature: float, lanes: int) -> RoadLayout:
    """A curved road without junction, or a straight one crossed at its origin by a road of one lane per direction."""
    main = Road(origin, curvature, lanes, parking=True)
    if curvature != 0.0:
        return RoadLayout(main, None)
    x, y, yaw = origin
    return RoadLayout(main, Road((x, y, yaw + math.pi / 2), 0.0, 1, parking=False))


def turning_path(layout: RoadLayout, lane: int, before: float, turn: int) -> Path:
    """From ``before`` metres ahead of the arc in a lane of the main road into the crossing road.

    ``turn`` is 1 for left and -1 for right. The arc is tangent to both lanes.
    """
    radius = 12.0 if turn > 0 else 9.0
    target = turn * 0.5 * LANE_WIDTH  # s of the target lane of the crossing road
    start = layout.main.pose(target - radius - before, layout.main.lane_offset(lane, 1))
    return Path(start, ((before, 0.0), (radius * math.pi / 2, turn / radius), (0.0, 0.0)))
