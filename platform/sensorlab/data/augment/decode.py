"""From an encoded file to RGB pixels, with a stated rule for everything that is not RGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sensorlab.errors import UserError

# More than 8 bits per channel: there is no conversion to 8 bits that suits all sensors.
_DEEP_MODES = ("I", "F")


def decode_rgb(encoded: bytes, where: str) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8, RGB.

    Grey becomes three equal channels, a palette is expanded, CMYK is converted, and an alpha channel is dropped (the
    colour below it stays as it was stored). An orientation in EXIF is not applied: boxes refer to the stored pixels.

    Args:
        where: what to call the image in an error, for example the sample.

    Raises:
        UserError: not an image, a truncated one, or one with more than 8 bits per channel.
    """
    try:
        file = Image.open(io.BytesIO(encoded))
        file.load()
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken header
        raise UserError(f"{where}: the image cannot be decoded ({error}); replace the file") from None
    if file.mode.split(";")[0] in _DEEP_MODES:
        raise UserError(
            f"{where}: the image has more than 8 bits per channel (mode {file.mode}); convert it to 8 bits first"
        )
    return np.asarray(file if file.mode == "RGB" else file.convert("RGB"))


def require_rgb(image: np.ndarray) -> np.ndarray:
    """``image`` itself, if it is what every transform here takes: (H, W, 3) uint8 with at least one pixel.

    Raises:
        ValueError: any other shape or type; :func:`decode_rgb` makes no such image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    return image
