"""The dataroot of an embedded world: bytes, tables, what the real reader makes of it, and refusals."""

import argparse
import errno
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorlab.data.sources.nuscenes import NuScenesSource
from sensorlab.data.synthetic import commands, writer
from sensorlab.data.synthetic.rig import CAMERA_NAMES, LIDAR_NAME, RADAR_NAMES
from sensorlab.data.synthetic.tables import TABLE_NAMES
from sensorlab.data.synthetic.writer import RECORD_NAME, WorldSummary, write_world
from sensorlab.errors import UserError, exit_on_user_error
from sensorlab.geometry.boxes import points_in_box
from sensorlab.geometry.poses import rigid_from_quaternion, transform_points

TINY: dict[str, Any] = {"scenes": 2, "keyframes": 3, "val_scenes": 1, "image_size": (160, 90), "lidar_azimuths": 180}


def _ignore(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldSummary:
    return write_world(tmp_path_factory.mktemp("world") / "root", **TINY, progress=_ignore)


@pytest.fixture(scope="module")
def tables(world: WorldSummary) -> dict[str, list[dict[str, Any]]]:
    folder = Path(world.path) / world.version
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_bytes_depend_on_the_arguments_alone_not_on_the_workers(world: WorldSummary, tmp_path: Path):
    again = write_world(tmp_path / "again", **TINY, workers=2, progress=_ignore)
    first, second = contents(Path(world.path)), contents(Path(again.path))
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] == []
    assert len(first) > 100


def test_another_seed_is_another_world(world: WorldSummary, tables: dict[str, list[dict[str, Any]]], tmp_path: Path):
    arguments = TINY | {"scenes": 1, "keyframes": 1, "val_scenes": 0}
    other = write_world(tmp_path / "other", **arguments, seed=1, progress=_ignore)
    annotations = json.loads((Path(other.path) / other.version / "sample_annotation.json").read_text())
    assert not {row["token"] for row in annotations} & {row["token"] for row in tables["sample_annotation"]}


def test_there_are_13_tables_and_every_token_resolves(tables: dict[str, list[dict[str, Any]]]):
    assert set(tables) == set(TABLE_NAMES)
    tokens = {name: {row["token"] for row in rows} for name, rows in tables.items()}
    for name, rows in tables.items():
        assert len(tokens[name]) == len(rows), name
    links = 0
    for name, rows in tables.items():
        for row in rows:
            for key, value in row.items():
                if not key.endswith(("_token", "_tokens")) and key not in ("prev", "next"):
                    continue
                target = name if key in ("prev", "next") else key.rsplit("_token", 1)[0]
                target = {"first_sample": "sample", "last_sample": "sample", "first_annotation": "sample_annotation",
                          "last_annotation": "sample_annotation"}.get(target, target)  # fmt: skip
                for token in value if isinstance(value, list) else [value]:
                    if token == "" and key in ("prev", "next"):
                        continue
                    assert token in tokens[target], (name, key)
                    links += 1
    assert links > 1000


def test_chains_are_complete_and_in_order(tables: dict[str, list[dict[str, Any]]]):
    """prev and next of samples, sensor data and annotations: one chain per scene, sensor and instance."""
    calibrations = {row["token"]: row["sensor_token"] for row in tables["calibrated_sensor"]}
    scene_of = {row["token"]: row["scene_token"] for row in tables["sample"]}
    time_of = {row["token"]: row["timestamp"] for row in tables["sample"]}
    groups = {
        "sample": (lambda row: row["scene_token"], lambda row: row["timestamp"]),
        "sample_data": (
            lambda row: (scene_of[row["sample_token"]], calibrations[row["calibrated_sensor_token"]]),
            lambda row: row["timestamp"],
        ),
        "sample_annotation": (lambda row: row["instance_token"], lambda row: time_of[row["sample_token"]]),
    }
    for name, (group, time) in groups.items():
        chains = defaultdict(list)
        for row in tables[name]:
            chains[group(row)].append(row)
        for rows in chains.values():
            rows.sort(key=time)
            assert len({time(row) for row in rows}) == len(rows)
            assert [row["prev"] for row in rows] == ["", *(row["token"] for row in rows[:-1])]
            assert [row["next"] for row in rows] == [*(row["token"] for row in rows[1:]), ""]
        if name == "sample_annotation":
            for row in tables["instance"]:
                chain = chains[row["token"]]
                assert row["nbr_annotations"] == len(chain)
                assert row["first_annotation_token"] == chain[0]["token"]
                assert row["last_annotation_token"] == chain[-1]["token"]
    for scene in tables["scene"]:
        own = [row["token"] for row in tables["sample"] if row["scene_token"] == scene["token"]]
        assert (scene["nbr_samples"], scene["first_sample_token"], scene["last_sample_token"]) == (3, own[0], own[-1])


