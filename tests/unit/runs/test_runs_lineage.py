"""Attempts, datasets, tables, models and the description of a run, in a real store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sensorlab.errors import UserError
from sensorlab.runs import models, overview
from sensorlab.runs.attempts import Attempts
from sensorlab.runs.client import open_client
from sensorlab.runs.datasets import log_datasets, stored_datasets
from sensorlab.runs.models import Signature, TensorInfo, write_model
from sensorlab.runs.recorder import RunRecorder
from sensorlab.runs.store import Store
from sensorlab.runs.sweep_runs import SweepRuns
from sensorlab.runs.tables import table_content

PATIENCE = 60.0
DATASETS = {
    "train": {"name": "world/train", "digest": "ab" * 32, "source": "/data/world", "profile": {"num_samples": 5}},
    "val": {"name": "world/val", "digest": "ab" * 32, "source": "/data/world", "profile": {"num_samples": 2}},
}


def test_each_attempt_says_how_the_one_before_ended(tmp_path: Path) -> None:
    first = Attempts(tmp_path)
    first.begin(0, "host-a")
    second = Attempts(tmp_path)  # the first never said how it ended
    second.begin(4, "host-b")
    second.end(9, "failed: ValueError: no")
    third = Attempts(tmp_path)
    third.begin(8, "host-a")
    third.end(12, "finished")
    saved = Attempts(tmp_path).all
    assert [(a.number, a.first_step, a.last_step, a.outcome) for a in saved] == [
        (1, 0, None, "died"),
        (2, 4, 9, "failed: ValueError: no"),
        (3, 8, 12, "finished"),
    ]
    assert [a.reason for a in saved] == [
        "start",
        "resumed: attempt 1 died",
        "resumed: attempt 2 failed: ValueError: no",
    ]
    assert saved[2].ended is not None
    assert saved[2].ended >= saved[2].started


def test_datasets_are_inputs_of_the_run_once(store: Store, new_run: Callable[[], str]) -> None:
    client = open_client(store.uri)
    run_id, other = new_run(), new_run()
    for run in (run_id, run_id, other):
        log_datasets(client, run, DATASETS)
    assert stored_datasets(client.get_run(run_id)) == stored_datasets(client.get_run(other)) == DATASETS
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 2
    found = client.search_runs([store.experiment_id], "dataset.name = 'world/train'")
    assert {run.info.run_id for run in found} == {run_id, other}


def test_datasets_that_the_store_refuses_keep_nothing_else_back(
    store: Store, new_run: Callable[[], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run()
    record = RunRecorder(store.uri, run_id, tmp_path / "spool", interval_s=0.02)
    record.log_datasets({"train": {**DATASETS["train"], "name": "x" * 600}})
    record.log({"loss": 1.0}, 1)
    assert record.close("FINISHED", PATIENCE)
    assert open_client(store.uri).get_run(run_id).data.metrics == {"loss": 1.0}
    assert "refuses 'datasets'" in caplog.text


def test_a_table_holds_one_evaluation(
    store: Store, new_run: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = new_run()
    record = RunRecorder(store.uri, run_id, tmp_path / "spool", interval_s=0.02)
    record.log_table({"class": ["car", "bus"], "ap": [0.5, float("nan")]}, "classes", 10)
    assert record.flush(PATIENCE)
    record.log_table({"class": ["car", "bus"], "ap": [torch.tensor(0.75), 0.25]}, "classes", 20)
    assert record.close("FINISHED", PATIENCE)
    client = open_client(store.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)  # load_table searches where that points, whatever the client
    table = client.load_table(store.experiment_id, "tables/classes.json", [run_id])
    assert table.to_dict("list") == {"step": [20, 20], "class": ["car", "bus"], "ap": [0.75, 0.25]}
    listing = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert listing == [{"path": "tables/classes.json", "type": "table"}]


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one length, got \{'a': 1, 'b': 2\}"):
        table_content({"a": [1], "b": [1, 2]}, 0)
    with pytest.raises(ValueError, match="10001 rows"):
        table_content({"a": range(10_001)}, 0)
    assert json.loads(table_content({"a": [float("inf")]}, 3)) == {"columns": ["step", "a"], "data": [[3, None]]}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    signature = Signature((TensorInfo("x", "float32", (-1, 4)),), (TensorInfo("y", "float32", (-1, 1)),))
    weights = {"layer.weight": torch.arange(4.0).reshape(1, 4), "layer.bias": torch.ones(1)}
    write_model(tmp_path / "best", weights, {"step": 7, "config": {}, "signature": signature.plain()})
    return tmp_path / "best"


def test_a_model_is_logged_once_and_completed_if_it_was_begun(
    store: Store, new_run: Callable[[], str], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = open_client(store.uri), new_run()

    def broken(*arguments: object) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(type(client), "log_model_artifacts", broken)
    with pytest.raises(ConnectionError):
        models.deliver_model(client, run_id, "toy", model_folder)
    with pytest.raises(UserError, match="no model in the store"):
        models.best_model(client, store.experiment_id, run_id)
    monkeypatch.undo()
    for _ in range(2):
        models.deliver_model(client, run_id, "toy", model_folder)
    (found,) = models.logged_models(client, store.experiment_id, run_id)
    assert (found.name, str(found.status), found.source_run_id) == ("toy", "READY", run_id)
    assert [(out.model_id, out.step) for out in client.get_run(run_id).outputs.model_outputs] == [(found.model_id, 7)]
    folder = models.download_model(store.uri, found)
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "model.json", "MLmodel"}
    assert (folder / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()

    from mlflow.models import Model

    read = Model.load(str(folder))
    assert read.signature.inputs.input_names() == ["x"]
    assert read.signature.outputs.inputs[0].shape == (-1, 1)
    assert set(read.flavors) == {"sensorlab"}  # no loader that could run code


def test_promotion_moves_the_alias(store: Store, new_run: Callable[[], str], model_folder: Path) -> None:
    client = open_client(store.uri)
    runs = [new_run(), new_run()]
    for run_id in runs:
        models.deliver_model(client, run_id, "toy", model_folder)
    for run_id, number in zip([*runs, runs[0]], "121", strict=True):
        assert str(models.promote(client, store.experiment_id, run_id, "toy", "champion").version) == number
        named = client.get_model_version_by_alias("toy", "champion")
        assert (named.run_id, str(named.version)) == (run_id, number)
    with pytest.raises(UserError, match="refuses toy@no/slash"):
        models.promote(client, store.experiment_id, runs[0], "toy", "no/slash")
    with pytest.raises(UserError, match="no model in the store"):
        models.promote(client, store.experiment_id, new_run(), "toy", "champion")


def test_a_model_reaches_the_store_through_the_recorder(
    store: Store, new_run: Callable[[], str], model_folder: Path, tmp_path: Path
) -> None:
    run_id = new_run()
    record = RunRecorder(store.uri, run_id, tmp_path / "spool", interval_s=0.02)
    record.log_datasets(DATASETS)
    record.log_model(model_folder, "toy")
    assert record.close("FINISHED", PATIENCE)
    client = open_client(store.uri)
    assert str(models.best_model(client, store.experiment_id, run_id).status) == "READY"
    assert stored_datasets(client.get_run(run_id)) == DATASETS


def facts(attempts: Attempts) -> dict[str, object]:
    return {**attempts.as_dict(), "dataset": "abc", "config_digest": "def", "code": "123", "has_diff": True}


def test_the_description_links_what_the_run_came_from(store: Store, new_run: Callable[[], str], tmp_path: Path) -> None:
    client, run_id = open_client(store.uri), new_run()
    for tag, value in {"sensorlab.role": "trial", "mlflow.parentRunId": "p1", "sensorlab.trial_id": "t3"}.items():
        client.set_tag(run_id, tag, value)
    attempts = Attempts(tmp_path)
    attempts.begin(0, "host-a")
    overview.describe(client, run_id, facts(attempts))
    attempts.end(5, "killed")
    overview.describe(client, run_id, facts(attempts))  # its own text is brought up to date
    note = client.get_run(run_id).data.tags[overview.NOTE_TAG]
    page = f"#/experiments/{store.experiment_id}/runs"
    mode = "?workflowType=machine_learning"
    assert note.startswith(f"[sweep]({page}/p1{mode}) → trial t3 → [1 attempt]({page}/{run_id}/artifacts/attempts.json")
    assert "from step 0 (start): killed at step 5" in note
    assert f"with [changes]({page}/{run_id}/artifacts/environment/git.diff{mode})" in note
    assert f"[configuration def]({page}/{run_id}/artifacts/config/experiment.yaml{mode})" in note

    client.set_tag(run_id, overview.NOTE_TAG, "the one with the new lidar")
    overview.describe(client, run_id, facts(attempts))
    assert client.get_run(run_id).data.tags[overview.NOTE_TAG] == "the one with the new lidar"


def test_a_description_of_many_attempts_fits_into_its_tag(
    store: Store, new_run: Callable[[], str], tmp_path: Path
) -> None:
    attempts = Attempts(tmp_path)
    for step in range(60):
        attempts.begin(step, "host-a")
        attempts.end(step, "failed: " + "x" * 490)
    text = overview.overview(open_client(store.uri).get_run(new_run()), facts(attempts))
    assert len(text) <= 8000
    assert "(50 earlier)" in text


def test_the_page_of_a_sweep_lists_its_trials_best_first(store: Store, tmp_path: Path) -> None:
    sweep = SweepRuns(store, "id-lineage", "lineage", "val/iou", "max", tmp_path / "spool")
    for name, value in (("a", 0.25), ("b", 0.5)):
        record = RunRecorder(store.uri, sweep.child(name), tmp_path / "spool", interval_s=0.02)
        record.log({"val/iou": value}, 1)
        assert record.close("FINISHED", PATIENCE)
    sweep.close("FINISHED")
    sweep.publish_view()
    note = open_client(store.uri).get_run(sweep.parent_run_id).data.tags[overview.NOTE_TAG]
    assert note.index("[b](") < note.index("0.5, finished") < note.index("[a](") < note.index("0.25, finished")
