"""Labels against Simple-BEV: every array of labels.npz. The raster is exact on all cells, not only the stable ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sensorlab.config import validate
from sensorlab.data.sample import Boxes, CameraFrame, Sample
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import inverse_rigid, quaternion_from_rotation, rigid, rigid_from_quaternion
from sensorlab.tasks.bev_segmentation import Task
from sensorlab.tasks.bev_segmentation.config import CamerasConfig, LabelConfig
from sensorlab.tasks.bev_segmentation.labels import LabelRules, footprint_cells, foreground_boxes, rasterise_boxes
from sensorlab.tasks.bev_segmentation.raster import fill_quads
from sensorlab.tasks.bev_segmentation.views import choose_views

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data" / "simple_bev"
GOLDEN = dict(np.load(DATA / "labels.npz"))
CASES = ("basic", "border", "overlap", "single45", "crowd", "tiny", "steep")
GRID = BEVGrid()
LEGACY = LabelRules(LabelConfig(box_maps=True), legacy_corners=True, double_offset=True)
CAMERA_NAMES = tuple(f"CAM_{i}" for i in range(6))  # loader order; slot 1 is the front camera

CASE_INPUTS = {"lrt_ego", "ego_T_cam0", "vis", "raster_varies"}
CASE_MATCHED = {"lrt_cam0", "poly_xz", "seg_id", "valid", "seg_id_cv411", "center", "offset", "size_ry_y"}
ITEM_INPUTS = {"item_rots_in", "item_trans_in", "item_raster_varies"}
ITEM_MATCHED = {
    "ann_lrt_ego", "ann_vis", "item_rots_out", "item_img_order", "item_lrtlist_head",
    "item_seg", "item_valid", "item_center", "item_offset", "zero_seg", "zero_valid", "zero_center", "zero_offset",
}  # fmt: skip
# Shapes to which the original pads boxes and points with zeros; batches here are not padded with zeros at all.
NOT_APPLICABLE = {"item_shapes"}


def test_every_array_is_looked_at() -> None:
    by_case = {f"{case}_{name}" for case in CASES for name in CASE_INPUTS | CASE_MATCHED}
    assert set(GOLDEN) == by_case | ITEM_INPUTS | ITEM_MATCHED | NOT_APPLICABLE
    assert len(CASES) * len(CASE_MATCHED) + len(ITEM_MATCHED) == 69


def _boxes(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses in the ref frame, sizes and the mask of hidden boxes."""
    ref_from_ego = inverse_rigid(GOLDEN[f"{case}_ego_T_cam0"].astype(np.float64))
    flat = GOLDEN[f"{case}_lrt_ego"].astype(np.float64)
    return ref_from_ego @ flat[:, 3:].reshape(-1, 4, 4), flat[:, :3], GOLDEN[f"{case}_vis"] == 0


@pytest.mark.parametrize("case", CASES)
def test_boxes_and_corners(case: str) -> None:
    ref_from_box, size, _ = _boxes(case)
    flat = np.concatenate([size, ref_from_box.reshape(-1, 16)], axis=1)
    np.testing.assert_allclose(flat, GOLDEN[f"{case}_lrt_cam0"], atol=1e-4, rtol=0)
    assert np.array_equal(footprint_cells(ref_from_box, size, GRID, legacy=True), GOLDEN[f"{case}_poly_xz"])


@pytest.mark.parametrize("case", CASES)
def test_instance_ids(case: str) -> None:
    polygon, cell = fill_quads(GOLDEN[f"{case}_poly_xz"], (200, 200))
    ids = np.zeros(200 * 200, np.uint8)
    ids[cell] = polygon + 1
    ids = ids.reshape(200, 200)
    assert np.array_equal(ids, GOLDEN[f"{case}_seg_id"])
    stable = GOLDEN[f"{case}_raster_varies"] == 0
    assert np.array_equal(ids[stable], GOLDEN[f"{case}_seg_id_cv411"][stable])


