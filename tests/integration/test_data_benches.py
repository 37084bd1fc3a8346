"""The data benchmarks run, on small data, and report both sides."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from sensorlab.bench import loader, stream
from sensorlab.errors import UserError


def parse(module: Any, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def test_loader_reports_both_sides() -> None:
    result = json.loads(json.dumps(loader.run(parse(loader, "--small", "--batches", "2", "--batch", "2"))))
    bare, full = result["bare_decode"], result["full"]
    # The full side decodes the same images and does more.
    assert 0 < bare["cpu_ms_per_sample"] < full["cpu_ms_per_sample"]
    assert result["ratio_to_bare_decode"] == pytest.approx(bare["cpu_ms_per_sample"] / full["cpu_ms_per_sample"])
    assert sum(result["full_stages_cpu_ms_per_sample"].values()) == pytest.approx(full["cpu_ms_per_sample"], rel=0.05)
    assert result["data"]["samples"] == 3
    assert len(result["data"]["cameras"]) == 6


@pytest.mark.slow
@pytest.mark.ray
def test_stream_reports_three_sides() -> None:
    result = json.loads(json.dumps(stream.run(parse(stream, "--small", "--processes", "2"))))
    for side in ("dataloader", "ray_worker", "ray_task"):
        assert result[side]["samples_per_second"] > 0
        assert result[side]["first_batch_s"]["epoch_2"] >= 0
    assert result["ratio_ray_worker"] > 0


def test_stream_needs_an_epoch_after_the_first() -> None:
    with pytest.raises(UserError, match="--epochs"):
        stream.run(parse(stream, "--epochs", "1"))
