"""Camera images of a batch at another size, with the intrinsics that belong to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorlab.errors import UserError
from sensorlab.geometry.cameras import ResizeConvention, resize_intrinsics
from sensorlab.models.simple_bev.network import IMAGE_DIVISOR


def resize_views(
    images: Tensor, intrinsics: Tensor, size: tuple[int, int], convention: ResizeConvention
) -> tuple[Tensor, Tensor]:
    """Resize on the device of ``images``; the aspect ratio may change.

    Averages over the covered area when it shrinks, as decoding does; border maps to border, see
    :func:`~sensorlab.geometry.cameras.resize_intrinsics` for what the ``convention`` of the intrinsics makes of that.

    Args:
        images: (B, S, H, W, 3) uint8.
        intrinsics: (B, S, 3, 3), pixels of ``images``.
        size: new (height, width).

    Returns:
        images (B, S, height, width, 3) uint8 and their intrinsics.

    Raises:
        UserError: a size that the encoder cannot take.
    """
    height, width = images.shape[2:4]
    if any(side % IMAGE_DIVISOR for side in size):
        raise UserError(
            f"images of {size[0]} x {size[1]} pixels: both sides must be multiples of {IMAGE_DIVISOR}; make "
            "train.multi_scale.stride such a multiple"
        )
    pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float()  # CUDA has no such kernel for whole numbers
    resized = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    whole = resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    scale = size[1] / width, size[0] / height
    return whole.unflatten(0, images.shape[:2]), resize_intrinsics(intrinsics, scale, convention)
