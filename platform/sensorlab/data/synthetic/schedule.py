"""When each sensor of a scene fires: keyframes at 2 Hz and, between them, the sweeps of lidar and radars.

Times are integer microseconds after the first nominal keyframe. Clocks jitter by a millisecond or so, radars run free
and cameras fire shortly before the lidar, as on the nuScenes vehicles; nothing happens at one common instant.
Cameras have keyframes only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensorlab.data.synthetic.rig import RADAR_PERIOD, CameraSpec, RadarSpec, Rig

KEYFRAME_PERIOD = 0.5  # seconds
_LIDAR_JITTER, _CAMERA_JITTER, _RADAR_JITTER = 0.0012, 0.0003, 0.0008


@dataclass(frozen=True)
class Shot:
    """One measurement: ``keyframe`` is the index of the keyframe that it belongs to (sweeps: the next keyframe)."""

    time: int  # microseconds
    keyframe: int
    is_key: bool


Schedule = dict[str, list[Shot]]  # by channel, in order of time


def plan_schedule(rig: Rig, keyframes: int, sweeps: bool, lidar_rate: int, rng: np.random.Generator) -> Schedule:
    """All shots of a scene. ``lidar_rate`` (Hz) is a multiple of the keyframe rate; it counts with ``sweeps`` only."""
    lidar = _lidar_shots(keyframes, round(lidar_rate * KEYFRAME_PERIOD) if sweeps else 1, rng)
    keys = [shot.time for shot in lidar if shot.is_key]
    schedule: Schedule = {rig.lidar.name: lidar}
    for camera in rig.cameras:
        schedule[camera.name] = _camera_shots(camera, keys, rng)
    for radar in rig.radars:
        schedule[radar.name] = _radar_shots(radar, keys, sweeps, rng)
    return schedule


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _lidar_shots(keyframes: int, per_keyframe: int, rng: np.random.Generator) -> list[Shot]:
    shots = []
    for step in range((keyframes - 1) * per_keyframe + 1):
        nominal = step * KEYFRAME_PERIOD / per_keyframe
        time = _microseconds(nominal + float(rng.uniform(-_LIDAR_JITTER, _LIDAR_JITTER)))
        # A sweep between two keyframes belongs to the one that follows.
        shots.append(Shot(time, -(-step // per_keyframe), step % per_keyframe == 0))
    return shots


def _camera_shots(camera: CameraSpec, keys: list[int], rng: np.random.Generator) -> list[Shot]:
    jitter = rng.uniform(-_CAMERA_JITTER, _CAMERA_JITTER, len(keys))
    return [
        Shot(key + _microseconds(camera.time_offset + float(j)), i, True)
        for i, (key, j) in enumerate(zip(keys, jitter, strict=True))
    ]


def _radar_shots(radar: RadarSpec, keys: list[int], sweeps: bool, rng: np.random.Generator) -> list[Shot]:
    count = int((keys[-1] / 1e6 + 1.0) / RADAR_PERIOD) + 1
    nominal = radar.phase + RADAR_PERIOD * (np.arange(count) - 2)
    times = [_microseconds(float(t)) for t in nominal + rng.uniform(-_RADAR_JITTER, _RADAR_JITTER, count)]
    nearest = [min(range(count), key=lambda i: abs(times[i] - key)) for key in keys]
    if not sweeps:
        return [Shot(times[i], keyframe, True) for keyframe, i in enumerate(nearest)]
    shots = []
    for i in range(nearest[0], nearest[-1] + 1):
        keyframe = int(np.searchsorted(nearest, i))
        shots.append(Shot(times[i], keyframe, nearest[keyframe] == i))
    return shots
