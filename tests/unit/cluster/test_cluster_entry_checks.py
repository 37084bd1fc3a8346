"""The checks around a training: what their command lines refuse, and what they would run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorlab.cluster import entry
from sensorlab.cluster.commands import find_lr, launch, overfit, validation
from sensorlab.cluster.single import RunPlan
from sensorlab.cluster.start import Cluster
from sensorlab.cluster.worker import RunSpec
from sensorlab.config import as_dict
from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.sampling import ShuffledSampling
from sensorlab.engine import checkpoint
from sensorlab.experiment import ExperimentConfig, experiment_from

FILE = """
name: toy
task: {name: bev_segmentation}
data: {path: datasets/d, prepare: {source: synthetic}, global_batch: 4}
schedule: {name: multi_step, by: epoch, milestones: [2, 4]}
warmup: {length: 3}
train: {duration: 8 epochs, accumulate: 3, ema: {}}
eval: {metric: val/iou}
debug: {train: {duration: 3 steps}, sweep: {num_trials: 1}}
"""


class Started(Exception):
    """What would start now."""

    def __init__(self, experiment: ExperimentConfig, program: Any, **more: Any) -> None:
        super().__init__()
        self.experiment, self.program, self.more = experiment, program, more


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with an experiment; Ray and data are not reached."""

    def work(experiment: ExperimentConfig, cluster: Cluster, program: Any, **more: Any) -> Any:
        raise Started(experiment, program, **more)

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("SENSORLAB_OUTPUT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "cluster_for", lambda *args, **options: Cluster("", True, ({"CPU": 2.0},)))
    monkeypatch.setattr(launch, "leave", lambda: None)
    monkeypatch.setattr(launch, "ensure_dataset", lambda config, root, report, *, path: path or root / config.path)
    monkeypatch.setattr(launch, "work", work)
    monkeypatch.setattr(overfit, "run_single", lambda plan, cluster, program: work(plan.experiment, cluster, program))
    monkeypatch.setattr(validation, "open_tracking", lambda uri, experiment, nodes: None)
    (tmp_path / "toy.yaml").write_text(FILE)
    (tmp_path / "plain.yaml").write_text(FILE.partition("debug")[0])
    return tmp_path


def train(*arguments: str) -> int:
    return entry.train_main(list(arguments), Path("repository/experiments/train.py"), Path("toy.yaml"), "")


def started(*arguments: str) -> Started:
    with pytest.raises(Started) as caught:
        train(*arguments)
    return caught.value


def finished_run(place: Path, steps: dict[int, float | None]) -> RunPlan:
    """A run whose checkpoints of ``steps`` have these objectives; ``None``: not evaluated."""
    run_dir = place / "outputs" / "runs" / "done"
    plan = RunPlan(run_dir, experiment_from(_plain_tree()), str(place / "data"), "sqlite:///x.db")
    plan.save("run-1")
    for step, value in steps.items():
        state = {"model": {"w": torch.zeros(1)}, "ema": None, "config": as_dict(plan.experiment)}
        path = run_dir / "checkpoints" / f"step-{step:08d}"
        checkpoint.save(path, state, step=step, metrics={} if value is None else {"val/iou": value})
    return plan


def _plain_tree() -> dict[str, Any]:
    from sensorlab.config import parse_yaml

    tree = parse_yaml(FILE)
    tree.pop("debug")
    return tree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "best"], "--checkpoint is an option of --validate"),
        (["--below", "0.1"], "--below is an option of --overfit"),
        (["--lr-range", "1", "2"], "--lr-range is an option of --find-lr"),
        (["--overfit", "2", "--lr-steps", "20"], "--lr-steps is an option of --find-lr"),
        (["--overfit", "2", "--below", "1.5"], "--below 1.5: expected a share between 0 and 1"),
        (["--resume", "latest", "--debug"], "--debug is for a new run"),
        (["--find-lr", "--lr-range", "1", "1e-3"], "--lr-range 1 0.001: give two positive rates, the lower one first"),
        (["--find-lr", "--lr-steps", "0"], "--lr-steps 0: a curve needs at least 10 steps"),
        (["--config", "plain.yaml", "--debug"], "plain.yaml has no 'debug' section"),
        (["--validate", "nowhere"], "there is no run 'nowhere'"),
        (["debug.train.duration=1 step"], "debug: unknown key"),
        (["--validate", "toy.yaml", "--checkpoint", "best"], "toy.yaml is a file of weights"),
    ],
)
def test_what_the_command_line_refuses(arguments, message, capsys):
    assert train(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [["--overfit", "0"], ["--overfit", "many"], ["--overfit", "2", "--find-lr"], ["--resume", "--validate"]],
)
def test_what_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        train(*arguments)
    assert caught.value.code == 2


