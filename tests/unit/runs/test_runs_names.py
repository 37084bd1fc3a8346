from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorlab.runs.names import MetricNames, log10_name, metric_name, param_value, param_values, shortened


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("val/iou", "val/iou"),
        ("val/mAP@0.5", "val/mAP_0.5"),
        ("AP[car]", "AP_car"),
        ("val/AP [car] > 50m", "val/AP_car_50m"),
        ("a:b", "a_b"),
        ("_private_", "_private_"),
        ("../x//./y", "x/y"),
        ("..0/...a", "0/a"),
        ("größe", "gr_e"),
        ("@@", "unnamed"),
    ],
)
def test_metric_name_rule(name: str, stored: str) -> None:
    assert metric_name(name) == stored


@settings(deadline=None)  # the first example imports MLflow
@given(st.text(max_size=400))
def test_every_metric_name_is_accepted_by_mlflow_and_stable(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    stored = metric_name(name)
    _validate_metric_name(stored)
    assert len(stored) <= 250
    assert metric_name(stored) == stored


def test_names_that_would_collide_stay_apart() -> None:
    names = MetricNames()
    first, second = names("AP[car]"), names("AP(car)")
    assert first == "AP_car"
    assert second.startswith("AP_car_")
    assert second != first
    assert names("AP(car)") == second
    assert len(names) == 2


def test_param_values_are_rounded_and_log_scaled_ones_get_a_companion() -> None:
    stored = param_values(
        {"optim.lr": 0.00123456789, "seed": 7, "radar": True, "size": [1, 2], "none": None, "wd": 0.0},
        log_scaled=("optim.lr", "wd", "radar"),
    )
    assert stored == {
        "optim.lr": "0.00123457",
        "optim.log10_lr": "-2.908",
        "seed": "7",
        "radar": "true",
        "size": "[1, 2]",
        "none": "none",
        "wd": "0",
    }
    assert "log10_wd" not in stored  # zero has no logarithm
    assert "log10_radar" not in stored  # a switch is no number


def test_log10_name_keeps_the_prefix() -> None:
    assert log10_name("optim.lr") == "optim.log10_lr"
    assert log10_name("lr") == "log10_lr"


def test_long_params_are_cut_but_stay_different() -> None:
    one, other = param_value("x" * 9000 + "a"), param_value("x" * 9000 + "b")
    assert len(one) == len(other) == 6000
    assert one != other
    assert shortened("short", 6000) == "short"
