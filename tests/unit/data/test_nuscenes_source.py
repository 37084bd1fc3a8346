"""The nuScenes source on a dataroot whose every number can be computed by hand."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from nuscenes_builder import (
    CAMERA_DELAY,
    HEIGHT,
    INTRINSICS,
    SPEED,
    START,
    STEP,
    WIDTH,
    NuScenesBuilder,
    build_root,
    edit_table,
    pcd_bytes,
    radar_point,
)

from sensorlab.data.sample import RADAR_FIELDS
from sensorlab.data.shards import sample_digest
from sensorlab.data.sources.nuscenes import NuScenesSource
from sensorlab.errors import UserError
from sensorlab.geometry.poses import transform_points


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_root(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture
def own_root(tmp_path: Path) -> Path:
    """A dataroot that a test may damage."""
    return build_root(tmp_path, train=3, val=1)


def source(root: Path, **options) -> NuScenesSource:
    return NuScenesSource(root, "v1.0-mini", **options)


def test_splits_and_order(root: Path) -> None:
    opened = source(root)
    assert opened.splits() == {"train": [0, 1, 2], "val": [3, 4]}
    assert [opened.read(i).token for i in (0, 2, 3)] == [
        "drive-train-sample-0",
        "drive-train-sample-2",
        "drive-val-sample-0",
    ]


def test_samples_are_sorted_by_scene_and_time_whatever_the_tables_order(own_root: Path) -> None:
    edit_table(own_root, "sample", lambda records: records.reverse())
    edit_table(own_root, "scene", lambda records: records.reverse())
    opened = source(own_root)
    tokens = [opened.read(number).token for number in range(4)]
    assert tokens == [*(f"drive-train-sample-{k}" for k in range(3)), "drive-val-sample-0"]


def test_a_keyframe(root: Path) -> None:
    sample = source(root).read(1)
    assert (sample.scene, sample.scene_token, sample.timestamp) == ("drive-train", "drive-train-token", START + STEP)
    np.testing.assert_allclose(sample.global_from_ego[:3, 3], [106.0, 0, 0])
    assert [camera.name for camera in sample.cameras] == ["CAM_BACK", "CAM_FRONT"]
    camera = sample.cameras[1]
    assert (camera.width, camera.height, camera.timestamp) == (WIDTH, HEIGHT, START + STEP + CAMERA_DELAY)
    np.testing.assert_array_equal(camera.intrinsics, INTRINSICS)
    # The camera keeps the ego pose of its own time, 20 ms and 0.2 m after the sample's.
    np.testing.assert_allclose(camera.global_from_ego[:3, 3], [106.2, 0, 0])
    # A point 10 m ahead of the camera lies on its optical axis.
    np.testing.assert_allclose(transform_points(camera.ego_from_camera, np.array([[0, 0, 10.0]])), [[11.5, 0, 1.5]])
    assert [(sweep.name, sweep.sensor_id) for sweep in sample.radars] == [("RADAR_BACK", 0), ("RADAR_FRONT", 1)]
    assert [(sweep.name, sweep.time_lag) for sweep in sample.lidars] == [("LIDAR_TOP", 0.0)]


def test_radar_points_are_all_kept_in_field_order(root: Path) -> None:
    sweep = source(root).read(1).radars[1]
    expected = np.array([radar_point(13.0, 1.0, n) for n in range(3)], np.float32)  # file 3 of the channel
    np.testing.assert_array_equal(sweep.points, expected)
    assert sweep.points.shape == (3, len(RADAR_FIELDS))


def test_sweeps_are_compensated_for_ego_motion(root: Path) -> None:
    """The vehicle faces +y and slides along +x, to its right: a sweep of t s ago was taken SPEED * t m to its left."""
    sample = source(root, sweeps=3).read(1)
    lidars = sample.lidars
    period = STEP / 3 * 1e-6
    np.testing.assert_allclose([sweep.time_lag for sweep in lidars], [0, period, 2 * period], atol=1e-6)
    for sweep in lidars:
        # The sensor sits at (1, 0, 1.8) in the ego frame of its time.
        np.testing.assert_allclose(sweep.ego_from_sensor[:3, 3], [1.0, SPEED * sweep.time_lag, 1.8], atol=1e-4)
        np.testing.assert_allclose(sweep.ego_from_sensor[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_array_equal([sweep.points[0, 1] for sweep in lidars], [3, 2, 1])  # files 3, 2, 1
    order = [(sweep.name, round(sweep.time_lag, 3)) for sweep in sample.radars]
    assert order == [
        ("RADAR_BACK", 0.0), ("RADAR_FRONT", 0.0),
        ("RADAR_BACK", 0.2), ("RADAR_FRONT", 0.2),
        ("RADAR_BACK", 0.4), ("RADAR_FRONT", 0.4),
    ]  # fmt: skip


def test_sweeps_end_at_the_start_of_the_scene(root: Path) -> None:
    assert [sweep.time_lag for sweep in source(root, sweeps=10).read(0).lidars] == [0.0]
    assert len(source(root, sweeps=10).read(1).lidars) == 4


def test_keyframe_sensors_at_other_times_are_compensated_too(own_root: Path) -> None:
    """A radar keyframe taken 50 ms before the lidar's is 0.5 m away, with a time lag of 0 (it is the keyframe)."""

    def shift(records) -> None:
        pose = next(r for r in records if r["token"] == "pose-drive-train-RADAR_FRONT-3")
        pose["translation"][0] -= 0.5

    edit_table(own_root, "ego_pose", shift)
    sweep = source(own_root).read(1).radars[1]
    assert sweep.time_lag == 0.0
    np.testing.assert_allclose(sweep.ego_from_sensor[:3, 3], [3.0, 0.5, 0.5], atol=1e-9)


