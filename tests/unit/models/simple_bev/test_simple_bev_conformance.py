"""What every Simple-BEV network must do, for every encoder and every combination of sensors, at a tiny size."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sensorlab.errors import UserError
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.models.backbones.efficientnet import MBConvBlock
from sensorlab.models.simple_bev import ENCODERS, SimpleBEV
from sensorlab.models.simple_bev.network import fold_height

GRID = BEVGrid(x=(-8, 8), y=(-2, 2), z=(0, 16), cells=(16, 2, 16))
MODALITIES: dict[str, dict[str, Any]] = {
    "camera": {},
    "height sum": {"compress": False},
    "radar": {"radar": "occupancy"},
    "radar metadata": {"radar": "metadata"},
    "lidar": {"lidar": True},
    "radar and lidar": {"radar": "metadata", "lidar": True},
}


def tiny(encoder: str = "res18", **options: Any) -> SimpleBEV:
    """A small network whose branches all carry signal: none starts at zero, none is dropped."""
    torch.manual_seed(0)
    model = SimpleBEV(GRID, encoder, latent_dim=8, neck_width=8, decoder_width=8, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, MBConvBlock):
            module.drop_connect_rate = 0.0
    return model


def tiny_inputs(model: SimpleBEV, batch: int = 2, cameras: int = 2) -> dict[str, Tensor]:
    """Random images of 32 x 64 pixels, one camera looking forward and one 30 degrees to the right."""
    generator = torch.Generator().manual_seed(1)
    intrinsics = torch.tensor([[30.0, 0, 31.5], [0, 30.0, 15.5], [0, 0, 1]])
    angles = torch.tensor([0.0, 0.5236])[:cameras]
    poses = torch.eye(4).repeat(cameras, 1, 1)
    poses[:, 0, 0] = poses[:, 2, 2] = angles.cos()
    poses[:, 0, 2], poses[:, 2, 0] = angles.sin(), -angles.sin()
    inputs = {
        "rgb": torch.randint(0, 256, (batch, cameras, 3, 32, 64), dtype=torch.uint8, generator=generator),
        "intrinsics": intrinsics.expand(batch, cameras, 3, 3),
        "ref_from_camera": poses.expand(batch, cameras, 4, 4),
    }
    if model.radar != "none":
        channels = 1 if model.radar == "occupancy" else 16
        inputs["radar"] = (torch.rand(batch, channels, *GRID.cells, generator=generator) > 0.9).float()
    if model.lidar:
        inputs["lidar"] = (torch.rand(batch, 1, *GRID.cells, generator=generator) > 0.9).float()
    return inputs


def objective(model: SimpleBEV, outputs: dict[str, Tensor]) -> Tensor:
    """A scalar that depends on every map and every loss weight."""
    scales = [model.ce_weight, model.center_weight, model.offset_weight]
    maps = [outputs["seg"], outputs["center"], outputs["offset"]]
    return sum(
        ((m - 0.3).square().mean() * (-s).exp() + s for m, s in zip(maps, scales, strict=True)), torch.tensor(0.0)
    )


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_network_conforms(encoder: str, modality: str) -> None:
    model = tiny(encoder, **MODALITIES[modality])
    inputs = tiny_inputs(model)
    shapes = {"seg": (2, 1, 16, 16), "center": (2, 1, 16, 16), "offset": (2, 2, 16, 16)}

    outputs = model.train()(**inputs)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == shapes
    assert outputs["center"].min() >= 0
    assert outputs["center"].max() <= 1
    objective(model, outputs).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("decoder.feat_head."):
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    model.eval()
    with torch.no_grad():
        first = model(**inputs, with_features=True)
        assert tuple(first["feat"].shape) == (2, 8, 16, 16)
        as_float = model(**{**inputs, "rgb": inputs["rgb"].float() / 255 - 0.5}, with_features=True)
        restored = SimpleBEV(GRID, encoder, latent_dim=8, neck_width=8, decoder_width=8, **MODALITIES[modality]).eval()
        restored.load_state_dict(model.state_dict())
        for other in (model(**inputs, with_features=True), as_float, restored(**inputs, with_features=True)):
            assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("sampling", ["centered", "legacy"])
def test_masked_cameras_contribute_nothing(sampling: str) -> None:
    model = tiny(sampling=sampling).eval()
    inputs = tiny_inputs(model)
    alone = {name: value[:, :1] for name, value in inputs.items()}
    mask = torch.tensor([[True, False], [True, False]])
    flip_bev = torch.tensor([[True, False], [False, True]])
    with torch.no_grad():
        both, masked, single = model(**inputs), model(**inputs, camera_mask=mask), model(**alone)
        torch.testing.assert_close(masked, single)
        assert not torch.allclose(masked["seg"], both["seg"])
        flipped = model(**inputs, camera_mask=mask, flip_bev=flip_bev)
        torch.testing.assert_close(flipped, model(**alone, flip_bev=flip_bev))
        blind = model(**inputs, camera_mask=torch.zeros(2, 2, dtype=torch.bool))
        assert all(output.isfinite().all() for output in blind.values())


def test_image_flips_mirror_the_images_and_their_features_back() -> None:
    model = tiny().eval()
    rgb = tiny_inputs(model)["rgb"]
    flip = torch.tensor([[True, False], [False, True]])
    with torch.no_grad():
        found = model.encode(rgb, flip)
        plain, mirrored = model.encode(rgb), model.encode(rgb.flip(-1)).flip(-1)
    assert not torch.allclose(plain, mirrored)
    torch.testing.assert_close(found, torch.where(flip[..., None, None, None], mirrored, plain))


def test_bev_flips_mirror_all_sensors_before_the_trunk_and_back_after_it() -> None:
    model = tiny(radar="metadata", lidar=True).eval()
    inputs = tiny_inputs(model)
    axes = [(-1,), (-2,)]  # sample 0 along X, sample 1 along Z
    flip = torch.tensor([[True, False], [False, True]])

    def mirror(maps: Tensor) -> Tensor:
        return torch.stack([m.flip(a) for m, a in zip(maps, axes, strict=True)])

    with torch.no_grad():
        features = model.encode(inputs["rgb"])
        volume = model._lift(features, inputs["intrinsics"], inputs["ref_from_camera"], None, (32, 64))
        layers = [fold_height(v) for v in (volume, inputs["radar"], inputs["lidar"])]
        bev = model.bev_compressor(mirror(torch.cat(layers, dim=1)))
        expected = model.decoder.heads(mirror(model.decoder.trunk(bev)))
        plain = model(**inputs)
        found = model(**inputs, flip_bev=flip)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["seg"], plain["seg"], atol=1e-3)


def test_heights_are_folded_channel_major() -> None:
    volume = torch.arange(2 * 3).float().reshape(1, 2, 1, 3, 1)  # value c * Y + y
    assert fold_height(volume).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert fold_height(torch.zeros(2, 3, 8, 4, 16)).shape == (2, 12, 8, 16)


def test_several_radar_returns_in_a_column_count_as_one() -> None:
    model = tiny(radar="occupancy").eval()
    inputs = tiny_inputs(model)
    one, two = torch.zeros(2, 1, *GRID.cells), torch.zeros(2, 1, *GRID.cells)
    one[:, :, 3, 0, 4] = 1
    two[:, :, 3, :, 4] = 1
    with torch.no_grad():
        first, second, none = (model(**{**inputs, "radar": v})["seg"] for v in (one, two, torch.zeros_like(one)))
    assert torch.equal(first, second)
    assert not torch.equal(first, none)


def test_plans_are_kept_in_evaluation_alone_and_not_copied() -> None:
    model = tiny()
    inputs = tiny_inputs(model)
    model.train()(**inputs)
    assert len(model.plans) == 0
    with torch.no_grad():
        model.eval()(**inputs)
        expected = model(**inputs)
    assert len(model.plans) == 1  # both samples and both calls share one rig
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(twin.plans) == 0
        with torch.no_grad():
            torch.testing.assert_close(twin(**inputs), expected, rtol=0, atol=0)


def test_autocast_trains_and_returns_float32() -> None:
    model = tiny(radar="occupancy")
    inputs = tiny_inputs(model)
    flips = {"flip_image": torch.ones(2, 2, dtype=torch.bool), "flip_bev": torch.ones(2, 2, dtype=torch.bool)}
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs, **flips)
        loss = objective(model, outputs)
    assert {output.dtype for output in outputs.values()} == {torch.float32}
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_network_runs_under_ddp_without_unused_parameters(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = tiny()
        parallel = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # DDP finds parameters without a gradient at the second step
            objective(model, parallel(**tiny_inputs(model))).backward()
    finally:
        torch.distributed.destroy_process_group()


def test_wrong_sizes_and_options_are_clear_errors() -> None:
    model = tiny()
    inputs = tiny_inputs(model)
    with pytest.raises(UserError, match="32 x 56 pixels; both must be multiples of 16"):
        model(**{**inputs, "rgb": inputs["rgb"][..., :56]})
    with pytest.raises(UserError, match=r"12 x 16 .* multiples of 8"):
        SimpleBEV(BEVGrid(cells=(12, 2, 16)))
    with pytest.raises(UserError, match="encoder 'res20' does not exist; encoders: res101"):
        SimpleBEV(GRID, "res20")
    with pytest.raises(UserError, match="radar and lidar need compress: true"):
        SimpleBEV(GRID, "res18", lidar=True, compress=False)


def test_sensors_must_fit_the_network() -> None:
    camera, radar, lidar = tiny(), tiny(radar="occupancy"), tiny(lidar=True)
    volume = torch.zeros(2, 1, *GRID.cells)
    with pytest.raises(ValueError, match="radar='occupancy' got no radar volume"):
        radar(**tiny_inputs(camera))
    with pytest.raises(ValueError, match="lidar=True got no lidar volume"):
        lidar(**tiny_inputs(camera))
    with pytest.raises(ValueError, match="radar='none' got a radar volume"):
        camera(**tiny_inputs(camera), radar=volume)
    with pytest.raises(ValueError, match="lidar=False got a lidar volume"):
        camera(**tiny_inputs(camera), lidar=volume)
