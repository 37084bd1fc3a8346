"""The dataset of an experiment: made once, found again, and refused when it is not the one that is asked for."""

import shutil

import pytest

from sensorlab.cluster.datasets import ensure_dataset
from sensorlab.data.dataset import MANIFEST
from sensorlab.errors import UserError
from sensorlab.experiment import DataConfig

PREPARE = {"source": "synthetic", "scenes": 2, "keyframes": 1, "image_height": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An output root with a dataset that an experiment has made."""
    root = tmp_path_factory.mktemp("outputs")
    ensure_dataset(data(), root, lambda line: None)
    return root


def data(path="datasets/world", **changed):
    return DataConfig(path=str(path), prepare=PREPARE | changed)


def test_an_equal_request_finds_it_again(made):
    said = []
    assert ensure_dataset(data(), made, said.append) == made / "datasets" / "world"
    assert said == []


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("scenes", 3, "2"),
        ("keyframes", 2, "1"),
        ("seed", 7, "0"),
        ("sweeps", 3, "1"),
        ("image_height", None, "64"),
        ("version", "v1.0-trainval", "v1.0-mini"),
        ("val_scenes", ("scene-0001",), "[]"),
        ("source", "nuscenes", "synthetic"),
    ],
)
def test_another_request_is_refused(made, key, value, found):
    with pytest.raises(UserError) as caught:
        ensure_dataset(data(**{key: value}), made)
    wanted = {"image_height": "null", "val_scenes": '["scene-0001"]'}.get(key, str(value))
    message = str(caught.value)
    assert message.startswith(f"{made}/datasets/world was prepared with data.prepare.{key}={found}, ")
    assert f"asks for data.prepare.{key}={wanted}: delete that directory" in message
    assert "data.path" in message


def test_without_its_world_the_digest_of_the_arguments_still_tells(made, tmp_path):
    shutil.copytree(made / "datasets", tmp_path / "datasets")
    manifest = tmp_path / "datasets" / "world" / MANIFEST
    manifest.write_text(manifest.read_text().replace(str(made), str(tmp_path)))
    ensure_dataset(data(), tmp_path)
    with pytest.raises(UserError, match=r"data\.prepare\.\{scenes,keyframes,seed\}=world-\w+, .*=world-\w+:"):
        ensure_dataset(data(seed=7), tmp_path)


def test_outside_of_the_output_root_the_path_decides(made, tmp_path):
    by_hand = made / "datasets" / "world"
    assert ensure_dataset(data(by_hand, scenes=5), tmp_path) == by_hand


def test_another_dataroot_is_told_by_its_tables(made, tmp_path):
    world = next((made / "roots").iterdir())
    nuscenes = {"source": "nuscenes", "dataroot": str(world)}
    ensure_dataset(data(**nuscenes), made)  # the dataset's own dataroot
    moved = tmp_path / "moved"
    shutil.copytree(world, moved)
    (by_root := made / "datasets" / "by_root").mkdir()
    text = (made / "datasets" / "world" / MANIFEST).read_text()
    (by_root / MANIFEST).write_text(text.replace(str(world), str(tmp_path / "gone")))
    ensure_dataset(data(by_root, source="nuscenes", dataroot=str(moved)), made)
    ensure_dataset(data(by_root, source="nuscenes", dataroot=str(tmp_path / "away")), made)
    (moved / "v1.0-mini" / "map.json").write_text("[ ]")
    with pytest.raises(UserError, match=rf"data\.prepare\.dataroot={tmp_path}/gone, .*dataroot={moved}:"):
        ensure_dataset(data(by_root, source="nuscenes", dataroot=str(moved)), made)
