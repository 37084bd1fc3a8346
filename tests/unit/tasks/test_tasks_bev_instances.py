"""Instances decoded from the maps: truth maps give back the boxes that made them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bev_samples import FORWARD, box_list

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import inverse_rigid, rigid, transform_points
from sensorlab.tasks.bev_segmentation.config import LabelConfig
from sensorlab.tasks.bev_segmentation.instances import Instances, decode_instances, find_centers
from sensorlab.tasks.bev_segmentation.labels import LabelRules, build_labels

GRID = BEVGrid()
REF_FROM_EGO = inverse_rigid(rigid(FORWARD, np.array([1.0, 0.0, 1.5])))


def _scene(seed: int) -> list[tuple[str, float, float, float, int]]:
    """Up to 30 cars anywhere, no two of them closer than 5 m."""
    random = np.random.default_rng(seed)
    rows: list[tuple[str, float, float, float, int]] = []
    for x, y, yaw in random.uniform((-45, -45, -180), (45, 45, 180), (30, 3)):
        if all(np.hypot(x - row[1], y - row[2]) > 5 for row in rows):
            rows.append(("vehicle.car", x, y, yaw, 4))
    return rows


def _decode(labels: dict[str, np.ndarray], scale: float = 1.0) -> Instances:
    seg = torch.from_numpy(labels["seg"].astype(np.float32)) * 12 - 6
    return decode_instances(
        seg, torch.from_numpy(labels["center"]), torch.from_numpy(labels["offset"]), GRID, offset_scale=scale
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("doubled", [False, True])
def test_truth_maps_give_the_boxes_back(seed: int, doubled: bool) -> None:
    rows = _scene(seed)
    assert len(rows) > 15
    boxes = box_list(*rows)
    rules = LabelRules(LabelConfig(), double_offset=doubled)
    found = _decode(build_labels(boxes, REF_FROM_EGO, GRID, rules), scale=2.0 if doubled else 1.0)

    centers = transform_points(REF_FROM_EGO, boxes.center)[:, [0, 2]]
    cells = np.rint(GRID.to_voxel(transform_points(REF_FROM_EGO, boxes.center))[:, [0, 2]]).astype(int)
    assert sorted(found.cells.tolist()) == sorted(cells.tolist())
    assert (found.scores == 1).all()
    for index, row in enumerate(rows):
        alone = build_labels(box_list(row), REF_FROM_EGO, GRID, LabelRules(LabelConfig()))["seg"][0] == 1
        ids = found.ids.numpy()[alone]
        assert len(np.unique(ids)) == 1
        assert ids[0] != 0
        place = found.centers[int(ids[0]) - 1].numpy()
        assert np.abs(place - centers[index]).max() <= 0.25 + 1e-4  # half a cell
    assert (found.ids == 0).sum() == (build_labels(boxes, REF_FROM_EGO, GRID, rules)["seg"] == 0).sum()


def test_peaks_are_local_maxima_above_the_threshold() -> None:
    heat = torch.zeros(12, 12)
    heat[2, 3], heat[2, 4], heat[9, 9], heat[5, 5] = 0.9, 0.8, 0.5, 0.05
    cells, scores = find_centers(heat, threshold=0.1, window=3, limit=10)
    assert cells.tolist() == [[3, 2], [9, 9]]
    assert scores.tolist() == pytest.approx([0.9, 0.5])
    assert find_centers(heat, 0.1, 3, 1)[0].tolist() == [[3, 2]]


def test_empty_maps_have_no_instances() -> None:
    empty = _decode(build_labels(box_list(), REF_FROM_EGO, GRID, LabelRules(LabelConfig())))
    assert not empty.ids.any()
    assert (empty.cells.shape, empty.centers.shape, empty.scores.shape) == ((0, 2), (0, 2), (0,))
    # Foreground without any peak belongs to no instance.
    seg = torch.full((1, 200, 200), 9.0)
    assert not decode_instances(seg, torch.zeros(1, 200, 200), torch.zeros(2, 200, 200), GRID).ids.any()
