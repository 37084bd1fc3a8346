"""metrics.jsonl is JSON, also where a value is not finite."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.compare import first_difference, read_series
from sensorlab.engine.training import Cursor


def write(run_dir, **metrics: float) -> list[str]:
    training = SimpleNamespace(run_dir=run_dir, workers=SimpleNamespace(is_main=True), cursor=Cursor(epoch=1))
    log = JsonLog()
    log.on_fit_start(training)
    log.on_metrics(training, {f"val/{name}": value for name, value in metrics.items()}, 7)
    file = run_dir / "metrics.jsonl"
    assert log.state_dict() == {"length": file.stat().st_size}
    return file.read_text().splitlines()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null_and_read_as_nan(tmp_path, value):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = write(tmp_path, iou=value, loss=0.1 + 0.2)
    content = json.loads(line, parse_constant=refuse)
    assert content == {"step": 7, "epoch": 1, "val/iou": None, "val/loss": 0.1 + 0.2}
    series = read_series(tmp_path)
    assert math.isnan(series[7, "val/iou"])
    assert series[7, "val/loss"] == 0.1 + 0.2


def test_null_equals_null_and_nothing_else(tmp_path):
    for name, value in (("a", math.nan), ("b", math.nan), ("c", 0.0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, iou=value)
    missing, again, zero = (read_series(tmp_path / name) for name in "abc")
    assert first_difference(missing, again) is None
    assert first_difference(missing, zero).startswith("step 7: val/iou is nan in the first, 0.0 in the second")
