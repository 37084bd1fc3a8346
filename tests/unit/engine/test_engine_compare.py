from __future__ import annotations

import json

import pytest

from sensorlab.cli import main
from sensorlab.engine.compare import first_difference, read_series
from sensorlab.errors import UserError

LINES = [
    {"step": 2, "epoch": 0, "train/loss": 0.5, "perf/step_s": 0.1},
    {"step": 2, "epoch": 0, "val/iou": 0.25},
    {"step": 4, "epoch": 0, "train/loss": float("nan")},
]


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def changed(tmp_path, index, **values):
    lines = [dict(line) for line in LINES]
    lines[index] |= {name.replace("__", "/"): value for name, value in values.items()}
    return read_series(write(tmp_path / "changed.jsonl", lines))


@pytest.fixture
def series(tmp_path):
    return read_series(write(tmp_path / "series.jsonl", LINES))


def test_equal_runs_may_differ_in_what_was_measured(series, tmp_path):
    assert first_difference(series, changed(tmp_path, 0, perf__step_s=9.0)) is None


def test_the_first_difference_is_named(series, tmp_path):
    other = changed(tmp_path, 1, val__iou=0.26)
    assert first_difference(series, other).startswith("step 2: val/iou is 0.25 in the first, 0.26 in the second")
    assert "step 4: train/loss is nan" in first_difference(series, changed(tmp_path, 2, train__loss=1.0))


def test_the_tolerance_is_absolute_below_one_and_relative_above():
    for a, b, tolerance, equal in [
        (0.25, 0.26, 0.011, True),
        (0.25, 0.26, 0.009, False),
        (100.0, 101.0, 0.011, True),
        (100.0, 101.0, 0.009, False),
    ]:
        assert (first_difference({(1, "train/x"): a}, {(1, "train/x"): b}, tolerance) is None) == equal


def test_a_number_that_only_one_has_is_a_difference(series, tmp_path):
    other = changed(tmp_path, 0, train__other=1.0)
    assert first_difference(series, other) == "step 2: train/other is only in the second"
    assert first_difference(other, series) == "step 2: train/other is only in the first"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 1, "train/loss"', "line 1: not a line of metrics"),
        ("[1]\n", "line 1: not a line of metrics"),
        ('{"step": 1, "perf/step_s": 1.0}\n', "has no number"),
        ('{"step": 1, "train/loss": 1.0}\n' * 2, "line 2: train/loss of step 1 is there twice"),
    ],
)
def test_what_is_not_a_log_is_refused(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_series(tmp_path)


def test_command_exits_with_one_at_a_difference(tmp_path, capsys):
    first = write(tmp_path / "a" / "metrics.jsonl", LINES)
    second = write(tmp_path / "b" / "metrics.jsonl", [LINES[0] | {"train/loss": 0.5001}, *LINES[1:]])
    assert main(["compare-losses", str(first), str(first.parent)]) == 0
    assert main(["compare-losses", str(first), str(second)]) == 1
    assert "step 2: train/loss" in capsys.readouterr().out
    assert main(["compare-losses", str(first), str(second), "--tolerance", "1e-3"]) == 0
    assert main(["compare-losses", str(first), str(tmp_path / "nowhere")]) == 2