def test_files_sensors_and_rates(world: WorldSummary, tables: dict[str, list[dict[str, Any]]]):
    root = Path(world.path)
    listed = {row["filename"] for row in tables["sample_data"]} | {row["filename"] for row in tables["map"]}
    present = {
        str(path.relative_to(root)) for top in ("samples", "sweeps", "maps") for path in (root / top).rglob("*.*")
    }
    assert listed == present
    counts: dict[tuple[str, bool], int] = defaultdict(int)
    for row in tables["sample_data"]:
        folder, channel, name = row["filename"].split("/")
        assert folder == ("samples" if row["is_key_frame"] else "sweeps")
        assert name.split("__")[1:] == [channel, f"{row['timestamp']}.{_suffix(channel)}"]
        assert (row["fileformat"], row["width"], row["height"]) == (
            ("jpg", 160, 90) if channel.startswith("CAM") else ("pcd", 0, 0)
        )
        counts[channel, row["is_key_frame"]] += 1
    assert {channel for channel, _ in counts} == {*CAMERA_NAMES, LIDAR_NAME, *RADAR_NAMES}
    assert all(number == 6 for (_, key), number in counts.items() if key)
    assert counts[LIDAR_NAME, False] == 2 * (2 * 5 - 2)  # 10 Hz over one second, less the keyframes
    for radar in RADAR_NAMES:
        assert 2 * (13 - 1 - 2) <= counts[radar, False] <= 2 * (13 + 1 - 2)
    assert (world.images, world.lidar_sweeps) == (36, counts[LIDAR_NAME, False] + 6)
    images = [row for row in tables["sample_data"] if row["fileformat"] == "jpg"]
    assert Image.open(root / images[0]["filename"]).size == (160, 90)


def _suffix(channel: str) -> str:
    return {"CAM": "jpg", "LIDAR": "pcd.bin", "RADAR": "pcd"}[channel.split("_")[0]]


def test_sensors_fire_at_their_own_times(tables: dict[str, list[dict[str, Any]]]):
    stamps: dict[str, dict[str, int]] = defaultdict(dict)
    for row in tables["sample_data"]:
        if row["is_key_frame"]:
            stamps[row["filename"].split("/")[1]][row["sample_token"]] = row["timestamp"]
    for sample in tables["sample"]:
        token, time = sample["token"], sample["timestamp"]
        assert stamps[LIDAR_NAME][token] == time
        lags = [time - stamps[name][token] for name in CAMERA_NAMES]
        assert -1_000 <= min(lags) < max(lags) <= 44_000
        assert len(set(lags)) == 6
        assert all(abs(stamps[name][token] - time) < 41_000 for name in RADAR_NAMES)
    poses = {row["token"]: row for row in tables["ego_pose"]}
    assert all(poses[row["ego_pose_token"]]["timestamp"] == row["timestamp"] for row in tables["sample_data"])


def test_the_reader_counts_the_same_points_in_the_boxes(world: WorldSummary):
    source = NuScenesSource(world.path, world.version, sweeps=1)
    counted = 0
    for number in range(world.keyframes):
        sample = source.read(number)
        boxes = sample.boxes
        poses = rigid_from_quaternion(boxes.rotation, boxes.center)
        for sweeps, expected in ((sample.lidars, boxes.num_lidar_points), (sample.radars, boxes.num_radar_points)):
            inside = np.zeros(len(boxes), dtype=int)
            for sweep in sweeps:
                points = transform_points(sweep.ego_from_sensor, sweep.points[:, :3].astype(float))
                inside += points_in_box(poses, boxes.size, points).sum(axis=1)
            np.testing.assert_array_equal(inside, expected)
            counted += int(expected.sum())
        assert set(np.unique(boxes.visibility)) <= {1, 2, 3, 4}
    assert counted > 300


