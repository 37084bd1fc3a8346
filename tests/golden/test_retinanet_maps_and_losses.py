"""Parity of the RetinaNet network with mmdetection 3.3 (v3) and 1.0 (v1): names, maps, losses, gradients.

``data/retinanet`` holds what mmdetection 1.0 gives, and of 3.3 the arrays of ResNet-18 with well-conditioned weights;
the others are read in place from the developers' pack where it is present.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from weight_fills import fill_model

from sensorlab.models.retinanet import AnchorGrid, LossOptions, RetinaNet, retinanet_loss

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data" / "retinanet"
PACK = Path(__file__).parents[3] / "shared" / "golden" / "retinanet"
LEVELS = (3, 4, 5, 6, 7)
LOSSES = {"v3": LossOptions(), "v1": LossOptions(smooth_l1_beta=0.11)}
# Tolerances of the pack: of maps and of gradients, as parts of the largest.
MAPS = {"sin": 2e-3, "hash": 1e-5}
GRADIENTS = {"sin": 5e-3, "hash": 1e-4}
FILLS = ("hash", "sin")
ERAS = ("v3", "v1")
DEPTHS = (18, 50)


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> Iterator[None]:
    """Small maps: threads that wait for each other cost more than they bring, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    path = next((folder / f"{name}.npz" for folder in (DATA, PACK) if (folder / f"{name}.npz").exists()), None)
    if path is None:
        pytest.skip(f"{name}.npz is in the developers' pack alone, which is not here")
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def entries(depth: int) -> list:
    return json.loads(gzip.decompress((DATA / f"state_dict_r{depth}.json.gz").read_bytes()))


def filled(depth: int, fill: str, era: str = "v3") -> RetinaNet:
    """The network with the weights of a formula; names, order and shapes are checked on the way."""
    model = RetinaNet(depth, anchors=AnchorGrid(legacy=era == "v1"))
    fill_model(model, entries(depth), fill)
    return model


def images() -> Tensor:
    return torch.from_numpy(arrays("inputs")["image_rgb_uint8"]).float() / 255


def objects() -> tuple[Tensor, Tensor, Tensor]:
    given = {key: torch.from_numpy(value) for key, value in arrays("inputs").items() if key.startswith("gt_")}
    boxes, classes = [given["gt_boxes0"], given["gt_boxes1"]], [given["gt_labels0"], given["gt_labels1"]]
    return torch.cat(boxes), torch.cat(classes).long(), torch.arange(2).repeat_interleave(torch.tensor([6, 3]))


def noise(phase: int, *shape: int) -> Tensor:
    n = np.arange(math.prod(shape), dtype=np.float64)
    value = np.abs(np.sin(12.9898 * n + phase) * 43758.5453)
    return torch.from_numpy(math.sqrt(3) * (2 * (value - np.floor(value)) - 1)).float().reshape(shape)


def maps_of(raw: list[Tensor]) -> dict[str, Tensor]:
    """The head's maps (B, 9 * K, H, W), as the original has them."""
    maps = {}
    for p, level in zip(LEVELS, raw, strict=True):
        for name, part in (("cls", level[..., 4:]), ("reg", level[..., :4])):
            maps[f"{name}_p{p}"] = part.flatten(3).permute(0, 3, 1, 2)
    return maps


def assert_map(found: Tensor, want: dict[str, np.ndarray], name: str, tolerance: float) -> None:
    flat = found.detach().flatten()[:: int(want[f"{name}_stride"])].numpy()
    expected = want[f"{name}_sub"]
    np.testing.assert_allclose(flat, expected, rtol=tolerance * 10, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("depth", "count"), [(18, 21_410_100), (50, 37_968_692)])
