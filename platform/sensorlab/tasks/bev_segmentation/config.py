"""Configuration of BEV segmentation: the options of Simple-BEV under plain names, plus what it lacked.

``legacy`` is the one place that brings back behaviour of the original that is mended here. The options and the faults
are tabulated in ``docs/simple-bev-options.md``.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from sensorlab.config import StrictModel
from sensorlab.data.images import Interpolation
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.metrics.bev_iou import DistanceFrame

LegacySwitch = Literal[
    "sampling",  # lift: feature position x * W/(W-1) - 0.5 instead of the pixel-centre mapping
    "intrinsics",  # resized images: c' = s * c instead of s * (c + 0.5) - 0.5
    "camera_motion",  # ego motion between a camera's and the sample's reference time is ignored
    "reference_camera",  # the random reference camera is never the first one
    "label_corners",  # corners: the four highest ones, cells truncated toward zero instead of rounded
    "offset_doubling",  # the offset target is twice the distance to the centre
    "center_unmasked",  # the centre loss also counts cells of the invalid mask
    "batch_reduction",  # means over all cells of a batch instead of means of per-sample means
    "voxel_padding",  # traces of the zero padding of point clouds: occupied ego origin, emptied voxels, lidar mask
    "radar_velocity",  # radar velocities in each sensor's own axes instead of the reference camera's
    "distance_height",  # IoU over distance: 3-D distance to the top voxel instead of the distance on the ground
]
LEGACY_SWITCHES: tuple[str, ...] = get_args(LegacySwitch)

Pair = tuple[float, float]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class GridConfig(StrictModel):
    """Voxel grid around the reference camera; see :class:`~sensorlab.geometry.bev_grid.BEVGrid`."""

    x: Pair = (-50.0, 50.0)  # metres, right
    y: Pair = (-5.0, 5.0)  # metres, down
    z: Pair = (-50.0, 50.0)  # metres, forward
    cells: tuple[int, int, int] = (200, 8, 200)  # Z, Y, X
    centroid: tuple[float, float, float] = (0.0, 1.0, 0.0)  # x, y, z of the grid's origin, metres

    @model_validator(mode="after")
    def _is_a_grid(self) -> GridConfig:
        self.build()  # raises ValueError
        if self.cells[0] % 8 or self.cells[2] % 8:
            raise ValueError(f"cells along Z and X must be multiples of 8, found {self.cells}")
        return self

    def build(self) -> BEVGrid:
        return BEVGrid(x=self.x, y=self.y, z=self.z, cells=self.cells, centroid=self.centroid)


class ModelConfig(StrictModel):
    """Size of the network; see :class:`~sensorlab.models.simple_bev.SimpleBEV`."""

    encoder: Literal["res101", "res50", "res18", "effb4", "effb0"] = "res101"
    latent_dim: int = Field(default=128, ge=1)
    neck_width: int | None = Field(default=None, ge=1)  # channels inside the neck; None: the published width
    decoder_width: int = Field(default=64, ge=1)
    compress: bool = True  # mix heights by a convolution; False: sum over height (cameras only)
    weights: str | None = None  # file of ImageNet weights of the encoder (torchvision / efficientnet_pytorch names)


class CamerasConfig(StrictModel):
    """Which cameras are used, and which one is the reference that the grid hangs on."""

    names: tuple[str, ...] | None = None  # None: all cameras of a sample, in its order
    reference: str = "CAM_FRONT"
    random_reference: bool = True  # training: any of the sample's used cameras
    train_count: int | None = Field(default=None, ge=1)  # training: a random subset of so many cameras; None: all

    @model_validator(mode="after")
    def _consistent(self) -> CamerasConfig:
        if self.names is not None:
            if len(set(self.names)) != len(self.names) or not self.names:
                raise ValueError("names must be a list of different cameras")
            if self.reference not in self.names:
                raise ValueError(f"reference {self.reference!r} is not among names {list(self.names)}")
            if self.train_count is not None and self.train_count > len(self.names):
                raise ValueError(f"train_count={self.train_count} of {len(self.names)} cameras")
        return self


class ImageConfig(StrictModel):
    """From the JPEG to the network's input."""

    size: tuple[int, int] = (448, 800)  # height, width; multiples of 16
    interpolation: Interpolation = "draft"
    augment: bool = True  # training: random resize and crop, drawn for every camera by itself
    resize_range: Pair = (0.8, 1.2)  # resize to this multiple of size
    crop_jitter: float = Field(default=0.2, ge=0)  # the crop moves by up to this fraction of the height, both ways

    @field_validator("size")
    @classmethod
    def _fits_the_encoder(cls, value: tuple[int, int]) -> tuple[int, int]:
        if any(side < 16 or side % 16 for side in value):
            raise ValueError(f"height and width must be multiples of 16, found {list(value)}")
        return value

    @field_validator("resize_range")
    @classmethod
    def _ascending(cls, value: Pair) -> Pair:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"expected 0 < low <= high, found {list(value)}")
        return value