def test_debug_applies_the_section_below_the_command_line_and_records_nothing(place, monkeypatch):
    plans: list[RunPlan] = []
    monkeypatch.setattr("sensorlab.cluster.single.run_single", lambda plan, cluster, program: plans.append(plan))
    assert train("--debug", "optim.lr=0.5") == train("--debug", "train.duration=7 steps") == train() == 0
    first, second, plain = plans
    assert [str(plan.experiment.train.duration) for plan in plans] == ["3 steps", "7 steps", "8 epochs"]
    assert first.experiment.optim.lr == 0.5
    assert first.experiment.name == "toy_debug"
    assert first.tracking_uri is None
    assert plain.tracking_uri == f"sqlite:///{place / 'mlruns.db'}"
    assert second.run_dir.name.startswith("toy_debug-")


# ---------------------------------------------------------------------------------------------------------- overfit


class _Split:
    num_samples = 10

    def split(self, name: str) -> _Split:
        assert name == "train"
        return self


@pytest.fixture
def ten_samples(monkeypatch):
    monkeypatch.setattr(PreparedDataset, "open", classmethod(lambda cls, path: _Split()))


def test_overfit_trains_and_validates_on_the_same_few_plain_samples(ten_samples):
    config = started("--overfit", "6", "optim.lr=0.25", "data.train_fraction=0.5").experiment
    data, training = config.data, config.train
    assert data.train_fraction == 1.0  # all of the six
    assert (data.max_samples, data.augment, data.train_split, data.val_split) == (6, False, "train", "train")
    assert (data.global_batch, data.last_batch) == (4, "pad")  # 6 samples in batches of 4
    assert str(training.duration) == "200 steps"
    assert (training.ema, config.warmup, config.schedule.name) == (None, None, "one_cycle")
    assert training.accumulate.passes == 1
    assert config.optim.lr == 0.25
    assert config.name == "toy_overfit"
    assert config.task == experiment_from(_plain_tree()).task


@pytest.mark.parametrize(("samples", "batch", "last"), [(1, 1, "drop"), (4, 4, "drop"), (8, 4, "drop"), (9, 4, "pad")])
def test_overfit_batches_hold_all_samples_in_every_epoch(ten_samples, samples, batch, last):
    data = started("--overfit", str(samples)).experiment.data
    assert (data.global_batch, data.last_batch) == (batch, last)


def test_overfit_leaves_the_samples_their_plain_order(ten_samples):
    overrides = ["data.sampling.name=repeat_factor", "data.sampling.aspect_groups=true", "data.max_batches=1"]
    overrides.append("train.early_stop={patience: 1 epoch}")
    config = started("--overfit", "4", *overrides).experiment
    assert config.data.sampling == ShuffledSampling()
    assert config.data.max_batches is None
    assert config.train.early_stop is None
    assert config.eval.every is None


def test_overfit_takes_the_length_that_is_given(ten_samples):
    assert str(started("--overfit", "2", "train.duration=30 epochs").experiment.train.duration) == "30 epochs"
    assert str(started("--overfit", "2", "--debug").experiment.train.duration) == "200 steps"


