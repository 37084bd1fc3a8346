"""The command lines: what is checked before a dataset is made, and what a resumed run keeps."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sensorlab.cluster import entry, single, sweep
from sensorlab.cluster.commands import launch
from sensorlab.cluster.start import Cluster
from sensorlab.config import as_dict, flatten

FILE = """
name: toy
task: {name: bev_segmentation}
data: {path: datasets/d, prepare: {source: synthetic}}
train: {duration: 2 epochs}
sweep: {space: {optim.lr: {choice: [0.1, 0.2]}}}
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Where the entry points get to: the arguments of ``ensure_dataset`` and the plans that would run."""
    seen: dict[str, list] = {"datasets": [], "plans": []}

    def ensure_dataset(config, root, report, *, path):
        seen["datasets"].append(path)
        return path or root / config.path

    def run(plan, cluster, program, **options):
        seen["plans"].append(plan)
        plan.save() if isinstance(plan, sweep.SweepPlan) else plan.save(None)
        raise KeyboardInterrupt

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("SENSORLAB_OUTPUT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "cluster_for", lambda *args, **options: Cluster("", True, ({"CPU": 2.0},)))
    monkeypatch.setattr(launch, "leave", lambda: None)
    monkeypatch.setattr(launch, "ensure_dataset", ensure_dataset)
    monkeypatch.setattr(entry, "check_on_dataset", lambda sweep, base, dataset: None)
    monkeypatch.setattr(entry, "least_object_store", lambda experiment, dataset: 0)
    monkeypatch.setattr(single, "run_single", run)
    monkeypatch.setattr(sweep, "run_sweep", run)
    (tmp_path / "toy.yaml").write_text(FILE)
    return seen


def start(main, *arguments) -> int:
    try:
        return main(list(arguments), Path("repository/experiments/script.py"), Path("toy.yaml"), "")
    except KeyboardInterrupt:
        return 130


@pytest.mark.parametrize(
    ("main", "override", "message"),
    [
        (entry.train_main, "resources.cpus_per_worker=64", "this does not fit"),
        (entry.tune_main, "resources.cpus_per_worker=64", "this does not fit"),
        (entry.train_main, "tracking.uri=mlruns", "no longer a tracking store"),
        (entry.tune_main, "tracking.uri=mlruns", "no longer a tracking store"),
        (entry.tune_main, "train.duration=5 steps", "scheduler asha compares trials by epochs"),
    ],
)
def test_what_cannot_start_is_said_before_the_dataset_is_made(started, capsys, main, override, message):
    assert start(main, override) == 2
    assert message in capsys.readouterr().err
    assert started == {"datasets": [], "plans": []}


@pytest.mark.parametrize("override", ["sweep.num_trials=3", "sweep={num_trials: 3}", "sweep.space.optim.lr=null"])
def test_a_single_run_takes_no_settings_of_a_sweep(started, capsys, override):
    assert start(entry.train_main, override) == 2
    assert "script.py runs one experiment; sweep.* belongs to tune_bev.py" in capsys.readouterr().err
    assert started == {"datasets": [], "plans": []}


@pytest.mark.parametrize("main", [entry.train_main, entry.tune_main])
def test_the_code_is_that_of_the_script_and_the_advice_names_it(started, tmp_path, main):
    assert start(main, "--address", "10.0.0.1:6379") == 130
    (plan,) = started["plans"]
    assert plan.code_root == str(tmp_path / "repository")
    directory = plan.run_dir if isinstance(plan, single.RunPlan) else plan.directory
    module = single if isinstance(plan, single.RunPlan) else sweep
    assert shlex.split(module.resume_command(plan)) == [
        *("python", "repository/experiments/script.py", "--address", "10.0.0.1:6379", "--resume", str(directory))
    ]
    assert directory.is_absolute()


@pytest.mark.parametrize("main", [entry.train_main, entry.tune_main])
@pytest.mark.parametrize("key", ["init.path", "fork.checkpoint"])
def test_what_a_run_begins_with_gets_an_absolute_path(started, tmp_path, monkeypatch, main, key):
    monkeypatch.setenv("HOME", "/home/someone")
    for path, expected in (("a/../b", tmp_path / "b"), ("/c/d", "/c/d"), ("~/e", "/home/someone/e")):
        assert start(main, f"train.{key}={path}") == 130
        assert flatten(as_dict(started["plans"][-1].experiment))[f"train.{key}"] == str(expected)


def test_a_resumed_run_keeps_its_dataset_unless_another_is_named(started, tmp_path, monkeypatch):
    start(entry.train_main)
    run = started["plans"][0].run_dir
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "toy.yaml").write_text(FILE)
    assert start(entry.train_main, "--resume", str(run)) == 130
    assert start(entry.train_main, "--resume", str(run), "data.path=other") == 130
    first = tmp_path / "outputs" / "datasets" / "d"
    assert started["datasets"] == [None, first, None]
    assert [plan.dataset for plan in started["plans"]] == [str(first), str(first), str(tmp_path / "outputs" / "other")]
    assert started["plans"][1].code_root == str(tmp_path / "elsewhere" / "repository")


def test_a_resumed_sweep_keeps_its_dataset(started, tmp_path):
    start(entry.tune_main)
    first = tmp_path / "outputs" / "datasets" / "d"
    (tmp_path / "toy.yaml").write_text(FILE.replace("datasets/d", "datasets/new").replace("toy", "renamed"))
    assert start(entry.tune_main, "--resume", "latest") == 130
    assert started["datasets"] == [None, first]
    assert started["plans"][1].dataset == str(first)
