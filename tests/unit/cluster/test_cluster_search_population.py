"""Population based training: who goes on from whom, with what, and when."""

import math

import numpy as np
import pytest

from sensorlab.cluster.search.explore import Explorer, perturbed
from sensorlab.cluster.search.population import choose_parent, donors_of
from sensorlab.cluster.search.propose import WAIT, Outcome, new_proposer
from sensorlab.cluster.sweep_config import Dimension, decode_values, load_sweep
from sensorlab.config import as_dict
from sensorlab.errors import UserError

SPACE = {"lr": {"loguniform": [1e-4, 1.0]}, "net": {"choice": ["a", "b", [1, 2], "d"]}}


def section(space=SPACE, members=4, **options):
    section = {"space": space, "algorithm": "pbt", "scheduler": "none", "num_trials": members, "seed": 3}
    return load_sweep({**section, **options})


def train(sweep, epochs, score, history=()):
    """The whole search, every trial with the objective ``score(position, values)``; ``None``: it fails."""
    history = list(history)
    while (proposal := new_proposer(sweep, epochs).propose(history)) is not None:  # nothing may hang on its state
        last = score(len(history), decode_values(proposal.values))
        history.append(Outcome(proposal, "failed" if last is None else "complete", last, last))
    return history


def parents(history):
    return [outcome.proposal.parent for outcome in history]


def test_generations_go_on_from_each_other_and_the_worst_from_the_best():
    sweep = section(population={"generation": 2, "quantile": 0.25})
    history = train(sweep, 5, lambda position, values: [3.0, 1.0, 2.0, 0.5][position % 4])
    assert len(history) == 12 == sweep.total_trials(5)
    assert [outcome.proposal.assigned for outcome in history[::4]] == [
        {"train.until": "2 epochs"},
        {"train.until": "4 epochs"},
        {"train.until": "5 epochs"},  # the last one is cut
    ]
    assert parents(history) == [None] * 4 + [0, 1, 2, 0] + [4, 5, 6, 4]
    values = [outcome.proposal.values for outcome in history]
    for position in (4, 5, 6, 8, 9, 10):
        assert values[position] == values[position - 4]
    assert values[7] != values[4]
    assert values[11] != values[8]
    assert new_proposer(sweep, 5).propose(history) is None


def test_nobody_begins_before_all_have_ended():
    sweep = section()
    history = train(sweep, 1, lambda position, values: float(position))
    for index in range(4):
        waiting = [*history[:index], Outcome(history[index].proposal, "pending"), *history[index + 1 :]]
        assert new_proposer(sweep, 2).propose(waiting) == WAIT
    assert new_proposer(sweep, 2).propose(history[:3]).parent is None  # generation 0 waits for nobody
    following = new_proposer(sweep, 2).propose(history)
    assert following.parent == 3
    begun = [*history, Outcome(following, "pending")]
    assert new_proposer(sweep, 2).propose(begun).parent == 1  # members of one generation do not wait for each other


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_mode_decides_who_is_worst(mode):
    history = train(section(mode=mode), 2, lambda position, values: float(position % 4))
    assert parents(history)[4:] == ([3, 1, 2, 3] if mode == "max" else [0, 1, 2, 0])


def test_proposals_depend_on_seed_position_and_results_alone():
    sweep = section(members=6, population={"quantile": 0.5})

    def score(position, values):
        return -abs(math.log10(values["lr"]) + 2)

    whole = train(sweep, 6, score)
    assert train(sweep, 6, score, whole[:17]) == whole
    other = load_sweep({**as_dict(sweep), "seed": 4})
    assert train(other, 6, score, whole[:12])[12:] != whole[12:]


def test_it_finds_better_values_than_it_was_given():
    def regret(values):
        return abs(math.log10(values["lr"]) + 2)

    def lasting(position, values):  # later generations remember nothing: what counts is the values of now
        return -regret(values)

    last = train(section({"lr": SPACE["lr"]}, members=8), 20, lasting)
    best = [min(regret(decode_values(outcome.proposal.values)) for outcome in part) for part in (last[:8], last[-8:])]
    assert best[1] < 0.25 * best[0]


def test_equal_members_are_left_alone():
    history = train(section(population={"quantile": 0.5}), 3, lambda position, values: 0.7)
    assert parents(history) == [None] * 4 + [0, 1, 2, 3] + [4, 5, 6, 7]
    values = [outcome.proposal.values for outcome in history]
    assert values[:4] == values[4:8] == values[8:]


def test_failed_members_are_replaced_whatever_the_quantile():
    generation = {0: 2.0, 1: None, 2: None, 3: 1.0}
    history = train(section(), 2, lambda position, values: generation.get(position, 0.0))
    assert parents(history)[4:] == [0, 0, 0, 3]  # two have failed, so that nobody else is replaced
    assert parents(train(section(), 2, lambda p, v: {1: 1.0}.get(p, 0.0) if p else None))[4:] == [1, 1, 2, 3]


def test_values_that_are_no_numbers_are_failures():
    history = train(section(), 2, lambda position, values: [1.0, -math.inf, math.nan, 0.5][position % 4])
    assert parents(history)[4:] == [0, 0, 0, 3]


def test_a_generation_without_survivors_is_the_end():
    history = train(section(), 5, lambda position, values: 1.0 if position < 4 else None)
    assert len(history) == 8


