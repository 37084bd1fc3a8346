"""What a run ran on: interpreter, packages, hardware, code revision and the changes that were not committed.

Environment variables, the user's name and the machine's name are not recorded: they hold secrets and say little.
Hosts are told apart by a hash.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import psutil

import sensorlab

MAX_DIFF_BYTES = 1_000_000
REVISION_VARIABLE = "SENSORLAB_GIT_REVISION"
REVISION_FILE = ".git-revision"
UNKNOWN = "unknown"
# Parts of the package that no number depends on: a change there does not make a run another one.
WITHOUT_NUMBERS = ("bench", "cli.py", "config_reference.py", "replay", "report", "runs", "selftest")


@dataclass(frozen=True)
class CodeRevision:
    """The state of the code.

    Attributes:
        commit: full hash, or "unknown".
        is_dirty: uncommitted changes; ``None`` if unknown.
        diff: ``git diff HEAD`` and the names of untracked files, cut at ``MAX_DIFF_BYTES``.
        origin: where this was learnt: "git", the environment variable, the file, or "unknown".
    """

    commit: str
    is_dirty: bool | None
    diff: str
    origin: str


@dataclass(frozen=True)
class Environment:
    """Captured environment: ``tags`` for the run, ``files`` (name to content) as artifacts."""

    tags: Mapping[str, str]
    files: Mapping[str, str]

    def record(self, recorder: _Records) -> None:
        """Hand everything to a recorder (see :class:`sensorlab.runs.recorder.RunRecorder`)."""
        recorder.set_tags(self.tags)
        for name, content in self.files.items():
            recorder.log_text(content, f"environment/{name}")


class _Records(Protocol):
    def set_tags(self, tags: Mapping[str, Any]) -> None: ...

    def log_text(self, text: str, artifact_file: str) -> None: ...


def capture_environment(root: str | Path | None = None) -> Environment:
    """Capture the environment of this process.

    Args:
        root: folder of the code; default: the working directory. A job's working directory on a cluster is a copy
            without ``.git``: there the revision comes from the variable ``SENSORLAB_GIT_REVISION`` or from the file
            ``.git-revision`` in ``root`` (a commit hash, followed by ``dirty`` if it had changes).
    """
    code = code_revision(Path(root or Path.cwd()))
    hardware = describe_hardware()
    tags = {
        "sensorlab.version": sensorlab.__version__,
        "sensorlab.python": platform.python_version(),
        "sensorlab.git_dirty": UNKNOWN if code.is_dirty is None else str(code.is_dirty).lower(),
        "sensorlab.git_origin": code.origin,
        "sensorlab.host": hardware["host"],
        "sensorlab.device": hardware["device"],
        # The names that MLflow's pages look for.
        "mlflow.source.git.commit": code.commit,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
    }
    files = {
        "system.txt": "".join(f"{name}: {value}\n" for name, value in hardware.items()),
        "packages.txt": installed_packages(),
        "source.txt": source_digests(Path(sensorlab.__file__).parent),
        "git_revision.txt": f"{code.commit}{' dirty' if code.is_dirty else ''}\n",
    }
    if code.diff:
        files["git.diff"] = code.diff
    return Environment(tags, files)


def code_revision(root: Path) -> CodeRevision:
    """The revision of the code in ``root``; what was said explicitly wins over what git finds."""
    said = os.environ.get(REVISION_VARIABLE, "").strip()
    if said:
        return _parse_revision(said, REVISION_VARIABLE)
    head = _git(root, "rev-parse", "HEAD")
    if head is not None:
        diff = _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""
        untracked = _git(root, "ls-files", "--others", "--exclude-standard") or ""
        if untracked:
            diff += "\n# untracked files:\n" + "".join(f"#   {name}\n" for name in untracked.splitlines()[:1000])
        return CodeRevision(head.strip(), bool(diff), _bounded(diff), "git")
    try:
        return _parse_revision((root / REVISION_FILE).read_text(encoding="utf-8"), REVISION_FILE)
    except OSError:
        return CodeRevision(UNKNOWN, None, "", UNKNOWN)


def describe_hardware() -> dict[str, str]:
    """Operating system, processors, memory and accelerators, as text."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        device = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    else:
        device = "cpu"
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "host": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        "device": device,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor_name(),
        "processors": f"{os.cpu_count()} ({affinity} usable by this process)",
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "torch_threads": str(torch.get_num_threads()),
    }


def installed_packages() -> str:
    """``name==version`` of every installed distribution, one per line, sorted; can be given to ``pip install -r``."""
    pairs = {(dist.metadata["Name"] or "", dist.version) for dist in metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(pairs, key=lambda pair: pair[0].lower()) if name)


def source_digests(package: Path) -> str:
    """``sha256  path`` of every Python file of a package, sorted: what the code was, with or without a repository."""
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    return "".join(f"{hashlib.sha256((package / name).read_bytes()).hexdigest()}  {name}\n" for name in files)


def changed_sources(then: str, now: str) -> list[str]:
    """Files that numbers depend on and that two :func:`source_digests` do not have in common, sorted."""
    before, after = _numeric_sources(then), _numeric_sources(now)
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _numeric_sources(digests: str) -> dict[str, str]:
    """Path to digest."""
    lines = [line.partition("  ") for line in digests.splitlines()]
    return {path: digest for digest, _, path in lines if path.partition("/")[0] not in WITHOUT_NUMBERS}


def _parse_revision(text: str, origin: str) -> CodeRevision:
    words = text.split()
    if not words:
        return CodeRevision(UNKNOWN, None, "", UNKNOWN)
    return CodeRevision(words[0], "dirty" in words[1:], "", origin)


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in ``root``; ``None`` outside a repository, without git, or if it hangs."""
    git = shutil.which("git")
    if git is None or not root.is_dir():
        return None
    try:
        # No optional locks: reading the status must not disturb a commit that runs at the same time.
        command = [git, "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=20, check=True, env=_git_environment())
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace")


def _git_environment() -> dict[str, str]:
    # GIT_DIR and the like, set inside hooks, would point to another repository than root.
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def _bounded(diff: str) -> str:
    data = diff.encode()
    if len(data) <= MAX_DIFF_BYTES:
        return diff
    cut = data[:MAX_DIFF_BYTES].decode("utf-8", errors="ignore")
    return f"{cut}\n# cut here: the whole diff has {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}\n"


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or UNKNOWN
