"""Camera images on their way into a dataset: checked, and made smaller on request."""

from __future__ import annotations

import dataclasses
import io

from PIL import Image

from sensorlab.data.sample import CameraFrame
from sensorlab.geometry.cameras import resize_intrinsics

REENCODE_QUALITY = 90
_END_OF_IMAGE = b"\xff\xd9"


def check_jpeg(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded image that is a complete JPEG file.

    A file that ends with the end-of-image marker is taken as complete without decoding it; any other is decoded.

    Raises:
        ValueError: not a JPEG, or truncated.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if not data.rstrip(b"\0").endswith(_END_OF_IMAGE):
                image.load()
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        if not data.startswith(b"\xff\xd8"):
            raise ValueError("not a JPEG image") from None
        raise ValueError(f"truncated or damaged JPEG ({error})") from None


def decode_jpeg(data: bytes) -> Image.Image:
    """The image in RGB. Raises ``ValueError`` when it is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"truncated or damaged JPEG ({error})") from None


def limit_height(frame: CameraFrame, height: int) -> CameraFrame:
    """The frame with an image of ``height`` pixels, aspect kept; images that are not higher stay as they are.

    Resampled with an anti-aliasing filter that maps borders to borders and encoded with quality 90; the intrinsics
    follow exactly, with separate factors in x and y because the width is rounded to whole pixels.

    Raises:
        ValueError: the image is damaged.
    """
    if frame.height <= height:
        return frame
    width = max(1, round(frame.width * height / frame.height))
    image = decode_jpeg(frame.jpeg).resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=REENCODE_QUALITY)
    intrinsics = resize_intrinsics(frame.intrinsics, (width / frame.width, height / frame.height))
    return dataclasses.replace(frame, jpeg=buffer.getvalue(), width=width, height=height, intrinsics=intrinsics)
