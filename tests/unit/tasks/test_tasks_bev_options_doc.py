"""docs/simple-bev-options.md names keys that exist, and leaves none of the original's options out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from sensorlab.experiment import ExperimentConfig
from sensorlab.tasks.bev_segmentation.config import LEGACY_SWITCHES, BEVSegmentationConfig

DOC = Path(__file__).parents[3] / "docs" / "simple-bev-options.md"

# The arguments of the original's train_nuscenes.py:main, and those that only its dataset takes.
TRAINING_OPTIONS = [
    "exp_name", "max_iters", "log_freq", "shuffle", "dset", "do_val", "val_freq", "save_freq", "keep_latest",
    "batch_size", "grad_acc", "lr", "use_scheduler", "weight_decay", "nworkers", "data_dir", "log_dir", "ckpt_dir",
    "init_dir", "ignore_load", "load_step", "load_optimizer", "res_scale", "rand_flip", "rand_crop_and_resize",
    "ncams", "nsweeps", "encoder_type", "use_radar", "use_metaradar", "use_radar_filters", "use_lidar",
    "do_rgbcompress", "do_shuffle_cams", "device_ids",
]  # fmt: skip
DATASET_OPTIONS = ["nworkers_val", "seqlen", "refcam_id", "get_tids", "temporal_aug"]


def _table(heading: str) -> list[list[str]]:
    section = DOC.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip().strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _exists(model: type[BaseModel], parts: list[str]) -> bool:
    if parts[0] == "task" and model is ExperimentConfig:
        return _exists(BEVSegmentationConfig, parts[1:])
    if parts[0] not in model.model_fields:
        return False
    if len(parts) == 1:
        return True
    return any(_exists(m, parts[1:]) for m in _models_in(model.model_fields[parts[0]].annotation))


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]


OPTION_ROWS = _table("Options of the training script") + _table("Options of the dataset alone")
FIXED_ROWS = _table("What was fixed in the code")
FAULT_ROWS = _table("Its faults")


def test_every_option_of_the_original_has_a_row() -> None:
    assert [row[0].strip("`") for row in OPTION_ROWS] == TRAINING_OPTIONS + DATASET_OPTIONS
    assert len(OPTION_ROWS) == 40


@pytest.mark.parametrize("row", OPTION_ROWS + FIXED_ROWS, ids=lambda row: row[0].strip("`"))
def test_keys_exist_or_a_reason_is_given(row: list[str]) -> None:
    _, _, here, remarks = row
    keys = re.findall(r"`([^`]+)`", here)
    if not keys:
        assert here == "none"
        assert len(remarks) > 20, "no key: the remarks must say why"
    missing = [key for key in keys if not _exists(ExperimentConfig, key.split("."))]
    assert not missing


def test_keys_are_really_looked_up() -> None:
    assert _exists(ExperimentConfig, ["schedule", "rise_fraction"])
    assert not _exists(ExperimentConfig, ["task", "image", "sizes"])
    assert not _exists(ExperimentConfig, ["optim", "lr", "peak"])


def test_every_legacy_switch_is_explained_by_a_fault() -> None:
    named = {row[2].strip("`") for row in FAULT_ROWS} - {"none"}
    assert named == set(LEGACY_SWITCHES)


def test_every_task_key_is_documented_or_new() -> None:
    """A key of the task is in the tables, or in this list of what the original did not have."""
    new = {
        "task.name", "task.legacy", "task.model.latent_dim", "task.model.neck_width", "task.model.decoder_width",
        "task.image.interpolation", "task.labels.min_lidar_points", "task.labels.box_maps",
    }  # fmt: skip
    documented = {key for row in OPTION_ROWS + FIXED_ROWS for key in re.findall(r"`(task[^`]+)`", row[2])}
    keys = {f"task.{key}" for key in _leaves(BEVSegmentationConfig)}
    assert keys == documented | new


def _leaves(model: type[BaseModel]) -> list[str]:
    leaves = []
    for name, field in model.model_fields.items():
        nested = _models_in(field.annotation)
        leaves += [f"{name}.{leaf}" for m in nested for leaf in _leaves(m)] if nested else [name]
    return leaves
