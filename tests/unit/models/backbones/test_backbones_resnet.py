"""ResNet trunks: torchvision's names, parameter counts, strides, initialisation, errors."""

import pytest
import torch

from sensorlab.errors import UserError
from sensorlab.models.backbones.resnet import BasicBlock, Bottleneck, ResNet

# Parameters of torchvision's classifiers less those of ``fc`` (512 or 2048 inputs, 1000 classes and their biases).
TORCHVISION_PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160}


@pytest.mark.parametrize("depth", TORCHVISION_PARAMETERS)
def test_parameter_count_equals_torchvision_without_classifier(depth: int) -> None:
    with torch.device("meta"):
        trunk = ResNet(depth)
    classifier = trunk.out_channels[-1] * 1000 + 1000
    assert sum(p.numel() for p in trunk.parameters()) == TORCHVISION_PARAMETERS[depth] - classifier


@pytest.mark.parametrize(("depth", "channels"), [(18, (64, 128, 256, 512)), (50, (256, 512, 1024, 2048))])
def test_feature_maps_have_the_stated_channels_and_strides(depth: int, channels: tuple[int, ...]) -> None:
    trunk = ResNet(depth).eval()
    with torch.no_grad():
        features = trunk(torch.zeros(1, 3, 64, 32))
    assert trunk.out_channels == channels
    assert [tuple(f.shape) for f in features] == [
        (1, c, 64 // stride, 32 // stride) for c, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_truncated_trunk_has_no_later_stage_and_gives_the_same_features() -> None:
    full, cut = ResNet(18).eval(), ResNet(18, out_stages=(2, 3)).eval()
    assert not any(name.startswith("layer4") for name in cut.state_dict())
    cut.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith("layer4")})
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected, found = full(images), cut(images)
    assert len(found) == 2
    torch.testing.assert_close(found[0], expected[1], rtol=0, atol=0)
    torch.testing.assert_close(found[1], expected[2], rtol=0, atol=0)


def test_bottleneck_strides_in_its_3x3_convolution() -> None:
    block = ResNet(50).get_submodule("layer2")[0]
    assert isinstance(block, Bottleneck)
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@pytest.mark.parametrize("depth", [18, 50])
def test_zero_init_residual_makes_each_block_start_as_its_shortcut(depth: int) -> None:
    blocks = [m for m in ResNet(depth, zero_init_residual=True).modules() if isinstance(m, BasicBlock | Bottleneck)]
    assert all(block.last_norm.weight.abs().max() == 0 for block in blocks)
    block = blocks[-1].eval()
    x = torch.rand(1, block.conv1.in_channels, 4, 4)  # not negative, so that the closing ReLU changes nothing
    torch.testing.assert_close(block(x), x)
    plain = [m for m in ResNet(depth).modules() if isinstance(m, BasicBlock | Bottleneck)]
    assert all(block.last_norm.weight.min() == 1 for block in plain)


def test_initial_weights_are_fan_out_normal() -> None:
    weight = ResNet(18).get_submodule("layer3")[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("depth", "stages", "message"),
    [
        (20, (1, 2), "depth 20"),
        (18, (), "stages"),
        (18, (2, 1), "ascending"),
        (18, (0, 1), "1 to 4"),
        (18, (5,), "1 to 4"),
    ],
)
def test_unknown_depth_or_stage_is_a_clear_error(depth: int, stages: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ResNet(depth, out_stages=stages)


@pytest.mark.parametrize(("stages", "frozen"), [(None, 0), (0, 2), (1, 2 + 8), (2, 2 + 8 + 8 + 2)])
def test_frozen_stages_have_no_gradient_and_keep_their_statistics(stages: int | None, frozen: int) -> None:
    """A norm has two parameters, a convolution one: counted in tensors of convolutions plus norms."""
    trunk = ResNet(18, frozen_stages=stages).train()
    layers = [m for m in trunk.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
    held = [m for m in layers if not any(p.requires_grad for p in m.parameters())]
    assert len(held) == frozen
    assert not any(m.training for m in held)
    assert all(m.training for m in layers if m not in held)


def test_norm_eval_holds_the_statistics_and_trains_the_scales() -> None:
    trunk = ResNet(18, norm_eval=True).train()
    norms = [m for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert trunk.training
    assert not any(m.training for m in norms)
    assert all(m.weight.requires_grad for m in norms)
    assert all(m.training for m in ResNet(18).train().modules())
