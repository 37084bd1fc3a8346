"""From an encoded image to the pixels a network sees, and what that does to the intrinsics.

An image is resized as a whole and then cropped to its final size; :class:`ResizeCrop` is that plan, in whole pixels.
JPEG files are decoded at the smallest of 1/1, 1/2, 1/4, 1/8 of their size that still holds the resized image (``draft``,
libjpeg scales inside the inverse DCT): 2 to 3 times faster than a full decode and free of aliasing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from sensorlab.errors import UserError
from sensorlab.geometry.cameras import ResizeConvention, crop_intrinsics, resize_intrinsics

# "draft": scaled decode, then bilinear. The others decode in full; the filters are Pillow's, which average over the
# covered area when they shrink, except "nearest".
Interpolation = Literal["draft", "bilinear", "bicubic", "nearest"]
_FILTERS = {
    "draft": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


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


def decode_image(encoded: bytes, plan: ResizeCrop, interpolation: Interpolation, where: str) -> np.ndarray:
    """Decode, resize and crop to RGB (height, width, 3) uint8.

    Args:
        encoded: a JPEG file, or any other format that Pillow reads.
        where: what to call the image in an error, for example the sample and camera.

    Raises:
        UserError: not an image, or a truncated one.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        extent: tuple[float, float] = image.size
        if interpolation == "draft":
            # A scaled decode rounds its size up, so its last pixels may be covered in part: the box is the exact extent.
            draft = image.draft("RGB", plan.resized)
            extent = extent if draft is None else draft[1][2:]  # None: not a JPEG, or nothing to gain
        image.load()
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken header
        raise UserError(f"{where}: the image cannot be decoded ({error}); `sensorlab data check` lists such samples") from None
    if image.mode != "RGB":
        image = image.convert("RGB")
    if interpolation == "nearest":
        return _resize_then_crop(image, plan)
    return _resize_window(image, extent, plan, _FILTERS[interpolation])


def _resize_then_crop(image: Image.Image, plan: ResizeCrop) -> np.ndarray:
    """Nearest neighbour of the whole image, so that ties fall as they do in the original."""
    x, y = plan.offset
    height, width = plan.size
    resized = image.resize(plan.resized, Image.Resampling.NEAREST)
    return np.asarray(resized.crop((x, y, x + width, y + height)))


def _resize_window(
    image: Image.Image, extent: tuple[float, float], plan: ResizeCrop, resample: Image.Resampling
) -> np.ndarray:
    """Compute only the part of the resized image that the window shows; ``extent`` is the image's (width, height)."""
    height, width = plan.size
    x0, y0 = max(plan.offset[0], 0), max(plan.offset[1], 0)
    x1, y1 = min(plan.offset[0] + width, plan.resized[0]), min(plan.offset[1] + height, plan.resized[1])
    if x1 <= x0 or y1 <= y0:
        return np.zeros((height, width, 3), np.uint8)
    step_x, step_y = extent[0] / plan.resized[0], extent[1] / plan.resized[1]
    box = (x0 * step_x, y0 * step_y, min(x1 * step_x, image.size[0]), min(y1 * step_y, image.size[1]))
    part = np.asarray(image.resize((x1 - x0, y1 - y0), resample, box=box))
    if part.shape[:2] == plan.size:
        return part
    window = np.zeros((height, width, 3), np.uint8)
    window[y0 - plan.offset[1] : y1 - plan.offset[1], x0 - plan.offset[0] : x1 - plan.offset[0]] = part
    return window
