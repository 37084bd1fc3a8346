"""nuScenes dataroots as a source of samples, read without the official devkit.

A sample is a keyframe with the files of all sensors recorded for it. Its reference time and ego pose are those of
LIDAR_TOP's keyframe (of another lidar, CAM_FRONT or the first sensor by name where there is none). Radar and lidar
sweeps are walked back through ``prev``; each carries the transform into the sample's ego frame, ego motion included, so
their points stay raw. Nothing is filtered: which points and boxes count is the experiment's choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sensorlab.data.sample import Boxes, CameraFrame, PointSweep, Sample
from sensorlab.data.sources.camera_jpeg import check_jpeg
from sensorlab.data.sources.lidar_bin import parse_lidar_bin
from sensorlab.data.sources.nuscenes_index import NuScenesIndex, channels_of
from sensorlab.data.sources.nuscenes_splits import assign_splits
from sensorlab.data.sources.nuscenes_tables import TableReader
from sensorlab.data.sources.radar_pcd import parse_radar_pcd
from sensorlab.errors import UserError
from sensorlab.geometry.poses import (
    inverse_rigid,
    quaternion_from_rotation,
    rigid_from_quaternion,
    rotate_vectors,
    rotation_from_quaternion,
    transform_points,
)

Modality = Literal["camera", "radar", "lidar"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
_PARSERS = {"radar": parse_radar_pcd, "lidar": parse_lidar_bin}


class NuScenesSource:
    """A :class:`~sensorlab.data.sources.base.SampleSource` over one version of a dataroot.

    Args:
        dataroot: directory with ``samples/``, ``sweeps/`` and the version's directory of tables.
        version: for example ``v1.0-trainval``.
        sweeps: files per radar and lidar: 1 is the keyframe alone, N adds the N - 1 before it, as far as they exist.
        modalities: sensors to read; boxes and the ego pose are always read.
        splits: scene names of splits, when neither the official lists nor the names say it; other scenes are "train".

    Raises:
        UserError: dataroot or version do not exist, or an option is out of range.
    """

    def __init__(
        self,
        dataroot: str | Path,
        version: str,
        sweeps: int = 1,
        modalities: Sequence[str] = MODALITIES,
        splits: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if sweeps < 1:
            raise UserError(f"sweeps is {sweeps}; it counts the keyframe, so the smallest value is 1")
        unknown = [name for name in modalities if name not in MODALITIES]
        if unknown or not modalities:
            raise UserError(f"modalities are {', '.join(modalities) or 'none'}; choose from {', '.join(MODALITIES)}")
        self.dataroot = Path(dataroot).expanduser().resolve()
        self.version = version
        self.sweeps = sweeps
        self.modalities = tuple(name for name in MODALITIES if name in modalities)
        self.given_splits = {name: tuple(scenes) for name, scenes in (splits or {}).items()}
        self.tables = TableReader(self.dataroot, version)

    @property
    def origin(self) -> str:
        """The dataroot."""
        return str(self.dataroot)

    def description(self) -> dict[str, Any]:
        """Identity: digest of the tables and the reading options; the dataroot's place does not matter."""
        return {
            "kind": "nuscenes",
            "version": self.version,
            "tables": self.tables.fingerprint(),
            "sweeps": self.sweeps,
            "modalities": list(self.modalities),
            "given_splits": {name: sorted(scenes) for name, scenes in sorted(self.given_splits.items())},
        }

    @cached_property
    def index(self) -> NuScenesIndex:
        """The joined tables, loaded at first use."""
        return NuScenesIndex.load(self.tables, with_sweeps=self.sweeps > 1)

    @cached_property
    def _sensor_ids(self) -> dict[str, int]:
        calibrations = self.index.calibrations
        return {c: i for kind in _PARSERS for i, c in enumerate(channels_of(calibrations, kind))}

    def splits(self) -> dict[str, list[int]]:
        """Sample numbers of each split, sorted by (scene, timestamp)."""
        samples = self.index.samples
        occurring = [samples.scene_name[row] for row in np.unique(samples.scene)]
        assigned = assign_splits(occurring, self.version, self.given_splits)
        split_of = {scene: name for name, scenes in assigned.items() for scene in scenes}
        numbers: dict[str, list[int]] = {name: [] for name in assigned}
        for number, scene in enumerate(samples.scene):
            numbers[split_of[samples.scene_name[scene]]].append(number)
        return numbers

    def read(self, number: int) -> Sample:
        """Read one sample and all its files. Raises ``UserError`` that names table, token and path."""
        samples, frames = self.index.samples, self.index.frames
        keyframes = {self._channel(row): row for row in frames.of_sample[number].tolist()}
        token = samples.token[number].as_py()
        reference = self._reference(token, keyframes)
        global_from_ego = self._global_from_ego(reference)
        ego_from_global = inverse_rigid(global_from_ego)
        return Sample(
            token=token,
            scene=samples.scene_name[samples.scene[number]],
            scene_token=samples.scene_token[samples.scene[number]],
            timestamp=int(frames.timestamp[reference]),
            global_from_ego=global_from_ego,
            cameras=[self._camera(row) for row in self._of_modality(keyframes, "camera")],
            radars=list(self._sweeps(keyframes, "radar", ego_from_global)),
            lidars=list(self._sweeps(keyframes, "lidar", ego_from_global)),
            boxes=self._boxes(number, ego_from_global),
        )

    # ---------------------------------------------------------------------------------------------- rows of a sample

    def _channel(self, row: int) -> str:
        return self.index.calibrations.channel[self.index.frames.calibration[row]]

    def _modality(self, row: int) -> str:
        return self.index.calibrations.modality[self.index.frames.calibration[row]]

    def _reference(self, token: str, keyframes: Mapping[str, int]) -> int:
        """The keyframe whose time and ego pose are the sample's."""
        if not keyframes:
            raise UserError(f"table sample: record {token!r} has no keyframe in table sample_data")

        def preference(channel: str) -> tuple[bool, bool, bool, str]:
            is_lidar = self._modality(keyframes[channel]) == "lidar"
            return (channel != "LIDAR_TOP", not is_lidar, channel != "CAM_FRONT", channel)

        return keyframes[min(keyframes, key=preference)]

    def _of_modality(self, keyframes: Mapping[str, int], modality: str) -> list[int]:
        if modality not in self.modalities:
            return []
        return [keyframes[channel] for channel in sorted(keyframes) if self._modality(keyframes[channel]) == modality]

    def _global_from_ego(self, row: int) -> np.ndarray:
        frames = self.index.frames
        return rigid_from_quaternion(frames.rotation[row], frames.translation[row])

    def _ego_from_sensor(self, row: int) -> np.ndarray:
        calibrations, calibration = self.index.calibrations, self.index.frames.calibration[row]
        return rigid_from_quaternion(calibrations.rotation[calibration], calibrations.translation[calibration])

    # --------------------------------------------------------------------------------------------------- file reading

    def _load(self, row: int) -> bytes:
        path = self.dataroot / self.index.frames.filename[row].as_py()
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise self._bad_file(row, "the file does not exist") from None
        except OSError as error:
            raise self._bad_file(row, error.strerror or str(error)) from error

    def _bad_file(self, row: int, reason: str) -> UserError:
        frames = self.index.frames
        path = self.dataroot / frames.filename[row].as_py()
        return UserError(f"table sample_data: record {frames.token[row].as_py()!r}: {path}: {reason}")

    def _camera(self, row: int) -> CameraFrame:
        frames = self.index.frames
        data = self._load(row)
        try:
            width, height = check_jpeg(data)
        except ValueError as error:
            raise self._bad_file(row, str(error)) from None
        stated = (int(frames.width[row]), int(frames.height[row]))
        if stated not in ((width, height), (0, 0)):
            # The calibration is for the stated size; guessing a scale would bend every projection silently.
            raise self._bad_file(row, f"the image is {width}x{height}, the table says {stated[0]}x{stated[1]}")
        intrinsics = self.index.calibrations.intrinsics[frames.calibration[row]]
        if intrinsics is None:
            raise self._bad_file(row, "its calibrated_sensor has no camera_intrinsic")
        return CameraFrame(
            name=self._channel(row),
            jpeg=data,
            width=width,
            height=height,
            intrinsics=intrinsics,
            ego_from_camera=self._ego_from_sensor(row),
            global_from_ego=self._global_from_ego(row),
            timestamp=int(frames.timestamp[row]),
        )

    def _sweeps(self, keyframes: Mapping[str, int], modality: str, ego_from_global: np.ndarray) -> Iterator[PointSweep]:
        """Keyframe sweeps of all sensors of a modality, then the ones before them, and so on."""
        current = self._of_modality(keyframes, modality)
        started = {self._channel(row): int(self.index.frames.timestamp[row]) for row in current}
        for _ in range(self.sweeps):
            for row in current:
                channel = self._channel(row)
                yield PointSweep(
                    name=channel,
                    sensor_id=self._sensor_ids[channel],
                    time_lag=1e-6 * (started[channel] - int(self.index.frames.timestamp[row])),
                    ego_from_sensor=ego_from_global @ self._global_from_ego(row) @ self._ego_from_sensor(row),
                    points=self._points(row, modality),
                )
            current = [int(row) for row in self.index.frames.prev[current] if row >= 0]

    def _points(self, row: int, modality: str) -> np.ndarray:
        try:
            return _PARSERS[modality](self._load(row))
        except ValueError as error:
            raise self._bad_file(row, str(error)) from None

    # ---------------------------------------------------------------------------------------------------------- boxes

    def _boxes(self, number: int, ego_from_global: np.ndarray) -> Boxes:
        annotations = self.index.annotations
        rows = annotations.of_sample[number]
        if not len(rows):
            return Boxes()
        rotation = ego_from_global[:3, :3] @ rotation_from_quaternion(annotations.rotation[rows])
        return Boxes(
            token=annotations.token.take(rows).to_pylist(),
            instance=annotations.instance.take(rows).to_pylist(),
            category=annotations.category.take(rows).to_pylist(),
            attributes=annotations.attributes.take(rows).to_pylist(),
            visibility=annotations.visibility[rows],
            center=transform_points(ego_from_global, annotations.center[rows]),
            size=annotations.size[rows],
            rotation=quaternion_from_rotation(rotation),
            velocity=rotate_vectors(ego_from_global, annotations.velocity[rows]),
            num_lidar_points=annotations.num_lidar_points[rows],
            num_radar_points=annotations.num_radar_points[rows],
        )