@pytest.mark.parametrize(
    ("fitness", "quantile", "expected"),
    [
        ([4, 3, 2, 1], 0.25, [None, None, None, [0]]),
        ([4, 3, 2, 1], 0.5, [None, None, [0, 1], [0, 1]]),
        ([1, 2], 0.1, [[1], None]),
        ([3, 2, 1], 0.5, [None, None, [0]]),  # half of three is one: nobody is both donor and replaced
        ([1, 1, 1, 0], 0.5, [None, None, None, [0, 1]]),  # the third is one of the worst, and not worse
        ([None, 5, 4, 3], 0.25, [[1], None, None, None]),
        ([None, 5, 4, 3], 0.5, [[1, 2], None, None, [1, 2]]),
        ([None, None, None, 3], 0.25, [[3], [3], [3], None]),
        ([None, None], 0.25, [[], []]),
        (list(range(10, 0, -1)), 0.2, [None] * 8 + [[0, 1], [0, 1]]),
        (list(range(30, 0, -1)), 0.1, [None] * 27 + [[0, 1, 2]] * 3),
    ],
)
def test_donors(fitness, quantile, expected):
    assert donors_of(fitness, quantile) == expected


def test_all_donors_are_drawn():
    generator = np.random.default_rng(0)
    assert {choose_parent([4, 3, 2, 1], 3, 0.5, generator) for _ in range(40)} == {0, 1}
    assert choose_parent([4, 3, 2, 1], 1, 0.5, generator) == 1
    assert choose_parent([None, None], 1, 0.5, generator) is None


CONDITIONAL = {
    "net": {"choice": ["a", "b", "c"]},
    "wide": {"integer": [1, 9], "when": {"net": "b"}},
    "lr": {"loguniform": [1e-4, 1.0]},
    "step": {"quniform": [0.1, 0.9, 0.25]},
}


def explored(values, count=300, space=CONDITIONAL, **options):
    explorer, generator = Explorer(section(space, population=options)), np.random.default_rng(0)
    return [explorer.explore(values, generator) for _ in range(count)]


def test_numbers_are_multiplied_and_choices_move_to_a_neighbour():
    found = explored({"net": "a", "lr": 0.01, "step": 0.5}, resample_probability=0)
    assert {each["lr"] for each in found} == {0.008, 0.012}
    assert {each["net"] for each in found} == {"a", "b"}  # at the end of the list it may stay
    assert {each["step"] for each in found} == {0.25, 0.75}  # 0.4 and 0.6 are rounded to 0.5: it moves by a step
    assert all(("wide" in each) == (each["net"] == "b") for each in found)
    assert {each["wide"] for each in found if "wide" in each} == set(range(1, 10))  # drawn when it becomes active
    left = explored({"net": "b", "wide": 5, "lr": 0.01, "step": 0.5}, resample_probability=0)
    assert {each["net"] for each in left} == {"a", "c"}
    assert all("wide" not in each for each in left)


def test_values_are_drawn_anew_with_their_probability():
    found = explored({"net": "c", "lr": 0.01, "step": 0.75}, resample_probability=0.25)
    assert 0.15 < np.mean([each["lr"] not in (0.008, 0.012) for each in found]) < 0.35
    assert all(1e-4 <= each["lr"] <= 1.0 for each in found)
    every = explored({"net": "c", "lr": 0.01, "step": 0.75}, resample_probability=1)
    assert {each["net"] for each in every} == {"a", "b", "c"}


def test_kept_keys_stay():
    explorer = Explorer(section(CONDITIONAL))
    values = {"net": "a", "lr": 0.01, "step": 0.5}
    for seed in range(20):
        found = explorer.explore(values, np.random.default_rng(seed), kept=("lr", "step"))
        assert (found["lr"], found["step"]) == (0.01, 0.5)


@pytest.mark.parametrize(
    ("value", "factor", "dimension", "expected"),
    [
        (0.9, 1.2, Dimension(uniform=(0, 1)), 1.0),
        (-0.5, 1.2, Dimension(uniform=(-1, 1)), -0.6),
        (2, 1.2, Dimension(integer=(0, 3)), 3),
        (1, 0.8, Dimension(integer=(0, 3)), 0),
        (-2, 1.2, Dimension(integer=(-5, 3)), -3),
        (3, 1.2, Dimension(integer=(0, 3)), 3),
        (100, 1.2, Dimension(loginteger=(1, 1000)), 120),
        (0.3, 0.8, Dimension(quniform=(0.1, 0.5, 0.1)), 0.2),
        (0.1, 0.8, Dimension(quniform=(0.1, 0.5, 0.1)), 0.1),
        (2, 1.0, Dimension(integer=(0, 3)), 2),
    ],
)
def test_perturbed_numbers_belong_to_their_dimension(value, factor, dimension, expected):
    moved = perturbed(value, factor, dimension)
    assert moved == pytest.approx(expected)
    assert type(moved) is type(expected)


def test_a_number_that_is_zero_can_leave_it():
    space = {"a": {"uniform": [0, 3]}, "b": {"integer": [0, 3]}}
    found = explored({"a": 0.0, "b": 0}, 40, space, resample_probability=0)
    assert len({each["a"] for each in found}) == 40
    assert {each["b"] for each in found} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 1}, "needs a population: num_trials of 2 or more"),
        ({"scheduler": "asha"}, "set sweep.scheduler=none"),
        ({"seeds": 2}, "set sweep.seeds=1"),
        ({"population": {"quantile": 0.6}}, "less than or equal to 0.5"),
        ({"population": {"factors": [0, 1.2]}}, "greater than 0"),
        ({"population": {"generation": 0}}, "greater than or equal to 1"),
        ({"algorithm": "pb2", "space": {"a": {"choice": [1, 2]}}}, "set sweep.algorithm=pbt"),
        ({"algorithm": "pb2", "space": CONDITIONAL}, "take 'when' out of wide, or choose pbt"),
    ],
)
def test_faults_of_the_section(changes, message):
    with pytest.raises(UserError, match=message):
        section(**changes)
