"""What the ground of a scene looks like: albedo rasters painted from the road layout, and the map mask.

Two rasters cover a scene, like the levels of a clip map: a fine one around the way of the ego vehicle and a coarse
one for all of the map. Thin markings are painted with their coverage of a cell, so the coarse one does not flicker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensorlab.data.random_streams import keyed_generator
from sensorlab.data.synthetic.roads import LANE_WIDTH, SIDEWALK_WIDTH, Road, RoadLayout
from sensorlab.data.synthetic.world import Scene

FINE_CELL, COARSE_CELL = 0.08, 0.5  # metres
FINE_REACH = 36.0  # metres around the way of the ego vehicle
MASK_CELL = 0.1  # metres per pixel of a nuScenes map mask

_ASPHALT, _CONCRETE, _KERB = (0.27, 0.27, 0.29), (0.52, 0.50, 0.47), (0.64, 0.63, 0.60)
_GRASS, _WHITE, _YELLOW = (0.27, 0.35, 0.18), (0.88, 0.88, 0.86), (0.82, 0.66, 0.20)


@dataclass(frozen=True)
class GroundRaster:
    """Albedo on a regular grid: ``albedo`` (rows along y, columns along x, 3) uint8, cell (0, 0) at ``corner``."""

    corner: tuple[float, float]
    cell: float
    albedo: np.ndarray

    def nearest(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(..., 3) uint8 at points; outside, the value of the border."""
        rows, columns = self.albedo.shape[:2]
        column = ((x - np.float32(self.corner[0])) * np.float32(1 / self.cell)).astype(np.int32)
        row = ((y - np.float32(self.corner[1])) * np.float32(1 / self.cell)).astype(np.int32)
        np.clip(column, 0, columns - 1, out=column)
        np.clip(row, 0, rows - 1, out=row)
        row *= columns
        row += column
        return self.albedo.reshape(-1, 3).take(row, axis=0)

    def bilinear(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(..., 3) float32 at points, interpolated between cell centres."""
        rows, columns = self.albedo.shape[:2]
        fx = (x - np.float32(self.corner[0])) * np.float32(1 / self.cell) - np.float32(0.5)
        fy = (y - np.float32(self.corner[1])) * np.float32(1 / self.cell) - np.float32(0.5)
        np.clip(fx, 0, columns - 2, out=fx)
        np.clip(fy, 0, rows - 2, out=fy)
        column, row = fx.astype(np.int32), fy.astype(np.int32)
        fx -= column
        fy -= row
        flat, index = self.albedo.reshape(-1, 3), row * columns + column
        wx, wy = fx[..., None], fy[..., None]
        lower = flat.take(index, axis=0) * (1 - wx) + flat.take(index + 1, axis=0) * wx
        upper = flat.take(index + columns, axis=0) * (1 - wx) + flat.take(index + columns + 1, axis=0) * wx
        return lower * (1 - wy) + upper * wy


@dataclass(frozen=True)
class Ground:
    """The two rasters of a scene."""

    fine: GroundRaster
    coarse: GroundRaster


def paint_ground(scene: Scene, seed: int) -> Ground:
    """Paint the rasters of a scene."""
    rng = keyed_generator("synthetic-ground", seed, scene.index)
    way = np.array([scene.ego.pose(time)[:2] for time in np.arange(0.0, scene.duration + 0.5, 0.5)])
    low = np.floor(way.min(axis=0) - FINE_REACH)
    high = np.ceil(way.max(axis=0) + FINE_REACH)
    noise = _periodic_noise(rng, 0.5), _periodic_noise(rng, 1.6)
    wet = 0.72 if scene.rain else 1.0
    fine = _paint(scene.layout, (low[0], low[1], high[0], high[1]), FINE_CELL, noise, wet)
    coarse = _paint(scene.layout, (0.0, 0.0, *scene.extent), COARSE_CELL, noise, wet)
    return Ground(fine, coarse)


def drivable_mask(scene: Scene) -> np.ndarray:
    """(rows, columns) uint8 map mask at 0.1 m per pixel, 255 on roads; row 0 is the largest y, as in nuScenes."""
    repeat = round(COARSE_CELL / MASK_CELL)
    x, y = _cell_centres((0.0, 0.0, *scene.extent), COARSE_CELL)
    mask = np.zeros(x.shape, dtype=bool)
    for road in _roads(scene.layout):
        mask |= np.abs(road.coordinates(x, y)[1]) < road.half_width
    return np.flipud(mask).repeat(repeat, axis=0).repeat(repeat, axis=1).astype(np.uint8) * np.uint8(255)


def _roads(layout: RoadLayout) -> list[Road]:
    return [road for road in (layout.main, layout.cross) if road is not None]


def _cell_centres(bounds: tuple[float, float, float, float], cell: float) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(bounds[0] + cell / 2, bounds[2], cell, dtype=np.float32)
    y = np.arange(bounds[1] + cell / 2, bounds[3], cell, dtype=np.float32)
    grid_x, grid_y = np.meshgrid(x, y)
    return grid_x, grid_y


def _periodic_noise(rng: np.random.Generator, smoothness: float) -> np.ndarray:
    """(256, 256) float32 periodic noise with unit deviation; its amplitude falls with frequency ** smoothness."""
    spectrum = np.fft.rfft2(rng.standard_normal((256, 256)))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    noise = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / 256) ** smoothness)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def _paint(
    layout: RoadLayout,
    bounds: tuple[float, float, float, float],
    cell: float,
    noise: tuple[np.ndarray, np.ndarray],
    wet: float,
) -> GroundRaster:
    x, y = _cell_centres(bounds, cell)
    rows, columns = x.shape
    albedo = np.empty((rows, columns, 3), dtype=np.float32)
    albedo[:] = _GRASS
    frenet = [(road, *road.coordinates(x, y)) for road in _roads(layout)]
    for road, _, d in frenet:
        kerb = np.abs(d) - np.float32(road.half_width)
        albedo[kerb < SIDEWALK_WIDTH] = _CONCRETE
        albedo[kerb < 0.2] = _KERB
    on_road = np.zeros((rows, columns), dtype=bool)
    for road, _, d in frenet:
        on_road |= np.abs(d) < road.half_width
    albedo[on_road] = _ASPHALT
    # At physical scales, so that both rasters show the same ground: grain of 0.2 m and patches of many metres.
    grain = noise[0][(y * 5).astype(np.int32) & 255, (x * 5).astype(np.int32) & 255]
    patches = noise[1][(y * 2).astype(np.int32) & 255, (x * 2).astype(np.int32) & 255]
    strength = np.where(on_road, np.float32(0.05), np.float32(0.11))
    albedo *= (1 + strength * (grain + np.float32(0.6) * patches))[..., None]
    for index, (road, s, d) in enumerate(frenet):
        others = [(other, other_d) for i, (other, _, other_d) in enumerate(frenet) if i != index]
        _paint_markings(albedo, road, s, d, others, cell)
    corner = float(bounds[0]), float(bounds[1])
    return GroundRaster(corner, cell, np.clip(albedo * wet * 255, 0, 255).astype(np.uint8))


def _paint_markings(
    albedo: np.ndarray, road: Road, s: np.ndarray, d: np.ndarray, others: list[tuple[Road, np.ndarray]], cell: float
) -> None:
    """Lane lines, edge lines, stop lines and pedestrian crossings of one road, in place."""
    # Only the cells of the road are looked at: markings cover a small part of the raster.
    here = np.nonzero(np.abs(d) < road.half_width)
    s, d = s[here], d[here]
    white, yellow = np.zeros_like(s), np.zeros_like(s)
    edge = road.lanes * LANE_WIDTH
    dashes = np.float32((s % 9.0) < 4.0)
    for lane in range(1, road.lanes):
        white = np.maximum(white, _line(np.abs(d) - lane * LANE_WIDTH, 0.15, cell) * dashes)
    if road.parking:
        white = np.maximum(white, _line(np.abs(d) - edge, 0.12, cell))
    yellow = np.maximum(yellow, np.maximum(_line(d - 0.14, 0.12, cell), _line(d + 0.14, 0.12, cell)))
    for other, other_d in others:
        beyond = np.abs(other_d[here]) - np.float32(other.half_width)
        inside = beyond < 5.0
        white[inside] = 0.0
        yellow[inside] = 0.0
        bars = ((beyond > 1.4) & (beyond < 4.0) & (np.abs(d) % 1.2 < 0.6)).astype(np.float32)
        stop = _line(beyond - 4.8, 0.4, cell) * (d * np.sign(s) > 0)
        white = np.maximum(white, np.maximum(bars, stop))
    painted = albedo[here]
    for amount, colour in ((white, _WHITE), (yellow, _YELLOW)):
        painted += amount[:, None] * np.float32(0.85) * (np.asarray(colour, dtype=np.float32) - painted)
    albedo[here] = painted


def _line(distance: np.ndarray, width: float, cell: float) -> np.ndarray:
    """Share of a cell that a line of ``width`` covers when its middle is ``distance`` away; box filter."""
    most = min(width, cell) / cell
    return np.clip(((width + cell) / 2 - np.abs(distance)) / cell, 0.0, most).astype(np.float32)
