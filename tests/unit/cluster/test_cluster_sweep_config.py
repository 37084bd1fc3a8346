"""The sweep section: its own schema, and its check against the experiment's."""

import math
from types import SimpleNamespace

import pytest

from sensorlab.cluster.sweep_check import check_objective, check_on_dataset, check_space
from sensorlab.cluster.sweep_config import (
    decode_values,
    load_sweep,
    log_scaled,
    resolve,
    split_overrides,
    tune_space,
)
from sensorlab.config import as_dict
from sensorlab.data.dataset import PreparedDataset
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from
from sensorlab.tasks import bev_segmentation
from sensorlab.tasks.base import task_class

BASE = as_dict(
    experiment_from(
        {"name": "x", "task": {"name": "bev_segmentation"}, "data": {"path": "d"}, "train": {"duration": "2 epochs"}}
    )
)


def sweep_of(**space):
    return load_sweep({"space": {key.replace("__", "."): value for key, value in space.items()}})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"space": {}}, "at least 1 item"),
        ({"space": {"a": {"unifrm": [0, 1]}}}, "did you mean 'uniform'"),
        ({"space": {"a": {"uniform": [1, 1]}}}, "lower bound 1.0 is not below"),
        ({"space": {"a": {"loguniform": [0, 1]}}}, "must be positive"),
        ({"space": {"a": {"choice": []}}}, "at least one value"),
        ({"space": {"a": {"choice": [1, 1]}}}, "lists a value twice"),
        ({"space": {"a": {"choice": [1, 1.0]}}}, "lists a value twice"),
        ({"space": {"a": {"choice": [[0.5, 2], [0.5, 2.0]]}}}, "lists a value twice"),
        ({"space": {"a": {"choice": [1], "integer": [1, 2]}}}, "exactly one of"),
        ({"space": {"a": {"quniform": [0, 1, 2]}}}, "quantum"),
        ({"space": {"a": {"choice": [1]}, "a.b": {"choice": [1]}}}, "lies inside of a"),
        ({"space": {"a": {"integer": [1, 2]}}, "algorithm": "grid"}, "needs 'choice'"),
        ({"space": {"a": [1, 2]}}, r"found the list \[1, 2\]; say what it means: \{choice: \[1, 2\]\}"),
        ({"space": {"a": 1}}, "found 1; a single value belongs outside of sweep.space, as a: 1"),
        ({"space": {"a": {"b": {"choice": [1]}}}}, "searched keys are written with dots: a.b"),
        ({"space": {"a": {"choice": [1]}}, "num_trial": 3}, "did you mean 'num_trials'"),
    ],
)
def test_faults_of_the_section(section, message):
    with pytest.raises(UserError, match=message):
        load_sweep(section)


def test_grid_runs_every_combination():
    sweep = load_sweep({"space": {"a": {"choice": [1, 2, 3]}, "b": {"choice": [1, 2]}}, "algorithm": "grid"})
    assert sweep.total_trials(None) == 6


def test_a_valid_space_passes():
    check_space(
        sweep_of(
            optim__lr={"loguniform": [1e-4, 1e-2]},
            task__model__encoder={"choice": ["res18", "effb0"]},
            task__image__size={"choice": [[96, 176], [128, 224]]},
            seed={"integer": [0, 5]},
        ),
        BASE,
        experiment_from,
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optim__rl": {"uniform": [0, 1]}}, "optim.rl.*did you mean 'lr'"),
        ({"task__model__encoder": {"choice": ["res18", "res19"]}}, "the value 'res19' does not fit"),
        ({"seed": {"uniform": [0.5, 1.5]}}, "the value 0.5 does not fit"),
        ({"data__global_batch": {"integer": [0, 4]}}, "the value 0 does not fit"),
        ({"task__image__size": {"choice": [[96, 177]]}}, "multiples of 16"),
    ],
)
def test_values_are_checked_against_the_experiment(space, message):
    with pytest.raises(UserError, match=rf"(?s)sweep\.space\..*{message}"):
        check_space(sweep_of(**space), BASE, experiment_from)


