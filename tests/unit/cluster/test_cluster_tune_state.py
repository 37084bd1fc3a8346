"""Tune's state in one file: whole, of one moment, and the latest."""

import zipfile
from pathlib import Path

import pytest

from sensorlab.cluster.tune_state import FILE, bring_back, keep

NAMES = ("experiment_state-{}.json", "searcher-state-{}.pkl", "search_gen_state-{}.json")


def write(folder: Path, session: str, content: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / name.format(session)).write_text(f"{content} of {name}")


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.iterdir())}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(where Tune writes, the sweep's directory, where Tune copies to)."""
    for name in ("written", "sweep", "sweep/tune"):
        (tmp_path / name).mkdir()
    return tmp_path / "written", tmp_path / "sweep", tmp_path / "sweep" / "tune"


def test_what_was_kept_takes_the_place_of_torn_and_mixed_files(folders: tuple[Path, Path, Path]) -> None:
    written, sweep, copied = folders
    write(written, "2026-01-02", "whole")
    (written / "other-2026-01-02.txt").write_text("not of the state")
    keep(written, "2026-01-02", sweep)
    write(copied, "2026-01-02", "older")
    (copied / NAMES[0].format("2026-01-02")).write_text("")
    (copied / "tuner.pkl").write_text("the tuner")
    assert bring_back(sweep, copied)
    expected = {name.format("2026-01-02"): f"whole of {name}" for name in NAMES}
    assert content(copied) == {**expected, "tuner.pkl": "the tuner"}


def test_the_latest_comes_back_whatever_the_clock_said(folders: tuple[Path, Path, Path]) -> None:
    written, sweep, copied = folders
    for session in ("2026-01-02", "2025-12-31"):  # the clock was set back
        write(written, session, session)
        write(copied, session, session)
        keep(written, session, sweep)
    assert bring_back(sweep, copied)
    assert content(copied) == {name.format("2025-12-31"): f"2025-12-31 of {name}" for name in NAMES}


def test_without_one_tunes_own_files_have_to_do(folders: tuple[Path, Path, Path]) -> None:
    _, sweep, copied = folders
    assert not bring_back(sweep, copied)
    write(copied, "2026-01-02", "own")
    assert bring_back(sweep, copied)
    assert len(content(copied)) == 3


def test_a_full_disk_leaves_what_was_kept(folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    written, sweep, _ = folders
    write(written, "2026-01-02", "whole")
    keep(written, "2026-01-02", sweep)

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        keep(written, "2026-01-02", sweep)
    with zipfile.ZipFile(sweep / FILE) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 3
