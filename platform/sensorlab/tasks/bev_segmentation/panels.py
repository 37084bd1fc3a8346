"""One picture per sample: the cameras with the prediction on the ground, and the BEV prediction beside the truth.

For a batch of training, the same without a prediction, with what augmentation made of the sample.

numpy and Pillow only, about 30 ms a picture of six cameras: drawn in the process that trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import inverse_rigid, transform_points

Color = tuple[int, int, int]
PREDICTION: Color = (255, 150, 30)
TRUTH: Color = (40, 220, 120)
NOT_COUNTED: Color = (105, 105, 112)
RADAR: Color = (255, 70, 90)
LIDAR: Color = (70, 105, 150)
BACKGROUND: Color = (22, 24, 30)
LINES: Color = (72, 76, 86)
TEXT: Color = (232, 234, 238)

CAMERA_WIDTH = 400  # pixels of a camera in a row of several
GAP, STRIP = 6, 26  # pixels between tiles, and of the title above each
SIDE_ANGLE = 80.0  # degrees: cameras that look further to the side than this go to the lower row
RING_STEP = 20.0  # metres between range rings


def draw_panel(
    arrays: Mapping[str, np.ndarray], logits: np.ndarray, grid: BEVGrid, threshold: float
) -> tuple[str, np.ndarray]:
    """Title and picture (H, W, 3) uint8 of one sample.

    Args:
        arrays: the arrays of the task's transform, without batch dimension.
        logits: (Z, X) predicted segmentation.
    """
    probability = 1 / (1 + np.exp(-logits.astype(np.float64).clip(-60, 60)))
    predicted = probability > threshold
    truth, valid = arrays["seg"][0].astype(bool), arrays["valid"][0].astype(bool)
    union = ((predicted | truth) & valid).sum()
    iou = (predicted & truth & valid).sum() / union if union else float("nan")

    cameras = _camera_wall(arrays, predicted, truth, grid)
    side = max(cameras.height - STRIP, 300)
    prediction = _bev_tile(_heat(probability), grid, side, outline=truth)
    target = _bev_tile(_truth_colors(arrays, truth, valid, grid), grid, side, outline=None)
    titles = f"prediction   IoU {iou:.3f}   line: truth", _truth_legend(arrays)
    right = _beside([_titled(prediction, titles[0]), _titled(target, titles[1])])
    picture = np.asarray(_beside([cameras, right]))
    return f"{_index(arrays)}IoU {iou:.3f}", picture


def draw_input_panel(arrays: Mapping[str, np.ndarray], grid: BEVGrid) -> tuple[str, np.ndarray]:
    """Title and picture (H, W, 3) uint8 of what one sample of a training batch gives the network, and of its targets.

    About as high as wide, since such pictures are shown in a grid. Images and maps are drawn unmirrored, so that they
    fit each other; titles name what the network mirrors.

    Args:
        arrays: the arrays of the task's transform, without batch dimension.
    """
    truth, valid = arrays["seg"][0].astype(bool), arrays["valid"][0].astype(bool)
    cameras = _camera_wall(arrays, np.zeros_like(truth), truth, grid)
    side = round((cameras.width - GAP) / 2 * (grid.z[1] - grid.z[0]) / (grid.x[1] - grid.x[0]))
    flips = [axis for axis, flip in zip("xz", arrays.get("flip_bev", ()), strict=False) if flip]
    mirrored = f"   mirrored in the network along {' and '.join(flips)}" if flips else ""
    target = _bev_tile(_truth_colors(arrays, truth, valid, grid), grid, side, outline=None)
    center = _bev_tile(_heat(arrays["center"][0]), grid, side, outline=truth)
    below = _beside([_titled(target, _truth_legend(arrays)), _titled(center, f"centres{mirrored}")])
    height, width = arrays["images"].shape[1:3]
    return f"{_index(arrays)}images {height} x {width}", np.asarray(_stacked([cameras, below]))


def _index(arrays: Mapping[str, np.ndarray]) -> str:
    return f"sample {int(arrays['index'])}, " if "index" in arrays else ""


def _truth_legend(arrays: Mapping[str, np.ndarray]) -> str:
    legend = "truth   grey: not counted"
    legend += "   red: radar" if "radar_points" in arrays else ""
    return legend + ("   blue: lidar" if "lidar_points" in arrays else "")


def camera_headings(ref_from_camera: np.ndarray) -> np.ndarray:
    """Headings (S,) in degrees of cameras (S, 4, 4), seen from above: 0 ahead, positive to the right."""
    return np.degrees(np.arctan2(ref_from_camera[:, 0, 2], ref_from_camera[:, 2, 2]))


def ground_cells(
    intrinsics: np.ndarray,
    ref_from_camera: np.ndarray,
    ref_from_ego: np.ndarray,
    size: tuple[int, int],
    grid: BEVGrid,
) -> np.ndarray:
    """Flat BEV cell (H, W) int64 that each pixel of an image of ``size`` = (H, W) sees on the ground; -1: none.

    The ground is the plane z = 0 of the ego frame. Along a ray everything is linear in the pixel but the distance, so
    three planes over the image and one division do.
    """
    ego_from_camera = inverse_rigid(ref_from_ego.astype(np.float64)) @ ref_from_camera.astype(np.float64)
    pixel_ray = np.linalg.inv(intrinsics.astype(np.float64))  # (3, 3): (u, v, 1) -> direction in the camera frame
    to_ground = ego_from_camera[2, :3] @ pixel_ray  # climb per unit of depth
    voxel_from_camera = grid.voxel_from_ref @ ref_from_camera.astype(np.float64)
    u, v = np.arange(size[1]), np.arange(size[0])[:, None]

    def plane(row: np.ndarray) -> np.ndarray:
        return row[0] * u + row[1] * v + row[2]

    with np.errstate(divide="ignore", invalid="ignore"):
        depth = -ego_from_camera[2, 3] / plane(to_ground)
        column = voxel_from_camera[0, 3] + depth * plane(voxel_from_camera[0, :3] @ pixel_ray)
        row = voxel_from_camera[2, 3] + depth * plane(voxel_from_camera[2, :3] @ pixel_ray)
        cells_z, _, cells_x = grid.cells
        seen = (depth > 0) & (column > -0.5) & (column < cells_x - 0.5) & (row > -0.5) & (row < cells_z - 0.5)
    column, row = (np.where(seen, a, 0).round().astype(np.int64) for a in (column, row))
    return np.where(seen, row.clip(0, cells_z - 1) * cells_x + column.clip(0, cells_x - 1), -1)


def _camera_wall(
    arrays: Mapping[str, np.ndarray], predicted: np.ndarray, truth: np.ndarray, grid: BEVGrid
) -> Image.Image:
    """All cameras with the masks on the ground: those ahead above, from left to right, the others below."""
    headings = camera_headings(arrays["ref_from_camera"])
    ahead = [i for i in np.argsort(headings) if abs(headings[i]) <= SIDE_ANGLE]
    behind = [i for i in np.argsort(-(headings % 360)) if abs(headings[i]) > SIDE_ANGLE]
    width = CAMERA_WIDTH if len(headings) > 1 else 2 * CAMERA_WIDTH
    rows = []
    for row in (ahead, behind):
        tiles = []
        for i in row:
            name = "reference camera" if i == 0 else f"camera at {headings[i]:+.0f} deg"
            name += ", mirrored in the network" if "flip_image" in arrays and arrays["flip_image"][i] else ""
            tiles.append(_titled(_camera_tile(arrays, i, width, predicted, truth, grid), name))
        if tiles:
            rows.append(_beside(tiles))
    return _stacked(rows)


def _camera_tile(
    arrays: Mapping[str, np.ndarray], i: int, width: int, predicted: np.ndarray, truth: np.ndarray, grid: BEVGrid
) -> Image.Image:
    source_height, source_width = arrays["images"].shape[1:3]
    scale = width / source_width
    height = round(source_height * scale)
    image = Image.fromarray(arrays["images"][i])
    pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    intrinsics = arrays["intrinsics"][i] * np.array([[scale], [height / source_height], [1]])
    cells = ground_cells(intrinsics, arrays["ref_from_camera"][i], arrays["ref_from_ego"], (height, width), grid)
    on_ground = cells >= 0
    fill = on_ground & predicted.ravel()[cells]
    pixels[fill] = (0.55 * pixels[fill] + 0.45 * np.array(PREDICTION)).astype(np.uint8)
    pixels[_border(on_ground & truth.ravel()[cells])] = TRUTH
    return Image.fromarray(pixels)


def _heat(probability: np.ndarray) -> np.ndarray:
    """(Z, X, 3) uint8: from background to the colour of predictions."""
    low, high = np.array(BACKGROUND), np.array(PREDICTION)
    return (low + probability[..., None] * (high - low)).astype(np.uint8)


def _truth_colors(arrays: Mapping[str, np.ndarray], truth: np.ndarray, valid: np.ndarray, grid: BEVGrid) -> np.ndarray:
    """(Z, X, 3) uint8; boxes go over the dense lidar and under the sparse radar."""
    colors = np.full((*truth.shape, 3), BACKGROUND, np.uint8)
    if "lidar_points" in arrays:
        colors[_cells_of(arrays["lidar_points"], arrays["ref_from_ego"], grid)] = LIDAR
    colors[truth] = TRUTH
    colors[~valid] = NOT_COUNTED
    if "radar_points" in arrays:
        colors[_cells_of(arrays["radar_points"], arrays["ref_from_ego"], grid)] = RADAR
    return colors


def _cells_of(points: np.ndarray, ref_from_ego: np.ndarray, grid: BEVGrid) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the points (M, 3) of the ego frame that lie in the grid."""
    voxels = grid.to_voxel(transform_points(ref_from_ego, points[np.isfinite(points).all(1)]))
    x, _, z = grid.to_cells(voxels[grid.contains(voxels)]).T
    return z, x


