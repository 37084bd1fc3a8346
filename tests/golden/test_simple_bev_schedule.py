"""OneCycle rates of Simple-BEV's ``fetch_optimizer``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sensorlab.engine.schedules import OneCycleSchedule

RUNS = json.loads((Path(__file__).parent / "data/simple_bev/lr.json").read_text())["runs"]


@pytest.mark.golden
@pytest.mark.parametrize("name", sorted(RUNS))
def test_one_cycle_matches_the_original(name):
    run = RUNS[name]
    schedule = OneCycleSchedule()
    rates = [run["max_lr"] * schedule.factor(step, run["max_iters"]) for step in run["steps"]]
    assert rates == pytest.approx(run["lr"], rel=1e-6)
