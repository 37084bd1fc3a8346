"""A profile of the steps that were asked for, readable by the usual viewers."""

from __future__ import annotations

import gzip
import json

import pytest
from callback_runs import Interrupted, StopAfter, run
from run_states import assert_equal, final_state

from sensorlab.engine.callbacks.profiler import Profiler


def files(run_dir) -> list[str]:
    folder = run_dir / "profile"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def updates_in(path) -> int:
    """Optimiser steps in a trace."""
    trace = json.loads(gzip.decompress(path.read_bytes()))
    return sum(event.get("name", "").startswith("Optimizer.step#") for event in trace["traceEvents"])


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 3), (4, 6), (15, 15)])
def test_profiles_the_window(tmp_path, first, last):
    run(tmp_path, Profiler(first, last))
    name = f"steps-{first:08d}-{last:08d}"
    assert files(tmp_path) == [f"{name}.trace.json.gz", f"{name}.txt"]
    assert updates_in(tmp_path / "profile" / f"{name}.trace.json.gz") == last - first + 1
    table = (tmp_path / "profile" / f"{name}.txt").read_text()
    assert "aten::addmm" in table
    assert "Self CPU" in table


def test_a_run_that_ends_inside_of_the_window_writes_what_it_has(tmp_path):
    run(tmp_path, Profiler(14, 30))
    assert files(tmp_path) == ["steps-00000014-00000015.trace.json.gz", "steps-00000014-00000015.txt"]


def test_a_run_that_dies_writes_what_it_has_and_a_resumed_one_profiles_the_rest(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, Profiler(2, 6), StopAfter(5))
    assert files(tmp_path)[0] == "steps-00000002-00000005.trace.json.gz"
    assert updates_in(tmp_path / "profile" / files(tmp_path)[0]) == 4
    run(tmp_path, Profiler(2, 6))  # from the checkpoint of step 4
    assert "steps-00000005-00000006.trace.json.gz" in files(tmp_path)
    assert updates_in(tmp_path / "profile" / "steps-00000005-00000006.trace.json.gz") == 2


def test_a_window_beyond_the_end_or_before_the_start_profiles_nothing(tmp_path):
    run(tmp_path, Profiler(16, 20))
    run(tmp_path, Profiler(1, 3))  # finished already
    assert files(tmp_path) == []


def test_training_is_the_same_to_the_bit(tmp_path):
    run(tmp_path / "plain")
    run(tmp_path / "profiled", Profiler(3, 5))
    assert_equal(final_state(tmp_path / "profiled")[0]["model"], final_state(tmp_path / "plain")[0]["model"])
