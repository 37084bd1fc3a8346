"""Parity of the Simple-BEV network with the published code: names, parameters, outputs, gradients, buffers.

The arrays were made by running the original; ``data/simple_bev`` holds those that matter. The float32 outputs, which
say nothing that the float64 ones do not, are read in place from the developers' pack where it is present.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.models.simple_bev import SimpleBEV

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data" / "simple_bev"
PACK = Path(__file__).parents[3] / "shared" / "golden" / "simple_bev"

MODALITIES: dict[str, dict[str, Any]] = {
    "rgb": {},
    "rgb_nocompress": {"compress": False},
    "radar": {"radar": "occupancy"},
    "radar_flip": {"radar": "occupancy"},
    "metaradar": {"radar": "metadata"},
    "lidar": {"lidar": True},
}
VARIANTS = (
    "res50_rgb",
    "res101_rgb",
    "effb0_rgb",
    "effb4_rgb",
    "res50_radar",
    "res50_metaradar",
    "res50_lidar",
    "res50_rgb_nocompress",
    "res50_radar_flip",
)
FILLS = ("sine", "hash")
# Absolute tolerances of the README, by weight fill, for float32 runs.
OUTPUT_TOLERANCE = {"sine": 6e-3, "hash": 3e-4}
FEATURE_TOLERANCE = {"sine": 1.2e-2, "hash": 6e-4}
HEADS = ("seg", "center", "offset")


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> Iterator[None]:
    """Small maps: threads that wait for each other cost more than they bring, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """The committed arrays of a file, and the others where the pack is present."""
    arrays: dict[str, np.ndarray] = {}
    for folder in (PACK, DATA):
        if (folder / name).is_file():
            with np.load(folder / name) as archive:
                arrays.update(archive)
    return arrays


@cache
def load_json(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((DATA / f"{name}.gz").read_bytes()))


def network(variant: str, cells: tuple[int, int, int]) -> SimpleBEV:
    encoder, modality = variant.split("_", 1)
    return SimpleBEV(BEVGrid(cells=cells), encoder, sampling="legacy", **MODALITIES[modality])


def fill_values(kind: str, entry: int, count: int) -> np.ndarray:
    """Float64 values in [-1, 1] of state-dict entry number ``entry``."""
    if kind == "sine":
        return np.sin(0.37 * np.arange(count) + entry)
    t = (np.arange(count, dtype=np.uint64) * 2654435761 + entry * 40503 + 12345) % 2**32
    t = (t ^ (t >> np.uint64(16))) * 0x45D9F3B % 2**32
    return (t ^ (t >> np.uint64(16))) / 2**31 - 1


@torch.no_grad()
def fill_weights(model: nn.Module, kind: str) -> None:
    """The weight fill of the README. The entry number counts every entry of the state dict."""
    gain = {"sine": 2, "hash": 3}[kind]
    for entry, (name, tensor) in enumerate(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        v = fill_values(kind, entry, tensor.numel())
        if name.endswith("running_var"):
            v = 1 + 0.5 * np.abs(v)
        elif name.endswith("running_mean") or tensor.dim() == 0 or name.endswith("bias"):
            v = 0.1 * v
        elif tensor.dim() == 1:
            v = 1 + 0.1 * v
        else:
            v = v * math.sqrt(gain * tensor.shape[0] / tensor.numel())
        tensor.copy_(torch.from_numpy(v.astype(np.float32)).reshape(tensor.shape))


@cache
def inputs() -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in load_arrays("segnet_inputs.npz").items()}


def ref_from_camera() -> Tensor:
    """(2, 6, 4, 4) float64, from rotations and positions: the original's double run computes it in double, too."""
    ego_from_camera = torch.eye(4, dtype=torch.float64).repeat(2, 6, 1, 1)
    ego_from_camera[..., :3, :3] = inputs()["rots"]
    ego_from_camera[..., :3, 3] = inputs()["trans"]
    return torch.linalg.inv(ego_from_camera[:, :1]) @ ego_from_camera


