"""Filling quadrilaterals. Which cells exactly is held by the golden labels; here: geometry and degenerate input."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorlab.tasks.bev_segmentation.raster import fill_quads

SHAPE = (24, 30)


def _mask(corners: list[list[tuple[int, int]]]) -> np.ndarray:
    polygon, cell = fill_quads(np.array(corners), SHAPE)
    assert (np.diff(polygon) >= 0).all()
    mask = np.zeros(SHAPE, bool)
    mask.ravel()[cell] = True
    return mask


def _rectangle(angle: float, center: tuple[float, float], size: tuple[float, float]) -> np.ndarray:
    signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * np.array(size) / 2
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.rint(signs @ rotation.T + np.array(center)).astype(int)


def test_a_square_includes_its_border() -> None:
    mask = _mask([[(3, 5), (8, 5), (8, 9), (3, 9)]])
    want = np.zeros(SHAPE, bool)
    want[5:10, 3:9] = True
    assert np.array_equal(mask, want)


def test_points_and_lines() -> None:
    assert np.argwhere(_mask([[(4, 7)] * 4])).tolist() == [[7, 4]]
    line = _mask([[(2, 3), (6, 3), (6, 3), (2, 3)]])
    assert np.argwhere(line).tolist() == [[3, x] for x in range(2, 7)]
    diagonal = _mask([[(2, 3), (6, 7), (6, 7), (2, 3)]])
    assert np.argwhere(diagonal).tolist() == [[3 + i, 2 + i] for i in range(5)]


def test_nothing_inside() -> None:
    polygon, cell = fill_quads(np.zeros((0, 4, 2), int), SHAPE)
    assert len(polygon) == len(cell) == 0
    for shift in ((1000, 0), (-1000, 0), (0, 1000), (0, -1000), (10**6, 10**6)):
        assert not _mask([[(x + shift[0], y + shift[1]) for x, y in ((3, 5), (8, 5), (8, 9), (3, 9))]]).any()


def test_larger_than_the_raster() -> None:
    assert _mask([[(-500, -500), (500, -500), (500, 500), (-500, 500)]]).all()
    assert _mask([[(0, -600), (600, 0), (0, 600), (-600, 0)]]).all()


@settings(max_examples=200, deadline=None)
@given(
    angle=st.floats(0, 2 * np.pi),
    center=st.tuples(st.floats(-4, 34), st.floats(-4, 28)),
    size=st.tuples(st.floats(0.5, 25), st.floats(0.5, 12)),
)
def test_covers_what_is_inside_and_nothing_far(
    angle: float, center: tuple[float, float], size: tuple[float, float]
) -> None:
    corners = _rectangle(angle, center, size)
    mask = _mask([[tuple(c) for c in corners.tolist()]])  # type: ignore[misc]
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    edge = np.roll(corners, -1, axis=0) - corners
    length = np.hypot(edge[:, 0], edge[:, 1])
    if (length == 0).any():
        return
    side = (
        edge[:, 0, None, None] * (y - corners[:, 1, None, None])
        - edge[:, 1, None, None] * (x - corners[:, 0, None, None])
    ) / length[:, None, None]
    orientation = np.sign(edge[0, 0] * edge[1, 1] - edge[0, 1] * edge[1, 0])
    depth = (side * orientation).min(0)  # distance to the nearest edge line, positive inside
    if orientation:
        assert mask[depth > 1e-9].all()
        assert not mask[depth < -1.5].any()  # half a cell of rounding, one where an edge was cut at the border


def test_many_at_once_equal_one_by_one() -> None:
    random = np.random.default_rng(3)
    quads = [
        _rectangle(a, (x, y), (9, 4))
        for a, x, y in random.uniform((0, -5, -5), (6, 35, 29), (40, 3))
    ]  # fmt: skip
    polygon, cell = fill_quads(np.array(quads), SHAPE)
    for index, quad in enumerate(quads):
        assert np.array_equal(cell[polygon == index], fill_quads(quad[None], SHAPE)[1])
