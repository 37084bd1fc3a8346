"""What the algorithms propose: inside of the space, better than chance, and the same whenever they are asked again."""

import importlib.util
import json

import numpy as np
import pytest

from sensorlab.cluster.search import optuna_proposer
from sensorlab.cluster.search.evolution import Evolution, bounded, selection_weights
from sensorlab.cluster.search.optuna_proposer import check_available
from sensorlab.cluster.search.propose import Outcome, Proposal, new_proposer
from sensorlab.cluster.search.space import drop_inactive, parents_first
from sensorlab.cluster.sweep_check import check_space
from sensorlab.cluster.sweep_config import Dimension, decode_values, load_sweep
from sensorlab.config import as_dict
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from
from sensorlab.report.read import expected_trials

SPACE = {
    "lr": {"loguniform": [1e-5, 1.0]},
    "decay": {"uniform": [0.0, 1.0]},
    "step": {"quniform": [0.1, 0.9, 0.25]},
    "width": {"integer": [1, 64]},
    "depth": {"loginteger": [1, 64]},
    "net": {"choice": ["a", "b", [1, 2]]},
    "drop": {"uniform": [0.2, 0.4], "when": {"net": [1, 2]}},
    "drop2": {"choice": [None, 3], "when": {"net": "b"}},
}
cmaes = pytest.param(
    "cmaes", marks=pytest.mark.skipif(importlib.util.find_spec("cmaes") is None, reason="needs the package cmaes")
)
ALGORITHMS = ["random", "optuna", "multivariate", "evolution", cmaes]


def sweep_of(algorithm, count=60, space=SPACE, **changes):
    if algorithm == "multivariate":
        algorithm, changes = "optuna", {"tpe": {"multivariate": True}, **changes}
    return load_sweep({"space": space, "algorithm": algorithm, "num_trials": count, "seed": 3, **changes})


def loss(values):
    return (np.log10(values["lr"]) + 2.0) ** 2 + (values["decay"] - 0.3) ** 2


def search(sweep, count, history=(), score=loss):
    """``count`` more configurations, each with its outcome; every seventh one fails."""
    history = list(history)
    for _ in range(count):
        proposal = new_proposer(sweep).propose(history)  # a new one each time: nothing may hang on its state
        failed = len(history) % 7 == 6
        value = None if failed else float(score(decode_values(proposal.values)))
        history.append(Outcome(proposal, "failed" if failed else "complete", value))
    return history


def values_of(history):
    return [decode_values(outcome.proposal.values) for outcome in history]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_value_belongs_to_its_dimension(algorithm):
    drawn = values_of(search(sweep_of(algorithm, mode="min"), 40))
    for values in drawn:
        assert 1e-5 <= values["lr"] <= 1.0
        assert 0.0 <= values["decay"] <= 1.0
        assert round(values["step"] / 0.25, 9) in (1, 2, 3)
        assert 1 <= values["width"] <= 64
        assert 1 <= values["depth"] <= 64
        assert type(values["width"]) is type(values["depth"]) is int
        assert values["net"] in ("a", "b", [1, 2])
        assert ("drop" in values) == (values["net"] == [1, 2])
        assert 0.2 <= values.get("drop", 0.2) <= 0.4
        assert ("drop2" in values) == (values["net"] == "b")
        assert json.loads(json.dumps(values)) == values
    assert {json.dumps(values["net"]) for values in drawn} == {'"a"', '"b"', "[1, 2]"}


