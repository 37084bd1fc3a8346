"""Light and sky of a scene: the colours of day, night and rain, and a panorama of the far horizon."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sensorlab.data.random_streams import keyed_generator
from sensorlab.data.synthetic.world import Scene

PANORAMA_SHAPE = (128, 1440)  # rows from the horizon upwards, columns of azimuth from -pi counter-clockwise
PANORAMA_TOP = math.radians(42.0)  # elevation of the last row


@dataclass(frozen=True)
class Weather:
    """How a scene is lit. Colours and gains in 0..1."""

    sun: np.ndarray  # (3,) unit vector towards the sun, global axes
    direct: float  # share of direct light on faces turned to the sun
    ambient: np.ndarray  # (3,) light that falls everywhere
    shadow: float  # factor of ground light in a cast shadow
    haze: np.ndarray  # (3,) colour of the horizon
    haze_distance: float  # metres at which 63 % of an object's colour is haze
    night: bool
    noise: float  # standard deviation of the image noise, in 8-bit levels
    panorama: np.ndarray  # (rows, columns, 3) float32, 0..255


def make_weather(scene: Scene, seed: int) -> Weather:
    """Draw light and horizon of a scene."""
    rng = keyed_generator("synthetic-weather", seed, scene.index)
    azimuth, elevation = float(rng.uniform(-math.pi, math.pi)), math.radians(float(rng.uniform(28.0, 62.0)))
    sun = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    warm = float(rng.uniform(-0.03, 0.05))
    if scene.night:
        ambient, haze = np.array([0.20, 0.21, 0.25]), np.array([0.08, 0.085, 0.11])
        zenith, direct, shadow, noise, distance = np.array([0.015, 0.02, 0.045]), 0.03, 0.75, 6.5, 260.0
    elif scene.rain:
        ambient, haze = np.array([0.66, 0.68, 0.72]), np.array([0.62, 0.64, 0.67])
        zenith, direct, shadow, noise, distance = np.array([0.50, 0.53, 0.57]), 0.06, 0.85, 4.0, 130.0
    else:
        ambient, haze = np.array([0.62 + warm, 0.64, 0.68 - warm]), np.array([0.78, 0.83, 0.88])
        zenith, direct, shadow, noise, distance = np.array([0.32, 0.52, 0.80]), 0.45, 0.52, 2.5, 320.0
    panorama = _paint_panorama(rng, haze, zenith, scene.night)
    return Weather(sun, direct, ambient, shadow, haze, distance, scene.night, noise, panorama)


def _paint_panorama(rng: np.random.Generator, haze: np.ndarray, zenith: np.ndarray, night: bool) -> np.ndarray:
    rows, columns = PANORAMA_SHAPE
    elevation = np.linspace(0.0, PANORAMA_TOP, rows)
    blend = (1 - np.exp(-elevation / math.radians(14.0)))[:, None, None]
    panorama = haze * (1 - blend) + zenith * blend + np.zeros((rows, columns, 1))
    azimuth = np.linspace(-math.pi, math.pi, columns, endpoint=False)
    if not night:
        # Clouds: a few waves of azimuth and height, periodic in azimuth.
        waves = np.zeros((rows, columns))
        for _ in range(7):
            phase = elevation[:, None] * rng.uniform(8, 40) + rng.uniform(0, 6.3)
            waves += np.sin(azimuth[None] * int(rng.integers(2, 14)) + phase)
        cover = np.clip((waves - 1.0) / 4.0, 0.0, 0.5)[..., None] * blend
        panorama += cover * (np.array([0.97, 0.97, 0.98]) * haze.max() * 1.1 - panorama)
    _paint_skyline(panorama, rng, haze, elevation, azimuth, night)
    return (np.clip(panorama, 0.0, 1.0) * 255).astype(np.float32)


def _paint_skyline(
    panorama: np.ndarray,
    rng: np.random.Generator,
    haze: np.ndarray,
    elevation: np.ndarray,
    azimuth: np.ndarray,
    night: bool,
) -> None:
    """Woods and far houses on the horizon, hazy, in place."""
    columns = len(azimuth)
    height = np.full(columns, math.radians(1.1))
    for k in (3, 7, 17, 41, 89, 180):
        height += math.radians(0.35) * np.sin(azimuth * k + rng.uniform(0, 6.3)) / k**0.6
    colours = np.array([0.23, 0.31, 0.20]) * (0.08 if night else 0.9)
    mask = elevation[:, None] < height[None]
    panorama[mask] = 0.45 * colours + 0.55 * panorama[mask]
    for _ in range(26):
        start, width = int(rng.integers(columns)), int(rng.integers(8, 34))
        top = math.radians(float(rng.uniform(1.2, 4.2)))
        shade = float(rng.uniform(0.35, 0.6)) * (0.12 if night else 1.0)
        column = np.arange(start, start + width) % columns
        rows = int((elevation < top).sum())
        block = 0.6 * np.array([shade, shade * 0.97, shade * 0.93]) + 0.4 * haze * np.ones((rows, width, 1))
        if night:
            lit = rng.random((rows, width)) < 0.14
            block[lit] = np.array([0.60, 0.50, 0.30]) * float(rng.uniform(0.5, 1.0))
        panorama[:rows, column] = block
