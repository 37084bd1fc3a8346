"""Filling polygons in a BEV raster, vectorised over all polygons of a sample.

Reproduces which cells OpenCV's ``fillPoly`` (4.6, line type 8) sets for a convex quadrilateral with integer corners:
the inside of every row, plus the cells of the four edges. An edge is an integer line that starts at its left end
(Bresenham, ties towards the start) and is cut to the raster, in integers, before it is drawn. A convex outline meets
a row in one run of cells, so a polygon is one (first, last) pair per row. Checked against the golden labels.
"""

from __future__ import annotations

import numpy as np

_FAR = np.iinfo(np.int64).max // 4


def fill_quads(corners: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cells that convex quadrilaterals cover, clipped to the raster.

    Args:
        corners: (N, 4, 2) integer (column, row) along the perimeter; may lie outside the raster.
        shape: (rows, columns) of the raster.

    Returns:
        (polygon, cell): of every covered cell the index of its polygon, ascending, and its flat index; (M,) int64.
    """
    corners = np.asarray(corners, np.int64)
    num_rows, num_columns = shape
    low, high = corners.min(1), corners.max(1)  # (N, 2)
    touching = np.flatnonzero(((high >= 0) & (low < (num_columns, num_rows))).all(1))
    if not len(touching):
        return touching, touching
    top = np.maximum(low[touching, 1], 0)  # (T,)
    bottom = np.minimum(high[touching, 1], num_rows - 1)
    rows = top[:, None] + np.arange((bottom - top).max() + 1)  # (T, R)
    first, last = _row_spans(corners[touching], rows, shape)
    first = np.maximum(first, 0)
    last = np.minimum(last, num_columns - 1)

    length = np.where(rows <= bottom[:, None], last - first + 1, 0).clip(0).ravel()  # (T * R,)
    start = (rows * num_columns + first).ravel()
    position = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    cell = np.repeat(start, length) + position
    polygon = np.repeat(np.repeat(touching, rows.shape[1]), length)
    return polygon, cell


def _row_spans(corners: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """First and last column of each polygon (N, 4, 2) in each of its ``rows`` (N, R); first > last: none."""
    begin, end = corners, corners[:, [1, 2, 3, 0]]  # (N, 4, 2) edges
    drawn = np.ones(begin.shape[:2], bool)
    cut = np.flatnonzero(((corners < 0) | (corners >= (shape[1], shape[0]))).any((1, 2)))
    if not len(cut):
        return _edge_spans(begin, end, rows, drawn)  # what is inside lies between the edges
    inside_first, inside_last = _inside_spans(begin[cut], end[cut], rows[cut])
    begin, end = begin.copy(), end.copy()
    begin[cut], end[cut], drawn[cut] = _clip_edges(begin[cut], end[cut], shape)
    first, last = _edge_spans(begin, end, rows, drawn)
    first[cut] = np.minimum(first[cut], inside_first)
    last[cut] = np.maximum(last[cut], inside_last)
    return first, last


def _inside_spans(begin: np.ndarray, end: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns whose centres lie between the edges (N, 4, 2) of a polygon, per row (N, R)."""
    dy = (end - begin)[..., 1:]  # (N, 4, 1)
    dx = (end - begin)[..., :1]
    step = rows[:, None, :] - begin[..., 1:]  # (N, 4, R)
    crosses = (dy != 0) & (step * np.sign(dy) >= 0) & (np.abs(step) <= np.abs(dy))
    dy = np.where(dy == 0, 1, dy)
    below = begin[..., :1] + step * dx // dy  # floor of the crossing
    above = begin[..., :1] - (-step * dx // dy)  # its ceiling
    return np.where(crosses, above, _FAR).min(1), np.where(crosses, below, -_FAR).max(1)


def _edge_spans(
    begin: np.ndarray, end: np.ndarray, rows: np.ndarray, drawn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Columns set by drawing the edges (N, 4, 2) of a polygon, per row (N, R)."""
    swap = (begin[..., 0] > end[..., 0])[..., None]
    left, right = np.where(swap, end, begin), np.where(swap, begin, end)
    dx = (right[..., 0] - left[..., 0])[..., None]  # (N, 4, 1), >= 0
    dy = (right[..., 1] - left[..., 1])[..., None]
    height = np.abs(dy)
    step = (rows[:, None, :] - left[..., 1:]) * np.where(dy < 0, -1, 1)  # (N, 4, R) rows away from the left end
    twice = np.maximum(2 * height, 1)

    # Steep edge: one cell per row, at the rounded column. Flat edge: the run of columns whose rounded row is this one.
    steep = (2 * dx * step + height - 1) // twice
    run_first = np.maximum((2 * step - 1) * dx // twice + 1, 0)
    run_last = np.minimum((2 * step + 1) * dx // twice, dx)
    is_steep, is_level = height > dx, height == 0
    first = np.where(is_steep, steep, np.where(is_level, 0, run_first)) + left[..., :1]
    last = np.where(is_steep, steep, np.where(is_level, dx, run_last)) + left[..., :1]

    on_edge = (step >= 0) & (step <= height) & drawn[..., None]
    return np.where(on_edge, first, _FAR).min(1), np.where(on_edge, last, -_FAR).max(1)


def _clip_edges(
    begin: np.ndarray, end: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut edges (N, 4, 2) to the raster: first at its rows, then at its columns, each cut truncated to an integer.

    Returns:
        (begin, end, drawn): cut edges, and whether anything of each is left.
    """
    ends = [begin.copy(), end.copy()]
    for axis, limit in ((1, shape[0] - 1), (0, shape[1] - 1)):
        for this, other in ((0, 1), (1, 0)):
            point, opposite = ends[this], ends[other]
            bound = np.clip(point[..., axis], 0, limit)
            beyond = (point[..., axis] - bound) * (opposite[..., axis] - bound) > 0
            cut = (bound != point[..., axis]) & ~beyond  # an edge wholly beyond one side is dropped below
            run = np.where(cut, opposite[..., axis] - point[..., axis], 1)
            rise = opposite[..., 1 - axis] - point[..., 1 - axis]
            shift = np.trunc((bound - point[..., axis]).astype(np.float64) * rise / run).astype(np.int64)
            point[..., 1 - axis] += np.where(cut, shift, 0)
            point[..., axis] = np.where(cut, bound, point[..., axis])
    limits = np.asarray(shape)[::-1] - 1
    drawn = np.logical_and.reduce([((p >= 0) & (p <= limits)).all(-1) for p in ends])
    return ends[0], ends[1], drawn
