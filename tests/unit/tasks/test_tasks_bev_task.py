"""The task as a whole: arrays, their geometry, training on them, and what it reports and draws."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from bev_samples import HEIGHT, INTRINSICS, WIDTH, box_list, ego_from_camera_now, make_sample, small_task

from sensorlab.data.batch import MisfitError
from sensorlab.data.random_streams import SampleRandom
from sensorlab.data.sample import CameraFrame, Sample
from sensorlab.errors import UserError
from sensorlab.geometry.cameras import project_points
from sensorlab.geometry.poses import inverse_rigid, transform_points
from sensorlab.tasks.base import BaseTask, task_class
from sensorlab.tasks.bev_segmentation import Task
from sensorlab.tasks.bev_segmentation.baseline import constant_baseline

FULL = {"radar": {"input": "metadata"}, "lidar": {"enabled": True}}


def _batch(task: Task, training: bool, count: int = 2) -> dict[str, torch.Tensor]:
    items = [task.transform(make_sample(f"s{i}", seed=i), SampleRandom(0, 0, f"s{i}"), training) for i in range(count)]
    return {name: torch.from_numpy(value) for name, value in task.collate(items).items()}


def test_the_task_is_found_by_its_name() -> None:
    assert task_class("bev_segmentation") is Task


@pytest.mark.parametrize(
    ("tree", "columns"),
    [
        ({}, ("cameras", "boxes")),
        ({"radar": {"input": "occupancy"}}, ("cameras", "boxes", "radars")),
        (FULL, ("cameras", "boxes", "radars", "lidars")),
    ],
)
def test_only_the_columns_in_use_are_read(tree: dict[str, Any], columns: tuple[str, ...]) -> None:
    assert small_task(tree).columns == columns


def test_transform_is_pure_and_draws_anew_in_every_epoch() -> None:
    task, sample = small_task(FULL), make_sample()
    first, again, next_epoch = (task.transform(sample, SampleRandom(7, epoch, "s0"), True) for epoch in (0, 0, 1))
    other_process = pickle.loads(pickle.dumps(task)).transform(sample, SampleRandom(7, 0, "s0"), True)
    for name, value in first.items():
        assert value.tobytes() == again[name].tobytes() == other_process[name].tobytes(), name
    assert not np.array_equal(first["images"], next_epoch["images"])


def test_samples_with_other_numbers_of_cameras_make_no_batch() -> None:
    task, whole, poor = small_task(), make_sample("whole"), make_sample("poor")
    poor.cameras.pop()
    items = [task.transform(sample, SampleRandom(0, 0, sample.token), False) for sample in (whole, poor)]
    with pytest.raises(
        MisfitError, match=r"has 3 cameras where others of its batch have 4: set task\.cameras\.names"
    ) as e:
        task.collate(items)
    assert e.value.position == 1


def test_evaluation_draws_nothing() -> None:
    task, sample = small_task(FULL), make_sample()
    one, two = (task.transform(sample, SampleRandom(seed, seed, "s0"), False) for seed in (0, 1))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert "flip_bev" not in one
    labels = task.label_arrays(sample)
    assert all(np.array_equal(one[name], labels[name]) for name in labels)


def test_arrays() -> None:
    arrays = small_task(FULL | {"cameras": {"train_count": 3}}).transform(make_sample(), SampleRandom(0, 0, "s"), True)
    found = {name: (value.shape, value.dtype.name) for name, value in arrays.items()}
    points = {name: found.pop(name) for name in ("radar_points", "radar_features", "lidar_points")}
    assert points == {
        "radar_points": ((90, 3), "float32"),
        "radar_features": ((90, 16), "float32"),
        "lidar_points": ((points["lidar_points"][0][0], 3), "float32"),
    }
    assert found == {
        "images": ((3, 48, 80, 3), "uint8"),
        "intrinsics": ((3, 3, 3), "float32"),
        "ref_from_camera": ((3, 4, 4), "float32"),
        "ref_from_ego": ((4, 4), "float32"),
        "flip_image": ((3,), "bool"),
        "flip_bev": ((2,), "bool"),
        "seg": ((1, 40, 40), "uint8"),
        "valid": ((1, 40, 40), "uint8"),
        "center": ((1, 40, 40), "float32"),
        "offset": ((2, 40, 40), "float32"),
    }
    np.testing.assert_allclose(arrays["ref_from_camera"][0], np.eye(4), atol=1e-6)


def _spot(pixel: np.ndarray) -> np.ndarray:
    """An image with a soft white spot."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    bump = 255 * np.exp(-((u - pixel[0]) ** 2 + (v - pixel[1]) ** 2) / (2 * 4.0**2))
    return np.repeat(bump.round().astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("seed", range(6))
def test_pixels_intrinsics_and_poses_agree_after_augmentation(seed: int) -> None:
    """A lamp in the world is painted where each camera sees it. The arrays of the transform must find it again."""
    sample, task = make_sample(), small_task({"image": {"size": [96, 160]}})
    lamps = {name: np.array([[x, y, 1.2]]) for name, x, y in (
        ("CAM_FRONT_LEFT", 6.0, 8.0), ("CAM_FRONT", 12.0, 1.0), ("CAM_FRONT_RIGHT", 6.0, -9.0), ("CAM_BACK", -9.0, 1.5),
    )}  # fmt: skip
    pictures = {}
    for name, lamp in lamps.items():
        in_camera = transform_points(inverse_rigid(ego_from_camera_now(sample, name)), lamp)
        pixel, depth = project_points(INTRINSICS, in_camera)
        assert depth[0] > 0
        pictures[name] = _spot(pixel[0])
    arrays = task.transform(make_sample(pictures=pictures), SampleRandom(seed, 0, "s0"), True)
    found = 0
    for i in range(4):
        camera_from_ref = inverse_rigid(arrays["ref_from_camera"][i].astype(float))
        for lamp in lamps.values():
            in_camera = transform_points(camera_from_ref, transform_points(arrays["ref_from_ego"].astype(float), lamp))
            pixel, depth = project_points(arrays["intrinsics"][i].astype(float), in_camera)
            u, v = pixel[0]
            weight = arrays["images"][i, ..., 0].astype(float)
            if depth[0] < 0 or not (8 < u < 152 and 8 < v < 88) or weight.max() < 100:
                continue
            weight[weight < 30] = 0
            rows, columns = np.mgrid[:96, :160]
            centroid = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
            if np.abs(centroid - pixel[0]).max() < 20:  # another camera's lamp may fall into this image too
                np.testing.assert_allclose(centroid, pixel[0], atol=0.3)
                found += 1
    assert found >= 3


def test_labels_follow_the_reference_camera() -> None:
    """The same car, seen from another reference camera, lies in the direction in which that camera sees it."""
    sample = make_sample(boxes=box_list(("vehicle.car", 12.0, 0.0, 0.0, 4)))
    for reference, axis, sign in (("CAM_FRONT", 0, 1), ("CAM_BACK", 0, -1), ("CAM_FRONT_LEFT", 1, 1)):
        seg = small_task({"cameras": {"reference": reference}}).label_arrays(sample)["seg"][0]
        rows, columns = np.nonzero(seg)
        middle = np.array([rows.mean(), columns.mean()]) - 19.5
        assert np.sign(middle[axis]) == sign, reference


@pytest.mark.parametrize("tree", [{}, {"radar": {"input": "occupancy"}}, FULL, FULL | {"legacy": "all"}])
def test_forward_backward_and_metrics(tree: dict[str, Any]) -> None:
    task = small_task(tree)
    torch.manual_seed(0)
    model = task.build_model()
    batch = _batch(task, training=True)
    outputs = task.forward(model, batch)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "seg": (2, 1, 40, 40),
        "center": (2, 1, 40, 40),
        "offset": (2, 2, 40, 40),
    }
    terms, extras = task.losses(model, outputs, batch)
    assert all(value.ndim == 0 for value in (*terms.values(), *extras.values()))
    torch.stack(list(terms.values())).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for metric in task.metrics().values():
        metric.update(outputs, batch)
        assert metric.compute()