def test_splits_are_read_from_the_names_of_the_scenes(world: WorldSummary, tables: dict[str, list[dict[str, Any]]]):
    assert [row["name"] for row in tables["scene"]] == ["world-0000-train", "world-0001-val"]
    splits = NuScenesSource(world.path, world.version).splits()
    assert {name: list(samples) for name, samples in splits.items()} == {"train": [0, 1, 2], "val": [3, 4, 5]}


def test_velocities_of_the_reader_agree_with_the_attributes(world: WorldSummary):
    source = NuScenesSource(world.path, world.version)
    speeds = defaultdict(list)
    for number in range(world.keyframes):
        boxes = source.read(number).boxes
        for attributes, velocity in zip(boxes.attributes, boxes.velocity, strict=True):
            if attributes and np.isfinite(velocity).all():
                speeds[attributes[0]].append(float(np.linalg.norm(velocity)))
    assert min(speeds["vehicle.moving"]) > 0.3
    assert max(speeds["vehicle.parked"] + speeds["vehicle.stopped"]) < 0.05


def test_every_object_was_seen_in_its_first_and_last_annotation(tables: dict[str, list[dict[str, Any]]]):
    rows = {row["token"]: row for row in tables["sample_annotation"]}
    for instance in tables["instance"]:
        for end in ("first", "last"):
            row = rows[instance[f"{end}_annotation_token"]]
            assert row["num_lidar_pts"] + row["num_radar_pts"] > 0


def test_the_map_mask_is_drivable_where_vehicles_drive(world: WorldSummary, tables: dict[str, list[dict[str, Any]]]):
    logs = {row["token"]: row["log_token"] for row in tables["scene"]}
    masks = {log: row["filename"] for row in tables["map"] for log in row["log_tokens"]}
    scene_of = {row["token"]: row["scene_token"] for row in tables["sample"]}
    poses = {row["token"]: row["translation"] for row in tables["ego_pose"]}
    for row in tables["sample_data"][::7]:
        mask = np.asarray(Image.open(Path(world.path) / masks[logs[scene_of[row["sample_token"]]]]))
        x, y, _ = poses[row["ego_pose_token"]]
        assert mask[mask.shape[0] - 1 - int(y * 10), int(x * 10)] == 255
        assert 0.01 < (mask > 0).mean() < 0.5


def test_the_same_world_is_not_written_again(world: WorldSummary):
    before = {path: path.stat().st_mtime_ns for path in Path(world.path).rglob("*")}
    lines: list[str] = []
    again = write_world(world.path, **TINY, progress=lines.append)
    assert again.reused
    assert (again.keyframes, again.annotations) == (world.keyframes, world.annotations)
    assert before == {path: path.stat().st_mtime_ns for path in Path(world.path).rglob("*")}
    assert "already" in lines[0]