class RadarConfig(StrictModel):
    """Radar input."""

    input: Literal["none", "occupancy", "metadata"] = "none"
    sweeps: int = Field(default=3, ge=1)  # per radar, the keyframe's included
    filters: Literal["none", "default"] = "none"  # default: those of the nuScenes devkit; drops most returns
    min_distance: float = Field(default=2.2, ge=0)  # metres: drop points with |x| and |y| below, in the sensor's frame


class LidarConfig(StrictModel):
    """Lidar input."""

    enabled: bool = False
    sweeps: int = Field(default=3, ge=1)
    min_distance: float = Field(default=2.2, ge=0)  # as for radar
    min_range: float = Field(default=1.0, ge=0)  # metres: drop points closer to the ego origin


class LabelConfig(StrictModel):
    """What is foreground."""

    categories: tuple[str, ...] = Field(default=("vehicle",), min_length=1)  # prefixes of category names
    visibility: Literal["ignore", "keep"] = "ignore"  # boxes of visibility 1 (0-40 %): not counted, or counted
    min_lidar_points: int = Field(default=0, ge=0)  # boxes with fewer lidar points are no labels at all
    center_sigma: float = Field(default=3.0, gt=0)  # cells
    box_maps: bool = False  # also size, yaw and height of the box of each cell: no loss uses them


class LossConfig(StrictModel):
    """Weights of the three losses. ``uncertainty``: learned scales weigh them, as published."""

    pos_weight: float = Field(default=2.13, gt=0)
    seg: float = Field(default=10.0, ge=0)
    center: float = Field(default=0.5, ge=0)
    offset: float = Field(default=0.5, ge=0)
    uncertainty: bool = True


class MetricConfig(StrictModel):
    """What is reported besides the losses."""

    threshold: Fraction = 0.5  # foreground: probability above
    more_thresholds: tuple[Fraction, ...] = ()  # IoU at these too
    distance_bins: int = Field(default=10, ge=0)  # 0: no IoU over distance
    max_distance: float = Field(default=71.0, gt=0)  # metres, end of the last bin


class BEVSegmentationConfig(StrictModel):
    """Everything that defines the task. The defaults are the published camera model, with its faults mended."""

    name: Literal["bev_segmentation"] = "bev_segmentation"
    grid: GridConfig = GridConfig()
    model: ModelConfig = ModelConfig()
    cameras: CamerasConfig = CamerasConfig()
    image: ImageConfig = ImageConfig()
    radar: RadarConfig = RadarConfig()
    lidar: LidarConfig = LidarConfig()
    flips: bool = True  # training: mirror images and BEV maps inside the network
    labels: LabelConfig = LabelConfig()
    losses: LossConfig = LossConfig()
    metrics: MetricConfig = MetricConfig()
    legacy: Literal["all"] | tuple[LegacySwitch, ...] = ()  # behaviour of the original to bring back

    @model_validator(mode="after")
    def _consistent(self) -> BEVSegmentationConfig:
        if not self.model.compress and (self.radar.input != "none" or self.lidar.enabled):
            raise ValueError("model.compress: false leaves no place for radar or lidar")
        return self

    def is_legacy(self, switch: LegacySwitch) -> bool:
        """Whether the original's behaviour ``switch`` is asked for."""
        return self.legacy == "all" or switch in self.legacy

    @property
    def distance_frame(self) -> DistanceFrame:
        return "top_voxel" if self.is_legacy("distance_height") else "ground"
