"""Promotions along a key of the experiment: what is proposed, what is ranked, what is shown, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sensorlab.cluster.files import RESULT
from sensorlab.cluster.ledger import Ledger, share_ledger
from sensorlab.cluster.monitor import SweepDriver
from sensorlab.cluster.search.propose import WAIT, Outcome, Proposal, new_proposer
from sensorlab.cluster.search.searcher import SweepSearch
from sensorlab.cluster.sweep_check import check_space
from sensorlab.cluster.sweep_config import decode_values, load_sweep
from sensorlab.cluster.table import failures, ranked_table, summary
from sensorlab.cluster.trial import TrialPlan
from sensorlab.config import as_dict
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from
from sensorlab.runs.tags import FIDELITY_TAG

KEY, VALUES = "data.train_fraction", [0.1, 0.3, 1.0]
SPACE = {"optim.lr": {"loguniform": [1e-4, 1.0]}, "task.image.size": {"choice": [[96, 176], [128, 224]]}}
BASE = as_dict(
    experiment_from(
        {
            "name": "toy",
            "task": {"name": "bev_segmentation"},
            "data": {"path": "d"},
            "train": {"duration": "6 epochs"},
        }
    )
)


def sweep_of(**changes: Any):
    section = {"space": SPACE, "num_trials": 9, "fidelity": {"key": KEY, "values": VALUES}, **changes}
    return load_sweep(section)


def quality(proposal: Proposal) -> float:
    return 1.0 - abs(float(np.log10(proposal.values["optim.lr"])) + 2.0)


def run(sweep, history: list[Outcome], value=quality) -> list[Outcome]:
    """``history`` with all that a sweep of one trial at a time adds to it."""
    proposer, history = new_proposer(sweep), list(history)
    while (proposal := proposer.propose(history)) is not None:
        assert proposal != WAIT
        found = value(proposal)
        history.append(Outcome(proposal, "failed" if found is None else "complete", found))
    return history


def levels(history: list[Outcome], key: str = KEY) -> list[Any]:
    return [outcome.proposal.assigned[key] for outcome in history]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("algorithm", ["random", "optuna", "evolution"])
def test_the_best_of_each_level_run_again_at_the_next(algorithm, mode):
    history = run(sweep_of(algorithm=algorithm, mode=mode), [])
    assert levels(history) == [0.1] * 9 + [0.3] * 3 + [1.0]
    sign = -1.0 if mode == "max" else 1.0
    for begin, end, promoted in ((0, 9, history[9:12]), (9, 12, history[12:])):
        best = sorted(history[begin:end], key=lambda outcome: sign * outcome.value)[: len(promoted)]
        assert [dict(outcome.proposal.values) for outcome in promoted] == [dict(o.proposal.values) for o in best]
    assert all(outcome.proposal.parent is None for outcome in history)  # each level trains from nothing


@pytest.mark.parametrize("algorithm", ["random", "optuna", "evolution", "cmaes"])
def test_the_algorithm_sees_the_cheapest_level_alone(algorithm):
    space = {"optim.lr": {"loguniform": [1e-4, 1.0]}, "optim.weight_decay": {"loguniform": [1e-4, 1.0]}}
    plain = load_sweep({"space": space, "num_trials": 9, "algorithm": algorithm})
    proposer, alone = new_proposer(plain), []
    for _ in range(9):
        proposal = proposer.propose(alone)
        alone.append(Outcome(proposal, "complete", quality(proposal)))
    history = run(sweep_of(space=space, algorithm=algorithm), [])
    for mine, other in zip(history[:9], alone, strict=True):
        assert (mine.proposal.values, mine.proposal.notes) == (other.proposal.values, other.proposal.notes)


def test_a_level_waits_until_the_one_below_has_ended():
    sweep = sweep_of()
    whole, proposer = run(sweep, []), new_proposer(sweep)
    pending = Outcome(whole[4].proposal, "pending")
    assert proposer.propose([*whole[:4], pending, *whole[5:8]]) == whole[8].proposal  # the algorithm does not wait
    assert proposer.propose([*whole[:4], pending, *whole[5:9]]) == WAIT
    # Two at a time at level 1; the third begins while they train.
    training = [Outcome(outcome.proposal, "pending") for outcome in whole[9:11]]
    assert proposer.propose([*whole[:9], *training]) == whole[11].proposal
    assert proposer.propose([*whole[:9], *training, whole[11]]) == WAIT


def test_proposals_are_a_function_of_the_history():
    for algorithm in ("random", "optuna", "evolution"):
        sweep = sweep_of(algorithm=algorithm)
        whole = run(sweep, [])
        for position in range(len(whole)):
            assert new_proposer(sweep).propose(whole[:position]) == whole[position].proposal
        assert new_proposer(sweep).propose(whole) is None


def test_of_equal_ones_the_earliest_goes_on():
    history = run(sweep_of(), [], value=lambda proposal: 0.5)
    assert [o.proposal.values for o in history[9:]] == [history[i].proposal.values for i in (0, 1, 2, 0)]


def test_failures_leave_fewer_to_promote():
    values = iter([None, None, 0.3, None, None, 0.5, None, None, None, 0.1, None, 0.9])
    history = run(sweep_of(), [], value=lambda proposal: next(values))
    assert levels(history) == [0.1] * 9 + [0.3] * 2 + [1.0]
    promoted = [outcome.proposal.values for outcome in history[9:]]
    assert promoted == [history[i].proposal.values for i in (5, 2, 5)]
    # Nothing was measured at a level.
    assert levels(run(sweep_of(), [], value=lambda proposal: None)) == [0.1] * 9
    values = iter([0.5] * 9 + [None] * 3)
    assert levels(run(sweep_of(), [], value=lambda proposal: next(values))) == [0.1] * 9 + [0.3] * 3


def test_a_trial_that_a_resumed_sweep_tries_again_may_add_a_promotion():
    values = iter([None] * 7 + [0.5, 0.4] + [0.6, 0.2])
    history = run(sweep_of(asha={"reduction": 3}), [], value=lambda proposal: next(values, 0.1))
    assert levels(history) == [0.1] * 9 + [0.3] * 2 + [1.0]
    history = history[:11]
    history[0] = Outcome(history[0].proposal, "pending")
    assert new_proposer(sweep_of()).propose(history) == WAIT
    history[0] = Outcome(history[0].proposal, "complete", 0.9)
    again = new_proposer(sweep_of()).propose(history)
    assert again.values == history[0].proposal.values
    assert again.assigned == {KEY: 0.3}


@pytest.mark.parametrize("algorithm", ["random", "optuna", "evolution"])
def test_a_resumed_sweep_with_more_trials_fills_the_cheapest_level_first(algorithm):
    whole = run(sweep_of(algorithm=algorithm, num_trials=9), [])
    fewer = run(sweep_of(algorithm=algorithm, num_trials=6), [])
    proposals = [outcome.proposal for outcome in run(sweep_of(algorithm=algorithm, num_trials=9), fewer)]
    assert proposals[:9] == [outcome.proposal for outcome in fewer]  # levels of 6, 2 and 1
    added = [outcome.proposal for outcome in whole[6:9]]
    assert proposals[9:12] == added  # the algorithm goes on with what it had seen of its own level
    best = sorted({proposal.values["optim.lr"] for proposal in proposals[:12]}, key=lambda lr: abs(np.log10(lr) + 2.0))
    assert {p.values["optim.lr"] for p in proposals if p.assigned[KEY] == 0.3} >= set(best[:2])
    assert len(proposals) <= 13 + 1


def test_equal_configurations_are_promoted_once():
    space = {"optim.lr": {"choice": [1e-3, 1e-2]}}
    history = run(sweep_of(space=space, num_trials=12), [])
    drawn = [outcome.proposal.values["optim.lr"] for outcome in history]
    assert sorted(set(drawn[:12])) == [1e-3, 1e-2]
    assert drawn[12:] == [1e-2, 1e-3, 1e-2]  # 4 survivors of 12, but there are only two
    assert levels(history)[12:] == [0.3, 0.3, 1.0]


def test_a_grid_with_levels():
    space = {"optim.lr": {"choice": [1e-4, 1e-3, 1e-2, 1e-1]}, "seed": {"choice": [1, 2]}}
    sweep = sweep_of(space=space, algorithm="grid", asha={"reduction": 2})
    history = run(sweep, [])
    assert levels(history) == [0.1] * 8 + [0.3] * 4 + [1.0] * 2
    assert sweep.level_sizes == [8, 4, 2]
    assert sweep.total_trials(None) == 14


@pytest.mark.parametrize(
    ("count", "reduction", "sizes"), [(9, 3, [9, 3, 1]), (8, 3, [8, 2, 1]), (2, 4, [2, 1, 1]), (20, 1.5, [20, 13, 8])]
)
def test_sizes_of_levels(count, reduction, sizes):
    sweep = sweep_of(num_trials=count, asha={"reduction": reduction}, seeds=2)
    assert sweep.level_sizes == sizes
    assert sweep.total_trials(6) == 2 * sum(sizes)
    history = run(sweep, [])
    assert [levels(history).count(value) for value in VALUES] == sizes
    assert not sweep.stops_early


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", "max")
    share_ledger(tmp_path, ledger)
    return ledger


def train(ledger, sweep, trial_id, values, objective, state="done", protocol="", epoch=6):
    record = ledger.start(trial_id, values, "d", ledger.path.parent / trial_id)
    record.fidelity = sweep.fidelity.level(values)
    if objective is not None:
        metrics = {"val/iou": objective}
        ledger.report(trial_id, {"epoch": epoch, "objective": objective, "metrics": metrics, "protocol": protocol})
    if state != "running":
        ledger.end(trial_id, state)
    return record


def score(values: dict[str, Any]) -> float:
    return 1.0 - abs(float(np.log10(values["optim.lr"])) + 2.0) + 0.01 * values.get("seed", 0)


@pytest.mark.parametrize("size", [1, 2])
def test_a_search_restored_at_any_position_goes_on_alike(tmp_path, size):
    """Both seeds of each promotion; the values of the fidelity are lists, which travel as text."""
    key, values = "task.lidar.size", [[64, 112], [96, 176]]
    sweep = sweep_of(
        space={"optim.lr": SPACE["optim.lr"]}, num_trials=4, seeds=size, fidelity={"key": key, "values": values}
    )

    def searcher(folder):
        folder.mkdir(exist_ok=True)
        ledger = Ledger(folder / "ledger.json", "max")
        share_ledger(folder, ledger)
        return SweepSearch(str(folder), sweep, 7), ledger

    def go_on(search, ledger, begin, end):
        proposed = []
        for index in range(begin, end):
            sampled = search.suggest(f"t{index}")
            if sampled == "FINISHED":
                break
            assert sampled[key].startswith("json:")  # Tune takes mappings for nested parameters
            proposed.append(decode_values(sampled))
            train(ledger, sweep, f"t{index}", proposed[-1], score(proposed[-1]))
        return proposed

    expected = go_on(*searcher(tmp_path / "whole"), 0, 99)
    assert [values[key] for values in expected] == [[64, 112]] * 4 * size + [[96, 176]] * size
    assert [values.get("seed") for values in expected] == ([7, 8] * 5 if size == 2 else [None] * 5)
    for at in range(len(expected) + 1):
        folder = tmp_path / f"killed-{at}"
        search, ledger = searcher(folder)
        assert go_on(search, ledger, 0, at) == expected[:at]
        search.save(str(folder / "search"))
        restored, ledger = searcher(folder)
        restored.restore(str(folder / "search"))
        assert go_on(restored, ledger, at, 99) == expected[at:]
        assert ledger.is_exhausted


def test_the_search_waits_for_running_trials_and_counts_all_seeds(tmp_path, ledger):
    sweep = sweep_of(space={"optim.lr": SPACE["optim.lr"]}, num_trials=3, seeds=2)
    search = SweepSearch(str(tmp_path), sweep, 0)
    for index in range(6):
        values = decode_values(search.suggest(f"t{index}"))
        train(ledger, sweep, f"t{index}", values, 0.1 * (index % 5), "done" if index < 5 else "running")
    assert search.suggest("t6") is None
    assert not ledger.is_exhausted
    ledger.end("t5", "done")
    # Means: 0.05, 0.25 and 0.2: the second configuration goes on with both of its seeds.
    second = ledger.trials["t2"].values["optim.lr"]
    again = [decode_values(search.suggest(name)) for name in ("t6", "t7")]
    assert again == [{"optim.lr": second, KEY: 0.3, "seed": seed} for seed in (0, 1)]


def fill(ledger, sweep, rows):
    for index, (level, lr, objective, *more) in enumerate(rows):
        options = dict(more[0]) if more else {}
        values = {"optim.lr": lr, KEY: VALUES[level], **options.pop("values", {})}
        train(ledger, sweep, f"t{index}", values, objective, **options)


def test_the_best_is_of_the_highest_level_that_was_trained_to_its_end(ledger):
    sweep = sweep_of()
    running = {"state": "running", "epoch": 1}
    fill(ledger, sweep, [(0, 1.0, 0.9), (0, 2.0, 0.8), (0, 3.0, 0.7), (1, 1.0, 0.2, running)])
    assert ledger.best().trial_id == "t0"  # level 1 has begun
    ledger.end("t3", "done")
    assert ledger.best().trial_id == "t3"  # whatever the level below has
    train(ledger, sweep, "t4", {"optim.lr": 2.0, KEY: 0.3}, 0.3)
    assert ledger.best().trial_id == "t4"
    assert [record.number for record in ledger.ranked()] == [4, 3, 0, 1, 2]
    train(ledger, sweep, "t5", {"optim.lr": 2.0, KEY: 1.0}, None, "failed")
    assert ledger.best().trial_id == "t4"
    outcome = summary(ledger)
    assert outcome["best"]["values"] == outcome["best_configuration"]["values"] == {"optim.lr": 2.0, KEY: 0.3}
    assert json.loads(json.dumps(outcome)) == outcome


class Mirror:
    """What the tracking store is told."""

    def __init__(self):
        self.best, self.tags = [], {}

    def child(self, trial_id, name, params, log_scaled, tags):
        self.tags[trial_id] = tags
        return trial_id

    def mirror_best(self, trial_id, run_id, metrics, step):
        self.best.append((trial_id, metrics["val/iou"]))


def test_the_driver_notes_levels_and_mirrors_the_best_of_the_one_that_counts(tmp_path, ledger):
    mirror = Mirror()
    plan = TrialPlan(BASE, str(tmp_path), "d", True, 0, "max", None, None)
    driver = SweepDriver(plan, ledger, mirror, "val/iou", budget=None, fidelity=sweep_of().fidelity)

    def begin(name, level, lr):
        driver.order(name, {"optim.lr": lr, KEY: VALUES[level]})

    def report(name, epoch, value):
        driver.take(name, {"epoch": epoch, "objective": value, "metrics": {"val/iou": value}, "run_id": name})

    def end(name):
        (tmp_path / "trials" / name / RESULT).write_text("{}")
        driver.ended(name)

    begin("a", 0, 0.1)
    report("a", 1, 0.8)
    end("a")
    begin("b", 1, 0.1)
    report("b", 1, 0.2)
    report("b", 2, 0.3)
    assert mirror.best == [("a", 0.8)]
    end("b")
    assert mirror.best == [("a", 0.8), ("b", 0.3)]
    begin("c", 1, 0.2)
    report("c", 1, 0.5)
    assert mirror.best[-1] == ("c", 0.5)
    driver.crashed("c", {}, "boom", restarts=False)
    assert mirror.best[-1] == ("b", 0.3)
    assert [record.fidelity for record in Ledger(ledger.path, "max").trials.values()] == [0, 1, 1]
    assert mirror.tags == {name: {FIDELITY_TAG: level} for name, level in (("a", "0"), ("b", "1"), ("c", "1"))}


def test_a_sweep_that_was_stopped_early_has_a_best(ledger):
    stopped = {"state": "stopped", "epoch": 1}
    fill(ledger, sweep_of(), [(0, 1.0, 0.2, stopped), (0, 2.0, 0.3, stopped)])
    assert ledger.best().trial_id == "t1"


def test_protocols_are_counted_within_a_level(ledger):
    """A fidelity may change what is measured; then the cheapest level has the protocol of most trials."""
    rows = [(0, float(lr), 0.9, {"protocol": "small"}) for lr in range(1, 5)]
    rows += [(1, 1.0, 0.3, {"protocol": "large"}), (1, 2.0, 0.4, {"protocol": "large"})]
    fill(ledger, sweep_of(), [*rows, (1, 3.0, 0.99, {"protocol": "odd"})])
    assert ledger.best().trial_id == "t5"
    assert [record.number for record in ledger.ranked()] == [5, 4, 0, 1, 2, 3, 6]
    assert failures(ledger) == ["#6 is not ranked: its objective follows another protocol than most"]


def test_the_table_ranks_the_highest_level_and_lists_the_others(ledger):
    sweep = sweep_of()
    rows = [(0, 1.0, 0.9), (0, 2.0, 0.8), (0, 3.0, 0.7), (0, 4.0, None, {"state": "failed"})]
    fill(ledger, sweep, [*rows, (1, 1.0, 0.2), (1, 2.0, 0.3), (2, 2.0, 0.1)])
    lines = ranked_table(ledger, "val/iou", sweep.fidelity).splitlines()
    assert lines[0].split() == ["rank", "trial", "val/iou", "train_fraction", "lr", "epochs", "time", "status"]
    shown = [line.split() for line in lines[2:9]]
    assert [row[:5] for row in shown] == [
        ["1", "#6", "0.1", "1", "2"],
        ["-", "#5", "0.3", "0.3", "2"],
        ["-", "#4", "0.2", "0.3", "1"],
        ["-", "#0", "0.9", "0.1", "1"],
        ["-", "#1", "0.8", "0.1", "2"],
        ["-", "#2", "0.7", "0.1", "3"],
        ["-", "#3", "-", "0.1", "4"],
    ]
    fates = [" ".join(row[7:]) for row in shown]
    lower = ["done, promoted", "done, not promoted", "done, promoted", "done, promoted", "done, not promoted"]
    assert fates == ["done", *lower, "failed"]
    assert lines[-1] == "ranked are the trials with data.train_fraction=1, with which the others do not compare"


def test_the_table_of_repeats_has_levels_too(ledger):
    sweep = sweep_of(seeds=2)
    seeds = [{"values": {"seed": seed}} for seed in (0, 1)]
    rows = [(0, lr, value, seed) for lr, value in ((1.0, 0.9), (2.0, 0.7)) for seed in seeds]
    fill(ledger, sweep, [*rows, (1, 1.0, 0.2, seeds[0])])
    lines = ranked_table(ledger, "val/iou", sweep.fidelity).splitlines()
    shown = [line.split() for line in lines[2:5]]
    assert [row[0] for row in shown] == ["1", "-", "-"]
    assert [" ".join(row[-3:]) for row in shown[1:]] == ["2 done, promoted", "done, not promoted"]
    assert "best configuration: #4, val/iou 0.2 (n = 1)" in lines


@pytest.mark.parametrize(
    ("fidelity", "message"),
    [
        ({"key": "data.train_fractoin", "values": [0.1, 1.0]}, "did you mean 'train_fraction'"),
        ({"key": KEY, "values": [0.0, 1.0]}, r"the value 0\.0 does not fit"),
        ({"key": "task.image.size", "values": [[96, 176], [96, 177]]}, r"the value \[96, 177\] does not fit.*of 16"),
        ({"key": "task.lidar.sweeps", "values": ["1", 3]}, "the value '1' does not fit"),
        ({"key": "seed", "values": [0, 1]}, "seed has one value for all trials, because it is what repeats"),
        ({"key": "data.threads", "values": [1, 2]}, "data.threads has one value.*does not change what is trained"),
        ({"key": "data", "values": [{"prefetch": 1}, {"prefetch": 2}]}, r"it sets data\.prefetch"),
        ({"key": "resources.num_workers", "values": [1, 2]}, "resources has one value.*reserved"),
        ({"key": "train.until", "values": ["1 epochs", "2 epochs"]}, "train.until has one value.*divides trainings"),
        ({"key": KEY, "values": [0.1, 0.1]}, "lists a value twice"),
        ({"key": KEY, "values": [0.1]}, "at least 2 items"),
        ({"key": "optim.lr", "values": [0.1, 0.2]}, "optim.lr cannot have levels, since optim.lr is searched"),
        ({"key": "task.image", "values": [{"size": [96, 176]}, {}]}, "since task.image.size is searched"),
    ],
)
def test_faults_of_the_fidelity(fidelity, message):
    space = SPACE if "searched" in message else {"optim.lr": SPACE["optim.lr"]}
    with pytest.raises(UserError, match=f"(?s)fidelity.*{message}|{message}"):
        check_space(sweep_of(space=space, fidelity=fidelity), BASE, experiment_from)


def test_its_key_cannot_be_set_too():
    with pytest.raises(UserError, match=r"data\.train_fraction=\.\.\. cannot set it; add sweep\.fidelity=null"):
        check_space(sweep_of(), BASE, experiment_from, [KEY])


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (KEY, VALUES),
        ("task.lidar.sweeps", [1, 3]),
        ("task.radar.sweeps", [1, 3]),
        ("train.duration", ["2 epochs", "6 epochs"]),  # complete schedules, unlike the rungs of ASHA
        ("train.duration", ["100 steps", "300 steps"]),
        ("data.global_batch", [16, 4]),
    ],
)
def test_what_may_have_levels(key, values):
    check_space(sweep_of(fidelity={"key": key, "values": values}), BASE, experiment_from)


def test_trials_of_a_level_need_no_common_budget():
    space = {"train.duration": {"choice": ["2 epochs", "4 epochs"]}}
    check_space(sweep_of(space=space), BASE, experiment_from)
    with pytest.raises(UserError, match="same budget"):
        check_space(sweep_of(space=space, fidelity=None), BASE, experiment_from)


@pytest.mark.parametrize("changes", [{"scheduler": "hyperband"}, {"scheduler": "none"}, {"algorithm": "bohb"}])
def test_nothing_else_stops_trials(changes):
    with pytest.raises(UserError, match=r"promoted along its values|learns from rungs"):
        sweep_of(**changes)
