"""Successive halving: the decisions of Ray's scheduler, with a state that survives the driver."""

from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from sensorlab.cluster.halving import SuccessiveHalving, rung_epochs, survives
from sensorlab.cluster.ledger import Ledger, share_ledger
from sensorlab.cluster.sweep_config import AshaConfig


def test_rungs_end_before_the_last_epoch():
    assert rung_epochs(AshaConfig(grace_epochs=1, reduction=3), 10) == [1, 3, 9]
    assert rung_epochs(AshaConfig(grace_epochs=1, reduction=3), 9) == [1, 3]
    assert rung_epochs(AshaConfig(grace_epochs=2, reduction=2), 9) == [2, 4, 8]
    assert rung_epochs(AshaConfig(grace_epochs=5, reduction=2), 5) == []


def test_the_first_survives_and_the_mode_counts():
    assert survives(0.1, [], 2, "max")
    assert not survives(0.1, [0.2, 0.3], 2, "max")
    assert survives(0.1, [0.2, 0.3], 2, "min")


@pytest.mark.parametrize(("mode", "worst"), [("max", -np.inf), ("min", np.inf)])
@pytest.mark.parametrize("reduction", [2.0, 3.0, 4.0])
def test_objectives_that_were_no_numbers_stop_nobody_and_do_not_survive_themselves(mode, worst, reduction):
    for others in ([worst], [worst, worst], [worst] * 5, [worst] * 5 + [0.3]):
        assert survives(0.5, others, reduction, mode), others
    assert not survives(worst, [0.2], reduction, mode)
    assert not survives(worst, [worst] * 5 + [0.2], reduction, mode)
    assert survives(worst, [], reduction, mode)


def ours(tmp_path, mode="max", **config):
    ledger = Ledger(tmp_path / "ledger.json", mode)
    share_ledger(tmp_path, ledger)
    return SuccessiveHalving(str(tmp_path), AshaConfig(**config), 27, mode), ledger


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("reduction", [2.0, 3.0])
def test_same_decisions_as_ray(tmp_path, mode, reduction):
    scheduler, ledger = ours(tmp_path, mode, grace_epochs=1, reduction=reduction)
    reference = AsyncHyperBandScheduler(
        time_attr="epoch", metric="objective", mode=mode, max_t=27, grace_period=1, reduction_factor=reduction
    )
    generator = np.random.default_rng(0)
    stopped, decisions = set(), 0
    trials = [SimpleNamespace(trial_id=f"t{i}") for i in range(30)]
    for trial in trials:
        ledger.start(trial.trial_id, {}, "", tmp_path)
        reference.on_trial_add(None, trial)
    progress = dict.fromkeys((t.trial_id for t in trials), 0)
    while True:  # trials advance in a random order, as they do when several run at a time
        alive = [t for t in trials if t.trial_id not in stopped and progress[t.trial_id] < 26]
        if not alive:
            break
        trial = alive[generator.integers(len(alive))]
        progress[trial.trial_id] += 1
        result = {"epoch": progress[trial.trial_id], "objective": float(generator.random())}
        decision = scheduler.on_trial_result(None, trial, result)
        assert decision == reference.on_trial_result(None, trial, result)
        decisions += 1
        if decision == TrialScheduler.STOP:
            stopped.add(trial.trial_id)
    assert 10 < len(stopped) < 30
    assert decisions > 50


def test_a_restored_driver_decides_with_what_was_seen(tmp_path):
    scheduler, ledger = ours(tmp_path, grace_epochs=2, reduction=2)
    for name, value in (("good", 0.9), ("better", 0.95)):
        ledger.start(name, {}, "", tmp_path)
        scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), {"epoch": 2, "objective": value})
    restored, ledger = ours(tmp_path, grace_epochs=2, reduction=2)
    ledger.start("bad", {}, "", tmp_path)
    bad = SimpleNamespace(trial_id="bad")
    assert restored.on_trial_result(None, bad, {"epoch": 2, "objective": 0.1}) == TrialScheduler.STOP
    assert ledger.trials["bad"].reason == "behind at epoch 2"
    # A trial that starts again repeats a report; its rung was decided before.
    good = SimpleNamespace(trial_id="good")
    assert restored.on_trial_result(None, good, {"epoch": 2, "objective": 0.0}) == TrialScheduler.CONTINUE
