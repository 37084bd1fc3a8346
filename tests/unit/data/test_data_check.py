"""``check`` finds each kind of fault, names where it is, and goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from list_source import ListSource
from sample_factory import make_sample

from sensorlab.data.check import CheckReport, check_dataset
from sensorlab.data.prepare import prepare
from sensorlab.data.prepare_shards import PrepareOptions
from sensorlab.data.sample import Sample
from sensorlab.errors import UserError


def good_sample(index: int, scene: str = "scene-a") -> Sample:
    """A sample of the factory with calibration that a camera could have."""
    sample = make_sample(index, boxes=3)
    intrinsics = np.array([[40.0, 0, 31.5], [0, 40.0, 17.5], [0, 0, 1]])
    cameras = [dataclasses.replace(camera, intrinsics=intrinsics) for camera in sample.cameras]
    return dataclasses.replace(sample, scene=scene, cameras=cameras)


def write(out: Path, **splits: list[Sample]) -> Path:
    options = PrepareOptions(row_group_size=2, samples_per_shard=4)
    return prepare(ListSource(dict(splits)), out, options, workers=0, report=lambda line: None).path


def check_one(tmp_path: Path, sample: Sample) -> CheckReport:
    return check_dataset(write(tmp_path / "out", train=[good_sample(0), sample]))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(
        tmp_path / "out",
        train=[good_sample(i) for i in range(6)],
        val=[good_sample(i, "scene-b") for i in (6, 7)],
    )


def test_a_good_dataset(dataset: Path) -> None:
    lines: list[str] = []
    result = check_dataset(dataset, report=lines.append)
    assert result.findings == []
    assert (result.num_samples, result.num_images) == (8, 16)
    text = "\n".join(result.lines())
    for part in ("train: 6 samples, 1 scenes, 2 shards", "vehicle.car: 8 boxes", "CAM_0: 64x36", "no faults"):
        assert part in text
    assert lines[-1].startswith("check: 8/8 samples (100 %)")


def test_altered_byte(dataset: Path) -> None:
    shard = dataset / "train/shard-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[content.find(good_sample(4).cameras[0].jpeg) + 50] ^= 1
    shard.write_bytes(content)
    result = check_dataset(dataset)
    assert "train/shard-00001.parquet: altered, its SHA-256 is not the manifest's" in result.findings
    assert any("train/shard-00001.parquet, row group 0: not readable" in finding for finding in result.findings)
    assert result.num_samples == 6  # the other row groups were still checked
    assert any("content digest" in finding for finding in result.findings)


def test_truncated_and_missing_shards(dataset: Path) -> None:
    shard = dataset / "train/shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    (dataset / "val/shard-00000.parquet").unlink()
    findings = "\n".join(check_dataset(dataset).findings)
    assert "train/shard-00000.parquet: not readable" in findings
    assert "bytes, the manifest says" in findings
    assert "val/shard-00000.parquet: no such file" in findings
    assert "split val: 0 samples read, the manifest says 2" in findings


def test_shard_swapped_for_another(dataset: Path) -> None:
    (dataset / "val/shard-00000.parquet").write_bytes((dataset / "train/shard-00001.parquet").read_bytes())
    findings = "\n".join(check_dataset(dataset).findings)
    assert "sample sample-4: occurs already in train/shard-00001.parquet" in findings
    assert "scene scene-a is in the splits train and val" in findings


def test_damaged_jpeg_inside_an_intact_shard(tmp_path: Path) -> None:
    sample = good_sample(1)
    broken = dataclasses.replace(sample.cameras[1], jpeg=sample.cameras[1].jpeg[:400])
    path = write(
        tmp_path / "out", train=[good_sample(0), dataclasses.replace(sample, cameras=[sample.cameras[0], broken])]
    )
    (finding,) = check_dataset(path).findings
    assert finding.startswith("train/shard-00000.parquet, sample sample-1: CAM_1: truncated or damaged JPEG")
    assert check_dataset(path, fast=True).findings == []


def _replace_camera(sample: Sample, **changes) -> Sample:
    return dataclasses.replace(sample, cameras=[dataclasses.replace(sample.cameras[0], **changes)])


def _replace_lidar(sample: Sample, **changes) -> Sample:
    return dataclasses.replace(sample, lidars=[dataclasses.replace(sample.lidars[0], **changes)])


def _replace_boxes(sample: Sample, **changes) -> Sample:
    return dataclasses.replace(sample, boxes=dataclasses.replace(sample.boxes, **changes))


SAMPLE = good_sample(1)
MIRROR = np.diag([1.0, -1, 1, 1])
SCALED = np.diag([1.01, 1.01, 1.01, 1])
POINTS = SAMPLE.lidars[0].points.copy()
POINTS[0, 2] = np.nan
FAULTS = {
    "global_from_ego is no rotation": dataclasses.replace(SAMPLE, global_from_ego=MIRROR),
    "CAM_0: ego_from_camera is no rotation": _replace_camera(SAMPLE, ego_from_camera=SCALED),
    "CAM_0: global_from_ego is not finite": _replace_camera(SAMPLE, global_from_ego=np.full((4, 4), np.nan)),
    "CAM_0: ego_from_camera has a last row": _replace_camera(SAMPLE, ego_from_camera=np.ones((4, 4))),
    "CAM_0: intrinsics are not those of a camera": _replace_camera(SAMPLE, intrinsics=np.diag([-1.0, 1, 1])),
    "CAM_0: principal point (99.0, 17.5) is outside": _replace_camera(
        SAMPLE, intrinsics=np.array([[40.0, 0, 99], [0, 40, 17.5], [0, 0, 1]])
    ),
    "CAM_0: the image is 64x36, the sample says 80x36": _replace_camera(SAMPLE, width=80),
    "LIDAR_0: time lag -0.1 s": _replace_lidar(SAMPLE, time_lag=-0.1),
    f"LIDAR_0: 1 of {len(POINTS)} points are not finite": _replace_lidar(SAMPLE, points=POINTS),
    "LIDAR_0: ego_from_sensor is no rotation": _replace_lidar(SAMPLE, ego_from_sensor=SCALED),
    "and 2 more: size is not positive": _replace_boxes(SAMPLE, size=np.zeros((3, 3))),
    "and 2 more: centre is not finite": _replace_boxes(SAMPLE, center=np.full((3, 3), np.inf)),
    "rotation is not a unit quaternion": _replace_boxes(SAMPLE, rotation=np.full((3, 4), 0.4)),
    "velocity is infinite": _replace_boxes(SAMPLE, velocity=np.full((3, 3), np.inf)),
    "visibility is not in 0..4": _replace_boxes(SAMPLE, visibility=np.array([1, 5, 2], np.int8)),
    "number of points is negative": _replace_boxes(SAMPLE, num_lidar_points=np.array([0, -1, 0], np.int32)),
    "category is empty": _replace_boxes(SAMPLE, category=["vehicle.car", "", "vehicle.car"]),
    "two boxes have the same token": _replace_boxes(SAMPLE, token=["a", "b", "a"]),
    "timestamp is not after the sample before it": dataclasses.replace(SAMPLE, timestamp=5),
    "scene a-scene is out of order": dataclasses.replace(SAMPLE, scene="a-scene"),
    "occurs already in train/shard-00000.parquet": dataclasses.replace(SAMPLE, token="sample-0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_samples(tmp_path: Path, fault: str) -> None:
    result = check_one(tmp_path, FAULTS[fault])
    token = FAULTS[fault].token
    matching = [f for f in result.findings if fault in f]
    assert len(matching) == 1, result.findings
    assert matching[0].startswith(f"train/shard-00000.parquet, sample {token}")
    assert len(result.findings) == 1, result.findings
    assert "FAULT" in "\n".join(result.lines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(digest="0" * 64), "content digest is not that of the samples"),
        (lambda m: m["classes"]["vehicle.car"].update(count=1), "class statistics"),
        (lambda m: m["sensors"].update(radars=[]), "the sensors are not those"),
        (lambda m: m["splits"]["train"].update(scenes=["elsewhere"]), "scenes of its samples"),
        (lambda m: m["splits"]["val"].update(num_samples=3), "2 samples read, the manifest says 3"),
        (lambda m: m["splits"]["val"]["shards"][0].update(rows=[1, 1]), "row groups of"),
    ],
)
def test_manifest_that_does_not_fit(dataset: Path, change, message: str) -> None:
    file = dataset / "manifest.json"
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))
    assert any(message in finding for finding in check_dataset(dataset).findings)


def test_many_findings_are_cut_in_the_report_only(tmp_path: Path) -> None:
    faulty = [dataclasses.replace(good_sample(i), global_from_ego=MIRROR) for i in range(60)]
    result = check_dataset(write(tmp_path / "out", train=faulty), fast=True)
    assert len(result.findings) == 60
    lines = list(result.lines())
    assert sum(line.startswith("FAULT") for line in lines) == 51
    assert lines[-1] == "result    60 faults"


def test_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a prepared dataset"):
        check_dataset(tmp_path)