@pytest.mark.parametrize("case", CASES)
def test_maps(case: str) -> None:
    labels = rasterise_boxes(*_boxes(case), GRID, LEGACY)
    on_object = GOLDEN[f"{case}_seg_id"] > 0
    assert np.array_equal(labels["seg"][0], on_object)
    assert np.array_equal(labels["valid"][0], GOLDEN[f"{case}_valid"])
    np.testing.assert_allclose(labels["center"][0], GOLDEN[f"{case}_center"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(labels["offset"], GOLDEN[f"{case}_offset"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(labels["box_maps"][:, on_object], GOLDEN[f"{case}_size_ry_y"], atol=2e-4, rtol=0)


def _annotated_sample(with_boxes: bool = True) -> Sample:
    """labels.json as a sample: boxes moved from the global frame into the ego frame, six cameras in loader order."""
    content = json.loads((DATA / "labels.json").read_text())
    ego = content["ego_pose"]
    global_from_ego = rigid_from_quaternion(np.array(ego["rotation_wxyz"]), np.array(ego["translation_m"]))
    annotations = content["annotations"] if with_boxes else []
    ego_from_box = [
        inverse_rigid(global_from_ego)
        @ rigid_from_quaternion(np.array(a["rotation_wxyz"]), np.array(a["translation_m"]))
        for a in annotations
    ]
    poses = np.array(ego_from_box).reshape(-1, 4, 4)
    boxes = Boxes(
        category=[a["category"] for a in annotations],
        visibility=np.array([int(a["visibility_token"]) for a in annotations], np.int8),
        center=poses[:, :3, 3],
        size=np.array([np.array(a["size_wlh_m"])[[1, 0, 2]] for a in annotations]).reshape(-1, 3),
        rotation=quaternion_from_rotation(poses[:, :3, :3]),
        num_lidar_points=np.zeros(len(annotations), np.int32),
    )
    cameras = [
        CameraFrame(name, b"", 1600, 900, np.eye(3), rigid(rotation, translation), global_from_ego, 0)
        for name, rotation, translation in zip(
            CAMERA_NAMES, GOLDEN["item_rots_in"].astype(float), GOLDEN["item_trans_in"].astype(float), strict=True
        )
    ]
    return Sample("t", "s", "st", 0, global_from_ego, cameras=cameras, boxes=boxes)


def test_annotations_become_boxes() -> None:
    boxes = _annotated_sample().boxes
    kept = foreground_boxes(boxes, LabelConfig())
    flat = np.concatenate(
        [boxes.size[kept], rigid_from_quaternion(boxes.rotation[kept], boxes.center[kept]).reshape(-1, 16)], axis=1
    )
    np.testing.assert_allclose(flat, GOLDEN["ann_lrt_ego"], atol=2e-4, rtol=0)
    assert np.array_equal(boxes.visibility[kept] != 1, GOLDEN["ann_vis"] == 1)
    head = GOLDEN["item_lrtlist_head"]  # the same boxes and the first row of padding
    np.testing.assert_allclose(flat, head[:-1], atol=2e-4, rtol=0)
    assert not head[-1].any()


def test_reference_camera_changes_places_with_the_first() -> None:
    config = CamerasConfig(names=CAMERA_NAMES, reference=CAMERA_NAMES[1])
    views = choose_views(_annotated_sample(), config, None, ignore_motion=True, skip_first=False)
    assert [view.slot for view in views] == GOLDEN["item_img_order"].astype(int).tolist()
    rotations = np.stack([view.ego_from_camera[:3, :3] for view in views])
    assert np.array_equal(rotations.astype(np.float32), GOLDEN["item_rots_out"])


@pytest.mark.parametrize(("name", "with_boxes"), [("item", True), ("zero", False)])
def test_labels_of_a_sample(name: str, with_boxes: bool) -> None:
    tree = {
        "name": "bev_segmentation",
        "legacy": "all",
        "cameras": {"names": list(CAMERA_NAMES), "reference": CAMERA_NAMES[1]},
    }
    labels = Task(validate(Task.Config, tree)).label_arrays(_annotated_sample(with_boxes))
    assert np.array_equal(labels["seg"][0], GOLDEN[f"{name}_seg"])
    assert np.array_equal(labels["valid"][0], GOLDEN[f"{name}_valid"])
    np.testing.assert_allclose(labels["center"][0], GOLDEN[f"{name}_center"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(labels["offset"], GOLDEN[f"{name}_offset"], atol=1e-4, rtol=0)