def test_overfit_more_samples_than_there_are(ten_samples, capsys):
    assert train("--overfit", "11") == 2
    assert "--overfit 11: split 'train' has 10 samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "below", "passed"),
    [([8.0, 5.0, 3.9], None, True), ([8.0, 1.0, 4.0], None, False), ([8.0, 3.9], "0.4", False)],
)
def test_overfit_judges_the_last_epoch_by_the_first(ten_samples, place, monkeypatch, capsys, losses, below, passed):
    def run_single(plan: RunPlan, cluster: Cluster, program: Any) -> None:
        plan.run_dir.mkdir(parents=True)
        lines = [json.dumps({"step": step, "train/loss": loss}) for step, loss in enumerate(losses, 1)]
        (plan.run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(overfit, "run_single", run_single)
    assert train("--overfit", "2", *(["--below", below] if below else [])) == (0 if passed else 1)
    output = capsys.readouterr().out
    assert ("passed" if passed else "FAILED") in output
    assert json.loads(output.splitlines()[-1])["overfit"]["passed"] is passed


@pytest.mark.parametrize(
    ("losses", "message"),
    [([1.0], "a single epoch: nothing to compare"), ([-1.0, -2.0], "the loss is -1 at the start")],
)
def test_overfit_that_cannot_be_judged(ten_samples, place, monkeypatch, capsys, losses, message):
    def run_single(plan: RunPlan, cluster: Cluster, program: Any) -> None:
        plan.run_dir.mkdir(parents=True)
        lines = [json.dumps({"step": step, "train/loss": loss}) for step, loss in enumerate(losses, 1)]
        (plan.run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(overfit, "run_single", run_single)
    assert train("--overfit", "2") == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- find-lr


def test_find_lr_runs_the_range_test_of_the_experiment(place):
    found = started("--find-lr", "--lr-range", "1e-6", "0.1", "--lr-steps", "50", "data.global_batch=2")
    assert found.program == find_lr.RangeTest(find_lr.RateRange(1e-6, 0.1, 50))
    assert str(found.experiment.train.duration) == "50 steps"
    assert found.experiment.data.global_batch == 2
    assert found.more["run_dir"].parent == place / "outputs" / "lr_finder"
    assert "tracking" not in found.more


# --------------------------------------------------------------------------------------------------------- validate


def subject(found: Started) -> tuple[str, str]:
    assert isinstance(found.program, validation.Validation)
    return Path(found.program.weights).name, found.more["dataset"]


def test_validate_measures_the_best_checkpoint_of_a_run_on_its_dataset(place):
    finished_run(place, {1: 0.2, 2: 0.5, 3: 0.3, 4: None})
    for name in ("latest", "done", str(place / "outputs" / "runs" / "done")):
        found = started("--validate", name)
        assert subject(found) == ("step-00000002", str(place / "data"))
        assert found.more["run_dir"].parent == place / "outputs" / "validations"
    assert subject(started("--validate", "done", "--checkpoint", "best"))[0] == "step-00000002"
    assert subject(started("--validate", "done", "--checkpoint", "latest"))[0] == "step-00000004"
    third = str(place / "outputs" / "runs" / "done" / "checkpoints" / "step-00000003")
    assert subject(started("--validate", "done", "--checkpoint", third))[0] == "step-00000003"


def test_validate_takes_a_checkpoint_or_a_file_of_weights_too(place):
    plan = finished_run(place, {1: 0.2})
    path = plan.run_dir / "checkpoints" / "step-00000001"
    found = started("--validate", str(path))
    assert found.experiment == plan.experiment  # the checkpoint holds it
    assert subject(found)[0] == "step-00000001"
    file = path / "model.safetensors"
    found = started("--validate", str(file), "data.path=other", "optim.lr=0.5")
    assert subject(found) == ("model.safetensors", str(place / "outputs" / "other"))


def test_validate_measures_what_the_overrides_say(place):
    finished_run(place, {1: 0.2})
    overrides = ["data.val_split=train", "eval.max_batches=3", "task.metrics.threshold=0.3", "resources.num_workers=2"]
    config = started("--validate", "done", *overrides).experiment
    assert config.data.val_split == "train"
    assert config.eval.max_batches == 3
    assert as_dict(config)["task"]["metrics"]["threshold"] == 0.3


@pytest.mark.parametrize("override", ["optim.lr=1", "train.duration=1 epoch", "seed=3", "schedule.name=constant"])
def test_validate_refuses_what_belongs_to_training(place, override, capsys):
    finished_run(place, {1: 0.2})
    assert train("--validate", "done", override) == 2
    assert f"{override}: --validate does not train, it takes keys of eval, data, task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "arguments", "message"),
    [
        ({}, [], "done has no checkpoint yet"),
        ({1: None}, [], "has val/iou; try --checkpoint latest"),
        ({1: 0.5}, ["--checkpoint", "first"], "--checkpoint first: neither best, nor latest, nor a directory"),
        ({1: 0.5}, ["--debug"], "a run has its own experiment"),
        ({1: 0.5}, ["resources.num_workers=3"], "does not divide by resources.num_workers=3"),
    ],
)
def test_validate_without_what_it_needs(place, steps, arguments, message, capsys):
    finished_run(place, steps)
    assert train("--validate", "done", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_validation_streams_the_validation_split_alone(place, monkeypatch):
    finished_run(place, {1: 0.2})
    found = started("--validate", "done")
    asked: list[str] = []
    monkeypatch.setattr(validation, "validation_spec", lambda config, dataset: asked.append(dataset) or "stream")
    spec = RunSpec(as_dict(found.experiment), str(place), "D", found.program)
    assert list(found.program.datasets(spec)) == ["val"]
    assert asked == ["D"]
