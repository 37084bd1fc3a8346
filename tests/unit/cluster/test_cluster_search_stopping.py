"""Median stopping and HyperBand: their rules, and their state in the ledger."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from sensorlab.cluster.halving import HyperBand, SuccessiveHalving
from sensorlab.cluster.ledger import Ledger, share_ledger
from sensorlab.cluster.search.stopping import MedianStopping
from sensorlab.cluster.sweep import SweepPlan
from sensorlab.cluster.sweep_check import check_space
from sensorlab.cluster.sweep_config import (
    AshaConfig,
    HyperBandConfig,
    MedianConfig,
    load_sweep,
)
from sensorlab.cluster.tuning import _early_stopping
from sensorlab.config import as_dict
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from

GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path)


def new_ledger(folder):
    ledger = Ledger(folder / "ledger.json", "max")
    share_ledger(folder, ledger)
    return ledger


def report(scheduler, ledger, name, epoch, value):
    """``name``: the configuration's number, then ``s`` and the seed."""
    if name not in ledger.trials:
        configuration, _, seed = name.partition("s")
        ledger.start(name, {"optim.lr": float(configuration), "seed": int(seed or 0)}, "", ledger.path.parent)
    return scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), {"epoch": epoch, "objective": value})


def median(folder, repeats=False, **config):
    return MedianStopping(str(folder), MedianConfig(**config), 9, "max", repeats)


def hyperband(folder, max_epochs=9, repeats=False):
    config = HyperBandConfig(grace_epochs=1, reduction=3)
    return HyperBand(str(folder), config, max_epochs, "max", repeats)


def test_the_best_so_far_against_the_median_of_the_means(tmp_path, ledger):
    scheduler = median(tmp_path, min_trials=3, grace_epochs=2)
    for name, values in (("1", (0.0, 0.4)), ("2", (0.2, 0.6)), ("3", (0.6, 0.8))):  # means 0.2, 0.4, 0.7
        assert [report(scheduler, ledger, name, epoch, value) for epoch, value in enumerate(values, 1)] == [GO, GO]
    assert report(scheduler, ledger, "4", 1, 0.0) == GO  # before the grace ends
    assert report(scheduler, ledger, "4", 2, 0.41) == GO
    assert report(scheduler, ledger, "5", 1, 0.45) == GO
    assert report(scheduler, ledger, "5", 2, 0.1) == GO  # its best counts, not its last
    assert report(scheduler, ledger, "6", 2, 0.2) == STOP
    assert ledger.trials["6"].reason == "behind at epoch 2"
    restored = new_ledger(tmp_path)
    assert report(median(tmp_path), restored, "6", 2, 0.2) == STOP
    assert report(median(tmp_path), restored, "7", 2, 0.2) == STOP  # with the curves of before
    assert report(median(tmp_path), restored, "1", 9, 0.0) == GO  # after the last epoch


@dataclass(frozen=True)
class RayTrial:
    trial_id: str


@pytest.mark.parametrize("mode", ["max", "min"])
def test_same_decisions_as_the_median_rule_of_ray(tmp_path, mode):
    ledger = Ledger(tmp_path / "ledger.json", mode)
    share_ledger(tmp_path, ledger)
    scheduler = MedianStopping(str(tmp_path), MedianConfig(min_trials=3), 100, mode)
    reference = MedianStoppingRule(
        time_attr="epoch", metric="objective", mode=mode, grace_period=1, min_samples_required=3
    )
    controller = SimpleNamespace(get_live_trials=list)
    generator = np.random.default_rng(1)
    level, progress, decisions = generator.random(12), [0] * 12, []
    alive = list(range(12))
    for _ in range(120):
        index = int(generator.choice(alive))
        progress[index] += 1
        result = {"epoch": progress[index], "objective": float(level[index] + 0.3 * generator.random())}
        name = str(index)
        expected = reference.on_trial_result(controller, RayTrial(name), result)
        assert report(scheduler, ledger, name, result["epoch"], result["objective"]) == expected
        decisions.append(expected)
        if expected == STOP:
            alive.remove(index)
    assert 2 < decisions.count(STOP) < 12


def test_objectives_that_were_no_numbers_do_not_shift_the_median(tmp_path, ledger):
    scheduler = median(tmp_path, min_trials=2)
    for name, value in (("1", -np.inf), ("2", 0.4), ("3", 0.6)):
        assert report(scheduler, ledger, name, 1, value) == GO
    assert report(scheduler, ledger, "4", 1, 0.45) == STOP
    assert report(scheduler, ledger, "5", 1, -np.inf) == STOP


def test_repeats_follow_their_first_one(tmp_path, ledger):
    scheduler = median(tmp_path, repeats=True, min_trials=1)
    assert report(scheduler, ledger, "1s0", 1, 0.5) == GO
    assert report(scheduler, ledger, "2s1", 1, 0.9) == GO  # the first of this configuration that has started leads it
    assert report(scheduler, ledger, "2s0", 1, 0.0) == GO
    assert report(scheduler, ledger, "3s0", 1, 0.1) == STOP
    assert report(scheduler, ledger, "3s1", 1, 0.9) == STOP


def test_brackets_are_filled_in_proportion(tmp_path, ledger):
    scheduler = hyperband(tmp_path, max_epochs=9)  # rungs 1, 3: brackets with 2, 1 and 0 of them for 9, 4.5 and 3
    for index in range(33):
        report(scheduler, ledger, str(index), 1, 0.0)
    brackets = [record.bracket for record in ledger.trials.values()]
    assert [brackets.count(bracket) for bracket in range(3)] == [18, 9, 6]
    assert brackets[:5].count(0) == 3  # small sweeps too
    assert len(set(brackets[:5])) == 3


