"""The lift bench reports both sides, and both compute the same thing."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import pytest

from sensorlab.bench import lift

LEGACY = ["--sampling", "legacy", "--batch", "2", "--contiguous-gradient"]


@pytest.mark.parametrize("options", [[], pytest.param(LEGACY, marks=pytest.mark.slow)])
def test_small_run(options: list[str]) -> None:
    parser = argparse.ArgumentParser()
    lift.add_arguments(parser)
    report = lift.run(parser.parse_args(["--small", "--threads", "1", *options]))
    assert json.loads(json.dumps(report)) == report
    assert report["max_abs_difference"]["volume"] <= 1e-4
    assert report["max_abs_difference"]["gradient_relative"] <= 1e-4
    for side in ("dense", "sparse"):
        assert report[side]["seconds"] > 0
        assert report[side]["peak_mb"] > 0
    assert report["parameters"]["cells"] == [50, 4, 50]
    assert report["memory_fraction"] < 1


_PEAK_OF_40_AFTER_60_MIB = """
import torch
from sensorlab.bench.memory import PeakMemory
before = torch.ones(60 * 2**18)
del before
with PeakMemory(torch.device("cpu")) as memory:
    inside = torch.ones(40 * 2**18)
    del inside
print(memory.measure, memory.peak_bytes, sep="|")
"""


def test_peak_memory_sees_what_was_freed_inside_and_not_what_came_before() -> None:
    # As the bench does: in a fresh process whose C library returns freed arrays at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _PEAK_OF_40_AFTER_60_MIB]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout
    measure, peak_bytes = output.strip().split("|")
    if measure == "resident, mark reset":
        assert 36 < int(peak_bytes) / 2**20 < 55
    else:
        assert int(peak_bytes) > 0
