"""What can stand in the embedded world: the kinds of actors, their sizes, looks and echoes.

Sizes follow the means and spreads that are usual for the nuScenes classes; paint, radar cross-section and lidar
reflectivity are plausible values chosen for this world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class ActorKind:
    """One kind of object. ``style`` selects how the renderer paints its faces."""

    category: str  # nuScenes category name; "" for scenery, which is never annotated
    size: tuple[float, float, float]  # mean length, width, height, metres
    spread: float  # relative standard deviation of the size
    style: str  # "car", "truck", "bus", "trailer", "digger", "cycle", "person", "cone", "barrier", "building", "pole"
    palette: tuple[Colour, ...]  # albedo in 0..1, one is drawn per instance and then jittered
    rcs: float  # mean radar cross-section, dBsm
    reflectivity: float  # mean lidar intensity, 0..255


_CAR_PAINT: tuple[Colour, ...] = (
    (0.72, 0.12, 0.10), (0.14, 0.24, 0.62), (0.85, 0.85, 0.86), (0.55, 0.57, 0.60),
    (0.10, 0.11, 0.13), (0.16, 0.42, 0.26), (0.80, 0.62, 0.12), (0.40, 0.08, 0.18),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = ((0.75, 0.20, 0.25), (0.20, 0.30, 0.55), (0.80, 0.75, 0.65), (0.25, 0.45, 0.30))

KINDS: dict[str, ActorKind] = {
    "car": ActorKind("vehicle.car", (4.6, 1.92, 1.70), 0.07, "car", _CAR_PAINT, 9.0, 38.0),
    "truck": ActorKind(
        "vehicle.truck", (7.2, 2.50, 2.90), 0.10, "truck",
        ((0.86, 0.86, 0.84), (0.30, 0.40, 0.62), (0.62, 0.60, 0.35)), 15.0, 45.0,
    ),
    "bus": ActorKind(
        "vehicle.bus.rigid", (11.2, 2.90, 3.40), 0.05, "bus",
        ((0.78, 0.16, 0.14), (0.18, 0.50, 0.62), (0.82, 0.80, 0.74)), 18.0, 50.0,
    ),
    "trailer": ActorKind(
        "vehicle.trailer", (10.5, 2.60, 3.60), 0.08, "trailer", ((0.80, 0.80, 0.78), (0.36, 0.38, 0.46)), 18.0, 52.0
    ),
    "digger": ActorKind(
        "vehicle.construction", (6.2, 2.70, 3.10), 0.10, "digger", ((0.88, 0.66, 0.10), (0.86, 0.48, 0.10)), 14.0, 40.0
    ),
    "motorcycle": ActorKind(
        "vehicle.motorcycle", (2.1, 0.80, 1.50), 0.06, "cycle", ((0.60, 0.10, 0.12), (0.12, 0.12, 0.14)), 4.0, 25.0
    ),
    "bicycle": ActorKind(
        "vehicle.bicycle", (1.75, 0.62, 1.50), 0.06, "cycle", ((0.15, 0.45, 0.60), (0.70, 0.72, 0.70)), 0.0, 20.0
    ),
    "adult": ActorKind("human.pedestrian.adult", (0.72, 0.66, 1.76), 0.06, "person", _CLOTHES, -3.0, 18.0),
    "child": ActorKind("human.pedestrian.child", (0.52, 0.50, 1.30), 0.08, "person", _CLOTHES, -6.0, 18.0),
    "worker": ActorKind(
        "human.pedestrian.construction_worker", (0.74, 0.68, 1.78), 0.05, "person", ((0.92, 0.70, 0.10),), -3.0, 60.0
    ),
    "cone": ActorKind(
        "movable_object.trafficcone", (0.42, 0.42, 1.05), 0.06, "cone", ((0.92, 0.36, 0.08),), -8.0, 70.0
    ),
    "barrier": ActorKind(
        "movable_object.barrier", (0.52, 2.40, 1.00), 0.04, "barrier",
        ((0.86, 0.84, 0.80), (0.80, 0.30, 0.22)), 2.0, 35.0,
    ),
    "building": ActorKind(
        "", (18.0, 10.0, 11.0), 0.25, "building",
        ((0.62, 0.52, 0.44), (0.56, 0.57, 0.58), (0.66, 0.42, 0.34), (0.72, 0.68, 0.58)), 12.0, 30.0,
    ),
    "pole": ActorKind("", (0.26, 0.26, 6.5), 0.05, "pole", ((0.36, 0.37, 0.38),), 3.0, 28.0),
}  # fmt: skip

# The nuScenes tables list every category and attribute, used or not.
CATEGORIES = (
    "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck",
)  # fmt: skip
ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")  # tokens "1" to "4"


def draw_size(kind: ActorKind, rng: np.random.Generator) -> tuple[float, float, float]:
    """Length, width, height of one instance: the mean times a common and a per-axis factor, within 2.5 spreads."""
    factors = 1.0 + kind.spread * np.clip(0.7 * rng.standard_normal() + 0.7 * rng.standard_normal(3), -2.5, 2.5)
    length, width, height = (round(float(mean * factor), 3) for mean, factor in zip(kind.size, factors, strict=True))
    return length, width, height


def draw_colour(kind: ActorKind, rng: np.random.Generator) -> Colour:
    """Albedo of one instance: a palette colour, jittered so that colour alone does not give the class away."""
    base = np.asarray(kind.palette[int(rng.integers(len(kind.palette)))])
    red, green, blue = np.clip(base * rng.uniform(0.75, 1.2) + rng.normal(0.0, 0.03, 3), 0.03, 0.97)
    return float(red), float(green), float(blue)
