"""Upsampling necks: bilinear convention, channel order, shapes."""

import torch

from sensorlab.models.necks.upsampling import UpsamplingAdd, UpsamplingConcat, upsample_twice


def test_upsampling_is_bilinear_with_half_pixel_centres() -> None:
    row = torch.tensor([0.0, 4.0]).reshape(1, 1, 1, 2)
    assert upsample_twice(row)[0, 0].tolist() == [[0.0, 1.0, 3.0, 4.0]] * 2


def test_concat_puts_the_fine_channels_first() -> None:
    neck = UpsamplingConcat(in_channels=5, out_channels=4)
    fine, coarse = torch.randn(2, 2, 8, 12), torch.randn(2, 3, 4, 6)
    with torch.no_grad():
        neck.conv[0].weight[:, :2].zero_()  # blind to the fine map
        assert neck(coarse, fine).shape == (2, 4, 8, 12)
        torch.testing.assert_close(neck(coarse, fine), neck(coarse, torch.zeros_like(fine)))
        assert not torch.allclose(neck(coarse, fine), neck(torch.zeros_like(coarse), fine))


def test_add_joins_the_fine_map_unchanged() -> None:
    neck = UpsamplingAdd(in_channels=3, out_channels=2)
    fine = torch.randn(1, 2, 8, 8)
    coarse = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(neck(coarse, fine) - neck(coarse, torch.zeros_like(fine)), fine)


def test_necks_hold_weights_alone_and_ignore_the_training_mode() -> None:
    neck = UpsamplingConcat(5, 4)
    assert list(neck.state_dict()) == ["conv.0.weight", "conv.3.weight"]
    assert list(UpsamplingAdd(3, 2).state_dict()) == ["upsample_layer.1.weight"]
    fine, coarse = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(neck.train()(coarse, fine), neck.eval()(coarse, fine), rtol=0, atol=0)