def occupied_cells(grid: BEVGrid, points: Tensor) -> tuple[Tensor, Tensor]:
    """Cells (N, 3) as x, y, z and the mask of points (2, N, 3) in the ego frame that lie in the grid."""
    ego_from_ref = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    ego_from_ref[:, :3, :3] = inputs()["rots"][:, 0]
    ego_from_ref[:, :3, 3] = inputs()["trans"][:, 0]
    ref_from_ego = torch.linalg.inv(ego_from_ref)
    voxels = grid.to_voxel(points.double() @ ref_from_ego[:, :3, :3].mT + ref_from_ego[:, None, :3, 3])
    return grid.to_cells(voxels), grid.contains(voxels)


def sensor_volumes(model: SimpleBEV) -> dict[str, Tensor]:
    """What the original's run_model hands to the network, its two oddities included.

    Zero-padded radar columns occupy the voxel of the ego origin, and sample 0's lidar filter (more than 1 m from the
    origin) is applied to every sample.
    """
    cells_z, cells_y, cells_x = model.grid.cells
    volumes = {}
    if model.radar != "none":
        radar = inputs()["radar_data"].mT  # (2, N, 19): x, y, z, metadata
        cells, inside = occupied_cells(model.grid, radar[..., :3])
        metadata = model.radar == "metadata"
        volume = torch.zeros(2, 16 if metadata else 1, cells_z, cells_y, cells_x)
        for b in range(2):
            x, y, z = cells[b, inside[b]].unbind(1)
            volume[b, :, z, y, x] = radar[b, inside[b], 3:].T if metadata else 1.0
        volumes["radar"] = volume
    if model.lidar:
        lidar = inputs()["lidar_pts"].mT  # (2, N, 3)
        lidar = lidar[:, lidar[0].norm(dim=1) > 1]
        cells, inside = occupied_cells(model.grid, lidar)
        volume = torch.zeros(2, 1, cells_z, cells_y, cells_x)
        for b in range(2):
            x, y, z = cells[b, inside[b]].unbind(1)
            volume[b, 0, z, y, x] = 1.0
        volumes["lidar"] = volume
    return volumes


def run(model: SimpleBEV, arrays: dict[str, np.ndarray], dtype: torch.dtype, **options: bool) -> dict[str, Tensor]:
    """The network's outputs on the golden inputs; flips if the variant has them."""
    rgb = (inputs()["img_u8"].float() / 255 - 0.5).to(dtype)
    if "flip_rgb" in arrays:
        options["flip_image"] = torch.from_numpy(arrays["flip_rgb"]).bool().view(2, 6)
        flips = np.stack([arrays["flip_bev_x"], arrays["flip_bev_z"]], axis=1)
        options["flip_bev"] = torch.from_numpy(flips).bool()
    volumes = {name: volume.to(dtype) for name, volume in sensor_volumes(model).items()}
    return model.to(dtype)(rgb, inputs()["pix_T_cams"][..., :3, :3], ref_from_camera(), **volumes, **options)


def assert_near(found: Tensor | np.ndarray, wanted: np.ndarray, tolerance: float, relative: float = 0.0) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=relative, atol=tolerance)


# --- names and parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", load_json("state_dict.json")["counts"])
def test_parameter_counts_equal_the_published_networks(variant: str) -> None:
    counts = load_json("state_dict.json")["counts"][variant]
    with torch.device("meta"):
        model = network(variant, (200, 8, 200))
    assert sum(p.numel() for p in model.parameters()) == counts["parameters"]
    assert sum(p.numel() for p in model.encoder.parameters()) == counts["encoder"]
    assert sum(p.numel() for p in model.decoder.parameters()) == counts["decoder"]
    assert len(list(model.parameters())) == counts["trainable_tensors"]
    assert len(model.state_dict()) == counts["state_tensors"]
    weight = None if model.bev_compressor is None else list(model.bev_compressor[0].weight.shape)
    assert weight == counts["compressor_weight"]


