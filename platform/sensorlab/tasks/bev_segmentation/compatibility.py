"""Whether a prepared dataset holds the sensors and sweeps that a configuration asks for.

A sample without lidar is an empty cloud and a sample with one sweep has no second: reading it shows nothing, so the
manifest is asked before the training starts.
"""

from __future__ import annotations

from sensorlab.data.dataset import Manifest
from sensorlab.errors import UserError
from sensorlab.tasks.bev_segmentation.config import BEVSegmentationConfig


def check_dataset(config: BEVSegmentationConfig, manifest: Manifest) -> None:
    """Compare a configuration with the manifest of a prepared dataset.

    Raises:
        UserError: a camera, a modality or a number of sweeps that the dataset does not have.
    """
    _check_cameras(config, [camera.name for camera in manifest.sensors.cameras], manifest)
    if config.radar.input != "none":
        asked = f"task.radar.input={config.radar.input}"
        _check_modality("radar", asked, "task.radar.input=none", manifest.sensors.radars, manifest)
        _check_sweeps("radar", config.radar.sweeps, manifest)
    if config.lidar.enabled:
        _check_modality(
            "lidar", "task.lidar.enabled=true", "task.lidar.enabled=false", manifest.sensors.lidars, manifest
        )
        _check_sweeps("lidar", config.lidar.sweeps, manifest)


def _check_cameras(config: BEVSegmentationConfig, found: list[str], manifest: Manifest) -> None:
    if not found:
        raise UserError(
            f"the task needs cameras, and {_dataset(manifest)} has none: "
            "prepare one with camera among `sensorlab data prepare --modalities`"
        )
    wanted = {"task.cameras.names": config.cameras.names or (), "task.cameras.reference": (config.cameras.reference,)}
    for key, names in wanted.items():
        missing = [name for name in names if name not in found]
        if missing:
            raise UserError(
                f"{key} asks for {', '.join(missing)}, and {_dataset(manifest)} has the cameras {', '.join(found)}: "
                f"set {key} to cameras that it has"
            )


def _check_modality(modality: str, asked: str, without: str, found: tuple[str, ...], manifest: Manifest) -> None:
    if not found:
        raise UserError(
            f"{asked} asks for {modality}, and {_dataset(manifest)} has none: set {without}, or prepare one from a "
            f"source with {modality} and with {modality} among `sensorlab data prepare --modalities`"
        )


def _check_sweeps(modality: str, asked: int, manifest: Manifest) -> None:
    prepared = manifest.source.get("sweeps")  # not every kind of source has sweeps
    if isinstance(prepared, int) and asked > prepared:
        raise UserError(
            f"task.{modality}.sweeps={asked} asks for more sweeps than the {prepared} of {_dataset(manifest)}: set "
            f"task.{modality}.sweeps={prepared}, or prepare another one with data.prepare.sweeps={asked} and a new "
            f"data.path (`sensorlab data prepare --sweeps {asked}`)"
        )


def _dataset(manifest: Manifest) -> str:
    return f"the dataset prepared from {manifest.origin}"