@pytest.mark.parametrize(
    ("key", "value", "decided", "reason"),
    [
        ("name", "a", "name", "first part of the sweep's name"),
        ("output_dir", "a", "output_dir", "one directory"),
        ("data.path", "a", "data.path", "found once"),
        ("data.prepare.scenes", 4, "data.prepare", "found once"),
        ("resources.num_workers", 1, "resources", "reserved"),
        ("data.val_split", "val", "data.val_split", "do not compare"),
        ("data.max_samples", 8, "data.max_samples", "do not compare"),
        ("eval", {"max_batches": 4}, "eval.max_batches", "do not compare"),
        ("tracking.experiment", "a", "tracking", "one store"),
        ("eval.metric", "val/loss", "eval.metric", "sweep.objective"),
        ("eval.mode", "min", "eval.mode", "sweep.mode"),
        ("checkpoint.keep_latest", 1, "checkpoint", "what is saved"),
        ("train.duration", "3 epochs", "train.duration", "scheduler asha"),
        ("eval", {"metric": "val/loss"}, "eval.metric", "sweep.objective"),  # as part of a whole section
    ],
)
def test_what_the_sweep_decides_for_all_trials_cannot_be_searched(key, value, decided, reason):
    sweep = load_sweep({"space": {key: {"choice": [value]}}})
    with pytest.raises(UserError, match=rf"sweep\.space\.{key}.*: {decided} has one value for all trials.*{reason}"):
        check_space(sweep, BASE, experiment_from)


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        ({"optim.momentum": {"uniform": [0.5, 0.9]}}, {}, "change nothing, because optim.name is adamw"),
        ({"task.lidar.sweeps": {"integer": [1, 3]}}, {}, "change nothing, because task.lidar.enabled is False"),
        ({"task.radar.sweeps": {"integer": [1, 3]}}, {}, "change nothing, because task.radar.input is none"),
        ({"train.nonfinite_budget": {"integer": [1, 3]}}, {}, "because train.nonfinite is stop"),
        (
            {
                "optim.name": {"choice": ["sgd", "adam"]},
                "optim.momentum": {"uniform": [0.5, 0.9], "when": {"optim.name": "adam"}},
            },
            {},
            "change nothing, because optim.name is adam ",
        ),
        ({"optim.name": {"choice": ["adam", "adamw"]}, "optim.nesterov": {"choice": [True, False]}}, {}, "adam, adamw"),
        (
            {"seed": {"choice": [1, 2]}},
            {"asha": {"grace_epochs": 2}},
            "asha.grace_epochs=2 leaves no epoch of 2 epochs",
        ),
    ],
)
def test_a_search_without_effect_is_refused(space, changes, message):
    with pytest.raises(UserError, match=message):
        check_space(load_sweep({"space": space, **changes}), BASE, experiment_from)


@pytest.mark.parametrize(
    "space",
    [
        {"optim.name": {"choice": ["sgd", "adam"]}, "optim.momentum": {"uniform": [0.5, 0.9]}},
        {
            "optim.name": {"choice": ["sgd", "adam"]},
            "optim.betas": {"choice": [[0.9, 0.99]], "when": {"optim.name": "adam"}},
        },
        {"task.lidar.enabled": {"choice": [True]}, "task.lidar.sweeps": {"integer": [1, 3]}},
        {"task.lidar": {"choice": [{"enabled": True, "sweeps": 2}]}},
    ],
)
def test_a_search_with_an_effect_in_some_trials_passes(space):
    check_space(load_sweep({"space": space}), BASE, experiment_from)


def test_a_searched_key_makes_the_section_that_was_null():
    sweep = sweep_of(train__ema__decay={"uniform": [0.9, 0.99]})
    assert BASE["train"]["ema"] is None
    check_space(sweep, BASE, experiment_from)
    assert experiment_from(resolve(BASE, {"train.ema.decay": 0.95})).train.ema.decay == 0.95


def test_objectives_that_no_evaluation_reports():
    experiment = experiment_from(BASE)
    section = {"space": {"seed": {"choice": [1]}}, "mode": "min"}
    for known in ("val/iou", "val/loss", "val/seg_loss"):  # the last one may be a term of the loss
        check_objective(load_sweep({**section, "objective": known}), experiment)
    for unknown, hint in (
        ("iou", "did you mean val/iou"),
        ("val/iuo", "did you mean val/iou"),
        ("val/los", "did you mean val/loss"),
        ("train/loss", "val/iou"),
        ("accuracy", "evaluations report"),
    ):
        sweep = load_sweep({**section, "objective": unknown})
        with pytest.raises(UserError, match=f"sweep.objective={unknown}: .*{hint}"):
            check_objective(sweep, experiment)
    with pytest.raises(UserError, match=r"val/loss is better where it is smaller: set sweep\.mode=min"):
        check_objective(load_sweep({**section, "objective": "val/loss", "mode": "max"}), experiment)
    other_tasks = {"task.image.size": {"choice": [[96, 176], [128, 224]]}}
    with pytest.raises(UserError, match=r"differ in task\.image\.size do not compare; choose a metric \(.*val/iou"):
        check_objective(load_sweep({"space": other_tasks, "objective": "val/loss", "mode": "min"}), experiment)
    check_objective(load_sweep({"space": other_tasks}), experiment)


RADAR = {"task.radar.input": {"choice": ["none", "occupancy"]}}