def test_boxes_in_the_ego_frame(root: Path) -> None:
    boxes = source(root).read(1).boxes
    assert (boxes.token, boxes.category, boxes.attributes) == (
        ["drive-train-car-1"], ["vehicle.car"], [["vehicle.moving"]],
    )  # fmt: skip
    # Global (122.4, 7, 1), ego at (106, 0, 0) turned by 90 degrees: 7 m ahead, 16.4 m to the right.
    np.testing.assert_allclose(boxes.center, [[7.0, -16.4, 1.0]], atol=1e-9)
    np.testing.assert_array_equal(boxes.size, [[4.5, 1.9, 1.6]])  # length, width, height
    np.testing.assert_allclose(boxes.rotation, [[1, 0, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(boxes.velocity, [[0.0, -4.0, 0.0]], atol=1e-5)  # 4 m/s along global x
    assert (boxes.visibility.tolist(), boxes.num_lidar_points.tolist(), boxes.num_radar_points.tolist()) == (
        [4],
        [5],
        [1],
    )


def test_velocity_rule(tmp_path: Path) -> None:
    """Central difference inside, one-sided at the ends, NaN alone and across gaps of more than 1.5 (centred: 3) s."""
    builder = NuScenesBuilder(tmp_path)
    builder.add_scene("drive-train", 4, sweeps_between=0)
    times = [0, 1_400_000, 2_900_000, 4_500_000]
    positions = [0.0, 1.4, 5.9, 9.1]
    for sample, seconds in zip(builder.tables["sample"], times, strict=True):
        sample["timestamp"] = START + seconds
    cars = [record for record in builder.tables["sample_annotation"] if record["instance_token"] == "drive-train-car"]
    for record, position in zip(cars, positions, strict=True):
        record["translation"] = [position, 0.0, 0.0]
    opened = NuScenesSource(builder.write(), "v1.0-mini", splits={"val": ["drive-train"]})
    along = [-opened.read(number).boxes.velocity[0, 1] for number in range(4)]
    expected = [1.4 / 1.4, 5.9 / 2.9, np.nan, np.nan]  # 3.1 s centred and 1.6 s one-sided are too long
    np.testing.assert_allclose(along, expected, rtol=1e-9)
    person = opened.read(0).boxes
    assert person.category[1] == "human.pedestrian.adult"
    assert np.isnan(person.velocity[1]).all()
    assert person.visibility[1] == 0


def test_unwanted_modalities_are_empty_and_their_files_are_not_needed(own_root: Path) -> None:
    for file in (own_root / "samples").glob("*/*.pcd*"):
        file.unlink()
    sample = source(own_root, modalities=["camera"]).read(0)
    assert (len(sample.cameras), sample.radars, sample.lidars) == (2, [], [])
    assert sample.timestamp == START  # the lidar still gives the reference time


@pytest.mark.parametrize(
    ("gone", "delay"), [(["LIDAR_TOP"], CAMERA_DELAY), (["LIDAR_TOP", "CAM_FRONT"], CAMERA_DELAY), ([], 0)]
)
def test_rigs_without_some_sensors(own_root: Path, gone: list[str], delay: int) -> None:
    def remove(records) -> None:
        records[:] = [r for r in records if not any(channel in r["token"] for channel in gone)]

    edit_table(own_root, "sample_data", remove)
    sample = source(own_root).read(0)
    assert {s.name for s in (*sample.cameras, *sample.radars, *sample.lidars)} == {
        "LIDAR_TOP", "RADAR_FRONT", "RADAR_BACK", "CAM_FRONT", "CAM_BACK",
    } - set(gone)  # fmt: skip
    assert sample.timestamp == START + delay


def test_test_splits_without_annotations(own_root: Path) -> None:
    for table in ("sample_annotation", "instance"):
        edit_table(own_root, table, lambda records: records.clear())
    assert len(source(own_root).read(0).boxes) == 0


def test_pickled_source_reads_the_same(root: Path) -> None:
    opened = source(root, sweeps=2)
    opened.splits()
    copy = pickle.loads(pickle.dumps(opened))
    assert sample_digest(copy.read(1)) == sample_digest(opened.read(1))


def test_fingerprint_follows_the_tables(own_root: Path) -> None:
    before = source(own_root).description()
    assert source(own_root).description() == before
    edit_table(own_root, "sample_annotation", lambda records: records[0].update(num_lidar_pts=6))
    assert source(own_root).description()["tables"] != before["tables"]


# ----------------------------------------------------------------------------------------------------- what users break


def test_wrong_dataroot(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataroot .*/nowhere does not exist"):
        NuScenesSource(tmp_path / "nowhere", "v1.0-mini")


def test_wrong_version_lists_the_versions(root: Path) -> None:
    with pytest.raises(UserError, match=r"no version 'v1\.0-trainval'; it has v1\.0-mini"):
        NuScenesSource(root, "v1.0-trainval")


def test_directory_without_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has no nuScenes tables"):
        NuScenesSource(tmp_path, "v1.0-mini")


@pytest.mark.parametrize("options", [{"sweeps": 0}, {"modalities": ["sonar"]}, {"modalities": []}])
def test_options_out_of_range(root: Path, options: dict) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        source(root, **options)


def test_missing_table(own_root: Path) -> None:
    (own_root / "v1.0-mini" / "ego_pose.json").unlink()
    with pytest.raises(UserError, match=r"table ego_pose is missing: .*ego_pose\.json"):
        source(own_root).read(0)
    with pytest.raises(UserError, match="table ego_pose is missing"):
        source(own_root).description()


@pytest.mark.parametrize(
    ("table", "key", "target", "sweeps"),
    [
        ("sample", "scene_token", "scene", 1),
        ("sample_data", "sample_token", "sample", 1),
        ("sample_data", "ego_pose_token", "ego_pose", 1),
        ("sample_data", "calibrated_sensor_token", "calibrated_sensor", 1),
        ("sample_data", "prev", "sample_data", 3),
        ("calibrated_sensor", "sensor_token", "sensor", 1),
        ("sample_annotation", "sample_token", "sample", 1),
        ("sample_annotation", "instance_token", "instance", 1),
        ("sample_annotation", "visibility_token", "visibility", 1),
        ("sample_annotation", "prev", "sample_annotation", 1),
        ("sample_annotation", "next", "sample_annotation", 1),
        ("instance", "category_token", "category", 1),
    ],
)
def test_dangling_tokens(own_root: Path, table: str, key: str, target: str, sweeps: int) -> None:
    edit_table(own_root, table, lambda records: records[0].update({key: "nobody"}))
    with pytest.raises(
        UserError, match=rf"table {table}: record '.+': {key} 'nobody' is not a token of table {target}"
    ):
        source(own_root, sweeps=sweeps).read(0)


def test_dangling_attribute(own_root: Path) -> None:
    edit_table(own_root, "sample_annotation", lambda records: records[1].update(attribute_tokens=["nobody"]))
    with pytest.raises(UserError, match=r"record 'drive-train-car-1': attribute_tokens 'nobody'"):
        source(own_root).read(0)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("sample", lambda r: r[0].pop("timestamp"), "record 'drive-train-sample-0' has no key 'timestamp'"),
        ("sample", lambda r: r[1].update(timestamp="soon"), "'drive-train-sample-1': timestamp is 'soon'"),
        ("ego_pose", lambda r: r[0].update(rotation=[1, 0, 0]), "rotation is .*expected fixed_size_list"),
        ("ego_pose", lambda r: r[0].update(rotation=[0, 0, 0, 0]), "not a unit quaternion"),
        ("ego_pose", lambda r: r[0].update(translation=None), "translation is None"),
        ("sample", lambda r: r.append(dict(r[0])), "token 'drive-train-sample-0' occurs twice"),
        ("sample", lambda r: r.append(3), "record 4 is not an object"),
        ("scene", lambda r: r[0].update(name="drive-val"), "two scenes have the same name"),
        ("calibrated_sensor", lambda r: r[3].update(camera_intrinsic=[[1, 2]]), "not a 3x3 matrix"),
    ],
)
def test_malformed_records(own_root: Path, table: str, change, message: str) -> None:
    edit_table(own_root, table, change)
    with pytest.raises(UserError, match=f"table {table}.*{message}"):
        source(own_root).read(0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated JSON after [0-9]+ records"),
        (lambda text: "", "expected a JSON array"),
        (lambda text: "{}", "expected a JSON array"),
        (lambda text: text.replace(":", " ", 1), "truncated JSON after 0 records"),
    ],
)
def test_damaged_json(own_root: Path, damage, message: str) -> None:
    path = own_root / "v1.0-mini" / "sample_data.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=rf"table sample_data \(.*sample_data\.json\): {message}"):
        source(own_root).read(0)


def first_file(root: Path, channel: str) -> Path:
    return sorted((root / "samples" / channel).glob("drive-train*"))[0]


@pytest.mark.parametrize("channel", ["CAM_FRONT", "RADAR_BACK", "LIDAR_TOP"])
def test_missing_sensor_file(own_root: Path, channel: str) -> None:
    path = first_file(own_root, channel)
    path.unlink()
    with pytest.raises(UserError, match=rf"table sample_data: record 'drive-train-{channel}-0': {path}: .*not exist"):
        source(own_root).read(0)


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("CAM_FRONT", "truncated or damaged JPEG"),
        ("RADAR_BACK", "truncated: 3 points need"),
        ("LIDAR_TOP", "truncated"),
    ],
)
def test_truncated_sensor_file(own_root: Path, channel: str, message: str) -> None:
    path = first_file(own_root, channel)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"table sample_data: record 'drive-train-{channel}-0': {path}: {message}"):
        source(own_root).read(0)


def test_image_of_another_size_than_the_table_says(own_root: Path) -> None:
    edit_table(own_root, "sample_data", lambda records: [r.update(width=1600) for r in records if r["width"]])
    with pytest.raises(UserError, match="the image is 64x36, the table says 1600x36"):
        source(own_root).read(0)


def test_image_that_is_no_jpeg(own_root: Path) -> None:
    first_file(own_root, "CAM_BACK").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match="not a JPEG image"):
        source(own_root).read(0)


def test_sample_without_any_keyframe(own_root: Path) -> None:
    def keep_others(records) -> None:
        records[:] = [r for r in records if r["sample_token"] != "drive-train-sample-2"]

    edit_table(own_root, "sample_data", keep_others)
    with pytest.raises(UserError, match="record 'drive-train-sample-2' has no keyframe"):
        source(own_root).read(2)


def test_radar_file_with_nan_in_the_first_point_is_empty(own_root: Path) -> None:
    first_file(own_root, "RADAR_BACK").write_bytes(pcd_bytes([radar_point(float("nan"), 1.0), radar_point(1.0, 1.0)]))
    assert source(own_root).read(0).radars[0].points.shape == (0, 18)
