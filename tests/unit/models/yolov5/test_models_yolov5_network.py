"""The networks: sizes, shapes, what the head starts with, wrong arguments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sensorlab.errors import UserError
from sensorlab.models.yolov5 import COCO_ANCHORS, YoloV5


@pytest.mark.parametrize(
    ("variant", "size", "parameters"),
    [
        ("v3", "s", 7_468_157),
        ("v3_leaky", "s", 7_468_157),
        ("v5", "s", 7_276_605),
        ("v7", "s", 7_235_389),
        ("v7", "n", 1_872_157),
        ("v7", "m", 21_190_557),
        ("v7", "l", 46_563_709),
        ("v7", "x", 86_749_405),
    ],
)
def test_parameters_of_the_published_networks(variant, size, parameters):
    with torch.device("meta"):
        model = YoloV5(variant, size, 80)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("variant", ["v3", "v3_leaky", "v5", "v7"])
def test_levels_and_gradients(variant):
    torch.manual_seed(0)
    model = YoloV5(variant, "n", 2)
    raw = model(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape) for level in raw] == [(2, 3, 8, 12, 7), (2, 3, 4, 6, 7), (2, 3, 2, 3, 7)]
    torch.stack([level.square().mean() for level in raw]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_anchors_are_kept_in_cells_and_given_in_pixels():
    model = YoloV5("v7", "n", 2)
    torch.testing.assert_close(model.anchors, torch.tensor(COCO_ANCHORS))
    torch.testing.assert_close(model.state_dict()["model.24.anchors"][2], torch.tensor(COCO_ANCHORS[2]) / 32)


@pytest.mark.parametrize(("variant", "gap"), [("v3", 0.01), ("v7", 1e-5)])
def test_the_head_starts_from_the_prior(variant, gap):
    torch.manual_seed(0)
    model = YoloV5(variant, "n", 4)
    for conv, stride in zip(model.detect.m, (8, 16, 32), strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        bound = 1 / math.sqrt(conv.in_channels)  # torch's own initial biases lie within
        bias = conv.bias.detach().view(3, 9)
        assert (bias[:, :4].abs() <= bound).all()
        assert ((bias[:, 4] - math.log(8 * stride**2 / 640**2)).abs() <= bound + 1e-5).all()
        assert ((bias[:, 5:] - math.log(0.6 / (3 + gap))).abs() <= bound + 1e-5).all()


def test_norms_have_the_constants_of_yolov5():
    norms = [module for module in YoloV5("v3", "n", 1).modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def test_images_must_be_multiples_of_the_stride():
    with pytest.raises(UserError, match="100 x 96 px: YOLOv5 needs multiples of 32"):
        YoloV5("v7", "n", 1)(torch.zeros(1, 3, 100, 96))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "v8"}, "variant 'v8' size 's' does not exist; variants: v3"),
        ({"size": "t"}, "sizes: n, s, m, l, x"),
        ({"num_classes": 0}, "at least one class, found num_classes 0"),
        ({"anchors": COCO_ANCHORS[:2]}, r"3 levels with equally many sizes are needed, found \[3, 3\]"),
        ({"anchors": (*COCO_ANCHORS[:2], COCO_ANCHORS[2][:1])}, r"found \[3, 3, 1\]"),
        ({"anchors": COCO_ANCHORS[::-1]}, "the finest level, stride 8, takes the smallest"),
        ({"anchors": (*COCO_ANCHORS[:2], ((0.0, 3.0),) * 3)}, "both positive"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        YoloV5(**arguments)
