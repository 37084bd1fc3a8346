from __future__ import annotations

import argparse
import socket
import subprocess
from pathlib import Path

import pytest

from sensorlab.errors import UserError
from sensorlab.runs import commands, environment
from sensorlab.runs.environment import capture_environment, code_revision


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SENSORLAB_GIT_REVISION", raising=False)
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "-q", "-m", "first", "--no-verify")
    return folder


def test_revision_and_changes_of_a_checkout(repository: Path) -> None:
    clean = code_revision(repository)
    assert (clean.commit, clean.is_dirty, clean.diff, clean.origin) == (
        git(repository, "rev-parse", "HEAD"),
        *(False, "", "git"),
    )
    (repository / "code.py").write_text("x = 2\n")
    (repository / "new.py").write_text("secret = 1\n")
    dirty = code_revision(repository)
    assert dirty.is_dirty
    assert "+x = 2" in dirty.diff
    assert "#   new.py" in dirty.diff
    assert "secret" not in dirty.diff  # untracked files by name only


def test_a_large_diff_is_cut(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MAX_DIFF_BYTES", 200)
    (repository / "code.py").write_text("ö" * 500)
    diff = code_revision(repository).diff
    assert len(diff.encode()) < 400
    assert "cut here: the whole diff has" in diff


def test_outside_a_checkout_the_variable_then_the_file_say_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SENSORLAB_GIT_REVISION", raising=False)
    unknown = code_revision(tmp_path)
    assert (unknown.commit, unknown.is_dirty, unknown.origin) == ("unknown", None, "unknown")
    (tmp_path / ".git-revision").write_text("abc123 dirty\n")
    from_file = code_revision(tmp_path)
    assert (from_file.commit, from_file.is_dirty, from_file.origin) == ("abc123", True, ".git-revision")
    monkeypatch.setenv("SENSORLAB_GIT_REVISION", "def456")
    from_variable = code_revision(tmp_path)
    assert (from_variable.commit, from_variable.is_dirty) == ("def456", False)
    assert from_variable.origin == "SENSORLAB_GIT_REVISION"


def test_what_is_captured_names_no_host_and_no_secret(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2-hunter2")
    captured = capture_environment(repository)
    everything = " ".join([*captured.tags.values(), *captured.files.values()])
    assert "hunter2" not in everything
    assert socket.gethostname() not in captured.files["system.txt"].split()
    assert captured.tags["mlflow.source.git.commit"] == git(repository, "rev-parse", "HEAD")
    assert captured.tags["sensorlab.git_dirty"] == "false"
    packages = captured.files["packages.txt"].splitlines()
    assert any(line.startswith("mlflow==3") for line in packages)
    assert "processors: " in captured.files["system.txt"]

    recorded: dict[str, str] = {}

    class Recorder:
        def set_tags(self, tags: dict[str, str]) -> None:
            recorded.update(tags)

        def log_text(self, text: str, artifact_file: str) -> None:
            recorded[artifact_file] = text

    captured.record(Recorder())
    assert recorded["environment/packages.txt"] == captured.files["packages.txt"]


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    return parser.parse_args(["runs", "deliver", *arguments])


def test_deliver_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    missing = parse(str(tmp_path / "none"))
    with pytest.raises(UserError, match="does not exist"):
        missing.run(missing)
    args = parse(str(tmp_path))
    with pytest.raises(UserError, match="name the tracking store"):
        args.run(args)
    args = parse(str(tmp_path), "--store", "sqlite:///x.db")
    assert args.run(args) == 0
    assert "nothing to deliver" in capsys.readouterr().out