@pytest.mark.parametrize("variant", load_json("state_dict.json")["entries"])
def test_state_dict_has_the_published_names_shapes_and_order(variant: str) -> None:
    with torch.device("meta"):
        model = network(variant, (200, 8, 200))
    found = [
        [index, name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for index, (name, tensor) in enumerate(model.state_dict().items())
    ]
    assert found == load_json("state_dict.json")["entries"][variant]


@pytest.mark.parametrize("kind", FILLS)
@pytest.mark.parametrize("variant", ["res50_rgb", "effb0_rgb"])
def test_filled_weights_equal_the_originals(variant: str, kind: str) -> None:
    model = network(variant, (40, 4, 32))
    fill_weights(model, kind)
    found = [(t.flatten()[0].item(), t.double().sum().item()) for t in model.state_dict().values()]
    assert_near(np.array(found), load_arrays("segnet_fillcheck.npz")[f"{variant}_{kind}"], 1e-4, 1e-6)


# --- outputs in evaluation mode -------------------------------------------------------------------------------------


def cut_outs(model: SimpleBEV, captured: dict[str, Tensor], outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The samples of intermediate maps that the pack stores."""
    features = outputs["feat"]  # (2, 128, Z, X)
    per_channel = features.transpose(0, 1).flatten(1)
    encoded = captured["encoder"].unflatten(0, (2, 6))  # (2, 6, 128, H/8, W/8)
    return {
        "feat_stats": torch.stack([per_channel.mean(1), per_channel.std(1), per_channel.abs().amax(1)], dim=1),
        "feat_sub": features[:, ::16, ::8, ::8],
        "enc_sub": encoded[:, ::2, ::16],
        "bev_sub": captured["bev"][:, ::16, ::4, ::4],
    }


@pytest.mark.parametrize("kind", FILLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_the_originals(variant: str, kind: str) -> None:
    arrays = load_arrays(f"segnet_{variant}.npz")
    model = network(variant, (40, 4, 32)).eval()
    fill_weights(model, kind)
    captured: dict[str, Tensor] = {}
    model.encoder.register_forward_hook(lambda module, args, output: captured.update(encoder=output))
    model.decoder.first_conv.register_forward_pre_hook(lambda module, args: captured.update(bev=args[0]))
    with torch.no_grad():
        single = run(model, arrays, torch.float32, with_features=True)
        cuts = cut_outs(model, captured, single)
        double = run(model, arrays, torch.float64)
    for head in HEADS:
        assert_near(double[head], arrays[f"{kind}_{head}_f64"], 1e-5)
        assert_near(single[head], arrays[f"{kind}_{head}_f64"], OUTPUT_TOLERANCE[kind])
        if f"{kind}_{head}" in arrays:
            assert_near(single[head], arrays[f"{kind}_{head}"], OUTPUT_TOLERANCE[kind])
    assert_near(cuts["enc_sub"], arrays[f"{kind}_enc_sub"], OUTPUT_TOLERANCE[kind])
    for name, factor in (("feat_stats", 1), ("feat_sub", 1), ("bev_sub", 2 if "nocompress" in variant else 1)):
        assert_near(cuts[name], arrays[f"{kind}_{name}"], factor * FEATURE_TOLERANCE[kind])
    metrics = load_json("segnet_metrics.json")
    wanted = metrics["metrics"][variant][kind]
    terms = loss_terms(model.float(), single)
    for name in ("total", "ce", "center", "offset"):
        assert terms[name].item() == pytest.approx(wanted[name], rel=metrics["tol"][kind]["loss_rel"]), name
    assert training_iou(single["seg"]) == pytest.approx(wanted["iou"], abs=metrics["tol"]["iou_abs"])
    assert sum(p.numel() for p in model.parameters()) == wanted["n_params"]


# --- losses, gradients and statistics of a training step --------------------------------------------------------------


def loss_terms(model: SimpleBEV, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published objective, written out here so that the network is checked without the task."""
    dtype = outputs["seg"].dtype
    seg, valid, center, offset = (inputs()[f"gt_{name}"].to(dtype) for name in ("seg", "valid", "center", "offset"))

    def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
        return (values * mask).sum() / (mask.sum() + 1e-6)

    pos_weight = torch.tensor(2.13, dtype=dtype)
    entropy = F.binary_cross_entropy_with_logits(outputs["seg"], seg, pos_weight=pos_weight, reduction="none")
    squared = (outputs["center"] - center).square()
    balanced = 0.5 * (masked_mean(squared, (center > 0.5).to(dtype)) + masked_mean(squared, (center < 0.5).to(dtype)))
    distance = masked_mean((outputs["offset"] - offset).abs().sum(1, keepdim=True), seg * valid)
    terms = {
        "ce": 10 * masked_mean(entropy, valid) * torch.exp(-model.ce_weight),
        "center": 0.5 * balanced * torch.exp(-model.center_weight),
        "offset": 0.5 * distance * torch.exp(-model.offset_weight),
    }
    uncertainty = 0.5 * (model.ce_weight + model.center_weight + model.offset_weight)
    return {**terms, "total": sum(terms.values()) + uncertainty}


def training_iou(logits: Tensor) -> float:
    """Mean over samples of the IoU at threshold 0.5 over valid cells."""
    predicted, seg, valid = torch.sigmoid(logits).round(), inputs()["gt_seg"], inputs()["gt_valid"]
    intersection = (predicted * seg * valid).sum((1, 2, 3))
    union = ((predicted + seg) * valid).clamp(0, 1).sum((1, 2, 3))
    return (intersection / (1e-4 + union)).mean().item()


def training_step(dtype: torch.dtype) -> tuple[SimpleBEV, dict[str, Tensor], dict[str, Tensor]]:
    """(network with gradients, outputs, loss terms) of one forward and backward pass in training mode."""
    model = network("res50_rgb", (40, 4, 32)).train()
    fill_weights(model, "hash")
    outputs = run(model, {}, dtype)
    terms = loss_terms(model, outputs)
    terms["total"].backward()
    return model, outputs, terms


def test_training_mode_outputs_losses_and_statistics_equal_the_originals() -> None:
    metrics = load_json("segnet_metrics.json")["metrics"]["train_step_res50_rgb_hash"]
    tolerance = metrics["tol"]
    model, outputs, terms = training_step(torch.float32)
    for head, wanted in load_arrays("segnet_train.npz").items():
        assert_near(outputs[head].detach(), wanted, 1e-3)
    for name in ("ce", "center", "offset", "total"):
        assert terms[name].item() == pytest.approx(metrics[name], rel=tolerance["total_rel"]), name
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert norm.item() == pytest.approx(metrics["total_grad_norm"], rel=tolerance["total_grad_norm_rel"])
    state = model.state_dict()
    for name, (total, length) in metrics["bn_running_sum_and_l2_after_one_forward"].items():
        # A sum of mixed signs may cancel: its tolerance follows the length, as the length's own does.
        assert state[name].norm().item() == pytest.approx(length, rel=tolerance["bn_rel"]), name
        assert state[name].sum().item() == pytest.approx(total, abs=tolerance["bn_rel"] * length), name
    assert all(state[name].item() == 1 for name in state if name.endswith("num_batches_tracked"))


def test_gradients_equal_the_originals() -> None:
    metrics = load_json("segnet_metrics.json")["metrics"]["train_step_res50_rgb_hash"]
    model, _, terms = training_step(torch.float64)
    assert terms["total"].item() == pytest.approx(metrics["total_f64"], rel=1e-6)
    wanted = {name: norm for name, norm in metrics["grad_l2_per_param_f64"].items() if norm is not None}
    found = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert found == pytest.approx(wanted, rel=metrics["tol"]["grad_rel_f64"])
    # Neither side has a gradient for the head without a loss.
    assert {name for name, p in model.named_parameters() if p.grad is None} == {
        name for name, p in model.named_parameters() if name.startswith("decoder.feat_head.")
    }
