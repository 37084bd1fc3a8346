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


def _replace(file, old, new):
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))


def _by_a_directory(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir()


def _by_a_link_to_itself(file):
    file.unlink()
    file.symlink_to(file)


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
        (lambda p: _replace(p / "MANIFEST.json", b"0.5", b"0.9"), "MANIFEST.json was altered"),
        (lambda p: _by_a_directory(p / "model.safetensors"), "cannot be read.*Is a directory"),
        (lambda p: _by_a_directory(p / "MANIFEST.json"), "no readable MANIFEST"),
        (_by_a_directory, "no readable MANIFEST"),
        (lambda p: _by_a_link_to_itself(p / "state.json"), "cannot be read"),
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
    manifest.pop("sha256")
    manifest["sha256"] = checkpoint._seal(manifest)
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


def _is_refused(path):
    try:
        checkpoint.verify(path)
    except CheckpointError as error:
        return path.name in str(error)
    return False


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(saved):
    """Bits of the manifest's layout do not matter; every other one does."""
    for file in sorted(saved.iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            if not _is_refused(saved):
                assert file.name == "MANIFEST.json"
                info = checkpoint.verify(saved)
                assert (info.step, info.metrics) == (1, {"val/iou": 0.5})
        file.write_bytes(content)
    checkpoint.verify(saved)


def test_a_file_cut_anywhere_is_refused(saved):
    for file in sorted(saved.iterdir()):
        content = file.read_bytes()
        for length in range(0, len(content), 11):
            file.write_bytes(content[:length])
            with pytest.raises(CheckpointError, match=saved.name):
                checkpoint.load(saved)
        file.write_bytes(content)
    checkpoint.load(saved)


@pytest.mark.parametrize("name", ["step-00000007", "step-00000001-backup"])
def test_a_copy_under_another_name_is_foreign(saved, tmp_path, name, caplog):
    shutil.copytree(saved, tmp_path / name)
    assert CheckpointStore(tmp_path).latest().path == saved
    assert name in caplog.text
    assert "foreign" in caplog.text


def test_recovery_removes_leftovers_and_undoes_a_replacement(saved, tmp_path):
    shutil.copytree(saved, tmp_path / ".tmp-step-00000002-1")
    saved.rename(tmp_path / f".old-{saved.name}")
    store = CheckpointStore(tmp_path)
    assert store.latest().path.name == f".old-{saved.name}"
    store.recover()
    assert store.latest().path == saved
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]


def test_a_second_checkpoint_of_a_step_replaces_the_first(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save({"x": 1}, step=5, metrics={})
    path = store.save({"x": 2}, step=5, metrics={})
    assert checkpoint.load(path)["x"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_two_tensors_of_one_name_are_refused(tmp_path):
    state = {"model": {"a.b": {"c": torch.ones(1)}, "a": {"b.c": torch.zeros(1)}}}
    with pytest.raises(ValueError, match=r"'a\.b\.c'"):
        checkpoint.save(tmp_path / "step-1", state, step=1, metrics={})


def test_empty_store_has_nothing(tmp_path):
    store = CheckpointStore(tmp_path / "never-made")
    assert (store.latest(), store.best(), store.all()) == (None, None, [])


def test_a_reader_finds_what_the_next_attempt_will_find(tmp_path):
    """A process was killed between the two renames that replace a checkpoint of the same step."""
    store = checkpoint.CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save({"cursor": {"step": step}}, step=step, metrics={})
    (tmp_path / "step-00000002").rename(tmp_path / ".old-step-00000002")
    latest = store.latest()
    assert latest is not None
    assert latest.step == 2
    store.recover()
    again = store.latest()
    assert again is not None
    assert (again.step, again.path.name) == (2, "step-00000002")


def _flip_a_bit(path):
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _steps(store):
    return [info.step for info in store.all()]


def _damaged_store(root, steps, damaged, **settings):
    """Checkpoints whose metric is their step; one bit of each damaged one is flipped."""
    store = CheckpointStore(root, keep_latest=len(steps), **settings)
    for step in steps:
        path = store.save({"model": {"w": torch.tensor(float(step))}}, step=step, metrics={"val/iou": float(step)})
        if step in damaged:
            _flip_a_bit(path)
    return store


def test_what_was_refused_does_not_crowd_out_what_can_be_restored(tmp_path, caplog):
    """Damaged checkpoints of later steps outrank by number what the next attempt saves."""
    _damaged_store(tmp_path, [5, 10, 15], {10, 15})
    store = CheckpointStore(tmp_path, keep_latest=2)
    store.recover()
    found = store.latest()
    assert found.step == 5
    store.set_aside(newer_than=found)
    assert "step-00000010 was refused and is kept as .refused-step-00000010" in caplog.text
    for step in (6, 8):
        store.save({"model": {"w": torch.tensor(1.0)}}, step=step, metrics={})
    assert _steps(store) == [6, 8]
    assert store.latest().step == 8
    store.recover()
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".refused-step-00000010", ".refused-step-00000015"]


def test_a_step_can_be_refused_again(tmp_path):
    for value in (1.0, 2.0):
        store = _damaged_store(tmp_path, [10], {10})
        store.set_aside(newer_than=store.latest())
        assert (_steps(store), value) == ([], value)
    assert [path.name for path in tmp_path.iterdir()] == [".refused-step-00000010"]


def test_what_is_no_checkpoint_of_the_store_is_left_alone(saved, tmp_path):
    copy = tmp_path / "step-00000009-backup"
    shutil.copytree(saved, copy)
    store = CheckpointStore(tmp_path)
    store.set_aside(newer_than=store.latest())
    assert sorted(tmp_path.iterdir()) == [saved, copy]


@pytest.mark.parametrize(
    ("mode", "damaged", "best"), [("max", {4, 3}, 2), ("min", {1}, 2), ("max", {1, 2, 3, 4}, None)]
)
def test_the_best_one_is_never_a_damaged_one(tmp_path, caplog, mode, damaged, best):
    store = _damaged_store(tmp_path, [1, 2, 3, 4], damaged, best_metric="val/iou", best_mode=mode)
    found = store.best()
    assert (found and found.step) == best
    assert caplog.text.count("refused: checkpoint") >= len(damaged)


def test_retention_keeps_the_best_one_that_can_be_restored(tmp_path):
    _damaged_store(tmp_path, [1, 2, 3, 4], {2}, best_metric="val/iou", best_mode="min")
    _flip_a_bit(tmp_path / "step-00000001")
    store = CheckpointStore(tmp_path, keep_latest=1, best_metric="val/iou", best_mode="min")
    store.retain()
    assert _steps(store) == [3, 4]
