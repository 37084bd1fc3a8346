"""Repeats of a configuration with several seeds: how they are proposed, compared, aggregated and restored."""

import json
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator

from sensorlab.cluster.halving import SuccessiveHalving
from sensorlab.cluster.ledger import Ledger, share_ledger
from sensorlab.cluster.monitor import SweepDriver
from sensorlab.cluster.search.propose import Proposal
from sensorlab.cluster.search.searcher import SweepSearch
from sensorlab.cluster.sweep_budget import SweepBudget
from sensorlab.cluster.sweep_config import AshaConfig, decode_values, load_sweep
from sensorlab.cluster.table import ranked_table, summary
from sensorlab.cluster.trial import TrialPlan
from sensorlab.errors import UserError
from sensorlab.report.read import expected_trials

SPACE = {"optim.lr": {"loguniform": [1e-4, 1.0]}, "task.image.size": {"choice": [[96, 176], [128, 224]]}}


def section(**changes):
    return load_sweep({"space": SPACE, "num_trials": 6, "seeds": 2, **changes})


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", "max")
    share_ledger(tmp_path, ledger)
    return ledger


def train(ledger, trial_id, values, curve, state="done", protocol=""):
    ledger.start(trial_id, values, "d", ledger.path.parent / trial_id)
    for epoch, value in enumerate(curve, start=1):
        ledger.report(trial_id, {"epoch": epoch, "objective": value, "protocol": protocol})
    ledger.end(trial_id, state)


def score(values):
    return 1.0 - abs(values["optim.lr"] - 0.01) + 0.01 * values.get("seed", 0)


def run(searcher, ledger, begin, end, prefix="t"):
    """One trial after another; returns what was proposed."""
    proposed = []
    for index in range(begin, end):
        values = decode_values(searcher.suggest(f"{prefix}{index}"))
        proposed.append(values)
        train(ledger, f"{prefix}{index}", values, [score(values)])
        searcher.on_trial_complete(f"{prefix}{index}", {"objective": score(values)})
    return proposed


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_every_configuration_is_tried_with_all_seeds(tmp_path, ledger, algorithm):
    searcher = SweepSearch(str(tmp_path), section(algorithm=algorithm, seeds=3), base_seed=5)
    proposed = run(searcher, ledger, 0, 18)
    for first in range(0, 18, 3):
        group = proposed[first : first + 3]
        assert [values["seed"] for values in group] == [5, 6, 7]
        assert len({json.dumps({**values, "seed": 0}) for values in group}) == 1
    assert len({values["optim.lr"] for values in proposed}) == 6


def test_grid_ends_by_itself_and_a_single_seed_is_not_set(tmp_path, ledger):
    space = {"a": {"choice": [1, 2]}, "b": {"choice": ["x", [1, 2]]}}
    searcher = SweepSearch(str(tmp_path), load_sweep({"space": space, "algorithm": "grid"}), base_seed=0)
    proposed = [decode_values(searcher.suggest(f"t{i}")) for i in range(4)]
    assert proposed == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 1, "b": [1, 2]}, {"a": 2, "b": [1, 2]}]
    assert searcher.suggest("t4") == "FINISHED"


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
@pytest.mark.parametrize("at", [5, 6])
def test_a_restored_search_proposes_what_the_uninterrupted_one_does(tmp_path, algorithm, at):
    """Through the wrappers that Tune puts around it, in the middle of a configuration and between two."""
    sweep = section(algorithm=algorithm)

    def wrapped(folder):
        ledger = Ledger(folder / "ledger.json", "max")
        share_ledger(folder, ledger)
        limited = ConcurrencyLimiter(SweepSearch(str(folder), sweep, base_seed=0), 2)
        return SearchGenerator(limited), limited, ledger

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, whole, ledger = wrapped(tmp_path / "a")
    expected = run(whole, ledger, 0, 12)
    generator, killed, ledger = wrapped(tmp_path / "b")
    assert run(killed, ledger, 0, at) == expected[:at]
    generator.save_to_dir(str(tmp_path / "b"), "session")
    generator, restored, ledger = wrapped(tmp_path / "b")  # the ledger is read from its file
    generator.restore_from_dir(str(tmp_path / "b"))
    assert run(restored, ledger, at, 12) == expected[at:]


