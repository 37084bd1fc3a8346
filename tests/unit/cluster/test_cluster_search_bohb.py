"""BOHB: its densities by hand, its data, and that it finds what is good."""

import json
import math

import numpy as np
import pytest

from sensorlab.cluster.search.bohb import Bohb, ChoiceKernel, Density, NumberKernel
from sensorlab.cluster.search.dimension import Dimension
from sensorlab.cluster.search.propose import Outcome, Proposal, Random, new_proposer
from sensorlab.cluster.sweep_config import decode_values, load_sweep

SPACE = {"lr": {"loguniform": [1e-5, 1.0]}, "decay": {"uniform": [0.0, 1.0]}, "net": {"choice": ["a", "b", "c"]}}
CONDITIONAL = {**SPACE, "drop": {"uniform": [0.0, 0.5], "when": {"net": "b"}}}


def sweep_of(space=SPACE, mode="max", **changes):
    options = {"random_fraction": 0.0, **changes.pop("bohb", {})}
    section = {"space": space, "algorithm": "bohb", "num_trials": 60, "seed": 3, "mode": mode, "bohb": options}
    return load_sweep({**section, **changes})


def score(values):
    return -((math.log10(values["lr"]) + 2) ** 2) - (values["decay"] - 0.3) ** 2 - (values["net"] != "b")


def search(sweep, count, history=(), measure=score, rung=1):
    history = list(history)
    for _ in range(count):
        proposal = new_proposer(sweep).propose(history)
        history.append(Outcome(proposal, "pending", rungs={rung: float(measure(decode_values(proposal.values)))}))
    return history


def values_of(history):
    return [decode_values(outcome.proposal.values) for outcome in history]


def drawn_of(sweep, scores, state="complete", rung=1):
    """Random configurations with these scores at a rung; ``None``: failed."""
    random, history = Random(sweep), []
    for value in scores:
        proposal = random.propose(history)
        failed = value is None
        history.append(Outcome(proposal, "failed" if failed else state, value, rungs={} if failed else {rung: value}))
    return history


def test_a_single_value_says_little():
    assert NumberKernel.of([0.4], 3).bandwidth == pytest.approx(1.06 * 12**-0.5)
    assert NumberKernel.of([0.4, 0.4], 3).bandwidth == 1e-3
    assert ChoiceKernel.of([1], 4, 3).bandwidth == 0.75
    assert ChoiceKernel.of([1, 1], 4, 3).bandwidth == 1e-3


