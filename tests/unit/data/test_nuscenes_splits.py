"""Official scene lists and the rules for other dataroots."""

from __future__ import annotations

import pytest

from sensorlab.data.sources.nuscenes_splits import MINI_SPLITS, OFFICIAL_SPLITS, assign_splits
from sensorlab.errors import UserError


def test_official_counts_and_disjointness() -> None:
    assert {name: len(scenes) for name, scenes in OFFICIAL_SPLITS.items()} == {"train": 700, "val": 150, "test": 150}
    assert len(set().union(*OFFICIAL_SPLITS.values())) == 1000
    assert {name: len(scenes) for name, scenes in MINI_SPLITS.items()} == {"train": 8, "val": 2}


@pytest.mark.parametrize(
    ("scene", "split"),
    [
        ("scene-0001", "train"), ("scene-0003", "val"), ("scene-0077", "test"), ("scene-0061", "train"),
        ("scene-0553", "val"), ("scene-0103", "val"), ("scene-1110", "train"), ("scene-1043", "test"),
    ],
)  # fmt: skip
def test_scenes_of_trainval(scene: str, split: str) -> None:
    assert assign_splits([scene], "v1.0-trainval") == {split: [scene]}


def test_mini_has_its_own_lists() -> None:
    """scene-0553 validates in trainval and trains in mini."""
    scenes = ["scene-0916", "scene-0553", "scene-0061"]
    assert assign_splits(scenes, "v1.0-mini") == {"train": ["scene-0061", "scene-0553"], "val": ["scene-0916"]}


@pytest.mark.parametrize(
    ("name", "split"),
    [("world-train-000", "train"), ("VAL_03", "val"), ("scene.test", "test"), ("train", "train"), ("a1val2", "val")],
)
def test_words_in_names(name: str, split: str) -> None:
    assert assign_splits([name], "v1.0") == {split: [name]}


@pytest.mark.parametrize("name", ["training-1", "valley", "retrain", "train-val", "scene-0001-x", "drive"])
def test_names_that_do_not_say_it(name: str) -> None:
    with pytest.raises(UserError, match=rf"no split is known for 1 of 2 scenes \({name}\).*--val-scenes"):
        assign_splits([name, "x-train"], "v1.0")


def test_option_decides_and_the_rest_is_train() -> None:
    scenes = ["a", "b", "c-val", "d"]
    assert assign_splits(scenes, "v", {"val": ["b"], "night": ["d"]}) == {
        "train": ["a", "c-val"],
        "val": ["b"],
        "night": ["d"],
    }


def test_option_with_an_unknown_scene_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'val' names scene 'pandaset-b'.*did you mean 'pandaset-002-b'"):
        assign_splits(["pandaset-002-a", "pandaset-002-b"], "v", {"val": ["pandaset-b"]})


def test_option_that_gives_a_scene_twice() -> None:
    with pytest.raises(UserError, match="'a' is given to two splits"):
        assign_splits(["a", "b"], "v", {"val": ["a"], "test": ["a"]})
