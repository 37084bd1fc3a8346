"""The configuration of BEV segmentation: defaults, legacy switches, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from sensorlab.config import validate
from sensorlab.errors import UserError
from sensorlab.tasks.bev_segmentation.config import LEGACY_SWITCHES, BEVSegmentationConfig


def _config(**tree: Any) -> BEVSegmentationConfig:
    return validate(BEVSegmentationConfig, {"name": "bev_segmentation", **tree})


def test_defaults_are_the_published_camera_model() -> None:
    config = _config()
    grid = config.grid.build()
    assert grid.cells == (200, 8, 200)
    assert grid.cell_size == (0.5, 1.25, 0.5)
    assert (config.model.encoder, config.image.size, config.losses.pos_weight) == ("res101", (448, 800), 2.13)
    assert not any(config.is_legacy(switch) for switch in LEGACY_SWITCHES)  # type: ignore[arg-type]


def test_legacy_by_name_and_all_at_once() -> None:
    some = _config(legacy=["sampling", "offset_doubling"])
    assert [s for s in LEGACY_SWITCHES if some.is_legacy(s)] == ["sampling", "offset_doubling"]  # type: ignore[arg-type]
    assert all(_config(legacy="all").is_legacy(switch) for switch in LEGACY_SWITCHES)  # type: ignore[arg-type]
    assert _config(legacy="all").distance_frame == "top_voxel"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"legacy": ["offset_dubling"]}, "offset_dubling"),
        ({"image": {"size": [450, 800]}}, "multiples of 16"),
        ({"image": {"resize_range": [1.2, 0.8]}}, "low <= high"),
        ({"image": {"interpolation": "cubic"}}, "interpolation"),
        ({"grid": {"cells": [200, 8, 201]}}, "multiples of 8"),
        ({"grid": {"x": [50, -50]}}, "ascending"),
        ({"model": {"compress": False}, "lidar": {"enabled": True}}, "leaves no place"),
        ({"model": {"compress": False}, "radar": {"input": "occupancy"}}, "leaves no place"),
        ({"model": {"encoder": "res34"}}, "encoder"),
        ({"cameras": {"names": ["CAM_BACK"]}}, "not among names"),
        ({"cameras": {"names": ["CAM_FRONT", "CAM_FRONT"]}}, "different cameras"),
        ({"cameras": {"names": ["CAM_FRONT"], "train_count": 2}}, "train_count=2 of 1"),
        ({"labels": {"categories": []}}, "categories"),
        ({"metrics": {"threshold": 1.0}}, "threshold"),
        ({"radar": {"sweep": 2}}, "did you mean 'sweeps'"),
    ],
)
def test_mistakes_are_named(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _config(**tree)