def gaussian(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def below(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def test_densities_by_hand():
    space = {"x": Dimension(uniform=(10, 20)), "net": Dimension(choice=("a", "b", "c"))}
    density = Density(space, [{"x": 0.2, "net": 0}, {"x": 0.6, "net": 0}, {"x": 0.7, "net": 2}])
    places = np.array([0.2, 0.6, 0.7])
    width = 1.06 * places.std() * 3 ** (-1 / 6)
    spread = 1.06 * math.sqrt(1 - (2 / 3) ** 2 - (1 / 3) ** 2) * 3 ** (-1 / 6)
    assert density.kernels["x"].bandwidth == pytest.approx(width)
    assert density.kernels["net"].bandwidth == pytest.approx(min(spread, 2 / 3))
    lam = density.kernels["net"].bandwidth
    expected = 0.0
    for centre, same in ((0.2, 1 - lam), (0.6, 1 - lam), (0.7, lam / 2)):
        inside = below((1 - centre) / width) - below(-centre / width)
        expected += gaussian((0.5 - centre) / width) / width / inside * same / 3
    assert density.log({"x": 0.5, "net": 0}) == pytest.approx(math.log(expected))


def test_densities_are_densities():
    """They integrate to 1, also where a dimension is missing in some of the points."""
    space = {"x": Dimension(uniform=(0, 1)), "y": Dimension(uniform=(0, 1)), "net": Dimension(choice=(1, 2))}
    density = Density(space, [{"x": 0.0, "net": 0}, {"x": 0.9, "y": 0.1, "net": 1}, {"x": 1.0, "net": 0}])
    grid = (np.arange(60) + 0.5) / 60
    total = sum(math.exp(density.log({"x": x, "y": y, "net": n})) for x in grid for y in grid for n in (0, 1)) / 3600
    assert total == pytest.approx(1.0, rel=1e-3)
    marginal = sum(math.exp(density.log({"x": x, "net": n})) for x in grid for n in (0, 1)) / 60
    assert marginal == pytest.approx(1.0, rel=1e-3)


def test_kernels_draw_what_they_are_the_density_of():
    generator = np.random.default_rng(0)
    kernel = NumberKernel(0.3)
    drawn = np.array([kernel.draw(0.9, generator) for _ in range(20000)])
    counts, edges = np.histogram(drawn, bins=10, range=(0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    np.testing.assert_allclose(counts / 2000, [kernel.density(x, 0.9) for x in middles], rtol=0.1, atol=0.03)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    kernel = ChoiceKernel(0.5, 3)
    counts = np.bincount([kernel.draw(1, generator) for _ in range(20000)], minlength=3) / 20000
    np.testing.assert_allclose(counts, [kernel.density(index, 1) for index in range(3)], atol=0.02)
    assert kernel.widened(9).bandwidth == pytest.approx(2 / 3)  # all choices equally likely, no more
    assert NumberKernel(1e-3).draw(0.0, generator) < 0.01
    assert ChoiceKernel.of([0, 0], 1, 1).draw(0, generator) == 0  # a single choice


def test_good_and_bad_are_those_of_the_paper():
    sweep = sweep_of(bohb={"min_points": 4, "top_fraction": 0.25})
    history = drawn_of(sweep, list(range(24)))
    values = [outcome.proposal.values for outcome in history]
    good, bad = Bohb(sweep).split(history)
    assert good == values[:-7:-1]  # a quarter of 24, best first
    assert bad == values[17::-1]
    good, bad = Bohb(sweep).split(history[:7])
    assert good == values[6:2:-1]  # at least four of seven
    assert bad == values[3::-1]  # and four, of which one is among the good too
    assert Bohb(sweep).split(history[:5]) is None
    assert Bohb(sweep).split(history[:6]) is not None
    assert Bohb(sweep_of()).split(history[:5]) is None  # three keys: four points, and two more
    assert Bohb(sweep_of()).split(history[:6]) is not None


def test_mode_min_turns_it_round():
    history = drawn_of(sweep_of(), list(range(24)))
    good, bad = Bohb(sweep_of(mode="min")).split(history)
    assert good == [outcome.proposal.values for outcome in history[:4]]
    assert bad == [outcome.proposal.values for outcome in history[4:]]


def test_of_equal_ones_the_earlier_are_the_good():
    sweep = sweep_of()
    history = drawn_of(sweep, [1.0] * 12)
    assert Bohb(sweep).split(history)[0] == [outcome.proposal.values for outcome in history[:4]]


def test_the_highest_rung_that_enough_have_reached_is_modelled():
    sweep = sweep_of()
    low = drawn_of(sweep, list(range(20)), state="pending")
    # The higher rung turns the order of the lower one round.
    both = [
        Outcome(
            outcome.proposal, outcome.state, outcome.value, rungs={1: index, 9: -index} if index < 6 else {1: index}
        )
        for index, outcome in enumerate(low)
    ]
    values = [outcome.proposal.values for outcome in low]
    assert Bohb(sweep).split(both)[0] == values[:4]
    five = [
        Outcome(each.proposal, each.state, each.value, rungs=dict(list(each.rungs.items())[: 1 + (index < 5)]))
        for index, each in enumerate(both)
    ]
    assert Bohb(sweep).split(five)[0] == values[:-5:-1]


def test_what_failed_is_bad_and_does_not_make_a_rung():
    sweep = sweep_of()
    assert Bohb(sweep).split(drawn_of(sweep, [None] * 12)) is None
    for mode in ("max", "min"):
        sweep = sweep_of(mode=mode)
        history = drawn_of(sweep, [None, *range(6), None])
        good, bad = Bohb(sweep).split(history)
        failed = [history[0].proposal.values, history[7].proposal.values]
        assert bad[-2:] == failed
        assert not any(values in good for values in failed)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("space", [SPACE, CONDITIONAL], ids=["plain", "conditional"])
def test_the_good_region_is_proposed_more_often_than_by_chance(mode, space):
    sign = 1 if mode == "max" else -1
    sweep = sweep_of(space, mode, bohb={"random_fraction": 0.2})

    def hits(values):
        return np.mean([each["net"] == "b" and 1e-3 < each["lr"] < 1e-1 for each in values])

    learnt = values_of(search(sweep, 60, measure=lambda values: sign * score(values)))
    random = values_of(drawn_of(load_sweep({"space": space, "num_trials": 400, "seed": 5}), [0.0] * 400))
    assert hits(random) < 0.25  # two fifths of the rates with a third of the networks
    assert hits(learnt[30:]) > 0.5
    assert all(("drop" in each) == (each["net"] == "b" and "drop" in space) for each in learnt)


def test_nothing_measured_is_random():
    sweep = sweep_of()
    random, history = Random(sweep), []
    for _ in range(8):
        proposal = new_proposer(sweep).propose(history)
        assert proposal == random.propose(history)
        history.append(Outcome(proposal, "pending"))


def test_a_share_stays_random():
    sweep = sweep_of(bohb={"random_fraction": 0.5})
    history = search(sweep, 60)
    random = [Random(sweep).propose(history[:position]) for position in range(60)]
    equal = sum(outcome.proposal == other for outcome, other in zip(history[10:], random[10:], strict=True))
    assert 15 < equal < 35


def test_proposals_depend_on_seed_position_and_history_alone():
    sweep = sweep_of(CONDITIONAL, bohb={"random_fraction": 0.3})
    whole = search(sweep, 25)
    assert values_of(search(sweep, 10, whole[:15])) == values_of(whole)
    other = sweep_of(CONDITIONAL, bohb={"random_fraction": 0.3}, seed=4)
    assert values_of(search(other, 10, whole[:15]))[15:] != values_of(whole)[15:]


def test_a_configuration_is_proposed_once_while_there_are_others():
    space = {"a": {"choice": [1, 2, 3]}, "b": {"integer": [1, 3]}}
    sweep = sweep_of(space, bohb={"candidates": 300, "min_points": 4, "bandwidth_factor": 9})
    history = [
        Outcome(Proposal({"a": a, "b": b}), "complete", a + b, rungs={1: a + b}) for a in (1, 2, 3) for b in (1, 2, 3)
    ]
    left = history.pop(7)
    assert Bohb(sweep).propose(history).values == left.proposal.values
    again = Bohb(sweep).propose([*history, left])  # all are known: a random one
    assert json.dumps(again.values) == json.dumps(Random(sweep).propose([*history, left]).values)
