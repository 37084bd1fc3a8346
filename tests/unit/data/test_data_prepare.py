"""Preparing: layout, identity, interruption, repair and refusals, all in this process."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from list_source import ListSource
from nuscenes_builder import build_root, edit_table
from sample_factory import make_sample

from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.prepare import prepare, prepare_nuscenes
from sensorlab.data.prepare_shards import PrepareOptions
from sensorlab.data.schema import decode_table
from sensorlab.data.shards import sample_digest
from sensorlab.errors import UserError


def samples(scene: str, first: int, count: int):
    return [dataclasses.replace(make_sample(i), scene=scene) for i in range(first, first + count)]


def list_source(**options) -> ListSource:
    return ListSource({"train": samples("scene-a", 0, 7), "val": samples("scene-b", 7, 2)}, **options)


SMALL = PrepareOptions(row_group_size=2, samples_per_shard=3)


def quiet(line: str) -> None:
    pass


def prepared(out: Path, source: ListSource | None = None, options: PrepareOptions = SMALL) -> PreparedDataset:
    return prepare(source or list_source(), out, options, workers=0, report=quiet)


def test_layout_and_manifest(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "out")
    files = sorted(str(p.relative_to(dataset.path)) for p in dataset.path.glob("*/*.parquet"))
    assert files == [
        "train/shard-00000.parquet", "train/shard-00001.parquet", "train/shard-00002.parquet",
        "val/shard-00000.parquet",
    ]  # fmt: skip
    manifest = dataset.manifest
    assert (manifest.num_samples, manifest.num_boxes) == (9, 27)
    assert manifest.splits["train"].scenes == ("scene-a",)
    assert [shard.rows for shard in manifest.splits["train"].shards] == [(2, 1), (2, 1), (1,)]
    footer = pq.read_metadata(dataset.path / "train/shard-00000.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [2, 1]
    assert [(camera.name, camera.sizes) for camera in manifest.sensors.cameras] == [
        ("CAM_0", ((64, 36),)), ("CAM_1", ((64, 36),)),
    ]  # fmt: skip
    assert (manifest.sensors.radars, manifest.sensors.lidars) == (("RADAR_0", "RADAR_1"), ("LIDAR_0",))
    assert manifest.source == {"kind": "list", "version": "1", "image_height": None, **SMALL.model_dump()}


def test_class_statistics(tmp_path: Path) -> None:
    source = list_source()
    boxes = [sample.boxes for some in source.samples.values() for sample in some]
    sizes = np.concatenate([b.size[[c == "vehicle.car" for c in b.category]] for b in boxes])
    visible = sum(int(v >= 2) for b in boxes for v, c in zip(b.visibility, b.category, strict=True) if "car" in c)
    statistics = prepared(tmp_path / "out", source).manifest.classes["vehicle.car"]
    assert (statistics.count, statistics.visible) == (len(sizes), visible)
    np.testing.assert_allclose(statistics.mean_size, sizes.mean(axis=0), atol=1e-4)


def test_samples_come_back(tmp_path: Path) -> None:
    split = prepared(tmp_path / "out").split("train")
    read = decode_table(split.read(range(split.num_samples)))
    assert [sample_digest(s) for s in read] == [sample_digest(s) for s in samples("scene-a", 0, 7)]


def test_digest_depends_on_content_alone(tmp_path: Path) -> None:
    first = prepared(tmp_path / "a")
    again = prepared(tmp_path / "b")
    assert again.digest == first.digest
    assert [s.sha256 for s in again.manifest.splits["train"].shards] == [
        s.sha256 for s in first.manifest.splits["train"].shards
    ]
    other_shards = prepared(tmp_path / "c", options=PrepareOptions(row_group_size=3, samples_per_shard=5))
    assert other_shards.digest == first.digest
    changed = ListSource({"train": samples("scene-a", 0, 7), "val": samples("scene-b", 8, 2)})
    assert prepared(tmp_path / "d", changed).digest != first.digest


def test_repeating_a_finished_preparation_reads_nothing(tmp_path: Path) -> None:
    prepared(tmp_path / "out")
    source = list_source()
    lines: list[str] = []
    prepare(source, tmp_path / "out", SMALL, workers=0, report=lines.append)
    assert source.reads == []
    assert "complete and up to date" in lines[-1]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), UserError("bad sample"), RuntimeError("bug")])
def test_interrupted_preparation_continues(tmp_path: Path, interruption: BaseException) -> None:
    """The fifth read fails: shard 0 (3 samples) is done, shard 1 is not."""
    out = tmp_path / "out"
    with pytest.raises(type(interruption)):
        prepared(out, list_source(fail_at=(4, interruption)))
    assert [p.name for p in out.glob("*/*.parquet")] == ["shard-00000.parquet"]
    assert list(out.glob("**/*.tmp")) == []
    with pytest.raises(UserError, match="repeating its command"):
        PreparedDataset.open(out)
    source = list_source()
    dataset = prepared(out, source)
    assert source.reads == [3, 4, 5, 6, 7, 8]
    assert dataset.digest == prepared(tmp_path / "straight").digest


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad"):
        prepared(tmp_path / "out", list_source(fail_at=(4, UserError("bad"))))
    leftover = tmp_path / "out" / "train" / ".shard-00001.parquet.4711.tmp"
    leftover.write_text("half a shard")
    prepared(tmp_path / "out")
    assert not leftover.exists()


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "record"])
def test_damaged_shards_are_written_again(tmp_path: Path, damage: str, with_manifest: bool) -> None:
    dataset = prepared(tmp_path / "out")
    shard = dataset.path / "train/shard-00001.parquet"
    content = shard.read_bytes()
    if damage == "altered":
        shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "truncated":
        shard.write_bytes(content[:-10])
    elif damage == "missing":
        shard.unlink()
    else:
        (dataset.path / ".prepare" / "train-shard-00001.json").write_text("{")
        with_manifest = False  # a finished dataset does not need its records
    if not with_manifest:
        (dataset.path / "manifest.json").unlink()
    source = list_source()
    assert prepared(dataset.path, source).digest == dataset.digest
    assert source.reads == [3, 4, 5]
    assert shard.read_bytes() == content


def test_verification_by_size_does_not_see_altered_bytes(tmp_path: Path) -> None:
    """What ``verify="size"`` trades for a fast start; reading and checking still find it."""
    dataset = prepared(tmp_path / "out")
    shard = dataset.path / "val/shard-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    source = list_source()
    prepare(source, dataset.path, SMALL, workers=0, verify="size", report=quiet)
    assert source.reads == []


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(out)
    with pytest.raises(UserError, match=r"other arguments \(row_group_size: 2 there, 4 now\); choose another --out"):
        prepared(out, options=PrepareOptions(row_group_size=4, samples_per_shard=3))
    with pytest.raises(UserError, match="kind: 'list' there, 'other' now"):
        prepared(out, list_source(name="other"))


def test_other_arguments_are_refused_while_unfinished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad"):
        prepared(tmp_path / "out", list_source(fail_at=(4, UserError("bad"))))
    with pytest.raises(UserError, match="other arguments"):
        prepared(tmp_path / "out", options=PrepareOptions(row_group_size=4, samples_per_shard=3))


def test_a_first_try_that_never_started_binds_nobody(tmp_path: Path) -> None:
    """Forgetting the splits, then giving them, is not a change of arguments."""
    root = build_root(tmp_path / "root")
    edit_table(root, "scene", lambda records: [record.update(name=f"drive-{i}") for i, record in enumerate(records)])
    with pytest.raises(UserError, match="--val-scenes"):
        nuscenes(root, tmp_path / "out")
    assert nuscenes(root, tmp_path / "out", splits={"val": ["drive-1"]}).manifest.num_samples == 5


def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists and is no prepared dataset"):
        prepared(tmp_path)
    with pytest.raises(UserError, match="exists and is no prepared dataset"):
        prepared(tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*/file/out"):
        prepared(tmp_path / "file" / "out")


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self, table, row_group_size=None) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(UserError, match=r"cannot write .*shard-00000\.parquet: No space left on device"):
        prepared(tmp_path / "out")


def test_source_without_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memory has no samples"):
        prepared(tmp_path / "out", ListSource({}))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """The second one waits and then finds the work done."""
    dataset = prepared(tmp_path / "out")
    lines: list[str] = []
    with open(dataset.path / ".prepare" / "lock") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        waiting = threading.Event()

        def report(line: str) -> None:
            lines.append(line)
            waiting.set()

        thread = threading.Thread(
            target=prepare, args=(list_source(), dataset.path, SMALL), kwargs={"workers": 0, "report": report}
        )
        thread.start()
        assert waiting.wait(10)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()
    assert "waiting for the process" in lines[0]
    assert "complete and up to date" in lines[1]


def test_waiting_for_a_process_with_other_arguments_ends_in_a_refusal(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".prepare").mkdir(parents=True)
    errors: list[str] = []

    def attempt() -> None:
        try:
            prepared(out, options=PrepareOptions(row_group_size=4))
        except UserError as error:
            errors.append(str(error))

    with open(out / ".prepare" / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        thread = threading.Thread(target=attempt)
        thread.start()
        shutil.copytree(prepared(tmp_path / "other").path, out, dirs_exist_ok=True)
    thread.join(10)
    assert len(errors) == 1
    assert "other arguments" in errors[0]


# ------------------------------------------------------------------------------------------------------------- nuScenes


def nuscenes(root: Path, out: Path, **options) -> PreparedDataset:
    return prepare_nuscenes(root, "v1.0-mini", out, workers=0, report=quiet, **options)


def test_nuscenes_arguments_reach_the_dataset(tmp_path: Path) -> None:
    root = build_root(tmp_path / "root")
    dataset = nuscenes(root, tmp_path / "out", sweeps=3, image_height=18, splits={"val": ["drive-train"]})
    assert {name: split.num_samples for name, split in dataset.manifest.splits.items()} == {"train": 2, "val": 3}
    assert dataset.manifest.sensors.cameras[0].sizes == ((32, 18),)
    assert (dataset.manifest.source["sweeps"], dataset.manifest.source["version"]) == (3, "v1.0-mini")
    sample = decode_table(dataset.split("val").read([1]))[0]
    assert len(sample.lidars) == 3
    np.testing.assert_allclose(sample.cameras[0].intrinsics, [[25, 0, 15.5], [0, 25, 8.5], [0, 0, 1]])


def test_moved_dataroot_is_the_same_and_edited_tables_are_not(tmp_path: Path) -> None:
    root = build_root(tmp_path / "root")
    first = nuscenes(root, tmp_path / "out")
    moved = root.rename(tmp_path / "moved")
    assert nuscenes(moved, tmp_path / "out").digest == first.digest
    edit_table(moved, "sample_annotation", lambda records: records[0].update(num_lidar_pts=99))
    with pytest.raises(UserError, match=r"other arguments .*tables"):
        nuscenes(moved, tmp_path / "out")


def test_fault_of_the_source_leaves_no_dataset(tmp_path: Path) -> None:
    root = build_root(tmp_path / "root")
    next((root / "samples" / "RADAR_FRONT").glob("drive-val*")).unlink()
    with pytest.raises(UserError, match="table sample_data: record 'drive-val-RADAR_FRONT-"):
        nuscenes(root, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "options", [{"image_height": 0}, {"row_group_size": 0}, {"samples_per_shard": -1}, {"sweeps": 0}]
)
def test_numbers_out_of_range(tmp_path: Path, options: dict[str, int]) -> None:
    root = build_root(tmp_path / "root", train=1, val=1)
    with pytest.raises(UserError, match=next(iter(options))):
        nuscenes(root, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_negative_workers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers is -1"):
        prepare(list_source(), tmp_path / "out", workers=-1)


def test_arguments_file_that_cannot_be_read(tmp_path: Path) -> None:
    state = tmp_path / "out" / ".prepare"
    state.mkdir(parents=True)
    (state / "arguments.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*arguments\.json"):
        prepared(tmp_path / "out")


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    tree = json.loads((prepared(tmp_path / "out").path / "manifest.json").read_text())
    assert tree["schema_version"] == 1
    assert set(tree["splits"]) == {"train", "val"}
