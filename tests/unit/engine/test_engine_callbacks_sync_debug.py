"""Where waits for the GPU are watched. What torch then reports needs a GPU; when it is asked to does not."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from callback_runs import Interrupted, StopAfter, run

from sensorlab.engine.callbacks.sync_debug import SyncDebug, syncs_allowed
from sensorlab.engine.workers import WorkerGroup

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def modes(monkeypatch):
    """The modes that torch is set to, in order."""
    seen = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", seen.append)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: seen[-1] if seen else 0)
    return seen


def on_cuda():
    return SimpleNamespace(workers=WorkerGroup(device=torch.device("cuda")))


def test_on_the_cpu_it_says_that_it_has_no_effect(tmp_path, caplog, modes):
    run(tmp_path, SyncDebug("warn"))
    assert "diagnostics.sync_debug=warn has no effect on cpu" in caplog.text
    assert modes == []


def test_watches_from_the_batch_to_the_end_of_the_step_but_not_in_the_first_step(modes, caplog):
    callback, training = SyncDebug("error"), on_cuda()
    callback.on_fit_start(training)
    for _ in range(2):  # the first step of an attempt, of two passes
        callback.on_batch(training, {})
    callback.on_step_end(training, None)
    assert "error" not in modes
    for _ in range(2):
        callback.on_batch(training, {})
        assert modes[-1] == "error"
        callback.on_batch(training, {})
        assert modes[-1] == "error"
        callback.on_step_end(training, None)
        assert modes[-1] == "default"
    callback.on_fit_end(training)
    assert modes[-1] == "default"
    assert not caplog.records


def test_an_error_inside_of_a_step_ends_the_watch(modes):
    callback, training = SyncDebug("warn"), on_cuda()
    callback.on_step_end(training, None)
    callback.on_batch(training, {})
    callback.on_error(training, Interrupted())
    assert modes[-1] == "default"


def test_intended_waits_are_let_through_and_the_watch_goes_on(modes):
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(Interrupted), syncs_allowed(torch.device("cuda")):
        raise Interrupted
    assert modes == ["error", "default", "error"]
    with syncs_allowed(torch.device("cpu")):
        assert modes[-1] == "error"


def test_it_is_the_first_to_hear_of_the_end_of_a_step(tmp_path):
    from sensorlab.engine.callbacks import early_stop, first_batches, json_log, profiler, text_log, weight_norms

    others = [early_stop.EarlyStop, first_batches.FirstBatches, json_log.JsonLog, profiler.Profiler]
    others += [text_log.TextLog, weight_norms.WeightNorms]
    assert all(SyncDebug.priority < other.priority for other in others)


@needs_cuda
def test_torch_reports_a_wait():
    callback, training = SyncDebug("error"), on_cuda()
    value = torch.ones(3, device="cuda")
    callback.on_step_end(training, None)
    callback.on_batch(training, {})
    with pytest.raises(RuntimeError, match="synchronizing"):
        value.sum().item()
    with syncs_allowed(value.device):
        assert value.sum().item() == 3.0
    callback.on_step_end(training, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value.sum().item() == 3.0


@needs_cuda
def test_a_run_with_warnings(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, SyncDebug("warn"), StopAfter(4))
    assert torch.cuda.get_sync_debug_mode() == 0
