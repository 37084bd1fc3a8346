"""Tests of the importance of searched keys."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from test_report_ranking import sweep, trial

from sensorlab.report.content import Dimension, Point
from sensorlab.report.importance import CONTROL, MIN_TRIALS, importances
from sensorlab.report.ranking import rankings


def searched(count: int, **fields):
    """Trials whose objective depends on ``optim.lr`` alone (log-uniform), beside a choice that does nothing."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(count):
        values = {"optim.lr": float(10 ** rng.uniform(-4, -1)), "task.size": [[64, 64], [96, 96]][rng.integers(2)]}
        objective = math.log10(values["optim.lr"]) + 5
        trials.append(trial(number, objective, values=values, **fields))
    dimensions = {
        "optim.lr": Dimension("optim.lr", (), (1e-4, 1e-1), is_log=True),
        "task.size": Dimension("task.size", choices=([64, 64], [96, 96])),
    }
    return dataclasses.replace(sweep(*trials), dimensions=dimensions)


def found_in(whole):
    return importances(whole, rankings(whole)[0])


def test_the_key_that_matters_comes_first_and_the_idle_one_is_like_random_numbers():
    found = found_in(searched(24))
    shares = {item.key: item for item in found.items}
    assert found.items[0].key == "optim.lr"
    assert shares["optim.lr"].share > 0.6
    assert shares["task.size"].share < 0.15
    assert shares["optim.lr"].low > shares[CONTROL].high
    assert shares["optim.lr"].direction == pytest.approx(1.0)
    assert shares["task.size"].direction is None
    assert all(item.low <= item.share <= item.high for item in found.items)


def test_it_is_reproducible():
    whole = searched(MIN_TRIALS)
    assert found_in(whole) == found_in(whole)


def test_trials_of_unequal_length_are_compared_at_the_same_epoch():
    """Stopped trials were stopped at random here: the objective at their end says how long they trained, no more."""
    whole = searched(12)
    trials = []
    for number, one in enumerate(whole.trials):
        curve = tuple(Point(float(epoch), epoch, one.objective * epoch) for epoch in range(1, 2 + number % 3))
        last = curve[-1]
        trials.append(dataclasses.replace(one, curve=curve, epoch=int(last.epoch), objective=last.value))
    found = found_in(dataclasses.replace(whole, trials=tuple(trials)))
    assert found.epoch == 1.0
    assert found.items[0].key == "optim.lr"


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (searched(MIN_TRIALS - 1), "at least 6 are needed"),
        (sweep(*(trial(n, 0.1 * n, lr=0.1) for n in range(8))), "no searched key differs"),
        (sweep(*(trial(n, 0.5, lr=float(n)) for n in range(8))), "same objective"),
    ],
)
def test_where_nothing_can_be_said_it_says_why(whole, reason):
    found = found_in(whole)
    assert found.items == ()
    assert reason in found.reason


def test_conditional_keys_are_left_to_the_trials_that_have_them():
    trials = [trial(n, 0.1 * n, values={"a": float(n), **({"b": 1.0 * n} if n % 2 else {})}) for n in range(16)]
    whole = sweep(*trials)
    assert found_in(whole).num_trials == 8
