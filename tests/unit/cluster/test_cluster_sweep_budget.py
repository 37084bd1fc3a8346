"""What a sweep may spend over all of its drivers, who is held when it is spent, and who goes on when there is more."""

import json
from pathlib import Path

import pytest

from sensorlab.cluster.files import STOPPED, write_json
from sensorlab.cluster.ledger import Ledger
from sensorlab.cluster.monitor import SweepDriver
from sensorlab.cluster.sweep_budget import SAVE_S, SweepBudget, epochs_trained, reopen
from sensorlab.cluster.sweep_config import load_sweep, with_more
from sensorlab.cluster.table import ranked_table
from sensorlab.cluster.trial import TrialPlan
from sensorlab.errors import UserError
from sensorlab.report.ranking import FORK
from sensorlab.report.read import read_sweep

SPACE = {"optim.lr": {"loguniform": [1e-4, 1.0]}}


def section(**changes):
    return load_sweep({"space": SPACE, **changes})


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.json", "max")


def reported(ledger, name, epoch, values=None, state=None):
    if name not in ledger.trials:
        run_dir = ledger.path.parent / "trials" / name
        (run_dir / "checkpoints").mkdir(parents=True)
        ledger.start(name, values or {"optim.lr": 0.1 * (1 + len(ledger.trials))}, "d", run_dir)
    ledger.report(name, {"epoch": epoch, "objective": epoch / 10})
    if state is not None:
        ledger.end(name, state, "behind at epoch 1" if state == "stopped" else "")
    return ledger.trials[name]


def driver_of(ledger, **changes):
    plan = TrialPlan({}, str(ledger.path.parent), "d", True, 0, "max", None, None)
    return SweepDriver(plan, ledger, None, "val/iou", SweepBudget(section(**changes), ledger, Clock()))


def test_time_adds_up_over_drivers_and_survives_their_death(ledger):
    clock, saved = Clock(), lambda: json.loads(ledger.path.read_text())["seconds"]
    budget = SweepBudget(section(time_budget_s=10), ledger, clock)
    for _ in range(40):
        clock.now += 0.1
        budget.tick()
    assert ledger.seconds == pytest.approx(4.0)
    assert ledger.seconds - SAVE_S <= saved() <= ledger.seconds  # what a driver that is killed now leaves
    budget.tick(save=True)
    assert saved() == pytest.approx(4.0)
    assert not budget.spent
    resumed = Ledger(ledger.path, "max")
    clock.now = 5000.0  # the machine was off
    budget = SweepBudget(section(time_budget_s=10), resumed, clock)
    clock.now += 5.5
    budget.tick()
    assert resumed.seconds == pytest.approx(9.5)
    assert not budget.spent
    clock.now += 0.5
    budget.tick()
    assert budget.spent == "time budget reached"
    assert budget.describe() == "10 of 10 s (sweep.time_budget_s)"


def test_epochs_of_all_trials_count_once(ledger):
    reported(ledger, "a", 4)
    reported(ledger, "a", 4)  # again, after a restart
    failed = reported(ledger, "b", 3)
    failed.state = "failed"
    assert epochs_trained(ledger) == 7
    fork = {"optim.lr": 0.2, FORK: str(ledger.path.parent / "trials" / "a" / "checkpoints" / "step-40")}
    child = reported(ledger, "c", 6, fork)
    assert child.forked_from == "a"
    assert epochs_trained(ledger) == 9  # two of its six are its own
    ledger.start("d", fork, "", ledger.path.parent / "trials" / "d")
    assert epochs_trained(ledger) == 9  # it has not come as far as where it began
    budget = SweepBudget(section(epoch_budget=10), ledger)
    assert not budget.spent
    assert budget.is_out_of_epochs(more=1)
    reported(ledger, "b", 4)
    assert budget.spent == "epoch budget reached"
    assert budget.describe() == "10 of 10 epochs (sweep.epoch_budget)"


def test_no_limit_is_none(ledger):
    budget = SweepBudget(section(), ledger)
    reported(ledger, "a", 10**6)
    ledger.seconds = 1e9
    assert not budget.spent
    assert budget.describe() == ""


def report_of(epoch, finished=False):
    return {"epoch": epoch, "objective": 0.1, "finished": finished}


def test_running_trials_are_held_at_their_next_report(ledger):
    driver = driver_of(ledger, epoch_budget=6)
    reported(ledger, "a", 2)
    reported(ledger, "b", 2)
    assert not driver.holds("a", report_of(3))
    ledger.report("a", report_of(3))
    assert driver.ending() == ""
    assert driver.holds("b", report_of(3))  # the sixth epoch
    ledger.report("b", report_of(3))
    assert driver.budget.spent
    assert driver.ending() == ""  # the other one is in its epoch
    assert driver.holds("a", report_of(4))
    ledger.report("a", report_of(4))
    assert driver.ending() == "epoch budget reached"
    assert ledger.ended == "epoch budget reached"


def test_the_last_epoch_of_a_trial_ends_it_as_ever(ledger):
    driver = driver_of(ledger, epoch_budget=3)
    reported(ledger, "a", 2)
    assert not driver.holds("a", report_of(3, finished=True))
    ledger.report("a", report_of(3))
    assert driver.ending() == ""  # it saves its last checkpoint
    ledger.end("a", "done")
    assert driver.ending() == "epoch budget reached"