def test_another_world_is_replaced_only_on_demand(tmp_path: Path):
    small = TINY | {"scenes": 1, "keyframes": 1, "val_scenes": 0, "sweeps": False}
    out = tmp_path / "root"
    write_world(out, **small, progress=_ignore)
    with pytest.raises(UserError, match=r"another embedded world \(seed 0, not 7\).*--overwrite"):
        write_world(out, **small, seed=7, progress=_ignore)
    assert json.loads((out / RECORD_NAME).read_text())["arguments"]["seed"] == 0
    replaced = write_world(out, **small, seed=7, overwrite=True, progress=_ignore)
    assert not replaced.reused
    assert json.loads((out / RECORD_NAME).read_text())["arguments"]["seed"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert not list((out / "sweeps").rglob("*.pcd*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_never_touched(tmp_path: Path, overwrite: bool):
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"exists and is no embedded world"):
        write_world(tmp_path, **TINY, overwrite=overwrite, progress=_ignore)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_an_empty_folder_is_used(tmp_path: Path):
    small = TINY | {"scenes": 1, "keyframes": 1, "val_scenes": 0}
    assert write_world(tmp_path, **small, progress=_ignore).keyframes == 1
    assert (tmp_path / "v1.0-mini" / "sample.json").exists()


def test_an_unwritable_place_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the embedded world to .*file/world: .*/file is not a folder"):
        write_world(tmp_path / "file" / "world", **TINY, progress=_ignore)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_world(tmp_path / "root", **TINY, progress=_ignore)
    assert list(tmp_path.iterdir()) == []


def _die(*args: object) -> None:
    os._exit(9)


def test_a_worker_that_dies_is_reported_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "record_scene", _die)
    with pytest.raises(UserError, match=r"a process that was recording a scene died.*fewer workers"):
        write_world(tmp_path / "root", **TINY, workers=2, progress=_ignore)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenes": 0}, r"scenes: .*greater than or equal to 1 \(found 0\)"),
        ({"scenes": 2, "val_scenes": 3}, r"3 validation scenes of 2 scenes"),
        ({"keyframes": 1000}, r"keyframes: .*less than or equal to 80"),
        ({"seed": -1}, r"seed: "),
        ({"image_size": (8, 8)}, r"image_width: "),
        ({"lidar_rate": 7}, r"lidar_rate: .*10 or 20"),
        ({"version": "../elsewhere"}, r"version: "),
        ({"workers": 0}, r"workers: at least 1"),
    ],
)
def test_silly_arguments_are_refused_by_name(tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        write_world(tmp_path / "root", **arguments, progress=_ignore)
    assert list(tmp_path.iterdir()) == []


def test_twenty_hertz_lidar_has_twice_the_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = TINY | {"scenes": 1, "keyframes": 2, "val_scenes": 0}
    summary = write_world(tmp_path / "root", **small, lidar_rate=20, progress=_ignore)
    assert summary.lidar_sweeps == 11


def test_progress_names_scenes_and_rate(tmp_path: Path):
    lines: list[str] = []
    write_world(tmp_path / "root", **(TINY | {"keyframes": 1}), progress=lines.append)
    assert [line.split()[0] for line in lines] == ["world-0000-train", "world-0001-val"]
    assert "2/2 keyframes" in lines[1]
    assert "keyframes/s" in lines[1]


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())

    def main() -> int | None:
        args = parser.parse_args(arguments)
        return args.run(args)

    return exit_on_user_error(main)


def test_the_command_writes_a_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["synth", "--out", str(tmp_path / "w"), "--scenes", "1", "--val-scenes", "0", "--keyframes", "1"]
    command += ["--image-size", "128x72", "--lidar-azimuths", "120", "--no-sweeps", "--version", "v9"]
    assert _run(command) == 0
    assert "1 keyframes" in capsys.readouterr().out
    assert (tmp_path / "w" / "v9" / "scene.json").exists()
    assert _run(command) == 0
    assert "unchanged" in capsys.readouterr().out
    assert _run([*command, "--seed", "3"]) == 2
    assert "holds another embedded world" in capsys.readouterr().err


def test_the_command_refuses_a_bad_image_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        _run(["synth", "--out", str(tmp_path / "w"), "--image-size", "big"])
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().err


def test_a_lost_race_for_the_name_is_no_error_if_the_worlds_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two processes that want the same world at once both get it."""
    small = TINY | {"scenes": 1, "keyframes": 1, "val_scenes": 0}
    write_world(tmp_path / "first", **small, progress=_ignore)
    record, mine = writer.record_scene, tmp_path / "root"

    def overtaken(*args: Any) -> Any:
        part = record(*args)
        (tmp_path / "first").rename(mine)  # the other process was faster
        (mine / "marker").write_text("")
        return part

    monkeypatch.setattr(writer, "record_scene", overtaken)
    summary = write_world(mine, **small, progress=_ignore)
    assert summary.keyframes == 1
    assert (mine / "marker").exists()  # the one that was there first has stayed
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
