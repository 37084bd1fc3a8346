from __future__ import annotations

import base64
import dataclasses
import json
import logging
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from sensorlab.runs import links
from sensorlab.runs.client import open_client
from sensorlab.runs.delivery import Delivery
from sensorlab.runs.recorder import RunRecorder
from sensorlab.runs.store import Store
from sensorlab.runs.sweep_runs import SweepRuns, TrialRun, leading_level, rank
from sensorlab.runs.tags import FIDELITY_TAG, PROTOCOL_TAG
from sensorlab.runs.views import common_images, sweep_view, varying_params

Open = Callable[..., SweepRuns]


@pytest.fixture
def open_sweep(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Open:
    def opened(mode: str = "max") -> SweepRuns:
        name = request.node.name
        return SweepRuns(store, f"id-{name}", name, "val/iou", mode, tmp_path / "spool", {"budget": 4})  # type: ignore[arg-type]

    return opened


def test_a_driver_that_starts_again_finds_its_runs(store: Store, open_sweep: Open) -> None:
    sweep = open_sweep()
    child = sweep.child("t1", "first", {"optim.lr": 1e-3}, log_scaled=["optim.lr"])
    sweep.close("KILLED")
    open_client(store.uri).set_terminated(child, "KILLED")

    again = open_sweep()
    assert again.parent_run_id == sweep.parent_run_id
    assert again.child("t1", params={"optim.lr": 1e-3}, log_scaled=["optim.lr"]) == child
    other = again.child("t2", params={"optim.lr": 1e-2})
    run = open_client(store.uri).get_run(child)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "first"
    assert run.data.params == {"optim.lr": "0.001", "optim.log10_lr": "-3"}
    assert run.data.tags["mlflow.parentRunId"] == sweep.parent_run_id
    assert other != child
    again.close("FINISHED")
    assert open_client(store.uri).get_run(sweep.parent_run_id).info.status == "FINISHED"


def test_no_child_is_left_running(store: Store, open_sweep: Open) -> None:
    sweep = open_sweep()
    children = {trial: sweep.child(trial) for trial in ("done", "stopped", "crashed", "forgotten")}
    client = open_client(store.uri)
    client.set_terminated(children["done"], "FINISHED")
    ended = sweep.close_children({"stopped": "FINISHED", "crashed": "FAILED", "done": "FAILED"})
    assert ended == {"stopped": "FINISHED", "crashed": "FAILED", "forgotten": "KILLED"}
    assert {trial: client.get_run(run_id).info.status for trial, run_id in children.items()} == {
        "done": "FINISHED",
        "stopped": "FINISHED",
        "crashed": "FAILED",
        "forgotten": "KILLED",
    }
    assert sweep.close_children({}) == {}
    sweep.close("FINISHED")


def test_what_trials_left_while_the_store_was_away_is_delivered_at_the_end(
    store: Store, open_sweep: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = open_sweep()
    children = [sweep.child(name) for name in ("first", "second")]
    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "connect", lambda self: 1 / 0)
        for run_id in children:
            left = RunRecorder(store.uri, run_id, tmp_path / "trials" / run_id[:8] / "recording")
            left.log({"val/iou": 0.5}, 10)
            assert not left.close("FAILED", 0.1)
        assert sweep.deliver_leftovers(0.1) == 2
    assert sweep.deliver_leftovers() == 0
    for run_id in children:
        run = open_client(store.uri).get_run(run_id)
        assert (run.info.status, run.data.metrics["val/iou"]) == ("FAILED", 0.5)
    assert sweep.close("FINISHED")  # its own recorder was left alone


def test_trials_are_ranked_by_their_best_value(store: Store, open_sweep: Open, tmp_path: Path) -> None:
    sweep = open_sweep()
    for trial, values in {"a": [0.1, 0.5, 0.3], "b": [0.4, math.nan], "c": []}.items():
        record = RunRecorder(store.uri, sweep.child(trial, params={"lr": trial}), tmp_path / "spool", interval_s=0.02)
        for epoch, value in enumerate(values):
            record.log({"train/loss": 1.0}, epoch * 10)
            record.log({"val/iou": value}, epoch * 10)
        assert record.close("FINISHED", 60)
    trials = sweep.trials()
    assert [(t.trial_id, t.objective_step) for t in trials] == [("a", 10), ("b", 0), ("c", -1)]
    assert trials[0].objective == 0.5
    assert trials[0].metrics["val/iou"] == 0.3  # the last value
    assert trials[0].params == {"lr": "a"}
    assert math.isnan(trials[2].objective)
    sweep.close("FINISHED")


def test_the_objective_is_the_first_metric_of_every_run(store: Store, open_sweep: Open, tmp_path: Path) -> None:
    # MLflow's comparison page opens on the metric that was stored first.
    sweep = open_sweep()
    run_id = sweep.child("t")
    record = RunRecorder(store.uri, run_id, tmp_path / "spool", interval_s=0.02)
    record.log({"a/first_by_name": 1.0}, 0)
    record.log({"val/iou": 0.5}, 0)
    assert record.close("FINISHED", 60)
    assert next(iter(open_client(store.uri).get_run(run_id).data.metrics)) == "val/iou"
    points = open_client(store.uri).get_metric_history(run_id, "val/iou")
    assert [(point.step, point.value) for point in points][1:] == [(0, 0.5)]
    assert points[0].step == -1
    assert math.isnan(points[0].value)
    sweep.close("FINISHED")


def test_best_so_far_is_mirrored_on_the_parent(store: Store, open_sweep: Open) -> None:
    sweep = open_sweep()
    sweep.mirror_best("t1", "run1", {"val/iou": 0.2}, 1)
    sweep.mirror_best("t3", "run3", {"val/iou": 0.4}, 5)
    assert sweep.close("FINISHED")
    parent = open_client(store.uri).get_run(sweep.parent_run_id)
    assert parent.data.metrics["val/iou"] == 0.4
    assert parent.data.tags["sensorlab.best_trial"] == "t3"
    assert parent.data.tags["sensorlab.best_run_id"] == "run3"
    assert parent.data.params == {"budget": "4"}


def trial(trial_id: str, objective: float, protocol: str = "p") -> TrialRun:
    return TrialRun(trial_id, trial_id, trial_id, "FINISHED", objective, 1, {}, {}, {}, 1.0, protocol)


def test_ranking_keeps_protocols_apart(caplog: pytest.LogCaptureFixture) -> None:
    trials = [trial("a", 0.1), trial("b", 0.9, "other"), trial("c", 0.3), trial("d", math.nan, "third")]
    with caplog.at_level(logging.WARNING):
        assert [t.trial_id for t in rank(trials, "max")] == ["c", "a", "b", "d"]
    assert "trials b measured with another protocol" in caplog.text
    assert [t.trial_id for t in rank(trials, "min")] == ["a", "c", "b", "d"]
    assert PROTOCOL_TAG == "sensorlab.protocol"


def test_ranking_keeps_levels_of_fidelity_apart(caplog: pytest.LogCaptureFixture) -> None:
    rows = [("a", 0.9, 0), ("b", 0.8, 0), ("c", 0.7, 0), ("d", 0.3, 1), ("e", 0.4, 1), ("f", 0.1, 2)]
    protocols = ["small", "large", "large"]  # what a level measures may depend on it
    trials = [
        dataclasses.replace(trial(name, value, protocols[level]), tags={FIDELITY_TAG: str(level)})
        for name, value, level in rows
    ]
    with caplog.at_level(logging.WARNING):
        assert [t.trial_id for t in rank(trials, "max")] == ["f", "e", "d", "a", "b", "c"]
        begun = [*trials[:5], dataclasses.replace(trials[5], status="RUNNING")]
        assert [t.trial_id for t in rank(begun, "max")] == ["e", "d", "f", "a", "b", "c"]
    assert not caplog.text
    assert leading_level([(0, "KILLED"), (1, "KILLED")]) == 1


def test_links_open_the_page_that_shows_the_sweep() -> None:
    store = Store("http://host:5000/", "7", "bev")
    link = links.sweep_link(store, "abc", "val/mAP@0.5", "min")
    assert link.startswith("http://host:5000/#/experiments/7/runs?")
    query = parse_qs(urlsplit(link).fragment.partition("?")[2])
    assert query == {
        "workflowType": ["machine_learning"],
        "searchFilter": ["tags.mlflow.parentRunId = 'abc'"],
        "orderByKey": ["metrics.`val/mAP_0.5`"],
        "orderByAsc": ["true"],
        "compareRunsMode": ["CHART"],
    }
    assert links.ui_command(store.uri) is None
    compare = links.compare_link(store, ["r1", "r2"])
    assert parse_qs(urlsplit(compare).fragment.partition("?")[2]) == {
        "runs": ['["r1", "r2"]'],
        "experiments": ['["7"]'],
    }
    assert links.run_link(store, "r1") == "http://host:5000/#/experiments/7/runs/r1?workflowType=machine_learning"


def test_links_of_a_database_name_the_command_that_serves_it() -> None:
    store = Store("sqlite:////data/my runs/mlruns.db", "1", "bev")
    assert links.sweep_link(store, "abc", "val/iou").startswith("http://127.0.0.1:5000/#/experiments/1/runs?")
    command = links.ui_command(store.uri)
    assert command is not None
    assert 'mlflow ui --workers 1 --backend-store-uri "sqlite:////data/my runs/mlruns.db"' in command


def test_the_published_view_is_what_the_page_reads(store: Store, open_sweep: Open, tmp_path: Path) -> None:
    sweep = open_sweep()
    for index in range(2):
        params = {"optim.lr": 10.0 ** -(index + 2), "encoder": "res18"}
        run_id = sweep.child(f"t{index}", params=params, log_scaled=["optim.lr"])
        record = RunRecorder(store.uri, run_id, tmp_path / "spool", interval_s=0.02)
        record.log({"val/iou": 0.1 * index}, 1)
        for step in (10, 20)[: 2 - index]:
            record.log_image(np.zeros((4, 4), np.uint8), "val/panel", step)
        assert record.close("FINISHED", 60)
    link = sweep.publish_view()
    sweep.close("FINISHED")
    query = parse_qs(urlsplit(link).fragment.partition("?")[2])
    assert "searchFilter" not in query  # the page ignores the view if its address holds a filter
    tags = open_client(store.uri).get_experiment(store.experiment_id).tags
    packed = tags[f"mlflow.sharedViewState.{query['viewStateShareKey'][0]}"]
    assert packed.startswith("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))
    assert state["searchFilter"] == f"tags.mlflow.parentRunId = '{sweep.parent_run_id}'"
    assert state["selectedColumns"] == ["metrics.`val/iou`", "params.`optim.lr`"]
    charts = {chart["type"]: chart for chart in state["compareRunCharts"]}
    assert charts["PARALLEL"]["selectedParams"] == ["optim.log10_lr"]
    assert charts["LINE"]["metricKey"] == "val/iou"
    assert (charts["IMAGE"]["imageKeys"], charts["IMAGE"]["step"]) == (["val/panel"], 10)  # both trials have step 10
    assert [section["name"] for section in state["compareRunSections"]] == [
        *("Sweep", "Pictures", "val", "train", "perf", "system")
    ]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections


def test_view_details() -> None:
    assert varying_params([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}]) == ["b", "c"]
    assert common_images([{("p", 1), ("p", 2)}, {("p", 1)}, set()]) == {"p": 1}
    assert common_images([{("p", 3)}, {("p", 2)}]) == {"p": 3}  # nothing in common: the best trial's
    many = sweep_view("abc", "val/iou", "max", [f"p{index}" for index in range(30)], {})
    packed = base64.b64encode(zlib.compress(json.dumps(many).encode()))
    assert len(packed) < 20_000  # the limit of an experiment's tag
    assert many["compareRunSections"][0]["columns"] == 1
    repeated = sweep_view("abc", "val/iou", "max", ["optim.lr", "seed"], {})
    assert repeated["compareRunCharts"][0]["selectedParams"] == ["optim.lr"]  # the seed of repeats explains nothing,
    assert "params.`seed`" in repeated["selectedColumns"]  # but tells them apart
    assert sweep_view("abc", "val/iou", "max", ["seed"], {})["compareRunCharts"][0]["selectedParams"] == ["seed"]
