"""Labels from boxes: which boxes, which cells, and what their offsets and centres say."""

from __future__ import annotations

import numpy as np
import pytest
from bev_samples import BOXES, FORWARD, box_list

from sensorlab.data.sample import Boxes
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import inverse_rigid, rigid, rigid_from_quaternion, transform_points
from sensorlab.tasks.bev_segmentation.config import LabelConfig
from sensorlab.tasks.bev_segmentation.labels import LabelRules, build_labels, footprint_cells, rasterise_boxes

GRID = BEVGrid(x=(-20, 20), z=(-20, 20), cells=(80, 2, 80))  # cells of 0.5 m
REF_FROM_EGO = inverse_rigid(rigid(FORWARD, np.array([1.0, 0.0, 1.5])))  # a level camera that looks ahead


def _labels(boxes: Boxes = BOXES, **options: object) -> dict[str, np.ndarray]:
    config = LabelConfig(**{name: value for name, value in options.items() if name in LabelConfig.model_fields})
    rest = {name: value for name, value in options.items() if name not in LabelConfig.model_fields}
    return build_labels(boxes, REF_FROM_EGO, GRID, LabelRules(config, **rest))


def _cell_of(x: float, y: float) -> tuple[int, int]:
    """Row and column of a point on the ground of the ego frame."""
    voxel = GRID.to_voxel(transform_points(REF_FROM_EGO, np.array([[x, y, 0.0]])))[0]
    return round(voxel[2]), round(voxel[0])


def test_shapes_and_types() -> None:
    labels = _labels()
    found = {name: (value.shape, value.dtype) for name, value in labels.items()}
    assert found == {
        "seg": ((1, 80, 80), np.uint8),
        "valid": ((1, 80, 80), np.uint8),
        "center": ((1, 80, 80), np.float32),
        "offset": ((2, 80, 80), np.float32),
    }


def test_forward_is_up_the_rows_and_right_is_along_the_columns() -> None:
    row, column = _cell_of(10.0, 3.0)
    assert row > 40  # ahead
    assert column < 40  # to the left
    assert _labels()["seg"][0, row, column] == 1


def test_only_the_categories_count() -> None:
    pedestrian = _cell_of(6.0, -4.0)
    assert _labels()["seg"][0][pedestrian] == 0
    assert _labels(categories=("human.",))["seg"][0][pedestrian] == 1
    assert _labels(categories=("human.",))["seg"].sum() < _labels(categories=("human.", "vehicle"))["seg"].sum()


def test_hidden_boxes_are_foreground_that_does_not_count() -> None:
    ignored, kept = _labels(), _labels(visibility="keep")
    truck = _cell_of(-8.0, -2.0)
    assert ignored["seg"][0][truck] == kept["seg"][0][truck] == 1
    assert ignored["valid"][0][truck] == 0
    assert kept["valid"].all()
    assert np.array_equal(ignored["seg"], kept["seg"])
    car = _cell_of(10.0, 3.0)
    assert ignored["valid"][0][car] == 1


def test_boxes_without_lidar_points_can_be_left_out() -> None:
    labels = _labels(min_lidar_points=3)  # the boxes have 0, 1, 2, 3 points
    assert labels["seg"][0][_cell_of(9.0, -7.0)] == 1
    assert labels["seg"][0][_cell_of(10.0, 3.0)] == 0
    assert labels["valid"].all()


def test_offsets_point_back_to_the_rounded_centre() -> None:
    labels = _labels()
    row, column = _cell_of(10.0, 3.0)
    rows, columns = np.nonzero(labels["seg"][0])
    centers = np.stack([columns, rows]) - labels["offset"][:, rows, columns]
    assert {tuple(c) for c in centers.T.astype(int).tolist()} == {
        _cell_of(x, y)[::-1] for x, y in ((10.0, 3.0), (-8.0, -2.0), (9.0, -7.0))
    }
    assert labels["center"][0, row, column] == 1.0
    assert not labels["offset"][:, labels["seg"][0] == 0].any()
    assert np.array_equal(_labels(double_offset=True)["offset"], 2 * labels["offset"])


def test_of_overlapping_boxes_the_last_one_owns_the_cell() -> None:
    boxes = box_list(("vehicle.car", 10.0, 0.0, 0.0, 4), ("vehicle.car", 10.0, 0.0, 90.0, 4))
    row, column = _cell_of(11.8, 0.0)  # inside the first alone
    assert _labels(boxes)["seg"][0, row, column] == 1
    labels = _labels(boxes, box_maps=True)
    assert labels["box_maps"][0, row, column] == 4.0
    yaw_of_both = labels["box_maps"][3][labels["seg"][0] == 1]
    assert len(np.unique(yaw_of_both.round(3))) == 2
    middle = _cell_of(10.0, 0.0)
    assert labels["box_maps"][3][middle] != pytest.approx(labels["box_maps"][3, row, column])


def test_boxes_outside_leave_no_trace_but_their_heat() -> None:
    far = _labels(box_list(("vehicle.car", 500.0, 0.0, 0.0, 1), ("vehicle.car", -300.0, 900.0, 0.0, 4)))
    assert not far["seg"].any()
    assert far["valid"].all()
    assert not far["center"].any()
    near = _labels(box_list(("vehicle.car", 24.0, 0.0, 90.0, 4)))  # its front is 2 m beyond the border
    assert not near["seg"].any()
    assert 0 < near["center"].max() < 1


def test_no_boxes() -> None:
    labels = _labels(Boxes(), box_maps=True)
    assert not labels["seg"].any()
    assert labels["valid"].all()
    assert labels["box_maps"].shape == (5, 80, 80)


def _mean_shift(legacy: bool) -> np.ndarray:
    """Mean of (centroid of the drawn cells - centre of the box), in cells, over random boxes."""
    random = np.random.default_rng(0)
    rules = LabelRules(LabelConfig(), legacy_corners=legacy)
    shifts = []
    for _ in range(200):
        position, yaw = random.uniform(-12, 12, 2), random.uniform(-180, 180)
        boxes = box_list(("vehicle.car", position[0], position[1], yaw, 4))
        ref_from_box = REF_FROM_EGO @ rigid_from_quaternion(boxes.rotation, boxes.center)
        seg = rasterise_boxes(ref_from_box, boxes.size, np.zeros(1, bool), GRID, rules)["seg"][0]
        rows, columns = np.nonzero(seg)
        centroid = np.array([columns.mean(), rows.mean()])
        shifts.append(centroid - GRID.to_voxel(ref_from_box[:, :3, 3])[0, [0, 2]])
    return np.mean(shifts, axis=0)


def test_labels_are_centred_on_their_boxes_and_legacy_ones_are_not() -> None:
    assert np.abs(_mean_shift(legacy=False)).max() < 0.05
    np.testing.assert_allclose(_mean_shift(legacy=True), [-0.5, -0.5], atol=0.05)


def test_flat_boxes_on_slopes_break_the_original_corners_only() -> None:
    """A trailer bed, long and low, pitched by 15 degrees: its four highest corners are not those of its upper face."""
    pitch = np.radians(15)
    tilt = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
    ref_from_box = (REF_FROM_EGO @ rigid(tilt, np.array([10.0, 0.0, 1.0])))[None]
    size = np.array([[8.0, 2.0, 0.4]])
    correct = footprint_cells(ref_from_box, size, GRID, legacy=False)[0]
    legacy = footprint_cells(ref_from_box, size, GRID, legacy=True)[0]
    assert np.ptp(correct[:, 1]) >= 15
    assert np.ptp(legacy[:, 1]) <= 2
