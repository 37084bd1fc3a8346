"""Drives one scene: every sensor fires by schedule, files are written, objects are annotated, rows are collected.

A scene depends on the world's arguments and its own index only, so scenes can be recorded in any process and order.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from PIL import Image

from sensorlab.data.random_streams import keyed_generator
from sensorlab.data.synthetic import tables
from sensorlab.data.synthetic.arguments import WorldArguments
from sensorlab.data.synthetic.ground import drivable_mask, paint_ground
from sensorlab.data.synthetic.motion import WorldState
from sensorlab.data.synthetic.ranging import RADAR_DTYPE, LidarScanner, RadarScanner, state_pose
from sensorlab.data.synthetic.render import NOISE_TILE_MARGIN, CameraRenderer
from sensorlab.data.synthetic.rig import VEHICLES, Rig, make_rig
from sensorlab.data.synthetic.schedule import Shot, plan_schedule
from sensorlab.data.synthetic.sky import make_weather
from sensorlab.data.synthetic.tables import Row, Tables, token
from sensorlab.data.synthetic.world import make_scene
from sensorlab.geometry.boxes import points_in_box, poses_from_boxes3d
from sensorlab.geometry.poses import transform_points

ANNOTATION_RANGE = 80.0  # metres from the ego vehicle
_JPEG_QUALITY = 88


@dataclass
class _Sighting:
    """How the sensors saw the objects in one keyframe; arrays over the N bodies of the scene."""

    state: WorldState
    lidar_points: np.ndarray
    radar_points: np.ndarray
    visible_pixels: np.ndarray
    pixels_alone: np.ndarray


class SceneRecorder:
    """Writes the files of one scene below ``root`` and yields its rows of the tables."""

    def __init__(self, root: Path, arguments: WorldArguments, index: int) -> None:
        self._root, self._arguments = root, arguments
        split, position = arguments.split_of(index)
        self.scene = make_scene(arguments.seed, index, arguments.duration, split, position)
        size = (arguments.image_width, arguments.image_height)
        self.rig: Rig = make_rig(index % VEHICLES, size, arguments.lidar_azimuths)
        self.schedule = plan_schedule(
            self.rig, arguments.keyframes, arguments.sweeps, arguments.lidar_rate, self._stream("schedule")
        )
        ground, weather = paint_ground(self.scene, arguments.seed), make_weather(self.scene, arguments.seed)
        shape = (size[1] + NOISE_TILE_MARGIN, size[0] + NOISE_TILE_MARGIN, 3)
        noise = self._stream("image-noise").standard_normal(shape, dtype=np.float32)
        self._cameras = [CameraRenderer(camera, ground, weather, noise) for camera in self.rig.cameras]
        self._lidar = LidarScanner(self.rig.lidar, ground, self.scene.rain)
        self._radars = [RadarScanner(radar) for radar in self.rig.radars]
        start = datetime(2020, 6, 1, 22 if self.scene.night else 10, tzinfo=timezone.utc) + timedelta(minutes=index)
        self._base = round(start.timestamp() * 1e6)  # microseconds
        self._log = f"w{self.rig.vehicle:03d}-{start:%Y-%m-%d-%H-%M-%S}+0000"
        self._rows: Tables = tables.merge_tables([])
        self._sightings: list[_Sighting] = []

    def record(self) -> Tables:
        """Record the whole scene."""
        for name in self.schedule:
            for folder in ("samples", "sweeps"):
                (self._root / folder / name).mkdir(parents=True, exist_ok=True)
        self._add_scene_rows()
        self._record_lidar()
        for renderer in self._cameras:
            self._record_camera(renderer)
        for scanner in self._radars:
            self._record_radar(scanner)
        self._annotate()
        return self._rows

    def _token(self, *parts: str | int) -> str:
        return token("world", self._arguments.seed, self.scene.name, *parts)

    def _stream(self, *purpose: str | int) -> np.random.Generator:
        return keyed_generator("synthetic", self._arguments.seed, self.scene.index, *purpose)

    def _state(self, shot: Shot) -> WorldState:
        return self.scene.at(shot.time / 1e6)

    def _record_lidar(self) -> None:
        name = self.rig.lidar.name
        rows = []
        for shot in self.schedule[name]:
            state = self._state(shot)
            points = self._lidar.scan(state, self.scene.actors, self._stream(name, shot.time))
            rows.append(self._add_data(name, shot, state, "pcd.bin", points.tobytes()))
            if shot.is_key:
                xyz = transform_points(self._global_from(name, state), points[:, :3].astype(np.float64))
                none = np.zeros(len(self.scene.actors), dtype=np.int64)
                counts = self._count(state, xyz)
                self._sightings.append(_Sighting(state, counts, none.copy(), none.copy(), none.copy()))
        tables.link(rows)

    def _record_camera(self, renderer: CameraRenderer) -> None:
        name, rows = renderer.spec.name, []
        for shot in self.schedule[name]:
            state = self._state(shot)
            frame = renderer.render(state, self.scene.actors, self._stream(name, shot.time))
            jpeg = io.BytesIO()
            Image.fromarray(frame.image).save(jpeg, "JPEG", quality=_JPEG_QUALITY)
            rows.append(self._add_data(name, shot, state, "jpg", jpeg.getvalue(), renderer.spec.image_size))
            self._sightings[shot.keyframe].visible_pixels += frame.visible
            self._sightings[shot.keyframe].pixels_alone += frame.alone
        tables.link(rows)

    def _record_radar(self, scanner: RadarScanner) -> None:
        name, rows = scanner.spec.name, []
        for shot in self.schedule[name]:
            state = self._state(shot)
            points = scanner.scan(state, self.scene.actors, self._stream(name, shot.time)).points
            rows.append(self._add_data(name, shot, state, "pcd", encode_radar(points)))
            if shot.is_key:
                sighting = self._sightings[shot.keyframe]
                xyz = np.stack([points["x"], points["y"], points["z"]], axis=1).astype(np.float64)
                sighting.radar_points += self._count(
                    sighting.state, transform_points(self._global_from(name, state), xyz)
                )
        tables.link(rows)

    def _global_from(self, channel: str, state: WorldState) -> np.ndarray:
        mounting = next(spec.ego_from_sensor for spec in self.rig.sensors if spec.name == channel)
        return state_pose(state) @ mounting

    @staticmethod
    def _count(state: WorldState, points: np.ndarray) -> np.ndarray:
        """(N,) how many of the points (P, 3, global) are inside each annotated box of the keyframe."""
        counts = np.zeros(len(state.boxes), dtype=np.int64)
        poses = poses_from_boxes3d(state.boxes)
        x, y = np.ascontiguousarray(points[:, 0]), np.ascontiguousarray(points[:, 1])
        for i, box in enumerate(state.boxes):
            if np.hypot(box[0] - state.ego[0], box[1] - state.ego[1]) > ANNOTATION_RANGE:
                continue
            reach = np.hypot(box[3], box[4]) / 2
            # Column by column: a reduction over an axis of two is several times slower.
            near = np.nonzero(np.abs(x - box[0]) < reach)[0]
            near = near[np.abs(y[near] - box[1]) < reach]
            if len(near):
                counts[i] = int(points_in_box(poses[i], box[3:6], points[near]).sum())
        return counts

    def _add_data(
        self, channel: str, shot: Shot, state: WorldState, suffix: str, content: bytes, size: tuple[int, int] = (0, 0)
    ) -> Row:
        """Write one sensor file with its rows in sample_data and ego_pose; returns the sample_data row."""
        timestamp = self._base + shot.time
        folder = "samples" if shot.is_key else "sweeps"
        filename = f"{folder}/{channel}/{self._log}__{channel}__{timestamp}.{suffix}"
        (self._root / filename).write_bytes(content)
        key = self._token("data", channel, timestamp)
        row: Row = {
            "token": key,
            "sample_token": self._token("sample", shot.keyframe),
            "ego_pose_token": key,
            "calibrated_sensor_token": self._token("calibration", channel),
            "timestamp": timestamp,
            "fileformat": "jpg" if suffix == "jpg" else "pcd",
            "is_key_frame": shot.is_key,
            "height": size[1],
            "width": size[0],
            "filename": filename,
        }
        self._rows["sample_data"].append(row)
        self._rows["ego_pose"].append(tables.ego_pose_row(key, timestamp, state.ego))
        return row

    def _add_scene_rows(self) -> None:
        """Rows of log, map, scene, sample and calibrated_sensor; the picture of the map."""
        scene, log, mask = self.scene, self._token("log"), self._token("map")
        keys = [shot for shot in self.schedule[self.rig.lidar.name] if shot.is_key]
        samples: list[Row] = [
            {
                "token": self._token("sample", shot.keyframe),
                "timestamp": self._base + shot.time,
                "scene_token": self._token("scene"),
            }
            for shot in keys
        ]
        tables.link(samples)
        self._rows["sample"] += samples
        self._rows["scene"].append(
            {
                "token": self._token("scene"),
                "log_token": log,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0]["token"],
                "last_sample_token": samples[-1]["token"],
                "name": scene.name,
                "description": scene.description,
            }
        )
        vehicle, day = self._log.split("-")[0], self._log[5:15]
        self._rows["log"].append(
            {
                "token": log,
                "logfile": self._log,
                "vehicle": vehicle,
                "date_captured": day,
                "location": f"embedded-{scene.index:04d}",
            }
        )
        filename = f"maps/{mask}.png"
        (self._root / "maps").mkdir(exist_ok=True)
        Image.fromarray(drivable_mask(scene)).save(self._root / filename, compress_level=1)
        self._rows["map"].append(
            {"category": "semantic_prior", "token": mask, "filename": filename, "log_tokens": [log]}
        )
        for spec in self.rig.sensors:
            key = self._token("calibration", spec.name)
            intrinsics = getattr(spec, "intrinsics", None)
            self._rows["calibrated_sensor"].append(
                tables.calibration_row(key, spec.name, spec.ego_from_sensor, intrinsics)
            )

    def _annotate(self) -> None:
        """Rows of instance and sample_annotation.

        An object is annotated from the first to the last keyframe in which it has a lidar or radar point, also where
        it is hidden in between: annotators follow tracks.
        """
        points = np.stack([s.lidar_points + s.radar_points for s in self._sightings])
        for index, actor in enumerate(self.scene.actors):
            seen = np.nonzero(points[:, index])[0]
            if not actor.annotated or not len(seen):
                continue
            rows = [self._annotation(index, keyframe) for keyframe in range(int(seen[0]), int(seen[-1]) + 1)]
            tables.link(rows)
            self._rows["sample_annotation"] += rows
            self._rows["instance"].append(
                {
                    "token": self._token("instance", index),
                    "category_token": tables.category_token(actor.kind.category),
                    "nbr_annotations": len(rows),
                    "first_annotation_token": rows[0]["token"],
                    "last_annotation_token": rows[-1]["token"],
                }
            )

    def _annotation(self, index: int, keyframe: int) -> Row:
        actor, sighting = self.scene.actors[index], self._sightings[keyframe]
        box, attribute = sighting.state.boxes[index], actor.attribute(sighting.state.time)
        visible, alone = int(sighting.visible_pixels[index]), int(sighting.pixels_alone[index])
        return {
            "token": self._token("annotation", index, keyframe),
            "sample_token": self._token("sample", keyframe),
            "instance_token": self._token("instance", index),
            "visibility_token": tables.visibility_token(visible, alone),
            "attribute_tokens": [tables.attribute_token(attribute)] if attribute else [],
            "translation": tables.numbers(box[:3]),
            "size": [float(box[4]), float(box[3]), float(box[5])],  # width, length, height
            "rotation": tables.yaw_rotation(box[6]),
            "num_lidar_pts": int(sighting.lidar_points[index]),
            "num_radar_pts": int(sighting.radar_points[index]),
        }


def encode_radar(points: np.ndarray) -> bytes:
    """A binary .pcd file of radar records (N,) RADAR_DTYPE, laid out as the nuScenes files are."""
    names = RADAR_DTYPE.names or ()
    kinds = [RADAR_DTYPE[name] for name in names]
    header = (
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(names)}",
        f"SIZE {' '.join(str(kind.itemsize) for kind in kinds)}",
        f"TYPE {' '.join('F' if kind.kind == 'f' else 'I' for kind in kinds)}",
        f"COUNT {' '.join('1' for _ in names)}",
        f"WIDTH {len(points)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(points)}",
        "DATA binary",
    )
    # nuScenes files end with one byte more than the points need; the official reader counts on it.
    return ("\n".join(header) + "\n").encode() + points.tobytes() + b"\n"