def test_the_searcher_is_told_the_mean_once_all_seeds_have_ended(tmp_path, ledger):
    told = []

    class Listening:
        def propose(self, history):
            told.append([(outcome.state, outcome.value) for outcome in history])

    searcher = SweepSearch(str(tmp_path), section(), base_seed=0)
    for index, curve in enumerate([[0.2], [0.4], [0.9], [], [0.7], [0.1]]):
        values = decode_values(searcher.suggest(f"t{index}"))
        train(ledger, f"t{index}", values, curve, "failed" if not curve else "done")
    ledger.trials["t5"].state = "running"
    searcher._proposer = Listening()
    assert searcher.suggest("t6") == "FINISHED"
    [outcomes] = told
    assert outcomes[0] == ("complete", pytest.approx(0.3))
    assert outcomes[1] == ("complete", 0.9)  # the repeat that failed has no objective
    assert outcomes[2] == ("pending", None)
    for name in ("t0", "t1"):
        ledger.trials[name].state = "failed"
    searcher.suggest("t6")
    assert told[1][0] == ("failed", None)


def configurations(ledger, curves, **options):
    """Each configuration's repeats, by their objectives."""
    for position, objectives in enumerate(curves):
        for seed, value in enumerate(objectives):
            train(ledger, f"c{position}s{seed}", {"optim.lr": position + 1.0, "seed": seed}, [value], **options)


def test_configurations_rank_by_their_means(ledger):
    configurations(ledger, [[0.9, 0.1, 0.2], [0.5, 0.52, 0.51], [0.49, 0.53, 0.5]])
    lines = ranked_table(ledger, "val/iou").splitlines()
    assert lines[0].split() == ["rank", "trials", "val/iou", "±", "n", "lr", "epochs", "time", "status"]
    assert lines[2].split()[:7] == ["1", "#3", "#4", "#5", "0.51", "0.01", "3"]
    assert lines[2].endswith("3 done")
    assert lines[4].split()[:5] == ["3", "#0", "#1", "#2", "0.4"]  # it has the best trial, and not the best mean
    assert "best configuration: #3 #4 #5, val/iou 0.51 ± 0.01 (n = 3)" in lines
    assert any(line.startswith("NOT DISTINGUISHABLE from the next, #6 #7 #8") for line in lines)
    best = ledger.best()
    assert (best.number, best.objective) == (4, 0.52)  # the checkpoint to use: the best repeat of the best
    outcome = summary(ledger)
    assert outcome["best_configuration"]["distinguishable"] is False
    assert outcome["best_configuration"]["values"] == {"optim.lr": 2.0}
    assert outcome["best_configuration"]["mean"] == pytest.approx(0.51)
    assert json.loads(json.dumps(outcome)) == outcome


def test_a_clear_winner_is_called_one(ledger):
    configurations(ledger, [[0.9, 0.91, 0.92], [0.5, 0.51, 0.52]])
    train(ledger, "broken", {"optim.lr": 9.0, "seed": 0}, [], "failed")
    text = ranked_table(ledger, "val/iou")
    assert "it differs from the next, #3 #4 #5 (p = " in text
    assert summary(ledger)["best_configuration"]["distinguishable"] is True
    row = next(line.split() for line in text.splitlines() if " #6 " in line and line.endswith("failed"))
    assert row == ["-", "#6", "-", "-", "-", "9", "0", "0s", "failed"]


def test_single_trials_keep_their_table(ledger):
    configurations(ledger, [[0.9], [0.5]])
    assert ranked_table(ledger, "val/iou").split()[1] == "trial"
    assert summary(ledger)["best_configuration"]["distinguishable"] is None


class Mirror:
    """What the sweep's own run is told of its best trial."""

    def __init__(self):
        self.told = []

    def mirror_best(self, trial_id, run_id, metrics, step):
        self.told.append((trial_id, metrics["val/iou"]))


def test_the_report_of_one_repeat_can_make_another_one_the_best(tmp_path, ledger):
    mirror = Mirror()
    plan = TrialPlan({}, str(tmp_path), "d", True, 0, "max", None, None)
    driver = SweepDriver(plan, ledger, mirror, "val/iou", SweepBudget(section(), ledger))
    for name, lr, seed, value in (("a0", 1.0, 0, 0.5), ("b0", 2.0, 0, 0.9), ("b1", 2.0, 1, 0.3), ("a1", 1.0, 1, 0.8)):
        ledger.start(name, {"optim.lr": lr, "seed": seed}, "", tmp_path / name)
        report = {"epoch": 1, "objective": value, "metrics": {"val/iou": value}, "run_id": name}
        driver.take(name, report)
    # The means of b: 0.9, then 0.6; that of a: 0.5, then 0.65.
    assert mirror.told == [("a0", 0.5), ("b0", 0.9), ("a1", 0.8)]
    driver.take("b1", {"epoch": 2, "objective": 0.7, "metrics": {"val/iou": 0.7}, "run_id": "b1"})
    assert mirror.told[-1] == ("b1", 0.7)  # it has trained longer, so it stands alone for its configuration