def _bev_tile(colors: np.ndarray, grid: BEVGrid, side: int, outline: np.ndarray | None) -> Image.Image:
    """Colours (Z, X, 3) as a picture ``side`` pixels high, forward up, with range rings and the reference camera."""
    width = round(side * (grid.x[1] - grid.x[0]) / (grid.z[1] - grid.z[0]))
    tile = Image.fromarray(np.ascontiguousarray(colors[::-1])).resize((width, side), Image.Resampling.NEAREST)
    if outline is not None:
        mask = Image.fromarray(np.ascontiguousarray(outline[::-1]).astype(np.uint8) * 255)
        pixels = np.array(tile)
        pixels[_border(np.asarray(mask.resize((width, side), Image.Resampling.NEAREST)) > 0)] = TRUTH
        tile = Image.fromarray(pixels)
    draw = ImageDraw.Draw(tile)
    per_metre = side / (grid.z[1] - grid.z[0])
    x0 = (0 - grid.x[0] - grid.centroid[0]) * per_metre
    y0 = side - (0 - grid.z[0] - grid.centroid[2]) * per_metre
    reach = max(abs(b) for b in (*grid.x, *grid.z))
    for step in range(1, math.ceil(reach / RING_STEP) + 1):
        radius = step * RING_STEP * per_metre
        draw.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), outline=LINES)
        draw.text((x0 + 3, y0 - radius + 2), f"{step * RING_STEP:.0f} m", fill=LINES, font=_font(12))
    draw.polygon([(x0, y0 - 9), (x0 - 5, y0 + 5), (x0 + 5, y0 + 5)], fill=TEXT)
    return tile


def _border(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask (H, W) with a neighbour above, below, left or right that is outside of it."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return mask & ~inner


def _titled(tile: Image.Image, title: str) -> Image.Image:
    canvas = Image.new("RGB", (tile.width, tile.height + STRIP), BACKGROUND)
    ImageDraw.Draw(canvas).text((4, 3), title, fill=TEXT, font=_font(16))
    canvas.paste(tile, (0, STRIP))
    return canvas


def _beside(tiles: list[Image.Image]) -> Image.Image:
    canvas = Image.new(
        "RGB", (sum(t.width for t in tiles) + GAP * (len(tiles) - 1), max(t.height for t in tiles)), BACKGROUND
    )
    x = 0
    for tile in tiles:
        canvas.paste(tile, (x, 0))
        x += tile.width + GAP
    return canvas


def _stacked(rows: list[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), BACKGROUND)
    y = 0
    for row in rows:
        canvas.paste(row, (0, y))
        y += row.height
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