@pytest.mark.parametrize(
    ("section", "fits"),
    [
        ({"space": {"task.radar.sweeps": {"integer": [1, 3]}, **RADAR}}, True),
        ({"space": {"task.radar.sweeps": {"integer": [1, 4]}, **RADAR}}, False),
        ({"space": {"task.radar": {"choice": [{"input": "occupancy", "sweeps": 4}]}}}, False),
        (
            {
                "space": {
                    "task.radar.sweeps": {"choice": [2, 4], "when": {"task.radar.input": "occupancy"}},
                    **RADAR,
                }
            },
            False,
        ),
        ({"space": RADAR, "fidelity": {"key": "task.lidar.sweeps", "values": [1, 9]}}, True),  # lidar is off
        ({"space": {"optim.lr": {"uniform": [0.1, 0.2]}}}, True),
    ],
)
def test_searched_values_that_the_dataset_does_not_have(section, fits):
    class Task(task_class("bev_segmentation")):
        def check_dataset(self, manifest):
            if self.config.radar.input != "none" and self.config.radar.sweeps > manifest:
                raise UserError(f"the dataset has {manifest} sweeps")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bev_segmentation, "Task", Task)
        patch.setattr(PreparedDataset, "open", lambda path: SimpleNamespace(manifest=3))
        if fits:
            check_on_dataset(load_sweep(section), BASE, "d")
            return
        with pytest.raises(UserError, match=r"task\.radar.*: the value .*4.* does not fit: the dataset has 3 sweeps"):
            check_on_dataset(load_sweep(section), BASE, "d")


def test_without_rungs_trials_may_differ_in_their_epochs():
    space = {"train.duration": {"choice": ["1 epoch", "3 epochs"]}, "eval.panels": {"choice": [0, 1]}}
    check_space(load_sweep({"space": space, "scheduler": "none"}), BASE, experiment_from)


@pytest.mark.parametrize("fixed", ["optim.lr", "optim"])
def test_a_searched_key_cannot_be_set_too(fixed):
    with pytest.raises(UserError, match=r"sweep\.space\.optim\.lr=null"):
        check_space(sweep_of(optim__lr={"uniform": [0.1, 1]}), BASE, experiment_from, [fixed])


def test_overrides_reach_the_space_by_dotted_key():
    tree = {
        "name": "x",
        "sweep": {
            "num_trials": 3,
            "space": {"optim.lr": {"uniform": [0, 1]}, "seed": {"choice": [1]}, "data.augment": None},
        },
    }
    experiment, sweep, fixed = split_overrides(
        tree,
        ["sweep.space.optim.lr=null", "sweep.space.seed={choice: [4, 5]}", "sweep.num_trials=7", "optim.lr=1e-3"],
    )
    assert experiment == {"name": "x", "optim": {"lr": 1e-3}}
    assert sweep == {"num_trials": 7, "space": {"seed": {"choice": [4, 5]}}}
    assert fixed == ["optim.lr"]
    assert tree["sweep"]["space"].keys() == {"optim.lr", "seed", "data.augment"}  # the input stays as it was


def test_a_file_without_a_sweep_is_refused():
    with pytest.raises(UserError, match="no 'sweep' section"):
        split_overrides({"name": "x"}, [])


def test_lists_survive_the_way_through_the_searchers():
    space = tune_space(sweep_of(task__image__size={"choice": [[96, 176], [128, 224]]}, seed={"integer": [3, 4]}))
    drawn = {decode_values({"s": space["task.image.size"].sample()})["s"][0] for _ in range(30)}
    assert drawn == {96, 128}
    assert {space["seed"].sample() for _ in range(50)} == {3, 4}  # both ends belong to the range


def test_resolved_trial_is_complete_and_differs_in_its_values_only():
    tree = resolve(BASE, {"optim.lr": 0.5, "task.lidar.enabled": True})
    assert tree["optim"]["lr"] == 0.5
    assert tree["task"]["lidar"]["enabled"] is True
    assert tree["data"] == BASE["data"]
    assert BASE["optim"]["lr"] != 0.5


def test_a_section_of_another_name_keeps_what_is_searched_inside_of_it():
    values = {"schedule.end_factor": 0.5, "schedule.name": "polynomial", "schedule.power": 2.0}
    for order in (sorted(values), sorted(values, reverse=True)):
        schedule = experiment_from(resolve(BASE, {key: values[key] for key in order})).schedule
        assert (schedule.name, schedule.end_factor, schedule.power) == ("polynomial", 0.5, 2.0)


def test_log_scaled_keys():
    sweep = sweep_of(a={"loguniform": [1e-4, 1]}, b={"uniform": [0, 1]}, c={"loginteger": [1, 8]})
    assert log_scaled(sweep) == ("a", "c")
    assert math.isclose(min(tune_space(sweep)["a"].sample() for _ in range(500)), 1e-4, rel_tol=1.0)


def test_a_space_that_is_no_mapping_is_explained():
    with pytest.raises(UserError, match=r"sweep.space: expected a mapping"):
        split_overrides({"sweep": {"space": [1]}}, [])
