"""A fork under a configuration of its own: what may differ, and every fork that is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from exact_runs import train
from fork_runs import STEPS, Look, checkpoint_of, forked, planned, weights, with_values
from run_states import assert_equal, final_state

from sensorlab.config import as_dict
from sensorlab.engine.fit import fit
from sensorlab.engine.fork import FORK_MUST_KEEP
from sensorlab.engine.optim import OptimConfig
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, TrainConfig
from toy import ToyStream, ToyTask, toy_experiment
from toy_images import write_splits

DOC = (Path(__file__).parents[3] / "docs" / "resume.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ExperimentConfig:
    dataset = tmp_path_factory.mktemp("dataset")
    write_splits(dataset)
    return planned(dataset)


@pytest.fixture(scope="module")
def donor(tmp_path_factory, config) -> Path:
    run_dir = tmp_path_factory.mktemp("donor")
    train(config, run_dir)
    return run_dir


def test_hyper_parameters_are_the_new_ones_and_moments_the_old(config, donor, tmp_path):
    groups = [{"name": "bias", "match": ["@bias"], "lr_multiplier": 2.0, "weight_decay": 0.125}]
    optim = {"lr": 3e-3, "weight_decay": 0.25, "betas": [0.5, 0.75], "eps": 1e-3, "groups": groups}
    same, changed, resumed = Look(), Look(), Look()
    train(forked(config, donor, 6, train={"until": "7 steps"}), tmp_path / "same", same)
    train(forked(config, donor, 6, train={"until": "7 steps"}, optim=optim), tmp_path / "changed", changed)
    assert [(g["name"], g["weight_decay"], g["betas"], g["eps"], g["lr_multiplier"]) for g in changed.groups] == [
        ("default", 0.25, (0.5, 0.75), 1e-3, 1.0),
        ("bias", 0.125, (0.5, 0.75), 1e-3, 2.0),
    ]
    assert same.moments
    assert_equal(changed.moments, same.moments)
    rates = [final_state(tmp_path / name)[0]["optimizer"]["param_groups"][0]["lr"] for name in ("same", "changed")]
    assert rates[1] == pytest.approx(0.3 * rates[0])
    train(forked(config, donor, 6, train={"until": "8 steps"}, optim=optim), tmp_path / "changed", resumed)
    assert (resumed.step, [group["weight_decay"] for group in resumed.groups]) == (7, [0.25, 0.125])


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.9), (0.9, 0.0), (0.9, 0.5)])
def test_momentum_can_begin_and_end_with_a_fork(config, tmp_path, before, after):
    def sgd(momentum):
        return as_dict(OptimConfig(name="sgd", lr=1e-2, momentum=momentum, groups=config.optim.groups))

    first = with_values(config, optim=sgd(before), train={"duration": "3 steps"})
    train(first, tmp_path / "donor")
    look = Look()
    train(forked(first, tmp_path / "donor", 2, optim=sgd(after)), tmp_path / "fork", look)
    assert {group["momentum"] for group in look.groups} == {after}
    assert bool(look.moments) == (after > 0)
    moving = any(value.any() for each in look.moments.values() for value in each.values())
    assert moving == (before > 0 and after > 0)


CHANGES = {
    "schedule": {"schedule": {"name": "linear"}},
    "longer": {"train": {"duration": "20 steps", "until": "9 steps"}},
    "clip": {"train": {"clip": {"kind": "value", "value": 0.1}}},
    "average": {"train": {"ema": {"tau": 50.0}}},
    "no multi-scale": {"train": {"multi_scale": None}},
    "dropout": {"task": {"dropout": 0.5}},
    "bf16": {"train": {"precision": "bf16"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_only_numbers_may_change(config, donor, tmp_path, change):
    end = train(forked(config, donor, 7, **CHANGES[change]), tmp_path).steps
    assert end > 7
    own, reference = weights(tmp_path, end), weights(donor, end)
    assert any(not torch.equal(own[name], reference[name]) for name in own)


REFUSED = {
    "seed": ({"seed": 1}, r"may not change which samples .* reads.*\n  seed: 0 -> 1$"),
    "data.train_split": ({"data": {"train_split": "val"}}, "data.train_split: 'train' -> 'val'"),
    "data.global_batch": ({"data": {"global_batch": 2}}, "data.global_batch: 4 -> 2"),
    "data.last_batch": ({"data": {"last_batch": "pad"}}, "data.last_batch: 'drop' -> 'pad'"),
    "data.max_samples": ({"data": {"max_samples": 9}}, "data.max_samples: None -> 9"),
    "data.train_fraction": ({"data": {"train_fraction": 0.5}}, "data.train_fraction: 1.0 -> 0.5"),
    "data.sampling": (
        {"data": {"sampling": {"name": "shuffled"}}},
        "data.sampling.name: 'image_weights' -> 'shuffled'",
    ),
    "data.max_batches": ({"data": {"max_batches": 3}}, "data.max_batches: None -> 3"),
    "data.shuffle_window": ({"data": {"shuffle_window": 3}}, "data.shuffle_window: 16 -> 3"),
    "optim.name": ({"optim": {"name": "adam"}}, "optim.name: 'adamw' -> 'adam'"),
    "optim.groups": (
        {"optim": {"groups": [{"name": "bias", "match": ["head.bias"]}]}},
        r"optim.groups: .*'@bias'.* -> .*'head.bias'",
    ),
    "train.accumulate": ({"train": {"accumulate": {"passes": 3}}}, "train.accumulate.passes: 2 -> 3"),
    "train.freeze": ({"train": {"freeze": []}}, r"train.freeze: \[.*\] -> \[\]"),
    "warmup": ({"warmup": {"length": 2}}, "warmup.length: 1.0 -> 2"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_cursor_and_the_moments_belong_to_may_not_change(config, donor, tmp_path, key):
    sections, message = REFUSED[key]
    with pytest.raises(UserError, match=message):
        train(forked(config, donor, 7, **sections), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_the_warmup_may_change_where_it_has_no_say_in_the_steps(config, tmp_path):
    plain = with_values(config, train={"accumulate": {"ramp": False}, "duration": "4 steps"})
    train(plain, tmp_path / "donor")
    assert train(forked(plain, tmp_path / "donor", 2, warmup=None), tmp_path / "fork").steps == 4


def test_the_documentation_lists_what_must_be_kept():
    section = DOC.partition("## Forking a run")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE)
    assert tuple(documented) == (*FORK_MUST_KEEP, "warmup")
    assert set(documented) == set(REFUSED)


def test_a_model_of_other_shapes_is_refused_with_what_differs(config, donor, tmp_path):
    message = r"holds another model than task describes: 8 tensors differ \(head.weight: weights \(3, 24\), model"
    with pytest.raises(UserError, match=message):
        train(forked(config, donor, 7, task={"width": 5}), tmp_path)
    plain = with_values(config, train={"freeze": [], "duration": "2 steps"})
    train(plain, tmp_path / "donor")
    message = r"\(norm.bias: only in the weights; .*; \.\.\.\)\. train\.init can take the weights that fit"
    with pytest.raises(UserError, match=message):
        train(forked(plain, tmp_path / "donor", 1, task={"norm": False}), tmp_path / "fork")


def test_an_average_neither_begins_nor_ends_with_a_fork(config, donor, tmp_path):
    with pytest.raises(UserError, match=r"the checkpoint has one, train\.ema has none"):
        train(forked(config, donor, 7, train={"ema": None}), tmp_path / "without")
    plain = with_values(config, train={"ema": None, "duration": "3 steps"})
    train(plain, tmp_path / "donor")
    with pytest.raises(UserError, match=r"train\.ema has one, the checkpoint has none"):
        train(forked(plain, tmp_path / "donor", 2, train={"ema": {}}), tmp_path / "with")


@pytest.mark.parametrize("until", [None, "9 steps"])
def test_a_donor_at_the_end_leaves_nothing_to_train(config, donor, tmp_path, until):
    message = rf"is at step {STEPS}, and this training ends at step {9 if until else STEPS}: nothing is left to train"
    with pytest.raises(UserError, match=message):
        train(forked(config, donor, STEPS, train={"until": until}), tmp_path)


def _alter(path: Path) -> None:
    content = bytearray((path / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "ema.safetensors").write_bytes(content)


def _age(path: Path) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    (path / "MANIFEST.json").write_text(json.dumps({**manifest, "format": 3}))


FAULTS = {
    "missing": (shutil.rmtree, r"train\.fork\.checkpoint: there is no directory .*step-00000007"),
    "a file": (lambda path: (shutil.rmtree(path), path.touch()), r"there is no directory .*step-00000007"),
    "no checkpoint": (lambda path: (path / "MANIFEST.json").unlink(), "no readable MANIFEST.json"),
    "altered": (_alter, r"content of ema\.safetensors was altered.*choose another checkpoint"),
    "older": (_age, "format 3, this version reads"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_cannot_be_trusted_is_refused(config, donor, tmp_path, fault):
    damage, message = FAULTS[fault]
    shutil.copytree(donor, tmp_path / "donor")
    damage(checkpoint_of(tmp_path / "donor", 7))
    with pytest.raises(UserError, match=message):
        train(forked(config, tmp_path / "donor", 7), tmp_path / "fork")


@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_a_run_in_the_place_of_a_checkpoint_is_told_its_checkpoints(config, donor, tmp_path, part):
    fork = with_values(config, train={"fork": {"checkpoint": str(donor / part)}})
    with pytest.raises(UserError, match=rf"is not a checkpoint; name one of those in it: .*step-{STEPS:08d}$"):
        train(fork, tmp_path)


@pytest.mark.parametrize("what", ["dataset", "order"])
def test_another_dataset_or_order_is_refused(tmp_path, what):
    def run(name: str, digest: str, **train):
        config = toy_experiment(train=TrainConfig.model_validate({"duration": "2 epochs", **train}))
        task = ToyTask(config.task)
        return fit(config, task, ToyStream(21, 4, task), None, run_dir=tmp_path / name, provenance={what: digest})

    first = run("donor", "a", until="1 epoch").last_checkpoint
    with pytest.raises(UserError, match=rf"was trained on the {what} with digest a, this one is b: going on from it"):
        run("other", "b", fork={"checkpoint": str(first)})
    assert run("same", "a", fork={"checkpoint": str(first)}).steps == 10


def test_a_run_begins_in_one_way():
    with pytest.raises(ValueError, match="init and fork: a run starts from weights or from a whole state"):
        TrainConfig.model_validate({"duration": "1 epoch", "init": {"path": "a"}, "fork": {"checkpoint": "b"}})
