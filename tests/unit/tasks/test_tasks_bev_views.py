"""Which cameras are used, which one is the reference, where they stand, and through which crop they look."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from bev_samples import HEADINGS, ego_from_camera_now, make_sample

from sensorlab.data.images import ResizeCrop
from sensorlab.data.random_streams import SampleRandom
from sensorlab.errors import UserError
from sensorlab.geometry.poses import inverse_rigid, transform_points
from sensorlab.tasks.bev_segmentation.config import CamerasConfig, ImageConfig
from sensorlab.tasks.bev_segmentation.views import View, camera_pose, choose_views, draw_crops

SAMPLE = make_sample()
NAMES = list(HEADINGS)


def _views(config: CamerasConfig, seed: int | None = None, skip_first: bool = False) -> list[View]:
    random = None if seed is None else np.random.default_rng(seed)
    return choose_views(SAMPLE, config, random, ignore_motion=False, skip_first=skip_first)


def _names(views: list[View]) -> list[str]:
    return [view.frame.name for view in views]


def test_evaluation_uses_all_cameras_and_the_named_reference() -> None:
    assert _names(_views(CamerasConfig())) == ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK"]
    some = CamerasConfig(names=("CAM_BACK", "CAM_FRONT"), reference="CAM_BACK", train_count=1)
    assert _names(_views(some)) == ["CAM_BACK", "CAM_FRONT"]


def test_missing_cameras_are_named() -> None:
    for config in (CamerasConfig(names=("CAM_FRONT", "CAM_TOP")), CamerasConfig(reference="CAM_TOP")):
        with pytest.raises(UserError, match=r"sample s0 has no camera 'CAM_TOP'; it has CAM_FRONT_LEFT, .*names"):
            _views(config)


def test_every_camera_is_a_random_reference_equally_often() -> None:
    drawn = Counter(_names(_views(CamerasConfig(), seed))[0] for seed in range(800))
    assert set(drawn) == set(NAMES)
    assert max(drawn.values()) - min(drawn.values()) < 80  # 200 each, standard deviation 12
    legacy = Counter(_names(_views(CamerasConfig(), seed, skip_first=True))[0] for seed in range(200))
    assert set(legacy) == set(NAMES[1:])


def test_one_camera_alone_is_its_own_reference() -> None:
    config = CamerasConfig(train_count=1)
    for skip_first in (False, True):
        assert {len(_views(config, seed, skip_first)) for seed in range(5)} == {1}


@pytest.mark.parametrize("random_reference", [True, False])
def test_subsets_of_cameras(random_reference: bool) -> None:
    config = CamerasConfig(train_count=2, random_reference=random_reference)
    seen = Counter(frozenset(_names(_views(config, seed))) for seed in range(200))
    assert {len(names) for names in seen} == {2}
    assert len(seen) == (6 if random_reference else 3)
    if not random_reference:
        assert all(_names(_views(config, seed))[0] == "CAM_FRONT" for seed in range(20))


def test_poses_include_the_motion_between_exposures() -> None:
    """A point that stands in the world stays where it is, whatever camera it is seen from."""
    point = np.array([[640.0, 1520.0, 3.0]])
    in_ego = transform_points(inverse_rigid(SAMPLE.global_from_ego), point)
    for camera in SAMPLE.cameras:
        global_from_camera = camera.global_from_ego @ camera.ego_from_camera
        in_camera = transform_points(inverse_rigid(global_from_camera), point)
        pose = camera_pose(SAMPLE, camera, ignore_motion=False)
        np.testing.assert_allclose(transform_points(pose, in_camera), in_ego, atol=1e-9)
        np.testing.assert_allclose(pose, ego_from_camera_now(SAMPLE, camera.name))
    back = SAMPLE.cameras[3]
    assert np.array_equal(camera_pose(SAMPLE, back, ignore_motion=True), back.ego_from_camera)
    moved = camera_pose(SAMPLE, back, ignore_motion=False) - back.ego_from_camera
    assert np.linalg.norm(moved[:3, 3]) > 0.8  # it exposed 0.9 m later


def test_crops_are_drawn_for_every_camera_within_their_range() -> None:
    config = ImageConfig(size=(224, 400))
    crops = [crop for seed in range(100) for crop in draw_crops(config, 6, np.random.default_rng(seed))]
    widths = np.array([crop.resized[0] for crop in crops])
    assert widths.min() >= 320
    assert widths.max() <= 480
    assert abs(widths.mean() - 400) < 10
    shifts = np.array([crop.offset[0] - int((crop.resized[0] - 400) / 2) for crop in crops])
    assert (shifts.min(), shifts.max()) == (-43, 43)  # 0.2 * 224 = 44, exclusive, truncated toward zero
    assert len(set(draw_crops(config, 6, np.random.default_rng(0)))) == 6


def test_no_augmentation_is_a_plain_resize() -> None:
    plain = [ResizeCrop.plain((224, 400))] * 3
    assert draw_crops(ImageConfig(size=(224, 400)), 3, None) == plain
    off = ImageConfig(size=(224, 400), augment=False)
    assert draw_crops(off, 3, SampleRandom(0, 0, "t").stream("image")) == plain
