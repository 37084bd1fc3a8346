"""Pictures: what is drawn lies where the geometry says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bev_samples import BOXES, box_list, make_sample, small_task

from sensorlab.data.random_streams import SampleRandom
from sensorlab.geometry.cameras import points_in_image, project_points
from sensorlab.geometry.poses import inverse_rigid, transform_points
from sensorlab.tasks.bev_segmentation.panels import LIDAR, NOT_COUNTED, RADAR, TRUTH, camera_headings, ground_cells

FULL = {"radar": {"input": "occupancy"}, "lidar": {"enabled": True}}


def _panels(tree: dict, boxes=BOXES, index: bool = True, filler: bool = False) -> list[tuple[str, np.ndarray]]:  # type: ignore[no-untyped-def, type-arg]
    task = small_task(tree)
    items = [task.transform(make_sample(f"s{i}", boxes), SampleRandom(0, 0, "s"), False) for i in range(2)]
    batch = {name: torch.from_numpy(value) for name, value in task.collate(items).items()}
    if index:
        batch["index"] = torch.tensor([11, 12])
    batch["is_filler"] = torch.tensor([False, filler])
    return task.panels({"seg": batch["seg"].float() * 12 - 6}, batch)


def _has(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(-1).any())


def test_one_picture_per_sample_with_everything_on_it() -> None:
    panels = _panels(FULL)
    assert [title for title, _ in panels] == ["sample 11, IoU 1.000", "sample 12, IoU 1.000"]
    picture = panels[0][1]
    assert picture.dtype == np.uint8
    assert picture.shape[0] > 500
    assert picture.shape[1] > 2 * picture.shape[0]
    assert all(_has(picture, color) for color in (RADAR, LIDAR, TRUTH, NOT_COUNTED))
    plain = _panels({}, box_list())[0]
    assert plain[0] == "sample 11, IoU nan"
    assert not any(_has(plain[1], color) for color in (RADAR, LIDAR, TRUTH, NOT_COUNTED))


def test_fillers_are_not_drawn() -> None:
    assert [title for title, _ in _panels({}, filler=True)] == ["sample 11, IoU 1.000"]


def test_one_camera_and_no_index() -> None:
    title, picture = _panels({"cameras": {"names": ["CAM_FRONT"]}}, index=False)[0]
    assert title == "IoU 1.000"
    assert picture.shape[1] > 800


def _training_batch(tree: dict) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    task = small_task(tree)
    items = [task.transform(make_sample(f"s{i}"), SampleRandom(0, 0, f"s{i}"), True) for i in range(2)]
    batch = {name: torch.from_numpy(value) for name, value in task.collate(items).items()}
    return task, batch | {"index": torch.tensor([5, 6]), "is_filler": torch.tensor([False, False])}


def test_inputs_of_a_training_batch() -> None:
    task, batch = _training_batch(FULL)
    panels = task.input_panels(batch)
    assert [title for title, _ in panels] == ["sample 5, images 48 x 80", "sample 6, images 48 x 80"]
    assert all(_has(panels[0][1], color) for color in (RADAR, LIDAR, TRUTH, NOT_COUNTED))
    assert not np.array_equal(panels[0][1], panels[1][1])
    assert task.input_panels(task.resize(batch, (96, 160)))[0][0] == "sample 5, images 96 x 160"
    batch["is_filler"][0] = True
    assert [title for title, _ in task.input_panels(batch)] == ["sample 6, images 48 x 80"]


def test_inputs_say_what_the_network_mirrors() -> None:
    task, batch = _training_batch({})
    batch["flip_image"][:], batch["flip_bev"][:] = False, False
    plain = task.input_panels(batch)[0][1]
    for name in ("flip_image", "flip_bev"):
        mirrored = {**batch, name: torch.ones_like(batch[name])}
        changed = (task.input_panels(mirrored)[0][1] != plain).any(-1)
        assert changed.any()
        rows = np.flatnonzero(changed.any(1))
        assert len(rows) < 60, "titles change, pictures do not"
    never = _training_batch({"flips": False})
    assert len(never[0].input_panels(never[1])) == 2


def test_headings() -> None:
    arrays = small_task().transform(make_sample(), SampleRandom(0, 0, "s"), False)
    headings = camera_headings(arrays["ref_from_camera"])
    np.testing.assert_allclose(headings[:3], [0, -60, 60], atol=1.5)  # the vehicle turns a little between exposures
    assert abs(headings[3]) == pytest.approx(180, abs=1.5)


def test_pixels_see_the_ground_where_it_projects_to_them() -> None:
    """Every cell's centre on the ground, projected into a camera, lands on a pixel that says it sees that cell."""
    task = small_task()
    arrays = task.transform(make_sample(), SampleRandom(0, 0, "s"), False)
    ref_from_ego = arrays["ref_from_ego"].astype(float)
    checked = 0
    for i in range(4):
        cells = ground_cells(
            arrays["intrinsics"][i], arrays["ref_from_camera"][i], arrays["ref_from_ego"], (48, 80), task.grid
        )
        rows, columns = np.divmod(np.arange(1600), 40)
        centers = task.grid.to_ref(np.stack([columns, 0 * rows, rows], 1).astype(float))
        # The ground below (or above) the cell's centre along the grid's y axis.
        in_ego = transform_points(inverse_rigid(ref_from_ego), centers)
        down = inverse_rigid(ref_from_ego)[:3, 1]
        on_ground = transform_points(ref_from_ego, in_ego - down * (in_ego[:, 2:] / down[2]))
        in_camera = transform_points(inverse_rigid(arrays["ref_from_camera"][i].astype(float)), on_ground)
        pixels, depth = project_points(arrays["intrinsics"][i].astype(float), in_camera)
        near = points_in_image(pixels, depth, (48, 80), min_depth=1.0) & (depth < 6)  # a cell is larger than a pixel
        u, v = pixels[near].round().astype(int).clip(0, (79, 47)).T
        assert np.array_equal(cells[v, u], np.arange(1600)[near])
        checked += near.sum()
    assert checked > 20
