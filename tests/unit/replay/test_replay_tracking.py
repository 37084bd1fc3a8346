"""What a training leaves in the store, as the pages and the commands find it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from sensorlab.engine.callbacks.best_model import SignatureProbe
from sensorlab.engine.checkpoint import CheckpointStore
from sensorlab.engine.compare import read_series
from sensorlab.errors import UserError
from sensorlab.replay.model import load_folder, load_model
from sensorlab.runs import commands
from sensorlab.runs.models import logged_models
from sensorlab.runs.overview import NOTE_TAG
from sensorlab.runs.query import StoredRun
from sensorlab.runs.store import Store


def test_every_attempt_is_recorded_with_its_reason(stored: StoredRun, finished: tuple[str, Path]) -> None:
    recorded = stored.json("attempts.json")["attempts"]
    assert [(a["first_step"], a["last_step"], a["reason"], a["outcome"]) for a in recorded] == [
        (0, 7, "start", "failed: Died"),
        (5, 15, "resumed: attempt 1 failed: Died", "finished"),
    ]
    assert recorded == json.loads((finished[1] / "attempts.json").read_text())["attempts"]
    note = stored.tags[NOTE_TAG]
    for part in ("from step 5 (resumed: attempt 1 failed", "step-00000015", "`c0de`", stored.tag("config_digest")):
        assert part in note


def test_the_store_has_the_curves_of_the_file(stored: StoredRun, finished: tuple[str, Path]) -> None:
    expected = {step: value for (step, name), value in read_series(finished[1]).items() if name == "val/mse"}
    assert dict(stored.points("val/mse")) == expected
    assert len(expected) == 3
    value, step = stored.best
    assert (value, step) == min((value, step) for step, value in expected.items())


def test_digest_and_path_of_the_last_weights_are_tags(stored: StoredRun, finished: tuple[str, Path]) -> None:
    latest = CheckpointStore(finished[1] / "checkpoints").latest()
    manifest = json.loads((latest.path / "MANIFEST.json").read_text())
    assert stored.tag("weights_sha256") == manifest["files"]["model.safetensors"]["sha256"]
    assert (stored.tag("latest_checkpoint"), stored.tag("latest_step")) == (str(latest.path), "15")
    best = Path(stored.tag("best_checkpoint"))
    assert best.name == f"step-{stored.best[1]:08d}"


def test_tables_of_the_latest_and_the_best_evaluation(stored: StoredRun) -> None:
    latest, best = (stored.json(f"tables/{folder}parts.json") for folder in ("", "best/"))
    points = dict(stored.points("val/mse"))
    assert latest == {"columns": ["step", "part", "mse"], "data": [[15, "all", points[15]]]}
    assert best["data"] == [[stored.best[1], "all", stored.best[0]]]


def test_the_best_model_loads_without_pickle_and_computes_the_same(
    store: Store, stored: StoredRun, finished: tuple[str, Path]
) -> None:
    loaded = load_model(stored.run_id, store.uri)
    assert loaded.description["step"] == stored.best[1]
    assert loaded.description["weights"] == "average"
    assert loaded.description["signature"] == {
        "inputs": [{"name": "input", "dtype": "float32", "shape": [-1, 4]}],
        "outputs": [{"name": "output", "dtype": "float32", "shape": [-1, 1]}],
    }
    (logged,) = logged_models(stored.client, store.experiment_id, stored.run_id)
    assert logged.params["val/mse"] == str(stored.best[0])
    assert logged.params["dataset"] == "d" * 64
    from safetensors.torch import load_file

    saved = load_file(Path(stored.tag("best_checkpoint")) / "ema.safetensors")
    state = loaded.model.state_dict()
    assert {f"model.{name}" for name in state} == saved.keys()
    assert all(torch.equal(saved[f"model.{name}"], value) for name, value in state.items())
    assert not loaded.model.training
    assert loaded.model(torch.zeros(2, 4)).shape == (2, 1)


def test_the_checkpoint_of_a_stopped_run_can_be_promoted(store: Store, stored: StoredRun) -> None:
    tags = {"sensorlab.role": "trial", "sensorlab.best_checkpoint": stored.tag("best_checkpoint")}
    run_id = stored.client.create_run(store.experiment_id, tags=tags).info.run_id
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    args = parser.parse_args(["runs", "promote", run_id, "--as", "toy@best", "--store", store.uri])
    assert args.run(args) == 0
    version = stored.client.get_model_version_by_alias("toy", "best")
    assert version.run_id == run_id
    expected = load_model(stored.run_id, store.uri).model.state_dict()
    promoted = load_model(run_id, store.uri).model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in promoted.items())
    args.id = stored.client.create_run(store.experiment_id).info.run_id
    with pytest.raises(UserError, match="no model in the store"):
        args.run(args)


def test_a_damaged_model_is_refused(finished: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the model"):
        load_folder(tmp_path)
    source = finished[1] / "best_model"
    for file in ("model.json", "model.safetensors"):
        (tmp_path / file).write_bytes((source / file).read_bytes())
    load_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="was altered"):
        load_folder(tmp_path)


def test_the_probe_looks_once() -> None:
    class Network(torch.nn.Module):
        def forward(self, image, depth=None, *, flip=None):
            return {"boxes": [image.sum((1, 2)), depth.double()], "count": torch.tensor(3)}

    probe, network = SignatureProbe(), Network()
    probe.attach(network)
    for size in (4, 8):
        network(torch.zeros(2, size, 3), depth=torch.zeros(2), flip=None)
    assert probe.found is not None
    assert probe.found.plain() == {
        "inputs": [
            {"name": "image", "dtype": "float32", "shape": [-1, 4, 3]},
            {"name": "depth", "dtype": "float32", "shape": [-1]},
        ],
        "outputs": [
            {"name": "boxes.0", "dtype": "float32", "shape": [-1]},
            {"name": "boxes.1", "dtype": "float64", "shape": [-1]},
            {"name": "count", "dtype": "int64", "shape": []},
        ],
    }
    assert not network._forward_hooks
