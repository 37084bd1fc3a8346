"""Population based bandits: what they learn from, and that they learn."""

import math

import numpy as np
import pytest

from sensorlab.cluster.search.pb2 import BanditPopulation, standardised
from sensorlab.cluster.search.propose import Outcome, Proposal, new_proposer
from sensorlab.cluster.sweep_config import decode_values, load_sweep

LR = {"loguniform": [1e-4, 1.0]}
SPACE = {"lr": LR, "net": {"choice": ["a", "b"]}, "width": {"integer": [1, 8]}}


def section(algorithm="pb2", space=SPACE, members=4, **options):
    section = {"space": space, "algorithm": algorithm, "scheduler": "none", "num_trials": members, "seed": 3}
    return load_sweep({**section, **options})


def search(sweep, epochs, gain):
    """Every trial has the objective of the checkpoint it began with, plus ``gain(generation, values)``."""
    history = []
    while (proposal := new_proposer(sweep, epochs).propose(history)) is not None:
        before = 0.0 if proposal.parent is None else history[proposal.parent].last
        last = before + gain(len(history) // sweep.num_trials, decode_values(proposal.values))
        history.append(Outcome(proposal, "complete", last, last))
    return history


def outcome(lr, last, parent=None):
    return Outcome(Proposal({"lr": lr, "net": "a", "width": 1}, parent=parent), "complete", last, last)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_rewards_are_changes_against_the_checkpoint_a_trial_began_with(mode):
    sign = 1 if mode == "max" else -1
    first = [outcome(lr, sign * last) for lr, last in ((1e-4, 1.0), (1e-2, 3.0), (1.0, 2.0), (1e-2, 2.0))]
    second = [outcome(1e-4, sign * 1.5, 0), outcome(1e-2, sign * 3.1, 1), outcome(1.0, sign * 2.9, 2)]
    failed = Outcome(Proposal({"lr": 1.0, "net": "a", "width": 1}, parent=1), "failed")
    points, times, rewards = BanditPopulation(section(mode=mode), 9).rewards([*first, *second, failed])
    np.testing.assert_allclose(points[:, 0], [0, 0.5, 1, 0.5, 0, 0.5, 1])
    np.testing.assert_array_equal(times, [0] * 4 + [1] * 3)
    np.testing.assert_allclose(rewards[:4], np.array([-1, 1, 0, 0]) / math.sqrt(0.5))
    np.testing.assert_allclose(rewards[4:], standardised([0.5, 0.1, 0.9]))


def test_standardised():
    assert standardised([1.0, 3.0]) == [-1.0, 1.0]
    assert standardised([2.0, 2.0]) == [0.0, 0.0]
    assert standardised([]) == []


def test_ranges_are_searched_and_choices_explored():
    def gain(generation, values):
        return math.sin(1000 * values["lr"] + values["width"] + generation)

    history = search(section(population={"quantile": 0.5}), 12, gain)
    for position, each in enumerate(history[4:], start=4):
        values = each.proposal.values
        assert 1e-4 <= values["lr"] <= 1
        assert 1 <= values["width"] <= 8
        assert type(values["width"]) is int
        if each.proposal.parent == position - 4:
            assert values == history[position - 4].proposal.values
    replaced = [each for position, each in enumerate(history) if each.proposal.parent not in (None, position - 4)]
    assert len(replaced) > 10
    assert {each.proposal.values["net"] for each in replaced} == {"a", "b"}


def test_what_others_are_known_to_train_with_is_pending():
    """Of eight members the last four are replaced; the sixth knows of the four that go on and of the fifth."""
    sweep = section(space={"lr": LR}, members=8, population={"quantile": 0.5})
    history = search(sweep, 1, lambda generation, values: 0.0)
    history = [
        Outcome(each.proposal, "complete", last, last) for last, each in zip(range(8, 0, -1), history, strict=True)
    ]
    for _ in range(5):
        history.append(Outcome(new_proposer(sweep, 2).propose(history), "pending"))
    known = [each.proposal.values["lr"] for each in history[8:]]
    assert known[:4] == [each.proposal.values["lr"] for each in history[:4]]
    assert known[4] not in known[:4]
    pending = BanditPopulation(sweep, 2)._pending(history)
    np.testing.assert_allclose(sorted(pending[:, 0]), sorted(np.log10(known) / 4 + 1))
    before_all = BanditPopulation(sweep, 2)._pending(history[:8])  # of the first member: the three others that go on
    np.testing.assert_allclose(before_all[:, 0], np.log10(known[1:4]) / 4 + 1)
    sixth = new_proposer(sweep, 2).propose(history).values
    crowded = [*history[:12], Outcome(Proposal(sixth, parent=0), "pending")]
    moved = new_proposer(sweep, 2).propose(crowded).values
    assert abs(math.log10(moved["lr"]) - math.log10(sixth["lr"])) > 4 * 0.04


def test_proposals_depend_on_seed_position_and_results_alone():
    def gain(generation, values):
        return values["lr"] * values["width"]

    assert search(section(), 5, gain) == search(section(), 5, gain)
    assert search(section(seed=4), 5, gain) != search(section(), 5, gain)


def test_it_follows_a_moving_optimum_better_than_chance_does():
    """The best learning rate falls from 0.1 to 0.001 while training, as schedules make it."""

    def regret(generation, values):
        return abs(math.log10(values["lr"]) + 1 + generation / 8) + abs(values["decay"] - 0.7)

    space = {"lr": LR, "decay": {"uniform": [0, 1]}}
    lost = {}
    for algorithm in ("pbt", "pb2"):
        searches = [section(algorithm, space, seed=seed) for seed in range(4)]
        histories = [search(sweep, 16, lambda generation, values: -regret(generation, values)) for sweep in searches]
        lost[algorithm] = [-max(each.last for each in history[-4:]) for history in histories]
    assert sum(b < a for a, b in zip(lost["pbt"], lost["pb2"], strict=True)) >= 3
    assert np.mean(lost["pb2"]) < 0.75 * np.mean(lost["pbt"])