def test_number_of_parameters(depth, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in RetinaNet(depth).parameters()) == count


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("fill", FILLS)
def test_maps(depth, fill):
    want = arrays(f"v3_r{depth}_e2e_{fill}")
    model = filled(depth, fill)
    stages: dict[str, Tensor] = {}
    model.backbone.get_submodule("layer1").register_forward_hook(lambda _, __, out: stages.update(c2=out))
    model.backbone.register_forward_hook(lambda _, __, out: stages.update(zip(("c3", "c4", "c5"), out, strict=True)))
    model.neck.register_forward_hook(
        lambda _, __, out: stages.update({f"fpn_p{p}": x for p, x in zip(LEVELS, out, strict=True)})
    )
    with torch.no_grad():
        stages.update(maps_of(model(images())))
    assert len(stages) == 19
    for name, found in stages.items():
        assert_map(found, want, name, MAPS[fill])


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("fill", FILLS)
def test_neck_and_head_on_noise(depth, fill):
    want = arrays(f"v3_r{depth}_e2e_{fill}")
    model = filled(depth, fill)
    # C2 has the phase 1.
    features = [
        noise(phase, 1, channels, *size)
        for phase, channels, size in zip((2, 3, 4), model.backbone.out_channels, [(8, 12), (4, 6), (2, 3)], strict=True)
    ]
    with torch.no_grad():
        for p, level in zip(LEVELS, model.neck(features), strict=True):
            assert_map(level, want, f"neck_noise_p{p}", MAPS[fill])
        maps = maps_of(model.bbox_head([noise(7, 1, 256, 5, 7)] * 5))
    for found, expected in (
        (maps["cls_p3"].flatten()[::7], want["head_noise_cls_sub"]),
        (maps["reg_p3"], want["head_noise_reg"]),
    ):
        np.testing.assert_allclose(found, expected, rtol=10 * MAPS[fill], atol=MAPS[fill] * np.abs(expected).max())


def run(model: RetinaNet, era: str, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Losses by level, their sum, the norm of each gradient (-1 without) after a backward pass in training mode."""
    model.to(dtype).train()
    boxes, classes, box_image = objects()
    loss = retinanet_loss(
        model(images().to(dtype)),
        boxes.to(dtype),
        classes,
        box_image,
        (128, 160),
        anchors=model.anchors,
        options=LOSSES[era],
    )
    total = sum(loss.terms.values())
    total.backward()
    norms = [-1.0 if p.grad is None else p.grad.norm().item() for p in model.parameters()]
    return loss.level_class.numpy(), loss.level_box.numpy(), total.item(), np.array(norms)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("era", ERAS)
def test_losses_and_gradients(era, depth, fill):
    want = arrays(f"{era}_r{depth}_e2e_{fill}")
    model = filled(depth, fill, era)
    level_class, level_box, total, norms = run(model, era, torch.float32)
    np.testing.assert_allclose(level_class, want["loss_cls"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(level_box, want["loss_bbox"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(total, want["loss_total"], rtol=1e-4)
    for name in ("grad_norms", "f64_grad_norms"):
        expected = want[name]
        np.testing.assert_allclose(norms, expected, rtol=1e-3, atol=GRADIENTS[fill] * expected.max())
    trained = norms >= 0
    np.testing.assert_allclose(np.linalg.norm(norms[trained]), want["grad_total_norm"], rtol=10 * GRADIENTS[fill])
    np.testing.assert_array_equal(trained, want["requires_grad"].astype(bool))
    names = [entry[1] for entry in entries(depth)]
    positions = [names.index(name) for name, _ in model.named_parameters()]
    np.testing.assert_array_equal(positions, want["param_index_in_state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("era", ERAS)
def test_losses_and_gradients_in_double_precision(era, depth, fill):
    want = arrays(f"{era}_r{depth}_e2e_{fill}")
    level_class, level_box, total, norms = run(filled(depth, fill, era), era, torch.float64)
    np.testing.assert_allclose(level_class, want["f64_loss_cls"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(level_box, want["f64_loss_bbox"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, want["f64_loss_total"], rtol=1e-5)
    expected = want["f64_grad_norms"]
    np.testing.assert_allclose(norms, expected, rtol=1e-3, atol=1e-5 * expected.max())
