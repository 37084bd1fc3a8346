"""Simple-BEV (Harley et al., ICRA 2023): bird's-eye-view segmentation from cameras, with radar or lidar if wanted.

Image features are lifted to a voxel grid by bilinear sampling, without any depth estimate; heights are folded into
channels, other sensors' voxels appended, and a 2-D network over the ground plane predicts the maps.

Frames: *ref* is the reference camera (x right, y down, z forward, metres); volumes over the grid are (Z, Y, X), BEV
maps (Z, X): row = forward, column = right. B samples, S cameras, C channels.

The module is deterministic but for the drop-connect of EfficientNets in training: draws of augmentations come from
the caller. State-dict names, shapes and order are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sensorlab.errors import UserError
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.models.ops.lift import LiftPlanCache, Sampling, build_lift_plans, lift
from sensorlab.models.simple_bev import decoder as bev_decoder
from sensorlab.models.simple_bev import encoders
from sensorlab.models.simple_bev.encoders import build_encoder
from sensorlab.models.simple_bev.mirror import flip_maps, mirror_poses

RadarInput = Literal["none", "occupancy", "metadata"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_DIVISOR = 2 * encoders.STRIDE  # the neck joins strides 8 and 16
BLIND_DISTANCE = 1e6  # metres ahead of the reference camera, looking forward
# The 18 fields of a radar point and its time lag, less x, y, z.
RADAR_METADATA_CHANNELS = 16


class SimpleBEV(nn.Module):
    """The network of Simple-BEV. The defaults are the published camera model.

    Args:
        grid: voxel grid in the ref frame; Z and X must be multiples of 8.
        encoder: "res101", "res50", "effb4", "effb0" or "res18" (not published, for laptops).
        latent_dim: channels of image features, of the BEV map and of the heads.
        radar: "occupancy" adds one BEV channel (any return in the column), "metadata" 16 channels per height.
        lidar: adds one occupancy channel per height.
        compress: mix the folded heights (and sensors) by a 3x3 convolution; otherwise camera features are summed over
            height, which leaves no place for other sensors.
        sampling: convention of the lift: "centered" (exact pixel centres), "legacy" (published weights need it) or
            "index"; see :mod:`sensorlab.models.ops.lift_plan`.
        neck_width, decoder_width: channels inside the neck and of the decoder's first stage; published by default.
        train_feature_head: the fourth head has no loss. Its parameters exist, so that checkpoints and parameter
            counts agree, but do not require gradients: in the original their gradient stays None, so its optimiser
            never touched them either, and DDP refuses trainable parameters that take no part in the loss.

    Raises:
        UserError: unknown encoder, a grid that does not fit, or sensors without the compressor.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        grid: BEVGrid,
        encoder: str = "res101",
        latent_dim: int = 128,
        radar: RadarInput = "none",
        lidar: bool = False,
        compress: bool = True,
        sampling: Sampling = "centered",
        neck_width: int | None = None,
        decoder_width: int = 64,
        train_feature_head: bool = False,
    ) -> None:
        super().__init__()
        depth, height, width = grid.cells
        if depth % bev_decoder.STRIDE or width % bev_decoder.STRIDE:
            raise UserError(
                f"the BEV grid has {depth} x {width} (Z x X) cells; both must be multiples of {bev_decoder.STRIDE}"
            )
        if not compress and (radar != "none" or lidar):
            raise UserError("compress: false sums camera features over height; radar and lidar need compress: true")
        self.grid = grid
        self.radar = radar
        self.lidar = lidar
        self.sampling = sampling
        # Logarithms of the learned loss scales (uncertainty weighting); the losses read them.
        self.ce_weight = nn.Parameter(torch.tensor(0.0))
        self.center_weight = nn.Parameter(torch.tensor(0.0))
        self.offset_weight = nn.Parameter(torch.tensor(0.0))
        self.encoder = build_encoder(encoder, latent_dim, neck_width)
        self.bev_compressor: nn.Sequential | None = None
        if compress:
            sensor_channels = {"none": 0, "occupancy": 1, "metadata": RADAR_METADATA_CHANNELS * height}[radar]
            sensor_channels += height if lidar else 0
            self.bev_compressor = nn.Sequential(
                nn.Conv2d(latent_dim * height + sensor_channels, latent_dim, 3, padding=1, bias=False),
                nn.InstanceNorm2d(latent_dim),
                nn.GELU(),
            )
        self.decoder = bev_decoder.BEVDecoder(latent_dim, decoder_width)
        self.decoder.feat_head.requires_grad_(train_feature_head)
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.plans = LiftPlanCache()

    def forward(
        self,
        rgb: Tensor,
        intrinsics: Tensor,
        ref_from_camera: Tensor,
        radar: Tensor | None = None,
        lidar: Tensor | None = None,
        flip_image: Tensor | None = None,
        flip_bev: Tensor | None = None,
        camera_mask: Tensor | None = None,
        with_features: bool = False,
    ) -> dict[str, Tensor]:
        """Predict the BEV maps of a batch.

        Args:
            rgb: (B, S, 3, H, W), float in [-0.5, 0.5] or uint8; H and W multiples of 16.
            intrinsics: (B, S, 3, 3) pixels of the H x W image.
            ref_from_camera: (B, S, 4, 4) metres.
            radar: (B, 1, Z, Y, X) occupancy or (B, 16, Z, Y, X) metadata, if the network has radar.
            lidar: (B, 1, Z, Y, X) occupancy, if the network has lidar.
            flip_image: (B, S) bool: encode these images mirrored and mirror their features back (augmentation).
            flip_bev: (B, 2) bool: run the BEV trunk on maps mirrored along X ([:, 0]) or Z ([:, 1]); mirrored back
                before the heads, so targets stay as they are (augmentation).
            camera_mask: (B, S) bool: cameras that are False contribute nothing to the lift (camera dropout).
            with_features: also return the output of the feature head.

        Returns:
            ``seg`` (B, 1, Z, X) logits, ``center`` (B, 1, Z, X) in [0, 1], ``offset`` (B, 2, Z, X) cells; with
            ``with_features`` also ``feat`` (B, latent_dim, Z, X).

        Raises:
            UserError: H or W is no multiple of 16.
            ValueError: an input that the network was built for is missing, or one that it was not built for is given.
        """
        self._check_inputs(rgb, radar, lidar)
        features = self.encode(rgb, flip_image)  # (B, S, C, H/8, W/8)
        # The volume and the sensors' voxels are mirrored by flip_bev: the volume through the cameras' poses.
        ref_from_camera = mirror_poses(ref_from_camera, flip_bev, self.grid)
        image_size = (rgb.shape[-2], rgb.shape[-1])
        volume = self._lift(features, intrinsics, ref_from_camera, camera_mask, image_size)  # (B, C, Z, Y, X)
        bev = self.fold(volume, radar, lidar, flip_bev)  # (B, C, Z, X)
        shared = flip_maps(self.decoder.trunk(bev), flip_bev)  # (B, C, Z, X)
        return self.decoder.heads(shared, with_features)

    def __getstate__(self) -> dict[str, Any]:
        """Copies (as for an average of weights) and pickles start with an empty cache: plans are large."""
        return {**self.__dict__, "plans": LiftPlanCache()}

    def encode(self, rgb: Tensor, flip_image: Tensor | None = None) -> Tensor:
        """Image features: (B, S, 3, H, W) -> (B, S, latent_dim, H/8, W/8). Arguments as in :meth:`forward`."""
        batch, cameras = rgb.shape[:2]
        images = self._normalise(rgb).flatten(0, 1)  # (B*S, 3, H, W)
        if flip_image is None:
            features = self.encoder(images)
        else:
            flip = flip_image.reshape(-1, 1, 1, 1)  # (B*S, 1, 1, 1)
            features = self.encoder(torch.where(flip, images.flip(-1), images))
            features = torch.where(flip, features.flip(-1), features)
        return features.unflatten(0, (batch, cameras))

    def fold(
        self, volume: Tensor, radar: Tensor | None, lidar: Tensor | None, flip_bev: Tensor | None = None
    ) -> Tensor:
        """Camera features (B, C, Z, Y, X) and the other sensors' voxels -> the BEV map (B, C, Z, X).

        ``flip_bev`` is applied to the sensors alone: the camera volume comes mirrored.
        """
        if self.bev_compressor is None:
            return volume.sum(dim=3)
        folded = fold_height(volume)  # (B, C*Y, Z, X)
        sensors = []
        if self.radar == "occupancy" and radar is not None:
            sensors.append(radar.sum(dim=3).clamp(0, 1))  # (B, 1, Z, X)
        elif self.radar == "metadata" and radar is not None:
            sensors.append(fold_height(radar))  # (B, 16*Y, Z, X)
        if self.lidar and lidar is not None:
            sensors.append(fold_height(lidar))  # (B, Y, Z, X)
        if sensors:
            sensor_maps = flip_maps(torch.cat(sensors, dim=1).to(folded.dtype), flip_bev)
            folded = torch.cat([folded, sensor_maps], dim=1)
        return self.bev_compressor(folded)

    def _lift(
        self,
        features: Tensor,
        intrinsics: Tensor,
        ref_from_camera: Tensor,
        camera_mask: Tensor | None,
        image_size: tuple[int, int],
    ) -> Tensor:
        """Project features (B, S, C, Hf, Wf) into the grid: (B, C, Z, Y, X), mean over the cameras that see a voxel."""
        if camera_mask is not None:
            # A camera behind which all voxels lie sees none of them: it drops out of the sum and of the count.
            blind = torch.eye(4, dtype=ref_from_camera.dtype, device=ref_from_camera.device)
            blind[2, 3] = BLIND_DISTANCE
            ref_from_camera = torch.where(camera_mask[..., None, None], ref_from_camera, blind)
        # In training, crops and reference cameras are drawn anew for every sample: a cache would never hit.
        cache = None if self.training else self.plans
        feature_size = (features.shape[-2], features.shape[-1])
        plans = build_lift_plans(
            self.grid, intrinsics, ref_from_camera, image_size, feature_size, self.sampling, cache=cache
        )
        return lift(features, plans)

    def _normalise(self, rgb: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 or float in [-0.5, 0.5] -> ImageNet-normalised, in the dtype of the module."""
        if rgb.dtype == torch.uint8:
            rgb = rgb.float() / 255 - 0.5  # the float input's own rounding, so that both give the same bits
        return (rgb + 0.5 - self.image_mean) / self.image_std

    def _check_inputs(self, rgb: Tensor, radar: Tensor | None, lidar: Tensor | None) -> None:
        height, width = rgb.shape[-2:]
        if height % IMAGE_DIVISOR or width % IMAGE_DIVISOR:
            raise UserError(f"images are {height} x {width} pixels; both must be multiples of {IMAGE_DIVISOR}")
        if (self.radar != "none") != (radar is not None):
            raise ValueError(f"network with radar={self.radar!r} got {'no' if radar is None else 'a'} radar volume")
        if self.lidar != (lidar is not None):
            raise ValueError(f"network with lidar={self.lidar} got {'no' if lidar is None else 'a'} lidar volume")


def fold_height(volume: Tensor) -> Tensor:
    """Stack heights into channels, channel-major (``c * Y + y``): (B, C, Z, Y, X) -> (B, C*Y, Z, X)."""
    return volume.permute(0, 1, 3, 2, 4).flatten(1, 2)