def test_trials_are_compared_within_their_bracket(tmp_path, ledger):
    scheduler = hyperband(tmp_path)
    ledger.start("0", {"optim.lr": 0.0}, "", tmp_path).bracket = 0
    ledger.start("1", {"optim.lr": 1.0}, "", tmp_path).bracket = 1
    ledger.start("2", {"optim.lr": 2.0}, "", tmp_path).bracket = 1
    ledger.start("3", {"optim.lr": 3.0}, "", tmp_path).bracket = 0
    ledger.start("4", {"optim.lr": 4.0}, "", tmp_path).bracket = 2
    assert report(scheduler, ledger, "0", 1, 0.9) == GO
    assert report(scheduler, ledger, "1", 1, 0.1) == GO  # its bracket has no rung here
    assert report(scheduler, ledger, "1", 3, 0.1) == GO
    assert report(scheduler, ledger, "2", 3, 0.0) == STOP
    assert report(scheduler, ledger, "3", 1, 0.5) == STOP
    assert report(scheduler, ledger, "4", 8, 0.0) == GO  # it trains to the end
    restored = new_ledger(tmp_path)
    assert [record.bracket for record in restored.trials.values()] == [0, 1, 1, 0, 2]
    assert report(hyperband(tmp_path), restored, "3", 1, 0.5) == STOP


@pytest.mark.parametrize("rule", ["median", "asha"])
def test_other_protocols_are_no_rivals(tmp_path, ledger, rule):
    asha = SuccessiveHalving(str(tmp_path), AshaConfig(), 9, "max")
    scheduler = asha if rule == "asha" else median(tmp_path, min_trials=1)

    def measured(name, value, protocol):
        trial, result = SimpleNamespace(trial_id=name), {"epoch": 1, "objective": value, "protocol": protocol}
        ledger.start(name, {"optim.lr": float(name)}, "", tmp_path)
        decision = scheduler.on_trial_result(None, trial, result)
        ledger.report(name, result)
        return decision

    assert [measured(name, 0.9, "coarse") for name in "012"] == [GO] * 3
    assert measured("3", 0.1, "fine") == GO
    assert measured("4", 0.1, "coarse") == STOP
    assert measured("5", 0.05, "fine") == STOP


def test_the_repeats_of_a_configuration_share_its_bracket(tmp_path, ledger):
    scheduler = hyperband(tmp_path, repeats=True)
    for name in ("0s0", "0s1", "1s0", "1s1", "2s0", "2s1", "3s0", "3s1", "4s0", "4s1"):
        report(scheduler, ledger, name, 1, 0.5)
    brackets = [record.bracket for record in ledger.trials.values()]
    assert brackets[::2] == brackets[1::2]
    assert len(set(brackets)) == 3


BASE = {"name": "x", "task": {"name": "bev_segmentation"}, "data": {"path": "d"}, "train": {"duration": "9 epochs"}}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("asha", SuccessiveHalving), ("hyperband", HyperBand), ("median", MedianStopping), ("none", type(None))],
)
def test_the_scheduler_that_is_named(tmp_path, name, kind):
    sweep = load_sweep({"space": {"optim.lr": {"uniform": [0.1, 1]}}, "scheduler": name})
    assert type(_early_stopping(SweepPlan("s", tmp_path, experiment_from(BASE), sweep, "d", None))) is kind


@pytest.mark.parametrize("name", ["hyperband", "median"])
def test_schedulers_need_epochs_and_one_budget(tmp_path, name):
    experiment = experiment_from({**BASE, "train": {"duration": "90 steps"}})
    space = {"train.duration": {"choice": ["1 epoch", "2 epochs"]}}
    sweep = load_sweep({"space": space, "scheduler": name})
    with pytest.raises(UserError, match=f"scheduler {name} compares trials by epochs.*instead of 90 steps"):
        _early_stopping(SweepPlan("s", tmp_path, experiment, sweep, "d", None))
    with pytest.raises(UserError, match=f"(?s)train.duration has one value for all trials.*scheduler {name}"):
        check_space(sweep, as_dict(experiment_from(BASE)), experiment_from)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"median": {"min_trials": 0}}, "greater than or equal to 1"),
        ({"hyperband": {"reduction": 1}}, "greater than 1"),
        ({"scheduler": "pbt"}, "'asha', 'hyperband', 'median' or 'none'"),
    ],
)
def test_faults_of_the_section(section, message):
    with pytest.raises(UserError, match=message):
        load_sweep({"space": {"a": {"uniform": [0, 1]}}, **section})


def test_one_bracket_is_asha(tmp_path, ledger):
    """The first bracket by itself decides as successive halving does."""
    plain = SuccessiveHalving(str(tmp_path), AshaConfig(grace_epochs=1, reduction=3), 27, "max")
    values = np.random.default_rng(0).random((20, 3))
    expected = [
        [report(plain, ledger, str(i), epoch, values[i, k]) for k, epoch in enumerate((1, 3, 9))] for i in range(20)
    ]
    other = tmp_path / "other"
    other.mkdir()
    ledger = new_ledger(other)
    for index in range(20):
        ledger.start(str(index), {"optim.lr": index}, "", other).bracket = 0
    banded = hyperband(other, max_epochs=27)
    found = [
        [report(banded, ledger, str(i), epoch, values[i, k]) for k, epoch in enumerate((1, 3, 9))] for i in range(20)
    ]
    assert found == expected
