"""The arguments of an embedded world: everything that its files are a function of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sensorlab.config import StrictModel
from sensorlab.data.synthetic.schedule import KEYFRAME_PERIOD


class WorldArguments(StrictModel):
    """What a world is a function of."""

    scenes: int = Field(default=8, ge=1, le=9999)
    keyframes: int = Field(default=10, ge=1, le=80)  # per scene, at 2 Hz
    seed: int = Field(default=0, ge=0)
    image_width: int = Field(default=800, ge=64, le=1600)
    image_height: int = Field(default=450, ge=36, le=1200)
    sweeps: bool = True  # write the lidar and radar sweeps between the keyframes too
    version: str = Field(default="v1.0-mini", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    val_scenes: int = Field(default=2, ge=0)
    lidar_rate: Literal[10, 20] = 10  # Hz
    lidar_azimuths: int = Field(default=720, ge=90, le=2160)  # columns per turn; the real sensor has about 1084

    @model_validator(mode="after")
    def _val_scenes_exist(self) -> WorldArguments:
        if self.val_scenes > self.scenes:
            raise ValueError(f"{self.val_scenes} validation scenes of {self.scenes} scenes in all")
        return self

    @property
    def duration(self) -> float:
        """Seconds from the first to the last keyframe of a scene."""
        return (self.keyframes - 1) * KEYFRAME_PERIOD

    def split_of(self, index: int) -> tuple[str, int]:
        """Split of a scene and its position in the split; the last scenes are for validation."""
        train = self.scenes - self.val_scenes
        return ("train", index) if index < train else ("val", index - train)
