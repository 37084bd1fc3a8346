"""Tests of grouping repeats and ranking them by protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sensorlab.report.content import Sweep, Trial
from sensorlab.report.ranking import rankings, unranked, varying


def trial(number: int, objective: float | None, **fields: Any) -> Trial:
    values = {"optim.lr": fields.pop("lr", 0.1), "seed": fields.get("seed", 0)}
    defaults = {"state": "done", "epoch": 9, "protocol": "p1", "seconds": 10.0, "seed": 0, "values": values}
    return Trial(number, f"t{number}", Path("/nowhere"), objective=objective, **(defaults | fields))


def sweep(*trials: Trial, mode: Any = "max") -> Sweep:
    return Sweep("s", Path("/nowhere"), "val/iou", mode, "finished", len(trials), {}, {}, trials)


def test_repeats_are_one_configuration():
    found = rankings(sweep(trial(0, 0.5, seed=0), trial(1, 0.9, lr=0.2), trial(2, 0.7, seed=1)))
    (ranking,) = found
    best, second = ranking.configurations
    assert best.label == "#1"
    assert best.deviation is None
    assert [t.number for t in second.trials] == [0, 2]
    assert second.mean == pytest.approx(0.6)
    assert second.deviation == pytest.approx(0.1 * 2**0.5)
    assert "seed" not in second.values


def test_a_repeat_that_was_stopped_early_is_left_out_of_the_mean():
    (ranking,) = rankings(sweep(trial(0, 0.5, seed=0), trial(1, 0.1, seed=1, epoch=1, state="stopped")))
    (configuration,) = ranking.configurations
    assert configuration.mean == 0.5
    assert (len(configuration.trials), len(configuration.compared)) == (2, 1)


def test_the_same_seed_again_is_no_new_measurement():
    (ranking,) = rankings(sweep(trial(0, 0.5), trial(1, 0.5)))
    (configuration,) = ranking.configurations
    assert len(configuration.compared) == 1
    assert configuration.deviation is None


def test_min_mode_ranks_the_smallest_first():
    (ranking,) = rankings(sweep(trial(0, 0.5, lr=1.0), trial(1, 0.2, lr=2.0), mode="min"))
    assert [configuration.label for configuration in ranking.configurations] == ["#1", "#0"]


def test_protocols_are_never_ranked_together():
    odd = trial(9, 0.99, protocol="p2")
    found = rankings(sweep(trial(0, 0.5, lr=1.0), odd, trial(1, 0.2, lr=2.0)))
    assert [ranking.protocol for ranking in found] == ["p1", "p2"]  # the one of most trials first
    assert {t.number for t in found[0].trials} == {0, 1}
    assert [t.number for t in found[1].trials] == [9]


def test_equal_values_under_two_protocols_are_two_configurations():
    found = rankings(sweep(trial(0, 0.5, seed=0), trial(1, 0.6, seed=1, protocol="p2")))
    assert [len(ranking.configurations[0].compared) for ranking in found] == [1, 1]


def test_failed_and_unmeasured_trials_have_no_place_and_say_why():
    whole = sweep(
        trial(0, 0.5),
        trial(1, 0.9, state="failed", reason="out of memory"),
        trial(2, None, epoch=3),
        trial(3, None, epoch=0, state="interrupted"),
    )
    (ranking,) = rankings(whole)
    assert {t.number for t in ranking.trials} == {0}
    reasons = {t.number: reason for t, reason in unranked(whole)}
    assert reasons == {
        1: "failed: out of memory",
        2: "val/iou was never a finite number in 3 epochs",
        3: "interrupted before its first evaluation",
    }


def test_the_typical_repeat_is_nearest_to_the_mean():
    (ranking,) = rankings(sweep(*(trial(n, value, seed=n) for n, value in enumerate([0.1, 0.52, 0.9]))))
    assert ranking.configurations[0].typical.number == 1


def test_unclear_and_rivals():
    trials = [trial(n, 0.5 + 0.01 * (n % 2), lr=float(n // 2), seed=n % 2) for n in range(6)]
    trials.append(trial(6, 0.4, lr=9.0, epoch=1, state="stopped"))
    (ranking,) = rankings(sweep(*trials))
    assert len(ranking.rivals) == 2
    assert len(ranking.unclear) == 2


def test_no_trials():
    assert rankings(sweep()) == []
    assert varying([trial(0, 0.1)]) == ["optim.lr"]