def test_samples_of_a_batch_do_not_influence_each_other_in_evaluation() -> None:
    task = small_task(FULL)
    torch.manual_seed(0)
    model = task.build_model().eval()
    batch = _batch(task, training=False, count=3)
    batch["index"] = torch.arange(3)
    with torch.no_grad():
        outputs = task.forward(model, batch)
        for i, (_, one) in enumerate(task.split_samples(outputs, batch)):
            torch.testing.assert_close(task.forward(model, one)["seg"][0], outputs["seg"][i], atol=1e-4, rtol=1e-4)


def test_a_few_steps_on_two_samples_reduce_the_loss() -> None:
    task = small_task({"image": {"augment": False}, "flips": False, "cameras": {"random_reference": False}, **FULL})
    torch.manual_seed(0)
    model = task.build_model().train()
    batch = _batch(task, training=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(20):
        terms, _ = task.losses(model, task.forward(model, batch), batch)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.6 * history[0]


def test_decoding_gives_the_instances_of_every_sample() -> None:
    task = small_task()
    labels = task.label_arrays(make_sample())
    maps = {name: torch.from_numpy(labels[name]).float()[None] for name in ("seg", "center", "offset")}
    maps["seg"] = 20 * maps["seg"] - 10  # logits
    nothing = {name: torch.full_like(value, -10 if name == "seg" else 0) for name, value in maps.items()}
    found, empty = task.decode({name: torch.cat([maps[name], nothing[name]]) for name in maps})
    assert found.ids.any()
    assert not empty.ids.any()


def test_a_task_must_say_how_its_outputs_are_decoded() -> None:
    assert "decode" in BaseTask.__abstractmethods__


def test_reported_names_and_protocols() -> None:
    task = small_task({"metrics": {"more_thresholds": [0.4], "distance_bins": 2, "max_distance": 28}})
    metrics = task.metrics()
    names = [name for metric in metrics.values() for name in metric.compute()]
    assert names == [
        "iou", "iou_sample_mean", "iou_threshold_0.4", "iou_distance_00.0-14.0m", "iou_distance_14.0-28.0m",
    ]  # fmt: skip
    assert len({metric.protocol.digest for metric in metrics.values()}) == 4
    protocol = task.protocol
    assert (protocol.x, protocol.z, protocol.cells, protocol.frame) == ((-20, 20), (-20, 20), (40, 40), "CAM_FRONT")
    assert small_task({"legacy": ["label_corners"]}).protocol.corners == "truncated"
    unmoved = small_task({"legacy": ["camera_motion"]}).protocol
    assert (protocol.frame_pose, unmoved.frame_pose) == ("exposure", "calibration")
    assert unmoved.digest != protocol.digest


def test_constant_baselines() -> None:
    task = small_task()
    ahead = [make_sample(f"a{i}", box_list(("vehicle.car", 8.0, 0.0, 0.0, 4))) for i in range(2)]
    behind = [make_sample(f"b{i}", box_list(("vehicle.car", -8.0, 0.0, 0.0, 4))) for i in range(2)]
    same = constant_baseline(task, ahead, ahead)
    assert same["best_constant"] == same["train_prior"] == 1.0
    cells = task.label_arrays(ahead[0])["seg"].sum()
    assert same["all_foreground"] == pytest.approx(cells / 1600)
    assert constant_baseline(task, ahead, behind)["train_prior"] == 0.0
    mixed = constant_baseline(task, ahead + behind)
    assert mixed["all_foreground"] < mixed["best_constant"] == pytest.approx(0.5)
    assert "train_prior" not in mixed


def test_a_broken_image_names_sample_and_camera() -> None:
    sample = make_sample()
    broken = [
        CameraFrame(**{**vars(camera), "jpeg": camera.jpeg[:200]}) if camera.name == "CAM_BACK" else camera
        for camera in sample.cameras
    ]
    damaged = Sample(**{**vars(sample), "cameras": broken})
    with pytest.raises(UserError, match="sample s0, camera CAM_BACK: the image cannot be decoded"):
        small_task().transform(damaged, SampleRandom(0, 0, "s0"), False)


def test_encoder_weights_come_from_a_file(tmp_path: Any) -> None:
    source = small_task().build_model().encoder.backbone
    torch.save({"conv1.weight": torch.full_like(source[0].weight, 0.5)}, tmp_path / "weights.pth")
    model = small_task({"model": {"weights": str(tmp_path / "weights.pth")}}).build_model()
    assert (model.encoder.backbone[0].weight == 0.5).all()
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        small_task({"model": {"weights": str(tmp_path / "nowhere.pth")}}).build_model()


def test_decoding_instances_of_a_batch() -> None:
    task = small_task({"legacy": ["offset_doubling"]})
    batch = _batch(task, training=False)
    perfect = {"seg": batch["seg"].float() * 12 - 6, "center": batch["center"], "offset": batch["offset"]}
    for instances in task.decode(perfect):
        assert sorted(instances.ids.unique().tolist()) == [0, 1, 2, 3]
