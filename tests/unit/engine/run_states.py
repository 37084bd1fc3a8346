"""What two runs must have in common to count as equal: everything except measured times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sensorlab.engine import checkpoint

MEASURED = ("perf/", "system/")  # names of times and of the use of the machine


def final_state(run_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The state in the last checkpoint and the lines of the log, both without what was measured."""
    latest = checkpoint.CheckpointStore(run_dir / "checkpoints").latest()
    assert latest is not None
    state = checkpoint.load(latest.path)
    state.pop("clock")
    state["metrics"] = without_measured(state["metrics"])
    state["callbacks"].pop("JsonLog")  # the length of the file, and with it the number of digits of times
    for meter in state["meters"]:
        meter.pop("data_wait_s"), meter.pop("step_s")
    text = (run_dir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return state, [without_measured(json.loads(line)) for line in text.splitlines()]


def without_measured(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith(MEASURED)}


def assert_equal(left: Any, right: Any, where: str = "state") -> None:
    """Equal types, keys, dtypes and bits all the way down; the error says where they differ."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}[{i}]")
    elif isinstance(left, torch.Tensor):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), where
        assert left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes(), where
    else:
        assert repr(left) == repr(right), where  # of floats: as good as their bits, and NaN equals NaN
