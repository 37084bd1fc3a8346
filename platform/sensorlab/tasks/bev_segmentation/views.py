"""Which cameras of a sample a network sees, in which frame, and through which crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorlab.data.images import ResizeCrop, decode_image
from sensorlab.data.sample import CameraFrame, Sample
from sensorlab.errors import UserError
from sensorlab.geometry.cameras import ResizeConvention
from sensorlab.geometry.poses import inverse_rigid
from sensorlab.tasks.bev_segmentation.config import CamerasConfig, ImageConfig


@dataclass(frozen=True)
class View:
    """One camera of a sample and where it stands at the sample's reference time."""

    frame: CameraFrame
    ego_from_camera: np.ndarray  # (4, 4)
    slot: int  # its place among the used cameras of the sample


def used_cameras(sample: Sample, config: CamerasConfig) -> list[CameraFrame]:
    """The configured cameras of a sample in the configured order; all of them in its own order by default.

    Raises:
        UserError: a camera that the sample does not have, or no camera at all.
    """
    found = {camera.name: camera for camera in sample.cameras}
    names = tuple(found) if config.names is None else config.names
    wanted = (*names, config.reference)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"sample {sample.token} has no camera {missing[0]!r}; it has {', '.join(found) or 'none'}. "
            "Set task.cameras.names and task.cameras.reference to cameras that every sample has."
        )
    return [found[name] for name in names]


def camera_pose(sample: Sample, camera: CameraFrame, ignore_motion: bool) -> np.ndarray:
    """(4, 4) pose of a camera in the ego frame at the sample's reference time.

    The vehicle moves between the exposure and the reference time (0.4 m in 40 ms at 10 m/s); ``ignore_motion`` takes
    the calibration alone, as the original does.
    """
    if ignore_motion:
        return camera.ego_from_camera
    return inverse_rigid(sample.global_from_ego) @ camera.global_from_ego @ camera.ego_from_camera


def choose_views(
    sample: Sample, config: CamerasConfig, random: np.random.Generator | None, ignore_motion: bool, skip_first: bool
) -> list[View]:
    """The views of a sample; the reference camera changes places with the first one.

    Args:
        random: draws the subset and the reference camera in training; None: all cameras, the configured reference.
        skip_first: never draw the first camera as the reference, as the original does.
    """
    views = [
        View(camera, camera_pose(sample, camera, ignore_motion), slot)
        for slot, camera in enumerate(used_cameras(sample, config))
    ]
    if random is not None and config.train_count is not None and config.train_count < len(views):
        always = None if config.random_reference else _index_of(views, config.reference)
        views = _draw_subset(views, config.train_count, always, random)
    if random is not None and config.random_reference:
        reference = int(random.integers(1 if skip_first and len(views) > 1 else 0, len(views)))
    else:
        reference = _index_of(views, config.reference)
    views[0], views[reference] = views[reference], views[0]
    return views


def _index_of(views: Sequence[View], name: str) -> int:
    return next(i for i, view in enumerate(views) if view.frame.name == name)


def _draw_subset(views: Sequence[View], count: int, always: int | None, random: np.random.Generator) -> list[View]:
    """``count`` of the views in their order; view number ``always`` is among them."""
    others = [i for i in range(len(views)) if i != always]
    kept = {always, *random.permutation(others)[: count - (always is not None)].tolist()}
    return [view for i, view in enumerate(views) if i in kept]


def draw_crops(config: ImageConfig, count: int, random: np.random.Generator | None) -> list[ResizeCrop]:
    """A crop for each of ``count`` cameras; without ``random`` all of them are plain resizes."""
    if random is None or not config.augment:
        return [ResizeCrop.plain(config.size)] * count
    reach = int(config.size[0] * config.crop_jitter)
    scales = random.uniform(*config.resize_range, size=count).tolist()
    shifts = random.uniform(-reach, reach, size=(count, 2)).tolist()
    return [ResizeCrop.jittered(config.size, scale, (x, y)) for scale, (x, y) in zip(scales, shifts, strict=True)]


def decode_views(
    sample: Sample, views: Sequence[View], crops: Sequence[ResizeCrop], config: ImageConfig, legacy_intrinsics: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Images (S, H, W, 3) uint8 of the views and their intrinsics (S, 3, 3) float32. ``crops`` are by slot."""
    convention: ResizeConvention = "origin" if legacy_intrinsics else "exact"
    images = np.empty((len(views), *config.size, 3), np.uint8)
    intrinsics = np.empty((len(views), 3, 3), np.float32)
    for index, view in enumerate(views):
        camera, crop = view.frame, crops[view.slot]
        where = f"sample {sample.token}, camera {camera.name}"
        decode_image(camera.jpeg, crop, config.interpolation, where, out=images[index])
        source_size = camera.width, camera.height
        intrinsics[index] = crop.intrinsics(camera.intrinsics, source_size, convention)
    return images, intrinsics
