from __future__ import annotations

import pytest

from sensorlab.config import (
    TAGGED_SECTIONS,
    StrictModel,
    apply_overrides,
    as_dict,
    digest,
    flatten,
    load_yaml,
    merge,
    validate,
)
from sensorlab.engine.schedules import CosineSchedule
from sensorlab.errors import UserError, exit_on_user_error
from sensorlab.experiment import ExperimentConfig, TrainConfig, experiment_from, load_experiment
from toy import toy_experiment

MINIMAL = """
name: test
task: {name: bev_segmentation}
data: {path: somewhere}
train: {duration: 2 epochs}
"""


def experiment(*overrides: str) -> ExperimentConfig:
    import yaml

    return experiment_from(apply_overrides(yaml.safe_load(MINIMAL), overrides))


def test_file_with_base_and_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL)
    (tmp_path / "child.yaml").write_text("base: base.yaml\noptim: {lr: 1e-3}\ntrain: {duration: 5 epochs}\n")
    config = load_experiment(tmp_path / "child.yaml", ["train.duration=7 epochs", "schedule={name: cosine}"])
    assert config.optim.lr == 1e-3
    assert str(config.train.duration) == "7 epochs"
    assert isinstance(config.schedule, CosineSchedule)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrate=1e-3", "optim.lrate: unknown key; did you mean 'lr'"),
        ("optmi.lr=1e-3", "optmi: unknown key; did you mean 'optim'"),
        ("schedule.rise_fractoin=0.1", "did you mean 'rise_fraction'"),
        ("task.encodr=res18", "unknown key"),
        ("optim.lr=fast", "optim.lr: .*'fast'"),
        ("optim.lr=.nan", "optim.lr: Input should be a finite number .found nan"),
        ("optim.lr=-.inf", "optim.lr: Input should be a finite number .found -inf"),
        ("task.losses.seg=.inf", "losses.seg: Input should be a finite number"),
        ("train.duration=1.5 epochs", "train.duration: write a duration"),
        ("eval.every=[]", "eval.every: write null for never"),
        ("train.precision=fp8", "train.precision"),
        ("data.global_batch=0", "data.global_batch"),
        ("resources.num_workers=3", "does not divide"),
        ("task.name=bev", "task 'bev' does not exist; tasks: .*bev_segmentation"),
    ],
)
def test_a_mistake_is_explained_by_key(override, message):
    with pytest.raises(UserError, match=message):
        experiment(override)


def test_missing_keys_are_named():
    with pytest.raises(UserError, match="train: missing"):
        validate(ExperimentConfig, {"name": "x", "task": {"name": "bev_segmentation"}, "data": {"path": "p"}})


def test_every_fault_is_reported_at_once():
    with pytest.raises(UserError) as error:
        experiment("optim.lr=fast", "data.threads=-1")
    assert "optim.lr" in str(error.value)
    assert "data.threads" in str(error.value)


def tagged_sections(model, prefix=""):
    """Dotted keys of the fields that are unions told apart by ``name``."""
    for key, field in model.model_fields.items():
        if field.discriminator == "name":
            yield f"{prefix}{key}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, StrictModel):
            yield from tagged_sections(field.annotation, f"{prefix}{key}.")


def test_every_tagged_section_is_known_to_merge():
    assert {"task", *tagged_sections(ExperimentConfig)} == TAGGED_SECTIONS


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule={name: cosine, end_factor: 0.1}"],
        ["schedule.name=cosine", "schedule.end_factor=0.1"],
        ["schedule.end_factor=0.1", "schedule.name=cosine"],
    ],
)
def test_another_name_drops_the_keys_of_the_old_section(tmp_path, overrides):
    file = tmp_path / "one.yaml"
    file.write_text(MINIMAL + "schedule: {name: one_cycle, rise_fraction: 0.2}\n")
    assert load_experiment(file, overrides).schedule == CosineSchedule(end_factor=0.1)
    (tmp_path / "child.yaml").write_text("base: one.yaml\nschedule: {name: cosine, end_factor: 0.1}\n")
    assert load_experiment(tmp_path / "child.yaml").schedule == CosineSchedule(end_factor=0.1)
    kept = load_experiment(file, ["schedule={name: one_cycle, extra_steps: 3}"]).schedule
    assert (kept.rise_fraction, kept.extra_steps) == (0.2, 3)


