"""From an encoded image to the pixels a network sees, and what that does to the intrinsics.

An image is resized as a whole and then cropped to its final size; :class:`ResizeCrop` is that plan, in whole pixels.
A JPEG file can be decoded at 1/2, 1/4 or 1/8 of its size (``draft``: libjpeg scales inside the inverse DCT), which is
faster than a full decode and free of aliasing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sensorlab.errors import UserError
from sensorlab.geometry.cameras import ResizeConvention, crop_intrinsics, resize_intrinsics

# "draft": scaled decode, then bilinear. The others decode in full. All filters average over the covered area when they
# shrink, except "nearest".
Interpolation = Literal["draft", "bilinear", "bicubic", "nearest"]
_FILTERS = {
    "draft": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# A scaled decode may be this much smaller than the resized image: with a resize augmentation of up to 1.2, all images
# are then decoded at the scale that suits 1.0. On nuScenes images the pixels differ from a full decode by at most 1.4
# grey levels on average, as much as two good filters (bilinear, Lanczos) differ from each other.
MAX_ENLARGEMENT = 1.2


@dataclass(frozen=True)
class ResizeCrop:
    """Resize to ``resized`` = (width, height), then cut the window ``size`` = (height, width) at ``offset`` = (x, y).

    The window may reach outside the resized image; pixels there are black. All values are pixels of the resized image.
    """

    resized: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def plain(cls, size: tuple[int, int]) -> ResizeCrop:
        """Resize to ``size`` = (height, width) without a crop; the aspect ratio may change."""
        return cls(resized=(size[1], size[0]), offset=(0, 0), size=size)

    @classmethod
    def jittered(cls, size: tuple[int, int], scale: float, shift: tuple[float, float]) -> ResizeCrop:
        """Resize to ``scale`` times ``size``, then cut ``size`` at the centre moved by ``shift`` = (x, y) pixels.

        Every number is truncated toward zero where it becomes whole, as in Simple-BEV's augmentation.
        """
        height, width = size
        resized = int(width * scale), int(height * scale)
        offset = (
            int((resized[0] - width) / 2) + int(shift[0]),
            int((resized[1] - height) / 2) + int(shift[1]),
        )
        return cls(resized=resized, offset=offset, size=size)

    def intrinsics(
        self, intrinsics: np.ndarray, source_size: tuple[int, int], convention: ResizeConvention = "exact"
    ) -> np.ndarray:
        """Intrinsics (3, 3) of the final image from those of the source of ``source_size`` = (width, height)."""
        scale = self.resized[0] / source_size[0], self.resized[1] / source_size[1]
        return crop_intrinsics(resize_intrinsics(intrinsics, scale, convention), *self.offset)


def decode_image(encoded: bytes, plan: ResizeCrop, interpolation: Interpolation, where: str, out: np.ndarray) -> None:
    """Decode, resize and crop into ``out`` (height, width, 3) uint8, RGB.

    Args:
        encoded: a JPEG file, or any other format that Pillow reads.
        where: what to call the image in an error, for example the sample and camera.

    Raises:
        UserError: not an image, or a truncated one.
    """
    try:
        file = Image.open(io.BytesIO(encoded))
        file.decodermaxblock = len(encoded)  # one call of the decoder instead of one per 64 KiB
        extent: tuple[float, float] = file.size
        if interpolation == "draft":
            # A scaled decode rounds its size up: its last pixels may be covered in part. The box is the exact extent.
            width, height = (int(side / MAX_ENLARGEMENT) for side in plan.resized)
            draft = file.draft("RGB", (width, height))
            extent = extent if draft is None else draft[1][2:]  # None: not a JPEG, or nothing to gain
        file.load()
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken header
        raise UserError(
            f"{where}: the image cannot be decoded ({error}); `sensorlab data check` lists such samples"
        ) from None
    image = file if file.mode == "RGB" else file.convert("RGB")

    # The part of the resized image that the window shows, in its own pixels; the rest of the window is black.
    (width, height), (x, y) = plan.resized, plan.offset
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + plan.size[1], width), min(y + plan.size[0], height)
    if (x1 - x0, y1 - y0) != (plan.size[1], plan.size[0]):
        out[:] = 0
    if x1 <= x0 or y1 <= y0:
        return
    target = out[y0 - y : y1 - y, x0 - x : x1 - x]
    if interpolation == "nearest":
        # The whole image: ties between source pixels then fall as they do in the original.
        target[:] = np.asarray(image.resize(plan.resized, Image.Resampling.NEAREST).crop((x0, y0, x1, y1)))
    elif _FILTERS[interpolation] is Image.Resampling.BILINEAR and extent == image.size:
        target[:] = _resize_bilinear(np.array(image), plan.resized)[y0:y1, x0:x1]
    else:
        step_x, step_y = extent[0] / width, extent[1] / height
        box = (x0 * step_x, y0 * step_y, min(x1 * step_x, image.size[0]), min(y1 * step_y, image.size[1]))
        target[:] = np.asarray(image.resize((x1 - x0, y1 - y0), _FILTERS[interpolation], box=box))


def _resize_bilinear(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to ``size`` = (width, height).

    torch computes what Pillow does, up to one grey level in rounding, in half of the time where it has vector
    instructions for it; the layout of memory matters: channels last with a proper batch stride.
    """
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(batch, size=(size[1], size[0]), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
