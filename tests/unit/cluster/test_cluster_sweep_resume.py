"""What a sweep that goes on finds: its directory in its place, its own code, trials that have come to their end."""

import shutil
from pathlib import Path

import pytest

from sensorlab.cluster.closing import close_open_trials
from sensorlab.cluster.files import RESULT, write_json
from sensorlab.cluster.ledger import Ledger
from sensorlab.cluster.sweep import SweepPlan, _note_code
from sensorlab.cluster.sweep_config import load_sweep
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from

TREE = {
    "name": "toy",
    "task": {"name": "bev_segmentation"},
    "data": {"path": "d"},
    "train": {"duration": "6 epochs"},
}


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    sweep = load_sweep({"space": {"optim.lr": {"choice": [0.1, 0.2]}}})
    plan = SweepPlan("s", tmp_path / "outputs", experiment_from(TREE), sweep, "d", None)
    plan.save()
    return plan


def test_a_sweep_is_found_by_its_name_and_by_its_directory(plan: SweepPlan, tmp_path: Path) -> None:
    for name in ("s", "latest", str(plan.directory)):
        assert SweepPlan.load(plan.root, name) == plan
    (tmp_path / "link").symlink_to(plan.directory)
    assert SweepPlan.load(tmp_path, str(tmp_path / "link")) == plan


def test_a_moved_sweep_says_where_it_belongs(plan: SweepPlan, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "sweeps" / "s"
    moved.parent.mkdir(parents=True)
    shutil.move(plan.directory, moved)
    with pytest.raises(UserError, match=f"s was moved from {plan.directory}: .*ln -s {moved} {plan.directory}"):
        SweepPlan.load(tmp_path / "elsewhere", "s")
    plan.directory.symlink_to(moved)
    assert SweepPlan.load(tmp_path / "elsewhere", "s") == plan  # in the place that everything names


def test_a_copy_of_a_sweep_names_the_sweep(plan: SweepPlan, tmp_path: Path) -> None:
    shutil.copytree(plan.directory, tmp_path / "copy")
    with pytest.raises(UserError, match=f"is a copy of the sweep {plan.directory}"):
        SweepPlan.load(tmp_path, str(tmp_path / "copy"))


def test_other_code_is_named_when_a_sweep_goes_on(plan: SweepPlan, capsys: pytest.CaptureFixture[str]) -> None:
    _note_code(plan, resume=True)  # of a sweep that has no record of its code
    _note_code(plan, resume=False)
    _note_code(plan, resume=True)
    assert capsys.readouterr().out == ""
    record = plan.directory / "source.txt"
    lines = record.read_text().splitlines()
    changed = [
        "0" * 64 + line[64:] if line.endswith(("  engine/step.py", "  report/page.py")) else line for line in lines
    ]
    assert changed != lines
    record.write_text("".join(f"{line}\n" for line in changed if not line.endswith("  engine/fit.py")))
    _note_code(plan, resume=True)
    printed = capsys.readouterr().out
    assert printed.startswith("warning: the sweep was started with other code")
    assert "before: engine/fit.py, engine/step.py changed" in printed  # a report changes no number


def test_a_trial_that_has_its_result_is_not_called_stopped(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json", "max")
    for name in "ab":
        ledger.start(name, {"optim.lr": 0.1}, "d", tmp_path / "trials" / name)
    write_json(tmp_path / "trials" / "a" / RESULT, {"epochs": 6})
    close_open_trials(ledger, interrupted=True)
    assert [record.state for record in ledger.trials.values()] == ["done", "interrupted"]