def test_a_held_trial_that_starts_again_is_held_again(ledger):
    driver = driver_of(ledger, epoch_budget=3)
    reported(ledger, "a", 2)
    assert driver.holds("a", report_of(3))
    ledger.report("a", report_of(3))
    driver.crashed("a", {}, "its process died", restarts=True)
    driver._held.discard("a")  # what its new start does
    ledger.start("a", {}, "", ledger.path.parent / "a")
    assert driver.ending() == ""
    assert driver.holds("a", report_of(3))  # it reports again where it is
    assert driver.ending() == "epoch budget reached"


def test_time_ends_running_trials_at_once(ledger):
    driver = driver_of(ledger, time_budget_s=5)
    reported(ledger, "a", 2)
    assert driver.ending() == ""
    driver.budget._clock.now += 6
    assert driver.ending() == "time budget reached"


def test_an_objective_that_is_not_reported_ends_the_sweep_at_once(ledger):
    driver = driver_of(ledger)
    reported(ledger, "a", 0)
    reported(ledger, "b", 0)
    fault = "eval.metric=val/iou is not reported; the task reports val/loss, val/miou"
    assert driver.check("a", {"epoch": 0, "failed": fault})
    assert driver.ending() == "sweep.objective=val/iou is not reported; the task reports val/loss, val/miou"


def test_what_a_scheduler_stopped_stays_stopped(ledger):
    write_json(Path(reported(ledger, "judged", 1, state="stopped").run_dir) / STOPPED, {})
    reported(ledger, "cut", 2)
    ledger.ended = "epoch budget reached"
    ledger.end("cut", "stopped", ledger.ended)
    reported(ledger, "done", 3, state="done")
    assert ranked_table(ledger, "val/iou").count("stopped, epoch budget reached") == 1
    reopen(ledger)
    restored = Ledger(ledger.path, "max")
    states = {name: record.state for name, record in restored.trials.items()}
    assert states == {"judged": "stopped", "cut": "interrupted", "done": "done"}
    assert restored.ended == restored.trials["cut"].reason == ""
    assert "budget" not in ranked_table(restored, "val/iou")


def test_the_table_says_it_of_repeats_too(ledger):
    reported(ledger, "a", 2, {"optim.lr": 0.1, "seed": 0}, state="done")
    reported(ledger, "b", 1, {"optim.lr": 0.1, "seed": 1})
    ledger.ended = "time budget reached"
    ledger.end("b", "stopped", ledger.ended)
    assert "1 done, 1 stopped, time budget reached" in ranked_table(ledger, "val/iou")


def test_a_report_says_what_ended_the_sweep(ledger):
    write_json(ledger.path.parent / "sweep.json", {"name": "s", "sweep": {"num_trials": 1}})
    reported(ledger, "a", 2)
    ledger.ended = "time budget reached"
    ledger.end("a", "stopped", ledger.ended)
    sweep = read_sweep(ledger.path.parent, ended=True)
    assert (sweep.status, sweep.ended) == ("ended early", "time budget reached")
    assert sweep.trials[0].reason == "time budget reached"


def test_what_a_resumed_sweep_may_be_given():
    sweep = section(num_trials=4, time_budget_s=60, algorithm="optuna")
    more = with_more(sweep, ["sweep.time_budget_s=120", "sweep.epoch_budget=50", "sweep.num_trials=9"])
    assert (more.time_budget_s, more.epoch_budget, more.num_trials) == (120, 50, 9)
    assert more.space == sweep.space
    assert with_more(sweep, []) == sweep
    assert with_more(sweep, ["sweep.time_budget_s=null"]).time_budget_s is None


@pytest.mark.parametrize(
    ("changes", "override", "message"),
    [
        ({}, "optim.lr=0.1", "optim.lr=0.1: --resume goes on with the sweep as it was started.*sweep.epoch_budget"),
        ({}, "sweep.seed=1", "sweep.seed=1: --resume goes on"),
        ({}, "sweep.space.optim.lr=null", "--resume goes on"),
        ({}, "sweep={num_trials: 9}", "--resume goes on"),
        ({}, "sweep.num_trials", "expected key=value"),
        ({}, "sweep.num_trials=3", "it was 8: what has been proposed stays.*sweep.epoch_budget"),
        ({}, "sweep.num_trials=many", "num_trials: .*integer"),
        ({}, "sweep.epoch_budget=0", "greater than or equal to 1"),
        ({"algorithm": "grid", "space": {"a": {"choice": [1]}}}, "sweep.num_trials=9", "a grid runs every combination"),
        ({"algorithm": "pbt", "scheduler": "none"}, "sweep.num_trials=9", "the size of the population"),
        ({"fidelity": {"key": "a", "values": [1, 2]}}, "sweep.num_trials=9", "how many configurations are promoted"),
    ],
)
def test_what_it_may_not_be_given(changes, override, message):
    with pytest.raises(UserError, match=rf"(?s){message}"):
        with_more(section(**changes), [override])
