"""Real recordings through the whole way: dataroot, shards, check, picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sensorlab.data.check import check_dataset
from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.prepare import prepare_nuscenes
from sensorlab.data.schema import decode_table
from sensorlab.data.show import show_sample
from sensorlab.data.sources.nuscenes import NuScenesSource
from sensorlab.errors import UserError
from sensorlab.geometry.boxes import points_in_box
from sensorlab.geometry.poses import rigid_from_quaternion, transform_points

SHARED = Path(__file__).parents[3] / "shared"
REAL = SHARED / "realdata"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/realdata beside the repository")


def expand(name: str, out: Path) -> Path:
    tool = SHARED / "tools" / "expand_to_nuscenes.py"
    subprocess.run([sys.executable, str(tool), str(REAL / name), str(out)], check=True, capture_output=True)
    return out


def lidar_points_in_boxes(dataset: PreparedDataset, split: str, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Points counted through our transforms, and the numbers of the annotations."""
    counted, stated = [], []
    for sample in decode_table(dataset.split(split).read(rows, ["lidars", "boxes"])):
        sweep = sample.lidars[0]
        points = transform_points(sweep.ego_from_sensor, sweep.points[:, :3].astype(float))
        poses = rigid_from_quaternion(sample.boxes.rotation, sample.boxes.center)
        counted.append(points_in_box(poses, sample.boxes.size, points).sum(-1))
        stated.append(sample.boxes.num_lidar_points)
    return np.concatenate(counted), np.concatenate(stated)


def test_astyx(tmp_path: Path) -> None:
    root = expand("astyx-hires2019", tmp_path / "root")
    dataset = prepare_nuscenes(root, "v1.0-mini", tmp_path / "out", workers=0, report=lambda line: None)
    assert {name: split.num_samples for name, split in dataset.manifest.splits.items()} == {"train": 426, "val": 120}
    assert dataset.manifest.classes["vehicle.car"].count == 2943
    assert (dataset.manifest.sensors.radars, dataset.manifest.sensors.lidars) == (("RADAR_FRONT",), ("LIDAR_TOP",))
    assert check_dataset(dataset.path, fast=True).findings == []
    counted, stated = lidar_points_in_boxes(dataset, "val", range(40))
    np.testing.assert_array_equal(counted, stated)  # stated by the pack, counted without our code
    assert show_sample(dataset.path, 250, tmp_path / "astyx.png").stat().st_size > 100_000


@pytest.mark.slow
def test_pandaset(tmp_path: Path) -> None:
    root = expand("pandaset-002", tmp_path / "root")
    with pytest.raises(UserError, match=r"no split is known for 2 of 2 scenes.*--val-scenes"):
        prepare_nuscenes(root, "v1.0-mini", tmp_path / "out", workers=0)
    dataset = prepare_nuscenes(
        root, "v1.0-mini", tmp_path / "out2", splits={"val": ["pandaset-002-b"]}, image_height=225, workers=0
    )
    assert {name: split.num_samples for name, split in dataset.manifest.splits.items()} == {"train": 54, "val": 22}
    assert {camera.sizes for camera in dataset.manifest.sensors.cameras} == {((400, 225),)}
    assert check_dataset(dataset.path).findings == []
    counted, stated = lidar_points_in_boxes(dataset, "val", range(22))
    # The stated numbers were counted before the clouds were thinned to 34,000 points.
    assert np.corrcoef(counted, stated)[0, 1] > 0.999


def test_nuscenes_mini() -> None:
    """Official calibration and images of three keyframes; most sensor files of this root are absent."""
    source = NuScenesSource(REAL / "nuscenes-mini-partial", "v1.0-mini", modalities=["camera"])
    splits = source.splits()
    assert {name: len(numbers) for name, numbers in splits.items()} == {"train": 1, "val": 81}
    sample = source.read(splits["val"][0])
    assert [(camera.width, camera.height) for camera in sample.cameras] == [(1600, 900)] * 6
    front = next(camera for camera in sample.cameras if camera.name == "CAM_FRONT")
    assert front.intrinsics[0, 0] == pytest.approx(1252.813, abs=1e-3)
    np.testing.assert_allclose(front.ego_from_camera[:3, 2], [1, 0, 0], atol=0.02)  # it looks ahead
    assert np.isfinite(sample.boxes.velocity).all(axis=1).sum() > 10
    with pytest.raises(UserError, match=r"table sample_data: record '\w+': .*RADAR.*: the file does not exist"):
        NuScenesSource(REAL / "nuscenes-mini-partial", "v1.0-mini", modalities=["radar"]).read(splits["val"][0])
