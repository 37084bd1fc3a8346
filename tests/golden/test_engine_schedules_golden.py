"""Rates, accumulation, clipping and averages of the original programs, recorded from their own code.

mmcv 0.2.14 and 1.7.0, MMEngine 0.10.7 (60 iterations per epoch, 12 epochs, base rate 0.02), YOLOv5 v3.0 and v7.0,
video_analyst (SiamFC++). Every recorded array is compared; ``test_every_array_is_compared`` holds the list.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from sensorlab.engine.accumulate import AccumulateConfig, Accumulation
from sensorlab.engine.ema import EmaConfig, ExponentialAverage
from sensorlab.engine.optim import (
    ClipConfig,
    OptimConfig,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    set_rates,
)
from sensorlab.engine.presets import PRESETS
from sensorlab.engine.schedules import ScheduleConfig, SchedulePoint
from sensorlab.engine.warmup import WarmupConfig, rates

pytestmark = pytest.mark.golden
DATA = Path(__file__).parent / "data"
SCHEDULE: TypeAdapter[Any] = TypeAdapter(ScheduleConfig)


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def schedule_of(tree: dict[str, Any]) -> Any:
    return SCHEDULE.validate_json(json.dumps(tree))


def warmup_of(tree: dict[str, Any] | None) -> WarmupConfig | None:
    return None if tree is None else WarmupConfig.model_validate_json(json.dumps(tree))


def learning_rates(schedule, warmup, lr, iterations, per_epoch, epochs) -> list[float]:
    """One pass per step: the rate at each of the given steps."""
    total = per_epoch * epochs
    points = [
        SchedulePoint(int(i), int(i), int(i) // per_epoch, total, epochs, per_epoch, per_epoch) for i in iterations
    ]
    schedule, warmup = schedule_of(schedule), warmup_of(warmup)
    return [lr * rates(schedule, warmup, point, 0.9).factor for point in points]


# --- mmcv, MMEngine -------------------------------------------------------------------------------------------------

MMCV_STEPS = PRESETS["mmdet1_retinanet_1x"]["schedule"]
MMCV = {
    "lr_step_linear_third": (MMCV_STEPS, PRESETS["mmdet1_retinanet_1x"]["warmup"]),
    "lr_step_linear_001": (MMCV_STEPS, PRESETS["mmdet2_retinanet_1x"]["warmup"]),
    "lr_step_constant_third": (MMCV_STEPS, {"kind": "constant", "length": 130, "start_factor": 1 / 3}),
    "lr_step_exp": (
        {"name": "step", "by": "epoch", "size": 3, "gamma": 0.5},
        {"kind": "exponential", "length": 130, "start_factor": 0.01},
    ),
    "lr_cosine_iter": ({"name": "cosine", "end_factor": 1e-5 / 0.02}, {"length": 100, "start_factor": 0.1}),
    "lr_poly_iter": ({"name": "polynomial", "power": 0.9, "end_factor": 1e-4 / 0.02}, None),
    "lr_cosine_epoch": ({"name": "cosine", "by": "epoch"}, None),
}
# MMEngine's warm-up has the full rate in its last iteration, one earlier than mmcv's; its polynomial ends likewise.
MMENGINE = {
    "lr_step_linear_third": (MMCV_STEPS, {"length": 499, "start_factor": 1 / 3}),
    "lr_step_linear_001": (MMCV_STEPS, PRESETS["mmdet3_retinanet_1x"]["warmup"]),
    "lr_step_constant_third": (MMCV_STEPS, {"kind": "constant", "length": 129, "start_factor": 1 / 3}),
    "lr_cosine_iter": (
        {
            "name": "piecewise",
            "unit": "steps",
            "pieces": [
                {"length": 100, "shape": {"name": "linear", "start_factor": 0.1, "end_factor": 1.0, "extra": -1}},
                {"shape": {"name": "cosine", "end_factor": 1e-5 / 0.02}},
            ],
        },
        None,
    ),
    "lr_cosine_converted": ({"name": "cosine"}, None),
    "lr_poly_iter": ({"name": "polynomial", "power": 0.9, "end_factor": 1e-4 / 0.02, "extra": -1}, None),
    "lr_step_epoch_only": (MMCV_STEPS, None),
}
MM_RATES = {"mmcv_0_2_14": MMCV, "mmcv_1_7_0": MMCV, "mmengine_0_10_7": MMENGINE}
MM_PRESET = {
    "mmcv_0_2_14": "mmdet1_retinanet_1x",
    "mmcv_1_7_0": "mmdet2_retinanet_1x",
    "mmengine_0_10_7": "mmdet3_retinanet_1x",
}


@pytest.mark.parametrize(("program", "name"), [(program, name) for program in MM_RATES for name in MM_RATES[program]])
def test_rates_of_mmcv_and_mmengine(program, name):
    expected = arrays(f"retinanet/{program}_schedule")[name]
    actual = learning_rates(*MM_RATES[program][name], 0.02, range(720), 60, 12)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("program", MM_PRESET)
def test_presets_of_mmdet_at_a_thousand_iterations_per_epoch(program):
    recorded, preset = arrays(f"retinanet/{program}_schedule"), PRESETS[MM_PRESET[program]]
    actual = learning_rates(preset["schedule"], preset["warmup"], 0.02, recorded["lr_1000_it"], 1000, 12)
    np.testing.assert_allclose(actual, recorded["lr_1000"], rtol=0, atol=1e-9)


CLIPS = {
    "none": None,
    "l2_35": ClipConfig(value=35.0),
    "l2_5": ClipConfig(value=5.0),
    "inf_10": ClipConfig(value=10.0, p="inf"),
    "value_8": ClipConfig(kind="value", value=8.0),
}
CLIP_CASES = {
    "mmcv_0_2_14": {f"clip_w_{name}": (name, 1) for name in ("none", "l2_35", "l2_5", "inf_10")},
    "mmcv_1_7_0": {f"clip_w_{name}": (name, 1) for name in ("none", "l2_35", "l2_5", "inf_10")}
    | {"accumulate4_clip35_w": ("l2_35", 4)},
    "mmengine_0_10_7": {f"clip_w_{name}": (name, 1) for name in CLIPS}
    | {"clip_w_none_accumulate4": ("none", 4), "clip_w_l2_35_accumulate4": ("l2_35", 4)},
}


@pytest.mark.parametrize(
    ("program", "name"), [(program, name) for program in CLIP_CASES for name in CLIP_CASES[program]]
)
def test_clipping_and_accumulation_of_mmcv_and_mmengine(program, name):
    """Nine batches with the loss a.w + |w|^2; the last window of four passes has one."""
    recorded = arrays(f"retinanet/{program}_schedule")
    clip_name, passes = CLIP_CASES[program][name]
    clip = CLIPS[clip_name]
    model = nn.Module()
    model.w = nn.Parameter(torch.from_numpy(recorded["clip_w0"]))
    optimizer = build_optimizer(model, OptimConfig(name="sgd", lr=0.02, momentum=0.9, weight_decay=1e-4))
    directions = torch.from_numpy(recorded["clip_grad_directions"])
    accumulation = Accumulation(AccumulateConfig(passes=passes), global_batch=1, batches_per_epoch=len(directions))
    weights, batch = [], 0
    while batch < len(directions):
        window = accumulation.passes_from(0, batch)
        for direction in directions[batch : batch + window]:
            weights.append(model.w.detach().clone())
            loss = (direction * model.w).sum() + 0.5 * recorded["clip_coef"].item() * model.w.square().sum()
            (loss / window).backward()
        if clip is not None:
            clip_gradients([model.w], clip, gradient_norm([model.w]))
        optimizer.step()
        optimizer.zero_grad()
        batch += window
        weights[-1] = model.w.detach().clone()
    np.testing.assert_allclose(torch.stack(weights).numpy(), recorded[name], rtol=1e-5, atol=1e-5)


# --- YOLOv5 ---------------------------------------------------------------------------------------------------------

YOLO = {"v30": {"": "yolov5_v3"}, "v70": {"_linear": "yolov5_v7", "_cos": "yolov5_v7_cosine"}}
YOLO_GROUPS = {"v30": ("norm", "default", "bias"), "v70": ("bias", "default", "norm")}  # order of the recorded groups
WARMUPS = [
    (version, f"warm{i}{suffix}", preset)
    for version, names in YOLO.items()
    for suffix, preset in names.items()
    for i in range(4)
]


@pytest.mark.parametrize(("version", "case", "preset"), WARMUPS)
def test_warm_up_of_yolov5(version, case, preset):
    """Accumulation, the rates of three groups, momentum and the steps taken, by global batch."""
    recorded = arrays(f"yolov5/{version}_schedule")
    meta = json.loads((DATA / f"yolov5/{version}_schedule_meta.json").read_text())[case]
    tree = PRESETS[preset]
    schedule, warmup = schedule_of(tree["schedule"]), warmup_of(tree["warmup"])
    accumulate = AccumulateConfig.model_validate_json(json.dumps(tree["train"]["accumulate"]))
    per_epoch, epochs = meta["nb"], meta["epochs"]
    accumulation = Accumulation(accumulate, global_batch=meta["batch"], batches_per_epoch=per_epoch, warmup=warmup)
    optim = OptimConfig.model_validate_json(json.dumps(tree["optim"]))
    assert warmup.end(per_epoch) == meta["nw"]
    assert optim.weight_decay * optim.decay_scale(meta["batch"] * accumulation.passes) == meta["weight_decay"]
    assert (optim.lr, optim.momentum) == (meta["lr0"], meta["momentum"])
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    optimizer = build_optimizer(model, optim)
    groups = {group["name"]: group for group in optimizer.param_groups}

    last_passes = set()
    for epoch in range(epochs):
        batch = 0
        while batch < per_epoch and (passes := accumulation.passes_from(epoch, batch)):
            batch += passes
            last_passes.add(epoch * per_epoch + batch - 1)
    rows = []
    for ni in recorded[f"{case}_ni"].tolist():
        point = SchedulePoint(0, ni, ni // per_epoch, 1, epochs, 1, per_epoch)
        set_rates(optimizer, optim.lr, rates(schedule, warmup, point, optim.momentum))
        lr = [groups[name]["lr"] for name in YOLO_GROUPS[version]]
        rows.append([accumulation.passes_at(ni), *lr, groups["default"]["momentum"], ni in last_passes])
    np.testing.assert_allclose(rows, recorded[case], rtol=1e-6, atol=1e-9)
    assert len(last_passes) == recorded[f"{case}_total_steps"] == accumulation.steps_of(epochs)
    lambdas = [schedule.factor(epoch, epochs) for epoch in range(epochs + 1)]
    np.testing.assert_allclose(lambdas, recorded[f"{case}_lambda"], rtol=1e-6)


LAMBDAS = {
    "v30": {f"lambda_cosine_E{epochs}": ("cosine", 0.2) for epochs in (300, 100, 30)},
    "v70": {f"lambda_{kind}_E{epochs}": (kind, 0.01) for kind in ("linear", "cosine") for epochs in (300, 100, 30)}
    | {"lambda_cosine_lrf0.1_E100": ("cosine", 0.1), "lambda_cosine_lrf0.2_E100": ("cosine", 0.2)},
}


@pytest.mark.parametrize(("version", "name"), [(version, name) for version in LAMBDAS for name in LAMBDAS[version]])
def test_curves_of_yolov5(version, name):
    kind, end = LAMBDAS[version][name]
    expected = arrays(f"yolov5/{version}_schedule")[name]
    schedule, epochs = schedule_of({"name": kind, "by": "epoch", "end_factor": end}), len(expected) - 1
    np.testing.assert_allclose([schedule.factor(e, epochs) for e in range(epochs + 1)], expected, rtol=1e-6)


@pytest.mark.parametrize("version", YOLO)
def test_weight_decay_of_yolov5(version):
    recorded = arrays(f"yolov5/{version}_schedule")
    accumulate, optim = AccumulateConfig(nominal_batch=64), OptimConfig(weight_decay=5e-4, weight_decay_batch=64)
    batches = recorded["wd_batch"].tolist()
    passes = [accumulate.passes_of(batch) for batch in batches]
    assert passes == recorded["wd_accumulate"].tolist()
    scaled = [optim.weight_decay * optim.decay_scale(b * p) for b, p in zip(batches, passes, strict=True)]
    np.testing.assert_allclose(scaled, recorded["wd_scaled"], rtol=1e-6)


@pytest.mark.parametrize("version", YOLO)
def test_average_of_yolov5(version):
    """Decay by update, and a convolution with batch norm over six updates, statistics averaged too."""
    recorded = arrays(f"yolov5/{version}_schedule")
    meta = json.loads((DATA / f"yolov5/{version}_schedule_meta.json").read_text())
    config = EmaConfig()
    np.testing.assert_allclose(
        [config.decay_at(x) for x in recorded["ema_x"].tolist()], recorded["ema_decay"], rtol=1e-6
    )

    model = nn.Module()
    model.conv, model.bn = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    # The last entry is the integer counter of batches, which the original leaves at its first value; here it is copied.
    names = [name for name, _ in meta["ema_toy_names"]]
    assert names.pop() == "bn.num_batches_tracked"
    _fill(model, names, recorded["ema_init"])
    average = ExponentialAverage(model, config)
    average.updates = int(recorded["ema_updates_start"])
    for state, expected in zip(recorded["ema_model_states"], recorded["ema_states"], strict=True):
        _fill(model, names, state)
        average.update(model)
        np.testing.assert_allclose(_flat(average.model, names), expected[:-1], rtol=1e-6, atol=1e-7)


def _fill(model: nn.Module, names: list[str], values: np.ndarray) -> None:
    state, offset = model.state_dict(), 0
    for name in names:
        size = state[name].numel()
        state[name].copy_(torch.from_numpy(values[offset : offset + size]).view_as(state[name]))
        offset += size


def _flat(model: nn.Module, names: list[str]) -> np.ndarray:
    return torch.cat([model.state_dict()[name].flatten() for name in names]).numpy()


# --- SiamFC++ -------------------------------------------------------------------------------------------------------

SIAMFCPP = {
    "got_alexnet": (PRESETS["siamfcpp"]["schedule"], 0.08, 20),
    "got_googlenet": (PRESETS["siamfcpp"]["schedule"], 0.08, 20),
    "exp": (
        {
            "name": "piecewise",
            "pieces": [
                {"length": 2, "shape": {"name": "linear", "start_factor": 0.02, "end_factor": 1.0}},
                {"shape": {"name": "exponential", "end_factor": 1e-4 / 0.05}},
            ],
        },
        0.05,
        8,
    ),
    "multistage": ({"name": "multi_step", "by": "epoch", "milestones": [3, 5]}, 0.1, 8),
}


@pytest.mark.parametrize("name", SIAMFCPP)
def test_rates_of_siamfcpp(name):
    recorded = arrays("siamfcpp/lr_policy")
    schedule, peak, epochs = SIAMFCPP[name]
    per_epoch = int(recorded[f"{name}_max_iter"])
    iterations = [epoch * per_epoch + iteration for epoch, iteration in recorded[f"{name}_epoch_iter"].tolist()]
    actual = learning_rates(schedule, None, peak, iterations, per_epoch, epochs)
    np.testing.assert_allclose(actual, recorded[f"{name}_lr"], rtol=0, atol=1e-9)


def test_every_array_is_compared():
    inputs = {"clip_grad_directions", "clip_w0", "clip_coef", "lr_1000_it"}
    for program in MM_RATES:
        compared = {*MM_RATES[program], *CLIP_CASES[program], "lr_1000"}
        assert set(arrays(f"retinanet/{program}_schedule")) == compared | inputs
    for version in YOLO:
        cases = [case for which, case, _ in WARMUPS if which == version]
        compared = {f"{case}{part}" for case in cases for part in ("", "_ni", "_total_steps", "_lambda")}
        compared |= {*LAMBDAS[version], "wd_batch", "wd_accumulate", "wd_scaled", "ema_x", "ema_decay", "ema_init"}
        compared |= {"ema_updates_start", "ema_model_states", "ema_states"}
        assert set(arrays(f"yolov5/{version}_schedule")) == compared
    siamfcpp = {f"{name}_{part}" for name in SIAMFCPP for part in ("epoch_iter", "lr", "max_iter")}
    assert set(arrays("siamfcpp/lr_policy")) == siamfcpp
