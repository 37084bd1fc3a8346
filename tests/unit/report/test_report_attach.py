"""Tests of writing the report, the command, and attaching it to the sweep's run in a real store."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from report_sweeps import PROTOCOL, trial_entry, write_sweep, write_trial

from sensorlab.errors import UserError
from sensorlab.report.attach import attach_report, write_report
from sensorlab.report.commands import find_sweep, register
from sensorlab.report.gather import gather
from sensorlab.runs.client import open_client
from sensorlab.runs.store import open_store
from sensorlab.runs.sweep_runs import SweepRuns


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, SweepRuns]:
    """A sweep of two trials whose pictures and protocols only the store has."""
    root = tmp_path_factory.mktemp("out")
    store = open_store(f"sqlite:///{root / 'mlruns.db'}", "report")
    directory = root / "sweeps" / "toy"
    tags = {"sensorlab.sweep_dir": str(directory)}
    runs = SweepRuns(store, "toy", "toy", "val/iou", "max", root / "spool", tags=tags)
    entries = []
    for number in range(2):
        entry = trial_entry(directory, number, run_id=runs.child(f"t_{number:05d}"))
        write_trial(entry, [0.01, 0.1 * (number + 1), 0.02])  # best at step 20
        for state in Path(entry["run_dir"]).glob("checkpoints/*/state.json"):
            state.unlink()
        client = open_client(store.uri)
        client.log_dict(entry["run_id"], {"val/iou": PROTOCOL}, "config/protocols.json")
        for step in (10, 20, 30):
            shade = np.full((40, 60, 3), 40 * number + step, dtype=np.uint8)
            client.log_image(entry["run_id"], shade, key="val/panel_0", step=step)
        entries.append(entry)
    write_sweep(directory, entries)
    plan = json.loads((directory / "sweep.json").read_text())
    (directory / "sweep.json").write_text(json.dumps({**plan, "tracking_uri": store.uri}))
    return directory, runs


def test_what_only_the_store_has(recorded):
    directory, runs = recorded
    report = gather(directory)
    assert report.sweep.parent_run_id == runs.parent_run_id
    assert report.rankings[0].definition("val/iou") == PROTOCOL
    assert [(e.role, [(panel.name, panel.step) for panel in e.panels]) for e in report.exhibits] == [
        ("best", [("val/panel_0", 20)]),  # the step of its best evaluation
        ("worst", [("val/panel_0", 20)]),
    ]
    assert (report.exhibits[0].panels[0].width, report.exhibits[0].panels[0].height) == (60, 40)
    assert report.sweep.notes == ()


def test_it_is_attached_to_the_sweeps_run(recorded):
    directory, runs = recorded
    path = attach_report(directory, runs.recorder)
    assert path == directory / "report.html"
    assert runs.recorder.flush(60.0)
    client = open_client(runs.store.uri)
    assert [file.path for file in client.list_artifacts(runs.parent_run_id, "report")] == ["report/report.html"]


def test_a_sweep_is_found_by_the_id_of_its_run(recorded):
    directory, runs = recorded
    assert find_sweep(runs.parent_run_id, store=runs.store.uri) == directory
    trial = runs.child("t_00000")
    with pytest.raises(UserError, match=f"is a trial; name the run of its sweep: {runs.parent_run_id}"):
        find_sweep(trial, store=runs.store.uri)
    with pytest.raises(UserError, match="could not be read"):
        find_sweep("0" * 32, store=runs.store.uri)


def test_a_run_whose_sweep_is_elsewhere(recorded, tmp_path):
    _, runs = recorded
    tags = {"sensorlab.sweep_dir": str(tmp_path / "gone")}
    other = SweepRuns(runs.store, "other", "other", "val/iou", "max", tmp_path, tags=tags)
    with pytest.raises(UserError, match="not on this machine"):
        find_sweep(other.parent_run_id, store=runs.store.uri)
    plain = open_client(runs.store.uri).create_run(runs.store.experiment_id).info.run_id
    with pytest.raises(UserError, match="is not the run of a sweep"):
        find_sweep(plain, store=runs.store.uri)


def test_a_store_that_is_away_is_a_note(tmp_path):
    directory = write_sweep(tmp_path / "toy", [trial_entry(tmp_path, 0)])
    plan = json.loads((directory / "sweep.json").read_text())
    (directory / "sweep.json").write_text(json.dumps({**plan, "tracking_uri": f"sqlite:///{tmp_path / 'gone.db'}"}))
    (note,) = gather(directory).sweep.notes
    assert "could not be read" in note
    assert not (tmp_path / "gone.db").exists()


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    return parser.parse_args(["report", *words])


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SENSORLAB_OUTPUT_ROOT", raising=False)
    directory = write_sweep(tmp_path / "sweeps" / "toy", [trial_entry(tmp_path, 0)])
    for name in ("toy", "latest", str(directory)):
        out = tmp_path / "to" / f"{Path(name).name}.html"
        args = parsed(name, "--out", str(out), "--output", str(tmp_path), "--no-tracking")
        assert args.run(args) == 0
        assert out.read_text().startswith("<!DOCTYPE html>")
        assert str(out) in capsys.readouterr().out
    assert not list(out.parent.glob(".*"))  # nothing half-written is left
    with pytest.raises(UserError, match=r"there is no sweep 'other'.*there are: toy"):
        find_sweep("other", str(tmp_path))
    assert not (tmp_path / "missing").exists()
    with pytest.raises(UserError, match="there are none yet"):
        find_sweep("latest", str(tmp_path / "missing"))
    assert not (tmp_path / "missing").exists()  # looking creates nothing


def test_a_place_that_cannot_be_written(tmp_path):
    directory = write_sweep(tmp_path / "toy", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(directory, tmp_path / "file" / "report.html", use_tracking=False)


def test_a_report_that_fails_never_fails_the_sweep(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert attach_report(tmp_path / "nothing") is None
    assert "could not be made (UserError: " in caplog.text