def test_another_optimiser_keeps_the_keys_that_all_share():
    config = experiment("optim={name: sgd, lr: 0.1}", "optim.name=adam")
    assert (config.optim.name, config.optim.lr) == ("adam", 0.1)


def test_another_name_of_the_experiment_keeps_everything():
    assert merge({"name": "a", "seed": 3}, {"name": "b"}) == {"name": "b", "seed": 3}


def test_a_search_dimension_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "base.yaml").write_text("sweep: {space: {lr: {loguniform: [1, 2]}, wd: {choice: [1]}}, mode: max}\n")
    (tmp_path / "child.yaml").write_text("base: base.yaml\nsweep: {space: {lr: {uniform: [1, 2]}}}\n")
    tree = load_yaml(tmp_path / "child.yaml")
    assert tree == {"sweep": {"space": {"lr": {"uniform": [1, 2]}, "wd": {"choice": [1]}}, "mode": "max"}}


def test_an_unknown_key_of_a_tagged_section_is_not_its_own_hint():
    with pytest.raises(UserError, match=r"rise_fraction: unknown key; valid keys here: multiple, name"):
        experiment("schedule={name: constant, rise_fraction: 0.2}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "expected a mapping"),
        ("a: 1\na: 2", "written twice"),
        ("base: other.yaml", "cannot read"),
        ("base: self.yaml", "loops"),
        ("base: 5", "'base' must be the name of one file, found 5"),
        ("base: [a.yaml, b.yaml]", "'base' must be the name of one file"),
        ("a: 2020-13-01", "not valid YAML: month must be"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "self.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_yaml(path)


def test_a_file_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: Käfer".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: not UTF-8 text .* byte 7"):
        load_yaml(path)


def test_numbers_are_written_as_people_write_them(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1e-3\nb: 2E5\nc: 1.\nd: .5\ne: v1.0-mini\nf: 3\n")
    assert load_yaml(path) == {"a": 1e-3, "b": 2e5, "c": 1.0, "d": 0.5, "e": "v1.0-mini", "f": 3}


def test_override_without_a_value_is_refused():
    with pytest.raises(UserError, match="expected key=value"):
        apply_overrides({}, ["optim.lr"])


def test_configuration_survives_the_trip_through_json():
    config = experiment("schedule={name: cosine}", "train.ema={decay: 0.99}")
    assert experiment_from(as_dict(config)) == config
    assert digest(experiment_from(as_dict(config))) == digest(config)


def test_digest_changes_with_any_leaf_and_only_then():
    base = toy_experiment()
    assert digest(base) == digest(toy_experiment())
    assert digest(base) != digest(toy_experiment(seed=1))
    assert digest(base) != digest(toy_experiment(train=TrainConfig(duration="4 epochs")))


def test_nested_helpers():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": {}}
    assert flatten(tree) == {"a.b": 1, "a.c.d": 2, "e": {}}
    assert merge(tree, {"a": {"b": 5}}) == {"a": {"b": 5, "c": {"d": 2}}, "e": {}}
    assert tree["a"]["b"] == 1


def test_a_user_error_ends_with_code_2_and_one_line(capsys):
    def main():
        raise UserError("no such file: x")

    assert exit_on_user_error(main) == 2
    assert capsys.readouterr().err == "error: no such file: x\n"
    assert exit_on_user_error(lambda: None) == 0


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optim.lr=-1", "optim.lr"),
        ("optim.betas=[1.5, 2]", "optim.betas.0"),
        ("name=../../x", "name"),
        ("data.prepare={source: synthetic, scenes: 0}", "data.prepare.scenes"),
    ],
)
def test_values_out_of_bounds_are_refused(override, key):
    with pytest.raises(UserError, match=key):
        experiment(override)


def test_keys_of_a_tagged_section_without_a_name_set_the_default_one(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text("name: x\ntask: {name: bev_segmentation}\ndata: {path: d}\ntrain: {duration: 2 epochs}\n")
    config = load_experiment(path, ["data.sampling.aspect_groups=true", "schedule.rise_fraction=0.5"])
    assert (config.data.sampling.name, config.data.sampling.aspect_groups) == ("shuffled", True)
    assert (config.schedule.name, config.schedule.rise_fraction) == ("one_cycle", 0.5)
    other = load_experiment(path, ["data.sampling={name: repeat_factor, threshold: 0.1}"])
    assert other.data.sampling.threshold == 0.1