def halving(tmp_path, seeds=2):
    return SuccessiveHalving(str(tmp_path), AshaConfig(grace_epochs=2, reduction=2), 9, "max", repeats=seeds > 1)


def step(scheduler, ledger, name, epoch, value):
    if name not in ledger.trials:
        configuration, seed = name.split("s")
        ledger.start(name, {"optim.lr": float(configuration), "seed": int(seed)}, "", ledger.path.parent)
    return scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), {"epoch": epoch, "objective": value})


def test_first_repeats_compete_and_the_others_follow(tmp_path, ledger):
    scheduler = halving(tmp_path)
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert step(scheduler, ledger, "1s0", 2, 0.8) == go
    assert step(scheduler, ledger, "1s1", 2, 0.99) == go  # not what later configurations are compared with
    assert step(scheduler, ledger, "2s0", 2, 0.9) == go
    assert step(scheduler, ledger, "2s1", 2, 0.0) == go  # a bad seed of a good configuration
    assert step(scheduler, ledger, "3s0", 1, 0.0) == go
    assert step(scheduler, ledger, "3s1", 3, 0.99) == go  # it has run ahead
    assert step(scheduler, ledger, "3s0", 2, 0.1) == stop
    assert step(scheduler, ledger, "3s1", 4, 0.99) == stop
    assert step(scheduler, ledger, "4s0", 2, 0.1) == stop
    assert step(scheduler, ledger, "4s1", 1, 0.99) == go
    assert step(scheduler, ledger, "4s1", 2, 0.99) == stop
    assert ledger.trials["4s1"].reason == "behind at epoch 2"


def test_the_next_repeat_leads_if_the_first_fails(tmp_path, ledger):
    scheduler = halving(tmp_path)
    assert step(scheduler, ledger, "1s0", 2, 0.8) == TrialScheduler.CONTINUE
    assert step(scheduler, ledger, "2s0", 1, 0.9) == TrialScheduler.CONTINUE
    ledger.trials["2s0"].state = "failed"
    assert step(scheduler, ledger, "2s1", 2, 0.1) == TrialScheduler.STOP


def test_a_driver_killed_at_a_decision_finds_it(tmp_path, ledger):
    scheduler = halving(tmp_path)
    step(scheduler, ledger, "1s0", 2, 0.8)
    assert step(scheduler, ledger, "2s0", 2, 0.1) == TrialScheduler.STOP
    restored = Ledger(ledger.path, "max")  # Tune has not ended the trial yet: it starts again and repeats its report
    share_ledger(tmp_path, restored)
    assert step(halving(tmp_path), restored, "2s0", 2, 0.1) == TrialScheduler.STOP
    assert step(halving(tmp_path), restored, "2s1", 2, 0.9) == TrialScheduler.STOP


def test_seeds_are_counted_and_not_searched_too():
    assert section().total_trials(None) == 12
    assert expected_trials({"num_trials": 6, "seeds": 2}) == 12
    assert expected_trials({"num_trials": 6, "seeds": "two"}) is None
    with pytest.raises(UserError, match=r"seed is searched, and sweep\.seeds=2 repeats"):
        load_sweep({"space": {"seed": {"choice": [1, 2]}}, "seeds": 2})
    with pytest.raises(UserError, match="greater than or equal to 1"):
        section(seeds=0)


def test_numbers_of_another_protocol_are_no_values_for_a_search(tmp_path, ledger):
    asked = []

    class Asked:
        def propose(self, history):
            asked.append([(outcome.state, outcome.value) for outcome in history])
            return Proposal({"optim.lr": 0.1 * (1 + len(history)), "task.image.size": [96, 176]})

    searcher = SweepSearch(str(tmp_path), section(seeds=1, num_trials=4), base_seed=5)
    searcher._proposer = Asked()
    for index, protocol in enumerate(["day", "night", "day"]):
        train(ledger, f"t{index}", decode_values(searcher.suggest(f"t{index}")), [0.1 * (1 + index)], protocol=protocol)
    searcher.suggest("t3")
    assert asked[-1] == [("complete", 0.1), ("failed", None), ("complete", pytest.approx(0.3))]
