"""Random changes of hue, saturation and value, in OpenCV's 8-bit HSV.

There hue is in steps of two degrees (0..179), saturation and value are 0..255. The gains act through tables of 256
entries, so a pixel costs two conversions of the colour space and three look-ups.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sensorlab.config import StrictModel
from sensorlab.data.augment.decode import require_rgb

_HUES = 180
_CHUNK = 1 << 14  # pixels at a time: what they need stays in the cache
# Divisions by 0..255 as products, in units of 2^-12; division by zero gives zero.
_SHIFT = 12
_HALF = 1 << (_SHIFT - 1)
_LEVELS = np.arange(256)
_INVERSE = np.divide(1 << _SHIFT, _LEVELS, out=np.zeros(256), where=_LEVELS > 0)
_SATURATION_OF = np.rint(255 * _INVERSE).astype(np.int32)
_HUE_OF = np.rint(_HUES / 6 * _INVERSE).astype(np.int32)
# Red, green and blue fall from the value by saturation times this, as a function of hue: 0 where the channel is the
# largest, 1 where it is the smallest, linear between, over six sectors of 30 steps. float32 (180,) each.
_DISTANCE = np.abs((np.arange(_HUES)[:, None] / 30 - np.array([0.0, 2.0, 4.0]) + 3) % 6 - 3)
_FALL = np.clip(_DISTANCE - 1, 0, 1).astype(np.float32).T.copy()


class HsvConfig(StrictModel):
    """Half ranges of the random factors 1 +- gain."""

    hue: float = Field(default=0.015, ge=0, le=1)  # of the hue itself, on a circle
    saturation: float = Field(default=0.7, ge=0, le=1)  # of the saturation
    value: float = Field(default=0.4, ge=0, le=1)  # of the brightness


def sample_hsv(generator: np.random.Generator, config: HsvConfig) -> np.ndarray:
    """Factors (3,) float64 of hue, saturation and value. Draws: three uniforms in [-1, 1), in that order."""
    return hsv_factors(generator.uniform(-1.0, 1.0, size=3), config)


def hsv_factors(draws: np.ndarray, config: HsvConfig) -> np.ndarray:
    """Factors (3,) from draws (3,) in [-1, 1]."""
    return 1.0 + draws * np.array([config.hue, config.saturation, config.value])


def hsv_tables(factors: np.ndarray) -> np.ndarray:
    """New hue, saturation and value for each old one: (3, 256) uint8; results are truncated, hue is a circle."""
    products = np.arange(256) * np.asarray(factors)[:, None]  # (3, 256)
    return np.concatenate([products[:1] % _HUES, products[1:].clip(0, 255)]).astype(np.uint8)


def change_hsv(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Multiply hue, saturation and value of (H, W, 3) uint8 RGB by ``factors`` (3,)."""
    tables = hsv_tables(factors)
    pixels = np.ascontiguousarray(require_rgb(image)).reshape(-1, 3)
    out = np.empty_like(pixels)
    for start in range(0, len(pixels), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        channels = rgb_to_hsv(pixels[chunk])
        out[chunk] = hsv_to_rgb(*(table.take(channel) for table, channel in zip(tables, channels, strict=True)))
    return out.reshape(image.shape)


def rgb_to_hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue 0..179, saturation and value 0..255 of (N, 3) uint8, RGB: (N,) int32, int32 and uint8."""
    red, green, blue = (np.ascontiguousarray(pixels[:, channel]) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = (spread * _SATURATION_OF.take(value) + _HALF) >> _SHIFT

    red16, green16, blue16, spread16 = (channel.astype(np.int16) for channel in (red, green, blue, spread))
    # Sixths of the circle in units of the spread, from the largest channel: red 0, green 2, blue 4.
    sixths = np.where(
        value == red,
        green16 - blue16,
        np.where(value == green, blue16 - red16 + 2 * spread16, red16 - green16 + 4 * spread16),
    )
    hue = (sixths * _HUE_OF.take(spread) + _HALF) >> _SHIFT
    return hue + _HUES * (hue < 0), saturation, value


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(N, 3) uint8, RGB, of hue 0..179, saturation and value 0..255, (N,) each."""
    bright = value.astype(np.float32)
    drop = bright * saturation * np.float32(1 / 255)  # from the largest channel to the smallest
    out = np.empty((len(hue), 3), dtype=np.uint8)
    for channel, fall in enumerate(_FALL):
        out[:, channel] = bright - drop * fall.take(hue) + np.float32(0.5)  # rounded by truncation
    return out
