"""The sparse lift against the dense formulation, and what the dense one cannot show: plans, batches, caches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorlab.bench.lift import dense_lift
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import rigid_from_quaternion
from sensorlab.models.ops.lift import LiftPlan, LiftPlanCache, build_lift_plan, build_lift_plans, lift

GRID = BEVGrid(x=(-20, 20), y=(-3, 3), z=(-20, 20), cells=(14, 3, 12))
IMAGE, FEATURES = (64, 96), (8, 12)
SAMPLINGS = ("centered", "index", "legacy")


def _rig(batch: int = 1, cameras: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cameras of random heading, tilted by up to a few degrees, overlapping: (B, S, 3, 3) and (B, S, 4, 4) float64."""
    rng = np.random.default_rng(seed)
    heading = np.linspace(0, 2 * np.pi, cameras, endpoint=False) + rng.uniform(-0.3, 0.3, (batch, cameras))
    about_y = np.stack([np.cos(heading / 2), 0 * heading, np.sin(heading / 2), 0 * heading], -1)
    tilt = rng.normal(scale=0.03, size=(batch, cameras, 4))
    poses = rigid_from_quaternion(about_y + tilt, rng.uniform(-1, 1, (batch, cameras, 3)))
    intrinsics = np.zeros((batch, cameras, 3, 3))
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = rng.uniform(35, 60, (2, batch, cameras))
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = (
        rng.uniform(40, 55, (batch, cameras)),
        rng.uniform(25, 38, (batch, cameras)),
    )
    intrinsics[..., 2, 2] = 1
    return torch.from_numpy(intrinsics), torch.from_numpy(poses)


