"""EfficientNet trunks: names, layout, the frozen padding, drop-connect, errors. Numbers: efficientnet_pytorch 0.7.1."""

import pytest
import torch
import torch.nn.functional as F

from sensorlab.errors import UserError
from sensorlab.models.backbones.efficientnet import EfficientNet, drop_connect, same_padding, scale_channels


@pytest.mark.parametrize(("variant", "parameters", "blocks"), [("b0", 5_288_548, 16), ("b4", 19_341_616, 32)])
def test_parameter_count_equals_the_published_network_without_head(variant: str, parameters: int, blocks: int) -> None:
    with torch.device("meta"):
        trunk = EfficientNet(variant)
    last = trunk.out_channels[0]
    head = last * 4  # 1x1 convolution to four times as many channels, its norm, and the classifier
    head_parameters = last * head + 2 * head + head * 1000 + 1000
    assert len(trunk._blocks) == blocks
    assert sum(p.numel() for p in trunk.parameters()) == parameters - head_parameters


def test_feature_maps_have_the_stated_channels_and_strides() -> None:
    trunk = EfficientNet("b0", out_blocks=(0, 2, 4, 10, 15)).eval()
    assert trunk.out_channels == (16, 24, 40, 112, 320)
    assert trunk.out_strides == (2, 4, 8, 16, 32)
    with torch.no_grad():
        features = trunk(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [
        (c, 64 // s, 96 // s) for c, s in zip(trunk.out_channels, trunk.out_strides, strict=True)
    ]


def test_padding_is_fixed_for_the_nominal_input_size() -> None:
    b0, b4 = EfficientNet("b0"), EfficientNet("b4")
    # b4's block 6 sees a 95 px map at 380 px input: symmetric padding of 2. b0's block 3 sees 56 px: (1, 2).
    assert b4._blocks[6]._depthwise_conv.padding == (2, 2)
    assert b4._blocks[6]._depthwise_conv.extra_padding is None
    assert b0._blocks[3]._depthwise_conv.extra_padding == (1, 2, 1, 2)
    assert b0._conv_stem.extra_padding == b4._conv_stem.extra_padding == (0, 1, 0, 1)


@pytest.mark.parametrize("size", [7, 8, 15, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_padding_gives_the_ceiling_of_size_over_stride(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert after - before in (0, 1)
    assert F.conv1d(F.pad(torch.zeros(1, 1, size), (before, after)), torch.zeros(1, 1, kernel), stride=stride).shape[
        -1
    ] == -(-size // stride)


def test_channel_scaling_rounds_to_eight_but_not_down_by_more_than_a_tenth() -> None:
    assert [scale_channels(c, 1.4) for c in (16, 24, 40, 80, 112, 192, 320, 32)] == [24, 32, 56, 112, 160, 272, 448, 48]
    assert scale_channels(9, 1.0) == 16  # 8 would lose more than 10 %


def test_drop_connect_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 3)
    dropped = drop_connect(x, 0.2)
    per_sample = dropped.flatten(1)
    assert set(per_sample.amax(1).tolist()) == {0.0, 1.25}
    torch.testing.assert_close(per_sample.amax(1), per_sample.amin(1))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)


def test_drop_connect_rate_grows_over_the_blocks_that_exist_and_acts_in_training_alone() -> None:
    trunk = EfficientNet("b0", num_blocks=11)
    assert [b.drop_connect_rate for b in trunk._blocks] == pytest.approx([0.2 * i / 11 for i in range(11)])
    block = trunk._blocks[10]
    block.drop_connect_rate = 0.5
    x = torch.randn(64, 112, 2, 2)
    with torch.no_grad():
        torch.manual_seed(0)
        # A dropped sample is its shortcut, exactly; in evaluation none is.
        assert 10 < (block.train()(x) == x).flatten(1).all(1).sum() < 54
        assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_initial_weights_count_the_fan_out_per_group() -> None:
    block = EfficientNet("b0")._blocks[10]
    assert block._depthwise_conv.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.05)
    assert block._project_conv.weight.std().item() == pytest.approx((2 / 112) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("variant", "num_blocks", "out_blocks", "message"),
    [("b9", None, None, "b9"), ("b0", 17, None, "blocks 0 to 15"), ("b0", 5, (5,), "keep 5")],
)
def test_unknown_variant_or_block_is_a_clear_error(
    variant: str, num_blocks: int | None, out_blocks: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        EfficientNet(variant, num_blocks, out_blocks)
