"""The sparse lift against Simple-BEV's dense one: every array of lift.npz and lift_full.npz.

The repository carries a subset of lift.npz (400 voxels of the volumes, two channels of the gradients, everything else
whole); where the developers' pack lies beside the checkout, the same tests also run over all of it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.cameras import project_points
from sensorlab.geometry.poses import inverse_rigid, rigid, transform_points
from sensorlab.models.ops.lift import LiftPlan, build_lift_plan, lift

pytestmark = pytest.mark.golden

HERE = Path(__file__).parent
PACK = HERE.parents[2] / "shared" / "golden" / "simple_bev" / "lift.npz"
FULL = np.load(HERE / "data" / "simple_bev" / "lift_full.npz")
SAMPLING_OF = {"legacy": "legacy", "area": "centered", "index": "index"}


@pytest.fixture(scope="module", params=["subset", "whole"])
def golden(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    if request.param == "subset":
        return dict(np.load(HERE / "data" / "simple_bev" / "lift_subset.npz"))
    if not PACK.exists():
        pytest.skip("the whole arrays are in the developers' pack, which is not beside this checkout")
    return dict(np.load(PACK))


def _scene(golden: dict[str, np.ndarray]) -> tuple[BEVGrid, Tensor, Tensor, tuple[int, int], Tensor]:
    grid = BEVGrid(cells=tuple(int(n) for n in golden["dims_zyx"]))
    height, width = (int(n) for n in golden["image_hw"])
    intrinsics, poses = golden["pix_T_cams"][..., :3, :3], golden["cam0_T_camXs"]
    features = torch.from_numpy(golden["feats"])
    return grid, torch.from_numpy(intrinsics), torch.from_numpy(poses), (height, width), features


def _plans(golden: dict[str, np.ndarray], convention: str, mean: str, single: bool = False) -> list[list[LiftPlan]]:
    """Plans by sample; with ``single``, one plan per camera, whose mean over cameras is the camera's own volume."""
    grid, intrinsics, poses, image, features = _scene(golden)
    groups = [[slice(s, s + 1) for s in range(6)] if single else [slice(None)]] * len(intrinsics)
    return [
        [build_lift_plan(grid, k[c], t[c], image, features.shape[-2:], SAMPLING_OF[convention], mean) for c in cameras]
        for k, t, cameras in zip(intrinsics, poses, groups, strict=True)
    ]


def _select(volume: Tensor, golden: dict[str, np.ndarray]) -> np.ndarray:
    if "subset_voxels" not in golden:
        return volume.detach().numpy()
    return volume.detach().flatten(-3)[..., golden["subset_voxels"]].numpy()


def _volumes(golden: dict[str, np.ndarray], features: Tensor, convention: str) -> Tensor:
    """(B, S, C, Z, Y, X): the volume of every camera by itself."""
    plans = _plans(golden, convention, "visible", single=True)
    return torch.stack([
        torch.cat([lift(features[b : b + 1, s : s + 1], [plan]) for s, plan in enumerate(cameras)])
        for b, cameras in enumerate(plans)
    ])  # fmt: skip


def _cotangent(shape: torch.Size, phase: float) -> Tensor:
    j = np.arange(np.prod(shape), dtype=np.float64)
    return torch.from_numpy(np.sin(0.7 * j + phase).astype(np.float32)).view(shape)


def test_camera_poses(golden: dict[str, np.ndarray]) -> None:
    ego_from_camera = rigid(golden["rots"], golden["trans"])
    ref_from_camera = inverse_rigid(ego_from_camera[:, :1]) @ ego_from_camera
    assert np.abs(ref_from_camera - golden["cam0_T_camXs"]).max() <= 1e-5


def test_projection(golden: dict[str, np.ndarray]) -> None:
    grid, intrinsics, poses, _, _ = _scene(golden)
    points = grid.voxel_centers().reshape(-1, 3)[golden["sel_flat"]]
    camera_points = transform_points(inverse_rigid(poses.double()), torch.from_numpy(points))
    pixels, depth = project_points(intrinsics.double(), camera_points)
    want = golden["uvz"]
    got = torch.cat([pixels, depth[..., None]], -1).numpy()
    ahead = want[..., 2] > 0.5
    assert ahead.mean() > 0.3
    assert (np.abs(got - want) <= 1e-2 + 1e-4 * np.abs(want))[ahead].all()


