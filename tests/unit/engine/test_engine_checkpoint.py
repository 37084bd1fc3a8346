from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch

from sensorlab.engine import checkpoint
from sensorlab.engine.checkpoint import CheckpointError, CheckpointStore
from sensorlab.errors import UserError

STATE = {
    "model": {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)},
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(4.0)}}, "betas": (0.9, 0.999)},
    "cursor": {"epoch": 2, "batch": 7},
    "nothing": None,
    "text": "täxt",
}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "step-00000001"
    checkpoint.save(path, STATE, step=1, metrics={"val/iou": 0.5})
    return path


def test_state_comes_back_as_it_was(saved):
    state = checkpoint.load(saved)
    assert torch.equal(state["model"]["a.weight"], STATE["model"]["a.weight"])
    assert state["model"]["a.count"].dtype == torch.int64
    assert state["optimizer"]["state"].keys() == {0}
    assert state["optimizer"]["betas"] == (0.9, 0.999)
    assert (state["cursor"], state["nothing"], state["text"]) == (STATE["cursor"], None, "täxt")


def test_saving_tensors_that_share_memory_keeps_both(tmp_path):
    tensor = torch.arange(4.0)
    checkpoint.save(tmp_path / "step-1", {"m": {"x": tensor, "view": tensor[1:3]}}, step=1, metrics={})
    state = checkpoint.load(tmp_path / "step-1")
    assert torch.equal(state["m"]["view"], tensor[1:3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-4]), "bytes"),
        (lambda p: (p / "state.json").write_text((p / "state.json").read_text().replace("7", "8")), "altered"),
        (lambda p: (p / "optimizer.safetensors").unlink(), "missing or foreign"),
        (lambda p: (p / "extra.safetensors").write_bytes(b""), "missing or foreign"),
        (lambda p: (p / "MANIFEST.json").unlink(), "no readable MANIFEST"),
        (lambda p: (p / "MANIFEST.json").write_text("{"), "not a manifest"),
        (lambda p: (p / "MANIFEST.json").write_text(json.dumps({"format": 99})), "format 99"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(saved, damage, message):
    damage(saved)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load(saved)
    assert saved.name in str(error.value)


def test_a_pickle_is_never_executed(saved, tmp_path):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    payload = pickle.dumps(Payload())
    (saved / "model.safetensors").write_bytes(payload)
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    import hashlib

    manifest["files"]["model.safetensors"] = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="safetensors"):
        checkpoint.load(saved)
    assert not marker.exists()


def test_what_is_neither_tensor_nor_plain_data_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"model\.x: object"):
        checkpoint.save(tmp_path / "step-1", {"model": {"x": object()}}, step=1, metrics={})
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        checkpoint.save(tmp_path / "file" / "step-1", STATE, step=1, metrics={})


def test_store_keeps_the_latest_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_latest=2, best_metric="val/iou", best_mode="max")
    for step, iou in enumerate([0.1, 0.9, 0.3, 0.2, float("nan")], start=1):
        store.save({"x": step}, step=step, metrics={"val/iou": iou})
    assert [info.step for info in store.all()] == [2, 4, 5]
    assert store.best().step == 2
    assert store.latest().step == 5


def test_leftovers_of_a_killed_write_are_not_checkpoints(saved, tmp_path):
    shutil.copytree(saved, tmp_path / ".tmp-step-00000002-1")
    (tmp_path / "step-00000003").mkdir()
    assert CheckpointStore(tmp_path).latest().step == 1


def test_empty_store_has_nothing(tmp_path):
    store = CheckpointStore(tmp_path / "never-made")
    assert (store.latest(), store.best(), store.all()) == (None, None, [])