def _features(batch: int = 1, cameras: int = 4, channels: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn((batch, cameras, channels, *FEATURES), generator=generator, dtype=torch.float64)


def _plan(**options: object) -> LiftPlan:
    intrinsics, poses = _rig()
    return build_lift_plan(GRID, intrinsics[0], poses[0], IMAGE, FEATURES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("mean", ["visible", "nonzero"])
@pytest.mark.parametrize("zeros", [False, True])
def test_equals_the_dense_formulation(sampling: str, mean: str, zeros: bool) -> None:
    """Values and gradients over a batch with different rigs; with features of which many are exactly zero too."""
    intrinsics, poses = _rig(batch=3)
    features = _features(batch=3)
    if zeros:
        features = features.clamp(min=0)
        features[:, :, :, :4] = 0
    features.requires_grad_()
    plans = build_lift_plans(GRID, intrinsics, poses, IMAGE, FEATURES, sampling, mean)  # type: ignore[arg-type]
    got = lift(features, plans)
    want = dense_lift(features, intrinsics, poses, GRID, IMAGE, sampling, mean)  # type: ignore[arg-type]
    # float32 weights against float64; "+ 1e-6" in the dense denominator.
    assert (got - want).abs().max() < 1e-5
    assert (got != 0).any(1).sum() > 500
    cotangent = torch.randn(got.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (got_grad,) = torch.autograd.grad(got, features, cotangent)
    (want_grad,) = torch.autograd.grad(want, features, cotangent)
    assert (got_grad - want_grad).abs().max() < 1e-4
    assert want_grad.abs().max() > 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_visible_voxel_is_missed(seed: int, sampling: str) -> None:
    """The column test must be conservative: visibility equals that of projecting every voxel, for any tilt."""
    rng = np.random.default_rng(seed)
    intrinsics, _ = _rig(cameras=8, seed=seed)
    poses = torch.from_numpy(rigid_from_quaternion(rng.normal(size=(1, 8, 4)), rng.uniform(-15, 15, (1, 8, 3))))
    plan = build_lift_plan(GRID, intrinsics[0], poses[0], IMAGE, FEATURES, sampling)  # type: ignore[arg-type]
    ones = torch.ones(8, 1, *FEATURES, dtype=torch.float64)
    seen = [
        dense_lift(ones[None, s : s + 1], intrinsics[:, s : s + 1], poses[:, s : s + 1], GRID, IMAGE, sampling) != 0  # type: ignore[arg-type]
        for s in range(8)
    ]
    # (A sample right on the border of the legacy mapping may be visible and zero.)
    dense = torch.cat([volume[0] for volume in seen])
    assert (dense & ~plan.visibility()).sum() == 0
    if sampling != "legacy":
        assert torch.equal(dense, plan.visibility())
    assert plan.num_pairs == int(plan.visibility().sum()) > 0


def test_gradcheck() -> None:
    intrinsics, poses = _rig(batch=2, cameras=2)
    grid = BEVGrid(x=(-20, 20), y=(-3, 3), z=(-20, 20), cells=(3, 2, 3))
    features = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    for mean in ("visible", "nonzero"):
        plans = build_lift_plans(grid, intrinsics, poses, IMAGE, (3, 4), "centered", mean)
        assert torch.autograd.gradcheck(lambda f, plans=plans: lift(f, plans), (features,), atol=1e-6)


def test_gradient_is_the_same_for_every_memory_format() -> None:
    """More channels than are handled at a time, so that slices are taken and joined."""
    plan, features = _plan(), _features(channels=37).requires_grad_()
    volume = lift(features, [plan])
    contiguous = torch.randn(volume.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    as_lifted = torch.empty_like(volume).copy_(contiguous)
    assert as_lifted.stride() == volume.stride() != contiguous.stride()
    (want,) = torch.autograd.grad(volume, features, contiguous, retain_graph=True)
    (got,) = torch.autograd.grad(volume, features, as_lifted)
    assert torch.allclose(got, want, atol=1e-12)


def test_bev_channels_without_a_copy() -> None:
    volume = lift(_features(), [_plan()])
    folded = volume.permute(0, 3, 1, 2, 4).flatten(1, 2)
    assert folded.data_ptr() == volume.data_ptr()
    assert folded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(folded[:, 2 * 5 + 3], volume[:, 3, :, 2])  # channel 3 at height 2: y * C + c


def test_constant_features_give_one_where_the_image_surrounds_the_sample() -> None:
    plan = _plan()
    volume = lift(torch.ones(1, 4, 1, *FEATURES), [plan])
    inner = plan.visibility().any(0)
    assert volume[0, 0][~inner].abs().max() == 0
    assert volume.max() == pytest.approx(1, abs=1e-6)
    assert 0.5 < (volume[0, 0][inner] > 1 - 1e-6).double().mean() < 1  # less than one only at image borders


def test_legacy_positions_may_leave_the_feature_map_by_more_than_a_pixel() -> None:
    """A feature map of two pixels stretches most: positions reach 2.5 and -1.5, and both taps lie outside."""
    intrinsics, poses = _rig()
    features = torch.randn(1, 4, 3, 2, 2, dtype=torch.float64)
    plan = build_lift_plan(GRID, intrinsics[0], poses[0], IMAGE, (2, 2), "legacy", "visible")
    assert ((plan.weights == 0).all(1)).any()
    want = dense_lift(features, intrinsics, poses, GRID, IMAGE, "legacy", "visible")
    assert (lift(features, [plan]) - want).abs().max() < 1e-5
    # They can never count among non-zero samples, so a plan for that mean does not hold them.
    counting = build_lift_plan(GRID, intrinsics[0], poses[0], IMAGE, (2, 2), "legacy", "nonzero")
    assert counting.num_pairs == int((plan.weights != 0).any(1).sum()) < plan.num_pairs


def test_nothing_visible_gives_zeros_and_zero_gradients() -> None:
    intrinsics, poses = _rig()
    poses = poses.clone()
    poses[..., 1, 3] += 1e6  # far below, for whatever heading
    features = _features().requires_grad_()
    for mean in ("visible", "nonzero"):
        plan = build_lift_plan(GRID, intrinsics[0], poses[0], IMAGE, FEATURES, mean=mean)  # type: ignore[arg-type]
        volume = lift(features, [plan])
        assert plan.num_pairs == 0
        assert not volume.any()
        (grad,) = torch.autograd.grad(volume.sum(), features)
        assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_dtype_of_the_features(dtype: torch.dtype) -> None:
    plan, exact = _plan(), _features(channels=8)
    features = exact.to(dtype).requires_grad_()
    volume = lift(features, [plan])
    assert volume.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert (volume.double() - lift(exact, [plan])).abs().max() < tolerance
    volume.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == dtype


def test_defaults_of_the_mean() -> None:
    assert _plan().mean == "visible"
    assert _plan(sampling="index").mean == "visible"
    assert _plan(sampling="legacy").mean == "nonzero"
    assert _plan(sampling="legacy", mean="visible").mean == "visible"


def test_plans_move_and_pickle() -> None:
    plan, features = _plan(), _features()
    want = lift(features, [plan])
    assert torch.equal(lift(features, [pickle.loads(pickle.dumps(plan))]), want)
    assert torch.equal(lift(features, [plan.to("cpu")]), want)


def test_cache_finds_equal_rigs_and_forgets_the_least_recently_used() -> None:
    intrinsics, poses = _rig(batch=3)
    cache = LiftPlanCache(capacity=2)

    def get(b: int, **options: object) -> LiftPlan:
        return cache.get(GRID, intrinsics[b].clone(), poses[b].clone(), IMAGE, FEATURES, **options)  # type: ignore[arg-type]

    first, second = get(0), get(1)
    assert get(0) is first  # now 1 is the oldest
    assert get(2) is not second
    assert len(cache) == 2
    assert get(0) is first
    assert get(1) is not second
    other = get(1, sampling="index")
    assert other.sampling == "index"
    built = build_lift_plans(GRID, intrinsics[[1, 1]], poses[[1, 1]], IMAGE, FEATURES, "index", cache=cache)
    assert built[0] is built[1] is other


def test_cached_and_fresh_plans_are_equal() -> None:
    intrinsics, poses = _rig()
    cached = LiftPlanCache().get(GRID, intrinsics[0], poses[0], IMAGE, FEATURES)
    fresh = _plan()
    assert torch.equal(cached.taps, fresh.taps)
    assert torch.equal(cached.weights, fresh.weights)


def test_refuses_what_does_not_fit() -> None:
    intrinsics, poses = _rig(batch=2)
    plan, features = _plan(), _features()
    with pytest.raises(ValueError, match="1 samples need 1 plans, found 2"):
        lift(features, [plan, plan])
    with pytest.raises(ValueError, match="do not fit a plan for 4 cameras at 8x12"):
        lift(features[..., :-1], [plan])
    with pytest.raises(ValueError, match="must agree"):
        lift(torch.cat([features, features]), [plan, _plan(sampling="index")])
    with pytest.raises(ValueError, match="sampling must be one of"):
        _plan(sampling="nearest")
    with pytest.raises(ValueError, match="mean must be one of"):
        _plan(mean="median")
    with pytest.raises(ValueError, match="expected intrinsics"):
        build_lift_plan(GRID, intrinsics, poses, IMAGE, FEATURES)
    with pytest.raises(ValueError, match="at least 2x2"):
        build_lift_plan(GRID, intrinsics[0], poses[0], IMAGE, (1, 12), "legacy")
