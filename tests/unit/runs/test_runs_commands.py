"""``sensorlab runs list|show|diff|best|promote`` on a real store."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sensorlab.errors import UserError
from sensorlab.runs import commands
from sensorlab.runs.client import open_client
from sensorlab.runs.models import write_model
from sensorlab.runs.query import RunIndex
from sensorlab.runs.recorder import RunRecorder
from sensorlab.runs.store import Store, open_store
from sensorlab.runs.sweep_runs import SweepRuns

Call = Callable[..., str]
PROTOCOL = {"metric": "iou", "threshold": 0.5, "split": "val"}


def record_trial(sweep: SweepRuns, folder: Path, name: str, lr: float, values: list[float], threshold: float) -> str:
    """A run as trainings leave it: configuration, protocol, a curve, checkpoints, attempts, a model."""
    run_id = sweep.child(name, name, {"optim.lr": lr})
    record = RunRecorder(sweep.store.uri, run_id, folder / "spool", interval_s=0.02)
    record.log_text(f"optim: {{lr: {lr}}}\nseed: 0\n", "config/experiment.yaml")
    record.log_dict({"val/iou": {**PROTOCOL, "threshold": threshold}}, "config/protocols.json")
    attempt = {"number": 1, "host": "h", "started": 10.0, "first_step": 0, "reason": "start"}
    record.log_dict({"attempts": [{**attempt, "outcome": "finished", "ended": 75.0, "last_step": 20}]}, "attempts.json")
    tags = {"objective": "val/iou", "mode": "max", "protocol": str(threshold), "config_digest": f"digest-{lr}"}
    tags |= {"dataset": "da7a", "code": "c0de", "best_checkpoint": str(folder / "step-00000010")}
    record.set_tags({f"sensorlab.{key}": value for key, value in tags.items()})
    for epoch, value in enumerate(values, 1):
        record.log({"val/iou": value, "perf/goodput": 0.75}, 10 * epoch)
    write_model(folder / name, {"w": torch.full((1,), lr)}, {"step": 10, "config": {}})
    record.log_model(folder / name, "toy")
    assert record.close("FINISHED", 60)
    return run_id


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, store: Store) -> tuple[str, dict[str, str]]:
    """A store of its own with one sweep of three trials, the third measured otherwise; (address, name -> run id)."""
    folder = tmp_path_factory.mktemp("filled")
    source, target = sqlite3.connect(store.uri.removeprefix("sqlite:///")), sqlite3.connect(folder / "mlruns.db")
    source.backup(target)
    source.close()
    target.close()
    own = open_store(f"sqlite:///{folder}/mlruns.db", "commands", folder / "artifacts")
    sweep = SweepRuns(own, "the-sweep", "the-sweep", "val/iou", "max", folder / "spool")
    ids = {"the-sweep": sweep.parent_run_id}
    ids["worse"] = record_trial(sweep, folder, "worse", 0.1, [0.5, 0.25], 0.5)
    ids["better"] = record_trial(sweep, folder, "better", 0.01, [0.25, 0.75], 0.5)
    ids["odd"] = record_trial(sweep, folder, "odd", 0.01, [0.9], 0.4)
    sweep.close("FINISHED")
    return own.uri, ids


@pytest.fixture
def call(filled: tuple[str, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> Call:
    def called(*arguments: str) -> str:
        parser = argparse.ArgumentParser()
        commands.register(parser.add_subparsers())
        args = parser.parse_args(["runs", *arguments, "--store", filled[0]])
        assert args.run(args) == 0
        return capsys.readouterr().out

    return called


def names(table: str) -> list[str]:
    return [line.split()[1] for line in table.splitlines()[2:] if line and not line.startswith(("not all", "2 more"))]


def test_list_sorts_and_filters(call: Call, filled: tuple[str, dict[str, str]]) -> None:
    listed = call("list", "--experiment", "commands")
    assert names(listed) == ["odd", "better", "worse", "the-sweep"]
    assert "not all of these objectives were measured by the same protocol" in listed
    assert names(call("list", "--sweep", "the-sweep", "--sort", "objective")) == ["better", "worse", "odd"]
    limited = call("list", "--sweep", filled[1]["the-sweep"][:8], "--limit", "1")
    assert names(limited.partition("\n\n")[0]) == ["odd"]
    assert "2 more: --limit 3" in limited
    assert call("list", "--experiment", "commands", "--status", "failed") == "no runs\n"
    row = next(line for line in listed.splitlines() if " worse " in line)
    assert row.split()[7:] == ["val/iou", "0.5", "10", "digest-0"]  # the best of the curve, not its end


def test_show_says_where_a_run_came_from(call: Call, filled: tuple[str, dict[str, str]]) -> None:
    run_id = filled[1]["better"]
    shown = " ".join(call("show", run_id[:12]).split())
    for part in (
        f"run {run_id} (better)",
        f"sweep {filled[1]['the-sweep']}",
        "goodput 75%",
        "val/iou 0.75 at step 20 (best)",
        "configuration digest-0.01",
        "data digest da7a",
        "code c0de",
        "protocol of val/iou metric iou threshold 0.5 split val",
        "1m05s start finished",
        f"/runs/{run_id}?workflowType",
    ):
        assert part in shown


def test_diff_names_settings_and_protocols_that_differ(call: Call) -> None:
    same = call("diff", "worse", "better")
    assert [line.split() for line in same.splitlines() if line.startswith("optim.lr")] == [["optim.lr", "0.1", "0.01"]]
    assert "seed" not in same
    assert "protocols: the same" in same
    (best,) = (line for line in same.splitlines() if line.startswith("val/iou (best)"))
    assert best.split()[2:] == ["0.5", "0.75", "+0.25"]
    other = call("diff", "better", "odd")
    assert "configuration: the same configuration" in other
    assert "different protocols: val/iou do NOT compare" in other
    assert [line.split() for line in other.splitlines() if line.startswith("threshold")] == [
        ["threshold", "0.5", "0.4"]
    ]


@pytest.mark.parametrize("noted", [True, False])
def test_best_is_what_the_sweep_has_noted_or_of_the_leading_level(
    call: Call, filled: tuple[str, dict[str, str]], noted: bool
) -> None:
    client, (run, key) = open_client(filled[0]), ("the-sweep", "best_run_id") if noted else ("worse", "fidelity")
    client.set_tag(filled[1][run], f"sensorlab.{key}", filled[1]["worse"] if noted else "1")
    try:
        assert f"{filled[1]['worse']} (worse, finished)" in call("best", "the-sweep")
    finally:
        client.delete_tag(filled[1][run], f"sensorlab.{key}")


def test_best_leaves_out_what_does_not_compare(call: Call, filled: tuple[str, dict[str, str]]) -> None:
    for arguments in (["the-sweep"], []):
        said = call("best", *arguments)
        assert f"{filled[1]['better']} (better, finished)" in said
        assert "0.75 at step 20" in said
        assert "1 trials measured with another protocol" in said
        assert "train_bev.py --validate" in said
    client = open_client(filled[0])
    for status in ("FAILED", "FINISHED"):
        client.update_run(filled[1]["better"], status=status)
        assert ("(better, " in call("best", "the-sweep")) == (status == "FINISHED")
    client.set_tag(filled[1]["worse"], "sensorlab.best_checkpoint", "")
    with pytest.raises(UserError, match="has no best checkpoint"):
        call("best", "worse")


def test_runs_of_other_tools_are_shown_and_nothing_is_claimed_of_them(
    call: Call, filled: tuple[str, dict[str, str]]
) -> None:
    client = open_client(filled[0])
    experiment = client.create_experiment("other tools")
    for name in ("foreign", "alien"):
        run_id = client.create_run(experiment, run_name=name).info.run_id
        client.log_metric(run_id, "accuracy", 0.5)
    assert "host" not in call("show", "foreign")
    difference = call("diff", "foreign", "alien")
    assert "configuration: not recorded of either run" in difference
    assert "origin: not recorded of either run" in difference
    assert "nothing says whether their numbers compare" in difference
    listed = call("list", "--sort", "objective")
    assert names(listed)[:3] == ["better", "worse", "odd"]
    with pytest.raises(UserError, match="never evaluated"):
        call("best", "alien")


def test_promote_prints_the_address_of_the_model(call: Call, filled: tuple[str, dict[str, str]]) -> None:
    assert "models:/bev@champion is version 1" in call("promote", "better", "--as", "bev@champion")
    named = open_client(filled[0]).get_model_version_by_alias("bev", "champion")
    assert named.run_id == filled[1]["better"]
    with pytest.raises(UserError, match="expected NAME@ALIAS"):
        call("promote", "better", "--as", "bev")


def test_what_does_not_name_one_run_is_refused(call: Call, filled: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    client = open_client(filled[0])
    index = RunIndex(filled[0])
    experiment = index.find("better").store.experiment_id
    twins = [client.create_run(experiment, run_name="twin").info.run_id for _ in range(2)]
    with pytest.raises(UserError, match=r"'twin' could be 2 runs: .*give more of the id"):
        index.find("twin")
    for run_id in twins:
        assert index.find(run_id).run_id == run_id
        client.delete_run(run_id)
    with pytest.raises(UserError, match="there is no run 'none'"):
        call("show", "none")
    with pytest.raises(UserError, match="there is no sweep 'better'"):
        call("list", "--sweep", "better")
    with pytest.raises(UserError, match="neither a run's id nor a name"):
        call("show", "a' OR 'b")
    with pytest.raises(UserError, match=r"there is no experiment 'x' .*commands"):
        call("list", "--experiment", "x")
    with pytest.raises(UserError, match="at least 1"):
        call("list", "--limit", "0")
    with pytest.raises(UserError, match="there is no tracking store"):
        RunIndex(f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(UserError, match=r"for a file: --store sqlite:///mlruns\.db"):
        RunIndex("mlruns.db")
    assert not (tmp_path / "none.db").exists()  # looking does not make one
