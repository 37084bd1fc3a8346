from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sensorlab.errors import UserError
from sensorlab.runs.outbox import Artifact, Outbox, checked_image
from sensorlab.runs.spool import Record, Spool


def records(start: int, stop: int) -> list[Record]:
    return [Record("metrics", step, 1000 + step, {"loss": step / 3}) for step in range(start, stop)]


def test_records_come_back_in_order_across_processes_of_delivery(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run.jsonl")
    spool.append(records(0, 5))
    first, position = spool.peek(points=2)
    assert first == records(0, 2)
    spool.advance(position, len(first))
    spool.append(records(5, 7))
    rest, position = spool.peek(points=100)
    assert rest == records(2, 7)
    spool.advance(position, len(rest))
    assert len(spool) == 0
    assert not spool.path.exists()
    spool.append(records(7, 8))  # usable again after it was emptied
    assert spool.peek(points=1)[0] == records(7, 8)


def test_nan_infinity_and_numpy_values_survive(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run.jsonl")
    spool.append([Record("metrics", 1, 2, {"a": float("nan"), "b": float("inf"), "c": np.float32(0.5), "d": object})])
    values = spool.peek(points=9)[0][0].values
    assert np.isnan(values["a"])
    assert values["b"] == float("inf")
    assert values["c"] == 0.5
    assert isinstance(values["d"], str)


def test_a_successor_takes_over_and_drops_a_torn_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "run.jsonl")
    spool.append(records(0, 3))
    spool.close()
    with spool.path.open("ab") as file:
        file.write(b'["metrics",3,1003,{"lo')  # a process died in the middle of a write
    with caplog.at_level(logging.WARNING):
        successor = Spool(tmp_path / "run.jsonl")
    assert "unfinished record" in caplog.text
    successor.append(records(3, 4))
    assert successor.peek(points=99)[0] == records(0, 4)
    assert successor.last_steps() == {"loss": 3}


def test_what_is_no_spool_is_not_thrown_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "run.jsonl"
    spool = Spool(file)
    spool.append(records(0, 2))
    spool.close()
    damaged = b'{"step": 1, "train/loss": 0.5}\n["metrics",3,1003,{"lo'
    with file.open("ab") as stream:
        stream.write(damaged)
    with caplog.at_level(logging.WARNING):
        successor = Spool(file)
    assert "moved to" in caplog.text
    assert (tmp_path / "run.damaged").read_bytes() == damaged
    assert successor.peek(points=99)[0] == records(0, 2)


def test_full_disk_adds_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "run.jsonl")
    spool.append(records(0, 2))
    writer = spool._open()

    class FullDisk:
        fileno = writer.fileno

        def write(self, data: memoryview) -> int:
            os.write(writer.fileno(), data[:10])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "_writer", FullDisk())
    with pytest.raises(OSError, match="No space"):
        spool.append(records(2, 3))
    monkeypatch.setattr(spool, "_writer", writer)
    spool.append(records(3, 4))
    assert spool.peek(points=99)[0] == records(0, 2) + records(3, 4)
    assert len(spool) == 3


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run.jsonl")
    code = "import sys; from pathlib import Path; from sensorlab.runs.spool import Spool; Spool(Path(sys.argv[1]), 0.1)"
    command = [sys.executable, "-c", code, str(spool.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "another process records this run" in done.stderr
    spool.close()
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_an_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the recording spool"):
        Spool(tmp_path / "file" / "run.jsonl")


def test_outbox_keeps_artifacts_in_order_over_a_restart(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    outbox = Outbox(tmp_path / "box")
    outbox.put(Artifact("image", "val/panel", 3, 1000, picture))
    outbox.put(Artifact("content", "config/a.txt", 0, 1001, b"text"))
    outbox = Outbox(tmp_path / "box")  # a new process
    outbox.put(Artifact("path", "model", 0, 1002, "/models/best"))
    seen = []
    while (item := outbox.first()) is not None:
        seen.append(item[1])
        outbox.remove(item[0])
    assert [(a.kind, a.name, a.step, a.time_ms) for a in seen] == [
        ("image", "val/panel", 3, 1000),
        ("content", "config/a.txt", 0, 1001),
        ("path", "model", 0, 1002),
    ]
    np.testing.assert_array_equal(seen[0].payload, picture)
    assert seen[1].payload == b"text"
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_images_that_no_page_can_show_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        checked_image(bad)
