from __future__ import annotations

import argparse

import pytest

from sensorlab.bench import loop, resume


def test_loop_bench_measures_both_sides_and_their_difference():
    result = loop.run(argparse.Namespace(small=True))
    times = result["cpu_microseconds_per_step"]
    assert times.keys() == {"engine", "bare", "fixed_lr_and_no_check"}
    assert all(0 < value < 1e5 for value in times.values())
    # Medians over two rounds: the mean of the differences is the difference of the means.
    assert result["added_by_the_engine_us"] == pytest.approx(times["engine"] - times["bare"], abs=0.2)


@pytest.mark.slow
def test_resume_bench_repeats_no_step_beyond_the_checkpoint():
    result = resume.run(argparse.Namespace(small=True, seed=0, kills=1))
    assert result["kills"] == 1
    assert result["steps_repeated_beyond_checkpoint"] == 0
    assert 0 <= result["steps_repeated"][0] <= 3  # a checkpoint every three steps
    assert 0 < result["seconds_to_first_step"]["median"] <= result["seconds_to_new_step"]["median"]
