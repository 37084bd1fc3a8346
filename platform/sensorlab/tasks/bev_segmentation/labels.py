"""BEV targets of a sample: segmentation, valid mask, centre heat map and offsets, from its 3D boxes.

Maps are (channels, Z, X) over the grid of the reference camera. Which cells a box covers is decided in whole cells: the
four upper corners become cells, and :func:`~.raster.fill_quads` fills between them, border cells included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sensorlab.data.sample import Boxes
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.boxes import CORNER_SIGNS, box_corners
from sensorlab.geometry.poses import rigid_from_quaternion
from sensorlab.tasks.bev_segmentation.config import LabelConfig
from sensorlab.tasks.bev_segmentation.raster import fill_quads

_NEGLIGIBLE = 0.001  # heat below this is zero
_HIDDEN = 1  # visibility level 0-40 %
# The upper face in the order of a walk around it, as indices into box_corners.
_UPPER_FACE = [i for i, signs in enumerate(CORNER_SIGNS) if signs[2] > 0]
_UPPER_PERIMETER = [_UPPER_FACE[i] for i in (0, 1, 3, 2)]


@dataclass(frozen=True)
class LabelRules:
    """How boxes become maps: the options, and the behaviours of the original that are asked for."""

    config: LabelConfig
    legacy_corners: bool = False  # the four highest corners, truncated toward zero
    double_offset: bool = False


def foreground_boxes(boxes: Boxes, config: LabelConfig) -> np.ndarray:
    """Indices of the boxes that are labels: of the categories, with enough lidar points."""
    of_category = np.array([name.startswith(config.categories) for name in boxes.category], bool)
    return np.flatnonzero(of_category & (boxes.num_lidar_points >= config.min_lidar_points))


def build_labels(boxes: Boxes, ref_from_ego: np.ndarray, grid: BEVGrid, rules: LabelRules) -> dict[str, np.ndarray]:
    """Targets of one sample.

    Args:
        boxes: all annotated boxes of the sample, ego frame.
        ref_from_ego: (4, 4) pose of the ego frame in that of the reference camera.

    Returns:
        ``seg`` (1, Z, X) uint8, ``valid`` (1, Z, X) uint8: 0 where no loss and no metric looks, ``center`` (1, Z, X)
        float32 in [0, 1], ``offset`` (2, Z, X) float32: cell minus rounded centre of its box along x and z, in cells,
        0 outside the boxes; with ``box_maps`` also ``box_maps`` (5, Z, X) of :func:`box_maps`.
    """
    chosen = foreground_boxes(boxes, rules.config)
    ref_from_box = ref_from_ego @ rigid_from_quaternion(boxes.rotation[chosen], boxes.center[chosen])  # (N, 4, 4)
    size = boxes.size[chosen]
    hidden = (boxes.visibility[chosen] == _HIDDEN) & (rules.config.visibility == "ignore")
    return rasterise_boxes(ref_from_box, size, hidden, grid, rules)


def rasterise_boxes(
    ref_from_box: np.ndarray, size: np.ndarray, hidden: np.ndarray, grid: BEVGrid, rules: LabelRules
) -> dict[str, np.ndarray]:
    """The maps of :func:`build_labels` for boxes of poses (N, 4, 4), sizes (N, 3); ``hidden`` (N,) ones are not valid.

    Where boxes overlap, the cell belongs to the last one.
    """
    shape = grid.cells[0], grid.cells[2]
    corners = footprint_cells(ref_from_box, size, grid, rules.legacy_corners)
    polygon, cell = fill_quads(corners, shape)
    owner = np.full(shape[0] * shape[1], -1, np.int32)  # index of the box of each cell
    owner[cell] = polygon  # of equal indices the last one is assigned
    valid = np.ones(len(owner), np.uint8)
    valid[cell[hidden[polygon]]] = 0

    foreground = owner >= 0
    covered = np.flatnonzero(foreground)
    owner_of_covered = owner[covered]
    centers = np.rint(grid.to_voxel(ref_from_box[:, :3, 3])[:, [0, 2]])  # (N, 2) column, row
    offset = np.zeros((2, len(owner)), np.float32)
    row, column = np.divmod(covered, shape[1])
    offset[0, covered] = column - centers[owner_of_covered, 0]
    offset[1, covered] = row - centers[owner_of_covered, 1]
    if rules.double_offset:
        offset *= 2
    labels = {
        "seg": foreground.view(np.uint8).reshape(1, *shape),
        "valid": valid.reshape(1, *shape),
        "center": center_map(centers, shape, rules.config.center_sigma)[None],
        "offset": offset.reshape(2, *shape),
    }
    if rules.config.box_maps:
        maps = np.zeros((5, len(owner)), np.float32)
        maps[:, covered] = box_attributes(ref_from_box, size)[owner_of_covered].T
        labels["box_maps"] = maps.reshape(5, *shape)
    return labels


def footprint_cells(ref_from_box: np.ndarray, size: np.ndarray, grid: BEVGrid, legacy: bool) -> np.ndarray:
    """Cells (N, 4, 2) as (column, row) of the upper corners of boxes, in the order of a walk around them.

    ``legacy``: the upper corners are the four with the smallest y (down), sorted by it, and walked in the order 0, 1,
    3, 2; coordinates are truncated toward zero, which moves labels by half a cell. Otherwise they are the corners of
    the box's own top, and a corner belongs to the cell that it lies in.
    """
    corners = box_corners(ref_from_box, size)  # (N, 8, 3)
    if legacy:
        highest = np.argsort(corners[..., 1], axis=1, kind="stable")[:, [0, 1, 3, 2]]
        upper = np.take_along_axis(corners, highest[..., None], axis=1)
        return np.trunc(grid.to_voxel(upper)[..., [0, 2]]).astype(np.int64)
    return np.rint(grid.to_voxel(corners[:, _UPPER_PERIMETER])[..., [0, 2]]).astype(np.int64)


def center_map(centers: np.ndarray, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Heat map (Z, X) float32: the largest of Gaussians at whole-cell ``centers`` (N, 2) as (column, row).

    Each centre touches a patch of about 7.4 sigma, not the map: 0.2 ms for 60 boxes instead of the original's 128.
    """
    heat = np.zeros(shape, np.float32)
    radius = math.ceil(sigma * math.sqrt(-2 * math.log(_NEGLIGIBLE)))
    steps = np.arange(-radius, radius + 1)
    patch = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * sigma**2)).astype(np.float32)
    patch[patch < _NEGLIGIBLE] = 0
    first = centers.astype(np.int64) - radius
    for x, z in first.tolist():
        rows = slice(max(z, 0), max(min(z + len(patch), shape[0]), 0))
        columns = slice(max(x, 0), max(min(x + len(patch), shape[1]), 0))
        window = heat[rows, columns]
        if window.size:
            source = patch[rows.start - z : rows.stop - z, columns.start - x : columns.stop - x]
            np.maximum(window, source, out=window)
    return heat


def box_attributes(ref_from_box: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(N, 5): length, width, height, yaw, y of boxes in the ref frame; metres and radians.

    Yaw is measured from the camera's left to its forward axis, as in the original's (unused) maps.
    """
    yaw = np.arctan2(ref_from_box[:, 2, 0], -ref_from_box[:, 0, 0])
    return np.column_stack([size, yaw, ref_from_box[:, 1, 3]])
