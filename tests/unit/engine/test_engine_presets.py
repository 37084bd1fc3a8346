"""Presets against values that are known of the original programs: constants of their recipes, and rates they had.

Whole recorded curves are compared in ``tests/golden/test_engine_schedules_golden.py``.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sensorlab.engine.accumulate import Accumulation
from sensorlab.engine.duration import Progress
from sensorlab.engine.optim import build_optimizer
from sensorlab.engine.presets import PRESETS
from sensorlab.engine.schedules import SchedulePoint
from sensorlab.engine.warmup import rates
from sensorlab.experiment import experiment_from

ORIGINALS = {
    "simple_bev",
    "centerfusion",
    "mmdet1_retinanet_1x",
    "mmdet2_retinanet_1x",
    "mmdet3_retinanet_1x",
    "yolov5_v3",
    "yolov5_v7",
    "yolov5_v7_cosine",
    "siamfcpp",
}


def preset(name, **own):
    tree = {"name": "p", "task": {"name": "bev_segmentation"}, "data": {"path": "nowhere"}} | own
    if "duration" not in PRESETS[name]["train"]:
        tree["train"] = {"duration": "25000 steps"}
    return experiment_from({"preset": name, **tree})


def factor(config, iteration, per_epoch, epochs):
    point = SchedulePoint(
        iteration, iteration, iteration // per_epoch, per_epoch * epochs, epochs, per_epoch, per_epoch
    )
    return rates(config.schedule, config.warmup, point, config.optim.momentum).factor


def test_every_original_has_its_presets():
    assert set(PRESETS) == ORIGINALS


def test_centerfusion():
    """Adam, 2.5e-4 for a batch of 32, one drop after epoch 50 of 60; epochs 20, 40 and 50 are kept."""
    config = preset("centerfusion")
    assert (config.data.global_batch, str(config.train.duration)) == (32, "60 epochs")
    optimizer = build_optimizer(torch.nn.Linear(2, 2), config.optim)
    default = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2.5e-4)
    assert type(optimizer) is torch.optim.Adam
    same = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    assert {key: optimizer.param_groups[0][key] for key in same} == {key: default.param_groups[0][key] for key in same}
    assert config.train.clip is config.train.ema is config.warmup is None
    assert config.train.precision == "fp32"
    # 5,274 iterations per epoch at batch 32; the original sets the rate after epoch 50, counted from 1.
    rate = [config.optim.lr * factor(config, epoch * 5274, 5274, 60) for epoch in range(60)]
    assert rate == pytest.approx([2.5e-4] * 50 + [2.5e-5] * 10, rel=1e-12)
    assert config.optim.lr * factor(config, 50 * 5274 - 1, 5274, 60) == pytest.approx(2.5e-4)
    progress = [Progress(epoch, epoch * 5274, epoch * 5274 * 32) for epoch in range(61)]
    ends = list(pairwise(progress))
    kept = {after.epochs for before, after in ends if config.checkpoint.keep_every.passed(before, after)}
    assert {20, 40, 50} < kept
    assert all(config.checkpoint.every.passed(before, after) for before, after in ends)


def test_centerfusions_batch_can_be_another():
    assert preset("centerfusion", data={"path": "nowhere", "global_batch": 4}).data.global_batch == 4


@pytest.mark.parametrize(
    ("name", "rates_at"),
    [  # 1000 iterations per epoch, base rate 0.02, as recorded from mmcv 0.2.14, mmcv 1.7 and MMEngine 0.10
        ("mmdet1_retinanet_1x", {0: 0.00666667, 250: 0.0133333, 499: 0.01997333, 500: 0.02}),
        ("mmdet2_retinanet_1x", {0: 2e-5, 1: 5.996e-5, 499: 0.01996004, 500: 0.02}),
        ("mmdet3_retinanet_1x", {1: 6.00400802e-5, 499: 0.02}),
    ],
)
def test_rates_of_mmdet(name, rates_at):
    config = preset(name)
    for iteration, expected in {**rates_at, 7999: 0.02, 8000: 0.002, 11000: 0.0002}.items():
        assert 0.02 * factor(config, iteration, 1000, 12) == pytest.approx(expected, rel=5e-6)
    optim = config.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.nesterov) == ("sgd", 0.01, 0.9, 1e-4, False)
    assert (config.train.clip.value if config.train.clip else None) == (35.0 if name.startswith("mmdet1") else None)
    assert str(config.train.duration) == "12 epochs"


def test_rates_of_simple_bev():
    """3e-4 over 25,000 steps: 1.2e-5, the peak at step 1254, 1.59e-4 in the middle, 1.2e-6 at the end."""
    config = preset("simple_bev")
    lr = [config.optim.lr * factor(config, step, 1000, 25) for step in range(25001)]
    assert lr[0] == pytest.approx(1.2e-5, rel=1e-6)
    assert lr.index(max(lr)) == 1254
    assert max(lr) == pytest.approx(3e-4, rel=1e-6)
    assert lr[12500] == pytest.approx(1.59e-4, rel=5e-3)
    assert lr[25000] == pytest.approx(1.2e-6, rel=0.05)
    assert (config.optim.name, config.optim.eps, config.optim.weight_decay) == ("adamw", 1e-8, 1e-7)
    accumulate = config.train.accumulate
    assert (accumulate.passes, accumulate.reduction, config.train.clip.value) == (5, "sum", 5.0)


def test_rates_of_siamfcpp():
    """12,500 iterations per epoch."""
    config = preset("siamfcpp")
    expected = {(0, 0): 1e-6, (0, 6250): 0.0400005, (1, 0): 0.08, (10, 0): 0.043303633, (19, 12499): 1.0000035e-6}
    for (epoch, iteration), lr in expected.items():
        assert config.optim.lr * factor(config, epoch * 12500 + iteration, 12500, 20) == pytest.approx(lr, rel=1e-6)
    assert (config.optim.name, config.optim.momentum, config.optim.weight_decay) == ("sgd", 0.9, 5e-5)
    assert str(config.train.duration) == "20 epochs"


def test_warm_up_of_yolov5_v3():
    """500 batches of 16 images per epoch, 10 epochs: the rate falls at the epoch's begin, where its target moves."""
    config = preset("yolov5_v3")
    accumulation = Accumulation(config.train.accumulate, global_batch=16, batches_per_epoch=500, warmup=config.warmup)
    for batch, (passes, lr) in {999: (3, 0.00652961), 1000: (3, 0.00615738), 1500: (4, 0.00835114)}.items():
        assert accumulation.passes_at(batch) == passes
        assert config.optim.lr * factor(config, batch, 500, 10) == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize("name", ["yolov5_v3", "yolov5_v7", "yolov5_v7_cosine"])
def test_constants_of_yolov5(name):
    config, seed = preset(name), name == "yolov5_v3"
    optim, warmup, train = config.optim, config.warmup, config.train
    assert (optim.name, optim.lr, optim.momentum, optim.nesterov) == ("sgd", 0.01, 0.937, True)
    assert (optim.weight_decay, optim.weight_decay_batch, train.accumulate.nominal_batch) == (5e-4, 64, 64)
    assert (warmup.length, warmup.at_least, warmup.momentum_start) == (3.0, *((1000, 0.9) if seed else (100, 0.8)))
    assert optim.lr * warmup.group_start["bias"] == pytest.approx(0.1)
    assert (train.clip.value if train.clip else None) == (None if seed else 10.0)
    assert train.accumulate.window == ("multiple" if seed else "run")
    assert config.schedule.end_factor == (0.2 if seed else 0.01)
    assert config.schedule.name == ("linear" if name == "yolov5_v7" else "cosine")
    assert (train.ema.decay, train.ema.tau, str(train.duration)) == (0.9999, 2000.0, "300 epochs")
