"""The section ``diagnostics``: off by default, checked, and built into callbacks in a stated order."""

from __future__ import annotations

import re

import pytest
from callback_runs import run
from run_states import assert_equal, final_state

from sensorlab.config import as_dict, validate
from sensorlab.engine.callbacks import diagnostics, json_log, panel_files, table_files, text_log, tracking
from sensorlab.engine.callbacks.diagnostics import DiagnosticsConfig, build_callbacks
from sensorlab.engine.callbacks.early_stop import EarlyStopConfig
from sensorlab.errors import UserError

EVERYTHING = {
    "first_batches": 3,
    "tensorboard": True,
    "norms_every": "4 steps",
    "profile_steps": [2, 3],
    "sync_debug": "warn",
}


def names(callbacks) -> list[str]:
    return [type(callback).__name__ for callback in callbacks]


def test_nothing_is_on_by_default():
    assert build_callbacks(DiagnosticsConfig()) == []


def test_each_key_builds_its_callback():
    stop = validate(EarlyStopConfig, {"patience": "3 epochs"})
    assert names(build_callbacks(DiagnosticsConfig(), stop)) == ["EarlyStop"]
    expected = {
        "first_batches": "FirstBatches",
        "tensorboard": "TensorBoard",
        "norms_every": "WeightNorms",
        "profile_steps": "Profiler",
        "sync_debug": "SyncDebug",
    }
    assert expected.keys() == DiagnosticsConfig.model_fields.keys() == EVERYTHING.keys()
    for key, name in expected.items():
        if key == "tensorboard":
            pytest.importorskip("tensorboard", reason="needs the extra sensorlab[tensorboard]")
        assert names(build_callbacks(validate(DiagnosticsConfig, {key: EVERYTHING[key]}))) == [name]


def test_the_documented_order_is_the_order_of_the_priorities():
    table = build_callbacks.__doc__.partition("priority   callback")[2]
    pytest.importorskip("tensorboard", reason="needs the extra sensorlab[tensorboard]")
    built = build_callbacks(
        validate(DiagnosticsConfig, EVERYTHING), validate(EarlyStopConfig, {"patience": "3 epochs"})
    )
    recorders = [json_log.JsonLog, text_log.TextLog, panel_files.PanelFiles, tracking.Tracking, table_files.TableFiles]
    classes = {type(callback).__name__: type(callback) for callback in built} | {c.__name__: c for c in recorders}
    documented = [name for name in re.findall(r"\b[A-Z]\w+\b", table) if name in classes]
    assert documented == sorted(classes, key=lambda name: classes[name].priority)
    assert names(built) == [name for name in documented if name in names(built)]


@pytest.mark.parametrize("window", [[0, 3], [4, 3], [1, 101]])
def test_a_bad_window_is_refused(window):
    with pytest.raises(UserError, match=r"at most 100 steps \(found"):
        validate(DiagnosticsConfig, {"profile_steps": window}, where="diagnostics")
    assert diagnostics.MAX_PROFILED_STEPS == 100


@pytest.mark.parametrize(
    ("key", "value"),
    [("first_batches", -1), ("sync_debug", "loud"), ("norms_every", "often"), ("norm_every", "1 epoch")],
)
def test_a_bad_value_is_refused_by_its_key(key, value):
    with pytest.raises(UserError, match=key):
        validate(DiagnosticsConfig, {key: value})


def test_written_and_read_again_it_is_the_same():
    config = validate(DiagnosticsConfig, EVERYTHING)
    assert validate(DiagnosticsConfig, as_dict(config)) == config


def test_everything_on_changes_no_bit_of_the_training(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra sensorlab[tensorboard]")
    run(tmp_path / "plain")
    run(tmp_path / "watched", *build_callbacks(validate(DiagnosticsConfig, EVERYTHING)))
    plain, watched = final_state(tmp_path / "plain")[0], final_state(tmp_path / "watched")[0]
    for part in ("model", "optimizer", "cursor", "meters"):
        assert_equal(watched[part], plain[part], part)
