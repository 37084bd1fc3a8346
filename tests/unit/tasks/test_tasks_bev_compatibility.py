from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bev_samples import HEADINGS, small_task

from sensorlab.cluster.program import build_task
from sensorlab.data.dataset import CameraInfo, Manifest, Sensors
from sensorlab.errors import UserError
from sensorlab.experiment import load_experiment

CONFIGS = sorted((Path(__file__).parents[3] / "experiments" / "configs").glob("*.yaml"))


def manifest(sweeps: int | None = 3, cameras: tuple[str, ...] = tuple(HEADINGS), **sensors: Any) -> Manifest:
    rig = {"radars": ("RADAR_FRONT",), "lidars": ("LIDAR_TOP",), **sensors}
    return Manifest(
        schema_version=1,
        tool_version="1",
        source={"kind": "nuscenes"} | ({} if sweeps is None else {"sweeps": sweeps}),
        origin="/roots/world",
        digest="0",
        num_samples=1,
        num_boxes=0,
        sensors=Sensors(cameras=tuple(CameraInfo(name=name, sizes=((32, 16),)) for name in cameras), **rig),
        classes={},
        splits={},
    )


@pytest.mark.parametrize(
    ("task", "dataset", "message"),
    [
        ({"lidar": {"enabled": True}}, {"lidars": ()}, "task.lidar.enabled=true .*has none.*--modalities"),
        ({"radar": {"input": "metadata"}}, {"radars": ()}, "task.radar.input=metadata .*has none.*--modalities"),
        ({"radar": {"input": "occupancy", "sweeps": 5}}, {}, "task.radar.sweeps=5 .* the 3 of .*data.prepare.sweeps=5"),
        ({"lidar": {"enabled": True, "sweeps": 2}}, {"sweeps": 1}, "task.lidar.sweeps=2 .* the 1 of .*--sweeps 2"),
        ({"cameras": {"names": ["CAM_FRONT", "CAM_TOP"]}}, {}, "task.cameras.names asks for CAM_TOP, .*CAM_BACK"),
        ({"cameras": {"reference": "CAM_TOP"}}, {}, "task.cameras.reference asks for CAM_TOP"),
        ({}, {"cameras": ()}, "needs cameras"),
    ],
)
def test_what_the_dataset_lacks_is_named(task, dataset, message):
    with pytest.raises(UserError, match=message):
        small_task(task).check_dataset(manifest(**dataset))


@pytest.mark.parametrize(
    ("task", "dataset"),
    [
        ({"radar": {"sweeps": 5}, "lidar": {"sweeps": 5}}, {"radars": (), "lidars": ()}),  # switched off
        ({"radar": {"input": "occupancy", "sweeps": 3}, "lidar": {"enabled": True, "sweeps": 1}}, {}),
        ({"lidar": {"enabled": True, "sweeps": 9}}, {"sweeps": None}),  # a source that knows no sweeps
    ],
)
def test_a_dataset_with_all_that_is_used_passes(task, dataset):
    small_task(task).check_dataset(manifest(**dataset))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_fit_what_they_prepare(path):
    """Radar and lidar switched on as well where the file leaves them to a sweep or a derived file."""
    overrides = {
        "train_bev_astyx": ["task.radar.input=occupancy"],
        "tune_bev": ["task.radar.input=occupancy", "task.lidar.enabled=true"],
        "tune_bev_pandaset_lidar": ["task.lidar.enabled=true"],
    }.get(path.stem, [])
    config = load_experiment(path, overrides)
    assert config.data.prepare is not None
    cameras = (*HEADINGS, "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
    build_task(config).check_dataset(manifest(config.data.prepare.sweeps, cameras))
