"""ImageNet backbones and published checkpoints find their place in the network."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.models.backbones.efficientnet import EfficientNet
from sensorlab.models.backbones.resnet import ResNet
from sensorlab.models.simple_bev import SimpleBEV
from sensorlab.models.weights import load_weights

GRID = BEVGrid(cells=(8, 2, 8))


def randomise(module: nn.Module) -> None:
    """Give norms values of their own, so that a wrong mapping shows."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.running_mean, -0.1, 0.1)


@pytest.mark.parametrize("encoder", ["res18", "res50"])
def test_classifier_resnet_loads_into_the_encoder(encoder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = ResNet(int(encoder[3:]))
    classifier.add_module("fc", nn.Linear(classifier.out_channels[-1], 1000))
    randomise(classifier)
    save_file(classifier.state_dict(), tmp_path / "resnet.safetensors")
    model = SimpleBEV(GRID, encoder, latent_dim=8, neck_width=8).eval()
    report = load_weights(model, tmp_path / "resnet.safetensors", rename=model.encoder.pretrained_rename)
    assert {name.split(".")[0] for name in report.unexpected} == {"layer4", "fc"}
    assert not any("backbone" in name or name.startswith("encoder.layer3") for name in report.missing)
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        wanted = classifier.eval()(images)
        fine = model.encoder.backbone(images)
        torch.testing.assert_close(fine, wanted[1])
        torch.testing.assert_close(model.encoder.layer3(fine), wanted[2])


def test_classifier_efficientnet_loads_into_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = EfficientNet("b0", out_blocks=(4, 10))
    classifier.add_module("_conv_head", nn.Conv2d(320, 1280, 1, bias=False))
    randomise(classifier)
    save_file(classifier.state_dict(), tmp_path / "efficientnet.safetensors")
    model = SimpleBEV(GRID, "effb0", latent_dim=8).eval()
    report = load_weights(model, tmp_path / "efficientnet.safetensors", rename=model.encoder.pretrained_rename)
    assert {".".join(name.split(".")[:4]) for name in report.unexpected if "backbone" in name} == {
        f"encoder.backbone._blocks.{index}" for index in range(11, 16)
    }
    assert [name for name in report.unexpected if "backbone" not in name] == ["_conv_head.weight"]
    assert not any("backbone" in name for name in report.missing)
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder.backbone(images), classifier.eval()(images))


def test_published_checkpoint_loads_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = SimpleBEV(GRID, "res18", latent_dim=8)
    torch.save({"optimizer_state_dict": {"state": {}}, "model_state_dict": published.state_dict()}, tmp_path / "m.pth")
    model = SimpleBEV(GRID, "res18", latent_dim=8)
    report = load_weights(model, tmp_path / "m.pth")
    assert len(report.loaded) == len(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, published.state_dict()[name]), name