@pytest.mark.parametrize(("convention", "array"), [("legacy", "valid"), ("area", "valid_area"), ("index", "valid")])
def test_visibility(golden: dict[str, np.ndarray], convention: str, array: str) -> None:
    visible = torch.stack([plan.visibility() for (plan,) in _plans(golden, convention, "visible")])
    assert np.array_equal(visible.numpy(), golden[array].astype(bool))


@pytest.mark.parametrize("convention", ["legacy", "area"])
def test_volume_of_each_camera(golden: dict[str, np.ndarray], convention: str) -> None:
    volume = _volumes(golden, torch.from_numpy(golden["feats"]), convention)
    assert np.abs(_select(volume, golden) - golden[f"vol_{convention}"]).max() <= 2e-4


@pytest.mark.parametrize("convention", ["legacy", "area", "index"])
def test_mean_over_nonzero_samples(golden: dict[str, np.ndarray], convention: str) -> None:
    features = torch.from_numpy(golden["feats"])
    got = _select(lift(features, [plan for (plan,) in _plans(golden, convention, "nonzero")]), golden)
    # Channels 6 and 7 of the index convention sit on zero edges, where rounding decides what counts as zero.
    channels = slice(0, 6) if convention == "index" else slice(None)
    assert np.abs(got - golden[f"mean_{convention}"])[:, channels].max() <= 2e-4


@pytest.mark.parametrize("convention", ["area", "index"])
def test_mean_over_visible_cameras_differs_only_where_samples_are_zero(
    golden: dict[str, np.ndarray], convention: str
) -> None:
    features = torch.from_numpy(golden["feats"])
    got = _select(lift(features, [plan for (plan,) in _plans(golden, convention, "visible")]), golden)
    error = np.abs(got - golden[f"mean_{convention}"])
    assert error[:, :6].max() <= 2e-4
    assert error[:, 6:].max() > 0.05


def test_gradients(golden: dict[str, np.ndarray]) -> None:
    features = torch.from_numpy(golden["feats"]).requires_grad_()
    volume = _volumes(golden, features, "legacy")
    mean = lift(features, [plan for (plan,) in _plans(golden, "legacy", "nonzero")])
    channels = golden.get("grad_channels", np.arange(8))
    for name, output, phase in (("grad_vol", volume, 0.3), ("grad_mean", mean, 0.9)):
        (grad,) = torch.autograd.grad(output, features, _cotangent(output.shape, phase))
        got, want = grad.numpy()[:, :, channels], golden[name]
        assert (np.abs(got - want) <= 1e-3 + 1e-3 * np.abs(want)).all(), name


@lru_cache(maxsize=1)
def _full_scene() -> tuple[BEVGrid, Tensor, Tensor, Tensor]:
    scene = np.load(HERE / "data" / "simple_bev" / "lift_subset.npz")
    matrices = (torch.from_numpy(scene[name][0]) for name in ("pix_T_cams", "cam0_T_camXs", "feats"))
    return BEVGrid(), *matrices


def test_default_grid_volume_of_each_camera() -> None:
    grid, intrinsics, poses, features = _full_scene()
    for s in range(6):
        camera = slice(s, s + 1)
        plan = build_lift_plan(
            grid, intrinsics[camera, :3, :3], poses[camera], (224, 400), (28, 50), "legacy", "visible"
        )
        volume = lift(features[None, camera], [plan])[0].flatten(1)
        assert np.abs(volume[:, FULL["sel_flat"]].numpy() - FULL["vol_legacy"][s]).max() <= 2e-4
        assert np.abs((volume != 0).sum(1).numpy() - FULL["n_nonzero"][s]).max() <= 8
        want = FULL["sum_vol"][s]
        assert (np.abs(volume.double().sum(1).numpy() - want) <= 0.5 + 1e-4 * np.abs(want)).all()


def test_default_grid_mean() -> None:
    grid, intrinsics, poses, features = _full_scene()
    plan = build_lift_plan(grid, intrinsics[:, :3, :3], poses, (224, 400), (28, 50), "legacy")
    mean = lift(features[None], [plan])[0].flatten(1)
    assert np.abs(mean[:, FULL["sel_flat"]].numpy() - FULL["mean_legacy"]).max() <= 2e-4
    want = FULL["abs_sum_mean"]
    assert (np.abs(mean.double().abs().sum(1).numpy() - want) <= 0.5 + 1e-4 * np.abs(want)).all()
