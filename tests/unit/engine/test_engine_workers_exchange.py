"""What workers tell each other: two real processes over gloo."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from two_workers import run_on_two_workers

from sensorlab.engine.fit import fit
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import EvalConfig, TrainConfig
from toy import ToyStream, ToyTask, toy_experiment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")

VALUES = (
    {"loss": 1.0, "only first": 5.0, "nan": 2.0, "inf": math.inf},
    {"only second": -3.0, "loss": 4.0, "nan": math.nan, "inf": -math.inf},
)


def _exchanged(rank: int) -> list[dict[str, float]]:
    workers = WorkerGroup(rank, 2)
    return [workers.mean(VALUES[rank]), workers.max(VALUES[rank]), workers.mean({}), workers.mean({"a": 0.1})]


def test_numbers_are_combined_over_the_workers_that_have_them(tmp_path):
    first, second = run_on_two_workers(_exchanged, tmp_path)
    for mean, largest, nothing, same in (first, second):
        assert list(mean) == list(largest) == ["loss", "only first", "nan", "inf", "only second"]
        assert [mean[name] for name in ("loss", "only first", "only second")] == [2.5, 5.0, -3.0]
        assert math.isnan(mean["nan"])
        assert math.isnan(mean["inf"])
        assert [largest[name] for name in ("loss", "only first", "only second")] == [4.0, 5.0, -3.0]
        assert (nothing, same) == ({}, {"a": 0.1})


def test_one_worker_keeps_its_numbers():
    assert WorkerGroup().mean(VALUES[0]) == VALUES[0]
    assert WorkerGroup().max(VALUES[0]) == VALUES[0]


class Rare(ToyTask):
    """Reports one extra of the batches with sample 7 alone: whichever worker reads it."""

    def losses(self, model, outputs, batch):
        terms, extras = super().losses(model, outputs, batch)
        if (batch["index"] == 7).any():
            extras["rare"] = terms["small"].detach()
        return terms, extras


def _train(rank: int, directory: str) -> dict[str, float]:
    config = toy_experiment(
        train=TrainConfig(duration="1 epoch", log_every="1 epoch"), eval=EvalConfig(metric="val/mse", mode="min")
    )
    task = Rare(config.task)
    streams = (
        ToyStream(24, 4, task, rank=rank, n=2),
        ToyStream(8, 4, task, training=False, rank=rank, n=2),
    )
    result = fit(config, task, *streams, run_dir=Path(directory), workers=WorkerGroup(rank, 2))
    return {name: value for name, value in result.metrics.items() if name.startswith("train/")}


def test_a_number_that_one_worker_alone_has_is_reported(tmp_path):
    first, second = run_on_two_workers(_train, tmp_path, str(tmp_path / "run"))
    assert first == second
    assert first["train/rare"] > 0.0
