"""The paint of solid bodies: windows, wheels, lamps, clothes, stripes, as functions of where a ray hit a box.

Everything is a vectorised rule on the position on the surface, so no texture is stored and any resolution works.
"""

from __future__ import annotations

import numpy as np

from sensorlab.data.synthetic.motion import Actor
from sensorlab.data.synthetic.raycast import FACE_X, FACE_Y, FACE_Z

_GLASS = np.array([0.10, 0.12, 0.15], dtype=np.float32)
_TYRE = np.array([0.05, 0.05, 0.05], dtype=np.float32)
_WHITE = np.array([0.90, 0.90, 0.88], dtype=np.float32)
_RED = np.array([0.75, 0.06, 0.05], dtype=np.float32)
_SKIN = np.array([0.72, 0.53, 0.42], dtype=np.float32)
_DARK = np.array([0.14, 0.14, 0.17], dtype=np.float32)
_HEADLIGHT = np.array([1.0, 0.97, 0.88], dtype=np.float32)


def paint(actor: Actor, local: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Albedo and own light of surface points.

    Args:
        local: (M, 3) float32 in the frame of the box, each axis scaled to [-1, 1].
        face: (M,) which pair of faces was hit.

    Returns:
        albedo (M, 3) float32 in 0..1, and emission (M, 3) float32: the light that lamps and lit windows give at night.
    """
    albedo = np.empty((len(face), 3), dtype=np.float32)
    albedo[:] = actor.colour
    emission = np.zeros_like(albedo)
    _STYLES[actor.kind.style](actor, local, face, albedo, emission)
    if actor.parked:
        emission[:] = 0.0
    return albedo, emission


def _edges(actor: Actor, local: np.ndarray, face: np.ndarray, width: float = 0.05) -> np.ndarray:
    """Which points are within ``width`` metres of an edge of the box."""
    edge = np.zeros(len(face), dtype=bool)
    for axis in range(3):
        near = np.abs(local[:, axis]) > 1.0 - 2 * width / actor.size[axis]
        edge |= near & (face != axis)  # the distance to the face's own plane says nothing
    return edge


def _lamps(local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray, height: float) -> None:
    lamp = (face == FACE_X) & (np.abs(local[:, 1]) > 0.62) & (np.abs(local[:, 2] - height) < 0.14)
    front, back = lamp & (local[:, 0] > 0), lamp & (local[:, 0] < 0)
    albedo[front], albedo[back] = _WHITE, _RED
    emission[front], emission[back] = 2.2 * _HEADLIGHT, 0.9 * _RED


def _wheels(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, axles: tuple[float, ...]) -> None:
    """Dark discs on the sides; ``axles`` in units of half the length."""
    length, _, height = actor.size
    radius = min(0.17 * height + 0.1, 0.5)
    z = (local[:, 2] + 1) * height / 2
    for axle in axles:
        distance = np.hypot((local[:, 0] - axle) * length / 2, z - radius * 0.9)
        albedo[(face == FACE_Y) & (distance < radius)] = _TYRE
        albedo[(face == FACE_Y) & (distance < radius * 0.5)] = 0.45


def _car(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    x, y, z = local.T
    band = (z > 0.12) & (z < 0.82)
    pillars = (np.abs(x - 0.02) > 0.05) & (x > -0.86) & (x < 0.56)
    albedo[(face == FACE_Y) & band & pillars] = _GLASS
    albedo[(face == FACE_X) & band & (np.abs(y) < 0.84)] = _GLASS
    albedo[(face == FACE_Z) & (x > 0.40) & (x < 0.62) & (np.abs(y) < 0.85)] = _GLASS
    albedo[(face != FACE_Z) & (z < -0.72)] *= np.float32(0.45)
    _wheels(actor, local, face, albedo, (-0.62, 0.62))
    _lamps(local, face, albedo, emission, -0.22)
    albedo[_edges(actor, local, face)] *= np.float32(0.62)


def _truck(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    x, y, z = local.T
    cab = x > 0.48
    albedo[cab] = albedo[cab] * np.float32(0.6) + np.float32(0.06)
    albedo[np.abs(x - 0.48) < 0.02] = _DARK
    albedo[(face == FACE_Y) & (x > 0.62) & (x < 0.92) & (z > 0.05) & (z < 0.55)] = _GLASS
    albedo[(face == FACE_X) & (x > 0) & (np.abs(y) < 0.86) & (z > 0.05) & (z < 0.6)] = _GLASS
    albedo[(face == FACE_X) & (x < 0) & (np.abs(y) < 0.04)] = _DARK
    albedo[(face != FACE_Z) & (z < -0.70)] = _DARK
    _wheels(actor, local, face, albedo, (-0.7, -0.48, 0.7))
    _lamps(local, face, albedo, emission, -0.55)
    albedo[_edges(actor, local, face, 0.07)] *= np.float32(0.62)


def _bus(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    x, y, z = local.T
    band = (z > -0.05) & (z < 0.62)
    windows = (face == FACE_Y) & band & ((x * 5.0) % 1.0 > 0.12) & (np.abs(x) < 0.96)
    albedo[windows] = _GLASS
    emission[windows] = 0.35 * _HEADLIGHT
    albedo[(face == FACE_X) & (z > -0.2) & (z < 0.7) & (np.abs(y) < 0.9)] = _GLASS
    albedo[(face == FACE_Y) & (np.abs(z + 0.25) < 0.06)] = _WHITE
    _wheels(actor, local, face, albedo, (-0.5, 0.6))
    _lamps(local, face, albedo, emission, -0.6)
    albedo[_edges(actor, local, face, 0.07)] *= np.float32(0.62)


def _trailer(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    x, _, z = local.T
    ribs = (face == FACE_Y) & ((x * 8.0) % 1.0 < 0.08)
    albedo[ribs] *= np.float32(0.7)
    albedo[(face != FACE_Z) & (z < -0.6)] = _DARK
    _wheels(actor, local, face, albedo, (-0.75, -0.55))
    rear = (face == FACE_X) & (x < 0) & (np.abs(local[:, 1]) > 0.7) & (np.abs(z + 0.66) < 0.08)
    albedo[rear], emission[rear] = _RED, 0.9 * _RED
    albedo[_edges(actor, local, face, 0.08)] *= np.float32(0.6)


def _digger(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    x, y, z = local.T
    albedo[(face != FACE_Z) & (z < -0.45)] = _DARK
    albedo[(face == FACE_Y) & (x > -0.2) & (x < 0.45) & (z > 0.2) & (z < 0.85)] = _GLASS
    albedo[(face == FACE_X) & (np.abs(y) < 0.6) & (z > 0.2) & (z < 0.85)] = _GLASS
    stripes = (face != FACE_Z) & (np.abs(z + 0.25) < 0.12) & ((x * 4 + y * 2 + z) % 1.0 < 0.5)
    albedo[stripes] = _DARK
    albedo[_edges(actor, local, face, 0.07)] *= np.float32(0.6)


def _cycle(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    x, _, z = local.T
    low = z < (-0.05 if actor.rider else 0.5)
    albedo[low] *= np.float32(0.55)
    length, _, height = actor.size
    for axle in (-0.62, 0.62):
        distance = np.hypot((x - axle) * length / 2, (z + 1) * height / 2 - 0.32)
        albedo[(face == FACE_Y) & (distance < 0.32)] = _TYRE
        albedo[(face == FACE_Y) & (distance < 0.22)] = 0.32
    if actor.rider:
        albedo[(z > 0.68)] = _SKIN
        albedo[(z > 0.86)] = _DARK
    lamp = (face == FACE_X) & (np.abs(z - 0.05) < 0.1)
    emission[lamp & (x > 0)] = 1.2 * _HEADLIGHT
    emission[lamp & (x < 0)] = 0.7 * _RED


def _person(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    z = local[:, 2]
    albedo[z < -0.1] = _DARK + np.float32(0.35) * np.asarray(actor.colour[::-1], dtype=np.float32)
    albedo[(z < -0.1) & (np.abs(local[:, 1]) < 0.08)] *= np.float32(0.5)
    albedo[z > 0.70] = _SKIN
    albedo[z > 0.88] = _DARK
    if actor.kind.category.endswith("construction_worker"):
        albedo[z > 0.84] = (0.90, 0.75, 0.10)
        albedo[np.abs(z - 0.25) < 0.05] = _WHITE


def _cone(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    z = local[:, 2]
    albedo[(np.abs(z - 0.15) < 0.18) | (np.abs(z - 0.75) < 0.12)] = _WHITE
    albedo[z < -0.88] = _DARK


def _barrier(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    _, y, z = local.T
    albedo[(face == FACE_X) & (z > -0.1) & ((y * 3 + z) % 1.0 < 0.5)] = _RED
    albedo[(face == FACE_X) & (z < -0.2) & (np.abs(y) < 0.8)] *= np.float32(0.55)
    albedo[_edges(actor, local, face, 0.04)] *= np.float32(0.7)


def _building(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    length, width, height = actor.size
    along = np.where(face == FACE_Y, local[:, 0] * length, local[:, 1] * width) / 2
    up = (local[:, 2] + 1) * height / 2
    window = (face != FACE_Z) & (along % 2.6 > 1.2) & (up % 3.2 > 1.3) & (up % 3.2 < 2.7) & (up < height - 0.6)
    albedo[window] = _GLASS
    # Which windows are lit is a fixed pattern of the building.
    column, floor = np.floor(along / 2.6).astype(np.int64), np.floor(up / 3.2).astype(np.int64)
    lit = window & ((column * 73 + floor * 151 + int(length * 100)) % 7 < 2)
    emission[lit] = (0.75, 0.62, 0.38)
    albedo[(face != FACE_Z) & (up % 3.2 < 0.12)] *= np.float32(0.75)


def _pole(actor: Actor, local: np.ndarray, face: np.ndarray, albedo: np.ndarray, emission: np.ndarray) -> None:
    top = local[:, 2] > 0.93
    albedo[top] = _WHITE
    emission[top] = 2.5 * _HEADLIGHT


_STYLES = {
    "car": _car, "truck": _truck, "bus": _bus, "trailer": _trailer, "digger": _digger, "cycle": _cycle,
    "person": _person, "cone": _cone, "barrier": _barrier, "building": _building, "pole": _pole,
}  # fmt: skip
