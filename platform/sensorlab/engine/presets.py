"""Named optimisation settings of the original systems, as partial experiments.

``preset: NAME`` at the top of an experiment starts from one; every key that the experiment gives itself wins. The
resolved configuration holds the values, not the name, so the digest is that of the values written out. The rates are
compared with recorded ones of the original programs in ``tests/golden/test_engine_schedules_golden.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from sensorlab.config import merge
from sensorlab.errors import UserError

_SIMPLE_BEV = {
    "optim": {"name": "adamw", "lr": 3e-4, "weight_decay": 1e-7},
    "schedule": {"name": "one_cycle"},
    "train": {"accumulate": {"passes": 5, "reduction": "sum"}, "clip": {"kind": "norm", "value": 5.0}},
}

# ``train.sh`` of CenterFusion: the rate is for 32 images, and a tenth of it from epoch 51 on. The epochs that it saves,
# 20, 40 and 50, are among those kept here. Adam as torch has it; no clipping, no warm-up, no average of the weights.
_CENTERFUSION = {
    "data": {"global_batch": 32},
    "optim": {"name": "adam", "lr": 2.5e-4, "weight_decay": 0.0},
    "schedule": {"name": "multi_step", "by": "epoch", "milestones": [50], "gamma": 0.1},
    "train": {"duration": "60 epochs", "clip": None},
    "checkpoint": {"every": "1 epoch", "keep_every": "10 epochs"},
}


def _mmdet_1x(warmup: Mapping[str, Any], clip: Mapping[str, Any] | None) -> dict[str, Any]:
    """RetinaNet's recipe: 12 epochs, drops before epochs 8 and 11."""
    return {
        "optim": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
        "schedule": {"name": "multi_step", "by": "epoch", "milestones": [8, 11]},
        "warmup": {"kind": "linear", "unit": "steps", **warmup},
        "train": {"duration": "12 epochs", "clip": clip},
    }


def _yolov5(
    schedule: Mapping[str, Any],
    warmup: Mapping[str, Any],
    window: str,
    clip: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        "optim": {
            "name": "sgd",
            "lr": 0.01,
            "momentum": 0.937,
            "nesterov": True,
            "weight_decay": 5e-4,
            "weight_decay_batch": 64,
            "groups": [
                {"name": "bias", "match": ["@bias", "@norm_bias"], "weight_decay": 0.0},
                {"name": "norm", "match": ["@norm_weight"], "weight_decay": 0.0},
            ],
        },
        # The counter of the original's scheduler is one epoch behind, while its warm-up aims at the rate of the epoch.
        "schedule": {"by": "epoch", "lag": 1, **schedule},
        "warmup": {"kind": "linear", "unit": "epochs", "length": 3.0, "group_start": {"bias": 10.0}, **warmup},
        "train": {
            "duration": "300 epochs",
            "accumulate": {"nominal_batch": 64, "ramp": True, "window": window, "reduction": "sum"},
            "clip": clip,
            "ema": {"kind": "warmup", "decay": 0.9999, "tau": 2000.0},
        },
    }


def _siamfcpp(peak: float = 0.08, end: float = 1e-6) -> dict[str, Any]:
    return {
        "optim": {"name": "sgd", "lr": peak, "momentum": 0.9, "weight_decay": 5e-5},
        "schedule": {
            "name": "piecewise",
            "unit": "epochs",
            "pieces": [
                {"length": 1, "shape": {"name": "linear", "start_factor": end / peak, "end_factor": 1.0}},
                {"shape": {"name": "cosine", "end_factor": end / peak}},
            ],
        },
        "train": {"duration": "20 epochs", "clip": None},
    }


_V7_WARMUP = {"at_least": 100, "momentum_start": 0.8}
_V7_CLIP = {"kind": "norm", "value": 10.0}

PRESETS: dict[str, dict[str, Any]] = {
    "simple_bev": _SIMPLE_BEV,
    "centerfusion": _CENTERFUSION,
    # mmdet 1.0 with mmcv 0.2; mmdet 2 with mmcv 1; mmdet 3 with MMEngine, which has the full rate one step earlier.
    "mmdet1_retinanet_1x": _mmdet_1x({"length": 500, "start_factor": 1 / 3}, {"kind": "norm", "value": 35.0}),
    "mmdet2_retinanet_1x": _mmdet_1x({"length": 500, "start_factor": 0.001}, None),
    "mmdet3_retinanet_1x": _mmdet_1x({"length": 499, "start_factor": 0.001}, None),
    "yolov5_v3": _yolov5(
        {"name": "cosine", "end_factor": 0.2}, {"at_least": 1000, "momentum_start": 0.9}, "multiple", None
    ),
    "yolov5_v7": _yolov5({"name": "linear", "end_factor": 0.01}, _V7_WARMUP, "run", _V7_CLIP),
    "yolov5_v7_cosine": _yolov5({"name": "cosine", "end_factor": 0.01}, _V7_WARMUP, "run", _V7_CLIP),
    "siamfcpp": _siamfcpp(),
}


def with_preset(tree: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """``tree`` over the preset that it names, without the name.

    Raises:
        UserError: no such preset; the message names the nearest one.
    """
    if "preset" not in tree:
        return tree
    rest = {key: value for key, value in tree.items() if key != "preset"}
    name = tree["preset"]
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(PRESETS)}"
        raise UserError(f"{where}: preset {name!r} does not exist; {hint}")
    return merge(PRESETS[name], rest)