@pytest.mark.parametrize("algorithm", ["optuna", "multivariate", "evolution", cmaes])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_learnt_beats_chance(algorithm, mode):
    space = {"lr": SPACE["lr"], "decay": SPACE["decay"]}
    sign = 1 if mode == "min" else -1
    late = {}
    for name in ("random", algorithm):
        history = search(sweep_of(name, 50, space, mode=mode), 50, score=lambda values: sign * loss(values))
        late[name] = np.median([loss(values) for values in values_of(history)[35:]])
    assert late[algorithm] < 0.5 * late["random"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_proposals_depend_on_seed_position_and_history_alone(algorithm):
    sweep = sweep_of(algorithm, 30, mode="min")
    whole = search(sweep, 30)
    assert values_of(search(sweep, 12, whole[:18])) == values_of(whole)
    other = load_sweep({**as_dict(sweep), "seed": 4})
    assert values_of(search(other, 12, whole[:18]))[18:] != values_of(whole)[18:]


@pytest.mark.parametrize("algorithm", ["optuna", "multivariate", "evolution", cmaes])
def test_configurations_in_training_are_no_obstacle(algorithm):
    sweep = sweep_of(algorithm, mode="min")
    history = search(sweep, 20)
    for _ in range(4):  # four at a time
        history.append(Outcome(new_proposer(sweep).propose(history), "pending"))
    assert len({json.dumps(values, sort_keys=True) for values in values_of(history)[20:]}) == 4


def test_a_generation_of_cmaes_adapts_its_state():
    pytest.importorskip("cmaes")
    space = {"lr": SPACE["lr"], "decay": SPACE["decay"]}
    history = search(sweep_of("cmaes", 30, space, mode="min"), 30)
    generations = [outcome.proposal.notes.get("cma:generation", 0) for outcome in history]
    assert generations == sorted(generations)
    assert generations[-1] >= 2


def test_cmaes_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(optuna_proposer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package 'cmaes'.*sensorlab\[cmaes\]"):
        check_available(sweep_of("cmaes"))
    check_available(sweep_of("optuna"))


def test_parents_are_drawn_by_what_they_are_ahead():
    np.testing.assert_allclose(selection_weights([0.5, 0.3, 0.1]), [2 / 3, 1 / 3, 0], atol=1e-5)
    np.testing.assert_allclose(selection_weights([0.5]), [1.0])
    np.testing.assert_allclose(selection_weights([0.2, 0.2]), [0.5, 0.5])


def test_mutants_descend_from_the_best_within_the_factors():
    sweep = sweep_of(
        "evolution", 9, {"lr": SPACE["lr"], "fixed": {"uniform": [1, 2]}}, evolution={"gains": {"fixed": 0}}
    )
    history = search(sweep, 5, score=lambda values: values["lr"])
    parents = [outcome.proposal.values for outcome in history]
    for seed in range(40):
        child = Evolution(load_sweep({**as_dict(sweep), "seed": seed})).propose(history).values
        [parent] = [values for values in parents if values["fixed"] == child["fixed"]]
        assert 0.29 <= child["lr"] / parent["lr"] <= 3.01
        assert child not in parents


def test_a_number_that_is_zero_can_leave_it():
    space = {"a": {"uniform": [0, 3]}, "b": {"choice": [1, 2, 3]}}
    sweep = sweep_of("evolution", 40, space, evolution={"initial": 1, "choice_probability": 0.5})
    history = [Outcome(Proposal({"a": 0.0, "b": 2}), "complete", 1.0)]
    for _ in range(15):
        history.append(Outcome(new_proposer(sweep).propose(history), "failed"))
    values = values_of(history)
    assert len({json.dumps(value) for value in values}) == 16
    assert {value["b"] for value in values} == {1, 2, 3}
    assert all(value["a"] > 0 for value in values if value["b"] == 2 and value is not values[0])


def test_bounds_of_mutants():
    assert bounded(0.123456789, Dimension(uniform=(0, 1))) == 0.12346
    assert bounded(7.0, Dimension(loguniform=(0.1, 1))) == 1.0
    assert bounded(0.0, Dimension(quniform=(0.1, 0.9, 0.25))) == 0.25
    assert bounded(2.6, Dimension(integer=(0, 3))) == 3


def test_inactive_combinations_of_a_grid_are_one():
    space = {
        "net": {"choice": ["a", "b"]},
        "deep": {"choice": [1, 2], "when": {"net": "b"}},
        "deeper": {"choice": [True, False], "when": {"deep": 2}},
    }
    sweep = load_sweep({"space": space, "algorithm": "grid"})
    grid = new_proposer(sweep)
    history = []
    while (proposal := grid.propose(history)) is not None:
        history.append(Outcome(proposal, "pending"))
    assert sorted(values_of(history), key=json.dumps) == [
        {"deep": 1, "net": "b"},
        {"deep": 2, "deeper": False, "net": "b"},
        {"deep": 2, "deeper": True, "net": "b"},
        {"net": "a"},
    ]
    assert sweep.total_trials(None) == 4
    assert expected_trials({"space": space, "algorithm": "grid", "seeds": 3}) == 12


def test_parents_come_first_and_take_their_children_along():
    conditions = {"a": {"b": 1}, "b": {"c": 1}}
    assert parents_first("abc", conditions) == ["c", "b", "a"]
    assert drop_inactive({"a": 0, "b": 1, "c": 2}, conditions) == {"c": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"a": {"uniform": [0, 1], "when": {"b": 1}}}}, "when names b, which is not searched with 'choice'"),
        (
            {"space": {"a": {"uniform": [0, 1], "when": {"b": 0.5}}, "b": {"uniform": [0, 1]}}},
            "when names b, which is not searched with 'choice'",
        ),
        (
            {"space": {"a": {"uniform": [0, 1], "when": {"b": 3}}, "b": {"choice": [1, 2]}}},
            r"when b is 3, which is none of its choices \[1, 2\]",
        ),
        (
            {"space": {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}}},
            "a, b depend on each other in a circle",
        ),
        ({"space": {"a": {"when": {"b": 1}}, "b": {"choice": [1]}}}, "exactly one of choice, .*found none"),
        ({"space": {"a": {"uniform": [0, 1]}, "b": {"choice": [1, 2]}}, "algorithm": "cmaes"}, "two ranges.*found a"),
        ({"space": {"a": {"uniform": [0, 1]}}, "evolution": {"gains": {"b": 1}}}, "gains: b is not searched"),
        ({"space": {"a": {"uniform": [0, 1]}}, "evolution": {"gains": {"a": 0}}}, "nothing can mutate"),
        ({"space": {"a": {"uniform": [0, 1]}}, "evolution": {"sigma": 0}}, "greater than 0"),
        ({"space": {"a": {"uniform": [0, 1]}}, "algorithm": "tpe"}, "'cmaes', 'bohb', 'evolution', 'pbt' or 'pb2'"),
    ],
)
def test_faults_of_the_section(changes, message):
    with pytest.raises(UserError, match=rf"(?s){message}"):
        load_sweep(changes)


def test_a_conditional_value_is_checked_where_it_is_searched():
    base = as_dict(
        experiment_from(
            {
                "name": "x",
                "task": {"name": "bev_segmentation"},
                "data": {"path": "d"},
                "train": {"duration": "2 epochs"},
            }
        )
    )
    seen = []

    def build(tree):
        seen.append((tree["optim"]["lr"], tree["seed"]))
        return experiment_from(tree)

    space = {"seed": {"choice": [1, 2]}, "optim.lr": {"uniform": [0.1, 0.2], "when": {"seed": 2}}}
    check_space(load_sweep({"space": space}), base, build)
    assert seen[-2:] == [(0.1, 2), (0.2, 2)]
