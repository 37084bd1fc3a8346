"""``sensorlab data`` as a user types it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from nuscenes_builder import build_root

from sensorlab.data import commands
from sensorlab.errors import exit_on_user_error


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", *arguments])
    return exit_on_user_error(lambda: args.run(args))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_root(tmp_path_factory.mktemp("commands"))


def prepare(root: Path, out: Path, *options: str) -> int:
    return run("prepare", "nuscenes", "--dataroot", str(root), "--version", "v1.0-mini", "--out", str(out), *options)


def test_prepare_check_show(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert prepare(root, out, "--workers", "0", "--image-height", "18", "--sweeps", "2") == 0
    assert "5/5 samples (100 %)" in capsys.readouterr().out
    assert run("check", str(out)) == 0
    assert "CAM_FRONT: 32x18" in capsys.readouterr().out
    assert run("show", str(out), "--split", "val", "--index", "1", "--out", str(tmp_path / "x.png")) == 0
    assert (tmp_path / "x.png").stat().st_size > 10_000
    (out / "val" / "shard-00000.parquet").unlink()
    capsys.readouterr()
    assert run("check", str(out), "--fast") == 1
    assert "FAULT" in capsys.readouterr().out


def test_splits_by_option(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert prepare(root, out, "--workers", "0", "--val-scenes", "drive-train", "--split", "test=drive-val") == 0
    assert run("check", str(out)) == 0
    text = capsys.readouterr().out
    assert "val: 3 samples" in text
    assert "test: 2 samples" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "val"], "--split 'val': expected NAME=SCENE,SCENE"),
        (["--split", "../x=drive-val"], "split name '../x'"),
        (["--val-scenes", ","], "expected NAME=SCENE"),
        (["--val-scenes", "drive-vol"], "did you mean 'drive-val'"),
        (["--modalities", "camera,sonar"], "modalities are camera, sonar"),
        (["--sweeps", "0"], "sweeps is 0"),
        (["--workers", "-2"], "workers is -2"),
    ],
)
def test_mistakes_end_with_one_message_and_code_2(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert prepare(root, tmp_path / "out", "--workers", "0", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_show_and_check_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(tmp_path)) == 2
    assert run("show", str(tmp_path), "--out", str(tmp_path / "x.png")) == 2
    assert capsys.readouterr().err.count("is not a prepared dataset") == 2
